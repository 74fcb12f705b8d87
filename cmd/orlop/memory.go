package main

import (
	"context"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync/atomic"

	"orlop/agent"
)

// The heaps, in bytes, that processes may have before they are collected at
// every tenth of growth. A host and its helper together stay under 200 MiB with
// these, whatever else they hold.
const (
	hostHeap  = 48 << 20
	agentHeap = 48 << 20
)

// heap is the budget of this process, once it has one.
var heap atomic.Uint64

// growTo lets the heap grow to budget bytes between collections, or, if more
// than that is in use, by a tenth. Most of the heap is a few dozen large
// buffers and does not grow with what is backed up; a fixed percentage would
// either collect all the time while they fill it (a first backup took a third
// longer), or let it double.
//
// In a container or slice with a memory limit it is at most a third of that.
func growTo(budget uint64) {
	if limit := memoryLimit("/"); limit > 0 {
		budget = min(budget, limit/3)
	}
	if heap.Swap(budget) != 0 {
		return // the next collection tells
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	// A cycle's end is told by an object that it finds dead, and that is then
	// kept for the next.
	type cycle struct{ _ *byte }
	var tell func(*cycle)
	tell = func(c *cycle) {
		metrics.Read(live)
		debug.SetGCPercent(percent(heap.Load(), live[0].Value.Uint64()))
		runtime.SetFinalizer(c, tell)
	}
	debug.SetGCPercent(percent(budget, 16<<20))
	runtime.SetFinalizer(new(cycle), tell)
}

// inProcess starts an agent in this process, which then may take what both may.
func inProcess(ctx context.Context) (*agent.Client, error) {
	growTo(hostHeap + agentHeap)
	return agent.Local(ctx)
}

// percent returns by how much a heap with live bytes in use may grow.
func percent(budget, live uint64) int {
	const least, most = 10, 100
	if live == 0 {
		return most
	}
	if live >= budget {
		return least
	}
	return int(min(max((budget-live)*100/live, least), most))
}

// memoryLimit returns the least memory limit of the cgroups this process is
// in, or 0 if there is none that it can see. root is where /proc and /sys are.
func memoryLimit(root string) (limit uint64) {
	groups, err := os.ReadFile(path.Join(root, "proc/self/cgroup"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(groups)) {
		// "0::/a/b" (version 2) or "9:memory:/a/b" (version 1)
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, group, ok := strings.Cut(rest, ":")
		file, base := "memory.max", "sys/fs/cgroup"
		switch {
		case !ok:
			continue
		case controllers != "":
			if !strings.Contains(","+controllers+",", ",memory,") {
				continue
			}
			file, base = "memory.limit_in_bytes", "sys/fs/cgroup/memory"
		}
		for dir := path.Clean("/" + group); ; dir = path.Dir(dir) {
			text, err := os.ReadFile(path.Join(root, base, dir, file))
			if n, perr := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil && perr == nil && n > 0 {
				if limit == 0 || n < limit {
					limit = n
				}
			}
			if dir == "/" {
				break
			}
		}
	}
	return limit
}
