package seal

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/crypto/argon2"
)

// A Secret is what opens a slot: a password that a person chose, or a text
// that was generated.
type Secret struct {
	kdf   kdf
	bytes []byte
}

// Password returns the secret that is a password. Every byte of it counts.
func Password(password []byte) Secret { return Secret{kdfPassword, bytes.Clone(password)} }

// Text returns the secret that is the text of a [Key] or one made by
// [NewPutText]. Its errors say what is wrong with the text and are
// [ErrWrongSecret].
func Text(text string) (Secret, error) {
	_, p, err := decodeText(text)
	if err != nil {
		return Secret{}, err
	}
	return Secret{kdfText, p}, nil
}

// String keeps the secret out of logs.
func (s Secret) String() string { return "secret" }

// GoString keeps the secret out of logs.
func (s Secret) GoString() string { return s.String() }

// A kdf says how a secret becomes the key of a slot.
type kdf uint8

const (
	kdfPassword kdf = 1 // Argon2id: a password can be guessed
	kdfText     kdf = 2 // HKDF: a text cannot
)

// A cost is what one guess at a password takes (RFC 9106).
type cost struct {
	time    uint32 // passes
	memory  uint32 // KiB
	threads uint8
}

// The second recommendation of RFC 9106, section 4.
var defaultCost = cost{time: 3, memory: 64 << 10, threads: 4}

// A slot comes from whoever can write to the store, before anything shows that
// it is ours, so it must not cost more than this to try.
const (
	maxTime   = 10
	maxMemory = 1 << 20 // KiB
)

const (
	slotMagic   = "orlop\x00K1"
	slotSalt    = 32
	slotHead    = len(slotMagic) + 1 + 9 + slotSalt + sha256.Size + 1 // up to and with the suite
	slotMin     = slotHead + Overhead + sha256.Size
	slotKey     = 1 // what is wrapped: root, seed
	slotPutKey  = 2 // w, root of w, public key
	slotPutHead = 4 + 32 + publicSize
)

// SealSlot wraps k, a *Key or a *PutKey, and a copy of everything the config
// says, for whoever has s. The copy is opaque here.
func SealSlot(k Sealer, s Secret, config []byte) ([]byte, error) {
	return sealSlot(k, s, config, defaultCost)
}

func sealSlot(k Sealer, s Secret, config []byte, c cost) ([]byte, error) {
	var p []byte
	switch k := k.(type) {
	case *Key:
		p = append(p, slotKey)
		p = append(p, k.root[:]...)
		p = append(p, k.seed[:]...)
	case *PutKey:
		p = append(p, slotPutKey)
		p = binary.LittleEndian.AppendUint32(p, uint32(k.w))
		p = append(p, k.rootW[:]...)
		p = append(p, k.public.Bytes()...)
	default:
		return nil, fmt.Errorf("seal key slot: no such key: %T", k)
	}
	p = append(p, config...)

	if len(s.bytes) == 0 {
		return nil, errors.New("seal key slot: empty password")
	}
	if s.kdf == kdfText {
		c = cost{}
	}
	var salt [slotSalt]byte
	_, _ = rand.Read(salt[:])
	kek := s.kek(c, salt[:])
	commitment := derive(kek[:], nil, labelCommitment)
	suite := BestSuite()

	slot := append([]byte(slotMagic), byte(s.kdf))
	slot = binary.LittleEndian.AppendUint32(slot, c.time)
	slot = binary.LittleEndian.AppendUint32(slot, c.memory)
	slot = append(slot, c.threads)
	slot = append(slot, salt[:]...)
	slot = append(slot, commitment[:]...)
	slot = append(slot, byte(suite))
	slot = seal(slot, suite, &kek, labelSlot, p, bytes.Clone(slot))
	sum := sha256.Sum256(slot)
	return append(slot, sum[:]...), nil
}

// OpenSlot unwraps a slot: k is a *Key or a *PutKey, config the copy that the
// slot carries.
//
// It returns [ErrWrongSecret] if s is not what the slot was sealed for,
// [ErrFormat] if the object is no slot, was damaged, or is of a version not
// known, and [ErrOpen] if somebody changed it who could make it look whole.
func OpenSlot(object []byte, s Secret) (k Sealer, config []byte, err error) {
	k, config, err = openSlot(object, s)
	if err != nil {
		return nil, nil, fmt.Errorf("open key slot: %w", err)
	}
	return k, config, nil
}

