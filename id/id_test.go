package id

import (
	"encoding/hex"
	"encoding/json"
	"strings"
	"sync"
	"testing"
)

// The test vectors of BLAKE3 (its key and its input of 251 bytes a turn), so
// that names are what docs/format.md says and not what a library did.
func TestHashesAreBlake3(t *testing.T) {
	if got := Sum[Pack](nil).String(); got != "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262" {
		t.Errorf("Sum of nothing = %s", got)
	}
	h := NewHash()
	if got := h.Sum(); Pack(got) != Sum[Pack](nil) {
		t.Errorf("Hash of nothing = %x", got)
	}
	_, _ = h.Write([]byte("ab"))
	_, _ = h.Write([]byte("c"))
	if Pack(h.Sum()) != Sum[Pack]([]byte("abc")) {
		t.Error("a Hash in pieces is another than Sum")
	}
	var key [32]byte
	copy(key[:], "whats the Elvish word for friend")
	if got := NewKeyed(key).Sum(); hex.EncodeToString(got[:]) != "92b2b75604ed3c761f9d6f62392c8a9227ad0ea3f09573e783f1498a4ed60d26" {
		t.Errorf("keyed hash of nothing = %x", got)
	}
}

func TestABlobsNameIsKeyedAndOfItsKind(t *testing.T) {
	key := [32]byte{1, 2, 3}
	n := NewNamer(key)
	p := []byte("plaintext")
	sum := NewKeyed(key).Sum("plaintext", string([]byte{byte(Data)}))
	if n.Blob(Data, p) != Blob(sum) {
		t.Error("a name is not the keyed hash of plaintext | kind")
	}
	names := map[Blob]string{}
	for what, b := range map[string]Blob{
		"data": n.Blob(Data, p), "list": n.Blob(List, p), "node": n.Blob(Node, p), "another key": NewNamer([32]byte{4}).Blob(Data, p),
		"shorter": n.Blob(Data, p[:8]), "empty": n.Blob(Data, nil),
	} {
		if other, ok := names[b]; ok {
			t.Errorf("%s and %s have one name", what, other)
		}
		names[b] = what
	}
}

func TestANamerMayBeSharedByGoroutines(t *testing.T) {
	n, k := NewNamer([32]byte{9}), NewKeyed([32]byte{9})
	want, sum := n.Blob(Data, []byte(strings.Repeat("x", 5000))), k.Sum("a", "b")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				if n.Blob(Data, []byte(strings.Repeat("x", 5000))) != want || k.Sum("ab") != sum {
					t.Error("a name changed")
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestANameHasOneSpelling(t *testing.T) {
	p := Sum[Pack]([]byte("x"))
	got, err := Parse[Pack](p.String())
	if err != nil || got != p {
		t.Errorf("%v %v", got, err)
	}
	for _, bad := range []string{"", p.String()[1:], p.String() + "00", strings.ToUpper(p.String()), strings.Repeat("g", 64)} {
		if _, err := Parse[Pack](bad); err == nil {
			t.Errorf("%q was read as a name", bad)
		}
	}
	s := Session{0xab}
	if again, err := ParseSession(s.String()); err != nil || again != s {
		t.Errorf("%v %v", again, err)
	}
	if _, err := ParseSession(p.String()); err == nil {
		t.Error("a pack's name was read as a session")
	}
}

func TestJSONOfNames(t *testing.T) {
	type pair struct{ A, B Snapshot }
	in := pair{A: Sum[Snapshot]([]byte("x"))}
	data, err := json.Marshal(in)
	if err != nil || !strings.Contains(string(data), `"B":""`) || !strings.Contains(string(data), in.A.String()) {
		t.Errorf("%s %v", data, err)
	}
	var out pair
	if err := json.Unmarshal(data, &out); err != nil || out != in {
		t.Errorf("%+v %v", out, err)
	}
	if err := json.Unmarshal([]byte(`{"A":"zz"}`), &out); err == nil {
		t.Error("what is no name was taken for one")
	}
}

func BenchmarkName(b *testing.B) {
	n := NewNamer([32]byte{1})
	for _, size := range []int{4 << 10, 1 << 20} {
		p := make([]byte, size)
		b.Run(map[bool]string{true: "4KiB", false: "1MiB"}[size < 1<<20], func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				n.Blob(Data, p)
			}
		})
	}
}
