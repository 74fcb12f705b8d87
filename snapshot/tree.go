package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"orlop/id"
)

// Shape of a tree. Of the keyed hash of an entry's path, LeafBits zero bits end
// its leaf, and SpineBits more for each level above end the spine node there:
// 128 entries a leaf and 64 children a spine node on average.
const (
	LeafBits  = 7
	SpineBits = 6
	MaxNode   = 256 << 10 // bytes of a node
	MaxItems  = 4096      // entries or children of a node
	MaxLevel  = 8         // of the root, leaves being at 0
)

// ErrTooDeep is returned for a tree that would need a level above MaxLevel.
// Any tree that fits on a disk has room, unless most of its paths are almost
// [MaxPath] bytes long and share nothing with their neighbours: only then is a
// node full with three items.
var ErrTooDeep = errors.New("the tree is too deep")

// counts are what is in a tree or in a part of it.
type counts struct{ entries, files, bytes uint64 }

func (c counts) String() string {
	return fmt.Sprintf("%d entries, %d files, %d bytes", c.entries, c.files, c.bytes)
}

func (c *counts) add(d counts) {
	c.entries = addSat(c.entries, d.entries)
	c.files = addSat(c.files, d.files)
	c.bytes = addSat(c.bytes, d.bytes)
}

func countsOf(e *Entry) counts {
	c := counts{entries: 1, bytes: e.Size}
	if e.Type == File {
		c.files = 1
	}
	return c
}

// An item is a child of a spine node: where it begins, what it is called, and
// what is in it.
type item struct {
	dir, name string // of the first entry
	node      id.Blob
	length    uint32 // of the node
	counts
}

func appendItem(dst []byte, prevDir string, it item) []byte {
	dst = appendDir(dst, prevDir, it.dir)
	dst = appendBytes(dst, it.name)
	dst = append(dst, it.node[:]...)
	dst = binary.AppendUvarint(dst, uint64(it.length))
	dst = binary.AppendUvarint(dst, it.entries)
	dst = binary.AppendUvarint(dst, it.files)
	return binary.AppendUvarint(dst, it.bytes)
}

func (r *reader) item(prevDir string) item {
	it := item{dir: r.dir(prevDir), name: string(r.bytes(MaxName))}
	if r.err == nil {
		if err := (&Entry{Dir: it.dir, Name: it.name}).validPath(prevDir); err != nil {
			r.fail("%w", err)
		}
	}
	it.node = r.name()
	it.length = r.u32()
	it.counts = counts{r.uvarint(), r.uvarint(), r.uvarint()}
	if r.err == nil {
		r.err = it.valid()
	}
	return it
}

func (it item) valid() error {
	switch {
	case it.node.IsZero():
		return errors.New("a node without a name")
	case it.length == 0 || it.length > MaxNode:
		return fmt.Errorf("a node of %d bytes", it.length)
	case it.entries == 0 || it.files > it.entries:
		return fmt.Errorf("a node of %d files in %d entries", it.files, it.entries)
	}
	return nil
}

// A Tree makes the tree of a snapshot from its entries. Its shape depends on
// nothing but them and the boundary key. It holds one open node a level.
type Tree struct {
	sink      Sink
	boundary  *id.Keyed
	levels    []*open
	dir, name string // of the last entry
	zeros     int    // that its hash ends in
	err       error
}

// open is the node that is being filled at one level.
type open struct {
	buf   []byte
	items int
	dir   string // of the last item
	first item   // its first key; node and length are not known yet
	shut  bool   // a node of this level was saved
}

// NewTree begins a tree whose nodes go to sink. All trees that should share
// nodes must be made with the same boundary key.
func NewTree(sink Sink, boundary *id.Keyed) *Tree {
	return &Tree{sink: sink, boundary: boundary}
}

// Add appends an entry, which must be valid and come after the one before it
// ([Compare]); the first must be the root. It does not keep e. After an error
// the tree is of no use; one that is the caller's fault satisfies
// errors.Is(err, [ErrFormat]).
func (t *Tree) Add(ctx context.Context, e *Entry) error {
	if t.err == nil {
		if err := t.add(ctx, e); err != nil {
			t.err = fmt.Errorf("add %q to the tree: %w", e.Path(), err)
		}
	}
	return t.err
}

