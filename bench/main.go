//go:build linux

// Command bench measures orlop and other backup tools: whole processes, on the
// same bytes, in turn.
//
// # What is measured
//
// A step (first backup, unchanged, restore, ...) is done by each tool in turn, A
// B C, B C A, C A B, as often as -runs says. Before each run everything that it
// will read has been read, and everything that was written before is on the disk;
// making the state that a step begins with is not measured. What came of a step
// is compared with what should: a tool that failed is reported as failed. What a
// run takes is that of all processes of the tool, orlop's helper container
// included (see [watcher]).
//
// # What it leaves alone
//
// It installs nothing, and says what is missing. All it writes is below -work,
// and in Docker volumes with the label orlop.bench, which it removes. Tools run
// with homes, caches and passwords of their own.
//
// docs/performance.md says how figures are to be read, and what is fair about them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second signal does not wait
	o, err := parse(os.Args[1:], os.Stderr)
	if err == nil {
		err = o.run(ctx, os.Stdout, os.Stderr)
	}
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case interrupted:
		fmt.Fprintln(os.Stderr, "bench: interrupted")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	args    []string
	scale   scale
	corpora []string
	steps   []step // nil: those that tell something about a corpus
	peers   []string
	ways    []string // of orlop
	runs    int
	budget  time.Duration
	work    string
	out     string
	orlop   string
}

func parse(args []string, stderr io.Writer) (options, error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	o := options{args: args}
	corpusList := f.String("corpus", "all", "corpora, with commas between: "+strings.Join(corpusNames, ", ")+", all")
	stepList := f.String("step", "", "steps, with commas between: first, unchanged, changed, touched, check, restore, update, all (default: of each corpus those that tell something)")
	peerList := f.String("peers", "all", "peers, with commas between: "+strings.Join(peerNames(), ", ")+", all, none, and NAME=PATH for another version of one, such as restic-0.19=/opt/restic")
	wayList := f.String("ways", "all", "how orlop runs: path, volume, all")
	f.IntVar(&o.runs, "runs", 0, "measured runs of each cell (default 3, with -quick 1)")
	f.DurationVar(&o.budget, "budget", 30*time.Second, "a tool that took this long in a cell is not run there again")
	quickly := f.Bool("quick", false, "small corpora, for a look in a few minutes")
	many := f.Int("files", 0, "files of corpus many (default 1,000,000, with -quick 10,000)")
	f.StringVar(&o.work, "work", "/var/tmp/orlop-bench", "directory for corpora and scratch; some 35 GB in a full run")
	f.StringVar(&o.out, "out", "", "directory for results.json, results.md and chart.svg (default WORK/results/TIME)")
	f.StringVar(&o.orlop, "orlop", "bin/orlop", "orlop's program")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("%q is no flag: bench takes flags alone, see -help", f.Arg(0))
	}
	o.scale = full
	if *quickly {
		o.scale = quick
	}
	if o.runs == 0 {
		o.runs = 3
		if *quickly {
			o.runs = 1
		}
	}
	if *many != 0 {
		o.scale.many = *many
	}
	if o.runs < 1 || o.scale.many < 1 {
		return o, errors.New("-runs and -files are at least 1")
	}
	var err error
	if o.corpora, err = chosen("corpus", *corpusList, corpusNames); err != nil {
		return o, err
	}
	if o.steps, err = chosen("step", *stepList, steps); err != nil {
		return o, err
	}
	if o.ways, err = chosen("ways", *wayList, []string{"path", "volume", "none"}); err != nil {
		return o, err
	}
	for p := range strings.SplitSeq(*peerList, ",") {
		o.peers = append(o.peers, strings.TrimSpace(p))
	}
	if o.work, err = filepath.Abs(o.work); err != nil {
		return o, err
	}
	if o.orlop, err = filepath.Abs(o.orlop); err != nil {
		return o, err
	}
	return o, nil
}

