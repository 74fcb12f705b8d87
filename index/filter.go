package index

import (
	"encoding/binary"
	"math/bits"

	"orlop/id"
)

// The filter is a blocked Bloom filter (Putze, Sanders, Singler, "Cache-,
// Hash- and Space-Efficient Bloom Filters", 2007): all bits of a name lie in
// one line. With 9 bits a name and 6 probes about 2 % of the names that are
// not there pass it.
const (
	lineSize     = 60 // with its sum, a cache line
	lineBits     = 8 * lineSize
	bitsPerName  = 9
	filterProbes = 6
)

// A filter is one in the making: lines without sums.
type filter []byte

// newFilter returns an empty filter for n names.
func newFilter(n int) filter {
	return make(filter, lineSize*(n*bitsPerName/lineBits+1))
}

func (f filter) add(name *id.Blob) {
	line := f[lineSize*lineOf(name, len(f)/lineSize):][:lineSize]
	for h, step, i := probes(name); i < filterProbes; i++ {
		bit := probe(h)
		line[bit/8] |= 1 << (bit % 8)
		h += step
	}
}

// inLine reports whether name may be among those that were added.
func inLine(line []byte, name *id.Blob) bool {
	for h, step, i := probes(name); i < filterProbes; i++ {
		bit := probe(h)
		if line[bit/8]&(1<<(bit%8)) == 0 {
			return false
		}
		h += step
	}
	return true
}

// Names are keyed digests already, so their bytes serve as hashes. The first
// eight are left to the order of the run.
func lineOf(name *id.Blob, lines int) int {
	hi, _ := bits.Mul64(binary.BigEndian.Uint64(name[8:]), uint64(lines))
	return int(hi)
}

func probes(name *id.Blob) (h, step uint32, i int) {
	return binary.LittleEndian.Uint32(name[16:]), binary.LittleEndian.Uint32(name[20:]) | 1, 0
}

func probe(h uint32) uint32 { return uint32(uint64(h) * lineBits >> 32) }
