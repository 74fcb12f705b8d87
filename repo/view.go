package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"orlop/id"
	"orlop/index"
	"orlop/pack"
	"orlop/seal"
	"orlop/store"
)

// A view is what the last listings of the store showed.
type view struct {
	segments map[id.Segment]int // readable listed segments and their tiers
	packs    packSet            // listed packs
	broken   []*DamageError     // listed segments that cannot be read
	orphans  []id.Pack          // listed packs that no readable segment lists
	strays   map[id.Blob]index.Location
	loaded   bool // strays were read from the directories of orphans
}

// fetchAtOnce is how many small objects are asked for at a time: enough to
// hide a round trip, few enough for a home server.
const fetchAtOnce = 8

// addBatch bounds the segment bytes decoded at a time when an index is
// rebuilt; decoded they take a few times as much memory.
const addBatch = 32 << 20

// Refresh brings the index up to what the store lists now. A reader lists
// snapshots first and refreshes then: whatever a listed snapshot needs was
// indexed before the snapshot was put.
func (r *Repo) Refresh(ctx context.Context) error { return r.refresh(ctx, nil) }

// refresh lists segments, fetches those that are new, and lists packs. From
// then on the index answers with what is listed, indexed and not condemned.
func (r *Repo) refresh(ctx context.Context, condemned map[id.Pack]bool) error {
	// A segment can go while its successor arrives: then list again. That
	// takes a prune each time, so a handful of tries is plenty.
	for try := 0; ; try++ {
		v, gone, err := r.readSegments(ctx)
		if err != nil {
			return err
		}
		if gone && try < 8 {
			continue
		}
		if gone {
			return fmt.Errorf("list %s: its segments go faster than they can be read", indexPrefix)
		}
		packs := []index.Pack{}
		for o, err := range r.store.List(ctx, packPrefix) {
			if err != nil {
				return err
			}
			p, err := id.Parse[id.Pack](string(o.Name[len(packPrefix):]))
			if err == nil && !condemned[p] {
				packs = append(packs, listedPack(p, o.Size))
			}
		}
		v.packs = newPackSet(packs)
		return r.adopt(v)
	}
}

// adopt makes v the view that lookups are answered by.
func (r *Repo) adopt(v *view) error {
	r.restrict(v)
	left := v.packs // both are in the order of their names
	orphans := func(before id.Pack) {
		for ; len(left) > 0 && left[0].ID.Compare(before) < 0; left = left[1:] {
			v.orphans = append(v.orphans, left[0].ID)
		}
	}
	for p, err := range r.index.Packs() {
		if err != nil {
			return fmt.Errorf("read the local index: %w", err)
		}
		if orphans(p.ID); len(left) > 0 && left[0].ID == p.ID {
			left = left[1:]
		}
	}
	for _, p := range left {
		v.orphans = append(v.orphans, p.ID)
	}
	r.mu.Lock()
	r.view = *v
	r.mu.Unlock()
	return nil
}

func (r *Repo) restrict(v *view) {
	listed := make(map[id.Segment]bool, len(v.segments))
	for s := range v.segments {
		listed[s] = true
	}
	r.index.Restrict(listed, v.packs)
}

// readSegments lists segments and adds to the local index those it does not
// cover. gone reports that one vanished in between.
func (r *Repo) readSegments(ctx context.Context) (v *view, gone bool, err error) {
	v = &view{segments: map[id.Segment]int{}}
	sizes := map[id.Segment]int64{}
	for o, err := range r.store.List(ctx, indexPrefix) {
		if err != nil {
			return nil, false, err
		}
		if tier, s, ok := parseSegmentName(o.Name); ok {
			v.segments[s], sizes[s] = tier, o.Size
		}
	}
	covered := r.index.Covered()
	// Higher tiers first: what they replace need not be fetched.
	missing := slices.SortedFunc(maps.Keys(v.segments), func(a, b id.Segment) int {
		if d := v.segments[b] - v.segments[a]; d != 0 {
			return d
		}
		return a.Compare(b)
	})
	replaced := r.replaced(v)
	missing = slices.DeleteFunc(missing, func(s id.Segment) bool { return covered[s] || replaced[s] })
	for len(missing) > 0 {
		n, bytes, tier := 0, int64(0), v.segments[missing[0]]
		for n < len(missing) && v.segments[missing[n]] == tier && (n == 0 || bytes < addBatch) {
			bytes += sizes[missing[n]]
			n++
		}
		got, gone, err := r.fetchSegments(ctx, v, missing[:n])
		if err != nil || gone {
			return nil, gone, err
		}
		missing = missing[n:]
		if len(got) == 0 {
			continue
		}
		if err := r.index.Add(got); err != nil {
			return nil, false, fmt.Errorf("add to the local index: %w", err)
		}
		replaced = r.replaced(v)
		missing = slices.DeleteFunc(missing, func(s id.Segment) bool { return replaced[s] })
	}
	return v, false, nil
}

// replaced returns the segments of which a listed one says all they do.
func (r *Repo) replaced(v *view) map[id.Segment]bool {
	m := map[id.Segment]bool{}
	for old, by := range r.index.Replaced() {
		if _, listed := v.segments[by]; listed {
			m[old] = true
		}
	}
	return m
}