// run measures what the options say, and prints and keeps what it found, also
// if it is interrupted.
func (o options) run(ctx context.Context, stdout, stderr io.Writer) error {
	say := func(format string, args ...any) { fmt.Fprintf(stderr, format+"\n", args...) }
	if _, err := os.Stat(o.orlop); err != nil {
		return fmt.Errorf("find orlop (make build makes it, -orlop says where it is): %w", err)
	}
	if err := adopt(); err != nil {
		return err
	}
	unlock, err := lock(o.work)
	if err != nil {
		return err
	}
	defer unlock()

	began := time.Now()
	r := &results{
		Date: began.UTC().Truncate(time.Second), Commit: commit(ctx), Command: strings.Join(append([]string{"go run ./bench"}, o.args...), " "),
		Scale: o.scale.name, Seed: seed, Runs: o.runs, Budget: o.budget.Seconds(),
		Machine: thisMachine(o.work), Versions: map[string]string{},
	}
	b := &bench{work: o.work, runs: o.runs, budget: o.budget.Seconds(), steps: o.steps, results: r, say: say}
	if slices.Contains(o.ways, "path") {
		b.tools = append(b.tools, newOrlop(o.orlop, false))
	}
	if slices.Contains(o.ways, "volume") {
		if b.engine, err = findEngine(ctx, o.work); err != nil {
			r.Missing = append(r.Missing, fmt.Sprintf("orlop volume: %v", err))
		} else {
			b.tools = append(b.tools, newOrlop(o.orlop, true))
			b.engine.sweep(ctx)
			defer b.engine.sweep(context.WithoutCancel(ctx))
			r.Versions["engine"] = b.engine.version
		}
	}
	peers, missing, err := findPeers(o.peers)
	if err != nil {
		return err
	}
	r.Missing = append(r.Missing, missing...)
	b.tools = append(append(b.tools, peers...), newFloors()...)
	for _, t := range b.tools {
		if r.Versions[t.name()], err = t.version(ctx); err != nil {
			return err
		}
	}
	if o.out == "" {
		o.out = filepath.Join(o.work, "results", r.Date.Format("20060102T150405Z"))
	}
	b.keep = func() error { return r.write(o.out) }

	var todo []*corpus
	for _, name := range o.corpora {
		c := corpora(o.scale)[name]
		if why := c.missing(); why != "" {
			r.Missing = append(r.Missing, fmt.Sprintf("corpus %s: %s", name, why))
			continue
		}
		todo = append(todo, c)
	}
	say("%v", r.Machine)
	if strings.Contains(r.Machine.FileSystem+r.Machine.Volumes, noJournal) {
		say("warning: on an ext4 without a journal it takes long to make files for minutes after many were deleted; steps that make many show that, whatever the tool. Mount a file system of its own on -work, and on the engine's directory")
	}
	for _, m := range r.Missing {
		say("missing: %s", m)
	}
	err = func() error {
		defer os.RemoveAll(filepath.Join(o.work, "run"))
		if err := b.warmUp(ctx); err != nil {
			return err
		}
		for _, c := range todo {
			if err := b.corpus(ctx, c); err != nil {
				return err
			}
		}
		r.Complete = true
		return nil
	}()
	r.print(stdout)
	err = errors.Join(err, b.keep())
	say("\n%s run, %v; results are in %s", r.Scale, time.Since(began).Round(time.Second), o.out)
	if r.Complete && r.Scale == full.name && o.steps == nil && len(o.corpora) == len(corpusNames) {
		say("to keep it: cp -r %s bench/results/%s", o.out, r.Date.Format("2006-01-02"))
	}
	return err
}

// lock makes the work directory this run's own.
func lock(work string) (unlock func(), err error) {
	if err := os.MkdirAll(work, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(work, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s is in use by another bench: wait for it, or give another -work", work)
	}
	return func() { _ = f.Close() }, nil
}
