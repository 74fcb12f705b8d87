package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"orlop/agent"
	"orlop/docker"
	"orlop/id"
	"orlop/repo"
	"orlop/restore"
	"orlop/snapshot"
)

type restoreFlags struct {
	to, target              string
	inPlace, keepExtra, dry bool
	helperFlags
}

func (a *app) restoreCommand() *cobra.Command {
	var f restoreFlags
	c := &cobra.Command{
		Use:   "restore SNAPSHOT [--to VOLUME | --target DIR]",
		Short: "Get a snapshot back, into a volume or a directory",
		Long: `Restore brings a snapshot back byte for byte, with owners, modes, times, links,
extended attributes and holes.

Without --to and --target it fills the volume that was backed up: if it is gone
it is made again with its driver, options and labels; if it is there it must be
empty. With --to it makes a new volume like the original, with --target it fills
a new or empty directory of this host.

With --in-place the volume, or the directory of --target, becomes what the
snapshot is, whatever is in it: only what differs is written, and what the
snapshot does not have goes away, unless there is --keep-extra. It is refused
while a container that runs uses the volume. --dry-run lists what would be done.

A restore that did not end is finished by the same command.

A snapshot is "latest", the beginning of an id, a source (its newest), or
SOURCE@TIME and SOURCE@AGE: the newest at or before then.`,
		Example: `  orlop restore pgdata --to pgdata-copy
  orlop restore pgdata@2026-11-20T14:00 --to pgdata-friday
  orlop restore pgdata
  orlop restore pgdata@1h --in-place
  orlop restore 1a2b3c4d --target /tmp/wiki`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(firstArgument, a.sourceNames, a.snapshotNames),
		RunE:              func(c *cobra.Command, args []string) error { return a.restore(c.Context(), args[0], f) },
	}
	c.Flags().StringVar(&f.to, "to", "", "new `VOLUME` to make and fill")
	c.Flags().StringVar(&f.target, "target", "", "new or empty directory `DIR` of this host to fill")
	c.Flags().BoolVar(&f.inPlace, "in-place", false, "make what is there what the snapshot is")
	c.Flags().BoolVar(&f.keepExtra, "keep-extra", false, "with --in-place: leave what the snapshot does not have")
	c.Flags().BoolVar(&f.dry, "dry-run", false, "with --in-place: list what would be done, and do nothing")
	f.add(c)
	return c
}

func (f *restoreFlags) check() error {
	switch {
	case f.to != "" && f.target != "":
		return usagef("--to and --target were both given")
	case f.inPlace && f.to != "":
		return hint(usagef("--to makes a new volume, and --in-place changes the one that was backed up"), "leave out one of them")
	case f.keepExtra && !f.inPlace:
		return usagef("--keep-extra is of use with --in-place only")
	case f.dry && !f.inPlace:
		return usagef("--dry-run is of use with --in-place only")
	}
	return f.helperFlags.check()
}

func (a *app) restore(ctx context.Context, reference string, f restoreFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	r, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	if f.target != "" {
		s, err := a.findSnapshot(ctx, r, reference, "")
		if err != nil {
			return err
		}
		return a.restoreDirectory(ctx, r, s, f)
	}
	// The engine comes first: a volume of its own is meant rather than one of
	// the same name on another.
	v := &volumes{a: a, flags: f.helperFlags}
	open := v.open(ctx, r)
	engine := ""
	if open == nil {
		defer v.close()
		engine = v.engine.Info().ID
	}
	s, err := a.findSnapshot(ctx, r, reference, engine)
	switch {
	case err == nil && f.to == "" && s.Source.Kind != snapshot.Volume:
		return hint(usagef("%s is not a volume", s.Source), "say where to restore it to with --target DIR or --to VOLUME")
	case open != nil:
		return open
	case err != nil:
		return err
	}
	if of := s.Source.EngineID; of != "" && of != engine {
		// Whoever writes an id means that snapshot; a name must not lead to
		// what somebody else has under it.
		if f.inPlace && !strings.HasPrefix(s.ID.String(), reference) {
			return hint(fmt.Errorf("this snapshot is of another engine, on %s", whereabouts(s.Source)),
				`"orlop restore %s --in-place" makes volume %s of this engine that, --to NEW a new volume`, s.ID.Short(), s.Source.Name)
		}
		a.say("this snapshot is of another engine, on %s", whereabouts(s.Source))
	}
	return a.restoreVolume(ctx, r, v, s, f)
}

