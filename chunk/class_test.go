package chunk

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The heads in testdata were made by the programs themselves: PostgreSQL 15,
// MariaDB 10.11, SQLite 3.40, LMDB 0.9, bbolt 1.4, Berkeley DB 5.3, mke2fs,
// mkfs.*, sfdisk, mkswap, cryptsetup, qemu-img. What is cut off was zeros, or
// content that no rule looks at.
func TestFilesThatKeepPagesAreFixed(t *testing.T) {
	want := map[string]string{
		"postgres-table": "PostgreSQL relation", "postgres-index": "PostgreSQL relation",
		"postgres-fsm": "PostgreSQL relation", "postgres-vm": "PostgreSQL relation",
		"innodb": "InnoDB tablespace", "innodb-compressed": "InnoDB tablespace",
		"innodb-system": "InnoDB tablespace", "innodb-64k": "InnoDB tablespace",
		"sqlite": "SQLite database", "lmdb": "LMDB environment", "bbolt": "bbolt database",
		"bdb-btree": "Berkeley DB", "bdb-hash": "Berkeley DB",
		"mbr": "partitioned disk", "gpt": "partitioned disk",
		"ext4": "ext2, ext3, ext4", "ext2-1k": "ext2, ext3, ext4", "xfs": "XFS", "f2fs": "F2FS",
		"fat16": "FAT, exFAT, NTFS", "fat32": "FAT, exFAT, NTFS", "exfat": "FAT, exFAT, NTFS", "ntfs": "FAT, exFAT, NTFS",
		"luks": "LUKS", "luks1": "LUKS", "swap": "swap",
		"qcow2": "qcow", "qed": "QED", "vmdk": "VMDK", "vdi": "VDI", "vhdx": "VHDX", "vpc": "VHD",
	}
	files, err := filepath.Glob("testdata/class/*.gz")
	if err != nil || len(files) != len(want) {
		t.Fatalf("%d heads, want %d, %v", len(files), len(want), err)
	}
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".gz")
		if got := ruleOf(head(t, path)); got != want[name] {
			t.Errorf("%s is %q, want %q", name, got, want[name])
		}
	}
}

// Those that no program here can make.
func TestFilesThatAreKnownByTheirDescription(t *testing.T) {
	wiredTiger := make([]byte, ClassHead)
	binary.LittleEndian.PutUint32(wiredTiger, 120897)
	binary.LittleEndian.PutUint16(wiredTiger[4:], 1)
	lvm := make([]byte, ClassHead)
	copy(lvm[512:], "LABELONE")
	copy(lvm[536:], "LVM2 001")
	sqlServer := make([]byte, ClassHead)
	for i := range 6 { // and two that were never used
		p := sqlServer[i*8192:]
		p[0], p[1] = 1, []byte{15, 11, 8, 9, 16, 1}[i]
		binary.LittleEndian.PutUint32(p[32:], uint32(i))
		p[36] = 1
	}
	for want, head := range map[string][]byte{
		"WiredTiger file": wiredTiger, "LVM physical volume": lvm, "SQL Server data file": sqlServer,
	} {
		if got := ruleOf(head); got != want {
			t.Errorf("%s is %q", want, got)
		}
	}
}

func TestEveryOtherFileIsCutByItsContent(t *testing.T) {
	text := []byte(strings.Repeat("It was a dark and stormy night; the rain fell in torrents.\n", 2000))
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	elf, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var tarred, zipped, gzipped bytes.Buffer
	tw := tar.NewWriter(&tarred)
	_ = tw.WriteHeader(&tar.Header{Name: "text", Size: int64(len(text)), Mode: 0o644})
	_, _ = tw.Write(text)
	zw := zip.NewWriter(&zipped)
	w, _ := zw.CreateHeader(&zip.FileHeader{Name: "random", Method: zip.Store})
	_, _ = w.Write(random(1, ClassHead))
	_ = zw.Close()
	gw := gzip.NewWriter(&gzipped)
	_, _ = gw.Write(random(2, ClassHead))
	_ = gw.Close()

	kernel := random(3, ClassHead) // its first sector ends like a boot sector
	copy(kernel[510:], "\x55\xaaHdrS")
	cd := head(t, "testdata/class/mbr.gz")
	copy(cd[32769:], "CD001")
	overlong := head(t, "testdata/class/mbr.gz")
	binary.LittleEndian.PutUint32(overlong[446+8:], 1<<31)
	binary.LittleEndian.PutUint32(overlong[446+12:], 1<<31)
	table := head(t, "testdata/class/postgres-table.gz")
	for name, p := range map[string][]byte{
		"nothing": nil, "zeros": make([]byte, ClassHead), "random bytes": random(4, ClassHead),
		"text": text, "a program": elf, "a tar archive": tarred.Bytes(), "a zip archive": zipped.Bytes(),
		"a gzip file": gzipped.Bytes(), "a PDF": append([]byte("%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"), text...),
		"a Linux kernel": kernel, "a CD that boots as a disk": cd, "a partition beyond the end of all disks": overlong,
		"a table with a page that is none": append(bytes.Clone(table[:ClassHead-8192]), text[:8192]...),
		"a file of one block":              table[:FixedBlock],
	} {
		if got := ClassOf(p[:min(len(p), ClassHead)]); got != ByContent {
			t.Errorf("%s is taken for %q", name, ruleOf(p))
		}
	}
}

func TestOneBlockMoreIsEnoughToTell(t *testing.T) {
	if ClassOf(head(t, "testdata/class/postgres-table.gz")[:FixedBlock+1]) != Fixed {
		t.Error("a table of a little over a block is cut by its content")
	}
}

// Heads of all lengths, and with anything in them, are judged without a panic.
func TestClassOfHoldsWhateverItIsGiven(t *testing.T) {
	files, _ := filepath.Glob("testdata/class/*.gz")
	rapid.Check(t, func(t *rapid.T) {
		p := random(1, ClassHead)
		if rapid.Bool().Draw(t, "zeros") {
			clear(p)
		}
		p = p[:rapid.IntRange(0, ClassHead).Draw(t, "length")]
		begin := rapid.SampledFrom(files).Draw(t, "file")
		copy(p, head(t, begin)[:rapid.IntRange(0, 4096).Draw(t, "of it")])
		if got := ClassOf(p); got == Fixed && len(p) <= FixedBlock {
			t.Fatalf("%d bytes are %v", len(p), got)
		}
	})
}

// head returns what begins a file, and zeros.
func head(t interface {
	Helper()
	Fatal(...any)
}, path string,
) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	p, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return append(p, make([]byte, ClassHead-len(p))...)
}

func ruleOf(head []byte) string {
	if ClassOf(head) == ByContent {
		return ""
	}
	for _, r := range rules {
		if r.is(head) {
			return r.name
		}
	}
	return ""
}
