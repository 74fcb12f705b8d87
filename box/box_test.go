package box

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"orlop/id"
)

func random(seed byte, n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

func text(n int) []byte {
	var p []byte
	for r := rand.New(rand.NewPCG(1, 2)); len(p) < n; {
		p = append(p, "the orlop is the lowest deck "[r.IntN(20):]...)
	}
	return p[:n]
}

func finish(blobs ...Blob) (Codec, int, []byte) {
	var b Builder
	for _, x := range blobs {
		b.Add(x.Kind, x.Data)
	}
	return b.Finish(NewEncoder(), nil)
}

func blobs() *rapid.Generator[[]Blob] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Blob {
		n := rapid.SampledFrom([]int{0, 1, 127, 128, 1000, 5_000}).Draw(t, "length")
		data := random(rapid.Byte().Draw(t, "seed"), n)
		if rapid.Bool().Draw(t, "text") {
			data = text(n)
		}
		return Blob{id.Kind(rapid.IntRange(1, 3).Draw(t, "kind")), data}
	}), 1, 40)
}

func TestBlobsComeBackFromABox(t *testing.T) {
	var b Builder
	e := NewEncoder()
	rapid.Check(t, func(t *rapid.T) {
		want := blobs().Draw(t, "blobs")
		b.Reset()
		if b.Raw() != 0 || b.Count() != 0 {
			t.Fatalf("an empty box has %d bytes, %d blobs", b.Raw(), b.Count())
		}
		for _, x := range want {
			b.Add(x.Kind, x.Data)
		}
		before := []byte("before")
		codec, raw, payload := b.Finish(e, before)
		if raw != b.Raw() || b.Count() != len(want) {
			t.Fatalf("Finish says %d bytes, Raw %d; %d of %d blobs", raw, b.Raw(), b.Count(), len(want))
		}
		if !bytes.HasPrefix(payload, before) {
			t.Fatal("Finish changed what came before")
		}
		payload = payload[len(before):]
		if codec == Zstd && len(payload) >= raw || codec == Stored && len(payload) != raw {
			t.Fatalf("%d bytes became %d %v", raw, len(payload), codec)
		}
		plain, err := Decode(before, codec, raw, payload)
		if err != nil || !bytes.HasPrefix(plain, before) {
			t.Fatalf("Decode: %v", err)
		}
		got, err := Blobs(plain[len(before):])
		if err != nil {
			t.Fatal(err)
		}
		same := func(x, y Blob) bool { return x.Kind == y.Kind && bytes.Equal(x.Data, y.Data) }
		if !slices.EqualFunc(want, got, same) {
			t.Fatalf("%v went in, %v came out", want, got)
		}
	})
}

func TestALayoutIsItsBytes(t *testing.T) {
	var b Builder
	b.Add(id.Data, []byte("ab"))
	b.Add(id.Node, nil)
	b.Add(id.List, bytes.Repeat([]byte{0xee}, 130))
	want := "03" + "0102" + "0300" + "028201" + "6162" + strings.Repeat("ee", 130)
	if got := hex.EncodeToString(b.plain()); got != want {
		t.Errorf("plaintext\n got %s\nwant %s", got, want)
	}
}

func TestATableLongerThanItsRoomIsMoved(t *testing.T) {
	var b Builder
	for range 5000 {
		b.Add(id.Data, []byte{1})
	}
	got, err := Blobs(b.plain())
	if err != nil || len(got) != 5000 || b.Raw() != len(b.plain()) {
		t.Errorf("%d blobs, %v; Raw %d of %d", len(got), err, b.Raw(), len(b.plain()))
	}
}

func TestAnythingThatShrinksIsCompressed(t *testing.T) {
	noise := random(1, GroupRaw)
	tests := []struct {
		name string
		data []byte
		want Codec
	}{
		{"random bytes are stored", noise, Stored},
		{"text", text(GroupRaw), Zstd},
		{"text hidden in random bytes", append(bytes.Clone(noise[:900_000]), text(100_000)...), Zstd},
		{"random bytes that come again", append(bytes.Clone(noise[:400_000]), noise[:400_000]...), Zstd},
		{"random hex digits", []byte(hex.EncodeToString(noise[:100_000])), Zstd},
		{"random floats", floats(50_000), Zstd},
		{"random digits between random bytes", append(append(bytes.Clone(noise[:100_000]), hex.EncodeToString(noise[:60_000])...), noise[:100_000]...), Zstd},
		{"a few random hex digits", []byte(hex.EncodeToString(noise[:200])), Zstd},
		{"zeros", make([]byte, GroupRaw), Zstd},
		{"one byte", []byte{1}, Stored},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			codec, raw, payload := finish(Blob{id.Data, tt.data})
			if codec != tt.want {
				t.Errorf("%d bytes became %d, %v; want %v", raw, len(payload), codec, tt.want)
			}
		})
	}
}

