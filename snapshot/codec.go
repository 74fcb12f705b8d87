package snapshot

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Bits of the byte that says what an entry is; the type is below them.
const (
	hasGroup    = 1 << 3
	hasXattrs   = 1 << 4
	hasXattrSet = 1 << 5
	isTorn      = 1 << 6
	isSparse    = 1 << 7
	typeMask    = hasGroup - 1
)

// AppendEntry appends e to dst, its directory front-coded against prevDir, the
// directory of the entry before it, or "". An entry that is not valid is an
// error satisfying errors.Is(err, [ErrFormat]), and dst is returned as it was.
// An entry takes less than 160 KiB.
func AppendEntry(dst []byte, prevDir string, e *Entry) ([]byte, error) {
	if err := e.validPath(prevDir); err != nil {
		return dst, fmt.Errorf("%w entry: %v", ErrFormat, err)
	}
	if err := e.validRest(); err != nil {
		return dst, fmt.Errorf("%w entry %q: %v", ErrFormat, e.Path(), err)
	}
	return appendEntry(dst, prevDir, e), nil
}

// appendEntry is AppendEntry for an entry that is known to be valid.
func appendEntry(dst []byte, prevDir string, e *Entry) []byte {
	dst = appendDir(dst, prevDir, e.Dir)
	dst = appendBytes(dst, e.Name)
	what := byte(e.Type)
	grouped := e.Group != [16]byte{}
	for _, f := range [...]struct {
		on  bool
		bit byte
	}{
		{grouped, hasGroup},
		{len(e.Xattrs) > 0, hasXattrs},
		{!e.XattrSet.IsZero(), hasXattrSet},
		{e.Torn, isTorn},
		{e.Sparse, isSparse},
	} {
		if f.on {
			what |= f.bit
		}
	}
	dst = append(dst, what)
	dst = binary.AppendUvarint(dst, uint64(e.Mode))
	dst = binary.AppendUvarint(dst, uint64(e.UID))
	dst = binary.AppendUvarint(dst, uint64(e.GID))
	dst = binary.AppendVarint(dst, e.MTime.Sec)
	dst = binary.AppendUvarint(dst, uint64(e.MTime.Nsec))
	if grouped {
		dst = append(dst, e.Group[:]...)
	}
	if len(e.Xattrs) > 0 {
		dst = binary.AppendUvarint(dst, uint64(sizeXattrs(e.Xattrs)))
		dst = appendXattrs(dst, e.Xattrs)
	}
	if !e.XattrSet.IsZero() {
		dst = appendContent(dst, e.XattrSet)
	}
	switch e.Type {
	case File:
		dst = binary.AppendUvarint(dst, e.Size)
		dst = append(dst, e.Class)
		if e.Sparse {
			if e.Map.IsZero() {
				dst = append(dst, 0)
				dst = binary.AppendUvarint(dst, uint64(sizeExtents(e.Extents)))
				dst = appendExtents(dst, e.Extents)
			} else {
				dst = appendContent(dst, e.Map)
			}
		}
		if e.Content.IsZero() {
			dst = appendBytes(append(dst, 0), e.Inline)
		} else {
			dst = appendContent(dst, e.Content)
		}
	case Symlink:
		dst = appendBytes(dst, e.Target)
	case Char, Block:
		dst = binary.AppendUvarint(dst, e.Rdev)
	}
	return dst
}

// ParseEntry reads the entry at the front of p and returns what follows it.
// prevDir is the directory of the entry before it, which ParseEntry returned,
// or "". Errors satisfy errors.Is(err, [ErrFormat]). The entry does not alias
// p. What it accepts, AppendEntry writes again as the same bytes.
func ParseEntry(p []byte, prevDir string) (e *Entry, rest []byte, err error) {
	e, _, rest, err = parseEntry(p, prevDir)
	return e, rest, err
}

// parseEntry also returns tail, the encoding of all but the path.
func parseEntry(p []byte, prevDir string) (e *Entry, tail, rest []byte, err error) {
	r := reader{p: p}
	e = &Entry{Dir: r.dir(prevDir), Name: string(r.bytes(MaxName))}
	if r.err == nil {
		if err := e.validPath(prevDir); err != nil {
			r.fail("%w", err)
		}
	}
	if r.err != nil {
		return nil, nil, nil, fmt.Errorf("%w entry: %v", ErrFormat, r.err)
	}
	tail = r.p
	e.parseTail(&r)
	if r.err == nil {
		r.err = e.validRest()
	}
	if r.err != nil {
		return nil, nil, nil, fmt.Errorf("%w entry %q: %v", ErrFormat, e.Path(), r.err)
	}
	return e, tail[:len(tail)-len(r.p)], r.p, nil
}

func (e *Entry) parseTail(r *reader) {
	what := r.u8()
	e.Type = Type(what & typeMask)
	e.Torn = what&isTorn != 0
	e.Sparse = what&isSparse != 0
	e.Mode = r.u32()
	e.UID = r.u32()
	e.GID = r.u32()
	e.MTime = Time{r.varint(), r.u32()}
	if what&hasGroup != 0 {
		copy(e.Group[:], r.take(16))
		if e.Group == [16]byte{} {
			r.fail("a hard-link group of zeros")
		}
	}
	if what&hasXattrs != 0 {
		set, err := DecodeXattrs(r.bytes(MaxSet))
		if e.Xattrs = set; err != nil {
			r.fail("%w", err)
		} else if len(set) == 0 {
			r.fail("xattrs that are none")
		}
	}
	if what&hasXattrSet != 0 {
		if e.XattrSet = r.content(r.u8()); e.XattrSet.IsZero() {
			r.fail("an xattr set that is none")
		}
	}
	switch e.Type {
	case File:
		e.Size = r.uvarint()
		e.Class = r.u8()
		if e.Sparse {
			if form := r.u8(); form > 0 {
				e.Map = r.content(form)
			} else {
				extents, err := DecodeExtents(r.bytes(MaxSet))
				if e.Extents = extents; err != nil {
					r.fail("%w", err)
				}
			}
		}
		if form := r.u8(); form > 0 {
			e.Content = r.content(form)
		} else if b := r.bytes(MaxInline); len(b) > 0 {
			e.Inline = slices.Clone(b)
		}
	case Symlink:
		e.Target = string(r.bytes(MaxPath))
	case Char, Block:
		e.Rdev = r.uvarint()
	}
}

// appendContent appends a stream that is not empty; its first byte is not 0.
func appendContent(dst []byte, c Content) []byte {
	dst = append(dst, c.Level+1, byte(len(c.Refs)))
	for _, r := range c.Refs {
		dst = appendRef(dst, r)
	}
	return dst
}

// content reads what follows the first byte of appendContent.
func (r *reader) content(form uint8) Content {
	n := r.u8()
	if form == 0 || n == 0 || n > MaxRefs {
		r.fail("a stream of %d refs", n)
		return Content{}
	}
	c := Content{Level: form - 1, Refs: make([]Ref, n)}
	for i := range c.Refs {
		c.Refs[i] = r.ref()
	}
	return c
}
