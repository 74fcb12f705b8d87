package snapshot

import "math/bits"

// sizeUvarint is the length of the shortest encoding of v.
func sizeUvarint(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }
