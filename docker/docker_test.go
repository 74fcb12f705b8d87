package docker

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/client"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestEndpointIsFoundByTheDockerCommandsRules(t *testing.T) {
	dir := t.TempDir()
	// What `docker context create` writes; the directory is the SHA-256 of the
	// name.
	put(t, filepath.Join(dir, "contexts/meta", "512eea46ceb3921dff4363c7069d89d4964d1d9fccaa0f411851a7aa60a5c868", "meta.json"),
		`{"Name":"far","Metadata":{},"Endpoints":{"docker":{"Host":"ssh://root@far","SkipTLSVerify":false}}}`)
	tests := []struct {
		name   string
		env    map[string]string
		config string
		want   string // host, or the error
	}{
		{"nothing said", nil, "", client.DefaultDockerHost},
		{"a host", map[string]string{"DOCKER_HOST": "tcp://h:1"}, "", "tcp://h:1"},
		{"a host without a scheme", map[string]string{"DOCKER_HOST": "h:1"}, "", `DOCKER_HOST is "h:1", which has no scheme: unix://, tcp:// or ssh://`},
		{"a context", map[string]string{"DOCKER_CONTEXT": "far"}, "", `ssh://root@far (context "far")`},
		{"the current context", nil, `{"currentContext":"far"}`, `ssh://root@far (context "far")`},
		{"a host is over a context", map[string]string{"DOCKER_HOST": "unix:///x", "DOCKER_CONTEXT": "far"}, `{"currentContext":"far"}`, "unix:///x"},
		{"a context is over the current one", map[string]string{"DOCKER_CONTEXT": "default"}, `{"currentContext":"far"}`, client.DefaultDockerHost},
		{"no such context", map[string]string{"DOCKER_CONTEXT": "near"}, "", `there is no docker context "near" in DIR`},
		{"a broken configuration", nil, `{`, "read the current context from DIR/config.json: unexpected end of JSON input"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_ = os.Remove(filepath.Join(dir, "config.json"))
			if tt.config != "" {
				put(t, filepath.Join(dir, "config.json"), tt.config)
			}
			at, err := findEndpoint(func(name string) string {
				if name == "DOCKER_CONFIG" {
					return dir
				}
				return tt.env[name]
			})
			got := at.String()
			if err != nil {
				got = strings.ReplaceAll(err.Error(), dir, "DIR")
			}
			if got != tt.want {
				t.Errorf("found %s, want %s", got, tt.want)
			}
		})
	}
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTLSIsForTCPAndVerifiesIfAskedTo(t *testing.T) {
	find := func(env map[string]string) endpoint {
		t.Helper()
		at, err := findEndpoint(func(name string) string { return env[name] })
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	at := find(map[string]string{"DOCKER_HOST": "tcp://h:1", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/c"})
	if at.tls == nil || at.tls.InsecureSkipVerify || at.tls.CAFile != "/c/ca.pem" || !at.tls.ExclusiveRootPools {
		t.Errorf("with DOCKER_TLS_VERIFY: %+v", at.tls)
	}
	at = find(map[string]string{"DOCKER_HOST": "tcp://h:1", "DOCKER_CERT_PATH": "/c"})
	if at.tls == nil || !at.tls.InsecureSkipVerify {
		t.Errorf("with DOCKER_CERT_PATH alone: %+v", at.tls)
	}
	if at = find(map[string]string{"DOCKER_HOST": "unix:///s", "DOCKER_TLS_VERIFY": "1"}); at.tls != nil {
		t.Errorf("a Unix socket has TLS: %+v", at.tls)
	}
}

func TestAnEngineThatDoesNotAnswerIsGivenUp(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "o")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	// It takes connections and says nothing, as one does whose plugin is dead.
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cli, err := endpoint{host: "unix://" + filepath.Join(dir, "s")}.client(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{cli: cli, log: slog.New(slog.DiscardHandler), patience: 50 * time.Millisecond}
	_, err = e.Volumes(t.Context())
	if got, want := err.Error(), "list volumes: no answer within 50ms"; got != want {
		t.Errorf("Volumes: %s\nwant %s", got, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = e.Volumes(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Volumes, cancelled: %v", err)
	}

	t.Setenv("DOCKER_HOST", "unix://"+filepath.Join(dir, "nobody"))
	if _, err := Open(t.Context(), slog.New(slog.DiscardHandler)); !errors.Is(err, ErrNoEngine) {
		t.Errorf("Open where nobody listens: %v; want ErrNoEngine", err)
	}
}

func TestAnEngineWithoutSeccompIsRefused(t *testing.T) {
	e := &Engine{info: Info{Seccomp: false}}
	if _, err := e.StartHelper(t.Context(), HelperConfig{Volumes: []string{"v"}}); !errors.Is(err, ErrWeakSandbox) {
		t.Errorf("StartHelper: %v; want ErrWeakSandbox", err)
	}
}

func TestAHelperForAnotherMachineNamesTheBinaryItNeeds(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(filepath.Dir(self), "orlop-linux-riscv64")
	e := &Engine{info: Info{OS: "linux", Arch: "riscv64"}}
	_, err = e.binary("")
	var missing *BinaryError
	if !errors.As(err, &missing) || missing.Want != want || missing.Engine != "linux/riscv64" {
		t.Fatalf("binary: %v; want a BinaryError naming %s", err, want)
	}
	if got := err.Error(); !strings.Contains(got, "linux/riscv64") || !strings.Contains(got, "put it at "+want+":") {
		t.Errorf("the error is %q; want the engine and the whole path %s", got, want)
	}
	if got := missing.Hint(); !strings.Contains(got, `GOARCH=riscv64 go build -o "`+want) {
		t.Errorf("the hint is %q; want how to make %s", got, want)
	}
	// A dynamic program would not run in an empty image either.
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	e.info.Arch = goArch(machine(t))
	if _, err := e.binary(sh); !errors.As(err, &missing) || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("binary(%s): %v; want that it is linked dynamically", sh, err)
	}
	e.info.OS = "windows"
	if _, err := e.binary(""); err == nil || !strings.Contains(err.Error(), "only linux") {
		t.Errorf("binary for windows: %v", err)
	}
}

func machine(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("uname", "-m").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func TestNearNamesAreSuggested(t *testing.T) {
	all := []Volume{
		{Name: "pgdata"},
		{Name: "uploads"},
		{Name: "shop_pgdata", Labels: map[string]string{composeProject: "shop", composeVolume: "pgdata"}},
		{Name: "blog_db", Labels: map[string]string{composeProject: "blog", composeVolume: "db"}},
		{Name: "x"},
	}
	tests := []struct {
		name string
		want []string
	}{
		{"pgdat", []string{"pgdata"}},
		{"PGDATA", []string{"pgdata", "shop_pgdata"}},
		{"upolads", []string{"uploads"}},
		{"db", []string{"blog_db"}},
		{"shop/pgdta", []string{"shop/pgdata"}},
		{"blog/database", nil},
		{"nothing like it", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, near(tt.name, all)); diff != "" {
				t.Errorf("near(%q) (-want +got):\n%s", tt.name, diff)
			}
		})
	}
}

func TestDistanceIsAMetricOnEdits(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "acb", 1}, {"kitten", "sitting", 3}, {"ca", "abc", 3}} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching("[ab]{0,6}")
		a, b := word.Draw(t, "a"), word.Draw(t, "b")
		d := distance(a, b)
		if d != distance(b, a) || (d == 0) != (a == b) || d > max(len(a), len(b)) || d < len(a)-len(b) {
			t.Fatalf("distance(%q, %q) = %d", a, b, d)
		}
	})
}

