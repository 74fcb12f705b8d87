//go:build linux

package agent

import (
	"errors"
	"testing"
)

// Much that is written is synced before the end, and the end is synced in any case.
func TestTheDiskIsKeptBusyWhileMoreIsWritten(t *testing.T) {
	synced := make(chan int)
	y := startSyncer(7, func(fd int) error { synced <- fd; return nil })
	for range 3 {
		for range 128 {
			y.wrote(1 << 20)
		}
		if fd := <-synced; fd != 7 {
			t.Errorf("%d was synced", fd)
		}
	}
	y.wrote(1)
	end := make(chan error)
	go func() { end <- y.finish() }()
	<-synced
	if err := <-end; err != nil {
		t.Error(err)
	}
}

// What one sync hears of is not told to the next: the first word counts.
func TestAWriteThatWasLostBeforeTheEndIsAnError(t *testing.T) {
	lost, calls := errors.New("lost"), 0
	heard := make(chan struct{})
	y := startSyncer(0, func(int) error {
		if calls++; calls == 1 {
			close(heard)
			return lost
		}
		return nil
	})
	y.wrote(syncEvery)
	<-heard
	if err := y.finish(); !errors.Is(err, lost) {
		t.Errorf("%v, after %d syncs", err, calls)
	}
}

func TestNobodyAskedForSync(t *testing.T) {
	var y *syncer
	y.wrote(1 << 40)
	if err := y.finish(); err != nil {
		t.Error(err)
	}
	y.close()
}
