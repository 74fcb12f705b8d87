package local

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
)

// Reading a cache does not map all of it at once: what is resident of it stays
// under a few blocks, however large it is.
func TestStatsThatWereReadAreNotResident(t *testing.T) {
	d := open(t)
	const n = 60_000
	write(t, d, source, n)
	s, ok := d.OpenStats(source, key)
	if !ok {
		t.Fatal("no cache")
	}
	defer s.Close()
	size, most := int64(0), int64(0)
	for i := range n {
		if _, err := s.Next(); err != nil {
			t.Fatal(err)
		}
		if i%5000 == 4999 {
			var resident int64
			size, resident = mapped(t, d.statsPath(source))
			most = max(most, resident)
		}
	}
	if size < 6<<20 {
		t.Fatalf("the cache is mapped with %d bytes: too few for a test", size)
	}
	if most > 2*letGoAfter {
		t.Errorf("%d of %d bytes were resident at a time", most, size)
	}
}

// mapped returns how many bytes of a file are mapped, and are resident so.
func mapped(t *testing.T, path string) (size, resident int64) {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ours := false
	for in := bufio.NewScanner(f); in.Scan(); {
		line := in.Text()
		var kb int64
		switch first, _, _ := strings.Cut(line, " "); {
		case !strings.HasSuffix(first, ":"):
			ours = strings.HasSuffix(line, path)
		case !ours:
		case first == "Size:":
			_, _ = fmt.Sscanf(line, "Size: %d kB", &kb)
			size += kb << 10
		case first == "Rss:":
			_, _ = fmt.Sscanf(line, "Rss: %d kB", &kb)
			resident += kb << 10
		}
	}
	return size, resident
}
