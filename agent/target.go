//go:build linux

package agent

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"orlop/snapshot"
)

// A target is a directory into which a tree is written. Other processes may
// rename, replace and link things in it meanwhile; whatever they do, nothing
// outside of it is touched.
//
// That holds because a path is never handed to a call that changes something.
// A path leads to a descriptor, through calls that refuse symbolic links and
// mount points; things are made in a directory's descriptor under one name
// that must not exist yet; and they are changed by their own descriptor, after
// a look at what was opened. An inode that has a single name, or that we made,
// is not a file of somewhere else that was linked in.
//
// Its methods may be called concurrently.
type target struct {
	*dirs
	uid, gid uint32        // of what we make
	top      snapshot.Time // that the top has, or is to have
}

// An inode tells one file from all others that exist at the same time.
type inode struct{ dev, ino uint64 }

func inodeOf(st *unix.Stat_t) inode { return inode{uint64(st.Dev), st.Ino} } //nolint:unconvert // int32 on mips

// openTarget opens the directory root, which may be reached by way of symbolic
// links: whoever names it means it.
func openTarget(root string) (*target, error) {
	d, err := openDirs(root)
	if err != nil {
		return nil, err
	}
	return &target{dirs: d, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}, nil
}

// in opens a directory to do something in it, until put is called with it.
func (t *target) in(path string) (*openDir, error) {
	d, err := t.get(path)
	return d, because("open directory", err)
}

// mkdir makes a directory that only we can enter. One that is there already is
// taken as it is.
func (t *target) mkdir(parent, name string) error {
	d, err := t.in(parent)
	if err != nil {
		return err
	}
	defer t.dirs.put(d)
	err = unix.Mkdirat(d.fd, name, 0o700)
	if err == unix.EEXIST {
		fd, openErr := t.openat(d.fd, name, unix.O_PATH|unix.O_DIRECTORY)
		if openErr == nil {
			unix.Close(fd)
			return nil
		}
	}
	return because("make directory", err)
}

// enter opens a directory, or the top if it has no name, for its metadata.
func (t *target) enter(parent, name string) (int, error) {
	if name == "" {
		name = "."
	}
	d, err := t.in(parent)
	if err != nil {
		return -1, err
	}
	defer t.dirs.put(d)
	fd, err := t.openat(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY)
	return fd, because("open directory", err)
}

