//go:build !linux

// Command bench measures orlop and other backup tools, on Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: this runs on Linux only: it reads what processes take from /proc")
	os.Exit(1)
}
