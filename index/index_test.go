package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"orlop/box"
	"orlop/id"
	"orlop/pack"
	"orlop/seal"
)

var testRepo = id.Repository{1, 2, 3}

// A maker makes segments out of nothing. Equal seeds make equal ones.
type maker struct {
	rng      *rand.Rand
	sessions []seal.Header
}

func newMaker(seed uint64) *maker {
	m := &maker{rng: rand.New(rand.NewPCG(seed, seed))}
	for range 3 {
		m.sessions = append(m.sessions, m.session(seal.Common))
	}
	return m
}

func (m *maker) fill(p []byte) {
	for len(p) >= 8 {
		binary.LittleEndian.PutUint64(p, m.rng.Uint64())
		p = p[8:]
	}
	for i := range p {
		p[i] = byte(m.rng.Uint32())
	}
}

func (m *maker) session(w seal.Writer) seal.Header {
	h := seal.Header{Suite: seal.AES256GCM, Writer: w, Enc: make([]byte, seal.HeaderSize-1-4-16)}
	m.fill(h.SID[:])
	m.fill(h.Enc)
	return h
}

func (m *maker) name() (n id.Blob) {
	m.fill(n[:])
	return n
}

// pack makes a pack with boxes of the given numbers of blobs.
func (m *maker) pack(name func() id.Blob, boxes ...int) PackInfo {
	p := PackInfo{Header: m.sessions[m.rng.IntN(len(m.sessions))]}
	m.fill(p.ID[:])
	end := uint32(pack.HeaderSize)
	for _, n := range boxes {
		x := pack.Box{
			Offset: end,
			Length: seal.Overhead + m.rng.Uint32N(1000),
			Codec:  box.Codec(m.rng.IntN(2)),
			Blobs:  make([]pack.Blob, n),
		}
		for i := range x.Blobs {
			x.Blobs[i] = pack.Blob{Name: name(), Kind: id.Kind(1 + m.rng.IntN(3)), Length: m.rng.Uint32N(100)}
			x.Raw += x.Blobs[i].Length + 3
		}
		p.Boxes = append(p.Boxes, x)
		end += x.Length
	}
	p.Size = int64(end) + 500
	return p
}

