package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"orlop/agent"
	"orlop/backup"
	"orlop/docker"
	"orlop/id"
	"orlop/local"
	"orlop/repo"
	"orlop/snapshot"
)

// backupFlags are what the user chose.
type backupFlags struct {
	paths   []string
	tags    []string
	readAll bool
	helperFlags
}

// helperFlags say how to reach volumes.
type helperFlags struct {
	weakSandbox bool
	transport   string
}

func (f *helperFlags) add(c *cobra.Command) {
	c.Flags().BoolVar(&f.weakSandbox, "weak-sandbox", false, "accept a Docker engine that cannot confine system calls")
	// For tests, and for an engine where the choice goes wrong.
	c.Flags().StringVar(&f.transport, "transport", "auto", "auto or stdio")
	_ = c.Flags().MarkHidden("transport")
}

func (f *helperFlags) check() error {
	if f.transport != "auto" && f.transport != agent.TransportStdio {
		return usagef("--transport is auto or stdio, not %q", f.transport)
	}
	return nil
}

func (f *helperFlags) helper(mode docker.Mode, run id.Session, names ...string) docker.HelperConfig {
	return docker.HelperConfig{
		Volumes: names, Mode: mode, Run: run, WeakSandbox: f.weakSandbox, NoSocket: f.transport == agent.TransportStdio,
	}
}

func (a *app) backupCommand() *cobra.Command {
	var f backupFlags
	c := &cobra.Command{
		Use:   "backup [VOLUME...] [--path DIR]",
		Short: "Back up volumes and directories",
		Long: `Backup makes a snapshot of each volume, and of each directory given with --path.
Only what changed since the last one is read, only what the repository has never
seen is stored, and every snapshot restores as if it were a full backup.

It reads volumes while they are in use. A file that changes while it is read is
read again, and if that does not help it is listed and the exit code is 3.`,
		Example: `  orlop backup pgdata uploads
  orlop backup --path /srv/wiki
  orlop backup shop/db --tag before-upgrade --json`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args)+len(f.paths) == 0 {
				return hint(usagef("nothing to back up was given"), "name volumes, or directories with --path; \"docker volume ls\" lists the volumes")
			}
			return a.backup(c.Context(), args, f)
		},
		ValidArgsFunction: a.complete(everyArgument, a.volumeNames),
	}
	c.Flags().StringArrayVar(&f.paths, "path", nil, "directory `DIR` of this host to back up (can be repeated)")
	c.Flags().StringArrayVar(&f.tags, "tag", nil, "`NOTE` to keep with the snapshots (can be repeated)")
	c.Flags().BoolVar(&f.readAll, "read-all", false, "read every file, also those that look unchanged")
	f.add(c)
	return c
}

func (a *app) backup(ctx context.Context, volumes []string, f backupFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	r, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	a.remind(r)

	// Everything is found before anything is read: a misspelt name should not
	// be told after an hour.
	paths, err := pathSources(f.paths)
	if err != nil {
		return err
	}
	a.warnOfItself(paths)
	v, err := a.openVolumes(ctx, r, volumes, f.helperFlags)
	if err != nil {
		return err
	}
	defer v.close()

	b := &backupRun{app: a, repo: r, opt: backup.Options{ReadAll: f.readAll, Tags: f.tags, Version: version, Consistency: "live"}}
	for _, src := range paths {
		b.one(ctx, src, func() (*reader, error) {
			c, err := inProcess(ctx)
			if err != nil {
				return nil, err
			}
			return &reader{c, src.Root, func(error) { _ = c.Close() }}, nil
		})
	}
	for i := range v.volumes {
		b.one(ctx, v.source(i), func() (*reader, error) { return v.reader(ctx, i) })
	}
	return b.result(ctx)
}

// remind tells of a key that exists once, as long as it was never copied.
func (a *app) remind(r *repo.Repo) {
	if _, err := os.Lstat(keyPath(r.ID())); err == nil && !r.Local().Mark(keyExported) {
		a.say("note: the key of this repository is on this machine only; \"orlop key export\" prints it for safe keeping")
	}
}

// warnOfItself tells of a directory that holds the repository: each backup
// would store the last one again.
func (a *app) warnOfItself(paths []backup.Source) {
	where, err := a.repository()
	if err != nil {
		return
	}
	if real, err := filepath.EvalSymlinks(where); err == nil {
		where = real
	}
	for _, p := range paths {
		if in, err := filepath.Rel(p.Root, where); err == nil && in != ".." && !strings.HasPrefix(in, "../") {
			a.warn("the repository is in %s: each backup of that stores the ones before it again; keep it elsewhere", p.Name)
		}
	}
}

// pathSources checks the directories to back up.
func pathSources(paths []string) ([]backup.Source, error) {
	var sources []backup.Source
	host, _ := os.Hostname()
	for _, p := range paths {
		abs, err := filepath.Abs(p)
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", p, err)
		}
		fi, err := os.Stat(abs)
		if err != nil {
			return nil, fmt.Errorf("back up %s: %w", p, err)
		}
		if !fi.IsDir() {
			return nil, usagef("%s is not a directory", p)
		}
		// The agent follows no link; the one that the user named is meant.
		root, err := filepath.EvalSymlinks(abs)
		if err != nil {
			return nil, fmt.Errorf("back up %s: %w", p, err)
		}
		sources = append(sources, backup.Source{
			Source: snapshot.Source{Kind: snapshot.Directory, Name: abs, Host: host, MachineID: machineID()},
			Root:   root,
		})
	}
	return sources, nil
}

