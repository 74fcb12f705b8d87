package agent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// TestMain lets the test binary be the helper's program.
func TestMain(m *testing.M) {
	switch os.Getenv("ORLOP_AGENT_TEST") {
	case "":
		os.Exit(m.Run())
	case "main":
		os.Exit(Main(os.Args[1:]))
	case "victim":
		os.Exit(victim(os.Getenv("ORLOP_AGENT_VICTIM")))
	case "seal":
		os.Exit(sealedProbe())
	}
}

// sealedProbe runs a program, forbids that, and tries again on several threads.
func sealedProbe() int {
	os.Setenv("ORLOP_AGENT_TEST", "main")
	again := func() error { return exec.Command("/proc/self/exe", "argument").Run() }
	if exit := (*exec.ExitError)(nil); !errors.As(again(), &exit) || exit.ExitCode() != 2 {
		fmt.Println("exec does not work to begin with")
		return 1
	}
	if err := forbidExec(); err != nil {
		fmt.Println(err)
		return 1
	}
	done := make(chan error)
	for range 8 {
		go func() { done <- again() }()
	}
	for range 8 {
		if err := <-done; !errors.Is(err, os.ErrPermission) {
			fmt.Println("exec:", err)
			return 1
		}
	}
	fmt.Println("sealed")
	return 0
}

func TestNothingCanBeRunAfterTheSeal(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "ORLOP_AGENT_TEST=seal", "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "sealed\n" {
		t.Errorf("%v: %s", err, out)
	}
}
