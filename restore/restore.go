// Package restore turns a snapshot back into files.
//
// The host walks the tree and sends entries to the agent in walk order. The
// blobs that files need are gathered in windows, fetched in the order of the
// packs, and written wherever they belong, in whatever order they arrive; a
// file is finished when its last piece was written. Directories get their
// metadata last, from the agent.
//
// In place, over what is there, the agent is first given the names of a file's
// blobs. It says which of them the file has, and only the others are gathered.
// What was sent, the agent compares with what is in each directory, and removes
// the rest.
package restore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"orlop/agent"
	"orlop/id"
	"orlop/repo"
	"orlop/snapshot"
)

// A window is what is fetched in one sweep over the packs. A larger one reads
// more in order; a smaller one holds less: some 100 bytes a ref. The first is
// small, so that there is something to write soon, and each is twice the one
// before it.
const (
	firstRefs   = 1 << 9
	firstBytes  = 8 << 20
	windowRefs  = 1 << 14
	windowBytes = 256 << 20
)

// maxAsked bounds the refs of files that the agent was asked about and has not
// answered yet, and askRefs those of one question.
const (
	maxAsked = 1 << 14
	askRefs  = 1 << 10
)

// maxExtents bounds the map of a file's holes, which is held in memory. The
// densest file that was seen had a hole every 8 KiB: that is 64 GiB of file.
const maxExtents = 8 << 20

// problems bounds the list; all are counted.
const problems = 1000

// Options are what a user can choose for one restore.
type Options struct {
	// Snapshot is written into the target, before anything else is done there,
	// as that which is not all there; it is taken away again when all is.
	Snapshot id.Snapshot

	InPlace  *InPlace // nil: the target is empty
	Progress func(Progress)
}

// InPlace says how to restore over what is there.
type InPlace struct {
	NameKey [32]byte // of the snapshot's blobs
	Keep    bool     // what the snapshot does not have stays
	Dry     bool     // nothing is changed; the summary says what would be

	// Change, if not nil, is told what becomes different, one thing at a time.
	Change func(kind agent.ChangeKind, path string)
}

// Progress is how far a restore has come.
type Progress struct{ Files, Bytes, FilesTotal, BytesTotal uint64 }

// A Summary is what a restore did.
type Summary struct {
	Files, Dirs, Others, Bytes uint64 // restored, bytes being the logical size
	BytesWritten               uint64
	Problems                   []snapshot.Problem // the first of them
	ProblemCount               uint64
	Duration                   time.Duration

	// Of a restore in place: of all but directories, how many were made, were
	// there and are different now, and were right; and what went away.
	Created, Changed, Unchanged uint64
	Removed, RemovedDirs        uint64
}

// ErrUntouched is what the error of a restore is that did not begin.
var ErrUntouched = errors.New("nothing was changed")

// Run restores the tree at root into the directory target, as the agent names
// it, which exists and is empty, unless it is done in place. An error means that
// the target is incomplete; what could not be restored of single files is in the
// summary.
func Run(ctx context.Context, r *repo.Repo, c *agent.Client, root snapshot.Root, target string, opt Options) (*Summary, error) {
	started := time.Now()
	j := &job{repo: r, opt: opt, root: root, told: newLineage(), first: map[[16]byte]first{}}
	q := agent.RestoreRequest{
		Root:    target,
		Sync:    true,
		Problem: func(_ uint64, path, what string) { j.problem(path, what) },
	}
	if !opt.Snapshot.IsZero() {
		q.Marker = Marker(opt.Snapshot)
	}
	if p := opt.InPlace; p != nil {
		j.inquiry.init()
		q.InPlace = &agent.InPlace{NameKey: p.NameKey, Keep: p.Keep, Dry: p.Dry, Verdict: j.heard, Change: p.Change}
	}
	out, err := c.Restore(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("restore: %w: %w", ErrUntouched, err)
	}
	j.out = out
	err = j.run(ctx)
	totals, end := out.End()
	if err == nil || errors.Is(end, agent.ErrFull) {
		err = end // the agent knows better than those whose writes it refused
	}
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	j.sum.BytesWritten = totals.Bytes
	j.sum.Changed, j.sum.Unchanged = totals.Changed, totals.Unchanged
	j.sum.Created = totals.Files + totals.Links + totals.Others - totals.Changed - totals.Unchanged
	j.sum.Removed, j.sum.RemovedDirs = totals.Removed, totals.RemovedDirs
	j.sum.Duration = time.Since(started)
	return &j.sum, nil
}