func openSlot(object []byte, s Secret) (Sealer, []byte, error) {
	const prefix = len(slotMagic) - 1
	if len(object) < len(slotMagic) || string(object[:prefix]) != slotMagic[:prefix] {
		return nil, nil, fmt.Errorf("%w: not a key slot", ErrFormat)
	}
	if v := object[prefix]; v != slotMagic[prefix] {
		return nil, nil, fmt.Errorf("%w: version %q, and this program knows version %q", ErrFormat, v, slotMagic[prefix])
	}
	if len(object) < slotMin {
		return nil, nil, fmt.Errorf("%w: cut off at %d bytes", ErrFormat, len(object))
	}
	// Without the sum, damage to the salt or the commitment would look like a
	// wrong password, and people would doubt the password they have.
	body, sum := object[:len(object)-sha256.Size], object[len(object)-sha256.Size:]
	if sha256.Sum256(body) != [sha256.Size]byte(sum) {
		return nil, nil, fmt.Errorf("%w: damaged: its checksum does not match", ErrFormat)
	}

	head, sealed := body[:slotHead:slotHead], body[slotHead:]
	r := head[len(slotMagic):]
	kind := kdf(r[0])
	c := cost{binary.LittleEndian.Uint32(r[1:]), binary.LittleEndian.Uint32(r[5:]), r[9]}
	salt, commitment := r[10:10+slotSalt], r[10+slotSalt:10+slotSalt+sha256.Size]
	suite, _, err := cutSuite(head[slotHead-1:])
	if err != nil {
		return nil, nil, err
	}
	switch kind {
	case kdfPassword:
		if c.time == 0 || c.memory == 0 || c.threads == 0 || c.time > maxTime || c.memory > maxMemory {
			return nil, nil, fmt.Errorf("%w: password cost t=%d m=%d KiB p=%d, outside 1..%d, 1..%d, 1..255",
				ErrFormat, c.time, c.memory, c.threads, maxTime, maxMemory)
		}
	case kdfText:
		if c != (cost{}) {
			return nil, nil, fmt.Errorf("%w: a text has no cost", ErrFormat)
		}
	default:
		return nil, nil, fmt.Errorf("%w: unknown kind of secret %d", ErrFormat, kind)
	}
	if kind != s.kdf {
		return nil, nil, ErrWrongSecret
	}

	kek := s.kek(c, salt)
	// Neither suite commits to its key: bytes can be made that open with two
	// passwords, and would tell their maker which of many was tried.
	if want := derive(kek[:], nil, labelCommitment); subtle.ConstantTimeCompare(want[:], commitment) == 0 {
		return nil, nil, ErrWrongSecret
	}
	p, err := open(nil, suite, &kek, labelSlot, sealed, head)
	if err != nil {
		return nil, nil, err
	}
	return parseSlot(p)
}

func parseSlot(p []byte) (Sealer, []byte, error) {
	switch {
	case len(p) >= 1+64 && p[0] == slotKey:
		k, err := newKey([32]byte(p[1:33]), [32]byte(p[33:65]))
		if err != nil {
			return nil, nil, err
		}
		return k, p[65:], nil
	case len(p) >= 1+slotPutHead && p[0] == slotPutKey:
		w := Writer(binary.LittleEndian.Uint32(p[1:]))
		public, err := kem().NewPublicKey(p[37 : 37+publicSize])
		if err != nil || w == Common {
			return nil, nil, fmt.Errorf("%w: put-only key of writer %d: %v", ErrFormat, w, err)
		}
		return &PutKey{newWriter(w, [32]byte(p[5:37]), public)}, p[1+slotPutHead:], nil
	case len(p) > 0 && p[0] != slotKey && p[0] != slotPutKey:
		return nil, nil, fmt.Errorf("%w: unknown kind of key %d", ErrFormat, p[0])
	}
	return nil, nil, fmt.Errorf("%w: %d bytes are no key", ErrFormat, len(p))
}

// kek returns the key that wraps what is in a slot.
func (s Secret) kek(c cost, salt []byte) [32]byte {
	if s.kdf == kdfText {
		return derive(s.bytes, salt, labelSlotText)
	}
	return [32]byte(argon2.IDKey(s.bytes, salt, c.time, c.memory, c.threads, 32))
}
