//go:build engine

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"orlop/docker"
	"orlop/id"
	"orlop/treetest"
)

// An engine is the Docker engine of these tests: orlop's own way to it for
// volumes, and the bare API for what a user would do with the docker command.
type engine struct {
	*docker.Engine
	api http.Client
}

func openEngine(t testing.TB) *engine {
	t.Helper()
	e, err := docker.Open(context.Background(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("%v\nThese tests need a Docker engine; \"make test\" finds or starts one.", err)
	}
	socket, ok := strings.CutPrefix(e.Info().Host, "unix://")
	if !ok {
		t.Fatalf("the engine is at %s\nThese tests fill volumes in place: run \"make test\" as root on the engine's host.", e.Info().Host)
	}
	x := &engine{Engine: e}
	x.api.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(func() {
		x.api.CloseIdleConnections()
		_ = e.Close()
	})
	return x
}

// call asks the engine's API and decodes the answer into v, if that is not nil.
func (e *engine) call(method, path string, query url.Values, v any) error {
	return e.callWith(method, path, query, nil, v)
}

// callWith is call with a body.
func (e *engine) callWith(method, path string, query url.Values, body, v any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequest(method, "http://docker"+path+"?"+query.Encode(), bytes.NewReader(text))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	a, err := e.api.Do(r)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	if a.StatusCode >= 300 {
		text, _ := io.ReadAll(a.Body)
		return fmt.Errorf("%s %s: %s: %s", method, path, a.Status, text)
	}
	if v == nil {
		return nil
	}
	return json.NewDecoder(a.Body).Decode(v)
}

// helpers lists the helper containers of the orlop whose cache is below dir,
// however they are.
func (e *engine) helpers(t testing.TB, dir string) []string { return e.helpersBut(t, dir, "") }

// helpersBut leaves out those in one state.
func (e *engine) helpersBut(t testing.TB, dir, state string) (ids []string) {
	t.Helper()
	var list []struct {
		ID, State string
		Labels    map[string]string
	}
	if err := e.call("GET", "/containers/json", url.Values{"all": {"1"}, "filters": {`{"label":["orlop.helper"]}`}}, &list); err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if strings.Contains(c.Labels["orlop.host"], " "+dir) && c.State != state {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

// noHelpers waits until the helpers are gone.
func (e *engine) noHelpers(t testing.TB, dir string, within time.Duration) {
	t.Helper()
	e.noHelpersBut(t, dir, "", within)
}

func (e *engine) noHelpersBut(t testing.TB, dir, state string, within time.Duration) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		left := e.helpersBut(t, dir, state)
		if len(left) == 0 {
			return
		}
		if time.Since(began) > within {
			t.Fatalf("%d helpers are still there after %v", len(left), within)
		}
	}
}

// images lists the helper images made of a binary.
func (e *engine) images(t testing.TB, binary string) (ids []string) {
	t.Helper()
	data, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	h := id.NewHash()
	_, _ = h.Write(data)
	sum := h.Sum()
	var list []struct{ ID string }
	if err := e.call("GET", "/images/json", url.Values{"filters": {fmt.Sprintf(`{"label":["orlop.agent=%x"]}`, sum[:])}}, &list); err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		ids = append(ids, i.ID)
	}
	return ids
}

// forget removes the volumes whose names begin with prefix.
func (e *engine) forget(t testing.TB, prefix string) {
	all, err := e.Volumes(context.Background())
	if err != nil {
		t.Error(err)
	}
	for _, v := range all {
		if strings.HasPrefix(v.Name, prefix) {
			treetest.RemoveAll(t, v.Mountpoint)
			if err := e.RemoveVolume(context.Background(), v.Name); err != nil {
				t.Error(err)
			}
		}
	}
}

