package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"orlop/snapshot"
)

// walked returns what a walk of root tells, as "path" or "path: problem".
func walked(t rapid.TB, root string, change func(w *walker)) (stats []Stat, problems []string) {
	t.Helper()
	d, err := openDirs(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	w := newWalker(d, func(s *Stat) error {
		stats = append(stats, *s)
		return nil
	}, func(path, reason string) error {
		problems = append(problems, path+": "+reason)
		return nil
	})
	if change != nil {
		change(w)
	}
	if err := w.run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if w.kept != 0 || w.marked != 0 {
		t.Errorf("%d bytes and %d marks are still held", w.kept, w.marked)
	}
	return stats, problems
}

func paths(stats []Stat) []string {
	var all []string
	for _, s := range stats {
		all = append(all, s.Path())
	}
	return all
}

// The walk tells of everything once and in the order of snapshot.Compare,
// however little it may keep in memory.
func TestTheWalkIsInOrder(t *testing.T) {
	top := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		root := filepath.Join(top, fmt.Sprint(n))
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(root)
		type place struct{ dir, name string }
		want := []place{{}}
		dirs := []string{""}
		// Names around '/' in the order of bytes, and prefixes of each other.
		names := []string{"a", "b", "a b", "a-b", "a.b", "a0", "ab", "\x01", "\xff", "aa", "-", "0"}
		for range rapid.IntRange(0, 60).Draw(t, "nodes") {
			dir := rapid.SampledFrom(dirs).Draw(t, "dir")
			name := rapid.SampledFrom(names).Draw(t, "name")
			p := place{dir, name}
			if slices.Contains(want, p) {
				continue
			}
			want = append(want, p)
			full := filepath.Join(root, dir, name)
			if rapid.Bool().Draw(t, "a directory") {
				if err := os.Mkdir(full, 0o755); err != nil {
					t.Fatal(err)
				}
				dirs = append(dirs, join(dir, name))
			} else if err := os.WriteFile(full, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		slices.SortFunc(want, func(a, b place) int { return snapshot.Compare(a.dir, a.name, b.dir, b.name) })
		page := rapid.IntRange(1, 400).Draw(t, "page")
		keep := rapid.IntRange(0, 400).Draw(t, "keep")
		fds := rapid.IntRange(1, 4).Draw(t, "directories")
		buf := rapid.SampledFrom([]int{320, 1024, 64 << 10}).Draw(t, "buffer")
		step := rapid.Bool().Draw(t, "without openat2")
		got, problems := walked(t, root, func(w *walker) {
			w.page, w.keep, w.buf, w.dirs.max = page, keep, make([]byte, buf), fds
			w.dirs.noOpenat2.Store(step)
		})
		var places []place
		for _, s := range got {
			places = append(places, place{s.Dir, s.Name})
		}
		if !slices.Equal(places, want) || len(problems) > 0 {
			t.Errorf("got  %q\nwant %q\nproblems %q", places, want, problems)
		}
	})
}

func TestABigDirectoryIsReadInPasses(t *testing.T) {
	root := t.TempDir()
	const files, dirs = 3000, 300
	var want []string
	for i := range files {
		name := fmt.Sprintf("%x-", i*7919%files)
		want = append(want, name)
		write(t, filepath.Join(root, name), nil)
	}
	for i := range dirs {
		name := fmt.Sprintf("d%d", i)
		want = append(want, name)
		if err := os.Mkdir(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(root, name, "f"), nil)
	}
	slices.Sort(want)
	want = append([]string{""}, want...)
	for _, name := range slices.Clone(want) {
		if strings.HasPrefix(name, "d") && !strings.HasSuffix(name, "-") {
			want = append(want, name+"/f")
		}
	}
	most := 0
	stats, problems := walked(t, root, func(w *walker) {
		w.page, w.keep = 100*nameCost, 10*nameCost
		emit := w.emit
		w.emit = func(s *Stat) error {
			most = max(most, w.kept)
			return emit(s)
		}
	})
	if got := paths(stats); !slices.Equal(got, want) || len(problems) > 0 {
		t.Errorf("%d entries, want %d; problems %q", len(got), len(want), problems)
	}
	if most > 12*nameCost {
		t.Errorf("names of %d bytes were kept", most)
	}
}

func TestTooManyDirectoriesAreNamedAndNotWalked(t *testing.T) {
	root := t.TempDir()
	for i := range 9 {
		if err := os.Mkdir(filepath.Join(root, fmt.Sprint(i)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(root, fmt.Sprint(i), "f"), nil)
	}
	stats, _ := walked(t, root, func(w *walker) { w.keep, w.marks = 2*(nameCost+1), 3 })
	inside, problems := 0, 0
	for _, s := range stats {
		if s.Name == "f" {
			inside++
		}
		if s.Problem != "" {
			problems++
		}
	}
	if inside != 5 || problems != 4 {
		t.Errorf("%d walked and %d named, want 5 and 4", inside, problems)
	}
}

// A directory that came while another was walked has no entry, so it is not
// gone into.
func TestADirectoryThatAppearsIsLeftForNextTime(t *testing.T) {
	for _, keep := range []int{0, keepBytes} {
		root := t.TempDir()
		for _, dir := range []string{"a", "c", "d"} {
			if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		stats, problems := walked(t, root, func(w *walker) {
			w.keep = keep
			emit := w.emit
			w.emit = func(s *Stat) error {
				if s.Name == "d" { // the last of the root's
					_ = os.MkdirAll(filepath.Join(root, "b", "new"), 0o755)
					_ = os.MkdirAll(filepath.Join(root, "c", "in"), 0o755)
					_ = os.Remove(filepath.Join(root, "a"))
				}
				return emit(s)
			}
		})
		if got, want := paths(stats), []string{"", "a", "c", "d", "c/in"}; !slices.Equal(got, want) {
			t.Errorf("keep %d: %q, want %q", keep, got, want)
		}
		if want := []string{"a: it is gone"}; keep > 0 && !slices.Equal(problems, want) {
			t.Errorf("problems %q, want %q", problems, want)
		}
	}
}

// A directory replaced by a link is not followed.
func TestALinkInPlaceOfADirectoryIsNotFollowed(t *testing.T) {
	for _, step := range []bool{false, true} {
		root, outside := t.TempDir(), t.TempDir()
		write(t, filepath.Join(outside, "secret"), nil)
		if err := os.MkdirAll(filepath.Join(root, "a", "b"), 0o755); err != nil {
			t.Fatal(err)
		}
		stats, problems := walked(t, root, func(w *walker) {
			w.dirs.noOpenat2.Store(step)
			emit := w.emit
			w.emit = func(s *Stat) error {
				if s.Name == "a" {
					_ = os.RemoveAll(filepath.Join(root, "a"))
					_ = os.Symlink(outside, filepath.Join(root, "a"))
				}
				return emit(s)
			}
		})
		if got, want := paths(stats), []string{"", "a"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		if want := []string{"a: it is something else now"}; !slices.Equal(problems, want) {
			t.Errorf("problems %q, want %q", problems, want)
		}
	}
}

func TestADeepTreeIsWalkedWithFewDescriptors(t *testing.T) {
	const depth = 4000
	root := t.TempDir()
	fd, err := open(unix.AT_FDCWD, root, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		t.Fatal(err)
	}
	// RemoveAll, too, gets along with such depths.
	for range depth {
		if err := unix.Mkdirat(fd, "d", 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := open(fd, "d", unix.O_PATH|unix.O_DIRECTORY)
		_ = unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		fd = next
	}
	f, err := unix.Openat(fd, "file", unix.O_CREAT|unix.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = unix.Write(f, []byte("deep"))
	_ = unix.Close(f)
	_ = unix.Close(fd)

	most := 0
	set := usual()
	set.hook = func(moment, path string) error {
		if moment == "open" {
			fds, _ := os.ReadDir("/proc/self/fd")
			most = max(most, len(fds))
		}
		return nil
	}
	set.readers = 1
	s := newShelf()
	totals, err := pair(t, usual(), set).Backup(t.Context(), request(root), s)
	if err != nil {
		t.Fatal(err)
	}
	path := strings.Repeat("d/", depth) + "file"
	if got := s.bytes(t, path); string(got) != "deep" {
		t.Errorf("read %q", got)
	}
	if totals.Entries != depth+2 || totals.ProblemCount > 0 {
		t.Errorf("%d entries, %d problems", totals.Entries, totals.ProblemCount)
	}
	if most > 64+16 {
		t.Errorf("%d descriptors", most)
	}
}

func TestAPathThatIsTooLongIsAProblem(t *testing.T) {
	root := t.TempDir()
	fd, err := open(unix.AT_FDCWD, root, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("n", 255)
	for range 260 {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := open(fd, name, unix.O_PATH|unix.O_DIRECTORY)
		_ = unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		fd = next
	}
	_ = unix.Close(fd)
	s := newShelf()
	totals, err := pair(t, usual(), usual()).Backup(t.Context(), request(root), s)
	if err != nil {
		t.Fatal(err)
	}
	if totals.Entries != 1+256 || totals.ProblemCount != 1 || !strings.Contains(totals.Problems[0].Reason, "longer than 65535 bytes") {
		t.Errorf("%d entries, problems %.100q", totals.Entries, totals.Problems)
	}
}

func TestWhatIsMountedBelowIsNamedAndNotEntered(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"bound", "tmpfs", "plain"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(root, "file"), nil)
	other := t.TempDir()
	write(t, filepath.Join(other, "x"), nil)
	mount := func(source, target, kind string, flags uintptr) {
		t.Helper()
		if err := unix.Mount(source, target, kind, flags, ""); err != nil {
			t.Fatalf("mount %s (this test is for root): %v", target, err)
		}
		t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	}
	mount(other, filepath.Join(root, "bound"), "", unix.MS_BIND)
	mount("none", filepath.Join(root, "tmpfs"), "tmpfs", 0)
	mount(filepath.Join(other, "x"), filepath.Join(root, "file"), "", unix.MS_BIND)
	write(t, filepath.Join(root, "tmpfs", "y"), nil)

	s := newShelf()
	totals, err := pair(t, usual(), usual()).Backup(t.Context(), request(root), s)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := paths(s.entries), []string{"", "bound", "file", "plain", "tmpfs"}; !slices.Equal(got, want) {
		t.Fatalf("%q, want %q", got, want)
	}
	for _, e := range s.entries {
		mounted := e.Name == "bound" || e.Name == "file" || e.Name == "tmpfs"
		if (e.Problem == errMount.Error()) != mounted {
			t.Errorf("%q: problem %q", e.Name, e.Problem)
		}
		if f := s.files[e.Name]; (f == nil) != (e.Name == "file") || f != nil && f.Outcome != Whole {
			t.Errorf("%q was filed as %+v", e.Name, f)
		}
	}
	if totals.ProblemCount != 0 {
		t.Errorf("problems %q", totals.Problems)
	}
	// Should something be mounted only after it was told of, the opening finds it.
	for _, step := range []bool{false, true} {
		d, err := openDirs(root)
		if err != nil {
			t.Fatal(err)
		}
		d.noOpenat2.Store(step)
		if _, err := d.get("bound"); !errors.Is(err, errMount) {
			t.Errorf("open bound: %v", err)
		}
		if _, err := d.openat(d.root.fd, "file", unix.O_RDONLY); !errors.Is(err, errMount) {
			t.Errorf("open file: %v", err)
		}
		d.close()
	}
}

func TestADirectoryThatCannotBeListedIsAProblem(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "closed", "in"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(root, "closed"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(root, "closed"), 0o755) })
	// On a thread of its own, which ends with the goroutine, as another user.
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		stats, problems := walked(t, root, func(*walker) {
			if err := unix.Setfsuid(65534); err != nil {
				t.Error(err)
			}
		})
		if got, want := paths(stats), []string{"", "closed"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		if want := []string{"closed: permission denied"}; !slices.Equal(problems, want) {
			t.Errorf("problems %q, want %q", problems, want)
		}
	}()
	<-done
}
