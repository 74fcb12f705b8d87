//go:build linux

package agent

import (
	"context"
	"fmt"
	"hash/crc32"
	"sort"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"orlop/snapshot"
)

// jobName is the kind of a job that no record is: that there is to be an entry.
const jobName = 0

const (
	fileWorkers = 4
	maxFiles    = 256     // open at once
	maxTurn     = 64      // files of one directory for one worker, before another's turn
	turnFile    = 1 << 20 // each of those is a turn
)

// A restorer is the agent's side of a restore. One goroutine reads records and
// makes directories; everything else is done by workers. What concerns one file,
// or one group of hard links, is done by one worker, in order; what concerns
// directories, by another.
type restorer struct {
	c       *conn
	t       *target
	q       *order
	place   *place    // nil unless it is in place
	sync    *syncer   // nil if nobody asked for it
	workers []*placer // the last is for directories
	all     sync.WaitGroup

	// Of the reader.
	next    uint64
	last    *snapshot.Entry
	files   map[uint64]*file // not finished
	held    int
	groups  map[[16]byte]*hardlinks
	undone  map[uint64]bool // directories that could not be made
	xattrs  []snapshot.Xattr
	extents []snapshot.Extent
	end     uint64  // of the last of extents
	out     [][]job // of the frame that is being read, by worker
	turnDir string
	turn    int
	worker  int // whose turn it is
	sum     uint32
	bytes   uint64

	underWay atomic.Int64 // cost of the frames that are not done with
	fatal    atomic.Bool

	mu      sync.Mutex
	room    sync.Cond // of pending, that it has become less
	pending report
	wake    chan struct{} // there is something in pending
	spare   [][]job
	totals  RestoreTotals
}

// A batch is what one frame has for one worker.
type batch struct {
	jobs []job
	of   *parcel
}

// A parcel is a frame of records being worked on. Its memory is used again,
// and its cost given back, when the last batch of it is done.
type parcel struct {
	body []byte
	refs atomic.Int32
}

// A job is a record, judged.
type job struct {
	kind   uint8
	n      uint64
	entry  *snapshot.Entry
	file   *file
	group  *hardlinks
	off    uint64
	data   []byte
	path   string
	refs   []snapshot.Ref
	xattrs []snapshot.Xattr
}

// A file is one that is being written.
type file struct {
	n       uint64
	entry   *snapshot.Entry
	xattrs  []snapshot.Xattr
	extents []snapshot.Extent
	weight  int
	worker  int
	asked   uint64 // bytes that are to be compared

	// Of the worker.
	made  bool  // it was created, which its first data or its end does
	id    inode // once it was closed
	fd    int   // -1 while closed
	plain bool  // it was made without xattrs
	used  uint64
	got   uint64 // bytes of the content that are there
	wrote uint64 // of those, that were not before
	group *hardlinks
	links []*job // other names that it gets when it is finished
	woes  int
	old   old // of a restore in place
}

// Hardlinks are a set of hard links of which one was added.
type hardlinks struct {
	kind   snapshot.Type
	worker int

	// Of the worker.
	made bool
	id   inode // 0, 0 if it would be made
	file *file // until it is finished or discarded
}

// serveRestore carries out a RESTORE whose body is request: it reads frames
// from c until the last one of the operation. It returns nil if c may be used
// for another operation, also when this one failed and the host was told so.
func serveRestore(_ context.Context, c *conn, request []byte) error {
	q, err := parseOrder(request)
	if err != nil {
		return err
	}
	t, err := openTarget(q.root)
	if err != nil {
		return refuse(c, fmt.Errorf("open %s: %w", q.root, err))
	}
	defer t.close()
	state, err := t.look()
	if err != nil {
		return refuse(c, fmt.Errorf("list %s: %w", q.root, err))
	}
	switch {
	case q.verb == verbRestore && q.marker != "":
		err = because(MarkerName, t.mark(q.marker))
	case q.verb == verbPlace && !q.dry:
		// It is marked when there is something to be changed.
		err = because("change "+q.root, unix.Faccessat(t.root.fd, ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS))
	}
	if err != nil {
		return refuse(c, err)
	}
	var y *syncer
	if q.sync && !q.dry {
		if y, err = newSyncer(t); err != nil {
			return refuse(c, fmt.Errorf("open %s: %w", q.root, err))
		}
		defer y.close()
	}
	if err := c.send(frameReady, state.append(nil)); err != nil || q.verb == verbLook {
		return err
	}
	s := &restorer{
		c: c, t: t, q: q,
		files: make(map[uint64]*file), groups: make(map[[16]byte]*hardlinks), undone: make(map[uint64]bool),
		wake: make(chan struct{}, 1), sync: y,
	}
	s.room.L = &s.mu
	if q.verb == verbPlace {
		s.place = newPlace(q, c.set.cores)
	}
	return s.run()
}

