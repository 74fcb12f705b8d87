package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"orlop/id"
	"pgregory.net/rapid"
)

func collect(t testing.TB, seq iter.Seq2[*Entry, error]) (all []*Entry) {
	t.Helper()
	for e, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

// Every question has the answer a map gives.
func TestReadersAnswerAsAMapDoes(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		m := genVolume(r, 500)
		all := sorted(m)
		b := newBlobs()
		root := build(t, b, all)
		for range 20 {
			e := rapid.SampledFrom(all).Draw(r, "entry")
			got, err := Lookup(t.Context(), b, root, e.Path())
			if err != nil || !alike(e, got) {
				r.Fatalf("Lookup(%q): %v %s", e.Path(), err, diff(e, got))
			}
			if _, err := Lookup(t.Context(), b, root, e.Path()+"~"); m[e.Path()+"~"] == nil && !errors.Is(err, fs.ErrNotExist) {
				r.Fatalf("Lookup(%q): %v", e.Path()+"~", err)
			}
		}
		top := rapid.SampledFrom(all).Draw(r, "top")
		if top.Type != Dir {
			for _, err := range Under(t.Context(), b, root, top.Path()) {
				if !errors.Is(err, errNotDir) {
					r.Fatal(err)
				}
			}
			return
		}
		var under, list, from []*Entry
		for _, e := range all {
			if e == top || !e.IsRoot() && Below(e.Dir, top.Path()) {
				under = append(under, e)
			}
			if !e.IsRoot() && e.Dir == top.Path() {
				list = append(list, e)
			}
			if Compare(e.Dir, e.Name, top.Dir, top.Name+"a") >= 0 {
				from = append(from, e)
			}
		}
		if d := unlike(under, collect(t, Under(t.Context(), b, root, top.Path()))); d != "" {
			r.Fatalf("Under(%q): %s", top.Path(), d)
		}
		if d := unlike(list, collect(t, List(t.Context(), b, root, top.Path()))); d != "" {
			r.Fatalf("List(%q): %s", top.Path(), d)
		}
		if d := unlike(from, collect(t, WalkFrom(t.Context(), b, root, top.Dir, top.Name+"a"))); d != "" {
			r.Fatalf("WalkFrom(%q): %s", top.Path()+"a", d)
		}
	})
}

func TestWhatIsNotThereDoesNotExist(t *testing.T) {
	b := newBlobs()
	root := build(t, b, sorted(flat(10, 5)))
	for _, path := range []string{"nothing", "data/nothing", "data/d0000/", "/data", "data//d0000", "data/d0000/f0000000/x"} {
		if _, err := Lookup(t.Context(), b, root, path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Lookup(%q) = %v", path, err)
		}
		for _, err := range List(t.Context(), b, root, path) {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("List(%q) = %v", path, err)
			}
		}
	}
}

func TestAQuestionLoadsNoMoreThanItsAnswer(t *testing.T) {
	b := newBlobs()
	root := build(t, b, sorted(flat(20_000, 100)))
	height := int(root.Level) + 1
	loads := func(f func()) int {
		b.loads = 0
		f()
		return b.loads
	}
	rnd := rand.New(rand.NewPCG(7, 8))
	for range 100 {
		i := rnd.IntN(20_000)
		dir := fmt.Sprintf("data/d%04d", i/100)
		path := fmt.Sprintf("%s/f%07d", dir, i)
		if n := loads(func() {
			if _, err := Lookup(t.Context(), b, root, path); err != nil {
				t.Error(err)
			}
		}); n > height {
			t.Errorf("Lookup(%q) loads %d nodes of a tree of height %d", path, n, height)
		}
		if n := loads(func() {
			if got := len(collect(t, List(t.Context(), b, root, dir))); got != 100 {
				t.Errorf("%d in %q", got, dir)
			}
		}); n > 2*height+8 {
			t.Errorf("List(%q) loads %d nodes of a tree of height %d", dir, n, height)
		}
	}
	t.Logf("%d nodes, height %d", len(b.m), height)
}

