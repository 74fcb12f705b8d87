package seal

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"orlop/id"
)

var (
	testKey  = must(newKey(sequence(0), sequence(32)))
	testRepo = id.Repository{1, 2, 3}
	testSID  = id.Session{4, 5, 6}
	suites   = []Suite{AES256GCM, ChaCha20Poly1305}
)

// sequence returns first, first+1, and so on.
func sequence(first byte) (b [32]byte) {
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A watch notes every (key, nonce) that seals something.
type watch struct {
	mu      sync.Mutex
	seen    map[[44]byte]bool
	uses    int
	repeats int
}

func (w *watch) note(_ Suite, key [32]byte, nonce []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen == nil {
		w.seen = make(map[[44]byte]bool)
	}
	k := [44]byte(append(key[:], nonce...))
	if w.seen[k] {
		w.repeats++
	}
	w.seen[k] = true
	w.uses++
}

// All that any test of this package seals is watched.
func TestMain(m *testing.M) {
	flag.Parse()
	var all watch
	if flag.Lookup("test.bench").Value.String() == "" {
		used = all.note
	}
	code := m.Run()
	if all.repeats > 0 {
		fmt.Printf("FAIL: %d of %d seals used a key and nonce that had been used\n", all.repeats, all.uses)
		code = 1
	}
	os.Exit(code)
}

// watched runs f with a watch of its own.
func watched(t *testing.T, f func()) *watch {
	t.Helper()
	var w watch
	old := used
	used = w.note
	defer func() { used = old }()
	f()
	return &w
}

func TestNoKeyAndNonceIsUsedTwice(t *testing.T) {
	const rounds = 500
	w := watched(t, func() {
		put := testKey.PutOnly(3)
		var wg sync.WaitGroup
		for _, k := range []Sealer{testKey, testKey, put, put} {
			// The same session and repository everywhere: what differs must
			// come from the sessions themselves.
			s := must(k.NewSession(testRepo, testSID))
			ik := must(k.IndexKey(testRepo, k.Writer()))
			secret := must(Text(testKey.Text()))
			wg.Go(func() {
				for range rounds {
					s.SealBox(nil, []byte("box"), 0, 3)
					s.SealSnapshot(nil, []byte("box"))
					ik.Seal(nil, Directory, []byte("box"), nil)
					ik.Seal(nil, Segment, []byte("box"), nil)
					testKey.SealConfig(nil, []byte("box"))
					must(SealSlot(k, secret, nil))
				}
			})
		}
		wg.Wait()
	})
	if w.repeats != 0 || w.uses != 4*6*rounds {
		t.Errorf("%d repeats in %d seals, want none in %d", w.repeats, w.uses, 4*6*rounds)
	}
}

func TestTheWatchNoticesARepeat(t *testing.T) {
	secret, salt := sequence(1), [saltSize]byte{9}
	other, otherSalt := sequence(2), [saltSize]byte{8}
	seals := func(secret [32]byte, label string, salt [saltSize]byte) {
		sealSalted(nil, AES256GCM, &secret, label, salt, []byte("one"), nil)
	}
	w := watched(t, func() {
		seals(secret, labelBox, salt)
		seals(other, labelBox, salt)
		seals(secret, labelSnapshot, salt)
		seals(secret, labelBox, otherSalt)
	})
	if w.repeats != 0 {
		t.Errorf("%d repeats although secret, label or salt differed", w.repeats)
	}
	w = watched(t, func() {
		seals(secret, labelBox, salt)
		seals(secret, labelBox, salt)
	})
	if w.repeats != 1 {
		t.Errorf("the same key and nonce twice: %d repeats noticed, want 1", w.repeats)
	}
}

// The watch is worth something only while nothing goes around it.
func TestAllSealingPassesOnePlace(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var callers, importers []string
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			if strings.Contains(i.Path.Value, "cipher") || strings.Contains(i.Path.Value, "chacha20") {
				importers = append(importers, name)
			}
		}
		for _, d := range f.Decls {
			ast.Inspect(d, func(n ast.Node) bool {
				if c, ok := n.(*ast.CallExpr); ok {
					if callee, ok := c.Fun.(*ast.Ident); ok && callee.Name == "aead" {
						callers = append(callers, d.(*ast.FuncDecl).Name.Name)
					}
				}
				return true
			})
		}
	}
	if !slices.Equal(callers, []string{"sealSalted", "open"}) {
		t.Errorf("aead is called by %v", callers)
	}
	if !slices.Equal(slices.Compact(importers), []string{"seal.go"}) {
		t.Errorf("ciphers are imported by %v", importers)
	}
}

