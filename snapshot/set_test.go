package snapshot

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"orlop/id"
	"pgregory.net/rapid"
)

func TestExtentsAndXattrsComeBackAsTheyWere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		extents := genExtents(t)
		if got, err := DecodeExtents(EncodeExtents(extents)); err != nil || !slices.Equal(got, extents) {
			t.Fatalf("%v, %v; want %v", got, err, extents)
		}
		xattrs := genXattrs(t)
		got, err := DecodeXattrs(EncodeXattrs(xattrs))
		if d := diff(xattrs, got); d != "" || err != nil {
			t.Fatalf("%v %s", err, d)
		}
	})
}

func FuzzExtents(f *testing.F) {
	f.Add(EncodeExtents([]Extent{{0, 1}, {4096, 1 << 40}}))
	f.Add(EncodeExtents([]Extent{{1<<63 - 2, 1}}))
	f.Add([]byte{0x80, 0x00, 1})
	f.Fuzz(func(t *testing.T, p []byte) {
		extents, err := DecodeExtents(p)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		var sum uint64
		for _, x := range extents {
			sum += x.Length
		}
		if err := ValidExtents(extents, MaxSize, sum); err != nil {
			t.Fatal(err)
		}
		if again := EncodeExtents(extents); !bytes.Equal(again, p) {
			t.Fatalf("%x was read and is written as %x", p, again)
		}
	})
}

func FuzzXattrs(f *testing.F) {
	f.Add(EncodeXattrs([]Xattr{{"security.capability", make([]byte, 20)}, {"user.a", nil}}))
	f.Add([]byte{1, 'a', 0, 1, 'a', 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		set, err := DecodeXattrs(p)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		if err := ValidXattrs(set); err != nil {
			t.Fatal(err)
		}
		if again := EncodeXattrs(set); !bytes.Equal(again, p) {
			t.Fatalf("%x was read and is written as %x", p, again)
		}
	})
}

// stream saves p as a stream of blobs of n bytes.
func stream(t testing.TB, b *blobs, p []byte, n int) Content {
	t.Helper()
	cb := NewContentBuilder(b)
	for piece := range slices.Chunk(p, n) {
		name, _ := b.Save(t.Context(), id.Data, piece)
		if err := cb.Add(t.Context(), Ref{name, uint64(len(piece))}); err != nil {
			t.Fatal(err)
		}
	}
	c, err := cb.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A map is cut anywhere, also within an extent.
func TestAMapIsReadWhereverItIsCut(t *testing.T) {
	var extents []Extent
	var sum uint64
	for i := range uint64(300) {
		extents = append(extents, Extent{i * 1 << (20 + i%3), 1 + i*i%70_000})
		sum += extents[i].Length
	}
	slices.SortFunc(extents, func(a, b Extent) int { return int(a.Offset) - int(b.Offset) })
	extents = slices.CompactFunc(extents, func(a, b Extent) bool { return a.End() >= b.Offset })
	sum = 0
	for _, x := range extents {
		sum += x.Length
	}
	size := extents[len(extents)-1].End() + 5
	for n := 1; n < 50; n++ {
		b := newBlobs()
		e := &Entry{
			Name: "f", Type: File, Size: size, Sparse: true,
			Content: Content{Level: 1, Refs: []Ref{{id.Blob{1}, sum}}}, Map: stream(t, b, EncodeExtents(extents), n),
		}
		if err := e.Valid(); err != nil {
			t.Fatal(err)
		}
		read := func() (got []Extent, err error) {
			for x, err := range e.LoadExtents(t.Context(), b) {
				if err != nil {
					return got, err
				}
				got = append(got, x)
			}
			return got, nil
		}
		if got, err := read(); err != nil || !slices.Equal(got, extents) {
			t.Fatalf("blobs of %d bytes: %d extents, want %d: %v", n, len(got), len(extents), err)
		}
		for _, wrong := range []uint64{sum - 1, sum + 1} {
			e.Content.Refs[0].Length = wrong
			if _, err := read(); !errors.Is(err, ErrFormat) {
				t.Errorf("%d bytes of content for %d of extents: %v", wrong, sum, err)
			}
		}
		e.Content.Refs[0].Length = sum
		e.Size = size - 6
		if _, err := read(); !errors.Is(err, ErrFormat) {
			t.Errorf("extents past the end: %v", err)
		}
	}
}

func TestALargeXattrSetIsReadFromItsStream(t *testing.T) {
	want := []Xattr{{"security.a", bytes.Repeat([]byte("v"), 3000)}, {"user." + strings.Repeat("n", 200), nil}}
	b := newBlobs()
	e := &Entry{Name: "f", Type: Dir, XattrSet: stream(t, b, EncodeXattrs(want), 77)}
	got, err := e.LoadXattrs(t.Context(), b)
	if d := diff(want, got); err != nil || d != "" {
		t.Errorf("%v %s", err, d)
	}
	e.XattrSet = stream(t, b, EncodeXattrs(want)[1:], 77)
	if _, err := e.LoadXattrs(t.Context(), b); !errors.Is(err, ErrFormat) {
		t.Errorf("a set without its first byte: %v", err)
	}
}
