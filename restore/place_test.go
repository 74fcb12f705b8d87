package restore_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"orlop/agent"
	"orlop/id"
	"orlop/repo"
	"orlop/restore"
	"orlop/snapshot"
	"orlop/store"
	"orlop/store/storetest"
	"orlop/treetest"
)

// over restores a tree over what is in dir.
func (g *rig) over(t testing.TB, r *repo.Repo, root snapshot.Root, dir string, change func(p *restore.InPlace)) *restore.Summary {
	t.Helper()
	p := &restore.InPlace{NameKey: g.key.NameKey()}
	if change != nil {
		change(p)
	}
	s, err := runWith(t.Context(), r, root, dir, restore.Options{InPlace: p, Snapshot: id.Snapshot{1}})
	must(t, err)
	for _, p := range s.Problems {
		t.Errorf("%q: %s", p.Path, p.Reason)
	}
	return s
}

// newest returns the newest snapshot of a repository.
func newest(t testing.TB, r *repo.Repo) repo.Snapshot {
	t.Helper()
	all, broken, err := r.Snapshots(t.Context())
	must(t, err)
	if len(broken) > 0 || len(all) == 0 {
		t.Fatalf("%d snapshots, %v", len(all), broken)
	}
	must(t, r.Refresh(t.Context()))
	return all[len(all)-1]
}

// odd is a rig whose source has everything, with its repository open and a copy
// of the source.
func odd(t testing.TB) (g *rig, r *repo.Repo, root snapshot.Root, copied string) {
	t.Helper()
	g = newRig(t, store.NewMem(), small)
	treetest.Fill(t, g.src, false)
	write(t, g.src+"/mine/chunks", treetest.Bytes("chunks", 300_000))
	must(t, os.Mkdir(g.src+"/next", 0o755))
	g.backup(t)
	r = g.mustOpen(t, g.st)
	root = newest(t, r).Root
	copied = target(t)
	_, err := run(t.Context(), r, root, copied)
	must(t, err)
	treetest.Same(t, g.src, copied)
	return g, r, root, copied
}

// stamps are the change times of all that is below dir, by path.
func stamps(t testing.TB, dir string) map[string]syscall.Timespec {
	t.Helper()
	all := map[string]syscall.Timespec{}
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st syscall.Stat_t
		if err == nil {
			err = syscall.Lstat(path, &st)
		}
		all[strings.TrimPrefix(path, dir)] = st.Ctim
		return err
	}))
	return all
}

// What is as it should be is not touched: no change time moves.
func TestARestoreOverAnEqualTreeChangesNothing(t *testing.T) {
	g, r, root, to := odd(t)
	before := stamps(t, to)
	s := g.over(t, r, root, to, nil)
	if s.BytesWritten != 0 || s.Created+s.Changed+s.Removed+s.RemovedDirs != 0 || s.Unchanged != s.Files+s.Others || s.Unchanged < 20 {
		t.Errorf("%+v", s)
	}
	if after := stamps(t, to); !maps.Equal(before, after) {
		for path, at := range before {
			if after[path] != at {
				t.Errorf("%q was changed", path)
			}
		}
	}
	treetest.Same(t, g.src, to)
}

