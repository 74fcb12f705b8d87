package repo

import (
	"context"
	"flag"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"orlop/chunk"
	"orlop/id"
	"orlop/index"
	"orlop/pack"
	"orlop/seal"
	"orlop/store"
)

var benchBlobs = flag.Int("blobs", 200_000, "blobs in the repository that benchmarks open")

// A vast is a store that lists packs and segments that nobody has put.
type vast struct {
	*store.Mem
	segments []id.Segment
	packs    packSet
}

func (v *vast) List(ctx context.Context, prefix store.Name) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		switch prefix {
		case packPrefix:
			for i := range v.packs {
				if !yield(store.Info{Name: packName(v.packs[i].ID), Size: int64(v.packs[i].Size)}, nil) {
					return
				}
			}
		case indexPrefix:
			for _, s := range v.segments {
				if !yield(store.Info{Name: segmentName(1, s), Size: 1 << 20}, nil) {
					return
				}
			}
		default:
			v.Mem.List(ctx, prefix)(yield)
		}
	}
}

// newVast returns a repository of -blobs blobs of 1 MiB, 16 a pack, its key,
// and the cache of a host that has been there.
func newVast(b *testing.B) (*vast, *seal.Key, string) {
	b.Helper()
	mem, key, cache := store.NewMem(), seal.NewKey(), b.TempDir()
	cut, err := chunk.Default(chunk.Gear)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := Init(b.Context(), mem, key, text(b, key.Text()), cut); err != nil {
		b.Fatal(err)
	}
	v := &vast{Mem: mem}
	r := open(b, mem, key, cache)
	rng := rand.NewChaCha8([32]byte{1})
	session, err := key.NewSession(r.ID(), id.Session{1})
	if err != nil {
		b.Fatal(err)
	}
	for left := *benchBlobs; left > 0; {
		var s index.Segment
		for len(s.Packs) < 30_000 && left > 0 {
			p := index.PackInfo{Size: 16<<20 + 4096, Header: session.Header()}
			_, _ = rng.Read(p.ID[:])
			end := uint32(pack.HeaderSize)
			for range min(16, left) {
				x := pack.Box{Offset: end, Length: 1<<20 + seal.Overhead + 5, Raw: 1<<20 + 5, Blobs: []pack.Blob{{Kind: id.Data, Length: 1 << 20}}}
				_, _ = rng.Read(x.Blobs[0].Name[:])
				end += x.Length
				p.Boxes = append(p.Boxes, x)
				left--
			}
			p.Size = int64(end) + 4096
			s.Packs = append(s.Packs, p)
			v.packs = append(v.packs, listedPack(p.ID, p.Size))
		}
		var name id.Segment
		_, _ = rng.Read(name[:])
		v.segments = append(v.segments, name)
		if err := r.index.Add(map[id.Segment]*index.Segment{name: &s}); err != nil {
			b.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		b.Fatal(err)
	}
	return v, key, cache
}

// What a backup holds in memory, and how long it takes to begin, in a
// repository of many blobs.
func BenchmarkNewWriter(b *testing.B) {
	v, key, cache := newVast(b)
	for b.Loop() {
		var before, after runtime.MemStats
		debug.FreeOSMemory()
		runtime.ReadMemStats(&before)
		resident := anonymous(b)
		r := open(b, v, key, cache)
		w, err := r.NewWriter(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/(1<<20), "MB-allocated")
		b.ReportMetric(float64(anonymous(b)-resident)/(1<<20), "MB-resident")
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MB-held")
		w.Leave(b.Context())
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// anonymous returns how much memory of this process is resident and of no
// file, in bytes.
func anonymous(b *testing.B) (n int64) {
	b.Helper()
	p, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(p), "RssAnon:")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		b.Fatal(err)
	}
	return n << 10
}