// change makes n random changes to a volume.
func change(rnd *rand.Rand, m map[string]*Entry, n int) map[string]*Entry {
	m = maps.Clone(m)
	all := sorted(m)
	for i := range n {
		was := all[1+rnd.IntN(len(all)-1)]
		e := *was
		switch rnd.IntN(3) {
		case 0:
			delete(m, was.Path())
			continue
		case 1:
			e.Name += fmt.Sprint(i)
		}
		e.MTime.Nsec ^= 1
		m[e.Path()] = &e
	}
	return m
}

func model(a, b map[string]*Entry) (changes []Change) {
	both := maps.Clone(a)
	maps.Copy(both, b)
	for _, e := range sorted(both) {
		if c := (Change{a[e.Path()], b[e.Path()]}); !alike(c.Old, c.New) {
			changes = append(changes, c)
		}
	}
	return changes
}

func differences(t testing.TB, l Loader, a, b Root) (changes []Change) {
	t.Helper()
	for c, err := range Diff(t.Context(), l, a, b) {
		if err != nil {
			t.Fatal(err)
		}
		changes = append(changes, c)
	}
	return changes
}

func TestDiffFindsWhatAMapFinds(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		m := genVolume(r, 500)
		n := genVolume(r, 500)
		if rapid.Bool().Draw(r, "related") {
			for path, e := range m {
				if rapid.IntRange(0, 20).Draw(r, "keep") > 0 {
					n[path] = e
				}
			}
		}
		b := newBlobs()
		from, to := build(t, b, sorted(m)), build(t, b, sorted(n))
		want, got := model(m, n), differences(t, b, from, to)
		if !slices.EqualFunc(want, got, func(c, d Change) bool { return alike(c.Old, d.Old) && alike(c.New, d.New) }) {
			r.Fatal(diff(want, got))
		}
	})
}

func TestDiffLoadsInProportionToTheDifference(t *testing.T) {
	m := flat(12_000, 1000)
	b := newBlobs()
	root := build(t, b, sorted(m))
	height := int(root.Level) + 1
	if differences(t, b, root, root); b.loads != 0 {
		t.Errorf("%d loads to find that a tree is itself", b.loads)
	}
	nodes := len(b.m)
	rnd := rand.New(rand.NewPCG(9, 10))
	for _, n := range []int{1, 1, 10, 100} {
		m2 := change(rnd, m, n)
		root2 := build(t, b, sorted(m2))
		b.loads = 0
		got := differences(t, b, root, root2)
		loads := b.loads
		if len(got) == 0 || len(got) > n {
			t.Errorf("%d differences of %d changes", len(got), n)
		}
		t.Logf("%d differences, %d loads of %d nodes", len(got), loads, nodes)
		if loads > 2*n*(height+2) {
			t.Errorf("%d loads for %d changes in trees of height %d", loads, n, height)
		}
	}
}

// One more directory of many files shifts all that is behind it.
func TestDiffSkipsWhatWasShifted(t *testing.T) {
	m := flat(12_000, 1000)
	b := newBlobs()
	root := build(t, b, sorted(m))
	m2 := maps.Clone(m)
	for i := range 2000 {
		e := file("data/d0010", fmt.Sprintf("e%07d", i), uint64(i))
		m2[e.Path()] = e
	}
	old := b.names(id.Node)
	root2 := build(t, b, sorted(m2))
	added := len(b.m) - len(old)
	b.loads = 0
	if got := len(differences(t, b, root, root2)); got != 2000 {
		t.Errorf("%d differences", got)
	}
	t.Logf("%d nodes are new, %d loads", added, b.loads)
	if b.loads > 2*added+10 {
		t.Errorf("%d loads where %d nodes are new", b.loads, added)
	}
	// Against the empty tree everything is a difference.
	empty := build(t, b, []*Entry{rootEntry()})
	if got := len(differences(t, b, empty, root2)); got != len(m2)-1 {
		t.Errorf("%d differences, want %d", got, len(m2)-1)
	}
	if got := len(differences(t, b, root2, empty)); got != len(m2)-1 {
		t.Errorf("%d differences, want %d", got, len(m2)-1)
	}
}

