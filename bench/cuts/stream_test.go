package main

import (
	"maps"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"orlop/chunk"
	"orlop/id"
)

func small(a chunk.Algorithm) chunk.Config {
	return chunk.Config{Algorithm: a, Min: 1 << 10, Avg: 4 << 10, Max: 16 << 10}
}

// noise with what repeats in it, and zeros.
func sample(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	for range r.IntN(5) {
		from, to, k := r.IntN(n), r.IntN(n), r.IntN(n/4+1)
		copy(p[to:], p[from:min(from+k, n)])
	}
	at := r.IntN(n)
	clear(p[at:min(at+r.IntN(64<<10), n)])
	return p
}

// Looking at the neighbourhood of an edit finds what cutting all of the file
// anew finds.
func TestAnEditChangesOnlyItsNeighbourhood(t *testing.T) {
	for _, a := range []chunk.Algorithm{chunk.Gear, chunk.Rabin} {
		c := newCutter(small(a))
		rapid.Check(t, func(t *rapid.T) {
			data := sample(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(1, 600<<10).Draw(t, "length"))
			s := c.cut(data)
			known := map[id.Blob]bool{}
			c.adds(known, s)
			e := edit{at: rapid.IntRange(0, len(data)).Draw(t, "at")}
			if rapid.Bool().Draw(t, "at a cut") {
				e.at = rapid.SampledFrom(s.ends).Draw(t, "cut")
			}
			e.remove = rapid.IntRange(0, min(len(data)-e.at, 70<<10)).Draw(t, "remove")
			e.insert = sample(3, 70<<10)[:rapid.IntRange(0, 70<<10).Draw(t, "insert")]

			got := c.after(s, known, e)
			want := c.adds(maps.Clone(known), c.cut(edited(data, []edit{e})))
			if got != want {
				t.Fatalf("%v, and %v when all is cut anew", got, want)
			}
		})
	}
}

func TestEditsAreMade(t *testing.T) {
	got := edited([]byte("the lowest deck"), []edit{
		{at: 0, insert: []byte("on ")},
		{at: 4, remove: 7},
		{at: 11, remove: 4, insert: []byte("orlop")},
	})
	if want := "on the orlop"; string(got) != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// What a file holds twice is stored once, and what is known is not stored.
func TestOnlyWhatIsNewIsAdded(t *testing.T) {
	c := newCutter(small(chunk.Gear))
	data := sample(7, 300<<10)
	known := map[id.Blob]bool{}
	once := c.adds(known, c.cut(data))
	if again := c.adds(known, c.cut(data)); again != (sum{}) {
		t.Errorf("the same again adds %v", again)
	}
	if twice := c.adds(map[id.Blob]bool{}, c.cut(data), c.cut(data)); twice.raw != once.raw {
		t.Errorf("twice the same adds %v, once %v", twice, once)
	}
	if once.raw < 200<<10 || once.stored < once.raw/2 {
		t.Errorf("300 KiB, mostly noise, add %v", once)
	}
}
