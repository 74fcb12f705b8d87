package agent

import (
	"encoding/binary"
	"fmt"

	"orlop/box"
	"orlop/chunk"
	"orlop/id"
	"orlop/snapshot"
)

// Limits of batches. A batch ends with the entry that reaches maxBatchBytes.
const (
	maxBatch      = 512
	maxBatchBytes = 256 << 10
	maxOffers     = 128 // names in one OFFERS
	maxProblem    = 1 << 10

	// Window is the largest number of entries there can be between the oldest
	// one that is to be read and has no FILE yet, and the newest.
	Window = 16 * maxBatch

	maxEntries = 1 << 32 // entries of one backup
	minCharge  = 512     // see charge
)

// A BackupRequest says what to back up and how to cut and name it.
type BackupRequest struct {
	Root        string // path of a directory, as the agent sees it
	Chunk       chunk.Config
	ChunkSecret [32]byte
	NameKey     [32]byte
	// ReadOnlyMount says that reading changes no access times anyway, so that
	// the agent need not ask for it (which is refused for files of others).
	ReadOnlyMount bool
}

func (q *BackupRequest) append(dst []byte) []byte {
	dst = appendBytes(dst, q.Root)
	dst = appendBytes(dst, string(q.Chunk.Algorithm))
	for _, n := range []int{q.Chunk.Min, q.Chunk.Avg, q.Chunk.Max} {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(n))
	}
	dst = append(append(dst, q.ChunkSecret[:]...), q.NameKey[:]...)
	return appendBool(dst, q.ReadOnlyMount)
}

func parseBackupRequest(p []byte) (*BackupRequest, error) {
	d := decoder{p: p}
	q := &BackupRequest{Root: d.string(snapshot.MaxPath)}
	q.Chunk.Algorithm = chunk.Algorithm(d.string(64))
	for _, n := range []*int{&q.Chunk.Min, &q.Chunk.Avg, &q.Chunk.Max} {
		*n = int(d.u32())
	}
	q.ChunkSecret, q.NameKey = d.sum(), d.sum()
	q.ReadOnlyMount = d.bool()
	return q, d.end()
}

// A Stat is what the walk tells about an entry.
type Stat struct {
	Dir, Name     string // as in snapshot.Entry
	Type          snapshot.Type
	Mode          uint32 // 07777
	UID, GID      uint32
	MTime, CTime  snapshot.Time
	Size          uint64 // of files; 0 of others
	Inode, Device uint64
	Links         uint32
	Rdev          uint64 // of devices: major<<32 | minor
	// Problem is not empty if what the entry holds cannot be kept: another
	// file system is mounted on it. Such an entry is never to be read, unless
	// it is a directory: then it is kept, empty.
	Problem string
}

// Path returns the entry's path relative to the root.
func (s *Stat) Path() string {
	if s.Dir == "" {
		return s.Name
	}
	return s.Dir + "/" + s.Name
}

// appendMeta appends all but the path and the problem.
func (s *Stat) appendMeta(dst []byte) []byte {
	dst = append(dst, byte(s.Type))
	for _, v := range []uint64{uint64(s.Mode), uint64(s.UID), uint64(s.GID)} {
		dst = binary.AppendUvarint(dst, v)
	}
	for _, t := range []snapshot.Time{s.MTime, s.CTime} {
		dst = binary.AppendVarint(dst, t.Sec)
		dst = binary.LittleEndian.AppendUint32(dst, t.Nsec)
	}
	for _, v := range []uint64{s.Size, s.Inode, s.Device, uint64(s.Links), s.Rdev} {
		dst = binary.AppendUvarint(dst, v)
	}
	return dst
}

