//go:build linux

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"

	"golang.org/x/sys/unix"

	"orlop/snapshot"
)

const nameCost = 32 // what a name takes besides its bytes

// A walker lists what is below a root in the order of snapshot.Compare: all
// children of a directory, then what is below the first of them, and so on.
type walker struct {
	dirs    *dirs
	emit    func(*Stat) error
	problem func(path, reason string) error

	page, keep, marks int // see above
	buf               []byte
	seed              maphash.Seed
	path              string // of the deepest directory of stack
	stack             []level
	kept, marked      int // what stack holds
}

// A level is a directory whose children were listed and whose subdirectories
// are walked one after the other.
type level struct {
	path  int      // length of its part of walker.path
	names []string // its next subdirectories
	last  string   // the greatest that ever was in names
	// marks are hashes of the subdirectories that come after last, sorted:
	// only a directory that was told of as an entry may be gone into, and a
	// hundred million names would not fit here.
	marks []uint64
}

func newWalker(d *dirs, emit func(*Stat) error, problem func(path, reason string) error) *walker {
	return &walker{
		dirs: d, emit: emit, problem: problem,
		page: pageBytes, keep: keepBytes, marks: keepMarks,
		buf: make([]byte, 64<<10), seed: maphash.MakeSeed(),
	}
}

