// Package storetest is the contract of package store as a test, and stores
// that make trouble: one that fails ([Faulty]), one that tells what was asked
// of it ([Log]), and ways to damage what is stored.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"orlop/store"
)

// Test checks that the stores open returns keep the contract of store.Store
// and store.Deleter. Every call of open must return a store that is empty.
func Test(t *testing.T, open func(t *testing.T) store.Deleter) {
	for _, tt := range []struct {
		name string
		test func(t *testing.T, st store.Deleter)
	}{
		{"what was put is got", whatWasPutIsGot},
		{"an object is never replaced", neverReplaced},
		{"a put keeps nothing of its argument", keepsNothing},
		{"what is got belongs to the caller", gotIsOwned},
		{"ranges are exact", rangesAreExact},
		{"past the end is an error", pastTheEnd},
		{"what is not there is said to be not there", notThere},
		{"a listing shows each object once", listedOnce},
		{"a prefix need not end at a slash", prefixes},
		{"a listing can be left early", listLeftEarly},
		{"objects can be deleted while they are listed", deletedWhileListed},
		{"deletes can be repeated", deletesRepeat},
		{"a deleted name can be put again", putAgain},
		{"bad names are refused", badNames},
		{"a cancelled context stops everything", cancelled},
		{"of many puts of one name one wins", oneWins},
		{"everything at once", everythingAtOnce},
		{"any sequence agrees with a map", agreesWithMap},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, open(t)) })
	}
}

func whatWasPutIsGot(t *testing.T, st store.Deleter) {
	for _, size := range []int{0, 1, 100, 4096, 1<<20 + 1, 9 << 20} {
		name := store.Name(fmt.Sprintf("packs/%d", size))
		mustPut(t, st, name, content(size))
		if got := mustGet(t, st, name, 0, -1); !bytes.Equal(got, content(size)) {
			t.Errorf("%d bytes came back as %d others", size, len(got))
		}
		if got, err := opened(t, st, name); err != nil || !bytes.Equal(got, content(size)) {
			t.Errorf("%d bytes were opened as %d others, %v", size, len(got), err)
		}
	}
	for _, name := range []store.Name{"config", "a/b/c/d/e", "index/0-ab", "x.y_z-0", store.Name(strings.Repeat("n", 200))} {
		mustPut(t, st, name, []byte(name))
		if got := mustGet(t, st, name, 0, -1); string(got) != string(name) {
			t.Errorf("%s came back as %q", name, got)
		}
	}
}

// opened reads an object piece by piece.
func opened(t *testing.T, st store.Store, name store.Name) ([]byte, error) {
	f, err := store.Open(t.Context(), st, name)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(f)
	return got, errors.Join(err, f.Close())
}

func neverReplaced(t *testing.T, st store.Deleter) {
	mustPut(t, st, "a/b", []byte("first"))
	for _, again := range []string{"second", "first", ""} {
		if err := st.Put(t.Context(), "a/b", []byte(again)); !errors.Is(err, fs.ErrExist) {
			t.Errorf("putting %q over it: %v, want fs.ErrExist", again, err)
		}
	}
	if got := mustGet(t, st, "a/b", 0, -1); string(got) != "first" {
		t.Errorf("it became %q", got)
	}
}

func keepsNothing(t *testing.T, st store.Deleter) {
	data := []byte("abc")
	mustPut(t, st, "a", data)
	clear(data)
	if got := mustGet(t, st, "a", 0, -1); string(got) != "abc" {
		t.Errorf("got %q", got)
	}
}

func gotIsOwned(t *testing.T, st store.Deleter) {
	mustPut(t, st, "a", []byte("abcdef"))
	part := mustGet(t, st, "a", 1, 2)
	clear(part)
	_ = append(part, "zzz"...)
	if got := mustGet(t, st, "a", 0, -1); string(got) != "abcdef" {
		t.Errorf("writing to what was got changed the object to %q", got)
	}
}

