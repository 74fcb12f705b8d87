//go:build linux

package main

import (
	"context"
	"fmt"
	"runtime"
)

// copying is cp -a of the source, and of that copy back.
type copying struct{ program }

// reading is cat of all files to nowhere, by as many processes as there are
// cores, each given up to 512 files at a time.
type reading struct{ program }

// looking is find, asking for what tells an unchanged file.
type looking struct{ program }

func newFloors() []tool {
	return []tool{
		copying{newProgram("cp -a", "cp")},
		reading{newProgram("cat", "cat")},
		looking{newProgram("find", "find")},
	}
}

func (copying) role() role { return floor }
func (reading) role() role { return floor }
func (looking) role() role { return floor }

func (t copying) version(ctx context.Context) (string, error) { return t.says(ctx, "--version") }
func (t reading) version(ctx context.Context) (string, error) { return t.says(ctx, "--version") }
func (t looking) version(ctx context.Context) (string, error) { return t.says(ctx, "--version") }

func (copying) setup(_ context.Context, s *site) error { return s.fresh() }
func (reading) setup(_ context.Context, s *site) error { return s.fresh() }
func (looking) setup(_ context.Context, s *site) error { return s.fresh() }

func (copying) told([]byte) told { return told{} }
func (reading) told([]byte) told { return told{} }
func (looking) told([]byte) told { return told{} }

func (copying) command(_ context.Context, st step, s *site) (command, error) {
	c := command{env: s.env()}
	switch st {
	case first:
		c.args = []string{"cp", "-a", s.source, s.repository()}
	case restore, update:
		// There is no need to have copied: the source is what would be copied back.
		c.blind = true
		c.args = []string{"cp", "-a", s.source + "/.", s.target}
	default:
		return c, errNotDone
	}
	return c, nil
}

func (reading) command(_ context.Context, st step, s *site) (command, error) {
	if st == restore || st == update {
		return command{}, errNotDone
	}
	line := fmt.Sprintf("find . -type f -print0 | xargs -0 -r -P %d -n 512 cat >/dev/null", runtime.NumCPU())
	return command{args: shell(line), dir: s.source, env: s.env()}, nil
}

func (looking) command(_ context.Context, st step, s *site) (command, error) {
	if st != unchanged && st != changed {
		return command{}, errNotDone
	}
	return command{args: shell(`find . -printf '%s %T@ %C@ %i\n' >/dev/null`), dir: s.source, env: s.env()}, nil
}
