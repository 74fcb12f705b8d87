//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// facts say how large a tree is.
type facts struct {
	Files int   `json:"files"`
	Dirs  int   `json:"directories"`
	Other int   `json:"others"` // links and the like
	Bytes int64 `json:"bytes"`  // sizes of all files; of one with several names, at each
	Disk  int64 `json:"disk_bytes"`
}

func (f facts) String() string {
	return fmt.Sprintf("%d files, %s (%s on disk)", f.Files, size(f.Bytes), size(f.Disk))
}

// measureTree counts what is below root.
func measureTree(root string) (f facts, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			f.Dirs++
		case !d.Type().IsRegular():
			f.Other++
		default:
			fi, err := d.Info()
			if err != nil {
				return err
			}
			f.Files++
			f.Bytes += fi.Size()
			f.Disk += fi.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return f, err
}

// fileBytes sums the sizes of all files below root, for a repository. What
// vanishes meanwhile is not counted.
func fileBytes(root string) (n int64) {
	_ = filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if fi, err := d.Info(); err == nil {
				n += fi.Size()
			}
		}
		return nil
	})
	return n
}

// files returns the paths of all regular files below root, sorted by directory.
func files(root string) (all []string, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			all = append(all, path)
		}
		return err
	})
	return all, err
}

// onAllCores calls f with numbers from 0 to n-1, some at once, until one fails.
func onAllCores(ctx context.Context, n int, f func(i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var wg sync.WaitGroup
	for range runtime.NumCPU() {
		wg.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}

// warm reads every file below root to nowhere, so that whoever comes next finds
// all of it in the page cache.
func warm(ctx context.Context, root string) error {
	all, err := files(root)
	if err != nil {
		return err
	}
	buffers := sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}
	return onAllCores(ctx, len(all), func(i int) error {
		f, err := os.Open(all[i])
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a repository may tidy itself up
		} else if err != nil {
			return err
		}
		defer f.Close()
		b := buffers.Get().(*[]byte)
		defer buffers.Put(b)
		for {
			if _, err := f.Read(*b); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
		}
	})
}

// A difference is what two trees differ in.
type difference struct {
	wrong []string       // contents, names, types: what no backup may get wrong
	lost  map[string]int // what a tool does not keep, and of how many files
}

func (d *difference) add(path, what string) {
	d.wrong = append(d.wrong, fmt.Sprintf("%q %s", path, what))
}

// err returns an error that names the first of what is wrong, or nil.
func (d *difference) err() error {
	if len(d.wrong) == 0 {
		return nil
	}
	shown := d.wrong[:min(3, len(d.wrong))]
	return fmt.Errorf("the result is wrong in %d places: %s", len(d.wrong), strings.Join(shown, ", "))
}

