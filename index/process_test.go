package index

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"orlop/id"
)

const processEnv = "ORLOP_INDEX_TEST_PROCESS"

func TestMain(m *testing.M) {
	if n, err := strconv.Atoi(os.Getenv(processEnv)); err == nil {
		if err := process(os.Args[1], n); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	removeBench()
	os.Exit(code)
}

const processRounds = 25

// process is one of several that use the index in dir at the same time: it
// adds its own segments one by one, and asks for all it has added. It opens
// the index anew now and then.
func process(dir string, n int) error {
	m := newMaker(uint64(n))
	x, err := Open(dir, testRepo, quiet())
	if err != nil {
		return err
	}
	mine := map[id.Segment]*Segment{}
	for round := range processRounds {
		mine[m.segmentName()] = &Segment{Packs: []PackInfo{m.pack(m.name, 1+m.rng.IntN(300))}}
		if round%5 == 4 {
			if err := x.Close(); err != nil {
				return err
			}
			if x, err = Open(dir, testRepo, quiet()); err != nil {
				return err
			}
		}
		// What another process's merge has not seen is added again.
		if err := x.Add(mine); err != nil {
			return err
		}
		for s := range mine {
			if !x.Covered()[s] {
				return errors.New("what was added is not covered")
			}
		}
		for _, s := range mine {
			for _, p := range s.Packs {
				for _, b := range p.Boxes[0].Blobs {
					l, ok, err := x.Lookup(b.Name)
					if !ok || err != nil || l.Pack != p.ID || !l.Header.Equal(p.Header) {
						return fmt.Errorf("round %d: Lookup = %v, %v, %v", round, l, ok, err)
					}
				}
			}
		}
	}
	return x.Close()
}

// Several processes add, merge and look up at once; none of them waits for
// another, and none finds anything wrong.
func TestProcessesShareADirectory(t *testing.T) {
	dir := t.TempDir()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// This process holds the files open all the while, as a daemon would.
	holder := mustOpen(t, dir)
	if err := holder.Add(map[id.Segment]*Segment{{1}: newMaker(1).segment(3)}); err != nil {
		t.Fatal(err)
	}
	type result struct {
		out []byte
		err error
	}
	const processes = 4
	results := make(chan result)
	for n := range processes {
		go func() {
			c := exec.CommandContext(t.Context(), program, dir)
			c.Env = append(os.Environ(), processEnv+"="+strconv.Itoa(100+n))
			out, err := c.CombinedOutput()
			results <- result{out, err}
		}()
	}
	for range processes {
		if r := <-results; r.err != nil {
			t.Errorf("%v\n%s", r.err, r.out)
		}
	}
	x := mustOpen(t, dir)
	for e, err := range x.All() {
		if err != nil || !e.Kind.Valid() {
			t.Fatal(e, err)
		}
	}
	if n := len(x.Covered()); n < processRounds {
		t.Errorf("%d segments are covered", n)
	}
}

// A process that holds the lock of a file, as one that writes to it by mistake
// would, costs what the file covers. Waiting for it would be for ever.
func TestLockedFileIsNotWaitedFor(t *testing.T) {
	dir := t.TempDir()
	small(t, 10, dir, 3)
	f, err := os.OpenFile(theFile(t, dir), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	x := mustOpen(t, dir)
	if n := len(x.Covered()); n != 0 {
		t.Errorf("%d segments are covered by a file that is locked", n)
	}
	_ = theFile(t, dir) // it is still there
}
