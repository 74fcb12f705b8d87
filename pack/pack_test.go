package pack

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"orlop/box"
	"orlop/id"
	"orlop/seal"
)

var (
	testKey  = seal.NewKey()
	testRepo = id.Repository{1, 2, 3}
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func keys(w seal.Writer) (*seal.IndexKey, error) { return testKey.IndexKey(testRepo, w) }

func newBuilder(k seal.Sealer) *Builder {
	s := must(k.NewSession(testRepo, id.Session{9}))
	return NewBuilder(testRepo, s, must(k.IndexKey(testRepo, k.Writer())))
}

// read opens a pack as it would be read from a store.
func read(p []byte) (seal.Header, []Box, error) {
	size := int64(len(p))
	if size < int64(HeaderSize+TrailerSize) {
		return seal.Header{}, nil, ErrFormat
	}
	off, n, err := Locate(p[size-int64(TrailerSize):], size)
	if err != nil {
		return seal.Header{}, nil, err
	}
	return OpenDirectory(testRepo, size, p[:HeaderSize], p[off:off+n], keys)
}

// openBox returns the payload of a box of a pack.
func openBox(p []byte, h seal.Header, x Box) ([]byte, error) {
	r, err := testKey.OpenSession(testRepo, h)
	if err != nil {
		return nil, err
	}
	return r.OpenBox(nil, p[x.Offset:x.Offset+x.Length], uint8(x.Codec), int(x.Raw))
}

func blob(n byte, length uint32) Blob {
	return Blob{Name: id.Blob{n}, Kind: id.Kind(n%3 + 1), Length: length}
}

// threeBoxes is a small pack.
func threeBoxes() Pack {
	b := newBuilder(testKey)
	b.Add([]byte("first"), box.Stored, 10, []Blob{blob(1, 3), blob(2, 5)})
	b.Add(nil, box.Zstd, 0, []Blob{blob(3, 0)})
	b.Add(bytes.Repeat([]byte("third"), 20), box.Zstd, box.MaxRaw, []Blob{blob(4, 5<<20)})
	return b.Finish()
}

func TestAPackIsReadBack(t *testing.T) {
	for _, k := range []seal.Sealer{testKey, testKey.PutOnly(7)} {
		rapid.Check(t, func(t *rapid.T) {
			b := newBuilder(k)
			type content struct {
				payload []byte
				codec   box.Codec
				raw     int
				blobs   []Blob
			}
			var want []content
			for range rapid.IntRange(0, 20).Draw(t, "boxes") {
				c := content{
					payload: rapid.SliceOf(rapid.Byte()).Draw(t, "payload"),
					codec:   rapid.SampledFrom([]box.Codec{box.Stored, box.Zstd}).Draw(t, "codec"),
				}
				for range rapid.IntRange(1, 5).Draw(t, "blobs") {
					x := blob(rapid.Byte().Draw(t, "name"), rapid.Uint32Range(0, 1<<20).Draw(t, "length"))
					c.raw += int(x.Length)
					c.blobs = append(c.blobs, x)
				}
				if rapid.Bool().Draw(t, "sealed elsewhere") {
					sealed := b.session.SealBox(nil, c.payload, uint8(c.codec), c.raw)
					b.AddSealed(sealed, c.codec, c.raw, c.blobs)
				} else {
					b.Add(c.payload, c.codec, c.raw, c.blobs)
				}
				want = append(want, c)
				if b.Count() != len(want) {
					t.Fatalf("Count = %d, want %d", b.Count(), len(want))
				}
			}
			length := b.Len()
			p := b.Finish()
			if p.ID != id.Sum[id.Pack](p.Data) || len(p.Data) < length || len(p.Boxes) != len(want) {
				t.Fatalf("Finish = %d bytes of %d, %d boxes of %d", len(p.Data), length, len(p.Boxes), len(want))
			}

			h, boxes, err := read(p.Data)
			if err != nil || !h.Equal(p.Header) || !cmp.Equal(boxes, p.Boxes, cmp.Transformer("", func(b []Box) []Box { return append([]Box(nil), b...) })) && len(boxes) > 0 {
				t.Fatalf("read %v, %v", boxes, err)
			}
			head, err := ParseHeader(p.Data)
			if err != nil || !head.Equal(h) || h.Writer != k.Writer() {
				t.Fatalf("ParseHeader = %v, %v", head, err)
			}
			for i, x := range boxes {
				got, err := openBox(p.Data, h, x)
				if err != nil || !bytes.Equal(got, want[i].payload) || x.Codec != want[i].codec ||
					int(x.Raw) != want[i].raw || !cmp.Equal(x.Blobs, want[i].blobs) {
					t.Fatalf("box %d is %+v %q, %v; want %+v", i, x, got, err, want[i])
				}
			}
		})
	}
}

// What a part of a pack is and who notices that it was changed. The name
// notices everything; without it, nothing but the padding goes unseen.
func TestEveryFlippedByteIsNoticed(t *testing.T) {
	p := threeBoxes()
	off, n, err := Locate(p.Data[len(p.Data)-TrailerSize:], int64(len(p.Data)))
	if err != nil {
		t.Fatal(err)
	}
	last := p.Boxes[len(p.Boxes)-1]
	part := func(at int) string {
		switch {
		case at < HeaderSize:
			return "header"
		case at < int(last.Offset+last.Length):
			return "box"
		case at < int(off):
			return "padding"
		case at < int(off+n):
			return "directory"
		}
		return "trailer"
	}
	seen := map[string]int{}
	for at := range p.Data {
		bad := bytes.Clone(p.Data)
		bad[at] ^= 1 << (at % 8)
		if id.Sum[id.Pack](bad) == p.ID {
			t.Fatalf("byte %d: same name", at)
		}
		// By an index the boxes are where they were and the directory is not
		// asked; by the directory everything is.
		noticed := ""
		h, boxes, err := read(bad)
		switch {
		case err != nil:
			noticed = "directory"
			if !errors.Is(err, ErrFormat) && !errors.Is(err, seal.ErrOpen) && !errors.Is(err, seal.ErrFormat) {
				t.Fatalf("byte %d: error of the wrong kind: %v", at, err)
			}
		default:
			for _, x := range boxes {
				if _, err := openBox(bad, h, x); err != nil {
					noticed = "box"
				}
			}
		}
		want := map[string]string{
			"header": "directory", "box": "box", "padding": "", "directory": "directory", "trailer": "directory",
		}[part(at)]
		if noticed != want {
			t.Errorf("byte %d of the %s flipped: noticed by %q, want %q", at, part(at), noticed, want)
		}
		seen[part(at)]++
	}
	for _, x := range []string{"header", "box", "padding", "directory", "trailer"} {
		if seen[x] == 0 {
			t.Errorf("no byte of the %s was flipped", x)
		}
	}
}

// A header that was changed opens no box either, so a reader that goes by an
// index is safe without the directory.
func TestAChangedHeaderOpensNoBox(t *testing.T) {
	p := threeBoxes()
	for at := len(magic); at < HeaderSize; at += 7 {
		bad := bytes.Clone(p.Data)
		bad[at] ^= 1
		h, err := ParseHeader(bad)
		if err == nil {
			_, err = openBox(bad, h, p.Boxes[0])
		}
		if err == nil {
			t.Errorf("byte %d flipped: a box opens", at)
		}
	}
}

func TestEveryTruncationIsNoticed(t *testing.T) {
	p := threeBoxes()
	for n := range p.Data {
		if _, _, err := read(p.Data[:n]); err == nil {
			t.Errorf("cut to %d bytes: read", n)
		}
	}
	if _, _, err := read(append(bytes.Clone(p.Data), p.Data[len(p.Data)-TrailerSize:]...)); err == nil {
		t.Error("a second trailer: read")
	}
}

func TestADirectoryBelongsToItsPack(t *testing.T) {
	a, b := threeBoxes(), threeBoxes()
	size := int64(len(a.Data))
	off, n := must2(Locate(a.Data[size-int64(TrailerSize):], size))
	dir := a.Data[off : off+n]
	other := seal.NewKey()
	tests := []struct {
		name   string
		repo   id.Repository
		size   int64
		header []byte
		keys   func(seal.Writer) (*seal.IndexKey, error)
		want   error
	}{
		{"nothing changed", testRepo, size, a.Data[:HeaderSize], keys, nil},
		{"a longer header is cut", testRepo, size, a.Data, keys, nil},
		{"the header of another session", testRepo, size, b.Data[:HeaderSize], keys, seal.ErrOpen},
		{"another size", testRepo, size + 1, a.Data[:HeaderSize], keys, seal.ErrOpen},
		{"no room for a header", testRepo, n + int64(TrailerSize) + 5, a.Data[:HeaderSize], keys, ErrFormat},
		{"a size no pack has", testRepo, MaxSize + 1, a.Data[:HeaderSize], keys, ErrFormat},
		{"another repository", id.Repository{8}, size, a.Data[:HeaderSize], keys, seal.ErrOpen},
		{"another key", testRepo, size, a.Data[:HeaderSize], func(w seal.Writer) (*seal.IndexKey, error) {
			return other.IndexKey(testRepo, w)
		}, seal.ErrOpen},
		{"the index key of another writer", testRepo, size, a.Data[:HeaderSize], func(seal.Writer) (*seal.IndexKey, error) {
			return testKey.IndexKey(testRepo, 3)
		}, seal.ErrOpen},
		{"a put-only key", testRepo, size, a.Data[:HeaderSize], func(w seal.Writer) (*seal.IndexKey, error) {
			return testKey.PutOnly(3).IndexKey(testRepo, w)
		}, seal.ErrPutOnly},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, boxes, err := OpenDirectory(tt.repo, tt.size, tt.header, dir, tt.keys)
			if !errors.Is(err, tt.want) || tt.want == nil && len(boxes) != 3 {
				t.Errorf("OpenDirectory = %v, %v; want %v", boxes, err, tt.want)
			}
		})
	}
}

