//go:build linux

package agent

import (
	"context"
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"orlop/chunk"
	"orlop/id"
	"orlop/snapshot"
)

const (
	// A file that is smaller is read into its reader's own buffer, and what is
	// offered of it is a copy.
	largeFile = 1 << 20

	// largeBuffer is what a larger file is read into, part after part: the more,
	// the less is cut twice (half a mean chunk at the end of each part) and the
	// better the cores share its chunks (some eight).
	largeBuffer = 8 << 20

	smallBuffer = 64 << 10 // is where a reader's own begins
)

// A cutter cuts one stream into blobs, names them and offers them in order.
// Data goes in by room and wrote.
type cutter struct {
	splitter chunk.Splitter
	namer    *id.Namer
	offer    func(ref snapshot.Ref, data []byte) error // data is the cutter's
	// fork returns whom to share the work with, if there is anybody.
	fork func() chunk.Fork
	// lent counts what was offered and not copied. The buffer may not be
	// written to before all of that was given back. Nil: all is copied.
	lent *semaphore.Weighted
	most int // bytes of the buffer, if a chunk is not longer

	old  []snapshot.Ref // cuts to try first
	refs uint64         // offered so far

	buf     []byte
	from    int   // buf[from:] is not cut yet
	lengths []int // of the next pieces
	places  []int // where they begin in buf
	names   []id.Blob
}

// reset begins a stream of about size bytes.
func (c *cutter) reset(ctx context.Context, size uint64, old []snapshot.Ref) error {
	if err := c.settle(ctx); err != nil {
		return err
	}
	// One byte more than the stream has, so that the buffer is not full, and
	// cut, before its end is known.
	want := int(min(max(size+1, smallBuffer), uint64(c.most)))
	if cap(c.buf) < want {
		c.buf = make([]byte, min(1<<bits.Len(uint(want-1)), c.most))
	}
	c.buf, c.from, c.old, c.refs = c.buf[:0], 0, old, 0
	return nil
}

// settle waits until nobody looks at the buffer any more.
func (c *cutter) settle(ctx context.Context) error {
	if c.lent == nil {
		return nil
	}
	if err := c.lent.Acquire(ctx, math.MaxInt64); err != nil {
		return err
	}
	c.lent.Release(math.MaxInt64)
	return nil
}

// room returns space for more of the stream.
func (c *cutter) room(ctx context.Context) ([]byte, error) {
	if len(c.buf) < cap(c.buf) {
		return c.buf[len(c.buf):cap(c.buf)], nil
	}
	if c.from == 0 {
		// Not one chunk fits.
		c.buf = slices.Grow(c.buf, len(c.buf))
	} else {
		if err := c.settle(ctx); err != nil {
			return nil, err
		}
		n := copy(c.buf, c.buf[c.from:])
		c.buf, c.from = c.buf[:n], 0
	}
	return c.buf[len(c.buf):cap(c.buf)], nil
}

// wrote says that n bytes of room were filled.
func (c *cutter) wrote(n int) error {
	c.buf = c.buf[:len(c.buf)+n]
	if len(c.buf) < cap(c.buf) {
		return nil
	}
	return c.cut(true)
}

func (c *cutter) write(ctx context.Context, p []byte) error {
	for len(p) > 0 {
		room, err := c.room(ctx)
		if err != nil {
			return err
		}
		n := copy(room, p)
		p = p[n:]
		if err := c.wrote(n); err != nil {
			return err
		}
	}
	return nil
}

// finish cuts the end of the stream, or returns all of it if it was never cut
// and is at most limit bytes long.
func (c *cutter) finish(limit int) (whole []byte, err error) {
	if c.refs == 0 && len(c.buf)-c.from <= limit {
		return slices.Clone(c.buf[c.from:]), nil
	}
	return nil, c.cut(false)
}

// cut offers the chunks of what is not cut; more says that more is to come.
func (c *cutter) cut(more bool) error {
	var fork chunk.Fork
	if c.fork != nil {
		fork = c.fork()
	}
	if err := c.cutAsBefore(more, fork); err != nil || len(c.old) > 0 || c.from == len(c.buf) {
		return err
	}
	if fork == nil {
		// A chunk that was just looked through is still in the core's cache.
		for n := c.splitter.Next(c.buf[c.from:], more); n > 0; n = c.splitter.Next(c.buf[c.from:], more) {
			name := c.namer.Blob(id.Data, c.buf[c.from:][:n])
			if err := c.found(snapshot.Ref{Name: name, Length: uint64(n)}); err != nil {
				return err
			}
		}
		return nil
	}
	c.lengths = c.splitter.Cuts(c.lengths[:0], c.buf[c.from:], more, fork)
	for i, name := range c.name(fork) {
		if err := c.found(snapshot.Ref{Name: name, Length: uint64(c.lengths[i])}); err != nil {
			return err
		}
	}
	return nil
}

