//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// A machine is where figures are from.
type machine struct {
	CPU        string `json:"cpu"`
	Cores      int    `json:"cores"` // that this process may use
	Memory     int64  `json:"memory_bytes"`
	Kernel     string `json:"kernel"`
	OS         string `json:"os"`
	FileSystem string `json:"file_system"` // of the -work directory
	Volumes    string `json:"volumes_file_system,omitempty"`
}

func (m machine) String() string {
	s := fmt.Sprintf("%s, %d cores, %s of memory, Linux %s, %s, %s", m.CPU, m.Cores, binary(m.Memory), m.Kernel, m.OS, m.FileSystem)
	if m.Volumes != "" && m.Volumes != m.FileSystem {
		s += ", volumes on " + m.Volumes
	}
	return s
}

func thisMachine(work string) machine {
	m := machine{Cores: runtime.NumCPU(), FileSystem: fileSystem(work)}
	m.CPU = value("/proc/cpuinfo", "model name", ":")
	if kb, ok := field("/proc/meminfo", "MemTotal:"); ok {
		m.Memory = kb << 10
	}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	m.Kernel = strings.TrimSpace(string(release))
	m.OS = strings.Trim(value("/etc/os-release", "PRETTY_NAME", "="), `"`)
	return m
}

// value returns what stands after name and sep in the first line that begins
// with name.
func value(file, name, sep string) string {
	data, _ := os.ReadFile(file)
	for line := range bytes.Lines(data) {
		k, v, ok := strings.Cut(string(line), sep)
		if ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

// fileSystem returns the type and the options of the file system a directory is on.
func fileSystem(dir string) string {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	data, _ := os.ReadFile("/proc/self/mountinfo")
	best, kind := "", "unknown"
	for line := range bytes.Lines(data) {
		// id parent major:minor root mount-point options ... - type source super-options
		left, right, ok := strings.Cut(string(line), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 1 {
			continue
		}
		at := l[4]
		if (dir == at || strings.HasPrefix(dir, strings.TrimSuffix(at, "/")+"/")) && len(at) >= len(best) {
			best, kind = at, r[0]+" ("+l[5]+")"
			if r[0] == "ext4" && len(r) > 1 && !journaled(r[1]) {
				kind += noJournal
			}
		}
	}
	return kind
}

// noJournal is said of an ext4 without one. Such a file system does not use an
// inode again for minutes after its file was deleted, and looks at all those each
// time it makes a file: 50,000 files that one run left to be removed make the
// next take ten times as long.
const noJournal = ", without a journal"

func journaled(device string) bool {
	if _, err := os.Stat("/proc/fs/jbd2"); err != nil {
		return true // nobody can tell
	}
	all, _ := filepath.Glob("/proc/fs/jbd2/" + filepath.Base(device) + "-*")
	return len(all) > 0
}

// useMemory has the kernel find memory for n bytes, or for as many as are free,
// and gives them back. On a virtual machine that is when its host finds them,
// which takes five times as long as using them: whoever runs next would pay for
// that, and whoever comes after would not.
func useMemory(n int64) error {
	if free, ok := field("/proc/meminfo", "MemFree:"); ok {
		n = min(n, free<<10-free<<10/8)
	}
	if n <= 0 {
		return nil
	}
	p, err := syscall.Mmap(-1, 0, int(n), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("use %s of memory beforehand: %w", binary(n), err)
	}
	for i := 0; i < len(p); i += os.Getpagesize() {
		p[i] = 1
	}
	return syscall.Munmap(p)
}

// commit returns which commit of the source the working directory is at.
func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