func must2(a, b int64, err error) (int64, int64) {
	if err != nil {
		panic(err)
	}
	return a, b
}

func TestPadding(t *testing.T) {
	tests := []struct {
		name    string
		n, want int
	}{
		{"nothing is less than 4 KiB", 1, 4096},
		{"nor is 4 KiB", 4096, 4096},
		{"Padme keeps the 5 leading bits of 13", 4097, 4352},
		{"a multiple stays", 4352, 4352},
		{"Padme at 100,000", 100_000, 100_352},
		{"Padme at 1 MiB and a byte", 1<<20 + 1, 1<<20 + 32<<10},
		{"Padme up to 4 MiB", 4<<20 - 1, 4 << 20},
		{"4 MiB stays", 4 << 20, 4 << 20},
		{"from there on steps of 64 KiB", 4<<20 + 1, 4<<20 + 64<<10},
		{"up to a full pack", 16<<20 - 1, 16 << 20},
		{"which has steps of 4 KiB", 16<<20 + 12345, 16<<20 + 16<<10},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := padded(tt.n); got != tt.want {
				t.Errorf("padded(%d) = %d, want %d", tt.n, got, tt.want)
			}
		})
	}
}

func TestPaddingLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 32<<20).Draw(t, "n")
		p := padded(n)
		switch {
		case p < n || p < minSize:
			t.Fatalf("padded(%d) = %d", n, p)
		case padded(p) != p:
			t.Fatalf("padded(%d) = %d, and that is padded to %d", n, p, padded(p))
		case padded(n+1) < p:
			t.Fatalf("padded(%d) = %d, and %d for a byte more", n, p, padded(n+1))
		case n > minSize && float64(p-n) > 0.12*float64(n):
			t.Fatalf("padded(%d) = %d adds over 12 %%", n, p)
		case n >= bigSize && n < Target && (p%step != 0 || p-n >= step):
			t.Fatalf("padded(%d) = %d is not the next 64 KiB", n, p)
		case n >= Target && (p%fullStep != 0 || p-n >= fullStep):
			t.Fatalf("padded(%d) = %d is not the next 4 KiB", n, p)
		}
	})
}