// restoreDirectory fills a directory of this host.
func (a *app) restoreDirectory(ctx context.Context, r *repo.Repo, s repo.Snapshot, f restoreFlags) error {
	// Before the target is made: there may be no agent on this host.
	c, err := inProcess(ctx)
	if err != nil {
		return fmt.Errorf("restore into %s: %w", f.target, err)
	}
	defer c.Close()
	abs, err := filepath.Abs(f.target)
	if err != nil {
		return fmt.Errorf("find %s: %w", f.target, err)
	}
	if fi, err := os.Stat(abs); err == nil && !fi.IsDir() {
		return usagef("%s is not a directory", f.target)
	} else if errors.Is(err, fs.ErrNotExist) && f.inPlace {
		return hint(fmt.Errorf("%s is not there", f.target), "without --in-place it is made")
	} else if errors.Is(err, fs.ErrNotExist) {
		// 0700 until the root's own mode is set, at the end.
		if err := os.MkdirAll(abs, 0o700); err != nil {
			return fmt.Errorf("make the target: %w", err)
		}
	} else if err != nil {
		return fmt.Errorf("look at the target: %w", err)
	}
	root, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return fmt.Errorf("look at the target: %w", err)
	}
	if f.inPlace && !f.keepExtra && !f.dry {
		if err := a.nothingOfOurs(root); err != nil {
			return err
		}
	}
	there, err := c.Look(ctx, root)
	if err != nil {
		return fmt.Errorf("look at the target: %w", err)
	}
	p, err := a.manner(r, s, f, there, f.target)
	if errors.Is(err, errTaken) {
		return hint(fmt.Errorf("%s is not empty", f.target),
			"choose a new directory; or --in-place makes this one what the snapshot is")
	}
	if err != nil {
		return err
	}
	return a.fill(ctx, r, s, c, root, f.target, p)
}

// nothingOfOurs refuses to empty a directory that orlop itself needs, or that
// everything does.
func (a *app) nothingOfOurs(root string) error {
	where, err := a.repository()
	if err != nil {
		return err
	}
	ours := []string{where, configDir(), cacheDir()}
	if file := a.keyFile; file != "" {
		ours = append(ours, file)
	}
	for _, path := range ours {
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			continue // it is not there
		}
		if abs, err := filepath.Abs(real); err == nil {
			real = abs
		}
		if root == "/" || strings.HasPrefix(real+"/", root+"/") {
			return hint(fmt.Errorf("%s would be removed from %s: the snapshot does not have it", real, root),
				"restore to a directory of its own; --keep-extra leaves what is there")
		}
	}
	return nil
}

// errTaken is what manner finds in a place that is to be empty and is not.
var errTaken = errors.New("there are files")

// manner says how to restore to a place: nil if it is empty. What a restore of
// the same snapshot has left there is finished.
func (a *app) manner(r *repo.Repo, s repo.Snapshot, f restoreFlags, there agent.Target, where string) (*restore.InPlace, error) {
	begun := restore.ParseMarker(there.Marker)
	switch {
	case f.inPlace:
	case there.Empty:
		return nil, nil
	case there.Marker == "":
		return nil, errTaken
	case begun != s.ID:
		what := "another snapshot"
		if !begun.IsZero() {
			what = "snapshot " + begun.Short()
		}
		return nil, hint(fmt.Errorf("a restore of %s into %s did not end", what, where),
			"restore that again to finish it; or --in-place makes it what %s is", s.ID.Short())
	default:
		a.say("a restore into %s did not end: this finishes it", where)
	}
	key, err := r.NameKey(s)
	if err != nil {
		return nil, err
	}
	// What is finished was empty before: what else came is not ours to remove.
	return &restore.InPlace{NameKey: key, Keep: f.keepExtra || !f.inPlace, Dry: f.dry}, nil
}

