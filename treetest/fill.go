//go:build linux

// Package treetest makes directories full of odd files, and tells exactly in
// what two directories differ. It is for tests only.
package treetest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Deep is how many directories the chain of a big fixture has, one in another;
// its path is longer than any one system call takes.
const Deep = 4000

// Sparse is the length in bytes of the largest file of a fixture, nearly all
// of it a hole.
const Sparse = 1 << 40

// Fill makes a file of every kind that Linux knows in dir, which must exist,
// and sets dir's own mode, owner, time and xattr. It needs root. Every Fill
// makes the same tree; a big one has also the deep chain of directories, files
// of many megabytes and thousands of small ones. What is in dir is removed at
// the end of the test.
func Fill(t testing.TB, dir string, big bool) {
	t.Helper()
	f := newFiller(t, dir)
	f.plain()
	f.odd()
	if big {
		f.big()
	}
	f.close()
}

// Small makes the part of [Fill]'s tree that needs no rights.
func Small(t testing.TB, dir string) {
	t.Helper()
	f := newFiller(t, dir)
	f.plain()
	f.close()
}

// A filler makes files, with times that are the same at every run, and keeps
// the metadata of directories for the end.
type filler struct {
	t    testing.TB
	dir  string
	n    int64
	dirs []func()
}

func newFiller(t testing.TB, dir string) *filler {
	t.Helper()
	// Go removes a test's directories one descriptor a level, and not what it
	// may not read.
	t.Cleanup(func() { RemoveAll(t, dir) })
	return &filler{t: t, dir: dir}
}

func (f *filler) path(name string) string { return f.dir + "/" + name }

func (f *filler) must(name string, err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatalf("make %.200q: %v", name, err)
	}
}

// stamp gives name the next time.
func (f *filler) stamp(name string) {
	f.t.Helper()
	f.n++
	f.mtime(name, unix.Timespec{Sec: 1_700_000_000 + f.n*61, Nsec: f.n * 7_654_321 % 1e9})
}

func (f *filler) mtime(name string, ts unix.Timespec) {
	f.t.Helper()
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, ts}
	f.must(name, unix.UtimesNanoAt(unix.AT_FDCWD, f.path(name), times, unix.AT_SYMLINK_NOFOLLOW))
}

func (f *filler) file(name string, data []byte) {
	f.t.Helper()
	f.must(name, os.WriteFile(f.path(name), data, 0o600))
	f.must(name, os.Chmod(f.path(name), 0o644)) // whatever the umask
	f.stamp(name)
}

func (f *filler) mkdir(name string) {
	f.t.Helper()
	f.must(name, os.Mkdir(f.path(name), 0o700))
	f.dirs = append(f.dirs, func() {
		f.must(name, os.Chmod(f.path(name), 0o755))
		f.stamp(name)
	})
}

// later is for what must come after all files are made. What was put off last
// is done first, so what a directory needs after mkdir's own is said before it.
func (f *filler) later(do func()) { f.dirs = append(f.dirs, do) }

func (f *filler) symlink(name, target string) {
	f.t.Helper()
	f.must(name, os.Symlink(target, f.path(name)))
	f.stamp(name)
}

func (f *filler) link(old, name string) {
	f.t.Helper()
	// os.Link does not follow a link either.
	f.must(name, os.Link(f.path(old), f.path(name)))
}

func (f *filler) xattr(name, attr string, value []byte) {
	f.t.Helper()
	f.must(name+" "+attr, unix.Lsetxattr(f.path(name), attr, value, 0))
}

func (f *filler) node(name string, mode uint32, dev uint64) {
	f.t.Helper()
	f.must(name, unix.Mknod(f.path(name), mode, int(dev)))
	f.must(name, unix.Fchmodat(unix.AT_FDCWD, f.path(name), mode&0o7777, 0))
	f.stamp(name)
}

// sparse makes a file of size bytes with data at the offsets given.
func (f *filler) sparse(name string, size int64, data map[int64][]byte) {
	f.t.Helper()
	w, err := os.Create(f.path(name))
	f.must(name, err)
	f.must(name, w.Truncate(size))
	for at, p := range data {
		_, err := w.WriteAt(p, at)
		f.must(name, err)
	}
	f.must(name, w.Chmod(0o644))
	f.must(name, w.Close())
	f.stamp(name)
}

