package agent

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	tokenSize = 32
	maxUnix   = 107 // bytes of a Unix socket's path; the kernel's limit, less a NUL
	proofTime = 2 * time.Second
	maxStart  = 4096 // bytes of a start line

	// SocketName is the name of the socket in the listener's directory.
	SocketName = "s"

	saySocket = "orlop agent 1 socket\n"
	sayStdio  = "orlop agent 1 stdio\n"
)

// ErrNoAgent is returned when no agent proved itself in time.
var ErrNoAgent = errors.New("no agent came")

// A proof shows that its sender has the token without showing the token. The
// role keeps either side's from being sent back to it.
func proof(token [tokenSize]byte, role string, agent, host []byte) []byte {
	h := hmac.New(sha256.New, token[:])
	_, _ = io.WriteString(h, "orlop "+role+" 1")
	_, _ = h.Write(agent)
	_, _ = h.Write(host)
	return h.Sum(nil)
}

// proveHost is the host's side of the exchange on the socket: it takes the
// agent's nonce, sends its own with its proof, takes the agent's proof and
// says that it is good.
func proveHost(rw io.ReadWriter, token [tokenSize]byte) error {
	var theirs, ours, answer [tokenSize]byte
	_, _ = rand.Read(ours[:])
	if _, err := io.ReadFull(rw, theirs[:]); err != nil {
		return err
	}
	if _, err := rw.Write(append(ours[:], proof(token, "host", theirs[:], ours[:])...)); err != nil {
		return err
	}
	if _, err := io.ReadFull(rw, answer[:]); err != nil {
		return err
	}
	if !hmac.Equal(answer[:], proof(token, "agent", theirs[:], ours[:])) {
		return errors.New("it does not have the token")
	}
	_, err := rw.Write([]byte{1})
	return err
}

// proveAgent is the agent's side. When it returns nil the host has taken the
// connection.
func proveAgent(rw io.ReadWriter, token [tokenSize]byte) error {
	var ours [tokenSize]byte
	var answer [2 * tokenSize]byte
	_, _ = rand.Read(ours[:])
	if _, err := rw.Write(ours[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(rw, answer[:]); err != nil {
		return err
	}
	theirs := answer[:tokenSize]
	if !hmac.Equal(answer[tokenSize:], proof(token, "host", ours[:], theirs)) {
		return errors.New("the host does not have the token")
	}
	if _, err := rw.Write(proof(token, "agent", ours[:], theirs)); err != nil {
		return err
	}
	var taken [1]byte
	_, err := io.ReadFull(rw, taken[:])
	return err
}

// A Listener waits for one agent on a Unix socket in a directory of its own,
// which is meant to be mounted into the helper.
type Listener struct {
	// Wrap, if it is set, is applied to the connection that Accept returns, for
	// who can tell more about its end than the connection can.
	Wrap func(io.ReadWriteCloser) io.ReadWriteCloser

	dir   string
	unix  *net.UnixListener
	token [tokenSize]byte
	once  sync.Once
}

// Listen makes a fresh directory, mode 0700, in dir ("": the one for temporary
// files) and in it a socket, and draws the token that the agent must have.
func Listen(dir string) (_ *Listener, token [32]byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("listen for the agent: %w", err)
		}
	}()
	fresh, err := os.MkdirTemp(dir, "orlop")
	if err != nil {
		return nil, token, err
	}
	path := filepath.Join(fresh, SocketName)
	if len(path) > maxUnix {
		err = fmt.Errorf("%s is longer than the %d bytes a socket's path can have", path, maxUnix)
	}
	var u *net.UnixListener
	if err == nil {
		u, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	}
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		if u != nil {
			_ = u.Close()
		}
		_ = os.RemoveAll(fresh)
		return nil, token, err
	}
	_, _ = rand.Read(token[:])
	return &Listener{dir: fresh, unix: u, token: token}, token, nil
}

// Dir is the directory that holds the socket.
func (l *Listener) Dir() string { return l.dir }

// Close stops listening and removes the socket and its directory.
func (l *Listener) Close() error {
	var err error
	l.once.Do(func() { err = errors.Join(l.unix.Close(), os.RemoveAll(l.dir)) })
	return err
}

