package storetest

import (
	"testing"

	"orlop/store"
)

// Replace makes name hold data, whatever it held before. No store can do this
// to its users; disks and people can.
func Replace(t testing.TB, st store.Deleter, name store.Name, data []byte) {
	t.Helper()
	if err := st.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if err := st.Put(t.Context(), name, data); err != nil {
		t.Fatal(err)
	}
}

// Flip changes the byte of name at off by xor with mask, which must not be 0.
func Flip(t testing.TB, st store.Deleter, name store.Name, off int64, mask byte) {
	t.Helper()
	if mask == 0 {
		t.Fatal("flip of no bits")
	}
	data := Read(t, st, name)
	data[off] ^= mask
	Replace(t, st, name, data)
}

// Truncate leaves the first n bytes of name.
func Truncate(t testing.TB, st store.Deleter, name store.Name, n int64) {
	t.Helper()
	Replace(t, st, name, Read(t, st, name)[:n])
}

// Remove deletes name.
func Remove(t testing.TB, st store.Deleter, name store.Name) {
	t.Helper()
	if err := st.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

// Read returns the whole of name.
func Read(t testing.TB, st store.Store, name store.Name) []byte {
	t.Helper()
	data, err := st.Get(t.Context(), name, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Infos returns what is in st below prefix.
func Infos(t testing.TB, st store.Store, prefix store.Name) []store.Info {
	t.Helper()
	var infos []store.Info
	for info, err := range st.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		infos = append(infos, info)
	}
	return infos
}

// Copy returns a store in memory that holds what st holds.
func Copy(t testing.TB, st store.Store) *store.Mem {
	t.Helper()
	mem := store.NewMem()
	for _, info := range Infos(t, st, "") {
		if err := mem.Put(t.Context(), info.Name, Read(t, st, info.Name)); err != nil {
			t.Fatal(err)
		}
	}
	return mem
}
