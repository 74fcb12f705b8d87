//go:build linux

package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
)

func TestCorporaAreTheSameEachTime(t *testing.T) {
	for _, name := range []string{"source", "media", "logs", "image", "many"} {
		t.Run(name, func(t *testing.T) {
			c := corpora(tiny)[name]
			var dirs [2]string
			for i := range dirs {
				dirs[i] = filepath.Join(t.TempDir(), "corpus")
				must(t, os.Mkdir(dirs[i], 0o755))
				must(t, c.build(t.Context(), dirs[i]))
			}
			equal := func(when string) {
				d, err := compare(t.Context(), dirs[0], dirs[1])
				must(t, err)
				if name == "image" && len(d.wrong) == 1 {
					// mkfs.ext4 keeps the moment at which a file was made in its inode.
					if n := blocksThatDiffer(t, filepath.Join(dirs[0], "disk.img"), filepath.Join(dirs[1], "disk.img")); n > 20 {
						t.Errorf("%s: %d blocks differ", when, n)
					}
				} else if err := d.err(); err != nil {
					t.Errorf("%s: %v", when, err)
				}
			}
			equal("new")
			f, err := measureTree(dirs[0])
			must(t, err)
			if f.Files == 0 || f.Bytes == 0 {
				t.Fatalf("it is empty: %v", f)
			}
			if c.sparse != (f.Disk < f.Bytes/2) {
				t.Errorf("%v, but sparse is %v", f, c.sparse)
			}
			for round := 1; round <= 3; round++ {
				before := twin(t, dirs[0])
				for _, dir := range dirs {
					must(t, c.change(t.Context(), dir, round))
				}
				equal("changed")
				d, err := compare(t.Context(), before, dirs[0])
				must(t, err)
				if len(d.wrong)+len(d.lost) == 0 {
					t.Errorf("round %d changed nothing", round)
				}
				if name == "many" && len(d.wrong) > 0 {
					t.Errorf("round %d changed more than metadata: %v", round, d.err())
				}
			}
		})
	}
}

func TestACorpusIsBuiltOnceForARecipe(t *testing.T) {
	work, built := t.TempDir(), 0
	recipe := "one"
	c := tinyFiles(3)
	c.name = "three"
	c.recipe = func() (string, error) { return recipe, nil }
	build := c.build
	c.build = func(ctx context.Context, dir string) error { built++; return build(ctx, dir) }
	say := func(string, ...any) {}
	one, err := c.ready(t.Context(), work, say)
	must(t, err)
	again, err := c.ready(t.Context(), work, say)
	must(t, err)
	if one != again || built != 1 {
		t.Errorf("built %d times, in %s and %s", built, one, again)
	}
	recipe = "two"
	other, err := c.ready(t.Context(), work, say)
	must(t, err)
	if other == one || built != 2 {
		t.Errorf("another recipe: built %d times, in %s", built, other)
	}
	if _, err := os.Stat(one); !os.IsNotExist(err) {
		t.Errorf("the one of the old recipe is still there: %v", err)
	}
}

func TestAHalfBuiltCorpusIsNotUsed(t *testing.T) {
	work := t.TempDir()
	c := tinyFiles(3)
	c.name = "three"
	build := c.build
	c.build = func(ctx context.Context, dir string) error {
		must(t, build(ctx, dir))
		return os.ErrInvalid
	}
	if _, err := c.ready(t.Context(), work, func(string, ...any) {}); err == nil {
		t.Fatal("no error")
	}
	c.build = build
	dir, err := c.ready(t.Context(), work, func(string, ...any) {})
	must(t, err)
	if f, err := measureTree(dir); err != nil || f.Files != 3 {
		t.Errorf("it has %v, %v", f, err)
	}
}

// blocksThatDiffer counts blocks of 4 KiB.
func blocksThatDiffer(t *testing.T, a, b string) (n int) {
	t.Helper()
	p, err := os.ReadFile(a)
	must(t, err)
	q, err := os.ReadFile(b)
	must(t, err)
	if len(p) != len(q) {
		t.Fatalf("%d bytes and %d", len(p), len(q))
	}
	for i := 0; i < len(p); i += 4096 {
		if !bytes.Equal(p[i:i+4096], q[i:i+4096]) {
			n++
		}
	}
	return n
}
