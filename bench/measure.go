//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A command is what a tool runs for a step.
type command struct {
	args []string
	dir  string   // where it runs
	env  []string // all of its environment
	attr *syscall.SysProcAttr

	// volume is the engine's name of the volume that a helper of this command
	// works on. The helper is the engine's child, not ours: it is found by this.
	volume string

	// blind is set of an update that does not compare what is there with the
	// snapshot: it writes everything.
	blind bool
}

// shell makes a command of a line for bash, with args as its $1, $2, ... A
// pipeline fails if any part of it does.
func shell(line string, args ...string) []string {
	return append([]string{"bash", "-o", "pipefail", "-c", line, "bash"}, args...)
}

// A usage is what a command took, all its processes together, its helper
// included. What the engine itself does to start a container is in Wall alone.
type usage struct {
	Wall    float64 `json:"wall_seconds"`
	User    float64 `json:"user_seconds"`
	Sys     float64 `json:"system_seconds"`
	Peak    int64   `json:"peak_bytes"`           // see [watcher.peak]
	Helper  int64   `json:"helper_peak_bytes"`    // the helper's part of Peak
	Written int64   `json:"written_bytes"`        // given to the file system to be stored
	Read    int64   `json:"read_from_disk_bytes"` // should be nothing: all was read before
}

// CPU returns the seconds of all cores.
func (u usage) CPU() float64 { return u.User + u.Sys }

// interval is how often a running command is looked at, after the first few
// looks, which come sooner. What a helper does after the last one is not counted;
// each costs some 0.3 ms.
const interval = 20 * time.Millisecond

// grace is how long an interrupted command may take to clean up.
const grace = 10 * time.Second

// A failure is a command that ended with something else than success.
type failure struct {
	err  error
	said string // the end of its stderr
}

// Error implements error.
func (f *failure) Error() string {
	if f.said == "" {
		return f.err.Error()
	}
	return fmt.Sprintf("%v: %s", f.err, f.said)
}

// Unwrap returns how it ended.
func (f *failure) Unwrap() error { return f.err }

// measure runs c and returns what it took and its standard output. A command
// that fails gives a [failure].
func measure(ctx context.Context, c command) (usage, []byte, error) {
	// A child outlives neither us nor, for so is Pdeathsig, the thread that made it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	dir, err := os.MkdirTemp("", "bench-output-")
	if err != nil {
		return usage{}, nil, fmt.Errorf("keep the output of %s: %w", c.args[0], err)
	}
	defer os.RemoveAll(dir)
	var files [2]*os.File
	for i := range files {
		if files[i], err = os.Create(filepath.Join(dir, strconv.Itoa(i))); err != nil {
			return usage{}, nil, fmt.Errorf("keep the output of %s: %w", c.args[0], err)
		}
		defer files[i].Close()
	}
	p := exec.Command(c.args[0], c.args[1:]...)
	p.Dir, p.Env = c.dir, c.env
	p.Stdout, p.Stderr = files[0], files[1] // files: a pipe would want a reader, here
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	w := newWatcher(c.volume)
	began := time.Now()
	if err := p.Start(); err != nil {
		return usage{}, nil, fmt.Errorf("run %s: %w", c.args[0], err)
	}
	w.start(p.Process.Pid)
	stop := context.AfterFunc(ctx, func() {
		_ = syscall.Kill(-p.Process.Pid, syscall.SIGTERM)
		time.AfterFunc(grace, func() { _ = syscall.Kill(-p.Process.Pid, syscall.SIGKILL) })
	})
	err = p.Wait()
	u := usage{Wall: time.Since(began).Seconds()}
	stop()
	w.stop()

	own := []*syscall.Rusage{p.ProcessState.SysUsage().(*syscall.Rusage)}
	for {
		// Whatever it left behind became ours (see adopt), and is ended.
		_ = syscall.Kill(-p.Process.Pid, syscall.SIGKILL)
		var ru syscall.Rusage
		if pid, err := syscall.Wait4(-p.Process.Pid, nil, 0, &ru); err != nil || pid <= 0 {
			break
		}
		own = append(own, &ru)
	}
	u.Peak, u.Helper = w.peak, w.helperPeak
	for _, ru := range own {
		u.User += time.Duration(ru.Utime.Nano()).Seconds()
		u.Sys += time.Duration(ru.Stime.Nano()).Seconds()
		u.Written += ru.Oublock * 512
		u.Read += ru.Inblock * 512
		// A child that was made by vfork starts with its parent's mark, so
		// only what is above ours is surely its own.
		if peak := ru.Maxrss << 10; peak > u.Peak && peak > highWater() {
			u.Peak = peak
		}
	}
	for _, h := range w.helpers {
		u.User += h.user
		u.Sys += h.sys
		u.Written += h.written
		u.Read += h.read
	}
	out, _ := os.ReadFile(files[0].Name())
	if cause := context.Cause(ctx); cause != nil {
		return u, out, cause
	}
	if err != nil {
		return u, out, &failure{err, tail(files[1].Name())}
	}
	return u, out, nil
}

