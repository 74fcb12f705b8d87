package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"orlop/id"
	"orlop/repo"
	"orlop/snapshot"
)

func (a *app) snapshotsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "snapshots [SOURCE]",
		Short: "List the snapshots, oldest first",
		Long: `Snapshots lists what was backed up and when. SOURCE is a volume, project/volume as
compose calls it, or volume:NAME and path:/DIRECTORY spelled out.`,
		Example: `  orlop snapshots
  orlop snapshots pgdata
  orlop snapshots path:/srv/wiki --json`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.complete(firstArgument, a.sourceNames),
		RunE:              func(c *cobra.Command, args []string) error { return a.listSnapshots(c.Context(), args) },
	}
}

// A snapshotJSON is a snapshot as --json shows it.
type snapshotJSON struct {
	ID       id.Snapshot   `json:"id"`
	ShortID  string        `json:"short_id"`
	Time     string        `json:"time"`
	Source   string        `json:"source"`
	Host     string        `json:"host,omitempty"`
	EngineID string        `json:"engine_id,omitempty"`
	Machine  string        `json:"machine_id,omitempty"`
	Project  string        `json:"project,omitempty"`
	Previous id.Snapshot   `json:"previous"`
	Files    uint64        `json:"files"`
	Dirs     uint64        `json:"dirs"`
	Bytes    uint64        `json:"bytes"`
	Partial  bool          `json:"partial"`
	Skipped  []problemJSON `json:"skipped,omitempty"`
	Torn     []problemJSON `json:"torn,omitempty"`
	Tags     []string      `json:"tags"`
	Version  string        `json:"version,omitempty"`
}

const jsonTime = "2006-01-02T15:04:05.999999999Z07:00"

func asJSON(s repo.Snapshot) snapshotJSON {
	return snapshotJSON{
		ID: s.ID, ShortID: s.ID.Short(), Time: s.Started.Go().Format(jsonTime),
		Source: s.Source.String(), Host: s.Source.Host, EngineID: s.Source.EngineID, Machine: s.Source.MachineID, Project: s.Source.Project, Previous: s.Previous,
		Files: s.Totals.Files + s.Totals.Others, Dirs: s.Totals.Dirs, Bytes: s.Totals.Bytes,
		Partial: s.Partial, Skipped: problemsJSON(s.Skipped), Torn: problemsJSON(s.Torn), Tags: append([]string{}, s.Tags...), Version: s.Version,
	}
}

func (a *app) listSnapshots(ctx context.Context, args []string) error {
	r, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	all, broken, err := r.Snapshots(ctx)
	if err != nil {
		return err
	}
	for _, d := range broken {
		a.warn("%v", d)
	}
	if len(args) == 1 {
		of := ofSource(all, args[0])
		if len(of) == 0 && len(all) > 0 {
			return hint(fmt.Errorf("%q: no source of that name", args[0]), "%s", known(all))
		}
		all = of
	}
	if a.json {
		list := make([]snapshotJSON, 0, len(all))
		for _, s := range all {
			list = append(list, asJSON(s))
		}
		if err := a.printJSON(list); err != nil {
			return err
		}
	} else if err := a.printSnapshots(all); err != nil {
		return err
	}
	if len(broken) > 0 {
		return errFound
	}
	return nil
}

func (a *app) printSnapshots(all []repo.Snapshot) error {
	if len(all) == 0 {
		a.say(`no snapshots yet; "orlop backup" makes one`)
		return nil
	}
	t := plainTable("ID", "TIME", "SOURCE", "FILES", "SIZE", "")
	// Where a source is matters only if sources of several places are shown.
	places := map[snapshot.SourceKind]string{}
	several := map[snapshot.SourceKind]bool{}
	for _, s := range all {
		kind, at := s.Source.Kind, whereabouts(s.Source)
		several[kind] = several[kind] || places[kind] != "" && places[kind] != at
		places[kind] = at
	}
	for _, s := range all {
		var notes []string
		if s.Partial {
			notes = append(notes, fmt.Sprintf("partial: %d not as on disk", s.SkippedCount+s.TornCount))
		}
		if several[s.Source.Kind] {
			notes = append(notes, "on "+cleanName(whereabouts(s.Source)))
		}
		note := strings.Join(notes, ", ")
		t.AppendRow(table.Row{
			s.ID.Short(), s.Started.Go().Format(timeFormat), cleanName(s.Source.String()),
			number(s.Totals.Files + s.Totals.Others), size(s.Totals.Bytes), note,
		})
	}
	t.SetColumnConfigs([]table.ColumnConfig{{Number: 4, Align: text.AlignRight, AlignHeader: text.AlignRight}, {Number: 5, Align: text.AlignRight, AlignHeader: text.AlignRight}})
	_, err := fmt.Fprintln(a.out, trimLines(t.Render()))
	return err
}
