// Package index answers "do we have this blob, and where?".
//
// # Segments and the local index
//
// What a repository holds is told by segments: sealed objects under index/,
// each describing some packs ([SealSegment], [OpenSegment]). A host keeps what
// it has read of them in an [Index], a directory of a few local files, so that
// a run fetches only the segments that are new. The local files are a cache.
// All of it may be lost, stale, damaged or another repository's at any time;
// then less is covered ([Index.Covered]) and the caller fetches that again.
//
// # Why it is trusted
//
// A wrong location would cost a failed restore, a false hit a blob that is
// never stored. So nothing is returned, and nothing is said to be missing,
// before the sum of every block that led to it was checked, at each call. What
// fails its sum is [ErrDamaged] and its file is deleted.
//
// # Why nobody waits
//
// A local file is written once under a name that nobody else knows, synced,
// and renamed. bbolt locks a file that it writes, but no file is written under
// its final name, so any number of processes read, add and merge at once.
package index

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"orlop/box"
	"orlop/id"
	"orlop/seal"
)

// A Location is where a copy of a blob lies.
type Location struct {
	Pack           id.Pack
	Size           int64        // of the pack, in bytes
	Header         *seal.Header // of the pack; shared, not to be changed
	Offset, Length uint32       // of the sealed box in the pack
	Codec          box.Codec
	Raw            uint32 // length of the box when opened and decompressed
	Place          int    // ordinal in the box's table, from 0
	Kind           id.Kind
}

// An Entry is one copy of a blob.
type Entry struct {
	Name id.Blob
	Kind id.Kind
	Location
}

const (
	// maxRuns bounds what a miss costs: one line of a filter in each.
	maxRuns = 8

	// A temporary file that was not written to for this long is of a process
	// that died.
	tempAge = time.Hour
)

// An Index is what this host knows of a repository's blobs. Its methods may be
// called concurrently, also by several processes on one directory.
//
// A method that returns [ErrDamaged] has deleted the file that was damaged:
// fetch what [Index.Covered] lacks, [Index.Add] it, and call again.
type Index struct {
	dir  string
	repo id.Repository
	log  *slog.Logger

	adding sync.Mutex // held by Add, which alone adds runs

	mu     sync.RWMutex
	runs   []*run
	listed map[id.Segment]bool
	usable []Pack
	closed bool
}

// Open opens the index of repo in dir, which is made if it is not there. Files
// that cannot be used are dropped with no more than a word in the log.
func Open(dir string, repo id.Repository, log *slog.Logger) (*Index, error) {
	x := &Index{dir: dir, repo: repo, log: log}
	if err := x.open(); err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	return x, nil
}

func (x *Index) open() error {
	if err := os.MkdirAll(x.dir, 0o700); err != nil {
		return err
	}
	have := make(map[string]*run)
	// A file that is gone when it is opened was merged into one that came
	// before that: list again. Bounded, for merging without end is not likely.
	for again, tries := true, 0; again && tries < 16; tries++ {
		again = false
		files, err := os.ReadDir(x.dir)
		if err != nil {
			return err
		}
		for _, f := range files {
			path := filepath.Join(x.dir, f.Name())
			if strings.HasPrefix(f.Name(), tempPrefix) {
				x.removeStale(path, f)
			}
			if !strings.HasSuffix(f.Name(), runSuffix) || have[path] != nil {
				continue
			}
			r, err := openRun(path, x.repo)
			switch {
			case err == nil:
				have[path] = r
			case errors.Is(err, fs.ErrNotExist):
				again = true
			case errors.Is(err, ErrDamaged):
				x.log.Debug("local index file is damaged, its segments are fetched again", "file", path, "error", err)
				_ = os.Remove(path)
			case errors.Is(err, errForeign):
				x.log.Debug("local index file is of another repository", "file", path)
			default:
				x.log.Debug("local index file cannot be read, its segments are fetched again", "file", path, "error", err)
			}
		}
	}
	x.runs = slices.SortedFunc(maps.Values(have), func(a, b *run) int { return cmp.Compare(a.path, b.path) })
	x.dropSubsets()
	return nil
}

// removeStale removes a temporary file that a killed process has left.
func (x *Index) removeStale(path string, f fs.DirEntry) {
	if info, err := f.Info(); err == nil && time.Since(info.ModTime()) > tempAge {
		x.log.Debug("remove unfinished local index file", "file", path)
		_ = os.Remove(path)
	}
}

