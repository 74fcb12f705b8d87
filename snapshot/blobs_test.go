package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"orlop/id"
	"pgregory.net/rapid"
)

var (
	namer    = id.NewNamer([32]byte{1})
	boundary = id.NewKeyed([32]byte{2})
)

type blobKey struct {
	name id.Blob
	kind id.Kind
}

// blobs is a repository in memory that counts.
type blobs struct {
	mu           sync.Mutex
	m            map[blobKey][]byte
	saves, loads int
	discard      bool // keep nothing
}

func newBlobs() *blobs { return &blobs{m: map[blobKey][]byte{}} }

func (b *blobs) Save(_ context.Context, kind id.Kind, p []byte) (id.Blob, error) {
	name := namer.Blob(kind, p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.saves++
	if _, ok := b.m[blobKey{name, kind}]; !ok && !b.discard {
		b.m[blobKey{name, kind}] = slices.Clone(p)
	}
	return name, nil
}

func (b *blobs) Load(_ context.Context, name id.Blob, kind id.Kind) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.loads++
	p, ok := b.m[blobKey{name, kind}]
	if !ok {
		return nil, fmt.Errorf("%v %s: %w", kind, name.Short(), fs.ErrNotExist)
	}
	return p, nil
}

// names returns the blobs that are there.
func (b *blobs) names(kind id.Kind) map[id.Blob]bool {
	m := map[id.Blob]bool{}
	for k := range b.m {
		if k.kind == kind {
			m[k.name] = true
		}
	}
	return m
}

