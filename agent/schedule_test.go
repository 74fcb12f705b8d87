package agent

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// A strait holds size bytes and gives its users' goroutines a random
// schedule.
type strait struct {
	mu     sync.Mutex
	moved  *sync.Cond
	buf    []byte
	size   int
	closed bool
	r      *rand.Rand
}

func newStrait(size int, r *rand.Rand) *strait {
	n := &strait{size: size, r: r}
	n.moved = sync.NewCond(&n.mu)
	return n
}

// dawdle lets others run, now and then for long.
func (n *strait) dawdle() {
	for range n.r.IntN(3) * n.r.IntN(3) {
		n.mu.Unlock()
		runtime.Gosched()
		n.mu.Lock()
	}
}

func (n *strait) Read(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for len(n.buf) == 0 {
		if n.closed {
			return 0, io.EOF
		}
		n.moved.Wait()
	}
	n.dawdle()
	m := copy(p, n.buf)
	n.buf = append(n.buf[:0], n.buf[m:]...)
	n.moved.Broadcast()
	return m, nil
}

func (n *strait) Write(p []byte) (done int, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for done < len(p) {
		if n.closed {
			return done, io.ErrClosedPipe
		}
		if len(n.buf) == n.size {
			n.moved.Wait()
			continue
		}
		n.dawdle()
		m := min(len(p)-done, n.size-len(n.buf))
		n.buf = append(n.buf, p[done:done+m]...)
		done += m
		n.moved.Broadcast()
	}
	return done, nil
}

func (n *strait) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	n.moved.Broadcast()
	return nil
}

// duplex is one end of two straits.
type duplex struct{ in, out *strait }

func (d duplex) Read(p []byte) (int, error)  { return d.in.Read(p) }
func (d duplex) Write(p []byte) (int, error) { return d.out.Write(p) }

func (d duplex) Close() error {
	_ = d.in.Close()
	return d.out.Close()
}

// Both ends get through whatever the credits, the queues, the pipe and the
// schedule: neither ever waits for the other in a circle.
func TestNoScheduleAndNoCreditIsADeadlock(t *testing.T) {
	root := t.TempDir()
	want := make(map[string][]byte)
	for i := range 10 {
		path := fmt.Sprintf("%d/%02d", i%3, i)
		want[path] = noise([]int{0, 100, 600, 1500, 700}[i%5], byte(i))
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(root, path), want[path])
	}
	seeds := 40
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(uint64(seed), 1))
			pick := func(n ...int) int { return n[r.IntN(len(n))] }
			host, agent := usual(), usual()
			host.boxes = pick(1, 2)
			host.credits = credits{
				Batches: uint32(pick(1, 2, 64)), Names: uint32(pick(1, 2, 3, 1024)),
				Bytes: uint32(pick(1, 512, 513, 1024, 3000, 32<<20)), Old: uint32(pick(0, 1, 1000)), Writes: 1,
			}
			agent.readers, agent.packers, agent.queue = pick(1, 2, 5), pick(1, 3), pick(0, 1, 2)
			size := pick(1, 1, 1, 7, 4096)
			down := newStrait(size, rand.New(rand.NewPCG(uint64(seed), 2)))
			up := newStrait(size, rand.New(rand.NewPCG(uint64(seed), 3)))
			c := joined(t, host, agent, duplex{up, down}, duplex{down, up})
			first := newShelf()
			for range 2 { // all is wanted, then nothing, with old cuts
				s := newShelf()
				if first.boxes > 0 {
					s.blobs, s.olds = first.blobs, first.cuts()
				}
				if _, err := c.Backup(t.Context(), request(root), s); err != nil {
					t.Fatal(err)
				}
				for path, data := range want {
					if !bytes.Equal(s.bytes(t, path), data) {
						t.Errorf("%s came out different", path)
					}
				}
				if first.boxes > 0 && s.boxes > 0 {
					t.Errorf("%d boxes where nothing was wanted", s.boxes)
				}
				first = s
			}
		})
	}
}

// An agent that ends its boxes only when they are full waits for ever when the
// credit is less than that; this is the smallest case of it.
func TestALastSmallBlobIsSent(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "one"), noise(600, 1))
	s := newShelf()
	if _, err := pair(t, usual(), usual()).Backup(t.Context(), request(root), s); err != nil {
		t.Fatal(err)
	}
	if s.boxes != 1 {
		t.Errorf("%d boxes, want 1", s.boxes)
	}
}