// Whatever is in a pack, its size is one of the padded ones, and what lies
// between boxes and directory looks like a box.
func TestPacksArePadded(t *testing.T) {
	for _, n := range []int{0, 1, 3000, 70_000, 3 << 20, 5 << 20} {
		b := newBuilder(testKey)
		b.Add(make([]byte, n), box.Stored, n, []Blob{blob(1, uint32(n))})
		end := b.Len()
		p := b.Finish()
		if len(p.Data) != padded(len(p.Data)) {
			t.Errorf("a pack with %d bytes has %d", n, len(p.Data))
		}
		off, _ := must2(Locate(p.Data[len(p.Data)-TrailerSize:], int64(len(p.Data))))
		pad := p.Data[end:off]
		if len(pad) >= 64 && bytes.Count(pad, []byte{0}) > len(pad)/8 {
			t.Errorf("%d bytes of padding, %d of them zero", len(pad), bytes.Count(pad, []byte{0}))
		}
	}
}

func TestAFullPackIsGrownInFewSteps(t *testing.T) {
	s := must(testKey.NewSession(testRepo, id.Session{9}))
	ik := must(keys(seal.Common))
	payload := make([]byte, 1<<20)
	allocated := testing.AllocsPerRun(1, func() {
		b := NewBuilder(testRepo, s, ik)
		steps, before := 0, cap(b.data)
		for b.Len() < Target {
			b.Add(payload, box.Stored, len(payload), []Blob{blob(1, 1<<20)})
			if cap(b.data) != before {
				steps, before = steps+1, cap(b.data)
			}
		}
		b.Finish()
		if cap(b.data) != before {
			steps++
		}
		if steps > 3 {
			t.Errorf("the buffer of a full pack was moved %d times", steps)
		}
	})
	if allocated > 2000 {
		t.Errorf("%v allocations", allocated)
	}
}

