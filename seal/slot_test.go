package seal

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// cheap is for tests about something else than the cost.
var cheap = cost{time: 1, memory: 64, threads: 1}

func seal4test(t testing.TB, k Sealer, s Secret, config string) []byte {
	t.Helper()
	slot, err := sealSlot(k, s, []byte(config), cheap)
	if err != nil {
		t.Fatal(err)
	}
	return slot
}

// resum makes a slot look whole again, as somebody would who changed it.
func resum(slot []byte) []byte {
	body := slot[:len(slot)-sha256.Size]
	sum := sha256.Sum256(body)
	return append(bytes.Clone(body), sum[:]...)
}

func secrets(t testing.TB) map[string]Secret {
	t.Helper()
	return map[string]Secret{
		"password":      Password([]byte("correct horse")),
		"key text":      must(Text(testKey.Text())),
		"put-only text": must(Text(NewPutText())),
	}
}

func sameKey(a, b Sealer) bool {
	switch a := a.(type) {
	case *Key:
		b, ok := b.(*Key)
		return ok && a.root == b.root && a.seed == b.seed
	case *PutKey:
		b, ok := b.(*PutKey)
		return ok && a.w == b.w && a.rootW == b.rootW && bytes.Equal(a.public.Bytes(), b.public.Bytes())
	}
	return false
}

func TestASlotGivesBackWhatItWraps(t *testing.T) {
	for what, s := range secrets(t) {
		for _, k := range []Sealer{testKey, testKey.PutOnly(7)} {
			for _, config := range []string{"", "what config says"} {
				got, copied, err := OpenSlot(seal4test(t, k, s, config), s)
				if err != nil || !sameKey(got, k) || string(copied) != config {
					t.Errorf("%v by %s: %v, %q, %v", k, what, got, copied, err)
				}
			}
		}
	}
}

func TestASlotOpensOnlyWithItsSecret(t *testing.T) {
	all := secrets(t)
	all["another password"] = Password([]byte("correct horsf"))
	all["no password"] = Password(nil)
	all["another key text"] = must(Text(NewKey().Text()))
	all["another put-only text"] = must(Text(NewPutText()))
	for sealed, s := range all {
		if len(s.bytes) == 0 {
			continue
		}
		slot := seal4test(t, testKey, s, "config")
		for tried, s := range all {
			_, _, err := OpenSlot(slot, s)
			if tried == sealed && err != nil || tried != sealed && !errors.Is(err, ErrWrongSecret) {
				t.Errorf("sealed with %s, tried with %s: %v", sealed, tried, err)
			}
		}
	}
}

func TestThePasswordCostsWhatItShould(t *testing.T) {
	s := Password([]byte("correct horse"))
	slot, err := SealSlot(testKey, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := slot[9:18]
	if want := []byte{3, 0, 0, 0, 0, 0, 1, 0, 4}; !bytes.Equal(got, want) {
		t.Errorf("cost in the slot is %v, want t=3 m=64 MiB p=4: %v", got, want)
	}
	if k, _, err := OpenSlot(slot, s); err != nil || !sameKey(k, testKey) {
		t.Errorf("OpenSlot = %v, %v", k, err)
	}
}

func TestWhatASlotMayCost(t *testing.T) {
	s := Password([]byte("correct horse"))
	tests := []struct {
		name string
		cost cost
		ok   bool
	}{
		{"the least", cost{1, 1, 1}, true},
		{"the most passes", cost{10, 8, 1}, true},
		{"no passes", cost{0, 64, 1}, false},
		{"no memory", cost{1, 0, 1}, false},
		{"no threads", cost{1, 64, 0}, false},
		{"too many passes", cost{11, 64, 1}, false},
		{"over 1 GiB", cost{1, 1<<20 + 1, 1}, false},
		{"as much as fits", cost{1<<32 - 1, 1<<32 - 1, 255}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var slot []byte
			if tt.ok {
				slot = must(sealSlot(testKey, s, nil, tt.cost))
			} else {
				slot = seal4test(t, testKey, s, "")
				binary.LittleEndian.PutUint32(slot[9:], tt.cost.time)
				binary.LittleEndian.PutUint32(slot[13:], tt.cost.memory)
				slot[17] = tt.cost.threads
				slot = resum(slot)
			}
			_, _, err := OpenSlot(slot, s)
			if tt.ok != (err == nil) || !tt.ok && !errors.Is(err, ErrFormat) {
				t.Errorf("cost %+v: %v", tt.cost, err)
			}
		})
	}
}

