package box

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"orlop/id"
)

// Wrap makes the very box that a Builder makes of the same blob, and copies
// nothing that it can leave where it is.
func TestWrapIsABoxOfOneBlob(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "data"), rapid.IntRange(1, 2000).Draw(t, "times"))
		if rapid.Bool().Draw(t, "noise") {
			_, _ = rand.NewChaCha8([32]byte{}).Read(data)
		}
		kind := rapid.SampledFrom([]id.Kind{id.Data, id.List, id.Node}).Draw(t, "kind")
		e := NewEncoder()
		var b Builder
		b.Add(kind, data)
		codec, raw, payload := b.Finish(e, nil)
		buf, room := append(make([]byte, Head), data...), make([]byte, 0, Head+len(data)+Slack)
		codec2, raw2, payload2 := e.Wrap(kind, buf, room)
		if codec != codec2 || raw != raw2 || !bytes.Equal(payload, payload2) {
			t.Fatalf("a box of codec %v, %d raw, %d bytes; the builder's is %v, %d, %d",
				codec2, raw2, len(payload2), codec, raw, len(payload))
		}
		if codec == Zstd && &payload2[0] != &room[:1][0] || codec == Stored && &payload2[raw-1] != &buf[len(buf)-1] {
			t.Fatal("the payload was put elsewhere")
		}
	})
}

// What only part of a large blob is like is seen all the same.
func TestWrapSeesWhatShrinks(t *testing.T) {
	for name, fill := range map[string]func(p []byte){
		"a tenth of zeros at the start":    func(p []byte) { clear(p[:len(p)/10]) },
		"a quarter of zeros at the end":    func(p []byte) { clear(p[3*len(p)/4:]) },
		"a quarter of zeros in the middle": func(p []byte) { clear(p[len(p)/3 : len(p)/3+len(p)/4]) },
		"hex digits":                       func(p []byte) { copy(p, hex.EncodeToString(p[:len(p)/2])) },
		"every other page is zeros": func(p []byte) {
			for i := 0; i+8192 <= len(p); i += 8192 {
				clear(p[i : i+4096])
			}
		},
	} {
		data := make([]byte, 1<<20)
		_, _ = rand.NewChaCha8([32]byte{}).Read(data)
		fill(data)
		if codec, _, _ := NewEncoder().Wrap(id.Data, append(make([]byte, Head), data...), nil); codec != Zstd {
			t.Errorf("%s: %v", name, codec)
		}
	}
}

// Text that shrinks to a fifth is worth a longer look, and nothing else is.
func TestWrapLooksLongerAtWhatShrinksALot(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var logs, words []byte
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	for at := 0; len(logs) < 1<<20; at += r.IntN(200) {
		logs = fmt.Appendf(logs, "10.%d.%d.%d - - [01/Nov/2026:15:%02d:%02d.%03d +0000] \"%s %s?id=%d HTTP/1.1\" %d %d \"-\" \"%s\" %.3f\n",
			r.IntN(4), r.IntN(256), r.IntN(256), at/60000, at/1000%60, at%1000, pick("GET", "GET", "GET", "POST", "HEAD"),
			pick("/", "/index.html", "/api/v1/orders", "/static/style.css", "/login"), r.IntN(100_000), 200+r.IntN(5), r.IntN(60_000),
			pick("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0", "curl/8.9.1", "kube-probe/1.30"), r.ExpFloat64()/20)
	}
	for len(words) < 1<<20 {
		words = fmt.Appendf(words, "%x ", r.Uint32N(1<<(1+r.IntN(31))))
	}
	e := NewEncoder()
	for _, tt := range []struct {
		name   string
		data   []byte
		longer bool
	}{{"logs", logs, true}, {"words", words, false}} {
		_, raw, got := e.Wrap(id.Data, append(make([]byte, Head), tt.data...), nil)
		fast, _ := e.shrink(e.matches, nil, tt.data)
		if longer := len(got) < len(fast)*97/100; longer != tt.longer {
			t.Errorf("%s: %d bytes, %d at the fastest level", tt.name, len(got), len(fast))
		}
		plain, err := Decode(nil, Zstd, raw, got)
		if err != nil || !bytes.HasSuffix(plain, tt.data) {
			t.Errorf("%s come out different: %v", tt.name, err)
		}
	}
}