// run walks. Its error is one of emit or problem, or of the root.
func (w *walker) run(ctx context.Context) error {
	var st unix.Statx_t
	if err := statx(w.dirs.root.fd, "", &st); err != nil {
		return err
	}
	root := statOf(&st)
	if err := w.emit(&root); err != nil {
		return err
	}
	if err := w.enter(ctx, ""); err != nil {
		return err
	}
	for len(w.stack) > 0 {
		top := &w.stack[len(w.stack)-1]
		dir := w.path[:top.path]
		if len(top.names) == 0 && len(top.marks) > 0 {
			if err := w.refill(ctx, dir, top); err != nil {
				return err
			}
		}
		if len(top.names) == 0 {
			w.marked -= len(top.marks)
			w.stack = w.stack[:len(w.stack)-1]
			continue
		}
		name := top.names[0]
		top.names = top.names[1:]
		w.kept -= len(name) + nameCost
		if err := w.enter(ctx, join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// enter tells of the children of dir and puts it on the stack.
func (w *walker) enter(ctx context.Context, dir string) error {
	l := level{path: len(dir)}
	err := w.pages(ctx, dir, "", func(at int, names []string) (bool, error) {
		for _, name := range names {
			if err := w.child(&l, at, dir, name); err != nil {
				return false, err
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	slices.Sort(l.marks)
	w.path = dir
	w.stack = append(w.stack, l)
	return nil
}

// child tells of one child, and remembers it if it is to be walked.
func (w *walker) child(l *level, at int, dir, name string) error {
	if err := snapshot.ValidName(name); err != nil {
		return w.problem(dir, fmt.Sprintf("%v in it cannot be kept", err))
	}
	if n := len(dir) + 1 + len(name); n > snapshot.MaxPath {
		return w.problem(dir, fmt.Sprintf("the path of %q in it is longer than %d bytes", name, snapshot.MaxPath))
	}
	var st unix.Statx_t
	if err := statx(at, name, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil // gone before it was more than a name
		}
		return w.problem(join(dir, name), reason(err))
	}
	s := statOf(&st)
	if s.Type == 0 {
		return w.problem(join(dir, name), fmt.Sprintf("its type is not known: mode %o", st.Mode))
	}
	s.Dir, s.Name = dir, name
	switch {
	case w.dirs.foreign(&st):
		s.Problem = errMount.Error()
	case s.Type != snapshot.Dir:
	case len(l.marks) == 0 && w.kept+len(name)+nameCost <= w.keep:
		w.kept += len(name) + nameCost
		l.names, l.last = append(l.names, name), name
	case w.marked < w.marks:
		w.marked++
		l.marks = append(l.marks, maphash.String(w.seed, name))
	default:
		s.Problem = fmt.Sprintf("over %d directories wait to be walked: this one is not", w.marks)
	}
	return w.emit(&s)
}

// refill gives a level its next names, by listing its directory again.
func (w *walker) refill(ctx context.Context, dir string, l *level) error {
	l.names = nil
	// At least one name is taken, whatever others keep: the deepest level
	// must get on.
	return w.pages(ctx, dir, l.last, func(_ int, names []string) (bool, error) {
		for _, name := range names {
			if _, ok := slices.BinarySearch(l.marks, maphash.String(w.seed, name)); !ok {
				continue
			}
			if len(l.names) > 0 && w.kept+len(name)+nameCost > w.keep {
				return false, nil
			}
			w.kept += len(name) + nameCost
			l.names, l.last = append(l.names, name), name
		}
		return len(l.names) == 0, nil
	})
}

// pages calls f with the names in dir that come after after, sorted, as many
// at a time as memory allows, until f returns false. What goes wrong with the
// directory is a problem of its own and no error.
func (w *walker) pages(ctx context.Context, dir, after string, f func(at int, names []string) (bool, error)) error {
	o, err := w.dirs.get(dir)
	if err != nil {
		return w.problem(dir, reason(err))
	}
	defer w.dirs.put(o)
	// The descriptor of get is O_PATH, which cannot be listed.
	fd, err := open(o.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return w.problem(dir, reason(err))
	}
	defer unix.Close(fd)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		names, more, err := w.list(fd, after)
		if err != nil {
			return w.problem(dir, reason(err))
		}
		if len(names) == 0 {
			return nil
		}
		if again, err := f(fd, names); err != nil || !again || !more {
			return err
		}
		after = names[len(names)-1]
		if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
			return w.problem(dir, reason(err))
		}
	}
}

// list returns the smallest names in the directory fd that come after after,
// sorted, and whether there are more than fit the page.
func (w *walker) list(fd int, after string) (names []string, more bool, err error) {
	var bound string // the greatest name worth keeping, once there are more
	size := 0
	trim := func() {
		slices.Sort(names)
		names = slices.Compact(names) // a changing directory may show one twice
		size = 0
		for i, name := range names {
			if size += len(name) + nameCost; size > w.page && i > 0 {
				names, more, bound = names[:i], true, names[i-1]
				size -= len(name) + nameCost
				clear(names[i:cap(names)])
				break
			}
		}
	}
	for {
		n, err := unix.Getdents(fd, w.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, false, err
		}
		if n == 0 {
			trim()
			return names, more, nil
		}
		for p := w.buf[:n]; len(p) > 0; {
			var name []byte
			name, p = direntName(p)
			if string(name) <= after || more && string(name) > bound || string(name) == "." || string(name) == ".." {
				continue
			}
			names = append(names, string(name))
			if size += len(name) + nameCost; size > 2*w.page {
				trim()
			}
		}
	}
}

// direntName returns the name of the first of the kernel's struct
// linux_dirent64 in p, and what follows it.
func direntName(p []byte) (name, rest []byte) {
	const reclen, start = 16, 19
	n := int(p[reclen]) | int(p[reclen+1])<<8 // little-endian: amd64, arm64
	name = p[start:n]
	return name[:max(bytes.IndexByte(name, 0), 0)], p[n:]
}

// statOf turns an answer of the kernel into a Stat without a path. Its Type is
// 0 if that is none that is known.
func statOf(st *unix.Statx_t) Stat {
	s := Stat{
		Mode: uint32(st.Mode & 0o7777), UID: st.Uid, GID: st.Gid,
		MTime: snapshot.Time{Sec: st.Mtime.Sec, Nsec: st.Mtime.Nsec},
		CTime: snapshot.Time{Sec: st.Ctime.Sec, Nsec: st.Ctime.Nsec},
		Inode: st.Ino, Device: uint64(st.Dev_major)<<32 | uint64(st.Dev_minor), Links: st.Nlink,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		s.Type, s.Size = snapshot.File, min(st.Size, snapshot.MaxSize)
	case unix.S_IFDIR:
		s.Type = snapshot.Dir
	case unix.S_IFLNK:
		s.Type = snapshot.Symlink
	case unix.S_IFCHR, unix.S_IFBLK:
		s.Type = snapshot.Char
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			s.Type = snapshot.Block
		}
		s.Rdev = uint64(st.Rdev_major)<<32 | uint64(st.Rdev_minor)
	case unix.S_IFIFO:
		s.Type = snapshot.Fifo
	case unix.S_IFSOCK:
		s.Type = snapshot.Socket
	}
	return s
}
