//go:build linux

package agent

import (
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"orlop/id"
	"orlop/snapshot"
)

// A place is what a restore in place has besides.
type place struct {
	namer  *id.Namer
	tidies bool          // the reader's: what was not sent goes away
	crew   crew          // of the workers that compare
	cores  chan struct{} // taken by whoever has a buffer to compare

	began atomic.Bool // something was changed, or is about to be

	// parting is held from asking whether a file has other names until it was
	// copied, or opened to be written to: who copies has taken his name away by
	// then, so the other name would look as if the file were its own.
	parting sync.Mutex

	mu sync.Mutex
	// Files with several names that were kept as they are. Each is one entry's,
	// and those that are linked to it.
	claimed map[inode]bool
}

func newPlace(q *order, cores int) *place {
	return &place{
		namer: id.NewNamer(q.nameKey), tidies: !q.keep,
		crew: crew{cores: cores}, cores: make(chan struct{}, cores), claimed: make(map[inode]bool),
	}
}

// begin is called before anything is changed. The first time it marks the
// target: what is as it should be is not marked, nor synced.
func (s *restorer) begin() error {
	p := s.place
	if p == nil || p.began.Load() {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began.Load() {
		return nil
	}
	if s.q.marker != "" {
		if err := s.t.mark(s.q.marker); err != nil {
			err = because(MarkerName, err)
			s.give(err)
			return err
		}
	}
	p.began.Store(true)
	s.at("mark", "")
	return nil
}

// claim reports whether the file at, which has several names, may be kept as
// that of the group g. One without a group, or of another, is to be another file.
func (p *place) claim(g *hardlinks, at inode) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g == nil || p.claimed[at] {
		return false
	}
	p.claimed[at] = true
	return true
}

// An old is the file that is in the place of one to be restored.
type old struct {
	there   bool // it is a file, and can become the one to be
	inWay   bool // it is something else, and has to go
	reading bool // it is open for reading only
	touched bool // its content is not what it was
	st      unix.Stat_t

	compared uint64 // of the stream
	extent   int    // of the file's, in which the stream goes on
	used     uint64 // of that
}

// part is how much is read and compared at once, unless a single blob is more.
const part = 1 << 20

// look opens what is in the place of f.
func (w *placer) look(f *file) {
	fd, st, err := w.s.t.openOld(f.entry.Dir, f.entry.Name)
	switch {
	case absent(err):
		return
	case err != nil:
		// Whatever it is, to remove it is what is left to be tried.
		f.old.inWay = true
		return
	}
	f.made, f.id = true, inodeOf(&st)
	f.old.there, f.old.reading, f.old.st = true, true, st
	w.keep(f, fd)
}

// absent tells whether err means that there is nothing, or no directory that it
// could be in.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// openOld opens a file that is there for reading. Something else is an error.
func (t *target) openOld(parent, name string) (int, unix.Stat_t, error) {
	var st unix.Stat_t
	d, err := t.in(parent)
	if err != nil {
		return -1, st, err
	}
	defer t.dirs.put(d)
	var before unix.Statx_t
	if err := statx(d.fd, name, &before); err != nil {
		return -1, st, err
	}
	if before.Mode&unix.S_IFMT != unix.S_IFREG || t.foreign(&before) {
		return -1, st, errReplaced
	}
	// Should it be a fifo by now, O_NONBLOCK keeps the open from waiting.
	const flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY
	fd, err := t.openat(d.fd, name, flags|unix.O_NOATIME)
	if errors.Is(err, unix.EPERM) {
		fd, err = t.openat(d.fd, name, flags)
	}
	if err != nil {
		return -1, st, err
	}
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errReplaced
	}
	if err != nil {
		unix.Close(fd)
	}
	return fd, st, err
}

// again opens f, which is there, if it is not open.
func (w *placer) again(f *file) error {
	if f.fd >= 0 {
		w.tick++
		f.used = w.tick
		return nil
	}
	fd, err := w.s.t.reopen(f.entry.Dir, f.entry.Name, f.id, unix.O_RDONLY)
	if err != nil {
		return err
	}
	f.old.reading = true
	w.keep(f, fd)
	return nil
}