func (m *maker) segmentName() (s id.Segment) {
	m.fill(s[:])
	return s
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func mustOpen(t testing.TB, dir string) *Index {
	t.Helper()
	x, err := Open(dir, testRepo, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	return x
}

// A world is what an Index should know, kept the simple way.
type world struct {
	segments map[id.Segment]*Segment
	added    map[id.Segment]bool
	listed   map[id.Segment]bool // nil: all
	usable   map[id.Pack]bool    // nil: all
}

func newWorld() *world {
	return &world{segments: map[id.Segment]*Segment{}, added: map[id.Segment]bool{}}
}

func (w *world) packs() map[id.Pack]PackInfo {
	m := map[id.Pack]PackInfo{}
	for s := range w.added {
		if w.listed != nil && !w.listed[s] {
			continue
		}
		for _, p := range w.segments[s].Packs {
			if w.usable == nil || w.usable[p.ID] {
				m[p.ID] = p
			}
		}
	}
	return m
}

func (w *world) locations() map[id.Blob][]Location {
	m := map[id.Blob][]Location{}
	for _, p := range w.packs() {
		for _, x := range p.Boxes {
			for i, b := range x.Blobs {
				m[b.Name] = append(m[b.Name], Location{p.ID, p.Size, &p.Header, x.Offset, x.Length, x.Codec, x.Raw, i, b.Kind})
			}
		}
	}
	for name, ls := range m {
		m[name] = distinct(ls)
	}
	return m
}

func sameLocation(a, b Location) bool {
	if !a.Header.Equal(*b.Header) {
		return false
	}
	a.Header = b.Header
	return a == b
}

// check compares all that x says with all that w knows.
func (w *world) check(t rapid.TB, x *Index, strangers []id.Blob) {
	t.Helper()
	want := w.locations()
	all := map[id.Blob][]Location{}
	var last id.Blob
	equal := func(a, b []Location) bool { return slices.EqualFunc(a, b, sameLocation) }
	for e, err := range x.All() {
		if err != nil {
			t.Fatal(err)
		}
		if e.Name.Compare(last) < 0 || e.Kind != e.Location.Kind {
			t.Fatalf("All yields %s after %s", e.Name, last)
		}
		last = e.Name
		all[e.Name] = append(all[e.Name], e.Location)
	}
	if !maps.EqualFunc(want, all, equal) {
		t.Fatalf("All (-want +got):\n%s", cmp.Diff(want, all))
	}
	asked := 0
	for name, ls := range want {
		if asked++; asked > 100 {
			break // in random order
		}
		got, err := x.Locations(name)
		if err != nil || !equal(got, ls) {
			t.Fatalf("Locations(%s) = %v, %v; want %v", name, got, err, ls)
		}
		l, ok, err := x.Lookup(name)
		if err != nil || !ok || !slices.ContainsFunc(ls, func(k Location) bool { return sameLocation(k, l) }) {
			t.Fatalf("Lookup(%s) = %v, %v, %v; want one of %v", name, l, ok, err, ls)
		}
		if ok, err := x.Has(name); !ok || err != nil {
			t.Fatalf("Has(%s) = %v, %v", name, ok, err)
		}
	}
	for _, name := range strangers {
		if want[name] != nil {
			continue
		}
		_, found, err1 := x.Lookup(name)
		has, err2 := x.Has(name)
		ls, err3 := x.Locations(name)
		if found || has || len(ls) > 0 || err1 != nil || err2 != nil || err3 != nil {
			t.Fatalf("%s is found: %v %v %v (%v, %v, %v)", name, found, has, ls, err1, err2, err3)
		}
	}
	packs := w.packs()
	for p, err := range x.Packs() {
		q, ok := packs[p.ID]
		if err != nil || !ok {
			t.Fatalf("Packs yields %v, %v", p.ID, err)
		}
		q.Boxes = nil
		if d := cmp.Diff(q, p); d != "" {
			t.Fatalf("Packs (-want +got):\n%s", d)
		}
		delete(packs, p.ID)
	}
	if len(packs) != 0 {
		t.Fatalf("Packs does not yield %d packs", len(packs))
	}
	covered := x.Covered()
	for s := range w.added {
		if (w.listed == nil || w.listed[s]) && !covered[s] {
			t.Fatalf("%s is not covered", s)
		}
	}
	for s := range covered {
		if !w.added[s] {
			t.Fatalf("%s is covered", s)
		}
	}
	listed := func(s id.Segment) bool { return w.listed == nil || w.listed[s] }
	writers := x.Writers()
	replaced := map[[2]id.Segment]bool{}
	for old, by := range x.Replaced() {
		if !w.added[by] || !slices.Contains(w.segments[by].Replaces, old) {
			t.Fatalf("%s is replaced by %s", old, by)
		}
		replaced[[2]id.Segment{old, by}] = true
	}
	for s := range w.added {
		if by, ok := writers[s]; ok != covered[s] || ok && by != w.segments[s].Writer {
			t.Fatalf("%s is of writer %d, %v; want %d", s, by, ok, w.segments[s].Writer)
		}
		for _, old := range w.segments[s].Replaces {
			if listed(s) && listed(old) && !replaced[[2]id.Segment{old, s}] {
				t.Fatalf("%s is not replaced by %s", old, s)
			}
		}
	}
}

// Whatever is added, restricted, merged and reopened, in whatever order, the
// index says what a map would say.
func TestIndexAgreesWithAMap(t *testing.T) {
	merged, rounds := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "index")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		if rounds++; rounds > 40 {
			return // what a hundred would take is better spent elsewhere
		}
		m := newMaker(rapid.Uint64().Draw(t, "seed"))
		// Names that meet again, some of which begin alike.
		pool := make([]id.Blob, 100)
		for i := range pool {
			pool[i] = m.name()
			if i%3 == 0 {
				copy(pool[i][:8+i%24], "the same beginning of all names")
			}
		}
		name := func() id.Blob {
			if m.rng.IntN(2) == 0 {
				return m.name()
			}
			return pool[m.rng.IntN(len(pool))]
		}
		w := newWorld()
		x, err := Open(dir, testRepo, quiet())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = x.Close() }()
		var packs []PackInfo
		var segments []id.Segment
		dead := map[id.Pack]bool{}
		gone := map[id.Segment]bool{}
		add := func(*rapid.T) {
			batch := map[id.Segment]*Segment{}
			for range 1 + m.rng.IntN(3) {
				s := &Segment{Writer: seal.Writer(m.rng.IntN(3))}
				for _, old := range segments {
					if m.rng.IntN(8) == 0 {
						s.Replaces = append(s.Replaces, old)
					}
				}
				for range m.rng.IntN(4) {
					if len(packs) > 0 && m.rng.IntN(3) == 0 {
						s.Packs = append(s.Packs, packs[m.rng.IntN(len(packs))])
						continue
					}
					boxes := make([]int, m.rng.IntN(4))
					for i := range boxes {
						boxes[i] = 1 + m.rng.IntN(1+m.rng.IntN(60))
					}
					p := m.pack(name, boxes...)
					packs = append(packs, p)
					s.Packs = append(s.Packs, p)
				}
				n := m.segmentName()
				w.segments[n], batch[n], w.added[n] = s, s, true
				segments = append(segments, n)
			}
			files := runFiles(t, dir)
			if err := x.Add(batch); err != nil {
				t.Fatal(err)
			}
			if runFiles(t, dir) <= files {
				merged++
			}
		}
		restrict := func(*rapid.T) {
			for _, p := range packs {
				if m.rng.IntN(8) == 0 {
					dead[p.ID] = true
				}
			}
			w.listed, w.usable = map[id.Segment]bool{}, map[id.Pack]bool{}
			for s := range w.segments {
				if gone[s] = gone[s] || m.rng.IntN(8) == 0; !gone[s] {
					w.listed[s] = true
				}
			}
			for _, p := range packs {
				if !dead[p.ID] {
					w.usable[p.ID] = true
				}
			}
			if m.rng.IntN(4) == 0 && len(dead) == 0 {
				w.usable = nil
			}
			x.Restrict(w.listed, listing(w.usable))
		}
		reopen := func(t *rapid.T) {
			if err := x.Close(); err != nil {
				t.Fatal(err)
			}
			if x, err = Open(dir, testRepo, quiet()); err != nil {
				t.Fatal(err)
			}
			if w.listed != nil {
				restrict(t)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add":       add,
			"add more":  add,
			"add again": add,
			"restrict":  restrict,
			"reopen":    reopen,
			"": func(t *rapid.T) {
				if m.rng.IntN(6) == 0 {
					w.check(t, x, pool)
				}
			},
		})
		w.check(t, x, pool)
	})
	if merged == 0 {
		t.Error("nothing was ever merged")
	}
}

