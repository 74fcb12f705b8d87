//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
)

// size writes a number of bytes for people, in powers of ten.
func size(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f kB", float64(n)/1e3)
}

// binary writes a number of bytes of memory, in powers of two.
func binary(n int64) string {
	if n >= 1<<30 {
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// write keeps the results in dir.
func (r *results) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "results.json"), append(data, '\n'), 0o644)
}

// print shows a table for each step of each corpus.
func (r *results) print(w io.Writer) {
	for _, st := range steps {
		for _, c := range r.Corpora {
			r.printCell(w, c.Name, st)
		}
	}
}

func (r *results) printCell(w io.Writer, corpus string, st step) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	n := 0
	for _, c := range r.Cells {
		if c.Corpus != corpus || c.Step != st || c.Status == notDone {
			continue
		}
		if n++; n == 1 {
			fmt.Fprintf(w, "\n%s, %s\n", corpus, st)
			fmt.Fprintln(t, "tool\twall s\tmin\tmax\tcpu s\tpeak MiB\twritten MB\tstored MB\trepository MB\t")
		}
		if c.Status != measured {
			fmt.Fprintf(t, "%s\tfailed\t\n", c.Tool)
			continue
		}
		s := c.of(wall)
		fmt.Fprintf(t, "%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.0f\t%.1f\t%.1f\t%.1f\t\n", c.Tool, s.Median, s.Min, s.Max, c.of(cpu).Median,
			c.of(peak).Median/(1<<20), c.of(written).Median/1e6, c.of(storedB).Median/1e6, c.of(repository).Median/1e6)
	}
	_ = t.Flush()
}
