package index

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"

	"orlop/id"
	"orlop/seal"
)

// A cursor reads the names of a run in order.
type cursor struct {
	run    *run
	use    bitset // as it was when the reading began
	s      scanner
	done   bool
	prefix uint64 // first bytes of the name at hand
	record record
}

func (r *run) names(use bitset) (*cursor, error) {
	c := &cursor{run: r, use: use, s: r.scan(tNames)}
	return c, c.next()
}

func (c *cursor) next() error {
	row, err := c.s.row()
	if row == nil || err != nil {
		c.done = true
		return err
	}
	c.prefix = binary.BigEndian.Uint64(row)
	copy(c.record.name[:], row)
	c.record.box = binary.LittleEndian.Uint32(row[id.Size:])
	c.record.place = binary.LittleEndian.Uint32(row[id.Size+4:])
	return nil
}

// least returns the cursor with the least name, or nil at the end of all.
func least(cs []*cursor) *cursor {
	var m *cursor
	for _, c := range cs {
		if c.done {
			continue
		}
		if m == nil || c.prefix < m.prefix || c.prefix == m.prefix && c.record.name.Compare(m.record.name) < 0 {
			m = c
		}
	}
	return m
}

// A packCursor reads the packs of a run in order.
type packCursor struct {
	run  *run
	use  bitset
	s    scanner
	n    int // row number
	done bool
	packKey
	session uint32
}

func (r *run) packs(use bitset) (*packCursor, error) {
	c := &packCursor{run: r, use: use, s: r.scan(tPacks)}
	return c, c.next()
}

func (c *packCursor) next() error {
	c.n = c.s.next
	row, err := c.s.row()
	if row == nil || err != nil {
		c.done = true
		return err
	}
	c.id = id.Pack(row[:id.Size])
	c.digest = [8]byte(row[id.Size:])
	c.size = int64(binary.LittleEndian.Uint64(row[id.Size+8:]))
	c.session = binary.LittleEndian.Uint32(row[id.Size+16:])
	return nil
}

func leastPack(cs []*packCursor) *packCursor {
	var m *packCursor
	for _, c := range cs {
		if !c.done && (m == nil || c.compare(&m.packKey) < 0) {
			m = c
		}
	}
	return m
}

// A part is a run to be merged, with what Restrict has said about it.
type part struct {
	run    *run
	use    bitset
	judged bool
}

const dropped = math.MaxUint32

// merge writes a run that says what parts say, less the segments that are not
// listed and the packs that do not count as of a Restrict that came after the
// part. A pack that was condemned or deleted never comes back, and neither
// does a segment. It holds 4 bytes a pack and 9 bits a blob in memory.
func merge(dir string, repo id.Repository, parts []part, listed map[id.Segment]bool) (*run, error) {
	of := mergeCovers(parts, listed)
	var names, size int
	for _, p := range parts {
		names += p.run.t[tNames].rows
		for k := range tables {
			size += k.bytes(p.run.t[k].rows)
		}
	}
	return build(dir, repo, of, names, size, func(b *builder) error {
		packs, err := mergePacks(b, parts)
		if err != nil {
			return err
		}
		return mergeNames(b, parts, packs)
	})
}

// mergeCovers returns what a merge of parts speaks for.
func mergeCovers(parts []part, listed map[id.Segment]bool) (of cover) {
	writers := map[id.Segment]seal.Writer{}
	for _, p := range parts {
		for i, s := range p.run.segments {
			if !p.judged || listed == nil || listed[s] {
				writers[s] = p.run.writers[i]
			}
		}
	}
	of.segments = slices.SortedFunc(maps.Keys(writers), id.Segment.Compare)
	for _, s := range of.segments {
		of.writers = append(of.writers, writers[s])
	}
	for _, p := range parts {
		for _, r := range p.run.replaced {
			by, kept := slices.BinarySearchFunc(of.segments, p.run.segments[r.by], id.Segment.Compare)
			if kept && (!p.judged || listed == nil || listed[r.old]) {
				of.replaced = append(of.replaced, replaced{r.old, uint32(by)})
			}
		}
	}
	slices.SortFunc(of.replaced, replaced.compare)
	of.replaced = slices.Compact(of.replaced)
	return of
}

