// Package seal makes, wraps and unwraps keys, and seals and opens bytes with
// them. It knows nothing of what the bytes mean or where they are kept.
//
// # Who holds what
//
// A [Key] reads everything and writes as [Common]. A [PutKey] writes as one
// [Writer] and reads nothing but that writer's own index: it is what a host is
// given that must be able to add backups and never to read them. What the two
// have in common is [Sealer]; code that is handed no more than that cannot
// open what it seals.
//
// Both rest in slots ([SealSlot], [OpenSlot]), wrapped by a password or by a
// generated text. The text of a Key holds the key itself ([Key.Text]), so it
// alone survives the loss of every slot.
//
// # One key, one use
//
// Everything sealed has its own key, HKDF-SHA256 of a secret, a fresh 16-byte
// salt and a label that says what it is for, and the nonce is zero. So no
// nonce is ever counted, and bytes sealed for one purpose do not open as
// another. All AEAD runs through one function, which a test watches.
//
// The bytes are in docs/format.md.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/cpu"

	"orlop/id"
)

var (
	// ErrOpen is returned when sealed bytes are not what was sealed, were
	// sealed by another key or for another purpose, or come with other
	// associated data. Which of these it was cannot be told.
	ErrOpen = errors.New("does not open: changed, or sealed by another key")

	// ErrWrongSecret is returned when a password or a key text is not the one
	// that is asked for, or when a key text has a mistake in it.
	ErrWrongSecret = errors.New("wrong password or key")

	// ErrPutOnly is returned by operations that would need to read what
	// another writer sealed.
	ErrPutOnly = errors.New("this key can only add backups")

	// ErrFormat is returned for bytes that are not of the form expected, or of
	// a version that this program does not know.
	ErrFormat = errors.New("malformed")
)

// Overhead is what sealing adds to a box or a snapshot, in bytes: a salt
// before the ciphertext and a tag after it.
const Overhead = saltSize + tagSize

const (
	saltSize = 16
	tagSize  = 16
	major    = 1 // version of all formats here, part of the associated data
)

// A Writer says as whom a key writes. Writers have names, cuts and indexes of
// their own: blobs are shared within a writer, never between two.
type Writer uint32

// Common is the writer of everybody who holds a [Key].
const Common Writer = 0

// A Suite is an AEAD with 32-byte keys, 12-byte nonces and 16-byte tags.
type Suite uint8

// The suites.
const (
	AES256GCM        Suite = 1
	ChaCha20Poly1305 Suite = 2
)

// String names the suite for people.
func (s Suite) String() string {
	switch s {
	case AES256GCM:
		return "AES-256-GCM"
	case ChaCha20Poly1305:
		return "ChaCha20-Poly1305"
	}
	return fmt.Sprintf("suite(%d)", uint8(s))
}

// Valid reports whether s is one of the suites above.
func (s Suite) Valid() bool { return s == AES256GCM || s == ChaCha20Poly1305 }

// BestSuite is the suite this machine should seal with: AES-256-GCM where the
// CPU has instructions for it. Without them Go's AES is slow and its timing
// depends on the key; either suite can be opened anywhere.
func BestSuite() Suite {
	var fast bool
	switch runtime.GOARCH {
	case "amd64":
		fast = cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSE41
	case "arm64":
		fast = cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
	case "s390x":
		fast = cpu.S390X.HasAES && cpu.S390X.HasAESGCM
	}
	if fast {
		return AES256GCM
	}
	return ChaCha20Poly1305
}

// used, if set, is told of every key and nonce before they seal anything.
var used func(s Suite, key [32]byte, nonce []byte)

// Every key seals once, so its nonce can be a constant.
var nonce [12]byte

// seal appends salt | ciphertext | tag to dst.
func seal(dst []byte, s Suite, secret *[32]byte, label string, plaintext, ad []byte) []byte {
	var salt [saltSize]byte
	_, _ = rand.Read(salt[:])
	return sealSalted(dst, s, secret, label, salt, plaintext, ad)
}

// sealSalted is where all sealing passes. The salt must never have been used
// with this secret and label before.
func sealSalted(dst []byte, s Suite, secret *[32]byte, label string, salt [saltSize]byte, plaintext, ad []byte) []byte {
	key := derive(secret[:], salt[:], label)
	if used != nil {
		used(s, key, nonce[:])
	}
	dst = slices.Grow(dst, Overhead+len(plaintext))
	dst = append(dst, salt[:]...)
	return aead(s, key).Seal(dst, nonce[:], plaintext, ad)
}

// open appends the plaintext of what seal made to dst.
func open(dst []byte, s Suite, secret *[32]byte, label string, sealed, ad []byte) ([]byte, error) {
	if len(sealed) < Overhead {
		return nil, ErrOpen
	}
	key := derive(secret[:], sealed[:saltSize], label)
	p, err := aead(s, key).Open(dst, nonce[:], sealed[saltSize:], ad)
	if err != nil {
		return nil, ErrOpen
	}
	return p, nil
}

func aead(s Suite, key [32]byte) cipher.AEAD {
	var a cipher.AEAD
	var err error
	switch s {
	case AES256GCM:
		var b cipher.Block
		if b, err = aes.NewCipher(key[:]); err == nil {
			a, err = cipher.NewGCM(b)
		}
	case ChaCha20Poly1305:
		a, err = chacha20poly1305.New(key[:])
	default:
		err = fmt.Errorf("seal: no %v", s)
	}
	if err != nil {
		panic(err) // suites are checked where they are read
	}
	return a
}

// derive is HKDF-SHA256 (RFC 5869) with 32 bytes of output.
func derive(secret, salt []byte, label string) [32]byte {
	k, err := hkdf.Key(sha256.New, secret, salt, label, 32)
	if err != nil {
		panic(err) // only for outputs over 8,160 bytes
	}
	return [32]byte(k)
}

// context is how all associated data that belongs to a repository begins.
func context(repo id.Repository, s Suite, w Writer) []byte {
	ad := make([]byte, 0, 64)
	ad = append(ad, repo[:]...)
	ad = append(ad, major, byte(s))
	return binary.LittleEndian.AppendUint32(ad, uint32(w))
}