// Each way in which a tree can be different, and what it takes to make it good.
func TestEachDifferenceIsMadeGood(t *testing.T) {
	g, r, root, first := odd(t)
	_ = first
	at := func(dir, path string) string { return dir + "/" + path }
	poke := func(path string, off int64, data []byte) error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(data, off)
		return errors.Join(err, f.Close())
	}
	type counts struct{ created, changed, removed, removedDirs uint64 }
	for _, tt := range []struct {
		name   string
		change func(dir string) error
		want   counts
		most   uint64 // bytes written
	}{
		{"a byte in the middle", func(d string) error { return poke(at(d, "mine/chunks"), 150_000, []byte("x")) }, counts{changed: 1}, 64 << 10},
		{"cut short", func(d string) error { return os.Truncate(at(d, "mine/chunks"), 100_000) }, counts{changed: 1}, 250_000},
		{"longer", func(d string) error { return poke(at(d, "mine/chunks"), 300_000, []byte("more")) }, counts{changed: 1}, 0},
		{"empty", func(d string) error { return os.Truncate(at(d, "mine/chunks"), 0) }, counts{changed: 1}, 300_000},
		{"touched", func(d string) error { return os.Chtimes(at(d, "mine/chunks"), someTime, someTime) }, counts{changed: 1}, 0},
		{"another mode", func(d string) error { return os.Chmod(at(d, "mine/chunks"), 0o4711) }, counts{changed: 1}, 0},
		{"another owner", func(d string) error { return os.Chown(at(d, "mine/chunks"), 77, 88) }, counts{changed: 1}, 0},
		{"an xattr too many", func(d string) error { return syscall.Setxattr(at(d, "mine/chunks"), "user.x", []byte("y"), 0) }, counts{changed: 1}, 0},
		{"gone", func(d string) error { return os.Remove(at(d, "mine/chunks")) }, counts{created: 1}, 300_000},
		{"a whole directory gone", func(d string) error { return os.RemoveAll(at(d, "mine")) }, counts{created: 1}, 300_000},
		{"a directory in place of a file", func(d string) error {
			return errors.Join(os.Remove(at(d, "mine/chunks")), os.MkdirAll(at(d, "mine/chunks/a/b"), 0o700), os.WriteFile(at(d, "mine/chunks/a/f"), nil, 0o600))
		}, counts{changed: 1, removed: 1, removedDirs: 3}, 300_000},
		{"a file in place of a directory", func(d string) error {
			return errors.Join(os.RemoveAll(at(d, "mine")), os.WriteFile(at(d, "mine"), []byte("x"), 0o600))
		}, counts{created: 1, removed: 1}, 300_000},
		{"a link in place of a directory", func(d string) error {
			return errors.Join(os.Rename(at(d, "mine"), at(d, "other")), os.Symlink("other", at(d, "mine")))
		}, counts{created: 1, removed: 2, removedDirs: 1}, 300_000},
		{"a link in place of a file", func(d string) error {
			return errors.Join(os.Remove(at(d, "mine/chunks")), os.Symlink(t.TempDir(), at(d, "mine/chunks")))
		}, counts{changed: 1}, 300_000},
		{"a fifo in place of a file", func(d string) error {
			return errors.Join(os.Remove(at(d, "mine/chunks")), syscall.Mkfifo(at(d, "mine/chunks"), 0o600))
		}, counts{changed: 1}, 300_000},
		{"something more", func(d string) error {
			return errors.Join(os.WriteFile(at(d, "mine/0"), nil, 0o600), os.WriteFile(at(d, "mine/z"), nil, 0o600),
				os.MkdirAll(at(d, "zz/y/x"), 0o700), os.WriteFile(at(d, "zz/y/f"), nil, 0), os.Symlink(t.TempDir(), at(d, "zz/away")))
		}, counts{removed: 4, removedDirs: 3}, 0},
		{"nothing at all", func(d string) error { return os.RemoveAll(d + "/mine") }, counts{created: 1}, 300_000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			to := target(t)
			_, err := run(t.Context(), r, root, to)
			must(t, err)
			must(t, tt.change(to))

			// First what would be done, which changes nothing.
			before := stamps(t, to)
			told := map[string]agent.ChangeKind{}
			would := g.over(t, r, root, to, func(p *restore.InPlace) {
				p.Dry = true
				p.Change = func(kind agent.ChangeKind, path string) { told[path] = kind }
			})
			if after := stamps(t, to); !maps.Equal(before, after) {
				t.Error("to ask changed something")
			}

			s := g.over(t, r, root, to, nil)
			treetest.Same(t, g.src, to)
			if got := (counts{s.Created, s.Changed, s.Removed, s.RemovedDirs}); got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
			if s.BytesWritten > tt.most || tt.most > 0 && s.BytesWritten == 0 {
				t.Errorf("%d bytes were written, and %d are enough", s.BytesWritten, tt.most)
			}
			if got := (counts{would.Created, would.Changed, would.Removed, would.RemovedDirs}); got != tt.want {
				t.Errorf("%+v were foretold, not %+v", got, tt.want)
			}
			if would.BytesWritten != s.BytesWritten {
				t.Errorf("%d bytes were foretold, not %d", would.BytesWritten, s.BytesWritten)
			}
			if len(told) == 0 {
				t.Error("nothing was told")
			}
		})
	}
}

