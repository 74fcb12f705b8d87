package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/fxamacker/cbor/v2"
)

// Limits of a snapshot.
const (
	MaxSnapshot = 4 << 20   // bytes, encoded
	MaxProblems = 1000      // in each of the two lists
	maxProblems = 128 << 10 // bytes of text in each
	maxReason   = 256       // bytes
	maxTags     = 1000
	maxLabels   = 10_000
)

// Strings are CBOR byte strings: paths and labels need not be UTF-8.
var encMode, decMode = func() (cbor.EncMode, cbor.DecMode) {
	enc := cbor.CoreDetEncOptions()
	enc.String = cbor.StringToByteString
	enc.IndefLength = cbor.IndefLengthForbidden
	enc.TagsMd = cbor.TagsForbidden
	e, err := enc.EncMode()
	if err != nil {
		panic(err)
	}
	d, err := cbor.DecOptions{
		DupMapKey:          cbor.DupMapKeyEnforcedAPF,
		IndefLength:        cbor.IndefLengthForbidden,
		TagsMd:             cbor.TagsForbidden,
		ExtraReturnErrors:  cbor.ExtraDecErrorUnknownField,
		ByteStringToString: cbor.ByteStringToStringAllowed,
		MaxNestedLevels:    4,
		MaxArrayElements:   maxTags,
		MaxMapPairs:        maxLabels,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return e, d
}()

// Marshal returns the encoding of s, at most MaxSnapshot bytes: deterministic
// CBOR (RFC 8949, section 4.2.1). A snapshot that is not valid is an error
// satisfying errors.Is(err, [ErrFormat]).
func (s *Snapshot) Marshal() ([]byte, error) {
	if err := s.Valid(); err != nil {
		return nil, err
	}
	p, err := encMode.Marshal(s)
	if err == nil && len(p) > MaxSnapshot {
		err = fmt.Errorf("it takes %d bytes", len(p))
	}
	if err != nil {
		return nil, fmt.Errorf("%w snapshot: %v", ErrFormat, err)
	}
	return p, nil
}

// Unmarshal reads what Marshal returned. Anything else is an error satisfying
// errors.Is(err, [ErrFormat]): what is accepted, Marshal returns again.
func Unmarshal(p []byte) (*Snapshot, error) {
	s := new(Snapshot)
	err := func() error {
		if len(p) > MaxSnapshot {
			return fmt.Errorf("it takes %d bytes", len(p))
		}
		if err := decMode.Unmarshal(p, s); err != nil {
			return err
		}
		// The decoder is kinder than we are: it pads short names, for one.
		again, err := encMode.Marshal(s)
		if err == nil && !bytes.Equal(p, again) {
			err = errors.New("it is spelt oddly")
		}
		return err
	}()
	if err != nil {
		return nil, fmt.Errorf("%w snapshot: %v", ErrFormat, err)
	}
	return s, s.Valid()
}

// Valid says what is wrong with s: an error satisfying errors.Is(err,
// [ErrFormat]), or nil. Nothing that is not valid is ever written or read.
func (s *Snapshot) Valid() error {
	if err := s.valid(); err != nil {
		return fmt.Errorf("%w snapshot: %w", ErrFormat, err)
	}
	return nil
}

func (s *Snapshot) valid() error {
	switch {
	case !slices.Contains([]SourceKind{Volume, Directory, Dump}, s.Source.Kind):
		return fmt.Errorf("a source of kind %q", s.Source.Kind)
	case s.Source.Name == "":
		return errors.New("a source without a name")
	case s.Started.Nsec > maxNsec || s.Finished.Nsec > maxNsec:
		return errors.New("over a second of nanoseconds")
	case s.Root.Level > MaxLevel:
		return fmt.Errorf("a tree of %d levels", s.Root.Level)
	case len(s.Tags) > maxTags:
		return fmt.Errorf("%d tags", len(s.Tags))
	case len(s.Source.Labels) > maxLabels || len(s.Source.Options) > maxLabels:
		return fmt.Errorf("%d labels and %d options", len(s.Source.Labels), len(s.Source.Options))
	case len(s.Skipped) > MaxProblems || uint64(len(s.Skipped)) > s.SkippedCount:
		return fmt.Errorf("%d of %d skipped files", len(s.Skipped), s.SkippedCount)
	case len(s.Torn) > MaxProblems || uint64(len(s.Torn)) > s.TornCount:
		return fmt.Errorf("%d of %d torn files", len(s.Torn), s.TornCount)
	}
	r := s.Root
	it := item{node: r.Name, length: r.Length, counts: counts{r.Entries, r.Files, r.Bytes}}
	if err := it.valid(); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	return nil
}

// Skip records a file that is not in the tree. All are counted; of their paths
// the first [MaxProblems] are kept, or fewer if they are long.
func (s *Snapshot) Skip(path, reason string) {
	s.SkippedCount++
	s.Skipped = keep(s.Skipped, path, reason)
}

// Tear records a file that changed while it was read, as [Snapshot.Skip] does.
func (s *Snapshot) Tear(path, reason string) {
	s.TornCount++
	s.Torn = keep(s.Torn, path, reason)
}

func keep(list []Problem, path, reason string) []Problem {
	if len(list) == MaxProblems {
		return list
	}
	reason = reason[:min(len(reason), maxReason)]
	n := len(path) + len(reason)
	for _, p := range list {
		n += len(p.Path) + len(p.Reason)
	}
	if n > maxProblems {
		return list
	}
	return append(list, Problem{path, reason})
}
