package backup_test

import (
	"os"
	"testing"
	"time"

	"orlop/backup"
	"orlop/chunk"
	"orlop/repo"
	"orlop/store/storetest"
	"orlop/treetest"
)

// Everything that Linux keeps about a file comes back, with either splitter;
// a repeat reads nothing and stores next to nothing; a small change costs
// little.
func TestATreeOfEverythingComesBackExactly(t *testing.T) {
	for _, tt := range []struct {
		algorithm chunk.Algorithm
		big       bool
	}{{chunk.Gear, true}, {chunk.Rabin, false}} {
		t.Run(string(tt.algorithm), func(t *testing.T) {
			g := newRig(t, cut(t, tt.algorithm))
			treetest.Fill(t, g.src, tt.big)
			first := g.whole(t)
			if first.FilesUnmodified+first.FilesChanged != 0 || first.FilesNew == 0 || first.BytesRead == 0 || first.BytesStored == 0 {
				t.Errorf("first backup: %+v", first)
			}
			g.holds(t, first.Snapshot, g.src)
			settled := g.settle(t)

			log := &storetest.Log{Store: g.st}
			second, err := g.try(t.Context(), log, backup.Options{})
			must(t, err)
			if second.BytesRead != 0 || second.BytesNew != 0 || second.FilesNew+second.FilesChanged != 0 || second.Files() != first.Files() {
				t.Errorf("nothing changed, and: %+v", second)
			}
			if second.Parent != settled.Snapshot {
				t.Errorf("its parent is %s, not %s", second.Parent.Short(), settled.Snapshot.Short())
			}
			if all, _, _, _ := puts(log); all != 3 {
				t.Errorf("nothing changed, and %d puts:\n%s", all, shape(log.Lines()))
			}
			if n := log.Bytes(storetest.Put); n >= 8<<10 || second.BytesStored >= 8<<10 {
				t.Errorf("nothing changed, and %d bytes were put", n)
			}

			write(t, g.src+"/many/149", treetest.Bytes("changed", 4096))
			log.Reset()
			third, err := g.try(t.Context(), log, backup.Options{})
			must(t, err)
			if third.BytesRead != 4096 || third.FilesChanged != 1 || third.FilesNew != 0 {
				t.Errorf("one file changed, and: %+v", third)
			}
			all, packs, segments, snapshots := puts(log)
			if packs != 1 || segments != 1 || snapshots != 1 || all != 5 {
				t.Errorf("one file changed, and:\n%s", shape(log.Lines()))
			}
			if n := log.Bytes(storetest.Put); n >= 48<<10 {
				t.Errorf("one file changed, and %d bytes were put", n)
			}
			if !tt.big {
				g.holds(t, third.Snapshot, g.src)
			}
			g.check(t)
			t.Logf("first: %d files, %d bytes of content stored as %d; repeat: %d bytes; one file of 4 KiB: %d bytes",
				first.Files(), first.Bytes, first.BytesStored, second.BytesStored, third.BytesStored)
		})
	}
}

// A hole costs no space, and no time either: reading a tebibyte would take an
// hour.
func TestATebibyteOfHoleIsNotReadNorStored(t *testing.T) {
	g := newRig(t, cut(t, chunk.Gear))
	f, err := os.Create(g.src + "/disk")
	must(t, err)
	needle := treetest.Bytes("needle", 1<<20)
	must(t, f.Truncate(treetest.Sparse))
	_, err = f.WriteAt(needle, treetest.Sparse/2)
	must(t, err)
	must(t, f.Close())
	s := g.whole(t)
	if s.Bytes != treetest.Sparse || s.BytesRead != 1<<20 || s.BytesStored > 1<<20+64<<10 {
		t.Errorf("%d bytes read and %d stored of %d", s.BytesRead, s.BytesStored, s.Bytes)
	}
	g.holds(t, s.Snapshot, g.src)
}

