package repo

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"orlop/chunk"
	"orlop/id"
	"orlop/seal"
)

// Version is the format this program reads and writes.
const Version = 1

// ErrFormat means that an object does not follow docs/format.md, or follows a
// version of it that this program does not know.
var ErrFormat = errors.New("not in a format this program knows")

// Config is what was decided when the repository was made. It is written
// once; a copy of it lies in every key slot.
type Config struct {
	clearConfig
	sealedConfig
}

// clearConfig is readable without a key. It is the associated data of the
// sealed part.
type clearConfig struct {
	Version    uint32        `cbor:"1,keyasint"`
	Repository id.Repository `cbor:"2,keyasint"`
	Features   Features      `cbor:"3,keyasint"`
}

// sealedConfig would tell a thief of the storage how files were cut.
type sealedConfig struct {
	Chunk      chunk.Config `cbor:"1,keyasint"`
	ClassRules uint32       `cbor:"2,keyasint"`
	Padding    uint32       `cbor:"3,keyasint"`
}

// Features are bits that a program must know before it does the operation;
// an older program refuses only what it would get wrong. None is defined yet.
type Features struct {
	Read   uint64 `cbor:"1,keyasint"`
	Write  uint64 `cbor:"2,keyasint"`
	Delete uint64 `cbor:"3,keyasint"`
}

// The rules of today, recorded so that later ones can be told apart.
const (
	classRules  = chunk.ClassRules
	paddingRule = 1 // docs/format.md, "Padding"
)

// configMagic opens the object `config`.
const configMagic = "orlop\x00C1"

var (
	cborEncode = must(cbor.CoreDetEncOptions().EncMode())
	cborDecode = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   8,
		MaxArrayElements:  1 << 16,
		MaxMapPairs:       1 << 10,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// encode returns the two parts of c as CBOR.
func (c Config) encode() (clear, private []byte) {
	return must(cborEncode.Marshal(c.clearConfig)), must(cborEncode.Marshal(c.sealedConfig))
}

// object returns config as it is stored: magic, length of the clear part,
// clear part, sealed part.
func (c Config) object(k *seal.Key) []byte {
	clear, private := c.encode()
	return join(configMagic, clear, k.SealConfig(clear, private))
}

// slotCopy returns config as every key slot carries it, where the slot's own
// seal protects both parts.
func (c Config) slotCopy() []byte {
	clear, private := c.encode()
	return join(configMagic, clear, private)
}

func join(magic string, clear, rest []byte) []byte {
	out := append([]byte(magic), 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(out[len(magic):], uint32(len(clear)))
	return append(append(out, clear...), rest...)
}

// split undoes join and checks what can be checked without a key.
func split(object []byte) (c clearConfig, clear, rest []byte, err error) {
	const head = len(configMagic) + 4
	if len(object) < head || string(object[:len(configMagic)]) != configMagic {
		return c, nil, nil, fmt.Errorf("%w: no %q at its start", ErrFormat, configMagic)
	}
	n := binary.LittleEndian.Uint32(object[len(configMagic):])
	if uint64(n) > uint64(len(object)-head) {
		return c, nil, nil, fmt.Errorf("%w: clear part of %d bytes in an object of %d", ErrFormat, n, len(object))
	}
	clear, rest = object[head:head+int(n)], object[head+int(n):]
	if err := cborDecode.Unmarshal(clear, &c); err != nil {
		return c, nil, nil, fmt.Errorf("%w: clear part: %w", ErrFormat, err)
	}
	if c.Version != Version {
		return c, nil, nil, fmt.Errorf("%w: version %d, this program knows %d", ErrFormat, c.Version, Version)
	}
	if c.Features.Read != 0 {
		return c, nil, nil, fmt.Errorf("%w: reading needs feature bits %#x", ErrFormat, c.Features.Read)
	}
	return c, clear, rest, nil
}

// openConfig reads the object `config` with a key that can.
func openConfig(object []byte, k *seal.Key) (Config, error) {
	_, clear, rest, err := split(object)
	if err != nil {
		return Config{}, err
	}
	private, err := k.OpenConfig(clear, rest)
	if err != nil {
		return Config{}, err
	}
	return parseConfig(clear, private)
}

// parseSlotCopy reads the copy of config in a key slot.
func parseSlotCopy(copied []byte) (Config, error) {
	_, clear, rest, err := split(copied)
	if err != nil {
		return Config{}, err
	}
	return parseConfig(clear, rest)
}

func parseConfig(clear, private []byte) (c Config, err error) {
	if err := cborDecode.Unmarshal(clear, &c.clearConfig); err != nil {
		return Config{}, fmt.Errorf("%w: clear part: %w", ErrFormat, err)
	}
	if err := cborDecode.Unmarshal(private, &c.sealedConfig); err != nil {
		return Config{}, fmt.Errorf("%w: sealed part: %w", ErrFormat, err)
	}
	if err := c.Chunk.Validate(); err != nil {
		return Config{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if c.ClassRules != classRules || c.Padding != paddingRule {
		return Config{}, fmt.Errorf("%w: class rules %d, padding rule %d", ErrFormat, c.ClassRules, c.Padding)
	}
	return c, nil
}
