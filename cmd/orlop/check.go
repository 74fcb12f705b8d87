package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"orlop/repo"
	"orlop/store"
)

func (a *app) checkCommand() *cobra.Command {
	var readData bool
	c := &cobra.Command{
		Use:     "check",
		Aliases: []string{"verify"},
		Short:   "Find out whether everything can be restored",
		Long: `Check reads the repository and names what is damaged or missing, and the
snapshots that it touches. It changes nothing. Without --read-data it reads all
metadata and looks for every blob that a snapshot needs; with it, every byte is
read, opened and compared with its name.

The exit code is 0 when all is well and 4 when damage was found.`,
		Example: `  orlop check
  orlop check --read-data`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.check(c.Context(), readData) },
	}
	c.Flags().BoolVar(&readData, "read-data", false, "read, open and name every blob")
	return c
}

// A damageJSON is one line of check --json.
type damageJSON struct {
	MessageType string     `json:"message_type"`
	Object      store.Name `json:"object"`
	Blob        string     `json:"blob,omitempty"`
	Message     string     `json:"message"`
}

// A checkJSON is the last line of check --json.
type checkJSON struct {
	MessageType string   `json:"message_type"`
	Snapshots   int      `json:"snapshots"`
	Packs       int      `json:"packs"`
	Segments    int      `json:"segments"`
	Blobs       uint64   `json:"blobs"`
	BytesRead   uint64   `json:"bytes_read"`
	Damaged     int      `json:"damaged"`
	Affected    []string `json:"affected_snapshots"`
}

func (a *app) check(ctx context.Context, readData bool) error {
	r, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	m := a.meter("check", "pack")
	report, err := r.Check(ctx, repo.CheckOptions{
		ReadData: readData,
		Progress: func(packs, of int) { m.count(uint64(packs), uint64(of)) },
	})
	m.stop()
	if err != nil {
		return err
	}
	affected := make([]string, 0, len(report.Affected))
	for _, s := range report.Affected {
		affected = append(affected, s.ID.String())
	}
	if a.json {
		for _, d := range report.Damage {
			line := damageJSON{MessageType: "damage", Object: d.Name, Message: d.Error()}
			if !d.Blob.IsZero() {
				line.Blob = d.Blob.String()
			}
			if err := a.printJSON(line); err != nil {
				return err
			}
		}
		if err := a.printJSON(checkJSON{
			"summary", report.Snapshots, report.Packs, report.Segments, report.Blobs, report.BytesRead, objects(report.Damage), affected,
		}); err != nil {
			return err
		}
	} else {
		a.printCheck(report, readData)
	}
	if len(report.Damage) > 0 {
		return errFound
	}
	return nil
}

// objects counts what is damaged, each once however much is wrong with it.
func objects(damage []*repo.DamageError) int {
	names := map[store.Name]bool{}
	for _, d := range damage {
		names[d.Name] = true
	}
	return len(names)
}

func (a *app) printCheck(report *repo.CheckReport, readData bool) {
	for _, d := range report.Damage {
		fmt.Fprintln(a.out, clean(d.Error()))
	}
	for _, s := range report.Affected {
		fmt.Fprintf(a.out, "touches snapshot %s of %s, %s\n", s.ID.Short(), cleanName(s.Source.String()), s.Started.Go().Format(timeFormat))
	}
	fmt.Fprintf(a.out, "%s, %s, %s", plural(uint64(report.Snapshots), "snapshot"), plural(uint64(report.Packs), "pack"), plural(report.Blobs, "blob"))
	if readData {
		fmt.Fprintf(a.out, ", %s read", size(report.BytesRead))
	}
	if len(report.Damage) == 0 {
		fmt.Fprintln(a.out, ": all is well")
	} else {
		fmt.Fprintf(a.out, ": %s damaged\n", plural(uint64(objects(report.Damage)), "object"))
	}
	if report.Orphans > 0 {
		a.say("%s not listed by any index segment, left by a run that was killed; the next backup uses them", plural(uint64(report.Orphans), "pack"))
	}
	if report.Missed > 0 {
		a.say("%s gone, and nothing needs them", plural(uint64(report.Missed), "pack"))
	}
	switch {
	case len(report.Damage) > 0 && len(report.Affected) == 0:
		a.say("No snapshot needs what is damaged.")
	case len(report.Damage) > 0:
		a.say("hint: back up again: what the sources still have is stored again, from this machine; until then restore what is not damaged")
	case !readData:
		a.say("The content of the packs was not read; \"orlop check --read-data\" does that.")
	}
}
