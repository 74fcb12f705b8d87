package seal

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strings"
)

// A text is one line of printable characters that holds secret bytes: a prefix
// that says what it is, then groups of base32 of the bytes and a checksum.
type textKind struct {
	prefix string
	size   int // of the secret bytes
	what   string
}

var (
	keyText = textKind{"orlop-key-1-", 64, "key"}
	putText = textKind{"orlop-putkey-1-", 32, "put-only key"}
)

const (
	textSum   = 4 // bytes of checksum
	textGroup = 8 // characters between dashes
)

// The alphabet of RFC 4648 in lower case: it has no 0, 1, 8 and 9, so what
// looks like o, l, b and g is that.
const textAlphabet = "abcdefghijklmnopqrstuvwxyz234567"

var textEncoding = base32.NewEncoding(textAlphabet).WithPadding(base32.NoPadding)

// A textError says what is wrong with a text.
type textError string

// Error implements error.
func (e textError) Error() string { return "key text: " + string(e) }

// Is makes it an ErrWrongSecret.
func (e textError) Is(target error) bool { return target == ErrWrongSecret }

// Text returns the key as one line to keep in a file or on paper. Whoever has
// it can read everything; together with the stored objects it is all that is
// needed to.
func (k *Key) Text() string { return keyText.encode(append(k.root[:], k.seed[:]...)) }

// NewPutText draws a text to wrap a [PutKey] in a slot with. Unlike the text of
// a Key it opens only that slot.
func NewPutText() string {
	var p [32]byte
	_, _ = rand.Read(p[:])
	return putText.encode(p[:])
}

// ParseText returns the key that [Key.Text] wrote. Case, spaces and dashes
// between the groups do not matter. Its errors say what is wrong with the text
// and are [ErrWrongSecret].
func ParseText(s string) (*Key, error) {
	kind, p, err := decodeText(s)
	if err != nil {
		return nil, err
	}
	if kind != keyText {
		return nil, textError("it is the text of a " + kind.what + ", which holds no key: it only opens its slot in the repository")
	}
	return newKey([32]byte(p[:32]), [32]byte(p[32:]))
}

func (k textKind) encode(p []byte) string {
	sum := k.sum(p)
	code := textEncoding.EncodeToString(append(p[:len(p):len(p)], sum[:]...))
	var b strings.Builder
	b.WriteString(k.prefix)
	for len(code) > textGroup {
		b.WriteString(code[:textGroup])
		b.WriteByte('-')
		code = code[textGroup:]
	}
	b.WriteString(code)
	return b.String()
}

// sum covers the prefix, so one kind of text is never another by a slip.
func (k textKind) sum(p []byte) [textSum]byte {
	h := sha256.Sum256(append([]byte(k.prefix), p...))
	return [textSum]byte(h[:])
}

func decodeText(s string) (textKind, []byte, error) {
	fail := func(format string, args ...any) (textKind, []byte, error) {
		return textKind{}, nil, textError(fmt.Sprintf(format, args...))
	}
	// Folded by hand: unicode has other letters whose lower case is ASCII.
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case r == ' ' || r == '\t' || r == '\r' || r == '\n':
			return -1
		}
		return r
	}, s)
	if s == "" {
		return fail("it is empty")
	}
	for _, k := range []textKind{keyText, putText} {
		code, ok := strings.CutPrefix(s, k.prefix)
		if !ok {
			continue
		}
		code = strings.ReplaceAll(code, "-", "")
		for i, r := range code {
			if !strings.ContainsRune(textAlphabet, r) {
				return fail("character %d after %s is %q, which is none of a-z and 2-7", i+1, k.prefix, r)
			}
		}
		whole := textEncoding.EncodedLen(k.size + textSum)
		switch {
		case len(code) < whole:
			return fail("it is cut off: %d of %d characters after %s", len(code), whole, k.prefix)
		case len(code) > whole:
			return fail("it is too long: %d characters after %s, not %d", len(code), k.prefix, whole)
		}
		p, err := textEncoding.DecodeString(code)
		if err != nil {
			return fail("%v", err)
		}
		p, sum := p[:k.size:k.size], p[k.size:]
		// Compared as text: the last character has bits to spare, which would
		// let two texts mean one key.
		if [textSum]byte(sum) != k.sum(p) || textEncoding.EncodeToString(append(p, sum...)) != code {
			return fail("a character is wrong: its checksum does not match")
		}
		return k, p, nil
	}
	for _, k := range []textKind{keyText, putText} {
		name := strings.TrimSuffix(k.prefix, "1-")
		if rest, ok := strings.CutPrefix(s, name); ok {
			if version, _, ok := strings.Cut(rest, "-"); ok && version != "1" && strings.Trim(version, "0123456789") == "" {
				return fail("it is of version %s, and this program knows version 1", version)
			}
			return fail("it does not begin with %s: it is cut off, or a character is wrong", k.prefix)
		}
	}
	return fail("it begins with neither %s nor %s", keyText.prefix, putText.prefix)
}
