package backup_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"orlop/backup"
	"orlop/chunk"
	"orlop/snapshot"
	"orlop/store/storetest"
	"orlop/treetest"
)

// once calls change the first time that a backup has come so far.
func once(far func(backup.Progress) bool, change func()) backup.Options {
	done := false
	return backup.Options{Progress: func(p backup.Progress) {
		if !done && far(p) {
			done = true
			change()
		}
	}}
}

// walked is the moment when a small tree was walked and none of it was read:
// progress is told before the answers are sent.
func walked(backup.Progress) bool { return true }

// reading is the moment when the first chunks of a file were offered. The agent
// may be ahead of that by as many as it has credit for, which is less than the
// files have that these tests read.
func reading(p backup.Progress) bool { return p.BytesRead > 0 }

const long = 4 << 20 // a file of more chunks than can be on their way

// fine makes these many: 1,024 of them may be.
var fine = chunk.Config{Algorithm: chunk.Gear, Min: 512, Avg: 2 << 10, Max: 8 << 10}

func TestWhatChangesBetweenTheWalkAndItsReading(t *testing.T) {
	file := func(n int) func(t *testing.T, path string) {
		return func(t *testing.T, path string) { write(t, path, treetest.Bytes("new", n)) }
	}
	gone := func(t *testing.T, path string) { must(t, os.RemoveAll(path)) }
	becomes := func(make func(path string) error) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			must(t, os.RemoveAll(path))
			must(t, make(path))
		}
	}
	dir := func(path string) error { return os.Mkdir(path, 0o755) }
	fifo := func(path string) error { return syscall.Mkfifo(path, 0o644) }
	link := func(path string) error { return os.Symlink("keep", path) }
	plain := func(path string) error { return os.WriteFile(path, []byte("a file"), 0o644) }
	tests := []struct {
		name   string
		path   string
		change func(t *testing.T, path string)
		reason string // why it is skipped; "": it is kept as it is now
	}{
		{"a file grows", "f", file(100_000), ""},
		{"a file shrinks", "f", file(10), ""},
		{"a file is emptied", "f", file(0), ""},
		{"a file vanishes", "f", gone, "it is gone"},
		{"a file becomes a directory", "f", becomes(dir), "directory"},
		{"a file becomes a fifo", "f", becomes(fifo), "fifo"},
		{"a file becomes a symlink", "f", becomes(link), "something else"},
		{"an inline file grows out of its entry", "inline", file(5000), ""},
		{"an inline file vanishes", "inline", gone, "it is gone"},
		{"a symlink vanishes", "l", gone, "it is gone"},
		{"a symlink becomes a file", "l", becomes(plain), "file"},
		{"a fifo vanishes", "p", gone, "it is gone"},
		{"a fifo becomes a file", "p", becomes(plain), "file"},
		{"a directory vanishes", "d", gone, "it is gone"},
		{"a directory becomes a file", "d", becomes(plain), "file"},
		{"a directory becomes a symlink", "d", becomes(link), ""},
		{"a file becomes a hard link of another", "f", func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, os.Link(filepath.Dir(path)+"/keep", path))
		}, ""},
	}
	fired := 0
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newRig(t, cut(t, chunk.Gear))
			write(t, g.src+"/keep", treetest.Bytes("keep", 3000))
			write(t, g.src+"/d/in", treetest.Bytes("in", 3000))
			write(t, g.src+"/f", treetest.Bytes("old", 50_000))
			write(t, g.src+"/inline", []byte("inline"))
			must(t, os.Symlink("target", g.src+"/l"))
			must(t, fifo(g.src+"/p"))
			path := g.src + "/" + tt.path
			s := g.backupWith(t, once(walked, func() { fired++; tt.change(t, path) }))
			all := g.entries(t, s.Snapshot)
			if all["keep"] == nil || all[""] == nil {
				t.Error("what was not touched is not there")
			}
			_, snap := g.find(t, s.Snapshot)
			if snap.Partial != s.Partial() || snap.SkippedCount != s.SkippedCount || snap.TornCount != s.TornCount {
				t.Errorf("the snapshot says %+v, the summary %+v", snap.Snapshot, s)
			}
			switch why := reason(s.Skipped, tt.path); {
			case tt.path == "d":
				// A directory may stay as the walk saw it; what was in it does not.
				if !s.Partial() || reason(s.Skipped, "d/in") == "" || all["d/in"] != nil {
					t.Errorf("partial %v, skipped %v", s.Partial(), s.Skipped)
				}
			case tt.reason == "":
				if s.Partial() {
					t.Errorf("skipped %v, torn %v", s.Skipped, s.Torn)
				}
				if want, got := read(t, path), read(t, g.restore(t, s.Snapshot)+"/"+tt.path); got != want {
					t.Errorf("%d bytes came back, and there were %d", len(got), len(want))
				}
			default:
				if !s.Partial() || s.SkippedCount != 1 || !strings.Contains(why, tt.reason) {
					t.Errorf("skipped %v", s.Skipped)
				}
				if all[tt.path] != nil {
					t.Errorf("it was kept: %+v", all[tt.path])
				}
			}
			g.restore(t, s.Snapshot)
			// Left alone, all of it is in the next one.
			g.holds(t, g.whole(t).Snapshot, g.src)
			g.check(t)
		})
	}
	t.Logf("%d faults fired, 0 violations", fired)
	if fired != len(tests) {
		t.Errorf("%d of %d changes were made", fired, len(tests))
	}
}

