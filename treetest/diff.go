//go:build linux

package treetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Same fails the test if [Diff] finds a difference, naming the first few.
func Same(t testing.TB, want, got string) {
	t.Helper()
	diffs, err := Diff(want, got)
	if err != nil {
		t.Fatalf("compare: %v", err)
	}
	const enough = 20
	for i, d := range diffs {
		if i == enough {
			t.Errorf("and %d differences more", len(diffs)-enough)
			break
		}
		t.Error(d)
	}
}

// Diff returns in what the tree at got differs from that at want, one line a
// difference, in the order of paths; each begins with the quoted path. It
// compares everything a backup is to keep of every file, the two roots
// included: type, mode, owner, mtime in nanoseconds, size, bytes, where holes
// are, link target, device, extended attributes, and which paths are hard links
// of each other. It does not compare access and change times, nor the size of
// directories. Holes are compared in blocks of the coarser of the two file
// systems, and never read.
func Diff(want, got string) ([]string, error) {
	w, err := scan(want)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", want, err)
	}
	g, err := scan(got)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", got, err)
	}
	return compare(w, g), nil
}

func compare(w, g []*file) []string {
	var d differences
	for len(w) > 0 || len(g) > 0 {
		switch {
		case len(g) == 0 || len(w) > 0 && w[0].path < g[0].path:
			d.add(w[0].path, "is missing")
			w = w[1:]
		case len(w) == 0 || g[0].path < w[0].path:
			d.add(g[0].path, "should not be there")
			g = g[1:]
		default:
			d.compare(w[0], g[0])
			w, g = w[1:], g[1:]
		}
	}
	return d
}

type differences []string

func (d *differences) add(path, format string, args ...any) {
	if len(path) > 300 {
		path = path[:100] + "..." + path[len(path)-100:]
	}
	*d = append(*d, fmt.Sprintf("%q: ", path)+fmt.Sprintf(format, args...))
}

