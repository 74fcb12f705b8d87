package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	"orlop/id"
)

// Reap removes the helpers of this owner's runs that are not alive any more,
// and the directories of their sockets. A helper ends by itself when its stream
// does; this is for those that could not. It returns how many it removed.
func (e *Engine) Reap(ctx context.Context, alive func(id.Session) bool) (int, error) {
	list, err := ask(ctx, e, "list helpers", func(ctx context.Context) ([]container.Summary, error) {
		return e.cli.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(
			filters.Arg("label", labelHelper+"=1"), filters.Arg("label", labelHost+"="+e.Owner))})
	})
	if err != nil {
		return 0, err
	}
	n := 0
	var failed []error
	for _, c := range list {
		run, err := id.ParseSession(c.Labels[labelRun])
		// A label that is no run is not ours to judge.
		if err != nil || alive(run) {
			continue
		}
		if err := e.removeContainer(ctx, c.ID); err != nil {
			failed = append(failed, err)
			continue
		}
		e.log.Debug("reaped a helper", "container", c.ID[:12], "run", run.String())
		n++
	}
	for _, base := range socketBases() {
		dirs, _ := filepath.Glob(filepath.Join(base, e.socketPrefix()+"*"))
		for _, dir := range dirs {
			name := strings.TrimPrefix(filepath.Base(dir), e.socketPrefix())
			run, err := id.ParseSession(name[:min(len(name), 2*len(id.Session{}))])
			if err == nil && !alive(run) {
				_ = os.RemoveAll(dir)
			}
		}
	}
	return n, errors.Join(failed...)
}

// socketPrefix begins the name of a socket's directory; the run follows, then
// something random. It is of the whole owner: whoever keeps run locks elsewhere
// cannot tell whether a run is alive.
func (e *Engine) socketPrefix() string {
	h := id.NewHash()
	_, _ = io.WriteString(h, e.Owner)
	sum := h.Sum()
	return fmt.Sprintf("orlop-%x-", sum[:4])
}

// socketBases are where a socket's directory may be made, the best first.
func socketBases() []string {
	var bases []string
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		bases = append(bases, dir)
	}
	if os.Getuid() == 0 {
		bases = append(bases, "/run")
	}
	return append(bases, os.TempDir())
}

// longestDir leaves room in sun_path, 107 bytes, for what agent.Listen makes in
// the directory: "/orlop", ten digits at most, "/s".
const longestDir = 107 - 6 - 10 - 2

// socketDir makes a fresh directory that only this user may enter, in base or
// where such things are kept.
func socketDir(base, prefix string, run id.Session) (string, error) {
	bases := []string{base}
	if base == "" {
		bases = socketBases()
	}
	var failed []error
	for _, base := range bases {
		dir, err := os.MkdirTemp(base, prefix+run.String()+"-") // 0700
		if err == nil && len(dir) > longestDir {
			_ = os.Remove(dir)
			err = fmt.Errorf("%s is too long a name for a socket's directory", dir)
		}
		if err == nil {
			return dir, nil
		}
		failed = append(failed, err)
	}
	return "", errors.Join(failed...)
}