func rangesAreExact(t *testing.T, st store.Deleter) {
	mustPut(t, st, "a", []byte("0123456789"))
	for _, tt := range []struct {
		off, n int64
		want   string
	}{
		{0, 10, "0123456789"},
		{0, 1, "0"},
		{9, 1, "9"},
		{3, 4, "3456"},
		{0, 0, ""},
		{5, 0, ""},
		{10, 0, ""},
		{10, -1, ""},
		{7, -1, "789"},
		{0, -5, "0123456789"},
	} {
		if got := mustGet(t, st, "a", tt.off, tt.n); string(got) != tt.want {
			t.Errorf("%d bytes from %d: %q, want %q", tt.n, tt.off, got, tt.want)
		}
	}
}

func pastTheEnd(t *testing.T, st store.Deleter) {
	mustPut(t, st, "a", []byte("0123456789"))
	mustPut(t, st, "empty", nil)
	for _, tt := range []struct {
		name   store.Name
		off, n int64
	}{
		{"a", 0, 11},
		{"a", 10, 1},
		{"a", 11, 0},
		{"a", 11, -1},
		{"a", -1, 1},
		{"a", -1, -1},
		{"a", 1, math.MaxInt64},
		{"a", math.MaxInt64, 1},
		{"a", math.MaxInt64, math.MaxInt64},
		{"a", math.MinInt64, 1},
		{"empty", 0, 1},
		{"empty", 1, -1},
	} {
		if got, err := st.Get(t.Context(), tt.name, tt.off, tt.n); !errors.Is(err, store.ErrRange) {
			t.Errorf("%d bytes of %s from %d: %q, %v; want store.ErrRange", tt.n, tt.name, tt.off, got, err)
		}
	}
}

func notThere(t *testing.T, st store.Deleter) {
	mustPut(t, st, "a/b", []byte("x"))
	for _, name := range []store.Name{"b", "a/c", "a", "a/b/c", "c/d/e"} {
		if _, err := st.Get(t.Context(), name, 0, -1); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("get %s: %v, want fs.ErrNotExist", name, err)
		}
		if _, err := st.Get(t.Context(), name, 0, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("get nothing of %s: %v, want fs.ErrNotExist", name, err)
		}
		if _, err := opened(t, st, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("open %s: %v, want fs.ErrNotExist", name, err)
		}
	}
}

func listedOnce(t *testing.T, st store.Deleter) {
	want := map[store.Name]int64{}
	for i := range 300 {
		name := store.Name(fmt.Sprintf("%c/%c/%d", 'a'+i%3, 'a'+i%7, i))
		mustPut(t, st, name, content(i))
		want[name] = int64(i)
	}
	mustPut(t, st, "config", content(3))
	want["config"] = 3
	sameList(t, st, "", want)
}

func prefixes(t *testing.T, st store.Deleter) {
	all := []store.Name{"a", "ab", "abc/d", "abc/e", "abd/d", "b/a", "b/ab/c", "b/ab/d", "b/abc"}
	for _, name := range all {
		mustPut(t, st, name, []byte(name))
	}
	for _, prefix := range []store.Name{"", "a", "ab", "abc", "abc/", "abc/d", "abc/d/", "b", "b/", "b/a", "b/ab/", "c", "c/d/", "b/ab/c/d"} {
		want := map[store.Name]int64{}
		for _, name := range all {
			if strings.HasPrefix(string(name), string(prefix)) {
				want[name] = int64(len(name))
			}
		}
		sameList(t, st, prefix, want)
	}
}

func listLeftEarly(t *testing.T, st store.Deleter) {
	for i := range 5 {
		mustPut(t, st, store.Name(fmt.Sprintf("a/%d/x", i)), nil)
	}
	list := st.List(t.Context(), "a/")
	for range 2 { // it can also be begun again
		for _, err := range list {
			if err != nil {
				t.Error(err)
			}
			break
		}
	}
	next, stop := iter.Pull2(list)
	defer stop()
	if _, err, ok := next(); err != nil || !ok {
		t.Errorf("pulled: %v, %v", err, ok)
	}
}

func deletedWhileListed(t *testing.T, st store.Deleter) {
	const n = 200
	for i := range n {
		mustPut(t, st, store.Name(fmt.Sprintf("a/%d", i)), nil)
	}
	seen := map[store.Name]int{}
	for info, err := range st.List(t.Context(), "a/") {
		if err != nil {
			t.Fatal(err)
		}
		seen[info.Name]++
		if err := st.Delete(t.Context(), info.Name); err != nil {
			t.Fatal(err)
		}
	}
	for name, times := range seen {
		if times != 1 {
			t.Errorf("%s was shown %d times", name, times)
		}
	}
	if len(seen) != n {
		t.Errorf("%d of %d objects were shown", len(seen), n)
	}
	sameList(t, st, "", nil)
}