// listing returns packs as Restrict wants them.
func listing(usable map[id.Pack]bool) []Pack {
	if usable == nil {
		return nil
	}
	packs := []Pack{}
	for p := range usable {
		packs = append(packs, Pack{ID: p})
	}
	slices.SortFunc(packs, func(a, b Pack) int { return a.ID.Compare(b.ID) })
	return packs
}

func runFiles(t rapid.TB, dir string) int {
	files, err := filepath.Glob(filepath.Join(dir, "*"+runSuffix))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// small returns a world with an index of one segment.
func small(t testing.TB, seed uint64, dir string, boxes ...int) (*world, *maker) {
	t.Helper()
	w, m := newWorld(), newMaker(seed)
	s := m.segmentName()
	w.segments[s] = &Segment{Packs: []PackInfo{m.pack(m.name, boxes...), m.pack(m.name, 1)}}
	w.added[s] = true
	x := mustOpen(t, dir)
	if err := x.Add(w.segments); err != nil {
		t.Fatal(err)
	}
	w.check(t, x, nil)
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	return w, m
}

func theFile(t testing.TB, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	return files[0]
}

// checkDamaged asks a damaged index for everything. It may refuse; it may say
// nothing that is wrong, neither where a blob is nor that it is missing.
func (w *world) checkDamaged(t *testing.T, x *Index, want map[id.Blob][]Location, stranger id.Blob) (noticed bool) {
	t.Helper()
	covered := len(x.Covered()) > 0
	for name, ls := range want {
		l, ok, err := x.Lookup(name)
		switch {
		case errors.Is(err, ErrDamaged):
			noticed = true
			if len(x.Covered()) != 0 {
				t.Fatal("a damaged file still covers its segments")
			}
			covered = false
		case err != nil:
			t.Fatal(err)
		case ok && !slices.ContainsFunc(ls, func(k Location) bool { return sameLocation(k, l) }):
			t.Fatalf("Lookup(%s) = %v, want one of %v", name, l, ls)
		case ok != covered:
			t.Fatalf("Lookup(%s) = %v of an index that covers it: %v", name, ok, covered)
		}
	}
	if ok, err := x.Has(stranger); ok || err != nil && !errors.Is(err, ErrDamaged) {
		t.Fatalf("Has(stranger) = %v, %v", ok, err)
	}
	return noticed
}

// Every byte of a local file is changed, in turn, to several values.
func TestDamagedFileNeverAnswersWrongly(t *testing.T) {
	dir := t.TempDir()
	w, m := small(t, 1, dir, 1, 300, 40)
	path := theFile(t, dir)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, stranger := w.locations(), m.name()
	// A few names ask each block; all of them would take minutes.
	for name := range want {
		if len(want) > 12 && want[name][0].Place != 0 && name[0] > 8 {
			delete(want, name)
		}
	}
	// Each run takes other bytes. Where a page is empty, few are enough.
	step, start := 7, rand.IntN(23)
	if raceEnabled {
		step = 23
	}
	blank := make([]byte, 64)
	var noticed, dropped, harmless int
	try := func(data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		x, err := Open(dir, testRepo, quiet())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = x.Close() }()
		switch {
		case len(x.Covered()) == 0:
			dropped++
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				_, err := openRun(path, testRepo)
				t.Fatalf("a file that cannot be used is still there: %v", err)
			}
		case w.checkDamaged(t, x, want, stranger):
			noticed++
		default:
			harmless++
		}
	}
	for i := start; i < len(whole); i += step {
		if i%128 != 0 && bytes.Equal(whole[max(0, i-32):min(len(whole), i+32)], blank) {
			continue
		}
		data := bytes.Clone(whole)
		data[i] ^= byte(1 << (i % 8))
		try(data)
		if i%16 == 0 {
			data[i] = ^whole[i]
			try(data)
			data[i] = 0
			try(data)
		}
	}
	for n := 0; n < len(whole); n += 1021 {
		try(whole[:n])
	}
	t.Logf("%d bytes: %d times dropped when opened, %d noticed later, %d harmless", len(whole), dropped, noticed, harmless)
	if dropped == 0 || noticed == 0 {
		t.Error("the damage does not reach the file")
	}
}