// has reports whether data is at off of the file that is in f's place.
func (w *placer) has(f *file, data []byte, off uint64) bool {
	if !f.old.there || f.old.touched || w.again(f) != nil {
		return false
	}
	have := make([]byte, len(data))
	n, missing := w.read(f, have, []snapshot.Extent{{Offset: off, Length: uint64(len(data))}})
	return n && len(missing) == 0 && string(have) == string(data)
}

// compare tells the host which of the refs are not in the file.
func (w *placer) compare(j *job) {
	f, o := j.file, &j.file.old
	missing := make([]bool, len(j.refs))
	if !o.there || f.woes > 0 || w.again(f) != nil {
		for i := range missing {
			missing[i] = true
		}
	} else {
		w.compareWith(f, j.refs, missing)
	}
	for i, r := range j.refs {
		if !missing[i] {
			f.got += r.Length
		} else if w.s.q.dry {
			f.got, f.wrote, o.touched = f.got+r.Length, f.wrote+r.Length, true
		}
	}
	w.s.verdict(f.n, missing)
}

// compareWith compares refs, the next of f, with the file, on as many cores as
// have nothing else to do.
func (w *placer) compareWith(f *file, refs []snapshot.Ref, missing []bool) {
	type task struct {
		from, to int // of refs
		size     uint64
		at       []snapshot.Extent
	}
	var tasks []task
	for i := 0; i < len(refs); {
		t := task{from: i}
		for ; i < len(refs) && (i == t.from || t.size+refs[i].Length <= part); i++ {
			t.size += refs[i].Length
		}
		t.to, t.at = i, f.places(t.size)
		tasks = append(tasks, t)
	}
	p := w.s.place
	p.crew.busy.Add(1)
	defer p.crew.busy.Add(-1)
	each(p.crew.width(), len(tasks), func(i int) {
		p.cores <- struct{}{}
		defer func() { <-p.cores }()
		t := tasks[i]
		buf := buffer(int(t.size))[:t.size]
		defer recycle(buf)
		ok, holes := w.read(f, buf, t.at)
		from := uint64(0)
		for k := t.from; k < t.to; k++ {
			to := from + refs[k].Length
			for len(holes) > 0 && holes[0].End() <= from {
				holes = holes[1:]
			}
			missing[k] = !ok || len(holes) > 0 && holes[0].Offset < to || p.namer.Blob(id.Data, buf[from:to]) != refs[k].Name
			from = to
		}
	})
}

// places returns where the next n bytes of the stream lie in the file.
func (f *file) places(n uint64) (at []snapshot.Extent) {
	o := &f.old
	if !f.entry.Sparse {
		at = []snapshot.Extent{{Offset: o.compared, Length: n}}
	}
	o.compared += n
	for n > 0 && f.entry.Sparse {
		x := f.extents[o.extent]
		k := min(n, x.Length-o.used)
		at = append(at, snapshot.Extent{Offset: x.Offset + o.used, Length: k})
		if n, o.used = n-k, o.used+k; o.used == x.Length {
			o.extent, o.used = o.extent+1, 0
		}
	}
	return at
}

// read fills buf with what is in the file at the places at, and returns which
// parts of buf are of holes, or beyond its end: zeros that are there are not
// the same as none.
func (w *placer) read(f *file, buf []byte, at []snapshot.Extent) (ok bool, holes []snapshot.Extent) {
	st := &f.old.st
	from := uint64(0)
	for _, x := range at {
		n, err := pread(f.fd, buf[from:from+x.Length], x.Offset)
		if err != nil {
			return false, nil // what cannot be read is written
		}
		end := x.Offset + uint64(n)
		if st.Blocks*512 < st.Size {
			for off := x.Offset; off < end; {
				data, err := nextExtent(f.fd, off, end)
				if err != nil {
					return false, nil
				}
				if data.Length == 0 {
					data.Offset = end
				}
				if data.Offset > off {
					holes = append(holes, snapshot.Extent{Offset: from + off - x.Offset, Length: data.Offset - off})
				}
				off = data.End()
			}
		}
		if end < x.End() {
			holes = append(holes, snapshot.Extent{Offset: from + uint64(n), Length: x.End() - end})
		}
		from += x.Length
	}
	return true, holes
}

