//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// made returns results in which a tool's runs of each cell took what is given.
func made(cells ...*cell) *results {
	r := &results{
		Date: time.Date(2026, 11, 20, 1, 2, 3, 0, time.UTC), Commit: "abc", Command: "go run ./bench", Scale: "full", Seed: seed, Runs: 3,
		Budget: 60, Complete: true, Machine: machine{CPU: "Some <CPU>", Cores: 2, Memory: 8 << 30, Kernel: "6.1", OS: "Debian", FileSystem: "ext4"},
		Versions: map[string]string{pathWay: "orlop 1", "restic": "restic 0.19", "kopia": "kopia 0.23"},
		Missing:  []string{"borg is not in PATH"},
	}
	for _, c := range cells {
		if !slices.ContainsFunc(r.Corpora, func(x corpusResult) bool { return x.Name == c.Corpus }) {
			r.Corpora = append(r.Corpora, corpusResult{c.Corpus, "about " + c.Corpus, facts{Files: 10_000, Bytes: 5e6, Disk: 6e6}})
		}
		r.Cells = append(r.Cells, c)
	}
	return r
}

func took(corpus string, st step, tool string, r role, seconds ...float64) *cell {
	c := &cell{Corpus: corpus, Step: st, Tool: tool, Role: r, Status: measured}
	for _, s := range seconds {
		c.Samples = append(c.Samples, sample{usage: usage{Wall: s, User: s / 2, Sys: s / 4, Peak: 100 << 20, Written: 3e6}, told: told{Raw: 5e6, New: 4e6}, Stored: 2e6, Repository: 2e6})
	}
	return c
}

func (c *cell) with(f func(*cell)) *cell { f(c); return c }

func example() *results {
	return made(
		took("source", first, pathWay, ours, 2, 1, 3),
		took("source", first, "restic", peer, 5, 4, 4),
		took("source", first, "kopia", peer, 3.5).with(func(c *cell) { c.Notes = []string{"times of directories: 7 not as they were"} }),
		took("source", first, "borg", peer).with(func(c *cell) { c.Status, c.Reason = failed, "no <room>" }),
		took("source", first, "cp -a", floor, 1),
		took("media", restore, pathWay, ours, 0.5),
		took("media", restore, "restic", peer, 0.8),
		took("media", restore, "cp -a", floor, 1),
		took("media", restore, "find", floor).with(func(c *cell) { c.Status = notDone }),
		took("postgres", update, pathWay, ours, 1),
		took("postgres", update, "restic", peer, 4),
		took("postgres", update, "kopia", peer, 2).with(func(c *cell) { c.Blind = true }),
	)
}

func TestTheMarkdownSaysAllOfIt(t *testing.T) {
	text := example().markdown()
	for _, want := range []string{
		"# Full run of 2026-11-20 01:02 UTC",
		"- Machine: Some <CPU>, 2 cores, 8.0 GiB of memory, Linux 6.1, Debian, ext4",
		"- Commit: abc", "- Command: `go run ./bench`", "- restic: restic 0.19", "- Missing: borg is not in PATH",
		"| source | about source | 10000 | 5.0 MB | 6.0 MB |",
		"## first: first backup",
		"### source, first",
		"| orlop path | 2.00 | 1.00..3.00 | 3 | 2.00 | 1.00 | 1.50 | 100 | 3.0 | 5.0 | 4.0 | 2.0 | 2.0 |",
		"| restic | 4.00 | 4.00..5.00 | 3 | 4.00 | 2.00 |",
		"| cp -a | 1.00 | 1.00..1.00 | 1 | 1.00 | 0.50 | 0.750 | 100 | 3.0 |  |",
		"| borg | failed |", "- borg failed: no <room>",
		"- kopia: times of directories: 7 not as they were",
		"| source, first | time | orlop path | 1.60x faster | 1.75x | kopia | yes |",
		"| media, restore | time | orlop path | 2.00x faster | 1.60x | restic | NO |",
		"| postgres, update | time | orlop path | 3.00x faster | 4.00x | restic | yes |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "did not come to its end") || strings.Contains(text, "| find |") {
		t.Error("it says too much")
	}
	columns := 0
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "|") {
			columns = 0
			continue
		}
		if n := strings.Count(line, "|"); columns == 0 {
			columns = n
		} else if n != columns {
			t.Errorf("a row of %d columns in a table of %d: %s", n, columns, line)
		}
	}
}

func TestAnInterruptedRunSaysSo(t *testing.T) {
	r := example()
	r.Complete = false
	if !strings.Contains(r.markdown(), "**It did not come to its end**") {
		t.Error("it does not")
	}
}

func TestTheChartHasABarForEachRatio(t *testing.T) {
	texts, rects := wellFormed(t, example().chart())
	// Ground, 4 tools in the legend, 3 bars of source, 2 of media; no floor is in update.
	if want := 1 + 4 + 3 + 2; rects != want {
		t.Errorf("%d rectangles, want %d", rects, want)
	}
	for _, want := range []string{
		"first: first backup, into an empty repository, with caches that know nothing", "source (cp -a: 1.00 s)", "media (cp -a: 1.00 s)",
		"2", "4", "3.5", "failed", "0.5", "0.8", "times cp -a",
		"Some <CPU>, 2 cores, 8.0 GiB of memory, Linux 6.1, Debian, ext4",
	} {
		if !slices.Contains(texts, want) {
			t.Errorf("there is no text %q in %q", want, texts)
		}
	}
}