// floats returns numbers whose histogram is almost flat.
func floats(n int) (p []byte) {
	r := rand.New(rand.NewPCG(1, 2))
	for range n {
		p = binary.LittleEndian.AppendUint64(p, uint64(1023<<52|r.Int64N(1<<52)))
	}
	return p
}

func TestBoxesThatLieAreRefused(t *testing.T) {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 12<<20)
	bomb := z.EncodeAll(zeros, nil)
	small := z.EncodeAll(zeros[:1000], nil)
	var open bytes.Buffer // a frame that does not say how long it is
	w, err := zstd.NewWriter(&open)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(zeros)
	_ = w.Close()
	// A frame that says 1000 bytes and goes on to 12 MiB: its head, then the
	// blocks of the bomb.
	var hs, hb zstd.Header
	if hs.Decode(small) != nil || hb.Decode(bomb) != nil {
		t.Fatal("no headers")
	}
	liar := append(bytes.Clone(small[:hs.HeaderSize]), bomb[hb.HeaderSize:]...)

	tests := []struct {
		name    string
		codec   Codec
		raw     int
		payload []byte
	}{
		{"stored bytes fewer than said", Stored, 10, make([]byte, 9)},
		{"stored bytes more than said", Stored, 10, make([]byte, 11)},
		{"nothing", Stored, 0, nil},
		{"less than nothing", Stored, -1, nil},
		{"nothing, compressed", Zstd, 10, nil},
		{"a bomb said to be small", Zstd, 100_000, bomb},
		{"a bomb said to be as large as boxes are", Zstd, MaxRaw, bomb},
		{"a bomb said to be what it is", Zstd, len(zeros), bomb},
		{"a bomb without a length", Zstd, MaxRaw, open.Bytes()},
		{"a bomb whose frame lies", Zstd, 1000, liar[:999]},
		{"a small frame said to be large", Zstd, MaxRaw, small},
		{"a frame one byte longer than said", Zstd, 999, small},
		{"a frame one byte shorter than said", Zstd, 1001, small},
		{"a bomb after a frame", Zstd, 1000, append(bytes.Clone(small), bomb[:900]...)},
		{"two frames", Zstd, 1000, append(bytes.Clone(small), small...)},
		{"half a frame", Zstd, 1000, small[:len(small)/2]},
		{"a frame to be skipped", Zstd, 1000, []byte("\x50\x2a\x4d\x18\x04\x00\x00\x00skip")},
		{"compressed to more", Zstd, 4, z.EncodeAll([]byte("abcd"), nil)},
		{"an unknown codec", 2, 4, []byte("abcd")},
	}
	// The decoder's own tables are made once.
	if _, err := Decode(nil, Zstd, 1000, small); err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			got, err := Decode(nil, tt.codec, tt.raw, tt.payload)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, ErrFormat) || got != nil {
				t.Errorf("%d bytes, %v; want %v", len(got), err, ErrFormat)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > uint64(max(tt.raw, 0))+2<<20 || used > MaxRaw+2<<20 {
				t.Errorf("%d bytes allocated for a box of %d", used, tt.raw)
			}
		})
	}
}

func TestTablesThatLieAreRefused(t *testing.T) {
	tests := []struct{ name, plain string }{
		{"nothing", ""},
		{"no blobs", "\x00"},
		{"a count in two bytes where one does", "\x81\x00\x01\x01a"},
		{"a length in two bytes where one does", "\x01\x01\x81\x00a"},
		{"more blobs than bytes", "\xff\xff\xff\x7f\x01\x01a"},
		{"a count that does not end", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"},
		{"a kind that is none", "\x01\x00\x01a"},
		{"a kind beyond the last", "\x01\x04\x01a"},
		{"contents shorter than said", "\x01\x01\x02a"},
		{"contents longer than said", "\x01\x01\x01ab"},
		{"lengths whose sum wraps", "\x03\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01\x01\x01\x01a"},
		{"half a table", "\x02\x01\x00\x01"},
		{"longer than a box", string(make([]byte, MaxRaw+1))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := Blobs([]byte(tt.plain)); !errors.Is(err, ErrFormat) {
				t.Errorf("Blobs = %v, %v", got, err)
			}
		})
	}
}