func TestWhatChangesWhileItIsRead(t *testing.T) {
	grow := func(t *testing.T, path string) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		must(t, err)
		_, err = f.Write(treetest.Bytes("more", 10_000))
		must(t, err)
		must(t, f.Close())
	}
	cutTo := func(n int64) func(t *testing.T, path string) {
		return func(t *testing.T, path string) { must(t, os.Truncate(path, n)) }
	}
	flip := byte(0)
	overwrite := func(t *testing.T, path string) {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		must(t, err)
		flip++
		_, err = f.WriteAt([]byte{flip}, 5)
		must(t, err)
		must(t, f.Close())
	}
	for _, tt := range []struct {
		name   string
		always bool // not once, but each time that progress is told
		size   int64
		change func(t *testing.T, path string)
		torn   bool
		reason string // why it is skipped
	}{
		{"it grows once: it is read again", false, 0, grow, false, ""},
		{"it is overwritten once: it is read again", false, 0, overwrite, false, ""},
		{"it is cut off once: it is read again", false, 0, cutTo(1 << 20), false, ""},
		{"it is emptied once: it is read again", false, 0, cutTo(0), false, ""},
		{"it grows all the time: torn", true, 0, grow, true, ""},
		{"it is overwritten all the time: torn", true, 0, overwrite, true, ""},
		{"it grows and is too large to be read again: torn", false, 80 << 20, grow, true, ""},
		{"it is cut off, however large it was: it is read again", false, 80 << 20, cutTo(1 << 20), false, ""},
		{"it is removed", false, 0, func(t *testing.T, path string) { must(t, os.Remove(path)) }, false, "it is gone"},
		{"it becomes a directory", false, 0, func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, os.Mkdir(path, 0o755))
		}, false, "directory"},
		{"it is replaced by another file: that is read", false, 0, func(t *testing.T, path string) {
			write(t, path+".new", treetest.Bytes("other", 20_000))
			must(t, os.Rename(path+".new", path))
		}, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newRig(t, fine)
			path := g.src + "/f"
			write(t, path, treetest.Bytes("long", long))
			write(t, g.src+"/keep", []byte("keep"))
			if tt.size > 0 {
				must(t, os.Truncate(path, tt.size)) // the rest is a hole
			}
			fired := 0
			opt := once(reading, func() { fired++; tt.change(t, path) })
			if tt.always {
				opt = backup.Options{Progress: func(p backup.Progress) {
					if reading(p) {
						fired++
						tt.change(t, path)
					}
				}}
			}
			s := g.backupWith(t, opt)
			if fired == 0 {
				t.Fatal("nothing was changed")
			}
			e := g.entries(t, s.Snapshot)["f"]
			switch {
			case tt.reason != "":
				if why := reason(s.Skipped, "f"); e != nil || !s.Partial() || !strings.Contains(why, tt.reason) {
					t.Errorf("skipped %v", s.Skipped)
				}
			case tt.torn:
				if e == nil || !e.Torn || !s.Partial() || s.TornCount != 1 || reason(s.Torn, "f") == "" {
					t.Errorf("torn %v, entry %+v", s.Torn, e)
				}
				got := g.restore(t, s.Snapshot) + "/f"
				if fi, err := os.Stat(got); err != nil || uint64(fi.Size()) != e.Size {
					t.Errorf("%v %v, want %d bytes", fi, err, e.Size)
				}
			default:
				if s.Partial() || e == nil || e.Torn {
					t.Errorf("skipped %v, torn %v", s.Skipped, s.Torn)
				}
				// Its time may be another: ext4 sets it at both ends of a truncation.
				if want, got := read(t, path), read(t, g.restore(t, s.Snapshot)+"/f"); got != want {
					t.Errorf("%d bytes came back, and there were %d", len(got), len(want))
				}
			}
			// It is not believed next time, whatever its times are.
			next := g.whole(t)
			g.holds(t, next.Snapshot, g.src)
		})
	}
}

