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

	// largeBuffer is what a larger file is read into, part after part. It holds
	// a chunk of any size, and some six of usual ones: the more, the less is
	// searched twice (half a chunk at the end of each part).
	largeBuffer = 6 << 20

	smallBuffer = 64 << 10 // is where a reader's own begins
)

// A cutter cuts one stream into blobs, names them and offers them in order.
// Data goes in by room and wrote.
//
// A cutter for large files has two buffers. While a core has nothing to do, what
// is in one is named and offered beside the reading and cutting of the other;
// and if even more have nothing to do, they share in each of that.
type cutter struct {
	splitter chunk.Splitter
	namer    *id.Namer
	offer    func(ref snapshot.Ref, data []byte, lent *semaphore.Weighted) error
	crew     *crew // who may help; nil: nobody
	most     int   // bytes of a buffer, if a chunk is not longer

	old  []snapshot.Ref // cuts to try first
	refs uint64         // offered so far, or about to be

	// Of a fixed file:
	fixed bool
	ends  []int  // of blocks, in buf
	cell  uint64 // of the grid, that the last byte is in

	*buffered
	from   int // buf[from:] is not cut yet
	tried  []piece
	spare  *buffered  // nil: all is done in one
	behind chan error // what became of the pieces before, if they are still offered
}

// A buffered is a buffer, and the pieces of it that were found.
type buffered struct {
	buf    []byte
	pieces []piece
	// lent counts the pieces that were offered and not given back: buf may not
	// be written to before all were. Nil: what is offered is copied.
	lent *semaphore.Weighted
}

type piece struct {
	at, length int
	name       id.Blob // zero: not known yet
}

// newCutter returns a cutter of small files and other short streams.
func newCutter(s chunk.Splitter, n *id.Namer, most int) *cutter {
	return &cutter{splitter: s, namer: n, most: most, buffered: new(buffered)}
}

// newLargeCutter returns a cutter that lends what it offers: who takes it
// releases lent by one when done.
func newLargeCutter(s chunk.Splitter, n *id.Namer, most int, crew *crew) *cutter {
	c := newCutter(s, n, most)
	c.crew, c.spare = crew, new(buffered)
	c.lent, c.spare.lent = semaphore.NewWeighted(math.MaxInt64), semaphore.NewWeighted(math.MaxInt64)
	return c
}

// reset begins a stream of about size bytes, of content that is to be cut by
// its class.
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
	c.buf, c.pieces, c.from, c.old, c.refs = c.buf[:0], c.pieces[:0], 0, old, 0
	c.fixed, c.ends = false, c.ends[:0]
	return nil
}

// class says how the stream is to be cut, if it is the content of a file. It
// comes before the stream.
func (c *cutter) class(x chunk.Class) {
	if c.fixed = x == chunk.Fixed; c.fixed {
		c.old = nil
	}
}

// settle waits until nobody looks at the buffer any more.
func (b *buffered) settle(ctx context.Context) error {
	if b.lent == nil {
		return nil
	}
	if err := b.lent.Acquire(ctx, math.MaxInt64); err != nil {
		return err
	}
	b.lent.Release(math.MaxInt64)
	return nil
}

// room returns space for more of the stream.
func (c *cutter) room(ctx context.Context) ([]byte, error) {
	if len(c.buf) < cap(c.buf) {
		return c.buf[len(c.buf):cap(c.buf)], nil
	}
	// No end of a block is among what remains: those that are whole were cut.
	rest := c.buf[c.from:]
	switch {
	case c.from == 0: // not one chunk fits
		c.buf = slices.Grow(c.buf, len(c.buf))
	case c.behind != nil:
		if err := c.spare.settle(ctx); err != nil {
			return nil, err
		}
		if cap(c.spare.buf) < cap(c.buf) {
			c.spare.buf = make([]byte, cap(c.buf))
		}
		c.buffered, c.spare = c.spare, c.buffered
		c.buf, c.from = append(c.buf[:0], rest...), 0
	default:
		if err := c.settle(ctx); err != nil {
			return nil, err
		}
		c.buf, c.from = append(c.buf[:0], rest...), 0
	}
	return c.buf[len(c.buf):cap(c.buf)], nil
}

// wroteAt says that n bytes of room were filled with what is at off in the file.
// Within a fixed file the order of that is not broken, but there may be holes.
func (c *cutter) wroteAt(n int, off uint64) error {
	if c.fixed {
		begin, at := c.from, len(c.buf)
		if len(c.ends) > 0 {
			begin = c.ends[len(c.ends)-1]
		}
		if begin < at && off/chunk.FixedBlock != c.cell {
			c.ends = append(c.ends, at) // the hole reached into another cell
		}
		for k := chunk.FixedBlock - int(off%chunk.FixedBlock); k <= n; k += chunk.FixedBlock {
			c.ends = append(c.ends, at+k)
		}
		c.cell = (off + uint64(n) - 1) / chunk.FixedBlock
	}
	return c.wrote(n)
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
	// Nothing may have been read since the last cut: then its pieces are of this
	// very buffer, and the next may not be put among them while they are offered.
	if err := c.await(); err != nil {
		return nil, err
	}
	if err := c.cut(false); err != nil {
		return nil, err
	}
	return nil, c.await()
}