// A file may have another name outside of the target, or one that the snapshot
// knows nothing of. What that leads to stays as it is.
func TestAFileWithANameElsewhereIsReplacedAndNotChanged(t *testing.T) {
	g, r, root, to := odd(t)
	elsewhere := filepath.Dir(to) + "/elsewhere"
	must(t, os.Mkdir(elsewhere, 0o755))
	content := treetest.Bytes("chunks", 300_000)
	for name, change := range map[string]func(path string) error{
		"as it is": func(string) error { return nil },
		"changed": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt([]byte("x"), 1000)
			return errors.Join(err, f.Close())
		},
		"of another mode": func(path string) error { return os.Chmod(path, 0o600) },
		"cut":             func(path string) error { return os.Truncate(path, 5000) },
	} {
		path, other := to+"/mine/chunks", elsewhere+"/"+strings.ReplaceAll(name, " ", "-")
		must(t, os.Link(path, other))
		must(t, change(path))
		var before, after syscall.Stat_t
		must(t, syscall.Stat(other, &before))
		want, err := os.ReadFile(other)
		must(t, err)
		s := g.over(t, r, root, to, nil)
		treetest.Same(t, g.src, to)
		must(t, syscall.Stat(other, &after))
		got, err := os.ReadFile(other)
		must(t, err)
		if string(got) != string(want) || after.Mode != before.Mode || after.Mtim != before.Mtim || after.Nlink != 1 {
			t.Errorf("%s: what is elsewhere is not what it was", name)
		}
		if s.Changed != 1 || s.BytesWritten < uint64(min(len(want), len(content))) {
			t.Errorf("%s: %+v", name, s)
		}
	}

	// Hard links that belong together stay one file, wherever else it is.
	var before, after syscall.Stat_t
	linked := linkedFile(t, to)
	must(t, os.Link(linked, elsewhere+"/linked"))
	must(t, syscall.Stat(linked, &before))
	if s := g.over(t, r, root, to, nil); s.Changed != 0 {
		t.Errorf("%+v", s)
	}
	must(t, syscall.Stat(linked, &after))
	if after.Ino != before.Ino || after.Nlink != before.Nlink {
		t.Error("a file was replaced that is what it should be")
	}
}

// linkedFile returns a file below dir that has several names.
func linkedFile(t testing.TB, dir string) (found string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Sys().(*syscall.Stat_t).Nlink > 1 && info.Size() > 0 {
			found = path
		}
		return err
	}))
	if found == "" {
		t.Fatal("no file has several names")
	}
	return found
}

// What the snapshot does not have stays, if that is wanted; what is in the way
// does not.
func TestWhatIsExtraCanBeKept(t *testing.T) {
	g, r, root, to := odd(t)
	write(t, to+"/extra/file", []byte("mine"))
	must(t, os.Remove(to+"/mine/chunks"))
	write(t, to+"/mine/chunks/in the way", []byte("x"))
	s := g.over(t, r, root, to, func(p *restore.InPlace) { p.Keep = true })
	if s.Removed != 1 || s.RemovedDirs != 1 || s.Changed != 1 {
		t.Errorf("%+v", s)
	}
	if got, err := os.ReadFile(to + "/extra/file"); string(got) != "mine" || err != nil {
		t.Errorf("what was extra is %q, %v", got, err)
	}
	must(t, os.RemoveAll(to+"/extra"))
	g.over(t, r, root, to, nil)
	treetest.Same(t, g.src, to)
}

