package chunk

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/restic/chunker"
	"pgregory.net/rapid"
)

var algorithms = []Algorithm{Gear, Rabin}

// random returns n bytes that are the same at every run.
func random(seed byte, n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

func mustNew(t testing.TB, c Config, secret byte) Splitter {
	t.Helper()
	s, err := New(c, [32]byte{secret})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func config(a Algorithm) *rapid.Generator[Config] {
	return rapid.Custom(func(t *rapid.T) Config {
		avg := 1 << rapid.IntRange(7, 14).Draw(t, "bits")
		return Config{
			Algorithm: a,
			Min:       rapid.IntRange(64, avg-1).Draw(t, "min"),
			Avg:       avg,
			Max:       rapid.IntRange(avg+1, 8*avg).Draw(t, "max"),
		}
	})
}

// stream draws bytes of mixed temper: random, constant, repeated, text.
func stream(t *rapid.T) []byte {
	var p []byte
	for range rapid.IntRange(0, 5).Draw(t, "parts") {
		n := rapid.IntRange(0, 40_000).Draw(t, "length")
		seed := rapid.Byte().Draw(t, "seed")
		switch rapid.IntRange(0, 3).Draw(t, "temper") {
		case 0:
			p = append(p, random(seed, n)...)
		case 1:
			p = append(p, bytes.Repeat([]byte{seed}, n)...)
		case 2:
			p = append(p, bytes.Repeat(random(seed, 100), n/100)...)
		default:
			p = append(p, strings.Repeat(fmt.Sprintf("line %d\n", seed), n/8)...)
		}
	}
	return p
}

func TestChunksFillTheirStreamWithinBounds(t *testing.T) {
	for _, a := range algorithms {
		t.Run(string(a), rapid.MakeCheck(func(t *rapid.T) {
			c := config(a).Draw(t, "config")
			s, err := New(c, [32]byte{rapid.Byte().Draw(t, "secret")})
			if err != nil {
				t.Fatal(err)
			}
			p := stream(t)
			for len(p) > 0 {
				n := s.Next(p, false)
				last := n == len(p)
				if n < 1 || n > len(p) || n > c.Max || n < c.Min && !last {
					t.Fatalf("%+v: chunk of %d bytes, %d remained", c, n, len(p))
				}
				// What follows the longest possible chunk has no say.
				if m := s.Next(p[:min(len(p), s.Max())], len(p) > s.Max()); m != n {
					t.Fatalf("%+v: %d with more to come, %d without", c, n, m)
				}
				p = p[n:]
			}
			if n := s.Next(nil, false); n != 0 {
				t.Fatalf("chunk of %d bytes in nothing", n)
			}
		}))
	}
}

// However a stream comes in, and whoever else looks for cuts in it.
func TestCutsAreThoseOfOneNextAfterTheOther(t *testing.T) {
	for _, a := range algorithms {
		t.Run(string(a), rapid.MakeCheck(func(t *rapid.T) {
			c := config(a).Draw(t, "config")
			s, err := New(c, [32]byte{rapid.Byte().Draw(t, "secret")})
			if err != nil {
				t.Fatal(err)
			}
			if g, ok := s.(*gear); ok {
				g.share = rapid.IntRange(1, 20_000).Draw(t, "share")
			}
			fork := rapid.SampledFrom([]Fork{backwards, atOnce}).Draw(t, "fork")
			p := stream(t)
			want := cuts(s, nil, p, false)
			size := c.Max + rapid.IntRange(0, 4*c.Max).Draw(t, "buffer")
			var got []int
			for buf := []byte(nil); ; {
				n := min(len(p), size-len(buf), rapid.IntRange(1, size).Draw(t, "piece"))
				buf, p = append(buf, p[:n]...), p[n:]
				had := len(got)
				if more := len(p) > 0; rapid.Bool().Draw(t, "shared") {
					got = s.Cuts(got, buf, more, fork)
				} else {
					got = cuts(s, got, buf, more)
				}
				for _, n := range got[had:] {
					buf = buf[n:]
				}
				if len(p) == 0 {
					break
				}
				if len(buf) >= c.Max {
					t.Fatalf("%+v: nothing cut from %d bytes", c, len(buf))
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("%+v:\n%v\nwant %v", c, got, want)
			}
		}))
	}
}

func backwards(n int, task func(int)) {
	for i := range n {
		task(n - 1 - i)
	}
}

func atOnce(n int, task func(int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { task(i) })
	}
	all.Wait()
}

// The reference is the definition in docs/format.md, with none of the
// ways to be fast: every hash is made anew from its 64 bytes.
func TestGearCutsAreThoseOfItsDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := config(Gear).Draw(t, "config")
		secret := [32]byte{rapid.Byte().Draw(t, "secret")}
		s, err := New(c, secret)
		if err != nil {
			t.Fatal(err)
		}
		var table [256]uint64
		r := rand.NewChaCha8(secret)
		for i := range table {
			table[i] = r.Uint64()
		}
		p := random(rapid.Byte().Draw(t, "seed"), rapid.IntRange(0, 60_000).Draw(t, "length"))
		if n := rapid.IntRange(0, len(p)).Draw(t, "text"); n > 0 {
			copy(p, bytes.Repeat([]byte("text "), n/5))
		}
		for len(p) > 0 {
			want := min(len(p), c.Max)
			for n := c.Min; n < want; n++ {
				var h uint64
				for _, b := range p[n-64 : n] {
					h = h<<1 + table[b]
				}
				oneIn := uint64(4 * c.Avg)
				if n > normal(c.Min, c.Avg) {
					oneIn = uint64(c.Avg / 4)
				}
				if h < 1<<63/oneIn*2 {
					want = n
				}
			}
			if got := s.Next(p, false); got != want {
				t.Fatalf("%+v: cut at %d, want %d", c, got, want)
			}
			p = p[want:]
		}
	})
}

