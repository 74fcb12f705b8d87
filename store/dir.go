package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Dir is a store in a directory: the object a/b is the file a/b. Files are
// made whole under no name, or under one that starts with a dot, and linked
// into place, so what has an object's name is an object.
//
// Dir never follows a symbolic link out of its directory, and never lists one.
type Dir struct {
	path string // for people
	root *os.Root

	mu    sync.Mutex
	kept  map[string]bool // top-level directories whose own names are durable
	swept map[string]bool // directories freed of abandoned files

	hook func(op, name string) error // see do
}

var (
	_ Deleter = (*Dir)(nil)
	_ Opener  = (*Dir)(nil)
)

// Objects hold nothing secret, but who may delete a repository's bytes should
// be a decision. They are not 0400: some SMB servers refuse to delete a
// read-only file.
const (
	fileMode = 0o600
	dirMode  = 0o700
)

// OpenDir returns the store in an existing directory. Close it after use.
func OpenDir(path string) (*Dir, error) {
	// Made absolute so that an error still says where after a chdir.
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return &Dir{path: abs, root: root, kept: make(map[string]bool), swept: make(map[string]bool)}, nil
}

// CreateDir makes a directory with the parents it lacks, durably, and returns
// the store in it. It is no error if it is there already.
func CreateDir(path string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("create store %s: %w", path, err)
	}
	if err := makeAll(abs); err != nil {
		return nil, fmt.Errorf("create store: %w", err)
	}
	return OpenDir(abs)
}

// makeAll is os.MkdirAll with an fsync of each directory that got a new entry.
func makeAll(dir string) error {
	err := os.Mkdir(dir, dirMode)
	switch {
	case err == nil:
		return syncPath(filepath.Dir(dir))
	case errors.Is(err, fs.ErrNotExist) && filepath.Dir(dir) != dir:
		if err := makeAll(filepath.Dir(dir)); err != nil {
			return err
		}
		return makeAll(dir)
	}
	if info, statErr := os.Stat(dir); statErr == nil && info.IsDir() {
		// It may have been made a moment ago by a run that died before its
		// fsync. A parent that we cannot read was not ours to make.
		if err := syncPath(filepath.Dir(dir)); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return nil
	}
	return err
}

func syncPath(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return syncDir(f)
}

// syncDir makes the names in an open directory durable.
func syncDir(dir *os.File) error {
	err := dir.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil // some network and FUSE file systems: it cannot be asked for
	}
	return err
}

// Close releases the directory. The store must not be used afterwards.
func (d *Dir) Close() error { return d.root.Close() }

// String returns the directory's absolute path.
func (d *Dir) String() string { return d.path }

// do makes one call that changes the disk. It is the seam of the tests, which
// look at the order of these calls and let each of them fail.
func (d *Dir) do(op, name string, call func() error) error {
	if d.hook != nil {
		if err := d.hook(op, name); err != nil {
			return &fs.PathError{Op: op, Path: name, Err: err}
		}
	}
	return call()
}

// open is do for a call that opens a file.
func (d *Dir) open(op, name string, call func() (*os.File, error)) (f *os.File, err error) {
	err = d.do(op, name, func() error {
		f, err = call()
		return err
	})
	return f, err
}

// fail says what was being done to which file. The path within err is a
// temporary or relative one, so it is taken off.
func (d *Dir) fail(verb string, name Name, err error) error {
	if e, ok := err.(*fs.PathError); ok {
		err = fmt.Errorf("%s: %w", e.Op, e.Err)
	}
	return fmt.Errorf("%s %s: %w", verb, filepath.Join(d.path, filepath.FromSlash(string(name))), err)
}

// Put implements [Store].
func (d *Dir) Put(ctx context.Context, name Name, data []byte) error {
	if err := check(ctx, name); err != nil {
		return fail("put", name, err)
	}
	err := d.put(ctx, string(name), data)
	for try := 0; try < 100 && errors.Is(err, fs.ErrNotExist); try++ {
		// A directory went away under us: a Delete took it because it was
		// empty. That can happen again, but not for ever.
		d.forget()
		err = d.put(ctx, string(name), data)
	}
	if err != nil {
		return d.fail("put", name, err)
	}
	return nil
}

