package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"orlop/box"
	"orlop/chunk"
	"orlop/id"
	"orlop/pack"
	"orlop/seal"
	"orlop/snapshot"
	"orlop/store"
	"orlop/store/storetest"
)

// A files is the content of a small source.
type files map[string]string

func newRepo(t testing.TB) (*store.Mem, *seal.Key) {
	t.Helper()
	st, key := store.NewMem(), seal.NewKey()
	cut, err := chunk.Default(chunk.Gear)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Init(t.Context(), st, key, text(t, key.Text()), cut); err != nil {
		t.Fatal(err)
	}
	return st, key
}

func text(t testing.TB, s string) seal.Secret {
	t.Helper()
	secret, err := seal.Text(s)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// open opens the repository as a host that remembers what is in cache.
func open(t testing.TB, st store.Store, key *seal.Key, cache string) *Repo {
	t.Helper()
	r, err := Open(t.Context(), st, text(t, key.Text()), Options{Text: key.Text(), Cache: cache})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// put makes a snapshot of f as a backup does, without an agent.
func put(ctx context.Context, r *Repo, f files) (id.Snapshot, WriterStats, error) {
	w, err := r.NewWriter(ctx)
	if err != nil {
		return id.Snapshot{}, WriterStats{}, err
	}
	defer w.Leave(ctx)
	s, err := commit(ctx, r, w, f)
	return s, w.Stats(), err
}

func commit(ctx context.Context, r *Repo, w *Writer, f files) (id.Snapshot, error) {
	none := id.Snapshot{}
	tree := snapshot.NewTree(w, r.Sealer().Boundary())
	if err := tree.Add(ctx, &snapshot.Entry{Type: snapshot.Dir, Mode: 0o755}); err != nil {
		return none, err
	}
	e := box.NewEncoder()
	for _, name := range slices.Sorted(maps.Keys(f)) {
		data := []byte(f[name])
		b := r.Sealer().Namer().Blob(id.Data, data)
		want, err := w.Claim(ctx, b)
		if err != nil {
			return none, err
		}
		if want {
			var bb box.Builder
			bb.Add(id.Data, data)
			codec, raw, payload := bb.Finish(e, nil)
			if err := w.AddBox(codec, raw, payload, []pack.Blob{{Name: b, Kind: id.Data, Length: uint32(len(data))}}); err != nil {
				return none, err
			}
		}
		if err := tree.Add(ctx, &snapshot.Entry{
			Name: name, Type: snapshot.File, Size: uint64(len(data)),
			Content: snapshot.Content{Refs: []snapshot.Ref{{Name: b, Length: uint64(len(data))}}},
		}); err != nil {
			return none, err
		}
	}
	root, err := tree.Finish(ctx)
	if err != nil {
		return none, err
	}
	return w.Commit(ctx, &snapshot.Snapshot{
		Source: snapshot.Source{Kind: snapshot.Volume, Name: "v"}, Root: root, Sequence: 1,
		Totals: snapshot.Totals{Files: uint64(len(f)), Dirs: 1},
	})
}

// get reads a snapshot back; whatever it returns is right.
func get(ctx context.Context, r *Repo, want id.Snapshot) (files, error) {
	all, broken, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.Refresh(ctx); err != nil {
		return nil, err
	}
	for _, s := range all {
		if s.ID != want {
			continue
		}
		f := files{}
		for e, err := range snapshot.Walk(ctx, r, s.Root) {
			if err != nil {
				return nil, err
			}
			if e.Type != snapshot.File {
				continue
			}
			var data []byte
			for ref, err := range snapshot.Refs(ctx, r, e.Content) {
				if err != nil {
					return nil, err
				}
				p, err := r.Load(ctx, ref.Name, id.Data)
				if err != nil {
					return nil, err
				}
				data = append(data, p...)
			}
			f[e.Name] = string(data)
		}
		return f, nil
	}
	if len(broken) > 0 {
		return nil, broken[0]
	}
	return nil, fmt.Errorf("snapshot %s is not listed", want.Short())
}

func mustPut(t testing.TB, r *Repo, f files) id.Snapshot {
	t.Helper()
	s, _, err := put(t.Context(), r, f)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustGet(t testing.TB, r *Repo, s id.Snapshot, want files) {
	t.Helper()
	got, err := get(t.Context(), r, s)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("snapshot %s (-want +got):\n%s", s.Short(), d)
	}
}

func mustCheck(t testing.TB, r *Repo) {
	t.Helper()
	report, err := r.Check(t.Context(), CheckOptions{ReadData: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range report.Damage {
		t.Errorf("check: %v", d)
	}
}

var (
	one = files{"a": "the letter a", "b": strings.Repeat("b", 3000), "c": "see"}
	two = files{"a": "the letter a", "b": strings.Repeat("B", 3000), "d": "new"}
)

func random(seed uint64, n int) string {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(p)
	return string(p)
}

func TestWhatIsPutCanBeReadByAnotherHost(t *testing.T) {
	st, key := newRepo(t)
	s1 := mustPut(t, open(t, st, key, t.TempDir()), one)
	r := open(t, st, key, t.TempDir())
	s2 := mustPut(t, r, two)
	other := open(t, st, key, t.TempDir())
	mustGet(t, other, s1, one)
	mustGet(t, other, s2, two)
	mustGet(t, r, s1, one)
	mustCheck(t, r)
}

func TestWhatTheRepositoryHasIsNotStoredAgain(t *testing.T) {
	st, key := newRepo(t)
	big := files{"x": random(1, 1<<20), "y": random(2, 1<<20)}
	_, first, err := put(t.Context(), open(t, st, key, t.TempDir()), big)
	if err != nil {
		t.Fatal(err)
	}
	_, again, err := put(t.Context(), open(t, st, key, t.TempDir()), big)
	if err != nil {
		t.Fatal(err)
	}
	if first.Raw < 2<<20 || again.Raw != 0 || again.Blobs != 0 {
		t.Errorf("first %+v, again %+v", first, again)
	}
}

// The budget of a tiny backup (docs/design.md).
func TestABackupThatChangesNothingIsThreeSmallPuts(t *testing.T) {
	mem, key := newRepo(t)
	log := &storetest.Log{Store: mem}
	r := open(t, log, key, t.TempDir())
	mustPut(t, r, one)
	log.Reset()
	mustPut(t, r, one)
	puts := log.Ops(storetest.Put, "")
	if len(puts) != 3 || len(log.Ops(storetest.Put, "packs/"))+len(log.Ops(storetest.Put, "index/")) > 0 {
		t.Errorf("puts:\n%s", strings.Join(puts, "\n"))
	}
	if n := log.Bytes(storetest.Put); n >= 8<<10 {
		t.Errorf("%d bytes", n)
	}
	log.Reset()
	mustPut(t, r, files{"a": one["a"], "b": one["b"], "c": random(3, 4096)})
	for prefix, want := range map[store.Name]int{"packs/": 1, "index/": 1, "snapshots/": 1, "ephemeral/": 2} {
		if got := log.Ops(storetest.Put, prefix); len(got) != want {
			t.Errorf("one changed file: %d puts below %s, want %d", len(got), prefix, want)
		}
	}
	if n := log.Bytes(storetest.Put); n >= 48<<10 {
		t.Errorf("one changed file: %d bytes", n)
	}
}

// The order of writes is what makes a crash harmless.
func TestTheOrderOfWrites(t *testing.T) {
	mem, key := newRepo(t)
	log := &storetest.Log{Store: mem}
	r := open(t, log, key, t.TempDir())
	log.Reset()
	mustPut(t, r, files{"x": random(1, 3<<20)})
	var order []string
	for _, l := range log.Lines() {
		op, rest, _ := strings.Cut(l, " ")
		dir, rest, _ := strings.Cut(rest, "/")
		if dir == "ephemeral" {
			sub, _, ok := strings.Cut(rest, "/")
			if ok {
				dir += "/" + sub
			}
		}
		order = append(order, op+" "+dir)
	}
	want := []string{
		"put ephemeral/open", "list ephemeral", "list index", "list packs",
		"put packs", "put packs", "put index", "put snapshots", "list ephemeral", "put ephemeral/done",
	}
	if d := cmp.Diff(want, order); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// Whatever write fails, and however it fails, the snapshots that were there
// are untouched and the next backup succeeds.
func TestABackupSurvivesAnyFailedOperation(t *testing.T) {
	fired := 0
	for _, op := range []storetest.Op{storetest.Put, storetest.Get, storetest.List} {
		for _, fault := range []storetest.Fault{storetest.Lost, storetest.Unsure, storetest.Dead} {
			for at := int64(0); ; at++ {
				mem, key := newRepo(t)
				cache := t.TempDir()
				old := mustPut(t, open(t, mem, key, cache), one)
				faulty := &storetest.Faulty{Store: mem, At: -1, Fault: fault, Op: op}
				r := open(t, faulty, key, cache)
				faulty.At = at + faulty.Count(op)
				s, _, err := put(t.Context(), r, two)
				if faulty.Fired() == 0 {
					if err != nil {
						t.Fatalf("without a fault: %v", err)
					}
					break // the backup makes no more operations than this
				}
				fired++
				name := fmt.Sprintf("%v %v %d", fault, op, at)
				if err != nil && !errors.Is(err, storetest.ErrInjected) {
					t.Errorf("%s: hid the fault: %v", name, err)
				}
				healthy := open(t, mem, key, cache)
				mustGet(t, healthy, old, one)
				if err == nil {
					mustGet(t, healthy, s, two) // it was acknowledged
				}
				again := mustPut(t, healthy, two)
				mustGet(t, open(t, mem, key, t.TempDir()), again, two)
				mustCheck(t, healthy)
			}
		}
	}
	t.Logf("%d faults fired", fired)
	if fired < 20 {
		t.Errorf("only %d faults fired", fired)
	}
}

// What a killed run had uploaded is used by the next one.
func TestPacksOfAKilledRunAreUsed(t *testing.T) {
	mem, key := newRepo(t)
	cache := t.TempDir()
	big := files{}
	for i := range 40 {
		big[fmt.Sprint("f", i)] = random(uint64(i), 1<<20)
	}
	faulty := &storetest.Faulty{Store: mem, At: 3, Fault: storetest.Dead} // open, two packs, then death
	_, _, err := put(t.Context(), open(t, faulty, key, cache), big)
	if !errors.Is(err, storetest.ErrInjected) || faulty.Fired() != 1 {
		t.Fatalf("the fault did not fire: %v", err)
	}
	packs := len(storetest.Infos(t, mem, "packs/"))
	if packs < 2 || len(storetest.Infos(t, mem, "index/")) != 0 {
		t.Fatalf("%d packs, %d segments", packs, len(storetest.Infos(t, mem, "index/")))
	}
	r := open(t, mem, key, cache)
	s, stats, err := put(t.Context(), r, big)
	if err != nil {
		t.Fatal(err)
	}
	if saved := 40<<20 - int64(stats.Raw); saved < 16<<20 {
		t.Errorf("stored %d bytes again of %d", stats.Raw, 40<<20)
	}
	mustGet(t, r, s, big)
	mustCheck(t, r)
}

func TestAnInterruptedRunLeavesItsWork(t *testing.T) {
	mem, key := newRepo(t)
	r := open(t, mem, key, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	w, err := r.NewWriter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	data := []byte(random(9, 1<<20))
	b := r.Sealer().Namer().Blob(id.Data, data)
	if want, err := w.Claim(ctx, b); err != nil || !want {
		t.Fatal(want, err)
	}
	var bb box.Builder
	bb.Add(id.Data, data)
	codec, raw, payload := bb.Finish(box.NewEncoder(), nil)
	if err := w.AddBox(codec, raw, payload, []pack.Blob{{Name: b, Kind: id.Data, Length: 1 << 20}}); err != nil {
		t.Fatal(err)
	}
	cancel()
	w.Leave(ctx)
	if n := len(storetest.Infos(t, mem, "snapshots/")); n != 0 {
		t.Errorf("%d snapshots", n)
	}
	_, stats, err := put(t.Context(), open(t, mem, key, t.TempDir()), files{"x": string(data)})
	if err != nil {
		t.Fatal(err)
	}
	if stats.Raw > 1000 {
		t.Errorf("%d bytes were stored again", stats.Raw)
	}
	mustCheck(t, r)
}

// A pack that a prune has condemned is not relied on, though it is there.
func TestACondemnedPackIsNotReliedOn(t *testing.T) {
	mem, key := newRepo(t)
	r := open(t, mem, key, t.TempDir())
	mustPut(t, r, one)
	var doomed []id.Pack
	for _, o := range storetest.Infos(t, mem, "packs/") {
		p, err := id.Parse[id.Pack](strings.TrimPrefix(string(o.Name), "packs/"))
		if err != nil {
			t.Fatal(err)
		}
		doomed = append(doomed, p)
	}
	if err := mem.Put(t.Context(), "ephemeral/condemn/0011", encodeCondemn(doomed)); err != nil {
		t.Fatal(err)
	}
	s, stats, err := put(t.Context(), r, one)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Blobs == 0 {
		t.Error("nothing was stored again")
	}
	for _, p := range doomed {
		storetest.Remove(t, mem, packName(p))
	}
	got, err := get(t.Context(), open(t, mem, key, t.TempDir()), s)
	if err != nil || cmp.Diff(one, got) != "" {
		t.Errorf("%v %v", got, err)
	}
	storetest.Flip(t, mem, "ephemeral/condemn/0011", 20, 1)
	if _, _, err := put(t.Context(), r, two); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged condemn record: %v", err)
	}
}

func TestAFencedSessionIsNotAcknowledged(t *testing.T) {
	for _, how := range []string{"fence", "open gone"} {
		mem, key := newRepo(t)
		r := open(t, mem, key, t.TempDir())
		w, err := r.NewWriter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if how == "fence" {
			err = mem.Put(t.Context(), fenceName(w.Session()), []byte(markMagic))
		} else {
			err = mem.Delete(t.Context(), openName(w.Session()))
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = commit(t.Context(), r, w, one)
		if !errors.Is(err, ErrFenced) {
			t.Errorf("%s: %v", how, err)
		}
		w.Leave(t.Context())
		if n := storetest.Infos(t, mem, "ephemeral/done/"); len(n) != 0 {
			t.Errorf("%s: it says it is done", how)
		}
		if how == "fence" {
			all, _, err := r.Snapshots(t.Context())
			if err != nil || len(all) != 0 {
				t.Errorf("a snapshot that was never acknowledged is shown: %v %v", all, err)
			}
		}
		s := mustPut(t, r, one)
		mustGet(t, r, s, one)
	}
}

func TestLosingIndexSegmentsLosesNothing(t *testing.T) {
	mem, key := newRepo(t)
	s := mustPut(t, open(t, mem, key, t.TempDir()), one)
	for _, o := range storetest.Infos(t, mem, "index/") {
		storetest.Remove(t, mem, o.Name)
	}
	r := open(t, mem, key, t.TempDir())
	mustGet(t, r, s, one)
	// The next backup lists the packs again and stores nothing.
	_, stats, err := put(t.Context(), r, one)
	if err != nil || stats.Blobs != 0 {
		t.Errorf("%+v %v", stats, err)
	}
	if len(storetest.Infos(t, mem, "index/")) != 1 {
		t.Error("no segment was put back")
	}
	mustGet(t, open(t, mem, key, t.TempDir()), s, one)
}

func TestALostPackIsStoredAgain(t *testing.T) {
	mem, key := newRepo(t)
	r := open(t, mem, key, t.TempDir())
	mustPut(t, r, one)
	for _, o := range storetest.Infos(t, mem, "packs/") {
		storetest.Remove(t, mem, o.Name)
	}
	s := mustPut(t, r, one)
	mustGet(t, r, s, one)
}

func TestOpening(t *testing.T) {
	mem, key := newRepo(t)
	ctx := t.Context()
	opens := func(st store.Store, secret seal.Secret, keyText string) error {
		r, err := Open(ctx, st, secret, Options{Text: keyText, Cache: t.TempDir()})
		if err == nil {
			_ = r.Close()
		}
		return err
	}
	if err := opens(store.NewMem(), text(t, key.Text()), ""); !errors.Is(err, ErrNoRepository) {
		t.Errorf("an empty store: %v", err)
	}
	if err := opens(mem, text(t, seal.NewKey().Text()), ""); !errors.Is(err, seal.ErrWrongSecret) {
		t.Errorf("another key: %v", err)
	}
	slot := storetest.Infos(t, mem, "keys/")[0].Name

	st := storetest.Copy(t, mem)
	storetest.Flip(t, st, slot, 40, 4)
	if err := opens(st, text(t, key.Text()), ""); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged slot: %v", err)
	}
	if err := opens(st, text(t, key.Text()), key.Text()); err != nil {
		t.Errorf("a damaged slot, with the generated key: %v", err)
	}
	storetest.Remove(t, st, slot)
	if err := opens(st, text(t, key.Text()), key.Text()); err != nil {
		t.Errorf("no slot, with the generated key: %v", err)
	}

	st = storetest.Copy(t, mem)
	storetest.Remove(t, st, "config")
	if err := opens(st, text(t, key.Text()), ""); err != nil {
		t.Errorf("no config: %v", err)
	}
	if got := storetest.Infos(t, st, "config"); len(got) != 1 {
		t.Error("config was not put back")
	}
	st = storetest.Copy(t, mem)
	storetest.Flip(t, st, "config", 30, 4)
	if err := opens(st, text(t, key.Text()), ""); err != nil {
		t.Errorf("a damaged config: %v", err)
	}
	if _, err := Init(ctx, mem, key, text(t, key.Text()), chunk.Config{Algorithm: chunk.Gear, Min: 1 << 18, Avg: 1 << 20, Max: 1 << 22}); !errors.Is(err, ErrExists) {
		t.Errorf("init over a repository: %v", err)
	}
}

func TestAConfigOfTheFutureIsRefusedByName(t *testing.T) {
	c := NewConfig(chunk.Config{Algorithm: chunk.Gear, Min: 1 << 18, Avg: 1 << 20, Max: 1 << 22})
	c.Version = 2
	if _, err := parseSlotCopy(c.slotCopy()); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("%v", err)
	}
	c.Version = 1
	c.Features.Read = 4
	if _, err := parseSlotCopy(c.slotCopy()); err == nil || !strings.Contains(err.Error(), "0x4") {
		t.Errorf("%v", err)
	}
}

// A put-only host adds and cannot read; a full key reads what it added.
func TestAPutOnlyKey(t *testing.T) {
	mem, key := newRepo(t)
	ctx := t.Context()
	full := open(t, mem, key, t.TempDir())
	old := mustPut(t, full, one)

	secret := seal.NewPutText()
	slot, err := seal.SealSlot(key.PutOnly(7), text(t, secret), full.Config().slotCopy())
	if err != nil {
		t.Fatal(err)
	}
	if err := mem.Put(ctx, slotName(id.Sum[id.Slot](slot)), slot); err != nil {
		t.Fatal(err)
	}
	r, err := Open(ctx, mem, text(t, secret), Options{Cache: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s, first, err := put(ctx, r, two)
	if err != nil {
		t.Fatal(err)
	}
	_, again, err := put(ctx, r, two)
	if err != nil {
		t.Fatal(err)
	}
	if first.Blobs == 0 || again.Blobs != 0 {
		t.Errorf("it deduplicates against itself: first %+v, again %+v", first, again)
	}
	if _, err := get(ctx, r, s); !errors.Is(err, seal.ErrPutOnly) {
		t.Errorf("it reads its own snapshot: %v", err)
	}
	var name id.Blob
	for e, err := range r.index.All() {
		if err != nil {
			t.Fatal(err)
		}
		name = e.Name
	}
	if _, err := r.Load(ctx, name, id.Data); !errors.Is(err, seal.ErrPutOnly) {
		t.Errorf("it reads a blob: %v", err)
	}
	if _, err := r.Check(ctx, CheckOptions{}); !errors.Is(err, seal.ErrPutOnly) {
		t.Errorf("it checks: %v", err)
	}
	mustGet(t, full, s, two)
	mustGet(t, full, old, one)
	mustCheck(t, full)
}

// Every byte of every object flipped, every object truncated, removed and put
// in every other's place: reading gives an error or the right bytes, and check
// names the object, unless nothing needs it.
func TestDamageIsNoticedAndNeverRead(t *testing.T) {
	mem, key := newRepo(t)
	cache := t.TempDir()
	r := open(t, mem, key, cache)
	s1, s2 := mustPut(t, r, one), mustPut(t, r, two)
	objects := storetest.Infos(t, mem, "")

	var (
		mu               sync.Mutex
		done, violations int
		g                errgroup.Group
	)
	g.SetLimit(runtime.GOMAXPROCS(0))
	try := func(what string, object store.Name, damage func(st *store.Mem)) {
		g.Go(func() error {
			st := storetest.Copy(t, mem)
			damage(st)
			named, err := examine(t, st, key, memoryDir(t), map[id.Snapshot]files{s1: one, s2: two})
			mu.Lock()
			defer mu.Unlock()
			done++
			if err != nil {
				violations++
				t.Errorf("%s: %v", what, err)
			} else if !slices.Contains(named, object) && !harmless(what, object) {
				violations++
				t.Errorf("%s: check does not name it, but %v", what, named)
			}
			return nil
		})
	}
	for _, o := range objects {
		for off := range o.Size {
			try(fmt.Sprintf("flip %s at %d", o.Name, off), o.Name, func(st *store.Mem) {
				storetest.Flip(t, st, o.Name, off, 1<<(off%8))
			})
		}
		for _, n := range []int64{0, 1, o.Size / 2, o.Size - 1} {
			try(fmt.Sprintf("truncate %s to %d", o.Name, n), o.Name, func(st *store.Mem) { storetest.Truncate(t, st, o.Name, n) })
		}
		try("remove "+string(o.Name), o.Name, func(st *store.Mem) { storetest.Remove(t, st, o.Name) })
		for _, p := range objects {
			if data := storetest.Read(t, mem, p.Name); p.Name != o.Name && !bytes.Equal(data, storetest.Read(t, mem, o.Name)) {
				try(fmt.Sprintf("put %s in the place of %s", p.Name, o.Name), o.Name, func(st *store.Mem) {
					storetest.Replace(t, st, o.Name, data)
				})
			}
		}
	}
	_ = g.Wait()
	t.Logf("%d damages of %d objects, %d violations", done, len(objects), violations)
}

// memoryDir is a directory for one look at a repository, in memory where the
// system has such a place: thousands of looks would wait for the disk.
func memoryDir(t testing.TB) string {
	t.Helper()
	base := "/dev/shm"
	if fi, err := os.Stat(base); err != nil || !fi.IsDir() {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "orlop-test-")
	if err != nil {
		dir = t.TempDir()
	}
	return dir
}

// harmless says that nobody could miss what was removed: a snapshot that was
// forgotten looks the same, so does a key slot that was removed (that none is
// left, check says), a mark is only of use while its session runs, an index
// segment is made again by the next backup, and config by whoever opens the
// repository.
func harmless(what string, object store.Name) bool {
	return strings.HasPrefix(what, "remove ") &&
		(strings.HasPrefix(string(object), "snapshots/") || strings.HasPrefix(string(object), "keys/") || strings.HasPrefix(string(object), "ephemeral/") ||
			strings.HasPrefix(string(object), "index/") || object == "config")
}

// examine opens a damaged repository, reads all snapshots and checks it. It
// returns the objects that check names, and an error for a lie.
func examine(t *testing.T, st store.Store, key *seal.Key, cache string, want map[id.Snapshot]files) (named []store.Name, lie error) {
	defer os.RemoveAll(cache)
	ctx := t.Context()
	r, err := Open(ctx, st, text(t, key.Text()), Options{Text: key.Text(), Cache: cache})
	if err != nil {
		var d *DamageError
		if errors.As(err, &d) {
			return []store.Name{d.Name}, nil
		}
		return nil, fmt.Errorf("open: %w", err)
	}
	defer r.Close()
	for s, f := range want {
		got, err := get(ctx, r, s)
		if err == nil && cmp.Diff(f, got) != "" {
			return nil, fmt.Errorf("snapshot %s was read wrong", s.Short())
		}
	}
	report, err := r.Check(ctx, CheckOptions{ReadData: true})
	if err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	for _, d := range report.Damage {
		named = append(named, d.Name)
	}
	return named, nil
}

// Boxes come from several goroutines, faster than a slow store takes packs.
func TestAWriterWaitsForASlowStore(t *testing.T) {
	mem, key := newRepo(t)
	slow := &slowStore{Store: mem}
	r := open(t, slow, key, t.TempDir())
	w, err := r.NewWriter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Leave(t.Context())
	noise := []byte(random(5, 4<<20))
	var g errgroup.Group
	for n := range 4 {
		g.Go(func() error {
			for i := range 12 {
				data := append([]byte{byte(n), byte(i)}, noise[:2<<20]...)
				name := r.Sealer().Namer().Blob(id.Data, data)
				if _, err := w.Claim(t.Context(), name); err != nil {
					return err
				}
				if err := w.AddBox(box.Stored, len(data), data, []pack.Blob{{Name: name, Kind: id.Data, Length: uint32(len(data))}}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := w.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if slow.most.Load() > putsAtOnce {
		t.Errorf("%d packs on their way at a time", slow.most.Load())
	}
	if packs := len(storetest.Infos(t, mem, "packs/")); packs < 6 {
		t.Errorf("%d packs", packs)
	}
}

// A slowStore lets every other goroutine run while it puts.
type slowStore struct {
	store.Store
	now, most atomic.Int64
}

func (s *slowStore) Put(ctx context.Context, name store.Name, data []byte) error {
	if n := s.now.Add(1); n > s.most.Load() {
		s.most.Store(n)
	}
	defer s.now.Add(-1)
	for range 1000 {
		runtime.Gosched()
	}
	return s.Store.Put(ctx, name, data)
}

// What a check found damaged is not relied on by the next backup, and once it
// is stored again nothing needs the damaged pack any more.
func TestADamagedPackIsHealedByTheNextBackup(t *testing.T) {
	mem, key := newRepo(t)
	r := open(t, mem, key, t.TempDir())
	old := mustPut(t, r, one)
	broken := storetest.Infos(t, mem, "packs/")[0].Name
	whole := storetest.Read(t, mem, broken)
	for off := range 400 {
		storetest.Flip(t, mem, broken, int64(pack.HeaderSize+off), 1)
	}
	report, err := r.Check(t.Context(), CheckOptions{ReadData: true})
	if err != nil || len(report.Damage) == 0 || len(report.Affected) != 1 {
		t.Fatalf("%+v %v", report, err)
	}
	fresh := open(t, mem, key, r.local.Path("..")) // the mark outlives the process
	_, stats, err := put(t.Context(), fresh, one)
	if err != nil || stats.Blobs == 0 {
		t.Fatalf("nothing was stored again: %+v %v", stats, err)
	}
	mustGet(t, open(t, mem, key, t.TempDir()), old, one)
	report, err = r.Check(t.Context(), CheckOptions{ReadData: true})
	if err != nil || len(report.Affected) != 0 || len(report.Damage) == 0 {
		t.Fatalf("after the backup: %+v %v", report, err)
	}
	storetest.Remove(t, mem, broken)
	report, err = r.Check(t.Context(), CheckOptions{ReadData: true})
	if err != nil || len(report.Damage) != 0 || report.Missed != 1 {
		t.Errorf("without the pack: %+v %v", report, err)
	}
	storetest.Replace(t, mem, broken, whole)
	mustCheck(t, r)
	if m := r.distrusted(); len(m) != 0 {
		t.Errorf("a pack that is whole again is still distrusted: %v", m)
	}
}

// Backup number 200 costs what number 5 did, and a new host reads few segments.
func TestNothingGrowsWithHistory(t *testing.T) {
	mem, key := newRepo(t)
	log := &storetest.Log{Store: mem}
	r := open(t, log, key, t.TempDir())
	cost := map[string]int{}
	var merges int
	for n := range 200 {
		log.Reset()
		mustPut(t, r, files{"same": one["b"], "other": random(uint64(n), 2000)})
		c := fmt.Sprint(len(log.Ops(storetest.Put, "")), " puts ", len(log.Ops(storetest.Get, "")), " gets")
		if len(log.Ops(storetest.Put, "index/1-")) > 0 {
			merges++
			continue
		}
		cost[c]++
	}
	if len(cost) != 1 {
		t.Errorf("backups cost %v", cost)
	}
	if merges != 200/(tierWidth+1) {
		t.Errorf("%d merges", merges)
	}
	log.Reset()
	other := open(t, log, key, t.TempDir())
	if err := other.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(log.Ops(storetest.Get, "index/")); n > merges+tierWidth+1 {
		t.Errorf("a new host reads %d segments of %d", n, len(storetest.Infos(t, mem, "index/")))
	}
	mustCheck(t, other)
}

func TestPacksGrowWithTheRepository(t *testing.T) {
	for size, want := range map[int64]int{
		0: 16, 1 << 40: 16, 1<<40 + 1: 32, 4 << 40: 32, 4<<40 + 1: 64, 16<<40 + 1: 128, 1 << 60: 128,
	} {
		if got := packTarget(size); got != want<<20 {
			t.Errorf("a repository of %d bytes: packs of %d", size, got)
		}
	}
}

func FuzzConfig(f *testing.F) {
	c := NewConfig(chunk.Config{Algorithm: chunk.Gear, Min: 1 << 18, Avg: 1 << 20, Max: 1 << 22})
	f.Add(c.slotCopy())
	f.Add(c.slotCopy()[:20])
	f.Add([]byte(configMagic))
	f.Fuzz(func(t *testing.T, p []byte) {
		c, err := parseSlotCopy(p)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		again, err := parseSlotCopy(c.slotCopy())
		if err != nil || again != c {
			t.Fatalf("%+v came back as %+v, %v", c, again, err)
		}
	})
}

func FuzzCondemn(f *testing.F) {
	f.Add(encodeCondemn([]id.Pack{{1}, {2}}))
	f.Add(encodeCondemn(nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		packs, err := parseCondemn(p)
		if err == nil && !bytes.Equal(encodeCondemn(packs), p) {
			t.Fatalf("%x is not what it says", p)
		}
	})
}

// A pack that cannot be put in the middle of a backup is why it fails.
func TestAFailedPackIsTheErrorOfTheBackup(t *testing.T) {
	big := files{}
	for i := range 80 {
		big[fmt.Sprint("f", i)] = random(uint64(i), 1<<20)
	}
	for at := int64(1); at <= 3; at++ { // 0 is the session's mark
		mem, key := newRepo(t)
		faulty := &storetest.Faulty{Store: mem, At: at, Fault: storetest.Lost}
		_, _, err := put(t.Context(), open(t, faulty, key, t.TempDir()), big)
		if faulty.Fired() != 1 || !errors.Is(err, storetest.ErrInjected) {
			t.Errorf("put %d: %v", at, err)
		}
	}
}
