//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestWhatIsUnknownIsAnErrorThatSaysWhatIsKnown(t *testing.T) {
	tests := []struct{ args, want string }{
		{"-corpus sauce", `-corpus: "sauce" is none of source, postgres, media, logs, image, many, some, all`},
		{"-corpus source,", `-corpus: "" is none of source`},
		{"-step second", `-step: "second" is none of first, unchanged, changed, touched, check, restore, update, all`},
		{"-ways tape", `-ways: "tape" is none of path, volume, none, all`},
		{"-peers rustic", `no peer is called "rustic": there are restic, kopia, borg, tar-gzip, tar-zstd, all, none, and NAME=PATH`},
		{"-peers rustic=/bin/true", `peer "rustic": a name begins with one of restic`},
		{"-peers restic=/nowhere/restic", `find peer restic: exec: "/nowhere/restic"`},
		{"-runs -1", "-runs and -files are at least 1"},
		{"-files -5", "-runs and -files are at least 1"},
		{"quick", `"quick" is no flag`},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			o, err := parse(strings.Fields(tt.args), io.Discard)
			if err == nil {
				o.work, o.orlop = t.TempDir(), "/bin/true"
				o.ways = nil
				err = o.run(t.Context(), io.Discard, io.Discard)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %s", err, tt.want)
			}
		})
	}
}

func TestFlags(t *testing.T) {
	o, err := parse(strings.Fields("-corpus media,source -step restore,first -peers borg,restic-9=/r"), io.Discard)
	must(t, err)
	if !slices.Equal(o.corpora, []string{"source", "media"}) || !slices.Equal(o.steps, []step{first, restore}) {
		t.Errorf("corpora %v, steps %v: not in the order of the tables", o.corpora, o.steps)
	}
	if o.runs != 3 || o.scale != full || !slices.Equal(o.peers, []string{"borg", "restic-9=/r"}) || !strings.HasSuffix(o.orlop, "/bin/orlop") {
		t.Errorf("options are %+v", o)
	}
	o, err = parse(strings.Fields("-quick -files 77"), io.Discard)
	must(t, err)
	if o.runs != 1 || o.scale.many != 77 || o.scale.name != "quick" || o.steps != nil || !slices.Equal(o.corpora, corpusNames) {
		t.Errorf("options are %+v", o)
	}
}

func TestEveryCorpusThatIsNamedIsThere(t *testing.T) {
	known := corpora(tiny)
	for _, name := range corpusNames {
		c := known[name]
		if c == nil || c.name != name || c.about == "" || len(c.steps) == 0 {
			t.Errorf("corpus %s is %+v", name, c)
		}
	}
	if len(known) != len(corpusNames) {
		t.Errorf("%d corpora, %d names", len(known), len(corpusNames))
	}
}

func TestPeersAreFoundInPath(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"restic", "restic-0.19", "restic-old", "kopia"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755))
	}
	t.Setenv("PATH", dir)
	tools, missing, err := findPeers([]string{"all", "kopia-mine=" + dir + "/restic-old"})
	must(t, err)
	var names []string
	for _, tool := range tools {
		names = append(names, tool.name())
	}
	if want := []string{"restic", "restic-0.19", "kopia", "kopia-mine"}; !slices.Equal(names, want) {
		t.Errorf("found %v, want %v", names, want)
	}
	if len(missing) != 3 || !strings.HasPrefix(missing[0], "borg is not in PATH (make bench-setup") {
		t.Errorf("missing: %q", missing)
	}
}

func TestTwoBenchesDoNotShareADirectory(t *testing.T) {
	work := t.TempDir()
	unlock, err := lock(work)
	must(t, err)
	if _, err := lock(work); err == nil || !strings.Contains(err.Error(), "in use by another bench") {
		t.Errorf("error is %v", err)
	}
	unlock()
	unlock, err = lock(work)
	must(t, err)
	unlock()
}

// orlopProgram makes the program that is measured, once; TestMain removes it.
var orlopProgram = sync.OnceValues(func() (string, error) {
	path := filepath.Join(scratch, "orlop")
	c := exec.Command("go", "build", "-o", path, "orlop/cmd/orlop")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build orlop: %w\n%s", err, out)
	}
	return path, nil
})

// tinyOptions are those of a run of seconds.
func tinyOptions(t *testing.T) options {
	t.Helper()
	work := t.TempDir()
	orlop, err := orlopProgram()
	must(t, err)
	return options{
		args: []string{"-tiny"}, scale: tiny, corpora: []string{"media"}, steps: steps, peers: []string{"none"}, ways: []string{"path"},
		runs: 1, budget: time.Minute, work: work, out: filepath.Join(work, "out"), orlop: orlop,
	}
}