type job struct {
	repo *repo.Repo
	opt  Options
	root snapshot.Root
	out  *agent.Restore

	told   *lineage
	first  map[[16]byte]first // of the hard-link groups
	next   *sweep             // being gathered
	sweeps chan *sweep        // to be fetched
	under  atomic.Int32       // those that were flushed and are not written yet
	idle   chan struct{}      // under has become 0
	inquiry

	mu  sync.Mutex
	sum Summary
}

// A first is the name of a hard-link group that was made first.
type first struct {
	path string
	kind snapshot.Type
}

// A file is a regular file whose content is on its way.
type file struct {
	n     uint64
	path  string
	size  uint64
	mu    sync.Mutex
	left  int  // pieces not yet written
	whole bool // all pieces are known
	bad   error
}

// A piece is a blob's place in a file: parts of the blob go to parts of the
// file, around its holes.
type piece struct {
	file   *file
	length uint64
	parts  []part
}

type part struct {
	from, length uint64 // of the blob
	to           uint64 // in the file
}

func newSweep(refs int, bytes uint64) *sweep {
	return &sweep{pieces: map[id.Blob][]piece{}, maxRefs: min(refs, windowRefs), maxBytes: min(bytes, windowBytes)}
}

// A sweep is the pieces of one window by blob.
type sweep struct {
	names  []id.Blob
	pieces map[id.Blob][]piece
	refs   int
	bytes  uint64
	left   atomic.Int64 // names that are not written yet

	maxRefs  int
	maxBytes uint64
}

// run walks the tree and keeps the fetching of one window behind it.
func (j *job) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	j.next = newSweep(firstRefs, firstBytes)
	j.sweeps, j.idle = make(chan *sweep), make(chan struct{}, 1)
	g.Go(func() error {
		defer close(j.sweeps)
		if err := j.walk(ctx); err != nil {
			return err
		}
		if err := j.hear(ctx, 0); err != nil {
			return err
		}
		return j.flush(ctx)
	})
	g.Go(func() error { return j.fetch(ctx) })
	return g.Wait()
}

