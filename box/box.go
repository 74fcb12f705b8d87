// Package box groups blobs and shrinks them. A box is what is compressed and
// sealed as one: a large blob, or a group of small ones, which compress much
// better together. This package knows its layout and its codec, and no keys.
//
// The plaintext of a box, for one blob as for many, is a table and then the
// contents in the table's order; see docs/format.md.
package box

import (
	"encoding/binary"
	"errors"
	"fmt"

	"orlop/id"
)

// Sizes in bytes.
const (
	// MaxRaw is the longest plaintext of a box, table included.
	MaxRaw = 8 << 20

	// GroupRaw is the length at which a group is full.
	GroupRaw = 1 << 20

	// SmallBlob is the length from which a blob has a box of its own.
	SmallBlob = 256 << 10
)

// MaxCount is the most blobs a box holds. A group that is finished when it is
// full stays under it as long as its blobs have 2 bytes on average; it is there
// so that what [Blobs] allocates is no more than MaxRaw.
const MaxCount = 1 << 18

// ErrFormat is returned for bytes that are not a box.
var ErrFormat = errors.New("not a box")

// A Blob is one blob of a box.
type Blob struct {
	Kind id.Kind
	Data []byte
}

// room is kept free before the contents, so that the table, whose length is
// known last, can be put there and the contents need not be moved.
const room = 4 << 10

// A Builder gathers the blobs of one box. Its zero value is ready to use.
type Builder struct {
	count int
	table []byte // without the count
	buf   []byte // room, then the contents
}

// Add appends a copy of data to the box. It panics if the box would become
// longer than [MaxRaw] or hold more than [MaxCount] blobs: callers know how
// long their blobs are and finish a group at [GroupRaw].
func (b *Builder) Add(kind id.Kind, data []byte) {
	if !kind.Valid() {
		panic("box: blob of no kind")
	}
	if len(b.buf) == 0 {
		b.buf = append(b.buf, make([]byte, room)...)
	}
	b.count++
	b.table = append(b.table, byte(kind))
	b.table = binary.AppendUvarint(b.table, uint64(len(data)))
	b.buf = append(b.buf, data...)
	if b.Raw() > MaxRaw || b.count > MaxCount {
		panic("box: more blobs than a box can hold")
	}
}

// Raw returns how long the plaintext is by now, table included; 0 if nothing
// was added.
func (b *Builder) Raw() int {
	if b.count == 0 {
		return 0
	}
	return len(binary.AppendUvarint(make([]byte, 0, binary.MaxVarintLen64), uint64(b.count))) +
		len(b.table) + len(b.buf) - room
}

// Count returns how many blobs were added.
func (b *Builder) Count() int { return b.count }

// Reset empties the box and keeps its memory.
func (b *Builder) Reset() {
	b.count, b.table, b.buf = 0, b.table[:0], b.buf[:0]
}

// Finish appends what is to be sealed of the box to dst, and returns how it is
// encoded and how long its plaintext is. The box must have a blob; it remains
// as it is until it is Reset.
func (b *Builder) Finish(e *Encoder, dst []byte) (codec Codec, raw int, payload []byte) {
	plain := b.plain()
	codec, payload = e.encode(dst, plain)
	return codec, len(plain), payload
}

// Head is the room that [Encoder.Wrap] needs before a blob.
const Head = 16

// Slack is what a payload's room needs beyond the plaintext's length, so that
// neither Finish nor Wrap has to find a larger one.
const Slack = 512

// Wrap does what a Builder of one blob does, without a copy of it: buf is Head
// bytes, which are lost, and then the blob. The payload is appended to dst, or
// is part of buf if the codec is Stored. It panics if the plaintext would be
// longer than [MaxRaw].
func (e *Encoder) Wrap(kind id.Kind, buf, dst []byte) (codec Codec, raw int, payload []byte) {
	if !kind.Valid() {
		panic("box: blob of no kind")
	}
	table := binary.AppendUvarint([]byte{1, byte(kind)}, uint64(len(buf)-Head))
	plain := buf[Head-len(table):]
	if len(plain) > MaxRaw {
		panic("box: more than a box can hold")
	}
	copy(plain, table)
	if z := e.choose(plain); z != nil {
		if dst, ok := e.shrink(z, dst, plain); ok {
			return Zstd, len(plain), dst
		}
	}
	return Stored, len(plain), plain
}

// plain returns the plaintext; it is valid until the next Add or Reset.
func (b *Builder) plain() []byte {
	if b.count == 0 {
		panic("box: finished without a blob")
	}
	head := binary.AppendUvarint(make([]byte, 0, room), uint64(b.count))
	head = append(head, b.table...)
	if len(head) > room {
		return append(head, b.buf[room:]...)
	}
	plain := b.buf[room-len(head):]
	copy(plain, head)
	return plain
}

// Blobs returns the blobs of a box's plaintext; their Data is part of plain.
// It returns an error satisfying errors.Is(err, [ErrFormat]) unless the table
// is well formed and the contents are exactly as long as it says.
func Blobs(plain []byte) ([]Blob, error) {
	if len(plain) > MaxRaw {
		return nil, fmt.Errorf("%w: plaintext of %d bytes", ErrFormat, len(plain))
	}
	count, rest, ok := uvarint(plain)
	// A blob has at least two bytes in the table.
	if !ok || count < 1 || count > MaxCount || count > uint64(len(rest)/2) {
		return nil, fmt.Errorf("%w: bad count of blobs", ErrFormat)
	}
	// The table is read twice, for its end is where the contents begin.
	contents, total := rest, uint64(0)
	for range count {
		if len(contents) == 0 || !id.Kind(contents[0]).Valid() {
			return nil, fmt.Errorf("%w: blob of no kind", ErrFormat)
		}
		n, after, ok := uvarint(contents[1:])
		if !ok || n > MaxRaw {
			return nil, fmt.Errorf("%w: bad length of a blob", ErrFormat)
		}
		contents, total = after, total+n
	}
	if total != uint64(len(contents)) {
		return nil, fmt.Errorf("%w: table of %d bytes before %d", ErrFormat, total, len(contents))
	}
	blobs := make([]Blob, count)
	for i := range blobs {
		n, after, _ := uvarint(rest[1:])
		blobs[i] = Blob{id.Kind(rest[0]), contents[:n:n]}
		rest, contents = after, contents[n:]
	}
	return blobs, nil
}

// uvarint reads a varint in its shortest form: what can be written in two ways
// can carry a message, or hide one box from a comparison with another.
func uvarint(p []byte) (v uint64, rest []byte, ok bool) {
	v, n := binary.Uvarint(p)
	if n <= 0 || n > 1 && p[n-1] == 0 {
		return 0, nil, false
	}
	return v, p[n:], true
}