func (d *differences) compare(w, g *file) {
	if w.kind() != g.kind() {
		d.add(w.path, "type is %s, want %s", g.kind(), w.kind())
		return
	}
	if w.mode != g.mode {
		d.add(w.path, "mode is %04o, want %04o", g.mode&0o7777, w.mode&0o7777)
	}
	if w.uid != g.uid {
		d.add(w.path, "uid is %d, want %d", g.uid, w.uid)
	}
	if w.gid != g.gid {
		d.add(w.path, "gid is %d, want %d", g.gid, w.gid)
	}
	if w.mtime != g.mtime {
		d.add(w.path, "mtime is %d.%09d, want %d.%09d", g.mtime.Sec, g.mtime.Nsec, w.mtime.Sec, w.mtime.Nsec)
	}
	if w.size != g.size {
		d.add(w.path, "size is %d, want %d", g.size, w.size)
	}
	if w.sum != g.sum {
		d.add(w.path, "bytes differ")
	}
	block := max(w.block, g.block)
	if we, ge := rounded(w.data, block), rounded(g.data, block); !slices.Equal(we, ge) {
		d.add(w.path, "data between holes is at %v, want %v", ge, we)
	}
	if w.target != g.target {
		d.add(w.path, "link target is %q, want %q", g.target, w.target)
	}
	if w.rdev != g.rdev {
		d.add(w.path, "device is %d:%d, want %d:%d",
			unix.Major(g.rdev), unix.Minor(g.rdev), unix.Major(w.rdev), unix.Minor(w.rdev))
	}
	if w.first != g.first {
		d.add(w.path, "hard link is of %q, want %q", g.first, w.first)
	}
	for _, name := range slices.Sorted(maps.Keys(w.xattrs)) {
		if v, ok := g.xattrs[name]; !ok {
			d.add(w.path, "xattr %q is missing", name)
		} else if v != w.xattrs[name] {
			d.add(w.path, "xattr %q is %.40q (%d bytes), want %.40q (%d bytes)",
				name, v, len(v), w.xattrs[name], len(w.xattrs[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(g.xattrs)) {
		if _, ok := w.xattrs[name]; !ok {
			d.add(w.path, "xattr %q should not be there", name)
		}
	}
}

// A span is where a file has data: from, to.
type span [2]int64

// rounded widens spans to whole blocks and joins those that touch.
func rounded(spans []span, block int64) (out []span) {
	for _, s := range spans {
		s[0] -= s[0] % block
		s[1] += (block - s[1]%block) % block
		if n := len(out); n > 0 && s[0] <= out[n-1][1] {
			out[n-1][1] = s[1]
			continue
		}
		out = append(out, s)
	}
	return out
}

// A file is what is compared of one.
type file struct {
	path     string // "." is the root
	mode     uint32 // with the type
	uid, gid uint32
	mtime    unix.Timespec
	size     int64    // of regular files
	block    int64    // granularity of the file system, at least
	sum      [32]byte // of the blocks that are not all zero, and their places
	data     []span
	target   string
	rdev     uint64
	first    string // least path of the same inode
	xattrs   map[string]string
}

func (f *file) kind() string {
	switch f.mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "unknown"
}

// A scanner reads a tree with the descriptor of one directory, going down by
// name and up by "..", since a path can be longer than a system call takes.
type scanner struct {
	fd    int
	files []*file
	buf   []byte
}

func scan(root string) ([]*file, error) {
	fd, err := unix.Open(root, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	s := &scanner{fd: fd, buf: make([]byte, 1<<20)}
	defer func() { _ = unix.Close(s.fd) }()
	inodes := map[[2]uint64][]*file{}

	type level struct {
		path string
		left []string
	}
	var stack []level
	enter := func(path string) error {
		names, err := readNames(s.fd)
		slices.Sort(names)
		stack = append(stack, level{path, names})
		return err
	}
	if _, err := s.add(".", ".", inodes); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	if err := enter(""); err != nil {
		return nil, err
	}
	for {
		top := &stack[len(stack)-1]
		if len(top.left) == 0 {
			if stack = stack[:len(stack)-1]; len(stack) == 0 {
				break
			}
			if err := s.step(".."); err != nil {
				return nil, fmt.Errorf("leave %.300q: %w", top.path, err)
			}
			continue
		}
		name := top.left[0]
		top.left = top.left[1:]
		path := top.path + name
		f, err := s.add(name, path, inodes)
		if err != nil {
			return nil, fmt.Errorf("%.300q: %w", path, err)
		}
		if f.mode&unix.S_IFMT == unix.S_IFDIR {
			if err := errors.Join(s.step(name), enter(path+"/")); err != nil {
				return nil, fmt.Errorf("%.300q: %w", path, err)
			}
		}
	}
	slices.SortFunc(s.files, func(a, b *file) int { return strings.Compare(a.path, b.path) })
	for _, group := range inodes {
		first := slices.MinFunc(group, func(a, b *file) int { return strings.Compare(a.path, b.path) }).path
		for _, f := range group {
			f.first = first
		}
	}
	return s.files, nil
}

func (s *scanner) step(to string) error {
	fd, err := unix.Openat(s.fd, to, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_ = unix.Close(s.fd)
	s.fd = fd
	return nil
}

func (s *scanner) add(name, path string, inodes map[[2]uint64][]*file) (*file, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(s.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	f := &file{
		path: path, mode: st.Mode, uid: st.Uid, gid: st.Gid, mtime: st.Mtim,
		block: max(1, int64(st.Blksize)),
	}
	s.files = append(s.files, f)
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.size = st.Size
		err = s.content(f, name)
	case unix.S_IFLNK:
		n := 0
		n, err = unix.Readlinkat(s.fd, name, s.buf)
		f.target = string(s.buf[:max(0, n)])
	case unix.S_IFCHR, unix.S_IFBLK:
		f.rdev = uint64(st.Rdev)
	}
	if err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		key := [2]uint64{uint64(st.Dev), st.Ino}
		inodes[key] = append(inodes[key], f)
	}
	// There is no lgetxattrat in older kernels; this is one that follows
	// nothing but the descriptor.
	f.xattrs, err = xattrs(fmt.Sprintf("/proc/self/fd/%d/%s", s.fd, name))
	if err != nil {
		return nil, fmt.Errorf("xattrs: %w", err)
	}
	return f, nil
}

// content sums up f block by block, leaving out blocks of zeros: whether they
// are stored is what f.data says.
func (s *scanner) content(f *file, name string) error {
	const block = 4096
	fd, err := unix.Openat(s.fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	h := sha256.New()
	zeros := make([]byte, block)
	for at := int64(0); at < f.size; {
		from, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		to := f.size
		if errors.Is(err, unix.EINVAL) {
			from = at // a file system without holes
		} else if err == nil {
			to, err = unix.Seek(fd, from, unix.SEEK_HOLE)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
		f.data = append(f.data, span{from, to})
		at = to
		// Whole blocks, so that the sum does not depend on where holes are; the
		// ends of two spans never share one, or it would not be a hole's.
		for off := from - from%block; off < to; {
			n, err := unix.Pread(fd, s.buf[:min(int64(len(s.buf)), to-off)], off)
			if err != nil {
				return err
			}
			if n == 0 {
				return io.ErrUnexpectedEOF
			}
			if rest := int64(n) % block; rest != 0 && off+int64(n) < to {
				if n -= int(rest); n == 0 {
					return io.ErrNoProgress
				}
			}
			for p := s.buf[:n]; len(p) > 0; {
				k := min(block, len(p))
				if !bytes.Equal(p[:k], zeros[:k]) {
					_ = binary.Write(h, binary.LittleEndian, off+int64(n-len(p)))
					_, _ = h.Write(p[:k])
				}
				p = p[k:]
			}
			off += int64(n)
		}
	}
	h.Sum(f.sum[:0])
	return nil
}

func xattrs(path string) (map[string]string, error) {
	list, err := sized(func(p []byte) (int, error) { return unix.Llistxattr(path, p) })
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return nil, nil
		}
		return nil, err
	}
	m := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		v, err := sized(func(p []byte) (int, error) { return unix.Lgetxattr(path, name, p) })
		if err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		m[name] = string(v)
	}
	return m, nil
}

// sized calls a function that says how long its answer is when given nothing.
func sized(get func([]byte) (int, error)) ([]byte, error) {
	n, err := get(nil)
	if err != nil || n == 0 {
		return nil, err
	}
	p := make([]byte, n)
	n, err = get(p)
	return p[:max(0, n)], err
}

// readNames returns the names in a directory that was just opened.
func readNames(fd int) (names []string, err error) {
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil || n <= 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}
