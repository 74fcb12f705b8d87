//go:build linux

package main

import "time"

// results is all that a bench found; results.json is this.
type results struct {
	Date     time.Time         `json:"date"`
	Commit   string            `json:"commit"`
	Command  string            `json:"command"`
	Scale    string            `json:"scale"`
	Seed     uint64            `json:"seed"`
	Runs     int               `json:"runs"`
	Budget   float64           `json:"budget_seconds"`
	Complete bool              `json:"complete"` // not interrupted
	Machine  machine           `json:"machine"`
	Versions map[string]string `json:"versions"` // of the tools
	Missing  []string          `json:"missing,omitempty"`
	Corpora  []corpusResult    `json:"corpora"`
	Targets  []verdict         `json:"targets,omitempty"`
	Cells    []*cell           `json:"cells"`
}

// A corpusResult is a corpus as it was when the first backups were made.
type corpusResult struct {
	Name  string `json:"name"`
	About string `json:"about"`
	facts
}

// A status says what became of a cell.
type status string

// The statuses.
const (
	measured status = "measured"
	failed   status = "failed"
	notDone  status = "not done" // the tool has no such step
)

// A cell is one step of one tool on one corpus.
type cell struct {
	Corpus  string   `json:"corpus"`
	Step    step     `json:"step"`
	Tool    string   `json:"tool"`
	Role    role     `json:"role"`
	Status  status   `json:"status"`
	Reason  string   `json:"reason,omitempty"`
	Blind   bool     `json:"does_not_compare_contents,omitempty"`
	Notes   []string `json:"notes,omitempty"`
	Samples []sample `json:"samples,omitempty"`
}

// A sample is one measured run.
type sample struct {
	usage
	told
	Repository int64 `json:"repository_bytes"` // afterwards; sizes of all files in it
	Stored     int64 `json:"stored_bytes"`     // by which a backup made it grow
}

// spent returns the seconds that all runs took.
func (c *cell) spent() (s float64) {
	for _, r := range c.Samples {
		s += r.Wall
	}
	return s
}

// of returns the spread of a figure.
func (c *cell) of(figure func(sample) float64) spread {
	var values []float64
	for _, s := range c.Samples {
		values = append(values, figure(s))
	}
	return spreadOf(values)
}

// The figures.
func wall(s sample) float64       { return s.Wall }
func cpu(s sample) float64        { return s.CPU() }
func peak(s sample) float64       { return float64(s.Peak) }
func written(s sample) float64    { return float64(s.Written) }
func stored(s sample) float64     { return float64(s.Stored) }
func repository(s sample) float64 { return float64(s.Repository) }
