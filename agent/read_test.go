package agent

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"orlop/chunk"
	"orlop/id"
	"orlop/snapshot"
)

// during backs up root; change is called each time path comes to moment, with
// how often it did before.
func during(t *testing.T, root, path, moment string, change func(n int) error) *shelf {
	t.Helper()
	set := usual()
	var mu sync.Mutex
	n := 0
	set.hook = func(m, p string) error {
		if m != moment || p != path {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		n++
		return change(n - 1)
	}
	s := newShelf()
	if _, err := pair(t, usual(), set).Backup(t.Context(), request(root), s); err != nil {
		t.Fatalf("the run was ended by a file: %v", err)
	}
	if n == 0 {
		t.Fatalf("%q never came to %q", path, moment)
	}
	return s
}

func TestFilesThatChangeWhileTheyAreRead(t *testing.T) {
	must := func(err error) error {
		if err != nil {
			panic(err)
		}
		return nil
	}
	grow := func(path string) error {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		must(err)
		_, err = f.Write(noise(1000, 9))
		must(err)
		return must(f.Close())
	}
	const big = rereadLimit + 1<<20
	eio := error(unix.EIO)
	tests := []struct {
		name, moment string
		size         int64 // 3000 if 0
		change       func(path string, n int) error
		outcome      Outcome
		reason       string
		attempt      uint8
		length       uint64
	}{
		{"one that grew once is read again", "more", 0, func(p string, n int) error {
			if n == 0 {
				return grow(p)
			}
			return nil
		}, Whole, "", 1, 4000},
		{
			"one that keeps growing is torn", "finish", 0, func(p string, n int) error { return grow(p) },
			Torn, "it changed", 1, 4000,
		},
		{
			"a large one that grew is not read again", "finish", big, func(p string, n int) error { return grow(p) },
			Torn, "it changed", 0, big,
		},
		{"one that shrank once is read again", "read", 0, func(p string, n int) error {
			if n > 0 {
				return nil
			}
			return must(os.Truncate(p, 1700))
		}, Whole, "", 1, 1700},
		{"a large one that shrank is read again", "read", big, func(p string, n int) error {
			if n > 0 {
				return nil
			}
			return must(os.Truncate(p, big-1000))
		}, Whole, "", 1, big - 1000},
		{"one that keeps shrinking is torn, and as long as what was read", "read", 0, func(p string, n int) error {
			return must(os.Truncate(p, 2000-int64(n)*500))
		}, Torn, "it changed", 1, 1500},
		{"one that was rewritten in place is read again", "more", 0, func(p string, n int) error {
			if n > 0 {
				return nil
			}
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			must(err)
			_, err = f.Write([]byte("new"))
			must(err)
			return must(f.Close())
		}, Whole, "", 1, 3000},
		{"one whose mode changed is read again", "more", 0, func(p string, n int) error {
			if n > 0 {
				return nil
			}
			return must(os.Chmod(p, 0o600))
		}, Whole, "", 1, 3000},
		{
			"one that vanished before", "open", 0, func(p string, n int) error { return must(os.Remove(p)) },
			Vanished, "it is gone", 0, 0,
		},
		{
			"one that vanished within", "finish", 0, func(p string, n int) error { return must(os.Remove(p)) },
			Vanished, "it is gone", 1, 0,
		},
		{"one whose directory vanished", "open", 0, func(p string, n int) error {
			return must(os.RemoveAll(filepath.Dir(p)))
		}, Vanished, "it is gone", 0, 0},
		{"one that became a link", "open", 0, func(p string, n int) error {
			must(os.Remove(p))
			return must(os.Symlink("/etc/passwd", p))
		}, Failed, "it is something else now", 0, 0},
		{"one that became a directory", "open", 0, func(p string, n int) error {
			must(os.Remove(p))
			return must(os.Mkdir(p, 0o755))
		}, Failed, "it is a directory now", 0, 0},
		{"one that became a fifo", "open", 0, func(p string, n int) error {
			must(os.Remove(p))
			return must(unix.Mkfifo(p, 0o644))
		}, Failed, "it is a fifo now", 0, 0},
		{"one that became a socket", "open", 0, func(p string, n int) error {
			must(os.Remove(p))
			return must(unix.Mknod(p, unix.S_IFSOCK|0o644, 0))
		}, Failed, "no such device or address", 0, 0},
		{"one that became another file", "open", 0, func(p string, n int) error {
			must(os.Remove(p))
			return must(os.WriteFile(p, noise(700, 5), 0o644))
		}, Whole, "", 0, 700},
		{
			"one that cannot be opened", "open", 0, func(p string, n int) error { return unix.EACCES },
			Failed, "permission denied", 0, 0,
		},
		{
			"one that cannot be read", "more", 0, func(p string, n int) error { return eio },
			Failed, "input/output error", 0, 0,
		},
		{"one that cannot be read a second time", "finish", 0, func(p string, n int) error {
			if n == 0 {
				return grow(p)
			}
			return eio
		}, Failed, "input/output error", 1, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			path := filepath.Join(root, "d", "f")
			must(os.Mkdir(filepath.Join(root, "d"), 0o755))
			if tt.size == 0 {
				write(t, path, noise(3000, 1))
			} else {
				write(t, path, nil)
				must(os.Truncate(path, tt.size))
			}
			write(t, filepath.Join(root, "z"), noise(3000, 2)) // what comes after it is backed up
			s := during(t, root, "d/f", tt.moment, func(n int) error { return tt.change(path, n) })
			f := s.files["d/f"]
			if f.Outcome != tt.outcome || !strings.Contains(f.Reason, tt.reason) || f.Attempt != tt.attempt {
				t.Errorf("%v, %q, attempt %d; want %v, %q, %d", f.Outcome, f.Reason, f.Attempt, tt.outcome, tt.reason, tt.attempt)
			}
			if tt.outcome <= Torn {
				if f.Stat.Size != tt.length {
					t.Errorf("size %d, want %d", f.Stat.Size, tt.length)
				}
				now, err := os.ReadFile(path)
				must(err)
				if got := s.bytes(t, "d/f"); tt.outcome == Whole && !bytes.Equal(got, now) {
					t.Error("what was kept is not what is there now")
				}
				if tt.outcome == Torn && !f.Fresh {
					t.Error("a torn file may be trusted next time")
				}
			}
			if got := s.bytes(t, "z"); !bytes.Equal(got, noise(3000, 2)) {
				t.Error("the file after it is wrong")
			}
		})
	}
}