// put is the sequence that makes an object durable, then visible, then durably
// visible. A crash before the link leaves no object, and where the file system
// has O_TMPFILE nothing at all; a crash after it leaves a whole object that
// nobody was told of.
func (d *Dir) put(ctx context.Context, name string, data []byte) error {
	dirName := path.Dir(name)
	dir, err := d.makeDir(dirName)
	if err != nil {
		return err
	}
	defer dir.Close()

	created := d.createUnnamed(ctx, dir, name, data)
	if errors.Is(created, errUnnamed) {
		created = d.createNamed(ctx, dir, name, data)
	}
	if created != nil && !errors.Is(created, fs.ErrExist) {
		return created
	}
	if created != nil {
		if info, err := d.root.Lstat(name); err == nil && !info.Mode().IsRegular() {
			return errors.New("something that is not a file is in its place")
		}
	}
	// Also when the object was there: whoever made it may have died before
	// this line, and our caller will take "it exists" for success.
	if err := d.do("syncdir", dirName, func() error { return syncDir(dir) }); err != nil {
		if created == nil {
			// A second try would find the object, and its fsync of the
			// directory would succeed, because the kernel reports an error once.
			_ = d.do("unlink", name, func() error { return unlink(dir, path.Base(name)) })
		}
		return err
	}
	return created
}

// errUnnamed: files without a name cannot be made or linked here.
var errUnnamed = errors.New("no unnamed files")

// createUnnamed makes an object out of a file that a crash leaves no trace of.
func (d *Dir) createUnnamed(ctx context.Context, dir *os.File, name string, data []byte) error {
	f, err := d.open("tmpfile", path.Dir(name), func() (*os.File, error) { return tmpfile(dir) })
	if errors.Is(err, errors.ErrUnsupported) {
		return errUnnamed
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := d.fill(ctx, f, name, data); err != nil {
		return err
	}
	err = d.do("link", name, func() error { return linkUnnamed(f, dir, path.Base(name)) })
	if cannotLink(err) || errors.Is(err, fs.ErrNotExist) { // the latter: no /proc
		return errUnnamed
	}
	return err
}

// createNamed does the same where unnamed files cannot be had: NFS, SMB, FUSE.
func (d *Dir) createNamed(ctx context.Context, dir *os.File, name string, data []byte) error {
	d.sweepOnce(dir, path.Dir(name))
	temp := tempPrefix + rand.Text()
	f, err := d.open("create", path.Dir(name), func() (*os.File, error) { return createLocked(dir, temp) })
	if err != nil {
		return err
	}
	defer f.Close()
	// Nothing to remove after a rename; what is left otherwise is never listed.
	defer d.do("remove", path.Dir(name), func() error { return unlink(dir, temp) })

	if err := d.fill(ctx, f, name, data); err != nil {
		return err
	}
	err = d.do("link", name, func() error { return link(dir, temp, path.Base(name)) })
	if !cannotLink(err) {
		return err
	}
	// A plain rename would replace what another writer put there meanwhile.
	err = d.do("rename", name, func() error { return renameNoReplace(dir, temp, path.Base(name)) })
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("this file system has neither hard links nor RENAME_NOREPLACE: %w", err)
	}
	return err
}

// fill writes data to f and makes it durable. A file whose fsync failed is
// given up: Linux may have dropped the pages and would call the next fsync a
// success.
//
// A pack goes past the page cache where it can: nobody reads it soon, what is
// in the cache is of more use, and it is faster (340 MB with one fsync: 0.37 s,
// through the cache 0.8 to 1.3).
func (d *Dir) fill(ctx context.Context, f *os.File, name string, data []byte) error {
	direct := len(data) >= directSize && d.do("direct", name, func() error { return bypass(f, data) }) == nil
	for len(data) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := data[:min(len(data), 4<<20)]
		n := 0
		err := d.do("write", name, func() (err error) { n, err = f.Write(part); return err })
		if direct && errors.Is(err, syscall.EINVAL) {
			// It takes only what has some other shape. Then through the cache.
			direct = false
			err = unbypass(f)
		}
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return d.do("sync", name, f.Sync)
}

// directSize is the size from which an object is worth the wait for the disk.
const directSize = 1 << 20

