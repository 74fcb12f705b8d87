package agent

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/chunk"
)

// Bytes of frames through a socket pair, in frames of a mebibyte.
func BenchmarkFrames(b *testing.B) {
	h, a := socketPair(b)
	out, in := newConn(a, usual()), newConn(h, usual())
	body := noise(1<<20, 1)
	b.SetBytes(int64(len(body)))
	done := make(chan error, 1)
	go func() {
		for b.Loop() {
			if err := out.write(frameBox, body); err != nil {
				done <- err
				return
			}
		}
		_ = out.flush()
		_ = a.Close()
		done <- nil
	}()
	for {
		_, _, err := in.read()
		if err == io.EOF {
			break
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

// A tree of 4,000 files of 12 KiB on average, from memory, by an agent in this
// process; the receiver keeps nothing.
func BenchmarkBackup(b *testing.B) {
	root := b.TempDir()
	total := int64(0)
	for i := range 4000 {
		dir := filepath.Join(root, fmt.Sprint(i%50))
		_ = os.Mkdir(dir, 0o755)
		data := noise(1+(i*7919)%24_000, byte(i))
		for j := range data { // about as compressible as text
			data[j] = "etaoin shrdlu\n.,"[data[j]&15]
		}
		total += int64(len(data))
		write(b, filepath.Join(dir, fmt.Sprint(i)), data)
	}
	large := b.TempDir()
	for i := range 4 {
		write(b, filepath.Join(large, fmt.Sprint(i)), noise(64<<20, byte(i)))
	}
	one := b.TempDir()
	write(b, filepath.Join(one, "0"), noise(256<<20, 9))
	database := b.TempDir()
	write(b, filepath.Join(database, "0"), pages(256<<20, 9))
	for _, bb := range []struct {
		name     string
		root     string
		bytes    int64
		receiver drop
	}{
		{"small files, all wanted", root, total, drop{read: true, want: true}},
		{"small files, nothing wanted", root, total, drop{read: true}},
		{"small files, nothing read", root, total, drop{}},
		{"large files, all wanted", large, 256 << 20, drop{read: true, want: true}},
		{"large files, nothing wanted", large, 256 << 20, drop{read: true}},
		{"one large file, all wanted", one, 256 << 20, drop{read: true, want: true}},
		{"one large file, nothing wanted", one, 256 << 20, drop{read: true}},
		{"one fixed file, all wanted", database, 256 << 20, drop{read: true, want: true}},
		{"one fixed file, nothing wanted", database, 256 << 20, drop{read: true}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			c, err := Local(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			q := request(bb.root)
			if q.Chunk, err = chunk.Default(chunk.Gear); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(bb.bytes)
			start := used(b)
			for b.Loop() {
				if _, err := c.Backup(b.Context(), q, bb.receiver); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(bb.bytes)*float64(b.N)/1e6/(used(b)-start), "MB/cpu-s")
		})
	}
}

// used returns the processor seconds of this process, both ends together.
func used(b *testing.B) float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
