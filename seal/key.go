package seal

import (
	"crypto/hpke"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"sync"

	"orlop/id"
)

// A Sealer can add to a repository: it names blobs and seals them, and cannot
// open a box or a snapshot. It may be used concurrently.
type Sealer interface {
	// Writer returns as whom it writes.
	Writer() Writer

	// NameKey returns the key of Namer, for an agent that names blobs in
	// another process.
	NameKey() [32]byte

	// Namer returns the hash that names its blobs.
	Namer() *id.Namer

	// ChunkSecret returns what keys its splitter.
	ChunkSecret() [32]byte

	// Boundary returns the hash that says where nodes of its trees end.
	Boundary() *id.Keyed

	// NewSession starts a session: fresh keys for boxes and snapshots, which
	// only a [Key] can open once the Session is gone.
	NewSession(repo id.Repository, sid id.Session) (*Session, error)

	// IndexKey returns what seals and opens pack directories and index
	// segments of w. A PutKey has only its own, else [ErrPutOnly].
	IndexKey(repo id.Repository, w Writer) (*IndexKey, error)

	// NamerOf returns the hash that names w's blobs. A PutKey has only its
	// own, else [ErrPutOnly].
	NamerOf(w Writer) (*id.Namer, error)
}

var (
	_ Sealer = (*Key)(nil)
	_ Sealer = (*PutKey)(nil)
)

const (
	seedSize   = 32   // HPKE private key, serialized
	publicSize = 1216 // HPKE public key, serialized
	encSize    = 1120 // HPKE encapsulated key
)

// HPKE (RFC 9180) is used to export a secret and never to encrypt: a session
// seals gigabytes with its own keys. ML-KEM-768 with X25519 holds while either
// of the two does (draft-ietf-hpke-pq).
func kem() hpke.KEM { return hpke.MLKEM768X25519() }

// A Key reads everything in a repository, and writes as [Common]. It may be
// used concurrently.
type Key struct {
	writer
	root, seed [32]byte
	private    hpke.PrivateKey

	mu      sync.Mutex
	readers map[[32]byte]*Reader
}

// NewKey draws a key.
func NewKey() *Key {
	var root, seed [32]byte
	_, _ = rand.Read(root[:])
	_, _ = rand.Read(seed[:])
	k, err := newKey(root, seed)
	if err != nil {
		panic(err) // any 32 bytes are a seed
	}
	return k
}

func newKey(root, seed [32]byte) (*Key, error) {
	private, err := kem().NewPrivateKey(seed[:])
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFormat, err)
	}
	return &Key{
		writer:  newWriter(Common, writerRoot(root, Common), private.PublicKey()),
		root:    root,
		seed:    seed,
		private: private,
		readers: make(map[[32]byte]*Reader),
	}, nil
}

// PutOnly returns the part of k that can only add, as w. It panics if w is
// [Common]: a host that held that could read the index of everybody's backups
// and name their blobs.
func (k *Key) PutOnly(w Writer) *PutKey {
	if w == Common {
		panic("seal: a put-only key needs a writer of its own")
	}
	return &PutKey{newWriter(w, writerRoot(k.root, w), k.private.PublicKey())}
}

// IndexKey implements [Sealer]; it has those of every writer.
func (k *Key) IndexKey(repo id.Repository, w Writer) (*IndexKey, error) {
	return newIndexKey(repo, w, writerRoot(k.root, w)), nil
}

// NamerOf implements [Sealer]; it has those of every writer.
func (k *Key) NamerOf(w Writer) (*id.Namer, error) {
	if w == Common {
		return k.namer, nil
	}
	return id.NewNamer(nameKey(writerRoot(k.root, w))), nil
}

// NameKeyOf returns the key that names w's blobs, for an agent that compares
// files with what a snapshot of w names.
func (k *Key) NameKeyOf(w Writer) [32]byte { return nameKey(writerRoot(k.root, w)) }

// SealConfig seals the private part of a config to its clear part.
func (k *Key) SealConfig(clear, private []byte) []byte {
	s := BestSuite()
	secret := derive(k.root[:], nil, labelConfig)
	return seal([]byte{byte(s)}, s, &secret, labelConfig, private, configAD(s, clear))
}

// OpenConfig returns the private part of a config. It returns [ErrOpen] if
// either part is not what SealConfig had.
func (k *Key) OpenConfig(clear, sealed []byte) ([]byte, error) {
	s, rest, err := cutSuite(sealed)
	if err != nil {
		return nil, err
	}
	secret := derive(k.root[:], nil, labelConfig)
	return open(nil, s, &secret, labelConfig, rest, configAD(s, clear))
}

func configAD(s Suite, clear []byte) []byte {
	return append([]byte{major, byte(s)}, clear...)
}

// String keeps the key out of logs.
func (k *Key) String() string { return "key" }

// GoString keeps the key out of logs.
func (k *Key) GoString() string { return k.String() }

// A PutKey adds to a repository as one writer. It has no way to open a box or
// a snapshot, its own included. It may be used concurrently.
type PutKey struct{ writer }

// IndexKey implements [Sealer].
func (k *PutKey) IndexKey(repo id.Repository, w Writer) (*IndexKey, error) {
	if w != k.w {
		return nil, fmt.Errorf("index of writer %d: %w", w, ErrPutOnly)
	}
	return newIndexKey(repo, w, k.rootW), nil
}

// NamerOf implements [Sealer].
func (k *PutKey) NamerOf(w Writer) (*id.Namer, error) {
	if w != k.w {
		return nil, fmt.Errorf("names of writer %d: %w", w, ErrPutOnly)
	}
	return k.namer, nil
}

// String keeps the key out of logs.
func (k *PutKey) String() string { return fmt.Sprintf("put-only key of writer %d", k.w) }

// GoString keeps the key out of logs.
func (k *PutKey) GoString() string { return k.String() }

// The labels of HKDF. Each is used for one thing only.
const (
	labelWriter     = "orlop writer 1" // followed by w
	labelName       = "orlop name 1"
	labelChunk      = "orlop chunker 1"
	labelBoundary   = "orlop boundary 1"
	labelIndex      = "orlop index 1"
	labelMaterial   = "orlop session material 1"
	labelExport     = "orlop session 1" // of HPKE's export
	labelSession    = "orlop session key 1"
	labelBox        = "orlop box 1"
	labelSnapshot   = "orlop snapshot 1"
	labelDirectory  = "orlop directory 1"
	labelSegment    = "orlop segment 1"
	labelConfig     = "orlop config 1"
	labelSlot       = "orlop slot 1"
	labelSlotText   = "orlop slot text 1"
	labelCommitment = "orlop slot commitment 1"
)

// A writer is what a Key and a PutKey have in common.
type writer struct {
	w        Writer
	rootW    [32]byte
	material [32]byte
	name     [32]byte
	chunk    [32]byte
	namer    *id.Namer
	boundary *id.Keyed
	public   hpke.PublicKey
}

func newWriter(w Writer, root [32]byte, public hpke.PublicKey) writer {
	name := nameKey(root)
	return writer{
		w:        w,
		rootW:    root,
		material: derive(root[:], nil, labelMaterial),
		name:     name,
		chunk:    derive(root[:], nil, labelChunk),
		namer:    id.NewNamer(name),
		boundary: id.NewKeyed(derive(root[:], nil, labelBoundary)),
		public:   public,
	}
}

func writerRoot(root [32]byte, w Writer) [32]byte {
	return derive(root[:], nil, string(binary.LittleEndian.AppendUint32([]byte(labelWriter), uint32(w))))
}

func nameKey(root [32]byte) [32]byte { return derive(root[:], nil, labelName) }

// Writer implements [Sealer].
func (w *writer) Writer() Writer { return w.w }

// NameKey implements [Sealer].
func (w *writer) NameKey() [32]byte { return w.name }

// Namer implements [Sealer].
func (w *writer) Namer() *id.Namer { return w.namer }

// ChunkSecret implements [Sealer].
func (w *writer) ChunkSecret() [32]byte { return w.chunk }

// Boundary implements [Sealer].
func (w *writer) Boundary() *id.Keyed { return w.boundary }
