package store_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"orlop/store"
	"orlop/store/storetest"
)

// The calls below, and their order, are why an object whose Put returned is
// there after a power cut. A change to them is a change of the promise.
func TestDirSyncsBeforeItPromises(t *testing.T) {
	for _, tt := range []struct {
		name string
		fs   string
		do   func(*store.Dir) error
		want string
	}{
		{
			"the first object of a directory", "a file system with everything",
			func(d *store.Dir) error { return d.Put(t.Context(), "new/a", []byte("x")) },
			`mkdir new
syncdir .
tmpfile new
write new/a
sync new/a
link new/a
syncdir new`,
		},
		{
			"the next object", "a file system with everything",
			func(d *store.Dir) error { return d.Put(t.Context(), "known/b", []byte("x")) },
			`tmpfile known
write known/b
sync known/b
link known/b
syncdir known`,
		},
		{
			"an object at the top", "a file system with everything",
			func(d *store.Dir) error { return d.Put(t.Context(), "config", []byte("x")) },
			`tmpfile .
write config
sync config
link config
syncdir .`,
		},
		{
			"an object far down", "a file system with everything",
			func(d *store.Dir) error { return d.Put(t.Context(), "known/p/q/a", nil) },
			`mkdir known/p
syncdir known
mkdir known/p/q
syncdir known/p
tmpfile known/p/q
sync known/p/q/a
link known/p/q/a
syncdir known/p/q`,
		},
		{
			"an object that exists, perhaps made by a run that died before its fsync", "a file system with everything",
			func(d *store.Dir) error {
				if err := d.Put(t.Context(), "known/a", []byte("x")); !errors.Is(err, fs.ErrExist) {
					return fmt.Errorf("put: %w", err)
				}
				return nil
			},
			`tmpfile known
write known/a
sync known/a
link known/a
syncdir known`,
		},
		{
			"an object of 9 MiB", "a file system with everything",
			func(d *store.Dir) error { return d.Put(t.Context(), "known/big", make([]byte, 9<<20)) },
			`tmpfile known
direct known/big
write known/big
write known/big
write known/big
sync known/big
link known/big
syncdir known`,
		},
		{
			"without unnamed files", "without O_TMPFILE",
			func(d *store.Dir) error { return d.Put(t.Context(), "known/b", []byte("x")) },
			`tmpfile known
create known
write known/b
sync known/b
link known/b
remove known
syncdir known`,
		},
		{
			"without links", "without hard links",
			func(d *store.Dir) error { return d.Put(t.Context(), "known/b", []byte("x")) },
			`tmpfile known
write known/b
sync known/b
link known/b
create known
write known/b
sync known/b
link known/b
rename known/b
remove known
syncdir known`,
		},
		{
			"a pack goes past the cache", "a file system with everything",
			func(d *store.Dir) error { return d.Put(t.Context(), "known/b", make([]byte, 6<<20)) },
			`tmpfile known
direct known/b
write known/b
write known/b
sync known/b
link known/b
syncdir known`,
		},
		{
			"an odd length does not", "a file system with everything",
			func(d *store.Dir) error { return d.Put(t.Context(), "known/b", make([]byte, 1<<20+1)) },
			`tmpfile known
direct known/b
write known/b
sync known/b
link known/b
syncdir known`,
		},
		{
			"a delete", "a file system with everything",
			func(d *store.Dir) error { return d.Delete(t.Context(), "known/a") },
			"unlink known/a\nsyncdir known",
		},
		{
			"a delete of what is gone, perhaps by a run that died before its fsync", "a file system with everything",
			func(d *store.Dir) error { return d.Delete(t.Context(), "known/never") },
			"unlink known/never\nsyncdir known",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := openDir(t, t.TempDir(), nil)
			if err := d.Put(t.Context(), "known/a", []byte("x")); err != nil {
				t.Fatal(err)
			}
			var ops []string
			d.SetHook(func(op, name string) error {
				ops = append(ops, op+" "+name)
				if hook := hooks[tt.fs]; hook != nil {
					return hook(op, name)
				}
				return nil
			})
			if err := tt.do(d); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(tt.want, "\n"), ops); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// Whatever call fails, on whatever file system: the error is told, with the
// object's path; what is listed is whole; nothing is left lying about; and a
// Put whose fsync failed has made no object that a second try could take for a
// durable one.
func TestDirSurvivesEveryFailedCall(t *testing.T) {
	injected := 0
	for fsName, lacks := range hooks {
		for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EIO, syscall.EDQUOT} {
			for at := 0; ; at++ {
				dir := t.TempDir()
				calls, failed := 0, ""
				d := openDir(t, dir, func(op, name string) error {
					if lacks != nil {
						if err := lacks(op, name); err != nil {
							return err
						}
					}
					if calls++; calls-1 == at {
						failed = op
						return errno
					}
					return nil
				})
				err := d.Put(t.Context(), "a/b/c", []byte("whole"))
				if failed == "" {
					break // no more calls than this
				}
				injected++
				what := fmt.Sprintf("%s, %v at call %d (%s)", fsName, errno, at, failed)
				switch {
				case failed == "remove":
					// The object is there; that is what counts.
					if err != nil {
						t.Errorf("%s: %v", what, err)
					}
				case !errors.Is(err, errno):
					t.Errorf("%s: put returned %v", what, err)
				case !strings.Contains(err.Error(), filepath.Join(dir, "a/b/c")) || !strings.Contains(err.Error(), errno.Error()):
					t.Errorf("%s: the error does not say what and where: %v", what, err)
				case len(storetest.Infos(t, d, "")) != 0:
					t.Errorf("%s: a failed put left an object", what)
				}
				for _, info := range storetest.Infos(t, d, "") {
					if got := storetest.Read(t, d, info.Name); string(got) != "whole" {
						t.Errorf("%s: %s holds %q", what, info.Name, got)
					}
				}
				if left := temps(t, dir); len(left) > 0 && failed != "remove" {
					t.Errorf("%s: left behind: %v", what, left)
				}
				if err := d.Put(t.Context(), "a/b/c", []byte("whole")); err != nil && !errors.Is(err, fs.ErrExist) {
					t.Errorf("%s: second try: %v", what, err)
				}
				if got := storetest.Read(t, d, "a/b/c"); string(got) != "whole" {
					t.Errorf("%s: after the second try it holds %q", what, got)
				}
			}
		}
	}
	t.Logf("%d faults injected", injected)
}

func TestDirDoesNotReplaceWhereNothingProtects(t *testing.T) {
	d := openDir(t, t.TempDir(), func(op, _ string) error {
		switch op {
		case "tmpfile", "link":
			return syscall.EOPNOTSUPP
		case "rename":
			return syscall.EINVAL
		}
		return nil
	})
	err := d.Put(t.Context(), "a", []byte("x"))
	if err == nil || !strings.Contains(err.Error(), "neither hard links nor RENAME_NOREPLACE") {
		t.Errorf("put: %v", err)
	}
	if infos := storetest.Infos(t, d, ""); len(infos) > 0 {
		t.Errorf("it made %v", infos)
	}
}

// temps returns the unfinished files below dir.
func temps(t *testing.T, dir string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if strings.HasPrefix(e.Name(), ".") && path != dir {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A process is killed in the middle of writing, again and again. What it was
// told is stored is stored; what it was not told of is whole or not there.
func TestDirIsWholeAfterKills(t *testing.T) {
	for fsName := range hooks {
		t.Run(fsName, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			acked := map[store.Name]bool{}
			const kills = 12
			for round := range kills {
				cmd := child(t, "writer", dir, fsName, fmt.Sprint(round))
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				// The lines are read to the end: one that was in the pipe when
				// the writer died was acknowledged too.
				lines := bufio.NewScanner(out)
				for n := 0; lines.Scan(); n++ {
					acked[store.Name(lines.Text())] = true
					if n == round%5 {
						// Not always right behind an answer.
						for range round * 20000 {
							_ = os.Getpid()
						}
						if err := cmd.Process.Kill(); err != nil {
							t.Fatal(err)
						}
					}
				}
				if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("the writer was not killed: %v", err)
				}
			}
			d := openDir(t, dir, nil)
			listed := map[store.Name]bool{}
			for _, info := range storetest.Infos(t, d, "") {
				listed[info.Name] = true
				if got := storetest.Read(t, d, info.Name); !bytes.Equal(got, objectOf(info.Name)) {
					t.Errorf("%s is not whole: %d bytes", info.Name, len(got))
				}
			}
			for name := range acked {
				if !listed[name] {
					t.Errorf("%s was acknowledged and is gone", name)
				}
			}
			t.Logf("%d kills, %d objects acknowledged, %d there, %d unfinished files", kills, len(acked), len(listed), len(temps(t, dir)))
		})
	}
}

// writerToKill puts objects until it is killed and says which were stored.
func writerToKill() int {
	d, err := store.OpenDir(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	d.SetHook(hooks[os.Args[2]])
	for n := 0; ; n++ {
		name := store.Name(fmt.Sprintf("run%s/%d/%d", os.Args[3], n%4, n))
		if err := d.Put(context.Background(), name, objectOf(name)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println(name)
	}
}

// objectOf returns up to 3 MiB that only this name has.
func objectOf(name store.Name) []byte {
	size := 0
	for _, c := range []byte(name) {
		size = (size*31 + int(c)) % (3 << 20)
	}
	return bytes.Repeat(append([]byte(name), '\n'), size/(len(name)+1))
}

// child prepares this test binary to run one of children with arguments.
func child(t *testing.T, what string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), "ORLOP_STORE_TEST_CHILD="+what)
	cmd.Stderr = os.Stderr
	return cmd
}

// A full disk is an error that says where, and harms nothing that was stored.
// Full is played three ways: every call that can fail for want of space does so
// in TestDirSurvivesEveryFailedCall; here by a limit on the size of files,
// which anybody may set, and by small file systems in a mount namespace of our
// own, where the kernel lets us have one.
func TestDirOnAFullDisk(t *testing.T) {
	run := func(t *testing.T, cmd *exec.Cmd) {
		cmd.Stderr = nil
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Error(err)
		}
	}
	run(t, child(t, "limit", t.TempDir()))

	cmd := child(t, "tmpfs", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
	}
	run(t, cmd)
}