// dir returns the directory of a volume.
func (e *engine) dir(t testing.TB, name string) string {
	t.Helper()
	v, err := e.Volume(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadDir(v.Mountpoint); err != nil {
		t.Fatalf("%v\nThese tests fill volumes in place: run \"make test\" as root on the engine's host.", err)
	}
	return v.Mountpoint
}

// prime has the helper image imported: runs that begin at the same moment would
// each import it.
func prime(t *testing.T, e *engine) {
	h := &host{T: t, e: e, home: t.TempDir(), v: prefix()}
	defer e.forget(t, h.v)
	name, _ := h.volume("first")
	h.must("init", "-q")
	h.must("backup", name)
}

// prefix begins the names of one test's volumes.
func prefix() string { return fmt.Sprintf("orlop-cli-%08x", rand.Uint32()) }

// TestEngineScripts runs testdata/engine/*.txtar on real volumes. Their names
// begin with $V, so that nobody's are touched. Beside the commands of
// TestScripts there are
//
//	volume new NAME [-o OPTION=VALUE] [-l LABEL=VALUE]...
//	volume fill NAME        the whole fixture of odd files
//	volume same NAME NAME   the files are
//	volume like NAME NAME   driver, options and labels are
//	volume exists NAME
//	volume dir VARIABLE NAME
//	volume rm NAME
//	container run NAME VOLUME   a container that does nothing, for up to a minute
//	container rm NAME
//	helpers N               there are N helper containers of this script's orlop
//	images N                the engine has N helper images of this orlop
func TestEngineScripts(t *testing.T) {
	e := openEngine(t)
	prime(t, e)
	commands := scriptCommands()
	commands["volume"] = e.volume
	commands["container"] = e.container
	commands["helpers"] = func(ts *testscript.TestScript, neg bool, args []string) {
		need(ts, neg, args, 1, "helpers N")
		if got := len(e.helpers(tb(ts), ts.Getenv("WORK"))); fmt.Sprint(got) != args[0] {
			ts.Fatalf("there are %d helpers, want %s", got, args[0])
		}
	}
	commands["images"] = func(ts *testscript.TestScript, neg bool, args []string) {
		need(ts, neg, args, 1, "images N")
		if got := len(e.images(tb(ts), filepath.Join(built, "orlop"))); fmt.Sprint(got) != args[0] {
			ts.Fatalf("there are %d helper images, want %s", got, args[0])
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/engine",
		RequireUniqueNames: true,
		Cmds:               commands,
		Setup: func(env *testscript.Env) error {
			if err := setUp(env); err != nil {
				return err
			}
			v := prefix()
			env.Setenv("V", v)
			env.Setenv("DOCKER_HOST", e.Info().Host)
			env.Defer(func() {
				e.noHelpers(t, env.WorkDir, 5*time.Second)
				e.forget(t, v)
			})
			return nil
		},
	})
}

func (e *engine) volume(ts *testscript.TestScript, neg bool, args []string) {
	ctx := context.Background()
	need(ts, false, args, 2, "volume new|fill|same|like|exists|dir|rm NAME...")
	find := func(name string) docker.Volume {
		v, err := e.Volume(ctx, name)
		ts.Check(err)
		return v
	}
	what, name := args[0], args[1]
	switch {
	case what == "new":
		v := docker.Volume{Name: name, Options: map[string]string{}, Labels: map[string]string{}}
		for rest := args[2:]; len(rest) >= 2; rest = rest[2:] {
			key, value, _ := strings.Cut(rest[1], "=")
			if rest[0] == "-o" {
				v.Options[key] = value
			} else {
				v.Labels[key] = value
			}
		}
		_, err := e.CreateVolume(ctx, v)
		ts.Check(err)
	case what == "fill":
		treetest.Fill(tb(ts), e.dir(tb(ts), name), false)
	case what == "same" && len(args) == 3:
		sameTrees(ts, neg, []string{e.dir(tb(ts), name), e.dir(tb(ts), args[2])})
	case what == "like" && len(args) == 3:
		a, b := find(name), find(args[2])
		if a.Driver != b.Driver || !cmp.Equal(a.Options, b.Options) || !cmp.Equal(a.Labels, b.Labels) {
			ts.Fatalf("%+v\n%+v", a, b)
		}
	case what == "exists":
		_, err := e.Volume(ctx, name)
		if err != nil && !errors.Is(err, docker.ErrNoVolume) {
			ts.Fatalf("%v", err)
		}
		if (err == nil) == neg {
			ts.Fatalf("volume %s: %v", name, err)
		}
	case what == "dir" && len(args) == 3:
		ts.Setenv(name, e.dir(tb(ts), args[2]))
	case what == "rm":
		treetest.RemoveAll(tb(ts), e.dir(tb(ts), name))
		ts.Check(e.RemoveVolume(ctx, name))
	default:
		ts.Fatalf("volume %q", args)
	}
}

func (e *engine) container(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "container run|rm NAME...")
	what, name := args[0], args[1]
	if what == "rm" {
		ts.Check(e.call("DELETE", "/containers/"+name, url.Values{"force": {"1"}}, nil))
		return
	}
	// An agent that is told nothing waits for a minute.
	ts.Check(e.callWith("POST", "/containers/create", url.Values{"name": {name}}, map[string]any{
		"Image": e.images(tb(ts), filepath.Join(built, "orlop"))[0], "Entrypoint": []string{"/orlop", "agent"}, "OpenStdin": true,
		"HostConfig": map[string]any{"NetworkMode": "none", "Binds": []string{args[2] + ":/data"}},
	}, nil))
	ts.Defer(func() { _ = e.call("DELETE", "/containers/"+name, url.Values{"force": {"1"}}, nil) })
	ts.Check(e.call("POST", "/containers/"+name+"/start", nil, nil))
}

