package repo

import (
	"maps"
	"testing"

	"pgregory.net/rapid"

	"orlop/id"
	"orlop/index"
)

func TestAPackSetAgreesWithAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(what string) []index.Pack {
			return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) index.Pack {
				return listedPack(id.Pack{rapid.Byte().Draw(t, "id") % 40}, int64(rapid.IntRange(0, 3).Draw(t, "size"))<<31)
			}), 0, 30).Draw(t, what)
		}
		want := map[id.Pack]int64{}
		var first []index.Pack
		for _, p := range draw("first") {
			if _, ok := want[p.ID]; !ok {
				want[p.ID] = int64(p.Size)
				first = append(first, p)
			}
		}
		s := newPackSet(first)
		old := maps.Clone(want)
		var more []index.PackInfo
		put := map[id.Pack]bool{}
		for _, p := range draw("more") {
			if !put[p.ID] {
				put[p.ID], want[p.ID] = true, int64(p.Size)
				more = append(more, index.PackInfo{ID: p.ID, Size: int64(p.Size)})
			}
		}
		same(t, s.with(more), want)
		same(t, s, old)
	})
}

func same(t *rapid.T, s packSet, want map[id.Pack]int64) {
	t.Helper()
	got, total := map[id.Pack]int64{}, int64(0)
	for i, p := range s {
		if i > 0 && s[i-1].ID.Compare(p.ID) >= 0 {
			t.Fatalf("%s after %s", p.ID, s[i-1].ID)
		}
		got[p.ID] = int64(p.Size)
	}
	if !maps.Equal(got, want) {
		t.Fatalf("%v, want %v", got, want)
	}
	for b := range byte(40) {
		p := id.Pack{b}
		n, ok := s.size(p)
		if m, in := want[p]; n != m || ok != in {
			t.Fatalf("size(%s) = %d, %v; want %d, %v", p, n, ok, m, in)
		}
		total += want[p]
	}
	if s.bytes() != total {
		t.Fatalf("%d bytes, want %d", s.bytes(), total)
	}
}