// adopt makes this process the parent of all that its descendants leave behind,
// so that they can be counted and ended.
func adopt() error {
	const prSetChildSubreaper = 36
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0); errno != 0 {
		return fmt.Errorf("become a reaper of processes: %w", errno)
	}
	return nil
}

// tail returns the last few lines of a file on one.
func tail(name string) string {
	data, _ := os.ReadFile(name)
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	s := strings.Join(lines[max(0, len(lines)-3):], "; ")
	return s[max(0, len(s)-400):]
}

// A process is one that is watched.
type process struct {
	high      int64 // bytes, the most that was resident so far, as last seen
	user, sys float64
	read      int64
	written   int64
	helper    bool
}

// A watcher looks at all processes of a command while they run.
type watcher struct {
	volume string
	before map[string]bool // processes that were there already
	pids   map[string]*process

	// peak is the largest sum of the high-water marks (VmHWM) of processes that
	// were there together: what was resident at most, pages of mapped files
	// included, cached pages that nobody maps not. Marks do not come down, so it
	// misses nothing between two looks, and may be above the true peak of a tool
	// of several processes.
	peak, helperPeak int64
	helpers          []*process

	ended, gone chan struct{}
}

func newWatcher(volume string) *watcher {
	w := &watcher{
		volume: volume, before: map[string]bool{}, pids: map[string]*process{},
		ended: make(chan struct{}), gone: make(chan struct{}),
	}
	for _, pid := range pids() {
		w.before[pid] = true
	}
	return w
}

func (w *watcher) start(root int) {
	w.pids[strconv.Itoa(root)] = &process{}
	go func() {
		defer close(w.gone)
		for wait := time.Millisecond; ; wait = min(2*wait, interval) {
			w.look()
			select {
			case <-time.After(wait):
			case <-w.ended:
				return
			}
		}
	}()
}

func (w *watcher) stop() {
	close(w.ended)
	<-w.gone
}

func (w *watcher) look() {
	self := strconv.Itoa(os.Getpid())
	var sum, helpers int64
	for _, pid := range pids() {
		if w.before[pid] {
			continue
		}
		p := w.pids[pid]
		if p == nil {
			switch parent := parent(pid); {
			case w.volume != "" && isHelper(pid, w.volume):
				p = &process{helper: true}
				w.helpers = append(w.helpers, p)
			case parent == self || w.pids[parent] != nil:
				p = &process{}
			default:
				continue
			}
			w.pids[pid] = p
		}
		p.look(pid)
		sum += p.high
		if p.helper {
			helpers += p.high
		}
	}
	if sum > w.peak {
		w.peak, w.helperPeak = sum, helpers
	}
}

// look reads what pid took so far. What cannot be read, for the process is on
// its way out, stays as it was.
func (p *process) look(pid string) {
	if high, ok := field("/proc/"+pid+"/status", "VmHWM:"); ok {
		p.high = max(p.high, high<<10)
	}
	if !p.helper {
		return // the rest is told at its end
	}
	if f := stat(pid); len(f) > 12 {
		p.user, p.sys = ticks(f[11]), ticks(f[12])
	}
	if n, ok := field("/proc/"+pid+"/io", "write_bytes:"); ok {
		p.written = n
	}
	if n, ok := field("/proc/"+pid+"/io", "read_bytes:"); ok {
		p.read = n
	}
}

// highWater returns the most memory that this process has had.
func highWater() int64 {
	high, _ := field("/proc/self/status", "VmHWM:")
	return high << 10
}

func pids() (all []string) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, n := range names {
		if n[0] >= '0' && n[0] <= '9' {
			all = append(all, n)
		}
	}
	return all
}

// stat returns the fields of /proc/PID/stat after the command's name, the
// state first.
func stat(pid string) []string {
	data, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return nil
	}
	return strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
}

func parent(pid string) string {
	if f := stat(pid); len(f) > 1 {
		return f[1]
	}
	return ""
}

// ticks are hundredths of a second on every Linux that Go runs on.
func ticks(s string) float64 {
	n, _ := strconv.ParseFloat(s, 64)
	return n / 100
}

// field returns the number after name in a file of lines.
func field(file, name string) (int64, bool) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), name); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, " kB")), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// isHelper reports whether pid is orlop's agent in a container in which the
// volume is mounted.
func isHelper(pid, volume string) bool {
	line, err := os.ReadFile("/proc/" + pid + "/cmdline")
	if err != nil || !bytes.HasPrefix(line, []byte("/orlop\x00agent\x00")) {
		return false
	}
	mounts, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	return err == nil && bytes.Contains(mounts, []byte("/"+volume+"/_data "))
}

// run runs something that is not measured, and returns what it prints.
func run(ctx context.Context, c command) ([]byte, error) {
	p := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	p.Dir, p.Env, p.SysProcAttr = c.dir, c.env, c.attr
	p.Cancel = func() error { return p.Process.Signal(syscall.SIGTERM) }
	p.WaitDelay = grace
	out, err := p.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = &failure{exit, strings.TrimSpace(string(exit.Stderr[max(0, len(exit.Stderr)-400):]))}
	}
	if err != nil {
		return out, fmt.Errorf("run %s: %w", strings.Join(c.args, " "), err)
	}
	return out, nil
}
