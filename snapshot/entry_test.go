package snapshot

import (
	"bytes"
	"cmp"
	"errors"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"orlop/id"
	"pgregory.net/rapid"
)

func diff(want, got any) string { return gocmp.Diff(want, got, cmpopts.EquateEmpty()) }

func TestCompareWalksADirectoryBeforeWhatSortsAfterItsName(t *testing.T) {
	paths := []string{
		"", "a", "a!", "ab", "b", // the root and what is in it
		"a/x", "a/x!", "a/x/deep", "a/x!/y", // the run of a, then that of a/x, then that of a/x!
		"a!/x", "ab/x", "b/\x01", "b/a", "b/\xff",
	}
	for i := range paths {
		for j := range paths {
			dirA, nameA := SplitPath(paths[i])
			dirB, nameB := SplitPath(paths[j])
			if got := Compare(dirA, nameA, dirB, nameB); cmp.Compare(got, 0) != cmp.Compare(i, j) {
				t.Errorf("Compare(%q, %q) = %d", paths[i], paths[j], got)
			}
		}
	}
}

func TestCompareIsByteOrderWithSlashAsZero(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gen := rapid.StringMatching(`([ab!~][/]?){0,6}`)
		a, b := gen.Draw(t, "a"), gen.Draw(t, "b")
		want := strings.Compare(strings.ReplaceAll(a, "/", "\x00"), strings.ReplaceAll(b, "/", "\x00"))
		if got := Compare(a, "", b, ""); cmp.Compare(got, 0) != want {
			t.Fatalf("Compare(%q, %q) = %d, want %d", a, b, got, want)
		}
	})
}

func TestWhatASubtreeHoldsIsOneRun(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := genVolume(t, 30)
		for top := range m {
			runs, inside := 0, false
			for _, e := range sorted(m) {
				if e.IsRoot() {
					continue
				}
				if b := Below(e.Dir, top); b && !inside {
					runs++
				}
				inside = Below(e.Dir, top)
			}
			if runs > 1 {
				t.Fatalf("what is below %q is in %d runs", top, runs)
			}
		}
	})
}

func TestAnEntryComesBackAsItWas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := genEntry(t, rapid.SampledFrom([]string{"", "a", "a/b", "\xff"}).Draw(t, "dir"), genName(t))
		prev := rapid.SampledFrom([]string{"", "a", "a/c", "ab"}).Draw(t, "prev")
		p, err := AppendEntry(nil, prev, want)
		if err != nil {
			t.Fatal(err)
		}
		got, rest, err := ParseEntry(append(p, "rest"...), prev)
		if err != nil || string(rest) != "rest" {
			t.Fatalf("rest %q: %v", rest, err)
		}
		if d := diff(want, got); d != "" {
			t.Fatal(d)
		}
		for n := range p {
			if _, _, err := ParseEntry(p[:n], prev); !errors.Is(err, ErrFormat) {
				t.Fatalf("the first %d of %d bytes: %v", n, len(p), err)
			}
		}
	})
}

func TestTheLargestEntryFitsInANode(t *testing.T) {
	refs := func(level uint8) (c Content) {
		c.Level = level
		for range MaxRefs {
			c.Refs = append(c.Refs, Ref{id.Blob{1}, 1 << 50})
		}
		return c
	}
	name := strings.Repeat("n", MaxName)
	dir := strings.Repeat(name+"/", MaxPath/(MaxName+1))
	dir = dir[:len(dir)-1-MaxName-1]
	e := &Entry{
		Dir: dir, Name: name, Type: Symlink, Mode: 0o7777, UID: 1<<32 - 1, GID: 1<<32 - 1,
		MTime: Time{-1 << 63, maxNsec}, Group: [16]byte{1}, Target: strings.Repeat("t", MaxPath),
		Xattrs: []Xattr{{"user.x", make([]byte, MaxSet-9)}},
	}
	p, err := AppendEntry(nil, "", e)
	if err != nil {
		t.Fatal(err)
	}
	if want := 160 << 10; len(p) > want {
		t.Errorf("%d bytes, want at most %d", len(p), want)
	}
	f := &Entry{
		Dir: dir, Name: name, Type: File, Size: MaxSize, Sparse: true, Class: 1, Torn: true,
		Content: refs(7), Map: refs(7), XattrSet: Content{Refs: []Ref{{id.Blob{1}, 1}}}, Group: e.Group, MTime: e.MTime,
	}
	if p, err = AppendEntry(nil, "", f); err != nil || len(p) > 160<<10 {
		t.Errorf("%d bytes: %v", len(p), err)
	}
}

