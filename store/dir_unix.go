//go:build unix

package store

import (
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// retry makes a call until no signal interrupts it, which on file systems over
// a network one can.
func retry(op, name string, call func() error) error {
	for {
		err := call()
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: op, Path: name, Err: err}
		}
		return nil
	}
}

func openAt(dir *os.File, name string, flags int, mode uint32) (*os.File, error) {
	var fd int
	err := retry("open", name, func() (err error) {
		fd, err = unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC, mode)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func openDir(parent *os.File, name string) (*os.File, error) {
	return openAt(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

func mkdir(parent *os.File, name string) error {
	return retry("mkdir", name, func() error { return unix.Mkdirat(int(parent.Fd()), name, dirMode) })
}

func unlink(dir *os.File, name string) error {
	return retry("unlink", name, func() error { return unix.Unlinkat(int(dir.Fd()), name, 0) })
}

// lstat returns what a file is, 0 if it is a plain one, and how long it is.
func lstat(dir *os.File, name string) (kind fs.FileMode, size int64, err error) {
	var s unix.Stat_t
	err = retry("lstat", name, func() error { return unix.Fstatat(int(dir.Fd()), name, &s, unix.AT_SYMLINK_NOFOLLOW) })
	switch s.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		kind = fs.ModeDir
	case unix.S_IFLNK:
		kind = fs.ModeSymlink
	default:
		kind = fs.ModeIrregular
	}
	return kind, s.Size, err
}

func link(dir *os.File, from, to string) error {
	return retry("link", to, func() error { return unix.Linkat(int(dir.Fd()), from, int(dir.Fd()), to, 0) })
}

// createLocked makes a file that says by its lock that its writer lives.
func createLocked(dir *os.File, name string) (*os.File, error) {
	f, err := openAt(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, fileMode)
	if err == nil {
		// Without locks the file looks abandoned once it is a day old.
		_ = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	return f, err
}

// removeAbandoned removes a file of createLocked that is unlocked and was last
// written before the given time.
func removeAbandoned(dir *os.File, name string, before time.Time) {
	f, err := openAt(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || !info.ModTime().Before(before) {
		return
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		_ = unlink(dir, name)
	}
}
