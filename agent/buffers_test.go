package agent

import "testing"

// A buffer has room for what it was asked for, wastes at most a fifth, and is
// handed out again.
func TestBuffersAreUsedAgain(t *testing.T) {
	for _, n := range []int{0, 1, 512, 513, 640, 641, 1 << 16, 1<<16 + 1, 1<<20 + 16, 4<<20 + 16, 8 << 20} {
		p := buffer(n)
		if len(p) != 0 || cap(p) < n || cap(p) > max(minCharge, n+n/4+1) {
			t.Errorf("buffer(%d): length %d, capacity %d", n, len(p), cap(p))
		}
		p = append(p, 1)
		recycle(p)
		if again := buffer(n); &again[:1][0] != &p[0] || len(again) != 0 {
			t.Errorf("buffer(%d) after recycle is another one", n)
		}
	}
}

// What waits to be used is bounded.
func TestBuffersAreNotKeptForEver(t *testing.T) {
	before := buffers.kept
	var all [][]byte
	for range 2*keptBuffers/(1<<20) + 1 {
		all = append(all, buffer(1<<20))
	}
	for _, p := range all {
		recycle(p)
	}
	if buffers.kept > keptBuffers || buffers.kept < keptBuffers-(1<<20) {
		t.Errorf("%d bytes are kept, %d before; the bound is %d", buffers.kept, before, keptBuffers)
	}
}

// A slice that did not come from buffer is left to the collector.
func TestRecycleTakesOnlyBuffers(t *testing.T) {
	before := buffers.kept
	recycle(nil)
	recycle(make([]byte, 100))
	recycle(make([]byte, 1000))
	if buffers.kept != before {
		t.Errorf("%d bytes were taken", buffers.kept-before)
	}
}