// take makes f, which is there, ready to be changed.
func (w *placer) take(f *file) error {
	if err := w.again(f); err != nil {
		return err
	}
	w.s.place.parting.Lock()
	defer w.s.place.parting.Unlock()
	if shared, err := shared(f.fd); err != nil {
		return err
	} else if shared {
		return w.unshare(f)
	}
	fd, err := open(unix.AT_FDCWD, self(f.fd), unix.O_RDWR)
	if err == unix.EACCES && unix.Fchmod(f.fd, createMode) == nil {
		fd, err = open(unix.AT_FDCWD, self(f.fd), unix.O_RDWR)
	}
	if err != nil {
		return because("open for writing", err)
	}
	unix.Close(f.fd)
	f.fd, f.old.reading, f.old.touched = fd, false, true
	// What it gets is for the eyes of its owner to be. If it is not ours to
	// protect, somebody else decides who sees it.
	if f.old.st.Mode&0o777 != createMode {
		if err := unix.Fchmod(fd, createMode); err != nil && err != unix.EPERM {
			return because("protect", err)
		}
	}
	return nil
}

// shared tells whether a file has other names. Some of them may be elsewhere, so
// that it may be kept, but not changed.
func shared(fd int) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return st.Nlink > 1, because("look at", err)
}

// unshare puts a copy of a file that has other names, too, into f's place.
func (w *placer) unshare(f *file) error {
	e, o := f.entry, &f.old
	if err := w.s.t.remove(e.Dir, e.Name, f.id); err != nil {
		return err
	}
	w.s.at("unshare", e.Name)
	fd, plain, err := w.s.t.create(e)
	if err != nil {
		o.there, f.made = false, false // what was there is gone
		return err
	}
	from := f.fd
	defer unix.Close(from)
	f.fd, f.plain = fd, plain
	o.reading, o.touched = false, true
	if err := unix.Fstat(fd, &o.st); err != nil {
		return because("look at", err)
	}
	f.id = inodeOf(&o.st)
	for off := uint64(0); off < e.Size; {
		x, err := nextExtent(from, off, e.Size)
		if err != nil {
			return because("read", err)
		}
		if x.Length == 0 {
			break
		}
		n, err := copyRange(fd, from, x)
		f.wrote += n
		if err != nil {
			return because("copy", err)
		}
		off = x.End()
	}
	return nil
}

// copyRange copies x of the file from, or what there is of it.
func copyRange(to, from int, x snapshot.Extent) (done uint64, err error) {
	for done < x.Length {
		in, out := int64(x.Offset+done), int64(x.Offset+done)
		n, err := unix.CopyFileRange(from, &in, to, &out, int(min(x.Length-done, 1<<30)), 0)
		if err != nil || n == 0 {
			break // not here, or not between these
		}
		done += uint64(n)
	}
	buf := buffer(maxData)[:maxData]
	defer recycle(buf)
	for done < x.Length {
		n, err := pread(from, buf[:min(x.Length-done, maxData)], x.Offset+done)
		if err == nil {
			err = pwrite(to, buf[:n], x.Offset+done)
		}
		if done += uint64(n); err != nil || n == 0 {
			return done, err
		}
	}
	return done, nil
}

// settle ends a file that has its content, or would have it.
func (w *placer) settle(f *file) error {
	e, o, dry := f.entry, &f.old, w.s.q.dry
	if !o.there {
		w.s.changed(e.Path(), o.inWay)
		if dry && o.inWay {
			return w.clear(e)
		}
		if dry {
			return nil
		}
		return w.complete(f)
	}
	if err := w.again(f); err != nil {
		return err
	}
	fits, err := w.fit(f, false)
	if err != nil {
		return err
	}
	shared, err := shared(f.fd)
	if err != nil {
		return err
	}
	same := fits && !o.touched && !handle{fd: f.fd}.differs(e, f.xattrs, true)
	if same && (!shared || w.s.place.claim(f.group, f.id)) {
		w.s.unchanged()
		return because("close", w.shut(f))
	}
	w.s.changed(e.Path(), true)
	if dry {
		if shared {
			f.id = inode{}
		}
		return because("close", w.shut(f))
	}
	if !fits || shared {
		if err := w.put(f); err != nil {
			return err
		}
		if _, err := w.fit(f, true); err != nil {
			return err
		}
	}
	w.s.at("fit", e.Name)
	if err := w.s.begin(); err != nil {
		return err
	}
	return w.dressFile(f)
}