func TestBoxesThatAreNoBoxes(t *testing.T) {
	ok := []Blob{blob(1, 5)}
	for name, add := range map[string]func(b *Builder){
		"no blobs":                    func(b *Builder) { b.Add(nil, box.Stored, 9, nil) },
		"too long":                    func(b *Builder) { b.Add(nil, box.Stored, box.MaxRaw+1, ok) },
		"negative":                    func(b *Builder) { b.Add(nil, box.Stored, -1, ok) },
		"blobs longer than their box": func(b *Builder) { b.Add(nil, box.Stored, 4, ok) },
		"unknown codec":               func(b *Builder) { b.Add(nil, 9, 9, ok) },
		"unknown kind":                func(b *Builder) { b.Add(nil, box.Stored, 9, []Blob{{Kind: 7}}) },
		"not sealed":                  func(b *Builder) { b.AddSealed([]byte("x"), box.Stored, 9, ok) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("it was added")
				}
			}()
			add(newBuilder(testKey))
		})
	}
}

func TestWhatIsRefusedByName(t *testing.T) {
	p := threeBoxes().Data
	trailer := p[len(p)-TrailerSize:]
	change := func(p []byte, at int, b byte) []byte {
		p = bytes.Clone(p)
		p[at] = b
		return p
	}
	header := func(p []byte) error { _, err := ParseHeader(p); return err }
	locate := func(p []byte, size int64) error { _, _, err := Locate(p, size); return err }
	size := int64(len(p))
	for name, tt := range map[string]struct {
		err  error
		want string
	}{
		"an empty header":        {header(nil), "not a pack"},
		"another kind of file":   {header([]byte("orlop\x00K1 is a slot")), "not a pack"},
		"a later version":        {header(change(p, 7, '2')), "version '2', and this program knows version '1'"},
		"a header cut off":       {header(p[:100]), "cut off at 100 bytes"},
		"an unknown suite":       {header(change(p, 8, 9)), "suite(9)"},
		"a trailer cut off":      {locate(trailer[1:], size), "trailer of 11 bytes"},
		"no trailer":             {locate(make([]byte, TrailerSize), size), "trailer: malformed pack: not a pack"},
		"a huge directory":       {locate(change(trailer, 3, 0xff), size), "in a pack of"},
		"an empty directory":     {locate(append(make([]byte, 4), magic...), size), "directory of 0 bytes"},
		"a pack of no size":      {locate(trailer, 0), "in a pack of 0"},
		"a pack of less":         {locate(trailer, -1), "in a pack of -1"},
		"a size no pack has":     {locate(trailer, MaxSize+1), "in a pack of"},
		"the least int there is": {locate(trailer, -1<<63), "in a pack of"},
	} {
		if !errors.Is(tt.err, ErrFormat) || !strings.Contains(tt.err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, tt.err, tt.want)
		}
	}
}