// restoreVolume fills a volume: a new one, or the original if it is missing or
// empty, or whatever is in it.
func (a *app) restoreVolume(ctx context.Context, r *repo.Repo, v *volumes, s repo.Snapshot, f restoreFlags) (err error) {
	want := docker.Volume{Name: s.Source.Name, Driver: s.Source.Driver, Options: s.Source.Options, Labels: s.Source.Labels}
	if f.to != "" {
		want.Name = f.to
	}
	var vol docker.Volume
	created := false
	if f.inPlace {
		vol, err = v.engine.Volume(ctx, want.Name)
		if errors.Is(err, docker.ErrNoVolume) {
			err = hint(err, "without --in-place it is made")
		}
	} else {
		vol, created, err = v.ensure(ctx, want)
	}
	if err != nil {
		return err
	}
	if created {
		a.say("made volume %s", vol.Name)
		defer func() {
			// Half a volume must not pass for one. What was there before this
			// command is left alone.
			if err != nil && !errors.Is(err, errPartial) {
				if rerr := v.engine.RemoveVolume(context.WithoutCancel(ctx), vol.Name); rerr != nil {
					a.warn("volume %s is incomplete and could not be removed: %v", vol.Name, rerr)
				} else {
					a.say("removed the incomplete volume %s", vol.Name)
				}
			}
		}()
	}
	config := f.helper(docker.Restore, v.runID, vol.Name)
	config.Devices = s.Totals.Devices > 0
	if f.dry {
		config = f.helper(docker.Backup, v.runID, vol.Name) // which cannot write
	}
	h, err := v.engine.StartHelper(ctx, config)
	if err != nil {
		return fmt.Errorf("restore into volume %s: %w", vol.Name, err)
	}
	defer func() { _ = h.Close(context.WithoutCancel(ctx)) }()
	there, err := h.Client.Look(ctx, h.Root(0))
	if err != nil {
		return fmt.Errorf("look at volume %s: %w", vol.Name, err)
	}
	where := "volume " + vol.Name
	if f.to != "" && !created && there.Marker == "" {
		return hint(fmt.Errorf("%s exists", where), "choose a name that is not taken; only --in-place changes what is there")
	}
	p, err := a.manner(r, s, f, there, where)
	if errors.Is(err, errTaken) {
		return hint(fmt.Errorf("%s has files in it", where),
			`"orlop restore %s --to NEW" makes a new volume; --in-place makes this one what the snapshot is`, s.ID.Short())
	}
	if err == nil && p != nil && !p.Dry {
		err = v.unused(ctx, vol)
	}
	if err != nil {
		return err
	}
	return a.fill(ctx, r, s, h.Client, h.Root(0), where, p)
}

