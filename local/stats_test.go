package local

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"orlop/id"
	"orlop/snapshot"
)

const source = "volume:pgdata"

var (
	repo = id.Repository{1}
	key  = [32]byte{2}
	head = Head{
		Snapshot: id.Snapshot{3},
		Session:  id.Session{4},
		Sequence: 5,
		Root:     snapshot.Root{Name: id.Blob{6}, Length: 7, Level: 2, Entries: 8, Files: 9, Bytes: 1 << 60},
		Totals:   snapshot.Totals{Files: 10, Dirs: 11, Others: 12, Bytes: 13, Devices: 14},
		Time:     snapshot.Time{Sec: -14, Nsec: 15},
		Key:      key,
	}
)

func open(t testing.TB) *Dir {
	t.Helper()
	d, err := Open(t.TempDir(), repo)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// record returns the n-th record of a made-up volume: every sort of entry, in
// directories of a hundred.
func record(n int) *Record {
	e := snapshot.Entry{
		Dir: fmt.Sprintf("d%05d/sub", n/100), Name: fmt.Sprintf("f%02d", n%100),
		Type: snapshot.File, Mode: 0o644, UID: 1000, GID: uint32(n),
		MTime: snapshot.Time{Sec: int64(n) - 50, Nsec: uint32(n) % 1e9},
	}
	r := &Record{CTime: snapshot.Time{Sec: 1 << 33, Nsec: uint32(n % 1e9)}, Inode: uint64(n) << 20, Device: 0xfd00}
	ref := func(i int) snapshot.Ref {
		ref := snapshot.Ref{Length: 1000}
		binary.LittleEndian.PutUint64(ref.Name[:], uint64(n)<<8+uint64(i)+1)
		return ref
	}
	switch n % 10 {
	case 0:
		e.Type, e.Target = snapshot.Symlink, "somewhere"
	case 1:
		e.Inline, e.Size = []byte("little"), 6
	case 2:
		e.Type = snapshot.Dir
		e.Xattrs = []snapshot.Xattr{{Name: "user.a", Value: []byte("b")}}
	case 3:
		e.Content = snapshot.Content{Level: 1, Refs: []snapshot.Ref{ref(0)}}
		for i := range 10 {
			r.Refs = append(r.Refs, ref(i))
		}
		if n%20 == 13 {
			r.Sheets = []Sheet{Sheet(n), Sheet(n) + 1, Sheet(n) + 900}
		}
		e.Content.Refs[0].Length, e.Size = 10000, 10000
	default:
		e.Content, e.Size = snapshot.Content{Refs: []snapshot.Ref{ref(0)}}, 1000
	}
	r.Entry = e
	return r
}

// write makes a cache of n records.
func write(t testing.TB, d *Dir, source string, n int) {
	t.Helper()
	w, err := d.NewStats(source, key)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i := range n {
		if err := w.Add(record(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(head); err != nil {
		t.Fatal(err)
	}
}

// read returns how many records of write are served, and the error at the end.
func read(t testing.TB, s *Stats) (n int, err error) {
	t.Helper()
	for ; ; n++ {
		r, err := s.Next()
		if err != nil {
			return n, err
		}
		if !bytes.Equal(encoded(t, r), wanted(t, n)) {
			t.Fatalf("record %d (-want +got)\n%s", n, cmp.Diff(record(n), r))
		}
	}
}

// encoded says all there is to say of a record, and is cheap to compare.
func encoded(t testing.TB, r *Record) []byte {
	t.Helper()
	p, err := appendRecord(nil, "", r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var encodings sync.Map // of record, by number

func wanted(t testing.TB, n int) []byte {
	t.Helper()
	if p, ok := encodings.Load(n); ok {
		return p.([]byte)
	}
	p := encoded(t, record(n))
	encodings.Store(n, p)
	return p
}

func TestStatsAreReadAsWritten(t *testing.T) {
	for _, n := range []int{0, 1, 10, 5000} {
		d := open(t)
		write(t, d, source, n)
		s, ok := d.OpenStats(source, key)
		if !ok {
			t.Fatalf("%d records: no cache", n)
		}
		if diff := cmp.Diff(head, s.Head()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if s.Records() != uint64(n) {
			t.Errorf("%d records are said to be %d", n, s.Records())
		}
		if got, err := read(t, s); got != n || err != io.EOF {
			t.Errorf("%d of %d records, then %v", got, n, err)
		}
		if _, err := s.Next(); err != io.EOF {
			t.Errorf("after the end: %v", err)
		}
		s.Close()
		left, err := os.ReadDir(d.Path(statsDir))
		if err != nil || len(left) != 1 {
			t.Errorf("files: %v, %v", left, err)
		}
	}
}

// refs returns n refs of the i-th file of a test.
func refs(i, n int) []snapshot.Ref {
	all := make([]snapshot.Ref, n)
	for j := range all {
		all[j] = snapshot.Ref{Name: id.Blob{byte(i), byte(j), byte(j >> 8)}, Length: uint64(j) << 12}
	}
	return all
}

// Sheets are written before their records, those of several files in turn, and
// are read in any order.
func TestStatsOfLargeFiles(t *testing.T) {
	d := open(t)
	w, err := d.NewStats(source, key)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	var want []*Record
	for i := range 4 {
		r := record(3)
		r.Entry.Name, r.Refs = fmt.Sprint(i), nil
		want = append(want, r)
	}
	sheets := map[Sheet][]snapshot.Ref{}
	for k := range 300 { // ten megabytes
		r := want[k%3]
		some := refs(k, []int{SheetRefs, 1, 500}[k%3])
		n := w.AddSheet(some)
		r.Sheets, sheets[n] = append(r.Sheets, n), some
	}
	want[2].Refs, want[3].Refs = refs(1000, 70), refs(1001, 1)
	for _, r := range want {
		if err := w.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	large := record(3)
	large.Entry.Name, large.Refs = "9", make([]snapshot.Ref, MaxRefs+1)
	if err := w.Add(large); err == nil {
		t.Error("too many refs were taken")
	}
	if err := w.Commit(head); err != nil {
		t.Fatal(err)
	}
	s, ok := d.OpenStats(source, key)
	if !ok {
		t.Fatal("no cache")
	}
	defer s.Close()
	check := func(n Sheet, want []snapshot.Ref) {
		t.Helper()
		if got, err := s.Sheet(n); err != nil || !slices.Equal(got, want) {
			t.Errorf("sheet %d: %d refs, want %d, %v", n, len(got), len(want), err)
		}
	}
	for i := range want {
		got, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(encoded(t, got), encoded(t, want[i])) {
			t.Errorf("record %d is another", i)
		}
		for k := range got.Sheets {
			n := got.Sheets[len(got.Sheets)-1-k]
			check(n, sheets[n])
		}
	}
	if _, err := s.Next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	check(0, sheets[0]) // also behind the last record
	if _, err := s.Sheet(300); !errors.Is(err, ErrDamaged) {
		t.Errorf("a sheet that is not there: %v", err)
	}
}

// What is in a sheet counts only if it is the sheet that was asked for.
func TestASheetIsNoOther(t *testing.T) {
	d := open(t)
	w, err := d.NewStats(source, key)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i := range 3 {
		w.AddSheet(refs(i, 10))
	}
	if err := w.Add(record(1)); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(head); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(d.statsPath(source))
	if err != nil {
		t.Fatal(err)
	}
	// A sheet as it is in the file: its sum and what it says.
	length := 32 + len(appendRefs(nil, refs(0, 10)))
	sheet := func(p []byte, i int) []byte {
		at := bytes.Index(whole, refs(i, 1)[0].Name[:]) - 1 - 32
		return p[at:][:length]
	}
	for name, spoil := range map[string]func(p []byte){
		"one that was changed": func(p []byte) { sheet(p, 1)[100] ^= 1 },
		"another, sum and all": func(p []byte) { copy(sheet(p, 1), sheet(p, 0)) },
		"one of another count": func(p []byte) { sheet(p, 1)[32]++ },
		"zeros":                func(p []byte) { clear(sheet(p, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			spoiled := bytes.Clone(whole)
			spoil(spoiled)
			if err := os.WriteFile(d.statsPath(source), spoiled, 0o600); err != nil {
				t.Fatal(err)
			}
			f, size := openFile(t, d.statsPath(source))
			stamp(t, f, size-int64(footerSize))
			s, ok := d.OpenStats(source, key)
			if !ok {
				t.Fatal("no cache")
			}
			defer s.Close()
			if _, err := s.Sheet(1); !errors.Is(err, ErrDamaged) {
				t.Errorf("it was served: %v", err)
			}
			if got, err := s.Sheet(2); err != nil || !slices.Equal(got, refs(2, 10)) {
				t.Errorf("the next one: %v", err)
			}
		})
	}
}

func TestStatsAreForOneSourceAndKey(t *testing.T) {
	d := open(t)
	write(t, d, source, 3)
	if _, ok := d.OpenStats(source, [32]byte{9}); ok {
		t.Error("another key opened it")
	}
	if _, ok := d.OpenStats("volume:other", key); ok {
		t.Error("there is a cache for a source that has none")
	}
	if err := os.Rename(d.statsPath(source), d.statsPath("volume:other")); err != nil {
		t.Fatal(err)
	}
	if _, ok := d.OpenStats("volume:other", key); ok {
		t.Error("it was taken for another source's")
	}
}

// Every byte of a cache is flipped, each bit of some and one of all: the cache
// is not there, or what it serves is right.
func TestFlippedStatsAreNoStats(t *testing.T) {
	d := open(t)
	write(t, d, source, 20)
	f, size := openFile(t, d.statsPath(source))
	served := 0
	for off := range size {
		flip(t, f, off, 1<<(off%8))
		if s, ok := d.OpenStats(source, key); ok {
			served++
			n, err := read(t, s)
			t.Errorf("byte %d flipped: %d records served, then %v", off, n, err)
			s.Close()
		}
		flip(t, f, off, 1<<(off%8))
	}
	s, ok := d.OpenStats(source, key)
	if !ok {
		t.Fatal("flipping back did not help")
	}
	defer s.Close()
	if n, err := read(t, s); n != 20 || err != io.EOF {
		t.Errorf("%d records, then %v", n, err)
	}
	t.Logf("%d bytes flipped, %d caches refused", size, size-int64(served))
}

// The same, with the sum over the file made to fit again, so that bbolt and the
// sums within are on their own. They may serve what is right up to the damage.
func TestFlippedPagesServeNothingWrong(t *testing.T) {
	d := open(t)
	write(t, d, source, 20)
	f, size := openFile(t, d.statsPath(source))
	size -= int64(footerSize)
	refused, damaged, panics := 0, 0, 0
	for off := range size {
		flip(t, f, off, 1<<(off%8))
		stamp(t, f, size)
		s, err := openStats(d.statsPath(source))
		var p *panicError
		switch {
		case err != nil:
			refused++
		default:
			var n int
			n, err = read(t, s)
			if err == io.EOF && n != 20 {
				t.Errorf("byte %d flipped: %d records, then the end", off, n)
			}
			if s.Head() != head || s.head.source != source {
				t.Errorf("byte %d flipped: another head", off)
			}
			if err != io.EOF {
				damaged++
				if !errors.Is(err, ErrDamaged) {
					t.Errorf("byte %d flipped: %v", off, err)
				}
			}
			s.Close()
		}
		if errors.As(err, &p) { // of opening or reading
			panics++
		}
		flip(t, f, off, 1<<(off%8))
	}
	t.Logf("%d bytes flipped: %d caches refused, %d ended by damage, %d panics of bbolt", size, refused, damaged, panics)
}

func TestTruncatedStatsAreNoStats(t *testing.T) {
	d := open(t)
	write(t, d, source, 20)
	f, size := openFile(t, d.statsPath(source))
	whole, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	for n := size - 1; n >= 0; n-- {
		if err := f.Truncate(n); err != nil {
			t.Fatal(err)
		}
		if _, ok := d.OpenStats(source, key); ok {
			t.Errorf("%d of %d bytes are a cache", n, size)
		}
	}
	// With a footer that fits, bbolt is on its own.
	for n := size - int64(footerSize) - 1; n >= 0; n -= 509 {
		if _, err := f.WriteAt(whole, 0); err != nil {
			t.Fatal(err)
		}
		stamp(t, f, n)
		if s, err := openStats(d.statsPath(source)); err == nil {
			if got, err := read(t, s); err == io.EOF && got != 20 {
				t.Errorf("truncated to %d: %d records", n, got)
			}
			s.Close()
		}
	}
}

// A file that shrinks while it is mapped makes the kernel send SIGBUS, which
// would end the process.
func TestStatsThatShrinkWhileRead(t *testing.T) {
	d := open(t)
	write(t, d, source, 20000)
	s, ok := d.OpenStats(source, key)
	if !ok {
		t.Fatal("no cache")
	}
	defer s.Close()
	if _, err := s.Next(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.statsPath(source), 0); err != nil {
		t.Fatal(err)
	}
	var err error
	for err == nil {
		_, err = s.Next()
	}
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("it ended with %v", err)
	}
	if _, again := s.Next(); again != err {
		t.Errorf("then with %v", again)
	}
}

func TestForeignFilesAreNoStats(t *testing.T) {
	d := open(t)
	for name, data := range map[string][]byte{
		"nothing": nil, "text": []byte("hello, this is no cache at all"), "zeros": make([]byte, 64<<10),
		"footer only": append([]byte(footerMagic), make([]byte, 12)...),
	} {
		if err := os.WriteFile(d.statsPath(source), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, ok := d.OpenStats(source, key); ok {
			t.Errorf("%s is a cache", name)
		}
		f, size := openFile(t, d.statsPath(source))
		stamp(t, f, size)
		if _, ok := d.OpenStats(source, key); ok {
			t.Errorf("%s with a footer is a cache", name)
		}
	}
	if err := os.Remove(d.statsPath(source)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(d.statsPath(source), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, ok := d.OpenStats(source, key); ok {
		t.Error("a directory is a cache")
	}
}

// Nobody waits: not a reader for a writer, not a writer for a reader or another
// writer, and nobody for somebody who holds bbolt's lock for ever.
func TestNobodyWaits(t *testing.T) {
	d := open(t)
	write(t, d, source, 10)
	old, ok := d.OpenStats(source, key)
	if !ok {
		t.Fatal("no cache")
	}
	defer old.Close()

	writers := make([]*StatsWriter, 2)
	for i := range writers {
		w, err := d.NewStats(source, key)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		writers[i] = w
	}
	for i, w := range writers {
		for n := range (i + 2) * 1000 {
			if err := w.Add(record(n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s, ok := d.OpenStats(source, key); !ok || s.Records() != 10 {
		t.Error("what is being written shows already")
	} else {
		s.Close()
	}
	for i, w := range writers {
		if err := w.Commit(head); err != nil {
			t.Fatal(err)
		}
		s, ok := d.OpenStats(source, key)
		if !ok {
			t.Fatal("no cache")
		}
		if n, err := read(t, s); n != (i+2)*1000 || err != io.EOF {
			t.Errorf("writer %d: %d records, then %v", i, n, err)
		}
		s.Close()
	}
	if n, err := read(t, old); n != 10 || err != io.EOF {
		t.Errorf("what was open before: %d records, then %v", n, err)
	}

	f, _ := openFile(t, d.statsPath(source))
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, ok := d.OpenStats(source, key); ok {
		t.Error("opened under another's lock")
	}
	write(t, d, source, 1) // and it heals
	if s, ok := d.OpenStats(source, key); !ok {
		t.Error("no cache")
	} else {
		s.Close()
	}
}

func TestManyProcessesAtOnce(t *testing.T) {
	d := open(t)
	write(t, d, source, 1)
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for round := range 5 {
				if worker%2 == 0 {
					write(t, d, source, 100*(round+1))
					continue
				}
				s, ok := d.OpenStats(source, key)
				if !ok {
					t.Error("no cache")
					continue
				}
				if n, err := read(t, s); n != int(s.Records()) || err != io.EOF {
					t.Errorf("%d of %d records, then %v", n, s.Records(), err)
				}
				s.Close()
			}
		})
	}
	wg.Wait()
}

func TestAbortLeavesTheOldCache(t *testing.T) {
	d := open(t)
	write(t, d, source, 10)
	w, err := d.NewStats(source, key)
	if err != nil {
		t.Fatal(err)
	}
	w.Abort()
	w.Abort()
	if err := w.Commit(head); err == nil {
		t.Error("commit after abort")
	}
	checkKept(t, d)
}

func TestAFullDiskLeavesTheOldCache(t *testing.T) {
	d := open(t)
	write(t, d, source, 10)
	w, err := d.NewStats(source, key)
	if err != nil {
		t.Fatal(err)
	}
	w.db.MaxSize = 1 << 20
	for i := range 50000 {
		if err := w.Add(record(i)); err != nil {
			t.Fatalf("adding failed: %v", err)
		}
	}
	if err := w.Commit(head); err == nil || !strings.Contains(err.Error(), source) {
		t.Errorf("commit: %v", err)
	}
	checkKept(t, d)
}

// checkKept checks that a cache of 10 records is all there is.
func checkKept(t *testing.T, d *Dir) {
	t.Helper()
	s, ok := d.OpenStats(source, key)
	if !ok {
		t.Fatal("no cache")
	}
	defer s.Close()
	if n, err := read(t, s); n != 10 || err != io.EOF {
		t.Errorf("%d records, then %v", n, err)
	}
	if left, err := os.ReadDir(d.Path(statsDir)); err != nil || len(left) != 1 {
		t.Errorf("files: %v, %v", left, err)
	}
}

func TestAddRefusesWhatCouldNotBeRead(t *testing.T) {
	d := open(t)
	w, err := d.NewStats(source, key)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.Add(record(0)); err != nil {
		t.Fatal(err)
	}
	if err := w.Add(record(1)); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Record){
		"the same again":               func(r *Record) { *r = *record(1) },
		"an earlier one":               func(r *Record) { *r = *record(0) },
		"a bad name":                   func(r *Record) { r.Entry.Name = "zz/z" },
		"content of lists, no refs":    func(r *Record) { r.Entry.Content.Level = 1 },
		"refs without content lists":   func(r *Record) { r.Refs = r.Entry.Content.Refs },
		"sheets without content lists": func(r *Record) { r.Sheets = []Sheet{1} },
		"a directory that has a size":  func(r *Record) { r.Entry.Type = snapshot.Dir },
	} {
		r := record(4)
		spoil(r)
		if err := w.Add(r); err == nil {
			t.Errorf("%s was added", name)
		}
	}
	if err := w.Add(record(2)); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(head); err != nil {
		t.Fatal(err)
	}
	s, ok := d.OpenStats(source, key)
	if !ok {
		t.Fatal("no cache")
	}
	defer s.Close()
	if n, err := read(t, s); n != 3 || err != io.EOF {
		t.Errorf("%d records, then %v", n, err)
	}
}

func TestStatsNeedLittleMemory(t *testing.T) {
	if err := heapStaysBelow(64<<20, func(look func()) error {
		d := open(t)
		w, err := d.NewStats(source, key)
		if err != nil {
			return err
		}
		defer w.Abort()
		const n = 150_000
		for i := range n {
			if err := w.Add(record(i)); err != nil {
				return err
			}
			if i%20_000 == 0 {
				look()
			}
		}
		if err := w.Commit(head); err != nil {
			return err
		}
		s, ok := d.OpenStats(source, key)
		if !ok {
			return errors.New("no cache")
		}
		defer s.Close()
		for i := range n {
			if _, err := s.Next(); err != nil {
				return err
			}
			if i%20_000 == 0 {
				look()
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// heapStaysBelow runs do, which calls look at times of its choosing.
func heapStaysBelow(limit uint64, do func(look func()) error) error {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before, most := m.HeapAlloc, uint64(0)
	err := do(func() {
		runtime.GC()
		runtime.ReadMemStats(&m)
		most = max(most, m.HeapAlloc)
	})
	if err == nil && most > before+limit {
		err = fmt.Errorf("%d MiB of memory in use", (most-before)>>20)
	}
	return err
}

func openFile(t *testing.T, path string) (*os.File, int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, info.Size()
}

func flip(t *testing.T, f *os.File, off int64, mask byte) {
	t.Helper()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= mask
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// stamp makes the first size bytes of f a file with a footer that fits.
func stamp(t *testing.T, f *os.File, size int64) {
	t.Helper()
	if info, err := f.Stat(); err != nil || info.Size() != size+int64(footerSize) {
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
	}
	foot, err := footer(f, size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(foot, size); err != nil {
		t.Fatal(err)
	}
}

func FuzzRecord(f *testing.F) {
	for i := range 10 {
		p, err := appendRecord(nil, "d00000", record(i))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p, "d00000")
		f.Add(p[:len(p)-1], "")
	}
	f.Fuzz(func(t *testing.T, p []byte, prevDir string) {
		r, rest, err := parseRecord(p, prevDir)
		if err != nil {
			return
		}
		again, err := appendRecord(nil, prevDir, r)
		if err != nil || !bytes.Equal(again, p[:len(p)-len(rest)]) {
			t.Fatalf("%x was read as %+v and is written as %x, %v", p, r, again, err)
		}
	})
}

func FuzzHead(f *testing.F) {
	h := newHeader(source, key)
	h.Head = head
	f.Add(h.append(nil)[32:])
	f.Add([]byte{version})
	f.Fuzz(func(t *testing.T, body []byte) {
		sum := sumHead(body)
		p := append(sum[:], body...)
		h, err := parseHeader(p)
		if err != nil {
			return
		}
		if again := h.append(nil); !bytes.Equal(again, p) {
			t.Fatalf("%x was read as %+v and is written as %x", p, h, again)
		}
	})
}

// A million records, as a volume of a million files has.
const million = 1_000_000

func BenchmarkStatsWrite(b *testing.B) {
	d := open(b)
	records := make([]*Record, million)
	for i := range records {
		records[i] = record(i)
	}
	for b.Loop() {
		w, err := d.NewStats(source, key)
		if err != nil {
			b.Fatal(err)
		}
		for _, r := range records {
			if err := w.Add(r); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Commit(head); err != nil {
			b.Fatal(err)
		}
	}
	info, err := os.Stat(d.statsPath(source))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(million*float64(b.N)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64(info.Size())/million, "bytes/record")
}

func BenchmarkStatsRead(b *testing.B) {
	d := open(b)
	write(b, d, source, million)
	b.ReportAllocs()
	for b.Loop() {
		s, ok := d.OpenStats(source, key)
		if !ok {
			b.Fatal("no cache")
		}
		n := 0
		for ; ; n++ {
			if _, err := s.Next(); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
		if n != million {
			b.Fatal(n)
		}
		s.Close()
	}
	b.ReportMetric(million*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}
