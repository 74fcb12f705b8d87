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
	to, target string
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
a new or empty directory of this host. Nothing is ever overwritten.

A snapshot is "latest", the beginning of an id, a source (its newest), or
SOURCE@TIME and SOURCE@AGE: the newest at or before then.`,
		Example: `  orlop restore pgdata --to pgdata-copy
  orlop restore pgdata@2026-11-20T14:00 --to pgdata-friday
  orlop restore pgdata
  orlop restore 1a2b3c4d --target /tmp/wiki`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(firstArgument, a.sourceNames, a.snapshotNames),
		RunE:              func(c *cobra.Command, args []string) error { return a.restore(c.Context(), args[0], f) },
	}
	c.Flags().StringVar(&f.to, "to", "", "new `VOLUME` to make and fill")
	c.Flags().StringVar(&f.target, "target", "", "new or empty directory `DIR` of this host to fill")
	f.add(c)
	return c
}

func (a *app) restore(ctx context.Context, reference string, f restoreFlags) error {
	if f.to != "" && f.target != "" {
		return usagef("--to and --target were both given")
	}
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
		return a.restoreDirectory(ctx, r, s, f.target)
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
	return a.restoreVolume(ctx, r, v, s, f)
}

// restoreDirectory fills a directory of this host.
func (a *app) restoreDirectory(ctx context.Context, r *repo.Repo, s repo.Snapshot, target string) error {
	// Before the target is made: there may be no agent on this host.
	c, err := inProcess(ctx)
	if err != nil {
		return fmt.Errorf("restore into %s: %w", target, err)
	}
	defer c.Close()
	abs, err := filepath.Abs(target)
	if err != nil {
		return fmt.Errorf("find %s: %w", target, err)
	}
	if fi, err := os.Stat(abs); err == nil && !fi.IsDir() {
		return usagef("%s is not a directory", target)
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
	empty, err := c.Empty(ctx, root)
	if err != nil {
		return fmt.Errorf("look at the target: %w", err)
	}
	if !empty {
		return hint(fmt.Errorf("%s is not empty", target), "choose a new directory; restore overwrites nothing")
	}
	return a.fill(ctx, r, s, c, root, target)
}

// restoreVolume fills a volume: a new one, or the original if it is missing or
// empty.
func (a *app) restoreVolume(ctx context.Context, r *repo.Repo, v *volumes, s repo.Snapshot, f restoreFlags) (err error) {
	if of := s.Source.EngineID; of != "" && of != v.engine.Info().ID {
		a.say("this snapshot is of another engine, on %s", whereabouts(s.Source))
	}
	want := docker.Volume{Name: s.Source.Name, Driver: s.Source.Driver, Options: s.Source.Options, Labels: s.Source.Labels}
	if f.to != "" {
		want.Name = f.to
	}
	vol, created, err := v.ensure(ctx, want, f.to != "")
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
	h, err := v.engine.StartHelper(ctx, config)
	if err != nil {
		return fmt.Errorf("restore into volume %s: %w", vol.Name, err)
	}
	defer func() { _ = h.Close(context.WithoutCancel(ctx)) }()
	empty, err := h.Client.Empty(ctx, h.Root(0))
	if err != nil {
		return fmt.Errorf("look at volume %s: %w", vol.Name, err)
	}
	if !empty {
		return hint(fmt.Errorf("volume %s has files in it", vol.Name),
			`"orlop restore %s --to NEW" makes a new volume; to fill this one, empty it first`, s.ID.Short())
	}
	return a.fill(ctx, r, s, h.Client, h.Root(0), "volume "+vol.Name)
}

// ensure returns the volume to fill, and whether it was made for that.
func (v *volumes) ensure(ctx context.Context, want docker.Volume, mustBeNew bool) (docker.Volume, bool, error) {
	vol, err := v.engine.CreateVolume(ctx, want)
	switch {
	case err == nil:
		return vol, true, nil
	case !errors.Is(err, docker.ErrVolumeExists):
		return docker.Volume{}, false, err
	case mustBeNew:
		return docker.Volume{}, false, hint(fmt.Errorf("volume %s exists", want.Name), "choose a name that is not taken; restore overwrites nothing")
	}
	vol, err = v.engine.Volume(ctx, want.Name)
	return vol, false, err
}

// fill restores a snapshot into an empty place and tells how that went.
func (a *app) fill(ctx context.Context, r *repo.Repo, s repo.Snapshot, c *agent.Client, root, where string) error {
	m := a.meter(strings.TrimPrefix(where, "volume "), "file")
	sum, err := restore.Run(ctx, r, c, s.Root, root, restore.Options{
		Progress: func(p restore.Progress) { m.set(p.Files, p.Bytes, p.BytesTotal) },
	})
	m.stop()
	if err != nil {
		if ctx.Err() == nil {
			err = fmt.Errorf("%s is incomplete: %w", where, err)
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
		if err := a.printJSON(restoreJSON{
			"summary", s.Source.String(), s.ID, where, sum.Files + sum.Others, sum.Dirs, sum.Bytes, sum.BytesWritten,
			sum.ProblemCount, problemsJSON(sum.Problems), sum.Duration.Seconds(), c.Transport(),
		}); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.out, "restored %s of %s into %s\n", s.ID.Short(), cleanName(s.Source.String()), where)
		a.say("  files  %s, %s", number(sum.Files+sum.Others), size(sum.Bytes))
		a.say("  took   %s", tookWith(sum.Duration, sum.BytesWritten, "written"))
		if s.Partial {
			a.warn("this snapshot is partial: %s not in it as they were on disk", plural(s.SkippedCount+s.TornCount, "file"))
		}
	}
	if sum.ProblemCount > 0 {
		return errPartial
	}
	return nil
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
}
