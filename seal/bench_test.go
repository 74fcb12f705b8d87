package seal

import (
	"fmt"
	"testing"

	"orlop/id"
)

func BenchmarkSealBox(b *testing.B) {
	for _, suite := range []Suite{AES256GCM, ChaCha20Poly1305} {
		for _, size := range []int{4 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%v/%dKiB", suite, size>>10), func(b *testing.B) {
				s, err := testKey.newSession(id.Repository{1}, id.Session{2}, suite)
				if err != nil {
					b.Fatal(err)
				}
				payload, dst := make([]byte, size), make([]byte, 0, size+Overhead)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					dst = s.SealBox(dst[:0], payload, 1, size)
				}
			})
		}
	}
}

func BenchmarkOpenBox(b *testing.B) {
	for _, suite := range []Suite{AES256GCM, ChaCha20Poly1305} {
		for _, size := range []int{4 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%v/%dKiB", suite, size>>10), func(b *testing.B) {
				s, err := testKey.newSession(id.Repository{1}, id.Session{2}, suite)
				if err != nil {
					b.Fatal(err)
				}
				r, err := testKey.OpenSession(id.Repository{1}, s.Header())
				if err != nil {
					b.Fatal(err)
				}
				sealed, dst := s.SealBox(nil, make([]byte, size), 1, size), make([]byte, 0, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if dst, err = r.OpenBox(dst[:0], sealed, 1, size); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkNewSession(b *testing.B) {
	for b.Loop() {
		if _, err := testKey.NewSession(id.Repository{1}, id.Session{2}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenSession(b *testing.B) {
	s, err := testKey.NewSession(id.Repository{1}, id.Session{2})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		clear(testKey.readers)
		if _, err := testKey.OpenSession(id.Repository{1}, s.Header()); err != nil {
			b.Fatal(err)
		}
	}
}
