package chunk

import (
	"math/rand/v2"
	"testing"
)

func BenchmarkNext(b *testing.B) {
	data := make([]byte, 64<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	for _, a := range []Algorithm{Gear, Rabin} {
		b.Run(string(a), func(b *testing.B) {
			c, _ := Default(a)
			s, err := New(c, [32]byte{1})
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				for p := data; len(p) > 0; {
					p = p[s.Next(p, false):]
				}
			}
		})
	}
}

// What is found by many costs more work than what one finds.
func BenchmarkCuts(b *testing.B) {
	data := make([]byte, 8<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	c, _ := Default(Gear)
	s, err := New(c, [32]byte{1})
	if err != nil {
		b.Fatal(err)
	}
	var dst []int
	for name, fork := range map[string]Fork{"shared by one": backwards, "shared by many": atOnce} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				dst = s.Cuts(dst[:0], data, false, fork)
			}
		})
	}
}