// A restore that is killed, in place or not, has left word of what it was about
// to make, and is finished by the next.
func TestARestoreThatIsKilledIsFinishedByTheNext(t *testing.T) {
	path := fast(t) + "/repo"
	dir, err := store.CreateDir(path)
	must(t, err)
	defer dir.Close()
	g := newRig(t, dir, small)
	tiny(t, g.src)
	for i := range 30 { // far apart in the packs
		write(t, fmt.Sprintf("%s/more/%d", g.src, i), treetest.Bytes(fmt.Sprint(i), 100_000))
	}
	g.backup(t)
	want := newest(t, g.mustOpen(t, dir)).ID
	for _, inPlace := range []bool{false, true} {
		o := order{Store: path, Key: g.key.Text(), Cache: fast(t), InPlace: inPlace}
		killed, marked := 0, 0
		for o.At = 0; ; o.At++ {
			o.Target = target(t)
			if inPlace {
				_, err := g.try(t.Context(), dir, o.Cache, o.Target)
				must(t, err)
				for i := 0; i < 30; i += 3 {
					write(t, fmt.Sprintf("%s/more/%d", o.Target, i), []byte("other"))
				}
				write(t, o.Target+"/some/extra", nil)
				must(t, os.Truncate(o.Target+"/many-chunks", 1000))
			}
			before := stamps(t, o.Target)
			out, err := o.command(t).CombinedOutput()
			if err == nil {
				treetest.Same(t, g.src, o.Target)
				break
			}
			killed++
			if !strings.Contains(err.Error(), "killed") {
				t.Fatalf("get %d: %v: %s", o.At, err, out)
			}
			if s, ok := begun(t, o.Target); ok && s == want {
				marked++
			} else if ok || !maps.Equal(before, stamps(t, o.Target)) {
				t.Errorf("get %d: %v is said to have been begun", o.At, s)
			}
			s, err := g.tryWith(t.Context(), dir, o.Cache, o.Target, restore.Options{InPlace: &restore.InPlace{Keep: !inPlace}})
			must(t, err)
			treetest.Same(t, g.src, o.Target)
			if s.ProblemCount > 0 {
				t.Errorf("get %d: %v", o.At, s.Problems)
			}
		}
		t.Logf("in place %v: killed %d times, %d of them with a mark", inPlace, killed, marked)
		if killed < 5 || marked == 0 {
			t.Errorf("in place %v: killed %d times, %d of them with a mark", inPlace, killed, marked)
		}
	}
}

