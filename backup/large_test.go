package backup_test

import (
	"fmt"
	"os"
	"testing"

	"orlop/chunk"
	"orlop/snapshot"
	"orlop/treetest"
)

// disk makes a file of n cells of a fixed file's grid, with a page in each.
func disk(t testing.TB, path string, n int) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	for i := range n {
		page := treetest.Bytes(fmt.Sprint("page", i), 4096)
		if i == 0 {
			copy(page, "SQLite format 3\x00")
		}
		_, err := f.WriteAt(page, int64(i)*chunk.FixedBlock)
		must(t, err)
	}
}

// A file with more blobs than are kept in memory, or than fit a sheet of the
// stat cache, or with other names, is known the next time, and a page that
// changes in it costs that page. What the repository has lost of it is stored
// again.
func TestAFileOfManyBlocksIsKnownTheNextTime(t *testing.T) {
	const cells = 3000
	g := newRig(t, cut(t, chunk.Gear))
	disk(t, g.src+"/disk", cells)
	must(t, os.Link(g.src+"/disk", g.src+"/other name"))
	disk(t, g.src+"/few", 30)
	disk(t, g.src+"/some", 100)
	g.settle(t)

	f, err := os.OpenFile(g.src+"/disk", os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(treetest.Bytes("changed", 4096), 1234*chunk.FixedBlock)
	must(t, err)
	must(t, f.Close())
	s := g.whole(t)
	// The page; a list, and the one above it; a leaf with what its entries hold.
	if s.BytesRead != cells*4096 || s.BytesNew < 4096 || s.BytesNew > 4096+200_000 || s.FilesChanged != 2 {
		t.Errorf("a page changed: %d bytes read, %d new, %d files changed", s.BytesRead, s.BytesNew, s.FilesChanged)
	}
	g.holds(t, s.Snapshot, g.src)
	for path, e := range g.entries(t, s.Snapshot) {
		if e.Type == snapshot.File && e.Class != uint8(chunk.Fixed) {
			t.Errorf("%s is of class %d", path, e.Class)
		}
	}
	if s := g.settle(t); s.FilesUnmodified != 4 {
		t.Errorf("%d files were as before", s.FilesUnmodified)
	}
	g.check(t)

	packs := 0
	for o, err := range g.st.List(t.Context(), "packs/") {
		must(t, err)
		if o.Size > 4<<20 { // of data
			packs++
			must(t, g.st.Delete(t.Context(), o.Name))
			break
		}
	}
	if packs == 0 {
		t.Fatal("there is no pack to lose")
	}
	if s := g.whole(t); s.BytesRead == 0 || s.BytesNew == 0 {
		t.Errorf("a pack was lost: %d bytes read, %d new", s.BytesRead, s.BytesNew)
	} else {
		g.holds(t, s.Snapshot, g.src)
	}
}