func TestNodesAndReachNameEverything(t *testing.T) {
	m := flat(3000, 100)
	b := newBlobs()
	big := file("data", "big", 1)
	p := make([]byte, 100_000)
	for i := range p {
		p[i] = byte(i * i >> 7)
	}
	big.Content = stream(t, b, p, 10)
	big.Size = uint64(len(p))
	m[big.Path()] = big
	root := build(t, b, sorted(m))
	nodes := map[id.Blob]bool{}
	for name, err := range Nodes(t.Context(), b, root) {
		if err != nil {
			t.Fatal(err)
		}
		nodes[name] = true
	}
	if d := diff(b.names(id.Node), nodes); d != "" {
		t.Error(d)
	}
	lists, data := map[id.Blob]bool{}, map[id.Blob]bool{}
	seen := map[id.Blob]bool{}
	for o, err := range Reach(t.Context(), b, root, func(o Object) bool {
		was := seen[o.Name]
		seen[o.Name] = true
		return was
	}) {
		switch {
		case err != nil:
			t.Fatal(err)
		case o.Kind == id.List:
			lists[o.Name] = true
		case o.Kind == id.Data:
			data[o.Name] = true
		}
	}
	if d := diff(b.names(id.List), lists); d != "" {
		t.Error(d)
	}
	if len(lists) < 3 {
		t.Errorf("%d lists show nothing", len(lists))
	}
	for r, err := range Refs(t.Context(), b, big.Content) {
		if err != nil || !data[r.Name] {
			t.Fatal("a blob of the big file is missing")
		}
	}
	for o := range Reach(t.Context(), b, root, func(o Object) bool { return seen[o.Name] }) {
		t.Fatalf("%v was seen", o)
	}
}

// Without one node or list, all that does not need it is still there.
func TestAMissingBlobCostsWhatIsBelowIt(t *testing.T) {
	b := newBlobs()
	m := flat(2500, 500)
	p := make([]byte, 40_000)
	for i := range p {
		p[i] = byte(i * i >> 7)
	}
	big := file("data", "big", 1)
	big.Content, big.Size = stream(t, b, p, 10), uint64(len(p))
	m[big.Path()] = big
	root := build(t, b, sorted(m))
	reached := map[id.Blob]bool{}
	for o := range Reach(t.Context(), b, root, nil) {
		reached[o.Name] = true
	}
	for key, p := range maps.Clone(b.m) {
		if key.kind == id.Data {
			continue
		}
		for _, bad := range [][]byte{nil, p[:len(p)-1]} {
			if delete(b.m, key); bad != nil {
				b.m[key] = bad
			}
			var failed *NodeError
			n, errs := uint64(0), 0
			for _, err := range Walk(t.Context(), b, root) {
				if n++; err != nil {
					n--
					errs++
					if !errors.As(err, &failed) || failed.Node != key.name {
						t.Fatalf("%v", err)
					}
				}
			}
			switch {
			case key.kind == id.List && errs > 0:
				t.Error("a list is no part of the tree")
			case key.kind == id.Node && errs != 1:
				t.Errorf("%d errors of one node", errs)
			case errs > 0 && n+failed.Entries < root.Entries:
				t.Errorf("%d entries, %d are lost, of %d", n, failed.Entries, root.Entries)
			}
			errs = 0
			var below []id.Blob
			for o, err := range Reach(t.Context(), b, root, nil) {
				if below = append(below, o.Name); err != nil {
					errs++
					if o.Name != key.name {
						t.Errorf("%v of %v", err, o)
					}
				}
			}
			if errs == 0 || len(below) == 0 {
				t.Errorf("a damaged %v was not noticed", key.kind)
			}
		}
		b.m[key] = p
	}
}

