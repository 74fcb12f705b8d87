package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"orlop/id"
)

// sizeUvarint is the length of the shortest encoding of v.
func sizeUvarint(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

func appendBytes[B ~string | ~[]byte](dst []byte, b B) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

// A reader takes values off the front of p. The first thing that is wrong
// stays in err, and everything after it reads as zero.
type reader struct {
	p   []byte
	err error
}

var errShort = errors.New("it ends early")

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
	r.p = nil
}

func (r *reader) take(n uint64) []byte {
	if r.err != nil || n > uint64(len(r.p)) {
		if r.err == nil {
			r.err = errShort
		}
		r.p = nil
		return nil
	}
	b := r.p[:n]
	r.p = r.p[n:]
	return b
}

func (r *reader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

// uvarint refuses encodings that are longer than needed: there is one
// spelling for every value, so equal things have equal names.
func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.p)
	switch {
	case n == 0:
		r.fail("%w", errShort)
		return 0
	case n < 0 || n > 1 && r.p[n-1] == 0:
		r.fail("a number spelt oddly")
		return 0
	}
	r.p = r.p[n:]
	return v
}

func (r *reader) varint() int64 {
	u := r.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (r *reader) u32() uint32 {
	v := r.uvarint()
	if v>>32 != 0 {
		r.fail("a number of more than 32 bits")
	}
	return uint32(v)
}

// bytes returns what aliases p, at most limit bytes.
func (r *reader) bytes(limit int) []byte {
	n := r.uvarint()
	if n > uint64(limit) {
		r.fail("%d bytes where at most %d can be", n, limit)
	}
	return r.take(n)
}

// dir reads a directory, front-coded against prev.
func (r *reader) dir(prev string) string {
	shared, suffix := r.uvarint(), r.bytes(MaxPath)
	switch {
	case r.err != nil:
		return ""
	case shared > uint64(len(prev)):
		r.fail("%d bytes shared of %d", shared, len(prev))
		return ""
	case len(suffix) > 0 && shared < uint64(len(prev)) && prev[shared] == suffix[0]:
		r.fail("a path that shares more than it says")
		return ""
	case len(suffix) == 0 && shared == uint64(len(prev)):
		return prev
	}
	return prev[:shared] + string(suffix)
}

func appendDir(dst []byte, prev, dir string) []byte {
	n := common(prev, dir)
	return appendBytes(binary.AppendUvarint(dst, uint64(n)), dir[n:])
}

func (r *reader) name() (b id.Blob) {
	copy(b[:], r.take(id.Size))
	return b
}

func (r *reader) ref() Ref { return Ref{r.name(), r.uvarint()} }

func appendRef(dst []byte, r Ref) []byte {
	return binary.AppendUvarint(append(dst, r.Name[:]...), r.Length)
}
