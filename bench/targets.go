//go:build linux

package main

import (
	"fmt"
	"strings"
)

// A target is what orlop has to reach, beside the best peer or by itself.
type target struct {
	corpus string // "" is each
	step   step   // "" is each
	figure string
	of     func(sample) float64

	// path and volume are what is wanted of each way: with faster, how many
	// times orlop's figure fits into the other's, at least; else how many times
	// the other's orlop's is, at most.
	path, volume float64
	faster       bool

	// against picks what is compared with; nil is a bound in bytes, not a ratio.
	against func(r *results, corpus string, st step, way string, figure func(sample) float64) (name string, value float64)
}

// Ways of orlop, as they are called in tables.
const (
	pathWay   = "orlop path"
	volumeWay = "orlop volume"
)

// targets are those of the first issue that asked for speed.
var targets = []target{
	{"source", first, "time", wall, 1.6, 1.3, true, best},
	{"postgres", first, "time", wall, 1.2, 1.1, true, best},
	{"media", first, "time", wall, 3, 2, true, best},
	{"source", unchanged, "time", wall, 3, 1.5, true, bestOf("kopia")},
	{"source", unchanged, "time", wall, 4, 3, true, bestOf("restic")},
	{"media", touched, "time", wall, 3, 2.5, true, best},
	{"postgres", changed, "time", wall, 2.5, 2, true, best},
	{"postgres", changed, "stored", stored, 0.85, 0.85, false, best},
	{"image", changed, "time", wall, 2.5, 2, true, best},
	{"image", changed, "stored", stored, 0.25, 0.25, false, best},
	{"source", restore, "time", wall, 1.5, 1.5, true, best},
	{"media", restore, "time", wall, 2, 2, true, best},
	{"postgres", update, "time", wall, 3, 3, true, best},
	{"media", check, "time", wall, 2, 2, true, best},
	{"source", first, "repository", repository, 1, 1, false, best},
	{"postgres", first, "repository", repository, 1.06, 1.06, false, best},
	{"media", first, "repository", repository, 1, 1, false, best},
	{"logs", first, "repository", repository, 1, 1, false, best},
	{"image", first, "repository", repository, 1.06, 1.06, false, best},
	{"many", first, "repository", repository, 1, 1, false, best},
	{"", "", "peak memory", peak, 200 << 20, 200 << 20, false, nil},
	{"many", "", "peak memory", peak, flat, flat, false, fewer},
	{"many", unchanged, "time", wall, 2, 3, false, lookingAt},
}

// flat is how much more memory a hundred times as many files may take: what two
// runs of the same may differ by.
const flat = 1.15

// best returns the lowest figure of the peers that deduplicate. Of an update
// only those are taken that compare what is there, as orlop does.
func best(r *results, corpus string, st step, way string, figure func(sample) float64) (string, float64) {
	return bestOf("")(r, corpus, st, way, figure)
}

// bestOf returns best of the peers whose names begin so.
func bestOf(family string) func(*results, string, step, string, func(sample) float64) (string, float64) {
	return func(r *results, corpus string, st step, _ string, figure func(sample) float64) (name string, lowest float64) {
		for _, c := range r.Cells {
			if c.Corpus != corpus || c.Step != st || c.Role != peer || c.Status != measured || len(c.Samples) == 0 ||
				c.Blind || !strings.HasPrefix(c.Tool, family) {
				continue
			}
			if v := c.of(figure).Median; name == "" || v < lowest {
				name, lowest = c.Tool, v
			}
		}
		return name, lowest
	}
}

// fewer returns orlop's own figure with a hundredth of the files, if these are
// enough to fill its buffers.
func fewer(r *results, _ string, st step, way string, figure func(sample) float64) (string, float64) {
	for _, c := range r.Corpora {
		if c.Name == "some" && c.Files >= 10_000 {
			return fmt.Sprintf("itself with %d files", c.Files), r.median("some", st, way, figure)
		}
	}
	return "", 0
}

