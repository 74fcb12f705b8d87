package backup_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"orlop/backup"
	"orlop/chunk"
	"orlop/store"
	"orlop/store/storetest"
	"orlop/treetest"
)

// statFiles returns the stat caches below a directory.
func statFiles(t testing.TB, cache string) []string {
	t.Helper()
	found, err := filepath.Glob(cache + "/*/stats/*")
	must(t, err)
	if len(found) == 0 {
		t.Fatal("there is no stat cache")
	}
	return found
}

// A stat cache that is missing, damaged or of something else is not believed:
// everything is read again, and nothing of it is stored again.
func TestWithoutAStatCacheAllIsReadAndNothingStored(t *testing.T) {
	base := newRig(t, small)
	tiny(t, base.src)
	base.settle(t)
	everything := base.backupWith(t, backup.Options{ReadAll: true}).BytesRead
	flipped := 0
	flip := func(at int64) func(t *testing.T, g *rig) {
		return func(t *testing.T, g *rig) {
			for _, path := range statFiles(t, g.cache) {
				p := []byte(read(t, path))
				if at < 0 {
					at += int64(len(p))
				}
				p[at%int64(len(p))] ^= 0x10
				must(t, os.WriteFile(path, p, 0o600))
				flipped++
			}
		}
	}
	type damage struct {
		name string
		do   func(t *testing.T, g *rig)
	}
	tests := []damage{
		{"it is missing", func(t *testing.T, g *rig) {
			for _, path := range statFiles(t, g.cache) {
				must(t, os.Remove(path))
			}
		}},
		{"it is cut off", func(t *testing.T, g *rig) {
			for _, path := range statFiles(t, g.cache) {
				must(t, os.Truncate(path, 9000))
			}
		}},
		{"it is empty", func(t *testing.T, g *rig) {
			for _, path := range statFiles(t, g.cache) {
				must(t, os.Truncate(path, 0))
			}
		}},
		{"all that this host remembers is missing", func(t *testing.T, g *rig) { g.cache = fast(t) }},
		{"it is another source's", func(t *testing.T, g *rig) {
			path := statFiles(t, g.cache)[0]
			other := *g
			other.src = t.TempDir()
			write(t, other.src+"/many-chunks", treetest.Bytes("foreign", 300_000))
			r := g.mustOpen(t)
			s := source(other.src)
			s.Name = "/other"
			c := local(t)
			_, err := backup.Run(t.Context(), r, c, s, backup.Options{})
			must(t, err)
			for _, p := range statFiles(t, g.cache) {
				if p != path {
					must(t, os.Rename(p, path))
				}
			}
		}},
		{"it is another repository's, with other cuts", func(t *testing.T, g *rig) {
			other := newRig(t, cut(t, chunk.Rabin))
			other.src = g.src
			other.settle(t)
			must(t, os.WriteFile(statFiles(t, g.cache)[0], []byte(read(t, statFiles(t, other.cache)[0])), 0o600))
		}},
	}
	for _, at := range []int64{0, 5, 24, 4096, 8200, 12_345, 20_000, -5000, -100, -1} {
		tests = append(tests, damage{fmt.Sprintf("its byte %d is wrong", at), flip(at)})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := base.again(t)
			tt.do(t, g)
			s := g.whole(t)
			if s.BytesRead != everything || s.BytesNew != 0 {
				t.Errorf("%d bytes of %d were read, %d are new", s.BytesRead, everything, s.BytesNew)
			}
			g.holds(t, s.Snapshot, g.src)
			if s := g.whole(t); s.BytesRead != 0 || s.BytesNew != 0 {
				t.Errorf("the time after: %d bytes read, %d new", s.BytesRead, s.BytesNew)
			}
			g.check(t)
		})
	}
	t.Logf("%d faults fired, 0 violations", len(tests))
	if flipped != 10 {
		t.Errorf("%d flips", flipped)
	}
}

