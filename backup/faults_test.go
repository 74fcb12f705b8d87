package backup_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"sync"
	"syscall"
	"testing"

	"orlop/backup"
	"orlop/chunk"
	"orlop/store"
	"orlop/store/storetest"
	"orlop/treetest"
)

// tiny makes a tree with a little of everything in it, and change changes it.
func tiny(t testing.TB, dir string) {
	t.Helper()
	write(t, dir+"/many-chunks", treetest.Bytes("many-chunks", 300_000))
	write(t, dir+"/a/inline", []byte("inline"))
	write(t, dir+"/a/gone", treetest.Text("gone", 9000))
	write(t, dir+"/a/b/c/deep", treetest.Text("deep", 20_000))
	for i := range 12 {
		write(t, fmt.Sprintf("%s/some/%d", dir, i), treetest.Text(fmt.Sprint(i), i*600))
	}
	must(t, os.Link(dir+"/many-chunks", dir+"/some/linked"))
	must(t, os.Symlink("../a", dir+"/some/link"))
	must(t, syscall.Mkfifo(dir+"/fifo", 0o600))
	must(t, syscall.Setxattr(dir+"/a/inline", "user.a", treetest.Bytes("x", 1500), 0))
	write(t, dir+"/sparse", treetest.Bytes("sparse", 10_000))
	must(t, os.Truncate(dir+"/sparse", 5<<20))
}

func change(t testing.TB, dir, seed string) {
	t.Helper()
	f, err := os.OpenFile(dir+"/many-chunks", os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(treetest.Bytes(seed, 5000), 100_000)
	must(t, err)
	must(t, f.Close())
	must(t, os.RemoveAll(dir+"/a/gone"))
	write(t, dir+"/a/new-"+seed, treetest.Bytes(seed+"new", 30_000))
	write(t, dir+"/some/3", treetest.Text(seed, 4000))
}

// ways are the ways in which an operation of a store can fail.
var ways = []storetest.Fault{storetest.Lost, storetest.Unsure, storetest.Dead}

// Whatever operation of a backup fails, and however, the snapshots that were
// there are untouched, the next backup succeeds, and nothing is damaged.
func TestABackupSurvivesEachFailedOperation(t *testing.T) {
	base := newRig(t, small)
	tiny(t, base.src)
	old := base.settle(t)
	before := base.restore(t, old.Snapshot)
	change(t, base.src, "changed")
	fired := 0
	for _, host := range []string{"that remembers", "that is new"} {
		for _, op := range []storetest.Op{storetest.Put, storetest.Get, storetest.List} {
			for _, way := range ways {
				for at := int64(0); ; at++ {
					g := base.again(t)
					if host == "that is new" {
						g.cache = fast(t)
					}
					faulty := &storetest.Faulty{Store: g.st, At: at, Fault: way, Op: op}
					s, err := g.try(t.Context(), faulty, backup.Options{})
					if faulty.Fired() == 0 {
						if err != nil {
							t.Fatalf("without a fault: %v", err)
						}
						break // the backup makes no more operations than this
					}
					fired++
					what := fmt.Sprintf("%v %v %d on a host %s", op, way, at, host)
					if err != nil && !errors.Is(err, storetest.ErrInjected) {
						t.Errorf("%s: hid the fault: %v", what, err)
					}
					if err == nil { // it was acknowledged
						g.holds(t, s.Snapshot, g.src)
					}
					g.holds(t, g.whole(t).Snapshot, g.src)
					// Check reads all that the old one needs; that it is right
					// then, some restores have to tell.
					if n := g.check(t); n < 2 {
						t.Errorf("%s: %d snapshots", what, n)
					}
					if fired%4 == 0 {
						g.holds(t, old.Snapshot, before)
					}
					if t.Failed() {
						t.Fatalf("after %s", what)
					}
				}
			}
		}
	}
	t.Logf("%d faults fired, 0 violations", fired)
	if fired < 60 {
		t.Errorf("only %d faults fired", fired)
	}
}

// A trap is a store at one operation of which something happens, before it or
// after it.
type trap struct {
	store.Store
	at     int
	after  bool
	spring func()

	mu sync.Mutex
	n  int
}

func (s *trap) step(do func()) {
	s.mu.Lock()
	hit := s.n == s.at
	s.n++
	s.mu.Unlock()
	if hit && !s.after {
		s.spring()
	}
	do()
	if hit && s.after {
		s.spring()
	}
}

func (s *trap) Put(ctx context.Context, name store.Name, data []byte) (err error) {
	s.step(func() { err = s.Store.Put(ctx, name, data) })
	return err
}

func (s *trap) Get(ctx context.Context, name store.Name, off, n int64) (data []byte, err error) {
	s.step(func() { data, err = s.Store.Get(ctx, name, off, n) })
	return data, err
}

func (s *trap) List(ctx context.Context, prefix store.Name) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		s.step(func() { s.Store.List(ctx, prefix)(yield) })
	}
}

// Wherever a backup is cancelled, it says so or it is done; there is no
// snapshot that nobody was told of unless it was put already, and the next
// backup is whole.
func TestABackupCanBeCancelledAtEachOperation(t *testing.T) {
	base := newRig(t, small)
	tiny(t, base.src)
	old := base.settle(t)
	before := base.restore(t, old.Snapshot)
	change(t, base.src, "changed")
	fired := 0
	for at := 0; ; at++ {
		g := base.again(t)
		ctx, cancel := context.WithCancel(t.Context())
		st := &trap{Store: g.st, at: at, after: at%2 == 0, spring: cancel}
		s, err := g.try(ctx, st, backup.Options{})
		if st.n <= at {
			cancel()
			must(t, err)
			break
		}
		fired++
		switch {
		case err == nil:
			g.holds(t, s.Snapshot, g.src)
		case !errors.Is(err, context.Canceled):
			t.Errorf("operation %d: %v", at, err)
		}
		g.holds(t, old.Snapshot, before)
		g.holds(t, g.whole(t).Snapshot, g.src)
		g.check(t)
		if t.Failed() {
			t.Fatalf("after operation %d", at)
		}
	}
	t.Logf("%d faults fired, 0 violations", fired)
	if fired < 10 {
		t.Errorf("only %d faults fired", fired)
	}
}

// What a backup had stored when it was cancelled is not stored again.
func TestACancelledBackupLeavesItsWork(t *testing.T) {
	g := newRig(t, cut(t, chunk.Gear))
	const size = 34 << 20 // a pack is put at 16 MiB, and the agent may be 8 MiB ahead
	write(t, g.src+"/f", treetest.Bytes("f", size))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	fired := 0
	opt := once(func(p backup.Progress) bool { return p.BytesStored > 0 }, func() { fired++; cancel() })
	s, err := g.try(ctx, g.st, opt)
	if fired != 1 || !errors.Is(err, context.Canceled) {
		t.Fatalf("fired %d times: %+v, %v", fired, s, err)
	}
	if n := len(storetest.Infos(t, g.st, "snapshots/")); n != 0 {
		t.Errorf("%d snapshots", n)
	}
	if open, done := len(storetest.Infos(t, g.st, "ephemeral/open/")), len(storetest.Infos(t, g.st, "ephemeral/done/")); open != 1 || done != 1 {
		t.Errorf("%d sessions were opened and %d ended", open, done)
	}
	next := g.whole(t)
	if saved := size - int64(next.BytesNew); saved < 15<<20 {
		t.Errorf("%d bytes were stored again", next.BytesNew)
	}
	g.holds(t, next.Snapshot, g.src)
	g.check(t)
}