func TestWhatIsNoEntryIsNeitherWrittenNorRead(t *testing.T) {
	long := strings.Repeat("x", 256)
	ref := Ref{id.Blob{1}, 600}
	tests := []struct {
		name string
		e    Entry
	}{
		{"a name of 256 bytes", Entry{Name: long, Type: Dir}},
		{"a name with a slash", Entry{Name: "a/b", Type: Dir}},
		{"a name with a NUL", Entry{Name: "a\x00b", Type: Dir}},
		{"dot", Entry{Name: ".", Type: Dir}},
		{"dot dot", Entry{Name: "..", Type: Dir}},
		{"no name in a directory", Entry{Dir: "a", Type: Dir}},
		{"an absolute directory", Entry{Dir: "/a", Name: "b", Type: Dir}},
		{"a directory with a slash at its end", Entry{Dir: "a/", Name: "b", Type: Dir}},
		{"dot dot in the directory", Entry{Dir: "a/..", Name: "b", Type: Dir}},
		{"a path of 65,536 bytes", Entry{Dir: strings.Repeat("x/", 32766) + "xx", Name: "b", Type: Dir}},
		{"no type", Entry{Name: "a"}},
		{"type 8", Entry{Name: "a", Type: 8}},
		{"a root that is a file", Entry{Type: File}},
		{"bits of mode that are no permission", Entry{Name: "a", Type: Dir, Mode: 0o10000}},
		{"a second of nanoseconds", Entry{Name: "a", Type: Dir, MTime: Time{0, 1e9}}},
		{"a directory with a size", Entry{Name: "a", Type: Dir, Size: 1}},
		{"a fifo with content", Entry{Name: "a", Type: Fifo, Inline: []byte("x")}},
		{"a torn symlink", Entry{Name: "a", Type: Symlink, Target: "b", Torn: true}},
		{"a hard link to a directory", Entry{Name: "a", Type: Dir, Group: [16]byte{1}}},
		{"a symlink to nothing", Entry{Name: "a", Type: Symlink}},
		{"a symlink with a NUL", Entry{Name: "a", Type: Symlink, Target: "b\x00"}},
		{"a file with a target", Entry{Name: "a", Type: File, Target: "b"}},
		{"a file with a device number", Entry{Name: "a", Type: File, Rdev: 1}},
		{"a file shorter than it says", Entry{Name: "a", Type: File, Size: 2, Inline: []byte("x")}},
		{"a file longer than it says", Entry{Name: "a", Type: File, Inline: []byte("x")}},
		{"513 bytes inline", Entry{Name: "a", Type: File, Size: 513, Inline: make([]byte, 513)}},
		{"content twice", Entry{Name: "a", Type: File, Size: 601, Inline: []byte("x"), Content: Content{Refs: []Ref{ref}}}},
		{"nine refs", Entry{Name: "a", Type: File, Size: 5400, Content: Content{Refs: []Ref{ref, ref, ref, ref, ref, ref, ref, ref, ref}}}},
		{"a ref without a name", Entry{Name: "a", Type: File, Size: 1, Content: Content{Refs: []Ref{{Length: 1}}}}},
		{"a ref to nothing", Entry{Name: "a", Type: File, Content: Content{Refs: []Ref{{Name: id.Blob{1}}}}}},
		{"a data blob over the limit", Entry{Name: "a", Type: File, Size: MaxData + 1, Content: Content{Refs: []Ref{{id.Blob{1}, MaxData + 1}}}}},
		{"a level over the limit", Entry{Name: "a", Type: File, Size: 600, Content: Content{Level: 8, Refs: []Ref{ref}}}},
		{"a level of nothing", Entry{Name: "a", Type: File, Content: Content{Level: 1}}},
		{"class 2", Entry{Name: "a", Type: File, Class: 2}},
		{"extents without holes", Entry{Name: "a", Type: File, Size: 1, Inline: []byte("x"), Extents: []Extent{{0, 1}}}},
		{"extents that touch", Entry{Name: "a", Type: File, Sparse: true, Size: 2, Inline: []byte("xy"), Extents: []Extent{{0, 1}, {1, 1}}}},
		{"extents past the end", Entry{Name: "a", Type: File, Sparse: true, Size: 2, Inline: []byte("x"), Extents: []Extent{{2, 1}}}},
		{"extents beyond all numbers", Entry{Name: "a", Type: File, Sparse: true, Size: 2, Inline: []byte("x"), Extents: []Extent{{1<<64 - 1, 2}}}},
		{"extents without content", Entry{Name: "a", Type: File, Sparse: true, Size: 2, Extents: []Extent{{0, 1}}}},
		{"content without extents", Entry{Name: "a", Type: File, Sparse: true, Size: 2, Inline: []byte("x")}},
		{"extents twice", Entry{Name: "a", Type: File, Sparse: true, Size: 2, Inline: []byte("x"), Extents: []Extent{{0, 1}}, Map: Content{Refs: []Ref{ref}}}},
		{"xattrs out of order", Entry{Name: "a", Type: Dir, Xattrs: []Xattr{{"b", nil}, {"a", nil}}}},
		{"an xattr twice", Entry{Name: "a", Type: Dir, Xattrs: []Xattr{{"a", nil}, {"a", nil}}}},
		{"an xattr without a name", Entry{Name: "a", Type: Dir, Xattrs: []Xattr{{"", nil}}}},
		{"too many inline xattrs", Entry{Name: "a", Type: Dir, Xattrs: []Xattr{{"a", make([]byte, MaxSet)}}}},
		{"xattrs twice", Entry{Name: "a", Type: Dir, Xattrs: []Xattr{{"a", nil}}, XattrSet: Content{Refs: []Ref{ref}}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.e.Valid(); !errors.Is(err, ErrFormat) {
				t.Errorf("Valid() = %v", err)
			}
			if p, err := AppendEntry([]byte("x"), "", &tt.e); !errors.Is(err, ErrFormat) || string(p) != "x" {
				t.Errorf("AppendEntry() = %q, %v", p, err)
			}
			// Some of these have no encoding at all and come out as something
			// else; whatever they come out as, only what is valid is read.
			p := appendEntry(nil, "", &tt.e)
			if e, _, err := ParseEntry(p, ""); err == nil {
				if again, err := AppendEntry(nil, "", e); err != nil || !bytes.HasPrefix(p, again) {
					t.Errorf("ParseEntry() = %+v", e)
				}
			}
		})
	}
}