func TestAWalkEndsWithItsContext(t *testing.T) {
	b := newBlobs()
	root := build(t, b, sorted(flat(1000, 100)))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	errs := 0
	for _, err := range Walk(ctx, b, root) {
		cancel()
		if err != nil {
			errs++
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	}
	if errs != 1 {
		t.Errorf("%d errors", errs)
	}
}

// raw saves a node made by hand and returns it as an item.
func (b *blobs) raw(level uint8, first *Entry, sum counts, body []byte) item {
	p := append([]byte{level}, body...)
	name, _ := b.Save(context.Background(), id.Node, p)
	return item{dir: first.Dir, name: first.Name, node: name, length: uint32(len(p)), counts: sum}
}

func (b *blobs) leaf(entries ...*Entry) item {
	var body []byte
	var sum counts
	prev := ""
	for _, e := range entries {
		body = appendEntry(body, prev, e)
		prev = e.Dir
		sum.add(countsOf(e))
	}
	return b.raw(0, entries[0], sum, body)
}

func (b *blobs) spine(level uint8, items ...item) item {
	var body []byte
	var sum counts
	prev := ""
	for _, it := range items {
		body = appendItem(body, prev, it)
		prev = it.dir
		sum.add(it.counts)
	}
	return b.raw(level, &Entry{Dir: items[0].dir, Name: items[0].name}, sum, body)
}

func TestATreeThatLiesIsNotBelieved(t *testing.T) {
	x := func(name string) *Entry { return &Entry{Name: name, Type: Fifo} }
	b := newBlobs()
	root := rootEntry()
	with := func(it item, f func(*item)) item { f(&it); return it }
	good := b.spine(1, b.leaf(root, x("a")), b.leaf(x("b"), x("c")))
	tests := []struct {
		name  string
		top   item
		level uint8
	}{
		{"the root is not first", b.leaf(x("a")), 0},
		{"entries in the wrong order", b.leaf(root, x("b"), x("a")), 0},
		{"an entry twice", b.leaf(root, x("a"), x("a")), 0},
		{"leaves in the wrong order", b.spine(1, b.leaf(root, x("b")), b.leaf(x("a"))), 1},
		{"a leaf that reaches into the next", b.spine(1, b.leaf(root, x("c")), b.leaf(x("b"))), 1},
		{"a leaf twice", b.spine(1, b.leaf(root), b.leaf(root)), 1},
		{"a first key that is not the first", b.spine(1, b.leaf(root), with(b.leaf(x("b")), func(it *item) { it.name = "a" })), 1},
		{"one entry more", b.spine(1, with(b.leaf(root), func(it *item) { it.entries++ }), b.leaf(x("b"))), 1},
		{"one file more", b.spine(1, with(b.leaf(root), func(it *item) { it.files++ }), b.leaf(x("b"))), 1},
		{"one byte more", b.spine(1, with(b.leaf(root), func(it *item) { it.bytes++ }), b.leaf(x("b"))), 1},
		{"another length", b.spine(1, with(b.leaf(root), func(it *item) { it.length++ }), b.leaf(x("b"))), 1},
		{"the root counts wrong", with(good, func(it *item) { it.entries-- }), 1},
		{"the root is of another level", good, 2},
		{"a leaf that should be a spine node", b.spine(2, b.leaf(root), b.leaf(x("b"))), 2},
		{"a spine node that should be a leaf", b.spine(1, b.spine(1, b.leaf(root))), 1},
		{"level 9", good, 9},
		{"an empty node", b.raw(0, root, counts{entries: 1}, nil), 0},
		{"a child without a name", b.spine(1, with(b.leaf(root), func(it *item) { it.node = id.Blob{} })), 1},
		{"a child of nothing", b.spine(1, b.leaf(root), with(b.leaf(x("b")), func(it *item) { it.entries = 0 })), 1},
		{"more files than entries", b.spine(1, with(b.leaf(root), func(it *item) { it.files = 2 })), 1},
		{"a byte too many", b.raw(0, root, counts{entries: 1}, append(appendEntry(nil, "", root), 0)), 0},
		{"an entry that is not valid", b.leaf(root, x("..")), 0},
		{"a child that is not valid", b.spine(1, b.leaf(root), b.leaf(x(".."))), 1},
		{"a number of two bytes that fits in one", b.raw(0, root, counts{entries: 1}, append([]byte{0x80}, appendEntry(nil, "", root)...)), 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := Root{tt.top.node, tt.top.length, tt.level, tt.top.entries, tt.top.files, tt.top.bytes}
			read := map[string]func() error{
				"Walk": func() error { return last(Walk(t.Context(), b, r)) },
				"Diff": func() error {
					empty := build(t, b, []*Entry{{Type: Dir, Mode: 0o700}})
					return last(Diff(t.Context(), b, empty, r))
				},
				"Reach": func() error { return last(Reach(t.Context(), b, r, nil)) },
				"Nodes": func() error { return last(Nodes(t.Context(), b, r)) },
			}
			for name, f := range read {
				err := f()
				var node *NodeError
				if !errors.Is(err, ErrFormat) || !errors.As(err, &node) {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	if err := last(Walk(t.Context(), b, Root{good.node, good.length, 1, good.entries, good.files, good.bytes})); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

// last returns the first error of a sequence read to its end.
func last[V any](seq iter.Seq2[V, error]) (first error) {
	for _, err := range seq {
		if first == nil {
			first = err
		}
	}
	return first
}

// A walk over any bytes ends, keeps order, and is wrong in the right way. Every
// node of the tree is the same bytes.
func FuzzNode(f *testing.F) {
	b := newBlobs()
	build(f, b, sorted(flat(300, 50)))
	for _, p := range b.m {
		f.Add(p, uint8(p[0]))
	}
	f.Fuzz(func(t *testing.T, p []byte, level uint8) {
		if len(p) == 0 || len(p) > 4<<10 {
			return
		}
		l := numbered{p}
		r := Root{Name: id.Blob{1}, Length: uint32(len(p)), Level: level, Entries: 1}
		// Totals that are right let the fuzzer get further.
		for c := range countNode(p, level) {
			r.Entries, r.Files, r.Bytes = c.entries, c.files, c.bytes
		}
		var prev *Entry
		var entries []*Entry
		failed := false
		for e, err := range Walk(t.Context(), l, r) {
			if err != nil {
				if failed = true; !errors.Is(err, ErrFormat) {
					t.Fatalf("error of the wrong kind: %v", err)
				}
				continue
			}
			if prev != nil && Compare(prev.Dir, prev.Name, e.Dir, e.Name) >= 0 {
				t.Fatalf("%q after %q", e.Path(), prev.Path())
			}
			prev = e
			entries = append(entries, e)
		}
		if failed || level > 0 {
			return
		}
		// A leaf that was believed is the leaf of its entries.
		leaf := []byte{0}
		dir := ""
		for _, e := range entries {
			leaf = appendEntry(leaf, dir, e)
			dir = e.Dir
		}
		if string(leaf) != string(p) {
			t.Fatalf("%x was read and is written as %x", p, leaf)
		}
	})
}

// numbered answers every name with the same node.
type numbered struct{ p []byte }

func (n numbered) Load(context.Context, id.Blob, id.Kind) ([]byte, error) { return n.p, nil }

func countNode(p []byte, level uint8) iter.Seq[counts] {
	return func(yield func(counts) bool) {
		var sum counts
		prev, rest := "", p[1:]
		for len(rest) > 0 {
			if level > 0 {
				r := reader{p: rest}
				it := r.item(prev)
				if r.err != nil {
					return
				}
				sum.add(it.counts)
				prev, rest = it.dir, r.p
				continue
			}
			e, after, err := ParseEntry(rest, prev)
			if err != nil {
				return
			}
			sum.add(countsOf(e))
			prev, rest = e.Dir, after
		}
		yield(sum)
	}
}

// A small node cannot make a reader allocate much: numbers in it are only
// believed as far as there are bytes.
func TestHugeNumbersInANodeAllocateNothing(t *testing.T) {
	huge := binary.AppendUvarint(nil, 1<<62)
	for _, body := range [][]byte{
		huge, append([]byte{0}, huge...), append([]byte{0, 0}, huge...),
	} {
		for level := range uint8(2) {
			p := append([]byte{level}, body...)
			r := Root{id.Blob{1}, uint32(len(p)), level, 1, 0, 0}
			if n := testing.AllocsPerRun(10, func() {
				if err := last(Walk(t.Context(), numbered{p}, r)); !errors.Is(err, ErrFormat) {
					t.Error(err)
				}
			}); n > 60 {
				t.Errorf("%v allocations", n)
			}
		}
	}
}