// cut finds the pieces of what is not cut, and passes them on; more says that
// more of the stream is to come.
func (c *cutter) cut(more bool) error {
	width := c.crew.width()
	if c.fixed {
		c.cutGrid(more)
		return c.pass(width)
	}
	if c.cutAsBefore(more, width); len(c.old) > 0 || c.from == len(c.buf) {
		return c.pass(width)
	}
	if width > 2 {
		for _, n := range c.splitter.Cuts(nil, c.buf[c.from:], more, spread(width)) {
			c.found(n, id.Blob{})
		}
		return c.pass(width)
	}
	// One after the other costs less, and is no slower than what is done beside.
	for n := c.splitter.Next(c.buf[c.from:], more); n > 0; n = c.splitter.Next(c.buf[c.from:], more) {
		c.found(n, id.Blob{})
		if width == 1 { // while it is in the core's cache
			if err := c.pass(width); err != nil {
				return err
			}
		}
	}
	return c.pass(width)
}

// cutGrid takes the blocks that are whole, and at the end of the stream what is
// left.
func (c *cutter) cutGrid(more bool) {
	if !more && c.from < len(c.buf) && (len(c.ends) == 0 || c.ends[len(c.ends)-1] < len(c.buf)) {
		c.ends = append(c.ends, len(c.buf))
	}
	for _, end := range c.ends {
		c.found(end-c.from, id.Blob{})
	}
	c.ends = c.ends[:0]
}

// cutAsBefore takes what is as the old cuts have it, and drops those at the
// first difference: later ones would have to be found again. It keeps them only
// as long as more of the stream must come to tell.
//
// As the same bytes are cut at the same places, a range that still has its name
// is the chunk that the splitter would find. Only the last old cut may be there
// for no better reason than that its stream ended, so it holds only where this
// one ends too.
func (c *cutter) cutAsBefore(more bool, width int) {
	old, at, undecided := c.old, c.from, false
	c.old, c.tried = nil, c.tried[:0]
	for i, ref := range old {
		if ref.Length == 0 || ref.Length > uint64(c.splitter.Max()) {
			break
		}
		n, rest, last := int(ref.Length), len(c.buf)-at, i == len(old)-1
		if undecided = more && (n > rest || n == rest && last); undecided {
			break
		}
		if n > rest || last && n < rest {
			break
		}
		c.tried = append(c.tried, piece{at: at, length: n})
		at += n
	}
	each(width, len(c.tried), func(i int) { c.tried[i].name = c.nameOf(c.buffered, c.tried[i]) })
	for i, p := range c.tried {
		if p.name != old[i].Name {
			return
		}
		c.found(p.length, p.name)
	}
	if undecided {
		c.old = old[len(c.tried):]
	}
}

func (c *cutter) nameOf(b *buffered, p piece) id.Blob {
	return c.namer.Blob(id.Data, b.buf[p.at:][:p.length])
}

// found says that the next piece is n bytes long.
func (c *cutter) found(n int, name id.Blob) {
	c.pieces = append(c.pieces, piece{c.from, n, name})
	c.from += n
	c.refs++
}

// pass names and offers what was found, beside what is done next if there is
// somebody for that.
func (c *cutter) pass(width int) error {
	if err := c.await(); err != nil || len(c.pieces) == 0 {
		return err
	}
	b := c.buffered
	if width == 1 || c.spare == nil {
		return c.send(b, 1)
	}
	c.behind = make(chan error, 1)
	c.crew.busy.Add(1)
	go func() {
		defer c.crew.busy.Add(-1)
		c.behind <- c.send(b, c.crew.width())
	}()
	return nil
}

// await waits until all that was passed on has been offered.
func (c *cutter) await() error {
	if c.behind == nil {
		return nil
	}
	err := <-c.behind
	c.behind = nil
	return err
}

func (c *cutter) send(b *buffered, width int) error {
	defer func() { b.pieces = b.pieces[:0] }()
	name := func(i int) {
		if p := &b.pieces[i]; p.name.IsZero() {
			p.name = c.nameOf(b, *p)
		}
	}
	if width > 1 {
		each(width, len(b.pieces), name)
	}
	for i := range b.pieces {
		name(i)
		p := b.pieces[i]
		if err := c.offer(snapshot.Ref{Name: p.name, Length: uint64(p.length)}, b.buf[p.at:][:p.length], b.lent); err != nil {
			return err
		}
	}
	return nil
}

// A crew is who does the work of one backup, and what they share: the cores, and
// the buffers for large files. Those are few, for a few readers that are helped
// keep all cores busy.
type crew struct {
	cores int
	busy  atomic.Int32 // of the crew, that have something to do
	large chan *cutter // the one that was used longest ago comes first

	unknown unknown
}

func newCrew(cores, large int, s chunk.Splitter, n *id.Namer) *crew {
	c := &crew{cores: cores, large: make(chan *cutter, large)}
	for range large {
		c.large <- newLargeCutter(s, n, largeBuffer, c)
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

// width returns how many cores somebody who works may use: his own, and those of
// which nobody has need. If all are in use, sharing would only make more work.
func (c *crew) width() int {
	if c == nil {
		return 1
	}
	return max(1, c.cores-int(c.busy.Load())+1)
}

// each calls task(0), ..., task(n-1), as many at a time as width says.
func each(width, n int, task func(i int)) {
	if width < 2 || n < 2 {
		for i := range n {
			task(i)
		}
		return
	}
	spread(width)(n, task)
}

// spread returns a fork with so many goroutines, which take the tasks in turn.
func spread(width int) chunk.Fork {
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