func TestOverlapIsOfDirectoriesNotOfLetters(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"/v/a/_data", "/v/a/_data", true},
		{"/v/a/_data", "/v", true},
		{"/", "/v", true},
		{"/v/a/_data/sub/", "/v/a/_data", true},
		{"/v/a", "/v/ab", false},
		{"", "/v", false},
		{"volume", "/v", false},
	} {
		if got := overlap(tt.a, tt.b); got != tt.want || overlap(tt.b, tt.a) != tt.want {
			t.Errorf("overlap(%q, %q) = %v", tt.a, tt.b, got)
		}
	}
}

// The profile is what the comment on it says.
func TestTheProfileAllowsNothingThatWasTakenOut(t *testing.T) {
	var p struct {
		DefaultAction string
		ArchMap       []struct {
			Architecture     string
			SubArchitectures []string
		}
		Syscalls []struct {
			Names    []string
			Action   string
			Args     []struct{ Index, Value int }
			Includes struct{ Caps []string }
		}
	}
	d := json.NewDecoder(bytes.NewReader(profile))
	if err := d.Decode(&p); err != nil {
		t.Fatal(err)
	}
	if p.DefaultAction != "SCMP_ACT_ERRNO" {
		t.Errorf("default action %s", p.DefaultAction)
	}
	subs := map[string][]string{}
	for _, a := range p.ArchMap {
		subs[a.Architecture] = a.SubArchitectures
	}
	if !slices.Contains(subs["SCMP_ARCH_X86_64"], "SCMP_ARCH_X86") || !slices.Contains(subs["SCMP_ARCH_AARCH64"], "SCMP_ARCH_ARM") {
		t.Errorf("sub-architectures are missing: %v", subs)
	}
	for _, s := range p.Syscalls {
		if len(s.Includes.Caps) > 0 {
			t.Errorf("%v comes with a capability", s.Names)
		}
		for _, name := range s.Names {
			switch {
			case s.Action != "SCMP_ACT_ALLOW":
			case name == "socket" && len(s.Args) == 1 && s.Args[0].Index == 0 && s.Args[0].Value == 1:
			case slices.Contains(strings.Fields(`open_by_handle_at name_to_handle_at mount umount umount2 mount_setattr move_mount
				open_tree fsopen fsmount ptrace bpf kcmp socket socketcall setns unshare keyctl add_key userfaultfd fanotify_init
				perf_event_open init_module kexec_load reboot swapon pivot_root chroot`), name),
				strings.HasPrefix(name, "io_uring_"), strings.HasPrefix(name, "process_vm_"):
				t.Errorf("%s is allowed", name)
			}
		}
	}
}