// compare tells what the tree at got lacks of that at want, or has too much.
func compare(ctx context.Context, want, got string) (*difference, error) {
	d := &difference{lost: map[string]int{}}
	links := map[uint64]string{} // inode in want: first path
	var both []string            // regular files of one size, to be read
	var dir func(path string) error
	entry := func(path string) error {
		w, err := os.Lstat(filepath.Join(want, path))
		if err != nil {
			return err
		}
		g, err := os.Lstat(filepath.Join(got, path))
		if errors.Is(err, fs.ErrNotExist) {
			d.add(path, "is missing")
			return nil
		} else if err != nil {
			return err
		}
		if w.Mode().Type() != g.Mode().Type() {
			d.add(path, "is of another type")
			return nil
		}
		d.metadata(path, w, g)
		switch {
		case w.IsDir():
			return dir(path)
		case w.Mode().IsRegular():
			if w.Size() != g.Size() {
				d.add(path, fmt.Sprintf("has %d bytes, not %d", g.Size(), w.Size()))
				return nil
			}
			if first, ok := link(links, path, w); ok {
				f, err := os.Lstat(filepath.Join(got, first))
				if err != nil || !os.SameFile(f, g) {
					d.lost["hard links"]++
				}
			}
			if wb, gb := w.Sys().(*syscall.Stat_t).Blocks, g.Sys().(*syscall.Stat_t).Blocks; wb*512 < w.Size()*9/10 && gb > wb+wb/10+128 {
				d.lost["holes"]++
			}
			both = append(both, path)
		case w.Mode()&fs.ModeSymlink != 0:
			wl, err := os.Readlink(filepath.Join(want, path))
			if err != nil {
				return err
			}
			if gl, _ := os.Readlink(filepath.Join(got, path)); wl != gl {
				d.add(path, "leads elsewhere")
			}
		}
		return nil
	}
	dir = func(path string) error {
		w, err := names(filepath.Join(want, path))
		if err != nil {
			return err
		}
		g, err := names(filepath.Join(got, path))
		if err != nil {
			return err
		}
		for _, n := range g {
			if _, ok := slices.BinarySearch(w, n); !ok {
				d.add(filepath.Join(path, n), "should not be there")
			}
		}
		for _, n := range w {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if err := entry(filepath.Join(path, n)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := dir("."); err != nil {
		return nil, fmt.Errorf("compare %s with %s: %w", got, want, err)
	}
	var mu sync.Mutex
	err := onAllCores(ctx, len(both), func(i int) error {
		w, g := filepath.Join(want, both[i]), filepath.Join(got, both[i])
		same, err := sameBytes(w, g)
		if err != nil {
			return err
		}
		attributes := xattrs(w) == xattrs(g)
		mu.Lock()
		defer mu.Unlock()
		if !same {
			d.add(both[i], "has other bytes")
		}
		if !attributes {
			d.lost["extended attributes"]++
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("compare %s with %s: %w", got, want, err)
	}
	return d, nil
}

func (d *difference) metadata(path string, w, g fs.FileInfo) {
	kind := "files"
	if w.IsDir() {
		kind = "directories"
	} else if w.Mode()&fs.ModeSymlink != 0 {
		kind = "links"
	}
	if w.Mode() != g.Mode() {
		d.lost["modes of "+kind]++
	}
	ws, gs := w.Sys().(*syscall.Stat_t), g.Sys().(*syscall.Stat_t)
	if ws.Uid != gs.Uid || ws.Gid != gs.Gid {
		d.lost["owners of "+kind]++
	}
	if ws.Mtim.Sec != gs.Mtim.Sec {
		d.lost["times of "+kind]++
	} else if ws.Mtim.Nsec != gs.Mtim.Nsec {
		d.lost["fractions of seconds in times of "+kind]++
	}
}

// link returns the path at which a file of several names was first seen.
func link(seen map[uint64]string, path string, fi fs.FileInfo) (string, bool) {
	st := fi.Sys().(*syscall.Stat_t)
	if st.Nlink < 2 {
		return "", false
	}
	first, ok := seen[st.Ino]
	if !ok {
		seen[st.Ino] = path
	}
	return first, ok
}

func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, err
	}
	all := make([]string, len(entries))
	for i, e := range entries {
		all[i] = e.Name()
	}
	return all, nil
}

func sameBytes(a, b string) (bool, error) {
	f, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer f.Close()
	g, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer g.Close()
	p, q := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(f, p)
		m, err2 := io.ReadFull(g, q)
		switch {
		case !bytes.Equal(p[:n], q[:m]):
			return false, nil
		case (err == io.EOF || err == io.ErrUnexpectedEOF) && err == err2:
			return true, nil
		case err != nil:
			return false, err
		case err2 != nil:
			return false, err2
		}
	}
}

// xattrs returns all extended attributes of a file, as one string.
func xattrs(path string) string {
	names := make([]byte, 4096)
	n, err := syscall.Listxattr(path, names)
	if err != nil || n == 0 {
		return ""
	}
	var all []string
	value := make([]byte, 64<<10)
	for _, name := range strings.Split(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		n, _ := syscall.Getxattr(path, name, value)
		all = append(all, fmt.Sprintf("%q=%q", name, value[:max(0, n)]))
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}

// mirror makes dst what src is. With rsync at hand one would use that: bytes are
// written where they differ, and what is equal is only read.
func mirror(ctx context.Context, src, dst string) error {
	d, err := compare(ctx, src, dst)
	if err != nil {
		return err
	}
	if len(d.wrong) == 0 && len(d.lost) == 0 {
		return nil
	}
	var dirs []string
	err = filepath.WalkDir(src, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		to := filepath.Join(dst, rel)
		if e.IsDir() {
			if err := os.MkdirAll(to, 0o700); err != nil {
				return err
			}
			if err := removeExtra(path, to); err != nil {
				return err
			}
			dirs = append(dirs, rel)
			return nil
		}
		if !e.Type().IsRegular() {
			_ = os.Remove(to)
			_, err := run(ctx, command{args: []string{"cp", "-a", path, to}})
			return err
		}
		return mirrorFile(path, to)
	})
	for _, rel := range slices.Backward(dirs) { // times last: what is inside changes them
		if err == nil {
			err = setMetadata(filepath.Join(src, rel), filepath.Join(dst, rel))
		}
	}
	if err != nil {
		return fmt.Errorf("make %s equal to %s: %w", dst, src, err)
	}
	return nil
}

func removeExtra(src, dst string) error {
	have, err := names(dst)
	if err != nil {
		return err
	}
	want, err := names(src)
	if err != nil {
		return err
	}
	for _, n := range have {
		if _, ok := slices.BinarySearch(want, n); ok {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dst, n)); err != nil {
			return err
		}
	}
	return nil
}

func mirrorFile(src, dst string) error {
	if fi, err := os.Lstat(dst); err == nil && !fi.Mode().IsRegular() {
		if err := os.RemoveAll(dst); err != nil {
			return err
		}
	}
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	p, q := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; {
		n, err := io.ReadFull(in, p)
		if n > 0 {
			if m, _ := out.ReadAt(q[:n], at); m < n || !bytes.Equal(p[:n], q[:m]) {
				if _, err := out.WriteAt(p[:n], at); err != nil {
					return err
				}
			}
			at += int64(n)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			if err := out.Truncate(at); err != nil {
				return err
			}
			return setMetadata(src, dst)
		} else if err != nil {
			return err
		}
	}
}

func setMetadata(src, dst string) error {
	fi, err := os.Lstat(src)
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	if os.Getuid() == 0 {
		if err := os.Lchown(dst, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if err := os.Chmod(dst, fi.Mode()); err != nil {
		return err
	}
	return os.Chtimes(dst, fi.ModTime(), fi.ModTime())
}

// touch sets the modification time of every file below root to one that it
// never had: what is in them does not change.
func touch(root string, round int) error {
	all, err := files(root)
	if err != nil {
		return err
	}
	now := time.Date(2026, 1, 1, 0, 0, round, 0, time.UTC)
	for i, path := range all {
		t := now.Add(time.Duration(i) * time.Microsecond)
		if err := os.Chtimes(path, t, t); err != nil {
			return err
		}
	}
	return nil
}

// differ makes a tree differ a little from what it was, as one does that was
// used for a while after a backup: in one file of a hundred (at least 4, at most
// 1,000) 8 KiB are written over at one place in each 4 MiB; four files are gone;
// four are new. The bytes are seed's.
func differ(root string, seed uint64) error {
	all, err := files(root)
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(seed, 1))
	n := min(max(len(all)/100, 4), 1000, len(all))
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, path := range all[:n] {
		if err := scribble(path, r, 8<<10, 4<<20); err != nil {
			return err
		}
	}
	for i := n; i < n+4 && i < len(all); i++ {
		if err := os.Remove(all[i]); err != nil {
			return err
		}
	}
	for i := range 4 {
		if err := os.WriteFile(filepath.Join(root, fmt.Sprintf("bench-new-%d", i)), noise(r, 20_000), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// scribble writes n random bytes over each step bytes of a file, at places that
// are multiples of 4 KiB, in place. The file keeps its length.
func scribble(path string, r *rand.Rand, n, step int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	for at := int64(0); at < fi.Size(); at += step {
		room := min(step, fi.Size()-at)
		off := at
		if room > n {
			off += r.Int64N((room-n)/4096+1) * 4096
		}
		if _, err := f.WriteAt(noise(r, min(n, fi.Size()-off)), off); err != nil {
			return err
		}
	}
	return nil
}

// noise returns n bytes that do not compress.
func noise(r *rand.Rand, n int64) []byte {
	p := make([]byte, n)
	fill(p, r)
	return p
}

func fill(p []byte, r *rand.Rand) {
	for i := 0; i < len(p); i += 8 {
		v := r.Uint64()
		for j := i; j < min(i+8, len(p)); j++ {
			p[j] = byte(v)
			v >>= 8
		}
	}
}
