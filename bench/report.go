//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// binary writes a number of bytes in powers of two, as memory is counted.
func binary(n int64) string {
	if n >= 1<<30 {
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// write keeps the results in dir: results.json, results.md and chart.svg.
func (r *results) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r.Targets = judge(r)
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"results.json": string(data) + "\n", "results.md": r.markdown(), "chart.svg": r.chart(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// A table is rows of cells, the first of them names.
type table struct {
	title string
	head  []string
	rows  [][]string
	notes []string
}

// columns are what is said of a cell, after the tool's name.
var columns = []string{"wall s", "min..max", "runs", "of floor", "of orlop", "cpu s", "peak MiB", "written MB", "raw MB", "new MB", "stored MB", "repository MB"}

// table returns what was measured of a step on a corpus, a row a tool, or false
// if nothing was.
func (r *results) table(corpus string, st step) (table, bool) {
	t := table{title: fmt.Sprintf("%s, %s", corpus, st), head: append([]string{"tool"}, columns...)}
	for _, c := range r.Cells {
		if c.Corpus != corpus || c.Step != st || c.Status == notDone {
			continue
		}
		name := c.Tool
		for _, n := range c.Notes {
			t.notes = append(t.notes, fmt.Sprintf("%s: %s", c.Tool, n))
		}
		if c.Status != measured || len(c.Samples) == 0 {
			t.rows = append(t.rows, []string{name, "failed"})
			t.notes = append(t.notes, fmt.Sprintf("%s failed: %s", c.Tool, c.Reason))
			continue
		}
		w := c.of(wall)
		row := []string{
			name, seconds(w.Median), seconds(w.Min) + ".." + seconds(w.Max), fmt.Sprint(w.Runs),
			ratio(w.Median, r.median(corpus, st, st.floor(), wall)), ratio(w.Median, r.median(corpus, st, pathWay, wall)),
			seconds(c.of(cpu).Median), fmt.Sprintf("%.0f", c.of(peak).Median/(1<<20)), megabytes(c.of(written).Median),
		}
		last := c.Samples[len(c.Samples)-1]
		if st.isBackup() && c.Role != floor {
			row = append(row, dash(last.Raw), dash(last.New), megabytes(c.of(stored).Median))
		} else {
			row = append(row, "", "", "")
		}
		if c.Role != floor {
			row = append(row, megabytes(c.of(repository).Median))
		}
		t.rows = append(t.rows, row)
	}
	return t, len(t.rows) > 0
}

// summary returns the medians of a step on all corpora, a row a tool.
func (r *results) summary(st step) (table, bool) {
	t := table{title: fmt.Sprintf("%s: %s; median wall seconds", st, aboutStep[st]), head: []string{"tool"}}
	var corpora []string
	for _, c := range r.Corpora {
		if slices.ContainsFunc(r.Cells, func(x *cell) bool { return x.Corpus == c.Name && x.Step == st && len(x.Samples) > 0 }) {
			corpora = append(corpora, c.Name)
		}
	}
	t.head = append(t.head, corpora...)
	for _, tool := range r.tools() {
		row, some := []string{tool}, false
		for _, corpus := range corpora {
			text := "-"
			for _, c := range r.Cells {
				switch {
				case c.Corpus != corpus || c.Step != st || c.Tool != tool:
				case c.Status == failed:
					text, some = "failed", true
				case len(c.Samples) > 0:
					text, some = seconds(c.of(wall).Median), true
				}
			}
			row = append(row, text)
		}
		if some {
			t.rows = append(t.rows, row)
		}
	}
	return t, len(corpora) > 0
}

// tools returns the names of the tools in the order in which they are shown.
func (r *results) tools() (names []string) {
	for _, c := range r.Cells {
		if !slices.Contains(names, c.Tool) {
			names = append(names, c.Tool)
		}
	}
	return names
}

func seconds(s float64) string {
	if s < 1 {
		return fmt.Sprintf("%.3f", s)
	}
	return fmt.Sprintf("%.2f", s)
}

func megabytes(n float64) string {
	if n != 0 && n < 1e6 {
		return fmt.Sprintf("%.3f", n/1e6)
	}
	return fmt.Sprintf("%.1f", n/1e6)
}

func dash(n int64) string {
	if n == 0 {
		return "-"
	}
	return megabytes(float64(n))
}

func ratio(a, b float64) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", a/b)
}

// print shows all tables on a terminal.
func (r *results) print(w io.Writer) {
	show := func(t table) {
		fmt.Fprintf(w, "\n%s\n", t.title)
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		for _, row := range append([][]string{t.head}, t.rows...) {
			fmt.Fprintln(tw, strings.Join(row, "\t")+"\t")
		}
		_ = tw.Flush()
		for _, n := range t.notes {
			fmt.Fprintf(w, "  %s\n", n)
		}
	}
	for _, st := range steps {
		for _, c := range r.Corpora {
			if t, ok := r.table(c.Name, st); ok {
				show(t)
			}
		}
	}
	if t := r.targetTable(); len(t.rows) > 0 {
		show(t)
	}
}

// markdown returns all tables, with what they are figures of.
func (r *results) markdown() string {
	var b strings.Builder
	show := func(level string, t table) {
		fmt.Fprintf(&b, "\n%s %s\n\n", level, t.title)
		row := func(cells []string) {
			for len(cells) < len(t.head) {
				cells = append(cells, "")
			}
			fmt.Fprintf(&b, "| %s |\n", strings.ReplaceAll(strings.Join(cells, " | "), "\n", " "))
		}
		row(t.head)
		row(append([]string{"---"}, slices.Repeat([]string{"---:"}, len(t.head)-1)...))
		for _, cells := range t.rows {
			row(cells)
		}
		for i, n := range t.notes {
			if i == 0 {
				b.WriteString("\n")
			}
			fmt.Fprintf(&b, "- %s\n", n)
		}
	}
	fmt.Fprintf(&b, "# %s run of %s\n\n", strings.ToUpper(r.Scale[:1])+r.Scale[1:], r.Date.Format("2006-01-02 15:04 MST"))
	if !r.Complete {
		b.WriteString("**It did not come to its end**: what is here is what was measured until then.\n\n")
	}
	fmt.Fprintf(&b, "- Machine: %v\n- Commit: %s\n- Command: `%s`\n- Seed %d, up to %d runs of a cell, none after %.0f s of them\n", r.Machine, r.Commit, r.Command, r.Seed, r.Runs, r.Budget)
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		fmt.Fprintf(&b, "- %s: %s\n", name, r.Versions[name])
	}
	for _, m := range r.Missing {
		fmt.Fprintf(&b, "- Missing: %s\n", m)
	}
	b.WriteString("\n| corpus | what it is | files | bytes | on disk |\n| --- | --- | ---: | ---: | ---: |\n")
	for _, c := range r.Corpora {
		fmt.Fprintf(&b, "| %s | %s | %d | %s | %s |\n", c.Name, c.About, c.Files, size(c.Bytes), size(c.Disk))
	}
	b.WriteString("\n![ratios to the floor](chart.svg)\n")
	if t := r.targetTable(); len(t.rows) > 0 {
		show("##", t)
	}
	for _, st := range steps {
		t, ok := r.summary(st)
		if !ok {
			continue
		}
		show("##", t)
		for _, c := range r.Corpora {
			if t, ok := r.table(c.Name, st); ok {
				show("###", t)
			}
		}
	}
	return b.String()
}