// mergePacks writes the packs of parts with their boxes. It returns for each
// part and pack the number that its first box has got, or dropped.
func mergePacks(b *builder, parts []part) ([][]uint32, error) {
	var sessions sessionTable
	first := make([][]uint32, len(parts))
	segment := make([][]uint32, len(parts)) // part, segment -> segment
	cursors := make([]*packCursor, len(parts))
	members := make([]scanner, len(parts))
	boxes := make([]scanner, len(parts))
	for i, p := range parts {
		first[i] = make([]uint32, len(p.run.first))
		for _, s := range p.run.segments {
			n, ok := slices.BinarySearchFunc(b.segments, s, id.Segment.Compare)
			if !ok {
				n = dropped
			}
			segment[i] = append(segment[i], uint32(n))
		}
		var err error
		if cursors[i], err = p.run.packs(p.use); err != nil {
			return nil, err
		}
		members[i], boxes[i] = p.run.scan(tMembers), p.run.scan(tBoxes)
	}
	for {
		m := leastPack(cursors)
		if m == nil {
			return first, nil
		}
		p := m.packKey
		in := []uint32{}
		from, number := -1, uint32(dropped)
		var sources [][2]int // part, pack
		for i, c := range cursors {
			if c.done || c.compare(&p) != 0 {
				continue
			}
			counts := !parts[i].judged || c.use.has(c.n)
			for {
				row, err := members[i].row()
				if err != nil {
					return nil, err
				}
				if row == nil {
					break
				}
				if n := binary.LittleEndian.Uint32(row); n != uint32(c.n) {
					members[i].next--
					break
				}
				n := binary.LittleEndian.Uint32(row[4:])
				if int64(n) >= int64(len(segment[i])) {
					return nil, c.run.damaged(fmt.Errorf("%w: segment %d of %d", ErrDamaged, n, len(segment[i])))
				}
				if n = segment[i][n]; counts && n != dropped {
					in = append(in, n)
				}
			}
			if counts {
				from = i
			}
			sources = append(sources, [2]int{i, c.n})
		}
		if len(in) > 0 {
			c := cursors[from]
			h, err := c.run.session(c.session)
			if err != nil {
				return nil, c.run.damaged(err)
			}
			session := sessions.number(*h)
			if int(session) == b.t[tSessions].rows {
				if err := b.header(*h); err != nil {
					return nil, err
				}
			}
			slices.Sort(in)
			if number, err = b.pack(&p, session, slices.Compact(in)); err != nil {
				return nil, err
			}
			lo, hi := c.run.boxesOf(c.n)
			for boxes[from].next = int(lo); boxes[from].next < int(hi); {
				row, err := boxes[from].row()
				if err != nil {
					return nil, err
				}
				if row == nil {
					return nil, c.run.damaged(fmt.Errorf("%w: boxes end before %d", ErrDamaged, hi))
				}
				if err := b.box(row); err != nil {
					return nil, err
				}
			}
		}
		for _, s := range sources {
			first[s[0]][s[1]] = number
			if err := cursors[s[0]].next(); err != nil {
				return nil, err
			}
		}
	}
}

// mergeNames writes the names of parts, whose packs got their boxes at first.
func mergeNames(b *builder, parts []part, first [][]uint32) error {
	cursors := make([]*cursor, len(parts))
	for i, p := range parts {
		var err error
		if cursors[i], err = p.run.names(p.use); err != nil {
			return err
		}
	}
	var group []record // one name's
	for {
		m := least(cursors)
		if m == nil {
			return nil
		}
		name, prefix := m.record.name, m.prefix
		group = group[:0]
		for i, c := range cursors {
			for !c.done && c.prefix == prefix && c.record.name == name {
				p, err := c.run.packOf(c.record.box)
				if err != nil {
					return c.run.damaged(err)
				}
				if n := first[i][p]; n != dropped {
					group = append(group, record{name, n + c.record.box - c.run.first[p], c.record.place})
				}
				if err := c.next(); err != nil {
					return err
				}
			}
		}
		slices.SortFunc(group, func(a, b record) int {
			return cmp.Or(cmp.Compare(a.box, b.box), cmp.Compare(a.place, b.place))
		})
		for i := range group {
			if err := b.record(&group[i]); err != nil {
				return err
			}
		}
	}
}
