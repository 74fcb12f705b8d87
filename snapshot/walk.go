package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"iter"

	"orlop/id"
)

// Walk yields all entries of a tree in walk order. An entry is the consumer's.
//
// A node that cannot be read is yielded as a nil entry with a [*NodeError]; a
// consumer that goes on gets what is behind it, so a damaged node costs what
// is below it and no more. This holds for all functions here that yield
// entries; [Diff] ends with its first error.
func Walk(ctx context.Context, l Loader, root Root) iter.Seq2[*Entry, error] {
	return WalkFrom(ctx, l, root, "", "")
}

// WalkFrom is [Walk] beginning at the first entry that is not before the given
// key. It loads one node a level to get there.
func WalkFrom(ctx context.Context, l Loader, root Root, dir, name string) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		c := newCursor(ctx, l, root)
		c.entries(c.seek(dir, name), func(string) bool { return true }, yield)
	}
}

// Under yields the entry of the directory dir, "" being the root, and then all
// that is below it. If dir is no directory of the tree it yields one error,
// satisfying errors.Is(err, fs.ErrNotExist) if there is nothing of that name.
func Under(ctx context.Context, l Loader, root Root, dir string) iter.Seq2[*Entry, error] {
	return children(ctx, l, root, dir, true, func(d string) bool { return Below(d, dir) })
}

// List yields what is in the directory dir, as [Under] but without its own
// entry and without what is in directories below it. It loads twice a node a
// level and the nodes that what it yields is in.
func List(ctx context.Context, l Loader, root Root, dir string) iter.Seq2[*Entry, error] {
	return children(ctx, l, root, dir, false, func(d string) bool { return d == dir })
}

func children(ctx context.Context, l Loader, root Root, dir string, self bool, within func(string) bool) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		own, err := Lookup(ctx, l, root, dir)
		if err == nil && own.Type != Dir {
			err = fmt.Errorf("%q: %w", dir, errNotDir)
		}
		if err != nil {
			yield(nil, err)
			return
		}
		if self && !yield(own, nil) {
			return
		}
		c := newCursor(ctx, l, root)
		c.entries(c.seek(dir, ""), within, func(e *Entry, err error) bool {
			return e != nil && e.IsRoot() || yield(e, err)
		})
	}
}

// Lookup returns the entry of one path, "" being the root. If there is none the
// error satisfies errors.Is(err, fs.ErrNotExist). It loads one node a level.
func Lookup(ctx context.Context, l Loader, root Root, path string) (*Entry, error) {
	if err := ValidPath(path); err != nil {
		return nil, fmt.Errorf("%q: %w", path, fs.ErrNotExist)
	}
	dir, name := SplitPath(path)
	c := newCursor(ctx, l, root)
	if err := c.seek(dir, name); err != nil {
		return nil, err
	}
	if c.at != atEntry || c.dir != dir || c.name != name {
		return nil, fmt.Errorf("%q: %w", path, fs.ErrNotExist)
	}
	return c.entry, nil
}

// A Change is an entry that is not the same in two trees. Old or New is nil if
// one of them has none.
type Change struct{ Old, New *Entry }

// Diff yields what is different between the trees a and b, in walk order. It
// enters a node only if the other tree has no equal one at its place, so it
// loads in proportion to the difference. It ends with its first error.
func Diff(ctx context.Context, l Loader, a, b Root) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		d := differ{a: newCursor(ctx, l, a), b: newCursor(ctx, l, b)}
		for d.a.at != atEnd || d.b.at != atEnd {
			change, err := d.step()
			switch {
			case err != nil:
				yield(Change{}, err)
				return
			case change != (Change{}) && !yield(change, nil):
				return
			}
		}
	}
}

type differ struct{ a, b *cursor }

