package backup_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"orlop/agent"
	"orlop/backup"
	"orlop/chunk"
	"orlop/id"
	"orlop/repo"
	"orlop/restore"
	"orlop/seal"
	"orlop/snapshot"
	"orlop/store"
	"orlop/store/storetest"
	"orlop/treetest"
)

// TestMain lets the test binary be the orlop that is killed, or one without
// rights.
func TestMain(m *testing.M) {
	switch task := os.Getenv("ORLOP_BACKUP_TEST"); task {
	case "":
	case "nobody":
		dropRights()
	default:
		os.Exit(child(task))
	}
	goleak.VerifyTestMain(m)
}

// small cuts files so finely that little data has many chunks.
var small = chunk.Config{Algorithm: chunk.Gear, Min: 2 << 10, Avg: 8 << 10, Max: 32 << 10}

func cut(t testing.TB, a chunk.Algorithm) chunk.Config {
	t.Helper()
	c, err := chunk.Default(a)
	must(t, err)
	return c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A rig is a repository, a host that backs up to it, and the directory that
// the host backs up.
type rig struct {
	st    store.Deleter
	key   *seal.Key
	cache string // what the host remembers
	src   string
	log   *slog.Logger // may be nil
}

func newRig(t testing.TB, c chunk.Config) *rig {
	t.Helper()
	return newRigOn(t, store.NewMem(), c)
}

func newRigOn(t testing.TB, st store.Deleter, c chunk.Config) *rig {
	t.Helper()
	g := &rig{st: st, key: seal.NewKey(), cache: fast(t), src: t.TempDir()}
	_, err := repo.Init(t.Context(), st, g.key, text(g.key), c)
	must(t, err)
	return g
}

// again is the rig as it was when it was made, for the next fault.
func (g *rig) again(t testing.TB) *rig {
	t.Helper()
	h := &rig{st: storetest.Copy(t, g.st), key: g.key, cache: fast(t), src: g.src}
	must(t, os.CopyFS(h.cache, os.DirFS(g.cache)))
	return h
}

// fast is a directory in memory, if there is such a thing here: what a test
// only makes so that orlop can fsync it.
func fast(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "orlop-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		treetest.RemoveAll(t, dir)
		must(t, os.Remove(dir))
	})
	return dir
}

func text(k *seal.Key) seal.Secret {
	s, err := seal.Text(k.Text())
	if err != nil {
		panic(err)
	}
	return s
}

// open opens the repository by way of st, as the host.
func (g *rig) open(ctx context.Context, st store.Store) (*repo.Repo, error) {
	return repo.Open(ctx, st, text(g.key), repo.Options{Text: g.key.Text(), Cache: g.cache, Log: g.log})
}