// dropSubsets removes runs that cover nothing that one other does not: a
// process died between merging and removing, or two have merged the same.
func (x *Index) dropSubsets() {
	cover := func(r *run) map[id.Segment]bool {
		m := make(map[id.Segment]bool, len(r.segments))
		for _, s := range r.segments {
			m[s] = true
		}
		return m
	}
	slices.SortStableFunc(x.runs, func(a, b *run) int { return cmp.Compare(len(b.segments), len(a.segments)) })
	var keep []*run
	var covers []map[id.Segment]bool
	for _, r := range x.runs {
		m := cover(r)
		if slices.ContainsFunc(covers, func(larger map[id.Segment]bool) bool {
			return !slices.ContainsFunc(r.segments, func(s id.Segment) bool { return !larger[s] })
		}) {
			x.log.Debug("remove superseded local index file", "file", r.path)
			_ = os.Remove(r.path)
			r.close()
			continue
		}
		keep, covers = append(keep, r), append(covers, m)
	}
	largestFirst(keep)
	x.runs = keep
}

// Close closes the index. Iterations under way may go on.
func (x *Index) Close() error {
	x.adding.Lock()
	defer x.adding.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, r := range slices.Clone(x.runs) {
		x.retire(r)
	}
	x.closed = true
	return nil
}

// Covered returns the segments whose packs the index knows.
func (x *Index) Covered() map[id.Segment]bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	m := make(map[id.Segment]bool)
	for _, r := range x.runs {
		for _, s := range r.segments {
			m[s] = true
		}
	}
	return m
}

// Writers returns who wrote the segments that are covered.
func (x *Index) Writers() map[id.Segment]seal.Writer {
	x.mu.RLock()
	defer x.mu.RUnlock()
	m := make(map[id.Segment]seal.Writer)
	for _, r := range x.runs {
		for i, s := range r.segments {
			m[s] = r.writers[i]
		}
	}
	return m
}

// Replaced yields each segment that a covered one says it replaces, and that
// one; a pair may come more than once. As long as that one is listed, all that
// the first says is known.
func (x *Index) Replaced() iter.Seq2[id.Segment, id.Segment] {
	return func(yield func(old, by id.Segment) bool) {
		x.mu.RLock()
		runs := slices.Clone(x.runs)
		x.mu.RUnlock()
		for _, r := range runs {
			for _, p := range r.replaced {
				if !yield(p.old, r.segments[p.by]) {
					return
				}
			}
		}
	}
}

// A Pack is a pack as a listing of packs/ shows it.
type Pack struct {
	ID   id.Pack
	Size uint32 // bytes
}

// Restrict says what counts from now on: a location whose pack is in usable,
// sorted by ID, and in a segment that is in listed. Nil holds everything. Both
// are kept and must not be changed afterwards.
//
// What was already there and does not count may be forgotten for good: listed
// must be a listing of index/ that is newer than every segment that the index
// covers, and usable must come from one of packs/ that is newer than that.
// Segments added later count once they are in a later listed.
func (x *Index) Restrict(listed map[id.Segment]bool, usable []Pack) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.listed, x.usable = listed, usable
	for _, r := range x.runs {
		r.judge(listed, usable)
		r.judged = true
	}
}

// Add adds segments; those already covered are ignored. It needs about as much
// memory as they take, so a large repository is better added in steps.
//
// That the local files have been merged, when there are too many, is part of
// Add, but merging that fails for want of space is not an error.
func (x *Index) Add(segments map[id.Segment]*Segment) error {
	x.adding.Lock()
	defer x.adding.Unlock()
	if err := x.add(segments); err != nil {
		return fmt.Errorf("add to index: %w", err)
	}
	return nil
}

func (x *Index) add(segments map[id.Segment]*Segment) error {
	covered := x.Covered()
	segments = maps.Clone(segments)
	maps.DeleteFunc(segments, func(s id.Segment, _ *Segment) bool { return covered[s] })
	if len(segments) == 0 {
		return nil
	}
	r, err := buildSegments(x.dir, x.repo, segments)
	if err != nil {
		return err
	}
	x.log.Debug("wrote local index file", "segments", len(segments), "blobs", r.t[tNames].rows, "bytes", r.size)
	if err := x.replace(nil, r, false); err != nil {
		return err
	}
	if parts, listed := x.mergeable(); parts != nil {
		return x.merge(parts, listed)
	}
	return nil
}

// replace puts r in the place of old runs and deletes their files.
func (x *Index) replace(old []*run, r *run, judged bool) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		r.close()
		return fs.ErrClosed
	}
	r.judge(x.listed, x.usable)
	r.judged = judged
	for _, o := range old {
		x.retire(o)
		if o.path != r.path {
			_ = os.Remove(o.path)
		}
	}
	x.runs = append(x.runs, r)
	largestFirst(x.runs)
	return nil
}