// A cache of a stat is no proof that the repository has what it names: what it
// lacks is read and stored, however unchanged the file is, also where the list
// of a file's blobs is there and one of the blobs is not.
func TestWhatTheRepositoryLostIsStoredAgain(t *testing.T) {
	base := newRig(t, small)
	data := treetest.Bytes("data", 2<<20)
	write(t, base.src+"/listed", data[:300_000])
	base.settle(t) // some packs
	write(t, base.src+"/inline", []byte("inline"))
	write(t, base.src+"/few", treetest.Bytes("few", 5_000))
	write(t, base.src+"/listed-too", data[200_000:500_000])
	write(t, base.src+"/dir/x", treetest.Text("x", 2000))
	base.settle(t) // and some more
	if e := base.entries(t, base.whole(t).Snapshot)["listed"]; e.Content.Level == 0 {
		t.Fatalf("no list: %+v", e)
	}
	packs := storetest.Infos(t, base.st, "packs/")
	if len(packs) < 2 {
		t.Fatalf("%d packs", len(packs))
	}
	lost := 0
	lose := func(what string, damage func(g *rig)) {
		g := base.again(t)
		damage(g)
		lost++
		s := g.whole(t)
		g.holds(t, s.Snapshot, g.src)
		if t.Failed() {
			t.Fatalf("after %s", what)
		}
		again := g.whole(t)
		if again.BytesNew != 0 {
			t.Errorf("after %s: %d bytes are new again", what, again.BytesNew)
		}
		g.holds(t, again.Snapshot, g.src)
	}
	for i, p := range packs {
		lose(fmt.Sprintf("the loss of pack %d", i), func(g *rig) { storetest.Remove(t, g.st, p.Name) })
	}
	lose("the loss of all packs", func(g *rig) {
		for _, p := range packs {
			storetest.Remove(t, g.st, p.Name)
		}
	})
	lose("the loss of all packs and segments", func(g *rig) {
		for _, prefix := range []store.Name{"packs/", "index/"} {
			for _, o := range storetest.Infos(t, g.st, prefix) {
				storetest.Remove(t, g.st, o.Name)
			}
		}
	})
	for _, s := range storetest.Infos(t, base.st, "index/") {
		lose("the loss of a segment", func(g *rig) { storetest.Remove(t, g.st, s.Name) })
	}
	t.Logf("%d faults fired, 0 violations", lost)
}

// The same where the only pack that is gone held the data and the lists stayed.
func TestAListWhoseDataIsGoneProvesNothing(t *testing.T) {
	g := newRig(t, small)
	// Over a mebibyte: data and metadata are in packs of their own.
	write(t, g.src+"/big", treetest.Bytes("big", 3<<20))
	g.settle(t)
	packs := storetest.Infos(t, g.st, "packs/")
	largest := packs[0]
	for _, p := range packs {
		if p.Size > largest.Size {
			largest = p
		}
	}
	if largest.Size < 3<<20 || len(packs) < 2 {
		t.Fatalf("packs: %v", packs)
	}
	storetest.Remove(t, g.st, largest.Name)
	s := g.whole(t)
	if s.BytesRead != 3<<20 || s.BytesNew < 3<<20 {
		t.Errorf("%+v", s)
	}
	g.holds(t, s.Snapshot, g.src)
}

// The local index may be damaged or gone: it is made again.
func TestADamagedLocalIndexIsMadeAgain(t *testing.T) {
	base := newRig(t, small)
	tiny(t, base.src)
	old := base.settle(t)
	before := base.restore(t, old.Snapshot)
	change(t, base.src, "changed")
	damaged := 0
	for at := int64(0); at < 12; at++ {
		g := base.again(t)
		must(t, filepath.WalkDir(g.cache, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.Contains(path, "/index/") {
				return err
			}
			p := []byte(read(t, path))
			if len(p) == 0 {
				return nil
			}
			damaged++
			p[at*int64(len(p))/12] ^= 0x20
			return os.WriteFile(path, p, 0o600)
		}))
		s := g.whole(t)
		g.holds(t, s.Snapshot, g.src)
		if at%6 == 0 {
			g.holds(t, old.Snapshot, before)
			g.check(t)
		}
	}
	t.Logf("%d faults fired, 0 violations", damaged)
	if damaged < 12 {
		t.Errorf("only %d files were damaged", damaged)
	}
}
