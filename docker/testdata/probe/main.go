// Command probe stands in for orlop in the tests of the sandbox: "agent" is the
// agent, "probe" tries what a helper must not be able to do and says how it
// went, "sealed" does so after the agent has started in the same process,
// "owner" starts a helper and waits, to be killed, and "exit" and "babble" are
// agents that fail.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"orlop/agent"
	"orlop/docker"
	"orlop/id"
)

func main() {
	// A file beside the volumes' own, put there by a test, changes what the
	// agent does: a helper's command line is not a test's to choose.
	if p, err := os.ReadFile("/v/0/.mode"); err == nil && os.Args[1] == "agent" {
		os.Args[1] = strings.TrimSpace(string(p))
	}
	switch os.Args[1] {
	case "agent":
		os.Exit(agent.Main(os.Args[2:]))
	case "probe":
		report(os.Stdout, probe())
	case "sealed":
		go agent.Main(nil)
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline) && status("Seccomp_filters") != "2"; {
			runtime.Gosched()
		}
		r := probe()
		r["execve of itself"] = try(unix.Exec("/orlop", []string{"/orlop", "exit"}, nil))
		r["execve from the volume"] = try(unix.Exec("/v/0/program", []string{"program", "exit"}, nil))
		r["execveat"] = execveat("/orlop")
		report(os.Stderr, r)
	case "owner":
		own(os.Args[2:])
	case "exit":
		fmt.Fprintln(os.Stderr, "agent: this agent was told to fail")
		os.Exit(7)
	case "babble":
		fmt.Println(strings.Repeat("this is no word of the agent. ", 10))
		time.Sleep(time.Hour)
	case "mute":
		time.Sleep(time.Hour)
	default:
		os.Exit(2)
	}
}

func report(w io.Writer, r map[string]string) {
	if err := json.NewEncoder(w).Encode(r); err != nil {
		os.Exit(1)
	}
}

// own starts a helper for volume args[0] over transport args[1] as owner
// args[2], says how it is reached and waits to be killed.
func own(args []string) {
	ctx := context.Background()
	h, err := func() (*docker.Helper, error) {
		e, err := docker.Open(ctx, slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, err
		}
		e.Owner = args[2]
		return e.StartHelper(ctx, docker.HelperConfig{Volumes: args[:1], Run: id.Session{0xdd}, NoSocket: args[1] == "stdio"})
	}()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready", h.Client.Transport())
	time.Sleep(time.Hour)
}

