// Package pack lays out pack files: sealed boxes, then a sealed directory that
// says what is in them.
//
//	magic | session header | boxes | padding | sealed directory | trailer
//
// A pack is built in memory ([Builder]) and is named by the digest of its
// bytes, so whoever can list it can scrub it. Boxes are read by offset; the
// directory is needed only to rebuild an index that was lost: read the
// trailer, ask [Locate] where the directory lies, read it and the first
// [HeaderSize] bytes, and give both to [OpenDirectory].
//
// # What a pack shows
//
// Without a key one sees which session wrote it, and about how much it and its
// directory hold. Both are padded, the boxes with random bytes, which look
// like any other, so neither the length of a box nor the length of all of them
// is seen: chunk lengths tell a known file from another.
package pack

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"

	"orlop/box"
	"orlop/id"
	"orlop/seal"
)

// ErrFormat is returned for bytes that are no pack, or not whole, or of a
// version that this program does not know.
var ErrFormat = errors.New("malformed pack")

const (
	// Target is the size at which a pack is full, in bytes, in a repository of
	// under 1 TiB.
	Target = 16 << 20

	// MaxSize is the size that no pack has, in bytes. Offsets have 32 bits.
	MaxSize = 1 << 30

	// HeaderSize is how many bytes at the front of a pack [ParseHeader] and
	// [OpenDirectory] need.
	HeaderSize = len(magic) + seal.HeaderSize

	// TrailerSize is how many bytes at the end of a pack [Locate] needs.
	TrailerSize = 4 + len(magic)

	magic = "orlop\x00P1"

	minSize  = 4 << 10  // the smallest pack
	step     = 64 << 10 // of packs from bigSize on
	bigSize  = 4 << 20
	fullStep = 4 << 10 // of packs from Target on (docs/decisions/0018)
)

// A Blob is what a pack says of one blob.
type Blob struct {
	Name   id.Blob
	Kind   id.Kind
	Length uint32 // of the plaintext, in bytes
}

// A Box is what a pack says of one box.
type Box struct {
	Offset, Length uint32 // of the sealed bytes in the pack
	Codec          box.Codec
	Raw            uint32 // length when opened and decompressed
	Blobs          []Blob // in the order in which they lie in the box
}

// A Pack is a finished pack file.
type Pack struct {
	ID     id.Pack
	Data   []byte
	Header seal.Header
	Boxes  []Box
}

// A Builder makes a pack of boxes of one session. It is not safe for
// concurrent use: seal boxes elsewhere and use [Builder.AddSealed] for that.
type Builder struct {
	session *seal.Session
	index   *seal.IndexKey
	header  seal.Header
	data    []byte
	boxes   []Box
	sum     id.Hash
	summed  int // bytes of data that are in sum
}

// NewBuilder returns an empty builder. Session and index key must be of the
// same writer and of repo; if the writers differ it panics.
func NewBuilder(repo id.Repository, s *seal.Session, ik *seal.IndexKey) *Builder {
	h := s.Header()
	if h.Writer != ik.Writer() || repo != ik.Repository() {
		panic("pack: session and index key of different writers or repositories")
	}
	return &Builder{session: s, index: ik, header: h, data: h.Append([]byte(magic)), sum: id.NewHash()}
}

// Add seals payload, a box of these blobs as [box.Builder.Finish] made it, and
// appends it.
func (b *Builder) Add(payload []byte, c box.Codec, raw int, blobs []Blob) {
	b.grow(len(payload) + seal.Overhead)
	n := len(b.data)
	b.data = b.session.SealBox(b.data, payload, uint8(c), raw)
	b.add(len(b.data)-n, c, raw, blobs)
}

// AddSealed appends a box that the builder's session has sealed.
func (b *Builder) AddSealed(sealed []byte, c box.Codec, raw int, blobs []Blob) {
	b.grow(len(sealed))
	b.data = append(b.data, sealed...)
	b.add(len(sealed), c, raw, blobs)
}

