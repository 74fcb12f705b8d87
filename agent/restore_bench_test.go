package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"orlop/snapshot"
)

// Files of 1,000 bytes, 20 in a directory, as in a tree of sources.
func BenchmarkRestoreSmallFiles(b *testing.B) {
	c := local(b)
	data := noise(1000, 1)
	r := fill(b, c, b.TempDir())
	b.ResetTimer()
	path := ""
	// All directories first, as in a walk.
	for i := range (b.N + 19) / 20 {
		r.put(entry(snapshot.Dir, fmt.Sprintf("d%06d", i), 0o755))
	}
	for i := range b.N {
		if i%20 == 0 {
			path = fmt.Sprintf("d%06d", i/20)
		}
		r.put(content(entry(snapshot.File, fmt.Sprintf("%s/f%02d", path, i%20), 0o644), len(data)), data)
	}
	r.finish()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "files/s")
}

// What the same costs in one goroutine with the calls of package os, which
// set neither owner nor anything else by descriptor.
func BenchmarkRestoreSmallFilesBaseline(b *testing.B) {
	root := b.TempDir()
	data := noise(1000, 1)
	b.ResetTimer()
	for i := range (b.N + 19) / 20 {
		if err := os.Mkdir(filepath.Join(root, fmt.Sprintf("d%06d", i)), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	for i := range b.N {
		path := filepath.Join(root, fmt.Sprintf("d%06d/f%02d", i/20, i%20))
		if err := os.WriteFile(path, data, 0o644); err != nil {
			b.Fatal(err)
		}
		if err := os.Chtimes(path, someTime.Go(), someTime.Go()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "files/s")
}

// A file of a gibibyte, written in pieces of a mebibyte, over and over.
func BenchmarkRestoreLargeFile(b *testing.B) {
	const size, piece = 1 << 30, 1 << 20
	c := local(b)
	data := noise(piece, 1)
	b.SetBytes(piece)
	r := fill(b, c, b.TempDir())
	e := entry(snapshot.File, "f", 0o644)
	e.Size, e.Sparse = size, true
	e.Extents = []snapshot.Extent{{Offset: 0, Length: size}}
	e.Content = snapshot.Content{Level: 1, Refs: []snapshot.Ref{{Name: [32]byte{1}, Length: size}}}
	n, err := r.Add(e, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for i := range b.N {
		if err := r.Write(n, int64(i%(size/piece))*piece, data); err != nil {
			b.Fatal(err)
		}
	}
	if err := r.Finish(n); err != nil {
		b.Fatal(err)
	}
	if _, err := r.End(); err != nil {
		b.Fatal(err)
	}
}
