package restore_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"orlop/agent"
	"orlop/repo"
	"orlop/restore"
	"orlop/seal"
	"orlop/snapshot"
	"orlop/store"
	"orlop/store/storetest"
	"orlop/treetest"
)

var ways = []storetest.Fault{storetest.Lost, storetest.Unsure, storetest.Dead}

// Whatever reading fails, and however, a restore says so and gives no wrong
// bytes, and the next one is right.
func TestARestoreNoticesEachFailedOperation(t *testing.T) {
	g := newRig(t, store.NewMem(), small)
	tiny(t, g.src)
	g.backup(t)
	want := look(t, g.src)
	warm := fast(t)
	_, err := g.try(t.Context(), g.st, warm, target(t))
	must(t, err)
	fired := 0
	for _, cache := range []func() string{func() string { return warm }, func() string { return fast(t) }} {
		for _, op := range []storetest.Op{storetest.Get, storetest.List} {
			for _, way := range ways {
				for at := int64(0); ; at++ {
					faulty := &storetest.Faulty{Store: g.st, At: at, Fault: way, Op: op}
					to, host := target(t), cache()
					s, err := g.try(t.Context(), faulty, host, to)
					if faulty.Fired() == 0 {
						must(t, err)
						treetest.Same(t, g.src, to)
						break // a restore makes no more operations than this
					}
					fired++
					what := fmt.Sprintf("%v %v %d", op, way, at)
					switch {
					case err != nil && !errors.Is(err, storetest.ErrInjected):
						t.Errorf("%s: hid the fault: %v", what, err)
					case err == nil && (s == nil || s.ProblemCount > 0):
						t.Errorf("%s: a store that does not answer was taken for damage: %+v", what, s)
					case err == nil: // one that was tried again
						treetest.Same(t, g.src, to)
					}
					if wrong := lies(want, look(t, to)); err == nil && len(wrong) > 0 {
						t.Errorf("%s: wrong: %q", what, wrong)
					}
					to = target(t)
					_, err = g.try(t.Context(), g.st, host, to)
					must(t, err)
					treetest.Same(t, g.src, to)
					if t.Failed() {
						t.Fatalf("after %s", what)
					}
				}
			}
		}
	}
	t.Logf("%d faults fired, 0 violations", fired)
	if fired < 40 {
		t.Errorf("only %d faults fired", fired)
	}
}

// Whatever byte of whatever object is wrong, a restore ends with an error, or
// names what it could not restore and the rest is right. Nothing is wrong.
func TestARestoreFromADamagedRepositoryNeverGivesWrongBytes(t *testing.T) {
	mem := store.NewMem()
	g := newRig(t, mem, small)
	write(t, g.src+"/a", treetest.Bytes("a", 3000))
	write(t, g.src+"/d/b", treetest.Text("b", 9000))
	write(t, g.src+"/d/inline", []byte("inline"))
	must(t, os.Symlink("a", g.src+"/link"))
	must(t, os.Link(g.src+"/d/b", g.src+"/z"))
	g.backup(t)
	write(t, g.src+"/d/b", treetest.Text("b2", 9000))
	write(t, g.src+"/e", treetest.Bytes("e", 60_000))
	g.backup(t)
	want := look(t, g.src)
	objects := storetest.Infos(t, mem, "")

	// One snapshot is the newest; with it unreadable the older one is.
	var old copied
	{
		st := storetest.Copy(t, mem)
		r := g.mustOpen(t, st)
		all, _, err := r.Snapshots(t.Context())
		must(t, err)
		storetest.Remove(t, st, store.Name(fmt.Sprintf("snapshots/%s-%s", all[1].Session, all[1].ID)))
		to := target(t)
		_, err = g.try(t.Context(), st, fast(t), to)
		must(t, err)
		old = look(t, to)
	}
	warm := fast(t)
	_, err := g.try(t.Context(), mem, warm, target(t))
	must(t, err)

	base := fast(t)
	var tried, refused, partly, right int
	try := func(what string, damage func(st *store.Mem)) {
		st := storetest.Copy(t, mem)
		damage(st)
		tried++
		to, cache := filepath.Join(base, fmt.Sprint("to", tried)), filepath.Join(base, fmt.Sprint("cache", tried))
		must(t, os.Mkdir(to, 0o755))
		if tried%2 == 0 { // a host that remembers
			must(t, os.CopyFS(cache, os.DirFS(warm)))
		}
		s, err := g.try(t.Context(), st, cache, to)
		got := look(t, to)
		switch {
		case err != nil:
			refused++
			if !errors.Is(err, repo.ErrDamaged) && !errors.Is(err, seal.ErrWrongSecret) && !errors.Is(err, repo.ErrNoRepository) && !errors.Is(err, repo.ErrFormat) {
				t.Errorf("%s: %v", what, err)
			}
		case s == nil: // no snapshot is shown
			refused++
		default:
			wrong := lies(want, got)
			whole := len(got) == len(want)
			if len(wrong) > 0 {
				wrong, whole = lies(old, got), len(got) == len(old)
			}
			if len(wrong) > 0 {
				t.Errorf("%s: wrong: %q", what, wrong)
			}
			if whole == (s.ProblemCount > 0) {
				t.Errorf("%s: %d files and directories, problems %v", what, len(got), s.Problems)
			}
			if whole {
				right++
			} else {
				partly++
				// Each of those that are missing is named, or a directory above
				// it, or the part of the tree that it was in.
				for path := range want {
					if _, ok := got[path]; !ok && len(wrong) == 0 && !named(s.Problems, path) {
						t.Errorf("%s: %s is missing and not named: %v", what, path, s.Problems)
					}
				}
			}
		}
		must(t, os.RemoveAll(to))
		must(t, os.RemoveAll(cache))
	}
	for _, o := range objects {
		n := int64(40)
		if strings.HasPrefix(string(o.Name), "packs/") {
			n = 250
		}
		if strings.HasPrefix(string(o.Name), "ephemeral/") {
			n = 2
		}
		step := max(1, o.Size/n)
		for off := int64(0); off < o.Size; off += step {
			try(fmt.Sprintf("flip %s at %d", o.Name, off), func(st *store.Mem) {
				storetest.Flip(t, st, o.Name, off, 1<<(off%8))
			})
		}
		for _, n := range []int64{0, 1, o.Size / 2, o.Size - 1} {
			try(fmt.Sprintf("truncate %s to %d", o.Name, n), func(st *store.Mem) { storetest.Truncate(t, st, o.Name, n) })
		}
		try("remove "+string(o.Name), func(st *store.Mem) { storetest.Remove(t, st, o.Name) })
		for _, p := range objects {
			if data := storetest.Read(t, mem, p.Name); p.Name != o.Name && !bytes.Equal(data, storetest.Read(t, mem, o.Name)) {
				try(fmt.Sprintf("put %s in the place of %s", p.Name, o.Name), func(st *store.Mem) {
					storetest.Replace(t, st, o.Name, data)
				})
			}
		}
	}
	t.Logf("%d faults fired, 0 violations: %d restores were refused, %d gave part and said so, %d all", tried, refused, partly, right)
	if partly == 0 || right == 0 {
		t.Error("one of these never happened")
	}
}

