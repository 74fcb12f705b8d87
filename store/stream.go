package store

import (
	"bytes"
	"context"
	"io"
)

// An Opener is a Store that gives out an object piece by piece, in memory of
// the caller's: who reads all of a repository wants neither a new buffer for
// each object nor the whole of it at once.
type Opener interface {
	Store

	// Open returns all of name. Its errors are Get's.
	Open(ctx context.Context, name Name) (io.ReadCloser, error)
}

// Open returns all of name, as the store's own Open does, or from what its Get
// returns. Close it.
func Open(ctx context.Context, st Store, name Name) (io.ReadCloser, error) {
	if o, ok := st.(Opener); ok {
		return o.Open(ctx, name)
	}
	data, err := st.Get(ctx, name, 0, -1)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}