// unused refuses a volume that containers use right now.
func (v *volumes) unused(ctx context.Context, vol docker.Volume) error {
	users, err := v.engine.Users(ctx, vol)
	if err != nil {
		return err
	}
	var names []string
	for _, u := range users {
		switch u.State {
		case "created", "exited", "dead", "removing":
		default:
			names = append(names, u.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return hint(fmt.Errorf("volume %s is in use by %s", vol.Name, strings.Join(names, ", ")),
		`"docker stop %s" first, and start what was stopped afterwards`, strings.Join(names, " "))
}

// ensure returns the volume to fill, and whether it was made for that.
func (v *volumes) ensure(ctx context.Context, want docker.Volume) (docker.Volume, bool, error) {
	vol, err := v.engine.CreateVolume(ctx, want)
	switch {
	case err == nil:
		return vol, true, nil
	case !errors.Is(err, docker.ErrVolumeExists):
		return docker.Volume{}, false, err
	}
	vol, err = v.engine.Volume(ctx, want.Name)
	return vol, false, err
}

// fill restores a snapshot into a place, which is empty if p is nil, and tells
// how that went.
func (a *app) fill(ctx context.Context, r *repo.Repo, s repo.Snapshot, c *agent.Client, root, where string, p *restore.InPlace) error {
	m := a.meter(strings.TrimPrefix(where, "volume "), "file")
	if p != nil && p.Dry {
		p.Change = a.tellChange
	}
	sum, err := restore.Run(ctx, r, c, s.Root, root, restore.Options{
		Snapshot: s.ID,
		InPlace:  p,
		Progress: func(p restore.Progress) { m.set(p.Files, p.Bytes, p.BytesTotal) },
	})
	m.stop()
	if err != nil {
		if ctx.Err() == nil && (p == nil || !p.Dry) && !errors.Is(err, restore.ErrUntouched) {
			err = hint(fmt.Errorf("%s is incomplete: %w", where, err), "the same command finishes it, once the cause is gone")
		}
		return err
	}
	for _, p := range sum.Problems {
		a.warn("/%s: %s", cleanName(p.Path), p.Reason)
	}
	if more := sum.ProblemCount - uint64(len(sum.Problems)); more > 0 {
		a.warn("and %s more", plural(more, "problem"))
	}
	if a.json {
		out := restoreJSON{
			"summary", s.Source.String(), s.ID, where, sum.Files + sum.Others, sum.Dirs, sum.Bytes, sum.BytesWritten,
			sum.ProblemCount, problemsJSON(sum.Problems), sum.Duration.Seconds(), c.Transport(), nil,
		}
		if p != nil {
			out.InPlace = &inPlaceJSON{p.Dry, sum.Created, sum.Changed, sum.Unchanged, sum.Removed, sum.RemovedDirs}
		}
		if err := a.printJSON(out); err != nil {
			return err
		}
	} else {
		a.tellRestored(s, sum, where, p)
	}
	if sum.ProblemCount > 0 {
		return errPartial
	}
	return nil
}

func (a *app) tellRestored(s repo.Snapshot, sum *restore.Summary, where string, p *restore.InPlace) {
	did, written := "restored", "written"
	if p != nil && p.Dry {
		did, written = "would restore", "to be written"
	}
	fmt.Fprintf(a.out, "%s %s of %s into %s\n", did, s.ID.Short(), cleanName(s.Source.String()), where)
	a.say("  files  %s, %s", number(sum.Files+sum.Others), size(sum.Bytes))
	if p == nil {
		a.say("  took   %s", tookWith(sum.Duration, sum.BytesWritten, "written"))
	} else {
		a.say("         %s new, %s changed, %s unmodified, %s removed",
			number(sum.Created), number(sum.Changed), number(sum.Unchanged), number(sum.Removed))
		a.say("  bytes  %s %s", size(sum.BytesWritten), written)
		a.say("  took   %s", took(sum.Duration))
	}
	if s.Partial {
		a.warn("this snapshot is partial: %s not in it as they were on disk", plural(s.SkippedCount+s.TornCount, "file"))
	}
}

// The names of what a restore in place does.
var changeNames = map[agent.ChangeKind]string{agent.Created: "create", agent.Changed: "change", agent.Removed: "remove"}

// tellChange lists one thing that would be done.
func (a *app) tellChange(kind agent.ChangeKind, path string) {
	if a.json {
		_ = a.printJSON(changeJSON{"change", changeNames[kind], asPath(path)})
		return
	}
	fmt.Fprintf(a.out, "%s /%s\n", changeNames[kind], cleanName(path))
}

// A changeJSON is what restore --dry-run --json prints for each difference.
type changeJSON struct {
	MessageType string `json:"message_type"`
	Action      string `json:"action"`
	jsonPath
}

// A restoreJSON is what restore --json prints.
type restoreJSON struct {
	MessageType  string        `json:"message_type"`
	Source       string        `json:"source"`
	Snapshot     id.Snapshot   `json:"snapshot"`
	Target       string        `json:"target"`
	Files        uint64        `json:"files"`
	Dirs         uint64        `json:"dirs"`
	Bytes        uint64        `json:"bytes"`
	BytesWritten uint64        `json:"bytes_written"`
	Errors       uint64        `json:"errors"`
	Problems     []problemJSON `json:"problems,omitempty"`
	Duration     float64       `json:"duration_seconds"`
	Transport    string        `json:"transport"`
	InPlace      *inPlaceJSON  `json:"in_place,omitempty"`
}

// An inPlaceJSON is what is told besides of a restore in place.
type inPlaceJSON struct {
	DryRun          bool   `json:"dry_run"`
	FilesNew        uint64 `json:"files_new"`
	FilesChanged    uint64 `json:"files_changed"`
	FilesUnmodified uint64 `json:"files_unmodified"`
	FilesRemoved    uint64 `json:"files_removed"`
	DirsRemoved     uint64 `json:"dirs_removed"`
}