func deletesRepeat(t *testing.T, st store.Deleter) {
	mustPut(t, st, "a/b", []byte("x"))
	mustPut(t, st, "a/c", []byte("y"))
	for _, name := range []store.Name{"a/b", "a/b", "never/was", "a", "a/c/d"} {
		if err := st.Delete(t.Context(), name); err != nil {
			t.Errorf("delete %s: %v", name, err)
		}
	}
	if _, err := st.Get(t.Context(), "a/b", 0, -1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("get of a deleted object: %v", err)
	}
	sameList(t, st, "", map[store.Name]int64{"a/c": 1})
}

func putAgain(t *testing.T, st store.Deleter) {
	for _, data := range []string{"one", "two"} {
		mustPut(t, st, "a/b/c/d", []byte(data))
		if got := mustGet(t, st, "a/b/c/d", 0, -1); string(got) != data {
			t.Errorf("got %q, want %q", got, data)
		}
		if err := st.Delete(t.Context(), "a/b/c/d"); err != nil {
			t.Fatal(err)
		}
		sameList(t, st, "", nil)
	}
}

func badNames(t *testing.T, st store.Deleter) {
	mustPut(t, st, "a/b", []byte("x"))
	for _, name := range []store.Name{
		"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/../b", "a/./b", "./a", "a/.b", ".a", "A", "a/B",
		"a b", "a\\b", "a\x00b", "a\nb", "ä", "\xff", "a:b", "a~", "a*", "a?",
		store.Name(strings.Repeat("n", 201)), store.Name(strings.Repeat("n/", 400) + "n"),
	} {
		if err := st.Put(t.Context(), name, nil); !errors.Is(err, store.ErrName) {
			t.Errorf("put %q: %v, want store.ErrName", name, err)
		}
		if _, err := st.Get(t.Context(), name, 0, -1); !errors.Is(err, store.ErrName) {
			t.Errorf("get %q: %v, want store.ErrName", name, err)
		}
		if _, err := opened(t, st, name); !errors.Is(err, store.ErrName) {
			t.Errorf("open %q: %v, want store.ErrName", name, err)
		}
		if err := st.Delete(t.Context(), name); !errors.Is(err, store.ErrName) {
			t.Errorf("delete %q: %v, want store.ErrName", name, err)
		}
	}
	for _, prefix := range []store.Name{"/", "..", "../", "a/..", "a//", ".a", "A"} {
		if _, err := listed(t, st, prefix); !errors.Is(err, store.ErrName) {
			t.Errorf("list %q: %v, want store.ErrName", prefix, err)
		}
	}
	sameList(t, st, "", map[store.Name]int64{"a/b": 1})
}

func cancelled(t *testing.T, st store.Deleter) {
	mustPut(t, st, "a", []byte("x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := st.Put(ctx, "b", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("put: %v", err)
	}
	if _, err := st.Get(ctx, "a", 0, -1); !errors.Is(err, context.Canceled) {
		t.Errorf("get: %v", err)
	}
	if _, err := store.Open(ctx, st, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("open: %v", err)
	}
	if err := st.Delete(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("delete: %v", err)
	}
	var err error
	for _, e := range st.List(ctx, "") {
		err = e
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("list: %v", err)
	}
	sameList(t, st, "", map[store.Name]int64{"a": 1})
}

func oneWins(t *testing.T, st store.Deleter) {
	for round := range 10 {
		name := store.Name(fmt.Sprintf("r%d/x", round))
		var errs [8]error
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { errs[i] = st.Put(t.Context(), name, bytes.Repeat([]byte{byte(i)}, 1000)) })
		}
		wg.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				t.Errorf("puts %d and %d of %s both succeeded", winner, i, name)
			case err == nil:
				winner = i
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
		}
		if got := mustGet(t, st, name, 0, -1); winner < 0 || !bytes.Equal(got, bytes.Repeat([]byte{byte(winner)}, 1000)) {
			t.Errorf("put %d won and the object holds another's bytes", winner)
		}
	}
}

