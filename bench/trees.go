//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// source is many small files: all of Go's own tree and of /usr/share, or a part
// of the first.
func source(sc scale) *corpus {
	roots := []string{filepath.Join(goroot(), sc.source)}
	if sc.source == "" {
		roots = append(roots, "/usr/share")
	}
	return &corpus{
		about: "copy of " + strings.Join(roots, " and "),
		steps: []step{first, unchanged, check, restore, update},
		recipe: func() (string, error) {
			recipe := "source 1"
			for _, root := range roots {
				f, err := measureTree(root)
				if err != nil {
					return "", err
				}
				recipe += fmt.Sprint(" ", root, " ", f)
			}
			return recipe, nil
		},
		missing: func() string {
			if goroot() == "" {
				return "the go command is needed to find GOROOT"
			}
			return ""
		},
		build: func(ctx context.Context, dir string) error {
			_, err := run(ctx, command{args: append(append([]string{"cp", "-a"}, roots...), dir), env: os.Environ()})
			return err
		},
		change: func(_ context.Context, dir string, round int) error {
			return differ(dir, uint64(round))
		},
	}
}

func goroot() string {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// media is large files that do not compress: from half a megabyte to 256 MiB.
func media(total int64) *corpus {
	return &corpus{
		about:   fmt.Sprintf("%s of random bytes in files of up to 256 MiB", size(total)),
		steps:   []step{first, unchanged, touched, check, restore},
		recipe:  fixed(fmt.Sprint("media 1 ", seed, total)),
		missing: nothingMissing,
		build: func(_ context.Context, dir string) error {
			g := generator("media", 0)
			r := rand.New(g)
			left := total
			for i := 0; left > 0; i++ {
				n := min(left, int64(512<<10)<<r.IntN(10)+r.Int64N(512<<10))
				if err := writeFile(filepath.Join(dir, fmt.Sprintf("%02d", i%7), fmt.Sprintf("clip-%04d.mp4", i)), n, g); err != nil {
					return err
				}
				left -= n
			}
			return nil
		},
		change: func(_ context.Context, dir string, round int) error {
			// A new one, and one that is gone.
			all, err := files(dir)
			if err != nil || len(all) == 0 {
				return err
			}
			if err := os.Remove(all[round*7%len(all)]); err != nil {
				return err
			}
			return writeFile(filepath.Join(dir, fmt.Sprintf("new-%d.mp4", round)), 2<<20, generator("media", round))
		},
	}
}

// writeFile makes a file of n random bytes, and the directory it is in.
func writeFile(path string, n int64, g *rand.ChaCha8) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	p := make([]byte, 1<<20)
	for ; n > 0; n -= int64(len(p)) {
		p = p[:min(n, int64(len(p)))]
		_, _ = g.Read(p)
		if _, err := f.Write(p); err != nil {
			_ = f.Close()
			return err
		}
	}
	return f.Close()
}