func TestRabinCutsAreThoseOfResticsChunker(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := config(Rabin).Draw(t, "config")
		secret := [32]byte{rapid.Byte().Draw(t, "secret")}
		s, err := New(c, secret)
		if err != nil {
			t.Fatal(err)
		}
		pol, err := chunker.DerivePolynomial(rand.NewChaCha8(secret))
		if err != nil {
			t.Fatal(err)
		}
		p := stream(t)
		theirs := chunker.New(bytes.NewReader(p), pol,
			chunker.WithAverageBits(averageBits(c)),
			chunker.WithBoundaries(uint(c.Min), uint(c.Max)))
		for i, n := range cuts(s, nil, p, false) {
			want, err := theirs.Next(nil)
			if err != nil || uint(n) != want.Length {
				t.Fatalf("%+v: chunk %d is %d bytes, theirs %d, %v", c, i, n, want.Length, err)
			}
		}
		if _, err := theirs.Next(nil); !errors.Is(err, io.EOF) {
			t.Fatalf("theirs has more: %v", err)
		}
	})
}

func TestCutsFallBackIntoStepAfterAnEdit(t *testing.T) {
	for _, a := range algorithms {
		t.Run(string(a), rapid.MakeCheck(func(t *rapid.T) {
			c := Config{a, 256, 1 << 10, 4 << 10}
			s, err := New(c, [32]byte{7})
			if err != nil {
				t.Fatal(err)
			}
			old := random(rapid.Byte().Draw(t, "seed"), 256<<10)
			at := rapid.IntRange(0, len(old)/2).Draw(t, "at")
			gone := rapid.IntRange(0, 3_000).Draw(t, "gone")
			added := random(rapid.Byte().Draw(t, "added"), rapid.IntRange(0, 3_000).Draw(t, "n"))
			edited := append(append(bytes.Clone(old[:at]), added...), old[at+gone:]...)

			have := map[string]bool{}
			for p := old; len(p) > 0; {
				n := s.Next(p, false)
				have[string(p[:n])] = true
				p = p[n:]
			}
			fresh := 0
			for p := edited; len(p) > 0; {
				n := s.Next(p, false)
				if !have[string(p[:n])] {
					fresh += n
				}
				p = p[n:]
			}
			// Falling back into step takes a few chunks; a splitter that
			// never does makes half of it fresh, 128 KiB and more.
			if limit := len(added) + 25*c.Max; fresh > limit {
				t.Fatalf("%d bytes fresh after an edit of %d at %d, want at most %d", fresh, len(added), at, limit)
			}
		}))
	}
}

func TestEqualContentFromAChunkStartIsCutEqually(t *testing.T) {
	for _, a := range algorithms {
		t.Run(string(a), rapid.MakeCheck(func(t *rapid.T) {
			s, err := New(Config{a, 256, 1 << 10, 4 << 10}, [32]byte{7})
			if err != nil {
				t.Fatal(err)
			}
			tail := random(rapid.Byte().Draw(t, "tail"), 50_000)
			head := random(rapid.Byte().Draw(t, "head"), rapid.IntRange(0, 10_000).Draw(t, "n"))
			whole := append(head[:len(head):len(head)], tail...)
			for p := whole; len(p) > 0; p = p[s.Next(p, false):] {
				if len(p) > len(tail) {
					continue
				}
				// The first chunk that begins within the tail.
				if got, want := cuts(s, nil, bytes.Clone(p), false), cuts(s, nil, p, false); fmt.Sprint(got) != fmt.Sprint(want) {
					t.Fatalf("cut %v on its own, %v within a stream", got, want)
				}
				return
			}
		}))
	}
}

