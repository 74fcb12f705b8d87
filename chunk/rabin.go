package chunk

import (
	"math/bits"
	"math/rand/v2"
	"sync"

	"github.com/restic/chunker"
)

// rabin cuts where restic's chunker does when given the same polynomial,
// bounds and bits.
type rabin struct {
	min, max int
	pool     sync.Pool
}

func newRabin(c Config, secret [32]byte) (*rabin, error) {
	pol, err := chunker.DerivePolynomial(rand.NewChaCha8(secret))
	if err != nil {
		return nil, err
	}
	r := &rabin{min: c.Min, max: c.Max}
	r.pool.New = func() any {
		return chunker.NewBase(pol,
			chunker.WithBaseAverageBits(averageBits(c)),
			chunker.WithBaseBoundaries(uint(c.Min), uint(c.Max)))
	}
	return r, nil
}

// averageBits is how many bits of the fingerprint must be zero. A cut comes
// Min + 2^bits after the last one on average, so 2^bits is the power of two
// nearest to Avg - Min, and Avg means the same here as it does for gear.
func averageBits(c Config) int {
	return bits.Len(uint(4*(c.Avg-c.Min)/3)) - 1
}

// Max implements Splitter.
func (r *rabin) Max() int { return r.max }

// Next implements Splitter.
func (r *rabin) Next(p []byte, more bool) int {
	p, end := ahead(p, more, r.max)
	if len(p) <= r.min {
		return end
	}
	c := r.pool.Get().(*chunker.BaseChunker)
	n := c.NextSplitPoint(p)
	if n < 0 {
		// Without a cut the chunker waits for more of this chunk and cannot
		// be told that there is none; a new one is made when next wanted.
		// It happens once a stream, or once a buffer of it.
		return end
	}
	r.pool.Put(c)
	return n
}

// Cuts implements Splitter. restic's chunker can only go from cut to cut, so
// there is nothing to share.
func (r *rabin) Cuts(dst []int, p []byte, more bool, _ Fork) []int { return cuts(r, dst, p, more) }
