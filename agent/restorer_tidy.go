//go:build linux

package agent

import (
	"golang.org/x/sys/unix"

	"orlop/snapshot"
)

// A tidier removes from a directory what no entry was sent for. The entries of
// a directory come in one piece and in order, so it holds a page of the names
// that are there, and no entry.
type tidier struct {
	in    bool
	dir   string
	fd    int // -1 if it could not be listed
	names []string
	more  bool   // after names
	last  string // that was looked at
	list  *walker
}

// tidyPage is how many bytes of names it holds, and twice that while it reads.
const tidyPage = 2 << 20

// name says that there is to be an entry.
func (w *placer) name(e *snapshot.Entry) {
	t := &w.tidy
	if !t.in || t.dir != e.Dir {
		w.enter(e.Dir)
	}
	w.sweep(func(name string) bool { return name < e.Name })
	if len(t.names) > 0 && t.names[0] == e.Name {
		t.last, t.names = e.Name, t.names[1:]
	}
}

// tidyUp says that there are no more in a directory.
func (w *placer) tidyUp(dir string) {
	if t := &w.tidy; !t.in || t.dir != dir {
		w.enter(dir)
	}
	w.sweep(func(string) bool { return true })
	w.tidy.leave()
}

// enter begins to tidy up a directory.
func (w *placer) enter(dir string) {
	t := &w.tidy
	t.leave()
	t.in, t.dir, t.fd, t.last = true, dir, -1, ""
	if t.list == nil {
		t.list = &walker{page: tidyPage, buf: make([]byte, 64<<10)}
	}
	d, err := w.s.t.in(dir)
	if err == nil {
		defer w.s.t.dirs.put(d)
		t.fd, err = open(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	}
	if err == nil {
		t.names, t.more, err = t.list.list(t.fd, "")
	}
	if err != nil && !w.s.q.dry { // else it is not there yet
		w.s.wait()
		w.s.say(0, dir, because("see what is to be removed", err).Error())
	}
}

// leave ends with the directory.
func (t *tidier) leave() {
	if t.in && t.fd >= 0 {
		unix.Close(t.fd)
	}
	t.in, t.names, t.more = false, nil, false
}

// sweep removes the next names for as long as extra says that they are too many.
func (w *placer) sweep(extra func(name string) bool) {
	t := &w.tidy
	for {
		for len(t.names) > 0 && extra(t.names[0]) {
			if w.s.fatal.Load() {
				return
			}
			w.drop(t.names[0])
			t.last, t.names = t.names[0], t.names[1:]
		}
		if len(t.names) > 0 || !t.more {
			return
		}
		_, err := unix.Seek(t.fd, 0, unix.SEEK_SET)
		if err == nil {
			t.names, t.more, err = t.list.list(t.fd, t.last)
		}
		if err != nil {
			t.names, t.more = nil, false
			w.s.wait()
			w.s.say(0, t.dir, because("see what is to be removed", err).Error())
		}
	}
}

// drop removes something that no entry was sent for.
func (w *placer) drop(name string) {
	t := &w.tidy
	if t.dir == "" && name == MarkerName {
		return
	}
	if t.dir == "" && name == "lost+found" {
		// The file system's, as long as nothing is in it.
		if names, err := w.s.t.list(name); err == nil && len(names) == 0 {
			return
		}
	}
	if !w.s.q.dry && w.s.begin() != nil {
		return // which is told
	}
	r := w.removal()
	err := w.s.t.removeAll(t.fd, name, r)
	w.s.count(r.count)
	w.s.wait()
	if err != nil {
		w.s.say(0, join(t.dir, name), because("remove", err).Error())
		return
	}
	w.s.tell(Removed, join(t.dir, name))
}

// clear removes what is in the place of e.
func (w *placer) clear(e *snapshot.Entry) error {
	d, err := w.s.t.in(e.Dir)
	if err != nil {
		return err
	}
	defer w.s.t.dirs.put(d)
	if !w.s.q.dry {
		if err := w.s.begin(); err != nil {
			return err
		}
	}
	r := w.removal()
	err = w.s.t.removeAll(d.fd, e.Name, r)
	if r.dirs > 0 { // else it is what e was before
		w.s.count(r.count)
	}
	w.s.at("clear", e.Name)
	return because("remove what is in its place", err)
}

func (w *placer) removal() *removal {
	return &removal{dry: w.s.q.dry, stop: func() bool {
		w.s.at("remove", "")
		return w.s.fatal.Load()
	}}
}

func (r *removal) count(t *RestoreTotals) {
	t.Removed += r.files
	t.RemovedDirs += r.dirs
}

// wait waits until not too much is yet to be told: how much is removed has
// nothing to do with how much was sent.
func (s *restorer) wait() {
	const enough = 1 << 10
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.pending.Problems)+len(s.pending.Changes) > enough && !s.fatal.Load() {
		s.room.Wait()
	}
}
