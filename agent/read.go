//go:build linux

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"orlop/chunk"
	"orlop/id"
	"orlop/snapshot"
)

const (
	// A file that grew while it was read is read again if it is smaller.
	rereadLimit = 64 << 20
	// Linux keeps file times by a clock that ticks at least this often (100 Hz).
	clockTick = 10_000_000 // ns
	// The coarsest times that a file system keeps are those of FAT.
	coarseTimes = 2_000_000_000 // ns

	onePread = 1 << 20 // as much of a file is asked for at a time
)

// A reader reads entries, one at a time. Each worker has one.
type reader struct {
	dirs          *dirs
	readOnlyMount bool
	offer         func(ctx context.Context, o Offer, data []byte, lent *semaphore.Weighted) error
	problem       func(ctx context.Context, path, reason string) error
	hook          func(moment, path string) error // of tests
	crew          *crew

	content *cutter // of the file that is being read
	small   *cutter // of small files
	sets    *cutter // of maps and xattrs

	// What the offers now belong to.
	ctx     context.Context
	n       uint64
	attempt uint8

	cache       cache
	list, value []byte // xattrs
	mapEnd      uint64
}

func newReader(d *dirs, s chunk.Splitter, n *id.Namer, readOnlyMount bool, c *crew) *reader {
	r := &reader{dirs: d, readOnlyMount: readOnlyMount, crew: c, cache: cache{unknown: &c.unknown}}
	r.small, r.sets = newCutter(s, n, largeFile), newCutter(s, n, smallBuffer)
	return r
}

// offers makes c offer what it finds, as that part of the entry.
func (r *reader) offers(c *cutter, role Role) *cutter {
	c.offer = func(ref snapshot.Ref, data []byte, lent *semaphore.Weighted) error {
		return r.offer(r.ctx, Offer{r.n, r.attempt, role, ref}, data, lent)
	}
	return c
}

// fatal marks an error that is not the file's.
type fatal struct{ error }

func (f fatal) Unwrap() error { return f.error }

// at gives a test its chance to change what is being read, or to be an error.
func (r *reader) at(moment string, s *Stat) error {
	if r.hook == nil {
		return nil
	}
	return r.hook(moment, s.Path())
}

// read reads the n-th entry. It returns an error only if the backup cannot go
// on; whatever happens to the entry is in the File.
func (r *reader) read(ctx context.Context, n uint64, s *Stat, old []snapshot.Ref) (*File, error) {
	r.ctx, r.n, r.attempt = ctx, n, 0
	var bytesRead uint64
	for {
		f := &File{N: n, Attempt: r.attempt, Stat: *s}
		again, err := r.try(f, s, old)
		if fe := (fatal{}); errors.As(err, &fe) {
			return nil, fe.error
		}
		bytesRead += f.BytesRead
		f.BytesRead = bytesRead
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
			f.Outcome, f.Reason = Vanished, reason(unix.ENOENT)
		case err != nil:
			f.Outcome, f.Reason = Failed, reason(err)
		}
		if err != nil {
			// Offers were made, and they count; nothing else does.
			*f = File{
				N: n, Attempt: f.Attempt, Stat: *s, Outcome: f.Outcome, Reason: f.Reason,
				BytesRead: f.BytesRead, Refs: f.Refs,
			}
			return f, nil
		}
		if !again || r.attempt > 0 {
			return f, nil
		}
		r.attempt++
	}
}

