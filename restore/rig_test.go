package restore_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	"orlop/treetest"
)

// TestMain lets the test binary be the orlop that is killed.
func TestMain(m *testing.M) {
	if task := os.Getenv("ORLOP_RESTORE_TEST"); task != "" {
		os.Exit(child(task))
	}
	goleak.VerifyTestMain(m)
}

// small cuts files so finely that little data has many chunks.
var small = chunk.Config{Algorithm: chunk.Gear, Min: 2 << 10, Avg: 8 << 10, Max: 32 << 10}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A rig is a repository and a directory that was backed up to it.
type rig struct {
	st  store.Deleter
	key *seal.Key
	src string
}

func newRig(t testing.TB, st store.Deleter, c chunk.Config) *rig {
	t.Helper()
	g := &rig{st: st, key: seal.NewKey(), src: t.TempDir()}
	_, err := repo.Init(t.Context(), st, g.key, text(g.key), c)
	must(t, err)
	return g
}

func text(k *seal.Key) seal.Secret {
	s, err := seal.Text(k.Text())
	if err != nil {
		panic(err)
	}
	return s
}

// fast is a directory in memory, if there is such a thing here.
func fast(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "orlop-test-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() {
		treetest.RemoveAll(t, dir)
		must(t, os.RemoveAll(dir))
	})
	return dir
}

// open opens the repository by way of st, as a host that remembers what is in
// cache.
func (g *rig) open(ctx context.Context, st store.Store, cache string) (*repo.Repo, error) {
	return repo.Open(ctx, st, text(g.key), repo.Options{Text: g.key.Text(), Cache: cache})
}

func (g *rig) mustOpen(t testing.TB, st store.Store) *repo.Repo {
	t.Helper()
	r, err := g.open(t.Context(), st, fast(t))
	must(t, err)
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func (g *rig) backup(t testing.TB) *backup.Summary {
	t.Helper()
	c, err := agent.Local(t.Context())
	must(t, err)
	defer c.Close()
	s, err := backup.Run(t.Context(), g.mustOpen(t, g.st), c, backup.Source{
		Source: snapshot.Source{Kind: snapshot.Directory, Name: "/src"}, Root: g.src,
	}, backup.Options{})
	must(t, err)
	if s.Partial() {
		t.Fatalf("partial: %v %v", s.Skipped, s.Torn)
	}
	return s
}

// try restores the newest snapshot to target as the command line does: list,
// refresh, restore. It is nil, and no error, if there is no snapshot to see.
func (g *rig) try(ctx context.Context, st store.Store, cache, target string) (*restore.Summary, error) {
	return g.tryWith(ctx, st, cache, target, restore.Options{})
}

// tryWith is try with options, which in place need no key.
func (g *rig) tryWith(ctx context.Context, st store.Store, cache, target string, opt restore.Options) (*restore.Summary, error) {
	r, err := g.open(ctx, st, cache)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	all, broken, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		if len(broken) > 0 {
			return nil, broken[0]
		}
		return nil, nil
	}
	if err := r.Refresh(ctx); err != nil {
		return nil, err
	}
	s := all[len(all)-1]
	opt.Snapshot = s.ID
	if opt.InPlace != nil {
		if opt.InPlace.NameKey, err = r.NameKey(s); err != nil {
			return nil, err
		}
	}
	return runWith(ctx, r, s.Root, target, opt)
}

func run(ctx context.Context, r *repo.Repo, root snapshot.Root, target string) (*restore.Summary, error) {
	return runWith(ctx, r, root, target, restore.Options{})
}

func runWith(ctx context.Context, r *repo.Repo, root snapshot.Root, target string, opt restore.Options) (*restore.Summary, error) {
	c, err := agent.Local(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return restore.Run(ctx, r, c, root, target, opt)
}

// begun returns the snapshot that a restore to dir is said to have begun with.
func begun(t testing.TB, dir string) (id.Snapshot, bool) {
	t.Helper()
	text, err := os.ReadFile(dir + "/" + agent.MarkerName)
	if errors.Is(err, fs.ErrNotExist) {
		return id.Snapshot{}, false
	}
	must(t, err)
	return restore.ParseMarker(string(text)), true
}

// target is a fresh directory to restore to.
func target(t testing.TB) string {
	t.Helper()
	dir := fast(t) + "/target"
	must(t, os.Mkdir(dir, 0o755))
	return dir
}

// holds fails the test unless the newest snapshot restores to what is in want.
func (g *rig) holds(t testing.TB, want string) {
	t.Helper()
	to := target(t)
	s, err := g.try(t.Context(), g.st, fast(t), to)
	must(t, err)
	for _, p := range s.Problems {
		t.Errorf("%q: %s", p.Path, p.Reason)
	}
	treetest.Same(t, want, to)
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, data, 0o644))
}

// tiny makes a tree with a little of everything in it.
func tiny(t testing.TB, dir string) {
	t.Helper()
	write(t, dir+"/many-chunks", treetest.Bytes("many-chunks", 150_000))
	write(t, dir+"/a/inline", []byte("inline"))
	write(t, dir+"/a/b/c/deep", treetest.Text("deep", 20_000))
	for i := range 6 {
		write(t, fmt.Sprintf("%s/some/%d", dir, i), treetest.Text(fmt.Sprint(i), i*900))
	}
	must(t, os.Link(dir+"/many-chunks", dir+"/some/linked"))
	must(t, os.Symlink("../a", dir+"/some/link"))
	must(t, syscall.Mkfifo(dir+"/fifo", 0o600))
	must(t, syscall.Setxattr(dir+"/a/inline", "user.a", treetest.Bytes("x", 1500), 0))
	write(t, dir+"/sparse", treetest.Bytes("sparse", 10_000))
	must(t, os.Truncate(dir+"/sparse", 5<<20))
}

// A copied is what a tree is, for comparing often: by path, all that there is
// of an entry, as far as a damaged repository must not make it wrong.
type copied map[string]string

func look(t testing.TB, dir string) copied {
	t.Helper()
	c := copied{}
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		what := fmt.Sprintf("%v %d", fi.Mode().Type(), fi.Size())
		switch {
		case fi.IsDir():
			what = "dir"
		case fi.Mode().IsRegular() && fi.Size() > 64<<20: // its size tells
		case fi.Mode().IsRegular():
			p, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what += string(p)
		case fi.Mode().Type() == fs.ModeSymlink:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			what += to
		}
		c[rel] = what
		return nil
	}))
	return c
}

// lies returns what is in got and not in want, or otherwise: what is missing is
// no lie.
func lies(want, got copied) (lies []string) {
	for path, what := range got {
		if w, ok := want[path]; !ok || w != what {
			lies = append(lies, path)
		}
	}
	return lies
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
