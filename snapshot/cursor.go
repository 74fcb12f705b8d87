package snapshot

import (
	"context"
	"errors"
	"fmt"

	"orlop/id"
)

// A NodeError says that a node of a tree cannot be had or is not what it should
// be. What is below it from Dir and Name on, up to Entries entries, is out of
// reach; the rest of the tree is not.
type NodeError struct {
	Node      id.Blob
	Dir, Name string // of the first entry below the node
	Entries   uint64 // that its parent says are below it
	Err       error  // from the Loader, or satisfying errors.Is(err, ErrFormat)
}

// Error implements error.
func (e *NodeError) Error() string {
	at := Entry{Dir: e.Dir, Name: e.Name}
	return fmt.Sprintf("node %s of the tree, %d entries from %q: %v", e.Node.Short(), e.Entries, at.Path(), e.Err)
}

// Unwrap returns Err.
func (e *NodeError) Unwrap() error { return e.Err }

// A frame is a node that is being read.
type frame struct {
	item  // what its parent says of it
	level uint8
	rest  []byte // not read yet
	prev  string // directory of the last item
	items int    // read so far
	sum   counts // of them
}

func (f *frame) fail(err error) error {
	return &NodeError{f.node, f.dir, f.name, f.entries, err}
}

func (f *frame) malformed(format string, args ...any) error {
	return f.fail(fmt.Errorf("%w: %w", ErrFormat, fmt.Errorf(format, args...)))
}

// A cursor goes over a tree in walk order. Its head is an entry, or a subtree
// that was not loaded yet and can be skipped or entered, or nothing: the end.
// After an error, next goes on behind what could not be read.
type cursor struct {
	ctx   context.Context
	l     Loader
	stack []frame

	entry *Entry // the head, if it is an entry
	tail  []byte // its encoding but for the path
	sub   item   // the head, if it is a subtree
	level uint8  // of that
	at    place

	dir, name string // key of the head; the largest seen
}

type place uint8

const (
	atEnd place = iota
	atEntry
	atSubtree
)

// newCursor returns a cursor whose head is the whole tree.
func newCursor(ctx context.Context, l Loader, root Root) *cursor {
	return &cursor{
		ctx: ctx, l: l, at: atSubtree, level: root.Level,
		sub: item{node: root.Name, length: root.Length, counts: counts{root.Entries, root.Files, root.Bytes}},
	}
}

// enter loads the subtree at the head; the head is then its first item.
func (c *cursor) enter() error {
	f := frame{item: c.sub, level: c.level}
	if err := f.valid(); err != nil {
		return f.malformed("%w", err)
	}
	if f.level > MaxLevel {
		return f.malformed("level %d", f.level)
	}
	if err := c.ctx.Err(); err != nil {
		return f.fail(err)
	}
	p, err := c.l.Load(c.ctx, f.node, id.Node)
	switch {
	case err != nil:
		return f.fail(err)
	case len(p) != int(f.length):
		return f.malformed("%d bytes long, not %d", len(p), f.length)
	case p[0] != f.level:
		return f.malformed("a node of level %d, not %d", p[0], f.level)
	case len(p) == 1:
		return f.malformed("nothing is in it")
	}
	f.rest = p[1:]
	c.stack = append(c.stack, f)
	return c.next()
}

// next moves the head on, past all of it if it is a subtree.
func (c *cursor) next() error {
	c.at, c.entry, c.tail = atEnd, nil, nil
	for len(c.stack) > 0 {
		f := &c.stack[len(c.stack)-1]
		if len(f.rest) > 0 {
			if err := c.read(f); err != nil {
				c.stack = c.stack[:len(c.stack)-1]
				return err
			}
			return nil
		}
		done := *f
		c.stack = c.stack[:len(c.stack)-1]
		if done.sum != done.counts {
			return done.malformed("it holds %v, not %v", done.sum, done.counts)
		}
	}
	return nil
}

// read makes the next item of f the head.
func (c *cursor) read(f *frame) error {
	if f.items++; f.items > MaxItems {
		return f.malformed("more than %d items", MaxItems)
	}
	var dir, name string
	if f.level == 0 {
		e, tail, rest, err := parseEntry(f.rest, f.prev)
		if err != nil {
			return f.fail(err)
		}
		c.entry, c.tail = e, tail
		dir, name = e.Dir, e.Name
		f.rest = rest
		f.sum.add(countsOf(e))
	} else {
		r := reader{p: f.rest}
		it := r.item(f.prev)
		if r.err != nil {
			return f.malformed("%w", r.err)
		}
		dir, name = it.dir, it.name
		f.rest = r.p
		f.sum.add(it.counts)
		c.sub, c.level = it, f.level-1
	}
	f.prev = dir
	switch {
	case f.items == 1 && (dir != f.dir || name != f.name):
		return f.malformed("it begins with %q", (&Entry{Dir: dir, Name: name}).Path())
	case f.items > 1 && Compare(c.dir, c.name, dir, name) >= 0:
		return f.malformed("%q is out of order", (&Entry{Dir: dir, Name: name}).Path())
	}
	c.dir, c.name = dir, name
	c.at = atSubtree
	if f.level == 0 {
		c.at = atEntry
	}
	return nil
}

// seek moves the head of a new cursor to the first entry at or after a key, or
// to a subtree that begins after it. It enters one node a level.
func (c *cursor) seek(dir, name string) error {
	for c.at == atSubtree && Compare(c.dir, c.name, dir, name) <= 0 {
		if err := c.enter(); err != nil {
			return err
		}
		for c.at == atSubtree && c.siblingBy(dir, name) {
			if err := c.next(); err != nil {
				return err
			}
		}
	}
	for c.at == atEntry && Compare(c.dir, c.name, dir, name) < 0 {
		if err := c.next(); err != nil {
			return err
		}
	}
	return nil
}

// siblingBy reports whether the subtree after the head, in the same node,
// begins at or before a key; then the head cannot hold it. What cannot be
// read counts as such: next will say what is wrong with it.
func (c *cursor) siblingBy(dir, name string) bool {
	f := &c.stack[len(c.stack)-1]
	if len(f.rest) == 0 {
		return false
	}
	r := reader{p: f.rest}
	it := r.item(f.prev)
	return r.err != nil || Compare(it.dir, it.name, dir, name) <= 0
}

// entries yields the entries from the head on, as long as within holds for
// their directory. After an error, what could not be read is left out.
func (c *cursor) entries(err error, within func(dir string) bool, yield func(*Entry, error) bool) {
	for {
		switch {
		case err != nil:
			if !yield(nil, err) || c.ctx.Err() != nil {
				return
			}
			err = c.next()
		case c.at == atEnd || !within(c.dir):
			return
		case c.at == atSubtree:
			err = c.enter()
		default:
			if !yield(c.entry, nil) {
				return
			}
			err = c.next()
		}
	}
}

var errNotDir = errors.New("not a directory")
