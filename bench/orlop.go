//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// orlop is this project's own tool, in one of its two ways: a directory that is
// read by the process itself, or a Docker volume that is read by its helper.
// Key and caches are where they are by default, below a home of their own.
type orlop struct {
	program
	volume bool
}

func newOrlop(path string, volume bool) *orlop {
	if volume {
		return &orlop{newProgram(volumeWay, path), volume}
	}
	return &orlop{newProgram(pathWay, path), volume}
}

func (o *orlop) role() role { return ours }

func (o *orlop) version(ctx context.Context) (string, error) { return o.says(ctx, "version") }

// env passes on how to reach the engine.
func (o *orlop) env(s *site) []string {
	config := os.Getenv("DOCKER_CONFIG")
	if home, err := os.UserHomeDir(); err == nil && config == "" {
		config = filepath.Join(home, ".docker")
	}
	env := s.env("ORLOP_REPOSITORY="+s.repository(), "DOCKER_CONFIG="+config)
	for _, name := range []string{"DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_API_VERSION", "XDG_RUNTIME_DIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

func (o *orlop) setup(ctx context.Context, s *site) error {
	if err := s.fresh(); err != nil {
		return err
	}
	_, err := run(ctx, command{args: []string{o.path, "init", "--quiet"}, env: o.env(s)})
	return err
}

func (o *orlop) command(ctx context.Context, st step, s *site) (command, error) {
	c := command{env: o.env(s)}
	if o.volume && st != check {
		c.volume = s.volume
	}
	args := map[step][]string{
		check:   {"check", "--read-data"},
		restore: {"restore", "latest", "--target", s.target},
		update:  {"restore", "latest", "--target", s.target, "--in-place"},
	}
	if o.volume {
		args[restore] = []string{"restore", s.volume, "--to", s.into}
		args[update] = []string{"restore", s.volume, "--in-place"}
	}
	switch {
	case st == update && !o.has(ctx, "--in-place", "restore"):
		return c, fmt.Errorf("this orlop has no restore --in-place: %w", errNotDone)
	case st.isBackup() && o.volume:
		args[st] = []string{"backup", s.volume}
	case st.isBackup():
		args[st] = []string{"backup", "--path", s.source}
	}
	if o.volume && st == restore {
		c.volume = s.into
	}
	c.args = append([]string{o.path, "--json", "--quiet"}, args[st]...)
	return c, nil
}

func (o *orlop) told(stdout []byte) told {
	var v struct {
		Total int64 `json:"bytes_total"`
		New   int64 `json:"bytes_new"`
	}
	lastJSON(stdout, &v)
	return told{v.Total, v.New}
}
