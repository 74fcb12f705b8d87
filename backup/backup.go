// Package backup turns a source into a snapshot.
//
// The agent walks and reads; this package decides what must be read, keeps the
// entries in order while files finish out of order, and hands everything to a
// [repo.Writer]. It never reads the repository's trees, so a host whose key
// can only add is as fast as any.
//
// The path of a byte: agent.Client calls [run.Entries] with what a walk found;
// what the stat cache knows unchanged is not read. Names of chunks come to
// [run.Offers], those the repository lacks to [run.Box], and the last word on
// a file to [run.File]. Finished entries leave the window in walk order into
// the tree and the next stat cache.
package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"orlop/agent"
	"orlop/id"
	"orlop/local"
	"orlop/repo"
	"orlop/snapshot"
)

// A Source is what to back up and where the agent sees it.
type Source struct {
	snapshot.Source
	Root          string // path of its root directory, as the agent sees it
	ReadOnlyMount bool   // the agent sees it through a read-only mount
}

// cacheName tells volumes of the same name on two engines apart.
func (s *Source) cacheName() string {
	return s.Source.String() + " " + s.EngineID + s.MachineID
}

// Options are what a user can choose for one backup.
type Options struct {
	ReadAll     bool     // believe no stat cache
	Tags        []string // kept with the snapshot
	Version     string   // of the program
	Consistency string   // how the source was held still
	Progress    func(Progress)
}

// Progress is how far a backup has come.
type Progress struct {
	Files, Bytes           uint64 // seen so far, and done with
	FilesBefore            uint64 // in the previous snapshot; 0 if not known
	BytesBefore            uint64
	BytesRead, BytesStored uint64
}

// A Summary is what a backup did. Files are all entries but directories.
type Summary struct {
	Snapshot id.Snapshot
	Parent   id.Snapshot // zero if there is none
	Session  id.Session

	FilesNew, FilesChanged, FilesUnmodified uint64
	Dirs                                    uint64
	Bytes                                   uint64 // logical size of all files
	BytesRead                               uint64 // file content read
	BytesNew                                uint64 // raw size of blobs the repository did not have
	BytesStored                             uint64 // added to the store

	SkippedCount, TornCount uint64
	Skipped, Torn           []snapshot.Problem // the first of them
	Duration                time.Duration
}

// Files counts everything in the snapshot that is not a directory.
func (s *Summary) Files() uint64 { return s.FilesNew + s.FilesChanged + s.FilesUnmodified }

// Partial reports whether something of the source is not in the snapshot as
// it was on disk.
func (s *Summary) Partial() bool { return s.SkippedCount+s.TornCount > 0 }

// ErrIncomplete is returned for a source into which a restore began that did not
// end. A snapshot of that would pass for one of the source.
var ErrIncomplete = errors.New("a restore into it did not end: " + agent.MarkerName + " is there")

// maxTags is how many tags a snapshot bears. It is asked before anything is
// read, not when all is done.
const maxTags = 1000

// fenceTries is how often a backup begins again after a prune took it for
// dead. That takes hours of standstill each time.
const fenceTries = 3

// Run backs up src and returns what it did. An error means that there is no
// snapshot; files that could not be read are no error, they are in the summary.
func Run(ctx context.Context, r *repo.Repo, c *agent.Client, src Source, opt Options) (*Summary, error) {
	for try := 1; ; try++ {
		s, err := once(ctx, r, c, src, opt)
		if err == nil || !errors.Is(err, repo.ErrFenced) || try == fenceTries {
			return s, err
		}
	}
}

func once(ctx context.Context, r *repo.Repo, c *agent.Client, src Source, opt Options) (_ *Summary, err error) {
	started := time.Now()
	if n := len(opt.Tags); n > maxTags {
		return nil, fmt.Errorf("%d tags are too many: %d are kept", n, maxTags)
	}
	w, err := r.NewWriter(ctx)
	if err != nil {
		return nil, err
	}
	defer w.Leave(ctx)

	b, err := newRun(ctx, r, w, src, opt)
	if err != nil {
		return nil, err
	}
	defer b.close()

	sealer := r.Sealer()
	totals, err := c.Backup(ctx, agent.BackupRequest{
		Root:          src.Root,
		Chunk:         r.Config().Chunk,
		ChunkSecret:   sealer.ChunkSecret(),
		NameKey:       sealer.NameKey(),
		ReadOnlyMount: src.ReadOnlyMount,
	}, b)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", src.Source, err)
	}
	b.sum.BytesRead = totals.BytesRead
	b.problems(totals)
	if b.window.len() > 0 {
		return nil, fmt.Errorf("read %s: %d entries were never finished", src.Source, b.window.len())
	}
	root, err := b.tree.Finish(ctx)
	if err != nil {
		return nil, fmt.Errorf("write the tree of %s: %w", src.Source, err)
	}

	s := &b.made
	s.Source = src.Source
	s.Started, s.Finished = snapshot.FromGo(started), snapshot.FromGo(time.Now())
	s.Root, s.Totals = root, b.totals
	s.Previous, s.Sequence = b.head.Snapshot, b.head.Sequence+1
	s.Tags, s.Consistency, s.Version = opt.Tags, opt.Consistency, opt.Version
	s.ClassRules = r.Config().ClassRules
	s.Partial = s.SkippedCount+s.TornCount > 0
	name, err := w.Commit(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("store the snapshot of %s: %w", src.Source, err)
	}
	// The stat cache is only believed together with a snapshot that exists. If
	// it cannot be kept, the next run reads everything and stores nothing.
	if err := b.stats.Commit(local.Head{
		Snapshot: name, Session: w.Session(), Sequence: s.Sequence, Root: root, Totals: b.totals, Time: s.Finished,
	}); err != nil {
		b.log.Debug("the stat cache could not be kept", "source", src.Source.String(), "error", err)
	}
	st := w.Stats()
	b.sum.Snapshot, b.sum.Parent, b.sum.Session = name, b.head.Snapshot, w.Session()
	b.sum.BytesNew, b.sum.BytesStored = st.Raw, st.Stored
	b.sum.Skipped, b.sum.SkippedCount = s.Skipped, s.SkippedCount
	b.sum.Torn, b.sum.TornCount = s.Torn, s.TornCount
	b.sum.Bytes, b.sum.Dirs = b.totals.Bytes, b.totals.Dirs
	b.sum.Duration = time.Since(started)
	return &b.sum, nil
}