// A larger file, with overflow pages and several blocks of each table, is
// damaged at random, several bytes or whole pages at once.
func TestDamageInManyPlacesIsNoticed(t *testing.T) {
	dir := t.TempDir()
	boxes := make([]int, 500)
	for i := range boxes {
		boxes[i] = 1 + i%20
	}
	w, m := small(t, 2, dir, boxes...)
	path := theFile(t, dir)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all, stranger := w.locations(), m.name()
	names := slices.SortedFunc(maps.Keys(all), id.Blob.Compare)
	want := map[id.Blob][]Location{}
	for i := 0; i < len(names); i += 51 {
		want[names[i]] = all[names[i]]
	}
	var noticed, dropped int
	for range 200 {
		data := bytes.Clone(whole)
		switch m.rng.IntN(3) {
		case 0:
			for range 1 + m.rng.IntN(50) {
				data[m.rng.IntN(len(data))] = byte(m.rng.Uint32())
			}
		case 1: // a page was never written
			clear(data[m.rng.IntN(len(data)/4096)*4096:][:4096])
		case 2: // two pages have changed places
			a, b := m.rng.IntN(len(data)/4096)*4096, m.rng.IntN(len(data)/4096)*4096
			copy(data[a:a+4096], whole[b:])
			copy(data[b:b+4096], whole[a:])
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		x, err := Open(dir, testRepo, quiet())
		if err != nil {
			t.Fatal(err)
		}
		if len(x.Covered()) == 0 {
			dropped++
		} else if w.checkDamaged(t, x, want, stranger) {
			noticed++
		}
		_ = x.Close()
	}
	t.Logf("dropped when opened: %d, noticed later: %d of 200", dropped, noticed)
	if dropped == 0 || noticed == 0 {
		t.Error("the damage does not reach the file")
	}
}

// A file that is cut short while it is mapped ends in an error, not in SIGBUS.
func TestFileCutShortWhileOpenIsDamage(t *testing.T) {
	dir := t.TempDir()
	w, _ := small(t, 3, dir, 500, 500, 500)
	path := theFile(t, dir)
	x := mustOpen(t, dir)
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	var damaged int
	for name := range w.locations() {
		_, ok, err := x.Lookup(name)
		if errors.Is(err, ErrDamaged) {
			damaged++
		} else if ok || err != nil {
			t.Fatalf("Lookup = %v, %v", ok, err)
		}
	}
	if damaged != 1 {
		t.Errorf("told of damage %d times", damaged)
	}
	// The way forward: what is no longer covered is added again.
	if len(x.Covered()) != 0 {
		t.Fatal("a file that was cut short still covers its segments")
	}
	if err := x.Add(w.segments); err != nil {
		t.Fatal(err)
	}
	w.check(t, x, nil)
}

// Damage met by Restrict, which returns no error, is told by the next call.
func TestDamageMetByRestrictIsToldLater(t *testing.T) {
	for _, call := range []struct {
		name string
		do   func(*Index) error
	}{
		{"Has", func(x *Index) error { _, err := x.Has(id.Blob{}); return err }},
		{"Lookup", func(x *Index) error { _, _, err := x.Lookup(id.Blob{}); return err }},
		{"Locations", func(x *Index) error { _, err := x.Locations(id.Blob{}); return err }},
		{"All", func(x *Index) error {
			for _, err := range x.All() {
				return err
			}
			return nil
		}},
		{"Packs", func(x *Index) error {
			for _, err := range x.Packs() {
				return err
			}
			return nil
		}},
	} {
		t.Run(call.name, func(t *testing.T) {
			dir := t.TempDir()
			w, _ := small(t, 4, dir, 5)
			x := mustOpen(t, dir)
			// The members' table is read by nothing but Restrict.
			b := x.runs[0].t[tMembers].chunks[0]
			data, err := os.ReadFile(theFile(t, dir))
			if err != nil {
				t.Fatal(err)
			}
			wrong := bytes.Clone(b)
			wrong[0]++
			data = bytes.ReplaceAll(data, b, wrong)
			if err := os.WriteFile(theFile(t, dir), data, 0o600); err != nil {
				t.Fatal(err)
			}
			x.Restrict(w.added, nil)
			if err := call.do(x); !errors.Is(err, ErrDamaged) {
				t.Errorf("the first call returns %v", err)
			}
			if err := call.do(x); err != nil || len(x.Covered()) != 0 {
				t.Errorf("the second call returns %v, with %d segments covered", err, len(x.Covered()))
			}
		})
	}
}

// What lies in the directory and is no file of this index does no harm.
func TestStrangeFilesAreIgnored(t *testing.T) {
	dir := t.TempDir()
	w, m := small(t, 5, dir, 3, 30)
	mine := theFile(t, dir)

	other, err := Open(dir, id.Repository{9}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if len(other.Covered()) != 0 {
		t.Error("another repository's file is used")
	}
	if err := other.Add(w.segments); err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}

	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	empty := write("00"+runSuffix, "")
	junk := write("01"+runSuffix, strings.Repeat("junk", 5000))
	fresh, stale := write(tempPrefix+"1", "x"), write(tempPrefix+"2", "x")
	if err := os.Chtimes(stale, time.Time{}, time.Now().Add(-2*tempAge)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "02"+runSuffix), 0o700); err != nil {
		t.Fatal(err)
	}
	x := mustOpen(t, dir)
	w.check(t, x, []id.Blob{m.name()})
	for _, path := range []string{junk, stale, empty} {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", filepath.Base(path), err)
		}
	}
	for _, path := range []string{mine, fresh} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