// named reports whether the problems speak of a path.
func named(problems []snapshot.Problem, path string) bool {
	for _, p := range problems {
		if p.Path == path || p.Path == "" || strings.HasPrefix(path, p.Path+"/") {
			return true
		}
	}
	return false
}

// An order is what a child is to do: restore, and be killed on the way.
type order struct {
	Store, Key, Cache, Target string

	At int // Get of the store at which it kills itself

	FileSize uint64 // no file may become larger; 0: any
	InPlace  bool
}

// A trap is a store that does something before one of its Gets.
type trap struct {
	store.Store
	at     int
	spring func()

	mu sync.Mutex
	n  int
}

func (s *trap) Get(ctx context.Context, name store.Name, off, n int64) ([]byte, error) {
	s.mu.Lock()
	hit := s.n == s.at
	s.n++
	s.mu.Unlock()
	if hit {
		s.spring()
	}
	return s.Store.Get(ctx, name, off, n)
}

func (s *trap) List(ctx context.Context, prefix store.Name) iter.Seq2[store.Info, error] {
	return s.Store.List(ctx, prefix)
}

func (o order) command(t testing.TB) *exec.Cmd {
	t.Helper()
	task, err := json.Marshal(o)
	must(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "ORLOP_RESTORE_TEST="+string(task), "GORACE=atexit_sleep_ms=0")
	return cmd
}

func child(task string) int {
	err := func() error {
		var o order
		if err := json.Unmarshal([]byte(task), &o); err != nil {
			return err
		}
		dir, err := store.OpenDir(o.Store)
		if err != nil {
			return err
		}
		defer dir.Close()
		key, err := seal.ParseText(o.Key)
		if err != nil {
			return err
		}
		if o.FileSize > 0 {
			signal.Ignore(syscall.SIGXFSZ)
			limit := syscall.Rlimit{Cur: o.FileSize, Max: o.FileSize}
			if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
				return err
			}
		}
		g := &rig{key: key}
		st := &trap{Store: dir, at: o.At, spring: func() {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}}
		var opt restore.Options
		if o.InPlace {
			opt.InPlace = new(restore.InPlace)
		}
		s, err := g.tryWith(context.Background(), st, o.Cache, o.Target, opt)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(s)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// A restore that was killed is done again elsewhere, and harms nothing.
func TestARestoreSurvivesBeingKilledAtEachGet(t *testing.T) {
	path := fast(t) + "/repo"
	dir, err := store.CreateDir(path)
	must(t, err)
	defer dir.Close()
	g := newRig(t, dir, small)
	tiny(t, g.src)
	g.backup(t)
	before := storetest.Copy(t, dir)
	o := order{Store: path, Key: g.key.Text(), Cache: fast(t)}
	fired := 0
	for o.At = 0; ; o.At++ {
		o.Target = target(t)
		cmd := o.command(t)
		out, err := cmd.CombinedOutput()
		if err == nil {
			treetest.Same(t, g.src, o.Target)
			break // a restore makes no more Gets than this
		}
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
			t.Fatalf("%v: %s", err, out)
		}
		fired++
		to := target(t)
		s, err := g.try(t.Context(), dir, o.Cache, to)
		if err != nil || s.ProblemCount > 0 {
			t.Fatalf("%+v, %v", s, err)
		}
		treetest.Same(t, g.src, to)
	}
	for _, o := range storetest.Infos(t, dir, "") {
		if !bytes.Equal(storetest.Read(t, dir, o.Name), storetest.Read(t, before, o.Name)) {
			t.Errorf("%s was changed", o.Name)
		}
	}
	t.Logf("%d faults fired, 0 violations", fired)
	if fired < 4 {
		t.Errorf("only %d kills", fired)
	}
}

