package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

const maxExtent = 20 // bytes of an encoded extent

// EncodeExtents returns the encoding of extents that are in order and do not
// touch: for each, the length of the hole before it and its own.
func EncodeExtents(extents []Extent) []byte {
	return appendExtents(make([]byte, 0, sizeExtents(extents)), extents)
}

func appendExtents(dst []byte, extents []Extent) []byte {
	var end uint64
	for _, x := range extents {
		dst = AppendExtent(dst, end, x)
		end = x.End()
	}
	return dst
}

// AppendExtent appends one extent; end is the end of the one before it, or 0.
// A map of any length can so be made and read in pieces.
func AppendExtent(dst []byte, end uint64, x Extent) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(dst, x.Offset-end), x.Length)
}

// ParseExtent reads the extent at the front of p and returns what follows it;
// end is the end of the one before it, or 0. It takes at most 20 bytes.
func ParseExtent(p []byte, end uint64) (x Extent, rest []byte, err error) {
	r := reader{p: p}
	gap, length := r.uvarint(), r.uvarint()
	switch {
	case r.err != nil:
	case gap == 0 && end > 0:
		r.fail("an extent that touches the one before it")
	case length == 0:
		r.fail("an empty extent")
	case addSat(addSat(end, gap), length) > MaxSize:
		r.fail("an extent of %d bytes %d after %d", length, gap, end)
	}
	if r.err != nil {
		return Extent{}, nil, fmt.Errorf("%w extents: %v", ErrFormat, r.err)
	}
	return Extent{end + gap, length}, r.p, nil
}

// DecodeExtents is the opposite of [EncodeExtents]. The extents are in order
// and do not touch; [ValidExtents] says whether they fit a file. Errors satisfy
// errors.Is(err, [ErrFormat]).
func DecodeExtents(p []byte) ([]Extent, error) {
	var extents []Extent
	var end uint64
	for len(p) > 0 {
		x, rest, err := ParseExtent(p, end)
		if err != nil {
			return nil, err
		}
		extents = append(extents, x)
		end, p = x.End(), rest
	}
	return extents, nil
}

// EncodeXattrs returns the encoding of a set that is sorted by name: for each,
// name and value.
func EncodeXattrs(set []Xattr) []byte {
	return appendXattrs(make([]byte, 0, sizeXattrs(set)), set)
}

func appendXattrs(dst []byte, set []Xattr) []byte {
	for _, x := range set {
		dst = appendBytes(appendBytes(dst, x.Name), x.Value)
	}
	return dst
}

// DecodeXattrs is the opposite of [EncodeXattrs]. The set is sorted by name and
// does not alias p. Errors satisfy errors.Is(err, [ErrFormat]).
func DecodeXattrs(p []byte) ([]Xattr, error) {
	var set []Xattr
	r := reader{p: p}
	for len(r.p) > 0 {
		x := Xattr{string(r.bytes(MaxName)), slices.Clone(r.bytes(MaxXattr))}
		if r.err == nil {
			r.err = x.valid()
		}
		if n := len(set); r.err == nil && n > 0 && set[n-1].Name >= x.Name {
			r.fail("%q after %q", x.Name, set[n-1].Name)
		}
		set = append(set, x)
	}
	if r.err != nil {
		return nil, fmt.Errorf("%w xattrs: %v", ErrFormat, r.err)
	}
	return set, nil
}

// ValidExtents says what is wrong with the extents of a file of size bytes
// whose stream has stream bytes, or returns nil: they are in order, none is
// empty or touches the next, and they hold exactly the stream.
func ValidExtents(extents []Extent, size, stream uint64) error {
	var end, sum uint64
	for i, x := range extents {
		if x.Length == 0 || i > 0 && x.Offset <= end || addSat(x.Offset, x.Length) > MaxSize {
			return fmt.Errorf("an extent of %d bytes at %d after %d", x.Length, x.Offset, end)
		}
		end = x.End()
		sum += x.Length
	}
	if end > size {
		return fmt.Errorf("extents up to %d, and size %d", end, size)
	}
	if sum != stream {
		return fmt.Errorf("%d bytes in extents, and %d of content", sum, stream)
	}
	return nil
}

// ValidXattrs says what is wrong with a set of xattrs, or returns nil: they are
// sorted by name, and each is within the limits.
func ValidXattrs(set []Xattr) error {
	for i, x := range set {
		if err := x.valid(); err != nil {
			return err
		}
		if i > 0 && set[i-1].Name >= x.Name {
			return fmt.Errorf("xattr %q after %q", x.Name, set[i-1].Name)
		}
	}
	return nil
}

func (x Xattr) valid() error {
	switch {
	case x.Name == "":
		return errors.New("an xattr without a name")
	case len(x.Name) > MaxName:
		return fmt.Errorf("an xattr name of %d bytes", len(x.Name))
	case strings.IndexByte(x.Name, 0) >= 0:
		return fmt.Errorf("an xattr name %q with a NUL", x.Name)
	case len(x.Value) > MaxXattr:
		return fmt.Errorf("xattr %q of %d bytes", x.Name, len(x.Value))
	}
	return nil
}

func sizeXattrs(set []Xattr) (n int) {
	for _, x := range set {
		n += sizeUvarint(uint64(len(x.Name))) + len(x.Name) + sizeUvarint(uint64(len(x.Value))) + len(x.Value)
	}
	return n
}

func sizeExtents(extents []Extent) (n int) {
	var end uint64
	for _, x := range extents {
		n += sizeUvarint(x.Offset-end) + sizeUvarint(x.Length)
		end = x.End()
	}
	return n
}