// bench runs o and returns what is in results.json.
func (o options) bench(t *testing.T) (results, string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if err := o.run(t.Context(), &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	data, err := os.ReadFile(filepath.Join(o.out, "results.json"))
	must(t, err)
	var r results
	must(t, json.Unmarshal(data, &r))
	return r, stdout.String()
}

func TestARunMeasuresWhatItShouldAndLeavesNothing(t *testing.T) {
	o := tinyOptions(t)
	o.corpora = []string{"media", "image", "many"}
	r, stdout := o.bench(t)

	if !r.Complete || r.Seed != seed || r.Machine.Cores < 1 || !strings.HasPrefix(r.Versions[pathWay], "orlop ") || r.Command != "go run ./bench -tiny" {
		t.Errorf("labels: %+v", r)
	}
	if len(r.Corpora) != len(o.corpora) {
		t.Errorf("corpora: %+v", r.Corpora)
	}
	done := map[string]int{}
	for _, c := range r.Cells {
		if c.Status == failed {
			t.Errorf("%s, %s, %s failed: %s", c.Corpus, c.Step, c.Tool, c.Reason)
		}
		if c.Status != measured {
			continue
		}
		done[c.Tool]++
		if len(c.Samples) != 1 {
			t.Errorf("%s, %s, %s: %d runs", c.Corpus, c.Step, c.Tool, len(c.Samples))
		}
		for _, s := range c.Samples {
			if s.Wall <= 0 || c.Role == ours && s.Peak < 5<<20 {
				t.Errorf("%s, %s, %s took %+v", c.Corpus, c.Step, c.Tool, s)
			}
			if c.Role == ours && (s.Repository == 0 || c.Step == first && (s.Raw == 0 || s.Stored == 0)) {
				t.Errorf("%s, %s, %s: bytes are %+v", c.Corpus, c.Step, c.Tool, s)
			}
		}
		if c.Role == ours && len(c.Notes) > 0 {
			t.Errorf("%s, %s: orlop did not keep all: %q", c.Corpus, c.Step, c.Notes)
		}
	}
	steps := len(o.corpora) * len(o.steps)
	want := map[string]int{pathWay: steps, "cp -a": steps * 3 / 7, "cat": steps * 5 / 7, "find": steps * 2 / 7}
	if done[pathWay] == steps-len(o.corpora) {
		want[pathWay] = done[pathWay] // an orlop without restore --in-place
	}
	if !maps.Equal(done, want) {
		t.Errorf("cells measured: %v, want %v", done, want)
	}
	if c := find(r, "media", unchanged, pathWay); c.Samples[0].Stored > c.Samples[0].Repository/10 {
		t.Errorf("what has not changed was stored again: %+v", c.Samples[0])
	}
	for _, want := range []string{"media, restore", "of floor", "Targets"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the terminal does not show %q", want)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(o.work, "run")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for _, name := range []string{"results.md", "chart.svg"} {
		if fi, err := os.Stat(filepath.Join(o.out, name)); err != nil || fi.Size() < 1000 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestToolsTakeTurns(t *testing.T) {
	o := tinyOptions(t)
	o.runs, o.steps, o.corpora = 3, []step{changed}, []string{"logs"}
	var order []string
	err := o.run(t.Context(), io.Discard, writerFunc(func(p []byte) (int, error) {
		if f := strings.Fields(string(p)); len(f) > 3 && strings.HasSuffix(f[2], "/3") {
			order = append(order, f[2][:1]+f[3])
		}
		return len(p), nil
	}))
	must(t, err)
	want := []string{"1cat", "1find", "1orlop", "2cat", "2find", "2orlop", "3find", "3orlop", "3cat"}
	if !slices.Equal(order, want) {
		t.Errorf("order is %v, want %v", order, want)
	}
}

func TestASlowToolIsNotRunAgain(t *testing.T) {
	o := tinyOptions(t)
	o.runs, o.budget, o.steps = 3, time.Nanosecond, []step{first, changed, restore}
	r, _ := o.bench(t)
	for _, st := range o.steps {
		if c := find(r, "media", st, pathWay); c.Status != measured || len(c.Samples) != 1 {
			t.Errorf("%s: %s, %d runs: %s", st, c.Status, len(c.Samples), c.Reason)
		}
	}
}

func find(r results, corpus string, st step, tool string) *cell {
	for _, c := range r.Cells {
		if c.Corpus == corpus && c.Step == st && c.Tool == tool {
			return c
		}
	}
	return &cell{Samples: []sample{{}}}
}

// fakeRestic copies, and gets one thing wrong.
const fakeRestic = `#!/bin/bash
case "$1" in
version) echo restic 0.0 of these tests ;;
init) mkdir -p "$RESTIC_REPOSITORY" ;;
backup) rm -rf "$RESTIC_REPOSITORY/1"; cp -a . "$RESTIC_REPOSITORY/1"; WRONG_BACKUP ;;
restore) [ "$2" = --help ] || { cp -a "$RESTIC_REPOSITORY/1/." "$5"; cd "$5"; WRONG_RESTORE; } ;;
esac
`

func TestAToolThatIsWrongIsNotFast(t *testing.T) {
	tests := []struct {
		name, backup, restore string
		step                  step
		reason                string
	}{
		{"one byte", "true", `f=$(find . -type f | head -n 1); printf X | dd of="$f" bs=1 seek=70000 conv=notrunc`, restore, "has other bytes"},
		{"one file", "true", `f=$(find . -type f | head -n 1); rm "$f"`, restore, "is missing"},
		{"an error", "true", "echo the disk is full >&2; exit 1", restore, "the disk is full"},
		{"an error in a backup", "exit 3", "true", first, "exit status 3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := tinyOptions(t)
			fake := filepath.Join(t.TempDir(), "fake")
			must(t, os.WriteFile(fake, []byte(strings.NewReplacer("WRONG_BACKUP", tt.backup, "WRONG_RESTORE", tt.restore).Replace(fakeRestic)), 0o755))
			o.peers, o.ways, o.steps = []string{"restic-0=" + fake}, nil, []step{first, unchanged, restore}
			r, stdout := o.bench(t)
			c := find(r, "media", tt.step, "restic-0")
			if c.Status != failed || !strings.Contains(c.Reason, tt.reason) || len(c.Samples) > 0 {
				t.Errorf("it is %s: %q, with %d samples", c.Status, c.Reason, len(c.Samples))
			}
			if tt.step == first {
				if c := find(r, "media", restore, "restic-0"); c.Status != failed || c.Reason != "an earlier step failed" {
					t.Errorf("then it is %s: %q", c.Status, c.Reason)
				}
			} else if c := find(r, "media", first, "restic-0"); c.Status != measured {
				t.Errorf("its first backup is %s: %q", c.Status, c.Reason)
			}
			if !strings.Contains(stdout, "restic-0 failed: ") {
				t.Error("the table does not say so")
			}
		})
	}
}

func TestWhatTakesOthersLongIsDoneWhenAskedFor(t *testing.T) {
	fake := filepath.Join(t.TempDir(), "fake")
	must(t, os.WriteFile(fake, []byte(strings.NewReplacer("WRONG_BACKUP", "true", "WRONG_RESTORE", "true").Replace(fakeRestic)), 0o755))
	for _, asked := range [][]step{nil, {first, restore}} {
		o := tinyOptions(t)
		o.peers, o.ways, o.corpora, o.steps = []string{"restic-0=" + fake}, nil, []string{"many"}, asked
		r, _ := o.bench(t)
		want := measured
		if asked == nil {
			want = notDone
		}
		if c := find(r, "many", restore, "restic-0"); c.Status != want {
			t.Errorf("with -step %v it is %s: %s", asked, c.Status, c.Reason)
		}
		for _, tool := range []string{"restic-0", "cp -a"} {
			if c := find(r, "many", first, tool); c.Status != measured {
				t.Errorf("with -step %v the first backup of %s is %s: %s", asked, tool, c.Status, c.Reason)
			}
		}
	}
}

func TestAStepAloneIsPreparedUnmeasured(t *testing.T) {
	o := tinyOptions(t)
	o.steps = []step{check}
	r, _ := o.bench(t)
	c := find(r, "media", check, pathWay)
	if c.Status != measured || c.Samples[0].Repository < tiny.media {
		t.Errorf("it is %s (%s), of a repository of %d bytes", c.Status, c.Reason, c.Samples[0].Repository)
	}
	if len(r.Cells) != 4 {
		t.Errorf("%d cells, want one for each tool", len(r.Cells))
	}
}

func TestAnInterruptedRunKeepsWhatItHas(t *testing.T) {
	o := tinyOptions(t)
	ctx, cancel := context.WithCancel(t.Context())
	// Interrupted by the first result.
	err := o.run(ctx, io.Discard, writerFunc(func(p []byte) (int, error) {
		if strings.Contains(string(p), "1/1") {
			cancel()
		}
		return len(p), nil
	}))
	if !errors.Is(err, ctx.Err()) {
		t.Errorf("error is %v", err)
	}
	data, err := os.ReadFile(filepath.Join(o.out, "results.json"))
	must(t, err)
	var r results
	must(t, json.Unmarshal(data, &r))
	n := 0
	for _, c := range r.Cells {
		n += len(c.Samples)
	}
	if n != 1 || r.Complete {
		t.Errorf("%d results, complete is %v", n, r.Complete)
	}
	if left, _ := os.ReadDir(filepath.Join(o.work, "run")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func wellFormed(t *testing.T, svg string) (texts []string, rects int) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return texts, rects
		}
		must(t, err)
		switch v := tok.(type) {
		case xml.StartElement:
			if v.Name.Local == "rect" {
				rects++
			}
		case xml.CharData:
			if s := strings.TrimSpace(string(v)); s != "" {
				texts = append(texts, s)
			}
		}
	}
}
