package backup_test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"orlop/treetest"
)

// sameFile reports whether two paths are one file.
func sameFile(t testing.TB, a, b string) bool {
	t.Helper()
	x, err := os.Lstat(a)
	must(t, err)
	y, err := os.Lstat(b)
	must(t, err)
	return os.SameFile(x, y)
}

// Between two backups the names of a file come and go; each backup has them as
// they are.
func TestHardLinksAsTheyComeAndGo(t *testing.T) {
	link := func(old, name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) { must(t, os.Link(dir+"/"+old, dir+"/"+name)) }
	}
	remove := func(name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) { must(t, os.Remove(dir+"/"+name)) }
	}
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, dir string)
		fresh  int64 // bytes that are new, at most
	}{
		{"a second name comes after the first", link("alone", "later"), 0},
		{"a second name comes before the first", link("alone", "a-before"), 0},
		{"a second name comes in another directory", link("d/alone", "e/too"), 0},
		{"a third name comes", link("two-1", "e/two-3"), 0},
		{"the first name goes", remove("two-1"), 0},
		{"the second name goes", remove("two-2"), 0},
		{"the first of three goes", remove("d/three-1"), 0},
		{"the middle of three goes", remove("e/three-2"), 0},
		{"the last of three goes", remove("three-3"), 0},
		{"a link to a symlink comes", link("symlink", "e/symlink"), 0},
		{"a link to a symlink goes", remove("e/sym-2"), 0},
		{"a link to a fifo comes", link("fifo", "e/fifo"), 0},
		{"the content changes under all names", func(t *testing.T, dir string) {
			must(t, os.WriteFile(dir+"/e/three-2", treetest.Bytes("new", 4000), 0o644))
		}, 4000},
		{"the mode changes under all names", func(t *testing.T, dir string) {
			must(t, os.Chmod(dir+"/two-2", 0o600))
		}, 0},
		{"a name changes to a file of its own, of the same bytes", func(t *testing.T, dir string) {
			data := read(t, dir+"/two-2")
			must(t, os.Remove(dir+"/two-2"))
			write(t, dir+"/two-2", []byte(data))
		}, 0},
		{"two groups swap a name", func(t *testing.T, dir string) {
			must(t, os.Rename(dir+"/two-2", dir+"/x"))
			must(t, os.Rename(dir+"/e/three-2", dir+"/two-2"))
			must(t, os.Rename(dir+"/x", dir+"/e/three-2"))
		}, 0},
		{"a freed inode is used again", func(t *testing.T, dir string) {
			// The number comes back at once on ext4; anywhere, this is right.
			var before, after syscall.Stat_t
			must(t, syscall.Stat(dir+"/two-1", &before))
			must(t, os.Remove(dir+"/two-1"))
			must(t, os.Remove(dir+"/two-2"))
			for i := range 200 {
				path := fmt.Sprintf("%s/e/again-%d", dir, i)
				write(t, path, treetest.Bytes("again", 3000))
				must(t, syscall.Stat(path, &after))
				if after.Ino == before.Ino {
					must(t, os.Link(path, path+"-too"))
					return
				}
				must(t, os.Remove(path))
			}
			write(t, dir+"/e/again", treetest.Bytes("again", 3000))
			must(t, os.Link(dir+"/e/again", dir+"/e/again-too"))
		}, 3000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newRig(t, small)
			for _, name := range []string{"alone", "d/alone", "two-1", "d/three-1", "e/x"} {
				write(t, g.src+"/"+name, treetest.Bytes(name, 3000))
			}
			must(t, os.Symlink("alone", g.src+"/symlink"))
			must(t, os.Symlink("alone", g.src+"/d/sym-1"))
			must(t, syscall.Mkfifo(g.src+"/fifo", 0o600))
			for _, l := range [][2]string{{"two-1", "two-2"}, {"d/three-1", "e/three-2"}, {"d/three-1", "three-3"}, {"d/sym-1", "e/sym-2"}} {
				must(t, os.Link(g.src+"/"+l[0], g.src+"/"+l[1]))
			}
			first := g.settle(t)
			g.holds(t, first.Snapshot, g.src)
			tt.change(t, g.src)
			s := g.whole(t)
			g.holds(t, s.Snapshot, g.src)
			if e := g.entries(t, s.Snapshot); len(e) != int(s.Files()+s.Dirs) {
				t.Errorf("%d entries, %d files and %d directories", len(e), s.Files(), s.Dirs)
			}
			// Metadata is new; of content nothing but what is.
			if n := int64(s.BytesNew) - tt.fresh; n > 4096 {
				t.Errorf("%d bytes are new", s.BytesNew)
			}
			again := g.settle(t)
			if again.FilesUnmodified != again.Files() {
				t.Errorf("%d of %d files are unmodified", again.FilesUnmodified, again.Files())
			}
			g.holds(t, again.Snapshot, g.src)
		})
	}
}