// Accept waits for an agent that proves that it has the token, and then closes
// the listener: there is never a second one. Connections that prove nothing
// are dropped, and the wait goes on. After timeout the error satisfies
// errors.Is(err, [ErrNoAgent]); the listener is closed then too.
func (l *Listener) Accept(ctx context.Context, timeout time.Duration) (io.ReadWriteCloser, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, ErrNoAgent)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()

	proven := make(chan net.Conn)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel() // first, so that nobody offers what is not taken
	all.Go(func() {
		few := make(chan struct{}, 16) // proofs at a time; more wait in the backlog
		for {
			few <- struct{}{}
			conn, err := l.unix.Accept()
			if err != nil {
				cancel() // closed
				return
			}
			all.Go(func() {
				defer func() { <-few }()
				_ = conn.SetDeadline(time.Now().Add(proofTime))
				over := context.AfterFunc(ctx, func() { _ = conn.Close() })
				if err := proveHost(conn, l.token); err != nil || !over() {
					_ = conn.Close()
					return
				}
				_ = conn.SetDeadline(time.Time{})
				select {
				case proven <- conn:
				case <-ctx.Done():
					_ = conn.Close()
				}
			})
		}
	})
	select {
	case conn := <-proven:
		_ = l.Close()
		if l.Wrap != nil {
			return l.Wrap(conn), nil
		}
		return conn, nil
	case <-ctx.Done():
		_ = l.Close()
		return nil, fmt.Errorf("wait for the agent: %w", context.Cause(ctx))
	}
}

// A Start is what an agent is told on its standard input: one line of JSON,
// before anything else. That is the only place where the token is written.
type Start struct {
	Token  string `json:"token,omitempty"`  // 64 hex digits
	Socket string `json:"socket,omitempty"` // its path in the helper; none: stdio
	Memory int64  `json:"memory,omitempty"` // bytes the helper may use
	Weak   bool   `json:"weak,omitempty"`   // go on where exec cannot be forbidden
}

// Connect tells an agent that was just started on the other end of stdio what
// s says, and returns the client for it. l is where it is to connect to: s
// should hold the socket's path in the helper, and Connect adds the token. If
// l is nil, or the agent cannot connect or prove itself, the frames go over
// stdio.
//
// The agent alone chooses, and says which in a line on its standard output;
// the host sends no frame before it has read that. So neither can be of the
// other opinion, and no byte is taken for what it is not. A line that does not
// come within timeout is an error satisfying errors.Is(err, [ErrNoAgent]).
//
// The client owns stdio if that is what it talks over; else it is the caller's
// to close, after the client. l is closed in any case.
func Connect(ctx context.Context, stdio io.ReadWriteCloser, l *Listener, s Start, timeout time.Duration) (*Client, error) {
	c, err := connect(ctx, stdio, l, s, timeout)
	if err != nil {
		return nil, fmt.Errorf("reach the agent: %w", err)
	}
	return c, nil
}

func connect(ctx context.Context, stdio io.ReadWriteCloser, l *Listener, s Start, timeout time.Duration) (*Client, error) {
	waiting, cancel := context.WithTimeoutCause(ctx, timeout, ErrNoAgent)
	defer cancel()
	type accepted struct {
		conn io.ReadWriteCloser
		err  error
	}
	came := make(chan accepted, 1)
	if l == nil {
		s.Token, s.Socket = "", ""
		came <- accepted{}
	} else {
		s.Token = hex.EncodeToString(l.token[:])
		go func() {
			conn, err := l.Accept(waiting, timeout)
			came <- accepted{conn, err}
		}()
	}
	// drop ends the waiting and closes what came.
	drop := func() {
		cancel()
		if a := <-came; a.conn != nil {
			_ = a.conn.Close()
		}
	}
	stop := context.AfterFunc(waiting, func() { _ = stdio.Close() })
	line, err := announce(stdio, s)
	if !stop() {
		err = context.Cause(waiting)
	}
	switch {
	case err != nil:
		drop()
		return nil, err
	case line == sayStdio:
		drop()
		return NewClient(ctx, stdio, TransportStdio)
	case line == saySocket && l != nil:
		a := <-came
		if a.err != nil {
			return nil, a.err
		}
		return NewClient(ctx, a.conn, TransportSocket)
	}
	drop()
	return nil, protocolError("the agent says %q", line)
}

// announce sends the start line and reads the answer to it.
func announce(stdio io.ReadWriter, s Start) (string, error) {
	line, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	if _, err := stdio.Write(append(line, '\n')); err != nil {
		return "", err
	}
	answer, err := readLine(stdio, len(saySocket))
	if errors.Is(err, io.EOF) {
		err = ErrNoAgent // it ended; its log says why
	}
	return string(answer), err
}

// readLine reads a line of at most limit bytes with its end, and not a byte
// more, for what follows belongs to others.
func readLine(r io.Reader, limit int) ([]byte, error) {
	var line []byte
	for len(line) < limit {
		var b [1]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, err
		}
		if line = append(line, b[0]); b[0] == '\n' {
			return line, nil
		}
	}
	return nil, protocolError("a line of over %d bytes", limit)
}