func (s *restorer) run() error {
	for range fileWorkers + 1 {
		w := &placer{s: s, in: make(chan batch, int(s.c.credits.Writes)/frameCost+2)}
		s.workers = append(s.workers, w)
		s.all.Go(w.run)
	}
	s.out = make([][]job, len(s.workers))
	reported := make(chan error, 1)
	stop := make(chan struct{})
	go func() { reported <- s.report(stop) }()

	c, err := s.read()
	if err != nil {
		s.doom() // nothing that is still queued is of use
	}
	for _, w := range s.workers {
		close(w.in)
	}
	s.all.Wait()
	if err == nil {
		err = s.check(c)
	}
	if err == nil && !c.Abandon && !s.fatal.Load() {
		if err := s.conclude(); err != nil {
			s.give(err)
		}
	}
	close(stop)
	if e := <-reported; err == nil {
		err = e
	}
	if err != nil {
		_ = s.c.send(frameError, failure{Final: true, Text: err.Error()}.append(nil))
		return err
	}
	return s.c.send(frameTotals, s.totals.append(nil))
}

// at gives a test its chance to be killed.
func (s *restorer) at(moment, path string) {
	if hook := s.c.set.hook; hook != nil {
		_ = hook(moment, path)
	}
}

// conclude makes what was restored durable, and then takes away the mark that
// says it is not all there.
func (s *restorer) conclude() error {
	if s.place != nil && !s.place.began.Load() {
		return nil // nothing was changed, or it is a dry one
	}
	if err := s.sync.finish(); err != nil {
		return because("sync", err)
	}
	s.at("sync", "")
	if s.q.marker == "" {
		return nil
	}
	defer s.at("unmark", "")
	return because(MarkerName, s.t.unmark(s.q.sync))
}

// read hands records to the workers until the closing.
func (s *restorer) read() (closing, error) {
	for {
		t, body, err := s.c.read()
		if err != nil {
			return closing{}, err
		}
		switch t {
		case frameRecords:
		case frameClose:
			return parseClosing(body)
		default:
			return closing{}, protocolError("frame %d during a restore", t)
		}
		if len(body) < recordsHead {
			return closing{}, protocolError("a frame of records without its head")
		}
		s.sum = crc32.Update(s.sum, castagnoli, body)
		price := int64(cost(body))
		if before := s.underWay.Add(price) - price; before > 0 && before+price > int64(s.c.credits.Writes) {
			return closing{}, protocolError("more was sent than there was credit for")
		}
		b := buffer(frameRoom)
		s.c.body = b[:cap(b)]
		if err := s.parcel(body); err != nil {
			return closing{}, err
		}
	}
}

// check compares what came with what the host says it sent.
func (s *restorer) check(c closing) error {
	switch {
	case c.Abandon || s.fatal.Load():
		return nil
	case len(s.files) > 0:
		return protocolError("the end, and %d files are not finished", len(s.files))
	case c.Entries != s.next || c.Bytes != s.bytes:
		return protocolError("the end after %d entries and %d bytes, when %d and %d were sent", s.next, s.bytes, c.Entries, c.Bytes)
	case c.Sum != s.sum:
		return protocolError("the records that came are not those that were sent")
	}
	return nil
}

// list returns memory for a list of jobs.
func (s *restorer) list() []job {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.spare)
	if n == 0 {
		return make([]job, 0, 64)
	}
	jobs := s.spare[n-1]
	s.spare = s.spare[:n-1]
	return jobs
}

// parcel judges the records of a frame and gives them to the workers.
func (s *restorer) parcel(body []byte) error {
	p := &parcel{body: body}
	p.refs.Store(1)
	out := s.out
	r := readRecords(body)
	var rec record
	for r.next(&rec) {
		j, worker, err := s.judge(&rec)
		if err != nil {
			return err
		}
		if worker >= 0 {
			s.hand(worker, j)
		}
		if s.place != nil && s.place.tidies && rec.entry != nil && rec.kind != recordDress {
			s.hand(len(s.workers)-1, job{kind: jobName, entry: rec.entry})
		}
	}
	if err := r.end(); err != nil {
		return err
	}
	for i, jobs := range out {
		if len(jobs) > 0 {
			out[i] = nil
			p.refs.Add(1)
			s.workers[i].in <- batch{jobs, p}
		}
	}
	s.put(p)
	return nil
}