func (b *Builder) add(n int, c box.Codec, raw int, blobs []Blob) {
	x := Box{
		Offset: uint32(len(b.data) - n),
		Length: uint32(n),
		Codec:  c,
		Raw:    uint32(raw),
		Blobs:  blobs,
	}
	// What would not be read must not be written.
	if err := x.Valid(); err != nil || raw > box.MaxRaw || len(b.data) > MaxSize/2 {
		panic(fmt.Sprintf("pack: impossible box of raw %d in a pack of %d bytes: %v", raw, len(b.data), err))
	}
	b.boxes = append(b.boxes, x)
	b.hash()
}

// hash takes what was added into the pack's name while it is in the core's
// cache.
func (b *Builder) hash() {
	_, _ = b.sum.Write(b.data[b.summed:])
	b.summed = len(b.data)
}

// Reuse lets the builder go on in buf, whose content is lost, if that is
// larger than what it has, and returns the one of both that it has no use for.
// The Data of a Pack that was put is a good one: a pack's worth of memory is
// better used again than collected.
func (b *Builder) Reuse(buf []byte) (idle []byte) {
	if cap(buf) <= cap(b.data) {
		return buf
	}
	idle, b.data = b.data, append(buf[:0], b.data...)
	return idle
}

// grow makes room for n more bytes. Doubling to 16 MiB and copying at each
// step would cost as much again as hashing; a small pack stays small.
func (b *Builder) grow(n int) {
	switch need := len(b.data) + n; {
	case need <= cap(b.data):
	case need <= bigSize/4:
		b.data = append(make([]byte, 0, max(need, 2*cap(b.data))+minSize), b.data...)
	case need <= bigSize:
		b.data = append(make([]byte, 0, bigSize), b.data...)
	case need <= Target:
		b.data = append(make([]byte, 0, Target+box.GroupRaw+step), b.data...)
	default:
		b.data = append(make([]byte, 0, 2*need), b.data...)
	}
}

// Len returns how many bytes the pack has so far, directory and padding not
// counted.
func (b *Builder) Len() int { return len(b.data) }

// Count returns how many boxes the pack has so far.
func (b *Builder) Count() int { return len(b.boxes) }

// Finish returns the pack. The builder must not be used afterwards.
func (b *Builder) Finish() Pack {
	dir := appendDirectory(nil, b.boxes)
	// Its length would tell how many blobs there are and, by the bytes that
	// their lengths take, something of those.
	dir = append(dir, make([]byte, Padme(len(dir))-len(dir))...)
	sealed := len(dir) + seal.IndexOverhead

	size := padded(len(b.data) + sealed + TrailerSize)
	end := size - sealed - TrailerSize
	b.grow(size - len(b.data))
	pad := b.data[len(b.data):end]
	_, _ = rand.Read(pad)
	b.data = b.data[:end]
	b.data = b.index.Seal(b.data, seal.Directory, dir, directoryAD(b.data[:HeaderSize], int64(size)))
	b.data = binary.LittleEndian.AppendUint32(b.data, uint32(sealed))
	b.data = append(b.data, magic...)
	b.hash()
	return Pack{b.sum.Sum(), b.data, b.header, b.boxes}
}

// padded returns the size that a pack of n bytes is brought to.
func padded(n int) int {
	switch {
	case n >= Target:
		return (n + fullStep - 1) / fullStep * fullStep
	case n >= bigSize:
		return (n + step - 1) / step * step
	}
	return max(minSize, Padme(n))
}

// Padme rounds n up so that what is left to see of it is O(log log n) bits, at
// a cost of at most 12 % (Nikitin et al., "Reducing Metadata Leakage from
// Encrypted Files and Communication with PURBs", 2019, section 4).
func Padme(n int) int {
	if n < 2 {
		return n
	}
	e := bits.Len(uint(n)) - 1
	mask := 1<<(e-bits.Len(uint(e))) - 1
	return (n + mask) &^ mask
}

