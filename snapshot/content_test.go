package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"runtime"
	"slices"
	"testing"

	"orlop/id"
	"pgregory.net/rapid"
)

// refsOf is a stream of n blobs; each seed makes another one.
func refsOf(seed, n uint64) []Ref {
	refs := make([]Ref, n)
	for i := range refs {
		refs[i] = Ref{namer.Blob(id.Data, binary.LittleEndian.AppendUint64(nil, seed<<32+uint64(i))), 1 + uint64(i)%1000}
	}
	return refs
}

func list(t testing.TB, s Sink, refs []Ref) Content {
	t.Helper()
	cb := NewContentBuilder(s)
	for _, r := range refs {
		if err := cb.Add(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	c, err := cb.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func unlist(t testing.TB, l Loader, c Content) (refs []Ref) {
	t.Helper()
	for r, err := range Refs(t.Context(), l, c) {
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, r)
	}
	return refs
}

func TestAStreamComesBackAsItWas(t *testing.T) {
	for _, n := range []uint64{0, 1, 8, 9, 10, 300, 5000, 10_000} {
		b := newBlobs()
		want := refsOf(1, n)
		c := list(t, b, want)
		if got := unlist(t, b, c); !slices.Equal(got, want) {
			t.Errorf("%d refs come back as %d", n, len(got))
		}
		if n <= MaxRefs && (c.Level != 0 || b.saves > 0) || n > MaxRefs && c.Level == 0 {
			t.Errorf("%d refs make %d lists and level %d", n, b.saves, c.Level)
		}
		if b.saves != len(b.m) {
			t.Errorf("%d refs: %d saves of %d lists", n, b.saves, len(b.m))
		}
	}
}

// Whatever the names are: many that end a list, or none.
func TestAnyStreamComesBackAsItWas(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		b := newBlobs()
		odd := rapid.IntRange(0, 3).Draw(r, "odd")
		want := refsOf(rapid.Uint64Range(0, 1<<20).Draw(r, "seed"), rapid.Uint64Range(0, 600).Draw(r, "n"))
		for i := range want {
			switch {
			case odd == 1:
				want[i].Name[0] = 1
			case odd == 2 && i%2 == 0:
				want[i].Name[0] = 0
			}
		}
		c := list(t, b, want)
		if err := c.valid(); err != nil {
			r.Fatal(err)
		}
		if got := unlist(t, b, c); !slices.Equal(got, want) {
			r.Fatal("it does not come back")
		}
	})
}

func TestAListEndsBefore4097Refs(t *testing.T) {
	refs := refsOf(1, 2*MaxList+1)
	for i := range refs {
		refs[i].Name[0] = 1
	}
	b := newBlobs()
	c := list(t, b, refs)
	if c.Level != 1 || len(c.Refs) != 3 {
		t.Errorf("level %d of %d", c.Level, len(c.Refs))
	}
	if got := unlist(t, b, c); !slices.Equal(got, refs) {
		t.Error("it does not come back")
	}
}

func TestOneChangedBlobMakesFewLists(t *testing.T) {
	refs := refsOf(1, 20_000)
	b := newBlobs()
	want := list(t, b, refs)
	old := len(b.m)
	other := refsOf(2, 16)
	for i := range 16 {
		at := i * len(refs) / 16
		changed := slices.Insert(slices.Clone(refs), at, other[i])
		if i%2 == 0 {
			changed = slices.Delete(changed, at+1, min(at+5, len(changed)))
		}
		list(t, b, changed)
	}
	if n := float64(len(b.m)-old) / 16; n > float64(want.Level)+1.5 {
		t.Errorf("%.1f new lists a change, of %d", n, old)
	}
	if got := list(t, b, refs); !got.Equal(want) {
		t.Error("undone, the changes leave something")
	}
}

func TestAMillionBlobsTakeNoMemory(t *testing.T) { longStream(t, 1_000_000) }

func BenchmarkTenMillionBlobs(b *testing.B) {
	for b.Loop() {
		longStream(b, 10_000_000)
	}
}