func (s *restorer) hand(worker int, j job) {
	if s.out[worker] == nil {
		s.out[worker] = s.list()
	}
	s.out[worker] = append(s.out[worker], j)
}

// took gives back a list of jobs.
func (s *restorer) took(jobs []job) {
	clear(jobs)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.spare) < 16 {
		s.spare = append(s.spare, jobs[:0])
	}
}

// put says that one part of p is done with.
func (s *restorer) put(p *parcel) {
	if p.refs.Add(-1) > 0 {
		return
	}
	price := cost(p.body)
	s.underWay.Add(-int64(price))
	recycle(p.body)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending.Credit += uint64(price)
	s.poke()
}

// judge refuses what no honest host sends, and says which worker is to do rec;
// -1 is none.
func (s *restorer) judge(rec *record) (job, int, error) {
	dirs := len(s.workers) - 1
	switch e := rec.entry; rec.kind {
	case recordMake, recordLink, recordLeave:
		if rec.kind == recordLeave {
			var err error
			if e, err = s.left(rec.path); err != nil {
				return job{}, 0, err
			}
			rec.entry = e
		}
		if s.last != nil && snapshot.Compare(s.last.Dir, s.last.Name, e.Dir, e.Name) >= 0 {
			return job{}, 0, protocolError("%q after %q", e.Path(), s.last.Path())
		}
		s.last = e
		if rec.kind == recordLeave {
			return job{}, -1, nil
		}
		n := s.next
		s.next++
		if rec.kind == recordLink {
			return s.judgeLink(n, rec)
		}
		switch e.Type {
		case snapshot.Dir:
			if len(s.xattrs) > 0 || len(s.extents) > 0 {
				return job{}, 0, protocolError("xattrs or extents of a directory that is yet to be made")
			}
			s.mkdir(n, e)
			return job{}, -1, nil
		case snapshot.File:
			return s.judgeFile(n, e)
		}
		xattrs, err := s.set(e)
		if err == nil && len(s.extents) > 0 {
			err = protocolError("extents of %q, which is a %v", e.Path(), e.Type)
		}
		g, worker := s.grouped(e)
		return job{kind: recordMake, n: n, entry: e, group: g, xattrs: xattrs}, worker, err
	case recordData:
		f := s.files[rec.n]
		if f == nil {
			return job{}, 0, protocolError("data for entry %d, which takes none", rec.n)
		}
		if !f.holds(rec.off, uint64(len(rec.data))) {
			return job{}, 0, protocolError("%d bytes at %d of %q, where there is to be no data", len(rec.data), rec.off, f.entry.Path())
		}
		s.bytes += uint64(len(rec.data))
		return job{kind: recordData, n: f.n, file: f, off: rec.off, data: rec.data}, f.worker, nil
	case recordFinish, recordDiscard:
		f := s.files[rec.n]
		if f == nil {
			return job{}, 0, protocolError("the end of entry %d, which has none", rec.n)
		}
		delete(s.files, rec.n)
		s.held -= f.weight
		return job{kind: rec.kind, n: f.n, file: f}, f.worker, nil
	case recordCompare:
		f := s.files[rec.n]
		if s.place == nil || f == nil {
			return job{}, 0, protocolError("what is in entry %d is asked for, which has nothing to compare", rec.n)
		}
		for _, ref := range rec.refs {
			f.asked += ref.Length // each is at most 8 MiB, and there is an end soon
			if ref.Length == 0 || f.asked > f.entry.Content.Size() {
				return job{}, 0, protocolError("%q has no %d bytes to compare", f.entry.Path(), f.asked)
			}
		}
		return job{kind: rec.kind, n: f.n, file: f, refs: rec.refs}, f.worker, nil
	case recordTidy, recordSpare:
		if s.place == nil || !s.place.tidies {
			return job{}, 0, protocolError("a restore that removes nothing is told to")
		}
		if err := snapshot.ValidPath(rec.path); err != nil {
			return job{}, 0, protocolError("what is in %q: %v", rec.path, err)
		}
		s.place.tidies = rec.kind == recordTidy
		return job{kind: rec.kind, path: rec.path}, dirs, nil
	case recordDress:
		if e.Type != snapshot.Dir || rec.n >= s.next {
			return job{}, 0, protocolError("metadata of %q, which is no directory that was made", e.Path())
		}
		xattrs, err := s.set(e)
		if err == nil && len(s.extents) > 0 {
			err = protocolError("extents of a directory")
		}
		if s.undone[rec.n] {
			delete(s.undone, rec.n)
			s.done(rec.n)
			return job{}, -1, err
		}
		return job{kind: recordDress, n: rec.n, entry: e, xattrs: xattrs}, dirs, err
	case recordXattrs:
		set, err := snapshot.DecodeXattrs(rec.data)
		s.xattrs = append(s.xattrs, set...)
		size := 0
		for _, x := range s.xattrs {
			size += len(x.Name) + len(x.Value)
		}
		if err != nil || size > snapshot.MaxXattrSet {
			return job{}, 0, protocolError("xattrs of %d bytes: %v", size, err)
		}
		return job{}, -1, nil
	default: // recordExtents: the reader knows no other
		p := rec.data
		for len(p) > 0 {
			x, rest, err := snapshot.ParseExtent(p, s.end)
			if err != nil {
				return job{}, 0, protocolError("%v", err)
			}
			s.extents = append(s.extents, x)
			s.end, p = x.End(), rest
		}
		if len(s.extents) > maxExtents {
			return job{}, 0, protocolError("%d extents of one file", len(s.extents))
		}
		return job{}, -1, nil
	}
}

