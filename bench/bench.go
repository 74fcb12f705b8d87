//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
)

// A bench is one run of the harness.
type bench struct {
	work    string
	tools   []tool
	engine  *engine // nil if no volumes are measured
	runs    int
	budget  float64 // seconds of a tool in a cell, after which it is not run again there
	steps   []step  // nil: those of each corpus
	results *results
	say     func(format string, args ...any)
	keep    func() error // writes the results so far
}

// A place is a corpus while it is measured: the tree that all tools back up, and
// a site for each.
type place struct {
	*corpus
	dir      string // scratch
	source   string
	facts    facts  // of source, to begin with
	volume   string // whose directory source is, or ""
	version  int    // of source: counts its changes
	sites    map[string]*site
	seen     map[string]int // the version of source that a tool has backed up; 0 is none
	failed   map[string]bool
	copied   string // for updates, or "" before the first
	rotation int
}

// corpus measures the steps of one corpus.
func (b *bench) corpus(ctx context.Context, c *corpus) (err error) {
	todo := b.steps
	if todo == nil {
		todo = c.steps
	}
	built, err := c.ready(ctx, b.work, b.say)
	if err != nil {
		return err
	}
	p := &place{
		corpus: c, dir: filepath.Join(b.work, "run", c.name), version: 1,
		sites: map[string]*site{}, seen: map[string]int{}, failed: map[string]bool{},
	}
	defer os.RemoveAll(p.dir)
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	p.source = filepath.Join(p.dir, "source")
	if b.engine != nil {
		if p.volume, p.source, err = b.engine.create(ctx); err != nil {
			return err
		}
		defer b.engine.remove(context.WithoutCancel(ctx), p.volume)
	}
	if err := os.MkdirAll(p.source, 0o755); err != nil {
		return err
	}
	if _, err := run(ctx, command{args: []string{"cp", "-a", built + "/.", p.source}, env: os.Environ()}); err != nil {
		return err
	}
	f, err := measureTree(p.source)
	if err != nil {
		return err
	}
	p.facts = f
	b.say("corpus %s: %s: %v", c.name, c.about, f)
	b.warnOfSpace(c, f)
	b.results.Corpora = append(b.results.Corpora, corpusResult{c.name, c.about, f})
	for i, t := range b.tools {
		p.sites[t.name()] = &site{
			dir: filepath.Join(p.dir, fmt.Sprintf("tool-%d", i)), source: p.source, volume: p.volume, sparse: c.sparse,
		}
	}
	for _, st := range todo {
		if err := b.step(ctx, p, st); err != nil {
			return fmt.Errorf("%s %s: %w", c.name, st, err)
		}
		if err := b.keep(); err != nil {
			return err
		}
	}
	return nil
}