// directory builds what nobody who follows the rules would seal.
func TestDirectoriesThatAreRefused(t *testing.T) {
	name := strings.Repeat("n", 32)
	pad := func(s string) []byte { return append([]byte(s), make([]byte, Padme(len(s))-len(s))...) }
	tests := []struct {
		name string
		p    []byte
		ok   bool
	}{
		{"a box of one blob", pad("\x01" + "\x20\x00\x05\x01" + name + "\x01\x05"), true},
		{"no box", pad("\x00"), true},
		{"nothing", nil, false},
		{"more boxes than there are", pad("\x02" + "\x20\x00\x05\x01" + name + "\x01\x05"), false},
		{"boxes without end", []byte("\xff\xff\xff\xff\x0f" + name + name), false},
		{"blobs without end", pad("\x01" + "\x20\x00\x05\xff\xff\xff\xff\x0f" + name + "\x01\x05"), false},
		{"a box of no blobs", pad("\x01" + "\x20\x00\x05\x00" + name + "\x01\x05"), false},
		{"a box too short to be sealed", pad("\x01" + "\x1f\x00\x05\x01" + name + "\x01\x05"), false},
		{"a box past the end", pad("\x01" + "\xe9\x07\x00\x05\x01" + name + "\x01\x05"), false},
		{"an unknown codec", pad("\x01" + "\x20\x02\x05\x01" + name + "\x01\x05"), false},
		{"an unknown kind", pad("\x01" + "\x20\x00\x05\x01" + name + "\x04\x05"), false},
		{"blobs longer than the box", pad("\x01" + "\x20\x00\x04\x01" + name + "\x01\x05"), false},
		{"a raw length over the most", pad("\x01" + "\x20\x00\x81\x80\x80\x04\x01" + name + "\x01\x05"), false},
		{"a varint longer than it must be", pad("\x01" + "\xa0\x00\x00\x05\x01" + name + "\x01\x05"), false},
		{"a varint over 32 bits", pad("\x01" + "\xff\xff\xff\xff\x1f\x00\x05\x01" + name + "\x01\x05"), false},
		{"padding that is not zero", append(pad("\x01" + "\x20\x00\x05\x01" + name + "\x01\x05")[:39], "\x00\x01"...), false},
		{"too much padding", append(pad("\x00"), 0), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			boxes, err := parseDirectory(tt.p, uint32(HeaderSize)+1000)
			if tt.ok != (err == nil) || !tt.ok && !errors.Is(err, ErrFormat) {
				t.Errorf("parseDirectory = %+v, %v", boxes, err)
			}
		})
	}
}