// largestFirst puts first where a blob most likely is.
func largestFirst(runs []*run) {
	slices.SortStableFunc(runs, func(a, b *run) int {
		return cmp.Compare(b.t[tNames].rows, a.t[tNames].rows)
	})
}

// mergeable returns, pinned, the runs to be merged, or nil while there are few
// enough. The smallest are merged, and the next larger one with them while it
// is not twice as large as they are together: a large run is rewritten only
// when there is about as much to add to it, however often little is added.
func (x *Index) mergeable() ([]part, map[id.Segment]bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.runs) <= maxRuns {
		return nil, nil
	}
	runs := slices.SortedFunc(slices.Values(x.runs), func(a, b *run) int {
		return cmp.Compare(a.t[tNames].rows, b.t[tNames].rows)
	})
	n, names := 0, 0
	for n < len(runs) && (n < 2 || runs[n].t[tNames].rows <= 2*names) {
		names += runs[n].t[tNames].rows
		n++
	}
	parts := make([]part, n)
	for i, r := range runs[:n] {
		r.pins++
		parts[i] = part{r, r.use, r.judged}
	}
	return parts, x.listed
}

func (x *Index) merge(parts []part, listed map[id.Segment]bool) error {
	judged := true
	var old []*run
	for _, p := range parts {
		judged = judged && p.judged
		old = append(old, p.run)
	}
	defer x.unpin(old)
	r, err := merge(x.dir, x.repo, parts, listed)
	switch {
	case errors.Is(err, ErrDamaged):
		return x.lost(err)
	case err != nil:
		x.log.Debug("local index files cannot be merged", "dir", x.dir, "error", err)
		return nil
	}
	x.log.Debug("merged local index files", "files", len(parts), "blobs", r.t[tNames].rows, "bytes", r.size)
	return x.replace(old, r, judged)
}

// Has reports whether a copy of the blob counts.
func (x *Index) Has(name id.Blob) (bool, error) {
	x.mu.RLock()
	err := x.usableRuns()
	var ok bool
	for _, r := range x.runs {
		if ok || err != nil {
			break
		}
		if ok, err = r.has(&name); err != nil {
			err = r.damaged(err)
		}
	}
	x.mu.RUnlock()
	return ok, x.told(name, err)
}

// Lookup returns where a copy of the blob is that counts, and whether there is
// one.
func (x *Index) Lookup(name id.Blob) (Location, bool, error) {
	x.mu.RLock()
	err := x.usableRuns()
	var l Location
	var ok bool
	for _, r := range x.runs {
		if ok || err != nil {
			break
		}
		if l, ok, err = r.lookup(&name); err != nil {
			err = r.damaged(err)
		}
	}
	x.mu.RUnlock()
	if !ok || err != nil {
		return Location{}, false, x.told(name, err)
	}
	return l, true, nil
}

// Locations returns where all copies of the blob are that count, each once,
// ordered by pack, offset and place.
func (x *Index) Locations(name id.Blob) ([]Location, error) {
	x.mu.RLock()
	err := x.usableRuns()
	var ls []Location
	for _, r := range x.runs {
		if err != nil {
			break
		}
		if ls, err = r.locations(ls, &name); err != nil {
			err = r.damaged(err)
		}
	}
	x.mu.RUnlock()
	if err != nil {
		return nil, x.told(name, err)
	}
	return distinct(ls), nil
}

// usableRuns returns an error if the index is closed or a run was found
// damaged where it could not be said.
func (x *Index) usableRuns() error {
	if x.closed {
		return fs.ErrClosed
	}
	for _, r := range x.runs {
		if r.broken != nil {
			return r.broken
		}
	}
	return nil
}

// told wraps what went wrong with a lookup of name, after dropping what is
// damaged.
func (x *Index) told(name id.Blob, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("look up blob %s: %w", name.Short(), x.lost(err))
}

// lost drops and deletes the run that err says is damaged.
func (x *Index) lost(err error) error {
	if d := (*damageError)(nil); errors.As(err, &d) {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.retire(d.run) {
			x.log.Debug("local index file is damaged, its segments are fetched again", "file", d.run.path, "error", d.err)
			_ = os.Remove(d.run.path)
		}
	}
	return err
}