func (s *Stat) parseMeta(d *decoder) {
	const u32 = 1<<32 - 1
	s.Type = snapshot.Type(d.u8())
	if s.Type < snapshot.File || s.Type > snapshot.Socket {
		d.fail("an entry of %v", s.Type)
	}
	s.Mode, s.UID, s.GID = uint32(d.uvarint(0o7777)), uint32(d.uvarint(u32)), uint32(d.uvarint(u32))
	for _, t := range []*snapshot.Time{&s.MTime, &s.CTime} {
		t.Sec, t.Nsec = d.varint(), d.u32()
		if t.Nsec > 999_999_999 {
			d.fail("%d nanoseconds", t.Nsec)
		}
	}
	s.Size, s.Inode, s.Device = d.uvarint(snapshot.MaxSize), d.uvarint(1<<64-1), d.uvarint(1<<64-1)
	s.Links, s.Rdev = uint32(d.uvarint(u32)), d.uvarint(1<<64-1)
	if s.Size != 0 && s.Type != snapshot.File {
		d.fail("a %v of %d bytes", s.Type, s.Size)
	}
	if s.Rdev != 0 && s.Type != snapshot.Char && s.Type != snapshot.Block {
		d.fail("a %v with a device number", s.Type)
	}
}

// The header of an ENTRIES: ordinal of the first entry, u32 number of entries.
const entriesHead = 8 + 4

// appendStat appends an entry to a batch. Its directory is spelled out only
// where it differs from the one before, which is "" at the start of a batch.
func appendStat(dst []byte, prevDir string, s *Stat) []byte {
	dst = appendBool(dst, s.Dir != prevDir)
	if s.Dir != prevDir {
		dst = appendBytes(dst, s.Dir)
	}
	dst = appendBytes(dst, s.Name)
	dst = s.appendMeta(dst)
	return appendBytes(dst, s.Problem)
}

func putEntriesHead(p []byte, first uint64, n int) {
	binary.LittleEndian.PutUint64(p, first)
	binary.LittleEndian.PutUint32(p[8:], uint32(n))
}

// parseEntries reads a batch, checks that its paths are valid and in walk
// order, and that none but the first of all is the root.
func parseEntries(p []byte) (first uint64, batch []Stat, err error) {
	// The last entry may go over the limit, by one path, name and problem.
	if len(p) > maxBatchBytes+snapshot.MaxPath+4096 {
		return 0, nil, protocolError("a batch of %d bytes", len(p))
	}
	d := decoder{p: p}
	first = d.u64()
	n := d.u32()
	if n == 0 || n > maxBatch {
		d.fail("a batch of %d entries", n)
		return 0, nil, d.end()
	}
	batch = make([]Stat, n)
	dir := ""
	for i := range batch {
		s := &batch[i]
		if d.bool() {
			old := dir
			dir = d.string(snapshot.MaxPath)
			if dir == old {
				d.fail("a directory that is spelled out again")
			}
			if err := snapshot.ValidPath(dir); err != nil {
				d.fail("%v", err)
			}
		}
		s.Dir = dir
		s.Name = d.string(snapshot.MaxName)
		s.parseMeta(&d)
		s.Problem = d.string(maxProblem)
		if d.err != nil {
			return 0, nil, d.end()
		}
		if s.Dir == "" && s.Name == "" {
			if first != 0 || i != 0 || s.Type != snapshot.Dir {
				d.fail("an empty name")
			}
		} else if err := snapshot.ValidName(s.Name); err != nil {
			d.fail("%v", err)
		} else if first == 0 && i == 0 {
			d.fail("the first entry is not the root")
		}
		if n := len(s.Dir) + 1 + len(s.Name); n > snapshot.MaxPath {
			d.fail("a path of %d bytes", n)
		}
		if i > 0 && snapshot.Compare(batch[i-1].Dir, batch[i-1].Name, s.Dir, s.Name) >= 0 {
			d.fail("%q is not after %q", s.Path(), batch[i-1].Path())
		}
	}
	return first, batch, d.end()
}

// An Answer says what is to be done about an entry.
type Answer struct {
	Read bool
	// Old are the level-0 refs of an earlier version's content: its cuts are
	// tried first. They change nothing but the speed; not all may be used.
	Old []snapshot.Ref
}

