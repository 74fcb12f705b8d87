package snapshot

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"orlop/id"
)

// Data yields the data blobs of a stream with their bytes, in order. It ends
// with its first error.
func Data(ctx context.Context, l Loader, c Content) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for r, err := range Refs(ctx, l, c) {
			if err != nil {
				yield(nil, err)
				return
			}
			p, err := l.Load(ctx, r.Name, id.Data)
			if err != nil {
				yield(nil, fmt.Errorf("data %s: %w", r.Name.Short(), err))
				return
			}
			if uint64(len(p)) != r.Length {
				yield(nil, fmt.Errorf("%w stream: data %s has %d bytes, not %d", ErrFormat, r.Name.Short(), len(p), r.Length))
				return
			}
			if !yield(p, nil) {
				return
			}
		}
	}
}

// LoadXattrs returns the xattrs of e wherever they are, at most [MaxXattrSet]
// bytes. An xattr set that is not what it should be is an error satisfying
// errors.Is(err, [ErrFormat]).
func (e *Entry) LoadXattrs(ctx context.Context, l Loader) ([]Xattr, error) {
	if e.XattrSet.IsZero() {
		return e.Xattrs, nil
	}
	if n := e.XattrSet.Size(); n > MaxXattrSet {
		return nil, fmt.Errorf("%w xattr set of %d bytes", ErrFormat, n)
	}
	var set []byte
	for p, err := range Data(ctx, l, e.XattrSet) {
		if err != nil {
			return nil, fmt.Errorf("xattrs of %q: %w", e.Path(), err)
		}
		set = append(set, p...)
	}
	xattrs, err := DecodeXattrs(set)
	if err != nil {
		return nil, fmt.Errorf("xattrs of %q: %w", e.Path(), err)
	}
	return xattrs, nil
}

// LoadExtents yields the extents of a file in order, wherever they are: one for
// all of it if it has no holes. Extents that are not those of a file of e's
// size and content end in an error satisfying errors.Is(err, [ErrFormat]), the
// good ones before it having been yielded. It holds one data blob of the map.
func (e *Entry) LoadExtents(ctx context.Context, l Loader) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		if err := e.loadExtents(ctx, l, yield); err != nil {
			yield(Extent{}, fmt.Errorf("extents of %q: %w", e.Path(), err))
		}
	}
}

// loadExtents returns an error only if yield may still be called.
func (e *Entry) loadExtents(ctx context.Context, l Loader, yield func(Extent, error) bool) error {
	if !e.Sparse {
		if e.Size > 0 {
			yield(Extent{0, e.Size}, nil)
		}
		return nil
	}
	if e.Map.IsZero() {
		for _, x := range e.Extents {
			if !yield(x, nil) {
				return nil
			}
		}
		return nil
	}
	left := uint64(len(e.Inline)) + e.Content.Size()
	var end uint64
	var open []byte // the part of an extent at the end of a blob, and what follows
	take := func(least int) (more bool, err error) {
		for len(open) > least {
			x, rest, err := ParseExtent(open, end)
			if err != nil {
				return false, err
			}
			if x.End() > e.Size || x.Length > left {
				return false, fmt.Errorf("%w extents: %d bytes at %d, with size %d and %d bytes left",
					ErrFormat, x.Length, x.Offset, e.Size, left)
			}
			left -= x.Length
			end, open = x.End(), rest
			if !yield(x, nil) {
				return false, nil
			}
		}
		return true, nil
	}
	for p, err := range Data(ctx, l, e.Map) {
		if err != nil {
			return err
		}
		open = slices.Concat(open, p)
		// The last bytes of a blob may be half an extent.
		if more, err := take(maxExtent); err != nil || !more {
			return err
		}
	}
	if more, err := take(0); err != nil || !more {
		return err
	}
	if left > 0 {
		return fmt.Errorf("%w extents: %d bytes of content in none", ErrFormat, left)
	}
	return nil
}