// However a tree changes while it is backed up, there is a snapshot that
// restores, and what was left alone is in it.
func TestAnyChangesAtAnyMomentLeaveAWholeSnapshot(t *testing.T) {
	changes := 0
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		g := newRig(t, small)
		write(t, g.src+"/quiet/a", treetest.Bytes("a", 30_000))
		write(t, g.src+"/quiet/b", treetest.Bytes("b", 200))
		for i := range 60 {
			write(t, fmt.Sprintf("%s/live/%d/%d", g.src, i%5, i), treetest.Bytes(fmt.Sprint(i), rnd.IntN(200_000)))
		}
		any := func() string { return fmt.Sprintf("%s/live/%d/%d", g.src, rnd.IntN(6), rnd.IntN(70)) }
		change := func() {
			changes++
			a, b := any(), any()
			switch rnd.IntN(9) {
			case 0:
				_ = os.RemoveAll(a)
			case 1:
				_ = os.Rename(a, b)
			case 2:
				_ = os.Link(a, b)
			case 3:
				_ = os.Truncate(a, rnd.Int64N(300_000))
			case 4:
				_ = os.Mkdir(a, 0o755)
			case 5:
				_ = os.Symlink("x", a)
			case 6:
				_ = os.RemoveAll(filepath.Dir(a))
			case 7:
				_ = os.MkdirAll(filepath.Dir(a), 0o755)
				_ = os.WriteFile(a, treetest.Bytes(b, rnd.IntN(50_000)), 0o644)
			case 8:
				_ = os.Rename(filepath.Dir(a), b)
			}
		}
		for range 3 {
			s := g.backupWith(t, backup.Options{Progress: func(backup.Progress) { change() }})
			got := g.restore(t, s.Snapshot)
			treetest.Same(t, g.src+"/quiet", got+"/quiet")
		}
		g.holds(t, g.whole(t).Snapshot, g.src)
		g.check(t)
	}
	t.Logf("%d faults fired, 0 violations", changes)
	if changes < 100 {
		t.Errorf("only %d changes were made", changes)
	}
}

// asNobody runs the calling test again, as a user without rights, if this is
// root, and reports whether it did.
func asNobody(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return false
	}
	dir, err := os.MkdirTemp("", "orlop-nobody-")
	must(t, err)
	defer func() {
		treetest.RemoveAll(t, dir)
		must(t, os.Remove(dir))
	}()
	must(t, os.Chmod(dir, 0o777))
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), "ORLOP_BACKUP_TEST=nobody", "TMPDIR="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
	return true
}

// What may not be read is skipped and named, the rest is kept.
func TestWhatMayNotBeReadIsSkipped(t *testing.T) {
	if asNobody(t) {
		return
	}
	g := newRig(t, cut(t, chunk.Gear))
	for _, name := range []string{"shut", "closing", "open", "shut-dir/in", "closing-dir/in", "blind-dir/in", "d/open"} {
		write(t, g.src+"/"+name, treetest.Bytes(name, 2000))
	}
	chmod := func(name string, mode os.FileMode) { must(t, os.Chmod(g.src+"/"+name, mode)) }
	chmod("shut", 0)
	chmod("shut-dir", 0)
	chmod("blind-dir", 0o444) // its names can be listed, and no more
	fired := false
	s := g.backupWith(t, once(walked, func() {
		fired = true
		chmod("closing", 0o200)
		chmod("closing-dir", 0)
	}))
	if !fired || !s.Partial() {
		t.Fatalf("fired %v, partial %v", fired, s.Partial())
	}
	all := g.entries(t, s.Snapshot)
	for _, name := range []string{"shut", "closing", "shut-dir", "closing-dir/in", "blind-dir"} {
		if why := reason(s.Skipped, name); !strings.Contains(why, "permission denied") {
			t.Errorf("%s: %q", name, why)
		}
		if e := all[name]; e != nil && e.Type != snapshot.Dir {
			t.Errorf("%s was kept", name)
		}
	}
	for _, name := range []string{"open", "d/open", "shut-dir", "closing-dir", "blind-dir"} {
		if all[name] == nil {
			t.Errorf("%s was not kept", name)
		}
	}
	if s.SkippedCount != 5 || s.TornCount != 0 {
		t.Errorf("skipped %v", s.Skipped)
	}
	g.restore(t, s.Snapshot)
	for name, mode := range map[string]os.FileMode{"shut": 0o644, "closing": 0o644, "shut-dir": 0o755, "closing-dir": 0o755, "blind-dir": 0o755} {
		chmod(name, mode)
	}
	g.holds(t, g.whole(t).Snapshot, g.src)
	t.Logf("%d faults fired, 0 violations", 5)
}