// set returns the xattrs of e, which it holds or which came before it.
func (s *restorer) set(e *snapshot.Entry) ([]snapshot.Xattr, error) {
	set := s.xattrs
	s.xattrs = nil
	if len(e.Xattrs) > 0 {
		if len(set) > 0 {
			return nil, protocolError("two sets of xattrs of %q", e.Path())
		}
		return e.Xattrs, nil
	}
	if err := snapshot.ValidXattrs(set); err != nil {
		return nil, protocolError("%q: %v", e.Path(), err)
	}
	return set, nil
}

func (s *restorer) judgeFile(n uint64, e *snapshot.Entry) (job, int, error) {
	xattrs, err := s.set(e)
	if err != nil {
		return job{}, 0, err
	}
	extents := s.extents
	s.extents, s.end = nil, 0
	if e.Sparse && e.Map.IsZero() && len(extents) == 0 {
		extents = e.Extents
	} else if err := snapshot.ValidExtents(extents, e.Size, streamSize(e)); e.Sparse && err != nil {
		return job{}, 0, protocolError("%q: %v", e.Path(), err)
	} else if !e.Sparse && len(extents) > 0 {
		return job{}, 0, protocolError("extents of %q, which has no holes", e.Path())
	}
	f := &file{n: n, entry: e, xattrs: xattrs, extents: extents, weight: held(e, xattrs, extents), fd: -1}
	if s.held > 0 && s.held+f.weight > maxHeld {
		return job{}, 0, protocolError("too many files are unfinished")
	}
	s.held += f.weight
	s.files[n] = f
	f.group, f.worker = s.grouped(e)
	if f.group != nil {
		f.group.file = f // before a worker can see it
	}
	if s.place != nil {
		return job{kind: recordMake, n: n, file: f}, f.worker, nil
	}
	return job{}, -1, nil // it is created when there is something to put into it
}

// left makes an entry of a path that is not to be touched.
func (s *restorer) left(path string) (*snapshot.Entry, error) {
	if s.place == nil || !s.place.tidies {
		return nil, protocolError("a restore that removes nothing is told to leave %q", path)
	}
	if err := snapshot.ValidPath(path); err != nil || path == "" {
		return nil, protocolError("%q is to be left as it is", path)
	}
	e := new(snapshot.Entry)
	e.Dir, e.Name = snapshot.SplitPath(path)
	return e, nil
}

// share says who works on e. What is in one directory is one worker's, as the
// kernel lets only one create in it; but not all of a large one.
func (s *restorer) share(e *snapshot.Entry) int {
	s.turn++
	if e.Dir != s.turnDir || s.turn > maxTurn || e.Size > turnFile {
		s.turnDir, s.turn = e.Dir, 0
		s.worker = (s.worker + 1) % fileWorkers
	}
	return s.worker
}

// grouped returns the group that e begins, if any, and who works on it.
func (s *restorer) grouped(e *snapshot.Entry) (*hardlinks, int) {
	worker := s.share(e)
	if e.Group == [16]byte{} {
		return nil, worker
	}
	// One that is in a known group and was not linked, but added, is a file of
	// its own: the first one could not be linked to.
	g := &hardlinks{kind: e.Type, worker: worker}
	s.groups[e.Group] = g
	return g, worker
}