// retire takes r out of use, and reports whether it was in. Its memory stays
// mapped while someone iterates over it.
func (x *Index) retire(r *run) bool {
	i := slices.Index(x.runs, r)
	if i < 0 {
		return false
	}
	x.runs = slices.Delete(slices.Clone(x.runs), i, i+1)
	if r.gone = true; r.pins == 0 {
		r.close()
	}
	return true
}

// pin returns all runs and what counts in them, for use without x.mu.
func (x *Index) pin() ([]part, []*run, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.usableRuns(); err != nil {
		return nil, nil, err
	}
	parts := make([]part, len(x.runs))
	for i, r := range x.runs {
		r.pins++
		parts[i] = part{r, r.use, r.judged}
	}
	return parts, slices.Clone(x.runs), nil
}

func (x *Index) unpin(runs []*run) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, r := range runs {
		if r.pins--; r.pins == 0 && r.gone {
			r.close()
		}
	}
}

// distinct sorts locations and drops those that are there twice, from several
// runs.
func distinct(ls []Location) []Location {
	slices.SortFunc(ls, func(a, b Location) int {
		c := cmp.Or(a.Pack.Compare(b.Pack), cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Place, b.Place),
			cmp.Compare(a.Size, b.Size), cmp.Compare(a.Length, b.Length), cmp.Compare(a.Raw, b.Raw),
			cmp.Compare(a.Codec, b.Codec), cmp.Compare(a.Kind, b.Kind))
		if c == 0 && a.Header != b.Header {
			c = bytes.Compare(a.Header.Append(nil), b.Header.Append(nil))
		}
		return c
	})
	return slices.CompactFunc(ls, func(a, b Location) bool {
		if !a.Header.Equal(*b.Header) {
			return false
		}
		a.Header = b.Header
		return a == b
	})
}

// All yields every copy of every blob that counts, ordered by name, and copies
// of one blob as [Index.Locations] does. It stops at the first error. What is
// added, restricted or closed meanwhile does not change what it yields.
func (x *Index) All() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		parts, pinned, err := x.pin()
		defer func() { x.unpin(pinned) }()
		if err == nil {
			err = all(parts, func(e Entry) bool { return yield(e, nil) })
		}
		if err != nil {
			yield(Entry{}, fmt.Errorf("list index: %w", x.lost(err)))
		}
	}
}

func all(parts []part, yield func(Entry) bool) error {
	cursors := make([]*cursor, len(parts))
	for i, p := range parts {
		var err error
		if cursors[i], err = p.run.names(p.use); err != nil {
			return err
		}
	}
	var ls []Location
	for {
		m := least(cursors)
		if m == nil {
			return nil
		}
		name := m.record.name
		ls = ls[:0]
		for _, c := range cursors {
			for !c.done && c.record.name == name {
				p, err := c.run.packOf(c.record.box)
				if err == nil && c.use.has(p) {
					var l Location
					l, err = c.run.location(p, c.record.box, c.record.place)
					ls = append(ls, l)
				}
				if err != nil {
					return c.run.damaged(err)
				}
				if err := c.next(); err != nil {
					return err
				}
			}
		}
		if len(ls) > 1 {
			ls = distinct(ls)
		}
		for _, l := range ls {
			if !yield(Entry{name, l.Kind, l}) {
				return nil
			}
		}
	}
}

// Packs yields every pack that counts, ordered by name, without its boxes. A
// pack comes more than once only if segments contradict each other about it.
// It stops at the first error.
func (x *Index) Packs() iter.Seq2[PackInfo, error] {
	return func(yield func(PackInfo, error) bool) {
		parts, pinned, err := x.pin()
		defer func() { x.unpin(pinned) }()
		if err == nil {
			err = allPacks(parts, func(p PackInfo) bool { return yield(p, nil) })
		}
		if err != nil {
			yield(PackInfo{}, fmt.Errorf("list packs of index: %w", x.lost(err)))
		}
	}
}

func allPacks(parts []part, yield func(PackInfo) bool) error {
	cursors := make([]*packCursor, len(parts))
	for i, p := range parts {
		var err error
		if cursors[i], err = p.run.packs(p.use); err != nil {
			return err
		}
	}
	for {
		m := leastPack(cursors)
		if m == nil {
			return nil
		}
		key, counts := m.packKey, false
		for _, c := range cursors {
			if c.done || c.compare(&key) != 0 {
				continue
			}
			if c.use.has(c.n) && !counts {
				counts = true
				h, err := c.run.session(c.session)
				if err != nil {
					return c.run.damaged(err)
				}
				if !yield(PackInfo{ID: c.id, Size: c.size, Header: *h}) {
					return nil
				}
			}
			if err := c.next(); err != nil {
				return err
			}
		}
	}
}
