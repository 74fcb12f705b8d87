package main

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"

	"orlop/chunk"
	"orlop/id"
)

// The kinds of edits, and how many bytes each is about.
var (
	kinds = []string{"insert", "delete", "overwrite"}
	sizes = []int{1, 100, 4 << 10, 64 << 10}
)

// shortest is the least length of a file to be edited.
const shortest = 1 << 20

// draw returns n edits at random places, and what is to be there: bytes of
// other random places.
func draw(data []byte, n int) (edits []edit) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		edits = append(edits, drawOne(r, data, kinds[i%len(kinds)], sizes[i/len(kinds)%len(sizes)]))
	}
	return edits
}

func drawOne(r *rand.Rand, data []byte, kind string, size int) edit {
	e := edit{kind: kind, at: r.IntN(len(data) - size)}
	from := r.IntN(len(data) - size)
	if kind != "delete" {
		e.insert = data[from : from+size]
	}
	if kind != "insert" {
		e.remove = size
	}
	return e
}

// scattered returns n overwrites of a page, at pages of 8 KiB, in order.
func scattered(data []byte, n int) (edits []edit) {
	const page = 8 << 10
	r := rand.New(rand.NewPCG(3, 4))
	for _, i := range r.Perm(len(data) / page)[:min(n, len(data)/page)] {
		e := drawOne(r, data, "overwrite", page)
		e.at = i * page
		edits = append(edits, e)
	}
	slices.SortFunc(edits, func(a, b edit) int { return cmp.Compare(a.at, b.at) })
	return edits
}

const atOnce = 64 // pages written between two backups

// printFile prints a table of what each way does with one file.
func printFile(name string, data []byte, ways []chunk.Config, edits []edit) {
	fmt.Printf("\n### %s, %.1f MB, %d edits\n\n", name, mb(len(data)), len(edits))
	fmt.Printf("Sizes of chunks in KiB; of edits, new KiB an edit: raw, stored. %d pages: of 8 KiB, written at\n", atOnce)
	fmt.Printf("random places between two backups, MB. All: the first backup and one after each edit, MB.\n\n")
	fmt.Println("| cut | MB/s | chunks | mean | deviation | least | most | first MB | insert | delete | overwrite |",
		atOnce, "pages | all |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
	pages := scattered(data, atOnce)
	for _, w := range ways {
		c := newCutter(w)
		s := c.cut(data)
		known := map[id.Blob]bool{}
		all := c.adds(known, s)
		mean, deviation, least, most := spread(s)
		fmt.Printf("| %s | %.0f | %d | %.0f | %.0f | %.0f | %.0f | %.2f |", describe(w), c.speed(data)/1e6,
			len(s.ends), mean/1024, deviation/1024, least/1024, most/1024, mb(all.stored))
		for _, kind := range kinds {
			var of sum
			n := 0
			for _, e := range edits {
				if e.kind == kind {
					of.add(c.after(s, known, e))
					n++
				}
			}
			all.add(of)
			fmt.Printf(" %d, %d |", of.raw/n>>10, of.stored/n>>10)
		}
		many := c.adds(maps.Clone(known), c.cut(edited(data, pages)))
		fmt.Printf(" %.1f, %.1f | %.1f |\n", mb(many.raw), mb(many.stored), mb(all.stored))
	}
}

func mb(n int) float64 { return float64(n) / 1e6 }

// spread tells of the lengths of chunks, in bytes; the last one of a file ends
// where that does, and is left out.
func spread(s *stream) (mean, deviation, least, most float64) {
	least = math.Inf(1)
	n, squares := float64(len(s.ends)-1), 0.0
	for i := range len(s.ends) - 1 {
		x := float64(s.ends[i] - s.start(i))
		mean += x / n
		squares += x * x / n
		least, most = min(least, x), max(most, x)
	}
	return mean, math.Sqrt(squares - mean*mean), least, most
}

// printPair prints a table of what each way does with two states of a tree.
func printPair(old, new string, ways []chunk.Config) error {
	before, err := streams(old)
	if err != nil {
		return err
	}
	after, err := streams(new)
	if err != nil {
		return err
	}
	fmt.Printf("\n### from %s to %s\n\n", old, new)
	fmt.Println("| cut | blobs | first MB | new blobs | new MB, raw | new MB, stored |")
	fmt.Println("|---|---|---|---|---|---|")
	for _, w := range ways {
		c := newCutter(w)
		known := map[id.Blob]bool{}
		first := c.adds(known, c.cutAll(before)...)
		then := c.adds(known, c.cutAll(after)...)
		fmt.Printf("| %s | %d | %.2f | %d | %.2f | %.2f |\n", describe(w), first.blobs, mb(first.stored), then.blobs, mb(then.raw), mb(then.stored))
	}
	return nil
}