// fillBelowLimit lets the kernel cut writes short at many sizes.
func fillBelowLimit() int {
	signal.Ignore(syscall.SIGXFSZ)
	tries := 0
	for _, limit := range []uint64{0, 1, 100, 4095, 4096, 4097, 65536, 4 << 20, 5 << 20} {
		for fsName, hook := range hooks {
			if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: limit, Max: unix.RLIM_INFINITY}); err != nil {
				return complain(err)
			}
			dir := filepath.Join(os.Args[1], fmt.Sprint(limit), fsName)
			if err := fill(dir, hook, syscall.EFBIG, int(limit)+1); err != nil {
				return complain(fmt.Errorf("%s, limit %d: %w", fsName, limit, err))
			}
			tries++
		}
	}
	fmt.Println(tries, "limits reached")
	return 0
}

// fillSmallDisks fills file systems that lack bytes, or lack inodes.
func fillSmallDisks() int {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Println("no mounts here, so only the limits were tried:", err)
		return 0
	}
	tries := 0
	for _, size := range []string{"size=4k", "size=8k", "size=20k", "size=64k", "size=1m", "size=6m", "size=1m,nr_inodes=2", "size=1m,nr_inodes=3", "size=1m,nr_inodes=4", "size=1m,nr_inodes=9"} {
		for fsName, hook := range hooks {
			if err := unix.Mount("tmpfs", os.Args[1], "tmpfs", 0, size); err != nil {
				fmt.Println("no mounts here, so only the limits were tried:", err)
				return 0
			}
			if err := fill(os.Args[1], hook, syscall.ENOSPC, 5000); err != nil {
				return complain(fmt.Errorf("%s, %s: %w", fsName, size, err))
			}
			if err := unix.Unmount(os.Args[1], 0); err != nil {
				return complain(err)
			}
			tries++
		}
	}
	fmt.Println(tries, "disks filled")
	return 0
}

