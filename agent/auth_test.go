package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A spoken is an agent process and its standard streams.
type spoken struct {
	io.WriteCloser
	io.ReadCloser
}

func (s spoken) Close() error { return errors.Join(s.WriteCloser.Close(), s.ReadCloser.Close()) }

// start runs Main in a process of its own. Its end is asked for with wait.
func start(t *testing.T, args ...string) (std spoken, log *bytes.Buffer, wait func() int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "ORLOP_AGENT_TEST=main", "GORACE=atexit_sleep_ms=0")
	log = new(bytes.Buffer)
	cmd.Stderr = log
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	wait = func() int {
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
			t.Error("the agent did not end by itself")
		}
		return cmd.ProcessState.ExitCode()
	}
	return spoken{in, out}, log, wait
}

func listener(t *testing.T) *Listener {
	t.Helper()
	l, token, err := Listen("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if token != l.token || token == [32]byte{} {
		t.Error("the token is not drawn")
	}
	return l
}

func TestABackupByAProcess(t *testing.T) {
	root := t.TempDir()
	data := noise(100_000, 1)
	write(t, filepath.Join(root, "file"), data)
	for _, tt := range []struct {
		name, want string
		socket     func(l *Listener) string
		refused    bool
	}{
		{"over the socket", TransportSocket, func(l *Listener) string { return filepath.Join(l.Dir(), SocketName) }, false},
		{"over stdio where there is no socket", TransportStdio, func(l *Listener) string { return "" }, false},
		{"over stdio where the directory is not shared", TransportStdio, func(l *Listener) string { return "/nowhere/s" }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := listener(t)
			std, log, wait := start(t)
			c, err := Connect(t.Context(), std, l, Start{Socket: tt.socket(l), Memory: 256 << 20}, 10*time.Second)
			if err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			if c.Transport() != tt.want {
				t.Errorf("transport %q, want %q", c.Transport(), tt.want)
			}
			s := newShelf()
			if _, err := c.Backup(t.Context(), request(root), s); err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			if !bytes.Equal(s.bytes(t, "file"), data) {
				t.Error("the file came out different")
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if code := wait(); code != 0 {
				t.Errorf("exit code %d\n%s", code, log)
			}
			if tt.refused != strings.Contains(log.String(), "standard input and output will do") {
				t.Errorf("log: %s", log)
			}
			if _, err := os.Stat(l.Dir()); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket's directory is still there: %v", err)
			}
			_ = std.Close()
		})
	}
}

func TestTheAgentEndsWithTheStreamOrWithoutSense(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		in   string
		code int
		log  string
	}{
		{"no line", nil, "", 1, "read what to do: EOF"},
		{"a line that is none", nil, "hello\n", 1, "read what to do"},
		{"an endless line", nil, strings.Repeat("x", 2*maxStart), 1, "a line of over"},
		{"no frames", nil, "{}\n", 1, "EOF"},
		{"frames of something else", nil, "{}\nGET / HTTP/1.1\r\n\r\n", 1, "protocol error"},
		{"arguments", []string{"--help"}, "", 2, "takes no arguments"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			std, log, wait := start(t, tt.args...)
			_, _ = io.WriteString(std, tt.in)
			_ = std.WriteCloser.Close()
			_, _ = io.Copy(io.Discard, std)
			if code := wait(); code != tt.code || !strings.Contains(log.String(), tt.log) {
				t.Errorf("exit code %d, log %q; want %d, %q", code, log, tt.code, tt.log)
			}
		})
	}
}

func TestOnlyWhoHasTheTokenIsHeard(t *testing.T) {
	l := listener(t)
	dial := func() net.Conn {
		conn, err := net.Dial("unix", filepath.Join(l.Dir(), SocketName))
		if err != nil {
			t.Error(err)
		}
		return conn
	}
	agent := make(chan net.Conn, 1)
	go func() {
		idle := dial() // says nothing, and is in nobody's way
		defer idle.Close()

		wrong := dial()
		if err := proveAgent(wrong, [32]byte{}); err == nil || !strings.Contains(err.Error(), "does not have the token") {
			t.Errorf("an agent without the token believes the host: %v", err)
		}
		_ = wrong.Close()

		// One that skips the host's proof and sends a wrong one itself.
		forger := dial()
		var p [64]byte
		_, _ = forger.Write(p[:32])
		_, _ = io.ReadFull(forger, p[:])
		_, _ = forger.Write(p[32:]) // the host's own proof, sent back
		if n, err := forger.Read(p[:]); err == nil {
			t.Errorf("a forger was answered %x", p[:n])
		}
		_ = forger.Close()

		right := dial()
		if err := proveAgent(right, l.token); err != nil {
			t.Errorf("the true agent: %v", err)
		}
		agent <- right
	}()
	host, err := l.Accept(t.Context(), 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	conn := <-agent
	defer conn.Close()
	go func() { _, _ = conn.Write([]byte("hi")) }()
	var p [2]byte
	if _, err := io.ReadFull(host, p[:]); err != nil || string(p[:]) != "hi" {
		t.Errorf("read %q, %v", p, err)
	}
	if _, err := net.Dial("unix", filepath.Join(l.Dir(), SocketName)); err == nil {
		t.Error("a second connection was possible")
	}
}

func TestAcceptGivesUp(t *testing.T) {
	l := listener(t)
	if info, err := os.Stat(l.Dir()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory is %v, %v", info.Mode(), err)
	}
	if _, err := l.Accept(t.Context(), time.Millisecond); !errors.Is(err, ErrNoAgent) {
		t.Errorf("error %v, want ErrNoAgent", err)
	}
	if _, err := os.Stat(l.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's directory is still there: %v", err)
	}
	l = listener(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Accept(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want the context's", err)
	}
}

func TestAPathTooLongForASocketIsNamed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Listen(dir); err == nil || !strings.Contains(err.Error(), "107 bytes") {
		t.Errorf("error %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%v was left behind", left)
	}
}

func TestAHelperThatSaysSomethingElse(t *testing.T) {
	for _, tt := range []struct{ name, says, want string }{
		{"nothing", "", ErrNoAgent.Error()},
		{"another program", "exec format error\n", "the agent says"},
		{"an endless line", strings.Repeat("x", 100), "a line of over"},
		{"a later version", "orlop agent 2 stdio\n", "the agent says"},
		{"a socket it never came to", saySocket, ErrNoAgent.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host, agent := net.Pipe()
			go func() {
				_, _ = readLine(agent, maxStart)
				_, _ = io.WriteString(agent, tt.says)
				_ = agent.Close()
			}()
			_, err := Connect(t.Context(), host, listener(t), Start{Socket: "/s/s"}, 200*time.Millisecond)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}