// fetchSegments reads and opens segments. One that is damaged is noted in v
// and no longer counts as listed; one of a writer whose index this key cannot
// open likewise, without a note.
func (r *Repo) fetchSegments(ctx context.Context, v *view, which []id.Segment) (map[id.Segment]*index.Segment, bool, error) {
	var (
		mu   sync.Mutex
		got  = map[id.Segment]*index.Segment{}
		gone bool
	)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchAtOnce)
	for _, s := range which {
		mu.Lock() // a damaged one is taken out meanwhile
		name := segmentName(v.segments[s], s)
		mu.Unlock()
		g.Go(func() error {
			data, err := r.store.Get(gctx, name, 0, -1)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			var opened *index.Segment
			wrong := errors.New("its bytes do not have its name")
			if err == nil && id.Sum[id.Segment](data) == s {
				opened, wrong = index.OpenSegment(r.config.Repository, data, r.indexKey)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				gone = true
			case wrong == nil:
				got[s] = opened
			case errors.Is(wrong, seal.ErrPutOnly):
				delete(v.segments, s)
			default:
				delete(v.segments, s)
				v.broken = append(v.broken, &DamageError{Name: name, Err: wrong})
				r.log.Warn("an index segment is damaged", "segment", name, "error", wrong)
			}
			return nil
		})
	}
	err := g.Wait()
	return got, gone, err
}

func (r *Repo) indexKey(w seal.Writer) (*seal.IndexKey, error) {
	return r.sealer.IndexKey(r.config.Repository, w)
}

// distrust is the beginning of the marks of packs that a check on this host
// found damaged. A backup does not rely on those.
const distrust = "damaged-"

func (r *Repo) distrusted() (packs []id.Pack) {
	for _, m := range r.local.Marks(distrust) {
		if p, err := id.Parse[id.Pack](m[len(distrust):]); err == nil {
			packs = append(packs, p)
		}
	}
	return packs
}

// directory reads a pack's own table of contents.
func (r *Repo) directory(ctx context.Context, p id.Pack, size int64) (index.PackInfo, error) {
	const headerSize, trailerSize = int64(pack.HeaderSize), int64(pack.TrailerSize)
	none := index.PackInfo{}
	name := packName(p)
	damaged := func(err error) (index.PackInfo, error) {
		if errors.Is(err, pack.ErrFormat) || errors.Is(err, seal.ErrOpen) || errors.Is(err, seal.ErrFormat) {
			err = &DamageError{Name: name, Err: err}
		}
		return none, err
	}
	if size < headerSize+trailerSize {
		return none, &DamageError{Name: name, Err: fmt.Errorf("%d bytes are too few for a pack", size)}
	}
	get := func(off, n int64) ([]byte, error) {
		data, err := r.store.Get(ctx, name, off, n)
		if errors.Is(err, store.ErrRange) { // it became shorter since it was listed
			err = &DamageError{Name: name, Err: err}
		}
		return data, err
	}
	head, err := get(0, headerSize)
	if err != nil {
		return none, err
	}
	of, err := pack.ParseHeader(head)
	if err != nil {
		return damaged(err)
	}
	if _, err := r.indexKey(of.Writer); err != nil {
		return none, err // a put-only host, another writer's pack
	}
	trailer, err := get(size-trailerSize, trailerSize)
	if err != nil {
		return none, err
	}
	off, n, err := pack.Locate(trailer, size)
	if err != nil {
		return damaged(err)
	}
	dir, err := get(off, n)
	if err != nil {
		return none, err
	}
	header, boxes, err := pack.OpenDirectory(r.config.Repository, size, head, dir, r.indexKey)
	if err != nil {
		return damaged(err)
	}
	return index.PackInfo{ID: p, Size: size, Header: header, Boxes: boxes}, nil
}

// directories reads the directories of packs that no segment lists: of a
// writer that was killed before its segment, or of one still at work, or of a
// segment that was lost. One that cannot be read is left out; if a snapshot
// needs it, check says so.
func (r *Repo) directories(ctx context.Context, which []id.Pack, of packSet) ([]index.PackInfo, error) {
	var (
		mu  sync.Mutex
		got []index.PackInfo
	)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchAtOnce)
	for _, p := range which {
		g.Go(func() error {
			size, _ := of.size(p)
			info, err := r.directory(gctx, p, size)
			switch {
			case errors.Is(err, seal.ErrPutOnly), errors.Is(err, fs.ErrNotExist):
				return nil
			case errors.Is(err, ErrDamaged):
				r.log.Warn("a pack is damaged", "error", err)
				return nil
			case err != nil:
				return err
			}
			mu.Lock()
			got = append(got, info)
			mu.Unlock()
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(got, func(a, b index.PackInfo) int { return a.ID.Compare(b.ID) })
	return got, nil
}

// stray looks a blob up in the directories of the orphans.
func (r *Repo) stray(ctx context.Context, name id.Blob) (index.Location, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.loaded {
		packs, err := r.directories(ctx, r.orphans, r.packs)
		if err != nil {
			return index.Location{}, false, err
		}
		r.strays = map[id.Blob]index.Location{}
		for i := range packs {
			p := &packs[i]
			for _, b := range p.Boxes {
				for place, blob := range b.Blobs {
					r.strays[blob.Name] = index.Location{
						Pack: p.ID, Size: p.Size, Header: &p.Header,
						Offset: b.Offset, Length: b.Length, Codec: b.Codec, Raw: b.Raw,
						Place: place, Kind: blob.Kind,
					}
				}
			}
		}
		r.loaded = true
	}
	at, ok := r.strays[name]
	return at, ok, nil
}