// fit reports whether a file has its size and its holes, and sees to it if it
// may change it.
func (w *placer) fit(f *file, change bool) (bool, error) {
	e := f.entry
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return false, because("look at", err)
	}
	if uint64(st.Size) != e.Size {
		if !change {
			return false, nil
		}
		if err := unix.Ftruncate(f.fd, int64(e.Size)); err != nil {
			return false, because("set the size", err)
		}
	}
	if !e.Sparse {
		return true, nil
	}
	end := uint64(0)
	for i := 0; i <= len(f.extents); i++ {
		next := snapshot.Extent{Offset: e.Size}
		if i < len(f.extents) {
			next = f.extents[i]
		}
		if ok, err := hollow(f.fd, end, next.Offset, e.Size, uint64(st.Blksize), change); !ok || err != nil {
			return false, because("make a hole", err)
		}
		end = next.End()
	}
	return true, nil
}

// hollow reports whether there is a hole between two places of a file of size
// bytes, and makes it if it may. In a block that holds data besides there can
// be none, only zeros.
func hollow(fd int, from, to, size, block uint64, change bool) (bool, error) {
	for from < to {
		x, err := nextExtent(fd, from, to)
		if err != nil || x.Length == 0 {
			return err == nil, err
		}
		first, last := (x.Offset+block-1)/block*block, x.End()
		if last < size {
			last = last / block * block
		}
		if first < last || !zeros(fd, x) {
			if !change {
				return false, nil
			}
			if err := punch(fd, x); err != nil {
				return false, err
			}
		}
		from = x.End()
	}
	return true, nil
}

// zeros reports whether there is nothing else at x, which is no longer than two
// blocks.
func zeros(fd int, x snapshot.Extent) bool {
	p := make([]byte, x.Length)
	n, err := pread(fd, p, x.Offset)
	if err != nil {
		return false
	}
	for _, b := range p[:n] {
		if b != 0 {
			return false
		}
	}
	return true
}

// punch makes a hole, or zeros where holes cannot be made.
func punch(fd int, x snapshot.Extent) error {
	for {
		err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(x.Offset), int64(x.Length))
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			break
		}
	}
	zero := make([]byte, min(x.Length, maxData))
	for x.Length > 0 {
		n := min(x.Length, maxData)
		if err := pwrite(fd, zero[:n], x.Offset); err != nil {
			return err
		}
		x.Offset, x.Length = x.Offset+n, x.Length-n
	}
	return nil
}

// nodeOver sees to it that there is what is neither file nor directory.
func (w *placer) nodeOver(j *job) (inode, error) {
	p := w.s.place
	if p == nil {
		return w.makeNode(j)
	}
	e := j.entry
	fd, st, err := w.s.t.openNode(e.Dir, e.Name)
	there := !absent(err)
	if err == nil {
		defer unix.Close(fd)
		if sameKind(fd, &st, e) {
			h := handle{fd: fd, path: true}
			own := st.Nlink == 1
			differs := h.differs(e, j.xattrs, true)
			if !differs && (own || p.claim(j.group, inodeOf(&st))) {
				w.s.unchanged()
				return inodeOf(&st), nil
			}
			if differs && own {
				w.s.changed(e.Path(), true)
				if w.s.q.dry {
					return inodeOf(&st), nil
				}
				if err := w.s.begin(); err != nil {
					return inode{}, err
				}
				return h.dress(e, j.xattrs, w.limited(j.n, e.Path())), nil
			}
		}
	}
	w.s.changed(e.Path(), there)
	if there {
		if err := w.clear(e); err != nil {
			return inode{}, err
		}
	}
	if w.s.q.dry {
		return inode{}, nil
	}
	return w.makeNode(j)
}