func FuzzEntry(f *testing.F) {
	for _, e := range sorted(flat(3, 2)) {
		p, _ := AppendEntry(nil, "data/d0001", e)
		f.Add(p, "data/d0001")
	}
	for _, e := range []*Entry{
		{Name: "l", Type: Symlink, Target: "t", Group: [16]byte{1}},
		{Name: "b", Type: Block, Rdev: 8 << 32, XattrSet: Content{Refs: []Ref{{id.Blob{1}, 2000}}}},
		{Name: "s", Type: File, Size: 9, Sparse: true, Inline: []byte("x"), Extents: []Extent{{3, 1}}, Xattrs: []Xattr{{"user.a", []byte("v")}}},
		{Name: "m", Type: File, Size: 9, Sparse: true, Torn: true, Map: Content{Level: 2, Refs: []Ref{{id.Blob{1}, 2000}}}},
	} {
		p, err := AppendEntry(nil, "", e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p, "")
	}
	f.Fuzz(func(t *testing.T, p []byte, prev string) {
		if ValidPath(prev) != nil {
			return
		}
		e, rest, err := ParseEntry(p, prev)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		if err := e.Valid(); err != nil {
			t.Fatalf("it read %v", err)
		}
		again, err := AppendEntry(nil, prev, e)
		if err != nil || !bytes.Equal(again, p[:len(p)-len(rest)]) {
			t.Fatalf("%x was read and is written as %x: %v", p, again, err)
		}
	})
}
