// Command cuts compares ways to cut files into chunks: speed, sizes of chunks,
// what is stored after edits at random places, and what a repository takes.
// docs/decisions/0010 is written from what it prints.
//
//	go run ./bench/cuts
//	go run ./bench/cuts -pair OLD:NEW -pair OLD:NEW
//
// The files are a database made by sqlite3, Go's sources one after the other,
// and a tar of all of Go; or those of -file; or, with -pair, what is compared is
// two states of a file or directory.
// Edits, and the splitters' secret, are drawn from a seed, and are the same for
// every way to cut. New chunks are grouped and compressed as a backup does it.
// Speed is that of one core, in CPU time; everything else is exact.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"

	"orlop/chunk"
)

// secret is that of the splitters and of the names.
var secret = [32]byte{20, 26, 11, 20}

func main() {
	edits := flag.Int("edits", 480, "edits of each file")
	algorithms := flag.String("algorithm", "gear,rabin", "algorithms, with commas between")
	files := flag.String("file", "", "files to edit, with commas between")
	var pairs []string
	flag.Func("pair", "`OLD:NEW`, two states of a file or directory", func(s string) error {
		if _, _, ok := strings.Cut(s, ":"); !ok {
			return fmt.Errorf("%q has no colon", s)
		}
		pairs = append(pairs, s)
		return nil
	})
	flag.Parse()
	if err := run(*edits, strings.Split(*algorithms, ","), *files, pairs); err != nil {
		fmt.Fprintf(os.Stderr, "cuts: %v\n", err)
		os.Exit(1)
	}
}

func run(edits int, algorithms []string, files string, pairs []string) error {
	runtime.GOMAXPROCS(1) // so that CPU time is that of one core
	ways, err := ways(algorithms)
	if err != nil {
		return err
	}
	var all []material
	switch {
	case files != "":
		all = named(files)
	case len(pairs) == 0:
		all = made()
	}
	for _, m := range all {
		data, err := m.make()
		if err != nil {
			return fmt.Errorf("get the %s: %w", m.name, err)
		}
		if len(data) < shortest {
			return fmt.Errorf("%s has %d bytes; %d are the least that edits can be drawn in", m.name, len(data), shortest)
		}
		printFile(m.name, data, ways, draw(data, edits))
	}
	for _, p := range pairs {
		old, new, _ := strings.Cut(p, ":")
		if err := printPair(old, new, ways); err != nil {
			return fmt.Errorf("compare %s with %s: %w", old, new, err)
		}
	}
	return nil
}

// ways returns all ways to cut that are compared.
func ways(algorithms []string) (all []chunk.Config, err error) {
	for _, a := range algorithms {
		for avg := 128 << 10; avg <= 2<<20; avg *= 2 {
			for _, part := range []int{4, 2} {
				c := chunk.Config{Algorithm: chunk.Algorithm(a), Min: avg / part, Avg: avg, Max: min(4*avg, chunk.Limit)}
				if err := c.Validate(); err != nil {
					return nil, err
				}
				all = append(all, c)
			}
		}
	}
	return all, nil
}

func describe(c chunk.Config) string {
	return fmt.Sprintf("%s %d/%d/%d", c.Algorithm, c.Min>>10, c.Avg>>10, c.Max>>10)
}