func TestDamageToASlotIsNotAWrongPassword(t *testing.T) {
	for what, s := range secrets(t) {
		for _, k := range []Sealer{testKey, testKey.PutOnly(7)} {
			slot := seal4test(t, k, s, "config")
			for bit := range 8 * len(slot) {
				p := bytes.Clone(slot)
				p[bit/8] ^= 1 << (bit % 8)
				if _, _, err := OpenSlot(p, s); !errors.Is(err, ErrFormat) || errors.Is(err, ErrWrongSecret) {
					t.Fatalf("%v by %s, bit %d flipped: %v", k, what, bit, err)
				}
			}
			for n := range slot {
				if _, _, err := OpenSlot(slot[:n], s); !errors.Is(err, ErrFormat) {
					t.Fatalf("%v by %s, cut to %d bytes: %v", k, what, n, err)
				}
			}
		}
	}
}

// Somebody who can write to the store makes the checksum right, too.
func TestAForgedSlotIsRefused(t *testing.T) {
	for what, s := range secrets(t) {
		slot := seal4test(t, testKey, s, "config")
		for bit := range 8 * (len(slot) - sha256.Size) {
			p := bytes.Clone(slot)
			p[bit/8] ^= 1 << (bit % 8)
			if m := binary.LittleEndian.Uint32(p[13:]); m > 1<<10 && m <= maxMemory {
				continue // allowed, and slow to try
			}
			_, _, err := OpenSlot(resum(p), s)
			if !errors.Is(err, ErrOpen) && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrWrongSecret) {
				t.Fatalf("%s, bit %d flipped: %v", what, bit, err)
			}
			if bit/8 >= slotHead && !errors.Is(err, ErrOpen) {
				t.Fatalf("%s, bit %d of the sealed part flipped: %v, want ErrOpen", what, bit, err)
			}
		}
	}
}

// Bytes can be made that AES-GCM opens with either of two keys. They cannot be
// made to have the commitment of both.
func TestASlotCommitsToItsKey(t *testing.T) {
	a, b := Password([]byte("a")), Password([]byte("b"))
	slot := seal4test(t, testKey, a, "")
	kek := b.kek(cheap, slot[18:50])
	// The whole sealed part as b would have it, under a's commitment.
	head := slot[:slotHead]
	forged := seal(bytes.Clone(head), Suite(head[slotHead-1]), &kek, labelSlot, []byte{slotKey}, head)
	forged = resum(append(forged, make([]byte, sha256.Size)...))
	if _, _, err := OpenSlot(forged, b); !errors.Is(err, ErrWrongSecret) {
		t.Errorf("with b: %v", err)
	}
	if _, _, err := OpenSlot(forged, a); !errors.Is(err, ErrOpen) {
		t.Errorf("with a: %v", err)
	}
}

