//go:build linux

package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A corpus is a tree of files to back up.
type corpus struct {
	name   string
	about  string
	steps  []step // those that tell something about it; others are done when asked for
	sparse bool   // has holes

	// recipe says all that the content depends on: while it is the same, a tree
	// that was built before is used again.
	recipe func() (string, error)

	// missing says what is not there that is needed to build it, or "".
	missing func() string

	// build fills dir, which is empty.
	build func(ctx context.Context, dir string) error

	// change does to dir what a day's work would. Rounds begin with 1.
	change func(ctx context.Context, dir string, round int) error
}

// A scale says how large corpora are.
type scale struct {
	name    string
	whole   bool  // source is all of GOROOT and /usr/share
	media   int64 // bytes
	logs    int64
	image   int64 // of the disk; a third of it is used
	pgscale int   // of pgbench, 15 MB each
	many    int   // files
}

// The scales.
var (
	full  = scale{"full", true, 2 << 30, 512 << 20, 2 << 30, 70, 1_000_000}
	quick = scale{"quick", false, 96 << 20, 32 << 20, 128 << 20, 3, 20_000}
	tiny  = scale{"tiny", false, 6 << 20, 2 << 20, 8 << 20, 1, 300}
)

const seed = 20261120

// generator returns a source of random bytes for one purpose.
func generator(purpose string, round int) *rand.ChaCha8 {
	return rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "orlop bench %d %s %d", seed, purpose, round)))
}

func nothingMissing() string { return "" }

func fixed(recipe string) func() (string, error) {
	return func() (string, error) { return recipe, nil }
}

var corpusNames = []string{"source", "postgres", "media", "logs", "image", "many", "some"}

// corpora returns all corpora of a scale.
func corpora(sc scale) map[string]*corpus {
	all := map[string]*corpus{
		"source": source(sc),
		"media":  media(sc.media),
	}
	for name, c := range all {
		c.name = name
	}
	return all
}

// ready returns the directory below work in which the corpus is, and builds it
// there unless that has been done.
func (c *corpus) ready(ctx context.Context, work string, say func(format string, args ...any)) (string, error) {
	recipe, err := c.recipe()
	if err != nil {
		return "", fmt.Errorf("corpus %s: %w", c.name, err)
	}
	sum := sha256.Sum256([]byte(recipe))
	dir := filepath.Join(work, "corpora", fmt.Sprintf("%s-%x", c.name, sum[:6]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	say("corpus %s: building it", c.name)
	old, _ := filepath.Glob(filepath.Join(work, "corpora", c.name+"-*"))
	for _, o := range old {
		if err := os.RemoveAll(o); err != nil {
			return "", err
		}
	}
	// Under another name until it is complete.
	half := dir + ".half"
	if err := os.MkdirAll(half, 0o755); err != nil {
		return "", err
	}
	if err := c.build(ctx, half); err != nil {
		_ = os.RemoveAll(half)
		return "", fmt.Errorf("build corpus %s: %w", c.name, err)
	}
	return dir, os.Rename(half, dir)
}

// source is many small files: all of Go's own tree and of /usr/share, or Go's
// library alone.
func source(sc scale) *corpus {
	roots := []string{filepath.Join(goroot(), "src")}
	if sc.whole {
		roots = []string{goroot(), "/usr/share"}
	} else if sc.many < quick.many {
		roots = []string{filepath.Join(goroot(), "src", "archive")}
	}
	return &corpus{
		about: "copy of " + strings.Join(roots, " and "),
		steps: []step{first, unchanged, touched, check, restore, update},
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
			for i := 0; total > 0; i++ {
				n := min(total, int64(512<<10)<<r.IntN(10)+r.Int64N(512<<10))
				if err := writeFile(filepath.Join(dir, fmt.Sprintf("%02d", i%7), fmt.Sprintf("clip-%04d.mp4", i)), n, g); err != nil {
					return err
				}
				total -= n
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