// everythingAtOnce puts into and deletes from directories that others empty at
// the same time.
func everythingAtOnce(t *testing.T, st store.Deleter) {
	const workers, rounds = 6, 30
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for r := range rounds {
				name := store.Name(fmt.Sprintf("shared/%d/%d", r%3, w))
				want := fmt.Sprint(w, r)
				if err := st.Put(t.Context(), name, []byte(want)); err != nil {
					t.Errorf("round %d: %v", r, err)
					return
				}
				sizes, err := listed(t, st, "shared/")
				if err != nil || sizes[name] != int64(len(want)) {
					t.Errorf("round %d: %s is listed with %d bytes, %v", r, name, sizes[name], err)
				}
				if got, err := st.Get(t.Context(), name, 0, -1); err != nil || string(got) != want {
					t.Errorf("round %d: got %q, %v; want %q", r, got, err, want)
				}
				if err := st.Delete(t.Context(), name); err != nil {
					t.Errorf("round %d: %v", r, err)
				}
			}
		})
	}
	wg.Wait()
	sameList(t, st, "", nil)
}

// agreesWithMap drives the store by a fixed seed, so that a failure repeats.
func agreesWithMap(t *testing.T, st store.Deleter) {
	rng := rand.New(rand.NewPCG(1, 2))
	model := map[store.Name][]byte{}
	for step := range 400 {
		name := store.Name(fmt.Sprintf("%c/%d", 'a'+rng.IntN(3), rng.IntN(6)))
		old, there := model[name]
		switch rng.IntN(4) {
		case 0, 1:
			data := content(rng.IntN(200))
			err := st.Put(t.Context(), name, data)
			if there && !errors.Is(err, fs.ErrExist) || !there && err != nil {
				t.Fatalf("step %d: put %s: %v, there already: %v", step, name, err, there)
			}
			if !there {
				model[name] = data
			}
		case 2:
			if err := st.Delete(t.Context(), name); err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
			delete(model, name)
		case 3:
			off, n := int64(rng.IntN(220)), int64(rng.IntN(220)-1)
			got, err := st.Get(t.Context(), name, off, n)
			end := off + n
			if n < 0 {
				end = int64(len(old))
			}
			switch {
			case !there:
				if !errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("step %d: get %s: %v", step, name, err)
				}
			case off > int64(len(old)) || end > int64(len(old)):
				if !errors.Is(err, store.ErrRange) {
					t.Fatalf("step %d: get %s %d %d: %v", step, name, off, n, err)
				}
			case err != nil || !bytes.Equal(got, old[off:end]):
				t.Fatalf("step %d: get %s %d %d: %v", step, name, off, n, err)
			}
		}
	}
	want := map[store.Name]int64{}
	for name, data := range model {
		want[name] = int64(len(data))
	}
	sameList(t, st, "", want)
}

// content returns n bytes that depend on n.
func content(n int) []byte {
	p := make([]byte, n)
	x := uint32(n)*2654435761 + 1
	for i := range p {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		p[i] = byte(x)
	}
	return p
}

func mustPut(t *testing.T, st store.Store, name store.Name, data []byte) {
	t.Helper()
	if err := st.Put(t.Context(), name, data); err != nil {
		t.Fatal(err)
	}
}

func mustGet(t *testing.T, st store.Store, name store.Name, off, n int64) []byte {
	t.Helper()
	data, err := st.Get(t.Context(), name, off, n)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// listed returns the sizes of what List shows; showing a name twice is an error.
func listed(t *testing.T, st store.Store, prefix store.Name) (map[store.Name]int64, error) {
	sizes := map[store.Name]int64{}
	for info, err := range st.List(t.Context(), prefix) {
		if err != nil {
			return sizes, err
		}
		if _, twice := sizes[info.Name]; twice {
			return sizes, fmt.Errorf("%s is listed twice", info.Name)
		}
		sizes[info.Name] = info.Size
	}
	return sizes, nil
}

func sameList(t *testing.T, st store.Store, prefix store.Name, want map[store.Name]int64) {
	t.Helper()
	got, err := listed(t, st, prefix)
	if err != nil {
		t.Errorf("list %q: %v", prefix, err)
	}
	if !maps.Equal(got, want) {
		t.Errorf("list %q:\n got %v\nwant %v", prefix, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}
