//go:build linux && 386

// Command probe386 tries a few system calls by their 32-bit numbers, which a
// filter for 64-bit ones alone would not know, and says how it went.
package main

import (
	"os"
	"syscall"
	"unsafe"
)

func main() {
	socketcall := []uint32{syscall.AF_INET, syscall.SOCK_STREAM, 0}
	calls := []struct {
		name string
		nr   uintptr
		args [3]uintptr
	}{
		{"getpid", 20, [3]uintptr{}},
		{"mount", 21, [3]uintptr{}},
		{"ptrace", 26, [3]uintptr{}},
		{"socketcall inet", 102, [3]uintptr{1, uintptr(unsafe.Pointer(&socketcall[0]))}},
		{"open_by_handle_at", 342, [3]uintptr{}},
		{"bpf", 357, [3]uintptr{}},
		{"socket inet", 359, [3]uintptr{syscall.AF_INET, syscall.SOCK_STREAM, 0}},
		{"socket vsock", 359, [3]uintptr{40, syscall.SOCK_STREAM, 0}},
		{"io_uring_setup", 425, [3]uintptr{1}},
	}
	report := "{"
	for i, c := range calls {
		how := "ok"
		switch _, _, errno := syscall.RawSyscall(c.nr, c.args[0], c.args[1], c.args[2]); errno {
		case 0:
		case syscall.EPERM:
			how = "EPERM"
		case syscall.ENOSYS:
			how = "ENOSYS"
		default:
			how = errno.Error()
		}
		if i > 0 {
			report += ","
		}
		report += `"` + c.name + `":"` + how + `"`
	}
	_, _ = os.Stdout.WriteString(report + "}")
}
