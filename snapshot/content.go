package snapshot

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"orlop/id"
)

// Shape of a content tree.
const (
	// MaxList is the number of refs in a list blob. Lists are cut where the
	// first byte of a name is zero: 256 refs on average.
	MaxList = 4096

	// MaxContentLevel is the highest level of a Content: with 256 refs a list
	// it is not reached by any file there can be.
	MaxContentLevel = 7

	maxListSize = 1 + MaxList*(id.Size+10)
)

// A ContentBuilder makes the tree of one stream from its data blobs. It depends
// on nothing but their names and lengths: streams that agree almost everywhere
// share almost all lists. It holds one open list a level.
type ContentBuilder struct {
	sink   Sink
	levels []*openList
	buf    []byte
	err    error
}

// openList holds the refs of a level that are in no list yet. As long as they
// fit in an entry, they are not cut.
type openList struct {
	refs []Ref
	long bool // there are more than MaxRefs of this level
}

// NewContentBuilder begins a stream whose lists go to sink.
func NewContentBuilder(sink Sink) *ContentBuilder { return &ContentBuilder{sink: sink} }

// Add appends a data blob to the stream. Its length is between 1 and MaxData.
// After an error the builder is of no use; one that is the caller's fault
// satisfies errors.Is(err, [ErrFormat]).
func (b *ContentBuilder) Add(ctx context.Context, r Ref) error {
	if b.err == nil {
		if err := r.valid(0); err != nil {
			b.err = fmt.Errorf("%w stream: %v", ErrFormat, err)
		} else if err := b.put(ctx, 0, r); err != nil {
			b.err = fmt.Errorf("list the blobs of a stream: %w", err)
		}
	}
	return b.err
}

func (b *ContentBuilder) put(ctx context.Context, k int, r Ref) error {
	if k == len(b.levels) {
		b.levels = append(b.levels, &openList{})
	}
	o := b.levels[k]
	if o.long {
		return b.cut(ctx, k, r)
	}
	o.refs = append(o.refs, r)
	if len(o.refs) <= MaxRefs {
		return nil
	}
	o.long = true
	held := o.refs
	o.refs = nil
	for _, r := range held {
		if err := b.cut(ctx, k, r); err != nil {
			return err
		}
	}
	return nil
}

// cut adds a ref to the open list, after saving that one if it is complete.
func (b *ContentBuilder) cut(ctx context.Context, k int, r Ref) error {
	o := b.levels[k]
	if n := len(o.refs); n > 0 && (n == MaxList || o.refs[n-1].Name[0] == 0) {
		if err := b.save(ctx, k); err != nil {
			return err
		}
	}
	o.refs = append(o.refs, r)
	return nil
}

// save makes a list of what is open at level k and adds it to the level above.
func (b *ContentBuilder) save(ctx context.Context, k int) error {
	if k == MaxContentLevel {
		return errors.New("it has too many levels")
	}
	o := b.levels[k]
	b.buf = append(b.buf[:0], byte(k+1))
	list := Ref{}
	for _, r := range o.refs {
		b.buf = appendRef(b.buf, r)
		list.Length = addSat(list.Length, r.Length)
	}
	if list.Length > MaxSize {
		return fmt.Errorf("%w: more than %d bytes", ErrFormat, uint64(MaxSize))
	}
	var err error
	if list.Name, err = b.sink.Save(ctx, id.List, b.buf); err != nil {
		return fmt.Errorf("save list: %w", err)
	}
	o.refs = o.refs[:0]
	return b.put(ctx, k+1, list)
}

// Finish saves what is open and returns the stream; the builder can then be
// used for another one.
func (b *ContentBuilder) Finish(ctx context.Context) (Content, error) {
	defer func() { *b = ContentBuilder{sink: b.sink, buf: b.buf} }()
	if b.err != nil {
		return Content{}, b.err
	}
	for k := 0; k < len(b.levels); k++ {
		o := b.levels[k]
		if !o.long {
			c := Content{uint8(k), o.refs}
			if err := c.valid(); err != nil {
				return Content{}, fmt.Errorf("%w stream: %v", ErrFormat, err)
			}
			return c, nil
		}
		if err := b.save(ctx, k); err != nil {
			return Content{}, fmt.Errorf("list the blobs of a stream: %w", err)
		}
	}
	return Content{}, nil
}

// Refs yields the data blobs of a stream in order. It holds one list a level
// and ends with its first error; one that satisfies errors.Is(err, [ErrFormat])
// names the list that is wrong.
func Refs(ctx context.Context, l Loader, c Content) iter.Seq2[Ref, error] {
	return func(yield func(Ref, error) bool) {
		if err := c.valid(); err != nil {
			yield(Ref{}, fmt.Errorf("%w stream: %v", ErrFormat, err))
			return
		}
		eachRef(ctx, l, c.Level, c.Refs, yield)
	}
}

func eachRef(ctx context.Context, l Loader, level uint8, refs []Ref, yield func(Ref, error) bool) bool {
	for _, r := range refs {
		if level == 0 {
			if !yield(r, nil) {
				return false
			}
			continue
		}
		below, err := loadList(ctx, l, level, r)
		if err != nil {
			yield(Ref{}, err)
			return false
		}
		if !eachRef(ctx, l, level-1, below, yield) {
			return false
		}
	}
	return true
}

// loadList returns what is in a list that a ref of the given level names.
func loadList(ctx context.Context, l Loader, level uint8, r Ref) ([]Ref, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list %s: %w", r.Name.Short(), err)
	}
	p, err := l.Load(ctx, r.Name, id.List)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", r.Name.Short(), err)
	}
	refs, err := parseList(p, level, r.Length)
	if err != nil {
		return nil, fmt.Errorf("%w list %s: %v", ErrFormat, r.Name.Short(), err)
	}
	return refs, nil
}

// parseList reads a list of the given level whose refs add up to length.
func parseList(p []byte, level uint8, length uint64) ([]Ref, error) {
	if len(p) > maxListSize {
		return nil, fmt.Errorf("%d bytes", len(p))
	}
	r := reader{p: p}
	if got := r.u8(); got != level || level == 0 {
		return nil, fmt.Errorf("a list of level %d, not %d", got, level)
	}
	refs := make([]Ref, 0, len(r.p)/(id.Size+1))
	var sum uint64
	for len(r.p) > 0 {
		ref := r.ref()
		if r.err == nil {
			r.err = ref.valid(level - 1)
		}
		sum = addSat(sum, ref.Length)
		refs = append(refs, ref)
	}
	switch {
	case r.err != nil:
		return nil, r.err
	case len(refs) == 0 || len(refs) > MaxList:
		return nil, fmt.Errorf("%d refs", len(refs))
	case sum != length:
		return nil, fmt.Errorf("%d bytes below it, not %d", sum, length)
	}
	return refs, nil
}

func kindAt(level uint8) id.Kind {
	if level == 0 {
		return id.Data
	}
	return id.List
}
