package seal

import (
	"crypto/hpke"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"orlop/id"
)

func TestAPutKeyCanAdd(t *testing.T) {
	put := testKey.PutOnly(7)
	s := must(put.NewSession(testRepo, testSID))
	if h := s.Header(); h.Writer != 7 || put.Writer() != 7 {
		t.Errorf("it writes as %d in sessions of %d, want 7", put.Writer(), h.Writer)
	}

	r := must(testKey.OpenSession(testRepo, s.Header()))
	if got, err := r.OpenBox(nil, s.SealBox(nil, []byte("box"), 1, 9), 1, 9); err != nil || string(got) != "box" {
		t.Errorf("a Key opens its box: %q, %v", got, err)
	}
	if got, err := r.OpenSnapshot(nil, s.SealSnapshot(nil, []byte("snap"))); err != nil || string(got) != "snap" {
		t.Errorf("a Key opens its snapshot: %q, %v", got, err)
	}

	namer := must(testKey.NamerOf(7))
	if must(put.NamerOf(7)).Blob(id.Data, nil) != namer.Blob(id.Data, nil) || put.Namer().Blob(id.Data, nil) != namer.Blob(id.Data, nil) {
		t.Error("a Key names its blobs otherwise")
	}
	if id.NewNamer(put.NameKey()).Blob(id.Data, nil) != namer.Blob(id.Data, nil) {
		t.Error("NameKey is not the key of Namer")
	}
}

func TestAPutKeyOpensItsOwnIndex(t *testing.T) {
	put := testKey.PutOnly(7)
	own := must(put.IndexKey(testRepo, 7))
	byKey := must(testKey.IndexKey(testRepo, 7))
	for _, p := range []Purpose{Directory, Segment} {
		for _, pair := range [][2]*IndexKey{{own, own}, {own, byKey}, {byKey, own}} {
			got, err := pair[1].Open(nil, p, pair[0].Seal(nil, p, []byte("names"), []byte("ad")), []byte("ad"))
			if err != nil || string(got) != "names" {
				t.Errorf("purpose %d: %q, %v", p, got, err)
			}
		}
	}
}

func TestAPutKeyCannotReadOtherWriters(t *testing.T) {
	put := testKey.PutOnly(7)
	for _, w := range []Writer{Common, 6, 8} {
		if _, err := put.IndexKey(testRepo, w); !errors.Is(err, ErrPutOnly) {
			t.Errorf("index key of writer %d: %v", w, err)
		}
		if _, err := put.NamerOf(w); !errors.Is(err, ErrPutOnly) {
			t.Errorf("namer of writer %d: %v", w, err)
		}
		// Its own key does not happen to fit.
		own := must(put.IndexKey(testRepo, 7))
		sealed := must(testKey.IndexKey(testRepo, w)).Seal(nil, Segment, []byte("names"), nil)
		if _, err := own.Open(nil, Segment, sealed, nil); !errors.Is(err, ErrOpen) {
			t.Errorf("segment of writer %d: %v", w, err)
		}
	}
	if must(put.NamerOf(7)).Blob(id.Data, nil) == testKey.Namer().Blob(id.Data, nil) {
		t.Error("two writers share names")
	}
	// Another repository is as another writer.
	sealed := must(put.IndexKey(testRepo, 7)).Seal(nil, Segment, []byte("names"), nil)
	if _, err := must(put.IndexKey(id.Repository{8}, 7)).Open(nil, Segment, sealed, nil); !errors.Is(err, ErrOpen) {
		t.Errorf("segment of another repository: %v", err)
	}
}

