package store

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tmpfile opens a new file that has no name. Where that cannot be, the error
// satisfies errors.ErrUnsupported.
func tmpfile(dir *os.File) (*os.File, error) {
	f, err := openAt(dir, ".", unix.O_WRONLY|unix.O_TMPFILE, fileMode)
	switch {
	// What file systems and kernels without O_TMPFILE say: it contains
	// O_DIRECTORY, so some believe that a directory is to be written to.
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP),
		// What ext4 says if dir was removed. A file with a name gets the right
		// answer there, which is ENOENT.
		errors.Is(err, unix.EPERM):
		return nil, errors.ErrUnsupported
	}
	return f, err
}

// directUnit is what addresses, offsets and lengths must be multiples of to
// suit nearly every device and file system. Packs of 4 MiB and more are, and so
// is the memory of large slices.
const directUnit = 4 << 10

// bypass makes writes of data to f go past the page cache, or returns an error
// if they cannot.
func bypass(f *os.File, data []byte) error {
	if len(data)%directUnit != 0 || uintptr(unsafe.Pointer(unsafe.SliceData(data)))%directUnit != 0 {
		return errors.ErrUnsupported
	}
	return setFlag(f, unix.O_DIRECT, unix.O_DIRECT)
}

// unbypass takes bypass back.
func unbypass(f *os.File) error { return setFlag(f, unix.O_DIRECT, 0) }

// cold reports whether nothing of a file of n bytes is in the page cache, as far
// as the kernel tells (Linux 6.5).
func cold(f *os.File, n int64) bool {
	var st unix.Cachestat_t
	err := control(f, func(fd int) error {
		return unix.Cachestat(uint(fd), &unix.CachestatRange{Len: uint64(n)}, &st, 0)
	})
	return err == nil && st.Cache == 0
}

// cool takes a file out of the page cache.
func cool(f *os.File) {
	_ = control(f, func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) })
}

func setFlag(f *os.File, flag, value int) error {
	return control(f, func(fd int) error {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err == nil {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^flag|value)
		}
		return err
	})
}

// control calls do with f's descriptor.
func control(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = do(int(fd)) })
	return errors.Join(cerr, err)
}

// linkUnnamed names a file of tmpfile. It goes through /proc: AT_EMPTY_PATH
// needs CAP_DAC_READ_SEARCH on kernels before 6.10.
func linkUnnamed(f, dir *os.File, name string) error {
	return retry("link", name, func() error {
		self := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
		return unix.Linkat(unix.AT_FDCWD, self, int(dir.Fd()), name, unix.AT_SYMLINK_FOLLOW)
	})
}

func renameNoReplace(dir *os.File, from, to string) error {
	return retry("rename", to, func() error {
		return unix.Renameat2(int(dir.Fd()), from, int(dir.Fd()), to, unix.RENAME_NOREPLACE)
	})
}

// cachesListings reports whether dir may be listed from a cache on this host
// while another host changes it.
func cachesListings(dir *os.File) bool {
	var s unix.Statfs_t
	if unix.Fstatfs(int(dir.Fd()), &s) != nil {
		return true
	}
	switch uint32(s.Type) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC,
		unix.V9FS_MAGIC, unix.FUSE_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC, unix.AFS_SUPER_MAGIC:
		return true
	}
	return false
}