func (t *Tree) add(ctx context.Context, e *Entry) error {
	if len(t.levels) == 0 {
		t.levels = []*open{{}}
		if !e.IsRoot() {
			return fmt.Errorf("%w: the first entry is not the root", ErrFormat)
		}
	} else if Compare(t.dir, t.name, e.Dir, e.Name) >= 0 {
		return fmt.Errorf("%w: it comes after %q", ErrFormat, (&Entry{Dir: t.dir, Name: t.name}).Path())
	}
	if err := e.validPath(t.dir); err != nil {
		return fmt.Errorf("%w: %v", ErrFormat, err)
	}
	if err := e.validRest(); err != nil {
		return fmt.Errorf("%w: %v", ErrFormat, err)
	}
	// What the entry before this one ended is only saved now that there is
	// something after it. So the last node of every level is still open in
	// Finish, and the topmost one is the root whatever the last hash says.
	for k := 0; k < len(t.levels) && t.zeros >= LeafBits+k*SpineBits; k++ {
		if err := t.shut(ctx, k); err != nil {
			return err
		}
	}
	it := item{dir: e.Dir, name: e.Name, counts: countsOf(e)}
	if err := t.put(ctx, 0, it, func(dst []byte, prevDir string) []byte {
		return appendEntry(dst, prevDir, e)
	}); err != nil {
		return err
	}
	t.dir, t.name = e.Dir, e.Name
	sum := t.boundary.Sum(e.Dir, "\x00", e.Name)
	t.zeros = bits.TrailingZeros64(binary.LittleEndian.Uint64(sum[:]))
	return nil
}

// put adds an item to the open node of level k, or to a new one if it does not
// fit.
func (t *Tree) put(ctx context.Context, k int, it item, encode func(dst []byte, prevDir string) []byte) error {
	o := t.levels[k]
	if o.items > 0 {
		n := len(o.buf)
		o.buf = encode(o.buf, o.dir)
		if len(o.buf) > MaxNode || o.items == MaxItems {
			o.buf = o.buf[:n]
			if err := t.shut(ctx, k); err != nil {
				return err
			}
		}
	}
	if o.items == 0 {
		o.first = item{dir: it.dir, name: it.name}
		o.buf = encode(append(o.buf[:0], byte(k)), "")
	}
	o.items++
	o.dir = it.dir
	o.first.add(it.counts)
	return nil
}

// shut ends the open node of level k.
func (t *Tree) shut(ctx context.Context, k int) error {
	it, err := t.save(ctx, k)
	if err != nil {
		return err
	}
	if k+1 == len(t.levels) {
		if k == MaxLevel {
			return ErrTooDeep
		}
		t.levels = append(t.levels, &open{})
	}
	o := t.levels[k]
	o.items, o.shut = 0, true
	return t.put(ctx, k+1, it, func(dst []byte, prevDir string) []byte {
		return appendItem(dst, prevDir, it)
	})
}

func (t *Tree) save(ctx context.Context, k int) (item, error) {
	o := t.levels[k]
	name, err := t.sink.Save(ctx, id.Node, o.buf)
	if err != nil {
		return item{}, fmt.Errorf("save node: %w", err)
	}
	it := o.first
	it.node, it.length = name, uint32(len(o.buf))
	return it, nil
}

// Finish saves what is open and returns the tree. It must be called once, after
// the last Add.
func (t *Tree) Finish(ctx context.Context) (Root, error) {
	if t.err == nil && len(t.levels) == 0 {
		t.err = fmt.Errorf("%w: a tree without a root", ErrFormat)
	}
	if t.err != nil {
		return Root{}, t.err
	}
	t.err = errors.New("the tree is finished")
	for k := 0; ; k++ {
		if t.levels[k].shut {
			if err := t.shut(ctx, k); err != nil {
				return Root{}, fmt.Errorf("finish the tree: %w", err)
			}
			continue
		}
		it, err := t.save(ctx, k)
		if err != nil {
			return Root{}, fmt.Errorf("finish the tree: %w", err)
		}
		return Root{it.node, it.length, uint8(k), it.entries, it.files, it.bytes}, nil
	}
}