// What a store through mmap leaves in an already dirty page moves no time, so
// the agent has the page written before it looks: what is stored after that is
// seen in the times, and what was stored before is in the backup.
func TestAStoreThroughMmapIsSeen(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "mapped")
	write(t, path, make([]byte, 8192))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page)
	page[0] = 1 // the page is dirty from here on
	c := pair(t, usual(), usual())
	backup := func() (*shelf, snapshot.Time) {
		s := newShelf()
		if _, err := c.Backup(t.Context(), request(root), s); err != nil {
			t.Fatal(err)
		}
		return s, s.files["mapped"].Stat.MTime
	}
	first, before := backup()
	waitTick(t)
	page[1] = 2
	second, after := backup()
	if got := first.bytes(t, "mapped"); got[0] != 1 || got[1] != 0 {
		t.Errorf("the first backup has %v", got[:2])
	}
	if got := second.bytes(t, "mapped"); got[0] != 1 || got[1] != 2 {
		t.Errorf("the second backup has %v", got[:2])
	}
	if before == after {
		t.Error("the store moved no time: the second backup would not have read the file")
	}
}

// waitTick waits until the clock of file times has ticked.
func waitTick(t *testing.T) {
	t.Helper()
	var a, b unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &a); err != nil {
		t.Fatal(err)
	}
	for b = a; b == a; {
		_ = unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &b)
	}
}

