package index

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"orlop/box"
	"orlop/id"
	"orlop/pack"
	"orlop/seal"
)

// ErrFormat is returned for bytes that are no segment, or not whole, or of a
// version that this program does not know.
var ErrFormat = errors.New("malformed index segment")

// A PackInfo is what the index knows of one pack.
type PackInfo struct {
	ID     id.Pack
	Size   int64 // of the pack, in bytes
	Header seal.Header
	Boxes  []pack.Box // one after the other from pack.HeaderSize on
}

// A Segment describes packs, each of them whole, and names the segments that
// it makes superfluous. It is what a writer stores under index/.
type Segment struct {
	Writer   seal.Writer // whose index key seals it
	Packs    []PackInfo
	Replaces []id.Segment // in increasing order
}

const (
	segmentMagic = "orlop\x00I1"
	segmentHead  = len(segmentMagic) + 4 // and the writer
)

// SealSegment returns the object that says s, sealed by its writer's index key.
//
// Every pack must be the writer's own, unless that is [seal.Common]; the boxes must lie as
// [pack.Builder] lays them; no pack may be in s twice and Replaces must be
// strictly increasing. Anything else is a mistake of the caller, and panics:
// what would not be read must not be written.
func SealSegment(repo id.Repository, s *Segment, ik *seal.IndexKey) []byte {
	if ik.Writer() != s.Writer || ik.Repository() != repo {
		panic("index: index key of another writer or repository")
	}
	if err := s.valid(); err != nil {
		panic(fmt.Sprintf("index: impossible segment: %v", err))
	}
	plain := appendSegment(nil, s)
	// Its length would tell how many blobs there are and, by the bytes that
	// their lengths take, something of those.
	plain = append(plain, make([]byte, pack.Padme(len(plain))-len(plain))...)
	dst := make([]byte, 0, segmentHead+len(plain)+seal.IndexOverhead)
	dst = append(dst, segmentMagic...)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(s.Writer))
	return ik.Seal(dst, seal.Segment, plain, dst)
}

// OpenSegment returns what an object under index/ says. keys returns the index
// key of its writer, and its error is returned as it is, wrapped.
//
// An object that is not what was written is [ErrFormat] or [seal.ErrOpen]. A
// segment that describes a pack of another writer is refused, unless
// [seal.Common] wrote it: a host that may only add must not be able to tell
// others where their blobs are.
func OpenSegment(repo id.Repository, data []byte, keys func(seal.Writer) (*seal.IndexKey, error)) (*Segment, error) {
	s, err := openSegment(repo, data, keys)
	if err != nil {
		return nil, fmt.Errorf("open index segment: %w", err)
	}
	return s, nil
}

func openSegment(repo id.Repository, data []byte, keys func(seal.Writer) (*seal.IndexKey, error)) (*Segment, error) {
	const version = len(segmentMagic) - 1
	if len(data) < segmentHead || string(data[:version]) != segmentMagic[:version] {
		return nil, fmt.Errorf("%w: not a segment", ErrFormat)
	}
	if data[version] != segmentMagic[version] {
		return nil, fmt.Errorf("%w: version %q, and this program knows version %q", ErrFormat, data[version], segmentMagic[version])
	}
	w := seal.Writer(binary.LittleEndian.Uint32(data[len(segmentMagic):]))
	ik, err := keys(w)
	if err != nil {
		return nil, err
	}
	if ik.Writer() != w || ik.Repository() != repo {
		return nil, fmt.Errorf("%w: the index key is of writer %d, the segment of %d", seal.ErrOpen, ik.Writer(), w)
	}
	plain, err := ik.Open(nil, seal.Segment, data[segmentHead:], data[:segmentHead])
	if err != nil {
		return nil, err
	}
	return parseSegment(plain, w)
}

// valid reports what of s its writer cannot say.
func (s *Segment) valid() error {
	seen := make(map[id.Pack]bool, len(s.Packs))
	for i := range s.Packs {
		p := &s.Packs[i]
		if seen[p.ID] {
			return fmt.Errorf("%w: pack %s twice", ErrFormat, p.ID.Short())
		}
		seen[p.ID] = true
		if s.Writer != seal.Common && p.Header.Writer != s.Writer {
			return fmt.Errorf("%w: writer %d describes a pack of writer %d", ErrFormat, s.Writer, p.Header.Writer)
		}
		end := uint64(pack.HeaderSize)
		for _, x := range p.Boxes {
			if uint64(x.Offset) != end {
				return fmt.Errorf("%w: box at %d, not at %d", ErrFormat, x.Offset, end)
			}
			if err := validBox(x); err != nil {
				return err
			}
			end += uint64(x.Length)
		}
		if p.Size < 0 || p.Size > pack.MaxSize || end > uint64(p.Size) {
			return fmt.Errorf("%w: boxes end at %d in a pack of %d bytes", ErrFormat, end, p.Size)
		}
	}
	for i, r := range s.Replaces {
		if i > 0 && r.Compare(s.Replaces[i-1]) <= 0 {
			return fmt.Errorf("%w: replaced segments are not in order", ErrFormat)
		}
	}
	return nil
}