// cutAsBefore offers what is as the old cuts have it, and drops those at the
// first difference: later ones would have to be found again. It keeps them only
// as long as more of the stream must come to tell.
//
// As the same bytes are cut at the same places, a range that still has its name
// is the chunk that the splitter would find. Only the last old cut may be there
// for no better reason than that its stream ended, so it holds only where this
// one ends too.
func (c *cutter) cutAsBefore(more bool, fork chunk.Fork) error {
	if len(c.old) == 0 {
		return nil
	}
	old, longest := c.old, c.splitter.Max()
	c.old, c.lengths = nil, c.lengths[:0]
	rest, undecided := len(c.buf)-c.from, false
	for i, ref := range old {
		if ref.Length == 0 || ref.Length > uint64(longest) {
			break
		}
		n, last := int(ref.Length), i == len(old)-1
		if undecided = more && (n > rest || n == rest && last); undecided {
			break
		}
		if n > rest || last && n < rest {
			break
		}
		c.lengths = append(c.lengths, n)
		rest -= n
	}
	for i, name := range c.name(fork) {
		if name != old[i].Name {
			return nil
		}
		if err := c.found(old[i]); err != nil {
			return err
		}
	}
	if undecided {
		c.old = old[len(c.lengths):]
	}
	return nil
}

// name names what is not cut, in pieces of c.lengths.
func (c *cutter) name(fork chunk.Fork) []id.Blob {
	c.names = slices.Grow(c.names[:0], len(c.lengths))[:len(c.lengths)]
	c.places = c.places[:0]
	at := c.from
	for _, n := range c.lengths {
		c.places = append(c.places, at)
		at += n
	}
	each(fork, len(c.lengths), func(i int) {
		c.names[i] = c.namer.Blob(id.Data, c.buf[c.places[i]:][:c.lengths[i]])
	})
	return c.names
}

func (c *cutter) found(ref snapshot.Ref) error {
	end := c.from + int(ref.Length)
	err := c.offer(ref, c.buf[c.from:end])
	c.from = end
	c.refs++
	return err
}

// each calls task(0), ..., task(n-1), with a fork side by side.
func each(fork chunk.Fork, n int, task func(i int)) {
	if fork != nil && n > 1 {
		fork(n, task)
		return
	}
	for i := range n {
		task(i)
	}
}

// A crew is what the readers of one backup share: the cores, and the buffers
// for large files. Those are few, for a few readers that let others help them
// keep all cores busy.
type crew struct {
	cores int
	busy  atomic.Int32 // readers that have something to do
	large chan *cutter // the one that was used longest ago comes first

	unknown unknown
}

func newCrew(cores, large int, s chunk.Splitter, n *id.Namer) *crew {
	c := &crew{cores: cores, large: make(chan *cutter, large)}
	for range large {
		c.large <- &cutter{
			splitter: s, namer: n, fork: c.fork, lent: semaphore.NewWeighted(math.MaxInt64), most: largeBuffer,
		}
	}
	return c
}

// take returns a cutter for a large file, to be given back into c.large.
func (c *crew) take(ctx context.Context) (*cutter, error) {
	c.busy.Add(-1)
	defer c.busy.Add(1)
	select {
	case x := <-c.large:
		return x, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fork returns a way to share work with as many cores as have no reader. If all
// have, sharing would only make more work.
func (c *crew) fork() chunk.Fork {
	width := c.cores - int(c.busy.Load()) + 1
	if width < 2 {
		return nil
	}
	return func(n int, task func(i int)) {
		var taken atomic.Int64
		work := func() {
			for i := int(taken.Add(1)) - 1; i < n; i = int(taken.Add(1)) - 1 {
				task(i)
			}
		}
		var others sync.WaitGroup
		for range min(width, n) - 1 {
			others.Go(work)
		}
		work()
		others.Wait()
	}
}
