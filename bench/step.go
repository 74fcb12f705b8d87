//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
)

// A step is one thing that a tool is asked to do.
type step string

// The steps, in the order in which they are done.
const (
	first     step = "first"
	unchanged step = "unchanged"
	changed   step = "changed"
	touched   step = "touched"
	check     step = "check"
	restore   step = "restore"
	update    step = "update"
)

var steps = []step{first, unchanged, changed, touched, check, restore, update}

var aboutStep = map[step]string{
	first:     "first backup, into an empty repository, with caches that know nothing",
	unchanged: "backup of what has not changed since the last one",
	changed:   "backup after a change",
	touched:   "backup after every file was given another modification time, and nothing else",
	check:     "check of the whole repository, all data read",
	restore:   "restore of the newest snapshot into an empty place",
	update:    "restore of the newest snapshot over a copy that differs a little",
}

func (s step) isBackup() bool {
	return s == first || s == unchanged || s == changed || s == touched
}

// floor names the floor that a step is compared with: what writes as much as a
// first backup or a restore; what reads as much as a backup that cannot know
// that nothing changed, or a check; what asks as much as one that can.
func (s step) floor() string {
	switch s {
	case first, restore, update:
		return "cp -a"
	case unchanged:
		return "find"
	}
	return "cat"
}

// chosen reads a list of names with commas between them. An unknown one is an
// error that lists those there are. No list at all is nil.
func chosen[T ~string](flag, list string, known []T) ([]T, error) {
	if list == "" {
		return nil, nil
	}
	var names []T
	for name := range strings.SplitSeq(list, ",") {
		switch n := T(strings.TrimSpace(name)); {
		case n == "all":
			return known, nil
		case !slices.Contains(known, n):
			all := make([]string, len(known))
			for i, k := range known {
				all[i] = string(k)
			}
			return nil, fmt.Errorf("-%s: %q is none of %s, all", flag, n, strings.Join(all, ", "))
		default:
			names = append(names, n)
		}
	}
	// In the order of known, each once.
	return slices.DeleteFunc(slices.Clone(known), func(n T) bool { return !slices.Contains(names, n) }), nil
}