// What cannot be had of a damaged repository is not taken from the target: what
// is right there stays, and so does what cannot be made right.
func TestARestoreInPlaceFromADamagedRepositoryTakesNothingAway(t *testing.T) {
	mem := store.NewMem()
	g := newRig(t, mem, small)
	for i := range 40 {
		write(t, fmt.Sprintf("%s/d%d/file", g.src, i), treetest.Bytes(fmt.Sprint(i), 3000))
		write(t, fmt.Sprintf("%s/d%d/other", g.src, i), treetest.Bytes(fmt.Sprint("o", i), 600))
	}
	g.backup(t)
	copied := fast(t) + "/copied"
	must(t, os.Mkdir(copied, 0o755))
	_, err := g.try(t.Context(), mem, fast(t), copied)
	must(t, err)
	stayed, refused, lost := 0, 0, 0
	for _, o := range storetest.Infos(t, mem, "packs/") {
		for off := int64(0); off < o.Size; off += max(1, o.Size/60) {
			st := storetest.Copy(t, mem)
			storetest.Flip(t, st, o.Name, off, 1<<(off%8))
			s, err := g.tryWith(t.Context(), st, fast(t), copied, restore.Options{InPlace: new(restore.InPlace)})
			if err != nil {
				refused++
				if !errors.Is(err, repo.ErrDamaged) {
					t.Errorf("%s at %d: %v", o.Name, off, err)
				}
				continue
			}
			stayed++
			treetest.Same(t, g.src, copied)
			if s.BytesWritten > 0 || s.Removed > 0 {
				t.Errorf("%s at %d: %+v", o.Name, off, s)
			}

			// And one file that has to be written, perhaps without its bytes.
			to := fast(t) + "/to"
			must(t, os.CopyFS(to, os.DirFS(copied)))
			write(t, to+"/d7/file", []byte("mine"))
			write(t, to+"/d9/extra", []byte("extra"))
			s, err = g.tryWith(t.Context(), st, fast(t), to, restore.Options{InPlace: new(restore.InPlace)})
			must(t, err)
			got, err := os.ReadFile(to + "/d7/file")
			must(t, err)
			switch string(got) {
			case string(treetest.Bytes("7", 3000)):
			case "mine":
				lost++
				if s.ProblemCount == 0 {
					t.Errorf("%s at %d: what could not be had is not named", o.Name, off)
				}
			default:
				t.Errorf("%s at %d: it is neither", o.Name, off)
			}
			if _, err := os.Lstat(to + "/d9/extra"); err == nil && s.ProblemCount == 0 {
				t.Errorf("%s at %d: what is extra is there", o.Name, off)
			}
			must(t, os.RemoveAll(to))
		}
	}
	t.Logf("%d restores took nothing away, %d were refused; the file was lost %d times", stayed, refused, lost)
	if stayed < 30 || lost == 0 {
		t.Errorf("%d restores, the file was lost %d times", stayed, lost)
	}
}

// A file system that is full ends it, and says so in the target; with more room
// it is finished.
func TestARestoreInPlaceToAFullDiskIsFinishedWhenThereIsRoom(t *testing.T) {
	g := newRig(t, store.NewMem(), small)
	tiny(t, g.src)
	g.backup(t)
	disk := fast(t)
	if !mount(t, "tmpfs", disk, "size=100k,nr_inodes=0") {
		return
	}
	write(t, disk+"/a/extra", treetest.Bytes("extra", 20_000))
	write(t, disk+"/many-chunks", treetest.Bytes("many-chunks", 40_000))
	in := restore.Options{InPlace: new(restore.InPlace)}
	_, err := g.tryWith(t.Context(), g.st, fast(t), disk, in)
	if !errors.Is(err, agent.ErrFull) {
		t.Fatalf("%v", err)
	}
	if _, ok := begun(t, disk); !ok {
		t.Error("the target does not say so")
	}
	must(t, syscall.Mount("orlop-test", disk, "tmpfs", syscall.MS_REMOUNT, "size=1m"))
	s, err := g.tryWith(t.Context(), g.st, fast(t), disk, in)
	must(t, err)
	if s.ProblemCount > 0 {
		t.Error(s.Problems)
	}
	treetest.Same(t, g.src, disk)
}

func TestAMarkerTellsWhichSnapshotItIsOf(t *testing.T) {
	s := id.Sum[id.Snapshot]([]byte("x"))
	text := restore.Marker(s)
	if len(text) > agent.MaxMarker || restore.ParseMarker(text) != s {
		t.Errorf("%q", text)
	}
	for _, other := range []string{"", "snapshot", "snapshot 12", strings.ReplaceAll(text, "snapshot ", "of ")} {
		if got := restore.ParseMarker(other); !got.IsZero() {
			t.Errorf("%q is of %s", other, got)
		}
	}
}

var someTime = time.Unix(1_500_000_000, 7)