func (s *restorer) judgeLink(n uint64, rec *record) (job, int, error) {
	e := rec.entry
	if len(s.xattrs) > 0 || len(s.extents) > 0 {
		return job{}, 0, protocolError("xattrs or extents of a link")
	}
	g := s.groups[e.Group]
	if g == nil || e.Group == [16]byte{} || g.kind != e.Type {
		return job{}, 0, protocolError("%q is a link to nothing that was made", e.Path())
	}
	if err := snapshot.ValidPath(rec.path); err != nil || rec.path == "" {
		return job{}, 0, protocolError("%q is a link to %q", e.Path(), rec.path)
	}
	return job{kind: recordLink, n: n, entry: e, group: g, path: rec.path}, g.worker, nil
}

// holds tells whether n bytes at off are in one extent of f.
func (f *file) holds(off, n uint64) bool {
	if off > f.entry.Size || n > f.entry.Size-off {
		return false
	}
	if !f.entry.Sparse {
		return true
	}
	i := sort.Search(len(f.extents), func(i int) bool { return f.extents[i].End() > off })
	return i < len(f.extents) && f.extents[i].Offset <= off && off+n <= f.extents[i].End()
}

// mkdir makes a directory. It is not left to a worker: what is in it may be
// next in the same frame.
func (s *restorer) mkdir(n uint64, e *snapshot.Entry) {
	if e.IsRoot() || s.fatal.Load() {
		return
	}
	var err error
	if s.place != nil {
		err = s.mkdirOver(e)
	} else {
		err = s.t.mkdir(e.Dir, e.Name)
	}
	if err != nil {
		s.undone[n] = true
		s.say(n, e.Path(), err.Error())
		if full(err) {
			s.give(fmt.Errorf("%s: %w", e.Path(), err))
		}
	}
}

// say tells the host of a problem.
func (s *restorer) say(n uint64, path, what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.totals.Problems++
	s.pending.Problems = append(s.pending.Problems, woe{n, path, what[:min(len(what), maxText)]})
	s.poke()
}

// done tells the host that nothing more happens to entry n.
func (s *restorer) done(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending.Done = append(s.pending.Done, n)
	s.poke()
}

// give gives up: from here on records are read and not obeyed.
func (s *restorer) give(err error) {
	if s.fatal.Swap(true) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.room.Broadcast()
	s.pending.Fatal = err.Error()[:min(len(err.Error()), maxText)]
	s.pending.Full = full(err)
	s.poke()
}

// doom makes the workers do nothing more.
func (s *restorer) doom() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fatal.Store(true)
	s.room.Broadcast()
}

func (s *restorer) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// report sends what is pending until stop is closed and nothing is.
func (s *restorer) report(stop chan struct{}) error {
	var body []byte
	for last := false; ; {
		if !last {
			select {
			case <-s.wake:
			case <-stop:
				last = true
			}
		}
		r, more := s.taken()
		if r == nil {
			if last {
				return nil
			}
			continue
		}
		body = r.append(body[:0])
		if err := s.c.send(frameReport, body); err != nil {
			// The reader will see the stream end as well.
			s.doom()
			s.c.close()
			return err
		}
		if more {
			s.poke()
		}
	}
}

// taken takes as much of what is pending as fits one frame, problems first: an
// entry is done only after its problems were told.
func (s *restorer) taken() (r *report, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.pending
	if p.Credit == 0 && len(p.Problems)+len(p.Verdicts)+len(p.Changes)+len(p.Done) == 0 && p.Fatal == "" {
		return nil, false
	}
	defer s.room.Broadcast()
	n, size := 0, 0
	for n < len(p.Problems) && size < maxReport {
		size += len(p.Problems[n].Path) + len(p.Problems[n].What) + 16
		n++
	}
	if n < len(p.Problems) {
		r = &report{Problems: p.Problems[:n:n]}
		p.Problems = p.Problems[n:]
		return r, true
	}
	for n = 0; n < len(p.Changes) && size < maxReport; n++ {
		size += len(p.Changes[n].Path) + 8
	}
	done := min(len(p.Done), maxReport)
	if n < len(p.Changes) || done < len(p.Done) {
		r = &report{Problems: p.Problems, Verdicts: p.Verdicts, Changes: p.Changes[:n:n], Done: p.Done[:done:done]}
		p.Problems, p.Verdicts, p.Changes, p.Done = nil, nil, p.Changes[n:], p.Done[done:]
		return r, true
	}
	own := *p
	*p = report{}
	return &own, false
}