// machineID tells hosts of the same name apart; "" where there is none.
func machineID() string {
	data, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// volumes are the volumes of one command and the helpers that reach them.
type volumes struct {
	a        *app
	engine   *docker.Engine
	run      *local.Run
	runID    id.Session
	flags    helperFlags
	volumes  []docker.Volume
	services []string       // of compose that use each, or ""
	shared   *docker.Helper // has all volumes, or nil
	apart    bool           // each volume gets a helper of its own
}

// openVolumes resolves names and removes what a killed run left behind.
func (a *app) openVolumes(ctx context.Context, r *repo.Repo, names []string, flags helperFlags) (*volumes, error) {
	v := &volumes{a: a, flags: flags}
	if len(names) == 0 {
		return v, nil
	}
	if err := v.open(ctx, r); err != nil {
		return nil, err
	}
	for _, name := range names {
		vol, err := v.engine.Volume(ctx, strings.TrimPrefix(name, string(snapshot.Volume)+":"))
		if err != nil {
			v.close()
			return nil, err
		}
		v.volumes = append(v.volumes, vol)
		v.services = append(v.services, v.service(ctx, vol))
	}
	return v, nil
}

func (v *volumes) open(ctx context.Context, r *repo.Repo) (err error) {
	if v.engine, err = docker.Open(ctx, v.a.log); err != nil {
		return err
	}
	cache, err := v.a.cache()
	if err != nil {
		v.close()
		return err
	}
	v.engine.Owner += " " + cache
	_, _ = rand.Read(v.runID[:])
	if v.run, err = r.Local().StartRun(v.runID); err != nil {
		v.close()
		return err
	}
	if n, err := v.engine.Reap(ctx, func(s id.Session) bool { return local.RunAlive(cache, s) }); err != nil {
		v.a.warn("helpers of an earlier run may be left: %v", err)
	} else if n > 0 {
		v.a.say("removed %s of an earlier run that was killed", plural(uint64(n), "helper container"))
	}
	return nil
}

func (v *volumes) close() {
	// The command may be over because of Ctrl-C; the helper goes all the same.
	if v.shared != nil {
		_ = v.shared.Close(context.Background())
		v.shared = nil
	}
	if v.run != nil {
		_ = v.run.Done()
	}
	if v.engine != nil {
		_ = v.engine.Close()
	}
}

// service returns the compose service that uses a volume, for people. That it
// cannot be found out is no reason not to back up.
func (v *volumes) service(ctx context.Context, vol docker.Volume) string {
	users, err := v.engine.Users(ctx, vol)
	if err != nil {
		v.a.log.Debug("who uses the volume is not known", "volume", vol.Name, "error", err)
	}
	for _, u := range users {
		if u.Service != "" && u.Project == vol.Project() {
			return u.Service
		}
	}
	return ""
}

func (v *volumes) source(i int) backup.Source {
	vol, info := v.volumes[i], v.engine.Info()
	s := snapshot.Source{
		Kind: snapshot.Volume, Name: vol.Name, Host: info.Name, EngineName: info.Name, EngineID: info.ID,
		Driver: vol.Driver, Options: vol.Options, Labels: vol.Labels, Project: vol.Project(), Service: v.services[i],
	}
	return backup.Source{Source: s, ReadOnlyMount: true}
}

// A reader is an agent that sees a source.
type reader struct {
	client  *agent.Client
	root    string      // of the source, as the agent sees it
	release func(error) // with what became of the backup
}

// reader starts an agent for volume i. The volumes of a command share one
// helper; when that does not start, because one of them cannot be mounted, or
// was lost, each gets its own.
func (v *volumes) reader(ctx context.Context, i int) (*reader, error) {
	if v.shared == nil && !v.apart && len(v.volumes) > 1 {
		var names []string
		for _, vol := range v.volumes {
			names = append(names, vol.Name)
		}
		h, err := v.start(ctx, names)
		var start *docker.StartError
		if err != nil && !errors.As(err, &start) {
			return nil, err
		}
		v.shared, v.apart = h, err != nil
	}
	if v.shared != nil {
		return &reader{v.shared.Client, v.shared.Root(i), func(err error) {
			if err != nil {
				_ = v.shared.Close(context.WithoutCancel(ctx))
				v.shared, v.apart = nil, true
			}
		}}, nil
	}
	h, err := v.start(ctx, []string{v.volumes[i].Name})
	if err != nil {
		return nil, err
	}
	return &reader{h.Client, h.Root(0), func(error) { _ = h.Close(context.WithoutCancel(ctx)) }}, nil
}

func (v *volumes) start(ctx context.Context, names []string) (*docker.Helper, error) {
	return v.engine.StartHelper(ctx, v.flags.helper(docker.Backup, v.runID, names...))
}

// A backupRun is the sources of one command, one after the other.
type backupRun struct {
	*app
	repo            *repo.Repo
	opt             backup.Options
	failed, partial int
	first           error
}

// one backs up one source and tells how that went. A source that fails does
// not keep the others from being backed up.
func (b *backupRun) one(ctx context.Context, src backup.Source, connect func() (*reader, error)) {
	if ctx.Err() != nil {
		return
	}
	s, transport, err := b.try(ctx, src, connect)
	if err != nil {
		b.failed++
		if b.first == nil {
			b.first = err
		} else if ctx.Err() == nil {
			b.tell(err, exitCode(ctx, err))
		}
		return
	}
	b.report(src, s, transport)
	if s.Partial() {
		b.partial++
	}
}

func (b *backupRun) try(ctx context.Context, src backup.Source, connect func() (*reader, error)) (*backup.Summary, string, error) {
	from, err := connect()
	if err != nil {
		return nil, "", fmt.Errorf("back up %s: %w", src.Source, err)
	}
	src.Root = from.root
	m := b.meter(src.Source.String(), "file")
	defer m.stop()
	opt := b.opt
	opt.Progress = func(p backup.Progress) { m.set(p.Files, p.Bytes, p.BytesBefore) }
	s, err := backup.Run(ctx, b.repo, from.client, src, opt)
	from.release(err)
	if errors.Is(err, backup.ErrIncomplete) {
		err = hint(err, "restore that again to finish it; or, if this is what you want, remove the file")
	}
	return s, from.client.Transport(), err
}

// result is the error the whole command ends with.
func (b *backupRun) result(ctx context.Context) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case b.first != nil:
		return b.first
	case b.partial > 0:
		return errPartial
	}
	return nil
}

