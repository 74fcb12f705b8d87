package repo

import (
	"fmt"
	"runtime"
	"testing"

	"orlop/pack"
	"orlop/seal"
	"orlop/store"
	"orlop/store/storetest"
)

// boxed returns a repository with one pack of four stored boxes of 1 MiB and
// one of metadata, and the former's name and size.
func boxed(t testing.TB) (*store.Mem, *seal.Key, store.Info) {
	t.Helper()
	mem, key := newRepo(t)
	f := files{}
	for i := range 4 {
		f[fmt.Sprint(i)] = random(uint64(i), 1<<20)
	}
	mustPut(t, open(t, mem, key, t.TempDir()), f)
	for _, o := range storetest.Infos(t, mem, "packs/") {
		if o.Size > 4<<20 {
			return mem, key, o
		}
	}
	t.Fatal("no pack of four boxes")
	return nil, nil, store.Info{}
}

// Where a pack's directory is lost, its boxes are looked at where the index
// says that they are: a restore finds them there.
func TestCheckTellsWhatCanStillBeRead(t *testing.T) {
	const header, box = int64(pack.HeaderSize), int64(1<<20 + 5 + seal.Overhead)
	noDirectory := func(t *testing.T, mem *store.Mem, o store.Info) {
		storetest.Flip(t, mem, o.Name, o.Size-int64(pack.TrailerSize)-1, 1)
	}
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, mem *store.Mem, o store.Info)
		bad    int  // boxes
		needed bool // by the snapshot
	}{
		{"nothing is wrong", func(*testing.T, *store.Mem, store.Info) {}, 0, false},
		{"a byte of the padding", func(t *testing.T, mem *store.Mem, o store.Info) {
			storetest.Flip(t, mem, o.Name, header+4*box+10, 1)
		}, 0, false},
		{"a byte of a box", func(t *testing.T, mem *store.Mem, o store.Info) {
			storetest.Flip(t, mem, o.Name, header+2*box+10, 1)
		}, 1, true},
		{"the directory", noDirectory, 0, false},
		{"the directory and a byte of a box", func(t *testing.T, mem *store.Mem, o store.Info) {
			noDirectory(t, mem, o)
			storetest.Flip(t, mem, o.Name, header+2*box+10, 1)
		}, 1, true},
		{"all after the second box", func(t *testing.T, mem *store.Mem, o store.Info) {
			storetest.Truncate(t, mem, o.Name, header+2*box)
		}, 2, true},
		{"all but the first bytes", func(t *testing.T, mem *store.Mem, o store.Info) {
			storetest.Truncate(t, mem, o.Name, 10)
		}, 4, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mem, key, o := boxed(t)
			tt.damage(t, mem, o)
			c := check{r: open(t, mem, key, t.TempDir()), opt: CheckOptions{ReadData: true}}
			report, err := c.run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got := len(c.badBoxes); got != tt.bad {
				t.Errorf("%d boxes are bad, not %d", got, tt.bad)
			}
			if got := len(report.Affected) > 0; got != tt.needed {
				t.Errorf("a snapshot is affected: %v; damage: %v", got, report.Damage)
			}
			if damaged := tt.name != "nothing is wrong"; (len(report.Damage) > 0) != damaged {
				t.Errorf("damage: %v", report.Damage)
			}
			for _, d := range report.Damage {
				if d.Name != o.Name {
					t.Errorf("%s is said to be damaged", d.Name)
				}
			}
		})
	}
}

// A check reads each pack once, and in memory that it uses again: what it takes
// does not grow with what it reads.
func TestCheckReadsEachPackOnce(t *testing.T) {
	dir, err := store.CreateDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	mem, key := newRepo(t)
	r := open(t, mem, key, t.TempDir())
	want := uint64(0)
	for i := range 3 {
		f := files{}
		for j := range 16 {
			f[fmt.Sprint(j)] = random(uint64(16*i+j), 1<<20)
		}
		mustPut(t, r, f)
	}
	for _, o := range storetest.Infos(t, mem, "") {
		storetest.Replace(t, dir, o.Name, storetest.Read(t, mem, o.Name))
	}
	for _, o := range storetest.Infos(t, mem, "packs/") {
		want += uint64(o.Size)
	}
	for _, st := range []store.Store{dir, mem} {
		r := open(t, st, key, t.TempDir())
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		report, err := r.Check(t.Context(), CheckOptions{ReadData: true})
		runtime.ReadMemStats(&after)
		if err != nil || len(report.Damage) > 0 || report.BytesRead != want || want < 48<<20 {
			t.Errorf("%+v, %v; packs have %d bytes", report, err, want)
		}
		took := after.TotalAlloc - before.TotalAlloc
		t.Logf("%T: %d bytes for %d read", st, took, report.BytesRead)
		if st == store.Store(dir) && took > want/4 {
			t.Errorf("%d bytes were allocated to read %d", took, want)
		}
	}
	log := &storetest.Log{Store: mem}
	r = open(t, log, key, t.TempDir())
	if _, err := r.Check(t.Context(), CheckOptions{ReadData: true}); err != nil {
		t.Fatal(err)
	}
	if got := uint64(log.Bytes(storetest.Get)); got > want+want/16 {
		t.Errorf("%d bytes were read of %d", got, want)
	}
}
