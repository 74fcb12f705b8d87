package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrProtocol is what every error about a stream that is not what it should be
// wraps: bytes that are no frame, frames out of place, promises not kept. It
// is final for the stream.
var ErrProtocol = errors.New("protocol error")

func protocolError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// A frameType says what a frame's body is. Its name in the comments below
// stands for the frame; H is the host, A the agent.
type frameType uint8

const (
	frameHello frameType = 1 // both, once: version and credits
	frameBeat  frameType = 2 // both, at any time: empty; only says "alive"
	frameError frameType = 3 // A to H: the operation failed; see failure
	frameDone  frameType = 4 // H to A after END: empty; A to H: the last frame of an operation

	frameBackup  frameType = 16 // H to A: BackupRequest
	frameEntries frameType = 17 // A to H: a batch of Stat
	frameAnswers frameType = 18 // H to A: one Answer for each of a batch
	frameOffers  frameType = 19 // A to H: names of blobs
	frameWants   frameType = 20 // H to A: one bit for each name of an OFFERS
	frameBox     frameType = 21 // A to H: wanted blobs
	frameFile    frameType = 22 // A to H: the final word on an entry
	frameEnd     frameType = 23 // A to H: counts and a sum of the stream
	frameProblem frameType = 24 // A to H: what has no entry and is not in the backup

	frameRestore frameType = 64 // H to A; 64 to 127 belong to the restore half
)

const (
	headerSize = 5       // u8 type, u32 length of the body
	maxFrame   = 8 << 20 // largest body
)

func putHeader(p []byte, t frameType, n int) {
	p[0] = byte(t)
	binary.LittleEndian.PutUint32(p[1:], uint32(n))
}

// appendBytes appends p with its length before it.
func appendBytes[B ~[]byte | ~string](dst []byte, p B) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(p))), p...)
}

// appendBool appends one byte, 0 or 1.
func appendBool(dst []byte, b bool) []byte {
	if b {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// A decoder reads the body of a frame. After the first thing that does not fit
// it returns only zeros; callers look at end once.
type decoder struct {
	p   []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = protocolError(format, args...)
	}
	d.p = nil
}

// take returns the next n bytes, still inside the body, or nil.
func (d *decoder) take(n int) []byte {
	if n < 0 || n > len(d.p) {
		d.fail("frame is too short")
		return nil
	}
	p := d.p[:n:n]
	d.p = d.p[n:]
	return p
}

func (d *decoder) u8() uint8 {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) bool() bool {
	b := d.u8()
	if b > 1 {
		d.fail("a boolean is %d", b)
	}
	return b == 1
}

func (d *decoder) u16() uint16 {
	if p := d.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if p := d.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if p := d.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

// uvarint reads a varint of at most limit in its only accepted, shortest form.
func (d *decoder) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(d.p)
	switch {
	case n <= 0:
		d.fail("a number is cut short or too long")
		return 0
	case n > 1 && d.p[n-1] == 0:
		d.fail("a number is not in its shortest form")
		return 0
	case v > limit:
		d.fail("%d where at most %d is allowed", v, limit)
		return 0
	}
	d.p = d.p[n:]
	return v
}

// varint is uvarint for a signed number, without a limit.
func (d *decoder) varint() int64 {
	v := d.uvarint(1<<64 - 1)
	return int64(v>>1) ^ -int64(v&1)
}

// count reads the number of things that follow, each of at least size bytes,
// so that what is allocated for them is in proportion to the frame.
func (d *decoder) count(limit, size int) int {
	n := int(d.uvarint(uint64(limit)))
	if n*size > len(d.p) {
		d.fail("%d things of %d bytes or more in %d bytes", n, size, len(d.p))
		return 0
	}
	return n
}

// bytes reads a length of at most limit and that many bytes; they lie inside
// the body.
func (d *decoder) bytes(limit int) []byte {
	return d.take(int(d.uvarint(uint64(limit))))
}

func (d *decoder) string(limit int) string { return string(d.bytes(limit)) }

func (d *decoder) sum() (b [32]byte) {
	copy(b[:], d.take(len(b)))
	return b
}

// rest returns what has not been read.
func (d *decoder) rest() []byte {
	p := d.p
	d.p = nil
	return p
}

// end returns the first error, or one if bytes are left over.
func (d *decoder) end() error {
	if d.err == nil && len(d.p) > 0 {
		d.fail("%d bytes too many in a frame", len(d.p))
	}
	return d.err
}
