package backup

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"orlop/agent"
	"orlop/id"
	"orlop/local"
	"orlop/snapshot"
)

// However long the paths of files that could not be kept: the snapshot is made,
// and names as many as it has room for.
func TestManySkippedFilesWithLongPathsAreNoReasonToFail(t *testing.T) {
	b := &run{}
	for i := range 3000 {
		b.skip(&slot{stat: agent.Stat{Dir: strings.Repeat("d/", 3000) + "d", Name: fmt.Sprint(i)}}, "it may not be read")
	}
	b.made.Source = snapshot.Source{Kind: snapshot.Directory, Name: "/src"}
	b.made.Sequence, b.made.Partial = 1, true
	b.made.Root = snapshot.Root{Name: id.Blob{1}, Length: 10, Entries: 1}
	if _, err := b.made.Marshal(); err != nil {
		t.Error(err)
	}
	if b.made.SkippedCount != 3000 || len(b.made.Skipped) == 0 {
		t.Errorf("%d skipped, %d named", b.made.SkippedCount, len(b.made.Skipped))
	}
}

// Of the refs of a file there are never more in memory than one sheet has, and
// of one that waits for its turn in the tree no more than a few.
func TestTheRefsOfALargeFileAreNotHeld(t *testing.T) {
	d, err := local.Open(t.TempDir(), id.Repository{1})
	if err != nil {
		t.Fatal(err)
	}
	b := &run{}
	if b.stats, err = d.NewStats("volume:v", [32]byte{}); err != nil {
		t.Fatal(err)
	}
	defer b.stats.Abort()
	for _, n := range []int{1, fewRefs, fewRefs + 1, local.SheetRefs, local.SheetRefs + 1, 100_000} {
		var all trail
		for i := range n {
			b.keep(&all, snapshot.Ref{Name: id.Blob{byte(i), byte(i >> 8), byte(i >> 16)}, Length: 1})
			if len(all.refs) > local.SheetRefs {
				t.Fatalf("%d refs are held", len(all.refs))
			}
		}
		b.fold(&all)
		sheets := 0
		if n > fewRefs {
			sheets = (n + local.SheetRefs - 1) / local.SheetRefs
		}
		if len(all.sheets) != sheets || cap(all.refs) > 2*fewRefs || sheets > 0 && all.refs != nil {
			t.Errorf("of %d refs: %d sheets, room for %d in memory", n, len(all.sheets), cap(all.refs))
		}
	}
}

// The old cuts of a large file come out of the sheets of the stat cache, unless
// they are more than a batch of answers may have.
func TestOldCutsComeOutOfSheets(t *testing.T) {
	d, err := local.Open(t.TempDir(), id.Repository{1})
	if err != nil {
		t.Fatal(err)
	}
	b := &run{}
	if b.stats, err = d.NewStats("volume:v", [32]byte{}); err != nil {
		t.Fatal(err)
	}
	defer b.stats.Abort()
	var want []snapshot.Ref
	var all trail
	for i := range 2500 {
		want = append(want, snapshot.Ref{Name: id.Blob{byte(i), byte(i >> 8), 1}, Length: 1})
		b.keep(&all, want[i])
	}
	b.fold(&all)
	e := snapshot.Entry{Name: "f", Type: snapshot.File, Size: 2500}
	e.Content = snapshot.Content{Level: 1, Refs: []snapshot.Ref{{Name: id.Blob{1}, Length: 2500}}}
	if err := b.stats.Add(&local.Record{Entry: e, Sheets: all.sheets}); err != nil {
		t.Fatal(err)
	}
	if err := b.stats.Commit(local.Head{}); err != nil {
		t.Fatal(err)
	}
	old, ok := d.OpenStats("volume:v", [32]byte{})
	if !ok {
		t.Fatal("no cache")
	}
	defer old.Close()
	b.old = old
	b.advance()
	rec := b.peek
	b.advance() // to the end
	if got := b.oldCuts(rec, oldCuts); !slices.Equal(got, want) {
		t.Errorf("%d old cuts", len(got))
	}
	for _, most := range []int{0, 2499} {
		if got := b.oldCuts(rec, most); got != nil {
			t.Errorf("%d old cuts where %d may be", len(got), most)
		}
	}
	if rec.Sheets = []local.Sheet{77}; b.oldCuts(rec, oldCuts) != nil {
		t.Error("old cuts out of a sheet that is not there")
	}
}
