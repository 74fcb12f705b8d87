//go:build linux

package agent

import (
	"errors"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"orlop/snapshot"
)

const (
	askAhead  = 32 << 20 // so much of a file is asked about at a time,
	askMargin = 8 << 20  // and before the kernel may read ahead as far as that
	// Pages are dropped up to a multiple of this: it is no smaller than the
	// largest folio, and one that is dropped in parts stays.
	dropAt = 2 << 20

	// noWaitFile is the size up to which, if need be, the read itself tells what
	// was not there: it is over before the kernel has read much ahead.
	noWaitFile = 64 << 10
)

var pageSize = uint64(unix.Getpagesize())

func pageFloor(n uint64) uint64 { return n &^ (pageSize - 1) }

// A cache leaves the kernel's page cache as the reading of a file found it.
// What a backup reads once is of no use there and pushes out what is. But pages
// that were there before it came are somebody's, and stay.
//
// Which those are must be known before the first is read, as the kernel reads
// ahead. It says so only to who may write the file; others are told that all
// are there, and then none is dropped.
type cache struct {
	unknown *unknown
	fd      int
	size    uint64

	asked   uint64            // cold is known up to here
	cold    []snapshot.Extent // what was not there, in order
	kept    int               // of cold, that is not dropped
	fetched uint64            // the kernel was told to read up to here
	pages   []byte            // one for each page that is asked about
}

// unknown notes what the kernel, the file system or a filter do not know.
type unknown struct{ noWait, cachestat atomic.Bool }

// begin turns to a file.
func (c *cache) begin(fd int, size uint64) {
	c.fd, c.size, c.asked, c.fetched = fd, size, 0, 0
	c.cold, c.kept = c.cold[:0], 0
}

// before must be called before p is read from off. It returns how much of p it
// has read already.
func (c *cache) before(p []byte, off uint64) int {
	end := off + uint64(len(p))
	if c.size > noWaitFile || !c.unknown.cachestat.Load() || c.unknown.noWait.Load() {
		c.ask(off, min(end+askMargin, c.size))
		return 0
	}
	// To ask mincore would take a tenth of the time that such a file takes. If
	// the disk is very quick, what was not there may seem to have been.
	n, err := unix.Preadv2(c.fd, [][]byte{p}, int64(off), unix.RWF_NOWAIT)
	if n == len(p) {
		return n
	}
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		c.unknown.noWait.Store(errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM))
		c.ask(off, c.size)
		return 0
	}
	n = max(n, 0)
	c.add(pageFloor(off+uint64(n)+pageSize-1), end)
	return n
}

// ask finds out what of the file between off and end is not there, if it is not
// known, and of some more.
func (c *cache) ask(off, end uint64) {
	if end <= c.asked {
		return
	}
	from := max(pageFloor(off), c.asked)
	to := min(max(pageFloor(end+pageSize-1), from+askAhead), c.size)
	c.asked = to
	pages := (to - from + pageSize - 1) / pageSize
	if !c.unknown.cachestat.Load() {
		var st unix.Cachestat_t
		err := unix.Cachestat(uint(c.fd), &unix.CachestatRange{Off: from, Len: to - from}, &st, 0)
		switch {
		case err != nil:
			c.unknown.cachestat.Store(true)
		case st.Cache >= pages:
			return
		case st.Cache == 0:
			c.add(from, to)
			return
		}
	}
	// The mapping is never looked at: the file may be shorter by now.
	area, err := unix.Mmap(c.fd, int64(from), int(to-from), unix.PROT_NONE, unix.MAP_SHARED)
	if err != nil {
		return
	}
	defer func() { _ = unix.Munmap(area) }()
	if uint64(len(c.pages)) < pages {
		c.pages = make([]byte, pages)
	}
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE,
		uintptr(unsafe.Pointer(&area[0])), uintptr(len(area)), uintptr(unsafe.Pointer(&c.pages[0]))); errno != 0 {
		return
	}
	for i, there := range c.pages[:pages] {
		if at := from + uint64(i)*pageSize; there&1 == 0 {
			c.add(at, min(at+pageSize, to))
		}
	}
}

// add notes that the pages from from to to are not there.
func (c *cache) add(from, to uint64) {
	if from >= to {
		return
	}
	if n := len(c.cold); n > c.kept && c.cold[n-1].End() == from {
		c.cold[n-1].Length += to - from
		return
	}
	c.cold = append(c.cold, snapshot.Extent{Offset: from, Length: to - from})
}

// fetch lets the kernel begin to read what is not there between off and end.
func (c *cache) fetch(off, end uint64) {
	off = max(off, c.fetched)
	c.fetched = max(end, c.fetched)
	for _, x := range c.cold[c.kept:] {
		if from, to := max(off, x.Offset), min(end, x.End()); from < to {
			_ = unix.Fadvise(c.fd, int64(from), int64(to-from), unix.FADV_WILLNEED)
		}
	}
}

// end says that no more is read.
func (c *cache) end() { c.drop(snapshot.MaxSize) }

// after says that all before off was read: what of it was not there goes.
func (c *cache) after(off uint64) { c.drop(off &^ (dropAt - 1)) }

func (c *cache) drop(off uint64) {
	for ; c.kept < len(c.cold); c.kept++ {
		x := &c.cold[c.kept]
		to := min(off, x.End())
		if to > x.Offset {
			_ = unix.Fadvise(c.fd, int64(x.Offset), int64(to-x.Offset), unix.FADV_DONTNEED)
		}
		if to < x.End() {
			x.Length -= max(to, x.Offset) - x.Offset
			x.Offset = max(to, x.Offset)
			return
		}
	}
}
