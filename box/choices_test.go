package box

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/klauspost/compress/dict"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"orlop/id"
)

var corpus = flag.String("corpus", "", "the directories that BenchmarkChoices compresses, with colons between; without it Go's sources")

// small returns the files of the corpus that are small blobs, in the order in
// which a backup reads them, each content once.
var small = sync.OnceValues(func() (files [][]byte, err error) {
	seen := map[id.Blob]bool{}
	namer := id.NewNamer([32]byte{})
	roots := *corpus
	if roots == "" {
		out, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			return nil, err
		}
		roots = filepath.Join(strings.TrimSpace(string(out)), "src")
	}
	for root := range strings.SplitSeq(roots, ":") {
		err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			// Up to 512 bytes are kept in the entry.
			if name := namer.Blob(id.Data, data); err == nil && len(data) > 512 && len(data) < SmallBlob && !seen[name] {
				seen[name] = true
				files = append(files, data)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return files, nil
})

// grouped returns what is in groups that are full at n bytes.
func grouped(files [][]byte, n int) (groups [][]byte) {
	var g []byte
	for _, p := range files {
		if g = append(g, p...); len(g) >= n {
			groups = append(groups, g)
			g = nil
		}
	}
	if len(g) > 0 {
		groups = append(groups, g)
	}
	return groups
}

// BenchmarkChoices compares ways to compress small files, for decision 12. CPU
// is that of the process; stored-% counts 52 bytes for each box besides.
//
//	go test ./box -run '^$' -bench Choices -benchtime 1x -count 5 -cpu 1 -args -corpus /usr/local/go:/usr/share
func BenchmarkChoices(b *testing.B) {
	files, err := small()
	if err != nil {
		b.Fatal(err)
	}
	total := 0
	for _, p := range files {
		total += len(p)
	}
	// measure runs one way to compress, or to look at, all groups.
	measure := func(name string, groups [][]byte, shrink func(dst, src []byte) []byte) {
		b.Run(name, func(b *testing.B) {
			dst := make([]byte, 0, MaxRaw+MaxRaw/4)
			b.SetBytes(int64(total))
			b.ReportAllocs()
			before, stored := cpu(), 0
			for b.Loop() {
				stored = 0
				for _, g := range groups {
					stored += min(len(shrink(dst, g)), len(g)) + 52
				}
			}
			b.ReportMetric(float64(cpu()-before)/float64(b.N)/float64(total), "cpu-ns/B")
			if stored > 52*len(groups) {
				b.ReportMetric(100*float64(stored)/float64(total), "stored-%")
			}
		})
	}
	encoder := func(level zstd.EncoderLevel, window int, more ...zstd.EOption) func(dst, src []byte) []byte {
		z, err := zstd.NewWriter(nil, append([]zstd.EOption{
			zstd.WithEncoderLevel(level), zstd.WithWindowSize(window),
			zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
			zstd.WithSingleSegment(true), zstd.WithLowerEncoderMem(true),
		}, more...)...)
		if err != nil {
			b.Fatal(err)
		}
		return func(dst, src []byte) []byte { return z.EncodeAll(src, dst) }
	}
	full := grouped(files, GroupRaw)

	for _, n := range []int{0, 64 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20} {
		measure(fmt.Sprintf("group=%dK", n>>10), grouped(files, n), encoder(zstd.SpeedFastest, max(GroupRaw, n)))
	}
	for _, window := range []int{256 << 10, 512 << 10, 4 << 20} {
		measure(fmt.Sprintf("window=%dK", window>>10), full, encoder(zstd.SpeedFastest, window))
	}
	measure("memory=more", full, encoder(zstd.SpeedFastest, GroupRaw, zstd.WithLowerEncoderMem(false)))
	measure("entropy=none", full, encoder(zstd.SpeedFastest, GroupRaw, zstd.WithNoEntropyCompression(true)))
	measure("entropy=all", full, encoder(zstd.SpeedFastest, GroupRaw, zstd.WithAllLitEntropyCompression(true)))
	measure("level=default", full, encoder(zstd.SpeedDefault, GroupRaw))
	measure("level=better", full, encoder(zstd.SpeedBetterCompression, GroupRaw))
	measure("codec=s2", full, func(dst, src []byte) []byte { return s2.Encode(dst[:cap(dst)], src) })
	measure("codec=s2-better", full, func(dst, src []byte) []byte { return s2.EncodeBetter(dst[:cap(dst)], src) })

	alike := slices.Clone(files)
	slices.SortFunc(alike, bytes.Compare)
	measure("order=first-bytes", grouped(alike, GroupRaw), encoder(zstd.SpeedFastest, GroupRaw))

	var samples [][]byte
	for i := 0; i < len(files); i += 40 {
		samples = append(samples, files[i][:min(len(files[i]), 32<<10)])
	}
	d, err := dict.BuildZstdDict(samples, dict.Options{MaxDictSize: 110 << 10, HashBytes: 6, ZstdDictID: 1, ZstdLevel: zstd.SpeedFastest})
	if err != nil {
		b.Fatal(err)
	}
	measure("dictionary/group=0K", grouped(files, 0), encoder(zstd.SpeedFastest, GroupRaw, zstd.WithEncoderDict(d)))
	measure("dictionary/group=1024K", full, encoder(zstd.SpeedFastest, GroupRaw, zstd.WithEncoderDict(d)))

	// What the check of a box costs: this, and a name or a comparison.
	var payloads [][]byte
	fastest := encoder(zstd.SpeedFastest, GroupRaw)
	for _, g := range full {
		payloads = append(payloads, fastest(nil, g))
	}
	measure("check=decode", payloads, func(dst, src []byte) []byte {
		if _, err := decoder().DecodeAll(src, dst); err != nil {
			b.Fatal(err)
		}
		return nil
	})
	namer := id.NewNamer([32]byte{})
	measure("check=name", full, func(_, src []byte) []byte {
		_ = namer.Blob(id.Data, src)
		return nil
	})
	again := bytes.Clone(bytes.Join(full, nil))
	at := 0
	measure("check=compare", full, func(_, src []byte) []byte {
		if at == len(again) {
			at = 0
		}
		if !bytes.Equal(again[at:at+len(src)], src) {
			b.Fatal("not what it was")
		}
		at += len(src)
		return nil
	})
}

// cpu returns the nanoseconds that this process has taken of all processors.
func cpu() int64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}