// A host is one on which orlop was set up: a repository, and places of its own.
type host struct {
	*testing.T
	e    *engine
	home string
	v    string // prefix of its volumes
}

func newHost(t *testing.T) *host {
	h := &host{T: t, e: openEngine(t), home: t.TempDir(), v: prefix()}
	t.Cleanup(func() {
		h.e.noHelpers(t, h.home, 5*time.Second)
		h.e.forget(t, h.v)
	})
	h.must("init", "-q")
	return h
}

func (h *host) command(args ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(built, "orlop"), args...)
	c.Env = append(os.Environ(), "DOCKER_HOST="+h.e.Info().Host,
		"XDG_DATA_HOME="+h.home+"/data", "XDG_CONFIG_HOME="+h.home+"/config", "XDG_CACHE_HOME="+h.home+"/cache")
	return c
}

// run runs orlop and returns what it printed and its exit code.
func (h *host) run(args ...string) (stdout, stderr string, code int) {
	h.Helper()
	var out, errs bytes.Buffer
	c := h.command(args...)
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil && c.ProcessState == nil {
		h.Fatal(err)
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

// must runs orlop and fails the test if it does.
func (h *host) must(args ...string) string {
	h.Helper()
	out, errs, code := h.run(args...)
	if code != 0 {
		h.Fatalf("orlop %s: exit code %d\n%s", strings.Join(args, " "), code, errs)
	}
	return out
}

// volume makes a volume and returns its name and its directory.
func (h *host) volume(name string) (string, string) {
	h.Helper()
	v, err := h.e.CreateVolume(h.Context(), docker.Volume{Name: h.v + "-" + name})
	if err != nil {
		h.Fatal(err)
	}
	return v.Name, h.e.dir(h, v.Name)
}

// write puts bytes that do not compress and were never there before.
func (h *host) write(path string, seed string, n int) {
	h.Helper()
	if err := os.WriteFile(path, treetest.Bytes(seed, n), 0o600); err != nil {
		h.Fatal(err)
	}
}

// snapshots counts them.
func (h *host) snapshots() int {
	h.Helper()
	var list []struct{}
	if err := json.Unmarshal([]byte(h.must("snapshots", "--json")), &list); err != nil {
		h.Fatal(err)
	}
	return len(list)
}

// copyOf copies a directory as it is now.
func (h *host) copyOf(dir string) string {
	h.Helper()
	to := filepath.Join(h.TempDir(), "copy")
	if out, err := exec.Command("cp", "-a", dir, to).CombinedOutput(); err != nil {
		h.Fatalf("cp: %v\n%s", err, out)
	}
	return to
}

// A backup that is killed, whenever that is, leaves no helper and nothing that
// is in the way of the next one.
func TestAKilledBackupLeavesNothingInTheWay(t *testing.T) {
	h := newHost(t)
	name, dir := h.volume("data")
	h.write(dir+"/kept", "kept", 1<<20)
	h.must("backup", name)
	first := h.copyOf(dir)
	h.write(dir+"/big", "0", 40<<20)
	began := time.Now()
	h.must("backup", name)
	typical := time.Since(began)
	known := h.snapshots()

	const kills = 15
	early := 0
	for i := range kills {
		h.write(dir+"/big", fmt.Sprint("killed ", i), 40<<20)
		c := h.command("backup", name)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(typical*time.Duration(i+1)/(kills+1)+rand.N(typical/kills), func() { _ = c.Process.Kill() })
		if err := c.Wait(); err != nil {
			early++
		}
		// One that was made and never started is for the next command to reap:
		// an engine removes by itself only what has run.
		h.e.noHelpersBut(t, h.home, "created", 5*time.Second)
		now := h.snapshots()
		if now < known || now > known+1 {
			t.Fatalf("%d snapshots after the kill, %d before", now, known)
		}
		known = now
		if i%5 == 4 {
			h.must("backup", name)
			h.e.noHelpers(t, h.home, 5*time.Second)
			h.must("check")
			known++
		}
	}
	t.Logf("%d of %d backups were killed before their end; one takes %v", early, kills, typical)
	if early < kills/3 {
		t.Errorf("only %d of %d kills came in time", early, kills)
	}
	h.must("check", "--read-data")
	h.must("restore", name, "--to", h.v+"-last")
	treetest.Same(t, dir, h.e.dir(t, h.v+"-last"))
	var list []struct{ ID string }
	if err := json.Unmarshal([]byte(h.must("snapshots", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	h.must("restore", list[0].ID, "--to", h.v+"-first")
	treetest.Same(t, first, h.e.dir(t, h.v+"-first"))
}

// A helper that is killed, whenever that is, is a failed backup and says so.
func TestAKilledHelperIsAFailedBackupThatSaysSo(t *testing.T) {
	h := newHost(t)
	name, dir := h.volume("data")
	h.write(dir+"/big", "0", 40<<20)
	began := time.Now()
	h.must("backup", name)
	typical := time.Since(began)
	known := h.snapshots()

	const kills = 12
	fired := 0
	for i := range kills {
		h.write(dir+"/big", fmt.Sprint("helper ", i), 40<<20)
		var stdout, stderr bytes.Buffer
		c := h.command("backup", name)
		c.Stdout, c.Stderr = &stdout, &stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_ = c.Wait()
			close(ended)
		}()
		killed := false
		delay := time.After(0)
	waiting:
		for {
			select {
			case <-ended:
				break waiting
			case <-delay:
			}
			ids := h.e.helpers(t, h.home)
			if len(ids) == 0 {
				delay = time.After(time.Millisecond)
				continue
			}
			time.Sleep(rand.N(typical))
			killed = h.e.call("POST", "/containers/"+ids[0]+"/kill", nil, nil) == nil
			<-ended
			break
		}
		now := h.snapshots()
		switch code := c.ProcessState.ExitCode(); {
		case code == 1 && killed:
			fired++
			if now != known {
				t.Errorf("a failed backup left a snapshot: %d, before %d", now, known)
			}
			if text := stderr.String(); !strings.Contains(text, "exit code 137 (killed") && !strings.Contains(text, "is not running") {
				t.Errorf("the error does not say that the helper was killed:\n%s", text)
			}
		case code == 0:
			if now != known+1 {
				t.Errorf("%d snapshots after a backup that succeeded, %d before", now, known)
			}
		default:
			t.Errorf("exit code %d, killed %v:\n%s", code, killed, stderr.String())
		}
		h.e.noHelpers(t, h.home, 5*time.Second)
		known = now
	}
	t.Logf("%d of %d helpers were killed before their backup's end; one takes %v", fired, kills, typical)
	if fired < kills/3 {
		t.Errorf("only %d of %d kills came in time", fired, kills)
	}
	h.must("backup", name)
	h.must("check", "--read-data")
	h.must("restore", name, "--to", h.v+"-last")
	treetest.Same(t, dir, h.e.dir(t, h.v+"-last"))
}

// Making device nodes is a right that a helper has only when it needs it.
func TestARestoreMayMakeDevicesOnlyIfThereAreAny(t *testing.T) {
	h := newHost(t)
	for _, devices := range []bool{false, true} {
		name, dir := h.volume(fmt.Sprint("devices-", devices))
		h.write(dir+"/big", "big", 60<<20)
		if devices {
			if out, err := exec.Command("mknod", dir+"/null", "c", "1", "3").CombinedOutput(); err != nil {
				t.Fatalf("mknod: %v\n%s", err, out)
			}
		}
		h.must("backup", name)
		c := h.command("restore", name, "--to", name+"-copy")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- c.Wait() }()
		var caps []string
		for caps == nil {
			for _, id := range h.e.helpers(t, h.home) {
				var container struct{ HostConfig struct{ CapAdd []string } }
				if err := h.e.call("GET", "/containers/"+id+"/json", nil, &container); err == nil {
					caps = container.HostConfig.CapAdd
				}
			}
			select {
			case err := <-ended:
				t.Fatalf("the restore ended before its helper was seen: %v", err)
			case <-time.After(time.Millisecond):
			}
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		may := slices.ContainsFunc(caps, func(c string) bool { return strings.TrimPrefix(c, "CAP_") == "MKNOD" })
		if may != devices {
			t.Errorf("devices %v: the helper has %q", devices, caps)
		}
		treetest.Same(t, dir, h.e.dir(t, name+"-copy"))
	}
}
