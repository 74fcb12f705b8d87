package storetest

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"

	"orlop/store"
)

// Log is a store that remembers what was asked of it. It may be used
// concurrently.
type Log struct {
	Store store.Deleter

	mu    sync.Mutex
	lines []string
	bytes [numOps]int64
}

var _ store.Deleter = (*Log)(nil)

// Lines returns the operations in the order in which they ended:
//
//	put packs/5ea1… 4096
//	get packs/5ea1… 0 16      offset and bytes returned
//	list packs/
//	delete packs/5ea1…
//
// with the whole name, and " failed" behind those that did. A List is logged
// when it begins, since its loop may never end.
func (l *Log) Lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// Ops returns the lines of one kind of operation on names with a prefix.
func (l *Log) Ops(op Op, prefix store.Name) []string {
	return slices.DeleteFunc(l.Lines(), func(line string) bool {
		return !strings.HasPrefix(line, op.String()+" "+string(prefix))
	})
}

// Bytes returns how many bytes the Puts or Gets that succeeded have moved.
func (l *Log) Bytes(op Op) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes[op]
}

// Reset forgets everything.
func (l *Log) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines, l.bytes = nil, [numOps]int64{}
}

func (l *Log) add(op Op, line string, n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	line = op.String() + " " + line
	if err != nil {
		line += " failed"
	} else {
		l.bytes[op] += int64(n)
	}
	l.lines = append(l.lines, line)
}

// Put implements [store.Store].
func (l *Log) Put(ctx context.Context, name store.Name, data []byte) error {
	err := l.Store.Put(ctx, name, data)
	l.add(Put, fmt.Sprintf("%s %d", name, len(data)), len(data), err)
	return err
}

// Get implements [store.Store].
func (l *Log) Get(ctx context.Context, name store.Name, off, n int64) ([]byte, error) {
	data, err := l.Store.Get(ctx, name, off, n)
	l.add(Get, fmt.Sprintf("%s %d %d", name, off, len(data)), len(data), err)
	return data, err
}

// List implements [store.Store].
func (l *Log) List(ctx context.Context, prefix store.Name) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		l.add(List, string(prefix), 0, nil)
		l.Store.List(ctx, prefix)(yield)
	}
}

// Delete implements [store.Deleter].
func (l *Log) Delete(ctx context.Context, name store.Name) error {
	err := l.Store.Delete(ctx, name)
	l.add(Delete, string(name), 0, err)
	return err
}
