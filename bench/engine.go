//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// volumeLabel is on every volume that a bench makes; its value is the -work
// directory, so that what a killed run left can be found.
const volumeLabel = "orlop.bench"

// An engine is the Docker engine that the docker command finds.
type engine struct {
	work    string // value of the label
	version string
	n       int
}

// findEngine returns the engine, or why it cannot be used: it must be local, for
// the directory of a volume is what all other tools back up.
func findEngine(ctx context.Context, work string) (*engine, error) {
	e := &engine{work: work}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	v, err := e.docker(ctx, "version", "--format", "{{.Server.Version}}")
	if err != nil {
		return nil, fmt.Errorf("no Docker engine answers (run this under \"scripts/engine run\"): %w", err)
	}
	e.version = "docker " + v
	name, dir, err := e.create(ctx)
	if err != nil {
		return nil, err
	}
	defer e.remove(context.WithoutCancel(ctx), name)
	if _, err := os.ReadDir(dir); err != nil {
		return nil, fmt.Errorf("the engine's volumes cannot be reached (it must be of this machine, and this run as root): %w", err)
	}
	return e, nil
}

func (e *engine) docker(ctx context.Context, args ...string) (string, error) {
	out, err := run(ctx, command{args: append([]string{"docker"}, args...), env: os.Environ()})
	return strings.TrimSpace(string(out)), err
}

// create makes a volume and returns its name and its directory.
func (e *engine) create(ctx context.Context) (name, dir string, err error) {
	name = e.fresh()
	if _, err := e.docker(ctx, "volume", "create", "--label", volumeLabel+"="+e.work, name); err != nil {
		return "", "", err
	}
	dir, err = e.directory(ctx, name)
	return name, dir, err
}

// fresh returns a name for a volume that there is not.
func (e *engine) fresh() string {
	e.n++
	return fmt.Sprintf("orlop-bench-%d-%d", os.Getpid(), e.n)
}

// directory returns where the engine keeps a volume.
func (e *engine) directory(ctx context.Context, name string) (string, error) {
	return e.docker(ctx, "volume", "inspect", "--format", "{{.Mountpoint}}", name)
}

// remove removes a volume and everything that still uses it.
func (e *engine) remove(ctx context.Context, name string) {
	if used, err := e.docker(ctx, "ps", "--all", "--quiet", "--filter", "volume="+name); err == nil && used != "" {
		_, _ = e.docker(ctx, append([]string{"rm", "--force"}, strings.Fields(used)...)...)
	}
	_, _ = e.docker(ctx, "volume", "rm", "--force", name)
}

// sweep removes all volumes of benches with this -work directory, and those that
// orlop made as copies of them.
func (e *engine) sweep(ctx context.Context) {
	list, _ := e.docker(ctx, "volume", "ls", "--quiet", "--filter", "label="+volumeLabel+"="+e.work)
	for name := range strings.FieldsSeq(list) {
		e.remove(ctx, name)
	}
}