func appendRef(dst []byte, r snapshot.Ref) []byte {
	return binary.AppendUvarint(append(dst, r.Name[:]...), r.Length)
}

func parseRef(d *decoder) snapshot.Ref {
	return snapshot.Ref{Name: d.sum(), Length: d.uvarint(snapshot.MaxData)}
}

// appendAnswers appends the answers to a whole batch.
func appendAnswers(dst []byte, answers []Answer) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(answers)))
	for _, a := range answers {
		dst = appendBool(dst, a.Read)
		if !a.Read {
			continue
		}
		dst = binary.AppendUvarint(dst, uint64(len(a.Old)))
		for _, r := range a.Old {
			dst = appendRef(dst, r)
		}
	}
	return dst
}

func parseAnswers(p []byte, old int) ([]Answer, error) {
	d := decoder{p: p}
	answers := make([]Answer, d.count(maxBatch, 1))
	for i := range answers {
		a := &answers[i]
		if a.Read = d.bool(); !a.Read {
			continue
		}
		if n := d.count(old, 33); n > 0 {
			old -= n
			a.Old = make([]snapshot.Ref, n)
			for j := range a.Old {
				a.Old[j] = parseRef(&d)
			}
		}
	}
	return answers, d.end()
}

// A Role says what of an entry a blob belongs to.
type Role uint8

// The roles.
const (
	Content Role = 0 // the data extents, one after the other
	Map     Role = 1 // the encoded extents (snapshot.EncodeExtents)
	Xattrs  Role = 2 // the encoded xattrs (snapshot.EncodeXattrs)
	roles        = 3
)

// An Offer names the next blob of one of an entry's streams. Offers of one
// (N, Attempt, Role) come in the order of the stream.
type Offer struct {
	N       uint64 // ordinal of the entry in walk order, the root being 0
	Attempt uint8  // 0, and 1 if the file is read again: those of 0 are then void
	Role    Role
	Ref     snapshot.Ref
}

const offerSize = 1 + 1 + 1 + id.Size + 1 // smallest

func appendOffer(dst []byte, o Offer) []byte {
	dst = binary.AppendUvarint(dst, o.N)
	dst = append(dst, o.Attempt, byte(o.Role))
	return appendRef(dst, o.Ref)
}

func appendOffers(dst []byte, offers []Offer) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(offers)))
	for _, o := range offers {
		dst = appendOffer(dst, o)
	}
	return dst
}

func parseOffers(p []byte) ([]Offer, error) {
	d := decoder{p: p}
	offers := make([]Offer, d.count(maxOffers, offerSize))
	for i := range offers {
		o := &offers[i]
		o.N = d.uvarint(maxEntries)
		o.Attempt = d.u8()
		o.Role = Role(d.u8())
		o.Ref = parseRef(&d)
		if o.Role >= roles {
			d.fail("a blob of role %d", o.Role)
		}
		if o.Ref.Length == 0 {
			d.fail("an empty blob")
		}
	}
	if len(offers) == 0 {
		d.fail("an offer of nothing")
	}
	return offers, d.end()
}

// charge is what a blob of n bytes takes of the byte credit: small ones count
// as 512 bytes, so that the credit bounds their number too.
func (c credits) charge(n uint64) int64 {
	return int64(min(max(n, minCharge), uint64(c.Bytes)))
}

func appendWants(dst []byte, want []bool) []byte { return appendBits(dst, want) }

// appendBits appends how many bits there are, and the bits, the first the
// lowest of the first byte.
func appendBits(dst []byte, want []bool) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(want)))
	for i := 0; i < len(want); i += 8 {
		var b byte
		for j := i; j < min(i+8, len(want)); j++ {
			if want[j] {
				b |= 1 << (j - i)
			}
		}
		dst = append(dst, b)
	}
	return dst
}

func parseWants(p []byte) ([]bool, error) {
	d := decoder{p: p}
	want := d.bits(maxOffers)
	return want, d.end()
}

