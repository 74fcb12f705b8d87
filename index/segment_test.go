package index

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"orlop/id"
	"orlop/pack"
	"orlop/seal"
)

// segment makes a segment of a few packs, with blobs that are there twice.
func (m *maker) segment(packs int) *Segment {
	s := new(Segment)
	var names []id.Blob
	name := func() id.Blob {
		if len(names) > 0 && m.rng.IntN(5) == 0 {
			return names[m.rng.IntN(len(names))]
		}
		names = append(names, m.name())
		return names[len(names)-1]
	}
	for range packs {
		boxes := make([]int, m.rng.IntN(4))
		for i := range boxes {
			boxes[i] = 1 + m.rng.IntN(20)
		}
		s.Packs = append(s.Packs, m.pack(name, boxes...))
	}
	for range m.rng.IntN(3) {
		s.Replaces = append(s.Replaces, m.segmentName())
	}
	slices.SortFunc(s.Replaces, id.Segment.Compare)
	return s
}

func indexKey(t testing.TB, s seal.Sealer, w seal.Writer) *seal.IndexKey {
	t.Helper()
	ik, err := s.IndexKey(testRepo, w)
	if err != nil {
		t.Fatal(err)
	}
	return ik
}

func keysOf(s seal.Sealer) func(seal.Writer) (*seal.IndexKey, error) {
	return func(w seal.Writer) (*seal.IndexKey, error) { return s.IndexKey(testRepo, w) }
}

func TestSegmentComesBackAsItWas(t *testing.T) {
	key := seal.NewKey()
	ik := indexKey(t, key, seal.Common)
	rapid.Check(t, func(t *rapid.T) {
		m := newMaker(rapid.Uint64().Draw(t, "seed"))
		s := m.segment(rapid.IntRange(0, 3).Draw(t, "packs"))
		got, err := OpenSegment(testRepo, SealSegment(testRepo, s, ik), keysOf(key))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(s, got, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("-want +got:\n%s", d)
		}
	})
}

func TestSegmentThatWasChangedDoesNotOpen(t *testing.T) {
	key := seal.NewKey()
	object := SealSegment(testRepo, newMaker(1).segment(2), indexKey(t, key, seal.Common))
	refused := func(what string, data []byte, repo id.Repository, k *seal.Key) {
		t.Helper()
		s, err := OpenSegment(repo, data, func(w seal.Writer) (*seal.IndexKey, error) { return k.IndexKey(repo, w) })
		if s != nil || !errors.Is(err, ErrFormat) && !errors.Is(err, seal.ErrOpen) && !errors.Is(err, seal.ErrFormat) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range object {
		data := bytes.Clone(object)
		data[i] ^= 1
		refused("a flipped bit", data, testRepo, key)
	}
	for n := range object {
		refused("cut short", object[:n], testRepo, key)
	}
	refused("one byte more", append(bytes.Clone(object), 0), testRepo, key)
	refused("another repository", object, id.Repository{7}, key)
	refused("another key", object, testRepo, seal.NewKey())
}

func TestPutKeyOpensItsOwnSegmentsOnly(t *testing.T) {
	key := seal.NewKey()
	put := key.PutOnly(7)
	m := newMaker(2)
	m.sessions = []seal.Header{m.session(7)}
	mine := m.segment(3)
	mine.Writer = 7
	own := SealSegment(testRepo, mine, indexKey(t, put, 7))
	for _, s := range []seal.Sealer{put, key} {
		if _, err := OpenSegment(testRepo, own, keysOf(s)); err != nil {
			t.Errorf("%T: %v", s, err)
		}
	}
	common := SealSegment(testRepo, m.segment(3), indexKey(t, key, seal.Common))
	if _, err := OpenSegment(testRepo, common, keysOf(put)); !errors.Is(err, seal.ErrPutOnly) {
		t.Errorf("a put-only key opens the common index: %v", err)
	}
}

// A host that may only add cannot say anything of what others have stored.
func TestSegmentOverAnotherWritersPackIsRefused(t *testing.T) {
	key := seal.NewKey()
	m := newMaker(3)
	m.sessions = []seal.Header{m.session(8)}
	s := m.segment(2)
	plain := padded(appendSegment(nil, s))
	if _, err := parseSegment(plain, 8); err != nil {
		t.Fatal(err)
	}
	object := append([]byte(segmentMagic), 7, 0, 0, 0)
	object = indexKey(t, key, 7).Seal(object, seal.Segment, plain, object)
	if _, err := OpenSegment(testRepo, object, keysOf(key)); !errors.Is(err, ErrFormat) {
		t.Errorf("OpenSegment = %v", err)
	}
	defer func() {
		if recover() == nil {
			t.Error("SealSegment seals what OpenSegment refuses")
		}
	}()
	s.Writer = 7
	SealSegment(testRepo, s, indexKey(t, key, 7))
}

func TestSegmentSizeShowsLittle(t *testing.T) {
	key := seal.NewKey()
	ik := indexKey(t, key, seal.Common)
	sizes := map[int]bool{}
	for n := 1; n <= 200; n++ {
		m := newMaker(uint64(n))
		sizes[len(SealSegment(testRepo, &Segment{Packs: []PackInfo{m.pack(m.name, n)}}, ik))] = true
	}
	if len(sizes) > 60 {
		t.Errorf("200 numbers of blobs give %d sizes", len(sizes))
	}
}

func padded(plain []byte) []byte {
	return append(plain, make([]byte, pack.Padme(len(plain))-len(plain))...)
}

// What parses has one form, lies within its packs, and names each blob.
func FuzzSegment(f *testing.F) {
	for n := range 5 {
		m := newMaker(uint64(n))
		whole := padded(appendSegment(nil, m.segment(n)))
		f.Add(whole)
		f.Add(whole[:len(whole)/2])
	}
	m := newMaker(9)
	f.Add(padded(appendSegment(nil, &Segment{Packs: []PackInfo{m.pack(m.name, 2, 1)}})))
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0})
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, p []byte) {
		s, err := parseSegment(p, seal.Common)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		if again := padded(appendSegment(nil, s)); !bytes.Equal(again, p) {
			t.Fatalf("encodes to\n%x, not\n%x", again, p)
		}
		for _, q := range s.Packs {
			end := int64(pack.HeaderSize)
			for _, x := range q.Boxes {
				if int64(x.Offset) != end || len(x.Blobs) == 0 {
					t.Fatalf("box %+v after %d", x, end)
				}
				end += int64(x.Length)
			}
			if end > q.Size {
				t.Fatalf("boxes end at %d in a pack of %d", end, q.Size)
			}
		}
	})
}

// The envelope too: whatever object is there, opening it ends in an error.
func FuzzOpenSegment(f *testing.F) {
	key := seal.NewKey()
	ik := indexKey(f, key, seal.Common)
	f.Add(SealSegment(testRepo, newMaker(1).segment(2), ik)[:100])
	f.Add([]byte(segmentMagic))
	f.Add([]byte("orlop\x00S2\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, p []byte) {
		_, err := OpenSegment(testRepo, p, keysOf(key))
		if !errors.Is(err, ErrFormat) && !errors.Is(err, seal.ErrOpen) && !errors.Is(err, seal.ErrFormat) {
			t.Fatalf("OpenSegment = %v", err)
		}
	})
}
