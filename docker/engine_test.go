//go:build engine

package docker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"orlop/agent"
	"orlop/id"
)

// probe is a static binary of testdata/probe.
var probe string

func TestMain(m *testing.M) {
	code, err := func() (int, error) {
		e, err := Open(context.Background(), slog.New(slog.DiscardHandler))
		if err != nil {
			return 1, fmt.Errorf("%w\nThese tests need a Docker engine; \"make test\" finds or starts one.", err)
		}
		_ = e.Close()
		dir, err := os.MkdirTemp("", "orlop-docker-test-")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		probe = filepath.Join(dir, "probe")
		if err := build(probe, "./testdata/probe"); err != nil {
			return 1, err
		}
		return m.Run(), nil
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// build compiles a static program.
func build(path, pkg string, env ...string) error {
	c := exec.Command("go", "build", "-o", path, pkg)
	c.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// engine opens the engine with an owner of this test's own, and removes that
// owner's helpers at the end, of which there must be none.
func engine(t *testing.T) *Engine {
	t.Helper()
	e, err := Open(t.Context(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	e.Owner = fmt.Sprintf("%016x", mathrand.Uint64())
	t.Cleanup(func() {
		n, err := e.Reap(context.Background(), func(id.Session) bool { return false })
		if n != 0 || err != nil {
			t.Errorf("%d helpers were left, %v", n, err)
		}
		_ = e.Close()
	})
	return e
}

// newVolume makes a volume and returns its name and its directory.
func newVolume(t *testing.T, e *Engine) (string, string) {
	t.Helper()
	v, err := e.CreateVolume(t.Context(), Volume{Name: fmt.Sprintf("orlop-test-%08x", mathrand.Uint32())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.RemoveVolume(context.Background(), v.Name); err != nil && !errdefs.IsNotFound(err) {
			t.Error(err)
		}
	})
	if _, err := os.ReadDir(v.Mountpoint); err != nil {
		t.Fatalf("%v\nThese tests fill volumes in place: run \"make test\" as root on the engine's host.", err)
	}
	return v.Name, v.Mountpoint
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T, e *Engine, c HelperConfig) *Helper {
	t.Helper()
	if c.Binary == "" {
		c.Binary = probe
	}
	c.Run = id.Session{1}
	h, err := e.StartHelper(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return h
}

func TestAHelperIsReachedByTheSocketAndByStdio(t *testing.T) {
	e := engine(t)
	full, dir := newVolume(t, e)
	write(t, filepath.Join(dir, "file"), "x", 0o600)
	empty, _ := newVolume(t, e)
	for _, transport := range []string{agent.TransportSocket, agent.TransportStdio} {
		t.Run(transport, func(t *testing.T) {
			h := start(t, e, HelperConfig{Volumes: []string{full, empty}, NoSocket: transport == agent.TransportStdio})
			if got := h.Client.Transport(); got != transport {
				t.Errorf("transport %q, want %q; the helper says %q", got, transport, h.Log())
			}
			for i, want := range []bool{false, true} {
				got, err := h.Client.Look(t.Context(), h.Root(i))
				if err != nil || got.Empty != want {
					t.Errorf("Look(%s) = %v, %v; want %v", h.Root(i), got, err, want)
				}
			}
			if err := h.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if h.code != 0 || h.Log() != "" {
				t.Errorf("the helper ended with %d and says %q", h.code, h.Log())
			}
			if _, err := e.cli.ContainerInspect(t.Context(), h.ID()); !errdefs.IsNotFound(err) {
				t.Errorf("the container is still there after Close: %v", err)
			}
			if _, err := os.Stat(h.dir); h.dir != "" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the directory of the socket is still there: %v", err)
			}
		})
	}
}

// An engine behind a local socket may see another file system: Docker Desktop,
// or orlop in a container.
func TestAnEngineThatDoesNotShareTheFileSystemGetsStdio(t *testing.T) {
	e := engine(t)
	name, _ := newVolume(t, e)
	own := owner(t, e, name, "socket", "unshare", "--mount", "sh", "-c", `mount -t tmpfs none "$XDG_RUNTIME_DIR" && exec "$@"`, "sh")
	own.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+shortDir(t))
	if got := firstLine(t, own); got != "ready stdio" {
		t.Errorf("the owner says %q, want ready by stdio", got)
	}
}

// shortDir is a directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "o")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// owner is a process that starts a helper, run by means of the command in
// before. It is killed at the end of the test, and its helper is then waited
// for.
func owner(t *testing.T, e *Engine, volume, transport string, before ...string) *exec.Cmd {
	t.Helper()
	args := append(before, probe, "owner", volume, transport, e.Owner)
	own := exec.Command(args[0], args[1:]...)
	own.Stderr = os.Stderr
	t.Cleanup(func() {
		if own.Process == nil {
			return
		}
		list := helpers(t, e)
		_ = own.Process.Kill()
		_ = own.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for _, h := range list {
			gone, errs := e.cli.ContainerWait(ctx, h, container.WaitConditionRemoved)
			select {
			case <-gone:
			case err := <-errs:
				if !errdefs.IsNotFound(err) {
					t.Errorf("the helper is still there: %v", err)
				}
			}
		}
	})
	return own
}

// firstLine starts the command and returns the first line it prints.
func firstLine(t *testing.T, c *exec.Cmd) string {
	t.Helper()
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%v said %q and ended: %v", c.Args, line, err)
	}
	return strings.TrimSpace(line)
}

func TestAHelperDoesNotOutliveItsOwner(t *testing.T) {
	for _, way := range []string{"socket", "stdio"} {
		t.Run(way, func(t *testing.T) {
			e := engine(t)
			name, _ := newVolume(t, e)
			own := owner(t, e, name, way)
			if got := firstLine(t, own); got != "ready "+way {
				t.Fatalf("the owner says %q", got)
			}
			h := helpers(t, e)
			if len(h) != 1 {
				t.Fatalf("%d helpers, want 1", len(h))
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			gone, errs := e.cli.ContainerWait(ctx, h[0], container.WaitConditionRemoved)
			if err := own.Process.Signal(unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			select {
			case <-gone:
			case err := <-errs:
				t.Fatalf("the helper is still there: %v", err)
			}
		})
	}
}

// helpers lists the containers of e's owner.
func helpers(t *testing.T, e *Engine) []string {
	t.Helper()
	list, err := e.cli.ContainerList(context.WithoutCancel(t.Context()), container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", labelHost+"="+e.Owner))})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, c := range list {
		ids = append(ids, c.ID)
	}
	return ids
}

func TestTheHelpersOfRunsThatAreNotAliveAreReaped(t *testing.T) {
	e := engine(t)
	name, _ := newVolume(t, e)
	dead, alive := id.Session{0xde}, id.Session{0xa1}
	t.Setenv("XDG_RUNTIME_DIR", shortDir(t))
	for _, run := range []id.Session{dead, alive} {
		// Created and never started: nothing ends it but us.
		if _, err := e.createHelper(t.Context(), HelperConfig{Volumes: []string{name}, Run: run, Binary: probe}, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := socketDir("", e.socketPrefix(), run); err != nil {
			t.Fatal(err)
		}
	}
	other := engine(t) // of another owner: reaps nothing of ours
	if n, err := other.Reap(t.Context(), func(id.Session) bool { return false }); n != 0 || err != nil {
		t.Errorf("another owner reaped %d, %v", n, err)
	}
	n, err := e.Reap(t.Context(), func(run id.Session) bool { return run == alive })
	if n != 1 || err != nil {
		t.Errorf("Reap = %d, %v; want 1", n, err)
	}
	left := helpers(t, e)
	if len(left) != 1 {
		t.Fatalf("%d helpers are left, want 1", len(left))
	}
	c, err := e.cli.ContainerInspect(t.Context(), left[0])
	if err != nil || c.Config.Labels[labelRun] != alive.String() {
		t.Errorf("the one that is left is of run %s, %v", c.Config.Labels[labelRun], err)
	}
	dirs, _ := filepath.Glob(filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "*"))
	if len(dirs) != 1 || !strings.Contains(dirs[0], alive.String()) {
		t.Errorf("directories left: %v", dirs)
	}
	if n, err := e.Reap(t.Context(), func(id.Session) bool { return false }); n != 1 || err != nil {
		t.Errorf("second Reap = %d, %v; want 1", n, err)
	}
}

func TestAHelperThatIsKilledIsNoticedAtOnceAndNamed(t *testing.T) {
	for _, noSocket := range []bool{false, true} {
		e := engine(t)
		name, _ := newVolume(t, e)
		h := start(t, e, HelperConfig{Volumes: []string{name}, NoSocket: noSocket})
		if err := e.cli.ContainerKill(t.Context(), h.ID(), "KILL"); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, err := h.Client.Look(t.Context(), h.Root(0))
		var exit *ExitError
		if !errors.As(err, &exit) || exit.Code != 137 {
			t.Errorf("%s: Empty of a killed helper: %v; want exit code 137", h.Client.Transport(), err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("that took %v", took)
		}
	}
}

func TestAHelperThatFailsToStartSaysWhy(t *testing.T) {
	e := engine(t)
	tests := []struct{ mode, want string }{
		{"exit", `start a helper for volume "NAME": reach the agent: the helper ended with exit code 7: agent: this agent was told to fail`},
		{"babble", `start a helper for volume "NAME": reach the agent: protocol error: a line of over 21 bytes`},
	}
	for _, tt := range tests {
		t.Run(tt.mode, func(t *testing.T) {
			name, dir := newVolume(t, e)
			write(t, filepath.Join(dir, ".mode"), tt.mode, 0o600)
			_, err := e.StartHelper(t.Context(), HelperConfig{Volumes: []string{name}, Binary: probe, NoSocket: true})
			var failed *StartError
			if !errors.As(err, &failed) || failed.Volume != name {
				t.Fatalf("StartHelper: %v; want a StartError for %s", err, name)
			}
			if got := strings.ReplaceAll(err.Error(), name, "NAME"); got != tt.want {
				t.Errorf("error\n got %s\nwant %s", got, tt.want)
			}
		})
	}
	t.Run("a start that is cancelled leaves nothing", func(t *testing.T) {
		name, dir := newVolume(t, e)
		write(t, filepath.Join(dir, ".mode"), "mute", 0o600)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := e.StartHelper(ctx, HelperConfig{Volumes: []string{name}, Binary: probe})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("StartHelper: %v; want that the deadline is over", err)
		}
		if h := helpers(t, e); len(h) != 0 {
			t.Errorf("%d helpers are left", len(h))
		}
	})
	t.Run("one bad volume of two is named", func(t *testing.T) {
		good, _ := newVolume(t, e)
		bad, err := e.CreateVolume(t.Context(), Volume{
			Name: good + "-bad", Driver: "local",
			Options: map[string]string{"type": "none", "o": "bind", "device": "/nowhere/at/all"},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = e.RemoveVolume(context.Background(), bad.Name) })
		_, err = e.StartHelper(t.Context(), HelperConfig{Volumes: []string{good, bad.Name}, Binary: probe})
		var failed *StartError
		if !errors.As(err, &failed) || failed.Volume != bad.Name {
			t.Errorf("StartHelper: %v; want a StartError for %s", err, bad.Name)
		}
	})
}

func TestAMisspeltVolumeIsNotCreated(t *testing.T) {
	e := engine(t)
	name, _ := newVolume(t, e)
	wrong := name[:len(name)-1] + "x"
	_, err := e.StartHelper(t.Context(), HelperConfig{Volumes: []string{wrong}, Binary: probe})
	var missing *NoVolumeError
	if !errors.As(err, &missing) || !errors.Is(err, ErrNoVolume) || !slices.Contains(missing.Near, name) {
		t.Errorf("StartHelper(%q): %v; want a NoVolumeError near %q", wrong, err, name)
	}
	if _, err := e.inspect(t.Context(), wrong); !errors.Is(err, ErrNoVolume) {
		t.Errorf("volume %q: %v; want that there is none", wrong, err)
	}

	// The same when the volume vanishes after it was inspected.
	_, err = e.createHelper(t.Context(), HelperConfig{Volumes: []string{wrong}, Run: id.Session{1}, Binary: probe}, "")
	if !errors.Is(err, ErrNoVolume) {
		t.Errorf("createHelper(%q): %v; want ErrNoVolume", wrong, err)
	}
	if _, err := e.inspect(t.Context(), wrong); !errors.Is(err, ErrNoVolume) {
		t.Errorf("volume %q: %v; want that there is none", wrong, err)
	}
}

func TestVolumesAreFoundByNameAndByTheirComposeName(t *testing.T) {
	e := engine(t)
	name := fmt.Sprintf("proj%08x_data", mathrand.Uint32())
	project := strings.TrimSuffix(name, "_data")
	want := Volume{
		Name: name, Driver: "local", Options: map[string]string{"type": "tmpfs", "device": "tmpfs"},
		Labels: map[string]string{composeProject: project, composeVolume: "data", "a": "b"},
	}
	made, err := e.CreateVolume(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.RemoveVolume(context.Background(), name) })
	for _, spelled := range []string{name, project + "/data"} {
		got, err := e.Volume(t.Context(), spelled)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(made, got); diff != "" {
			t.Errorf("Volume(%q) differs from what was made (-made +got):\n%s", spelled, diff)
		}
	}
	if diff := cmp.Diff(want.Options, made.Options); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want.Labels, made.Labels); diff != "" {
		t.Error(diff)
	}
	if _, err := e.CreateVolume(t.Context(), want); !errors.Is(err, ErrVolumeExists) {
		t.Errorf("CreateVolume again: %v; want ErrVolumeExists", err)
	}
	var missing *NoVolumeError
	if _, err := e.Volume(t.Context(), project+"/dat"); !errors.As(err, &missing) || !slices.Contains(missing.Near, project+"/data") {
		t.Errorf("Volume(%s/dat): %v", project, err)
	}
	all, err := e.Volumes(t.Context())
	if err != nil || !slices.ContainsFunc(all, func(v Volume) bool { return v.Name == name }) {
		t.Errorf("Volumes() lacks %s: %v", name, err)
	}
}

func TestUsersOfAVolumeAreFoundHoweverTheyMountIt(t *testing.T) {
	e := engine(t)
	name, dir := newVolume(t, e)
	img, err := e.helperImage(t.Context(), probe)
	if err != nil {
		t.Fatal(err)
	}
	prefix := fmt.Sprintf("orlop-user-%08x-", mathrand.Uint32())
	for suffix, bind := range map[string]string{
		"name": name + ":/d:ro", "source": dir + ":/d", "parent": filepath.Dir(filepath.Dir(dir)) + ":/d", "other": "/var/tmp:/var/x:ro",
	} {
		if suffix == "other" {
			bind = t.TempDir() + ":/d"
		}
		c, err := e.cli.ContainerCreate(t.Context(), &container.Config{
			Image: img, Cmd: []string{"mute"}, Labels: map[string]string{composeProject: "p", composeService: "s-" + suffix},
		}, &container.HostConfig{NetworkMode: "none", Binds: []string{bind}}, nil, nil, prefix+suffix)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = e.removeContainer(context.Background(), c.ID) })
	}
	_ = start(t, e, HelperConfig{Volumes: []string{name}}) // does not count
	v, err := e.Volume(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	users, err := e.Users(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	for i := range users {
		users[i].ID = ""
		users[i].Name = strings.TrimPrefix(users[i].Name, prefix)
	}
	want := []User{
		{Name: "name", State: "created", Project: "p", Service: "s-name"},
		{Name: "parent", State: "created", Project: "p", Service: "s-parent", Writes: true},
		{Name: "source", State: "created", Project: "p", Service: "s-source", Writes: true},
	}
	if diff := cmp.Diff(want, users); diff != "" {
		t.Errorf("users (-want +got):\n%s", diff)
	}
}

func TestTheHelperImageIsImportedOnceAndOldOnesAreDropped(t *testing.T) {
	e := engine(t)
	first, err := e.helperImage(t.Context(), probe)
	if err != nil {
		t.Fatal(err)
	}
	again, err := engine(t).helperImage(t.Context(), probe)
	if err != nil || again != first {
		t.Errorf("a second client has image %s, %v; want %s", again, err, first)
	}

	// Another version of the binary gets another image.
	data, err := os.ReadFile(probe)
	if err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(t.TempDir(), "next")
	write(t, next, string(data)+"version 2", 0o700)
	second, err := e.helperImage(t.Context(), next)
	if err != nil || second == first {
		t.Fatalf("image of another binary: %s, %v; the first is %s", second, err, first)
	}
	t.Cleanup(func() {
		_, _ = e.cli.ImageRemove(context.Background(), second, image.RemoveOptions{Force: true})
	})
	// A young one stays, an old one goes, an old one in use stays.
	name, _ := newVolume(t, e)
	h := start(t, e, HelperConfig{Volumes: []string{name}})
	used, err := e.cli.ContainerInspect(t.Context(), h.ID())
	if err != nil || used.Image != first {
		t.Fatalf("the helper runs image %s, %v; want %s", used.Image, err, first)
	}
	e.dropImages(t.Context(), []image.Summary{
		{ID: first, Created: 0},
		{ID: second, Created: time.Now().Unix()},
	})
	for _, img := range []string{first, second} {
		if _, err := e.cli.ImageInspect(t.Context(), img); err != nil {
			t.Error(err)
		}
	}
	e.dropImages(t.Context(), []image.Summary{{ID: second, Created: 0}})
	if _, err := e.cli.ImageInspect(t.Context(), second); !errdefs.IsNotFound(err) {
		t.Errorf("an old image that nothing uses is still there: %v", err)
	}

	// One that vanished under us is imported again.
	h2 := start(t, e, HelperConfig{Volumes: []string{name}, Binary: next})
	if h2.Client == nil {
		t.Error("no client")
	}
}

// How long a user waits for a helper, from the call to the agent's greeting,
// and for its end.
func BenchmarkHelper(b *testing.B) {
	e, err := Open(b.Context(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	v, err := e.CreateVolume(b.Context(), Volume{Name: fmt.Sprintf("orlop-bench-%08x", mathrand.Uint32())})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = e.RemoveVolume(context.Background(), v.Name) }()
	for _, transport := range []string{agent.TransportSocket, agent.TransportStdio} {
		b.Run(transport, func(b *testing.B) {
			var starting time.Duration
			for b.Loop() {
				began := time.Now()
				h, err := e.StartHelper(b.Context(), HelperConfig{Volumes: []string{v.Name}, Binary: probe, NoSocket: transport == agent.TransportStdio})
				if err != nil {
					b.Fatal(err)
				}
				starting += time.Since(began)
				if err := h.Close(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(starting.Milliseconds())/float64(b.N), "ms/start")
		})
	}
}