// lookingAt returns find's figure.
func lookingAt(r *results, corpus string, st step, _ string, figure func(sample) float64) (string, float64) {
	return "find", r.median(corpus, st, "find", figure)
}

// median returns the median of a figure, or 0 if it was not measured.
func (r *results) median(corpus string, st step, tool string, figure func(sample) float64) float64 {
	for _, c := range r.Cells {
		if c.Corpus == corpus && c.Step == st && c.Tool == tool && c.Status == measured {
			return c.of(figure).Median
		}
	}
	return 0
}

// A verdict is what became of a target.
type verdict struct {
	Corpus  string  `json:"corpus"`
	Step    step    `json:"step"`
	Figure  string  `json:"figure"`
	Tool    string  `json:"tool"`
	Wanted  string  `json:"wanted"`
	Reached string  `json:"reached"`
	Value   float64 `json:"value"`
	Against string  `json:"against,omitempty"`
	Met     bool    `json:"met"`
}

// judge compares the results with the targets, as far as both figures of one
// were measured.
func judge(r *results) (all []verdict) {
	for _, t := range targets {
		for _, c := range r.Corpora {
			if t.corpus != "" && t.corpus != c.Name {
				continue
			}
			for _, st := range steps {
				if t.step != "" && t.step != st {
					continue
				}
				all = append(all, t.judge(r, c.Name, st)...)
			}
		}
	}
	return all
}

func (t target) judge(r *results, corpus string, st step) (all []verdict) {
	for _, way := range []string{pathWay, volumeWay} {
		wanted := t.path
		if way == volumeWay {
			wanted = t.volume
		}
		mine := r.median(corpus, st, way, t.of)
		if mine == 0 {
			continue
		}
		v := verdict{Corpus: corpus, Step: st, Figure: t.figure, Tool: way}
		if t.against == nil {
			v.Value, v.Met = mine, mine <= wanted
			v.Wanted, v.Reached = "at most "+binary(int64(wanted)), binary(int64(mine))
			all = append(all, v)
			continue
		}
		name, other := t.against(r, corpus, st, way, t.of)
		if name == "" || other == 0 {
			continue
		}
		v.Against = name
		if t.faster {
			v.Value = other / mine
			v.Met = v.Value >= wanted
			v.Wanted, v.Reached = fmt.Sprintf("%.2fx faster", wanted), fmt.Sprintf("%.2fx", v.Value)
		} else {
			v.Value = mine / other
			v.Met = v.Value <= wanted
			v.Wanted, v.Reached = fmt.Sprintf("at most %.2fx", wanted), fmt.Sprintf("%.3fx", v.Value)
		}
		all = append(all, v)
	}
	return all
}

// targetTable shows the verdicts; of the bounds on memory, which are on every
// cell, the highest of each way and what is above.
func (r *results) targetTable() table {
	title := "Targets"
	if r.Scale != full.name {
		title += " (which are for the full run, and this is none)"
	}
	t := table{title: title, head: []string{"corpus, step", "figure", "tool", "wanted", "reached", "against", "met"}}
	highest := map[string]verdict{}
	for _, v := range judge(r) {
		if v.Against == "" && v.Met {
			if h, ok := highest[v.Tool]; !ok || v.Value > h.Value {
				highest[v.Tool] = v
			}
			continue
		}
		t.rows = append(t.rows, v.row())
	}
	for _, way := range []string{pathWay, volumeWay} {
		if v, ok := highest[way]; ok {
			v.Figure += " (highest that is within)"
			t.rows = append(t.rows, v.row())
		}
	}
	return t
}

func (v verdict) row() []string {
	met := "yes"
	if !v.Met {
		met = "NO"
	}
	return []string{fmt.Sprintf("%s, %s", v.Corpus, v.Step), v.Figure, v.Tool, v.Wanted, v.Reached, v.Against, met}
}
