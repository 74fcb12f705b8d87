//go:build linux

package agent

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"orlop/snapshot"
)

// A placer is a worker: it puts things into the target.
type placer struct {
	s    *restorer
	in   chan batch
	open []*file // with an open descriptor
	tick uint64
	tidy tidier // of the one that is for directories
}

func (w *placer) run() {
	for b := range w.in {
		for i := range b.jobs {
			w.do(&b.jobs[i])
		}
		w.s.took(b.jobs)
		w.s.put(b.of)
	}
	for _, f := range w.open {
		unix.Close(f.fd)
	}
	w.tidy.leave()
}

func (w *placer) do(j *job) {
	if w.s.fatal.Load() {
		return
	}
	w.s.at("do", j.path)
	switch j.kind {
	case recordMake:
		if j.file != nil {
			w.look(j.file)
		} else {
			w.node(j)
		}
	case recordCompare:
		w.compare(j)
	case jobName:
		w.name(j.entry)
	case recordTidy:
		w.tidyUp(j.path)
	case recordSpare:
		w.tidy.leave()
	case recordLink:
		w.link(j)
	case recordData:
		w.write(j)
	case recordFinish:
		w.finish(j.file)
	case recordDiscard:
		w.discard(j.file)
	case recordDress:
		w.dress(j)
	}
}

// trouble tells of err, and ends the restore if it would be the same for all
// that follows.
func (w *placer) trouble(n uint64, path string, err error) {
	w.s.say(n, path, err.Error())
	if full(err) {
		w.s.give(fmt.Errorf("%s: %w", path, err))
	}
}

// limited returns a say for one entry that does not go on for ever.
func (w *placer) limited(n uint64, path string) func(string) {
	told := 0
	return func(what string) {
		told++
		if told < maxProblems {
			w.s.say(n, path, what)
		} else if told == maxProblems {
			w.s.say(n, path, "and more of the kind")
		}
	}
}

// keep remembers that f has fd open, and closes another if those are too many.
func (w *placer) keep(f *file, fd int) {
	w.tick++
	f.fd, f.used = fd, w.tick
	if len(w.open) >= maxFiles/fileWorkers {
		old := 0
		for i, o := range w.open {
			if o.used < w.open[old].used {
				old = i
			}
		}
		o := w.open[old]
		var st unix.Stat_t
		err := unix.Fstat(o.fd, &st)
		o.id = inodeOf(&st)
		if err = errors.Join(err, w.shut(o)); err != nil {
			o.woes++
			w.trouble(o.n, o.entry.Path(), because("close", err))
		}
	}
	w.open = append(w.open, f)
}

// shut closes f, which is open.
func (w *placer) shut(f *file) error {
	for i, o := range w.open {
		if o == f {
			last := len(w.open) - 1
			w.open[i] = w.open[last]
			w.open = w.open[:last]
			break
		}
	}
	fd := f.fd
	f.fd = -1
	return unix.Close(fd)
}

// put opens f for writing if it is not, and creates it if it was not made.
func (w *placer) put(f *file) error {
	if err := w.s.begin(); err != nil {
		return err
	}
	if f.old.there && (f.fd < 0 || f.old.reading) {
		return w.take(f)
	}
	if f.fd >= 0 {
		w.tick++
		f.used = w.tick
		return nil
	}
	var fd int
	var err error
	if f.made {
		fd, err = w.s.t.reopen(f.entry.Dir, f.entry.Name, f.id, unix.O_WRONLY)
	} else {
		if f.old.inWay {
			err = w.clear(f.entry)
		}
		if err == nil {
			fd, f.plain, err = w.s.t.create(f.entry)
		}
	}
	if err != nil {
		return err
	}
	f.made = true
	w.keep(f, fd)
	w.s.at("create", f.entry.Name)
	return nil
}

func (w *placer) write(j *job) {
	f := j.file
	if f.woes > 0 {
		return
	}
	// What is inline came without being asked for.
	if len(f.entry.Inline) > 0 && w.has(f, j.data, j.off) {
		f.got += uint64(len(j.data))
		return
	}
	if w.s.q.dry {
		f.old.touched = true
		f.got += uint64(len(j.data))
		f.wrote += uint64(len(j.data))
		return
	}
	err := w.put(f)
	if err == nil {
		err = because("write", pwrite(f.fd, j.data, j.off))
	}
	if err != nil {
		f.woes++ // told once; what is missing is told no more
		w.trouble(f.n, f.entry.Path(), err)
		return
	}
	f.got += uint64(len(j.data))
	f.wrote += uint64(len(j.data))
	w.s.sync.wrote(len(j.data))
}

// pwrite writes all of p at off.
func pwrite(fd int, p []byte, off uint64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, int64(off))
		if err != nil && err != unix.EINTR {
			return err
		}
		n = max(n, 0)
		p, off = p[n:], off+uint64(n)
	}
	return nil
}