// try names what a call answered: "ok" or an errno.
func try(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func call(nr uintptr, args ...uintptr) string {
	var a [6]uintptr
	copy(a[:], args)
	_, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno != 0 {
		return unix.ErrnoName(errno)
	}
	return "ok"
}

func execveat(path string) string {
	p, _ := unix.BytePtrFromString(path)
	at := unix.AT_FDCWD
	return call(unix.SYS_EXECVEAT, uintptr(at), uintptr(unsafe.Pointer(p)), 0, 0, 0)
}

func status(field string) string {
	p, _ := os.ReadFile("/proc/thread-self/status")
	for line := range strings.Lines(string(p)) {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func open(path string, flags int) string {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
	if err == nil {
		_ = unix.Close(fd)
	}
	return try(err)
}

func socket(domain, kind int) string {
	fd, err := unix.Socket(domain, kind, 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return try(err)
}

func read(paths ...string) string {
	for _, path := range paths {
		if p, err := os.ReadFile(path); err == nil {
			return strings.TrimSpace(string(p))
		}
	}
	return "unreadable"
}

// raise tries to lift the limit of memory.
func raise(paths ...string) string {
	for _, path := range paths {
		if _, err := os.Stat(path); err == nil {
			return open(path, unix.O_WRONLY)
		}
	}
	return "no such file"
}

func probe() map[string]string {
	r := map[string]string{
		"socket unix":      socket(unix.AF_UNIX, unix.SOCK_STREAM),
		"socket inet":      socket(unix.AF_INET, unix.SOCK_STREAM),
		"socket inet6":     socket(unix.AF_INET6, unix.SOCK_STREAM),
		"socket netlink":   socket(unix.AF_NETLINK, unix.SOCK_RAW),
		"socket packet":    socket(unix.AF_PACKET, unix.SOCK_RAW),
		"socket alg":       socket(unix.AF_ALG, unix.SOCK_SEQPACKET),
		"socket vsock":     socket(unix.AF_VSOCK, unix.SOCK_STREAM),
		"mount":            try(unix.Mount("none", "/v", "tmpfs", 0, "")),
		"umount":           try(unix.Unmount("/v/0", unix.MNT_DETACH)),
		"fsopen":           call(unix.SYS_FSOPEN),
		"open_tree":        call(unix.SYS_OPEN_TREE),
		"unshare user":     call(unix.SYS_UNSHARE, unix.CLONE_NEWUSER),
		"unshare mount":    call(unix.SYS_UNSHARE, unix.CLONE_NEWNS),
		"setns":            call(unix.SYS_SETNS),
		"ptrace":           call(unix.SYS_PTRACE, unix.PTRACE_TRACEME),
		"process_vm_readv": call(unix.SYS_PROCESS_VM_READV, 1),
		"kcmp":             call(unix.SYS_KCMP, 1, 1),
		"pidfd_getfd":      call(unix.SYS_PIDFD_GETFD),
		"bpf":              call(unix.SYS_BPF),
		"perf_event_open":  call(unix.SYS_PERF_EVENT_OPEN),
		"io_uring_setup":   call(unix.SYS_IO_URING_SETUP, 1),
		"io_uring_enter":   call(unix.SYS_IO_URING_ENTER),
		"userfaultfd":      call(unix.SYS_USERFAULTFD, 0),
		"keyctl":           call(unix.SYS_KEYCTL),
		"add_key":          call(unix.SYS_ADD_KEY),
		"fanotify_init":    call(unix.SYS_FANOTIFY_INIT),
		"init_module":      call(unix.SYS_INIT_MODULE),
		"kexec_load":       call(unix.SYS_KEXEC_LOAD),
		"reboot":           call(unix.SYS_REBOOT),
		"swapon":           call(unix.SYS_SWAPON),
		"sethostname":      call(unix.SYS_SETHOSTNAME),
		"settimeofday":     call(unix.SYS_SETTIMEOFDAY),
		"chroot":           try(unix.Chroot("/v")),
		"open_by_handle_at": func() string {
			_, err := unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(1, make([]byte, 8)), unix.O_RDONLY)
			return try(err)
		}(),
		"name_to_handle_at": func() string {
			_, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/v/0", 0)
			return try(err)
		}(),

		"write to the root":    open("/new", unix.O_CREAT|unix.O_WRONLY),
		"write to the sockets": open("/sock/new", unix.O_CREAT|unix.O_WRONLY),
		"write to /proc/sys":   open("/proc/sys/kernel/core_pattern", unix.O_WRONLY),
		"write to cgroups":     raise("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
		"create on the volume": open("/v/0/new", unix.O_CREAT|unix.O_WRONLY),
		"write on the volume":  open("/v/0/file", unix.O_WRONLY),
		"remove on the volume": try(unix.Unlink("/v/0/victim")),
		"rename on the volume": try(unix.Rename("/v/0/victim2", "/v/0/victim3")),
		"chmod on the volume":  try(unix.Chmod("/v/0/file", 0o4755)),
		"chown on the volume":  try(unix.Chown("/v/0/file", 7, 8)),
		"utimes on the volume": try(unix.Utimes("/v/0/file", make([]unix.Timeval, 2))),
		"user xattr":           try(unix.Setxattr("/v/0/file", "user.x", []byte("y"), 0)),
		"capability xattr":     try(unix.Setxattr("/v/0/file", "security.capability", []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0)),
		"trusted xattr":        try(unix.Setxattr("/v/0/file", "trusted.x", []byte("y"), 0)),
		"mknod device":         try(unix.Mknod("/v/0/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))),
		"mknod fifo":           try(unix.Mknod("/v/0/newfifo", unix.S_IFIFO|0o600, 0)),
		"read of a 0000 file":  open("/v/0/locked/secret", unix.O_RDONLY),
		"noatime of another's": open("/v/0/locked/secret", unix.O_RDONLY|unix.O_NOATIME),
		"open memory device":   open("/v/0/mem", unix.O_RDONLY),
		"open disk device":     open("/v/0/disk", unix.O_RDONLY),

		"uid":        strconv.Itoa(os.Getuid()),
		"CapEff":     status("CapEff"),
		"CapPrm":     status("CapPrm"),
		"CapBnd":     status("CapBnd"),
		"CapInh":     status("CapInh"),
		"CapAmb":     status("CapAmb"),
		"NoNewPrivs": status("NoNewPrivs"),
		"Seccomp":    status("Seccomp"),
		"pids":       read("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"),
		"memory":     read("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
	}
	var names []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		names = append(names, name)
	}
	r["environment"] = strings.Join(names, " ")
	var nets []string
	list, _ := filepath.Glob("/sys/class/net/*")
	for _, n := range list {
		nets = append(nets, filepath.Base(n))
	}
	r["interfaces"] = strings.Join(nets, " ")
	var mounts []string
	p, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(p)) {
		f := strings.Fields(line)
		if t := f[4]; t == "/" || strings.HasPrefix(t, "/v/") || t == "/sock" {
			how, _, _ := strings.Cut(f[5], ",")
			mounts = append(mounts, t+" "+how)
		}
	}
	slices.Sort(mounts)
	r["mounts"] = strings.Join(mounts, ", ")
	return r
}
