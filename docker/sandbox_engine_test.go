//go:build engine

package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/pkg/stdcopy"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"orlop/id"
)

// What every helper is refused, whatever it is for.
var refusedAlways = map[string]string{
	"socket unix":       "ok",
	"socket inet":       "EPERM",
	"socket inet6":      "EPERM",
	"socket netlink":    "EPERM",
	"socket packet":     "EPERM",
	"socket alg":        "EPERM",
	"socket vsock":      "EPERM",
	"mount":             "EPERM",
	"umount":            "EPERM",
	"fsopen":            "EPERM",
	"open_tree":         "EPERM",
	"unshare user":      "EPERM",
	"unshare mount":     "EPERM",
	"setns":             "EPERM",
	"ptrace":            "EPERM",
	"process_vm_readv":  "EPERM",
	"kcmp":              "EPERM",
	"pidfd_getfd":       "EPERM",
	"bpf":               "EPERM",
	"perf_event_open":   "EPERM",
	"io_uring_setup":    "EPERM",
	"io_uring_enter":    "EPERM",
	"userfaultfd":       "EPERM",
	"keyctl":            "EPERM",
	"add_key":           "EPERM",
	"fanotify_init":     "EPERM",
	"init_module":       "EPERM",
	"kexec_load":        "EPERM",
	"reboot":            "EPERM",
	"swapon":            "EPERM",
	"sethostname":       "EPERM",
	"settimeofday":      "EPERM",
	"chroot":            "EPERM",
	"open_by_handle_at": "EPERM",
	"name_to_handle_at": "EPERM",

	"write to the root":   "EROFS",
	"write to /proc/sys":  "EROFS",
	"write to cgroups":    "EROFS",
	"trusted xattr":       "EPERM",
	"read of a 0000 file": "ok",
	"open memory device":  "EPERM",
	"open disk device":    "EPERM",

	"uid":         "0",
	"CapInh":      "0000000000000000",
	"CapAmb":      "0000000000000000",
	"NoNewPrivs":  "1",
	"Seccomp":     "2",
	"pids":        "128",
	"memory":      "268435456",
	"environment": "PATH HOSTNAME HOME",
	"interfaces":  "lo",
}

func with(more ...map[string]string) map[string]string {
	m := maps.Clone(refusedAlways)
	for _, o := range more {
		maps.Copy(m, o)
	}
	return m
}

func caps(bits ...uint) map[string]string {
	var set uint64
	for _, b := range bits {
		set |= 1 << b
	}
	hex := cap16(set)
	return map[string]string{"CapEff": hex, "CapPrm": hex, "CapBnd": hex}
}

func cap16(set uint64) string {
	const digits = "0123456789abcdef"
	var p [16]byte
	for i := range p {
		p[15-i] = digits[set>>(4*i)&15]
	}
	return string(p[:])
}

var backupHelper = with(caps(unix.CAP_DAC_OVERRIDE), map[string]string{
	"write to the sockets": "EROFS",
	"create on the volume": "EROFS",
	"write on the volume":  "EROFS",
	"remove on the volume": "EROFS",
	"rename on the volume": "EROFS",
	"chmod on the volume":  "EROFS",
	"chown on the volume":  "EROFS",
	"utimes on the volume": "EROFS",
	"user xattr":           "EROFS",
	"capability xattr":     "EROFS",
	"trusted xattr":        "EROFS",
	"mknod device":         "EROFS",
	"mknod fifo":           "EROFS",
	"noatime of another's": "EPERM",
	"mounts":               "/ ro, /sock ro, /v/0 ro",
})

var restoreHelper = with(caps(unix.CAP_DAC_OVERRIDE, unix.CAP_CHOWN, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_SETFCAP), map[string]string{
	"write to the sockets": "EROFS",
	"create on the volume": "ok",
	"write on the volume":  "ok",
	"remove on the volume": "ok",
	"rename on the volume": "ok",
	"chmod on the volume":  "ok",
	"chown on the volume":  "ok",
	"utimes on the volume": "ok",
	"user xattr":           "ok",
	"capability xattr":     "ok",
	"mknod device":         "EPERM",
	"mknod fifo":           "ok",
	"noatime of another's": "ok",
	"mounts":               "/ ro, /sock ro, /v/0 rw",
})

var devicesHelper = with(restoreHelper, caps(unix.CAP_DAC_OVERRIDE, unix.CAP_CHOWN, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_SETFCAP, unix.CAP_MKNOD),
	map[string]string{"mknod device": "ok"})

// What the agent takes from itself first thing.
var sealedHelper = with(backupHelper, map[string]string{
	"execve of itself":       "EACCES",
	"execve from the volume": "EACCES",
	"execveat":               "EACCES",
})

