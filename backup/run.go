package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"

	"orlop/agent"
	"orlop/id"
	"orlop/local"
	"orlop/pack"
	"orlop/repo"
	"orlop/snapshot"
)

const (
	oldCuts  = 1 << 16 // old cuts sent with the answers to one batch
	maxLinks = 1 << 20 // files with names still to come, about 1 KB each

	// fewRefs are kept in memory with an entry. The refs of a file that has more
	// go into sheets of the next stat cache as they come: there are thousands of
	// entries in the window, and each may have millions of refs.
	fewRefs = 64
)

// A run is one backup under way. It implements [agent.Receiver]: Entries,
// Offers and File come from one goroutine, Box from several.
type run struct {
	r    *repo.Repo
	w    *repo.Writer
	opt  Options
	log  *slog.Logger
	tree *snapshot.Tree

	old   *local.Stats  // nil: nothing is known of before
	peek  *local.Record // the next of old
	head  local.Head
	stats *local.StatsWriter

	window window
	links  map[inode]*link
	group  *id.Keyed

	sum     Summary
	made    snapshot.Snapshot // what could not be kept, so far
	totals  snapshot.Totals
	reached Progress
}

// roles is how many streams an entry can have.
const roles = int(agent.Xattrs) + 1

// A slot is an entry between its place in the walk and its place in the tree.
type slot struct {
	stat     agent.Stat
	old      *local.Record // what it was before, if it was
	state    state
	entry    *snapshot.Entry
	refs     trail // of entry.Content, if they are not its Refs
	keep     bool  // its stat may be believed next time
	same     bool  // nothing changed
	streams  [roles]stream
	first    *link // this is the first path of a file with several
	linkTo   *link // this is another path of it
	reported bool
}

type state uint8

const (
	waiting state = iota // for its FILE
	ready                // entry is complete
	gone                 // it will not be in the snapshot
)

// A stream collects the refs of a file's content, map or xattrs.
type stream struct {
	attempt uint8
	builder *snapshot.ContentBuilder
	refs    trail // of content only
}

// A trail is the level-0 refs of a stream: a few of them, or the sheets of the
// next stat cache that hold them.
type trail struct {
	sheets []local.Sheet
	refs   []snapshot.Ref // those after the sheets
}

// keep adds a ref to a trail.
func (b *run) keep(t *trail, ref snapshot.Ref) {
	if t.refs = append(t.refs, ref); len(t.refs) == local.SheetRefs {
		t.sheets = append(t.sheets, b.stats.AddSheet(t.refs))
		t.refs = t.refs[:0]
	}
}

// fold ends a trail, and leaves no more than fewRefs of it in memory.
func (b *run) fold(t *trail) {
	if len(t.refs) > fewRefs || len(t.sheets) > 0 && len(t.refs) > 0 {
		t.sheets = append(t.sheets, b.stats.AddSheet(t.refs))
	}
	if len(t.sheets) > 0 {
		t.refs = nil
	}
}

type inode struct{ device, number uint64 }

// A link is a file with several names. Its first name in walk order is read;
// the others take what that found.
type link struct {
	group [16]byte
	path  string
	stat  agent.Stat
	seen  uint32
	slot  *slot // of the first name, once that left the window
	moved bool  // the first name was another file's when it was read
}

func newRun(ctx context.Context, r *repo.Repo, w *repo.Writer, src Source, opt Options) (*run, error) {
	b := &run{
		r: r, w: w, opt: opt, log: r.Log(),
		tree:  snapshot.NewTree(w, r.Sealer().Boundary()),
		links: map[inode]*link{},
		group: r.Sealer().Boundary(),
	}
	key := b.cacheKey()
	if old, ok := r.Local().OpenStats(src.cacheName(), key); ok {
		b.old, b.head = old, old.Head()
		// A snapshot that was forgotten is nobody's parent. What the cache knows
		// of the files holds all the same.
		listed, err := r.HasSnapshot(ctx, b.head.Session, b.head.Snapshot)
		if err != nil {
			old.Close()
			return nil, err
		}
		if !listed {
			b.head.Snapshot = id.Snapshot{}
		}
	} else if err := b.findParent(ctx, src); err != nil {
		return nil, err
	}
	b.reached.FilesBefore = b.head.Totals.Files + b.head.Totals.Others
	b.reached.BytesBefore = b.head.Totals.Bytes
	b.advance()
	var err error
	if b.stats, err = r.Local().NewStats(src.cacheName(), key); err != nil {
		b.close()
		return nil, fmt.Errorf("start a stat cache: %w", err)
	}
	return b, nil
}

