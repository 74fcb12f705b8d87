// Package local is what a host remembers of a repository: a stat cache for each
// source, which runs are alive, and marks.
//
// All of it can be deleted. Without stat caches files are read again and
// nothing is stored again; without run locks a crashed run is waited for as if
// it had been another host's; without marks a reminder is shown again.
//
// Two processes never wait for one another. Every file is written under a
// temporary name and renamed when it is whole, nothing is ever changed in
// place, and locks are only tried. What is damaged is not there.
package local

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"orlop/id"
)

// A Dir is the directory in which a host remembers one repository. It may be
// used concurrently, also by several processes.
type Dir struct{ path string }

// The parts of a Dir. What is in stats names files in clear, so nobody but its
// owner may look.
const (
	indexDir = "index"
	statsDir = "stats"
	runsDir  = "runs"
	marksDir = "marks"

	dirMode  = 0o700
	fileMode = 0o600
)

// Open returns the directory for a repository below base, and makes it if
// there is none.
func Open(base string, repo id.Repository) (*Dir, error) {
	abs, err := filepath.Abs(base)
	if err != nil {
		return nil, fmt.Errorf("open local state: %w", err)
	}
	d := &Dir{path: filepath.Join(abs, repo.String())}
	for _, part := range []string{indexDir, statsDir, runsDir, marksDir} {
		if err := os.MkdirAll(d.Path(part), dirMode); err != nil {
			return nil, fmt.Errorf("open local state: %w", err)
		}
	}
	sweep(d.Path(statsDir))
	sweep(d.Path(runsDir))
	return d, nil
}

// Path returns the path of something in the directory, or its own.
func (d *Dir) Path(elem ...string) string {
	return filepath.Join(append([]string{d.path}, elem...)...)
}

// Index returns the directory for index.Open.
func (d *Dir) Index() string { return d.Path(indexDir) }

// tempPrefix begins the names of files that are not finished.
const tempPrefix = ".tmp-"

// createTemp opens a new file that is to be renamed.
func createTemp(dir string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, tempPrefix+rand.Text()), os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
}

// publish renames a file that is whole and synced, durably.
func publish(temp, path string) error {
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// sweep removes unfinished files that nobody has written to for a day. That it
// fails costs only space.
func sweep(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > 24*time.Hour && unlocked(path) {
			_ = os.Remove(path)
		}
	}
}

// unlocked reports whether the file is there and nobody holds its lock. It asks
// for a shared lock, so two who ask at once do not take each other for the
// holder.
func unlocked(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil
}

// A Run is a session of this host that is alive: a locked file. The kernel
// frees the lock when the process ends, however it ends.
type Run struct {
	file *os.File
	path string
}

// StartRun says that a session is alive. It never waits; a session that was
// started before is an error.
func (d *Dir) StartRun(sid id.Session) (*Run, error) {
	run, err := d.startRun(sid)
	if err != nil {
		return nil, fmt.Errorf("start run %s: %w", sid, err)
	}
	return run, nil
}

func (d *Dir) startRun(sid id.Session) (*Run, error) {
	// Locked before it has its name: between the two it would look dead.
	f, err := createTemp(d.Path(runsDir))
	if err != nil {
		return nil, err
	}
	path := d.Path(runsDir, sid.String())
	if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		err = renameNoReplace(f.Name(), path)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
			err = os.Link(f.Name(), path)
			_ = os.Remove(f.Name())
		}
	}
	if err != nil {
		_ = os.Remove(f.Name())
		_ = f.Close()
		return nil, err
	}
	return &Run{file: f, path: path}, nil
}

// Close frees the lock: the session is one of the dead from now on. After Done
// it does nothing.
func (r *Run) Close() error {
	if err := r.file.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("end run: %w", err)
	}
	return nil
}

// Done is Close for a session that ended well and need not be remembered.
func (r *Run) Done() error {
	// Removed while it is still locked: nobody sees it dead.
	if err := os.Remove(r.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		_ = r.Close()
		return fmt.Errorf("end run: %w", err)
	}
	return r.Close()
}

// Dead returns the sessions of this host that ended without Done and were not
// forgotten since. None of them will ever write again.
func (d *Dir) Dead() ([]id.Session, error) {
	entries, err := os.ReadDir(d.Path(runsDir))
	if err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	var dead []id.Session
	for _, e := range entries {
		if sid, err := id.ParseSession(e.Name()); err == nil && unlocked(d.Path(runsDir, e.Name())) {
			dead = append(dead, sid)
		}
	}
	return dead, nil
}

// Forget takes a session off the list of the dead, once it was tidied up after.
// That it is not there is no error.
func (d *Dir) Forget(sid id.Session) error {
	if err := os.Remove(d.Path(runsDir, sid.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget run: %w", err)
	}
	return nil
}

// RunAlive reports whether a session of this host is alive, in whichever
// repository below base. When it cannot tell it says yes.
func RunAlive(base string, sid id.Session) bool {
	repos, err := os.ReadDir(base)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	for _, repo := range repos {
		path := filepath.Join(base, repo.Name(), runsDir, sid.String())
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if !unlocked(path) {
			return true
		}
	}
	return false
}

// SetMark remembers that something was done, for example "key-exported". Names
// are of a-z, 0-9 and '-'.
func (d *Dir) SetMark(name string) error {
	if !validMark(name) {
		return fmt.Errorf("set mark: bad name %q", name)
	}
	f, err := os.OpenFile(d.Path(marksDir, name), os.O_WRONLY|os.O_CREATE, fileMode)
	if err != nil {
		return fmt.Errorf("set mark: %w", err)
	}
	_ = f.Close() // it has nothing in it
	if err := syncDir(d.Path(marksDir)); err != nil {
		return fmt.Errorf("set mark %s: %w", name, err)
	}
	return nil
}

// Mark reports whether SetMark was called.
func (d *Dir) Mark(name string) bool {
	if !validMark(name) {
		return false
	}
	_, err := os.Lstat(d.Path(marksDir, name))
	return err == nil
}

// Marks returns the marks whose names begin with prefix.
func (d *Dir) Marks(prefix string) []string {
	files, err := os.ReadDir(d.Path(marksDir))
	if err != nil {
		return nil // as if nothing had been remembered
	}
	var names []string
	for _, f := range files {
		if strings.HasPrefix(f.Name(), prefix) && validMark(f.Name()) {
			names = append(names, f.Name())
		}
	}
	return names
}

// ClearMark forgets that SetMark was called. That it was not is no error.
func (d *Dir) ClearMark(name string) error {
	if !validMark(name) {
		return fmt.Errorf("clear mark: bad name %q", name)
	}
	if err := os.Remove(d.Path(marksDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clear mark: %w", err)
	}
	return nil
}

func validMark(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