// bits reads what appendBits wrote, at most limit of them.
func (d *decoder) bits(limit uint64) []bool {
	set := make([]bool, d.uvarint(limit))
	bits := d.take((len(set) + 7) / 8)
	if d.err == nil {
		for i := range set {
			set[i] = bits[i/8]>>(i%8)&1 != 0
		}
		if n := len(set) % 8; n > 0 && bits[len(bits)-1]>>n != 0 {
			d.fail("bits for no name")
		}
	}
	return set
}

// A Box holds blobs that were wanted, as box.Builder left them. The receiver
// owns all of it.
type Box struct {
	Codec   box.Codec
	Raw     int    // length of the plaintext
	Payload []byte // the plaintext, shrunk by the codec; valid until Receiver.Box returns
	Blobs   []BoxBlob

	frame []byte // that Payload is part of
}

// A BoxBlob names a blob in a box. The client has made sure that the name is
// the blob's, unless the agent is in this process and the box not compressed.
type BoxBlob struct {
	Name   id.Blob
	Kind   id.Kind
	Length uint32
}

const boxBlobSize = id.Size + 1 + 1 // smallest

// appendBoxHead appends all of a box but its payload, which comes last.
func appendBoxHead(dst []byte, b *Box) []byte {
	dst = append(dst, byte(b.Codec))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(b.Raw))
	dst = binary.AppendUvarint(dst, uint64(len(b.Blobs)))
	for _, x := range b.Blobs {
		dst = append(append(dst, x.Name[:]...), byte(x.Kind))
		dst = binary.AppendUvarint(dst, uint64(x.Length))
	}
	return dst
}

func parseBox(p []byte) (Box, error) {
	d := decoder{p: p}
	b := Box{Codec: box.Codec(d.u8()), Raw: int(d.u32())}
	if b.Raw > box.MaxRaw {
		d.fail("a box of %d bytes", b.Raw)
	}
	b.Blobs = make([]BoxBlob, d.count(box.MaxRaw, boxBlobSize))
	total := uint64(0)
	for i := range b.Blobs {
		x := &b.Blobs[i]
		x.Name, x.Kind, x.Length = d.sum(), id.Kind(d.u8()), uint32(d.uvarint(box.MaxRaw))
		total += uint64(x.Length)
		if x.Kind != id.Data {
			d.fail("a blob of kind %v", x.Kind)
		}
	}
	if len(b.Blobs) == 0 {
		d.fail("an empty box")
	}
	if total > uint64(b.Raw) {
		d.fail("%d bytes of blobs in a box of %d", total, b.Raw)
	}
	b.Payload, b.frame = d.rest(), p
	return b, d.end()
}

// An Outcome says how the reading of an entry ended.
type Outcome uint8

// The outcomes.
const (
	Whole    Outcome = 0 // what was read is the file as it was at one moment
	Torn     Outcome = 1 // it changed while it was read: bytes from different moments
	Vanished Outcome = 2 // it was not there any more
	Failed   Outcome = 3 // it could not be read, or is of another type now: Reason
)

// String names the outcome for people.
func (o Outcome) String() string {
	switch o {
	case Whole:
		return "whole"
	case Torn:
		return "torn"
	case Vanished:
		return "vanished"
	case Failed:
		return "failed"
	}
	return fmt.Sprintf("outcome(%d)", uint8(o))
}

