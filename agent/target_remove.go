//go:build linux

package agent

import (
	"crypto/rand"
	"errors"

	"golang.org/x/sys/unix"
)

// A removal is what was removed, or would be.
type removal struct {
	dry         bool
	stop        func() bool // the restore has ended
	files, dirs uint64
}

// maxDepth is how many directories are open below each other while they are
// emptied. What is deeper is moved up.
const maxDepth = 32

var errStopped = errors.New("the restore has ended")

// removeAll removes what is called name in the directory at, with all that is
// in it. Nothing is followed: a name is unlinked, or it leads to a descriptor
// through calls that refuse links and mount points, and what is in that is
// removed. Somebody who moves a directory meanwhile can have it emptied, which
// they could do themselves.
//
// What cannot be removed stays, and the rest goes; the error is the first.
func (t *target) removeAll(at int, name string, r *removal) error {
	return t.removeIn(-1, at, name, 0, r)
}

// removeIn is removeAll at some depth below the directory top.
func (t *target) removeIn(top, at int, name string, depth int, r *removal) error {
	if r.stop() {
		return errStopped
	}
	if r.dry {
		var st unix.Statx_t
		if err := statx(at, name, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			r.files++
			return nil
		}
	} else {
		err := unix.Unlinkat(at, name, 0)
		if err == nil {
			r.files++
		}
		if err != unix.EISDIR {
			if err == unix.ENOENT {
				return nil
			}
			return err
		}
	}
	if depth == maxDepth {
		if r.dry {
			r.dirs++ // and what is in it
			return nil
		}
		// It is found there when the top is listed again.
		return unix.Renameat(at, name, top, rand.Text())
	}
	fd, err := t.openDoomed(at, name, r.dry)
	if err != nil {
		return err
	}
	if top < 0 {
		top = fd
	}
	err = t.removeBelow(top, fd, depth+1, r)
	unix.Close(fd)
	if err == nil && !r.dry {
		err = unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
	}
	if err == nil {
		r.dirs++
	}
	return err
}

// openDoomed opens a directory to empty it.
func (t *target) openDoomed(at int, name string, dry bool) (int, error) {
	pin, err := t.openat(at, name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	defer unix.Close(pin)
	if !dry && !t.admitted(pin) {
		if err := t.admit(pin); err != nil {
			return -1, err
		}
	}
	return open(pin, ".", unix.O_RDONLY|unix.O_DIRECTORY)
}

// removeBelow empties the directory fd.
func (t *target) removeBelow(top, fd, depth int, r *removal) (first error) {
	buf := make([]byte, 8<<10)
	for again := true; again; {
		again = false
		for {
			n, err := unix.Getdents(fd, buf)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return err
			}
			if n == 0 {
				break
			}
			for p := buf[:n]; len(p) > 0; {
				var name []byte
				name, p = direntName(p)
				if string(name) == "." || string(name) == ".." {
					continue
				}
				err := t.removeIn(top, fd, string(name), depth, r)
				if errors.Is(err, errStopped) {
					return err
				}
				if err != nil && first == nil {
					first = err
				}
				again = again || err == nil
			}
		}
		if r.dry {
			return first
		}
		// Some file systems leave out names when others are removed, and
		// there may be what was moved up.
		if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
			return err
		}
	}
	return first
}
