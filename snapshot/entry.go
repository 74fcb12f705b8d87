package snapshot

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"

	"orlop/id"
)

// A Type says what an entry is.
type Type uint8

// The types of entry.
const (
	File    Type = 1
	Dir     Type = 2
	Symlink Type = 3
	Char    Type = 4
	Block   Type = 5
	Fifo    Type = 6
	Socket  Type = 7
)

// String names the type for people.
func (t Type) String() string {
	switch t {
	case File:
		return "file"
	case Dir:
		return "directory"
	case Symlink:
		return "symlink"
	case Char:
		return "character device"
	case Block:
		return "block device"
	case Fifo:
		return "fifo"
	case Socket:
		return "socket"
	}
	return fmt.Sprintf("type(%d)", uint8(t))
}

// Limits of an entry. What does not fit cannot be kept.
const (
	MaxName     = 255         // bytes of one name
	MaxPath     = 1<<16 - 1   // bytes of a path, and of a link's target
	MaxInline   = 512         // bytes of content kept in the entry
	MaxSet      = 1 << 10     // bytes of encoded extents, and of encoded xattrs, kept in the entry
	MaxXattr    = 1 << 16     // bytes of one xattr's value, the kernel's limit
	MaxXattrSet = 16 << 20    // bytes of all xattrs of a file, encoded
	MaxRefs     = 8           // refs kept in the entry
	MaxData     = 8 << 20     // bytes of a data blob
	MaxSize     = 1<<63 - 1   // bytes of a file
	maxMode     = 0o7777      //
	maxNsec     = 999_999_999 //
)

// An Extent is a part of a file that holds data; between extents are holes.
type Extent struct{ Offset, Length uint64 }

// End is the offset of the first byte after the extent.
func (x Extent) End() uint64 { return x.Offset + x.Length }

// An Xattr is an extended attribute. ACLs and capabilities are xattrs.
type Xattr struct {
	Name  string // with its namespace: "user.mime_type"
	Value []byte
}

// An Entry is one file, directory or other node of a file system: all that is
// needed to make it again. Access time, change time and inode number are not.
type Entry struct {
	// Dir is the path of the directory the entry is in, relative to the root
	// and without slashes at its ends, and Name its name there. The root has
	// neither.
	Dir, Name string

	Type     Type
	Mode     uint32 // 07777: permissions, setuid, setgid, sticky
	UID, GID uint32
	MTime    Time

	// Of files only. The stream of a file is its data extents one after the
	// other; it is Inline if that is at most MaxInline bytes long, else
	// Content. Without Sparse, it is Size bytes long and the whole file.
	Size    uint64
	Class   uint8 // 0: cut where the content says so; 1: in fixed blocks
	Inline  []byte
	Content Content
	Torn    bool // it changed while it was read: the bytes are from different moments

	// Sparse files have holes. The extents are in Extents if that takes at
	// most MaxSet bytes encoded, else the encoded extents are the stream Map.
	// Neither: the whole file is a hole.
	Sparse  bool
	Extents []Extent
	Map     Content

	// Xattrs, sorted by name, if they take at most MaxSet bytes encoded, else
	// the encoded set is the stream XattrSet.
	Xattrs   []Xattr
	XattrSet Content

	Group  [16]byte // hard-link group, zero if there is one link: same group, same file
	Target string   // of a symlink
	Rdev   uint64   // of a device: major<<32 | minor
}

// Path returns the entry's path relative to the root, which itself is "".
func (e *Entry) Path() string {
	if e.Dir == "" {
		return e.Name
	}
	return e.Dir + "/" + e.Name
}

// IsRoot reports whether e is the directory all others are in.
func (e *Entry) IsRoot() bool { return e.Dir == "" && e.Name == "" }

// Compare orders entries as they are walked: by directory, '/' before any
// other byte, then by name. The root is first, a directory before what is in
// it, and all that is below a directory is one run.
func Compare(dirA, nameA, dirB, nameB string) int {
	if c := compareDir(dirA, dirB); c != 0 {
		return c
	}
	return strings.Compare(nameA, nameB)
}

func compareDir(a, b string) int {
	if a == b {
		return 0
	}
	n := common(a, b)
	switch {
	case n == len(a):
		return -1
	case n == len(b):
		return 1
	case a[n] == '/':
		return -1
	case b[n] == '/':
		return 1
	}
	return int(a[n]) - int(b[n])
}