func (f *filler) close() {
	f.t.Helper()
	for i := len(f.dirs) - 1; i >= 0; i-- {
		f.dirs[i]()
	}
	f.xattr(".", "user.root", []byte("the root's own"))
	f.must(".", unix.Chmod(f.dir, 0o2751))
	if os.Geteuid() == 0 {
		f.must(".", os.Chown(f.dir, 70, 71))
		f.must(".", unix.Chmod(f.dir, 0o3751)) // chown took the set-group-ID bit
	}
	f.mtime(".", unix.Timespec{Sec: 1_234_567_890, Nsec: 123_456_789})
}

// Bytes returns n random bytes, the same for the same seed.
func Bytes(seed string, n int) []byte {
	var key [32]byte
	copy(key[:], seed)
	p := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(p)
	return p
}

// Text returns n bytes that compress, the same for the same seed.
func Text(seed string, n int) []byte {
	line := seed + ": a line of a text, as long as lines of source code may be, and no two of them are alike: "
	p := make([]byte, 0, n+2*len(line))
	for i := int64(0); len(p) < n; i++ {
		p = append(p, line...)
		p = append(strconv.AppendInt(p, i*i*i, 16), '\n')
	}
	return p[:n]
}

// plain makes what needs no rights.
func (f *filler) plain() {
	f.mkdir("sizes")
	for _, n := range []int{0, 1, 511, 512, 513, 4095, 4096, 4097} {
		f.file(fmt.Sprintf("sizes/%d", n), Bytes("sizes", n))
	}
	// The edges of groups, boxes and chunks.
	for _, n := range []int{64 << 10, 256 << 10, 512 << 10, 1 << 20} {
		for _, d := range []int{-1, 0, 1} {
			f.file(fmt.Sprintf("sizes/%d", n+d), Text("edge", n+d))
		}
	}
	f.file("sizes/random", Bytes("random", 700_000))

	f.mkdir("names")
	for i, name := range []string{
		"new\nline", "\x01", "\xff\xfe not UTF-8 \x80", "-rf", "--", " leading", "trailing ", "...",
		"tab\t", "quo\"te's", "back\\slash", "*?[a]", "naïve-名前-🚢", "e\u0301", "\u00e9",
		strings.Repeat("n", 255), strings.Repeat("\xfe", 255), "\x7f", "$HOME", "%s", ".hidden",
		"lost+found", ".wh.whiteout",
	} {
		f.file("names/"+name, Text("names", 100+i))
	}
	f.mkdir("names/dir\n\xff")
	f.file("names/dir\n\xff/x", nil)

	// As strings a/x sorts after a-b and a.b; in walk order it may not.
	f.mkdir("order")
	f.mkdir("order/a")
	f.mkdir("order/a/b")
	for _, name := range []string{"a/x", "a/b/c", "a-b", "a.b", "ab", "a\x01", "a0", "A", "a/\x01", "a b"} {
		f.file("order/"+name, []byte(name))
	}
	f.mkdir("order/a.d")
	f.file("order/a.d/x", []byte("x"))

	f.mkdir("empty")
	f.mkdir("empty/er")
	f.mkdir("empty/er/est")

	f.mkdir("links")
	f.mkdir("links/sub")
	f.symlink("links/dangling", "nowhere/at all")
	f.symlink("links/absolute", "/etc/passwd")
	f.symlink("links/up", "..")
	f.symlink("links/self", "self")
	f.symlink("links/odd", "new\nline\xff")
	f.symlink("links/long", strings.Repeat("l/", 2000)+"l")
	f.symlink("links/to-dir", "sub")
	f.symlink("links/hard-1", "a hard-linked symlink")
	f.link("links/hard-1", "links/sub/hard-2")
	f.file("links/one", Text("linked", 5000))
	f.link("links/one", "links/sub/two")
	f.link("links/one", "names/three")
	f.file("links/sub/first", nil)
	f.link("links/sub/first", "links/a second")
	f.node("links/fifo-1", unix.S_IFIFO|0o640, 0)
	f.link("links/fifo-1", "links/fifo-2")

	f.mkdir("kinds")
	f.node("kinds/fifo", unix.S_IFIFO|0o622, 0)
	f.node("kinds/socket", unix.S_IFSOCK|0o755, 0)

	f.mkdir("modes")
	for _, mode := range []uint32{0o4755, 0o2755, 0o6711, 0o1644, 0o7777, 0o400, 0o777} {
		name := fmt.Sprintf("modes/%04o", mode)
		f.file(name, []byte(name))
		f.must(name, unix.Fchmodat(unix.AT_FDCWD, f.path(name), mode, 0))
	}
	for _, mode := range []uint32{0o1777, 0o3770, 0o500} {
		name := fmt.Sprintf("modes/dir-%04o", mode)
		f.later(func() { f.must(name, unix.Fchmodat(unix.AT_FDCWD, f.path(name), mode, 0)) })
		f.mkdir(name)
		f.file(name+"/inside", nil)
	}

	f.mkdir("times")
	for name, ts := range map[string]unix.Timespec{
		"before-1970": {Sec: -14_182_940, Nsec: 987_654_321},
		"just-before": {Sec: -1, Nsec: 999_999_999},
		"epoch":       {},
		"after-2038":  {Sec: 2_208_988_800, Nsec: 1},
		"after-2106":  {Sec: 4_300_000_000, Nsec: 999_999_999},
	} {
		f.file("times/"+name, nil)
		f.mtime("times/"+name, ts)
		f.symlink("times/link-"+name, name)
		f.mtime("times/link-"+name, ts)
		f.later(func() { f.mtime("times/dir-"+name, ts) })
		f.mkdir("times/dir-" + name)
	}

	f.mkdir("xattrs")
	f.file("xattrs/file", []byte("x"))
	f.xattr("xattrs/file", "user.empty", nil)
	f.xattr("xattrs/file", "user.binary", []byte("\x00\xff\n\x00"))
	f.xattr("xattrs/file", "user.long", Bytes("xattr", 1100))
	f.xattr("xattrs/file", "user.naïve name\n", []byte("v"))
	f.file("xattrs/many", nil)
	for i := range 20 {
		f.xattr("xattrs/many", fmt.Sprintf("user.%02d", i), Bytes("many", i*3))
	}
	f.mkdir("xattrs/dir")
	f.xattr("xattrs/dir", "user.dir", []byte("of a directory"))

	f.mkdir("acls")
	f.file("acls/file", nil)
	f.xattr("acls/file", "system.posix_acl_access", acl(1234))
	f.later(func() {
		// After the mode, for setting that sets the mask.
		f.xattr("acls/dir", "system.posix_acl_access", acl(4321))
		f.xattr("acls/dir", "system.posix_acl_default", acl(5678))
	})
	f.mkdir("acls/dir")

	mib := Bytes("data", 1<<20)
	f.mkdir("holes")
	f.sparse("holes/all", 3<<20, nil)
	f.sparse("holes/leading", 3<<20, map[int64][]byte{2 << 20: mib})
	f.sparse("holes/trailing", 3<<20, map[int64][]byte{0: mib})
	f.sparse("holes/middle", 3<<20, map[int64][]byte{0: mib, 2 << 20: mib})
	f.sparse("holes/both", 3<<20+17, map[int64][]byte{1 << 20: mib})
	f.sparse("holes/zeros-kept", 2<<20, map[int64][]byte{1 << 20: make([]byte, 64<<10)})
	f.sparse("holes/tiny", 100_000, map[int64][]byte{99_999: {1}})
	many := map[int64][]byte{}
	for i := range int64(200) {
		many[i<<16] = mib[:1+i*20]
	}
	f.sparse("holes/many", 200<<16, many)

	// Files that keep pages, by what they say: orlop cuts them into blocks.
	f.mkdir("pages")
	pages := func(n int) []byte { return append([]byte("SQLite format 3\x00"), Bytes("pages", n-16)...) }
	f.file("pages/one", pages(8<<10))
	f.file("pages/few", pages(100_001))
	f.file("pages/many", pages(3<<20))
	f.file("pages/zeros", append(pages(4<<10), make([]byte, 2<<20)...))
	f.sparse("pages/holes", 3<<20+17, map[int64][]byte{
		0: pages(4096), 36 << 10: mib[:20<<10], 60 << 10: mib[:40<<10], 1<<20 + 4096: mib[:1<<20-8192], 2<<20 + 8192: mib[:1],
	})
	f.sparse("pages/many-holes", 300<<13, func() map[int64][]byte {
		data := map[int64][]byte{0: pages(4096)}
		for i := int64(1); i < 300; i++ {
			data[i<<13] = mib[i : i+1+i*12]
		}
		return data
	}())

	f.mkdir("same")
	for i := range 12 {
		f.file(fmt.Sprintf("same/%d", i), Text("again", 40_000))
	}
	f.mkdir("many")
	for i := range 150 {
		f.file(fmt.Sprintf("many/%d", i), Text(fmt.Sprint("many", i), i*37))
	}
}