// cacheKey covers all that cached names depend on.
func (b *run) cacheKey() [32]byte {
	c := b.r.Config()
	h := id.NewHash()
	fmt.Fprintf(h, "stats 1\n%s\n%d\n%+v\n%d\n", c.Repository, b.r.Sealer().Writer(), c.Chunk, c.ClassRules)
	return h.Sum()
}

// findParent asks the repository for the newest snapshot of the source, which
// this host does not remember. A put-only key cannot ask.
func (b *run) findParent(ctx context.Context, src Source) error {
	if _, err := b.r.Key(); err != nil {
		return nil
	}
	all, _, err := b.r.Snapshots(ctx)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(s repo.Snapshot) bool {
		return s.Source.String() != src.Source.String() || s.Source.EngineID != src.EngineID || s.Source.MachineID != src.MachineID
	})
	if s, ok := repo.Newest(all); ok {
		b.head = local.Head{Snapshot: s.ID, Session: s.Session, Sequence: s.Sequence, Totals: s.Totals}
	}
	return nil
}

func (b *run) close() {
	if b.old != nil {
		b.old.Close()
	}
	if b.stats != nil {
		b.stats.Abort() // after Commit it does nothing
	}
}

// advance moves on in the old stat cache. Damage ends the cache, not the run.
func (b *run) advance() {
	b.peek = nil
	if b.old == nil {
		return
	}
	rec, err := b.old.Next()
	if err == nil {
		b.peek = rec
	} else if !errors.Is(err, io.EOF) {
		b.log.Debug("the stat cache is damaged; files are read again", "error", err)
	}
}

// before returns what the stat cache knows of an entry. Entries are asked for
// in walk order, so both streams are read once.
func (b *run) before(s *agent.Stat) *local.Record {
	for b.peek != nil {
		switch c := snapshot.Compare(b.peek.Entry.Dir, b.peek.Entry.Name, s.Dir, s.Name); {
		case c > 0:
			return nil
		case c == 0:
			rec := b.peek
			b.advance()
			return rec
		}
		b.advance()
	}
	return nil
}

// unchanged reports whether s is what the record was made of. The agent wrote
// out dirty pages before it read, so a later store through mmap moved mtime.
func unchanged(s *agent.Stat, old *local.Record) bool {
	e := &old.Entry
	return s.Type == e.Type && s.Size == e.Size && s.MTime == e.MTime && s.CTime == old.CTime && s.Inode == old.Inode &&
		s.Mode == e.Mode && s.UID == e.UID && s.GID == e.GID && s.Rdev == e.Rdev && s.Problem == ""
}

// Entries implements [agent.Receiver].
func (b *run) Entries(ctx context.Context, first uint64, batch []agent.Stat) ([]agent.Answer, error) {
	answers := make([]agent.Answer, len(batch))
	cuts := oldCuts
	for i := range batch {
		if batch[i].Dir == "" && batch[i].Name == agent.MarkerName {
			return nil, ErrIncomplete
		}
		s := &slot{stat: batch[i]}
		s.old = b.before(&s.stat)
		b.window.push(s)
		if err := b.decide(ctx, s, &answers[i], cuts); err != nil {
			return nil, err
		}
		cuts -= len(answers[i].Old)
	}
	return answers, b.drain(ctx)
}

// decide says whether an entry must be read, and sends up to so many old cuts
// along.
func (b *run) decide(ctx context.Context, s *slot, a *agent.Answer, cuts int) error {
	isDir := s.stat.Type == snapshot.Dir
	if s.stat.Problem != "" {
		b.skip(s, s.stat.Problem)
		if !isDir {
			s.state = gone
			return nil
		}
	}
	if s.stat.Links > 1 && !isDir && b.joins(s) {
		return nil
	}
	if s.old != nil && !b.opt.ReadAll && unchanged(&s.stat, s.old) {
		ok, err := b.reuse(ctx, s)
		if err != nil || ok {
			return err
		}
	}
	a.Read = true
	if s.old != nil && !b.opt.ReadAll && s.stat.Type == snapshot.File && s.old.Entry.Class == 0 {
		a.Old = b.oldCuts(s.old, cuts)
	}
	return nil
}