// A thing is something sealed: how to open it, and what it was.
type thing struct {
	name   string
	sealed []byte
	plain  []byte
	open   func(dst, sealed []byte) ([]byte, error)
}

// things seals one of everything but slots.
func things(t *testing.T, k Sealer, s Suite, plain []byte) []thing {
	t.Helper()
	var session *Session
	var index *IndexKey
	switch k := k.(type) {
	case *Key:
		session = must(k.newSession(testRepo, testSID, s))
	case *PutKey:
		session = must(k.newSession(testRepo, testSID, s))
	}
	index = must(k.IndexKey(testRepo, k.Writer()))
	r := must(testKey.OpenSession(testRepo, session.Header()))
	secret := derive(testKey.root[:], nil, labelConfig)
	ad := []byte("associated")
	return []thing{
		{"box", session.SealBox(nil, plain, 1, 77), plain, func(dst, p []byte) ([]byte, error) {
			return r.OpenBox(dst, p, 1, 77)
		}},
		{"snapshot", session.SealSnapshot(nil, plain), plain, r.OpenSnapshot},
		{"directory", index.seal(nil, s, Directory, plain, ad), plain, func(dst, p []byte) ([]byte, error) {
			return index.Open(dst, Directory, p, ad)
		}},
		{"segment", index.seal(nil, s, Segment, plain, ad), plain, func(dst, p []byte) ([]byte, error) {
			return index.Open(dst, Segment, p, ad)
		}},
		{"config", seal([]byte{byte(s)}, s, &secret, labelConfig, plain, configAD(s, ad)), plain, func(dst, p []byte) ([]byte, error) {
			got, err := testKey.OpenConfig(ad, p)
			return append(dst, got...), err
		}},
	}
}

// each runs f for everything that is sealed, by both kinds of key, in both
// suites.
func each(t *testing.T, plain []byte, f func(t *testing.T, x thing)) {
	for _, s := range suites {
		for _, k := range []Sealer{testKey, testKey.PutOnly(7)} {
			for _, x := range things(t, k, s, plain) {
				t.Run(fmt.Sprintf("%v/%v/%s", s, k, x.name), func(t *testing.T) { f(t, x) })
			}
		}
	}
}

func TestWhatIsSealedOpens(t *testing.T) {
	for _, plain := range []string{"", "a", strings.Repeat("orlop ", 5000)} {
		each(t, []byte(plain), func(t *testing.T, x thing) {
			got, err := x.open([]byte("before "), x.sealed)
			if err != nil || string(got) != "before "+plain {
				t.Errorf("open = %q, %v; want what was sealed, appended", got, err)
			}
		})
	}
}

func TestEveryFlippedBitIsNoticed(t *testing.T) {
	each(t, []byte("some plaintext"), func(t *testing.T, x thing) {
		for bit := range 8 * len(x.sealed) {
			p := bytes.Clone(x.sealed)
			p[bit/8] ^= 1 << (bit % 8)
			got, err := x.open(nil, p)
			if err == nil || !errors.Is(err, ErrOpen) && !errors.Is(err, ErrFormat) {
				t.Fatalf("bit %d flipped: %q, %v", bit, got, err)
			}
		}
	})
}

func TestEveryTruncationIsNoticed(t *testing.T) {
	each(t, []byte("some plaintext"), func(t *testing.T, x thing) {
		for n := range x.sealed {
			if _, err := x.open(nil, x.sealed[:n]); !errors.Is(err, ErrOpen) && !errors.Is(err, ErrFormat) {
				t.Errorf("cut to %d bytes: %v", n, err)
			}
		}
		if _, err := x.open(nil, append(bytes.Clone(x.sealed), 0)); !errors.Is(err, ErrOpen) {
			t.Errorf("a byte more: %v", err)
		}
	})
}