// try makes one attempt at reading s. again says that a second one might do
// better; else, or if it does not, f stands as it is.
func (r *reader) try(f *File, s *Stat, old []snapshot.Ref) (again bool, err error) {
	if s.Problem != "" {
		if s.Type != snapshot.Dir {
			return false, errors.New(s.Problem)
		}
		return false, nil // what is mounted there is not ours to look at
	}
	dir, err := r.dirs.get(s.Dir)
	if err != nil {
		return false, err
	}
	defer r.dirs.put(dir)
	if err := r.at("open", s); err != nil {
		return false, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now); err != nil {
		return false, err
	}
	fd, err := r.open(dir.fd, s)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	if s.Type == snapshot.File {
		// A store through mmap to a page that is dirty already moves no time.
		// Once the page is written the next store must fault again, and
		// does: so what is stored after this is seen in the times. It works
		// on descriptors that are only open for reading; where it does not
		// (some network file systems), there is nothing better.
		_ = unix.SyncFileRange(fd, 0, 0,
			unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	}
	var st unix.Statx_t
	if err := statx(fd, "", &st); err != nil {
		return false, err
	}
	before := statOf(&st)
	if before.Type != s.Type {
		return false, fmt.Errorf("it is a %v now", before.Type)
	}
	if err := r.at("read", s); err != nil {
		return false, err
	}
	shrank := false
	switch s.Type {
	case snapshot.File:
		size, err := r.file(f, fd, &st, old)
		if err != nil {
			return false, err
		}
		shrank = size < before.Size
		before.Size, f.Stat.Size = size, size
	case snapshot.Symlink:
		if f.Target, err = readlink(fd); err != nil {
			return false, err
		}
	}
	if err := r.xattrs(f, fd, s); err != nil {
		return false, err
	}
	if err := r.at("stat", s); err != nil {
		return false, err
	}
	if err := statx(fd, "", &st); err != nil {
		return false, err
	}
	after := statOf(&st)
	f.Fresh = fresh(now, &after)
	changed := after.Size != before.Size || after.MTime != before.MTime || after.CTime != before.CTime
	shrank = shrank || after.Size < before.Size
	f.Stat = after
	f.Stat.Dir, f.Stat.Name, f.Stat.Size = s.Dir, s.Name, before.Size
	if s.Type == snapshot.File && changed {
		f.Outcome, f.Reason, f.Fresh = Torn, "it changed while it was read", true
	}
	return changed && (after.Size < rereadLimit || shrank), nil
}

// open opens the entry: a file to be read, anything else by its place only, so
// that nothing happens to it.
func (r *reader) open(dir int, s *Stat) (int, error) {
	at, name := dir, s.Name
	if name == "" {
		at, name = dir, "." // the root
	}
	if s.Type != snapshot.File {
		if s.Name == "" {
			return open(at, ".", unix.O_PATH|unix.O_NOFOLLOW)
		}
		return r.dirs.openat(at, name, unix.O_PATH)
	}
	// Should it be a fifo by now, O_NONBLOCK keeps the open from waiting.
	const flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY
	if !r.readOnlyMount {
		fd, err := r.dirs.openat(at, name, flags|unix.O_NOATIME)
		if !errors.Is(err, unix.EPERM) {
			return fd, err
		}
	}
	return r.dirs.openat(at, name, flags)
}

// fresh reports whether s may have changed so shortly before now, a coarse
// time taken before it was read, that another change would leave the same
// times. The kernel stamps a change into mtime and ctime alike. A ctime from
// the future (a server's clock, or one that was set back) says nothing, so it
// counts as fresh; an mtime from the future was set by somebody, which ctime
// shows.
//
// A ctime of a whole second is most likely that of a file system that keeps no
// finer ones, or as vfat only every other: then so much more may come unseen.
func fresh(now unix.Timespec, s *Stat) bool {
	ns := func(t snapshot.Time) int64 {
		return (t.Sec-now.Sec)*1e9 + int64(t.Nsec) - now.Nsec
	}
	unseen := int64(2 * clockTick)
	if s.CTime.Nsec == 0 {
		unseen += coarseTimes
	}
	near := func(t snapshot.Time, limit int64) bool {
		return t.Sec >= now.Sec-3 && (t.Sec > now.Sec+1 || ns(t) >= -unseen) && t.Sec <= limit
	}
	return near(s.CTime, 1<<62) || near(s.MTime, now.Sec+1)
}

// file reads the content of the file fd, of which st is the stat before, and
// returns the size that f then describes.
func (r *reader) file(f *File, fd int, st *unix.Statx_t, old []snapshot.Ref) (size uint64, err error) {
	size = min(st.Size, snapshot.MaxSize)
	r.content = r.small
	if size >= largeFile {
		if r.content, err = r.crew.take(r.ctx); err != nil {
			return 0, fatal{err}
		}
		defer func() { r.crew.large <- r.content }()
	}
	if err := r.offers(r.content, Content).reset(r.ctx, size, old); err != nil {
		return 0, fatal{err}
	}
	_ = r.offers(r.sets, Map).reset(r.ctx, 0, nil) // it lends nothing
	r.mapEnd = 0
	defer func() {
		if e := r.content.await(); e != nil {
			err = fatal{e}
		}
		f.Refs[Content], f.Refs[Map] = r.content.refs, r.sets.refs
	}()
	r.cache.begin(fd, size)
	defer r.cache.end()
	have, err := r.class(f, fd, size)
	if err != nil {
		return 0, err
	}
	holes := st.Blocks*512 < st.Size
	var last snapshot.Extent // not in the map yet, as the next may touch it
	for off := uint64(0); off < size; {
		x := snapshot.Extent{Offset: off, Length: size - off}
		if holes {
			if x, err = nextExtent(fd, off, size); err != nil {
				return 0, err
			}
			if x.Length == 0 {
				break
			}
		}
		n, err := r.extent(f, fd, x, have)
		if err != nil {
			return 0, err
		}
		short := n < x.Length
		if x.Length = n; short {
			size = x.End() // it was cut off while it was read
		}
		off = x.End()
		if n == 0 {
			break
		}
		if last.Length > 0 && last.End() == x.Offset {
			last.Length += n
		} else {
			if err := r.mapExtent(last); err != nil {
				return 0, err
			}
			last = x
		}
	}
	if err := r.at("finish", &f.Stat); err != nil {
		return 0, err
	}
	f.Sparse = size > 0 && last != snapshot.Extent{Length: size}
	if f.Sparse {
		if err := r.mapExtent(last); err != nil {
			return 0, err
		}
		whole, err := r.sets.finish(snapshot.MaxSet)
		if err != nil {
			return 0, fatal{err}
		}
		if f.Extents, err = snapshot.DecodeExtents(whole); err != nil {
			return 0, fatal{err}
		}
	}
	if f.Inline, err = r.content.finish(snapshot.MaxInline); err != nil {
		return 0, fatal{err}
	}
	return size, nil
}

// class finds out how the file is to be cut. It leaves the first have bytes of
// it in the room for more of the content.
func (r *reader) class(f *File, fd int, size uint64) (have int, err error) {
	if size <= chunk.FixedBlock {
		return 0, nil
	}
	head, err := r.content.room(r.ctx)
	if err != nil {
		return 0, fatal{err}
	}
	have, err = r.pread(fd, head[:min(chunk.ClassHead, size)], 0)
	if err != nil {
		return 0, err
	}
	f.Class = chunk.ClassOf(head[:have])
	r.content.class(f.Class)
	return have, nil
}

// mapExtent adds x to the map.
func (r *reader) mapExtent(x snapshot.Extent) error {
	if x.Length == 0 {
		return nil
	}
	if err := r.sets.write(r.ctx, snapshot.AppendExtent(nil, r.mapEnd, x)); err != nil {
		return fatal{err}
	}
	r.mapEnd = x.End()
	return nil
}

// extent reads x into the content and returns how much of it there was. The
// first have bytes of the file need not be read.
func (r *reader) extent(f *File, fd int, x snapshot.Extent, have int) (uint64, error) {
	for done := uint64(0); done < x.Length; {
		p, err := r.content.room(r.ctx)
		if err != nil {
			return 0, fatal{err}
		}
		p = p[:min(uint64(len(p)), x.Length-done)]
		n := min(have, len(p))
		if x.Offset+done > 0 || have == 0 {
			if n, err = r.pread(fd, p, x.Offset+done); err != nil {
				return 0, err
			}
		}
		if n == 0 {
			return done, nil
		}
		at := x.Offset + done
		done += uint64(n)
		f.BytesRead += uint64(n)
		// The disk works while what it brought is cut.
		r.cache.fetch(x.Offset+done, min(x.Offset+done+largeBuffer, x.End()))
		r.cache.after(x.Offset + done)
		if err := r.content.wroteAt(n, at); err != nil {
			return 0, fatal{err}
		}
		if err := r.at("more", &f.Stat); err != nil {
			return 0, err
		}
	}
	return x.Length, nil
}

// pread fills p with what is at off, or as much of it as there is.
func (r *reader) pread(fd int, p []byte, off uint64) (int, error) {
	n := r.cache.before(p, off)
	if p, off = p[n:], off+uint64(n); len(p) <= onePread {
		m, err := pread(fd, p, off)
		return n + m, err
	}
	r.cache.fetch(off, off+uint64(len(p)))
	got := make([]int, (len(p)+onePread-1)/onePread)
	errs := make([]error, len(got))
	each(r.crew.width(), len(got), func(i int) {
		at := i * onePread
		got[i], errs[i] = pread(fd, p[at:min(at+onePread, len(p))], off+uint64(at))
	})
	for i := range got {
		n += got[i]
		if errs[i] != nil && n == 0 {
			return 0, errs[i]
		}
		if got[i] < onePread {
			break
		}
	}
	return n, nil
}

func pread(fd int, p []byte, off uint64) (n int, err error) {
	for n < len(p) {
		m, err := unix.Pread(fd, p[n:], int64(off)+int64(n))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil && n > 0, m == 0:
			return n, nil // the next one fails again
		case err != nil:
			return 0, err
		}
		n += m
	}
	return n, nil
}