func complain(err error) int {
	fmt.Println(err)
	return 1
}

// fill puts objects of growing sizes into dir until one fails, which must be
// for the errno given, and looks at what is there then.
func fill(dir string, hook func(op, name string) error, want syscall.Errno, step int) error {
	ctx := context.Background()
	d, err := store.CreateDir(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	d.SetHook(hook)
	acked := map[store.Name]int{}
	for n := 0; ; n++ {
		name := store.Name(fmt.Sprintf("d%d/%d", n%3, n))
		data := bytes.Repeat([]byte{byte(n)}, n*step)
		err := d.Put(ctx, name, data)
		if err == nil {
			acked[name] = len(data)
			continue
		}
		if !errors.Is(err, want) || !strings.Contains(err.Error(), filepath.Join(dir, string(name))) {
			return fmt.Errorf("put returned %w", err)
		}
		break
	}
	listed := 0
	for info, err := range d.List(ctx, "") {
		if err != nil {
			return err
		}
		listed++
		size, ok := acked[info.Name]
		data, err := d.Get(ctx, info.Name, 0, -1)
		if err != nil || !ok || len(data) != size || info.Size != int64(size) {
			return fmt.Errorf("%s: %d bytes there, listed with %d, %d put, %v", info.Name, len(data), info.Size, size, err)
		}
	}
	if listed != len(acked) {
		return fmt.Errorf("%d objects acknowledged, %d listed", len(acked), listed)
	}
	// And there is a way out.
	for name := range acked {
		if err := d.Delete(ctx, name); err != nil {
			return err
		}
	}
	if len(acked) > 1 { // a file that is linked counts as two inodes on tmpfs
		return d.Put(ctx, "d0/again", nil)
	}
	return nil
}

func TestDirShowsOnlyObjects(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, dir, nil)
	if err := d.Put(t.Context(), "packs/ab", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, foreign := range []string{".tmp-ABC", "README", "lost+found/x", "packs/.tmp-X", "packs/.hidden/y", "packs/UPPER", ".snapshot/packs/ab"} {
		path := filepath.Join(dir, foreign)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "packs/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "empty/deep"), 0o700); err != nil {
		t.Fatal(err)
	}
	want := []store.Info{{Name: "packs/ab", Size: 1}}
	if diff := cmp.Diff(want, storetest.Infos(t, d, "")); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if _, err := d.Get(t.Context(), "packs/fifo", 0, -1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("get of a fifo: %v", err)
	}
	for _, taken := range []store.Name{"packs/fifo", "packs", "packs/ab/c"} {
		if err := d.Put(t.Context(), taken, nil); err == nil || errors.Is(err, fs.ErrExist) {
			t.Errorf("put where something else is, %s: %v", taken, err)
		}
	}
}

func TestDirLeadsNowhereElse(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "packs")); err != nil {
		t.Fatal(err)
	}
	d := openDir(t, dir, nil)
	if data, err := d.Get(t.Context(), "packs/secret", 0, -1); err == nil {
		t.Errorf("got %q from outside", data)
	}
	if err := d.Put(t.Context(), "packs/a", []byte("x")); err == nil {
		t.Error("put outside")
	}
	if err := d.Delete(t.Context(), "packs/secret"); err == nil {
		t.Error("deleted outside")
	}
	var err error
	for _, e := range d.List(t.Context(), "") {
		err = e
	}
	if err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "packs")+" is a symbolic link") {
		t.Errorf("list: %v", err)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
		t.Errorf("outside there is %v, %v", entries, err)
	}
}