// openNode opens what is at a path O_PATH.
func (t *target) openNode(parent, name string) (int, unix.Stat_t, error) {
	var st unix.Stat_t
	d, err := t.in(parent)
	if err != nil {
		return -1, st, err
	}
	defer t.dirs.put(d)
	fd, err := t.openat(d.fd, name, unix.O_PATH)
	if err != nil {
		return -1, st, err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

// sameKind reports whether fd is what e is, its metadata apart.
func sameKind(fd int, st *unix.Stat_t, e *snapshot.Entry) bool {
	if st.Mode&unix.S_IFMT != kindOf(e.Type) {
		return false
	}
	switch e.Type {
	case snapshot.Symlink:
		to, err := readlink(fd)
		return err == nil && to == e.Target
	case snapshot.Char, snapshot.Block:
		return uint64(unix.Major(uint64(st.Rdev)))<<32|uint64(unix.Minor(uint64(st.Rdev))) == e.Rdev //nolint:unconvert // uint32 on mips
	}
	return true
}

// linkOver sees to it that there is another name of a file.
func (w *placer) linkOver(j *job) error {
	if w.s.place == nil {
		return w.makeLink(j)
	}
	e := j.entry
	fd, st, err := w.s.t.openNode(e.Dir, e.Name)
	there := !absent(err)
	if err == nil {
		unix.Close(fd)
		if inodeOf(&st) == j.group.id {
			w.s.unchanged()
			return nil
		}
	}
	w.s.changed(e.Path(), there)
	if there {
		if err := w.clear(e); err != nil {
			return err
		}
	}
	if w.s.q.dry {
		return nil
	}
	return w.makeLink(j)
}

// mkdirOver sees to it that there is a directory that we can enter.
func (s *restorer) mkdirOver(e *snapshot.Entry) error {
	d, err := s.t.in(e.Dir)
	if err != nil {
		if s.q.dry { // one above it would be made
			s.tell(Created, e.Path())
			return nil
		}
		return err
	}
	defer s.t.dirs.put(d)
	fd, err := s.t.openat(d.fd, e.Name, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		defer unix.Close(fd)
		if s.q.dry || s.t.admitted(fd) {
			return nil
		}
		if err := s.begin(); err != nil {
			return err
		}
		return s.t.admit(fd)
	}
	if !s.q.dry {
		if err := s.begin(); err != nil {
			return err
		}
	}
	kind := Created
	if !errors.Is(err, unix.ENOENT) {
		kind = Changed
		if !s.q.dry {
			if err := unix.Unlinkat(d.fd, e.Name, 0); err != nil {
				return because("remove what is in its place", err)
			}
			s.at("clear", e.Name)
		}
		s.count(func(t *RestoreTotals) { t.Removed++ })
	}
	s.tell(kind, e.Path())
	if s.q.dry {
		return nil
	}
	return because("make directory", unix.Mkdirat(d.fd, e.Name, 0o700))
}

// admitted tells whether we may work in a directory, or there is nothing that
// admit could do.
func (t *target) admitted(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) != nil || st.Mode&0o700 == 0o700 || st.Uid != t.uid ||
		unix.Faccessat(fd, ".", unix.R_OK|unix.W_OK|unix.X_OK, unix.AT_EACCESS) == nil
}

// admit gives us the right to work in a directory of ours. It gets its own mode
// in the end.
func (t *target) admit(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return because("look at", err)
	}
	return because("get access", unix.Chmod(self(fd), st.Mode&0o7777|0o700))
}

// verdict tells the host which refs of a COMPARE are missing.
func (s *restorer) verdict(n uint64, missing []bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending.Verdicts = append(s.pending.Verdicts, verdict{n, missing})
	s.poke()
}

// tell tells the host what has become different, if it wants to know.
func (s *restorer) tell(kind ChangeKind, path string) {
	if !s.q.tells {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending.Changes = append(s.pending.Changes, change{kind, path})
	s.poke()
}

func (s *restorer) count(add func(t *RestoreTotals)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	add(&s.totals)
}

// unchanged notes that something was as it should be.
func (s *restorer) unchanged() { s.count(func(t *RestoreTotals) { t.Unchanged++ }) }

// changed notes that something was made, or was there and is different now.
func (s *restorer) changed(path string, there bool) {
	kind := Created
	if there {
		kind = Changed
		s.count(func(t *RestoreTotals) { t.Changed++ })
	}
	s.tell(kind, path)
}
