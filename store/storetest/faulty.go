package storetest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"

	"orlop/store"
)

// ErrInjected is the error of every failure that a Faulty makes.
var ErrInjected = errors.New("injected fault")

// A Fault is one way for an operation to go wrong.
type Fault int

// The three ways an operation fails in the world.
const (
	Lost   Fault = iota // it was not done and the caller is told
	Unsure              // it was done but the answer never arrived
	Dead                // it was done, then the process died: every later operation fails undone
)

// String names the fault for people.
func (f Fault) String() string { return [...]string{"lost", "unsure", "dead"}[f] }

// An Op is a kind of operation.
type Op int

// The operations of a store.
const (
	Put Op = iota
	Get
	List
	Delete
	numOps
)

// String names the operation as [Log] does.
func (o Op) String() string { return [...]string{"put", "get", "list", "delete"}[o] }

// Faulty is a store of which one operation fails. The zero Op and Fault with a
// Store lose the first Put. It may be used concurrently; set the fields before.
type Faulty struct {
	Store store.Deleter
	At    int64 // which operation of its kind fails, from 0; below 0 none does
	Fault Fault
	Op    Op // the kind that fails

	mu    sync.Mutex
	count [numOps]int64
	fired int64
	dead  bool
}

var _ store.Deleter = (*Faulty)(nil)

// Puts returns how many Puts were begun, with those that failed.
func (f *Faulty) Puts() int64 { return f.Count(Put) }

// Count returns how many operations of a kind were begun, with those that
// failed.
func (f *Faulty) Count(op Op) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[op]
}

// Fired returns how often the fault happened: 0 or 1. Operations refused after
// a Dead one do not count.
func (f *Faulty) Fired() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired
}

// run makes one call of do, or none, as the fault will have it.
func (f *Faulty) run(op Op, name store.Name, do func() error) error {
	f.mu.Lock()
	n := f.count[op]
	f.count[op]++
	hit := op == f.Op && n == f.At && !f.dead
	if hit {
		f.fired++
	}
	undone := f.dead || hit && f.Fault == Lost
	f.mu.Unlock()

	injected := fmt.Errorf("%s %s: %w", op, name, ErrInjected)
	if undone {
		return injected
	}
	err := do()

	f.mu.Lock()
	defer f.mu.Unlock()
	if hit && f.Fault == Dead {
		f.dead = true
	}
	if hit || f.dead { // the dead hear no answers
		return injected
	}
	return err
}

// Put implements [store.Store].
func (f *Faulty) Put(ctx context.Context, name store.Name, data []byte) error {
	return f.run(Put, name, func() error { return f.Store.Put(ctx, name, data) })
}

// Get implements [store.Store].
func (f *Faulty) Get(ctx context.Context, name store.Name, off, n int64) (data []byte, err error) {
	err = f.run(Get, name, func() (err error) {
		data, err = f.Store.Get(ctx, name, off, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// List implements [store.Store]. A List that was done and not answered shows
// half of what it found, as one that breaks off between two pages does.
func (f *Faulty) List(ctx context.Context, prefix store.Name) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		var infos []store.Info
		err := f.run(List, prefix, func() error {
			for info, err := range f.Store.List(ctx, prefix) {
				if err != nil {
					return err
				}
				infos = append(infos, info)
			}
			return nil
		})
		if errors.Is(err, ErrInjected) {
			infos = infos[:len(infos)/2]
		}
		for _, info := range infos {
			if !yield(info, nil) {
				return
			}
		}
		if err != nil {
			yield(store.Info{}, err)
		}
	}
}

// Delete implements [store.Deleter].
func (f *Faulty) Delete(ctx context.Context, name store.Name) error {
	return f.run(Delete, name, func() error { return f.Store.Delete(ctx, name) })
}