// flush hands over what was gathered, and begins the next window.
func (j *job) flush(ctx context.Context) error {
	full := j.next
	if len(full.names) == 0 {
		return nil
	}
	full.left.Store(int64(len(full.names)))
	j.next = newSweep(2*full.maxRefs, 2*full.maxBytes)
	j.under.Add(1)
	select {
	case j.sweeps <- full:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (j *job) walk(ctx context.Context) error {
	for e, err := range snapshot.Walk(ctx, j.repo, j.root) {
		if damaged(err) {
			// What is below a damaged node is lost; what is behind it is not.
			j.problem("", err.Error())
			j.told.lose()
			if err := j.out.Spare(); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if err := j.entry(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// damaged tells stored bytes that are wrong from a store that does not answer.
func damaged(err error) bool {
	return errors.Is(err, repo.ErrDamaged) || errors.Is(err, snapshot.ErrFormat)
}

// entry sends one entry to the agent.
func (j *job) entry(ctx context.Context, e *snapshot.Entry) error {
	if e.Dir == "" && e.Name == agent.MarkerName {
		j.problem(e.Path(), "it is left out: what was backed up was itself not restored to the end")
		return j.out.Leave(e)
	}
	if !j.told.has(e) {
		j.problem(e.Path(), "the snapshot has no directory that it could be in")
		return nil
	}
	if f, ok := j.first[e.Group]; ok && e.Group != ([16]byte{}) {
		if e.Type != f.kind {
			j.problem(e.Path(), fmt.Sprintf("it is a %v and said to be the same file as %q, a %v", e.Type, f.path, f.kind))
			return j.out.Leave(e)
		}
		if _, err := j.out.Link(e, f.path); err != nil {
			return err
		}
		j.count(e)
		return nil
	}
	xattrs, extents, err := j.details(ctx, e)
	if damaged(err) {
		j.problem(e.Path(), err.Error())
		if e.Type == snapshot.File {
			return j.out.Leave(e) // without its map nobody knows where its bytes go
		}
		err = nil
	}
	if err != nil {
		return err
	}
	n, err := j.out.Add(e, xattrs, extents)
	if errors.Is(err, agent.ErrUnfinished) {
		// All that were added before are complete when their windows are.
		if err := j.settled(ctx); err != nil {
			return err
		}
		n, err = j.out.Add(e, xattrs, extents)
	}
	if errors.Is(err, snapshot.ErrFormat) {
		j.problem(e.Path(), err.Error())
		return j.out.Leave(e)
	}
	if err != nil {
		return err
	}
	if e.Group != ([16]byte{}) {
		j.first[e.Group] = first{e.Path(), e.Type}
	}
	if e.Type != snapshot.File {
		j.count(e)
		return nil
	}
	return j.content(ctx, e, n, extents)
}

// details reads what did not fit into the entry.
func (j *job) details(ctx context.Context, e *snapshot.Entry) ([]snapshot.Xattr, []snapshot.Extent, error) {
	xattrs, err := e.LoadXattrs(ctx, j.repo)
	if err != nil {
		return nil, nil, fmt.Errorf("its extended attributes: %w", err)
	}
	if e.Type != snapshot.File {
		return xattrs, nil, nil
	}
	var extents []snapshot.Extent
	for x, err := range e.LoadExtents(ctx, j.repo) {
		if err == nil && len(extents) == maxExtents {
			err = fmt.Errorf("%w: more than %d extents", snapshot.ErrFormat, maxExtents)
		}
		if err != nil {
			return xattrs, nil, fmt.Errorf("its map of holes: %w", err)
		}
		extents = append(extents, x)
	}
	return xattrs, extents, nil
}

// content plans where a file's bytes go.
func (j *job) content(ctx context.Context, e *snapshot.Entry, n uint64, extents []snapshot.Extent) error {
	f := &file{n: n, path: e.Path(), size: e.Size}
	place := placer{extents: extents}
	var asked []question
	for ref, err := range snapshot.Refs(ctx, j.repo, e.Content) {
		if damaged(err) {
			if err := j.ask(ctx, asked); err != nil {
				return err
			}
			return j.settle(f, 0, true, err)
		}
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.left++
		f.mu.Unlock()
		p := piece{f, ref.Length, place.take(ref.Length)}
		if j.opt.InPlace == nil {
			err = j.plan(ctx, ref.Name, p)
		} else if asked = append(asked, question{ref.Name, p}); len(asked) == askRefs {
			err = j.ask(ctx, asked)
			asked = nil
		}
		if err != nil {
			return err
		}
	}
	if err := j.ask(ctx, asked); err != nil {
		return err
	}
	return j.settle(f, 0, true, nil)
}

// plan adds a piece to what is gathered.
func (j *job) plan(ctx context.Context, name id.Blob, p piece) error {
	if j.next.refs >= j.next.maxRefs || j.next.bytes >= j.next.maxBytes {
		if err := j.flush(ctx); err != nil {
			return err
		}
	}
	w := j.next
	if w.pieces[name] == nil {
		w.names = append(w.names, name)
	}
	w.pieces[name] = append(w.pieces[name], p)
	w.refs++
	w.bytes += p.length
	return nil
}

// A placer lays a file's stream over its data extents.
type placer struct {
	extents []snapshot.Extent
	used    uint64 // of the first extent
}

func (p *placer) take(n uint64) (parts []part) {
	for from := uint64(0); from < n && len(p.extents) > 0; {
		x := p.extents[0]
		k := min(n-from, x.Length-p.used)
		parts = append(parts, part{from, k, x.Offset + p.used})
		from, p.used = from+k, p.used+k
		if p.used == x.Length {
			p.extents, p.used = p.extents[1:], 0
		}
	}
	return parts
}

// settled waits until all that was added is written.
func (j *job) settled(ctx context.Context) error {
	if err := j.hear(ctx, 0); err != nil {
		return err
	}
	if err := j.flush(ctx); err != nil {
		return err
	}
	for j.under.Load() > 0 {
		select {
		case <-j.idle:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// fetch reads the blobs of the windows and writes them where they belong.
func (j *job) fetch(ctx context.Context) error {
	f := j.repo.NewFetch(ctx)
	var err error
	for w := range j.sweeps {
		if err = f.Read(w.names, func(name id.Blob, data []byte, bad error) error { return j.write(w, name, data, bad) }); err != nil {
			break
		}
	}
	// What a worker found wrong explains why Read was cancelled.
	if werr := f.Wait(); werr != nil {
		err = werr
	}
	return err
}

// write puts a blob where it belongs.
func (j *job) write(w *sweep, name id.Blob, data []byte, bad error) error {
	if bad != nil && !errors.Is(bad, repo.ErrDamaged) {
		return bad // the store, not the data
	}
	for _, p := range w.pieces[name] {
		why := bad
		if why == nil && uint64(len(data)) != p.length {
			why = fmt.Errorf("blob %s has %d bytes, not %d", name.Short(), len(data), p.length)
		}
		if why == nil {
			for _, x := range p.parts {
				if err := j.out.Write(p.file.n, int64(x.to), data[x.from:x.from+x.length]); err != nil {
					return err
				}
			}
		}
		if err := j.settle(p.file, 1, false, why); err != nil {
			return err
		}
	}
	if w.left.Add(-1) == 0 && j.under.Add(-1) == 0 {
		select {
		case j.idle <- struct{}{}:
		default:
		}
	}
	return nil
}

// settle notes that pieces of f were dealt with, or that all are known, and
// finishes f when nothing is left to do. A file that lacks a piece is taken
// away again: half a file must not pass for one.
func (j *job) settle(f *file, pieces int, whole bool, bad error) error {
	f.mu.Lock()
	f.left -= pieces
	f.whole = f.whole || whole
	if f.bad == nil {
		f.bad = bad
	}
	over, bad := f.whole && f.left == 0, f.bad
	f.mu.Unlock()
	if !over {
		return nil
	}
	if bad != nil {
		j.problem(f.path, bad.Error())
		return j.out.Discard(f.n)
	}
	j.mu.Lock()
	j.sum.Files++
	j.sum.Bytes += f.size
	j.report()
	j.mu.Unlock()
	return j.out.Finish(f.n)
}

func (j *job) count(e *snapshot.Entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch e.Type {
	case snapshot.Dir:
		j.sum.Dirs++
	case snapshot.File:
		j.sum.Files++
		j.sum.Bytes += e.Size
	default:
		j.sum.Others++
	}
	j.report()
}

// report tells how far the restore is. j.mu is held.
func (j *job) report() {
	if j.opt.Progress != nil {
		j.opt.Progress(Progress{j.sum.Files, j.sum.Bytes, j.root.Files, j.root.Bytes})
	}
}

func (j *job) problem(path, what string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.sum.ProblemCount++
	if len(j.sum.Problems) < problems {
		j.sum.Problems = append(j.sum.Problems, snapshot.Problem{Path: path, Reason: what})
	}
}
