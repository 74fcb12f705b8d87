package store_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"orlop/store"
)

func noise(n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(p)
	return p
}

// resident returns how many bytes of a file are in the page cache.
func resident(t *testing.T, path string) int {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	p, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(p) }()
	pages := make([]byte, (len(p)+os.Getpagesize()-1)/os.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), uintptr(unsafe.Pointer(&pages[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	n := 0
	for _, in := range pages {
		n += int(in&1) * os.Getpagesize()
	}
	return n
}

// A pack is written past the page cache: what is in there stays, and nothing
// that nobody reads again comes in.
func TestPacksDoNotFillThePageCache(t *testing.T) {
	dir, data := t.TempDir(), noise(8<<20)
	d := openDir(t, dir, nil)
	if err := d.Put(t.Context(), "packs/a", data); err != nil {
		t.Fatal(err)
	}
	probe, err := os.OpenFile(filepath.Join(dir, "probe"), os.O_CREATE|os.O_WRONLY|unix.O_DIRECT, 0o600)
	if err != nil {
		t.Fatalf("%s cannot be written past the cache, so this shows nothing: %v; set TMPDIR to a place that can", dir, err)
	}
	_ = probe.Close()
	if n := resident(t, filepath.Join(dir, "packs/a")); n > 0 {
		t.Errorf("%d bytes of a pack of %d are in the page cache", n, len(data))
	}
	got, err := d.Get(t.Context(), "packs/a", 0, -1)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("it is not what was put: %v", err)
	}
}

// Whatever a file system or a device says to writing past its cache, the object
// is whole.
func TestObjectsAreWholeWhereTheCacheCannotBePassed(t *testing.T) {
	for _, tt := range []struct {
		name string
		hook func(writes *int) func(op, name string) error
	}{
		{"it cannot be asked for", func(*int) func(string, string) error {
			return func(op, _ string) error {
				if op == "direct" {
					return syscall.EINVAL
				}
				return nil
			}
		}},
		{"the first write is refused", func(writes *int) func(string, string) error {
			return func(op, _ string) error {
				if op == "write" {
					if *writes++; *writes == 1 {
						return syscall.EINVAL
					}
				}
				return nil
			}
		}},
		{"the second write is refused", func(writes *int) func(string, string) error {
			return func(op, _ string) error {
				if op == "write" {
					if *writes++; *writes == 2 {
						return syscall.EINVAL
					}
				}
				return nil
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			writes := 0
			d := openDir(t, t.TempDir(), tt.hook(&writes))
			for i, size := range []int{12 << 20, 12<<20 + 4096} {
				data, name := noise(size), store.Name("packs/"+string(rune('a'+i)))
				writes = 0
				if err := d.Put(t.Context(), name, data); err != nil {
					t.Fatalf("%d bytes: %v", size, err)
				}
				got, err := d.Get(t.Context(), name, 0, -1)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%d bytes are not what was put: %v", size, err)
				}
			}
		})
	}
}

// What is read of a pack leaves the page cache again, unless it was there before:
// then it is somebody's.
func TestReadingPacksLeavesThePageCacheAsItWas(t *testing.T) {
	dir, data := t.TempDir(), noise(8<<20)
	d := openDir(t, dir, nil)
	if err := d.Put(t.Context(), "packs/a", data); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "packs/a")
	read := func(name string, want int) {
		t.Helper()
		got, err := d.Get(t.Context(), "packs/a", 1<<20, 3<<20)
		if err != nil || !bytes.Equal(got, data[1<<20:4<<20]) {
			t.Errorf("%s: a part is not what was put: %v", name, err)
		}
		r, err := d.Open(t.Context(), "packs/a")
		if err != nil {
			t.Fatal(err)
		}
		got, err = io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: it is not what was put: %v", name, err)
		}
		if n := resident(t, path); n != want {
			t.Errorf("%s: %d bytes are in the page cache, want %d", name, n, want)
		}
	}
	if n := resident(t, path); n != 0 {
		t.Fatalf("%d bytes are in the page cache before anybody read", n)
	}
	read("cold", 0)
	if _, err := os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	read("warm", len(data))
}