// The tree on another host, at another time, from another directory is the
// same tree: nothing of it is stored twice.
func TestASecondHostStoresNothingTwice(t *testing.T) {
	g := newRig(t, cut(t, chunk.Gear))
	treetest.Small(t, g.src)
	first := g.whole(t)
	other := *g
	other.cache = fast(t)
	s := other.whole(t)
	if s.BytesNew != 0 || s.BytesRead == 0 || s.FilesNew != s.Files() {
		t.Errorf("another host: %+v", s)
	}
	if s.Parent != first.Snapshot {
		t.Errorf("its parent is %s, not %s", s.Parent.Short(), first.Snapshot.Short())
	}
	g.holds(t, s.Snapshot, g.src)
}

func TestReadAllReadsAllAndStoresNothing(t *testing.T) {
	g := newRig(t, cut(t, chunk.Gear))
	treetest.Small(t, g.src)
	first := g.whole(t)
	g.settle(t)
	s := g.backupWith(t, backup.Options{ReadAll: true})
	if s.BytesRead != first.BytesRead || s.BytesNew != 0 {
		t.Errorf("%d bytes read, first %d; %d new", s.BytesRead, first.BytesRead, s.BytesNew)
	}
	g.holds(t, s.Snapshot, g.src)
}

func TestTheSnapshotSaysWhatItIs(t *testing.T) {
	g := newRig(t, cut(t, chunk.Gear))
	write(t, g.src+"/a", []byte("aa"))
	write(t, g.src+"/d/b", []byte("b"))
	must(t, os.Symlink("x", g.src+"/l"))
	before := time.Now()
	opt := backup.Options{Tags: []string{"one", "two"}, Version: "v7", Consistency: "held"}
	first := g.backupWith(t, opt)
	second := g.backupWith(t, opt)
	_, s := g.find(t, second.Snapshot)
	if s.Source.String() != "path:/src" || s.Source.Host != "h" || len(s.Tags) != 2 || s.Version != "v7" || s.Consistency != "held" || s.Partial {
		t.Errorf("%+v", s.Snapshot)
	}
	if s.Previous != first.Snapshot || s.Sequence != 2 || s.Session != second.Session {
		t.Errorf("previous %s, sequence %d", s.Previous.Short(), s.Sequence)
	}
	if tot := s.Totals; tot.Files != 2 || tot.Dirs != 2 || tot.Others != 1 || tot.Bytes != 3 {
		t.Errorf("totals %+v", tot)
	}
	if r := s.Root; r.Entries != 5 || r.Files != 2 || r.Bytes != 3 {
		t.Errorf("root %+v", r)
	}
	if s.Started.Go().Before(before) || s.Finished.Go().Before(s.Started.Go()) {
		t.Errorf("from %v to %v", s.Started, s.Finished)
	}
}

// A parent that was forgotten is nobody's parent; what the host remembers of
// the files stays true.
func TestAForgottenParentIsNotNamed(t *testing.T) {
	g := newRig(t, cut(t, chunk.Gear))
	treetest.Small(t, g.src)
	g.settle(t)
	for _, o := range storetest.Infos(t, g.st, "snapshots/") {
		storetest.Remove(t, g.st, o.Name)
	}
	s := g.whole(t)
	if !s.Parent.IsZero() || s.BytesRead != 0 || s.BytesNew != 0 {
		t.Errorf("parent %s, %d bytes read, %d new", s.Parent.Short(), s.BytesRead, s.BytesNew)
	}
	g.holds(t, s.Snapshot, g.src)
	g.check(t)
}

func TestAnEmptyDirectoryIsASnapshotToo(t *testing.T) {
	g := newRig(t, cut(t, chunk.Gear))
	s := g.whole(t)
	if s.Files() != 0 || s.Dirs != 1 {
		t.Errorf("%+v", s)
	}
	g.holds(t, s.Snapshot, g.src)
}

func TestARootThatIsNotThereIsAnError(t *testing.T) {
	g := newRig(t, cut(t, chunk.Gear))
	write(t, g.src+"/file", nil)
	for _, root := range []string{g.src + "/gone", g.src + "/file"} {
		h := *g
		h.src = root
		if s, err := h.try(t.Context(), g.st, backup.Options{}); err == nil {
			t.Errorf("%s: %+v", root, s)
		}
	}
	if n := len(storetest.Infos(t, g.st, "snapshots/")); n != 0 {
		t.Errorf("%d snapshots", n)
	}
	g.holds(t, g.whole(t).Snapshot, g.src)
}

var _ = repo.ErrDamaged
