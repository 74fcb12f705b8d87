package agent

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"
)

// The socket's name in the directory that host and helper share.
const socketName = "s"

// A Listener waits for the agent of one helper on a Unix socket.
type Listener struct {
	l     *net.UnixListener
	token [32]byte
}

// Listen makes a socket in dir, which only this user may enter, and draws the
// token that is to reach the agent by another way: who has it is let in.
func Listen(dir string) (l *Listener, token [32]byte, err error) {
	name := filepath.Join(dir, socketName)
	sock, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, token, fmt.Errorf("listen for the agent: %w", err)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		_ = sock.Close()
		return nil, token, fmt.Errorf("listen for the agent: %w", err)
	}
	_, _ = rand.Read(token[:]) // never fails
	return &Listener{sock, token}, token, nil
}

// Accept returns the one connection whose other end proved that it has the
// token, and to which this end proved the same. Whatever it returns, nobody
// else can connect afterwards: the socket is closed and unlinked, and so is
// what had not proved itself, so that an agent that is late is told.
func (l *Listener) Accept(ctx context.Context, timeout time.Duration) (io.ReadWriteCloser, error) {
	defer l.Close()
	deadline := time.Now().Add(timeout)
	if err := l.l.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("wait for the agent: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		c, err := l.l.AcceptUnix()
		if err != nil {
			return nil, fmt.Errorf("wait for the agent: %w", errors.Join(context.Cause(ctx), err))
		}
		stop := context.AfterFunc(ctx, func() { _ = c.Close() })
		_ = c.SetDeadline(deadline)
		err = prove(c, l.token)
		if stop() && err == nil {
			return c, c.SetDeadline(time.Time{})
		}
		_ = c.Close()
	}
}

// Close stops listening and unlinks the socket. It may be called more than
// once.
func (l *Listener) Close() error {
	if err := l.l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// The proof, 32 bytes each: the agent sends a nonce; the host its own and
// HMAC-SHA256(token, "orlop host" | agent's nonce | host's nonce); the agent
// the same with "orlop agent"; the host one byte, 1.
const (
	hostProves  = "orlop host"
	agentProves = "orlop agent"
)

func proof(token [32]byte, who string, agent, host []byte) []byte {
	h := hmac.New(sha256.New, token[:])
	_, _ = io.WriteString(h, who)
	_, _ = h.Write(agent)
	_, _ = h.Write(host)
	return h.Sum(nil)
}

var errNotProved = errors.New("the other side does not have the token")

// prove is the host's part.
func prove(rw io.ReadWriter, token [32]byte) error {
	var agent, host, theirs [32]byte
	if _, err := io.ReadFull(rw, agent[:]); err != nil {
		return err
	}
	_, _ = rand.Read(host[:])
	if _, err := rw.Write(append(host[:], proof(token, hostProves, agent[:], host[:])...)); err != nil {
		return err
	}
	if _, err := io.ReadFull(rw, theirs[:]); err != nil {
		return err
	}
	if !hmac.Equal(theirs[:], proof(token, agentProves, agent[:], host[:])) {
		return errNotProved
	}
	_, err := rw.Write([]byte{1})
	return err
}

// introduce is the agent's part.
func introduce(rw io.ReadWriter, token [32]byte) error {
	var agent [32]byte
	_, _ = rand.Read(agent[:])
	if _, err := rw.Write(agent[:]); err != nil {
		return err
	}
	var answer [64]byte
	if _, err := io.ReadFull(rw, answer[:]); err != nil {
		return err
	}
	host, theirs := answer[:32], answer[32:]
	if !hmac.Equal(theirs, proof(token, hostProves, agent[:], host)) {
		return errNotProved
	}
	if _, err := rw.Write(proof(token, agentProves, agent[:], host)); err != nil {
		return err
	}
	// Without this an agent could think itself let in by a host that had just
	// lost patience.
	var last [1]byte
	if _, err := io.ReadFull(rw, last[:]); err != nil {
		return err
	}
	if last[0] != 1 {
		return errNotProved
	}
	return nil
}