// Nothing opens as something else, for another writer, or in another suite.
func TestNothingOpensAsSomethingElse(t *testing.T) {
	var all []thing
	for _, s := range suites {
		for _, k := range []Sealer{testKey, testKey.PutOnly(7)} {
			all = append(all, things(t, k, s, []byte("some plaintext"))...)
		}
	}
	for i, x := range all {
		for j, y := range all {
			_, err := x.open(nil, y.sealed)
			// Index keys and the config key read both suites.
			same := i == j || x.name == y.name && (x.name == "config" || i%10 == j%10 && x.name != "box" && x.name != "snapshot")
			if same != (err == nil) {
				t.Errorf("%s %d opened as %s %d: %v", y.name, j, x.name, i, err)
			}
		}
	}
}

func TestABoxOpensOnlyAsWhatItIs(t *testing.T) {
	h := func(f func(*Header)) func(*Header, *id.Repository) {
		return func(h *Header, _ *id.Repository) { f(h) }
	}
	same := h(func(*Header) {})
	tests := []struct {
		name   string
		change func(*Header, *id.Repository)
		codec  uint8
		raw    int
		ok     bool
	}{
		{"nothing changed", same, 1, 77, true},
		{"codec", same, 0, 77, false},
		{"raw length", same, 1, 78, false},
		{"raw length that is equal in 32 bits", same, 1, 77 + 1<<32, false},
		{"writer", h(func(h *Header) { h.Writer++ }), 1, 77, false},
		{"session", h(func(h *Header) { h.SID[15] ^= 1 }), 1, 77, false},
		{"suite", h(func(h *Header) { h.Suite ^= AES256GCM ^ ChaCha20Poly1305 }), 1, 77, false},
		{"repository", func(_ *Header, r *id.Repository) { r[31] ^= 1 }, 1, 77, false},
	}
	for _, suite := range suites {
		s := must(testKey.newSession(testRepo, testSID, suite))
		box, snapshot := s.SealBox(nil, []byte("payload"), 1, 77), s.SealSnapshot(nil, []byte("payload"))
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%v/%s", suite, tt.name), func(t *testing.T) {
				header, repo := s.Header(), testRepo
				tt.change(&header, &repo)
				r, err := testKey.OpenSession(repo, header)
				if err != nil {
					t.Fatal(err)
				}
				_, err = r.OpenBox(nil, box, tt.codec, tt.raw)
				if tt.ok != (err == nil) || !tt.ok && !errors.Is(err, ErrOpen) {
					t.Errorf("OpenBox: %v", err)
				}
				if tt.codec != 1 || tt.raw != 77 {
					return // a snapshot has neither
				}
				_, err = r.OpenSnapshot(nil, snapshot)
				if tt.ok != (err == nil) || !tt.ok && !errors.Is(err, ErrOpen) {
					t.Errorf("OpenSnapshot: %v", err)
				}
			})
		}
	}
}

// The associated data of a box holds all that the header has, by itself and
// not only through the session key.
func TestAssociatedDataIsBound(t *testing.T) {
	s := must(testKey.newSession(testRepo, testSID, AES256GCM)).secret
	sealed := seal(nil, s.suite, &s.key, labelBox, []byte("payload"), s.boxAD(1, 77))
	for i := range s.boxAD(1, 77) {
		ad := s.boxAD(1, 77)
		ad[i] ^= 1
		if _, err := open(nil, s.suite, &s.key, labelBox, sealed, ad); !errors.Is(err, ErrOpen) {
			t.Errorf("byte %d of the associated data changed: %v", i, err)
		}
	}
}

func TestAChangedHeaderOpensNothing(t *testing.T) {
	s := must(testKey.NewSession(testRepo, testSID))
	snapshot := s.SealSnapshot(nil, []byte("snapshot"))
	encoded := s.Header().Append(nil)
	for i := range encoded {
		p := bytes.Clone(encoded)
		p[i] ^= 1 << (i % 8)
		h, err := ParseHeader(p)
		if err != nil {
			if i != 0 {
				t.Fatalf("byte %d: %v", i, err)
			}
			continue // an unknown suite
		}
		r, err := testKey.OpenSession(testRepo, h)
		if err == nil {
			_, err = r.OpenSnapshot(nil, snapshot)
		}
		if !errors.Is(err, ErrOpen) {
			t.Fatalf("byte %d of the header flipped: %v", i, err)
		}
	}
}