func validBox(x pack.Box) error {
	if err := x.Valid(); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}

// A record says where one blob is.
type record struct {
	name  id.Blob
	box   uint32 // ordinal of the box in the segment or local file
	place uint32 // ordinal of the blob in the box
}

func compareRecords(a, b *record) int {
	// Names are digests: eight bytes tell nearly all of them apart.
	x, y := binary.BigEndian.Uint64(a.name[:]), binary.BigEndian.Uint64(b.name[:])
	if x != y {
		return cmp.Compare(x, y)
	}
	return cmp.Or(a.name.Compare(b.name), cmp.Compare(a.box, b.box), cmp.Compare(a.place, b.place))
}

func sortRecords(rs []record) {
	slices.SortFunc(rs, func(a, b record) int { return compareRecords(&a, &b) })
}

// A sessionTable numbers headers in the order in which they first come.
type sessionTable struct {
	headers []seal.Header
	bySID   map[id.Session][]uint32
}

func (t *sessionTable) number(h seal.Header) uint32 {
	for _, i := range t.bySID[h.SID] {
		if t.headers[i].Equal(h) {
			return i
		}
	}
	if t.bySID == nil {
		t.bySID = make(map[id.Session][]uint32)
	}
	n := uint32(len(t.headers))
	t.headers = append(t.headers, h)
	t.bySID[h.SID] = append(t.bySID[h.SID], n)
	return n
}

func appendSegment(dst []byte, s *Segment) []byte {
	var sessions sessionTable
	var blobs, boxes int
	number := make([]uint32, len(s.Packs))
	for i := range s.Packs {
		number[i] = sessions.number(s.Packs[i].Header)
		boxes += len(s.Packs[i].Boxes)
		for _, x := range s.Packs[i].Boxes {
			blobs += len(x.Blobs)
		}
	}
	dst = slices.Grow(dst, len(sessions.headers)*seal.HeaderSize+len(s.Packs)*48+boxes*12+blobs*42+len(s.Replaces)*id.Size+64)

	dst = binary.AppendUvarint(dst, uint64(len(sessions.headers)))
	for _, h := range sessions.headers {
		dst = h.Append(dst)
	}
	dst = binary.AppendUvarint(dst, uint64(len(s.Packs)))
	for i := range s.Packs {
		p := &s.Packs[i]
		dst = append(dst, p.ID[:]...)
		dst = binary.AppendUvarint(dst, uint64(p.Size))
		dst = binary.AppendUvarint(dst, uint64(number[i]))
		dst = binary.AppendUvarint(dst, uint64(len(p.Boxes)))
	}
	dst = binary.AppendUvarint(dst, uint64(len(s.Replaces)))
	for _, r := range s.Replaces {
		dst = append(dst, r[:]...)
	}
	records := make([]record, 0, blobs)
	var n uint32
	for i := range s.Packs {
		for _, x := range s.Packs[i].Boxes {
			dst = binary.AppendUvarint(dst, uint64(x.Length))
			dst = append(dst, byte(x.Codec))
			dst = binary.AppendUvarint(dst, uint64(x.Raw))
			dst = binary.AppendUvarint(dst, uint64(len(x.Blobs)))
			for j, b := range x.Blobs {
				dst = binary.AppendUvarint(dst, uint64(b.Length)<<2|uint64(b.Kind))
				records = append(records, record{b.Name, n, uint32(j)})
			}
			n++
		}
	}
	sortRecords(records)
	for i := range records {
		r := &records[i]
		dst = append(dst, r.name[:]...)
		dst = binary.AppendUvarint(dst, uint64(r.box))
		dst = binary.AppendUvarint(dst, uint64(r.place))
	}
	return dst
}

// The fewest bytes that things take in a segment, by which counts are bounded
// before anything is allocated.
const (
	minPack   = id.Size + 1 + 1 + 1
	minBox    = 1 + 1 + 1 + 1
	minRecord = id.Size + 1 + 1
)

