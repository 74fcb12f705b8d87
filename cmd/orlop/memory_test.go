package main

import (
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestHeapGrowsToItsBudget(t *testing.T) {
	tests := []struct {
		name         string
		budget, live uint64
		want         int
	}{
		{"half in use may double", 100 << 20, 50 << 20, 100},
		{"little in use is not let grow without end", 100 << 20, 1 << 20, 100},
		{"nothing known", 100 << 20, 0, 100},
		{"nearly all in use is collected at a tenth more", 100 << 20, 99 << 20, 10},
		{"over the budget too", 100 << 20, 1 << 30, 10},
	}
	for _, tt := range tests {
		if got := percent(tt.budget, tt.live); got != tt.want {
			t.Errorf("%s: %d %%, want %d", tt.name, got, tt.want)
		}
	}
}

// The percentage follows what is in use, cycle by cycle.
func TestHeapIsTunedAfterEachCollection(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	growTo(64 << 20)
	held := make([]byte, 60<<20)
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		runtime.GC()
		now := debug.SetGCPercent(11)
		if now == 10 {
			break // 60 MiB and what the test holds are nearly all of the budget
		}
		if time.Now().After(deadline) {
			t.Fatalf("60 of 64 MiB are in use, and the heap may grow by %d %%", now)
		}
	}
	runtime.KeepAlive(held)
}

func TestMemoryLimitOfContainersAndSlices(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		want  uint64
	}{
		{"no cgroups", nil, 0},
		{"version 2, the limit is above", map[string]string{
			"proc/self/cgroup":                   "0::/a.slice/b\n",
			"sys/fs/cgroup/a.slice/memory.max":   "536870912\n",
			"sys/fs/cgroup/a.slice/b/memory.max": "max\n",
		}, 512 << 20},
		{"version 1", map[string]string{
			"proc/self/cgroup": "9:cpu,memory:/docker/x\n3:cpuset:/\n",
			"sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "268435456\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":          "9223372036854771712\n",
		}, 256 << 20},
		{"in a container the group is at the root", map[string]string{
			"proc/self/cgroup":         "0::/\n",
			"sys/fs/cgroup/memory.max": "1073741824\n",
		}, 1 << 30},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range tt.files {
				at := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := memoryLimit(root); got != tt.want {
				t.Errorf("limit %d, want %d", got, tt.want)
			}
		})
	}
}
