package restore

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"orlop/snapshot"
)

// entries makes entries of paths; those with a slash at their end are directories.
func entries(paths ...string) (all []*snapshot.Entry) {
	for _, p := range paths {
		e := &snapshot.Entry{Type: snapshot.File}
		if strings.HasSuffix(p, "/") {
			e.Type, p = snapshot.Dir, strings.TrimSuffix(p, "/")
		}
		e.Dir, e.Name = snapshot.SplitPath(p)
		all = append(all, e)
	}
	return all
}

func TestALineageKnowsWhoseChildrenThereCanBe(t *testing.T) {
	tests := []struct {
		name  string
		paths string
		want  string // + belongs, - does not
	}{
		{"files in directories", "/ a/ b c/ a/x c/d/ c/d/y", "+++++++"},
		{"below a file", "/ f good f/x f/x/y", "+++--"},
		{"below nothing", "/ a/ a/x b/x b/y", "+++--"},
		{"below what was left behind", "/ a/ b/ b/x a/x", "++++-"},
		{"twice", "/ a/ b/ a/x b/x a/y", "+++++-"},
		{"below a directory of nobody's", "/ a/ b/d/ b/d/x", "++--"},
		{"another of the same name", "/ a/ b/ a/c/ a/c/x b/c/x", "+++++-"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, got := newLineage(), ""
			for _, e := range entries(strings.Fields(tt.paths)...) {
				got += map[bool]string{true: "+", false: "-"}[l.has(e)]
			}
			if got != tt.want {
				t.Errorf("%s\n got %s\nwant %s", tt.paths, got, tt.want)
			}
		})
	}
}

func TestALineageThatLostEntriesBelievesAll(t *testing.T) {
	l := newLineage()
	l.lose()
	for _, e := range entries("a/b/c", "x/y/") {
		if !l.has(e) {
			t.Errorf("%s is refused", e.Path())
		}
	}
}

// Every entry of a tree that is whole belongs.
func TestEveryEntryOfATreeBelongs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dirs := []string{""}
		all := []*snapshot.Entry{{Type: snapshot.Dir}}
		for i := range rapid.IntRange(0, 60).Draw(t, "entries") {
			e := &snapshot.Entry{Type: snapshot.File, Dir: rapid.SampledFrom(dirs).Draw(t, "dir"), Name: fmt.Sprint(rapid.IntRange(0, 9).Draw(t, "name"), "-", i)}
			if rapid.Bool().Draw(t, "directory") {
				e.Type = snapshot.Dir
				dirs = append(dirs, e.Path())
			}
			all = append(all, e)
		}
		slices.SortFunc(all, func(a, b *snapshot.Entry) int { return snapshot.Compare(a.Dir, a.Name, b.Dir, b.Name) })
		l := newLineage()
		for _, e := range all {
			if !l.has(e) {
				t.Fatalf("%q is refused", e.Path())
			}
		}
	})
}
