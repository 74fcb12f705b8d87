package agent

import (
	"math/bits"
	"sync"
)

// keptBuffers bounds the bytes of buffers that wait to be used again.
const keptBuffers = 16 << 20

// A stock keeps buffers between uses. The collector does not empty it as it
// does a sync.Pool: with as few bytes in the heap as there are here it runs
// every few megabytes, and every buffer would be asked of the kernel again,
// page by page. (A first backup of 63,000 files allocated 1,300 MB so, and
// spent a third of its time on that and on collecting it.)
type stock struct {
	mu   sync.Mutex
	free [bits.UintSize * 4][][]byte // by class
	kept int
}

var buffers stock

// class returns the smallest class whose buffers hold n bytes, and how long
// those are: four sizes for each power of two, so that little is wasted.
func class(n int) (c, size int) {
	n = max(n, minCharge)
	step := bits.Len(uint(n-1)) - 3 // n-1 has its top bit at step+2
	quarters := (n-1)>>step + 1     // 5 to 8
	return step*4 + quarters - 5, quarters << step
}

// buffer returns an empty slice with room for n bytes.
func buffer(n int) []byte {
	c, size := class(n)
	buffers.mu.Lock()
	defer buffers.mu.Unlock()
	// One that is up to twice as long will do.
	for k := c; k <= c+4; k++ {
		if p := buffers.take(k); p != nil {
			return p
		}
	}
	return make([]byte, 0, size)
}

// recycle takes back a slice that came from buffer and is not used any more.
func recycle(p []byte) {
	if cap(p) < minCharge {
		return
	}
	c, size := class(cap(p))
	if size != cap(p) {
		return // it grew, and has no class
	}
	buffers.mu.Lock()
	defer buffers.mu.Unlock()
	buffers.free[c] = append(buffers.free[c], p[:0])
	for buffers.kept += size; buffers.kept > keptBuffers; {
		buffers.take(buffers.most())
	}
}

// take removes a buffer of class c, if there is one.
func (s *stock) take(c int) []byte {
	have := s.free[c]
	if len(have) == 0 {
		return nil
	}
	p := have[len(have)-1]
	have[len(have)-1] = nil
	s.free[c] = have[:len(have)-1]
	s.kept -= cap(p)
	return p
}

// most returns the class that keeps the most bytes: what is asked for changes
// with the files, and a stock full of what nobody asks for is none.
func (s *stock) most() int {
	c, bytes := 0, 0
	for k, have := range s.free {
		if len(have) > 0 && len(have)*cap(have[0]) > bytes {
			c, bytes = k, len(have)*cap(have[0])
		}
	}
	return c
}
