package storetest_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"orlop/store"
	"orlop/store/storetest"
)

func TestFaultyFailsInThreeWays(t *testing.T) {
	for _, tt := range []struct {
		fault  storetest.Fault
		exists bool // the object whose Put failed
		alive  bool // later operations succeed
	}{
		{storetest.Lost, false, true},
		{storetest.Unsure, true, true},
		{storetest.Dead, true, false},
	} {
		t.Run(tt.fault.String(), func(t *testing.T) {
			mem := store.NewMem()
			f := &storetest.Faulty{Store: mem, At: 1, Fault: tt.fault}
			if err := f.Put(t.Context(), "a", nil); err != nil {
				t.Fatal(err)
			}
			if f.Fired() != 0 {
				t.Error("it fired early")
			}
			if err := f.Put(t.Context(), "b", nil); !errors.Is(err, storetest.ErrInjected) {
				t.Errorf("the put that fails: %v", err)
			}
			if _, err := mem.Get(t.Context(), "b", 0, -1); (err == nil) != tt.exists {
				t.Errorf("the object is there: %v", err == nil)
			}
			_, getErr := f.Get(t.Context(), "a", 0, -1)
			for what, err := range map[string]error{"put": f.Put(t.Context(), "c", nil), "get": getErr, "delete": f.Delete(t.Context(), "a")} {
				if (err == nil) != tt.alive || err != nil && !errors.Is(err, storetest.ErrInjected) {
					t.Errorf("a later %s: %v", what, err)
				}
			}
			if f.Puts() != 3 || f.Fired() != 1 {
				t.Errorf("%d puts, fired %d times", f.Puts(), f.Fired())
			}
		})
	}
}

func TestFaultyFailsOtherOperationsToo(t *testing.T) {
	for _, op := range []storetest.Op{storetest.Get, storetest.List, storetest.Delete} {
		mem := store.NewMem()
		for _, name := range []store.Name{"a", "b"} {
			if err := mem.Put(t.Context(), name, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		f := &storetest.Faulty{Store: mem, At: 1, Op: op, Fault: storetest.Unsure}
		for n := range 3 {
			var err error
			shown := 0
			switch op {
			case storetest.Get:
				_, err = f.Get(t.Context(), "a", 0, -1)
			case storetest.List:
				for _, e := range f.List(t.Context(), "") {
					if err = e; err == nil {
						shown++
					}
				}
				if want := []int{2, 1, 2}[n]; shown != want {
					t.Errorf("list %d showed %d objects, want %d", n, shown, want)
				}
			case storetest.Delete:
				err = f.Delete(t.Context(), "a")
			}
			if errors.Is(err, storetest.ErrInjected) != (n == 1) {
				t.Errorf("%v %d: %v", op, n, err)
			}
		}
		if f.Count(op) != 3 || f.Fired() != 1 {
			t.Errorf("%d of %v, fired %d times", f.Count(op), op, f.Fired())
		}
	}
}

func TestLogTellsWhatWasAsked(t *testing.T) {
	l := &storetest.Log{Store: store.NewMem()}
	_ = l.Put(t.Context(), "packs/ab", []byte("hello"))
	_ = l.Put(t.Context(), "packs/ab", []byte("again"))
	_, _ = l.Get(t.Context(), "packs/ab", 1, 3)
	_, _ = l.Get(t.Context(), "packs/cd", 0, -1)
	_ = storetest.Infos(t, l, "packs/")
	_ = l.Delete(t.Context(), "packs/ab")
	want := []string{
		"put packs/ab 5", "put packs/ab 5 failed", "get packs/ab 1 3", "get packs/cd 0 0 failed",
		"list packs/", "delete packs/ab",
	}
	if diff := cmp.Diff(want, l.Lines()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(want[:2], l.Ops(storetest.Put, "packs/")); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if l.Bytes(storetest.Put) != 5 || l.Bytes(storetest.Get) != 3 {
		t.Errorf("%d bytes put, %d got", l.Bytes(storetest.Put), l.Bytes(storetest.Get))
	}
}

func TestDamageIsExact(t *testing.T) {
	mem := store.NewMem()
	if err := mem.Put(t.Context(), "a", []byte("abc")); err != nil {
		t.Fatal(err)
	}
	whole := storetest.Copy(t, mem)
	storetest.Flip(t, mem, "a", 1, 1)
	if got := storetest.Read(t, mem, "a"); string(got) != "acc" {
		t.Errorf("flipped: %q", got)
	}
	storetest.Truncate(t, mem, "a", 2)
	if got := storetest.Read(t, mem, "a"); string(got) != "ac" {
		t.Errorf("truncated: %q", got)
	}
	storetest.Remove(t, mem, "a")
	if got := storetest.Infos(t, mem, ""); len(got) > 0 {
		t.Errorf("removed: %v", got)
	}
	if got := storetest.Read(t, whole, "a"); string(got) != "abc" {
		t.Errorf("the copy became %q", got)
	}
}
