package store

import (
	"bytes"
	"context"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"sync"
)

// Mem is a store in memory, for tests and for looking at one object as if it
// lay in a repository.
type Mem struct {
	mu      sync.RWMutex
	objects map[Name][]byte // values are never written to
}

var _ Deleter = (*Mem)(nil)

// NewMem returns an empty store.
func NewMem() *Mem { return &Mem{objects: make(map[Name][]byte)} }

// Put implements [Store].
func (m *Mem) Put(ctx context.Context, name Name, data []byte) error {
	if err := check(ctx, name); err != nil {
		return fail("put", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[name]; ok {
		return fail("put", name, fs.ErrExist)
	}
	m.objects[name] = bytes.Clone(data)
	return nil
}

// Get implements [Store].
func (m *Mem) Get(ctx context.Context, name Name, off, n int64) ([]byte, error) {
	if err := check(ctx, name); err != nil {
		return nil, fail("get", name, err)
	}
	m.mu.RLock()
	data, ok := m.objects[name]
	m.mu.RUnlock()
	if !ok {
		return nil, fail("get", name, fs.ErrNotExist)
	}
	n, err := cut(int64(len(data)), off, n)
	if err != nil {
		return nil, fail("get", name, err)
	}
	return append(make([]byte, 0, n), data[off:off+n]...), nil
}

// List implements [Store].
func (m *Mem) List(ctx context.Context, prefix Name) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := prefix.CheckPrefix(); err != nil {
			yield(Info{}, fail("list", prefix, err))
			return
		}
		for _, info := range m.infos(prefix) {
			if err := ctx.Err(); err != nil {
				yield(Info{}, fail("list", prefix, err))
				return
			}
			if !yield(info, nil) {
				return
			}
		}
	}
}

// infos returns what begins with prefix, in order: a test that fails should
// fail the same way again.
func (m *Mem) infos(prefix Name) []Info {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var infos []Info
	for name, data := range m.objects {
		if strings.HasPrefix(string(name), string(prefix)) {
			infos = append(infos, Info{name, int64(len(data))})
		}
	}
	slices.SortFunc(infos, func(a, b Info) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return infos
}

// Delete implements [Deleter].
func (m *Mem) Delete(ctx context.Context, name Name) error {
	if err := check(ctx, name); err != nil {
		return fail("delete", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
	return nil
}

func check(ctx context.Context, name Name) error {
	if err := name.Check(); err != nil {
		return err
	}
	return ctx.Err()
}
