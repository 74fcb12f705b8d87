package restore

import (
	"hash/maphash"

	"orlop/snapshot"
)

// maxLineage bounds the directories whose content is still to come, of all
// levels, at 8 bytes each. A walk keeps fewer of them when it makes a tree.
const maxLineage = 8 << 20

// A lineage tells what is below a directory of the snapshot from what only says
// so. A snapshot made to do harm can have a file where it has a directory too:
// whichever comes last would win, and both would be called restored.
//
// Entries come in the order of the tree: all children of a directory, then what
// is below the first of them. So what has to be known is, for each level above an
// entry, which directories are still to be entered.
type lineage struct {
	seed   maphash.Seed
	levels []generation
	held   int
	broken bool
}

// A generation is the children of one directory.
type generation struct {
	path    string
	orphans bool     // nobody told of the directory itself
	dirs    []uint64 // hashes of the names of subdirectories to be entered, in order
}

func newLineage() *lineage { return &lineage{seed: maphash.MakeSeed()} }

// lose says that entries are missing. From now on everything is believed.
func (l *lineage) lose() { l.broken, l.levels = true, nil }

// has reports whether the directory that e is in was told of.
func (l *lineage) has(e *snapshot.Entry) bool {
	if l.broken || e.IsRoot() {
		return true
	}
	if n := len(l.levels); n == 0 || l.levels[n-1].path != e.Dir {
		l.enter(e.Dir)
	}
	top := &l.levels[len(l.levels)-1]
	if top.orphans {
		return false
	}
	if e.Type == snapshot.Dir {
		if l.held == maxLineage {
			return false
		}
		l.held++
		top.dirs = append(top.dirs, maphash.String(l.seed, e.Name))
	}
	return true
}

// enter begins the children of dir.
func (l *lineage) enter(dir string) {
	g := generation{path: dir}
	if dir != "" {
		parent, name := snapshot.SplitPath(dir)
		n := len(l.levels)
		for n > 0 && l.levels[n-1].path != parent {
			n--
			l.held -= len(l.levels[n].dirs)
		}
		l.levels = l.levels[:n]
		g.orphans = n == 0 || !l.take(&l.levels[n-1], maphash.String(l.seed, name))
	}
	l.levels = append(l.levels, g)
}

// take finds a subdirectory among those still to be entered. Those before it had
// no children.
func (l *lineage) take(g *generation, name uint64) bool {
	for len(g.dirs) > 0 {
		next := g.dirs[0]
		g.dirs = g.dirs[1:]
		l.held--
		if next == name {
			return true
		}
	}
	return false
}