// oldCuts returns the cuts that a file had, unless they are more than most. A
// file of blocks needs none.
func (b *run) oldCuts(rec *local.Record, most int) (all []snapshot.Ref) {
	if len(rec.Sheets)*local.SheetRefs > most {
		return nil
	}
	for refs, err := range b.level0(rec) {
		if err != nil {
			return nil
		}
		all = append(all, refs...)
	}
	if len(all) > most {
		return nil
	}
	return all
}

// joins makes s another name of a file that was seen before, or the first
// name of one that may have others.
func (b *run) joins(s *slot) bool {
	at := inode{s.stat.Device, s.stat.Inode}
	if l := b.links[at]; l != nil && sameFile(&l.stat, &s.stat) {
		l.seen++
		s.linkTo, s.state = l, ready
		return true
	}
	if len(b.links) == maxLinks {
		b.made.Skip(s.stat.Path(), "it has other names, and too many such files wait for theirs: it is kept as a file of its own")
		s.reported = true
		return false
	}
	sum := b.group.Sum("hard link\x00", s.stat.Path())
	l := &link{path: s.stat.Path(), stat: s.stat, seen: 1}
	copy(l.group[:], sum[:])
	b.links[at], s.first = l, l
	return false
}

// sameFile tells a further name of a file from a new file that got a freed
// inode number during the walk.
func sameFile(a, b *agent.Stat) bool {
	return a.Type == b.Type && a.Size == b.Size && a.MTime == b.MTime && a.CTime == b.CTime
}

// level0 yields the level-0 refs of a record's content, some at a time, each
// valid until the next.
func (b *run) level0(rec *local.Record) iter.Seq2[[]snapshot.Ref, error] {
	return func(yield func([]snapshot.Ref, error) bool) {
		if rec.Entry.Content.Level == 0 {
			yield(rec.Entry.Content.Refs, nil)
			return
		}
		for _, n := range rec.Sheets {
			refs, err := b.old.Sheet(n)
			if !yield(refs, err) || err != nil {
				return
			}
		}
		yield(rec.Refs, nil)
	}
}

// reuse takes an unchanged entry from the cache, unless a blob of it is no
// longer in the repository. Each data blob is looked up by itself: that a list
// of them is there proves nothing about what it lists.
func (b *run) reuse(ctx context.Context, s *slot) (bool, error) {
	e := s.old.Entry
	if e.Map.Level > 0 || e.XattrSet.Level > 0 {
		return false, nil // hardly ever: millions of holes
	}
	for _, refs := range [][]snapshot.Ref{e.Map.Refs, e.XattrSet.Refs} {
		if have, err := b.has(ctx, refs); err != nil || !have {
			return false, err
		}
	}
	if e.Content.Level == 0 {
		if have, err := b.has(ctx, e.Content.Refs); err != nil || !have {
			return false, err
		}
	} else {
		// The lists are made again; Save stores those that are gone.
		cb := snapshot.NewContentBuilder(b.w)
		var all trail
		for refs, err := range b.level0(s.old) {
			if err != nil {
				b.log.Debug("the stat cache is damaged; a file is read again", "path", e.Path(), "error", err)
				return false, nil
			}
			if have, err := b.has(ctx, refs); err != nil || !have {
				return false, err
			}
			for _, ref := range refs {
				if err := cb.Add(ctx, ref); err != nil {
					return false, err
				}
				b.keep(&all, ref)
			}
		}
		var err error
		if e.Content, err = cb.Finish(ctx); err != nil {
			return false, err
		}
		b.fold(&all)
		s.refs = all
	}
	s.entry, s.state, s.same, s.keep = &e, ready, true, true
	return true, nil
}

func (b *run) has(ctx context.Context, refs []snapshot.Ref) (bool, error) {
	for _, ref := range refs {
		if have, err := b.w.Has(ctx, ref.Name); err != nil || !have {
			return false, err
		}
	}
	return true, nil
}

