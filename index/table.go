package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"

	"orlop/id"
	"orlop/seal"
)

// ErrDamaged is returned when a local file is not what was written to it. The
// file is gone when the caller sees this: what it covered is no longer in
// [Index.Covered], can be added again, and the call be made again.
var ErrDamaged = errors.New("local index damaged")

// A kind is one table of a run. Rows have a fixed length and lie in blocks,
// each ending in a sum; blocks lie in chunks, each the one value of a bucket.
type kind byte

const (
	tSessions kind = iota // seal.Header
	tPacks                // id[32] digest[8] size[8] session[4], in this order
	tFirst                // for each pack, how many boxes come before its own
	tMembers              // pack[4] segment[4], in this order
	tBoxes                // offset[4] length[4] raw[4] codec[1], by pack
	tNames                // name[32] box[4] place<<2|kind[4], in this order
	tFences               // for each block of names, the first 8 bytes of its first
	tFilter               // lines of a blocked Bloom filter over the names
	tables
)

const (
	sumSize   = 4
	chunkSize = 4 << 20
)

var rowSize = [tables]int{
	tSessions: seal.HeaderSize,
	tPacks:    id.Size + 8 + 8 + 4,
	tFirst:    4,
	tMembers:  4 + 4,
	tBoxes:    4 + 4 + 4 + 1,
	tNames:    id.Size + 4 + 4,
	tFences:   8,
	tFilter:   lineSize,
}

// blockSize is what is summed, and so read, at once. What is asked one by one
// and at random has small blocks: most of a lookup is waiting for memory that
// no cache has. At 10,000,000 blobs a block of names takes 0.85 us at 4 KiB and
// 0.53 at 1 KiB, which costs a byte a blob more. A line of the filter is a cache
// line: asking costs one miss of the cache, and its sum nearly nothing.
func (k kind) blockSize() int {
	switch k {
	case tFilter:
		return lineSize + sumSize
	case tPacks, tBoxes:
		return 512
	case tNames:
		return 1 << 10
	}
	return 4 << 10
}

// rowsPerBlock never is 0: the longest row is a session of about 1.1 KB.
func (k kind) rowsPerBlock() int { return (k.blockSize() - sumSize) / rowSize[k] }

// bucket names the bucket of chunk i.
func (k kind) bucket(i int) []byte {
	return binary.BigEndian.AppendUint32([]byte{'t', byte(k)}, uint32(i))
}

// bytes returns how long a table of n rows is. The last block is only as long
// as its rows need.
func (k kind) bytes(n int) int {
	per := k.rowsPerBlock()
	size := n / per * k.blockSize()
	if n %= per; n > 0 {
		size += n*rowSize[k] + sumSize
	}
	return size
}

// CRC-32C catches every burst of up to 32 bits, runs at the speed of memory,
// and begins with a value that only this block of this table of this file has,
// so that a block in another's place is noticed too.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(seed uint32, k kind, block int, p []byte) uint32 {
	return crc32.Update(seed^(uint32(k)<<28+uint32(block)), castagnoli, p)
}

// A table is one table of an open run, in mapped memory. Reading it may fault
// if the file was cut short: see caught.
type table struct {
	of     kind
	seed   uint32
	rows   int
	chunks [][]byte
}

// raw returns block i as it lies there, unchecked.
func (t *table) raw(i int) []byte {
	size := t.of.blockSize()
	per := chunkSize / size
	c := t.chunks[i/per]
	return c[i%per*size : min((i%per+1)*size, len(c))]
}

// rawOf returns the block that row i is in, unchecked.
func (t *table) rawOf(i int) []byte { return t.raw(i / t.of.rowsPerBlock()) }

// warm makes the processor fetch blocks at the same time that will be asked for
// one after the other: to wait for each takes longer than all that is done with
// it. A hit takes a twentieth less.
//
//go:noinline
func warm(blocks ...[]byte) (b byte) {
	for _, p := range blocks {
		b ^= p[0]
	}
	return b
}

// block returns the rows of block i after checking their sum.
func (t *table) block(i int) ([]byte, error) {
	b := t.raw(i)
	rows, want := b[:len(b)-sumSize], binary.LittleEndian.Uint32(b[len(b)-sumSize:])
	if sum(t.seed, t.of, i, rows) != want {
		return nil, fmt.Errorf("%w: table %d, block %d", ErrDamaged, t.of, i)
	}
	// The sum itself may end in the slack that a block has: it is cut to rows.
	return rows[:min(t.of.rowsPerBlock(), t.rows-i*t.of.rowsPerBlock())*rowSize[t.of]], nil
}

// row returns row i, its block checked.
func (t *table) row(i int) ([]byte, error) {
	if i < 0 || i >= t.rows {
		return nil, fmt.Errorf("%w: row %d of %d in table %d", ErrDamaged, i, t.rows, t.of)
	}
	per := t.of.rowsPerBlock()
	b, err := t.block(i / per)
	if err != nil {
		return nil, err
	}
	n := rowSize[t.of]
	return b[i%per*n:][:n:n], nil
}

// willNeed tells the kernel that chunk i will be read from end to end. bbolt
// maps its files for random access, without any reading ahead.
func (t *table) willNeed(i int) {
	c := t.chunks[i]
	page := uintptr(os.Getpagesize())
	if skip := -uintptr(unsafe.Pointer(unsafe.SliceData(c))) % page; skip < uintptr(len(c)) {
		_ = unix.Madvise(c[skip:], unix.MADV_WILLNEED)
	}
}

// A scanner reads a table from front to back. Its rows are copies: they stay
// good, and reading them cannot fault.
type scanner struct {
	run  *run
	t    *table
	next int // row
	buf  []byte
	have int // block in buf, plus one
}

func (r *run) scan(k kind) scanner { return scanner{run: r, t: &r.t[k]} }

// row returns the next row, or nil at the end. It is good until the next call.
func (s *scanner) row() ([]byte, error) {
	if s.next >= s.t.rows {
		return nil, nil
	}
	per := s.t.of.rowsPerBlock()
	if b := s.next / per; s.have != b+1 {
		if err := s.load(b); err != nil {
			return nil, s.run.damaged(err)
		}
	}
	n := rowSize[s.t.of]
	p := s.buf[s.next%per*n:][:n:n]
	s.next++
	return p, nil
}

func (s *scanner) load(b int) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer caught(&err)
	if per := chunkSize / s.t.of.blockSize(); b%per == 0 || s.have == 0 {
		s.t.willNeed(b / per)
	}
	p, err := s.t.block(b)
	if err == nil {
		s.buf, s.have = append(s.buf[:0], p...), b+1
	}
	return err
}

// caught turns a panic into ErrDamaged: of bbolt, of an index that is out of
// range because of what a file says, or (with debug.SetPanicOnFault) of
// mapped memory that the file does not reach.
func caught(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w: %v", ErrDamaged, p)
	}
}

// damageError says which run is damaged.
type damageError struct {
	run *run
	err error
}

func (e *damageError) Error() string { return e.err.Error() }
func (e *damageError) Unwrap() error { return e.err }

// damaged notes in err, if it is ErrDamaged, that it is about r.
func (r *run) damaged(err error) error {
	if errors.Is(err, ErrDamaged) {
		return &damageError{r, err}
	}
	return err
}