// nextExtent returns the first data of fd in [off, size), empty if there is
// none.
func nextExtent(fd int, off, size uint64) (snapshot.Extent, error) {
	from, err := unix.Seek(fd, int64(off), unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return snapshot.Extent{}, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return snapshot.Extent{Offset: off, Length: size - off}, nil // cannot be asked
	case err != nil:
		return snapshot.Extent{}, err
	case uint64(from) >= size:
		return snapshot.Extent{}, nil
	}
	to, err := unix.Seek(fd, from, unix.SEEK_HOLE)
	if errors.Is(err, unix.ENXIO) { // cut off since
		return snapshot.Extent{}, nil
	}
	if err != nil {
		return snapshot.Extent{}, err
	}
	return snapshot.Extent{Offset: uint64(from), Length: min(uint64(to), size) - uint64(from)}, nil
}

// readlink returns the target of the link that is open as fd.
func readlink(fd int) (string, error) {
	for n := 512; ; n *= 4 {
		p := make([]byte, n)
		m, err := unix.Readlinkat(fd, "", p)
		switch {
		case err != nil:
			return "", err
		case m < n:
			if m == 0 || m > snapshot.MaxPath {
				return "", fmt.Errorf("a link target of %d bytes", m)
			}
			return string(p[:m]), nil
		case n > snapshot.MaxPath:
			return "", fmt.Errorf("a link target of over %d bytes", n)
		}
	}
}

