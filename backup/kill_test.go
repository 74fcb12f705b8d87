package backup_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"orlop/backup"
	"orlop/chunk"
	"orlop/id"
	"orlop/seal"
	"orlop/store"
	"orlop/store/storetest"
)

// An order is what a child is to do: back up, and be killed or fail on the way.
type order struct {
	Store, Key, Cache, Src string

	At    int  // operation of the store at which it kills itself
	After bool // and not before it

	FileSize uint64 // no file may become larger, as on a disk that is full; 0: any
}

// nobody is who has no rights.
const nobody = 65534

// dropRights makes this process nobody's.
func dropRights() {
	for _, err := range []error{syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)} {
		if err != nil {
			fmt.Fprintln(os.Stderr, "drop rights:", err)
			os.Exit(1)
		}
	}
}

// child carries out an order and prints the snapshot it made.
func child(task string) int {
	s, err := func() (id.Snapshot, error) {
		var o order
		if err := json.Unmarshal([]byte(task), &o); err != nil {
			return id.Snapshot{}, err
		}
		dir, err := store.OpenDir(o.Store)
		if err != nil {
			return id.Snapshot{}, err
		}
		defer dir.Close()
		key, err := seal.ParseText(o.Key)
		if err != nil {
			return id.Snapshot{}, err
		}
		if o.FileSize > 0 {
			signal.Ignore(syscall.SIGXFSZ)
			limit := syscall.Rlimit{Cur: o.FileSize, Max: o.FileSize}
			if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
				return id.Snapshot{}, err
			}
		}
		g := &rig{key: key, cache: o.Cache, src: o.Src}
		st := &trap{Store: dir, at: o.At, after: o.After, spring: func() {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}}
		s, err := g.try(context.Background(), st, backup.Options{})
		if err != nil {
			return id.Snapshot{}, err
		}
		return s.Snapshot, nil
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(s)
	return 0
}

// send runs a child. killed says that it killed itself.
func send(t testing.TB, o order) (s id.Snapshot, killed bool, err error) {
	t.Helper()
	task, err := json.Marshal(o)
	must(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "ORLOP_BACKUP_TEST="+string(task), "GORACE=atexit_sleep_ms=0")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL {
			return s, true, nil
		}
		return s, false, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	must(t, err)
	s, err = id.Parse[id.Snapshot](strings.TrimSpace(string(out)))
	must(t, err)
	return s, false, nil
}

func newDirRig(t testing.TB, path string, c chunk.Config) *rig {
	t.Helper()
	dir, err := store.CreateDir(path)
	must(t, err)
	t.Cleanup(func() { must(t, dir.Close()) })
	return newRigOn(t, dir, c)
}

// Wherever orlop is killed, the snapshots that were there restore, the next
// backup needs no human, and nothing is damaged. Store, stat cache and index
// are each time what the killed ones left.
func TestABackupSurvivesBeingKilledAtEachOperation(t *testing.T) {
	path := filepath.Join(fast(t), "repo")
	g := newDirRig(t, path, small)
	tiny(t, g.src)
	old := g.settle(t)
	before := g.restore(t, old.Snapshot)
	o := order{Store: path, Key: g.key.Text(), Cache: g.cache, Src: g.src}
	fired := 0
	for o.At = 0; ; o.At++ {
		killed := 0
		for _, o.After = range []bool{false, true} {
			change(t, g.src, fmt.Sprint(o.At, o.After))
			s, dead, err := send(t, o)
			if err != nil {
				t.Fatalf("operation %d: %v", o.At, err)
			}
			if dead {
				killed++
			} else {
				g.holds(t, s, g.src)
			}
			g.holds(t, g.whole(t).Snapshot, g.src)
		}
		g.check(t)
		if o.At%4 == 0 {
			g.holds(t, old.Snapshot, before)
		}
		if t.Failed() {
			t.Fatalf("after a kill at operation %d", o.At)
		}
		if fired += killed; killed == 0 {
			break // the backup makes no more operations than this
		}
	}
	r := g.mustOpen(t)
	dead, err := r.Local().Dead()
	must(t, err)
	t.Logf("%d faults fired, 0 violations; %d sessions of the dead remain to be tidied", fired, len(dead))
	if fired < 20 || len(dead) == 0 {
		t.Errorf("only %d kills, %d dead sessions", fired, len(dead))
	}
	if n := len(storetest.Infos(t, g.st, "ephemeral/open/")); n < len(dead) {
		t.Errorf("%d sessions opened, %d dead", n, len(dead))
	}
}