// A file of which another one covers everything is dropped: its process died
// between merging and removing.
func TestSupersededFileIsDropped(t *testing.T) {
	dir, aside := t.TempDir(), t.TempDir()
	w, m := small(t, 6, dir, 3, 30)
	old := theFile(t, dir)
	data, err := os.ReadFile(old)
	if err != nil {
		t.Fatal(err)
	}
	s := m.segmentName()
	w.segments[s] = &Segment{Packs: []PackInfo{m.pack(m.name, 4)}}
	w.added[s] = true
	x := mustOpen(t, aside)
	if err := x.Add(w.segments); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(aside, filepath.Base(old)), data, 0o600); err != nil {
		t.Fatal(err)
	}
	y := mustOpen(t, aside)
	w.check(t, y, nil)
	if n := runFiles(t, aside); n != 1 {
		t.Errorf("%d files, want 1", n)
	}
}

// Small files added one by one are merged, and a large one is not written
// again for each of them.
func TestAddingLittleCostsLittle(t *testing.T) {
	dir := t.TempDir()
	x := mustOpen(t, dir)
	w, m := newWorld(), newMaker(7)
	add := func(blobs int) {
		s := m.segmentName()
		w.segments[s] = &Segment{Packs: []PackInfo{m.pack(m.name, blobs)}}
		w.added[s] = true
		if err := x.Add(map[id.Segment]*Segment{s: w.segments[s]}); err != nil {
			t.Fatal(err)
		}
	}
	add(5000)
	large := theFile(t, dir)
	for i := range 60 {
		add(10)
		if n := runFiles(t, dir); n > maxRuns {
			t.Fatalf("%d files after %d segments", n, i)
		}
	}
	if _, err := os.Stat(large); err != nil {
		t.Errorf("the large file was written again: %v", err)
	}
	w.check(t, x, nil)
}

