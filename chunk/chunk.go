// Package chunk cuts a stream of bytes into chunks at places chosen by the
// bytes themselves.
//
// # Why content-defined
//
// If a stream were cut every megabyte, one byte inserted at its start would
// move every later cut and nothing after it would deduplicate. A splitter
// looks only at the last 64 bytes before a place, and at how far it is from
// the chunk's start, to decide whether to cut there; so after an edit the cuts
// fall back into step within a chunk or two.
//
// # What the cuts reveal
//
// Chunk lengths can survive encryption, and whoever knows a file and the
// splitter's parameters can recognise it by its lengths alone. Both splitters
// are therefore keyed. The key makes recognition harder, not impossible: with
// enough known files and their lengths the parameters of either can be solved
// for (Truong et al., "Breaking and Fixing Content-Defined Chunking", 2025).
// Grouping, sealed directories and padding are what hide lengths from a store.
//
// # Choosing a splitter
//
// [Gear] is some four times faster, and an edit costs it fewer bytes. [Rabin] is
// what restic cuts with.
package chunk

import (
	"fmt"
	"math/bits"
)

// Limit is the largest chunk there can be, in bytes, whatever the algorithm.
const Limit = 4 << 20

// An Algorithm is a way to find cuts.
type Algorithm string

// The algorithms.
const (
	Gear  Algorithm = "gear"  // a keyed gear hash, normalised
	Rabin Algorithm = "rabin" // github.com/restic/chunker
)

// A Config says how a repository's streams are cut; with the secret it
// determines every cut. Sizes are in bytes.
type Config struct {
	Algorithm Algorithm `cbor:"1,keyasint"`
	Min       int       `cbor:"2,keyasint"` // no chunk but a stream's last is shorter
	Avg       int       `cbor:"3,keyasint"` // mean chunk of random bytes, about; a power of two
	Max       int       `cbor:"4,keyasint"` // no chunk is longer
}

// Default returns the sizes for new repositories. Half of a mebibyte halves
// what an edit in a large file adds; a quarter would by another third, and take
// twice the index, and boxes of their own from half of a large file's chunks
// (docs/decisions/0010).
func Default(a Algorithm) (Config, error) {
	if a != Gear && a != Rabin {
		return Config{}, unknown(a)
	}
	return Config{a, 256 << 10, 512 << 10, 2 << 20}, nil
}

// Validate checks that 64 <= Min < Avg < Max <= Limit, that Avg is a power of
// two and that the algorithm is known.
func (c Config) Validate() error {
	switch {
	case c.Algorithm != Gear && c.Algorithm != Rabin:
		return unknown(c.Algorithm)
	case c.Min < window || c.Avg <= c.Min || c.Max <= c.Avg || c.Max > Limit:
		return fmt.Errorf("chunk sizes %d/%d/%d: want %d <= min < avg < max <= %d",
			c.Min, c.Avg, c.Max, window, Limit)
	case bits.OnesCount(uint(c.Avg)) != 1:
		return fmt.Errorf("chunk sizes %d/%d/%d: avg is not a power of two", c.Min, c.Avg, c.Max)
	}
	return nil
}

func unknown(a Algorithm) error {
	return fmt.Errorf("chunking algorithm %q is not known (want %q or %q)", a, Gear, Rabin)
}

// A Splitter finds cuts. It keeps nothing between calls and may be used
// concurrently.
type Splitter interface {
	// Next returns the length of the first chunk of p, 1 to min(len(p), Max).
	// A chunk must begin where p does. If there is more of the stream than p,
	// and the chunk may reach beyond it, Next returns 0; it does not if p
	// holds Max bytes. It returns 0 if p is empty.
	Next(p []byte, more bool) int

	// Max returns the length of the longest possible chunk.
	Max() int

	// Cuts appends to dst the lengths of all chunks of p that Next would find
	// one after the other. The work is shared out by fork, as far as it can be.
	Cuts(dst []int, p []byte, more bool, fork Fork) []int
}

// A Fork calls task(0), ..., task(n-1), several at a time, and returns when
// all have returned.
type Fork func(n int, task func(i int))

// cuts is Cuts for one who cannot share, or has nothing to share.
func cuts(s Splitter, dst []int, p []byte, more bool) []int {
	for n := s.Next(p, more); n > 0; n = s.Next(p, more) {
		dst = append(dst, n)
		p = p[n:]
	}
	return dst
}

// New returns the splitter that c and a secret of the repository determine.
func New(c Config, secret [32]byte) (Splitter, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Algorithm == Gear {
		return newGear(c, secret), nil
	}
	return newRabin(c, secret)
}

// ahead returns what of p the next chunk can have, and what Next returns if it
// finds no cut in it.
func ahead(p []byte, more bool, longest int) (rest []byte, end int) {
	switch {
	case len(p) >= longest:
		return p[:longest], longest
	case more:
		return p, 0
	}
	return p, len(p)
}