// ParseHeader decodes the header of a pack from its first [HeaderSize] or more
// bytes. Its errors are [ErrFormat].
func ParseHeader(head []byte) (seal.Header, error) {
	if err := checkMagic(head); err != nil {
		return seal.Header{}, err
	}
	if len(head) < HeaderSize {
		return seal.Header{}, fmt.Errorf("%w: cut off at %d bytes", ErrFormat, len(head))
	}
	h, err := seal.ParseHeader(head[len(magic):HeaderSize])
	if err != nil {
		return seal.Header{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return h, nil
}

func checkMagic(p []byte) error {
	const version = len(magic) - 1
	if len(p) < len(magic) || string(p[:version]) != magic[:version] {
		return fmt.Errorf("%w: not a pack", ErrFormat)
	}
	if p[version] != magic[version] {
		return fmt.Errorf("%w: version %q, and this program knows version %q", ErrFormat, p[version], magic[version])
	}
	return nil
}

// Locate returns where in a pack of size bytes the sealed directory lies, from
// its last [TrailerSize] bytes. Its errors are [ErrFormat].
func Locate(trailer []byte, size int64) (off, n int64, err error) {
	if len(trailer) != TrailerSize {
		return 0, 0, fmt.Errorf("%w: trailer of %d bytes, not %d", ErrFormat, len(trailer), TrailerSize)
	}
	if err := checkMagic(trailer[4:]); err != nil {
		return 0, 0, fmt.Errorf("trailer: %w", err)
	}
	n = int64(binary.LittleEndian.Uint32(trailer))
	if off, err = directoryStart(size, n); err != nil {
		return 0, 0, err
	}
	return off, n, nil
}

// directoryStart returns where a sealed directory of n bytes begins, which is
// where the last box must have ended.
func directoryStart(size, n int64) (int64, error) {
	if size < 0 || size > MaxSize || n < seal.IndexOverhead || n > size-int64(HeaderSize+TrailerSize) {
		return 0, fmt.Errorf("%w: directory of %d bytes in a pack of %d", ErrFormat, n, size)
	}
	return size - int64(TrailerSize) - n, nil
}

// OpenDirectory returns what is in a pack of size bytes. header is its first
// [HeaderSize] bytes, directory what [Locate] says; keys returns the index key
// of the pack's writer, and its error is returned as it is, wrapped.
//
// The boxes lie within the pack, in order, and do not overlap. A header, size
// or directory that is not what was written is [seal.ErrOpen] or [ErrFormat].
func OpenDirectory(repo id.Repository, size int64, header, directory []byte, keys func(seal.Writer) (*seal.IndexKey, error)) (seal.Header, []Box, error) {
	h, boxes, err := openDirectory(repo, size, header, directory, keys)
	if err != nil {
		return seal.Header{}, nil, fmt.Errorf("open pack directory: %w", err)
	}
	return h, boxes, nil
}

func openDirectory(repo id.Repository, size int64, header, directory []byte, keys func(seal.Writer) (*seal.IndexKey, error)) (seal.Header, []Box, error) {
	h, err := ParseHeader(header)
	if err != nil {
		return seal.Header{}, nil, err
	}
	end, err := directoryStart(size, int64(len(directory)))
	if err != nil {
		return seal.Header{}, nil, err
	}
	ik, err := keys(h.Writer)
	if err != nil {
		return seal.Header{}, nil, err
	}
	if ik.Writer() != h.Writer || ik.Repository() != repo {
		return seal.Header{}, nil, fmt.Errorf("%w: the index key is of writer %d, the pack of %d", seal.ErrOpen, ik.Writer(), h.Writer)
	}
	p, err := ik.Open(nil, seal.Directory, directory, directoryAD(header[:HeaderSize], size))
	if err != nil {
		return seal.Header{}, nil, err
	}
	boxes, err := parseDirectory(p, uint32(end))
	return h, boxes, err
}

// directoryAD ties a directory to the session and to the size of its pack, and
// by that to where it ends.
func directoryAD(header []byte, size int64) []byte {
	ad := make([]byte, 0, HeaderSize+8)
	ad = append(ad, header...)
	return binary.LittleEndian.AppendUint64(ad, uint64(size))
}

func appendDirectory(dst []byte, boxes []Box) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(boxes)))
	for _, x := range boxes {
		dst = binary.AppendUvarint(dst, uint64(x.Length))
		dst = append(dst, byte(x.Codec))
		dst = binary.AppendUvarint(dst, uint64(x.Raw))
		dst = binary.AppendUvarint(dst, uint64(len(x.Blobs)))
		for _, b := range x.Blobs {
			dst = append(dst, b.Name[:]...)
			dst = append(dst, byte(b.Kind))
			dst = binary.AppendUvarint(dst, uint64(b.Length))
		}
	}
	return dst
}

