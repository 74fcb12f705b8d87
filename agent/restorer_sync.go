//go:build linux

package agent

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// syncEvery is how many bytes are written before the disk is made to take them,
// beside the writing of more. Left to the end, it would be the third of a restore
// during which no core has anything to do.
const syncEvery = 128 << 20

// A syncer makes what is written durable. The nil syncer does nothing.
type syncer struct {
	fd    int // open since before the first write, so it hears of each that was lost
	sync  func(fd int) error
	dirty atomic.Int64
	due   chan struct{}
	ended chan struct{}
	over  bool  // due is closed
	err   error // valid once ended is closed
}

// newSyncer begins to sync the file system that t is on.
func newSyncer(t *target) (*syncer, error) {
	fd, err := t.openat(t.root.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return startSyncer(fd, unix.Syncfs), nil
}

func startSyncer(fd int, sync func(int) error) *syncer {
	y := &syncer{fd: fd, sync: sync, due: make(chan struct{}, 1), ended: make(chan struct{})}
	go func() {
		defer close(y.ended)
		for range y.due {
			if y.err == nil {
				y.err = sync(fd)
			}
		}
	}()
	return y
}

// wrote says that n bytes more were written.
func (y *syncer) wrote(n int) {
	if y == nil || y.dirty.Add(int64(n)) < syncEvery {
		return
	}
	y.dirty.Store(0)
	select {
	case y.due <- struct{}{}:
	default: // it is about to begin
	}
}

// finish waits until everything that was written is on the disk.
func (y *syncer) finish() error {
	if y == nil {
		return nil
	}
	y.stop()
	if y.err == nil {
		y.err = y.sync(y.fd)
	}
	return y.err
}

// stop ends the syncing. It may be called again.
func (y *syncer) stop() {
	if y == nil || y.over {
		return
	}
	y.over = true
	close(y.due)
	<-y.ended
}

func (y *syncer) close() {
	if y != nil {
		y.stop()
		unix.Close(y.fd)
	}
}
