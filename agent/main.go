package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// StdioReady is what the agent writes to stdout, once and before any frame,
// when it speaks there and not on a socket.
const StdioReady = "orlop agent on stdio\n"

const (
	socketDir       = "/sock" // where docker mounts the directory of the socket
	connectPatience = 5 * time.Second
)

// Main is the program of a helper container, the hidden command "orlop agent".
// Its stdin begins with the token. It serves until the host's stream ends and
// returns the exit code: 0 for that, 1 for trouble, which it names on stderr,
// 2 for arguments.
func Main(args []string) int {
	if len(args) != 0 {
		fmt.Fprintln(os.Stderr, "agent: takes no arguments")
		return 2
	}
	if err := serveHost(); err != nil {
		fmt.Fprintf(os.Stderr, "agent: %v\n", err)
		return 1
	}
	return 0
}

func serveHost() error {
	// First of all: what is on the volume must never be run, whatever happens
	// later.
	if err := forbidExec(); err != nil {
		return fmt.Errorf("forbid running programs: %w", err)
	}
	var token [32]byte
	if _, err := io.ReadFull(os.Stdin, token[:]); err != nil {
		return fmt.Errorf("read the token: %w", err)
	}
	if c, err := dial(token); err == nil {
		defer c.Close()
		return Serve(context.Background(), c)
	}
	if _, err := io.WriteString(os.Stdout, StdioReady); err != nil {
		return err
	}
	rw, err := newStdio()
	if err != nil {
		return err
	}
	return Serve(context.Background(), rw)
}

func dial(token [32]byte) (*net.UnixConn, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(socketDir, socketName), Net: "unix"})
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(connectPatience))
	err = introduce(c, token)
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// stdio is the attached standard input and output.
type stdio struct{ in, out *os.File }

// newStdio sees to it that closing ends a read or write that is under way,
// which it does not on a blocking pipe: an agent whose host is silent would
// never end.
func newStdio() (stdio, error) {
	for fd := range 2 {
		if err := unix.SetNonblock(fd, true); err != nil {
			return stdio{}, err
		}
	}
	return stdio{os.NewFile(0, "stdin"), os.NewFile(1, "stdout")}, nil
}

func (s stdio) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s stdio) Write(p []byte) (int, error) { return s.out.Write(p) }
func (s stdio) Close() error                { return errors.Join(s.in.Close(), s.out.Close()) }

// forbidExec makes every later execve of this process fail with EACCES, in all
// its threads and for good.
func forbidExec() error {
	// The number of a system call means nothing without its architecture: a
	// 32-bit execve has another. Anything that is not native is refused.
	const (
		archOffset = 4          // in struct seccomp_data; the number is at 0
		x32        = 0x40000000 // calls of amd64's third ABI have numbers from here on
		refuse     = unix.SECCOMP_RET_ERRNO | uint32(unix.EACCES)
	)
	arch, ok := auditArch[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("no filter for %s", runtime.GOARCH)
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: archOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: arch, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: refuse},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: x32, Jt: 3},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_EXECVE, Jt: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_EXECVEAT, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		{Code: unix.BPF_RET | unix.BPF_K, K: refuse},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return errno
	}
	return nil
}

// auditArch is linux/audit.h's name for what Go calls an architecture.
var auditArch = map[string]uint32{
	"amd64": unix.AUDIT_ARCH_X86_64, "386": unix.AUDIT_ARCH_I386,
	"arm64": unix.AUDIT_ARCH_AARCH64, "arm": unix.AUDIT_ARCH_ARM,
	"riscv64": unix.AUDIT_ARCH_RISCV64, "ppc64le": unix.AUDIT_ARCH_PPC64LE,
	"s390x": unix.AUDIT_ARCH_S390X, "loong64": unix.AUDIT_ARCH_LOONGARCH64,
}