func TestABoxTakesMaxRawAndNoMore(t *testing.T) {
	const table = 1 + 1 + 4
	var b Builder
	b.Add(id.Data, make([]byte, MaxRaw-table))
	if b.Raw() != MaxRaw {
		t.Fatalf("Raw = %d, want %d", b.Raw(), MaxRaw)
	}
	codec, raw, payload := b.Finish(NewEncoder(), nil)
	if plain, err := Decode(nil, codec, raw, payload); err != nil || len(plain) != MaxRaw {
		t.Fatalf("Decode = %d bytes, %v", len(plain), err)
	}
	for name, f := range map[string]func(){
		"one byte more":     func() { b.Add(id.Data, nil) },
		"a blob of no kind": func() { b.Reset(); b.Add(0, nil) },
		"no blob":           func() { b.Reset(); b.Finish(NewEncoder(), nil) },
		"too many blobs": func() {
			b.Reset()
			for range MaxCount + 1 {
				b.Add(id.Data, nil)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f()
		})
	}
}

func TestDecodeServesManyAtOnce(t *testing.T) {
	want := text(100_000)
	codec, raw, payload := finish(Blob{id.Data, want})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 20 {
				plain, err := Decode(nil, codec, raw, payload)
				if err != nil || !bytes.HasSuffix(plain, want) {
					t.Errorf("Decode: %d bytes, %v", len(plain), err)
				}
			}
		})
	}
	wg.Wait()
}

func FuzzDecode(f *testing.F) {
	for _, data := range [][]byte{text(2000), random(1, 300), make([]byte, 100_000), nil} {
		c, raw, payload := finish(Blob{id.Data, data}, Blob{id.Node, []byte("node")})
		f.Add(uint8(c), raw, payload)
		f.Add(uint8(c), raw+1, payload)
		f.Add(uint8(c), raw-1, payload)
		f.Add(uint8(1-c), raw, payload)
		f.Add(uint8(c), MaxRaw, payload)
	}
	f.Fuzz(func(t *testing.T, c uint8, raw int, payload []byte) {
		plain, err := Decode(nil, Codec(c), raw, payload)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		if len(plain) != raw {
			t.Fatalf("%d bytes, want %d", len(plain), raw)
		}
		checkBlobs(t, plain)
	})
}

func FuzzBlobs(f *testing.F) {
	f.Add([]byte("\x01\x01\x01a"))
	f.Add([]byte("\x03\x01\x02\x03\x00\x02\x01abc"))
	f.Add([]byte("\x02\x01\x80\x01\x02\x00" + strings.Repeat("x", 128)))
	f.Add([]byte("\xff\xff\xff\x7f"))
	f.Fuzz(checkBlobs)
}

// checkBlobs builds what it read anew: there is one way to write a box.
func checkBlobs(t *testing.T, plain []byte) {
	blobs, err := Blobs(plain)
	if err != nil {
		if !errors.Is(err, ErrFormat) {
			t.Fatalf("error of the wrong kind: %v", err)
		}
		return
	}
	var b Builder
	for _, x := range blobs {
		b.Add(x.Kind, x.Data)
	}
	if again := b.plain(); !bytes.Equal(again, plain) {
		t.Fatalf("%x was read, and written as %x", plain, again)
	}
}

func BenchmarkFinish(b *testing.B) {
	for name, data := range map[string][]byte{
		"text":   text(GroupRaw),
		"random": random(1, GroupRaw),
		"hex":    []byte(hex.EncodeToString(random(1, GroupRaw/2))),
	} {
		b.Run(name, func(b *testing.B) {
			var box Builder
			e := NewEncoder()
			var dst []byte
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				box.Reset()
				box.Add(id.Data, data)
				_, _, dst = box.Finish(e, dst[:0])
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for name, data := range map[string][]byte{"text": text(GroupRaw), "random": random(1, GroupRaw)} {
		b.Run(name, func(b *testing.B) {
			codec, raw, payload := finish(Blob{id.Data, data})
			var dst []byte
			b.SetBytes(int64(raw))
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if dst, err = Decode(dst[:0], codec, raw, payload); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkUneven(b *testing.B) {
	data := random(1, GroupRaw)
	for b.Loop() {
		if uneven(data) {
			b.Fatal("random bytes are uneven")
		}
	}
}
