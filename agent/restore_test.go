package agent

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"orlop/id"
	"orlop/snapshot"
)

// local returns a client of an agent in this process.
func local(t testing.TB) *Client {
	t.Helper()
	c, err := Local(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// A filler restores entries into a directory and gathers problems.
type filler struct {
	*Restore
	t        testing.TB
	problems []string
}

func fill(t testing.TB, c *Client, root string) *filler {
	t.Helper()
	f := &filler{t: t}
	r, err := c.Restore(t.Context(), RestoreRequest{Root: root, Problem: func(_ uint64, path, what string) {
		f.problems = append(f.problems, path+": "+what)
	}})
	if err != nil {
		t.Fatal(err)
	}
	f.Restore = r
	return f
}

// memory returns a file system of its own, in memory.
func memory(t testing.TB, size string) string {
	t.Helper()
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	return root
}

var someTime = snapshot.Time{Sec: 1_600_000_000, Nsec: 123_456_789}

// entry makes an entry of the current user.
func entry(kind snapshot.Type, path string, mode uint32) *snapshot.Entry {
	e := &snapshot.Entry{Type: kind, Mode: mode, MTime: someTime, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	e.Dir, e.Name = snapshot.SplitPath(path)
	return e
}

// content gives e a content of n bytes, which is yet to be written.
func content(e *snapshot.Entry, n int) *snapshot.Entry {
	e.Size = uint64(n)
	for n > 0 {
		k := min(n, snapshot.MaxData)
		e.Content.Refs = append(e.Content.Refs, snapshot.Ref{Name: [32]byte{1}, Length: uint64(k)})
		n -= k
	}
	return e
}

func inline(e *snapshot.Entry, data string) *snapshot.Entry {
	e.Inline, e.Size = []byte(data), uint64(len(data))
	return e
}

// put adds e with its content, and finishes it if it is a file.
func (f *filler) put(e *snapshot.Entry, data ...[]byte) {
	f.t.Helper()
	n, err := f.Add(e, nil, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	off := int64(0)
	for _, p := range data {
		if err := f.Write(n, off, p); err != nil {
			f.t.Fatal(err)
		}
		off += int64(len(p))
	}
	if e.Type == snapshot.File {
		if err := f.Finish(n); err != nil {
			f.t.Fatal(err)
		}
	}
}

// finish ends the restore and asserts its problems.
func (f *filler) finish(problems ...string) RestoreTotals {
	f.t.Helper()
	totals, err := f.End()
	if err != nil {
		f.t.Fatal(err)
	}
	if diff := cmp.Diff(problems, f.problems); diff != "" {
		f.t.Errorf("problems (-want +got):\n%s", diff)
	}
	if totals.Problems != uint64(len(f.problems)) {
		f.t.Errorf("%d problems in the totals, %d were told", totals.Problems, len(f.problems))
	}
	return totals
}

// seen is what lstat and the xattr calls tell of a path, as an entry.
func seen(t testing.TB, root, path string) *snapshot.Entry {
	t.Helper()
	full := filepath.Join(root, path)
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	e := &snapshot.Entry{
		Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
		MTime: snapshot.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)},
	}
	e.Dir, e.Name = snapshot.SplitPath(path)
	for k := snapshot.File; k <= snapshot.Socket; k++ {
		if st.Mode&unix.S_IFMT == kindOf(k) {
			e.Type = k
		}
	}
	switch e.Type {
	case snapshot.File:
		e.Size = uint64(st.Size)
	case snapshot.Symlink:
		e.Target, _ = os.Readlink(full)
	case snapshot.Char, snapshot.Block:
		e.Rdev = uint64(unix.Major(st.Rdev))<<32 | uint64(unix.Minor(st.Rdev))
	}
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(full, buf)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name != "" {
			v := make([]byte, 64<<10)
			n, err := unix.Lgetxattr(full, name, v)
			if err != nil {
				t.Fatalf("%s: %s: %v", path, name, err)
			}
			e.Xattrs = append(e.Xattrs, snapshot.Xattr{Name: name, Value: v[:n]})
		}
	}
	slices.SortFunc(e.Xattrs, func(a, b snapshot.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return e
}

// same asserts that the path of want has its type, metadata and xattrs.
func same(t testing.TB, root string, want *snapshot.Entry) {
	t.Helper()
	w := *want
	w.Inline, w.Content, w.Map, w.Extents, w.Sparse, w.Group = nil, snapshot.Content{}, snapshot.Content{}, nil, false, [16]byte{}
	if w.Type == snapshot.Symlink {
		w.Mode = 0o777
	}
	if diff := cmp.Diff(&w, seen(t, root, want.Path())); diff != "" {
		t.Errorf("%s (-want +got):\n%s", want.Path(), diff)
	}
}

// acl is a POSIX ACL whose mask, and what user 1234 may do, is bits.
func acl(bits byte) []byte {
	return []byte{
		2, 0, 0, 0,
		1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff,
		2, 0, bits, 0, 0xd2, 4, 0, 0,
		4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff,
		0x10, 0, bits, 0, 0xff, 0xff, 0xff, 0xff,
		0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
	}
}

// ping is the file capability cap_net_raw=ep.
var ping = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// oddities is an entry of every kind, each with something odd about it. They
// need no Write.
func oddities() []*snapshot.Entry {
	user := snapshot.Xattr{Name: "user.colour", Value: []byte("blue")}
	odd := func(e *snapshot.Entry, sec int64, set ...snapshot.Xattr) *snapshot.Entry {
		e.UID, e.GID = 1234, 5678
		e.MTime = snapshot.Time{Sec: sec, Nsec: 7}
		e.Xattrs = set
		return e
	}
	device := func(kind snapshot.Type, path string, mode uint32, rdev uint64) *snapshot.Entry {
		e := entry(kind, path, mode)
		e.Rdev = rdev
		return e
	}
	link := entry(snapshot.Symlink, "dir/sub/link", 0o777)
	link.Target = "/etc/passwd"
	return []*snapshot.Entry{
		odd(entry(snapshot.Dir, "", 0o1751), 1, user),
		odd(device(snapshot.Block, "block", 0o660, 259<<32|70000), 2),
		odd(inline(entry(snapshot.File, "capable", 0o755), "x"), 3, snapshot.Xattr{Name: "security.capability", Value: ping}, user),
		odd(device(snapshot.Char, "char", 0o4620, 1<<32|3), 4),
		odd(entry(snapshot.Dir, "dir", 0o6000), -5, snapshot.Xattr{Name: "system.posix_acl_default", Value: acl(6)}),
		odd(entry(snapshot.Fifo, "fifo", 0o1640), 6),
		odd(inline(entry(snapshot.File, "future", 0), "in 2100"), 4_102_444_800),
		odd(inline(entry(snapshot.File, "listed", 0o6660), "acl"), 7, snapshot.Xattr{Name: "system.posix_acl_access", Value: acl(6)}),
		odd(inline(entry(snapshot.File, "setuid", 0o6755), "program"), 8),
		odd(entry(snapshot.Socket, "socket", 0o755), 9),
		odd(device(snapshot.Char, "whiteout", 0, 0), 10),
		odd(entry(snapshot.File, "\xff\n;name", 0o600), 11),
		odd(inline(entry(snapshot.File, "dir/no acl", 0o640), "none inherited"), 12),
		odd(entry(snapshot.Fifo, "dir/no acl either", 0o640), 13),
		odd(entry(snapshot.Dir, "dir/sub", 0o2755), 14),
		odd(link, -2_000_000_000),
	}
}

var oddTotals = RestoreTotals{Files: 6, Dirs: 3, Others: 7, Bytes: 1 + 7 + 3 + 7 + 14}

func TestEachKindOfEntryComesBack(t *testing.T) {
	root := t.TempDir()
	r := fill(t, local(t), root)
	for _, e := range oddities() {
		r.put(e)
	}
	if totals := r.finish(); totals != oddTotals {
		t.Errorf("totals %+v, want %+v", totals, oddTotals)
	}
	for _, e := range oddities() {
		same(t, root, e)
	}
}

func TestContentIsWrittenInAnyOrderFromAnyGoroutine(t *testing.T) {
	root := t.TempDir()
	r := fill(t, local(t), root)
	const files, size = 12, 3<<20 + 17
	var all sync.WaitGroup
	for i := range files {
		n, err := r.Add(content(entry(snapshot.File, fmt.Sprintf("f%02d", i), 0o644), size), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			for _, k := range rand.Perm(7) {
				off := k * 500_000
				if err := r.Write(n, int64(off), pattern(i, off, min(500_000, size-off))); err != nil {
					t.Error(err)
				}
			}
			if err := r.Finish(n); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := r.finish(); got.Bytes != files*size || got.Files != files {
		t.Errorf("%+v", got)
	}
	for i := range files {
		got, err := os.ReadFile(filepath.Join(root, fmt.Sprintf("f%02d", i)))
		if err != nil || !bytes.Equal(got, pattern(i, 0, size)) {
			t.Errorf("file %d: other bytes, or %v", i, err)
		}
	}
}

// pattern is bytes off to off+n of a stream that depends on seed.
func pattern(seed, off, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		k := off + i
		p[i] = byte(k*7 + k>>8 + k>>16 + seed*31)
	}
	return p
}

func TestHardLinksShareAnInode(t *testing.T) {
	root := t.TempDir()
	r := fill(t, local(t), root)
	file := content(entry(snapshot.File, "a", 0o4755), 5)
	file.Group = [16]byte{1}
	link := entry(snapshot.Symlink, "b", 0o777)
	link.Target, link.Group = "nowhere", [16]byte{2}
	fifo := entry(snapshot.Fifo, "c", 0o600)
	fifo.Group = [16]byte{3}
	n, err := r.Add(file, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.put(link)
	r.put(fifo)
	r.put(entry(snapshot.Dir, "d", 0o500))
	for _, first := range []*snapshot.Entry{file, link, fifo} {
		e := *first
		e.Dir, e.Name = "d", "z"+first.Name
		if _, err := r.Link(&e, first.Name); err != nil {
			t.Fatal(err)
		}
	}
	// The file is finished after it was linked.
	if err := errors.Join(r.Write(n, 0, []byte("hello")), r.Finish(n)); err != nil {
		t.Fatal(err)
	}
	if got := r.finish(); got.Links != 3 || got.Files != 1 || got.Others != 2 || got.Dirs != 1 {
		t.Errorf("%+v", got)
	}
	for _, name := range []string{"a", "b", "c"} {
		var a, b unix.Stat_t
		if err := errors.Join(unix.Lstat(root+"/"+name, &a), unix.Lstat(root+"/d/z"+name, &b)); err != nil {
			t.Fatal(err)
		}
		if a.Ino != b.Ino || a.Nlink != 2 {
			t.Errorf("%s: inodes %d and %d, %d links", name, a.Ino, b.Ino, a.Nlink)
		}
	}
	same(t, root, file)
	same(t, root, link)
	same(t, root, entry(snapshot.Dir, "d", 0o500))
}

func TestHolesAreLeft(t *testing.T) {
	root := t.TempDir()
	r := fill(t, local(t), root)
	big := content(entry(snapshot.File, "sparse", 0o644), 1<<20)
	big.Size, big.Sparse = 1<<40, true
	big.Extents = []snapshot.Extent{{Offset: 4096, Length: 1 << 19}, {Offset: 1 << 39, Length: 1 << 19}}
	n, err := r.Add(big, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range big.Extents {
		if err := r.Write(n, int64(x.Offset), pattern(1, int(x.Offset), int(x.Length))); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Finish(n); err != nil {
		t.Fatal(err)
	}
	// Inline content in extents that are a stream of their own.
	tiny := inline(entry(snapshot.File, "tiny", 0o644), "ab")
	tiny.Size, tiny.Sparse, tiny.Map = 1<<20, true, snapshot.Content{Refs: []snapshot.Ref{{Name: [32]byte{1}, Length: 9}}}
	n, err = r.Add(tiny, nil, []snapshot.Extent{{Offset: 5, Length: 1}, {Offset: 70000, Length: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Finish(n); err != nil {
		t.Fatal(err)
	}
	hole := entry(snapshot.File, "void", 0o644)
	hole.Size, hole.Sparse = 1<<30, true
	r.put(hole)
	r.finish()
	for _, e := range []*snapshot.Entry{big, tiny, hole} {
		same(t, root, e)
	}
	f, err := os.Open(root + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Blocks > 2048+16 {
		t.Errorf("%d blocks, %v", st.Blocks, err)
	}
	for _, x := range big.Extents {
		got := make([]byte, x.Length)
		if _, err := f.ReadAt(got, int64(x.Offset)); err != nil || !bytes.Equal(got, pattern(1, int(x.Offset), int(x.Length))) {
			t.Errorf("other bytes at %d, or %v", x.Offset, err)
		}
	}
	got, _ := os.ReadFile(root + "/tiny")
	if len(got) != 1<<20 || got[5] != 'a' || got[70000] != 'b' {
		t.Error("tiny has other bytes")
	}
}

func TestManyExtentsAndXattrsCross(t *testing.T) {
	// ext4 keeps one block of xattrs for a file; tmpfs as many as one likes.
	root := memory(t, "8m")
	const n = 200_000
	var extents []snapshot.Extent
	for i := range uint64(n) {
		extents = append(extents, snapshot.Extent{Offset: i << 30, Length: 1})
	}
	e := content(entry(snapshot.File, "e", 0o644), n)
	e.Size, e.Sparse = n<<30, true
	e.Map = snapshot.Content{Refs: []snapshot.Ref{{Name: [32]byte{1}, Length: 1 << 20}}}
	e.XattrSet = snapshot.Content{Refs: []snapshot.Ref{{Name: [32]byte{1}, Length: 1 << 19}}}
	var xattrs []snapshot.Xattr
	for i := range 12 {
		xattrs = append(xattrs, snapshot.Xattr{Name: fmt.Sprintf("user.%02d", i), Value: pattern(i, 0, 60_000)})
	}
	r := fill(t, local(t), root)
	no, err := r.Add(e, xattrs, extents)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Write(no, 199_999<<30, []byte("x")), r.Finish(no)); err != nil {
		t.Fatal(err)
	}
	f := inline(entry(snapshot.File, "f", 0o644), "f")
	f.XattrSet = e.XattrSet
	if no, err = r.Add(f, xattrs, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.Finish(no); err != nil {
		t.Fatal(err)
	}
	d := entry(snapshot.Dir, "g", 0o755)
	d.XattrSet = e.XattrSet
	if _, err := r.Add(d, xattrs, nil); err != nil {
		t.Fatal(err)
	}
	r.finish("e: 1 of 200000 bytes of content were written")
	for _, path := range []string{"f", "g"} {
		if got := seen(t, root, path).Xattrs; !reflect.DeepEqual(got, xattrs) {
			t.Errorf("%s has %d other xattrs", path, len(got))
		}
	}
}

func TestWhatCannotBeKeptIsNamedAndTheRestGoesOn(t *testing.T) {
	root := t.TempDir()
	if err := errors.Join(
		os.Symlink("/etc", root+"/inway"),
		os.WriteFile(root+"/taken", []byte("mine"), 0o600),
		os.Mkdir(root+"/there", 0o700),
	); err != nil {
		t.Fatal(err)
	}
	r := fill(t, local(t), root)
	r.put(entry(snapshot.Dir, "inway", 0o755))
	late := inline(entry(snapshot.File, "late", 0o644), "x")
	late.MTime = snapshot.Time{Sec: 20_000_000_000, Nsec: 5}
	r.put(late)
	odd := inline(entry(snapshot.File, "odd", 0o640), "y")
	odd.Xattrs = []snapshot.Xattr{{Name: "bogus.x", Value: []byte("1")}, {Name: "user.ok", Value: []byte("1")}}
	r.put(odd)
	r.put(inline(entry(snapshot.File, "taken", 0o644), "theirs"))
	r.put(entry(snapshot.Dir, "there", 0o751))
	r.put(inline(entry(snapshot.File, "inway/passwd", 0o644), "evil"))
	if _, err := r.End(); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"inway: make directory":        "file exists",
		"late: modification time":      "became 15032385535.000000000",
		`odd: xattr "bogus.x"`:         "operation not supported",
		"taken: create":                "file exists",
		"inway/passwd: open directory": "",
	}
	for start, end := range want {
		if !slices.ContainsFunc(r.problems, func(p string) bool { return strings.HasPrefix(p, start) && strings.Contains(p, end) }) {
			t.Errorf("no problem %q ... %q", start, end)
		}
	}
	if len(r.problems) != len(want) {
		t.Errorf("problems %q", r.problems)
	}
	odd.Xattrs = odd.Xattrs[1:]
	same(t, root, odd)
	same(t, root, entry(snapshot.Dir, "there", 0o751))
	if got, _ := os.ReadFile(root + "/taken"); string(got) != "mine" {
		t.Errorf("what was there is now %q", got)
	}
}

func TestADiscardedFileIsGoneUnderAllItsNames(t *testing.T) {
	root := t.TempDir()
	r := fill(t, local(t), root)
	e := content(entry(snapshot.File, "a", 0o644), 100)
	e.Group = [16]byte{7}
	n, err := r.Add(e, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, c := *e, *e
	b.Name, c.Name = "b", "c"
	if _, err := r.Link(&b, "a"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Write(n, 0, []byte("half")), r.Discard(n)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Link(&c, "a"); err != nil {
		t.Fatal(err)
	}
	r.put(inline(entry(snapshot.File, "d", 0o644), "whole"))
	if got := r.finish(`b: it is the same file as "a", which could not be restored`, `c: link to "a": it could not be made`); got.Files != 1 || got.Links != 0 {
		t.Errorf("%+v", got)
	}
	names, _ := os.ReadDir(root)
	if len(names) != 1 || names[0].Name() != "d" {
		t.Errorf("left: %v", names)
	}
}

func TestMissingContentIsAProblem(t *testing.T) {
	root := t.TempDir()
	r := fill(t, local(t), root)
	n, err := r.Add(content(entry(snapshot.File, "f", 0o644), 20), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Write(n, 3, []byte("twelve bytes")), r.Finish(n)); err != nil {
		t.Fatal(err)
	}
	r.finish("f: 12 of 20 bytes of content were written")
	if names, _ := os.ReadDir(root); len(names) != 0 {
		t.Errorf("half a file was left: %v", names)
	}
}

func TestAFullDiskEndsTheRestoreAndNamesTheFile(t *testing.T) {
	root := memory(t, "4m")
	c := local(t)
	r := fill(t, c, root)
	var failed error
	for i := 0; i < 10_000 && failed == nil; i++ {
		var n uint64
		if n, failed = r.Add(content(entry(snapshot.File, fmt.Sprintf("f%04d", i), 0o644), 100_000), nil, nil); failed == nil {
			failed = errors.Join(r.Write(n, 0, make([]byte, 100_000)), r.Finish(n))
		}
	}
	if !errors.Is(failed, ErrFull) {
		t.Errorf("went on with %v", failed)
	}
	totals, err := r.End()
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), "f00") {
		t.Errorf("ended with %v", err)
	}
	if len(r.problems) == 0 || len(r.problems) > fileWorkers || totals.Files < 20 || totals.Files > 42 {
		t.Errorf("%+v, %q", totals, r.problems)
	}
	// The stream is in order: the agent is good for another restore.
	r = fill(t, c, t.TempDir())
	r.put(inline(entry(snapshot.File, "f", 0o644), "x"))
	r.finish()
}

func TestAFileThatIsNotFinishedIsAnError(t *testing.T) {
	c := local(t)
	r := fill(t, c, t.TempDir())
	if _, err := r.Add(content(entry(snapshot.File, "f", 0o644), 20), nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.End(); err == nil {
		t.Error("ended well")
	}
	if _, err := r.End(); err == nil {
		t.Error("ended twice")
	}
	fill(t, c, t.TempDir()).finish()
}

func TestTreesAreDeep(t *testing.T) {
	const depth = 4000
	root := memory(t, "64m")
	r := fill(t, local(t), root)
	path := ""
	r.put(entry(snapshot.Dir, "", 0o755))
	for range depth {
		path = strings.TrimPrefix(path+"/d", "/")
		r.put(entry(snapshot.Dir, path, 0o500))
	}
	r.put(inline(entry(snapshot.File, path+"/f", 0o400), "deep"))
	if got := r.finish(); got.Dirs != depth+1 || got.Files != 1 {
		t.Errorf("%+v", got)
	}
	// Every level, looked at on the way down.
	at, err := unix.Open(root, unix.O_PATH, 0)
	for i := 0; i < depth && err == nil; i++ {
		var st unix.Stat_t
		var next int
		if next, err = unix.Openat(at, "d", unix.O_PATH, 0); err == nil {
			err = unix.Fstat(next, &st)
		}
		_ = unix.Close(at)
		at = next
		if err == nil && (st.Mode&0o7777 != 0o500 || st.Mtim.Sec != someTime.Sec) {
			t.Fatalf("level %d: mode %o, time %d", i, st.Mode, st.Mtim.Sec)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(at)
}

func TestMoreFilesMayBeUnfinishedThanOpen(t *testing.T) {
	const files = 2000
	root := t.TempDir()
	r := fill(t, local(t), root)
	ns := make([]uint64, files)
	for i := range ns {
		var err error
		if ns[i], err = r.Add(content(entry(snapshot.File, fmt.Sprintf("%04d", i), 0o444), 20), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	for half := range int64(2) {
		for i, n := range ns {
			if err := r.Write(n, half*10, fmt.Appendf(nil, "%06d%4d", i, half)); err != nil {
				t.Fatal(err)
			}
		}
	}
	open := openBelow(t, root)
	for _, n := range ns {
		if err := r.Finish(n); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.finish(); got.Files != files {
		t.Errorf("%+v", got)
	}
	if open > maxFiles+3*fileWorkers { // each may be about to open one again, by way of two others
		t.Errorf("%d files are open at once", open)
	}
	for i := range ns {
		got, err := os.ReadFile(fmt.Sprintf("%s/%04d", root, i))
		if want := fmt.Sprintf("%06d%4d%06d%4d", i, 0, i, 1); string(got) != want {
			t.Fatalf("file %d is %q, %v", i, got, err)
		}
	}
	same(t, root, content(entry(snapshot.File, "0000", 0o444), 20))
}

// openBelow counts this process's descriptors of what is in root.
func openBelow(t testing.TB, root string) (n int) {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.HasPrefix(to, root+"/") {
			n++
		}
	}
	return n
}

func TestARestoreNeedsNoPrivilege(t *testing.T) {
	root := os.Getenv("ORLOP_TEST_ROOT")
	if root == "" {
		again(t, "^TestARestoreNeedsNoPrivilege$", 4321)
		return
	}
	r := fill(t, local(t), root)
	r.put(entry(snapshot.Dir, "closed", 0))
	first := inline(entry(snapshot.File, "first", 0o400), "one")
	first.Group = [16]byte{1}
	r.put(first)
	second := *first
	second.Name = "fourth"
	if _, err := r.Link(&second, "first"); err != nil {
		t.Fatal(err)
	}
	r.put(inline(entry(snapshot.File, "own", 0o4755), "mine"))
	theirs := inline(entry(snapshot.File, "theirs", 0o6755), "not mine")
	theirs.UID, theirs.GID = 0, 0
	r.put(theirs)
	r.put(inline(entry(snapshot.File, "closed/f", 0o000), "x"))
	r.finish("theirs: owner 0:0: operation not permitted; restored without setuid and setgid")
	same(t, root, entry(snapshot.Dir, "closed", 0))
	same(t, root, inline(entry(snapshot.File, "own", 0o4755), "mine"))
	same(t, root, &second)
	theirs.UID, theirs.GID, theirs.Mode = 4321, 4321, 0o755
	same(t, root, theirs)
}

// again runs a test in a process of another user, with ORLOP_TEST_ROOT set to
// a directory it can write to.
func again(t *testing.T, test string, user uint32) {
	base, err := os.MkdirTemp("", "orlop")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	bin, root := filepath.Join(base, "test"), filepath.Join(base, "root")
	data, err := os.ReadFile("/proc/self/exe")
	if err := errors.Join(err,
		os.WriteFile(bin, data, 0o755), os.Mkdir(root, 0o755), os.Chown(root, int(user), int(user)), os.Chmod(base, 0o755),
	); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, "-test.run", test)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "ORLOP_TEST_ROOT="+root)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestEmptySeesPastLostAndFound(t *testing.T) {
	c := local(t)
	for _, tt := range []struct {
		holds string
		want  bool
	}{
		{"", true},
		{"lost+found/", true},
		{"lost+found/#1", false},
		{"lost+found", false},
		{".hidden", false},
		{"dir/", false},
	} {
		root := t.TempDir()
		dir, file := filepath.Split(tt.holds)
		err := os.MkdirAll(filepath.Join(root, dir), 0o700)
		if err == nil && file != "" {
			err = os.WriteFile(filepath.Join(root, tt.holds), nil, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, err := c.Look(t.Context(), root); got.Empty != tt.want || err != nil {
			t.Errorf("with %q: %v, %v", tt.holds, got, err)
		}
	}
	if _, err := c.Look(t.Context(), "/nonexistent"); err == nil {
		t.Error("a directory that is not there is empty")
	}
	if _, err := c.Restore(t.Context(), RestoreRequest{Root: "/nonexistent"}); err == nil {
		t.Error("a directory that is not there is restored to")
	}
}

// All that a file may have of xattrs is more than a frame holds.
func TestAFileMayHaveMoreXattrsThanAFrameHolds(t *testing.T) {
	var set []snapshot.Xattr
	for i := range 240 {
		set = append(set, snapshot.Xattr{Name: fmt.Sprintf("user.%03d", i), Value: bytes.Repeat([]byte{byte(i)}, 65_536)})
	}
	r := fill(t, local(t), t.TempDir())
	e := content(entry(snapshot.File, "f", 0o644), 5)
	half := uint64(len(snapshot.EncodeXattrs(set)) / 2)
	e.XattrSet.Refs = []snapshot.Ref{{Name: id.Blob{1}, Length: half}, {Name: id.Blob{2}, Length: half}}
	n, err := r.Add(e, set, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Write(n, 0, []byte("gone?")), r.Discard(n)); err != nil {
		t.Fatal(err)
	}
	r.finish()
}