func TestSessionAndIndexKeyMustAgree(t *testing.T) {
	s := must(testKey.NewSession(testRepo, id.Session{}))
	for name, ik := range map[string]*seal.IndexKey{
		"another writer":     must(testKey.IndexKey(testRepo, 3)),
		"another repository": must(testKey.IndexKey(id.Repository{8}, seal.Common)),
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("NewBuilder took it")
				}
			}()
			NewBuilder(testRepo, s, ik)
		})
	}
}

func FuzzLocate(f *testing.F) {
	p := threeBoxes().Data
	f.Add(p[len(p)-TrailerSize:], int64(len(p)))
	f.Add(p[len(p)-TrailerSize:], int64(-1))
	f.Add([]byte(magic), int64(1<<62))
	f.Fuzz(func(t *testing.T, p []byte, size int64) {
		off, n, err := Locate(p, size)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		if off < int64(HeaderSize) || n < seal.IndexOverhead || off+n+int64(TrailerSize) != size || size > MaxSize {
			t.Fatalf("Locate(%x, %d) = %d, %d", p, size, off, n)
		}
	})
}

func FuzzParseHeader(f *testing.F) {
	p := threeBoxes().Data
	f.Add(p[:HeaderSize])
	f.Add(p[:100])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := ParseHeader(p)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		if got := h.Append([]byte(magic)); !bytes.Equal(got, p[:HeaderSize]) {
			t.Fatalf("read %x, wrote %x", p[:HeaderSize], got)
		}
	})
}

// The fuzzer writes the plaintext of a directory and it is sealed for it; or
// it writes the sealed bytes, which never open.
func FuzzOpenDirectory(f *testing.F) {
	p := threeBoxes()
	plain := appendDirectory(nil, p.Boxes)
	f.Add(append(plain, make([]byte, Padme(len(plain))-len(plain))...), uint32(len(p.Data)))
	f.Add(plain, uint32(len(p.Data)))
	f.Add([]byte{0}, uint32(8192))
	f.Add([]byte("\xff\xff\xff\xff\x0f"), uint32(1<<31))
	header := p.Data[:HeaderSize]
	ik := must(keys(seal.Common))
	f.Fuzz(func(t *testing.T, plain []byte, size32 uint32) {
		size := int64(size32)
		if _, boxes, err := OpenDirectory(testRepo, size, header, plain, keys); err == nil {
			t.Fatalf("bytes that were never sealed open: %v", boxes)
		}
		sealed := ik.Seal(nil, seal.Directory, plain, directoryAD(header, size))
		_, boxes, err := OpenDirectory(testRepo, size, header, sealed, keys)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		again := appendDirectory(nil, boxes)
		again = append(again, make([]byte, Padme(len(again))-len(again))...)
		if !bytes.Equal(again, plain) {
			t.Fatalf("read %x, wrote %x", plain, again)
		}
		off := uint32(HeaderSize)
		for _, x := range boxes {
			if x.Offset != off || int64(x.Offset)+int64(x.Length) > size-int64(TrailerSize+len(sealed)) {
				t.Fatalf("box at %d of %d bytes in a pack of %d", x.Offset, x.Length, size)
			}
			off += x.Length
		}
	})
}

func BenchmarkPack(b *testing.B) {
	s := must(testKey.NewSession(testRepo, id.Session{9}))
	ik := must(keys(seal.Common))
	for _, size := range []int{4 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			payload, blobs := make([]byte, size), []Blob{blob(1, uint32(size))}
			b.SetBytes(Target)
			b.ReportAllocs()
			for b.Loop() {
				p := NewBuilder(testRepo, s, ik)
				for p.Len() < Target {
					p.Add(payload, box.Stored, size, blobs)
				}
				p.Finish()
			}
		})
	}
}

func BenchmarkOpenDirectory(b *testing.B) {
	p := newBuilder(testKey)
	blobs := make([]Blob, 1000)
	for i := range blobs {
		blobs[i] = blob(byte(i), 1000)
	}
	for range 10 {
		p.Add(nil, box.Stored, 1<<20, blobs)
	}
	data := p.Finish().Data
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := read(data); err != nil {
			b.Fatal(err)
		}
	}
}
