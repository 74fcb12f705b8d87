// Package snapshot is what a backup remembers: a [Snapshot], the tree of
// [Entry] values below it, and the streams of bytes those entries name.
//
// # One table, sorted
//
// A snapshot's files are one table of entries in walk order ([Compare]): by
// directory, then by name, with '/' sorting before every other byte. A
// directory's own entry is in its parent's run; its children are one run; all
// that is below it is one run too. The table starts with the root directory
// itself, whose directory and name are both empty.
//
// # A tree whose shape is its content
//
// The table is cut into leaves, and the table of leaves into spine nodes, and
// so on, at places chosen by a keyed hash of the paths ([NewTree]). Two tables
// that agree almost everywhere therefore share almost all nodes, whatever was
// built before and in whatever order volumes changed. That is what makes a
// repeat cost a leaf or two, and [Diff] cost what differs.
//
// # What is trusted
//
// Readers believe nothing: sizes, counts, levels, totals and order are checked
// before they are used, and what is wrong is an error satisfying
// errors.Is(err, [ErrFormat]) that names the node. Memory is bounded by one
// node a level, and there are at most [MaxLevel] levels above the leaves.
//
// The bytes are laid down in docs/format.md.
package snapshot

import (
	"context"
	"errors"
	"time"

	"orlop/id"
)

// ErrFormat is returned for bytes that are not what this package writes, and
// for values that it refuses to write.
var ErrFormat = errors.New("malformed")

// A Sink stores blobs. Save may be called concurrently.
type Sink interface {
	// Save stores a blob that the repository may already have, and returns
	// its name. It must not keep plaintext after it returned.
	Save(ctx context.Context, kind id.Kind, plaintext []byte) (id.Blob, error)
}

// A Loader finds blobs. Load may be called concurrently.
type Loader interface {
	// Load returns the plaintext of a blob whose name it has recomputed. The
	// caller may keep it and must not change it.
	Load(ctx context.Context, name id.Blob, kind id.Kind) ([]byte, error)
}

// A Time is a moment as the kernel keeps it: Nsec nanoseconds, below 1e9, after
// Sec seconds since 1970, which may be negative.
type Time struct {
	Sec  int64  `cbor:"1,keyasint"`
	Nsec uint32 `cbor:"2,keyasint"`
}

// FromGo returns t as a Time.
func FromGo(t time.Time) Time { return Time{t.Unix(), uint32(t.Nanosecond())} }

// Go returns t as a [time.Time] in the local zone.
func (t Time) Go() time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }

// Compare orders times.
func (t Time) Compare(u Time) int {
	if t.Sec != u.Sec {
		if t.Sec < u.Sec {
			return -1
		}
		return 1
	}
	return int(t.Nsec) - int(u.Nsec)
}

// A SourceKind says what was backed up.
type SourceKind string

// The kinds of source.
const (
	Volume    SourceKind = "volume" // a Docker volume
	Directory SourceKind = "path"   // a directory of the host
	Dump      SourceKind = "dump"   // the output of a command
)

// A Source is what was backed up, and where.
type Source struct {
	Kind       SourceKind        `cbor:"1,keyasint"`
	Name       string            `cbor:"2,keyasint"`           // of the volume, or the absolute path
	Host       string            `cbor:"3,keyasint,omitempty"` // host name, for people
	EngineName string            `cbor:"4,keyasint,omitempty"` // what the Docker engine calls itself
	EngineID   string            `cbor:"5,keyasint,omitempty"`
	Driver     string            `cbor:"6,keyasint,omitempty"` // of the volume, with its options and labels
	Options    map[string]string `cbor:"7,keyasint,omitempty"`
	Labels     map[string]string `cbor:"8,keyasint,omitempty"`
	Project    string            `cbor:"9,keyasint,omitempty"` // of compose
	Service    string            `cbor:"10,keyasint,omitempty"`
	MachineID  string            `cbor:"11,keyasint,omitempty"` // of the host, for paths
}

// String spells the source as at the command line: volume:pgdata, path:/srv.
func (s Source) String() string { return string(s.Kind) + ":" + s.Name }

// A Problem is a file that is not in a snapshot as it was on disk.
type Problem struct {
	Path   string `cbor:"1,keyasint"`
	Reason string `cbor:"2,keyasint,omitempty"`
}

// Totals count what a snapshot holds.
type Totals struct {
	Files  uint64 `cbor:"1,keyasint"`
	Dirs   uint64 `cbor:"2,keyasint"`
	Others uint64 `cbor:"3,keyasint"` // links, devices, fifos, sockets
	Bytes  uint64 `cbor:"4,keyasint"` // the sizes of all files added up, hard links each time

	// Devices counts the character and block devices among Others: making one
	// takes a capability that a restore asks for only then.
	Devices uint64 `cbor:"5,keyasint,omitempty"`
}

// A Root is a tree: its topmost node and what is in it.
type Root struct {
	Name    id.Blob `cbor:"1,keyasint"`
	Length  uint32  `cbor:"2,keyasint"` // of that node in bytes
	Level   uint8   `cbor:"3,keyasint"` // of that node: 0 is a leaf
	Entries uint64  `cbor:"4,keyasint"`
	Files   uint64  `cbor:"5,keyasint"` // entries that are regular files
	Bytes   uint64  `cbor:"6,keyasint"` // the sizes of those added up; stops at 2^64-1
}

// A Snapshot is one backup of one source.
type Snapshot struct {
	Source       Source      `cbor:"1,keyasint"`
	Started      Time        `cbor:"2,keyasint"`
	Finished     Time        `cbor:"3,keyasint"`
	Root         Root        `cbor:"4,keyasint"`
	Previous     id.Snapshot `cbor:"5,keyasint"` // zero: this is the first the writer knew of
	Sequence     uint64      `cbor:"6,keyasint"` // one more than Previous
	Tags         []string    `cbor:"7,keyasint,omitempty"`
	Totals       Totals      `cbor:"8,keyasint"`
	Consistency  string      `cbor:"9,keyasint,omitempty"`  // how the source was held still, for people
	Skipped      []Problem   `cbor:"10,keyasint,omitempty"` // not in the tree; the first of SkippedCount
	SkippedCount uint64      `cbor:"11,keyasint,omitempty"`
	Torn         []Problem   `cbor:"12,keyasint,omitempty"` // changed while they were read; the first of TornCount
	TornCount    uint64      `cbor:"13,keyasint,omitempty"`
	ClassRules   uint32      `cbor:"14,keyasint,omitempty"` // number of the rules that chose each Entry.Class
	Version      string      `cbor:"15,keyasint,omitempty"` // of the program that wrote it
	Partial      bool        `cbor:"16,keyasint,omitempty"` // something of the source is not in it
}