// A user without rights backs up and restores what is his.
func TestATreeComesBackWithoutRights(t *testing.T) {
	if asNobody(t) {
		return
	}
	g := newRig(t, cut(t, chunk.Gear))
	treetest.Small(t, g.src)
	g.holds(t, g.whole(t).Snapshot, g.src)
	g.settle(t)
	g.check(t)
}

// A store through a mapping to a page that is dirty already moves neither time
// of the file. That is why the agent has dirty pages written before it reads.
func TestAStoreThroughAMappingIsInTheNextBackup(t *testing.T) {
	g := newRig(t, cut(t, chunk.Gear))
	path := g.src + "/mapped"
	write(t, path, make([]byte, 64<<10))
	write(t, g.src+"/still", treetest.Bytes("still", 5000))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	page, err := syscall.Mmap(int(f.Fd()), 0, 64<<10, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	must(t, err)
	defer func() { must(t, syscall.Munmap(page)) }()
	for i := range byte(3) {
		page[5000] = 2*i + 1 // dirty from here on
		before := g.settle(t)
		if got := read(t, g.restore(t, before.Snapshot)+"/mapped"); got[5000] != 2*i+1 {
			t.Fatalf("the first store is not in the backup: %d", got[5000])
		}
		page[5000] = 2*i + 2
		s := g.whole(t)
		if s.FilesChanged != 1 || s.BytesRead != 64<<10 {
			t.Errorf("%d files changed, %d bytes read", s.FilesChanged, s.BytesRead)
		}
		g.holds(t, s.Snapshot, g.src)
	}
}

// A file that was written shortly before it was read may be written again
// without a change of its times: it is not believed unchanged.
func TestARewriteInTheSameTickIsInTheNextBackup(t *testing.T) {
	g := newRig(t, cut(t, chunk.Gear))
	coarse := mount(t, "ramfs", g.src, "") // where times are those of ticks
	path := g.src + "/f"
	same, times := 0, 0
	for times < 100 && same < 5 && (coarse || times < 5) {
		times++
		before, after := treetest.Bytes(fmt.Sprint("before", times), 600), treetest.Bytes(fmt.Sprint("after", times), 600)
		write(t, path, treetest.Bytes("long before", 600))
		var first, last syscall.Stat_t
		step := 0
		s := g.backupWith(t, backup.Options{Progress: func(p backup.Progress) {
			switch {
			case step == 0:
				write(t, path, before)
				must(t, syscall.Stat(path, &first))
				step++
			case step == 1 && p.Files == 1: // it has been read
				write(t, path, after)
				must(t, syscall.Stat(path, &last))
				step++
			}
		}})
		if first.Mtim == last.Mtim && first.Ctim == last.Ctim {
			same++
		}
		if got := read(t, g.restore(t, s.Snapshot)+"/f"); step != 2 || got != string(before) {
			t.Fatal("the rewrite came before the reading")
		}
		if got := read(t, g.restore(t, g.whole(t).Snapshot)+"/f"); got != string(after) {
			t.Error("the rewrite is not in the next backup")
		}
	}
	t.Logf("%d rewrites, %d of them with the same times", times, same)
	if coarse && same == 0 {
		t.Error("no rewrite was in the tick of the reading")
	}
}

// That a file is fresh is seen in its times, so a file with times of just now
// is read by each backup until the clock has moved on, and then no more.
func TestAFileIsBelievedOnceTheClockMovedOn(t *testing.T) {
	g := newRig(t, cut(t, chunk.Gear))
	log := &storetest.Log{Store: g.st}
	g.st = log
	write(t, g.src+"/f", treetest.Bytes("f", 100_000))
	first := g.whole(t)
	s := g.settle(t)
	if s.BytesRead != 0 || s.FilesUnmodified != 1 || first.FilesNew != 1 {
		t.Errorf("%+v", s)
	}
	g.holds(t, s.Snapshot, g.src)
}