// A file all of whose names are seen is read once.
func TestAFileOfManyNamesIsReadOnce(t *testing.T) {
	g := newRig(t, small)
	write(t, g.src+"/a/0", treetest.Bytes("0", 100_000))
	for i := 1; i < 40; i++ {
		must(t, os.MkdirAll(fmt.Sprintf("%s/%d", g.src, i%5), 0o755))
		must(t, os.Link(g.src+"/a/0", fmt.Sprintf("%s/%d/%d", g.src, i%5, i)))
	}
	s := g.whole(t)
	if s.BytesRead != 100_000 || s.Files() != 40 {
		t.Errorf("%d bytes read for %d names", s.BytesRead, s.Files())
	}
	got := g.restore(t, s.Snapshot)
	treetest.Same(t, g.src, got)
	if !sameFile(t, got+"/a/0", got+"/4/39") {
		t.Error("they are not one file")
	}
}

// A name that is outside of what is backed up does not keep the one inside out.
func TestAFileWithANameElsewhereIsKept(t *testing.T) {
	g := newRig(t, small)
	write(t, g.src+"/in", treetest.Bytes("in", 2000))
	must(t, os.Link(g.src+"/in", t.TempDir()+"/out"))
	s := g.settle(t)
	got := g.restore(t, s.Snapshot)
	if read(t, got+"/in") != read(t, g.src+"/in") {
		t.Error("it came back wrong")
	}
}

// The names of one file change while it is backed up.
func TestHardLinksThatChangeDuringTheBackup(t *testing.T) {
	fired := 0
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, dir string)
		lost   []string // names that may be skipped
	}{
		// The second name was to take what the first one's reading found.
		{"the first name vanishes", func(t *testing.T, dir string) { must(t, os.Remove(dir+"/1")) }, []string{"1", "d/2", "d/3"}},
		{"the second name vanishes", func(t *testing.T, dir string) { must(t, os.Remove(dir+"/d/2")) }, nil},
		{"all names vanish", func(t *testing.T, dir string) {
			for _, name := range []string{"1", "d/2", "d/3"} {
				must(t, os.Remove(dir+"/"+name))
			}
		}, []string{"1", "d/2", "d/3"}},
		{"the first name becomes another file", func(t *testing.T, dir string) {
			must(t, os.Remove(dir+"/1"))
			write(t, dir+"/1", treetest.Bytes("other", 7000))
		}, []string{"d/2", "d/3"}},
		{"the first name becomes a symlink", func(t *testing.T, dir string) {
			must(t, os.Remove(dir+"/1"))
			must(t, os.Symlink("d/2", dir+"/1"))
		}, []string{"1", "d/2", "d/3"}},
		{"the content changes", func(t *testing.T, dir string) {
			must(t, os.WriteFile(dir+"/d/3", treetest.Bytes("new", 7000), 0o644))
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newRig(t, small)
			old := treetest.Bytes("old", 5000)
			write(t, g.src+"/1", old)
			must(t, os.Mkdir(g.src+"/d", 0o755))
			must(t, os.Link(g.src+"/1", g.src+"/d/2"))
			must(t, os.Link(g.src+"/1", g.src+"/d/3"))
			s := g.backupWith(t, once(walked, func() { fired++; tt.change(t, g.src) }))
			for _, name := range tt.lost {
				if reason(s.Skipped, name) == "" {
					t.Errorf("%s is not named: %v", name, s.Skipped)
				}
			}
			if int(s.SkippedCount) != len(tt.lost) || s.Partial() != (len(tt.lost) > 0) {
				t.Errorf("skipped %v", s.Skipped)
			}
			got := g.restore(t, s.Snapshot)
			for _, name := range []string{"1", "d/2", "d/3"} {
				if !exists(got + "/" + name) {
					if !strings.Contains(fmt.Sprint(tt.lost), name) {
						t.Errorf("%s is missing", name)
					}
					continue
				}
				// What is at a name is what was there at some moment.
				p := read(t, got+"/"+name)
				if p != string(old) && (!exists(g.src+"/"+name) || p != read(t, g.src+"/"+name)) {
					t.Errorf("%s is what it never was", name)
				}
			}
			g.holds(t, g.whole(t).Snapshot, g.src)
			g.settle(t)
			g.check(t)
		})
	}
	t.Logf("%d faults fired, 0 violations", fired)
}