// common returns the length of the longest common prefix.
func common(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// Below reports whether dir is the directory top or below it.
func Below(dir, top string) bool {
	return top == "" || strings.HasPrefix(dir, top) && (len(dir) == len(top) || dir[len(top)] == '/')
}

// SplitPath splits a path relative to the root into directory and name.
func SplitPath(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}

// ValidName says why name cannot be the name of an entry, or returns nil.
func ValidName(name string) error {
	switch {
	case name == "":
		return errors.New("an empty name")
	case len(name) > MaxName:
		return fmt.Errorf("a name of %d bytes", len(name))
	case name == "." || name == "..":
		return fmt.Errorf("a name %q", name)
	case strings.IndexByte(name, '/') >= 0:
		return fmt.Errorf("a name %q with a slash", name)
	case strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("a name %q with a NUL", name)
	}
	return nil
}

// ValidPath says why path, relative to the root, cannot be the path of an
// entry, or returns nil. The root's own is "".
func ValidPath(path string) error {
	if len(path) > MaxPath {
		return fmt.Errorf("a path of %d bytes", len(path))
	}
	if path == "" {
		return nil
	}
	for name := range strings.SplitSeq(path, "/") {
		if err := ValidName(name); err != nil {
			return err
		}
	}
	return nil
}

// Valid says what is wrong with e: an error satisfying errors.Is(err,
// [ErrFormat]), or nil. Nothing that is not valid is ever written or read.
func (e *Entry) Valid() error {
	if err := e.validPath(""); err != nil {
		return fmt.Errorf("%w entry: %v", ErrFormat, err)
	}
	if err := e.validRest(); err != nil {
		return fmt.Errorf("%w entry %q: %v", ErrFormat, e.Path(), err)
	}
	return nil
}

// validPath checks the path, given a directory that is known to be valid.
func (e *Entry) validPath(known string) error {
	if e.IsRoot() {
		return nil
	}
	if err := ValidName(e.Name); err != nil {
		return err
	}
	if len(e.Dir)+1+len(e.Name) > MaxPath {
		return fmt.Errorf("a path of %d bytes", len(e.Dir)+1+len(e.Name))
	}
	if e.Dir == known {
		return nil
	}
	return ValidPath(e.Dir)
}

func (e *Entry) validRest() error {
	switch {
	case e.Type < File || e.Type > Socket:
		return fmt.Errorf("it is of %v", e.Type)
	case e.IsRoot() && e.Type != Dir:
		return fmt.Errorf("the root is a %v", e.Type)
	case e.Mode > maxMode:
		return fmt.Errorf("mode %o", e.Mode)
	case e.MTime.Nsec > maxNsec:
		return fmt.Errorf("%d nanoseconds", e.MTime.Nsec)
	case e.Type == Dir && e.Group != [16]byte{}:
		return errors.New("a hard link to a directory")
	case (e.Type == Symlink) != (e.Target != ""):
		return fmt.Errorf("a %v with target %q", e.Type, e.Target)
	case len(e.Target) > MaxPath:
		return fmt.Errorf("a target of %d bytes", len(e.Target))
	case strings.IndexByte(e.Target, 0) >= 0:
		return errors.New("a target with a NUL")
	case e.Rdev != 0 && e.Type != Char && e.Type != Block:
		return fmt.Errorf("a %v with a device number", e.Type)
	}
	if err := e.validXattrs(); err != nil {
		return err
	}
	if e.Type == File {
		return e.validFile()
	}
	if e.Size != 0 || e.Class != 0 || len(e.Inline) > 0 || !e.Content.IsZero() || e.Torn ||
		e.Sparse || len(e.Extents) > 0 || !e.Map.IsZero() {
		return fmt.Errorf("a %v with content", e.Type)
	}
	return nil
}

func (e *Entry) validXattrs() error {
	if err := e.XattrSet.valid(); err != nil {
		return fmt.Errorf("xattr set: %w", err)
	}
	if len(e.Xattrs) == 0 {
		if n := e.XattrSet.Size(); n > MaxXattrSet {
			return fmt.Errorf("%d bytes of xattrs", n)
		}
		return nil
	}
	if !e.XattrSet.IsZero() {
		return errors.New("xattrs both inline and in a blob")
	}
	if err := ValidXattrs(e.Xattrs); err != nil {
		return err
	}
	if n := sizeXattrs(e.Xattrs); n > MaxSet {
		return fmt.Errorf("%d bytes of inline xattrs", n)
	}
	return nil
}

func (e *Entry) validFile() error {
	if e.Size > MaxSize {
		return fmt.Errorf("a size of %d", e.Size)
	}
	if e.Class > 1 {
		return fmt.Errorf("class %d", e.Class)
	}
	if len(e.Inline) > MaxInline {
		return fmt.Errorf("%d bytes inline", len(e.Inline))
	}
	if len(e.Inline) > 0 && !e.Content.IsZero() {
		return errors.New("content both inline and in blobs")
	}
	if err := e.Content.valid(); err != nil {
		return fmt.Errorf("content: %w", err)
	}
	if err := e.Map.valid(); err != nil {
		return fmt.Errorf("map: %w", err)
	}
	stream := uint64(len(e.Inline)) + e.Content.Size()
	if !e.Sparse {
		if len(e.Extents) > 0 || !e.Map.IsZero() {
			return errors.New("extents of a file without holes")
		}
		if stream != e.Size {
			return fmt.Errorf("%d bytes of content, and size %d", stream, e.Size)
		}
		return nil
	}
	if !e.Map.IsZero() {
		if len(e.Extents) > 0 {
			return errors.New("extents both inline and in blobs")
		}
		// What is in the map is checked by whoever reads it.
		if stream > e.Size {
			return fmt.Errorf("%d bytes of content, and size %d", stream, e.Size)
		}
		return nil
	}
	return e.validExtents(stream)
}

func (e *Entry) validExtents(stream uint64) error {
	if len(e.Extents) > MaxSet {
		return fmt.Errorf("%d inline extents", len(e.Extents))
	}
	if err := ValidExtents(e.Extents, e.Size, stream); err != nil {
		return err
	}
	if n := sizeExtents(e.Extents); n > MaxSet {
		return fmt.Errorf("%d bytes of inline extents", n)
	}
	return nil
}

// A Ref names a blob of a stream. Length is the number of bytes of the stream
// that are in it, or below it if it is a list.
type Ref struct {
	Name   id.Blob
	Length uint64
}

// A Content is a stream of bytes as a tree: at level 0 the refs are data
// blobs, at level k they are list blobs of refs of level k-1. The zero Content
// is the empty stream.
type Content struct {
	Level uint8
	Refs  []Ref
}

// Size is the length of the stream in bytes.
func (c Content) Size() (n uint64) {
	for _, r := range c.Refs {
		n = addSat(n, r.Length)
	}
	return n
}

// IsZero reports whether the stream is empty.
func (c Content) IsZero() bool { return c.Level == 0 && len(c.Refs) == 0 }

// Equal reports whether c and d are the same tree.
func (c Content) Equal(d Content) bool { return c.Level == d.Level && slices.Equal(c.Refs, d.Refs) }

func (c Content) valid() error {
	if len(c.Refs) > MaxRefs {
		return fmt.Errorf("%d refs in an entry", len(c.Refs))
	}
	if len(c.Refs) == 0 && c.Level != 0 {
		return fmt.Errorf("no refs at level %d", c.Level)
	}
	if c.Level > MaxContentLevel {
		return fmt.Errorf("level %d", c.Level)
	}
	for _, r := range c.Refs {
		if err := r.valid(c.Level); err != nil {
			return err
		}
	}
	if n := c.Size(); n > MaxSize {
		return fmt.Errorf("%d bytes", n)
	}
	return nil
}

func (r Ref) valid(level uint8) error {
	switch {
	case r.Name.IsZero():
		return errors.New("a ref without a name")
	case r.Length == 0:
		return errors.New("a ref to nothing")
	case r.Length > MaxSize, level == 0 && r.Length > MaxData:
		return fmt.Errorf("a ref to %d bytes", r.Length)
	}
	return nil
}

// addSat adds and stops at the largest number: a few sparse files can be more
// than 2^64 bytes together, and no backup should fail of it. Done so the sum
// does not depend on the order.
func addSat(a, b uint64) uint64 {
	if n, carry := bits.Add64(a, b, 0); carry == 0 {
		return n
	}
	return math.MaxUint64
}