// frames builds an attached stream.
func frames(parts ...any) []byte {
	var p []byte
	for i := 0; i < len(parts); i += 2 {
		text := parts[i+1].(string)
		p = append(p, byte(parts[i].(int)), 0, 0, 0)
		p = binary.BigEndian.AppendUint32(p, uint32(len(text)))
		p = append(p, text...)
	}
	return p
}

func FuzzDemux(f *testing.F) {
	f.Add(frames(1, "hello ", 2, "a line\n", 1, "", 1, "world", 2, "another"))
	f.Add(frames(3, "the disk is full"))
	f.Add(frames(1, "cut")[:9])
	f.Add(frames(7, "x"))
	f.Fuzz(func(t *testing.T, p []byte) {
		d := demux{r: bytes.NewReader(p), ended: make(chan struct{})}
		got, err := io.ReadAll(&d)
		select {
		case <-d.ended:
		default:
			t.Fatal("read to its end, and not said so")
		}
		// What came out and what went to the log is what was in the frames, in
		// order, up to the first that is not whole or not an output.
		var out, log []byte
		bad := false
		for len(p) > 0 {
			if len(p) < 8 || p[0] != 1 && p[0] != 2 {
				bad = true
				break
			}
			kind, n := p[0], int(binary.BigEndian.Uint32(p[4:8]))
			p = p[8:]
			part := p[:min(n, len(p))]
			if kind == 1 {
				out = append(out, part...)
			} else {
				log = append(log, part...)
			}
			if len(part) < n {
				bad = true
				break
			}
			p = p[n:]
		}
		if !bytes.Equal(got, out) {
			t.Fatalf("stdout %q, want %q", got, out)
		}
		if want := strings.TrimSpace(string(log[max(0, len(log)-tailSize):])); d.log.String() != want {
			t.Fatalf("log %q, want %q", d.log.String(), want)
		}
		if (err != nil) != bad {
			t.Fatalf("error %v, want one: %v", err, bad)
		}
	})
}

func TestTheLogKeepsItsEnd(t *testing.T) {
	var l tail
	for range 10 {
		_, _ = l.Write(bytes.Repeat([]byte("x"), tailSize/3))
		_, _ = l.Write([]byte("the end"))
	}
	if got := l.String(); len(got) != tailSize || !strings.HasSuffix(got, "xthe end") {
		t.Errorf("%d bytes ending in %q", len(got), got[len(got)-10:])
	}
}

func TestASocketsDirectoryIsPrivateAndItsNameShort(t *testing.T) {
	base, err := os.MkdirTemp("/tmp", "o")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	dir, err := socketDir(base, "orlop-00000000-", [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	long := filepath.Join(base, strings.Repeat("long", 20))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := socketDir(long, "orlop-00000000-", [16]byte{1}); err == nil {
		t.Error("a name too long for a socket was taken")
	}
	left, err := os.ReadDir(long)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