// acl returns an access control list in the kernel's form (linux/
// posix_acl_xattr.h): user::rwx, user:uid:r-x, group::r--, mask::rwx, other::r--.
func acl(uid uint32) []byte {
	const none = ^uint32(0)
	p := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 7, none}, {2, 5, uid}, {4, 4, none}, {0x10, 7, none}, {0x20, 4, none}} {
		p = binary.LittleEndian.AppendUint16(p, e.tag)
		p = binary.LittleEndian.AppendUint16(p, e.perm)
		p = binary.LittleEndian.AppendUint32(p, e.id)
	}
	return p
}

// capability returns file capabilities, version 2 (linux/capability.h), with
// permitted capabilities 0 to 31 and the effective bit.
func capability(permitted uint32) []byte {
	p := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	p = binary.LittleEndian.AppendUint32(p, permitted)
	return append(p, make([]byte, 12)...)
}

// odd makes what needs root.
func (f *filler) odd() {
	f.mkdir("root")
	f.node("root/null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3))
	f.node("root/block", unix.S_IFBLK|0o660, unix.Mkdev(259, 70_000))
	f.node("root/char-0-0", unix.S_IFCHR, 0)
	f.node("root/char-big", unix.S_IFCHR|0o600, unix.Mkdev(4095, 1<<20-1))
	f.node("root/owned-fifo", unix.S_IFIFO|0o600, 0)
	f.symlink("root/link", "owned by another")

	f.file("root/none", []byte("mode 0000"))
	f.must("root/none", os.Chmod(f.path("root/none"), 0))
	f.later(func() { f.must("root/shut", os.Chmod(f.path("root/shut"), 0)) })
	f.mkdir("root/shut")
	f.file("root/shut/inside", []byte("of a directory of mode 0000"))

	f.file("root/ping", []byte("file capabilities"))
	f.file("root/suid", []byte("set-user-ID of another"))
	f.later(func() { f.chown("root/dir", 12_345, 54_321, 0o2775) })
	f.mkdir("root/dir")
	f.chown("root/suid", 1000, 1001, 0o6755)
	f.chown("root/owned-fifo", 33, 33, 0o600)
	f.file("root/highest", nil)
	f.chown("root/highest", 4_294_967_294, 2_147_483_648, 0o640)
	f.must("root/link", os.Lchown(f.path("root/link"), 65_534, 100_000))
	// Chown takes capabilities away.
	f.chown("root/ping", 0, 13, 0o755)
	f.xattr("root/ping", "security.capability", capability(1<<13))

	f.sparse("root/1TiB", Sparse, map[int64][]byte{Sparse / 3 &^ 4095: Bytes("needle", 1<<20)})
}

func (f *filler) chown(name string, uid, gid int, mode uint32) {
	f.t.Helper()
	f.must(name, os.Lchown(f.path(name), uid, gid))
	f.must(name, unix.Fchmodat(unix.AT_FDCWD, f.path(name), mode, 0))
}

// big makes what takes time and space.
func (f *filler) big() {
	f.mkdir("big")
	for _, n := range []int{2 << 20, 4 << 20} {
		for _, d := range []int{-1, 0, 1} {
			f.file(fmt.Sprintf("big/%d", n+d), Bytes("big", n+d))
		}
	}
	f.file("big/text", Text("big", 5<<20))
	f.file("big/random", Bytes("other", 6<<20))
	f.file("big/zeros", make([]byte, 5<<20))
	f.mkdir("big/many")
	for i := range 2000 {
		f.file(fmt.Sprintf("big/many/%d", i), Text(fmt.Sprint("small", i), i%1500))
	}
	f.mkdir("big/deep")
	f.later(f.deep)
}

// deep makes the chain, and a file at its end. It runs before its directory
// gets its time.
func (f *filler) deep() {
	const name = "big/deep"
	fd, err := unix.Open(f.path(name), unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	f.must(name, err)
	defer func() { _ = unix.Close(fd) }()
	step := func(to string) {
		next, err := unix.Openat(fd, to, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		f.must(name, err)
		f.must(name, unix.Close(fd))
		fd = next
	}
	for range Deep {
		f.must(name, unix.Mkdirat(fd, "d", 0o755))
		step("d")
	}
	end, err := unix.Openat(fd, "end", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	f.must(name, err)
	_, err = unix.Write(end, []byte("four thousand down"))
	f.must(name, errors.Join(err, unix.Fchmod(end, 0o644), unix.Close(end)))
	stamp := func(entry string, i int) {
		ts := unix.NsecToTimespec(time.Unix(1_600_000_000+int64(i), int64(i)).UnixNano())
		f.must(name, unix.UtimesNanoAt(fd, entry, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
	stamp("end", Deep)
	for i := Deep - 1; i >= 0; i-- {
		step("..")
		f.must(name, unix.Fchmodat(fd, "d", 0o755, 0)) // whatever the umask
		stamp("d", i)
	}
}

// RemoveAll removes what is in dir, however deep it is and whatever its modes,
// and leaves dir. It holds two descriptors.
func RemoveAll(t testing.TB, dir string) {
	t.Helper()
	if err := removeContents(dir); err != nil {
		t.Errorf("remove %s: %v", filepath.Base(dir), err)
	}
}

func removeContents(dir string) error {
	fd, err := openDir(unix.AT_FDCWD, dir)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	up := func(to string) error {
		next, err := openDir(fd, to)
		if err != nil {
			return fmt.Errorf("open %q: %w", to, err)
		}
		_ = unix.Close(fd)
		fd = next
		return nil
	}
	type level struct {
		name string   // as its parent knows it
		dirs []string // still to be removed
	}
	dirs, err := removeFiles(fd)
	if err != nil {
		return err
	}
	stack := []level{{dirs: dirs}}
	for {
		top := &stack[len(stack)-1]
		if n := len(top.dirs); n > 0 {
			name := top.dirs[n-1]
			top.dirs = top.dirs[:n-1]
			if err := up(name); err != nil {
				return err
			}
			dirs, err := removeFiles(fd)
			if err != nil {
				return err
			}
			stack = append(stack, level{name, dirs})
			continue
		}
		if len(stack) == 1 {
			return nil
		}
		if err := up(".."); err != nil {
			return err
		}
		if err := unix.Unlinkat(fd, top.name, unix.AT_REMOVEDIR); err != nil {
			return fmt.Errorf("remove directory %q: %w", top.name, err)
		}
		stack = stack[:len(stack)-1]
	}
}

// removeFiles removes what is no directory in fd and returns the names of what
// is.
func removeFiles(fd int) (dirs []string, err error) {
	if err := unix.Fchmod(fd, 0o700); err != nil {
		return nil, err
	}
	names, err := readNames(fd)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		err := unix.Unlinkat(fd, name, 0)
		if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
			dirs = append(dirs, name)
		} else if err != nil {
			return nil, fmt.Errorf("remove %q: %w", name, err)
		}
	}
	return dirs, nil
}

// openDir opens a directory for reading, also one whose mode forbids it.
func openDir(at int, name string) (int, error) {
	const flags = unix.O_DIRECTORY | unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(at, name, flags, 0)
	if errors.Is(err, unix.EACCES) && unix.Fchmodat(at, name, 0o700, 0) == nil {
		return unix.Openat(at, name, flags, 0)
	}
	return fd, err
}