func TestSlotsThatAreRefused(t *testing.T) {
	s := Password([]byte("a"))
	whole := seal4test(t, testKey, s, "")
	change := func(at int, b byte) []byte {
		p := bytes.Clone(whole)
		p[at] = b
		return resum(p)
	}
	textWithCost := seal4test(t, testKey, must(Text(testKey.Text())), "")
	textWithCost[9] = 1
	for name, tt := range map[string]struct {
		slot []byte
		want string
	}{
		"empty":             {nil, "not a key slot"},
		"something else":    {[]byte("orlop\x00P1 is a pack"), "not a key slot"},
		"a later version":   {change(7, '2'), "version '2', and this program knows version '1'"},
		"cut off":           {whole[:100], "cut off at 100 bytes"},
		"bad sum":           {whole[:len(whole)-1], "checksum"},
		"unknown secret":    {change(8, 3), "unknown kind of secret 3"},
		"unknown suite":     {change(slotHead-1, 9), "suite(9)"},
		"a text that costs": {resum(textWithCost), "a text has no cost"},
	} {
		_, _, err := OpenSlot(tt.slot, s)
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func TestWhatNoSlotIsMadeOf(t *testing.T) {
	if _, err := SealSlot(testKey, Password(nil), nil); err == nil {
		t.Error("an empty password was taken")
	}
	if _, err := SealSlot(nil, Password([]byte("a")), nil); err == nil {
		t.Error("a slot of no key was made")
	}
}

func TestKeysInSlotsThatAreRefused(t *testing.T) {
	put := append([]byte{slotPutKey, 7, 0, 0, 0}, make([]byte, 32)...)
	put = append(put, testKey.public.Bytes()...)
	common := bytes.Clone(put)
	common[1] = 0
	point := bytes.Clone(put)
	for i := range 3 {
		point[37+i] = 0xff // coefficients over the modulus of ML-KEM
	}
	for name, p := range map[string][]byte{
		"empty":                    {},
		"unknown kind":             {3, 1, 2},
		"a key cut off":            make([]byte, 64),
		"a put-only key cut off":   put[:len(put)-1],
		"a put-only common writer": common,
		"no public key":            point,
	} {
		if _, _, err := parseSlot(p); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := parseSlot(put); err != nil {
		t.Error(err)
	}
}

func FuzzOpenSlot(f *testing.F) {
	password, text := Password([]byte("a")), must(Text(testKey.Text()))
	for _, s := range []Secret{password, text} {
		for _, k := range []Sealer{testKey, testKey.PutOnly(7)} {
			f.Add(seal4test(f, k, s, "config"))
		}
	}
	f.Add([]byte(slotMagic))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) >= slotMin {
			if m := binary.LittleEndian.Uint32(p[13:]); m > 1<<10 && m <= maxMemory {
				binary.LittleEndian.PutUint32(p[13:], m>>10)
			}
			p = resum(p)
		}
		for _, s := range []Secret{password, text} {
			k, config, err := OpenSlot(p, s)
			if err != nil {
				if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrOpen) && !errors.Is(err, ErrWrongSecret) {
					t.Fatalf("error of the wrong kind: %v", err)
				}
				continue
			}
			if k.Writer() != Common && k.Writer() != 7 || string(config) != "config" {
				t.Fatalf("a slot that nobody sealed: %v, %q", k, config)
			}
		}
	})
}

// The fuzzer does not get behind the seal, so this is what lies there.
func FuzzParseSlot(f *testing.F) {
	text := must(Text(testKey.Text()))
	f.Add(append([]byte{slotKey}, make([]byte, 70)...))
	f.Add(append(append([]byte{slotPutKey, 7, 0, 0, 0}, make([]byte, 32)...), testKey.public.Bytes()...))
	f.Add([]byte{slotPutKey})
	f.Fuzz(func(t *testing.T, p []byte) {
		k, config, err := parseSlot(p)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		again, copied, err := OpenSlot(must(sealSlot(k, text, config, cheap)), text)
		if err != nil || !sameKey(again, k) || !bytes.Equal(copied, config) {
			t.Fatalf("read %v %q, sealed and opened %v %q, %v", k, config, again, copied, err)
		}
		if want := fmt.Sprint(k); fmt.Sprint(again) != want {
			t.Fatalf("%v became %v", want, again)
		}
	})
}
