package backup_test

import (
	"fmt"
	"os"
	"syscall"
)

// nobody is who has no rights.
const nobody = 65534

// dropRights makes this process nobody's.
func dropRights() {
	for _, err := range []error{syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)} {
		if err != nil {
			fmt.Fprintln(os.Stderr, "drop rights:", err)
			os.Exit(1)
		}
	}
}

func child(string) int { return 1 }