func TestDifferentSecretsCutDifferently(t *testing.T) {
	p := random(1, 1<<20)
	for _, a := range algorithms {
		c := Config{a, 1 << 10, 4 << 10, 16 << 10}
		ends := map[int]bool{}
		at := 0
		for _, n := range cuts(mustNew(t, c, 1), nil, p, false) {
			at += n
			ends[at] = true
		}
		at, shared := 0, 0
		theirs := cuts(mustNew(t, c, 2), nil, p, false)
		for _, n := range theirs {
			at += n
			if ends[at] {
				shared++
			}
		}
		if shared > 3 { // the end of the stream, and chance
			t.Errorf("%s: two secrets share %d of %d cuts", a, shared, len(theirs))
		}
	}
}

func TestMeanChunkOfRandomBytesIsNearAvg(t *testing.T) {
	p := random(2, 8<<20)
	for _, a := range algorithms {
		for _, minimum := range []int{256, 1 << 10, 2 << 10} {
			c := Config{a, minimum, 4 << 10, 16 << 10}
			mean := float64(len(p)) / float64(len(cuts(mustNew(t, c, 3), nil, p, false))) / float64(c.Avg)
			// Gear is placed to the second order; rabin has powers of two.
			low, high := 0.97, 1.03
			if a == Rabin {
				low, high = 0.73, 1.27
			}
			if mean < low || mean > high {
				t.Errorf("%+v: mean chunk is %.3f of avg", c, mean)
			}
		}
	}
}

// The cuts of a repository's streams must never change: if this fails, what is
// stored already deduplicates with nothing.
func TestCutsAreThoseOfVersion1(t *testing.T) {
	tests := []struct {
		config Config
		first  string
		all    string
	}{
		{Config{Gear, 256 << 10, 512 << 10, 2 << 20}, "[558642 579850 630854 409717 449631 264292]", "48bfb4727bc32fa8"},
		{Config{Gear, 256 << 10, 1 << 20, 4 << 20}, "[920379 1923883 1018360 1294111 1087737 984127]", "e3ff891125d3ab22"},
		{Config{Rabin, 256 << 10, 512 << 10, 2 << 20}, "[599514 396245 459644 634512 273093 445274]", "db7816d64d66d2bc"},
		{Config{Rabin, 512 << 10, 1 << 20, 4 << 20}, "[766696 1323219 1075680 624139 878112 740065]", "4071c2923cbc2c9a"},
	}
	p := random(42, 12<<20)
	secret := [32]byte([]byte("a secret of thirty-two bytes ok!"))
	for _, tt := range tests {
		s, err := New(tt.config, secret)
		if err != nil {
			t.Fatal(err)
		}
		lengths := cuts(s, nil, p, false)
		first := fmt.Sprint(lengths[:6])
		all := fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, lengths)))[:16]
		if first != tt.first || all != tt.all {
			t.Errorf("%v: %s… %s, want %s… %s", tt.config, first, all, tt.first, tt.all)
		}
	}
}

func TestUnusableConfigsAreRefused(t *testing.T) {
	tests := []struct {
		name   string
		config Config
		want   string
	}{
		{"an unknown algorithm is named", Config{"buzhash", 64, 128, 256}, `"buzhash" is not known`},
		{"no algorithm", Config{"", 64, 128, 256}, `"" is not known`},
		{"a minimum below the window", Config{Gear, 63, 128, 256}, "want 64 <= min"},
		{"a minimum that is the average", Config{Gear, 128, 128, 256}, "min < avg"},
		{"an average that is the maximum", Config{Rabin, 64, 128, 128}, "avg < max"},
		{"an average that is no power of two", Config{Gear, 64, 129, 256}, "not a power of two"},
		{"a maximum above the limit", Config{Gear, 64, 128, Limit + 1}, "<= 4194304"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := New(tt.config, [32]byte{}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New(%+v) = %v, want %q", tt.config, err, tt.want)
			}
		})
	}
	if _, err := Default("buzhash"); err == nil || !strings.Contains(err.Error(), "buzhash") {
		t.Errorf(`Default("buzhash") = %v`, err)
	}
	for _, a := range algorithms {
		if c, err := Default(a); err != nil || c.Validate() != nil {
			t.Errorf("Default(%q) = %+v, %v; Validate %v", a, c, err, c.Validate())
		}
	}
}
