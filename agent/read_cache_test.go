package agent

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"orlop/chunk"
)

// onDisk returns a directory for files whose pages can be dropped, which /tmp
// may not be.
func onDisk(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "orlop-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// evict makes a file with nothing of it in the page cache.
func evict(t testing.TB, path string, data []byte) {
	t.Helper()
	write(t, path, data)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if there := resident(t, path); slices.Contains(there, true) {
		t.Fatalf("%s cannot be evicted: %v", path, there)
	}
}

// touch reads one page, and no other.
func touch(t testing.TB, path string, page int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(make([]byte, 1), int64(page)*int64(pageSize)); err != nil {
		t.Fatal(err)
	}
}

// resident returns which pages of a file are in the page cache.
func resident(t testing.TB, path string) []bool {
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
	area, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_NONE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(area)
	pages := make([]byte, (len(area)+int(pageSize)-1)/int(pageSize))
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE,
		uintptr(unsafe.Pointer(&area[0])), uintptr(len(area)), uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		t.Fatal(errno)
	}
	there := make([]bool, len(pages))
	for i, p := range pages {
		there[i] = p&1 != 0
	}
	return there
}

// tries is how often a test may be disturbed by what the kernel does meanwhile.
const tries = 5

func TestABackupLeavesThePageCacheAsItWas(t *testing.T) {
	few := func(n int) []int { return []int{0, n / 3, n/3 + 1, n - 1} }
	for _, tt := range []struct {
		name  string
		size  int
		pages func(n int) []int // that are in the cache before
	}{
		{"a small file that nobody has read", 10_000, nil},
		{"a small file of which a few pages were read", 60_000, few},
		{"a file that nobody has read", 300_000, nil},
		{"a file of which a few pages were read", 300_000, few},
		{"a large file that nobody has read", 45<<20 + 5, nil},
		{"a large file of which a few pages were read", 45<<20 + 5, few},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := onDisk(t)
			path := filepath.Join(root, "f")
			data := noise(tt.size, 7)
			q := request(root)
			q.Chunk, _ = chunk.Default(chunk.Gear)
			undisturbed(t, path, func() {
				evict(t, path, data)
				if tt.pages != nil {
					for _, p := range tt.pages(tt.size / int(pageSize)) {
						touch(t, path, p)
					}
				}
			}, func() {
				s := newShelf()
				if _, err := pair(t, usual(), usual()).Backup(t.Context(), q, s); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(s.bytes(t, "f"), data) {
					t.Error("it came out different")
				}
			})
			undisturbed(t, path, func() {
				for range 3 { // pages that are used more than once are not given up easily
					if whole, err := os.ReadFile(path); err != nil || !bytes.Equal(whole, data) {
						t.Fatal(err)
					}
				}
			}, func() {
				if _, err := pair(t, usual(), usual()).Backup(t.Context(), q, newShelf()); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// undisturbed wants do to leave the pages of a file as prepare has put them.
func undisturbed(t *testing.T, path string, prepare, do func()) {
	t.Helper()
	var before, after []bool
	for range tries {
		prepare()
		before = resident(t, path)
		do()
		if after = resident(t, path); alike(before, after) {
			return
		}
	}
	t.Errorf("in the cache were%s, and are%s", runs(before), runs(after))
}

// alike allows for what the kernel does meanwhile: it may hold a page just when
// that is to go, or give one up.
func alike(a, b []bool) bool {
	differ := 0
	for i := range a {
		if a[i] != b[i] {
			differ++
		}
	}
	return differ <= len(a)/300
}

// runs says which pages are there.
func runs(there []bool) (s string) {
	for i := 0; i < len(there); i++ {
		from := i
		for i < len(there) && there[i] {
			i++
		}
		if i > from {
			s += fmt.Sprintf(" %d-%d", from, i-1)
		}
	}
	return s + fmt.Sprintf(" of %d", len(there))
}

// Kernels before 6.5, file systems such as overlayfs, filters.
func TestPagesAreLeftAloneWhateverTheKernelKnows(t *testing.T) {
	for _, size := range []int{10_000, 300_000, 45<<20 + 5} {
		for _, lacks := range []string{"nothing", "RWF_NOWAIT", "cachestat", "both"} {
			t.Run(fmt.Sprintf("%d bytes, %s", size, lacks), func(t *testing.T) {
				path := filepath.Join(onDisk(t), "f")
				write(t, path, noise(size, 3))
				fd, err := unix.Open(path, unix.O_RDONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer unix.Close(fd)
				c := cache{unknown: new(unknown)}
				c.unknown.noWait.Store(lacks == "RWF_NOWAIT" || lacks == "both")
				c.unknown.cachestat.Store(lacks == "cachestat" || lacks == "both")
				undisturbed(t, path, func() {
					evict(t, path, noise(size, 3))
					touch(t, path, 0)
				}, func() {
					c.begin(fd, uint64(size))
					for p, off := make([]byte, 3<<20), uint64(0); off < uint64(size); {
						p := p[:min(uint64(len(p)), uint64(size)-off)]
						n := c.before(p, off)
						m, err := pread(fd, p[n:], off+uint64(n))
						if err != nil || n+m != len(p) {
							t.Fatal(n, m, err)
						}
						off += uint64(len(p))
						c.fetch(off, min(off+largeBuffer, uint64(size)))
						c.after(off)
					}
					c.end()
				})
			})
		}
	}
}
