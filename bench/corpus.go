//go:build linux

package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// A corpus is a tree of files to back up.
type corpus struct {
	name   string
	about  string
	steps  []step // those that tell something about it; others are done when asked for
	alone  []step // of these, those of orlop and the floors alone: others take too long to do it unasked
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
	source  string // part of GOROOT; "" is all of it, and /usr/share
	media   int64  // bytes
	logs    int64
	image   int64 // of the disk; a third of it is used
	pgscale int   // of pgbench, 15 MB each
	many    int   // files
}

// The scales.
var (
	full  = scale{"full", "", 2 << 30, 512 << 20, 2 << 30, 70, 1_000_000}
	quick = scale{"quick", "src/cmd", 64 << 20, 24 << 20, 96 << 20, 3, 10_000}
	tiny  = scale{"tiny", "src/archive", 6 << 20, 2 << 20, 8 << 20, 1, 300}
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
		"source":   source(sc),
		"postgres": postgres(sc.pgscale),
		"media":    media(sc.media),
		"logs":     logs(sc.logs),
		"image":    image(sc.image),
		"many":     tinyFiles(sc.many),
		"some":     tinyFiles(max(sc.many/100, 1)),
	}
	all["some"].alone = all["some"].steps // it is there to be compared with many
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
