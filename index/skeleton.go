package index

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"orlop/id"
)

// bbolt follows what its pages say: from a flipped byte it walks in circles,
// reads far outside of the file, or makes something up. So at the end of a
// file, past the last of its pages, is a sum of every page that is not merely
// the rest of a value, and bbolt does not see a file before that was checked.
// The values have sums of their own.
//
//	page size u32 | BLAKE3[32] of the page size and of those pages
const skeletonSize = 4 + 32

// skeleton returns what belongs at the end of a file of pages.
func skeleton(f io.ReaderAt, size int64, pageSize int) ([]byte, error) {
	h := id.NewHash()
	end := binary.LittleEndian.AppendUint32(nil, uint32(pageSize))
	_, _ = h.Write(end)
	page := make([]byte, pageSize)
	for at := int64(0); at < size; {
		if _, err := f.ReadAt(page, at); err != nil {
			return nil, err
		}
		_, _ = h.Write(page)
		// id u64, flags u16, count u16, overflow u32. Only values have more
		// than one page, and they are never freed, so each page that is not
		// the rest of one begins like this.
		at += int64(pageSize) * (1 + int64(binary.LittleEndian.Uint32(page[12:])))
	}
	sum := h.Sum()
	return append(end, sum[:]...), nil
}

// appendSkeleton finishes the file at path and syncs it.
func appendSkeleton(path string, pageSize int) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	end, err := skeleton(f, info.Size(), pageSize)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(end, info.Size()); err != nil {
		return err
	}
	return f.Sync()
}

// checkSkeleton returns how long f is, or ErrDamaged if f is not a whole file.
func checkSkeleton(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size() - skeletonSize
	var end [skeletonSize]byte
	if size > 0 {
		if _, err := f.ReadAt(end[:], size); err != nil {
			return 0, err
		}
	}
	pageSize := int(binary.LittleEndian.Uint32(end[:]))
	if size <= 0 || pageSize != smallPage && pageSize != bigPage || size%int64(pageSize) != 0 {
		return 0, fmt.Errorf("%w: not a whole file", ErrDamaged)
	}
	if want, err := skeleton(f, size, pageSize); err != nil || string(want) != string(end[:]) {
		return 0, fmt.Errorf("%w: pages", ErrDamaged)
	}
	return info.Size(), nil
}