func (g *rig) mustOpen(t testing.TB) *repo.Repo {
	t.Helper()
	r, err := g.open(t.Context(), g.st)
	must(t, err)
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// source is the directory as a backup knows it. Its name is not its path, so
// that it can be moved.
func source(dir string) backup.Source {
	return backup.Source{Source: snapshot.Source{Kind: snapshot.Directory, Name: "/src", Host: "h"}, Root: dir}
}

// try backs up by way of st, with an agent of its own.
func (g *rig) try(ctx context.Context, st store.Store, opt backup.Options) (*backup.Summary, error) {
	r, err := g.open(ctx, st)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	c, err := agent.Local(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return backup.Run(ctx, r, c, source(g.src), opt)
}

func (g *rig) backup(t testing.TB) *backup.Summary {
	t.Helper()
	return g.backupWith(t, backup.Options{})
}

func (g *rig) backupWith(t testing.TB, opt backup.Options) *backup.Summary {
	t.Helper()
	s, err := g.try(t.Context(), g.st, opt)
	if err != nil {
		t.Fatalf("backup: %v", err)
	}
	return s
}

// whole is a backup of which everything is expected.
func (g *rig) whole(t testing.TB) *backup.Summary {
	t.Helper()
	s := g.backup(t)
	if s.Partial() {
		t.Fatalf("partial: skipped %v, torn %v", s.Skipped, s.Torn)
	}
	return s
}

// settle backs up until the stat cache knows everything: what was written just
// now it must not believe, and how long now is the clock says.
func (g *rig) settle(t testing.TB) *backup.Summary {
	t.Helper()
	for range 100 {
		if s := g.whole(t); s.BytesRead == 0 && s.BytesNew == 0 {
			return s
		}
	}
	t.Fatal("files that nobody touches are read again and again")
	return nil
}

// find returns a snapshot as a host sees it that has never been here.
func (g *rig) find(t testing.TB, want id.Snapshot) (*repo.Repo, repo.Snapshot) {
	t.Helper()
	stranger := *g
	stranger.cache = fast(t)
	r := stranger.mustOpen(t)
	all, broken, err := r.Snapshots(t.Context())
	must(t, err)
	if len(broken) > 0 {
		t.Fatalf("damaged: %v", broken)
	}
	must(t, r.Refresh(t.Context()))
	i := slices.IndexFunc(all, func(s repo.Snapshot) bool { return s.ID == want })
	if i < 0 {
		t.Fatalf("snapshot %s is not listed", want.Short())
	}
	return r, all[i]
}

// restore restores a snapshot to a new directory and returns that.
func (g *rig) restore(t testing.TB, s id.Snapshot) string {
	t.Helper()
	r, snap := g.find(t, s)
	c, err := agent.Local(t.Context())
	must(t, err)
	defer c.Close()
	target := t.TempDir()
	t.Cleanup(func() { treetest.RemoveAll(t, target) })
	sum, err := restore.Run(t.Context(), r, c, snap.Root, target, restore.Options{})
	if err != nil {
		t.Fatalf("restore %s: %v", s.Short(), err)
	}
	for _, p := range sum.Problems {
		t.Errorf("restore %s: %q: %s", s.Short(), p.Path, p.Reason)
	}
	return target
}

// holds fails the test unless a snapshot restores to what is in want.
func (g *rig) holds(t testing.TB, s id.Snapshot, want string) {
	t.Helper()
	treetest.Same(t, want, g.restore(t, s))
}

// check fails the test if anything in the repository is damaged, and returns
// how many snapshots there are.
func (g *rig) check(t testing.TB) int {
	t.Helper()
	stranger := *g
	stranger.cache = fast(t)
	report, err := stranger.mustOpen(t).Check(t.Context(), repo.CheckOptions{ReadData: true})
	must(t, err)
	for _, d := range report.Damage {
		t.Errorf("check: %v", d)
	}
	return report.Snapshots
}

// entries returns the tree of a snapshot by path.
func (g *rig) entries(t testing.TB, s id.Snapshot) map[string]*snapshot.Entry {
	t.Helper()
	r, snap := g.find(t, s)
	all := map[string]*snapshot.Entry{}
	for e, err := range snapshot.Walk(t.Context(), r, snap.Root) {
		must(t, err)
		all[e.Path()] = e
	}
	return all
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, data, 0o644))
}

func read(t testing.TB, path string) string {
	t.Helper()
	p, err := os.ReadFile(path)
	must(t, err)
	return string(p)
}

// reason returns what is said of a path in a list of problems, or "".
func reason(list []snapshot.Problem, path string) string {
	for _, p := range list {
		if p.Path == path {
			return p.Reason
		}
	}
	return ""
}

// puts counts the objects put, by what they are.
func puts(log *storetest.Log) (all, packs, segments, snapshots int) {
	n := func(prefix store.Name) int { return len(log.Ops(storetest.Put, prefix)) }
	return n(""), n("packs/"), n("index/"), n("snapshots/")
}

// shape returns the lines of a store's log without the names' sums.
func shape(lines []string) string {
	var out []string
	for _, l := range lines {
		f := strings.Fields(l)
		if len(f) > 1 {
			f[1], _, _ = strings.Cut(f[1], "/")
		}
		out = append(out, strings.Join(f[:min(2, len(f))], " "))
	}
	return strings.Join(out, "\n")
}

// mount mounts a file system on dir for the time of the test, and reports
// whether it may.
func mount(t testing.TB, kind, dir, options string) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return false
	}
	must(t, syscall.Mount("orlop-test", dir, kind, 0, options))
	t.Cleanup(func() { must(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	return true
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

var _ = fmt.Sprint

func local(t testing.TB) *agent.Client {
	t.Helper()
	c, err := agent.Local(t.Context())
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}
