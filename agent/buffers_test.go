package agent

import "testing"

// A buffer has room for what it was asked for, a new one wastes at most a fifth,
// and it is handed out again.
func TestBuffersAreUsedAgain(t *testing.T) {
	buffers = stock{}
	for _, n := range []int{0, 1, 512, 513, 640, 641, 1 << 16, 1<<16 + 1, 1<<20 + 16, 4<<20 + 16, 8 << 20} {
		p := buffer(n)
		if len(p) != 0 || cap(p) < n || cap(p) > max(minCharge, n+n/4+1) {
			t.Errorf("buffer(%d): length %d, capacity %d", n, len(p), cap(p))
		}
		p = append(p, 1)
		recycle(p)
		if buffers.kept != cap(p) {
			t.Errorf("%d bytes are kept of one buffer of %d", buffers.kept, cap(p))
		}
		if again := buffer(n); &again[:1][0] != &p[0] || len(again) != 0 {
			t.Errorf("buffer(%d) after recycle is another one", n)
		}
	}
}

// What waits to be used is bounded.
func TestBuffersAreNotKeptForEver(t *testing.T) {
	buffers = stock{}
	var all [][]byte
	for range 2*keptBuffers/(1<<20) + 1 {
		all = append(all, buffer(1<<20))
	}
	for _, p := range all {
		recycle(p)
	}
	if buffers.kept > keptBuffers || buffers.kept < keptBuffers-(1<<20) {
		t.Errorf("%d bytes are kept; the bound is %d", buffers.kept, keptBuffers)
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

// A stock that is full of buffers that nobody asks for makes room for others.
func TestBuffersFollowWhatIsAskedFor(t *testing.T) {
	buffers = stock{}
	for range 2 {
		var all [][]byte
		for range keptBuffers >> 20 {
			all = append(all, buffer(1<<20))
		}
		for _, p := range all {
			recycle(p)
		}
	}
	p := append(buffer(4<<20), 1)
	recycle(p)
	if again := buffer(4 << 20); &again[:1][0] != &p[0] {
		t.Error("a buffer that was recycled last is not there")
	}
}
