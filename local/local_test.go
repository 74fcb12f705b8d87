package local

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/id"
)

const childEnv = "ORLOP_LOCAL_TEST_CHILD"

// TestMain lets the test binary be the process that holds a run and is killed.
func TestMain(m *testing.M) {
	if base := os.Getenv(childEnv); base != "" {
		d, err := Open(base, repo)
		if err == nil {
			_, err = d.StartRun(id.Session{7})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("started")
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func dead(t *testing.T, d *Dir) []id.Session {
	t.Helper()
	sids, err := d.Dead()
	if err != nil {
		t.Fatal(err)
	}
	return sids
}

func TestARunIsAliveUntilItEnds(t *testing.T) {
	base := t.TempDir()
	d, err := Open(base, repo)
	if err != nil {
		t.Fatal(err)
	}
	if RunAlive(base, id.Session{1}) || RunAlive(filepath.Join(base, "none"), id.Session{1}) {
		t.Error("a session that never was is alive")
	}
	var runs [3]*Run
	for i := range runs {
		if runs[i], err = d.StartRun(id.Session{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range runs {
		if !RunAlive(base, id.Session{byte(i)}) {
			t.Errorf("session %d is not alive", i)
		}
	}
	if got := dead(t, d); len(got) != 0 {
		t.Errorf("dead: %v", got)
	}
	if _, err := d.StartRun(id.Session{1}); err == nil {
		t.Error("a session was started twice")
	}
	if err := runs[0].Done(); err != nil {
		t.Error(err)
	}
	if err := runs[1].Close(); err != nil {
		t.Error(err)
	}
	for _, again := range []func() error{runs[0].Done, runs[0].Close, runs[1].Close} {
		if err := again(); err != nil {
			t.Errorf("a second time: %v", err)
		}
	}
	if got, want := dead(t, d), []id.Session{{1}}; !slices.Equal(got, want) {
		t.Errorf("dead: %v, want %v", got, want)
	}
	for i, want := range []bool{false, false, true} {
		if RunAlive(base, id.Session{byte(i)}) != want {
			t.Errorf("session %d is alive: %v", i, !want)
		}
	}
	for range 2 {
		if err := d.Forget(id.Session{1}); err != nil {
			t.Error(err)
		}
	}
	if got := dead(t, d); len(got) != 0 {
		t.Errorf("dead: %v", got)
	}
	other, err := Open(base, id.Repository{9})
	if err != nil {
		t.Fatal(err)
	}
	if err := runs[2].Close(); err != nil {
		t.Fatal(err)
	}
	if got := dead(t, other); len(got) != 0 {
		t.Errorf("dead in another repository: %v", got)
	}
}

func TestAKilledRunIsDead(t *testing.T) {
	base := t.TempDir()
	d, err := Open(base, repo)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), childEnv+"="+base)
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	if !RunAlive(base, id.Session{7}) || len(dead(t, d)) > 0 {
		t.Error("a run of another process is not alive")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if RunAlive(base, id.Session{7}) {
		t.Error("a killed run is alive")
	}
	if got, want := dead(t, d), []id.Session{{7}}; !slices.Equal(got, want) {
		t.Errorf("dead: %v, want %v", got, want)
	}
}

func TestMarksStay(t *testing.T) {
	d := open(t)
	if d.Mark("key-exported") {
		t.Error("a mark that was never set is there")
	}
	for range 2 {
		if err := d.SetMark("key-exported"); err != nil {
			t.Error(err)
		}
	}
	if got := d.Marks("key-"); !slices.Equal(got, []string{"key-exported"}) {
		t.Errorf("%q", got)
	}
	if err := d.SetMark("other"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.ClearMark("other"); err != nil || d.Mark("other") {
			t.Errorf("a cleared mark stays: %v", err)
		}
	}
	if !d.Mark("key-exported") || d.Mark("key") {
		t.Error("not exactly the mark that was set is there")
	}
	for _, bad := range []string{"", "..", "a/b", "A", "../runs/x"} {
		if err := d.SetMark(bad); err == nil || d.Mark(bad) {
			t.Errorf("%q is a mark", bad)
		}
	}
}

func TestOpenRemovesWhatTheDeadLeft(t *testing.T) {
	base := t.TempDir()
	d, err := Open(base, repo)
	if err != nil {
		t.Fatal(err)
	}
	make := func(name string, age time.Duration) *os.File {
		f, err := os.Create(d.Path(statsDir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		then := time.Now().Add(-age)
		if err := os.Chtimes(f.Name(), then, then); err != nil {
			t.Fatal(err)
		}
		return f
	}
	make(tempPrefix+"dead", 25*time.Hour)
	make(tempPrefix+"young", 23*time.Hour)
	make("cache", 25*time.Hour)
	if err := unix.Flock(int(make(tempPrefix+"living", 25*time.Hour).Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(base, repo); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, _ := os.ReadDir(d.Path(statsDir))
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{tempPrefix + "living", tempPrefix + "young", "cache"}; !slices.Equal(left, want) {
		t.Errorf("left: %v, want %v", left, want)
	}
}

func TestOpenSaysWhereItFailed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, repo); err == nil {
		t.Error("a file was opened")
	}
	d := open(t)
	if d.Index() != d.Path("index") {
		t.Errorf("index in %s", d.Index())
	}
	if info, err := os.Stat(d.Index()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("index: %v, %v", info, err)
	}
}
