package snapshot

import (
	"fmt"
	"runtime"
	"testing"

	"orlop/id"
)

// million yields the entries of a volume of 1,000 directories with 1,000 files
// each, without holding them.
func million(yield func(*Entry) bool) {
	if !yield(rootEntry()) {
		return
	}
	for d := range 1000 {
		if !yield(&Entry{Name: fmt.Sprintf("d%03d", d), Type: Dir, Mode: 0o755}) {
			return
		}
	}
	ref := []Ref{{id.Blob{1}, 0}}
	for d := range 1000 {
		dir := fmt.Sprintf("d%03d", d)
		for f := range 1000 {
			ref[0].Length = uint64(1000 + f)
			if !yield(&Entry{
				Dir: dir, Name: fmt.Sprintf("file-%03d", f), Type: File, Mode: 0o644,
				MTime: Time{1_700_000_000, uint32(f)}, Size: uint64(1000 + f), Content: Content{Refs: ref},
			}) {
				return
			}
		}
	}
}

func buildMillion(b *testing.B, s *blobs) Root {
	tree := NewTree(s, boundary)
	var before, now runtime.MemStats
	if s.discard {
		runtime.GC()
		runtime.ReadMemStats(&before)
	}
	n := 0
	for e := range million {
		if err := tree.Add(b.Context(), e); err != nil {
			b.Fatal(err)
		}
		if n++; s.discard && n%250_000 == 0 {
			runtime.GC()
			runtime.ReadMemStats(&now)
			b.ReportMetric(float64(int64(now.HeapAlloc-before.HeapAlloc))/1024, "KiB-held")
		}
	}
	root, err := tree.Finish(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return root
}

func BenchmarkBuildAMillion(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		s := &blobs{discard: true}
		root := buildMillion(b, s)
		b.ReportMetric(float64(s.saves), "nodes")
		b.ReportMetric(float64(root.Level), "level")
	}
}

func BenchmarkWalkAMillion(b *testing.B) {
	s := newBlobs()
	root := buildMillion(b, s)
	size := 0
	for _, p := range s.m {
		size += len(p)
	}
	b.ReportAllocs()
	for b.Loop() {
		n := uint64(0)
		for _, err := range Walk(b.Context(), s, root) {
			if n++; err != nil {
				b.Fatal(err)
			}
		}
		if n != root.Entries {
			b.Fatal(n)
		}
	}
	b.ReportMetric(float64(size)/float64(root.Entries), "B/entry")
}

func BenchmarkLookupInAMillion(b *testing.B) {
	s := newBlobs()
	root := buildMillion(b, s)
	b.ReportAllocs()
	s.loads = 0
	n := 0
	for b.Loop() {
		n++
		if _, err := Lookup(b.Context(), s, root, "d500/file-500"); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(s.loads)/float64(n), "loads")
}
