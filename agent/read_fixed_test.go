package agent

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"orlop/chunk"
	"orlop/id"
	"orlop/snapshot"
)

// pages returns n bytes of a file that is cut into blocks.
func pages(n int, seed byte) []byte {
	return append([]byte("SQLite format 3\x00"), noise(n-16, seed)...)
}

// The definition: of each cell of the grid, what is not a hole is one block.
// Neither the buffer nor whoever helps makes a difference.
func TestAFixedFileIsCutOnItsOwnGrid(t *testing.T) {
	namer := id.NewNamer(nameKey)
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		size := r.IntN(600_000) + 1
		data := noise(size, 1)
		var extents []snapshot.Extent
		for off := r.IntN(2) * r.IntN(100_000); off < size; {
			n := min(1+r.IntN(100_000), size-off)
			extents = append(extents, snapshot.Extent{Offset: uint64(off), Length: uint64(n)})
			off += n + 1 + r.IntN(1+r.IntN(100_000))
		}
		var want []snapshot.Ref
		for cell := 0; cell < size; cell += chunk.FixedBlock {
			var block []byte
			for _, x := range extents {
				from, to := max(cell, int(x.Offset)), min(cell+chunk.FixedBlock, int(x.End()))
				block = append(block, data[from:max(from, to)]...)
			}
			if len(block) > 0 {
				want = append(want, snapshot.Ref{Name: namer.Blob(id.Data, block), Length: uint64(len(block))})
			}
		}

		var got []snapshot.Ref
		splitter, err := chunk.New(smallChunks, [32]byte{})
		if err != nil {
			t.Fatal(err)
		}
		c, done := anyCutter(splitter, namer, 200_000, r, &got)
		// Whatever comes before is forgotten, old cuts are of no use.
		for range 2 {
			got = nil
			if err := c.reset(t.Context(), uint64(r.IntN(2*size)), want); err != nil {
				t.Fatal(err)
			}
			c.class(chunk.Fixed)
			for _, x := range extents {
				for x.Length > 0 {
					p, err := c.room(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					n := copy(p[:min(len(p), 1+r.IntN(150_000))], data[x.Offset:x.End()])
					if err := c.wroteAt(n, x.Offset); err != nil {
						t.Fatal(err)
					}
					x.Offset, x.Length = x.Offset+uint64(n), x.Length-uint64(n)
				}
			}
			if whole, err := c.finish(0); err != nil || len(whole) > 0 {
				t.Fatal(err)
			}
			done()
			if !slices.Equal(got, want) {
				t.Fatalf("%d blocks, want %d: %v\n%v", len(got), len(want), got, want)
			}
		}
	})
}

// Whatever is written, in place, into holes or at the end: as many blobs are
// new as the file has cells that were written to.
func TestAnEditStoresTheBlocksItTouches(t *testing.T) {
	const block = chunk.FixedBlock
	root := t.TempDir()
	path := filepath.Join(root, "db")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	put := func(off int, p []byte) {
		t.Helper()
		if _, err := f.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	put(0, pages(20*block, 1))
	put(40*block, noise(20*block+5, 2))

	c := pair(t, usual(), usual())
	have := map[id.Blob][]byte{}
	backup := func() (*shelf, int) {
		t.Helper()
		s := newShelf()
		s.blobs = have
		before := len(have)
		if _, err := c.Backup(t.Context(), request(root), s); err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(s.bytes(t, "db"), want) {
			t.Error("it came out different")
		}
		if got := s.files["db"]; got.Class != chunk.Fixed {
			t.Errorf("its class is %d", got.Class)
		}
		return s, len(have) - before
	}
	for _, tt := range []struct {
		name   string
		change func()
		blobs  int
		refs   uint64
	}{
		{"the file", func() {}, 41, 41},
		{"nothing", func() {}, 0, 41},
		{"a byte", func() { put(3*block+77, []byte{1}) }, 1, 41},
		{"the last byte of a block and the first of the next", func() { put(5*block-1, []byte{1, 2}) }, 2, 41},
		{"pages here and there", func() {
			for _, i := range []int{1, 7, 8, 41, 55} {
				put(i*block+8192, noise(8192, 9))
			}
		}, 5, 41},
		{"a page in a hole", func() { put(30*block+4096, noise(4096, 8)) }, 1, 42},
		{"another in the same block, after a hole", func() { put(30*block+16384, noise(4096, 7)) }, 1, 42},
		{"and one before them", func() { put(30*block, noise(100, 7)) }, 1, 42},
		{"an end that grows within its block", func() { put(60*block+5, noise(5, 6)) }, 1, 42},
		{"and past it", func() { put(60*block+10, noise(block, 6)) }, 2, 43},
		{"a shorter file", func() { _ = f.Truncate(60*block + 10) }, 0, 42},
	} {
		tt.change()
		if s, n := backup(); n != tt.blobs || s.files["db"].Refs[Content] != tt.refs {
			t.Errorf("%s: %d new blobs of %d, want %d of %d", tt.name, n, s.files["db"].Refs[Content], tt.blobs, tt.refs)
		}
	}
}

// The head is judged as the file shows it, holes and all, and a file that is
// read again is judged again.
func TestAFileThatBecomesAnotherIsCutAsWhatItIs(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "f")
	write(t, path, pages(100_000, 1))
	s := during(t, root, "f", "more", func(n int) error {
		if n == 0 {
			return os.WriteFile(path, noise(100_000, 3), 0o644)
		}
		return nil
	})
	if f := s.files["f"]; f.Class != chunk.ByContent || f.Attempt != 1 || !bytes.Equal(s.bytes(t, "f"), noise(100_000, 3)) {
		t.Errorf("class %d, attempt %d", f.Class, f.Attempt)
	}

	swap := filepath.Join(root, "swap") // a hole, its signature, a hole
	write(t, swap, nil)
	if err := os.Truncate(swap, 5<<20); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(swap, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(append([]byte("SWAPSPACE2"), noise(70_000, 4)...), 64<<10-10); err != nil {
		t.Fatal(err)
	}
	s = newShelf()
	if _, err := pair(t, usual(), usual()).Backup(t.Context(), request(root), s); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(swap)
	if err != nil {
		t.Fatal(err)
	}
	if f := s.files["swap"]; f.Class != chunk.Fixed || f.Refs[Content] != 4 || !bytes.Equal(s.bytes(t, "swap"), want) {
		t.Errorf("class %d, %d blocks", f.Class, f.Refs[Content])
	}
}