// Wherever a restore is cancelled, it says so or it is done.
func TestARestoreCanBeCancelledAtEachGet(t *testing.T) {
	g := newRig(t, store.NewMem(), small)
	tiny(t, g.src)
	g.backup(t)
	fired := 0
	for at := 0; ; at++ {
		ctx, cancel := context.WithCancel(t.Context())
		st := &trap{Store: g.st, at: at, spring: cancel}
		to := target(t)
		_, err := g.try(ctx, st, fast(t), to)
		cancel()
		if st.n <= at {
			must(t, err)
			break
		}
		fired++
		if err == nil {
			treetest.Same(t, g.src, to)
		} else if !errors.Is(err, context.Canceled) {
			t.Errorf("get %d: %v", at, err)
		}
		g.holds(t, g.src)
	}
	t.Logf("%d faults fired, 0 violations", fired)
	if fired < 4 {
		t.Errorf("only %d were cancelled", fired)
	}
}

// A target that is full ends the restore, which says so; nothing passes for
// restored that is not, and with more room it all is.
func TestARestoreToAFullDiskSaysSo(t *testing.T) {
	g := newRig(t, store.NewMem(), small)
	tiny(t, g.src)
	g.backup(t)
	want := look(t, g.src)
	cache := fast(t)
	fired := 0
	for blocks := 1; ; blocks += 2 {
		disk := fast(t)
		if !mount(t, "tmpfs", disk, fmt.Sprintf("size=%d,nr_inodes=0", blocks*4096)) {
			restoreByLimit(t)
			return
		}
		s, err := g.try(t.Context(), g.st, cache, disk)
		if err == nil {
			if wrong := lies(want, look(t, disk)); len(wrong) > 0 || len(look(t, disk)) != len(want) || s.ProblemCount > 0 {
				t.Errorf("%d blocks: wrong %q, problems %v", blocks, wrong, s.Problems)
			}
			break
		}
		fired++
		if !errors.Is(err, agent.ErrFull) || !strings.Contains(err.Error(), "no space left on device") {
			t.Errorf("%d blocks: %v", blocks, err)
		}
		g.holds(t, g.src)
	}
	t.Logf("%d faults fired, 0 violations", fired)
	if fired < 5 {
		t.Errorf("only %d faults fired", fired)
	}
}

// The same without the right to mount: a file that cannot be written whole is
// named and is not there, the others are.
func TestAFileThatCannotBeWrittenIsNamedAndNotThere(t *testing.T) { restoreByLimit(t) }

func restoreByLimit(t *testing.T) {
	path := fast(t) + "/repo"
	dir, err := store.CreateDir(path)
	must(t, err)
	defer dir.Close()
	g := newRig(t, dir, small)
	tiny(t, g.src)
	g.backup(t)
	want := look(t, g.src)
	o := order{Store: path, Key: g.key.Text(), Cache: fast(t), At: -1}
	_, err = g.try(t.Context(), dir, o.Cache, target(t)) // the index is larger than some of the limits
	must(t, err)
	fired := 0
	for o.FileSize = 4096; ; o.FileSize *= 2 {
		o.Target = target(t)
		out, err := o.command(t).Output()
		must(t, err)
		var s restore.Summary
		must(t, json.Unmarshal(out, &s))
		got := look(t, o.Target)
		if wrong := lies(want, got); len(wrong) > 0 {
			t.Errorf("files of %d bytes: wrong: %q", o.FileSize, wrong)
		}
		if s.ProblemCount == 0 {
			if len(got) != len(want) {
				t.Errorf("%d files and directories, not %d", len(got), len(want))
			}
			break
		}
		fired++
		for path := range want {
			if _, ok := got[path]; !ok && !named(s.Problems, path) {
				t.Errorf("files of %d bytes: %s is missing and not named: %v", o.FileSize, path, s.Problems)
			}
		}
		if len(got) == len(want) {
			t.Errorf("files of %d bytes: all are there, problems %v", o.FileSize, s.Problems)
		}
		for _, p := range s.Problems {
			if exists(o.Target + "/" + p.Path) {
				t.Errorf("files of %d bytes: %s is there: %s", o.FileSize, p.Path, p.Reason)
			}
		}
	}
	t.Logf("%d faults fired, 0 violations", fired)
	if fired < 4 {
		t.Errorf("only %d faults fired", fired)
	}
}