// cannotLink: what file systems without hard links say.
func cannotLink(err error) bool {
	return errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EMLINK) || errors.Is(err, errors.ErrUnsupported)
}

// makeDir makes a directory and those above it, durably, and opens it.
func (d *Dir) makeDir(dir string) (*os.File, error) {
	d.mu.Lock()
	kept := d.kept[dir]
	d.mu.Unlock()
	if dir == "." || kept {
		return d.root.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	}
	above := path.Dir(dir)
	parent, err := d.makeDir(above)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	// From here on by descriptor: by name we could make a directory in one
	// parent and sync another that replaced it.
	err = d.do("mkdir", dir, func() error { return mkdir(parent, path.Base(dir)) })
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	// Also when it was there: whoever made it may have died before this line.
	if err := d.do("syncdir", above, func() error { return syncDir(parent) }); err != nil {
		return nil, err
	}
	// Directories further down come and go with their objects (see Delete), so
	// only of these is it known that they stay.
	if above == "." {
		d.mu.Lock()
		d.kept[dir] = true
		d.mu.Unlock()
	}
	return openDir(parent, path.Base(dir))
}

// forget makes the next makeDir look again.
func (d *Dir) forget() {
	d.mu.Lock()
	clear(d.kept)
	d.mu.Unlock()
}

// Get implements [Store].
func (d *Dir) Get(ctx context.Context, name Name, off, n int64) ([]byte, error) {
	if err := check(ctx, name); err != nil {
		return nil, fail("get", name, err)
	}
	data, err := d.get(string(name), off, n)
	if err != nil {
		return nil, d.fail("get", name, err)
	}
	return data, nil
}

func (d *Dir) get(name string, off, n int64) ([]byte, error) {
	f, size, err := d.file(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size >= directSize && cold(f, size) {
		defer cool(f) // nobody reads it again, and what others read should stay
	}
	if n, err = cut(size, off, n); err != nil {
		return nil, err
	}
	data := make([]byte, n)
	if _, err := f.ReadAt(data, off); err != nil && n > 0 {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF // truncated since we asked for its size
		}
		return nil, err
	}
	return data, nil
}

// Open implements [Opener].
func (d *Dir) Open(ctx context.Context, name Name) (io.ReadCloser, error) {
	if err := check(ctx, name); err != nil {
		return nil, fail("get", name, err)
	}
	f, size, err := d.file(string(name))
	if err != nil {
		return nil, d.fail("get", name, err)
	}
	return &dirReader{f, d, name, size >= directSize && cold(f, size)}, nil
}

// A dirReader reads an object from its beginning.
type dirReader struct {
	file *os.File
	d    *Dir
	name Name
	cold bool // see get
}

// Read implements io.Reader.
func (r *dirReader) Read(p []byte) (int, error) {
	n, err := r.file.Read(p)
	if err != nil && err != io.EOF {
		err = r.d.fail("get", r.name, err)
	}
	return n, err
}

// Close implements io.Closer.
func (r *dirReader) Close() error {
	if r.cold {
		cool(r.file)
	}
	return r.file.Close()
}

// file opens the file of an object and returns how long it is.
func (d *Dir) file(name string) (*os.File, int64, error) {
	// O_NONBLOCK: a fifo that somebody left there must not hang us.
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ENOTDIR) {
		return nil, 0, fs.ErrNotExist
	}
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// List implements [Store].
func (d *Dir) List(ctx context.Context, prefix Name) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := prefix.CheckPrefix(); err != nil {
			yield(Info{}, fail("list", prefix, err))
			return
		}
		dir, _ := path.Split(string(prefix))
		w := walk{d: d, ctx: ctx, prefix: string(prefix), yield: yield}
		if _, err := w.dir(path.Clean(dir)); err != nil {
			yield(Info{}, d.fail("list", prefix, err))
		}
	}
}

type walk struct {
	d      *Dir
	ctx    context.Context
	prefix string
	yield  func(Info, error) bool
}

