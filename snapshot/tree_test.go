package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"orlop/id"
	"pgregory.net/rapid"
)

func TestATreeComesBackAsItWas(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		want := sorted(genVolume(r, 500))
		b := newBlobs()
		root := build(t, b, want)
		if d := unlike(want, walk(t, b, root)); d != "" {
			r.Fatal(d)
		}
		var sum counts
		for _, e := range want {
			sum.add(countsOf(e))
		}
		if got := (counts{root.Entries, root.Files, root.Bytes}); got != sum {
			r.Fatalf("root of %v, want %v", got, sum)
		}
		if b.saves != len(b.m) {
			r.Fatalf("%d saves of %d nodes", b.saves, len(b.m))
		}
	})
}

func TestAnEmptyVolumeIsATreeOfOneEntry(t *testing.T) {
	b := newBlobs()
	root := build(t, b, []*Entry{rootEntry()})
	if root.Level != 0 || root.Entries != 1 || root.Files != 0 || root.Bytes != 0 {
		t.Errorf("%+v", root)
	}
	if d := unlike([]*Entry{rootEntry()}, walk(t, b, root)); d != "" {
		t.Error(d)
	}
	for range List(t.Context(), b, root, "") {
		t.Error("something is in it")
	}
	if root.Length > 16 {
		t.Errorf("it takes %d bytes", root.Length)
	}
}

func TestATreeIsMadeOfValidEntriesInOrder(t *testing.T) {
	a := &Entry{Name: "a", Type: Dir}
	tests := []struct {
		name    string
		entries []*Entry
	}{
		{"no root", []*Entry{a}},
		{"the root twice", []*Entry{rootEntry(), rootEntry()}},
		{"an entry twice", []*Entry{rootEntry(), a, a}},
		{"out of order", []*Entry{rootEntry(), {Name: "b", Type: Dir}, a}},
		{"an entry that is not valid", []*Entry{rootEntry(), {Name: "..", Type: Dir}}},
		{"nothing", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tree := NewTree(newBlobs(), boundary)
			var err error
			for _, e := range tt.entries {
				err = tree.Add(t.Context(), e)
			}
			if err == nil && len(tt.entries) > 0 {
				t.Error("it was added")
			}
			if _, err := tree.Finish(t.Context()); !errors.Is(err, ErrFormat) {
				t.Errorf("Finish() = %v", err)
			}
		})
	}
}

// fresh counts the nodes that are not among the old ones.
func fresh(b *blobs, old map[id.Blob]bool) (n int) {
	for name := range b.names(id.Node) {
		if !old[name] {
			n++
		}
	}
	return n
}

// Whatever volume a change is made to, and whatever change of one entry it is,
// few nodes are new: those at the place and their spines.
func TestOneChangeMakesFewNodes(t *testing.T) {
	all := sorted(flat(12_000, 500))
	before := newBlobs()
	root := build(t, before, all)
	if root.Level < 2 {
		t.Fatalf("a tree of level %d shows nothing", root.Level)
	}
	old := before.names(id.Node)
	rnd := rand.New(rand.NewPCG(1, 2))
	total, most, tries := 0, 0, 15
	for i := range tries {
		at := 1 + rnd.IntN(len(all)-1)
		changed := slices.Clone(all)
		e := *all[at]
		switch i % 3 {
		case 0:
			e.MTime.Sec++
			changed[at] = &e
		case 1:
			changed = slices.Delete(changed, at, at+1)
		case 2:
			e.Name += "+"
			changed = slices.Insert(changed, at+1, &e)
		}
		b := newBlobs()
		build(t, b, changed)
		n := fresh(b, old)
		total += n
		most = max(most, n)
	}
	// One a level; two where the change makes or unmakes a boundary.
	if mean := float64(total) / float64(tries); mean > float64(root.Level)+1.5 {
		t.Errorf("%.2f new nodes a change in a tree of level %d", mean, root.Level)
	}
	if most > 2*int(root.Level+1) {
		t.Errorf("%d new nodes for one change", most)
	}
	if got := build(t, newBlobs(), all); got != root {
		t.Errorf("undone, the changes leave %+v, not %+v", got, root)
	}
}

// Nodes that end because they are full fall into step at the next place where
// the hash ends one.
func TestFullNodesFallIntoStep(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	m := map[string]*Entry{"": rootEntry()}
	for i := range 1000 {
		// 16 of these fill a leaf, long before 128.
		e := &Entry{Name: fmt.Sprintf("%05d", i), Type: Symlink, Target: strings.Repeat("t", 16_000)}
		m[e.Name] = e
	}
	before := newBlobs()
	root := build(t, before, sorted(m))
	old := before.names(id.Node)
	if len(old) < 60 {
		t.Fatalf("%d nodes: none was full", len(old))
	}
	for p := range before.m {
		if n := len(before.m[p]); n > MaxNode {
			t.Errorf("a node of %d bytes", n)
		}
	}
	total := 0
	for range 5 {
		name := fmt.Sprintf("%05d", rnd.IntN(1000))
		was := m[name]
		delete(m, name)
		b := newBlobs()
		build(t, b, sorted(m))
		total += fresh(b, old)
		m[name] = was
	}
	if mean := total / 5; mean > 20 {
		t.Errorf("%d new nodes a removal, of %d", mean, len(old))
	}
	if got := walk(t, before, root); len(got) != 1001 {
		t.Errorf("%d entries", len(got))
	}
}

