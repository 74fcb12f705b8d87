package chunk

import (
	"math/rand/v2"
	"slices"
)

// window is how many bytes a gear decision looks back: a 64-bit hash that is
// doubled at every byte has forgotten a byte after 64 of them.
const window = 64

// level is the normalisation: before the normal length a cut is 2^level times
// rarer, after it 2^level times likelier, than one place in Avg. Bytes cut
// afresh for a small edit of a random stream, in mean chunks (511 edits, Min half
// of Avg): level 0 1.28, 1 1.28, 2 1.08, 3 1.05; rabin 1.23.
// Level 3 gains little more, and is worse at falling back into step on data
// that is less than random.
const level = 2

// gear cuts where a gear hash falls below a threshold. The hash is that of
// Xia et al., "Ddelta" (2014); skipping to the minimum and normalising are
// from their "FastCDC" (USENIX ATC 2016). Unlike there, the hash is already
// full at the first place it is asked about, and the judged bits are the top
// ones, the only bits that have seen all the window.
type gear struct {
	min, normal, max int
	hard, easy       uint64
	share            int // of a task, in bytes
	table            [256]uint64
}

func newGear(c Config, secret [32]byte) *gear {
	g := &gear{
		min:    c.Min,
		normal: normal(c.Min, c.Avg),
		max:    c.Max,
		// h < 2^64/n is true one time in n. The thresholds nest, so a hard
		// cut is an easy one too, which is what lets two streams that came
		// apart agree again.
		hard: 1 << 63 / uint64(c.Avg) << 1 >> level,
		easy: 1 << 63 / uint64(c.Avg) << 1 << level,

		share: share,
	}
	r := rand.NewChaCha8(secret)
	for i := range g.table {
		g.table[i] = r.Uint64()
	}
	return g
}

// normal is the length up to which cuts are hard, placed so that the mean
// chunk of random bytes is avg long: it solves
//
//	avg = min + S (1 - x) + L x,  x = exp(-(normal-min)/S),  S = 4 avg, L = avg/4
//
// to the second order in 1-x, in integers since every implementation must come
// to the same cuts.
func normal(minimum, avg int) int {
	d := max(0, 3*int64(avg)-4*int64(minimum)) // its square is too much for a 32-bit int
	return minimum + int(4*d/15+2*d*d/(225*int64(avg)))
}

// Max implements Splitter.
func (g *gear) Max() int { return g.max }

// Next implements Splitter.
func (g *gear) Next(p []byte, more bool) int {
	p, end := ahead(p, more, g.max)
	if len(p) <= g.min {
		return end
	}
	// A cut at n is judged by the bytes before n, so the first hash wanted
	// is that of p[min-window:min].
	h := warm(&g.table, p[g.min-window:g.min-1])
	mid := min(g.normal, len(p))
	n, h := scan(&g.table, p[g.min-1:mid], h, g.hard)
	if n > 0 {
		return g.min - 1 + n
	}
	n, _ = scan(&g.table, p[mid:], h, g.easy)
	if n > 0 {
		return mid + n
	}
	return end
}

// lane is how many bytes each half of a block has in scan.
const lane = 4096

// scan returns how many bytes of p bring the hash below limit, or 0 if all of
// them do not, and the hash after them.
//
// Doubling and adding take two cycles that nothing can shorten, since each
// hash needs the one before; so two halves of a block are hashed side by side,
// which is possible because a hash can be begun anywhere. A cut in the second
// half counts only if the first has none.
func scan(table *[256]uint64, p []byte, h, limit uint64) (int, uint64) {
	done := 0
	for ; len(p) >= 2*lane; p, done = p[2*lane:], done+2*lane {
		a, b := (*[lane]byte)(p), (*[lane]byte)(p[lane:])
		g := warm(table, a[lane-window:])
		for i := range lane {
			h = h<<1 + table[a[i]]
			if h < limit {
				return done + i + 1, h
			}
			g = g<<1 + table[b[i]]
			if g < limit {
				if n, h := step(table, a[i+1:], h, limit); n > 0 {
					return done + i + 1 + n, h
				}
				return done + lane + i + 1, g
			}
		}
		h = g
	}
	n, h := step(table, p, h, limit)
	if n > 0 {
		n += done
	}
	return n, h
}

// step is scan, one byte at a time.
func step(table *[256]uint64, p []byte, h, limit uint64) (int, uint64) {
	for i, b := range p {
		h = h<<1 + table[b]
		if h < limit {
			return i + 1, h
		}
	}
	return 0, h
}

// warm returns the hash of a window.
func warm(table *[256]uint64, p []byte) (h uint64) {
	for _, b := range p {
		h = h<<1 + table[b]
	}
	return h
}

// share is how many bytes one task of a Fork looks through: some 400 us of work,
// against a few for handing it out.
const share = 1 << 20

// A mark is a place at which a cut may be: its hash is below the easy limit.
type mark struct {
	at   int // bytes before it
	hard bool
}

// Cuts implements Splitter. As a hash knows no more than the bytes of its
// window, all places at which there can be cuts are found side by side, some
// four in a mean chunk; going through those is all that must be done in order.
// It looks at the bytes within Min of a cut too, which Next passes over: twice
// the work in all at the default sizes.
func (g *gear) Cuts(dst []int, p []byte, more bool, fork Fork) []int {
	n := (len(p) + g.share - 1) / g.share
	if n < 2 {
		return cuts(g, dst, p, more)
	}
	marks := make([][]mark, n)
	fork(n, func(i int) { marks[i] = g.marks(p, i*g.share, min((i+1)*g.share, len(p))) })
	all := slices.Concat(marks...)
	for from := 0; ; {
		rest, end := ahead(p[from:], more, g.max)
		for len(all) > 0 && (all[0].at < from+g.min || all[0].at <= from+g.normal && !all[0].hard) {
			all = all[1:]
		}
		n := end
		if len(all) > 0 && all[0].at <= from+len(rest) {
			n = all[0].at - from
		}
		if n == 0 {
			return dst
		}
		dst = append(dst, n)
		from += n
	}
}

// marks returns the marks after from and up to to.
func (g *gear) marks(p []byte, from, to int) (found []mark) {
	at := max(from, window-1) // the next place is the first with a window before it
	if at >= to {
		return nil
	}
	h := warm(&g.table, p[at-window+1:at])
	for {
		n, next := scan(&g.table, p[at:to], h, g.easy)
		if n == 0 {
			return found
		}
		at, h = at+n, next
		found = append(found, mark{at, h < g.hard})
	}
}