// A File is the last word on an entry that was to be read, of whatever type:
// the offers for it are complete. Only Whole and Torn ones can be kept.
type File struct {
	N       uint64
	Attempt uint8 // whose offers count
	// Stat is what the entry is now. For Vanished and Failed it is what the
	// walk saw. Size is always that of the content below.
	Stat    Stat
	Outcome Outcome
	Reason  string // unless Whole, for people

	Class   chunk.Class       // how the content was cut
	Inline  []byte            // all of the content if that is at most snapshot.MaxInline bytes
	Sparse  bool              // there are holes
	Extents []snapshot.Extent // if they take at most snapshot.MaxSet bytes; else they are the Map
	Xattrs  []snapshot.Xattr  // sorted, likewise; else they are in the stream Xattrs
	Target  string            // of a symlink

	BytesRead uint64        // of file content, all attempts together
	Refs      [roles]uint64 // offers of this attempt, by Role
	Bytes     [roles]uint64 // and the sums of their lengths; set by the client
	Fresh     bool          // changed so shortly before it was read that it may change again unseen
}

func (f *File) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, f.N)
	dst = append(dst, f.Attempt, byte(f.Outcome))
	dst = appendBool(appendBool(dst, f.Sparse), f.Fresh)
	dst = append(dst, byte(f.Class))
	dst = f.Stat.appendMeta(dst)
	dst = appendBytes(dst, f.Reason)
	dst = appendBytes(dst, f.Inline)
	dst = appendBytes(dst, snapshot.EncodeExtents(f.Extents))
	dst = appendBytes(dst, snapshot.EncodeXattrs(f.Xattrs))
	dst = appendBytes(dst, f.Target)
	dst = binary.AppendUvarint(dst, f.BytesRead)
	for _, n := range f.Refs {
		dst = binary.AppendUvarint(dst, n)
	}
	return dst
}

func parseFile(p []byte) (*File, error) {
	d := decoder{p: p}
	f := &File{N: d.uvarint(maxEntries), Attempt: d.u8(), Outcome: Outcome(d.u8())}
	if f.Outcome > Failed {
		d.fail("%v", f.Outcome)
	}
	f.Sparse, f.Fresh = d.bool(), d.bool()
	if f.Class = chunk.Class(d.u8()); f.Class > chunk.Fixed {
		d.fail("class %d", f.Class)
	}
	f.Stat.parseMeta(&d)
	f.Reason = d.string(maxProblem)
	if p := d.bytes(snapshot.MaxInline); len(p) > 0 {
		f.Inline = append([]byte(nil), p...)
	}
	var err error
	if p := d.bytes(snapshot.MaxSet); len(p) > 0 {
		if f.Extents, err = snapshot.DecodeExtents(p); err != nil {
			d.fail("%v", err)
		}
	}
	if p := d.bytes(snapshot.MaxSet); len(p) > 0 {
		if f.Xattrs, err = snapshot.DecodeXattrs(p); err != nil {
			d.fail("%v", err)
		}
	}
	f.Target = d.string(snapshot.MaxPath)
	f.BytesRead = d.uvarint(1<<64 - 1)
	for i := range f.Refs {
		f.Refs[i] = d.uvarint(1 << 63)
	}
	return f, d.end()
}

// A problem is the body of a PROBLEM: something that is not in the backup and
// has no entry that could say so.
func appendProblem(dst []byte, p snapshot.Problem) []byte {
	return appendBytes(appendBytes(dst, p.Path), p.Reason)
}

func parseProblem(p []byte) (snapshot.Problem, error) {
	d := decoder{p: p}
	q := snapshot.Problem{Path: d.string(snapshot.MaxPath), Reason: d.string(maxProblem)}
	if q.Reason == "" {
		d.fail("a problem without a reason")
	}
	return q, d.end()
}

// end is the body of an END.
type end struct {
	Entries, Files, Offers, Boxes, Problems uint64
	Sum                                     [32]byte // of the stream so far, see addFrame
}

func (e *end) append(dst []byte) []byte {
	for _, v := range []uint64{e.Entries, e.Files, e.Offers, e.Boxes, e.Problems} {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	return append(dst, e.Sum[:]...)
}

func parseEnd(p []byte) (end, error) {
	d := decoder{p: p}
	e := end{Entries: d.u64(), Files: d.u64(), Offers: d.u64(), Boxes: d.u64(), Problems: d.u64(), Sum: d.sum()}
	return e, d.end()
}
