package chunk

import (
	"encoding/binary"
	"math/bits"
)

// A Class says how a file is cut. It is recorded in the file's entry.
type Class uint8

// The classes.
const (
	// ByContent files are cut where their bytes say so, by a [Splitter].
	ByContent Class = 0

	// Fixed files are cut into blocks of [FixedBlock] bytes at multiples of
	// that, counted from the beginning of the file, its holes included. Programs
	// that keep pages change those in place, at random: a page that changes
	// costs such a file one block, and any other file a whole chunk.
	Fixed Class = 1
)

// FixedBlock is the length of the blocks of a Fixed file. A PostgreSQL cluster of
// 1.3 GB before and after 8,000 pgbench transactions, MB of the repository:
//
//	          by content   64 KiB   32 KiB   16 KiB    8 KiB
//	first         59.3      58.0     63.2     67.6      76.0
//	change       +73.3     +55.5    +47.0    +38.5     +33.0
//	blobs        1,500    20,000   39,000   78,000   155,000
//
// restic has 62.0 and +69.9.
const FixedBlock = 32 << 10

// ClassRules is the number of the rules by which ClassOf goes.
const ClassRules = 1

// ClassHead is how many bytes of a file ClassOf wants to see.
const ClassHead = 64 << 10

// ClassOf returns the class of a file that begins with head, which is its first
// [ClassHead] bytes, or all of it. It goes by what the file is and not by what
// it is called, so a file that is renamed is still cut as it was. To be wrong
// costs nothing but space.
//
// A file of at most FixedBlock bytes is the same in either class, and is
// ByContent.
func ClassOf(head []byte) Class {
	if len(head) <= FixedBlock {
		return ByContent
	}
	for _, r := range rules {
		if r.is(head) {
			return Fixed
		}
	}
	return ByContent
}

// The rules number 1. Each may rely on more than FixedBlock bytes.
var rules = []struct {
	name string
	is   func(head []byte) bool
}{
	{"PostgreSQL relation", isPostgres},
	{"InnoDB tablespace", isInnoDB},
	{"SQL Server data file", isSQLServer},
	{"SQLite database", func(p []byte) bool { return has(p, 0, "SQLite format 3\x00") }},
	{"LMDB environment", func(p []byte) bool { return isMeta(p, 10, 8, 0xbeefc0de) }},
	{"bbolt database", func(p []byte) bool { return isMeta(p, 8, 4, 0xed0cdaed) }},
	{"Berkeley DB", isBerkeley},
	{"WiredTiger file", func(p []byte) bool { return le32(p, 0) == 120897 && le16(p, 4) == 1 }},

	{"partitioned disk", isPartitioned},
	{"ext2, ext3, ext4", isExt},
	{"XFS", func(p []byte) bool { return has(p, 0, "XFSB") && isSize(be32(p, 4), 512, 65536) }},
	{"F2FS", func(p []byte) bool { return le32(p, 1024) == 0xf2f52010 }},
	{"FAT, exFAT, NTFS", isFAT},
	{"LUKS", func(p []byte) bool { return has(p, 0, "LUKS\xba\xbe\x00") }},
	{"LVM physical volume", func(p []byte) bool { return has(p, 512, "LABELONE") && has(p, 512+24, "LVM2 001") }},
	{"swap", func(p []byte) bool { return has(p, 4096-10, "SWAPSPACE2") || has(p, 65536-10, "SWAPSPACE2") }},

	{"qcow", func(p []byte) bool { return has(p, 0, "QFI\xfb\x00\x00\x00") }},
	{"QED", func(p []byte) bool { return has(p, 0, "QED\x00") }},
	{"VMDK", func(p []byte) bool { return has(p, 0, "KDMV") || has(p, 0, "COWD") }},
	{"VDI", func(p []byte) bool { return le32(p, 64) == 0xbeda107f }},
	{"VHDX", func(p []byte) bool { return has(p, 0, "vhdxfile") }},
	{"VHD", func(p []byte) bool { return has(p, 0, "conectix") }},
}

func has(p []byte, at int, magic string) bool {
	return at+len(magic) <= len(p) && string(p[at:at+len(magic)]) == magic
}

func le16(p []byte, at int) uint16 { return binary.LittleEndian.Uint16(p[at:]) }
func le32(p []byte, at int) uint32 { return binary.LittleEndian.Uint32(p[at:]) }
func be16(p []byte, at int) uint16 { return binary.BigEndian.Uint16(p[at:]) }
func be32(p []byte, at int) uint32 { return binary.BigEndian.Uint32(p[at:]) }