// parseSegment decodes the plaintext of a segment that w sealed. There is one
// form of every segment: what is returned encodes to p again.
func parseSegment(p []byte, w seal.Writer) (*Segment, error) {
	r := reader{p: p}
	headers := make([]seal.Header, r.count(seal.HeaderSize))
	for i := range headers {
		h, err := seal.ParseHeader(r.take(seal.HeaderSize))
		if err != nil {
			return nil, fmt.Errorf("%w: session %d: %w", ErrFormat, i, err)
		}
		headers[i] = h
	}
	s := &Segment{Writer: w, Packs: make([]PackInfo, r.count(minPack))}
	var sessions sessionTable
	var boxes int
	for i := range s.Packs {
		q := &s.Packs[i]
		q.ID = id.Pack(r.name())
		q.Size = int64(r.uint32())
		n := r.uint32()
		if int64(n) >= int64(len(headers)) {
			return nil, fmt.Errorf("%w: session %d of %d", ErrFormat, n, len(headers))
		}
		q.Header = headers[n]
		if sessions.number(q.Header) != n {
			return nil, fmt.Errorf("%w: sessions are not in the order of their use", ErrFormat)
		}
		n = r.uint32()
		if boxes += int(n); boxes > len(r.p)/(minBox+1+minRecord) {
			return nil, fmt.Errorf("%w: %d boxes in %d bytes", ErrFormat, boxes, len(r.p))
		}
		q.Boxes = make([]pack.Box, n)
	}
	if len(sessions.headers) != len(headers) {
		return nil, fmt.Errorf("%w: sessions without a pack", ErrFormat)
	}
	s.Replaces = make([]id.Segment, r.count(id.Size))
	for i := range s.Replaces {
		s.Replaces[i] = id.Segment(r.name())
	}

	var blobs int
	table := make([]*pack.Box, 0, boxes)
	for i := range s.Packs {
		off := uint64(pack.HeaderSize)
		for j := range s.Packs[i].Boxes {
			x := &s.Packs[i].Boxes[j]
			x.Offset = uint32(min(off, math.MaxUint32))
			x.Length = r.uint32()
			x.Codec = box.Codec(r.byte())
			x.Raw = r.uint32()
			// Each blob is still to come twice: here, and in the sorted part.
			n := r.uint32()
			if blobs += int(n); blobs > len(r.p)/minRecord || int(n) > len(r.p)/(1+minRecord) {
				return nil, fmt.Errorf("%w: %d blobs in %d bytes", ErrFormat, blobs, len(r.p))
			}
			x.Blobs = make([]pack.Blob, n)
			for k := range x.Blobs {
				v := r.uvarint(math.MaxUint32<<2 | 3)
				x.Blobs[k].Kind, x.Blobs[k].Length = id.Kind(v&3), uint32(v>>2)
			}
			off += uint64(x.Length)
			table = append(table, x)
		}
	}
	if r.bad {
		return nil, errCut
	}
	if err := s.valid(); err != nil {
		return nil, err
	}

	// Places are taken once each, or a blob would be without a name.
	taken := make([][]uint64, len(table))
	for i, x := range table {
		taken[i] = make([]uint64, (len(x.Blobs)+63)/64)
	}
	var last record
	for i := range blobs {
		v := record{id.Blob(r.name()), r.uint32(), r.uint32()}
		if i > 0 && compareRecords(&last, &v) >= 0 {
			return nil, fmt.Errorf("%w: names are not in order", ErrFormat)
		}
		if int64(v.box) >= int64(len(table)) || int64(v.place) >= int64(len(table[v.box].Blobs)) {
			return nil, fmt.Errorf("%w: a blob at place %d of box %d", ErrFormat, v.place, v.box)
		}
		word, bit := &taken[v.box][v.place/64], uint64(1)<<(v.place%64)
		if *word&bit != 0 {
			return nil, fmt.Errorf("%w: two blobs at place %d of box %d", ErrFormat, v.place, v.box)
		}
		*word |= bit
		table[v.box].Blobs[v.place].Name = v.name
		last = v
	}
	if r.bad {
		return nil, errCut
	}
	if len(bytes.Trim(r.p, "\x00")) != 0 || len(p) != pack.Padme(len(p)-len(r.p)) {
		return nil, fmt.Errorf("%w: followed by %d bytes that are not its padding", ErrFormat, len(r.p))
	}
	return s, nil
}

var errCut = fmt.Errorf("%w: cut off or not in its one form", ErrFormat)

// A reader takes a segment apart. Once it is bad it yields zeros.
type reader struct {
	p   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.p) {
		r.p, r.bad = nil, true
		return nil
	}
	t := r.p[:n]
	r.p = r.p[n:]
	return t
}

func (r *reader) name() (n [id.Size]byte) {
	copy(n[:], r.take(id.Size))
	return n
}

func (r *reader) byte() byte {
	if t := r.take(1); t != nil {
		return t[0]
	}
	return 0
}

// uvarint reads a varint of at most limit in its shortest form.
func (r *reader) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(r.p)
	if n <= 0 || v > limit || n > 1 && r.p[n-1] == 0 {
		r.p, r.bad = nil, true
		return 0
	}
	r.p = r.p[n:]
	return v
}

func (r *reader) uint32() uint32 { return uint32(r.uvarint(math.MaxUint32)) }

// count reads how many things follow that take at least size bytes each.
func (r *reader) count(size int) int {
	n := r.uint32()
	if int64(n) > int64(len(r.p)/size) {
		r.p, r.bad = nil, true
		return 0
	}
	return int(n)
}