// warnOfSpace tells of a disk that may be too small: for a copy in each
// repository, as if nothing could be compressed, and two to restore.
func (b *bench) warnOfSpace(c *corpus, f facts) {
	copies := int64(2)
	for _, t := range b.tools {
		if t.role() != floor {
			copies++
		}
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(b.work, &fs); err != nil {
		return
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < copies*f.Disk {
		b.say("warning: corpus %s may need %s more below %s, where %s are free", c.name, size(copies*f.Disk), b.work, size(free))
	}
}

// step measures one step with all tools in turn, round by round.
func (b *bench) step(ctx context.Context, p *place, st step) error {
	cells := map[string]*cell{}
	for _, t := range b.tools {
		c := &cell{Corpus: p.name, Step: st, Tool: t.name(), Role: t.role(), Status: measured}
		cells[t.name()] = c
		b.results.Cells = append(b.results.Cells, c)
		_, err := t.command(ctx, st, p.probe(t))
		switch {
		case p.failed[t.name()]:
			c.Status, c.Reason = failed, "an earlier step failed"
		case errors.Is(err, errNotDone):
			c.Status, c.Reason = notDone, err.Error()
		case b.steps == nil && slices.Contains(p.alone, st) && t.role() != ours && t.role() != floor:
			c.Status, c.Reason = notDone, "takes long, and was not asked for by -step"
		}
	}
	for round := 1; round <= b.runs; round++ {
		if err := b.prepare(ctx, p, st, round, cells); err != nil {
			return err
		}
		p.rotation++
		for i := range b.tools {
			t := b.tools[(i+p.rotation)%len(b.tools)]
			c := cells[t.name()]
			if c.Status != measured || b.enough(c, round) {
				continue
			}
			u, err := b.once(ctx, p, st, round, t, c)
			var fault *faultError
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case errors.As(err, &fault):
				c.Status, c.Reason = failed, err.Error()
				// What comes next would start from something else than it should.
				p.failed[t.name()] = st.isBackup()
				b.say("%-9s %-9s %d/%d  %-13s FAILED: %v", p.name, st, round, b.runs, t.name(), err)
				continue
			case err != nil:
				return err
			}
			b.say("%-9s %-9s %d/%d  %-13s %8.2f s  cpu %8.2f s  memory %5d MB  written %6d MB%s",
				p.name, st, round, b.runs, t.name(), u.Wall, u.CPU(), u.Peak>>20, u.Written>>20, growth(st, u))
		}
	}
	return nil
}

// enough reports whether a cell needs no further round. An archive costs the same
// each time, and is no peer: after its first backups one run is enough.
func (b *bench) enough(c *cell, round int) bool {
	return round > 1 && (c.spent() > b.budget || c.Role == archive && c.Step != first && c.Step != restore)
}

// growth tells what a backup stored.
func growth(st step, s sample) string {
	if !st.isBackup() || s.Repository == 0 {
		return ""
	}
	return fmt.Sprintf("  stored %8.2f MB", float64(s.Stored)/1e6)
}

// probe returns a copy of a tool's site that it may count in.
func (p *place) probe(t tool) *site {
	s := *p.sites[t.name()]
	return &s
}

// prepare brings the source and all tools to where a round of a step begins.
func (b *bench) prepare(ctx context.Context, p *place, st step, round int, cells map[string]*cell) error {
	if st == first {
		return nil
	}
	for _, t := range b.tools {
		c := cells[t.name()]
		if t.role() == floor || t.role() == archive && st.isBackup() {
			continue // needs no backup before
		}
		if c.Status == measured && !b.enough(c, round) {
			var fault *faultError
			err := b.catchUp(ctx, p, t)
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case err != nil && !errors.As(err, &fault):
				return err
			case err != nil:
				c.Status, c.Reason = failed, err.Error()
				p.failed[t.name()] = true
			}
		}
	}
	switch st {
	case changed:
		p.version++
		return p.change(ctx, p.source, round)
	case touched:
		p.version++
		return touch(p.source, p.version)
	case update:
		if p.copied != "" {
			return nil
		}
		p.copied = filepath.Join(p.dir, "copy")
		_, err := run(ctx, command{args: []string{"cp", "-a", p.source, p.copied}, env: os.Environ()})
		return err
	}
	return nil
}

// catchUp has a tool back up the source as it is, if it has not, unmeasured.
func (b *bench) catchUp(ctx context.Context, p *place, t tool) error {
	s := p.sites[t.name()]
	if p.seen[t.name()] == p.version {
		return nil
	}
	st := unchanged
	if p.seen[t.name()] == 0 {
		st = first
		if err := t.setup(ctx, s); err != nil {
			return &faultError{err}
		}
	}
	c, err := t.command(ctx, st, s)
	if err != nil {
		return err
	}
	if err := s.forget(); err != nil {
		return err
	}
	if _, err := run(ctx, c); err != nil {
		return &faultError{err}
	}
	p.seen[t.name()] = p.version
	return nil
}

// A faultError is a tool's own: it failed, or what came of it is wrong. Any other
// error is the bench's, and ends it.
type faultError struct{ error }

// once measures a step of one tool, and looks at what came of it.
func (b *bench) once(ctx context.Context, p *place, st step, round int, t tool, c *cell) (sample, error) {
	s := p.sites[t.name()]
	a, err := b.aim(ctx, p, st, round, t)
	defer a.after()
	if err != nil {
		return sample{}, err
	}
	for _, dir := range a.read {
		if err := warm(ctx, dir); err != nil {
			return sample{}, fmt.Errorf("read %s beforehand: %w", dir, err)
		}
	}
	before := fileBytes(s.repository())
	cmd, err := t.command(ctx, st, s)
	if err != nil {
		return sample{}, err
	}
	syscall.Sync()
	debug.FreeOSMemory() // what comparing took: not to be done meanwhile

	need := int64(256 << 20) // a tool
	if st == first || st == restore || st == update {
		need += p.facts.Disk // and what it writes
	}
	if err := useMemory(need); err != nil {
		return sample{}, err
	}
	u, out, err := measure(ctx, cmd)
	if err != nil {
		return sample{}, &faultError{err}
	}
	sm := sample{usage: u, Repository: fileBytes(s.repository())}
	if st.isBackup() {
		sm.Stored = sm.Repository - before
		if t.role() == archive {
			sm.Stored = sm.Repository
		}
		sm.told = t.told(out)
		p.seen[t.name()] = p.version
	}
	if round == 1 {
		if err := b.verify(ctx, st, s, a, c); err != nil {
			return sample{}, err
		}
		if c.Blind = st == update && cmd.blind; c.Blind {
			c.Notes = append(c.Notes, "does not compare contents")
		}
	}
	c.Samples = append(c.Samples, sm)
	return sm, nil
}

