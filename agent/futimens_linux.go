package agent

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// futimens sets the times of the open file fd. x/sys has it only with a path,
// which for a descriptor that is not O_PATH works from Linux 5.8 on; with a
// null path it always has.
func futimens(fd int, ts *[2]unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
