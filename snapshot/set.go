package snapshot

import (
	"errors"
	"fmt"
	"strings"
)

// ValidExtents says what is wrong with the extents of a file of size bytes
// whose stream has stream bytes, or returns nil: they are in order, none is
// empty or touches the next, and they hold exactly the stream.
func ValidExtents(extents []Extent, size, stream uint64) error {
	var end, sum uint64
	for i, x := range extents {
		if x.Length == 0 || x.Offset > MaxSize || x.Length > MaxSize || i > 0 && x.Offset <= end || x.Offset < end {
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

func validXattrs(set []Xattr) error {
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