// Offers implements [agent.Receiver].
func (b *run) Offers(ctx context.Context, offers []agent.Offer) ([]bool, error) {
	want := make([]bool, len(offers))
	for i, o := range offers {
		s := b.window.at(o.N)
		if s == nil || s.state != waiting {
			return nil, fmt.Errorf("entry %d was offered and is not being read", o.N)
		}
		st := &s.streams[o.Role]
		if st.builder == nil || st.attempt != o.Attempt {
			*st = stream{attempt: o.Attempt, builder: snapshot.NewContentBuilder(b.w)}
		}
		if err := st.builder.Add(ctx, o.Ref); err != nil {
			return nil, err
		}
		if o.Role == agent.Content {
			b.keep(&st.refs, o.Ref)
		}
		var err error
		if want[i], err = b.w.Claim(ctx, o.Ref.Name); err != nil {
			return nil, err
		}
		if o.Role == agent.Content {
			b.reached.BytesRead += o.Ref.Length
		}
	}
	b.progress()
	return want, nil
}

// Box implements [agent.Receiver].
func (b *run) Box(_ context.Context, x agent.Box) error {
	blobs := make([]pack.Blob, len(x.Blobs))
	for i, y := range x.Blobs {
		blobs[i] = pack.Blob{Name: y.Name, Kind: y.Kind, Length: y.Length}
	}
	return b.w.AddBox(x.Codec, x.Raw, x.Payload, blobs)
}

// File implements [agent.Receiver].
func (b *run) File(ctx context.Context, f *agent.File) error {
	s := b.window.at(f.N)
	if s == nil || s.state != waiting {
		return fmt.Errorf("entry %d was finished and is not being read", f.N)
	}
	if f.Outcome == agent.Vanished || f.Outcome == agent.Failed {
		b.skip(s, f.Reason)
		if s.stat.Type != snapshot.Dir {
			s.state = gone
			return b.drain(ctx)
		}
		// What is below a directory needs it, even if not all of it is known.
		s.entry, s.state = entryOf(&s.stat), ready
		return b.drain(ctx)
	}
	if l := s.first; l != nil {
		l.moved = f.Stat.Inode != l.stat.Inode || f.Stat.Device != l.stat.Device
	}
	s.stat = f.Stat
	e := entryOf(&s.stat)
	e.Class, e.Inline, e.Sparse, e.Extents = uint8(f.Class), f.Inline, f.Sparse, f.Extents
	e.Xattrs, e.Target = f.Xattrs, f.Target
	for role, into := range map[agent.Role]*snapshot.Content{
		agent.Content: &e.Content, agent.Map: &e.Map, agent.Xattrs: &e.XattrSet,
	} {
		st := &s.streams[role]
		if st.builder == nil || st.attempt != f.Attempt {
			continue
		}
		var err error
		if *into, err = st.builder.Finish(ctx); err != nil {
			return err
		}
	}
	if e.Content.Level > 0 {
		s.refs = s.streams[agent.Content].refs
		b.fold(&s.refs)
	}
	s.streams = [roles]stream{}
	s.keep = !f.Fresh && f.Outcome == agent.Whole && !s.reported
	if f.Outcome == agent.Torn {
		e.Torn = e.Type == snapshot.File
		b.torn(s, f.Reason)
	}
	s.entry, s.state = e, ready
	return b.drain(ctx)
}

// problems takes what the agent could not tell with an entry.
func (b *run) problems(t agent.Totals) {
	for _, p := range t.Problems {
		b.made.Skip(p.Path, p.Reason)
	}
	b.made.SkippedCount += t.ProblemCount - uint64(len(t.Problems))
}

func entryOf(s *agent.Stat) *snapshot.Entry {
	e := &snapshot.Entry{
		Dir: s.Dir, Name: s.Name, Type: s.Type, Mode: s.Mode, UID: s.UID, GID: s.GID, MTime: s.MTime, Size: s.Size,
	}
	if s.Type == snapshot.Char || s.Type == snapshot.Block {
		e.Rdev = s.Rdev
	}
	return e
}

func (b *run) skip(s *slot, reason string) {
	if s.reported {
		return
	}
	s.reported, s.keep = true, false
	b.made.Skip(s.stat.Path(), reason)
}

func (b *run) torn(s *slot, reason string) {
	s.reported = true
	b.made.Tear(s.stat.Path(), reason)
}

// drain moves finished entries, in walk order, out of the window.
func (b *run) drain(ctx context.Context) error {
	for {
		s := b.window.front()
		if s == nil || s.state == waiting {
			b.progress()
			return nil
		}
		b.window.pop()
		if s.first != nil {
			b.leaveLink(s)
		}
		if s.linkTo != nil && !b.takeLink(s) {
			continue
		}
		if s.state == gone {
			continue
		}
		if err := b.emit(ctx, s); err != nil {
			return err
		}
	}
}