// Unfinished files of dead writers are removed; those of living ones, and those
// that may be another host's, are not.
func TestDirSweepsWhatTheDeadLeft(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, age time.Duration) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		then := time.Now().Add(-age)
		if err := os.Chtimes(f.Name(), then, then); err != nil {
			t.Fatal(err)
		}
		return f
	}
	put(".tmp-dead", 25*time.Hour)
	put(".tmp-young", 23*time.Hour)
	put(".other", 25*time.Hour)
	if err := unix.Flock(int(put(".tmp-living", 25*time.Hour).Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	d := openDir(t, dir, hooks["without O_TMPFILE"])
	if err := d.Put(t.Context(), "a", nil); err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, path := range temps(t, dir) {
		left = append(left, filepath.Base(path))
	}
	if diff := cmp.Diff([]string{".other", ".tmp-living", ".tmp-young"}, left); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestOpenDirWantsADirectory(t *testing.T) {
	dir := t.TempDir()
	if _, err := store.OpenDir(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing directory: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.OpenDir(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file: %v", err)
	}
	if _, err := store.CreateDir(filepath.Join(file, "below")); err == nil {
		t.Error("a directory below a file was made")
	}
	for range 2 {
		d, err := store.CreateDir(filepath.Join(dir, "a/b/c"))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Put(t.Context(), "x", nil); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Error(err)
		}
		_ = d.Close()
	}
}

// A store outlives a change of the working directory and the loss of its
// subdirectories.
func TestDirComesBackAfterItsDirectoriesWereRemoved(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, dir, nil)
	for range 2 {
		if err := d.Put(t.Context(), "a/b", []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(dir, "a")); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkDirPut(b *testing.B) {
	for _, size := range []int{4 << 10, 16 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			d := openDir(b, b.TempDir(), nil)
			data := make([]byte, size)
			b.SetBytes(int64(size))
			for i := 0; b.Loop(); i++ {
				name := store.Name(fmt.Sprintf("packs/%d", i))
				if err := d.Put(b.Context(), name, data); err != nil {
					b.Fatal(err)
				}
				if err := d.Delete(b.Context(), name); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDirList(b *testing.B) {
	dir := b.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "packs"), 0o700); err != nil {
		b.Fatal(err)
	}
	const n = 10000
	for i := range n {
		if err := os.WriteFile(filepath.Join(dir, "packs", fmt.Sprintf("%064x", i)), nil, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	d := openDir(b, dir, nil)
	for b.Loop() {
		if got := len(storetest.Infos(b, d, "packs/")); got != n {
			b.Fatal(got)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "objects/s")
}