// Whatever a tree is like, a restore over it makes it what the snapshot is.
func TestARestoreInPlaceIsExactWhateverWasThere(t *testing.T) {
	g := newRig(t, store.NewMem(), small)
	tiny(t, g.src)
	for i := range 4 {
		dir := fmt.Sprintf("%s/d%d", g.src, i)
		write(t, dir+"/file", treetest.Bytes(fmt.Sprint(i), 9000*i))
		must(t, os.Link(dir+"/file", g.src+fmt.Sprint("/linked", i)))
		must(t, os.Symlink("file", dir+"/link"))
		must(t, os.Link(dir+"/link", dir+"/link-too"))
		must(t, syscall.Mknod(dir+"/null", syscall.S_IFCHR|0o640, 1<<8|3))
		must(t, os.Chown(dir+"/file", i, 2*i))
		must(t, syscall.Chmod(dir+"/file", 0o4750))
		must(t, syscall.Chmod(dir, 0o1770))
	}
	g.backup(t)
	r := g.mustOpen(t, g.st)
	root := newest(t, r).Root
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		ops := rapid.IntRange(1, 40).Draw(rt, "ops")
		to := target(t)
		_, err := run(t.Context(), r, root, to)
		must(t, err)
		v := &vandal{rand.New(rand.NewPCG(seed, 1)), to, t.TempDir()}
		write(t, v.away+"/canary", []byte("sings"))
		before := stamps(t, v.away)
		for range ops {
			v.strike()
		}
		s := g.over(t, r, root, to, nil)
		if s.ProblemCount > 0 {
			rt.Fatalf("%v", s.Problems)
		}
		if !maps.Equal(before, stamps(t, v.away)) {
			rt.Fatal("what links lead to was changed")
		}
		diff, err := treetest.Diff(g.src, to)
		must(t, err)
		if len(diff) > 0 {
			rt.Fatalf("%d differences:\n%s", len(diff), strings.Join(diff[:min(len(diff), 10)], "\n"))
		}
		again := g.over(t, r, root, to, nil)
		if again.BytesWritten != 0 || again.Created+again.Changed+again.Removed != 0 {
			rt.Fatalf("the second time: %+v", again)
		}
		treetest.RemoveAll(t, to)
	})
}

// Two files that are to be different can be one that has both names, and that is
// right for one of them. Whoever takes his name away first must have copied it
// before the other writes to it.
func TestFilesThatAreOneArePartedBeforeEitherIsChanged(t *testing.T) {
	const pairs = 300
	g := newRig(t, store.NewMem(), small)
	for i := range pairs {
		write(t, fmt.Sprintf("%s/right/%d", g.src, i), treetest.Bytes(fmt.Sprint("right", i), 100_000))
		write(t, fmt.Sprintf("%s/wrong/%d", g.src, i), treetest.Bytes(fmt.Sprint("wrong", i), 100+i))
	}
	g.backup(t)
	r := g.mustOpen(t, g.st)
	root := newest(t, r).Root
	to := target(t)
	_, err := run(t.Context(), r, root, to)
	must(t, err)
	for range 5 {
		for i := range pairs {
			wrong := fmt.Sprintf("%s/wrong/%d", to, i)
			must(t, os.Remove(wrong))
			must(t, os.Link(fmt.Sprintf("%s/right/%d", to, i), wrong))
		}
		g.over(t, r, root, to, nil)
		diff, err := treetest.Diff(g.src, to)
		must(t, err)
		if len(diff) > 0 {
			t.Fatalf("%d differences:\n%s", len(diff), strings.Join(diff[:min(len(diff), 10)], "\n"))
		}
	}
}

// A vandal does odd things to a tree. What it cannot do, it leaves. It follows no
// links: it may be root.
type vandal struct {
	*rand.Rand
	dir  string
	away string // where links lead to
}

// path picks one of the paths that there are.
func (v *vandal) path() string {
	var all []string
	_ = filepath.WalkDir(v.dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != v.dir {
			all = append(all, path)
		}
		return nil
	})
	if len(all) == 0 {
		return v.dir + "/x"
	}
	slices.Sort(all)
	return all[v.IntN(len(all))]
}