func TestTheChartOfNothingIsAChart(t *testing.T) {
	wellFormed(t, made().chart())
	r := made(took("source", first, pathWay, ours, 1))
	if texts, _ := wellFormed(t, r.chart()); slices.Contains(texts, "times cp -a") {
		t.Error("it has a panel, and there is no floor")
	}
}

func TestAxisMarks(t *testing.T) {
	tests := []struct{ v, below, above float64 }{{1, 1, 1}, {0.03, 0.02, 0.05}, {7, 5, 10}, {49, 20, 50}, {100, 100, 100}}
	for _, tt := range tests {
		if b, a := below(tt.v), above(tt.v); fmt.Sprintf("%.6g %.6g", b, a) != fmt.Sprintf("%.6g %.6g", tt.below, tt.above) {
			t.Errorf("%g is between %g and %g, want %g and %g", tt.v, b, a, tt.below, tt.above)
		}
	}
}

func TestTargets(t *testing.T) {
	stores := func(n int64) func(*cell) {
		return func(c *cell) { c.Samples[0].Stored, c.Samples[0].Repository = n, n }
	}
	high := func(mb int64) func(*cell) { return func(c *cell) { c.Samples[0].Peak = mb << 20 } }
	tests := []struct {
		name  string
		cells []*cell
		want  string // figure, tool, reached, against, met; the bound on memory apart
	}{
		{"the best peer counts", []*cell{
			took("media", check, pathWay, ours, 1), took("media", check, "restic", peer, 9), took("media", check, "kopia", peer, 2),
		}, "time orlop path 2.00x kopia true"},
		{"each way has its own", []*cell{
			took("media", touched, pathWay, ours, 1), took("media", touched, volumeWay, ours, 1.1), took("media", touched, "kopia", peer, 2.8),
		}, "time orlop path 2.80x kopia false; time orlop volume 2.55x kopia true"},
		{"tar is no peer, nor is a floor", []*cell{
			took("source", first, pathWay, ours, 1), took("source", first, "tar-zstd", archive, 0.1), took("source", first, "cp -a", floor, 0.1),
		}, ""},
		{"one that failed is none either", []*cell{
			took("source", first, pathWay, ours, 1), took("source", first, "kopia", peer, 0.1).with(func(c *cell) { c.Status = failed }),
		}, ""},
		{"nor one that does not compare contents", []*cell{
			took("postgres", update, pathWay, ours, 1), took("postgres", update, "kopia", peer, 1).with(func(c *cell) { c.Blind = true }), took("postgres", update, "restic", peer, 3),
		}, "time orlop path 3.00x restic true"},
		{"of several versions of restic the best", []*cell{
			took("source", unchanged, pathWay, ours, 1), took("source", unchanged, "restic", peer, 9), took("source", unchanged, "restic-0.19", peer, 4),
		}, "time orlop path 4.00x restic-0.19 true"},
		{"what is stored", []*cell{
			took("image", changed, pathWay, ours, 1).with(stores(26)), took("image", changed, "borg", peer, 2.5).with(stores(100)),
		}, "time orlop path 2.50x borg true; stored orlop path 0.260x borg false"},
		{"the repository, of the smallest and not of the fastest", []*cell{
			took("logs", first, pathWay, ours, 1).with(stores(80)), took("logs", first, "kopia", peer, 1).with(stores(900)), took("logs", first, "restic", peer, 9).with(stores(80)),
		}, "repository orlop path 1.000x restic true"},
		{"memory does not grow with files", []*cell{
			took("many", unchanged, volumeWay, ours, 1).with(high(150)), took("some", unchanged, volumeWay, ours, 1).with(high(120)), took("many", unchanged, "find", floor, 0.5),
		}, "peak memory orlop volume 1.250x itself with 10000 files false; time orlop volume 2.000x find true"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, v := range judge(made(tt.cells...)) {
				if v.Against != "" {
					got = append(got, fmt.Sprintf("%s %s %s %s %v", v.Figure, v.Tool, v.Reached, v.Against, v.Met))
				}
			}
			if s := strings.Join(got, "; "); s != tt.want {
				t.Errorf("got  %s\nwant %s", s, tt.want)
			}
		})
	}
}

func TestTooMuchMemoryInAnyCellIsATargetMissed(t *testing.T) {
	r := made(
		took("logs", check, pathWay, ours, 1).with(func(c *cell) { c.Samples[0].Peak = 201 << 20 }),
		took("logs", restore, pathWay, ours, 1).with(func(c *cell) { c.Samples[0].Peak = 200 << 20 }),
		took("logs", first, pathWay, ours, 1).with(func(c *cell) { c.Samples[0].Peak = 90 << 20 }),
	)
	var got []string
	for _, row := range r.targetTable().rows {
		got = append(got, strings.Join(row, " | "))
	}
	want := []string{
		"logs, check | peak memory | orlop path | at most 200 MiB | 201 MiB |  | NO",
		"logs, restore | peak memory (highest that is within) | orlop path | at most 200 MiB | 200 MiB |  | yes",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestResultsAreWrittenTogether(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "place")
	r := example()
	must(t, r.write(dir))
	for name, want := range map[string]string{"results.json": `"wanted": "1.60x faster"`, "results.md": "# Full run", "chart.svg": "<svg "} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.Contains(string(data), want) {
			t.Errorf("%s: %v; it has no %q", name, err, want)
		}
	}
}