// step moves the heads on that come first, or enters them.
//
// That nothing is entered needlessly rests on the heads: all before them is
// settled. A subtree whose key is smaller than the other head's begins with
// an entry the other tree lacks. One that both trees have becomes the head of
// both at the same time, because each waits at its key for the other; there
// its name is seen to be equal and it is skipped, however the nodes above it
// are cut.
func (d *differ) step() (Change, error) {
	a, b := d.a, d.b
	var change Change
	switch cmp := compareHeads(a, b); {
	case cmp < 0 && a.at == atEntry:
		change.Old = a.entry
		return change, a.next()
	case cmp < 0:
		return change, a.enter()
	case cmp > 0 && b.at == atEntry:
		change.New = b.entry
		return change, b.next()
	case cmp > 0:
		return change, b.enter()
	}
	switch {
	case a.at == atEntry && b.at == atEntry:
		if !bytes.Equal(a.tail, b.tail) {
			change = Change{a.entry, b.entry}
		}
		return change, firstErr(a.next, b.next)
	case a.at == atEntry:
		return change, b.enter()
	case b.at == atEntry:
		return change, a.enter()
	case a.sub.node == b.sub.node:
		return change, firstErr(a.next, b.next)
	case a.level > b.level:
		return change, a.enter()
	case b.level > a.level:
		return change, b.enter()
	}
	return change, firstErr(a.enter, b.enter)
}

// compareHeads compares keys; the end is after all of them.
func compareHeads(a, b *cursor) int {
	switch {
	case a.at == atEnd:
		return 1
	case b.at == atEnd:
		return -1
	}
	return Compare(a.dir, a.name, b.dir, b.name)
}

func firstErr(f, g func() error) error {
	if err := f(); err != nil {
		return err
	}
	return g()
}

// Nodes yields the names of all nodes of a tree, each before what is below it.
// Errors are as those of [Walk]; the node that could not be read was yielded.
func Nodes(ctx context.Context, l Loader, root Root) iter.Seq2[id.Blob, error] {
	return func(yield func(id.Blob, error) bool) {
		for o, err := range Reach(ctx, l, root, func(o Object) bool { return o.Kind != id.Node }) {
			if !yield(o.Name, err) {
				return
			}
		}
	}
}

// An Object is a blob that a tree leads to.
type Object struct {
	Kind   id.Kind
	Name   id.Blob
	Length uint64 // in bytes; of a list, those of the stream below it
	Entry  *Entry // that needs it; nil for nodes
}

// Reach yields every blob that a tree leads to: nodes, and the lists and data
// of the entries in them, each before what is below it is loaded. A blob for
// which seen is true is left out with all that is below it; seen is asked of
// every blob, once each time the tree comes to it, and may be nil.
//
// What cannot be read is yielded a second time with the error; a consumer that
// goes on gets the rest. Errors satisfying errors.Is(err, [ErrFormat]) are of
// the blob's content, all others are the Loader's.
func Reach(ctx context.Context, l Loader, root Root, seen func(Object) bool) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		r := reach{ctx: ctx, l: l, seen: seen, yield: yield}
		c := newCursor(ctx, l, root)
		for c.at != atEnd {
			var err error
			node := Object{Kind: id.Node, Name: c.sub.node, Length: uint64(c.sub.length)}
			switch {
			case c.at == atEntry:
				if !r.entry(c.entry) {
					return
				}
				err = c.next()
			case seen != nil && seen(node):
				err = c.next()
			case !yield(node, nil):
				return
			default:
				err = c.enter()
			}
			for err != nil {
				if !r.fail(err) {
					return
				}
				err = c.next()
			}
		}
	}
}

type reach struct {
	ctx   context.Context
	l     Loader
	seen  func(Object) bool
	yield func(Object, error) bool
}

// fail reports the error of a cursor.
func (r *reach) fail(err error) bool {
	o := Object{Kind: id.Node}
	if e, ok := err.(*NodeError); ok {
		o.Name = e.Node
	}
	return r.yield(o, err) && r.ctx.Err() == nil
}

func (r *reach) entry(e *Entry) bool {
	for _, c := range [...]Content{e.XattrSet, e.Map, e.Content} {
		if !r.refs(e, c.Level, c.Refs) {
			return false
		}
	}
	return true
}

func (r *reach) refs(e *Entry, level uint8, refs []Ref) bool {
	for _, ref := range refs {
		o := Object{kindAt(level), ref.Name, ref.Length, e}
		if r.seen != nil && r.seen(o) {
			continue
		}
		if !r.yield(o, nil) {
			return false
		}
		if level == 0 {
			continue
		}
		below, err := loadList(r.ctx, r.l, level, ref)
		if err != nil {
			if !r.yield(o, err) || r.ctx.Err() != nil {
				return false
			}
			continue
		}
		if !r.refs(e, level-1, below) {
			return false
		}
	}
	return true
}
