// Package id holds the names of things: types that cannot be mixed up, and the
// keyed and plain hashes that make them.
//
// A blob is named by a keyed hash of its plaintext ([Namer]), so nobody
// without the key can tell from a name what was backed up. Packs, segments,
// snapshots and key slots are named by a plain hash of their stored bytes
// ([Sum]), so storage can be scrubbed by someone who has no key.
//
// Every hash is BLAKE3 with 256 bits of output; no other package of orlop
// imports it.
package id

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/zeebo/blake3"
)

// Size is the length of a name in bytes.
const Size = 32

// An ID names one object. Of is never used as a value; it only keeps names of
// different kinds of object apart.
type ID[Of any] [Size]byte

// The kinds of name.
type (
	Blob       = ID[blob]       // keyed digest of a blob's plaintext
	Pack       = ID[pack]       // digest of a pack's bytes
	Segment    = ID[segment]    // digest of an index segment's bytes
	Snapshot   = ID[snapshot]   // digest of a snapshot's bytes
	Slot       = ID[slot]       // digest of a key slot's bytes
	Repository = ID[repository] // drawn at random by init
)

type (
	blob       struct{}
	pack       struct{}
	segment    struct{}
	snapshot   struct{}
	slot       struct{}
	repository struct{}
)

// String returns the name as 64 hex digits.
func (i ID[Of]) String() string { return hex.EncodeToString(i[:]) }

// Short returns the first 8 hex digits, for people.
func (i ID[Of]) Short() string { return hex.EncodeToString(i[:4]) }

// IsZero reports whether the name was never set.
func (i ID[Of]) IsZero() bool { return i == ID[Of]{} }

// Compare orders names by their bytes.
func (i ID[Of]) Compare(j ID[Of]) int { return bytes.Compare(i[:], j[:]) }

// MarshalText implements encoding.TextMarshaler; the zero name is "".
func (i ID[Of]) MarshalText() ([]byte, error) {
	if i.IsZero() {
		return nil, nil
	}
	return []byte(i.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (i *ID[Of]) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*i = ID[Of]{}
		return nil
	}
	j, err := Parse[ID[Of]](string(text))
	if err == nil {
		*i = j
	}
	return err
}

// Parse reads 64 lower-case hex digits: Parse[id.Pack](s).
func Parse[I ~[Size]byte](s string) (I, error) {
	var i I
	if err := parseHex(i[:], s); err != nil {
		return I{}, err
	}
	return i, nil
}

// A Session names one writer's run. It is drawn at random.
type Session [16]byte

// String returns the session as 32 hex digits.
func (s Session) String() string { return hex.EncodeToString(s[:]) }

// IsZero reports whether the session was never set.
func (s Session) IsZero() bool { return s == Session{} }

// ParseSession reads 32 lower-case hex digits.
func ParseSession(text string) (Session, error) {
	var s Session
	if err := parseHex(s[:], text); err != nil {
		return Session{}, err
	}
	return s, nil
}

func parseHex(dst []byte, s string) error {
	if len(s) != hex.EncodedLen(len(dst)) {
		return fmt.Errorf("%q is not %d hex digits", s, hex.EncodedLen(len(dst)))
	}
	for _, c := range []byte(s) {
		// One spelling a name, so a listing cannot show an object twice.
		if c >= 'A' && c <= 'F' {
			return fmt.Errorf("%q is not lower-case hex", s)
		}
	}
	if _, err := hex.Decode(dst, []byte(s)); err != nil {
		return fmt.Errorf("%q is not hex", s)
	}
	return nil
}

// A Kind says what a blob holds. It is part of what is hashed, so a blob of
// one kind can never stand in for another.
type Kind uint8

// The kinds of blob.
const (
	Data Kind = 1 // bytes of a file, of a segment map or of an xattr set
	List Kind = 2 // names of the blobs of a large file
	Node Kind = 3 // a node of a snapshot's tree
)

// String names the kind for people.
func (k Kind) String() string {
	switch k {
	case Data:
		return "data"
	case List:
		return "list"
	case Node:
		return "node"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Valid reports whether k is one of the kinds above.
func (k Kind) Valid() bool { return k >= Data && k <= Node }

// A Namer names blobs: keyed BLAKE3-256 of plaintext | kind. It may be used
// concurrently.
type Namer struct{ pool sync.Pool }

// NewNamer returns the namer for a 32-byte naming key.
func NewNamer(key [32]byte) *Namer {
	n := new(Namer)
	n.pool.New = func() any { return newKeyed(key) }
	return n
}

// Blob returns the name of a blob.
func (n *Namer) Blob(kind Kind, plaintext []byte) Blob {
	h := n.pool.Get().(*blake3.Hasher)
	h.Reset()
	_, _ = h.Write(plaintext)
	// The kind comes last: before the plaintext it would shift every block of
	// it by one byte and cost a copy.
	_, _ = h.Write([]byte{byte(kind)})
	var b Blob
	h.Sum(b[:0])
	n.pool.Put(h)
	return b
}

// Keyed is BLAKE3-256 with a key, for hashes that are not names: tree
// boundaries and hard-link groups. It may be used concurrently.
type Keyed struct{ pool sync.Pool }

// NewKeyed returns the hash for a 32-byte key.
func NewKeyed(key [32]byte) *Keyed {
	k := new(Keyed)
	k.pool.New = func() any { return newKeyed(key) }
	return k
}

// Sum hashes the concatenation of parts.
func (k *Keyed) Sum(parts ...string) [32]byte {
	h := k.pool.Get().(*blake3.Hasher)
	h.Reset()
	for _, p := range parts {
		_, _ = h.WriteString(p)
	}
	var sum [32]byte
	h.Sum(sum[:0])
	k.pool.Put(h)
	return sum
}

func newKeyed(key [32]byte) *blake3.Hasher {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err) // only a key that is not 32 bytes
	}
	return h
}

// Sum returns the name of a stored object: Sum[id.Pack](data).
func Sum[I ~[Size]byte](data []byte) I { return I(blake3.Sum256(data)) }

// A Hash is a running plain BLAKE3-256.
type Hash struct{ h *blake3.Hasher }

// NewHash returns the hash of nothing yet.
func NewHash() Hash { return Hash{blake3.New()} }

// Write adds p to what is hashed; it never fails.
func (h Hash) Write(p []byte) (int, error) { return h.h.Write(p) }

// Sum returns the hash of all that was written so far.
func (h Hash) Sum() (sum [32]byte) {
	h.h.Sum(sum[:0])
	return sum
}