// create makes a file and returns it open for writing. Until it has its owner
// only we can open it. plain says that it inherits nothing but perhaps a group.
func (t *target) create(e *snapshot.Entry) (fd int, plain bool, err error) {
	d, err := t.in(e.Dir)
	if err != nil {
		return -1, false, err
	}
	defer t.dirs.put(d)
	mode := uint32(createMode)
	if e.UID == t.uid && e.GID == t.gid {
		mode = e.Mode & 0o777
	}
	for {
		// One name that must not be there: nothing to resolve, or to follow.
		fd, err = unix.Openat(d.fd, e.Name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		if err != unix.EINTR {
			break
		}
	}
	return fd, d.plain(), because("create", err)
}

// plain tells whether what is made in d inherits no ACL.
func (d *openDir) plain() bool {
	switch d.acl.Load() {
	case aclNone:
		return true
	case aclSome:
		return false
	}
	_, err := unix.Getxattr(self(d.fd), "system.posix_acl_default", nil)
	if err != unix.ENODATA && err != unix.EOPNOTSUPP {
		d.acl.Store(aclSome)
		return false
	}
	d.acl.Store(aclNone)
	return true
}

// find opens what is at path, O_PATH, and refuses it if it is not want.
func (t *target) find(parent, name string, want inode) (int, error) {
	d, err := t.in(parent)
	if err != nil {
		return -1, err
	}
	defer t.dirs.put(d)
	fd, err := t.openat(d.fd, name, unix.O_PATH)
	if err != nil {
		return -1, because("open again", err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && inodeOf(&st) != want {
		err = errReplaced
	}
	if err != nil {
		unix.Close(fd)
		return -1, because("open again", err)
	}
	return fd, nil
}

var errReplaced = errors.New("something else has taken its place")

// reopen opens a file that create made, or that was found.
func (t *target) reopen(parent, name string, want inode, flags int) (int, error) {
	pin, err := t.find(parent, name, want)
	if err != nil {
		return -1, err
	}
	defer unix.Close(pin)
	// By way of the pinned inode and not by name once more: what has taken its
	// place by now might be a device, and opening one can be an act.
	fd, err := open(unix.AT_FDCWD, self(pin), flags)
	return fd, because("open again", err)
}

// remove takes away the name of the file want.
func (t *target) remove(parent, name string, want inode) error {
	pin, err := t.find(parent, name, want)
	if err != nil {
		return err
	}
	defer unix.Close(pin)
	d, err := t.in(parent)
	if err != nil {
		return err
	}
	defer t.dirs.put(d)
	return because("remove", unix.Unlinkat(d.fd, name, 0))
}

// node makes what is neither file nor directory and returns it opened O_PATH;
// plain is as in create.
func (t *target) node(e *snapshot.Entry) (fd int, plain bool, err error) {
	d, err := t.in(e.Dir)
	if err != nil {
		return -1, false, err
	}
	defer t.dirs.put(d)
	kind, dev := kindOf(e.Type), 0
	switch e.Type {
	case snapshot.Symlink:
		err = unix.Symlinkat(e.Target, d.fd, e.Name)
	case snapshot.Char, snapshot.Block:
		dev = int(unix.Mkdev(uint32(e.Rdev>>32), uint32(e.Rdev)))
		fallthrough
	default:
		err = unix.Mknodat(d.fd, e.Name, kind|0o600, dev)
	}
	if err != nil {
		return -1, false, because("make "+nounOf(e.Type), err)
	}
	fd, err = t.openat(d.fd, e.Name, unix.O_PATH)
	if err != nil {
		return -1, false, because("open "+nounOf(e.Type), err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	// A second name: not what was made, but perhaps a file of somewhere else
	// that was linked in its place, to have us change its owner.
	if err == nil && (st.Mode&unix.S_IFMT != kind || st.Nlink != 1 || uint64(st.Rdev) != uint64(dev)) { //nolint:unconvert // uint32 on mips
		err = errReplaced
	}
	if err != nil {
		unix.Close(fd)
		return -1, false, because("open "+nounOf(e.Type), err)
	}
	return fd, d.plain(), nil
}

// link gives the inode want, which is at from, another name.
func (t *target) link(fromDir, from string, want inode, parent, name string) error {
	pin, err := t.find(fromDir, from, want)
	if err != nil {
		return err
	}
	defer unix.Close(pin)
	d, err := t.in(parent)
	if err != nil {
		return err
	}
	defer t.dirs.put(d)
	// Before Linux 6.10 this asks for CAP_DAC_READ_SEARCH, which the restore
	// sandbox must not have, and says ENOENT without it.
	err = unix.Linkat(pin, "", d.fd, name, unix.AT_EMPTY_PATH)
	if err == unix.ENOENT || err == unix.EPERM || err == unix.EINVAL {
		err = unix.Linkat(unix.AT_FDCWD, self(pin), d.fd, name, unix.AT_SYMLINK_FOLLOW)
	}
	return because("link", err)
}

// look says what is in the top. An empty lost+found is what a new ext4 file
// system has.
func (t *target) look() (Target, error) {
	var state Target
	names, err := t.list(".")
	if err == nil && len(names) == 1 && names[0] == "lost+found" {
		names, err = t.list("lost+found")
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, errMount) {
			return state, nil
		}
	}
	if err != nil {
		return state, err
	}
	state.Empty = len(names) == 0
	if !state.Empty {
		state.Marker, err = t.marker()
	}
	return state, err
}

// marker returns what is in the file that a restore which did not end has left,
// or nothing.
func (t *target) marker() (string, error) {
	fd, err := t.openat(t.root.fd, MarkerName, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return "", nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", err
	}
	text := make([]byte, MaxMarker)
	n, err := pread(fd, text, 0)
	// Anything is a marker. One that a crash has left empty says so by its name.
	return cmp.Or(string(text[:n]), MarkerName), because("read "+MarkerName, err)
}

// mark puts a marker into the top, durably.
func (t *target) mark(text string) error {
	var st unix.Stat_t
	if err := unix.Fstat(t.root.fd, &st); err != nil {
		return because("look at", err)
	}
	t.top = modified(&st)
	if err := unix.Unlinkat(t.root.fd, MarkerName, 0); err != nil && err != unix.ENOENT {
		return because("remove the old one", err)
	}
	fd, err := unix.Openat(t.root.fd, MarkerName, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return because("create", err)
	}
	err = because("write", pwrite(fd, []byte(text), 0))
	if err == nil {
		err = because("sync", unix.Fsync(fd))
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return err
	}
	return t.syncTop()
}

// unmark takes the marker away, and gives the top its time again.
func (t *target) unmark(durably bool) error {
	if err := unix.Unlinkat(t.root.fd, MarkerName, 0); err != nil {
		return because("remove", err)
	}
	fd, err := t.enter("", "")
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := (handle{fd: fd}).setTime(t.top); err != nil {
		return because("set the time of the directory it was in", err)
	}
	if !durably {
		return nil
	}
	return t.syncTop()
}

// syncTop makes what has a name in the top durable.
func (t *target) syncTop() error {
	fd, err := t.enter("", "")
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fsync(fd); err != nil && err != unix.EINVAL { // some file systems cannot
		return because("sync the directory", err)
	}
	return nil
}

// list returns up to two of the names in path.
func (t *target) list(path string) ([]string, error) {
	fd, err := t.openat(t.root.fd, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, because("open directory", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	names, err := f.Readdirnames(2)
	if err == io.EOF {
		err = nil
	}
	return names, err
}

// A handle is one thing of the target, open to be given its metadata.
type handle struct {
	fd    int
	path  bool // opened O_PATH: everything but files and directories
	plain bool // it was just made, and has no xattrs
}

// dress gives the thing the metadata of e and tells what could not be kept.
// What is right already is not set again. It returns which inode it is.
//
// The order is the only one that is exact. A change of owner takes away setuid
// bits and capabilities, so it comes first; an ACL set after the mode would
// rewrite its group bits; a capability is lost to any write or change of owner,
// so it is last, but for the time, which all others might move.
func (h handle) dress(e *snapshot.Entry, xattrs []snapshot.Xattr, say func(what string)) inode {
	var st unix.Stat_t
	if err := unix.Fstat(h.fd, &st); err != nil {
		say("look at: " + err.Error())
		return inode{}
	}
	id, mode, changed := inodeOf(&st), e.Mode, false
	if st.Uid != e.UID || st.Gid != e.GID {
		changed = true
		err := unix.Fchownat(h.fd, "", int(e.UID), int(e.GID), unix.AT_EMPTY_PATH)
		if err != nil && st.Gid != e.GID {
			// One of our own groups is ours to give.
			_ = unix.Fchownat(h.fd, "", -1, int(e.GID), unix.AT_EMPTY_PATH)
		}
		if err != nil {
			what := fmt.Sprintf("owner %d:%d: %v", e.UID, e.GID, err)
			if mode&(unix.S_ISUID|unix.S_ISGID) != 0 && e.Type == snapshot.File {
				// A program must not run as whoever happens to restore it.
				mode &^= unix.S_ISUID | unix.S_ISGID
				what += "; restored without setuid and setgid"
			}
			say(what)
		}
	}

	var has []byte
	if e.Type != snapshot.Symlink || len(xattrs) > 0 {
		has = h.xattrNames()
	}
	for _, name := range unwanted(has, xattrs) {
		changed = true
		h.removeXattr(name)
	}
	for _, x := range xattrs {
		if x.Name != capability && !h.hasXattr(has, x) {
			changed = true
			h.setXattr(x, say)
		}
	}
	if e.Type != snapshot.Symlink && (changed || st.Mode&0o7777 != mode) {
		changed = true
		if err := h.chmod(mode); err != nil {
			say(fmt.Sprintf("mode %04o: %v", mode, err))
			mode = ^uint32(0)
		}
	}
	for _, x := range xattrs {
		if x.Name == capability && (changed || !h.hasXattr(has, x)) {
			changed = true
			h.setXattr(x, say)
		}
	}
	if modified(&st) == e.MTime && !changed {
		return id
	}
	if err := h.setTime(e.MTime); err != nil {
		say("modification time: " + err.Error())
		return id
	}

	// File systems clamp times, and drop bits of the mode, without a word.
	if err := unix.Fstat(h.fd, &st); err != nil {
		say("look at: " + err.Error())
		return id
	}
	if got := modified(&st); got != e.MTime {
		say(fmt.Sprintf("modification time %d.%09d became %d.%09d in this file system", e.MTime.Sec, e.MTime.Nsec, got.Sec, got.Nsec))
	}
	if got := st.Mode & 0o7777; e.Type != snapshot.Symlink && mode != ^uint32(0) && got != mode {
		say(fmt.Sprintf("mode %04o became %04o", mode, got))
	}
	if e.Type == snapshot.File && uint64(st.Size) != e.Size {
		say(fmt.Sprintf("size %d became %d", e.Size, st.Size))
	}
	return id
}

// differs tells whether the thing has other metadata than e, its time apart if
// not times.
func (h handle) differs(e *snapshot.Entry, xattrs []snapshot.Xattr, times bool) bool {
	var st unix.Stat_t
	if unix.Fstat(h.fd, &st) != nil || st.Uid != e.UID || st.Gid != e.GID ||
		e.Type != snapshot.Symlink && st.Mode&0o7777 != e.Mode || times && modified(&st) != e.MTime {
		return true
	}
	if e.Type == snapshot.Symlink && len(xattrs) == 0 {
		return false // it can have none that are ours
	}
	has := h.xattrNames()
	if len(unwanted(has, xattrs)) > 0 {
		return true
	}
	for _, x := range xattrs {
		if !h.hasXattr(has, x) {
			return true
		}
	}
	return false
}

func modified(st *unix.Stat_t) snapshot.Time {
	return snapshot.Time{Sec: int64(st.Mtim.Sec), Nsec: uint32(st.Mtim.Nsec)}
}

const capability = "security.capability"

// xattrNames returns the names of the xattrs that the thing has, each with a
// NUL behind it.
func (h handle) xattrNames() []byte {
	if h.plain {
		return nil
	}
	var buf [1024]byte
	names := buf[:]
	n, err := h.listXattr(names)
	if err == unix.ERANGE {
		names = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = h.listXattr(names)
	}
	if err != nil || n == 0 {
		return nil
	}
	return bytes.Clone(names[:n])
}

// hasXattr tells whether x, whose name may be among names, is as it is to be.
func (h handle) hasXattr(names []byte, x snapshot.Xattr) bool {
	if !bytes.Contains(names, []byte(x.Name)) {
		return false
	}
	value := make([]byte, len(x.Value)+1)
	var n int
	var err error
	if h.path {
		n, err = unix.Getxattr(self(h.fd), x.Name, value)
	} else {
		n, err = unix.Fgetxattr(h.fd, x.Name, value)
	}
	return err == nil && bytes.Equal(value[:n], x.Value)
}

// unwanted returns those of names that a thing with the xattrs want is not to
// have: what a new one inherits from the default ACL of its directory, and what
// an old one had of its own.
func unwanted(names []byte, want []snapshot.Xattr) (list []string) {
	for name := range strings.SplitSeq(string(names), "\x00") {
		if !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "system.posix_acl_") && name != capability {
			continue // a label, or something else that is not ours to remove
		}
		if !slices.ContainsFunc(want, func(x snapshot.Xattr) bool { return x.Name == name }) {
			list = append(list, name)
		}
	}
	return list
}

func (h handle) removeXattr(name string) {
	if h.path {
		_ = unix.Removexattr(self(h.fd), name)
	} else {
		_ = unix.Fremovexattr(h.fd, name)
	}
}

func (h handle) listXattr(buf []byte) (int, error) {
	if h.path {
		return unix.Listxattr(self(h.fd), buf)
	}
	return unix.Flistxattr(h.fd, buf)
}

func (h handle) setXattr(x snapshot.Xattr, say func(string)) {
	var err error
	if h.path {
		// What /proc/self/fd leads to is the inode itself, also of a symbolic
		// link: it is not followed further.
		err = unix.Setxattr(self(h.fd), x.Name, x.Value, 0)
	} else {
		err = unix.Fsetxattr(h.fd, x.Name, x.Value, 0)
	}
	if err != nil {
		say(fmt.Sprintf("xattr %q: %v", x.Name, err))
	}
}

func (h handle) chmod(mode uint32) error {
	if !h.path {
		return unix.Fchmod(h.fd, mode)
	}
	err := unix.Fchmodat(h.fd, "", mode, unix.AT_EMPTY_PATH) // fchmodat2, Linux 6.6
	if err == unix.EOPNOTSUPP || err == unix.EPERM || err == unix.EINVAL {
		err = unix.Chmod(self(h.fd), mode)
	}
	return err
}

func (h handle) setTime(m snapshot.Time) error {
	ts := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {}}
	ts[1].Sec, ts[1].Nsec = m.Sec, int64(m.Nsec)
	if !h.path {
		return futimens(h.fd, &ts)
	}
	err := unix.UtimesNanoAt(h.fd, "", ts[:], unix.AT_EMPTY_PATH) // Linux 5.8
	if err == unix.EINVAL {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, self(h.fd), ts[:], 0)
	}
	return err
}

// self is the path that leads to what fd has open, whatever its name is now.
func self(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// because says what was being done when err happened, or nothing for nil.
func because(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// full tells whether err means that nothing more can be written here, so that
// going on would only repeat it for every file that is left.
func full(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EROFS)
}

// kindOf returns the bits of a mode that stand for t.
func kindOf(t snapshot.Type) uint32 {
	switch t {
	case snapshot.File:
		return unix.S_IFREG
	case snapshot.Dir:
		return unix.S_IFDIR
	case snapshot.Symlink:
		return unix.S_IFLNK
	case snapshot.Char:
		return unix.S_IFCHR
	case snapshot.Block:
		return unix.S_IFBLK
	case snapshot.Fifo:
		return unix.S_IFIFO
	default:
		return unix.S_IFSOCK
	}
}

func nounOf(t snapshot.Type) string {
	switch t {
	case snapshot.Symlink:
		return "symbolic link"
	case snapshot.Char, snapshot.Block:
		return "device"
	case snapshot.Fifo:
		return "fifo"
	default:
		return "socket"
	}
}