// logs is text as programs log it, each file with those it was rotated to.
func logs(total int64) *corpus {
	const programs, kept = 8, 4
	name := func(program, n int) string {
		if n == 0 {
			return fmt.Sprintf("app%d/access.log", program)
		}
		return fmt.Sprintf("app%d/access.log.%d", program, n)
	}
	return &corpus{
		about:   fmt.Sprintf("%s of log lines; then 2 %% more are appended to each file that is written, and one of eight is rotated", size(total)),
		steps:   []step{first, changed, restore},
		recipe:  fixed(fmt.Sprint("logs 1 ", seed, total)),
		missing: nothingMissing,
		build: func(_ context.Context, dir string) error {
			for p := range programs {
				w := newLogger(p, 0)
				for n := kept - 1; n >= 0; n-- {
					if err := w.append(filepath.Join(dir, name(p, n)), total/programs/kept); err != nil {
						return err
					}
				}
			}
			return nil
		},
		change: func(_ context.Context, dir string, round int) error {
			for p := range programs {
				if p == round%programs {
					for n := kept - 1; n >= 0; n-- {
						if err := os.Rename(filepath.Join(dir, name(p, n)), filepath.Join(dir, name(p, n+1))); err != nil {
							return err
						}
					}
					if err := os.Remove(filepath.Join(dir, name(p, kept))); err != nil {
						return err
					}
				}
				if err := newLogger(p, round).append(filepath.Join(dir, name(p, 0)), total/programs/50); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// A logger makes lines of a web server's log.
type logger struct {
	r *rand.Rand
	t time.Time
}

func newLogger(program, round int) *logger {
	return &logger{rand.New(generator(fmt.Sprint("logs ", program), round)), time.Date(2026, 11, 1+round, 0, 0, 0, 0, time.UTC)}
}

// append writes n bytes or a line more to the end of a file.
func (l *logger) append(path string, n int64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	methods := []string{"GET", "GET", "GET", "GET", "POST", "PUT", "HEAD"}
	paths := []string{"/", "/index.html", "/api/v1/orders", "/api/v1/customers", "/static/app.js", "/static/style.css", "/login", "/search"}
	agents := []string{
		"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
		"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15",
		"curl/8.9.1", "kube-probe/1.30",
	}
	statuses := []int{200, 200, 200, 200, 200, 204, 301, 304, 404, 500}
	for n > 0 {
		l.t = l.t.Add(time.Duration(l.r.IntN(200)) * time.Millisecond)
		m, err := fmt.Fprintf(w, "10.%d.%d.%d - - [%s] \"%s %s?id=%d&s=%08x HTTP/1.1\" %d %d \"-\" \"%s\" %.3f\n",
			l.r.IntN(4), l.r.IntN(256), l.r.IntN(256), l.t.Format("02/Jan/2006:15:04:05.000 -0700"),
			methods[l.r.IntN(len(methods))], paths[l.r.IntN(len(paths))], l.r.IntN(100_000), l.r.Uint32(),
			statuses[l.r.IntN(len(statuses))], l.r.IntN(60_000), agents[l.r.IntN(len(agents))], l.r.ExpFloat64()/20)
		if err != nil {
			_ = f.Close()
			return err
		}
		n -= int64(m)
	}
	return errors.Join(w.Flush(), f.Close())
}

// image is the disk of a virtual machine, of which a third is in use: an ext4
// file system where mkfs.ext4 is there to make it, else blocks at random places.
func image(total int64) *corpus {
	const name = "disk.img"
	mkfs, _ := exec.LookPath("mkfs.ext4")
	if mkfs == "" {
		if _, err := os.Stat("/sbin/mkfs.ext4"); err == nil {
			mkfs = "/sbin/mkfs.ext4"
		}
	}
	used := total / 3
	writes := int(total >> 21)
	return &corpus{
		about: fmt.Sprintf("a sparse disk image of %s, a third in use; then %d blocks of 4 KiB are written over in place", binary(total), writes),
		steps: []step{first, changed, restore, update}, sparse: true,
		recipe:  fixed(fmt.Sprint("image 1 ", seed, total, mkfs != "")),
		missing: nothingMissing,
		build: func(ctx context.Context, dir string) error {
			path := filepath.Join(dir, name)
			f, err := os.Create(path)
			if err != nil {
				return err
			}
			if err := errors.Join(f.Truncate(total), f.Close()); err != nil {
				return err
			}
			if mkfs == "" {
				return scatter(path, rand.New(generator("image", 0)), int(used>>12), false)
			}
			content, err := os.MkdirTemp(filepath.Dir(dir), "image-content-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(content)
			if err := diskContent(content, used); err != nil {
				return err
			}
			_, err = run(ctx, command{
				args: []string{
					mkfs, "-q", "-F", "-O", "^has_journal", "-U", "0b1ec7ed-0000-4000-8000-000020261120",
					"-E", "hash_seed=0b1ec7ed-0000-4000-8000-000020261120", "-d", content, path,
				},
				env: append(os.Environ(), "E2FSPROGS_FAKE_TIME=1795132800", "SOURCE_DATE_EPOCH=1795132800"),
			})
			return err
		},
		change: func(_ context.Context, dir string, round int) error {
			return scatter(filepath.Join(dir, name), rand.New(generator("image", round)), writes, true)
		},
	}
}

// diskContent fills a directory with text and with what does not compress, half
// and half, in files of a few kilobytes to a few megabytes.
func diskContent(dir string, total int64) error {
	g := generator("disk", 0)
	r, text := rand.New(g), newLogger(99, 0)
	stamp := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	for i := 0; total > 0; i++ {
		n := min(total, int64(4<<10)<<r.IntN(11)+r.Int64N(4<<10))
		path := filepath.Join(dir, fmt.Sprintf("d%02d", i%40), fmt.Sprintf("file-%05d", i))
		err := error(nil)
		if i%2 == 0 {
			err = text.append(path, n)
		} else {
			err = writeFile(path, n, g)
		}
		if err != nil {
			return err
		}
		total -= n
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, stamp, stamp)
	})
}

// scatter writes random bytes over n blocks of 4 KiB of a file, in place; only
// over what holds data already, if existing is set.
func scatter(path string, r *rand.Rand, n int, existing bool) error {
	const block, seekData = 4096, 3
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	for n > 0 {
		off := r.Int64N(fi.Size()/block) * block
		if existing {
			if data, err := f.Seek(off, seekData); errors.Is(err, syscall.ENXIO) || data != off {
				continue
			} else if err != nil {
				return err
			}
		}
		if _, err := f.WriteAt(noise(r, block), off); err != nil {
			return err
		}
		n--
	}
	return f.Close()
}

// tinyFiles is n files of up to 300 bytes, a thousand to a directory.
func tinyFiles(n int) *corpus {
	path := func(dir string, i int) string {
		return filepath.Join(dir, fmt.Sprintf("%04d", i/1000), fmt.Sprintf("item-%07d.txt", i))
	}
	return &corpus{
		about:   fmt.Sprintf("%d files of up to 300 bytes; then 1 in 100 gets another mode, and 1 in 100 another time", n),
		steps:   []step{first, unchanged, changed, check, restore},
		alone:   []step{check, restore},
		recipe:  fixed(fmt.Sprint("tiny files 1 ", seed, n)),
		missing: nothingMissing,
		build: func(ctx context.Context, dir string) error {
			for i := 0; i < n; i += 1000 {
				if err := os.Mkdir(filepath.Dir(path(dir, i)), 0o755); err != nil {
					return err
				}
			}
			return onAllCores(ctx, n, func(i int) error {
				r := rand.New(rand.NewPCG(seed, uint64(i)))
				p := fmt.Appendf(nil, "%d %s ", i, strings.Repeat("item ", r.IntN(12)))
				p = append(p, noise(r, r.Int64N(200))...)
				return os.WriteFile(path(dir, i), p, 0o644)
			})
		},
		change: func(_ context.Context, dir string, round int) error {
			stamp := time.Date(2026, 12, round, 0, 0, 0, 0, time.UTC)
			for i := round; i < n; i += 50 {
				err := os.Chtimes(path(dir, i), stamp, stamp)
				if i/50%2 == 0 {
					err = os.Chmod(path(dir, i), fs.FileMode(0o600+round%8))
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
}
