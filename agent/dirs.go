//go:build linux

package agent

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// errMount says that a directory is the root of another file system, or of
// another mount of the same one.
var errMount = errors.New("another file system is mounted here")

const (
	maxOpenDirs = 48    // kept open by dirs; walkers and readers hold a few more
	createMode  = 0o600 // of what is created here, until it has its own

	// maxStep is how many bytes of a path one call of the kernel is given. It
	// is well under the 4,096 that it takes because the directory at the end
	// of each step is kept open: on the way back up from 4,000 levels a parent
	// is never far from one of them.
	maxStep = 1024
)

// dirs opens the directories below a root by their paths and keeps the last
// few open. It never follows a link, never goes up, and never leaves the
// root's mount. It may be used concurrently.
type dirs struct {
	root  *openDir
	mount mount
	max   int
	// noOpenat2 is set when the kernel, or a filter, does not know the call.
	noOpenat2 atomic.Bool

	mu   sync.Mutex
	open map[string]*openDir
	tick uint64
}

// An openDir is an O_PATH descriptor of a directory.
type openDir struct {
	fd   int
	path string
	refs int    // users; the cache itself is none
	used uint64 // tick of the last use
	acl  atomic.Int32
}

// Whether what is made in a directory inherits an ACL.
const (
	aclUnknown = iota
	aclNone
	aclSome
)

// A mount tells mounts apart: by the kernel's own number where it is known
// (Linux 5.8), else by the device.
type mount struct{ id, dev uint64 }

const statMask = unix.STATX_BASIC_STATS | unix.STATX_MNT_ID

func mountedOn(st *unix.Statx_t) mount {
	if st.Mask&unix.STATX_MNT_ID != 0 {
		return mount{id: st.Mnt_id}
	}
	return mount{dev: unix.Mkdev(st.Dev_major, st.Dev_minor)}
}

// foreign reports whether st is of something mounted below the root. Without
// numbers of mounts only directories can be told: on overlayfs files have other
// devices.
func (d *dirs) foreign(st *unix.Statx_t) bool {
	m := mountedOn(st)
	return m != d.mount && (m.dev == 0 || st.Mode&unix.S_IFMT == unix.S_IFDIR)
}

// openDirs opens root, which may be named through links.
func openDirs(root string) (*dirs, error) {
	fd, err := open(unix.AT_FDCWD, root, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	var st unix.Statx_t
	if err := statx(fd, "", &st); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &dirs{
		root: &openDir{fd: fd}, mount: mountedOn(&st), max: maxOpenDirs, open: make(map[string]*openDir),
	}, nil
}

func (d *dirs) close() {
	for _, o := range d.open {
		_ = unix.Close(o.fd)
	}
	_ = unix.Close(d.root.fd)
}

// get returns the directory at path, to be given back with put.
func (d *dirs) get(path string) (*openDir, error) {
	if path == "" {
		return d.root, nil
	}
	at, rest := d.nearest(path)
	for rest != "" {
		piece := rest
		if len(piece) > maxStep {
			piece = rest[:strings.LastIndexByte(rest[:maxStep], '/')]
		}
		rest = strings.TrimPrefix(rest[len(piece):], "/")
		fd, err := d.openat(at.fd, piece, unix.O_PATH|unix.O_DIRECTORY)
		d.put(at)
		if err != nil {
			return nil, err
		}
		end := len(path) - len(rest)
		if rest != "" {
			end--
		}
		at = d.keep(&openDir{fd: fd, path: path[:end], refs: 1})
	}
	return at, nil
}

// nearest returns the open directory that is path or leads to it, and what of
// path is below it.
func (d *dirs) nearest(path string) (*openDir, string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	best := d.open[path]
	if best == nil {
		best = d.root
		// All of them, and not every way to shorten the path: that may have
		// thousands of names.
		for _, o := range d.open {
			if len(o.path) > len(best.path) && strings.HasPrefix(path, o.path) && path[len(o.path)] == '/' {
				best = o
			}
		}
	}
	if best == d.root {
		return best, path
	}
	d.tick++
	best.refs, best.used = best.refs+1, d.tick
	return best, strings.TrimPrefix(path[len(best.path):], "/")
}

// keep puts o into the cache, in place of the one that was not used longest.
func (d *dirs) keep(o *openDir) *openDir {
	d.mu.Lock()
	defer d.mu.Unlock()
	if other := d.open[o.path]; other != nil {
		_ = unix.Close(o.fd) // somebody else was quicker
		o = other
		o.refs++
	}
	d.tick++
	o.used = d.tick
	d.open[o.path] = o
	for len(d.open) > d.max {
		var oldest *openDir
		for _, o := range d.open {
			if o.refs == 0 && (oldest == nil || o.used < oldest.used) {
				oldest = o
			}
		}
		if oldest == nil {
			break // all in use
		}
		delete(d.open, oldest.path)
		_ = unix.Close(oldest.fd)
	}
	return o
}

func (d *dirs) put(o *openDir) {
	if o == d.root {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	o.refs--
}

// openat opens path below the directory fd, with the restrictions of dirs. What
// it creates only the owner may use.
func (d *dirs) openat(fd int, path string, flags int) (int, error) {
	flags |= unix.O_NOFOLLOW | unix.O_CLOEXEC
	if !d.noOpenat2.Load() {
		how := unix.OpenHow{
			Flags:   uint64(flags),
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		}
		if flags&unix.O_CREAT != 0 {
			how.Mode = createMode
		}
		for {
			n, err := unix.Openat2(fd, path, &how)
			switch {
			case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
				continue
			case errors.Is(err, unix.ENOSYS):
			case errors.Is(err, unix.EPERM) && flags&unix.O_NOATIME == 0:
				// A filter that does not know the call; if not, the other
				// way fails just so.
			case errors.Is(err, unix.EXDEV):
				return -1, errMount
			default:
				return n, err
			}
			break
		}
		n, err := d.stepwise(fd, path, flags)
		if err == nil {
			d.noOpenat2.Store(true)
		}
		return n, err
	}
	return d.stepwise(fd, path, flags)
}

// stepwise is openat for kernels before 5.6: one name at a time, none of which
// is "..", never following a link, so every step stays where it must.
func (d *dirs) stepwise(fd int, path string, flags int) (int, error) {
	at := fd
	for {
		name, rest, more := strings.Cut(path, "/")
		how := flags
		if more {
			how = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		}
		var next int
		err := error(unix.ENOENT)
		if name != "" && name != ".." {
			next, err = open(at, name, how)
		}
		if at != fd {
			_ = unix.Close(at)
		}
		if err != nil {
			return -1, err
		}
		var st unix.Statx_t
		if err = statx(next, "", &st); err == nil && d.foreign(&st) {
			err = errMount
		}
		if err != nil {
			_ = unix.Close(next)
			return -1, err
		}
		if !more {
			return next, nil
		}
		at, path = next, rest
	}
}

func open(fd int, name string, flags int) (int, error) {
	for {
		n, err := unix.Openat(fd, name, flags|unix.O_CLOEXEC, createMode)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// statx asks about name in the directory fd, or about fd itself.
func statx(fd int, name string, st *unix.Statx_t) error {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	for {
		err := unix.Statx(fd, name, flags, statMask, st)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// reason says what an error of the kernel means, for people.
func reason(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT):
		return "it is gone"
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return "it is something else now"
	}
	return fmt.Sprint(err)
}
