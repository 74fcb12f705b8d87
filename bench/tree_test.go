//go:build linux

package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// sample tree: two directories, a link, a hard link, a file with a hole.
func plant(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "a/one"), []byte(strings.Repeat("one ", 50_000)), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "a/b/two"), []byte("two"), 0o600))
	must(t, os.Link(filepath.Join(dir, "a/one"), filepath.Join(dir, "a/uno")))
	must(t, os.Symlink("one", filepath.Join(dir, "a/link")))
	must(t, os.WriteFile(filepath.Join(dir, "a/hole"), []byte("x"), 0o644))
	must(t, os.Truncate(filepath.Join(dir, "a/hole"), 4<<20))
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func twin(t *testing.T, dir string) string {
	t.Helper()
	other := filepath.Join(t.TempDir(), "twin")
	_, err := run(t.Context(), command{args: []string{"cp", "-a", dir, other}, env: os.Environ()})
	must(t, err)
	return other
}

func TestEveryDifferenceIsFound(t *testing.T) {
	at := func(f func(path string) error, name string) func(string) error {
		return func(dir string) error { return f(filepath.Join(dir, name)) }
	}
	second := time.Date(2020, 2, 2, 2, 2, 2, 0, time.UTC)
	tests := []struct {
		name  string
		do    func(dir string) error
		wrong string // of the only thing that is wrong, or ""
		lost  []string
	}{
		{"nothing", func(string) error { return nil }, "", nil},
		{"a file is gone", at(os.Remove, "a/b/two"), `"a/b/two" is missing`, []string{"times of directories"}},
		{"a directory is gone", at(os.RemoveAll, "a/b"), `"a/b" is missing`, []string{"times of directories"}},
		{"a file too much", at(func(p string) error { return os.WriteFile(p, nil, 0o644) }, "a/new"), `"a/new" should not be there`, []string{"times of directories"}},
		{"one byte, and the time as it was", at(func(p string) error {
			fi, _ := os.Stat(p)
			if err := os.WriteFile(p, []byte("tvo"), 0o600); err != nil {
				return err
			}
			return os.Chtimes(p, fi.ModTime(), fi.ModTime())
		}, "a/b/two"), `"a/b/two" has other bytes`, nil},
		{"a length", at(func(p string) error { return os.Truncate(p, 2) }, "a/b/two"), `"a/b/two" has 2 bytes, not 3`, []string{"times of files"}},
		{"a type", at(func(p string) error {
			if err := os.Remove(p); err != nil {
				return err
			}
			return os.Mkdir(p, 0o755)
		}, "a/b/two"), `"a/b/two" is of another type`, []string{"times of directories"}},
		{"where a link leads", at(func(p string) error {
			if err := os.Remove(p); err != nil {
				return err
			}
			return os.Symlink("two", p)
		}, "a/link"), `"a/link" leads elsewhere`, []string{"times of directories", "times of links"}},
		{"a mode", at(func(p string) error { return os.Chmod(p, 0o640) }, "a/b/two"), "", []string{"modes of files"}},
		{"a time", at(func(p string) error { return os.Chtimes(p, second, second) }, "a/b/two"), "", []string{"times of files"}},
		{"a hard link that became a copy", at(func(p string) error {
			fi, _ := os.Stat(p)
			data, _ := os.ReadFile(p)
			if err := os.Remove(p); err != nil {
				return err
			}
			if err := os.WriteFile(p, data, 0o644); err != nil {
				return err
			}
			return os.Chtimes(p, fi.ModTime(), fi.ModTime())
		}, "a/uno"), "", []string{"hard links", "times of directories"}},
		{"a hole that was filled", at(func(p string) error {
			data, _ := os.ReadFile(p)
			return os.WriteFile(p, data, 0o644)
		}, "a/hole"), "", []string{"holes", "times of files"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := plant(t)
			got := twin(t, want)
			must(t, tt.do(got))
			d, err := compare(t.Context(), want, got)
			must(t, err)
			wrong := strings.Join(d.wrong, "; ")
			// How fine a clock is depends on the file system.
			lost := slices.DeleteFunc(slices.Sorted(maps.Keys(d.lost)), func(s string) bool { return strings.HasPrefix(s, "fractions") })
			for _, l := range tt.lost {
				if strings.HasPrefix(l, "times of ") && !slices.Contains(lost, l) {
					lost = append(lost, l) // a change within a second of the making
				}
			}
			slices.Sort(lost)
			if wrong != tt.wrong || !slices.Equal(lost, tt.lost) {
				t.Errorf("wrong: %q, lost: %q; want %q, %q", wrong, lost, tt.wrong, tt.lost)
			}
			if (d.err() == nil) != (tt.wrong == "") {
				t.Errorf("error is %v", d.err())
			}
			must(t, mirror(t.Context(), want, got))
			d, err = compare(t.Context(), want, got)
			must(t, err)
			delete(d.lost, "hard links") // mirror copies them
			delete(d.lost, "holes")
			if len(d.wrong) > 0 || len(d.lost) > 0 {
				t.Errorf("after mirror: wrong %q, lost %v", d.wrong, d.lost)
			}
		})
	}
}

func TestDifferIsAFewDifferencesAndTheSameEachTime(t *testing.T) {
	dir := t.TempDir()
	must(t, tinyFiles(500).build(t.Context(), dir))
	a, b := twin(t, dir), twin(t, dir)
	must(t, differ(a, 5))
	must(t, differ(b, 5))
	d, err := compare(t.Context(), a, b)
	must(t, err)
	if len(d.wrong) > 0 {
		t.Errorf("twice the same seed: %q", d.wrong)
	}
	d, err = compare(t.Context(), dir, a)
	must(t, err)
	count := map[string]int{}
	for _, w := range d.wrong {
		count[strings.TrimLeft(w[strings.LastIndex(w, `"`)+1:], " ")]++
	}
	want := map[string]int{"has other bytes": 5, "is missing": 4, "should not be there": 4}
	if !maps.Equal(count, want) {
		t.Errorf("it differs so: %v, want %v", count, want)
	}
}

func TestTouchChangesTimesAndNothingElse(t *testing.T) {
	dir := plant(t)
	other := twin(t, dir)
	before := map[string]time.Time{}
	all, err := files(other)
	must(t, err)
	for round := range 2 {
		must(t, touch(other, round))
		for _, path := range all {
			fi, err := os.Stat(path)
			must(t, err)
			if fi.ModTime().Equal(before[path]) {
				t.Errorf("round %d: %s has its old time", round, path)
			}
			before[path] = fi.ModTime()
		}
	}
	d, err := compare(t.Context(), dir, other)
	must(t, err)
	if len(d.wrong) > 0 || len(d.lost) != 1 || d.lost["times of files"] != len(all) {
		t.Errorf("wrong: %q, lost: %v; want the times of %d files", d.wrong, d.lost, len(all))
	}
}

func TestFactsOfATree(t *testing.T) {
	f, err := measureTree(plant(t))
	must(t, err)
	if f.Files != 4 || f.Dirs != 3 || f.Other != 1 || f.Bytes != 2*200_000+3+4<<20 {
		t.Errorf("facts are %+v", f)
	}
	if f.Disk > 1<<20 {
		t.Errorf("%d bytes on disk: the hole was counted", f.Disk)
	}
}

func TestWarmReadsWhatIsThereAndForgivesWhatIsNot(t *testing.T) {
	dir := plant(t)
	must(t, warm(t.Context(), dir))
	if err := warm(t.Context(), filepath.Join(dir, "none")); err == nil {
		t.Error("there is nothing to read, and no error")
	}
}
