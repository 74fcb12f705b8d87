package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"orlop/snapshot"
)

// canary is all that a change to anything below root would change. Of
// directories the change time is among it, which nobody can set; that of files,
// and their number of links, the racer moves when it plays with links to them.
func canary(t testing.TB, root string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		all[path] = fmt.Sprintf("mode %o owner %d:%d size %d modified %v", st.Mode, st.Uid, st.Gid, st.Size, st.Mtim)
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			all[path] += fmt.Sprintf(" links %d changed %v", st.Nlink, st.Ctim)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A racer plays with what is in a target while it is written: it puts links to
// another tree in place of directories, moves directories, and puts hard links
// to files of the other tree in place of files.
type racer struct {
	inside, outside string
	dirs            int
	swaps           atomic.Int64
}

func (r *racer) name(i int) string { return fmt.Sprintf("d%03d", i) }

// prepare makes both trees alike, and a link for each directory.
func (r *racer) prepare(t testing.TB) {
	t.Helper()
	var err error
	for i := range r.dirs {
		name := r.name(i)
		for _, root := range []string{r.inside, r.outside} {
			err = errors.Join(err, os.MkdirAll(filepath.Join(root, name, "s"), 0o700))
		}
		err = errors.Join(err,
			os.WriteFile(filepath.Join(r.outside, name, "s", "f"), []byte("canary"), 0o600),
			unix.Mkfifo(filepath.Join(r.outside, name, "s", "n"), 0o600),
			os.Symlink(filepath.Join(r.outside, name), filepath.Join(r.inside, "link-"+name)),
			// The inner one is swapped for a link, too.
			os.Symlink(filepath.Join(r.outside, name, "s"), filepath.Join(r.inside, name, "link")),
			// What is linked in is prepared here, so that the race itself
			// changes nothing outside.
			os.Link(filepath.Join(r.outside, name, "s", "f"), filepath.Join(r.inside, "file-"+name)),
			os.Link(filepath.Join(r.outside, name, "s", "n"), filepath.Join(r.inside, "fifo-"+name)),
		)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (r *racer) run(stop <-chan struct{}) {
	// It has no way out of the target either, as in a container.
	root, err := unix.Open(r.inside, unix.O_PATH, 0)
	if err != nil {
		panic(err)
	}
	defer unix.Close(root)
	dir := func(path string) (int, string) {
		dir, name := filepath.Split(path)
		fd, err := unix.Openat2(root, "./"+dir, &unix.OpenHow{Flags: unix.O_PATH, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
		if err != nil {
			return -1, ""
		}
		return fd, name
	}
	swap := func(a, b string) {
		da, na := dir(a)
		db, nb := dir(b)
		if unix.Renameat2(da, na, db, nb, unix.RENAME_EXCHANGE) == nil {
			r.swaps.Add(1)
		}
		_, _ = unix.Close(da), unix.Close(db)
	}
	for {
		select {
		case <-stop:
			return
		default:
		}
		name := r.name(rand.IntN(r.dirs))
		switch rand.IntN(5) {
		case 0:
			swap(name, "link-"+name)
		case 1:
			swap(name+"/s", name+"/link")
		case 2:
			swap(name, r.name(rand.IntN(r.dirs)))
		case 3:
			swap(name+"/s/f", "file-"+name)
		case 4:
			swap(name+"/s/n", "fifo-"+name)
		}
	}
}

// Whatever happens in the target, nothing outside of it is touched.
func TestARacerLeadsNothingOutOfTheTarget(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", plain), func(t *testing.T) {
			base := t.TempDir()
			r := &racer{inside: base + "/in", outside: base + "/out", dirs: 150}
			r.prepare(t)
			before := canary(t, r.outside)

			tg, err := openTarget(r.inside)
			if err != nil {
				t.Fatal(err)
			}
			defer tg.close()
			tg.noOpenat2.Store(plain)

			var writers, racers sync.WaitGroup
			stop := make(chan struct{})
			for range 2 {
				racers.Go(func() { r.run(stop) })
			}
			var ops, links, replaced, fine atomic.Int64
			count := func(err error) bool {
				ops.Add(1)
				switch {
				case err == nil:
					fine.Add(1)
				case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, errMount):
					links.Add(1)
				case errors.Is(err, errReplaced):
					replaced.Add(1)
				}
				return err == nil
			}
			for w := range 2 {
				writers.Go(func() {
					for k := 0; k < 1500 || k < 30_000 && (links.Load() == 0 || replaced.Load() == 0); k++ {
						play(tg, fmt.Sprintf("%s/s", r.name(rand.IntN(r.dirs))), fmt.Sprintf("%d-%d", w, k), count)
					}
				})
			}
			writers.Wait()
			close(stop)
			racers.Wait()
			if diff := cmp.Diff(before, canary(t, r.outside)); diff != "" {
				t.Errorf("the tree outside was changed (-before +after):\n%s", diff)
			}
			t.Logf("%d operations, %d fine, %d met a link, %d met another file, %d swaps",
				ops.Load(), fine.Load(), links.Load(), replaced.Load(), r.swaps.Load())
			if ops.Load() < 15_000 || links.Load() == 0 || replaced.Load() == 0 || r.swaps.Load() == 0 || fine.Load() == 0 {
				t.Error("there was no race")
			}
		})
	}
}

// play does everything that a restore does once in dir.
func play(tg *target, dir, name string, count func(error) bool) {
	mute := func(string) {}
	e := &snapshot.Entry{Dir: dir, Name: "f", Type: snapshot.File, Mode: 0o4777, UID: 4321, GID: 4321, Size: 4}
	if fd, _, err := tg.create(e); count(err) {
		var st unix.Stat_t
		count(unix.Fstat(fd, &st))
		id := inodeOf(&st)
		unix.Close(fd)
		if fd, err := tg.reopen(dir, "f", id, unix.O_WRONLY); count(err) {
			_, err = unix.Pwrite(fd, []byte("evil"), 0)
			count(err)
			handle{fd: fd}.dress(e, nil, mute)
			unix.Close(fd)
		}
		if count(tg.link(dir, "f", id, dir, name)) {
			count(tg.remove(dir, name, id))
		}
		count(tg.remove(dir, "f", id))
	} else {
		// It is there; perhaps it is not ours.
		fd, err := tg.reopen(dir, "f", inode{1, 1}, unix.O_WRONLY)
		if count(err) {
			unix.Close(fd)
		}
	}
	n := &snapshot.Entry{Dir: dir, Name: "n", Type: snapshot.Fifo, Mode: 0o777, UID: 4321, GID: 4321}
	if fd, _, err := tg.node(n); count(err) {
		var st unix.Stat_t
		count(unix.Fstat(fd, &st))
		id := inodeOf(&st)
		handle{fd: fd, path: true}.dress(n, nil, mute)
		unix.Close(fd)
		count(tg.remove(dir, "n", id))
	}
	if count(tg.mkdir(dir, "m")) {
		if fd, err := tg.enter(dir, "m"); count(err) {
			handle{fd: fd}.dress(&snapshot.Entry{Dir: dir, Name: "m", Type: snapshot.Dir, Mode: 0o777, UID: 4321}, nil, mute)
			unix.Close(fd)
		}
	}
	if fd, err := tg.enter(filepath.Dir(dir), "s"); count(err) {
		handle{fd: fd}.dress(&snapshot.Entry{Dir: "d", Name: "s", Type: snapshot.Dir, Mode: 0o700, MTime: someTime}, nil, mute)
		unix.Close(fd)
	}
}

// The same for a whole restore, with its workers and caches.
func TestARacerLeadsNoRestoreOutOfItsTarget(t *testing.T) {
	base := t.TempDir()
	r := &racer{inside: base + "/in", outside: base + "/out", dirs: 120}
	r.prepare(t)
	before := canary(t, r.outside)
	stop := make(chan struct{})
	var racers sync.WaitGroup
	racers.Go(func() { r.run(stop) })
	f := fill(t, local(t), r.inside)
	for i := range r.dirs {
		f.put(entry(snapshot.Dir, r.name(i), 0o755))
	}
	for i := range r.dirs {
		f.put(entry(snapshot.Dir, r.name(i)+"/s", 0o777))
		for k := range 40 {
			f.put(inline(entry(snapshot.File, fmt.Sprintf("%s/s/%02d", r.name(i), k), 0o666), "evil"))
		}
		f.put(inline(entry(snapshot.File, r.name(i)+"/s/f", 0o4755), "evil"))
		f.put(entry(snapshot.Fifo, r.name(i)+"/s/n", 0o777))
	}
	if _, err := f.End(); err != nil {
		t.Error(err)
	}
	close(stop)
	racers.Wait()
	if diff := cmp.Diff(before, canary(t, r.outside)); diff != "" {
		t.Errorf("the tree outside was changed (-before +after):\n%s", diff)
	}
	met := 0
	for _, p := range f.problems {
		if strings.Contains(p, unix.ELOOP.Error()) || strings.Contains(p, unix.ENOTDIR.Error()) || strings.Contains(p, errMount.Error()) {
			met++
		}
	}
	t.Logf("%d problems, %d met a link, %d swaps", len(f.problems), met, r.swaps.Load())
	if met == 0 {
		t.Error("there was no race")
	}
}

// A canary that never sings proves nothing.
func TestTheCanaryNoticesWhatARacerCanDo(t *testing.T) {
	out := t.TempDir()
	if err := os.WriteFile(out+"/f", []byte("canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, harm := range map[string]func() error{
		"mode":  func() error { return os.Chmod(out+"/f", 0o640) },
		"owner": func() error { return os.Chown(out+"/f", 1, 1) },
		"bytes": func() error { return os.WriteFile(out+"/f", []byte("evil"), 0o600) },
		"name":  func() error { return os.WriteFile(out+"/g", nil, 0o600) },
		"link":  func() error { return os.Link(out+"/f", out+"/h") },
	} {
		before := canary(t, out)
		if err := harm(); err != nil {
			t.Fatal(err)
		}
		if cmp.Equal(before, canary(t, out)) {
			t.Errorf("a change of %s went unnoticed", name)
		}
	}
}

func TestResolutionStopsAtMountsAndLinks(t *testing.T) {
	root := t.TempDir()
	if err := errors.Join(
		os.MkdirAll(root+"/a/mnt", 0o700), os.MkdirAll(root+"/a/bind", 0o700), os.Symlink("..", root+"/a/up"), os.Symlink("mnt", root+"/a/in"),
		unix.Mount("tmpfs", root+"/a/mnt", "tmpfs", 0, "size=1m"),
	); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(root+"/a/mnt", unix.MNT_DETACH)
	if err := unix.Mount(root, root+"/a/bind", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(root+"/a/bind", unix.MNT_DETACH)
	for _, plain := range []bool{false, true} {
		tg, err := openTarget(root)
		if err != nil {
			t.Fatal(err)
		}
		tg.noOpenat2.Store(plain)
		for path, want := range map[string]error{
			"a": nil, "a/mnt": errMount, "a/bind": errMount, "a/bind/a": errMount,
			"a/up": unix.ENOTDIR, "a/up/a": unix.ELOOP, "a/in/x": unix.ELOOP, "b": unix.ENOENT,
		} {
			d, err := tg.get(path)
			// Which of the two a link is called depends on the way.
			if want == unix.ELOOP && errors.Is(err, unix.ENOTDIR) || want == unix.ENOTDIR && errors.Is(err, unix.ELOOP) {
				err = want
			}
			if !errors.Is(err, want) {
				t.Errorf("plain=%v %s: %v, want %v", plain, path, err, want)
			}
			if err == nil {
				tg.put(d)
			}
		}
		tg.close()
	}
}

func TestFewDirectoriesAreOpenAtOnce(t *testing.T) {
	root := t.TempDir()
	tg, err := openTarget(root)
	if err != nil {
		t.Fatal(err)
	}
	defer tg.close()
	for i := range 300 {
		if err := tg.mkdir("", fmt.Sprintf("d%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 2000 {
				d, err := tg.get(fmt.Sprintf("d%d", rand.IntN(300)))
				if err != nil {
					t.Error(err)
					return
				}
				var a, b unix.Stat_t
				if err := errors.Join(unix.Fstat(d.fd, &a), unix.Lstat(root+"/"+d.path, &b)); err != nil || a.Ino != b.Ino {
					t.Errorf("%s: inode %d, want %d, %v", d.path, a.Ino, b.Ino, err)
				}
				tg.put(d)
			}
		})
	}
	all.Wait()
	if n := openBelow(t, root); n > maxOpenDirs+8 {
		t.Errorf("%d directories are open", n)
	}
}