func TestAProbeInsideTheSandboxFindsNothingItShouldNot(t *testing.T) {
	tests := []struct {
		name   string
		config HelperConfig
		mode   string
		want   map[string]string
	}{
		{"backup", HelperConfig{}, "probe", backupHelper},
		{"backup, after the agent has sealed itself", HelperConfig{}, "sealed", sealedHelper},
		{"restore", HelperConfig{Mode: Restore}, "probe", restoreHelper},
		{"restore with device nodes", HelperConfig{Mode: Restore, Devices: true}, "probe", devicesHelper},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := engine(t)
			name, dir := newVolume(t, e)
			fillForProbe(t, dir)
			tt.config.Volumes = []string{name}
			got := runProbe(t, e, tt.config, tt.mode)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("what the probe found (-want +got):\n%s", diff)
			}
		})
	}
}

// An engine that cannot confine calls is used only when that was asked for, and
// then the rest of the sandbox still holds.
func TestAWeakSandboxIsWeakOnlyInItsSystemCalls(t *testing.T) {
	e := engine(t)
	e.info.Seccomp = false
	name, dir := newVolume(t, e)
	fillForProbe(t, dir)
	got := runProbe(t, e, HelperConfig{Volumes: []string{name}}, "probe")
	for _, what := range []string{"socket inet", "io_uring_setup", "NoNewPrivs", "CapEff", "create on the volume", "interfaces", "mounts", "open disk device", "trusted xattr", "mount"} {
		want := backupHelper[what]
		if what == "socket inet" {
			want = "ok" // by the engine's own default
		}
		if what == "io_uring_setup" {
			continue // some defaults have it, some do not
		}
		if got[what] != want {
			t.Errorf("%s: %s, want %s", what, got[what], want)
		}
	}
	h := start(t, e, HelperConfig{Volumes: []string{name}, WeakSandbox: true})
	if _, err := h.Client.Look(t.Context(), h.Root(0)); err != nil {
		t.Error(err)
	}
}

// fillForProbe puts on the volume what the probe tries things with.
func fillForProbe(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"file", "victim", "victim2"} {
		write(t, filepath.Join(dir, name), name, 0o600)
	}
	program, err := os.ReadFile(probe)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "program"), string(program), 0o755)
	if err := os.Mkdir(filepath.Join(dir, "locked"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "locked/secret"), "x", 0)
	for _, name := range []string{"locked/secret", "locked"} {
		if err := os.Chown(filepath.Join(dir, name), 12345, 12345); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "locked"), 0); err != nil {
		t.Fatal(err)
	}
	// The disk that the volume is on, and the machine's memory.
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "disk"), unix.S_IFBLK|0o666, int(st.Dev)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "mem"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 1))); err != nil {
		t.Fatal(err)
	}
}

// runProbe runs the probe in exactly the container that StartHelper would
// make, but for the command.
func runProbe(t *testing.T, e *Engine, c HelperConfig, mode string) map[string]string {
	t.Helper()
	img, err := e.helperImage(t.Context(), probe)
	if err != nil {
		t.Fatal(err)
	}
	return runImage(t, e, img, c, mode)
}

