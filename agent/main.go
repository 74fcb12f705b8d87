//go:build linux

package agent

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"
)

// Main is the hidden command "orlop agent", the program in the helper: it
// reads its [Start] from standard input, connects to the host or stays on
// standard input and output, and serves until the stream ends. It is told
// nothing by arguments or environment, where others could read it.
//
// It returns the exit code: 0 when the host ended the stream, 2 if there are
// arguments, else 1, with a line on standard error that says why.
func Main(args []string) int {
	if len(args) > 0 {
		fmt.Fprintln(os.Stderr, "orlop agent: this command is started by orlop itself and takes no arguments")
		return 2
	}
	sealed := forbidExec()
	// A host that is gone is an error of a write, not the end by a signal.
	signal.Ignore(syscall.SIGPIPE)
	if err := run(openStdio(), sealed); err != nil {
		fmt.Fprintf(os.Stderr, "orlop agent: %v\n", err)
		return 1
	}
	return 0
}

// stdio is standard input and output as one stream.
type stdio struct{ in, out *os.File }

// openStdio returns the standard streams in a form in which closing them ends
// a read that waits, which os.Stdin is not.
func openStdio() stdio {
	_ = syscall.SetNonblock(0, true)
	_ = syscall.SetNonblock(1, true)
	return stdio{os.NewFile(0, "stdin"), os.NewFile(1, "stdout")}
}

func (s stdio) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s stdio) Write(p []byte) (int, error) { return s.out.Write(p) }
func (s stdio) Close() error                { return errors.Join(s.in.Close(), s.out.Close()) }

func run(std stdio, sealed error) error {
	_ = std.in.SetReadDeadline(time.Now().Add(usual().silence))
	line, err := readLine(std, maxStart)
	if err != nil {
		return fmt.Errorf("read what to do: %w", err)
	}
	_ = std.in.SetReadDeadline(time.Time{})
	var s Start
	if err := json.Unmarshal(line, &s); err != nil {
		return fmt.Errorf("read what to do: %w", err)
	}
	if sealed != nil {
		fmt.Fprintf(os.Stderr, "orlop agent: %v\n", sealed)
		if !s.Weak {
			return sealed
		}
	}
	if s.Memory > 0 {
		debug.SetMemoryLimit(s.Memory / 8 * 7) // not all of it is the heap's
	}
	var rw io.ReadWriteCloser = std
	say := sayStdio
	if s.Socket != "" {
		conn, err := s.connect()
		if err != nil {
			fmt.Fprintf(os.Stderr, "orlop agent: %v; standard input and output will do\n", err)
		} else {
			rw, say = conn, saySocket
		}
	}
	if _, err := io.WriteString(std.out, say); err != nil {
		return err
	}
	return Serve(context.Background(), rw)
}

// connect goes to the host's socket. There is no second attempt: the host
// listens before it writes the start line.
func (s *Start) connect() (io.ReadWriteCloser, error) {
	var token [tokenSize]byte
	if n, err := hex.Decode(token[:], []byte(s.Token)[:min(len(s.Token), 2*tokenSize)]); err != nil || n != tokenSize {
		return nil, errors.New("the token is not one")
	}
	conn, err := net.DialTimeout("unix", s.Socket, proofTime)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(proofTime))
	if err := proveAgent(conn, token); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("prove who we are: %w", err)
	}
	_ = conn.SetDeadline(time.Time{})
	return conn, nil
}