// xattrs reads the extended attributes of fd. One that is listed and cannot be
// had is a problem, and no reason to lose the file.
func (r *reader) xattrs(f *File, fd int, s *Stat) error {
	var set []snapshot.Xattr
	total := 0
	names, err := r.listXattrs(fd, s)
	if err != nil {
		return err
	}
	for name := range bytes.SplitSeq(names, []byte{0}) {
		if len(name) == 0 {
			continue
		}
		x := snapshot.Xattr{Name: string(name)}
		x.Value, err = r.xattr(fd, s, x.Name)
		if errors.Is(err, unix.ENODATA) {
			continue // removed since
		}
		if total += len(x.Name) + len(x.Value) + 8; err == nil && total > snapshot.MaxXattrSet {
			err = fmt.Errorf("over %d bytes of xattrs", snapshot.MaxXattrSet)
		}
		if err != nil {
			why := fmt.Sprintf("xattr %q cannot be kept: %s", x.Name, reason(err))
			if err := r.problem(r.ctx, s.Path(), why); err != nil {
				return fatal{err}
			}
			// Told again by each backup: an unchanged file is not read, and
			// what is not in the snapshot must not be forgotten for that.
			f.Fresh = true
			continue
		}
		set = append(set, x)
	}
	if len(set) == 0 {
		return nil
	}
	slices.SortFunc(set, func(a, b snapshot.Xattr) int { return strings.Compare(a.Name, b.Name) })
	encoded := snapshot.EncodeXattrs(set)
	if len(encoded) <= snapshot.MaxSet {
		f.Xattrs = set
		return nil
	}
	_ = r.offers(r.sets, Xattrs).reset(r.ctx, uint64(len(encoded)), nil)
	defer func() { f.Refs[Xattrs] = r.sets.refs }()
	if err := r.sets.write(r.ctx, encoded); err != nil {
		return fatal{err}
	}
	if _, err := r.sets.finish(0); err != nil {
		return fatal{err}
	}
	return nil
}

// self names an O_PATH descriptor for calls that take no such descriptor. What
// it leads to is the very node that is open, also if that is a link.
func procSelf(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func (r *reader) listXattrs(fd int, s *Stat) ([]byte, error) {
	if r.list == nil {
		r.list = make([]byte, 64<<10) // the kernel's limit
	}
	var n int
	var err error
	if s.Type == snapshot.File {
		n, err = unix.Flistxattr(fd, r.list)
	} else {
		n, err = unix.Listxattr(procSelf(fd), r.list)
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list xattrs: %w", err)
	}
	return r.list[:n], nil
}

func (r *reader) xattr(fd int, s *Stat, name string) ([]byte, error) {
	if r.value == nil {
		r.value = make([]byte, snapshot.MaxXattr)
	}
	var n int
	var err error
	if s.Type == snapshot.File {
		n, err = unix.Fgetxattr(fd, name, r.value)
	} else {
		n, err = unix.Getxattr(procSelf(fd), name, r.value)
	}
	if err != nil {
		return nil, err
	}
	return bytes.Clone(r.value[:n]), nil
}