// isSize reports whether n is a power of two from least to most.
func isSize(n, least, most uint32) bool {
	return bits.OnesCount32(n) == 1 && n >= least && n <= most
}

// isZero reports whether p holds zeros and nothing else.
func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// isPostgres reports whether there is a page size with which every page, unless
// it is zeros, begins with a PageHeaderData of that size (bufpage.h, layout 4:
// since 8.3). Tables, indexes, free space and visibility maps all do.
func isPostgres(head []byte) bool {
	for _, size := range []int{8192, 4096, 16384, 32768, 2048, 1024} {
		found := false
		for p := head; ; p = p[size:] {
			if len(p) < size {
				if found {
					return true
				}
				break
			}
			if isZero(p[:24]) {
				continue
			}
			flags, lower, upper, special := le16(p, 10), le16(p, 12), le16(p, 14), le16(p, 16)
			if int(le16(p, 18)) != size|4 || flags > 7 || lower < 24 || lower > upper || upper > special || int(special) > size {
				break
			}
			found = true
		}
	}
	return false
}

// isInnoDB looks for the header of a tablespace's first page (fil0fil.h,
// fsp0fsp.h): page 0, of type FSP_HDR, its space twice, and the space's size.
func isInnoDB(p []byte) bool {
	return be32(p, 4) == 0 && be16(p, 24) == 8 && be32(p, 34) == be32(p, 38) && be32(p, 42) == 0 &&
		be32(p, 46) > 0 && be32(p, 50) > 0
}

// isSQLServer looks for a file header page, and for its number in each page that
// is not zeros.
func isSQLServer(head []byte) bool {
	for i := 0; (i+1)*8192 <= len(head); i++ {
		p := head[i*8192:]
		if (i == 0 || !isZero(p[:96])) && (p[0] != 1 || le32(p, 32) != uint32(i) || le16(p, 36) != le16(head, 36)) {
			return false
		}
	}
	return head[1] == 15
}

// isMeta looks for the first meta page of LMDB, or of bbolt, which is like it.
func isMeta(p []byte, flagsAt int, flags uint16, magic uint32) bool {
	return isZero(p[:8]) && le16(p, flagsAt) == flags && le32(p, 16) == magic
}

// isBerkeley looks for the meta page of a Btree, Hash, Queue or Heap (db_page.h)
// of either byte order.
func isBerkeley(p []byte) bool {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		if !isSize(order.Uint32(p[20:]), 512, 65536) {
			continue
		}
		switch order.Uint32(p[12:]) {
		case 0x053162, 0x061561, 0x042253, 0x074582:
			return true
		}
	}
	return false
}

// isPartitioned looks for a partition table: the signature alone is also at the
// end of a Linux kernel's first sector. An image of a CD may have one as well,
// and is never changed.
func isPartitioned(p []byte) bool {
	if !has(p, 510, "\x55\xaa") || has(p, 32769, "CD001") {
		return false
	}
	if has(p, 512, "EFI PART") || has(p, 4096, "EFI PART") {
		return true
	}
	used := 0
	for e := p[446:510]; len(e) > 0; e = e[16:] {
		if isZero(e[:16]) {
			continue
		}
		begin, length := le32(e, 8), le32(e, 12)
		if e[0]&0x7f != 0 || e[4] == 0 || begin == 0 || length == 0 || begin+length < begin {
			return false
		}
		used++
	}
	return used > 0
}

// isExt looks for a superblock (ext4.h).
func isExt(head []byte) bool {
	p := head[1024:]
	return le16(p, 56) == 0xef53 && le32(p, 0) > 0 && le32(p, 4) > 0 && le32(p, 20) <= 1 &&
		le32(p, 24) <= 6 && le32(p, 32) > 0 && le32(p, 76) <= 1
}

// isFAT looks for a boot sector of Microsoft's file systems.
func isFAT(p []byte) bool {
	if !has(p, 510, "\x55\xaa") || p[0] != 0xeb && p[0] != 0xe9 {
		return false
	}
	return has(p, 3, "NTFS    ") || has(p, 3, "EXFAT   ") ||
		(has(p, 54, "FAT") || has(p, 82, "FAT32")) && isSize(uint32(le16(p, 11)), 512, 4096) && isSize(uint32(p[13]), 1, 128)
}
