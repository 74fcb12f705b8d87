package seal

import (
	"bytes"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"orlop/id"
)

// A Header says which session sealed an object. It stands in clear at the
// front of packs and snapshots.
type Header struct {
	Suite  Suite
	Writer Writer
	SID    id.Session
	Enc    []byte // HPKE encapsulated key, 1,120 bytes
}

// HeaderSize is the length of an encoded Header.
const HeaderSize = 1 + 4 + len(id.Session{}) + encSize

// Append appends the encoding of h to dst.
func (h Header) Append(dst []byte) []byte {
	dst = append(dst, byte(h.Suite))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(h.Writer))
	dst = append(dst, h.SID[:]...)
	return append(dst, h.Enc...)
}

// Equal reports whether h and g are of the same session.
func (h Header) Equal(g Header) bool {
	return h.Suite == g.Suite && h.Writer == g.Writer && h.SID == g.SID && bytes.Equal(h.Enc, g.Enc)
}

// ParseHeader decodes a header of exactly [HeaderSize] bytes. It keeps nothing
// of p. Its errors are [ErrFormat].
func ParseHeader(p []byte) (Header, error) {
	if len(p) != HeaderSize {
		return Header{}, fmt.Errorf("%w: session header of %d bytes, not %d", ErrFormat, len(p), HeaderSize)
	}
	s, p, err := cutSuite(p)
	if err != nil {
		return Header{}, err
	}
	return Header{
		Suite:  s,
		Writer: Writer(binary.LittleEndian.Uint32(p)),
		SID:    id.Session(p[4:20]),
		Enc:    bytes.Clone(p[20:]),
	}, nil
}

// cutSuite takes the suite byte off the front of p.
func cutSuite(p []byte) (Suite, []byte, error) {
	if len(p) == 0 {
		return 0, nil, fmt.Errorf("%w: empty", ErrFormat)
	}
	if s := Suite(p[0]); s.Valid() {
		return s, p[1:], nil
	}
	return 0, nil, fmt.Errorf("%w: unknown %v", ErrFormat, Suite(p[0]))
}

// A Session seals boxes and snapshots of one writer's run. It cannot open
// them. It may be used concurrently.
type Session struct {
	header Header
	secret secret
}

// A Reader opens what a [Session] sealed. It may be used concurrently.
type Reader struct{ secret secret }

// A secret is what a Session and its Readers have in common.
type secret struct {
	suite   Suite
	key     [32]byte
	context []byte // not to be appended to in place
}

// NewSession implements [Sealer].
func (w *writer) NewSession(repo id.Repository, sid id.Session) (*Session, error) {
	return w.newSession(repo, sid, BestSuite())
}

func (w *writer) newSession(repo id.Repository, sid id.Session, s Suite) (*Session, error) {
	enc, sender, err := hpke.NewSender(w.public, hpke.HKDFSHA256(), hpke.ExportOnly(), nil)
	if err != nil {
		return nil, fmt.Errorf("start session: %w", err)
	}
	export, err := sender.Export(labelExport, 32)
	if err != nil {
		return nil, fmt.Errorf("start session: %w", err)
	}
	h := Header{Suite: s, Writer: w.w, SID: sid, Enc: enc}
	return &Session{h, newSecret(export, w.material, repo, h)}, nil
}

// newSecret mixes what only a Key can export again with what only w and a Key
// have: the first keeps w from reading, the second others from writing as w.
func newSecret(export []byte, material [32]byte, repo id.Repository, h Header) secret {
	salt := append(material[:], repo[:]...)
	salt = binary.LittleEndian.AppendUint32(salt, uint32(h.Writer))
	salt = append(salt, h.SID[:]...)
	return secret{h.Suite, derive(export, salt, labelSession), context(repo, h.Suite, h.Writer)}
}

// Header returns what a [Key] needs to open what s seals.
func (s *Session) Header() Header { return s.header }

// SealBox appends the sealed payload of a box to dst, [Overhead] bytes more
// than payload. payload must not overlap the room behind dst.
func (s *Session) SealBox(dst, payload []byte, codec uint8, raw int) []byte {
	return seal(dst, s.secret.suite, &s.secret.key, labelBox, payload, s.secret.boxAD(codec, raw))
}

// SealSnapshot appends a sealed snapshot to dst, [Overhead] bytes more than
// plaintext.
func (s *Session) SealSnapshot(dst, plaintext []byte) []byte {
	return seal(dst, s.secret.suite, &s.secret.key, labelSnapshot, plaintext, s.secret.context)
}

// OpenBox appends the payload of a box to dst. It returns [ErrOpen] if the
// box, its codec or its raw length is not what was sealed.
func (r *Reader) OpenBox(dst, sealed []byte, codec uint8, raw int) ([]byte, error) {
	return open(dst, r.secret.suite, &r.secret.key, labelBox, sealed, r.secret.boxAD(codec, raw))
}

// OpenBoxInPlace is OpenBox that puts the payload where the box was, whose
// bytes are lost, and returns that part of it.
func (r *Reader) OpenBoxInPlace(sealed []byte, codec uint8, raw int) ([]byte, error) {
	if len(sealed) < Overhead {
		return nil, ErrOpen
	}
	return r.OpenBox(sealed[saltSize:saltSize], sealed, codec, raw)
}

// OpenSnapshot appends the plaintext of a snapshot to dst, or returns
// [ErrOpen].
func (r *Reader) OpenSnapshot(dst, sealed []byte) ([]byte, error) {
	return open(dst, r.secret.suite, &r.secret.key, labelSnapshot, sealed, r.secret.context)
}

func (c *secret) boxAD(codec uint8, raw int) []byte {
	ad := make([]byte, 0, 64)
	ad = append(ad, c.context...)
	ad = append(ad, codec)
	return binary.LittleEndian.AppendUint64(ad, uint64(raw))
}

// Readers remembered by a Key. Each session costs 0.1 ms to enter, and a
// restore goes back and forth between the packs of many.
const maxReaders = 4096

// OpenSession returns the reader of the session with header h. That it returns
// one says nothing about the header: one that was changed opens nothing.
func (k *Key) OpenSession(repo id.Repository, h Header) (*Reader, error) {
	if !h.Suite.Valid() {
		return nil, fmt.Errorf("open session: %w: unknown %v", ErrFormat, h.Suite)
	}
	cached := sha256.Sum256(h.Append(repo[:]))
	k.mu.Lock()
	r := k.readers[cached]
	k.mu.Unlock()
	if r != nil {
		return r, nil
	}

	recipient, err := hpke.NewRecipient(h.Enc, k.private, hpke.HKDFSHA256(), hpke.ExportOnly(), nil)
	if err != nil {
		return nil, fmt.Errorf("open session: %w: %v", ErrOpen, err)
	}
	export, err := recipient.Export(labelExport, 32)
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	root := writerRoot(k.root, h.Writer)
	r = &Reader{newSecret(export, derive(root[:], nil, labelMaterial), repo, h)}

	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.readers) >= maxReaders {
		clear(k.readers)
	}
	k.readers[cached] = r
	return r, nil
}
