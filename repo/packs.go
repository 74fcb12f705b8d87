package repo

import (
	"math"
	"slices"

	"orlop/id"
	"orlop/index"
)

// A packSet is the packs of a listing, sorted by name and not to be changed.
// It is never nil: there may be none. A vast repository has hundreds of
// thousands, and a map would need three times as much memory.
type packSet []index.Pack

// newPackSet makes a set of packs that come in any order.
func newPackSet(packs []index.Pack) packSet {
	slices.SortFunc(packs, func(a, b index.Pack) int { return a.ID.Compare(b.ID) })
	return slices.CompactFunc(packs, func(a, b index.Pack) bool { return a.ID == b.ID })
}

// listedPack returns a pack as a listing shows it. One that is larger than any
// pack can be is no less wrong when it is said to have 4 GiB.
func listedPack(p id.Pack, size int64) index.Pack {
	return index.Pack{ID: p, Size: uint32(min(size, math.MaxUint32))}
}

// size returns how long a pack is, and whether it is in the set.
func (s packSet) size(p id.Pack) (int64, bool) {
	i, ok := slices.BinarySearchFunc(s, p, func(q index.Pack, p id.Pack) int { return q.ID.Compare(p) })
	if !ok {
		return 0, false
	}
	return int64(s[i].Size), true
}

// with returns the set and more packs; of a pack in both it knows what more
// says.
func (s packSet) with(more []index.PackInfo) packSet {
	added := make([]index.Pack, len(more))
	for i, p := range more {
		added[i] = listedPack(p.ID, p.Size)
	}
	added = newPackSet(added)
	all := make(packSet, 0, len(s)+len(added))
	for _, p := range added {
		i, ok := slices.BinarySearchFunc(s, p, func(a, b index.Pack) int { return a.ID.Compare(b.ID) })
		all = append(append(all, s[:i]...), p)
		if ok {
			i++
		}
		s = s[i:]
	}
	return append(all, s...)
}

// bytes is the size of all.
func (s packSet) bytes() (total int64) {
	for _, p := range s {
		total += int64(p.Size)
	}
	return total
}