// A summaryJSON is the last line of backup --json.
type summaryJSON struct {
	MessageType     string        `json:"message_type"`
	Source          string        `json:"source"`
	Snapshot        id.Snapshot   `json:"snapshot"`
	Parent          id.Snapshot   `json:"parent"`
	FilesTotal      uint64        `json:"files_total"`
	FilesNew        uint64        `json:"files_new"`
	FilesChanged    uint64        `json:"files_changed"`
	FilesUnmodified uint64        `json:"files_unmodified"`
	FilesSkipped    uint64        `json:"files_skipped"`
	FilesTorn       uint64        `json:"files_torn"`
	BytesTotal      uint64        `json:"bytes_total"`
	BytesRead       uint64        `json:"bytes_read"`
	BytesNew        uint64        `json:"bytes_new"`
	BytesStored     uint64        `json:"bytes_stored"`
	Duration        float64       `json:"duration_seconds"`
	Transport       string        `json:"transport"`
	Skipped         []problemJSON `json:"skipped,omitempty"`
	Torn            []problemJSON `json:"torn,omitempty"`
}

func (b *backupRun) report(src backup.Source, s *backup.Summary, transport string) {
	if s.Files() == 0 && s.Dirs <= 1 && !s.Partial() {
		b.warn("%s is empty", src.Source)
	}
	for _, p := range s.Skipped {
		b.warn("%s: skipped /%s: %s", src.Source, cleanName(p.Path), p.Reason)
	}
	for _, p := range s.Torn {
		b.warn("%s: changed while it was read: /%s: %s", src.Source, cleanName(p.Path), p.Reason)
	}
	if more := s.SkippedCount + s.TornCount - uint64(len(s.Skipped)+len(s.Torn)); more > 0 {
		b.warn("%s: and %s more", src.Source, plural(more, "file"))
	}
	if b.json {
		_ = b.printJSON(summaryJSON{
			MessageType: "summary", Source: src.Source.String(), Snapshot: s.Snapshot, Parent: s.Parent,
			FilesTotal: s.Files(), FilesNew: s.FilesNew, FilesChanged: s.FilesChanged, FilesUnmodified: s.FilesUnmodified,
			FilesSkipped: s.SkippedCount, FilesTorn: s.TornCount,
			BytesTotal: s.Bytes, BytesRead: s.BytesRead, BytesNew: s.BytesNew, BytesStored: s.BytesStored,
			Duration: s.Duration.Seconds(), Transport: transport, Skipped: problemsJSON(s.Skipped), Torn: problemsJSON(s.Torn),
		})
		return
	}
	partial := ""
	if s.Partial() {
		partial = fmt.Sprintf(", partial: %s skipped, %d torn", plural(s.SkippedCount, "file"), s.TornCount)
	}
	fmt.Fprintf(b.out, "%s  snapshot %s%s\n", cleanName(src.Source.String()), s.Snapshot.Short(), partial)
	b.say("  files  %s new, %s changed, %s unmodified", number(s.FilesNew), number(s.FilesChanged), number(s.FilesUnmodified))
	b.say("  bytes  %s in all, %s read, %s new, %s stored", size(s.Bytes), size(s.BytesRead), size(s.BytesNew), size(s.BytesStored))
	b.say("  took   %s", tookWith(s.Duration, s.BytesRead, "read"))
}
