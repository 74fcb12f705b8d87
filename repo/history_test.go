package repo

import (
	"testing"

	"orlop/id"
	"orlop/seal"
	"orlop/store/storetest"
)

// A segment is fetched when it is new, and once more when it is merged, however
// many there are and whoever wrote them.
func TestNoSegmentIsReadAgain(t *testing.T) {
	mem, key := newRepo(t)
	log := &storetest.Log{Store: mem}
	r := open(t, log, key, t.TempDir())
	secret := seal.NewPutText()
	slot, err := seal.SealSlot(key.PutOnly(7), text(t, secret), r.Config().slotCopy())
	if err != nil {
		t.Fatal(err)
	}
	if err := mem.Put(t.Context(), slotName(id.Sum[id.Slot](slot)), slot); err != nil {
		t.Fatal(err)
	}
	other, err := Open(t.Context(), mem, text(t, secret), Options{Cache: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()

	n, merges := 0, 0
	backup := func(of *Repo) []string {
		n++
		log.Reset()
		mustPut(t, of, files{"f": random(uint64(n), 2000)})
		return log.Ops(storetest.Get, "index/")
	}
	for range 20 { // its segments are fewer than it would merge
		backup(other)
	}
	if got := len(backup(r)); got != 20 {
		t.Errorf("%d of 20 new segments were fetched", got)
	}
	for i := 2; i <= 4*(tierWidth+1); i++ {
		want := 0
		if i%(tierWidth+1) == 0 {
			merges++
			want = tierWidth + 1
		}
		if got := len(backup(r)); got != want {
			t.Errorf("backup %d read %d segments, not %d", i, got, want)
		}
	}
	if got := len(storetest.Infos(t, mem, "index/1-")); got != merges {
		t.Errorf("%d segments of tier 1, not %d", got, merges)
	}

	// Who has never been here reads what is merged instead of what it merges.
	log.Reset()
	stranger := open(t, log, key, t.TempDir())
	for range 2 {
		if err := stranger.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := len(log.Ops(storetest.Get, "index/")); got != merges+20 {
			t.Errorf("a new host reads %d segments, not %d", got, merges+20)
		}
	}
	// Without the merged one those count again.
	storetest.Remove(t, mem, storetest.Infos(t, mem, "index/1-")[0].Name)
	log.Reset()
	if err := stranger.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := len(log.Ops(storetest.Get, "index/")); got != tierWidth+1 {
		t.Errorf("when a merged segment is gone %d are read, not %d", got, tierWidth+1)
	}
	if len(stranger.orphans) != 0 {
		t.Errorf("%d packs are orphans", len(stranger.orphans))
	}
	mustCheck(t, stranger)
}