// withoutBoundary returns names in order, none of which ends a leaf.
func withoutBoundary(dir string, n int) (names []string) {
	for i := 0; len(names) < n; i++ {
		name := fmt.Sprintf("%08d", i)
		if sum := boundary.Sum(dir, "\x00", name); sum[0]&(1<<LeafBits-1) != 0 {
			names = append(names, name)
		}
	}
	return names
}

func TestANodeEndsBefore4097Items(t *testing.T) {
	entries := []*Entry{rootEntry()}
	if sum := boundary.Sum("", "\x00", ""); sum[0]&(1<<LeafBits-1) == 0 {
		t.Fatal("the root ends a leaf: choose another key")
	}
	for _, name := range withoutBoundary("", 3*MaxItems) {
		entries = append(entries, &Entry{Name: name, Type: Fifo})
	}
	b := newBlobs()
	root := build(t, b, entries[:MaxItems])
	if root.Level != 0 {
		t.Errorf("%d entries make a tree of level %d", MaxItems, root.Level)
	}
	root = build(t, b, entries[:MaxItems+1])
	if root.Level != 1 || root.Entries != MaxItems+1 {
		t.Errorf("%+v", root)
	}
	root = build(t, b, entries)
	if d := unlike(entries, walk(t, b, root)); d != "" {
		t.Error(d)
	}
}

func TestPathsOf64KiBAnd4000Levels(t *testing.T) {
	entries := []*Entry{rootEntry()}
	dir := ""
	for range 4000 {
		e := &Entry{Dir: dir, Name: "d", Type: Dir}
		entries = append(entries, e)
		dir = e.Path()
	}
	dir = ""
	for range 255 {
		e := &Entry{Dir: dir, Name: strings.Repeat("e", MaxName), Type: Dir}
		entries = append(entries, e)
		dir = e.Path()
	}
	last := &Entry{Dir: dir, Name: strings.Repeat("f", MaxPath-len(dir)-1), Type: Fifo}
	if len(last.Path()) != MaxPath {
		t.Fatal(len(last.Path()))
	}
	entries = append(entries, last)
	slices.SortFunc(entries, func(a, b *Entry) int { return Compare(a.Dir, a.Name, b.Dir, b.Name) })
	b := newBlobs()
	root := build(t, b, entries)
	if d := unlike(entries, walk(t, b, root)); d != "" {
		t.Error(d)
	}
	for _, e := range []*Entry{last, entries[len(entries)/2]} {
		if got, err := Lookup(t.Context(), b, root, e.Path()); err != nil || diff(e, got) != "" {
			t.Errorf("Lookup: %v", err)
		}
	}
}

// Paths that share nothing are the worst case for spines.
func TestLongPathsThatShareNothing(t *testing.T) {
	m := map[string]*Entry{"": rootEntry()}
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 120 {
		dir := fmt.Sprintf("%08x", rnd.Uint32()) + strings.Repeat("/"+strings.Repeat("x", MaxName), 255)
		e := &Entry{Dir: dir, Name: "f", Type: Fifo}
		m[e.Path()] = e
	}
	b := newBlobs()
	want := sorted(m)
	root := build(t, b, want)
	if d := unlike(want, walk(t, b, root)); d != "" {
		t.Error("it does not come back")
	}
	t.Logf("%d paths of 64 KiB: level %d", len(want), root.Level)
}

func TestAFailedSaveEndsTheTree(t *testing.T) {
	entries := sorted(flat(1000, 100))
	whole := newBlobs()
	build(t, whole, entries)
	for at := range whole.saves {
		tree := NewTree(&failing{blobs: newBlobs(), at: at}, boundary)
		var err error
		for _, e := range entries {
			if err = tree.Add(t.Context(), e); err != nil {
				break
			}
		}
		if _, ferr := tree.Finish(t.Context()); !errors.Is(ferr, fs.ErrClosed) || err != nil && !errors.Is(err, fs.ErrClosed) {
			t.Errorf("save %d failed: Add %v, Finish %v", at, err, ferr)
		}
	}
}

type failing struct {
	*blobs
	at int
}

func (f *failing) Save(ctx context.Context, kind id.Kind, p []byte) (id.Blob, error) {
	if f.saves == f.at {
		return id.Blob{}, fs.ErrClosed
	}
	return f.blobs.Save(ctx, kind, p)
}
