package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"orlop/repo"
	"orlop/snapshot"
)

func (a *app) lsCommand() *cobra.Command {
	var long, recursive bool
	c := &cobra.Command{
		Use:   "ls SNAPSHOT [PATH]",
		Short: "List the files of a snapshot",
		Long: `Ls lists a directory of a snapshot, its root if there is no PATH, or one file.
A snapshot is "latest", the beginning of an id, a source (its newest), or
SOURCE@TIME and SOURCE@AGE: the newest at or before then.`,
		Example: `  orlop ls pgdata
  orlop ls latest /base/16384 -l
  orlop ls pgdata@3h --recursive`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: a.complete(firstArgument, a.sourceNames, a.snapshotNames),
		RunE: func(c *cobra.Command, args []string) error {
			path := ""
			if len(args) == 2 {
				path = args[1]
			}
			return a.ls(c.Context(), args[0], path, long, recursive)
		},
	}
	c.Flags().BoolVarP(&long, "long", "l", false, "show type, mode, owner, size and time")
	c.Flags().BoolVarP(&recursive, "recursive", "R", false, "go into directories")
	return c
}

// An entryJSON is an entry as --json shows it, one a line.
type entryJSON struct {
	jsonPath
	Type   string `json:"type"`
	Mode   string `json:"mode"`
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Size   uint64 `json:"size"`
	MTime  string `json:"mtime"`
	Target string `json:"target,omitempty"`
	Torn   bool   `json:"torn,omitempty"`
}

// A jsonPath is the path of something in a snapshot.
type jsonPath struct {
	Path string `json:"path"`
	// Bytes is the path when it is no UTF-8, which JSON cannot hold.
	Bytes []byte `json:"path_bytes,omitempty"`
}

func asPath(path string) jsonPath {
	p := jsonPath{Path: "/" + path}
	if !utf8.ValidString(path) {
		p.Bytes = []byte("/" + path)
	}
	return p
}

// A problemJSON is a file that is not, or not all, where it should be.
type problemJSON struct {
	jsonPath
	Reason string `json:"reason"`
}

func problemsJSON(list []snapshot.Problem) []problemJSON {
	var out []problemJSON
	for _, p := range list {
		out = append(out, problemJSON{asPath(p.Path), p.Reason})
	}
	return out
}

func (a *app) ls(ctx context.Context, reference, path string, long, recursive bool) error {
	r, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	s, err := a.findSnapshot(ctx, r, reference, "")
	if err != nil {
		return err
	}
	path = strings.Trim(path, "/")
	top, err := snapshot.Lookup(ctx, r, s.Root, path)
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, repo.ErrDamaged) {
		return hint(fmt.Errorf("/%s is not in snapshot %s", path, s.ID.Short()), `"orlop ls %s" lists its root`, s.ID.Short())
	}
	if err != nil {
		return err
	}
	if top.Type != snapshot.Dir {
		return a.printEntry(top, long)
	}
	entries := snapshot.List(ctx, r, s.Root, path)
	if recursive {
		entries = snapshot.Under(ctx, r, s.Root, path)
	}
	for e, err := range entries {
		if err != nil {
			return err
		}
		if recursive && e.Path() == path {
			continue
		}
		if err := a.printEntry(e, long); err != nil {
			return err
		}
	}
	return nil
}

// findSnapshot resolves a reference and makes the repository ready to read
// what the snapshot needs: snapshots are listed first, then the index.
func (a *app) findSnapshot(ctx context.Context, r *repo.Repo, reference, engine string) (repo.Snapshot, error) {
	all, err := a.allSnapshots(ctx, r)
	if err != nil {
		return repo.Snapshot{}, err
	}
	s, err := find(all, reference, here{machineID(), engine}, time.Now())
	if err != nil {
		return repo.Snapshot{}, err
	}
	return s, r.Refresh(ctx)
}

func (a *app) printEntry(e *snapshot.Entry, long bool) error {
	if a.json {
		return a.printJSON(entryJSON{
			jsonPath: asPath(e.Path()), Type: e.Type.String(), Mode: fmt.Sprintf("%04o", e.Mode), UID: e.UID, GID: e.GID,
			Size: e.Size, MTime: e.MTime.Go().UTC().Format(jsonTime), Target: e.Target, Torn: e.Torn,
		})
	}
	name := "/" + cleanName(e.Path())
	if e.Type == snapshot.Dir {
		name += "/"
	}
	if !long {
		_, err := fmt.Fprintln(a.out, name)
		return err
	}
	if e.Type == snapshot.Symlink {
		name += " -> " + cleanName(e.Target)
	}
	what := fmt.Sprint(e.Size)
	if e.Type == snapshot.Char || e.Type == snapshot.Block {
		what = fmt.Sprintf("%d, %d", e.Rdev>>32, uint32(e.Rdev))
	}
	_, err := fmt.Fprintf(a.out, "%s %6d %6d %12s %s %s\n", modeString(e), e.UID, e.GID, what, e.MTime.Go().Format(timeFormat), name)
	return err
}

// modeString spells type and mode as ls does.
func modeString(e *snapshot.Entry) string {
	b := []byte("?rwxrwxrwx")
	b[0] = map[snapshot.Type]byte{
		snapshot.File: '-', snapshot.Dir: 'd', snapshot.Symlink: 'l', snapshot.Char: 'c',
		snapshot.Block: 'b', snapshot.Fifo: 'p', snapshot.Socket: 's',
	}[e.Type]
	for i := range 9 {
		if e.Mode>>(8-i)&1 == 0 {
			b[i+1] = '-'
		}
	}
	for _, x := range []struct {
		bit  uint32
		at   int
		with byte
	}{{0o4000, 3, 's'}, {0o2000, 6, 's'}, {0o1000, 9, 't'}} {
		if e.Mode&x.bit != 0 {
			if b[x.at] == '-' {
				x.with -= 'a' - 'A'
			}
			b[x.at] = x.with
		}
	}
	return string(b)
}