func TestSealingAppendsInPlace(t *testing.T) {
	s := must(testKey.NewSession(testRepo, testSID))
	payload := bytes.Repeat([]byte("x"), 1000)
	room := append(make([]byte, 0, 3+len(payload)+Overhead), "abc"...)
	got := s.SealBox(room, payload, 0, 1000)
	if &got[0] != &room[0] || len(got) != cap(room) || string(got[:3]) != "abc" {
		t.Errorf("a box of %d bytes did not go into the %d bytes there were", len(got), cap(room))
	}
	r := must(testKey.OpenSession(testRepo, s.Header()))
	room = append(make([]byte, 0, 3+len(payload)), "abc"...)
	opened := must(r.OpenBox(room, got[3:], 0, 1000))
	if &opened[0] != &room[0] || string(opened[3:]) != string(payload) {
		t.Error("an opened box did not go into the room there was")
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := Header{
			Suite:  rapid.SampledFrom(suites).Draw(t, "suite"),
			Writer: Writer(rapid.Uint32().Draw(t, "writer")),
			SID:    id.Session(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "sid")),
			Enc:    rapid.SliceOfN(rapid.Byte(), encSize, encSize).Draw(t, "enc"),
		}
		p := h.Append(nil)
		got, err := ParseHeader(p)
		if err != nil || !got.Equal(h) || len(p) != HeaderSize {
			t.Fatalf("ParseHeader = %v, %v; want %v", got, err, h)
		}
		p[HeaderSize-1] ^= 1
		if !got.Equal(h) {
			t.Fatal("the header shares memory with what it was read from")
		}
	})
}

func TestHeadersThatAreRefused(t *testing.T) {
	whole := must(testKey.NewSession(testRepo, testSID)).Header().Append(nil)
	unknown := bytes.Clone(whole)
	unknown[0] = 9
	for name, tt := range map[string]struct {
		p    []byte
		want string
	}{
		"short":         {whole[1:], "1140 bytes"},
		"long":          {append(whole, 0), "1142 bytes"},
		"empty":         {nil, "0 bytes"},
		"unknown suite": {unknown, "suite(9)"},
	} {
		if _, err := ParseHeader(tt.p); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	if _, err := testKey.OpenSession(testRepo, Header{Suite: AES256GCM, Enc: []byte("short")}); !errors.Is(err, ErrOpen) {
		t.Errorf("OpenSession of a short encapsulated key: %v", err)
	}
	if _, err := testKey.OpenSession(testRepo, Header{Suite: 3}); !errors.Is(err, ErrFormat) {
		t.Errorf("OpenSession of an unknown suite: %v", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	k := NewKey()
	put := k.PutOnly(1)
	shared := must(put.NewSession(testRepo, testSID))
	index := must(k.IndexKey(testRepo, 1))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			own := must(k.NewSession(testRepo, id.Session{byte(i)}))
			for j := range 20 {
				plain := []byte{byte(i), byte(j)}
				for _, s := range []*Session{own, shared} {
					r, err := k.OpenSession(testRepo, s.Header())
					if err != nil {
						t.Error(err)
						return
					}
					got, err := r.OpenBox(nil, s.SealBox(nil, plain, 0, j), 0, j)
					if err != nil || !bytes.Equal(got, plain) {
						t.Errorf("box = %v, %v; want %v", got, err, plain)
					}
					got, err = r.OpenSnapshot(nil, s.SealSnapshot(nil, plain))
					if err != nil || !bytes.Equal(got, plain) {
						t.Errorf("snapshot = %v, %v; want %v", got, err, plain)
					}
				}
				got, err := index.Open(nil, Segment, index.Seal(nil, Segment, plain, nil), nil)
				if err != nil || !bytes.Equal(got, plain) {
					t.Errorf("segment = %v, %v; want %v", got, err, plain)
				}
				put.Namer().Blob(id.Data, plain)
				put.Boundary().Sum("x")
			}
		})
	}
	wg.Wait()
}

