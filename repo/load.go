package repo

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"orlop/box"
	"orlop/id"
	"orlop/index"
	"orlop/store"
)

// Load returns a blob's plaintext. It implements [snapshot.Loader].
//
// Every copy that the index knows is tried; a pack that is gone means that a
// prune moved the blob, so the index is refreshed once. What is left is
// damage, a *[DamageError]. The bytes returned are shared: do not change them.
func (r *Repo) Load(ctx context.Context, name id.Blob, kind id.Kind) ([]byte, error) {
	data, err := r.load(ctx, name, kind)
	var d *DamageError
	if errors.As(err, &d) && errors.Is(err, fs.ErrNotExist) {
		if err := r.Refresh(ctx); err != nil {
			return nil, err
		}
		data, err = r.load(ctx, name, kind)
	}
	return data, err
}

func (r *Repo) load(ctx context.Context, name id.Blob, kind id.Kind) ([]byte, error) {
	at, err := r.locate(ctx, name)
	if err != nil {
		return nil, err
	}
	var first error
	for _, l := range at {
		data, err := r.loadAt(ctx, l, name, kind)
		if err == nil {
			return data, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// locate returns the places of a blob, at least one.
func (r *Repo) locate(ctx context.Context, name id.Blob) ([]index.Location, error) {
	at, err := r.index.Locations(name)
	if errors.Is(err, index.ErrDamaged) {
		// The index dropped what was damaged; fetch that again.
		if err = r.Refresh(ctx); err == nil {
			at, err = r.index.Locations(name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("look up blob %s: %w", name.Short(), err)
	}
	if len(at) > 0 {
		return at, nil
	}
	l, ok, err := r.stray(ctx, name)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, &DamageError{Blob: name, Err: fmt.Errorf("no pack has it: %w", fs.ErrNotExist)}
	}
	return []index.Location{l}, nil
}

// loadAt reads a blob from one place.
func (r *Repo) loadAt(ctx context.Context, l index.Location, name id.Blob, kind id.Kind) ([]byte, error) {
	read := func() ([]box.Blob, error) {
		sealed, err := r.store.Get(ctx, packName(l.Pack), int64(l.Offset), int64(l.Length))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, store.ErrRange) {
			return nil, &DamageError{Name: packName(l.Pack), Blob: name, Err: err}
		}
		if err != nil {
			return nil, err
		}
		return r.openBox(l, sealed)
	}
	blobs, err := r.boxes.get(boxKey{l.Pack, l.Offset}, read)
	if errors.Is(err, context.Canceled) && ctx.Err() == nil {
		// Another reader of the same box was cancelled, not this one.
		blobs, err = read()
	}
	if err != nil {
		return nil, err
	}
	return r.pick(l, blobs, name, kind)
}

// openBox opens and decompresses a box.
func (r *Repo) openBox(l index.Location, sealed []byte) ([]box.Blob, error) {
	return r.openInto(new(buffers), l, sealed)
}

// openInto is openBox in the memory of b, where the blobs then lie.
func (r *Repo) openInto(b *buffers, l index.Location, sealed []byte) ([]box.Blob, error) {
	key, err := r.Key()
	if err != nil {
		return nil, err
	}
	fail := func(err error) ([]box.Blob, error) {
		return nil, &DamageError{Name: packName(l.Pack), Err: fmt.Errorf("box at %d: %w", l.Offset, err)}
	}
	reader, err := key.OpenSession(r.config.Repository, *l.Header)
	if err != nil {
		return fail(err)
	}
	b.payload, err = reader.OpenBox(b.payload[:0], sealed, uint8(l.Codec), int(l.Raw))
	if err != nil {
		return fail(err)
	}
	plain := b.payload
	if l.Codec != box.Stored || len(plain) != int(l.Raw) {
		if plain, err = box.Decode(b.plain[:0], l.Codec, int(l.Raw), b.payload); err != nil {
			return fail(err)
		}
		b.plain = plain
	}
	blobs, err := box.Blobs(plain)
	if err != nil {
		return fail(err)
	}
	return blobs, nil
}

// pick takes one blob out of its box and computes its name again.
func (r *Repo) pick(l index.Location, blobs []box.Blob, name id.Blob, kind id.Kind) ([]byte, error) {
	fail := func(err error) ([]byte, error) {
		return nil, &DamageError{Name: packName(l.Pack), Blob: name, Err: err}
	}
	if l.Place < 0 || l.Place >= len(blobs) {
		return fail(fmt.Errorf("its box holds %d blobs, not %d", len(blobs), l.Place+1))
	}
	b := blobs[l.Place]
	if b.Kind != kind {
		return fail(fmt.Errorf("it is a %v blob, not a %v one", b.Kind, kind))
	}
	namer, err := r.sealer.NamerOf(l.Header.Writer)
	if err != nil {
		return nil, err
	}
	if namer.Blob(kind, b.Data) != name {
		return fail(errors.New("its bytes do not have its name"))
	}
	return b.Data, nil
}

// How ranges are read when much of a pack is wanted: a gap shorter than a
// round trip's worth of bytes is read along, up to what a worker may hold.
const (
	mergeGap   = 128 << 10
	mergeLimit = 2 << 20
)

// A Fetch reads data blobs, batch after batch, with no pause in between: while
// the last blobs of one batch are on their way the next can be begun.
type Fetch struct {
	r       *Repo
	ctx     context.Context
	workers *errgroup.Group
	buffers chan *buffers // of workers that are not at work
}

// Buffers are what a worker opens boxes into.
type buffers struct{ payload, plain []byte }

// NewFetch begins a fetch. Wait must be called at its end.
func (r *Repo) NewFetch(ctx context.Context) *Fetch {
	n := runtime.GOMAXPROCS(0) + 1
	f := &Fetch{r: r, buffers: make(chan *buffers, n)}
	f.workers, f.ctx = errgroup.WithContext(ctx)
	f.workers.SetLimit(n)
	for range n {
		f.buffers <- new(buffers)
	}
	return f
}

// Wait returns when nothing more is being read, with the first error.
func (f *Fetch) Wait() error { return f.workers.Wait() }

// A want is a blob and the place to read it from.
type want struct {
	name id.Blob
	at   index.Location
	pack int // the packs in the order in which they are first needed
}

// Read reads the blobs of distinct names, pack after pack, and returns when the
// last of them is on its way. For each it calls emit once, from several
// goroutines at once and until Wait returns, with the blob or with what is
// wrong with it. The data is emit's only until it returns; an error of emit
// ends the fetch.
func (f *Fetch) Read(names []id.Blob, emit func(id.Blob, []byte, error) error) error {
	wants := make([]want, 0, len(names))
	packs := map[id.Pack]int{}
	for _, name := range names {
		at, err := f.r.locate(f.ctx, name)
		if errors.Is(err, ErrDamaged) {
			// It may have moved since the last refresh.
			data, err := f.r.Load(f.ctx, name, id.Data)
			if err := emit(name, data, err); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		n, ok := packs[at[0].Pack]
		if !ok {
			n = len(packs)
			packs[at[0].Pack] = n
		}
		wants = append(wants, want{name, at[0], n})
	}
	// Those that are needed first come first: what is written then lies close
	// together, and is finished soon.
	slices.SortFunc(wants, func(a, b want) int {
		return cmp.Or(cmp.Compare(a.pack, b.pack), cmp.Compare(a.at.Offset, b.at.Offset), cmp.Compare(a.at.Place, b.at.Place))
	})
	for len(wants) > 0 && f.ctx.Err() == nil {
		first := wants[0].at
		n, end := 0, uint64(first.Offset)
		for n < len(wants) {
			l := wants[n].at
			stop := uint64(l.Offset) + uint64(l.Length)
			if l.Pack != first.Pack || uint64(l.Offset) > end+mergeGap || n > 0 && stop-uint64(first.Offset) > mergeLimit {
				break
			}
			end = max(end, stop)
			n++
		}
		run := wants[:n]
		wants = wants[n:]
		f.workers.Go(func() error { return f.read(run, int64(end), emit) })
	}
	return f.ctx.Err()
}

// read reads blobs that lie side by side in one pack, up to end.
func (f *Fetch) read(run []want, end int64, emit func(id.Blob, []byte, error) error) error {
	b := <-f.buffers
	defer func() { f.buffers <- b }()
	first := run[0].at
	data, err := f.r.store.Get(f.ctx, packName(first.Pack), int64(first.Offset), end-int64(first.Offset))
	if f.ctx.Err() != nil {
		return f.ctx.Err()
	}
	var blobs []box.Blob
	for i, w := range run {
		if err == nil && (i == 0 || w.at.Offset != run[i-1].at.Offset) {
			from := w.at.Offset - first.Offset
			blobs, _ = f.r.openInto(b, w.at, data[from:from+w.at.Length])
		}
		plain, bad := f.r.pick(w.at, blobs, w.name, id.Data)
		if bad != nil {
			// Slowly, and with every other copy; Load says what is wrong.
			plain, bad = f.r.Load(f.ctx, w.name, id.Data)
		}
		if err := emit(w.name, plain, bad); err != nil {
			return err
		}
	}
	return nil
}

// boxCacheBytes bounds the decoded boxes kept for Load. Nodes of a tree lie
// side by side, so a walk reads each box of metadata once.
const boxCacheBytes = 32 << 20

type boxKey struct {
	pack   id.Pack
	offset uint32
}

// A boxCache keeps the boxes used last, and lets only one goroutine read each.
type boxCache struct {
	mu    sync.Mutex
	limit int
	bytes int
	boxes map[boxKey]*list.Element
	order list.List // of *cachedBox, newest first
}

type cachedBox struct {
	key   boxKey
	once  sync.Once
	blobs []box.Blob
	err   error
	size  int // 0 until it counts in bytes
}

func newBoxCache(limit int) *boxCache {
	return &boxCache{limit: limit, boxes: map[boxKey]*list.Element{}}
}

func (c *boxCache) get(key boxKey, read func() ([]box.Blob, error)) ([]box.Blob, error) {
	c.mu.Lock()
	el, ok := c.boxes[key]
	if ok {
		c.order.MoveToFront(el)
	} else {
		el = c.order.PushFront(&cachedBox{key: key})
		c.boxes[key] = el
	}
	b := el.Value.(*cachedBox)
	c.mu.Unlock()

	b.once.Do(func() {
		b.blobs, b.err = read()
		c.mu.Lock()
		defer c.mu.Unlock()
		if b.err != nil { // not kept: a cancelled read must not fail the next
			c.drop(b.key, el)
			return
		}
		if c.boxes[b.key] != el {
			return // pushed out while it was being read
		}
		for _, x := range b.blobs {
			b.size += len(x.Data)
		}
		c.bytes += b.size
		for c.bytes > c.limit && c.order.Back() != el {
			old := c.order.Back().Value.(*cachedBox)
			c.drop(old.key, c.order.Back())
		}
	})
	return b.blobs, b.err
}

func (c *boxCache) drop(key boxKey, el *list.Element) {
	if c.boxes[key] == el {
		delete(c.boxes, key)
		c.order.Remove(el)
		c.bytes -= el.Value.(*cachedBox).size
	}
}