// fresh picks a path that perhaps is not there.
func (v *vandal) fresh() string {
	p := v.path()
	if info, err := os.Lstat(p); err != nil || !info.IsDir() || v.IntN(2) == 0 {
		p = filepath.Dir(p)
	}
	if !strings.HasPrefix(p, v.dir) {
		p = v.dir
	}
	return fmt.Sprintf("%s/%s%d", p, strings.Repeat("~", v.IntN(2)), v.IntN(5))
}

// write writes a file, unless something else is there.
func (v *vandal) write(path string, data []byte) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o644)
	if err != nil {
		return
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		_, _ = f.Write(data)
	}
}

func (v *vandal) strike() {
	p := v.path()
	info, err := os.Lstat(p)
	if err != nil {
		return
	}
	size := info.Size()
	open := func(f func(*os.File)) {
		if !info.Mode().IsRegular() {
			return
		}
		if x, err := os.OpenFile(p, os.O_RDWR|syscall.O_NOFOLLOW, 0); err == nil {
			f(x)
			_ = x.Close()
		}
	}
	switch v.IntN(19) {
	case 0:
		_ = os.RemoveAll(p)
	case 1:
		open(func(f *os.File) { _ = f.Truncate(v.Int64N(size + 1)) })
	case 2:
		open(func(f *os.File) {
			_, _ = f.WriteAt(treetest.Bytes(fmt.Sprint(v.Uint64()), v.IntN(20_000)), v.Int64N(min(size, 1<<20)+1))
		})
	case 3:
		open(func(f *os.File) {
			_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, v.Int64N(size+1), 1+v.Int64N(100_000))
		})
	case 4:
		open(func(f *os.File) { _, _ = f.WriteAt(make([]byte, v.IntN(50_000)), v.Int64N(min(size, 8<<20)+1)) })
	case 5:
		open(func(f *os.File) { _ = f.Truncate(size + v.Int64N(100_000)) })
	case 6:
		if info.Mode().Type() != fs.ModeSymlink {
			_ = syscall.Chmod(p, uint32(v.IntN(0o10000)))
		}
	case 7:
		_ = os.Lchown(p, v.IntN(3), v.IntN(3))
	case 8:
		_ = unix.Lsetxattr(p, fmt.Sprintf("user.%d", v.IntN(3)), treetest.Bytes("x", v.IntN(1500)), 0)
	case 9:
		_ = unix.Lremovexattr(p, "security.capability")
		_ = unix.Lremovexattr(p, "system.posix_acl_access")
		_ = unix.Lremovexattr(p, "system.posix_acl_default")
	case 10:
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Sec: v.Int64N(1 << 31)}, {Sec: v.Int64N(1 << 31)}}, unix.AT_SYMLINK_NOFOLLOW)
	case 11:
		_ = os.Rename(p, v.fresh())
	case 12:
		_ = unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, v.path(), unix.RENAME_EXCHANGE)
	case 13:
		_ = os.Link(p, v.fresh())
	case 14:
		to := v.path()
		_ = os.RemoveAll(to)
		_ = os.Link(p, to)
	case 15:
		_ = os.RemoveAll(p)
		_ = os.Symlink([]string{v.away, v.path(), "x"}[v.IntN(3)], p)
	case 16:
		_ = os.RemoveAll(p)
		_ = os.MkdirAll(p+"/a/b", 0o755)
		v.write(p+"/a/f", treetest.Bytes("f", v.IntN(2000)))
	case 17:
		_ = os.RemoveAll(p)
		if v.IntN(2) == 0 {
			_ = syscall.Mkfifo(p, 0o600)
		} else {
			v.write(p, treetest.Bytes("f", v.IntN(20_000)))
		}
	case 18:
		v.write(v.fresh(), treetest.Text("new", v.IntN(3000)))
	}
}
