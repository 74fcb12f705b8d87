//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// postgres is a real cluster, filled by pgbench and stopped; then used, and
// stopped again.
func postgres(pgscale int) *corpus {
	bin := postgresPrograms()
	transactions := 60 * pgscale
	return &corpus{
		about: fmt.Sprintf("a stopped PostgreSQL cluster made by pgbench at scale %d; then %d transactions in it", pgscale, 2*transactions),
		steps: []step{first, unchanged, changed, check, restore, update},
		recipe: func() (string, error) {
			v, err := run(context.Background(), command{args: []string{filepath.Join(bin, "postgres"), "--version"}, env: os.Environ()})
			return fmt.Sprint("postgres 1 ", pgscale, string(v)), err
		},
		missing: func() string {
			if bin == "" {
				return "PostgreSQL and its pgbench are needed (make bench-setup)"
			}
			if _, err := postgresUser(); err != nil {
				return err.Error()
			}
			return ""
		},
		build: func(ctx context.Context, dir string) error {
			c, err := newCluster(bin, dir)
			if err != nil {
				return err
			}
			defer c.close()
			if u := c.attr.Credential; u != nil {
				if err := os.Chown(dir, int(u.Uid), int(u.Gid)); err != nil {
					return err
				}
			}
			if err := c.run(ctx, "initdb", "-D", dir, "-A", "trust", "-U", "postgres", "--no-sync", "--locale=C", "--encoding=UTF8"); err != nil {
				return err
			}
			return c.serve(ctx, func() error {
				return c.run(ctx, "pgbench", "-h", c.socket, "-U", "postgres", "-i", "-q", "-s", strconv.Itoa(pgscale), "postgres")
			})
		},
		change: func(ctx context.Context, dir string, round int) error {
			c, err := newCluster(bin, dir)
			if err != nil {
				return err
			}
			defer c.close()
			return c.serve(ctx, func() error {
				return c.run(ctx, "pgbench", "-h", c.socket, "-U", "postgres", "-n", "-c", "2", "-j", "2",
					"-t", strconv.Itoa(transactions), "--random-seed", strconv.Itoa(seed+round), "postgres")
			})
		},
	}
}

// postgresPrograms returns the directory that holds PostgreSQL's server, or "".
// Debian keeps it out of PATH.
func postgresPrograms() string {
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(dirs, func(a, b string) int { // the newest first
		x, _ := strconv.Atoi(filepath.Base(filepath.Dir(a)))
		y, _ := strconv.Atoi(filepath.Base(filepath.Dir(b)))
		return y - x
	})
	if path, err := exec.LookPath("postgres"); err == nil {
		dirs = slices.Insert(dirs, 0, filepath.Dir(path))
	}
	for _, dir := range dirs {
		complete := true
		for _, name := range []string{"initdb", "pg_ctl", "pgbench", "postgres"} {
			_, err := os.Stat(filepath.Join(dir, name))
			complete = complete && err == nil
		}
		if complete {
			return dir
		}
	}
	return ""
}

// postgresUser returns as whom the server runs: it refuses to be root.
func postgresUser() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL does not run as root, and there is no user for it: %w", err)
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// A cluster is a directory of PostgreSQL's.
type cluster struct {
	bin, dir string
	socket   string // directory for the socket and the log
	attr     *syscall.SysProcAttr
}

func newCluster(bin, dir string) (*cluster, error) {
	u, err := postgresUser()
	if err != nil {
		return nil, err
	}
	c := &cluster{bin: bin, dir: dir, attr: &syscall.SysProcAttr{Credential: u}}
	if c.socket, err = os.MkdirTemp("", "bench-pg-"); err != nil {
		return nil, err
	}
	if u != nil {
		// The directories above a Docker volume let nobody but root through.
		const capDacReadSearch = 2
		c.attr.AmbientCaps = []uintptr{capDacReadSearch}
		if err := os.Chown(c.socket, int(u.Uid), int(u.Gid)); err != nil {
			return nil, errors.Join(err, os.Remove(c.socket))
		}
	}
	return c, nil
}

func (c *cluster) close() { _ = os.RemoveAll(c.socket) }

func (c *cluster) run(ctx context.Context, name string, args ...string) error {
	_, err := run(ctx, command{
		args: append([]string{filepath.Join(c.bin, name)}, args...),
		dir:  "/", env: []string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "TZ=UTC"}, attr: c.attr,
	})
	return err
}

// serve calls f while the server runs. fsync is off: what is measured comes
// after it has stopped.
func (c *cluster) serve(ctx context.Context, f func() error) error {
	options := "-c listen_addresses='' -c unix_socket_directories=" + c.socket + " -c fsync=off -c max_wal_size=256MB -c shared_buffers=128MB"
	if err := c.run(ctx, "pg_ctl", "start", "-D", c.dir, "-w", "-t", "120", "-l", filepath.Join(c.socket, "log"), "-o", options); err != nil {
		log, _ := os.ReadFile(filepath.Join(c.socket, "log"))
		return fmt.Errorf("%w: %s", err, log)
	}
	err := f()
	return errors.Join(err, c.run(context.WithoutCancel(ctx), "pg_ctl", "stop", "-D", c.dir, "-w", "-t", "300", "-m", "fast"))
}