func runImage(t *testing.T, e *Engine, img string, c HelperConfig, mode string) map[string]string {
	t.Helper()
	ctx := t.Context()
	c.Run = id.Session{1}
	config, host := sandbox(c, e, img, shortDir(t))
	config.Cmd = []string{mode}
	made, err := e.cli.ContainerCreate(ctx, config, host, nil, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.removeContainer(ctx, made.ID); err != nil {
			t.Error(err)
		}
	}()
	attached, err := e.attach(ctx, made.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer attached.Close()
	if err := e.cli.ContainerStart(ctx, made.ID, container.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	if _, err := stdcopy.StdCopy(&stdout, &stderr, attached.Reader); err != nil {
		t.Fatal(err)
	}
	var found map[string]string
	if err := json.NewDecoder(io.MultiReader(&stdout, &stderr)).Decode(&found); err != nil {
		t.Fatalf("the probe's report: %v\n%s", err, stderr.String())
	}
	return found
}

// The same, line by line, as docker inspect shows it for a helper that runs.
func TestInspectShowsTheSandbox(t *testing.T) {
	e := engine(t)
	first, _ := newVolume(t, e)
	second, _ := newVolume(t, e)
	tests := []struct {
		name     string
		config   HelperConfig
		caps     []string
		readOnly bool
	}{
		{"backup", HelperConfig{}, []string{"DAC_OVERRIDE"}, true},
		{"restore", HelperConfig{Mode: Restore}, []string{"DAC_OVERRIDE", "CHOWN", "FOWNER", "FSETID", "SETFCAP"}, false},
		{"restore with device nodes", HelperConfig{Mode: Restore, Devices: true}, []string{"DAC_OVERRIDE", "CHOWN", "FOWNER", "FSETID", "SETFCAP", "MKNOD"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.config.Volumes = []string{first, second}
			h := start(t, e, tt.config)
			c, err := e.cli.ContainerInspect(t.Context(), h.ID())
			if err != nil {
				t.Fatal(err)
			}
			is := func(what string, got, want any) {
				t.Helper()
				if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("%s (-want +got):\n%s", what, diff)
				}
			}
			bare := make([]string, len(c.HostConfig.CapAdd))
			for i, name := range c.HostConfig.CapAdd {
				bare[i] = strings.TrimPrefix(name, "CAP_")
			}
			slices.Sort(bare)
			slices.Sort(tt.caps)
			is("CapAdd", bare, tt.caps)
			is("CapDrop", []string(c.HostConfig.CapDrop), []string{"ALL"})
			is("Privileged", c.HostConfig.Privileged, false)
			is("NetworkMode", string(c.HostConfig.NetworkMode), "none")
			is("NetworkDisabled", c.Config.NetworkDisabled, true)
			is("ReadonlyRootfs", c.HostConfig.ReadonlyRootfs, true)
			is("LogConfig", c.HostConfig.LogConfig.Type, "none")
			is("AutoRemove", c.HostConfig.AutoRemove, true)
			is("PidsLimit", *c.HostConfig.PidsLimit, int64(128))
			is("Memory", c.HostConfig.Memory, int64(256<<20))
			is("MemorySwap", c.HostConfig.MemorySwap, int64(256<<20))
			is("Binds", c.HostConfig.Binds, []string{})
			is("Devices", len(c.HostConfig.Devices), 0)
			is("PidMode", string(c.HostConfig.PidMode), "")
			is("User", c.Config.User, "0:0")
			is("Tty", c.Config.Tty, false)
			is("StdinOnce", c.Config.StdinOnce, true)
			is("Args", c.Args, []string{"agent"})
			is("Env", c.Config.Env, []string{})
			is("labels", map[string]string{
				labelHelper: c.Config.Labels[labelHelper], labelHost: c.Config.Labels[labelHost], labelRun: c.Config.Labels[labelRun],
			}, map[string]string{labelHelper: "1", labelHost: e.Owner, labelRun: id.Session{1}.String()})

			is("SecurityOpt", c.HostConfig.SecurityOpt[0], "no-new-privileges:true")
			var compact bytes.Buffer
			if err := json.Compact(&compact, profile); err != nil {
				t.Fatal(err)
			}
			is("seccomp", c.HostConfig.SecurityOpt[1:], []string{"seccomp=" + compact.String()})

			nocopy := &mount.VolumeOptions{NoCopy: true, Labels: map[string]string{labelMounted: id.Session{1}.String()}}
			is("Mounts", c.HostConfig.Mounts, []mount.Mount{
				{Type: mount.TypeVolume, Source: first, Target: "/v/0", ReadOnly: tt.readOnly, VolumeOptions: nocopy},
				{Type: mount.TypeVolume, Source: second, Target: "/v/1", ReadOnly: tt.readOnly, VolumeOptions: nocopy},
				{
					Type: mount.TypeBind, Source: c.HostConfig.Mounts[2].Source, Target: "/sock", ReadOnly: true,
					BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate},
				},
			})

			// The token is written on stdin only: nothing here is as long as
			// it is but the hash of the binary and the name of its image.
			shown, err := json.Marshal([]any{c.Config, c.HostConfig, c.Path, c.Args})
			if err != nil {
				t.Fatal(err)
			}
			known := c.Config.Labels[labelAgent] + c.Image + c.Config.Image
			for _, long := range regexp.MustCompile("[0-9a-fA-F]{64}").FindAllString(string(shown), -1) {
				if !strings.Contains(known, long) {
					t.Errorf("docker inspect shows %s", long)
				}
			}
		})
	}
}

// Docker's own map of architectures is kept: without its sub-architectures a
// 32-bit call kills one thread, and the container then runs for ever.
func TestThirtyTwoBitCallsFailInsteadOfKilling(t *testing.T) {
	e := engine(t)
	if e.info.Arch != "amd64" {
		return // nothing else has another architecture's calls in its own kernel's binary format
	}
	name, _ := newVolume(t, e)
	small := filepath.Join(t.TempDir(), "probe386")
	if err := build(small, "./testdata/probe386", "GOARCH=386"); err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(small)
	if err != nil {
		t.Fatal(err)
	}
	img, err := e.importImage(t.Context(), io.NewSectionReader(bytes.NewReader(binary), 0, int64(len(binary))), "386probe386probe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = e.cli.ImageRemove(context.Background(), img, image.RemoveOptions{Force: true})
	})
	got := runImage(t, e, img, HelperConfig{Volumes: []string{name}}, "probe")
	want := map[string]string{
		"socketcall inet": "ENOSYS", "socket inet": "EPERM", "socket vsock": "EPERM", "mount": "EPERM", "ptrace": "EPERM",
		"bpf": "EPERM", "io_uring_setup": "EPERM", "open_by_handle_at": "EPERM", "getpid": "ok",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what the 32-bit probe found (-want +got):\n%s", diff)
	}
}
