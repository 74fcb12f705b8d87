// Package store keeps named, immutable objects.
//
// A store knows nothing of what it keeps. It promises three things and
// everything above it stands on them: a Put that returned nil is durable and
// whole, a Put never replaces, and a List shows what was there when it began.
// There is no rename, no lock and no compare-and-swap to rely on; see
// docs/design.md, "Writing and deleting without locks".
//
// [Dir] keeps objects as files of a directory, [Mem] in memory. The contract
// in executable form is storetest.Test; a new store is finished when that
// passes.
package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
)

var (
	// ErrName is returned when a name or prefix is not one a store takes.
	ErrName = errors.New("not an object name")

	// ErrRange is returned when bytes past the end of an object are asked for.
	ErrRange = errors.New("the object is shorter than that")
)

// MaxName is the length of the longest name in bytes.
const MaxName = 512

// A Name names one object: parts joined by '/', each of 1 to 200 of the bytes
// a-z 0-9 . _ - and not starting with a dot. There is one spelling of a name,
// and case does not matter, because on some file systems it would not.
type Name string

// Check returns an error satisfying errors.Is(err, ErrName) unless n names an
// object.
func (n Name) Check() error {
	if n == "" || strings.HasSuffix(string(n), "/") {
		return fmt.Errorf("%q: %w", string(n), ErrName)
	}
	return n.CheckPrefix()
}

// CheckPrefix returns an error satisfying errors.Is(err, ErrName) unless some
// object's name could begin with n. The empty prefix begins all of them.
func (n Name) CheckPrefix() error {
	if len(n) > MaxName {
		return fmt.Errorf("%q…: over %d bytes: %w", string(n[:40]), MaxName, ErrName)
	}
	part := 0 // bytes of the current part
	for _, c := range []byte(n) {
		switch {
		case c == '/' && part > 0:
			part = 0
			continue
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '_', c == '-', c == '.' && part > 0:
			part++
		default:
			return fmt.Errorf("%q: %w", string(n), ErrName)
		}
		if part > maxPart {
			return fmt.Errorf("%q: a part of over %d bytes: %w", string(n), maxPart, ErrName)
		}
	}
	return nil
}

// maxPart leaves file systems that add something to a name (eCryptfs, .nfs
// files) room below their 255 bytes.
const maxPart = 200

// An Info describes an object.
type Info struct {
	Name Name
	Size int64 // bytes
}

// A Store can be added to and read. Its methods may be called concurrently.
// Backup code is never handed more than this.
type Store interface {
	// Put creates name holding data, which it does not keep. When it returns
	// nil the object is durable and whole: a crash at any moment leaves
	// either all of it or none. Put never changes an object that exists; it
	// then returns an error satisfying errors.Is(err, fs.ErrExist), and the
	// object that is there is durable and whole.
	//
	// A Put that returns any other error may or may not have created the
	// object. Callers must be ready for both.
	Put(ctx context.Context, name Name, data []byte) error

	// Get returns n bytes of name starting at off, or everything from off on
	// if n < 0; the caller owns them. Asking for bytes past the end is an
	// error satisfying errors.Is(err, ErrRange). If there is no such object
	// the error satisfies errors.Is(err, fs.ErrNotExist).
	Get(ctx context.Context, name Name, off, n int64) ([]byte, error)

	// List yields the objects whose names begin with prefix, in no particular
	// order. It shows every object whose Put returned before it began and
	// none whose Delete did, each exactly once; an object created or deleted
	// meanwhile may be missed or shown. After an error it yields no more. The
	// loop over it may call the store's other methods.
	List(ctx context.Context, prefix Name) iter.Seq2[Info, error]
}

// A Deleter is a Store that can also forget.
type Deleter interface {
	Store

	// Delete removes name, durably. Deleting what is not there is not an
	// error: a deletion that is tried again must be able to succeed.
	Delete(ctx context.Context, name Name) error
}

// cut returns how many bytes [off, off+n) of an object of size bytes are, n < 0
// meaning up to the end.
func cut(size, off, n int64) (int64, error) {
	// Written so that no sum can overflow.
	if off < 0 || off > size || n > size-off {
		return 0, fmt.Errorf("%d bytes from %d of %d: %w", n, off, size, ErrRange)
	}
	if n < 0 {
		n = size - off
	}
	return n, nil
}

// fail says what was being done to which thing.
func fail(verb string, name Name, err error) error {
	return fmt.Errorf("%s %s: %w", verb, name, err)
}