// A PutKey has no method that opens what a session sealed, nor has a Session;
// and what it holds does not suffice to make one.
func TestAPutKeyOpensNoSession(t *testing.T) {
	for _, v := range []any{&PutKey{}, &Session{}} {
		typ := reflect.TypeOf(v)
		for i := range typ.NumMethod() {
			if name := typ.Method(i).Name; strings.Contains(name, "Open") || strings.Contains(name, "Config") {
				t.Errorf("%v has a method %s", typ, name)
			}
		}
	}

	put := testKey.PutOnly(7)
	for _, k := range []Sealer{put, testKey, testKey.PutOnly(8)} {
		s := must(k.NewSession(testRepo, testSID))
		box, snapshot := s.SealBox(nil, []byte("box"), 0, 3), s.SealSnapshot(nil, []byte("snap"))
		h := s.Header()

		// All it can do: guess an export, or make one by encapsulating anew.
		_, sender, err := hpke.NewSender(put.public, hpke.HKDFSHA256(), hpke.ExportOnly(), nil)
		if err != nil {
			t.Fatal(err)
		}
		exports := map[string][]byte{
			"none":           nil,
			"zeros":          make([]byte, 32),
			"enc":            h.Enc,
			"public key":     put.public.Bytes(),
			"writer's root":  put.rootW[:],
			"material":       put.material[:],
			"a new session":  must(sender.Export(labelExport, 32)),
			"a key it draws": must(must(hpke.NewRecipient(h.Enc, NewKey().private, hpke.HKDFSHA256(), hpke.ExportOnly(), nil)).Export(labelExport, 32)),
		}
		for what, export := range exports {
			r := &Reader{newSecret(export, put.material, testRepo, h)}
			if _, err := r.OpenBox(nil, box, 0, 3); !errors.Is(err, ErrOpen) {
				t.Errorf("box of writer %d with %s: %v", h.Writer, what, err)
			}
			if _, err := r.OpenSnapshot(nil, snapshot); !errors.Is(err, ErrOpen) {
				t.Errorf("snapshot of writer %d with %s: %v", h.Writer, what, err)
			}
		}
		// A Key opens it still.
		if _, err := must(testKey.OpenSession(testRepo, h)).OpenBox(nil, box, 0, 3); err != nil {
			t.Errorf("a Key cannot open it: %v", err)
		}
	}
}

// Whoever has the public key can encapsulate to it, in anybody's name; without
// that writer's root it comes to nothing.
func TestNobodyWritesAsAnotherWriter(t *testing.T) {
	put := testKey.PutOnly(7)
	for _, w := range []Writer{Common, 8} {
		enc, sender, err := hpke.NewSender(put.public, hpke.HKDFSHA256(), hpke.ExportOnly(), nil)
		if err != nil {
			t.Fatal(err)
		}
		h := Header{AES256GCM, w, testSID, enc}
		forged := &Session{h, newSecret(must(sender.Export(labelExport, 32)), put.material, testRepo, h)}
		_, err = must(testKey.OpenSession(testRepo, h)).OpenSnapshot(nil, forged.SealSnapshot(nil, []byte("lies")))
		if !errors.Is(err, ErrOpen) {
			t.Errorf("writer 7 wrote as %d: %v", w, err)
		}
	}
}

// Somebody who can write to the store can replace config, and would have a
// put-only host encapsulate to a key of their own if it were taken from there.
func TestThePublicKeyComesFromTheSlot(t *testing.T) {
	text := NewPutText()
	secret := must(Text(text))
	mallory := NewKey()
	slot := must(SealSlot(testKey.PutOnly(7), secret, mallory.public.Bytes()))
	k, config, err := OpenSlot(slot, secret)
	if err != nil {
		t.Fatal(err)
	}
	if string(config) != string(mallory.public.Bytes()) {
		t.Error("the copy of config is not what was given")
	}
	s := must(k.NewSession(testRepo, testSID))
	sealed := s.SealSnapshot(nil, []byte("snap"))
	if _, err := must(testKey.OpenSession(testRepo, s.Header())).OpenSnapshot(nil, sealed); err != nil {
		t.Errorf("the repository's key: %v", err)
	}
	if _, err := must(mallory.OpenSession(testRepo, s.Header())).OpenSnapshot(nil, sealed); !errors.Is(err, ErrOpen) {
		t.Errorf("the key named in config: %v", err)
	}
}

func TestKeysDiffer(t *testing.T) {
	a, b := NewKey(), NewKey()
	if a.root == b.root || a.seed == b.seed {
		t.Error("two keys share a secret")
	}
	seen := map[[32]byte]string{}
	for name, k := range map[string]Sealer{"a": a, "b": b, "a1": a.PutOnly(1), "a2": a.PutOnly(2), "b1": b.PutOnly(1)} {
		ik := must(k.IndexKey(testRepo, k.Writer()))
		for what, secret := range map[string][32]byte{
			"name": k.NameKey(), "chunk": k.ChunkSecret(), "boundary": k.Boundary().Sum(""), "index": ik.secret,
		} {
			what = name + " " + what
			if other, ok := seen[secret]; ok {
				t.Errorf("%s is %s", what, other)
			}
			seen[secret] = what
		}
	}
}

func TestAPutKeyNeedsAWriterOfItsOwn(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("PutOnly(Common) did not panic")
		}
	}()
	testKey.PutOnly(Common)
}

func TestKeysStayOutOfLogs(t *testing.T) {
	secret := Password([]byte{0, 1, 2, 3})
	for _, v := range []any{testKey, testKey.PutOnly(7), secret} {
		for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
			if got := fmt.Sprintf(format, v); len(got) > 40 || strings.Contains(got, "1, 2") || strings.Contains(got, "1 2") {
				t.Errorf("%s of %T prints %q", format, v, got)
			}
		}
	}
}
