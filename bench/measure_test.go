//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// scratch is a directory for all tests of a run.
var scratch string

// TestMain lets this program be its own child: one that takes what it is told to.
func TestMain(m *testing.M) {
	if job := os.Getenv("BENCH_TEST_CHILD"); job != "" {
		child(job)
		return
	}
	var err error
	if scratch, err = os.MkdirTemp("", "bench-test-"); err == nil {
		err = adopt()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(scratch)
	os.Exit(code)
}

// child does a job: "take MB SECONDS" has so much memory and uses so much CPU, "pair"
// is two of those at once, "orphan" ends before its child does, "hang" waits to be
// ended.
func child(job string) {
	fields := strings.Fields(job)
	again := func(job string) *exec.Cmd {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), "BENCH_TEST_CHILD="+job)
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		return c
	}
	switch fields[0] {
	case "take":
		mb, _ := strconv.Atoi(fields[1])
		seconds, _ := strconv.ParseFloat(fields[2], 64)
		p := bytes.Repeat([]byte{1}, mb<<20)
		for ru := (syscall.Rusage{}); time.Duration(ru.Utime.Nano()).Seconds() < seconds; {
			for i := range 1_000_000 {
				p[i%len(p)]++
			}
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
		}
		fmt.Println(len(p))
	case "pair":
		a, b := again("take 60 0.3"), again("take 60 0.3")
		if err := errors.Join(a.Start(), b.Start(), a.Wait(), b.Wait()); err != nil {
			os.Exit(1)
		}
	case "orphan":
		if err := again("hang").Start(); err != nil {
			os.Exit(1)
		}
	case "hang":
		select {}
	}
}

func job(job string) command {
	return command{args: []string{os.Args[0]}, env: append(os.Environ(), "BENCH_TEST_CHILD="+job)}
}

func TestMemoryAndCPUOfAChildAreCounted(t *testing.T) {
	u, out, err := measure(t.Context(), job("take 100 0.3"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "104857600\n"; string(out) != want {
		t.Errorf("it printed %q, want %q", out, want)
	}
	// The race detector has shadow memory for what it watches.
	if u.Peak < 100<<20 || u.Peak > 1000<<20 {
		t.Errorf("peak memory is %d MiB, of a process that takes 100", u.Peak>>20)
	}
	if u.User < 0.3 || u.User > 10 || u.Wall < 0.3 {
		t.Errorf("it took %.2f s and %.2f s of CPU, of a process that takes 0.3", u.Wall, u.User)
	}
	if u.Helper != 0 {
		t.Errorf("a helper had %d bytes, and there is none", u.Helper)
	}
}

func TestProcessesThatAreThereTogetherAreAddedUp(t *testing.T) {
	two, _, err := measure(t.Context(), job("pair"))
	if err != nil {
		t.Fatal(err)
	}
	if two.Peak < 120<<20 {
		t.Errorf("peak memory of two grandchildren is %d MiB, of 60 each", two.Peak>>20)
	}
	if two.User < 0.6 {
		t.Errorf("two grandchildren used %.2f s of CPU, of 0.3 each", two.User)
	}
}

// The kernel gives a child the high-water mark of the process that made it, if
// that used vfork as Go does.
func TestOurOwnMemoryIsNotCounted(t *testing.T) {
	p := bytes.Repeat([]byte{1}, 300<<20)
	u, _, err := measure(t.Context(), command{args: []string{"sleep", "0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	if u.Peak > 50<<20 {
		t.Errorf("sleep had %d MiB of memory, beside our %d", u.Peak>>20, len(p)>>20)
	}
}

func TestBytesThatAreWrittenAreCounted(t *testing.T) {
	// Not where temporary files are kept: memory has no disk below it.
	dir, err := os.MkdirTemp("/var/tmp", "bench-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	u, _, err := measure(t.Context(), command{args: []string{"dd", "if=/dev/zero", "of=" + filepath.Join(dir, "file"), "bs=1M", "count=8"}})
	if err != nil {
		t.Fatal(err)
	}
	if u.Written < 8<<20 || u.Written > 9<<20 {
		t.Errorf("%d bytes were written, want 8 MiB", u.Written)
	}
}

func TestAFailureSaysWhatTheProgramSaid(t *testing.T) {
	_, out, err := measure(t.Context(), command{args: []string{"sh", "-c", "echo result; echo no room >&2; exit 7"}})
	var f *failure
	if !errors.As(err, &f) || err.Error() != "exit status 7: no room" {
		t.Errorf("error is %v", err)
	}
	if string(out) != "result\n" {
		t.Errorf("it printed %q", out)
	}
	_, err = run(t.Context(), command{args: []string{"sh", "-c", "echo no room >&2; exit 7"}})
	if want := "run sh -c echo no room >&2; exit 7: exit status 7: no room"; err == nil || err.Error() != want {
		t.Errorf("error is %v, want %s", err, want)
	}
}

func TestAPipelineFailsIfItsFirstPartDoes(t *testing.T) {
	if _, _, err := measure(t.Context(), command{args: shell("false | cat"), env: os.Environ()}); err == nil {
		t.Error("it did not fail")
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	u, _, err := measure(t.Context(), job("orphan"))
	if err != nil {
		t.Fatal(err)
	}
	if u.Wall > 60 {
		t.Errorf("it took %.0f s", u.Wall)
	}
	for _, pid := range pids() {
		if parent(pid) == strconv.Itoa(os.Getpid()) {
			line, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			t.Errorf("process %s is still there: %q", pid, line)
		}
	}
}

func TestAnInterruptEndsTheChild(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	began := time.AfterFunc(200*time.Millisecond, cancel)
	defer began.Stop()
	_, _, err := measure(ctx, job("hang"))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}