// dir yields the objects below name and reports whether to go on.
func (w *walk) dir(name string) (bool, error) {
	f, err := w.d.root.OpenFile(name, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	names, err := w.names(f, name)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // it was removed since: nothing was left in it
	}
	if err != nil {
		return false, err
	}
	for len(names) > 0 {
		if err := w.ctx.Err(); err != nil {
			return false, err
		}
		base, rest, _ := bytes.Cut(names, []byte{0})
		names = rest
		child := path.Join(name, string(base))
		// What has no object's name was put there by somebody else (lost+found,
		// .snapshot, a README) or is a file that was never finished.
		if Name(child).Check() != nil || !overlap(child, w.prefix) {
			continue
		}
		kind, size, err := lstat(f, string(base))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return false, err
		case kind == fs.ModeSymlink:
			// Skipping it would hide objects that Get can reach.
			return false, fmt.Errorf("%s is a symbolic link", filepath.Join(w.d.path, child))
		case kind == fs.ModeDir:
			if more, err := w.dir(child); !more || err != nil {
				return more, err
			}
		case kind == 0 && strings.HasPrefix(child, w.prefix):
			if !w.yield(Info{Name(child), size}, nil) {
				return false, nil
			}
		}
	}
	return true, nil
}

// overlap reports whether an object at or below child can begin with prefix.
func overlap(child, prefix string) bool {
	return strings.HasPrefix(child, prefix) || strings.HasPrefix(prefix, child+"/")
}

// names returns the names in a directory, each with a zero byte behind it. They
// are read to the end before the first is shown: some file systems skip entries
// when others are deleted between two reads. There may be hundreds of
// thousands, so they lie in one piece.
func (w *walk) names(f *os.File, name string) (all []byte, err error) {
	if cachesListings(f) {
		if err := w.d.touch(name); err != nil {
			return nil, err
		}
	}
	for {
		some, err := f.Readdirnames(512)
		for _, n := range some {
			all = append(append(all, n...), 0)
		}
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// touch changes a directory, so that a client of a file server asks the server
// for its listing instead of showing one that is up to a minute old.
func (d *Dir) touch(dir string) error {
	temp := path.Join(dir, tempPrefix+rand.Text())
	f, err := d.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return nil // who cannot write is a reader, and late news do a reader no harm
	}
	if err != nil {
		return err
	}
	_ = f.Close()
	return d.root.Remove(temp)
}

// Delete implements [Deleter]. It also takes away the directories that became
// empty, except those at the top.
func (d *Dir) Delete(ctx context.Context, name Name) error {
	if err := check(ctx, name); err != nil {
		return fail("delete", name, err)
	}
	if err := d.delete(string(name)); err != nil {
		return d.fail("delete", name, err)
	}
	return nil
}

func (d *Dir) delete(name string) error {
	dirName, base := path.Split(name)
	dirName = path.Clean(dirName)
	dir, err := d.root.OpenFile(dirName, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	err = d.do("unlink", name, func() error { return unlink(dir, base) })
	switch {
	case errors.Is(err, syscall.EISDIR):
		return nil // a directory is no object
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	// Also when it was gone: an earlier try may have died before this line.
	// Without it a pack could come back after the record that condemned it.
	if err := d.do("syncdir", dirName, func() error { return syncDir(dir) }); err != nil {
		return err
	}
	for ; strings.Contains(dirName, "/"); dirName = path.Dir(dirName) {
		if d.root.Remove(dirName) != nil {
			break // not empty: the kernel knows better than a listing would
		}
	}
	return nil
}

// tempPrefix begins the names of files that are not finished. No object's name
// starts with a dot.
const tempPrefix = ".tmp-"

// leftover is how old an unlocked temporary file must be to be swept. Young
// ones may belong to another host whose locks this file system does not show.
const leftover = 24 * time.Hour

// sweepOnce removes temporary files whose writers are dead from a directory, the
// first time this store makes such a file there. That it fails costs space only.
func (d *Dir) sweepOnce(dir *os.File, name string) {
	d.mu.Lock()
	swept := d.swept[name]
	d.swept[name] = true
	d.mu.Unlock()
	if swept {
		return
	}
	list, err := d.root.Open(name)
	if err != nil {
		return
	}
	defer list.Close()
	names, _ := list.Readdirnames(-1)
	for _, temp := range names {
		if strings.HasPrefix(temp, tempPrefix) {
			removeAbandoned(dir, temp, time.Now().Add(-leftover))
		}
	}
}
