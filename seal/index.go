package seal

import "orlop/id"

// A Purpose says what an [IndexKey] seals; what was sealed for one does not
// open for another.
type Purpose uint8

// The purposes.
const (
	Directory Purpose = 1 // the table at the end of a pack
	Segment   Purpose = 2 // an index segment
)

func (p Purpose) label() string {
	switch p {
	case Directory:
		return labelDirectory
	case Segment:
		return labelSegment
	}
	panic("seal: no such purpose")
}

// IndexOverhead is what [IndexKey.Seal] adds, in bytes: a byte that names the
// suite, and what all sealing adds.
const IndexOverhead = 1 + Overhead

// An IndexKey seals and opens what one writer says about its blobs. Its holder
// learns names, lengths and places, never contents. It may be used
// concurrently.
type IndexKey struct {
	repo   id.Repository
	w      Writer
	secret [32]byte
}

func newIndexKey(repo id.Repository, w Writer, root [32]byte) *IndexKey {
	return &IndexKey{repo, w, derive(root[:], repo[:], labelIndex)}
}

// Writer returns whose index it is.
func (k *IndexKey) Writer() Writer { return k.w }

// Repository returns the repository it is for.
func (k *IndexKey) Repository() id.Repository { return k.repo }

// Seal appends sealed plaintext to dst, [IndexOverhead] bytes more than it. It
// opens only with the same ad.
func (k *IndexKey) Seal(dst []byte, p Purpose, plaintext, ad []byte) []byte {
	return k.seal(dst, BestSuite(), p, plaintext, ad)
}

func (k *IndexKey) seal(dst []byte, s Suite, p Purpose, plaintext, ad []byte) []byte {
	dst = append(dst, byte(s))
	return seal(dst, s, &k.secret, p.label(), plaintext, k.ad(s, ad))
}

// Open appends the plaintext of sealed to dst. It returns [ErrOpen] if sealed
// or ad is not what Seal had, [ErrFormat] if the suite is unknown.
func (k *IndexKey) Open(dst []byte, p Purpose, sealed, ad []byte) ([]byte, error) {
	s, rest, err := cutSuite(sealed)
	if err != nil {
		return nil, err
	}
	return open(dst, s, &k.secret, p.label(), rest, k.ad(s, ad))
}

func (k *IndexKey) ad(s Suite, ad []byte) []byte {
	return append(context(k.repo, s, k.w), ad...)
}