func build(t testing.TB, s Sink, entries []*Entry) Root {
	t.Helper()
	tree := NewTree(s, boundary)
	for _, e := range entries {
		if err := tree.Add(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	root, err := tree.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func walk(t testing.TB, l Loader, root Root) []*Entry {
	t.Helper()
	var all []*Entry
	for e, err := range Walk(t.Context(), l, root) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

func sorted(m map[string]*Entry) []*Entry {
	return slices.SortedFunc(maps.Values(m), func(a, b *Entry) int { return Compare(a.Dir, a.Name, b.Dir, b.Name) })
}

func rootEntry() *Entry { return &Entry{Type: Dir, Mode: 0o755} }

// flat is a volume of n files in directories of width files each.
func flat(n, width int) map[string]*Entry {
	m := map[string]*Entry{"": rootEntry()}
	for i := range n {
		dir := fmt.Sprintf("data/d%04d", i/width)
		m["data"] = &Entry{Name: "data", Type: Dir, Mode: 0o755}
		m[dir] = &Entry{Dir: "data", Name: dir[5:], Type: Dir, Mode: 0o755}
		f := file(dir, fmt.Sprintf("f%07d", i), uint64(i))
		m[f.Path()] = f
	}
	return m
}

func file(dir, name string, seed uint64) *Entry {
	return &Entry{
		Dir: dir, Name: name, Type: File, Mode: 0o644, UID: 999, GID: 999,
		MTime: Time{1_700_000_000 + int64(seed), uint32(seed % 1e9)}, Size: 1000 + seed%100_000,
		Content: Content{Refs: []Ref{{namer.Blob(id.Data, fmt.Append(nil, seed)), 1000 + seed%100_000}}},
	}
}

// Generators of what is valid, odd values preferred.

func genName(t *rapid.T) string {
	name := rapid.OneOf(
		rapid.SampledFrom([]string{"a", "b", "ab", "a!", "a.", "..a", "\x01", "\xff\xfe", "0", "zz"}),
		rapid.StringMatching(`[a-c!.]{1,4}`),
	).Draw(t, "name")
	if name == "." || name == ".." {
		return "dot"
	}
	return name
}

func genContent(t *rapid.T, level uint8) Content {
	c := Content{Level: level}
	for range rapid.IntRange(1, MaxRefs).Draw(t, "refs") {
		limit := uint64(MaxData)
		if level > 0 {
			limit = 1 << 40
		}
		c.Refs = append(c.Refs, Ref{
			namer.Blob(id.Data, fmt.Append(nil, rapid.Uint64().Draw(t, "ref"))),
			rapid.Uint64Range(1, limit).Draw(t, "length"),
		})
	}
	return c
}

func genExtents(t *rapid.T) (extents []Extent) {
	var end uint64
	for range rapid.IntRange(0, 5).Draw(t, "extents") {
		gap := rapid.Uint64Range(min(1, end), 1<<40).Draw(t, "gap")
		x := Extent{end + gap, rapid.Uint64Range(1, 1<<20).Draw(t, "extent")}
		extents = append(extents, x)
		end = x.End()
	}
	return extents
}

func genXattrs(t *rapid.T) (set []Xattr) {
	m := rapid.MapOfN(rapid.StringMatching(`user\.[a-z]{1,3}`), rapid.SliceOfN(rapid.Byte(), 0, 40), 0, 5).Draw(t, "xattrs")
	for _, name := range slices.Sorted(maps.Keys(m)) {
		set = append(set, Xattr{name, m[name]})
	}
	return set
}

// genEntry makes an entry of any type for a place in a tree.
func genEntry(t *rapid.T, dir, name string) *Entry {
	e := &Entry{
		Dir: dir, Name: name, Type: Dir,
		Mode: rapid.Uint32Range(0, 0o7777).Draw(t, "mode"),
		UID:  rapid.Uint32().Draw(t, "uid"), GID: rapid.Uint32().Draw(t, "gid"),
		MTime:  Time{rapid.Int64().Draw(t, "sec"), rapid.Uint32Range(0, maxNsec).Draw(t, "nsec")},
		Xattrs: genXattrs(t),
	}
	if name != "" {
		e.Type = rapid.Custom(func(t *rapid.T) Type { return Type(rapid.IntRange(1, 7).Draw(t, "type")) }).Draw(t, "type")
	}
	if e.Type != Dir && rapid.Bool().Draw(t, "linked") {
		e.Group = [16]byte{rapid.Byte().Draw(t, "group")}
	}
	if len(e.Xattrs) == 0 && rapid.Bool().Draw(t, "xattr set") {
		e.XattrSet = Content{Refs: []Ref{{id.Blob{3}, rapid.Uint64Range(1, MaxXattrSet/2).Draw(t, "set")}}}
	}
	switch e.Type {
	case Symlink:
		e.Target = rapid.StringN(1, 20, 60).Filter(validTarget).Draw(t, "target")
	case Char, Block:
		e.Rdev = rapid.Uint64().Draw(t, "rdev")
	case File:
		genFile(t, e)
	}
	return e
}

// validTarget reports whether a symlink can have the target.
func validTarget(s string) bool {
	return (&Entry{Name: "l", Type: Symlink, Target: s}).Valid() == nil
}

func genFile(t *rapid.T, e *Entry) {
	e.Class = uint8(rapid.IntRange(0, 1).Draw(t, "class"))
	e.Torn = rapid.Bool().Draw(t, "torn")
	e.Sparse = rapid.Bool().Draw(t, "sparse")
	inMap := rapid.Bool().Draw(t, "map")
	switch {
	case e.Sparse && !inMap:
		e.Extents = genExtents(t)
		var sum uint64
		for _, x := range e.Extents {
			sum += x.Length
			e.Size = x.End()
		}
		e.Size += rapid.Uint64Range(0, 1<<40).Draw(t, "hole")
		if sum > 0 {
			e.Content = Content{Level: 1, Refs: []Ref{{id.Blob{9}, sum}}}
		}
		return
	case rapid.Bool().Draw(t, "inline"):
		e.Inline = rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "content")
	default:
		e.Content = genContent(t, uint8(rapid.IntRange(0, 3).Draw(t, "level")))
	}
	e.Size = uint64(len(e.Inline)) + e.Content.Size()
	if e.Sparse {
		e.Map = genContent(t, 0)
		e.Size += rapid.Uint64Range(0, 1<<40).Draw(t, "hole")
	}
}

// genVolume makes a volume whose directories are all there: up to 40 odd
// entries, and up to n ordinary files among them.
func genVolume(t *rapid.T, n int) map[string]*Entry {
	m := map[string]*Entry{"": genEntry(t, "", "")}
	dirs := []string{""}
	for range rapid.IntRange(0, 40).Draw(t, "odd entries") {
		dir, name := rapid.SampledFrom(dirs).Draw(t, "dir"), genName(t)
		e := genEntry(t, dir, name)
		if _, ok := m[e.Path()]; ok {
			continue
		}
		m[e.Path()] = e
		if e.Type == Dir {
			dirs = append(dirs, e.Path())
		}
	}
	rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	for range rapid.IntRange(0, n).Draw(t, "files") {
		f := file(dirs[rnd.IntN(len(dirs))], fmt.Sprint(rnd.IntN(1000)), rnd.Uint64N(3))
		m[f.Path()] = f
	}
	return m
}

// unlike says how two runs of entries differ.
func unlike(want, got []*Entry) string {
	if slices.EqualFunc(want, got, alike) {
		return ""
	}
	return fmt.Sprintf("%d entries, want %d: %s", len(got), len(want), diff(want, got))
}

func alike(a, b *Entry) bool {
	if a == nil || b == nil {
		return a == b
	}
	p, err := AppendEntry(nil, "", a)
	q, err2 := AppendEntry(nil, "", b)
	return err == nil && err2 == nil && bytes.Equal(p, q)
}