func longStream(t testing.TB, n uint64) {
	s := &blobs{discard: true}
	cb := NewContentBuilder(s)
	var before, after runtime.MemStats
	most := uint64(0)
	name := namer.Blob(id.Data, nil)
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range n {
		// As good as a hash here: well mixed in its first byte.
		binary.LittleEndian.PutUint64(name[:], (i+1)*0x9e3779b97f4a7c15>>7)
		if err := cb.Add(t.Context(), Ref{name, 1 << 20}); err != nil {
			t.Fatal(err)
		}
		if i%(n/10) == 0 {
			runtime.GC()
			runtime.ReadMemStats(&after)
			most = max(most, after.HeapAlloc)
		}
	}
	c, err := cb.Finish(t.Context())
	if err != nil || c.Size() != n<<20 {
		t.Fatalf("%d bytes: %v", c.Size(), err)
	}
	t.Logf("%d refs, %d lists, level %d, %d KiB held at most", n, s.saves, c.Level, int64(most-before.HeapAlloc)>>10)
	if most > before.HeapAlloc+2<<20 {
		t.Errorf("%d bytes held", most-before.HeapAlloc)
	}
}

func TestAStreamThatLiesIsNotBelieved(t *testing.T) {
	b := newBlobs()
	save := func(p []byte) id.Blob {
		name, _ := b.Save(t.Context(), id.List, p)
		return name
	}
	of := func(level uint8, refs ...Ref) Ref {
		p := []byte{level}
		var sum uint64
		for _, r := range refs {
			p = appendRef(p, r)
			sum = addSat(sum, r.Length)
		}
		return Ref{save(p), sum}
	}
	x := Ref{id.Blob{1}, 10}
	longer := of(1, x, x)
	longer.Length++
	many := slices.Repeat([]Ref{x}, MaxList+1)
	tests := []struct {
		name string
		c    Content
	}{
		{"a list of another level", Content{1, []Ref{of(2, of(1, x))}}},
		{"a list of level 0", Content{1, []Ref{of(0, x)}}},
		{"a list within itself is of another level", Content{2, []Ref{of(1, x)}}},
		{"an empty list", Content{1, []Ref{{save([]byte{1}), 1}}}},
		{"a list of no bytes", Content{1, []Ref{{save(nil), 1}}}},
		{"another length", Content{1, []Ref{longer}}},
		{"a ref of no bytes", Content{1, []Ref{of(1, x, Ref{id.Blob{2}, 0})}}},
		{"a ref without a name", Content{1, []Ref{of(1, Ref{Length: 1})}}},
		{"data over the limit", Content{1, []Ref{of(1, Ref{id.Blob{1}, MaxData + 1})}}},
		{"4,097 refs", Content{1, []Ref{of(1, many...)}}},
		{"half a ref", Content{1, []Ref{{save(appendRef([]byte{1}, x)[:20]), 10}}}},
		{"nine refs in the entry", Content{0, many[:9]}},
		{"level 8", Content{8, []Ref{x}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := last(Refs(t.Context(), b, tt.c)); !errors.Is(err, ErrFormat) {
				t.Errorf("%v", err)
			}
		})
	}
	if err := last(Refs(t.Context(), b, Content{1, []Ref{{id.Blob{7}, 1}}})); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing list: %v", err)
	}
	if err := NewContentBuilder(b).Add(t.Context(), Ref{id.Blob{1}, 0}); !errors.Is(err, ErrFormat) {
		t.Errorf("a blob of nothing was added: %v", err)
	}
}

func FuzzList(f *testing.F) {
	b := newBlobs()
	c := list(f, b, refsOf(1, 3000))
	for _, r := range c.Refs {
		p, _ := b.Load(f.Context(), r.Name, id.List)
		f.Add(p[:1+33*(len(p)/66)], c.Level, r.Length)
	}
	f.Add(appendRef([]byte{1}, Ref{id.Blob{1}, 10}), uint8(1), uint64(10))
	f.Fuzz(func(t *testing.T, p []byte, level uint8, length uint64) {
		refs, err := parseList(p, level, length)
		if err != nil {
			return
		}
		again := []byte{level}
		var sum uint64
		for _, r := range refs {
			if err := r.valid(level - 1); err != nil {
				t.Fatal(err)
			}
			again = appendRef(again, r)
			sum += r.Length
		}
		if !bytes.Equal(again, p) || sum != length {
			t.Fatalf("%x was read and is written as %x", p, again)
		}
	})
}
