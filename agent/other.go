//go:build !linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// errHost is what there is of the agent on other hosts: how it opens, reads and
// makes files is Linux's.
var errHost = errors.New("directories of this host can be backed up and restored on Linux only; volumes can be everywhere")

// Local returns an error.
func Local(context.Context) (*Client, error) { return nil, errHost }

// Main is the hidden command "orlop agent", which runs in the helper.
func Main([]string) int {
	fmt.Fprintln(os.Stderr, "orlop agent: the agent runs on Linux only")
	return 1
}