// An iteration goes on while runs are merged, dropped and the index closed.
func TestIterationOutlivesMergeAndClose(t *testing.T) {
	dir := t.TempDir()
	x := mustOpen(t, dir)
	w, m := newWorld(), newMaker(8)
	add := func() {
		s := m.segmentName()
		w.segments[s] = &Segment{Packs: []PackInfo{m.pack(m.name, 200)}}
		w.added[s] = true
		if err := x.Add(map[id.Segment]*Segment{s: w.segments[s]}); err != nil {
			t.Fatal(err)
		}
	}
	for range maxRuns {
		add()
	}
	want := len(w.locations())
	var got int
	for _, err := range x.All() {
		if err != nil {
			t.Fatal(err)
		}
		if got++; got == 1 {
			add()
			if err := x.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got != want {
		t.Errorf("All yields %d blobs, want %d", got, want)
	}
	if _, _, err := x.Lookup(id.Blob{}); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Lookup after Close: %v", err)
	}
}

// A segment that lies about a pack does not hide what another says of it.
func TestContradictingSegmentsAreBothKept(t *testing.T) {
	dir := t.TempDir()
	x := mustOpen(t, dir)
	m := newMaker(9)
	p := m.pack(m.name, 3)
	lie := p
	lie.Boxes = nil
	for _, info := range []PackInfo{lie, p} {
		if err := x.Add(map[id.Segment]*Segment{m.segmentName(): {Packs: []PackInfo{info}}}); err != nil {
			t.Fatal(err)
		}
	}
	for range maxRuns {
		if err := x.Add(map[id.Segment]*Segment{m.segmentName(): {}}); err != nil {
			t.Fatal(err)
		}
		if ok, err := x.Has(p.Boxes[0].Blobs[1].Name); !ok || err != nil {
			t.Fatalf("Has = %v, %v", ok, err)
		}
	}
}