// finish ends a file that was given all its data.
func (w *placer) finish(f *file) {
	e := f.entry
	if stream := streamSize(e); f.woes == 0 && f.got < stream {
		f.woes++
		w.s.say(f.n, e.Path(), fmt.Sprintf("%d of %d bytes of content were written", f.got, stream))
	}
	if f.woes == 0 {
		var err error
		if w.s.place != nil {
			err = w.settle(f)
		} else {
			err = w.complete(f)
		}
		if err != nil {
			f.woes++
			w.trouble(f.n, e.Path(), err)
		}
	}
	if f.woes > 0 { // half a file must not pass for one
		w.discard(f)
		return
	}
	w.s.mu.Lock()
	w.s.totals.Bytes += f.wrote
	w.s.totals.Files++
	w.s.mu.Unlock()
	w.s.done(f.n)
	if f.group != nil {
		f.group.file, f.group.made, f.group.id = nil, true, f.id
		for _, j := range f.links {
			w.link(j)
		}
	}
}

// complete gives a new file what its data has not: itself, the hole at its end,
// and its metadata.
func (w *placer) complete(f *file) error {
	if err := w.put(f); err != nil {
		return err
	}
	if f.end() < f.entry.Size { // all other sizes are there already
		if err := unix.Ftruncate(f.fd, int64(f.entry.Size)); err != nil {
			return because("set the size", err)
		}
	}
	return w.dressFile(f)
}

// dressFile gives a file its metadata and closes it.
func (w *placer) dressFile(f *file) error {
	h := handle{fd: f.fd, plain: f.plain}
	w.s.at("dress", f.entry.Name)
	f.id = h.dress(f.entry, f.xattrs, w.limited(f.n, f.entry.Path()))
	return because("close", w.shut(f))
}

// end is where the last of the data ends.
func (f *file) end() uint64 {
	if !f.entry.Sparse {
		return f.entry.Size
	}
	if n := len(f.extents); n > 0 {
		return f.extents[n-1].End()
	}
	return 0
}

// discard takes away what was made of f. That it is in trouble is known; the
// names that it was yet to get are told of.
func (w *placer) discard(f *file) {
	defer w.s.done(f.n)
	if f.fd >= 0 {
		var st unix.Stat_t
		if unix.Fstat(f.fd, &st) == nil {
			f.id = inodeOf(&st)
		}
		_ = w.shut(f)
	}
	// What was there and was not touched is nobody's half file.
	if f.made && (!f.old.there || f.old.touched) && !w.s.q.dry {
		if err := w.s.t.remove(f.entry.Dir, f.entry.Name, f.id); err != nil {
			w.s.say(f.n, f.entry.Path(), err.Error())
		}
	}
	if f.group != nil {
		f.group.file = nil
	}
	for _, j := range f.links {
		w.s.say(j.n, j.entry.Path(), fmt.Sprintf("it is the same file as %q, which could not be restored", f.entry.Path()))
		w.s.done(j.n)
	}
}

func (w *placer) node(j *job) {
	defer w.s.done(j.n)
	id, err := w.nodeOver(j)
	if err != nil {
		w.trouble(j.n, j.entry.Path(), err)
		return
	}
	if j.group != nil {
		j.group.made, j.group.id = true, id
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.totals.Others++
}

// makeNode makes what is neither file nor directory.
func (w *placer) makeNode(j *job) (inode, error) {
	if err := w.s.begin(); err != nil {
		return inode{}, err
	}
	fd, plain, err := w.s.t.node(j.entry)
	if err != nil {
		return inode{}, err
	}
	defer unix.Close(fd)
	h := handle{fd: fd, path: true, plain: plain}
	return h.dress(j.entry, j.xattrs, w.limited(j.n, j.entry.Path())), nil
}

// link makes another name of what is whole, or sees to it that it is made then.
func (w *placer) link(j *job) {
	if f := j.group.file; f != nil {
		own := *j
		f.links = append(f.links, &own)
		return
	}
	defer w.s.done(j.n)
	if !j.group.made {
		w.s.say(j.n, j.entry.Path(), fmt.Sprintf("link to %q: it could not be made", j.path))
		return
	}
	if err := w.linkOver(j); err != nil {
		w.trouble(j.n, j.entry.Path(), fmt.Errorf("link to %q: %w", j.path, err))
		return
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.totals.Links++
}

// makeLink makes another name.
func (w *placer) makeLink(j *job) error {
	if err := w.s.begin(); err != nil {
		return err
	}
	dir, name := snapshot.SplitPath(j.path)
	return w.s.t.link(dir, name, j.group.id, j.entry.Dir, j.entry.Name)
}

// dress gives a directory its metadata.
func (w *placer) dress(j *job) {
	defer w.s.done(j.n)
	e := j.entry
	fd, err := w.s.t.enter(e.Dir, e.Name)
	if w.s.q.dry && err != nil {
		return // it would be made
	}
	if err != nil {
		w.trouble(j.n, e.Path(), err)
		return
	}
	defer unix.Close(fd)
	defer w.s.count(func(t *RestoreTotals) { t.Dirs++ })
	h := handle{fd: fd}
	if w.s.place != nil {
		if h.differs(e, j.xattrs, false) {
			w.s.tell(Changed, e.Path())
		}
		if w.s.q.dry || !h.differs(e, j.xattrs, true) {
			return
		}
	}
	if err := w.s.begin(); err != nil {
		w.trouble(j.n, e.Path(), err)
		return
	}
	h.dress(e, j.xattrs, w.limited(j.n, e.Path()))
	if e.IsRoot() {
		w.s.t.top = e.MTime
	}
}