func TestReadersAreRememberedAndBounded(t *testing.T) {
	k := NewKey()
	h := must(k.NewSession(testRepo, testSID)).Header()
	first := must(k.OpenSession(testRepo, h))
	if must(k.OpenSession(testRepo, h)) != first {
		t.Error("a session was entered twice")
	}
	if must(k.OpenSession(id.Repository{9}, h)) == first {
		t.Error("two repositories share a reader")
	}
	for i := 0; len(k.readers) < maxReaders; i++ {
		k.readers[[32]byte{byte(i), byte(i >> 8)}] = first
	}
	must(k.OpenSession(testRepo, must(k.NewSession(testRepo, testSID)).Header()))
	if n := len(k.readers); n > maxReaders {
		t.Errorf("%d readers remembered, want at most %d", n, maxReaders)
	}
}

func TestConfigIsBoundToItsClearPart(t *testing.T) {
	sealed := testKey.SealConfig([]byte("clear"), []byte("private"))
	if got, err := testKey.OpenConfig([]byte("clear"), sealed); err != nil || string(got) != "private" {
		t.Errorf("OpenConfig = %q, %v", got, err)
	}
	if _, err := testKey.OpenConfig([]byte("Clear"), sealed); !errors.Is(err, ErrOpen) {
		t.Errorf("with another clear part: %v", err)
	}
	if _, err := NewKey().OpenConfig([]byte("clear"), sealed); !errors.Is(err, ErrOpen) {
		t.Errorf("with another key: %v", err)
	}
}

func FuzzParseHeader(f *testing.F) {
	whole := Header{AES256GCM, 1, id.Session{2}, make([]byte, encSize)}.Append(nil)
	f.Add(whole)
	f.Add(whole[1:])
	f.Add(append([]byte{2}, whole[1:]...))
	f.Add(append([]byte{3}, whole[1:]...))
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := ParseHeader(p)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		if got := h.Append(nil); !bytes.Equal(got, p) {
			t.Fatalf("read %x, wrote %x", p, got)
		}
	})
}

func FuzzOpenConfig(f *testing.F) {
	clear, private := []byte("clear"), []byte("private")
	sealed := testKey.SealConfig(clear, private)
	f.Add(clear, sealed)
	f.Add(clear, sealed[1:])
	f.Add(append(clear, sealed[0]), sealed)
	f.Fuzz(func(t *testing.T, c, s []byte) {
		got, err := testKey.OpenConfig(c, s)
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrOpen) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		// Only what was sealed here opens.
		if !bytes.Equal(c, clear) || !bytes.Equal(got, private) {
			t.Fatalf("OpenConfig(%q, %x) = %q", c, s, got)
		}
	})
}

func TestABoxOpensInItsPlace(t *testing.T) {
	for _, suite := range []Suite{AES256GCM, ChaCha20Poly1305} {
		s := must(testKey.newSession(testRepo, id.Session{1}, suite))
		r := must(testKey.OpenSession(testRepo, s.Header()))
		for _, n := range []int{0, 1, 15, 16, 17, 1000, 1 << 20} {
			plain := bytes.Repeat([]byte{byte(n), 7}, n)[:n]
			box := s.SealBox(nil, plain, 1, n)
			wrong := bytes.Clone(box)
			got, err := r.OpenBoxInPlace(box, 1, n)
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%v: %d bytes came back as %d others, %v", suite, n, len(got), err)
			}
			if n > 0 && &got[0] != &box[saltSize] {
				t.Errorf("%v: %d bytes went elsewhere", suite, n)
			}
			wrong[len(wrong)-1]++
			if _, err := r.OpenBoxInPlace(wrong, 1, n); !errors.Is(err, ErrOpen) {
				t.Errorf("%v: a changed box opens: %v", suite, err)
			}
		}
		for n := range Overhead {
			if _, err := r.OpenBoxInPlace(make([]byte, n), 1, 0); !errors.Is(err, ErrOpen) {
				t.Errorf("%v: %d bytes open: %v", suite, n, err)
			}
		}
	}
}