// The fewest bytes that a box and a blob take in a directory.
const (
	minBox  = 1 + 1 + 1 + 1 + minBlob
	minBlob = id.Size + 1 + 1
)

// parseDirectory decodes a directory of boxes that lie before end. It has no
// offsets: each box begins where the one before it ended, so none can overlap.
func parseDirectory(p []byte, end uint32) ([]Box, error) {
	r := reader{p: p}
	boxes := make([]Box, 0, r.count(minBox))
	off := uint32(HeaderSize)
	for range cap(boxes) {
		x := Box{
			Offset: off,
			Length: r.uint32(),
			Codec:  box.Codec(r.byte()),
			Raw:    r.uint32(),
		}
		x.Blobs = make([]Blob, r.count(minBlob))
		for i := range x.Blobs {
			x.Blobs[i] = Blob{r.name(), id.Kind(r.byte()), r.uint32()}
		}
		if r.bad {
			break
		}
		if err := x.Valid(); err != nil {
			return nil, err
		}
		if x.Length > end-off {
			return nil, fmt.Errorf("%w: box at %d of %d bytes ends after %d", ErrFormat, off, x.Length, end)
		}
		off += x.Length
		boxes = append(boxes, x)
	}
	if r.bad {
		return nil, fmt.Errorf("%w: directory cut off or not in its one form", ErrFormat)
	}
	if len(bytes.Trim(r.p, "\x00")) != 0 || len(p) != Padme(len(p)-len(r.p)) {
		return nil, fmt.Errorf("%w: directory followed by %d bytes that are not its padding", ErrFormat, len(r.p))
	}
	return boxes, nil
}

// Valid says why no reader would accept x, or returns nil. Errors satisfy
// errors.Is(err, [ErrFormat]).
func (x *Box) Valid() error {
	if x.Length < seal.Overhead {
		return fmt.Errorf("%w: box of %d bytes", ErrFormat, x.Length)
	}
	if x.Codec > box.Zstd {
		return fmt.Errorf("%w: unknown codec %d", ErrFormat, x.Codec)
	}
	if x.Raw > box.MaxRaw || len(x.Blobs) == 0 {
		return fmt.Errorf("%w: box of raw length %d with %d blobs", ErrFormat, x.Raw, len(x.Blobs))
	}
	var sum uint64
	for _, b := range x.Blobs {
		if !b.Kind.Valid() {
			return fmt.Errorf("%w: unknown %v of blob", ErrFormat, b.Kind)
		}
		sum += uint64(b.Length)
	}
	if sum > uint64(x.Raw) {
		return fmt.Errorf("%w: blobs of %d bytes in a box of raw length %d", ErrFormat, sum, x.Raw)
	}
	return nil
}

// A reader takes a directory apart. Once it is bad it yields zeros.
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

func (r *reader) byte() byte {
	if t := r.take(1); t != nil {
		return t[0]
	}
	return 0
}

func (r *reader) name() (b id.Blob) {
	copy(b[:], r.take(id.Size))
	return b
}

// uint32 reads a varint of at most 32 bits in its shortest form.
func (r *reader) uint32() uint32 {
	v, n := binary.Uvarint(r.p)
	if n <= 0 || v > math.MaxUint32 || n > 1 && r.p[n-1] == 0 {
		r.p, r.bad = nil, true
		return 0
	}
	r.p = r.p[n:]
	return uint32(v)
}

// count reads the number of things that take size or more bytes each, which
// cannot be more than there are bytes for.
func (r *reader) count(size int) int {
	n := r.uint32()
	if uint64(n) > uint64(len(r.p)/size) {
		r.p, r.bad = nil, true
		return 0
	}
	return int(n)
}
