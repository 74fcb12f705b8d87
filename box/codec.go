package box

import (
	"fmt"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// A Codec says how a box's plaintext became what is sealed.
type Codec uint8

// The codecs.
const (
	Stored Codec = 0 // as it is
	Zstd   Codec = 1 // one zstd frame (RFC 8878) that says how long its content is
)

// String names the codec for people.
func (c Codec) String() string {
	switch c {
	case Stored:
		return "stored"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("codec(%d)", uint8(c))
}

// An Encoder shrinks boxes. Each worker needs one of its own.
type Encoder struct {
	matches *zstd.Encoder // codes the bytes of a block only if some of it came before
	bytes   *zstd.Encoder // codes them always
	better  *zstd.Encoder // looks longer for matches
}

// NewEncoder returns an encoder; it needs no closing.
func NewEncoder() *Encoder {
	return &Encoder{
		newZstd(zstd.SpeedFastest, false),
		newZstd(zstd.SpeedFastest, true),
		newZstd(zstd.SpeedBetterCompression, false),
	}
}

func newZstd(level zstd.EncoderLevel, allBytes bool) *zstd.Encoder {
	z, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(level),
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), // the seal is a better one
		// The frame then always says how long its content is, and a reader
		// can refuse a lie before it allocates.
		zstd.WithSingleSegment(true),
		// A group is a mebibyte, so a longer window finds little more and
		// would cost eight times the memory: 4 MiB an encoder.
		zstd.WithWindowSize(GroupRaw),
		zstd.WithLowerEncoderMem(true),
		zstd.WithAllLitEntropyCompression(allBytes))
	if err != nil {
		panic(err) // only options that contradict each other
	}
	return z
}

// encode appends plain to dst in the codec that makes it shorter.
//
// The fastest level is its own probe for what repeats nothing: on one core,
// megabyte by megabyte, random bytes pass it at 4,400 MB/s, .gz files at 3,600,
// .zst at 4,500, where text takes 190 to 260. A sample taken before could save
// a fifth of a millisecond a megabyte and would have to see what zstd sees:
// 22 MB of .woff2 fonts, each file random to the eye, shrink to 58 % in groups
// since the same ones come again, and 24 MB of .zip to 91 %.
//
// But that level gives up on bytes that repeat nothing and are still uneven:
// random hex digits stay at 100 % where they go into 50, base64 into 75,
// floating-point numbers into 93. Coding bytes always would find those and
// take random bytes from 4,600 to 1,800 MB/s; so it is done only for what was
// to be stored and looks uneven.
func (e *Encoder) encode(dst, plain []byte) (Codec, []byte) {
	if dst, ok := e.shrink(e.matches, dst, plain); ok {
		return Zstd, dst
	}
	return Stored, append(dst, plain...)
}

// shrink appends plain to dst as z encodes it, if that is shorter.
func (e *Encoder) shrink(z *zstd.Encoder, dst, plain []byte) ([]byte, bool) {
	n := len(dst)
	dst = z.EncodeAll(plain, slices.Grow(dst, len(plain)+Slack))
	if len(dst)-n >= len(plain) && uneven(plain) {
		dst = e.bytes.EncodeAll(plain, dst[:n])
	}
	return dst, len(dst)-n < len(plain)
}

// choose returns who is to encode a large blob, or nil if it is to be stored as
// it is. A few samples tell, for a large blob, unlike a group, is of one file and
// much the same throughout.
//
// What passes the encoder for nothing is still copied three times in it, which is
// a tenth of all that a first backup of films costs. And what shrinks to a quarter,
// such as logs and dumps, is worth a longer look: a tenth less for twice the
// time, of what takes little time a byte (docs/decisions/0017).
func (e *Encoder) choose(plain []byte) *zstd.Encoder {
	const size = 16 << 10
	if len(plain) < 16*size {
		return e.matches
	}
	var room [size + Slack]byte
	shrunk := func(tenth int) int {
		at := (len(plain) - size) * tenth / 10
		return len(e.matches.EncodeAll(plain[at:at+size], room[:0]))
	}
	switch middle := shrunk(5); {
	case middle < size/4:
		return e.better
	case middle < size || uneven(plain):
		return e.matches
	}
	for _, tenth := range [...]int{1, 3, 7, 9} {
		if shrunk(tenth) < size {
			return e.matches
		}
	}
	return nil
}

// uneven reports whether two bytes of p are equal over a tenth more often than
// two bytes of noise. It looks at 8 KiB, 64 places of 128 bytes (4 us). What it
// overlooks would shrink by 2 % or is less than a 64th of p in one piece.
func uneven(p []byte) bool {
	const places, width = 64, 128
	var counts [256]int
	total := min(len(p), places*width)
	if total == len(p) {
		for _, b := range p {
			counts[b]++
		}
	} else {
		pitch := len(p) / places
		for i := range places {
			// Not at equal distances, for records have their own.
			at := i*pitch + i*7919%(pitch-width+1)
			for _, b := range p[at : at+width] {
				counts[b]++
			}
		}
	}
	same := 0
	for _, c := range counts {
		same += c * (c - 1)
	}
	return same*256*10 > total*(total-1)*11
}

// decoder serves as many callers at once as there are processors; the others
// wait. Its limit is the capacity it is given to decode into.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderMaxMemory(MaxRaw),
		zstd.WithDecoderMaxWindow(MaxRaw),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err) // only options that contradict each other
	}
	return d
})

// Decode appends the plaintext of a payload to dst. It allocates no more than
// the raw bytes that the plaintext is said to have, and no more than [MaxRaw].
// It returns an error satisfying errors.Is(err, [ErrFormat]) unless the payload
// holds exactly raw bytes and, compressed, is shorter than they are. It may be
// called concurrently.
func Decode(dst []byte, c Codec, raw int, payload []byte) ([]byte, error) {
	if raw < 1 || raw > MaxRaw {
		return nil, fmt.Errorf("%w: plaintext of %d bytes", ErrFormat, raw)
	}
	switch c {
	case Stored:
		if len(payload) != raw {
			return nil, fmt.Errorf("%w: %d bytes stored as %d", ErrFormat, raw, len(payload))
		}
		return append(dst, payload...), nil
	case Zstd:
		if len(payload) >= raw {
			return nil, fmt.Errorf("%w: %d bytes compressed to %d", ErrFormat, raw, len(payload))
		}
		var h zstd.Header
		if err := h.Decode(payload); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if h.Skippable || !h.HasFCS || h.FrameContentSize != uint64(raw) {
			return nil, fmt.Errorf("%w: the frame does not hold %d bytes", ErrFormat, raw)
		}
		n := len(dst)
		dst = slices.Grow(dst, raw)
		out, err := decoder().DecodeAll(payload, dst[:n:n+raw])
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if len(out) != n+raw {
			return nil, fmt.Errorf("%w: %d bytes where %d were said to be", ErrFormat, len(out)-n, raw)
		}
		return dst[:n+raw], nil
	}
	return nil, fmt.Errorf("%w: %v is not known", ErrFormat, c)
}