// An aim is what a run reads and what should come of it.
type aim struct {
	read []string // directories, to be read beforehand

	// result is to be what reference is; "" is a volume yet to be made, or, if
	// there is no reference, nothing.
	result, reference string

	undo []func()
}

func (a *aim) after() {
	for _, f := range slices.Backward(a.undo) {
		f()
	}
}

// aim makes what one run of a step begins with: a fresh repository, caches as the
// last backup left them, an empty target, a copy that differs.
func (b *bench) aim(ctx context.Context, p *place, st step, round int, t tool) (*aim, error) {
	s := p.sites[t.name()]
	s.target, s.into = "", ""
	a := &aim{read: []string{p.source}}
	if t.role() != floor {
		switch {
		case st == first:
			if err := t.setup(ctx, s); err != nil {
				return a, &faultError{err}
			}
		case st.isBackup():
			a.read = append(a.read, s.repository(), s.home())
			if err := s.forget(); err != nil {
				return a, err
			}
		default:
			a.read = []string{s.repository(), s.home()}
			if err := s.reset(ctx); err != nil {
				return a, err
			}
		}
	} else if st == first {
		if err := s.fresh(); err != nil {
			return a, err
		}
		a.undo = append(a.undo, func() { _ = os.RemoveAll(s.dir) })
	}
	o, _ := t.(*orlop)
	throughVolume := o != nil && o.volume
	switch {
	case st == restore && throughVolume:
		s.into, a.reference = b.engine.fresh(), p.source
		into := s.into
		a.undo = append(a.undo, func() { b.engine.remove(context.WithoutCancel(ctx), into) })
	case st == restore:
		s.target, a.reference = filepath.Join(p.dir, "restored"), p.source
		a.result = s.target
		a.undo = append(a.undo, func() { _ = os.RemoveAll(a.result) })
		return a, os.Mkdir(s.target, 0o755)
	case st == update:
		a.result, a.reference = p.copied, p.source
		if err := mirror(ctx, p.source, p.copied); err != nil {
			return a, err
		}
		if throughVolume {
			// It restores into the volume itself. Whatever becomes of that, the
			// next one finds the source as it was.
			a.result, a.reference = p.source, p.copied
			a.undo = append(a.undo, func() { _ = mirror(context.WithoutCancel(ctx), p.copied, p.source) })
		}
		s.target, a.read = a.result, append(a.read, a.result)
		return a, differ(a.result, uint64(1000+round))
	}
	return a, nil
}

// verify compares what came of a restore with what should, and notes what the tool
// does not keep.
func (b *bench) verify(ctx context.Context, st step, s *site, a *aim, c *cell) (err error) {
	if a.reference == "" {
		return nil
	}
	if a.result == "" {
		if a.result, err = b.engine.directory(ctx, s.into); err != nil {
			return err
		}
	}
	d, err := compare(ctx, a.reference, a.result)
	if err != nil {
		return err
	}
	if st == update {
		c.extra(d)
	}
	if err := d.err(); err != nil {
		return &faultError{err}
	}
	for _, what := range slices.Sorted(maps.Keys(d.lost)) {
		c.Notes = append(c.Notes, fmt.Sprintf("%s: %d not as they were", what, d.lost[what]))
	}
	return nil
}

// extra forgives a tool that it does not delete what a snapshot does not have,
// and notes it.
func (c *cell) extra(d *difference) {
	n := len(d.wrong)
	d.wrong = slices.DeleteFunc(d.wrong, func(s string) bool { return strings.HasSuffix(s, "should not be there") })
	if len(d.wrong) < n {
		c.Notes = append(c.Notes, "does not delete what the snapshot does not have")
	}
}

// warmUp runs every step of every tool once on a few small files, unmeasured:
// programs are read, the helper's image is imported, and a tool that does not
// run here is known before the first hour is over.
func (b *bench) warmUp(ctx context.Context) error {
	aside := *b
	aside.results, aside.runs, aside.steps = &results{}, 1, steps
	aside.say = func(string, ...any) {}
	aside.keep = func() error { return nil }
	c := media(1 << 20)
	c.name = "warm-up"
	if err := aside.corpus(ctx, c); err != nil {
		return err
	}
	for _, c := range aside.results.Cells {
		if c.Status == failed {
			b.say("warning: %s, %s: %s", c.Tool, c.Step, c.Reason)
		}
	}
	return nil
}