// leaveLink lets the other names of a file take what its first name found.
func (b *run) leaveLink(s *slot) {
	l := s.first
	l.slot = s
	if s.state == ready && !l.moved {
		s.entry.Group = l.group
	}
	b.forgetLink(l)
}

// takeLink completes another name of a file that left the window before.
func (b *run) takeLink(s *slot) bool {
	l := s.linkTo
	b.forgetLink(l)
	if l.slot.state == gone || l.moved {
		b.skip(s, "it was the same file as "+l.path+", by which it could not be read")
		return false
	}
	e := *l.slot.entry
	e.Dir, e.Name = s.stat.Dir, s.stat.Name
	s.entry, s.refs = &e, l.slot.refs
	s.keep = l.slot.keep
	s.same = l.slot.same && s.old != nil && unchanged(&s.stat, s.old)
	return true
}

// forgetLink drops a file all of whose names were seen.
func (b *run) forgetLink(l *link) {
	if at := (inode{l.stat.Device, l.stat.Inode}); l.seen >= l.stat.Links && b.links[at] == l {
		delete(b.links, at)
	}
}

// emit puts an entry into the tree, the next stat cache and the counts.
func (b *run) emit(ctx context.Context, s *slot) error {
	e := s.entry
	if err := b.tree.Add(ctx, e); err != nil {
		return fmt.Errorf("%s: %w", e.Path(), err)
	}
	if len(s.refs.sheets) <= local.MaxSheets {
		rec := &local.Record{Entry: *e, CTime: s.stat.CTime, Inode: s.stat.Inode, Device: s.stat.Device}
		if !s.keep {
			rec.Inode = 0 // no file's: what is known serves to compare, not to be believed
		}
		rec.Sheets, rec.Refs = s.refs.sheets, s.refs.refs
		if err := b.stats.Add(rec); err != nil {
			return fmt.Errorf("write the stat cache: %w", err)
		}
	}
	switch e.Type {
	case snapshot.Dir:
		b.totals.Dirs++
		return nil
	case snapshot.File:
		b.totals.Files++
		b.totals.Bytes += e.Size
	case snapshot.Char, snapshot.Block:
		b.totals.Devices++
		b.totals.Others++
	default:
		b.totals.Others++
	}
	switch {
	case s.same, s.old != nil && sameEntry(e, &s.old.Entry):
		b.sum.FilesUnmodified++
	case s.old != nil:
		b.sum.FilesChanged++
	default:
		b.sum.FilesNew++
	}
	return nil
}

// sameEntry reports whether two entries of one path are the same in every way
// that is kept.
func sameEntry(a, b *snapshot.Entry) bool {
	pa, err := snapshot.AppendEntry(nil, a.Dir, a)
	if err != nil {
		return false
	}
	pb, err := snapshot.AppendEntry(nil, b.Dir, b)
	return err == nil && bytes.Equal(pa, pb)
}

func (b *run) progress() {
	if b.opt.Progress == nil {
		return
	}
	p := b.reached
	p.Files, p.Bytes = b.totals.Files+b.totals.Others, b.totals.Bytes
	p.BytesStored = b.w.Stats().Stored
	b.opt.Progress(p)
}

// A window holds the entries between the oldest unfinished one and the newest.
// The agent's client bounds it.
type window struct {
	first uint64 // ordinal of slots[head]
	head  int
	slots []*slot
}

func (w *window) len() int     { return len(w.slots) - w.head }
func (w *window) push(s *slot) { w.slots = append(w.slots, s) }

func (w *window) front() *slot {
	if w.len() == 0 {
		return nil
	}
	return w.slots[w.head]
}

func (w *window) pop() {
	w.slots[w.head] = nil
	w.head++
	w.first++
	if w.head > 1024 && w.head > len(w.slots)/2 {
		w.slots = append(w.slots[:0], w.slots[w.head:]...)
		w.head = 0
	}
}

// at returns the entry with ordinal n, or nil if it is not in the window.
func (w *window) at(n uint64) *slot {
	if n < w.first || n-w.first >= uint64(w.len()) {
		return nil
	}
	return w.slots[w.head+int(n-w.first)]
}