func TestAFileThatHasJustChangedIsFresh(t *testing.T) {
	now := unix.Timespec{Sec: 1000, Nsec: 5_000_000}
	at := func(sec int64, ms int) snapshot.Time { return snapshot.Time{Sec: sec, Nsec: uint32(ms * 1_000_000)} }
	old := at(5, 0)
	for _, tt := range []struct {
		name         string
		mtime, ctime snapshot.Time
		want         bool
	}{
		{"long ago", old, old, false},
		{"in this tick", at(1000, 5), at(1000, 5), true},
		{"two ticks before, over the second", at(999, 985), at(999, 985), true},
		{"just over two ticks before", at(999, 984), at(999, 984), false},
		{"only its inode", old, at(1000, 0), true},
		{"only its mtime, set", at(1000, 0), old, true},
		{"an mtime in the future was set", at(1<<40, 0), old, false},
		{"a ctime in the future is another clock's", old, at(1<<40, 0), true},
		{"whole seconds, two before", at(998, 0), at(998, 0), true},
		{"whole seconds, three before", at(997, 0), at(997, 0), false},
		{"a fine mtime was set, whole seconds", old, at(999, 0), true},
		{"before 1970", at(-1<<40, 0), at(-1<<40, 0), false},
	} {
		if got := fresh(now, &Stat{MTime: tt.mtime, CTime: tt.ctime}); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestARewriteWithinATickIsNotTrusted(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "new")
	write(t, path, noise(1000, 2))
	s := during(t, root, "new", "open", func(int) error {
		return os.WriteFile(path, noise(1000, 3), 0o644)
	})
	if !s.files["new"].Fresh {
		t.Error("a file written just now is not fresh")
	}
}

// A file of a tebibyte with a mebibyte of data costs as much as the data.
func TestHolesCostNothing(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	want := map[int64][]byte{0: noise(4096, 1), 1 << 30: noise(1<<20, 2), 1<<40 - 4096: noise(4096, 3)}
	for off, data := range want {
		if _, err := f.WriteAt(data, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "hole"), nil)
	if err := os.Truncate(filepath.Join(root, "hole"), 1<<40); err != nil {
		t.Fatal(err)
	}
	s := newShelf()
	q := request(root)
	q.Chunk, _ = chunk.Default(chunk.Gear)
	start := time.Now()
	totals, err := pair(t, usual(), usual()).Backup(t.Context(), q, s)
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	if totals.BytesRead != 1<<20+8192 {
		t.Errorf("%d bytes were read", totals.BytesRead)
	}
	got := s.files["sparse"]
	extents := []snapshot.Extent{{Offset: 0, Length: 4096}, {Offset: 1 << 30, Length: 1 << 20}, {Offset: 1<<40 - 4096, Length: 4096}}
	if !got.Sparse || !slices.Equal(got.Extents, extents) || got.Stat.Size != 1<<40 {
		t.Errorf("%+v", got)
	}
	if !bytes.Equal(s.stream(got, Content), slices.Concat(want[0], want[1<<30], want[1<<40-4096])) {
		t.Error("the data came out different")
	}
	if hole := s.files["hole"]; !hole.Sparse || len(hole.Extents) > 0 || hole.Refs != [roles]uint64{} || hole.Stat.Size != 1<<40 {
		t.Errorf("%+v", hole)
	}
}

func TestAMapOfManyHolesIsAStream(t *testing.T) {
	root := t.TempDir()
	f, err := os.Create(filepath.Join(root, "holes"))
	if err != nil {
		t.Fatal(err)
	}
	const n = 600
	for i := range int64(n) {
		if _, err := f.WriteAt([]byte{byte(i), byte(i >> 8), 1}, 8192*i+4096); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s := newShelf()
	if _, err := pair(t, usual(), usual()).Backup(t.Context(), request(root), s); err != nil {
		t.Fatal(err)
	}
	if got := s.files["holes"]; !got.Sparse || got.Refs[Map] == 0 || len(got.Extents) > 0 {
		t.Errorf("%+v", got)
	}
	want, err := os.ReadFile(filepath.Join(root, "holes"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.bytes(t, "holes"), want) {
		t.Error("the file came out different")
	}
}

func TestEverythingButContent(t *testing.T) {
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write(t, at("file"), []byte("x"))
	must(os.Mkdir(at("dir"), 0o755))
	must(os.Symlink(strings.Repeat("t", 3000), at("link")))
	must(unix.Mkfifo(at("fifo"), 0o640))
	must(unix.Mknod(at("char"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 300))))
	must(unix.Mknod(at("block"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 7))))
	must(unix.Mknod(at("socket"), unix.S_IFSOCK|0o600, 0))
	must(os.Link(at("file"), at("same")))
	for _, name := range []string{"file", "dir"} {
		must(unix.Setxattr(at(name), "user.b", []byte("2"), 0))
		must(unix.Setxattr(at(name), "user.a", nil, 0))
	}
	must(unix.Lsetxattr(at("link"), "trusted.link", []byte("l"), 0))
	must(unix.Setxattr(at("char"), "trusted.char", []byte("c"), 0))
	must(unix.Setxattr(root, "user.root", []byte("r"), 0))
	write(t, at("many"), nil)
	must(unix.Setxattr(at("many"), "user.many", bytes.Repeat([]byte("m"), 3000), 0))
	must(unix.Chown(at("file"), 1<<31, 70000))
	must(unix.Chmod(at("file"), 0o6755))
	ts := []unix.Timespec{{Sec: -5, Nsec: 1}, {Sec: -5, Nsec: 123456789}}
	must(unix.UtimesNanoAt(unix.AT_FDCWD, at("file"), ts, 0))

	s := newShelf()
	if _, err := pair(t, usual(), usual()).Backup(t.Context(), request(root), s); err != nil {
		t.Fatal(err)
	}
	for name, f := range s.files {
		if f.Outcome != Whole {
			t.Errorf("%s: %v: %s", name, f.Outcome, f.Reason)
		}
	}
	file := s.files["file"].Stat
	if file.Mode != 0o6755 || file.UID != 1<<31 || file.GID != 70000 || file.Links != 2 ||
		file.MTime != (snapshot.Time{Sec: -5, Nsec: 123456789}) || file.Inode != s.files["same"].Stat.Inode {
		t.Errorf("%+v", file)
	}
	if l := s.files["link"]; l.Target != strings.Repeat("t", 3000) || l.Stat.Type != snapshot.Symlink {
		t.Errorf("%+v", l)
	}
	if c, b := s.files["char"].Stat, s.files["block"].Stat; c.Rdev != 1<<32|300 || b.Rdev != 259<<32|7 {
		t.Errorf("devices %x, %x", c.Rdev, b.Rdev)
	}
	for name, want := range map[string]string{
		"file": "user.a= user.b=2 ", "dir": "user.a= user.b=2 ", "link": "trusted.link=l ", "char": "trusted.char=c ",
		"": "user.root=r ", "fifo": "", "socket": "",
	} {
		got := ""
		for _, x := range s.files[name].Xattrs {
			got += fmt.Sprintf("%s=%s ", x.Name, x.Value)
		}
		if got != want {
			t.Errorf("xattrs of %q: %q, want %q", name, got, want)
		}
	}
	many := s.files["many"]
	set, err := snapshot.DecodeXattrs(s.stream(many, Xattrs))
	if err != nil || len(set) != 1 || len(set[0].Value) != 3000 || len(many.Xattrs) > 0 {
		t.Errorf("%+v, %v", many, err)
	}
	if got := []snapshot.Type{s.files["fifo"].Stat.Type, s.files["socket"].Stat.Type, s.files["dir"].Stat.Type}; !slices.Equal(got,
		[]snapshot.Type{snapshot.Fifo, snapshot.Socket, snapshot.Dir}) {
		t.Errorf("types %v", got)
	}
}

// A counter counts how often its splitter is asked.
type counter struct {
	chunk.Splitter
	asked int
}

func (c *counter) Next(p []byte, more bool) int {
	c.asked++
	return c.Splitter.Next(p, more)
}

func (c *counter) Cuts(dst []int, p []byte, more bool, fork chunk.Fork) []int {
	c.asked++
	return c.Splitter.Cuts(dst, p, more, fork)
}

// anyCutter returns a cutter of some kind that collects what it offers in refs.
// Those who take it keep it for a while, and look at it again. When all is over
// done waits for them.
func anyCutter(s chunk.Splitter, n *id.Namer, most int, r *rand.Rand, refs *[]snapshot.Ref) (c *cutter, done func()) {
	c = newCutter(s, n, 1+r.IntN(most))
	if cores := r.IntN(5); cores > 0 {
		c = newLargeCutter(s, n, s.Max()+r.IntN(most), &crew{cores: cores})
		c.crew.busy.Add(1)
	}
	var takers sync.WaitGroup
	c.offer = func(ref snapshot.Ref, p []byte, lent *semaphore.Weighted) error {
		if n.Blob(id.Data, p) != ref.Name || len(p) != int(ref.Length) {
			return errors.New("the name is not the data's")
		}
		*refs = append(*refs, ref)
		if lent == nil {
			return nil
		}
		if !lent.TryAcquire(1) {
			return errors.New("it lends while it waits to be given back")
		}
		takers.Go(func() {
			runtime.Gosched()
			if n.Blob(id.Data, p) != ref.Name {
				panic("what was lent was written to")
			}
			lent.Release(1)
		})
		return nil
	}
	return c, takers.Wait
}

// Whatever the old cuts were of, however large the buffer is and whoever helps,
// the cuts are those that the splitter finds one after the other.
func TestOldCutsMakeNoDifference(t *testing.T) {
	for _, algorithm := range []chunk.Algorithm{chunk.Gear, chunk.Rabin} {
		t.Run(string(algorithm), func(t *testing.T) {
			cfg := smallChunks
			cfg.Algorithm = algorithm
			s, err := chunk.New(cfg, [32]byte{3})
			if err != nil {
				t.Fatal(err)
			}
			namer := id.NewNamer(nameKey)
			plain := func(data []byte) (refs []snapshot.Ref) {
				for len(data) > 0 {
					n := s.Next(data, false)
					refs = append(refs, snapshot.Ref{Name: namer.Blob(id.Data, data[:n]), Length: uint64(n)})
					data = data[n:]
				}
				return refs
			}
			cuts := func(data []byte, old []snapshot.Ref, r *rand.Rand) (refs []snapshot.Ref, asked int) {
				counted := counter{Splitter: s}
				c, done := anyCutter(&counted, namer, 8000, r, &refs)
				if err := c.reset(t.Context(), uint64(r.IntN(2*len(data)+1)), old); err != nil {
					t.Fatal(err)
				}
				for len(data) > 0 {
					p, err := c.room(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					n := copy(p[:min(len(p), 1+r.IntN(2000))], data)
					data = data[n:]
					if err := c.wrote(n); err != nil {
						t.Fatal(err)
					}
				}
				if whole, err := c.finish(0); err != nil || len(whole) > 0 {
					t.Fatal(err)
				}
				done()
				return refs, counted.asked
			}
			rapid.Check(t, func(t *rapid.T) {
				seed := rapid.Uint64().Draw(t, "seed")
				r := rand.New(rand.NewPCG(seed, 0))
				was := noise(rapid.IntRange(0, 20_000).Draw(t, "length"), byte(seed))
				if rapid.Bool().Draw(t, "zeros") {
					clear(was)
				}
				is := slices.Clone(was)
				for range rapid.IntRange(0, 3).Draw(t, "edits") {
					at, n := r.IntN(len(is)+1), r.IntN(3000)
					end := min(at+n, len(is))
					switch r.IntN(4) {
					case 0:
						is = slices.Insert(is, at, noise(n, 9)...)
					case 1:
						is = slices.Delete(is, at, end)
					case 2:
						copy(is[at:end], noise(n, 8))
					case 3:
						is = is[:at]
					}
				}
				old := plain(was)
				if rapid.Bool().Draw(t, "only the first") && len(old) > 0 {
					old = old[:r.IntN(len(old))]
				}
				want := plain(is)
				if got, _ := cuts(is, old, r); !slices.Equal(got, want) {
					t.Errorf("%v\nfrom scratch %v", got, want)
				}
			})
			data := noise(100_000, 5)
			r := rand.New(rand.NewPCG(1, 1))
			for range 20 {
				if _, asked := cuts(data, plain(data), r); asked > 0 {
					t.Errorf("cuts of the same bytes were searched for %d times", asked)
				}
			}
		})
	}
}

// A stream can end where its buffer is full: then nothing is read between the
// last cut and the end, and the pieces before it are of the same buffer and still
// being offered.
func TestAStreamThatEndsAtAFullBufferIsOfferedWhole(t *testing.T) {
	s, err := chunk.New(smallChunks, [32]byte{3})
	if err != nil {
		t.Fatal(err)
	}
	namer := id.NewNamer(nameKey)
	ends := 0
	for i := range 100 {
		most := s.Max() + 1000 + 37*i
		data := noise(most, byte(i))
		var want, got []snapshot.Ref
		for p := data; len(p) > 0; {
			n := s.Next(p, false)
			want = append(want, snapshot.Ref{Name: namer.Blob(id.Data, p[:n]), Length: uint64(n)})
			p = p[n:]
		}
		c := newLargeCutter(s, namer, most, &crew{cores: 2})
		c.crew.busy.Add(1)
		c.offer = func(ref snapshot.Ref, _ []byte, _ *semaphore.Weighted) error {
			runtime.Gosched() // so that the end is found meanwhile
			got = append(got, ref)
			return nil
		}
		if err := c.reset(t.Context(), uint64(most), nil); err != nil {
			t.Fatal(err)
		}
		room, err := c.room(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.wrote(copy(room, data)); err != nil {
			t.Fatal(err)
		}
		if c.behind != nil && c.from < len(c.buf) {
			ends++
		}
		if _, err := c.finish(0); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("a stream of %d bytes: %v\nwant %v", most, got, want)
		}
	}
	if ends == 0 {
		t.Error("no stream ended so")
	}
}

func TestOldCutsAreCutToTheCredit(t *testing.T) {
	root := t.TempDir()
	for i := range 5 {
		write(t, filepath.Join(root, fmt.Sprint(i)), noise(20_000, byte(i)))
	}
	first := newShelf()
	host := usual()
	host.credits.Old = 7
	c := pair(t, host, usual())
	for range 2 {
		s := newShelf()
		s.blobs, s.olds = first.blobs, first.cuts()
		if _, err := c.Backup(t.Context(), request(root), s); err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			if !bytes.Equal(s.bytes(t, fmt.Sprint(i)), noise(20_000, byte(i))) {
				t.Errorf("%d came out different", i)
			}
		}
		first = s
	}
}
