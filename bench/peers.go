//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// password opens every peer's repository. It guards nothing.
const password = "bench"

// restic backs up the directory it is in: so all versions restore what is in it
// and not its path.
type restic struct{ program }

func newRestic(label, path string) tool { return &restic{newProgram(label, path)} }

func (t *restic) role() role { return peer }

func (t *restic) version(ctx context.Context) (string, error) { return t.says(ctx, "version") }

func (t *restic) env(s *site) []string {
	return s.env("RESTIC_REPOSITORY="+s.repository(), "RESTIC_PASSWORD="+password, "RESTIC_CACHE_DIR="+filepath.Join(s.home(), "cache"))
}

func (t *restic) setup(ctx context.Context, s *site) error {
	if err := s.fresh(); err != nil {
		return err
	}
	_, err := run(ctx, command{args: []string{t.path, "init", "--quiet"}, env: t.env(s)})
	return err
}

func (t *restic) command(ctx context.Context, st step, s *site) (command, error) {
	c := command{env: t.env(s)}
	switch st {
	case check:
		c.args = []string{t.path, "check", "--quiet", "--read-data"}
	case restore, update:
		c.args = []string{t.path, "restore", "--quiet", "latest", "--target", s.target}
		if s.sparse && t.has(ctx, "--sparse", "restore") {
			c.args = append(c.args, "--sparse")
		}
		// Since 0.17 what is there is read, and written where it differs;
		// before, all is written. The two came together with --delete.
		if st == update && t.has(ctx, "--delete", "restore") {
			c.args = append(c.args, "--delete")
		} else {
			c.blind = true
		}
	default:
		c.dir = s.source
		c.args = []string{t.path, "backup", "--quiet", "--json", "."}
	}
	return c, nil
}

func (t *restic) told(stdout []byte) told {
	var v struct {
		Total int64 `json:"total_bytes_processed"`
		Added int64 `json:"data_added"`
	}
	lastJSON(stdout, &v)
	return told{v.Total, v.Added}
}

// kopia runs with its own defaults: no compression of contents, no fsync of
// what it restores.
type kopia struct{ program }

func newKopia(label, path string) tool { return &kopia{newProgram(label, path)} }

func (t *kopia) role() role { return peer }

func (t *kopia) version(ctx context.Context) (string, error) {
	v, err := t.says(ctx, "--version")
	return "kopia " + strings.TrimSuffix(v, " from:"), err
}

func (t *kopia) env(s *site) []string {
	return s.env("KOPIA_CONFIG_PATH="+filepath.Join(s.home(), "kopia.config"), "KOPIA_PASSWORD="+password,
		"KOPIA_CACHE_DIRECTORY="+filepath.Join(s.home(), "cache"), "KOPIA_LOG_DIR="+filepath.Join(s.home(), "logs"),
		"KOPIA_CHECK_FOR_UPDATES=false")
}

func (t *kopia) setup(ctx context.Context, s *site) error {
	if err := s.fresh(); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"repository", "create", "filesystem", "--path", s.repository()},
		// It is due once a day and would fall into the first backup.
		{"maintenance", "run", "--full"},
	} {
		if _, err := run(ctx, command{args: append([]string{t.path, "--no-progress"}, args...), env: t.env(s)}); err != nil {
			return err
		}
	}
	if !strings.Contains(t.label, "zstd") {
		return nil
	}
	_, err := run(ctx, command{args: []string{t.path, "--no-progress", "policy", "set", "--global", "--compression=zstd-fastest"}, env: t.env(s)})
	return err
}

func (t *kopia) command(ctx context.Context, st step, s *site) (command, error) {
	c := command{args: []string{t.path, "--no-progress"}, env: t.env(s)}
	switch st {
	case check:
		// The first reads and opens all contents, the second looks whether the
		// snapshots have all that they need: together what the others' checks
		// do, at some 2/3 of the CPU of "snapshot verify
		// --verify-files-percent=100", which reads file by file.
		c.args = shell(`"$1" --no-progress content verify --full && "$1" --no-progress snapshot verify`, t.path)
	case restore, update:
		// It writes every file, also what is there and the same; with
		// --skip-existing it would go by size and time and not by content.
		c.blind = true
		c.args = append(c.args, "snapshot", "restore", s.source, s.target)
		if st == update && t.has(ctx, "delete-extra", "snapshot", "restore") {
			c.args = append(c.args, "--delete-extra")
		}
		if s.sparse {
			c.args = append(c.args, "--write-sparse-files")
		}
	default:
		c.args = append(c.args, "snapshot", "create", "--json", s.source)
	}
	return c, nil
}

func (t *kopia) told(stdout []byte) told {
	var v struct {
		Root struct {
			Summary struct {
				Size int64 `json:"size"`
			} `json:"summ"`
		} `json:"rootEntry"`
	}
	lastJSON(stdout, &v)
	return told{Raw: v.Root.Summary.Size}
}

// borg runs with the encryption of its quick start, and lz4, its default.
type borg struct{ program }

func newBorg(label, path string) tool { return &borg{newProgram(label, path)} }

func (t *borg) role() role { return peer }

func (t *borg) version(ctx context.Context) (string, error) { return t.says(ctx, "--version") }

func (t *borg) env(s *site) []string {
	return s.env("BORG_REPO="+s.repository(), "BORG_PASSPHRASE="+password, "BORG_BASE_DIR="+s.home())
}

func (t *borg) setup(ctx context.Context, s *site) error {
	if err := s.fresh(); err != nil {
		return err
	}
	_, err := run(ctx, command{args: []string{t.path, "init", "--encryption", "repokey"}, env: t.env(s)})
	return err
}

func (t *borg) command(_ context.Context, st step, s *site) (command, error) {
	c := command{env: t.env(s)}
	switch st {
	case check:
		c.args = []string{t.path, "check", "--verify-data"}
	case restore, update:
		// It removes what is there and writes it again.
		c.blind = true
		c.dir = s.target
		c.args = []string{t.path, "extract", fmt.Sprintf("::%d", s.archives)}
		if s.sparse {
			c.args = []string{t.path, "extract", "--sparse", fmt.Sprintf("::%d", s.archives)}
		}
	default:
		s.archives++
		c.dir = s.source
		c.args = []string{t.path, "create", "--json", fmt.Sprintf("::%d", s.archives), "."}
	}
	return c, nil
}

func (t *borg) told(stdout []byte) told {
	var v struct {
		Archive struct {
			Stats struct {
				Original int64 `json:"original_size"`
			} `json:"stats"`
		} `json:"archive"`
	}
	_ = json.Unmarshal(stdout, &v)
	return told{Raw: v.Archive.Stats.Original}
}

// tarball is what tar-based tools for volumes do: one archive a backup, all of
// it. Only the newest is kept, to spare the disk; what is stored is its size.
type tarball struct {
	program
	compressor string
}

func newTar(label, path string) tool {
	return &tarball{newProgram(label, path), strings.TrimPrefix(label, "tar-")}
}

func (t *tarball) role() role { return archive }

func (t *tarball) version(ctx context.Context) (string, error) {
	tar, err := newProgram("tar", "tar").says(ctx, "--version")
	if err != nil {
		return "", err
	}
	c, err := t.says(ctx, "--version")
	return tar + ", " + strings.Trim(c, "* "), err
}

func (t *tarball) setup(_ context.Context, s *site) error {
	if err := s.fresh(); err != nil {
		return err
	}
	return os.Mkdir(s.repository(), 0o700)
}

func (t *tarball) archive(s *site) string {
	return filepath.Join(s.repository(), fmt.Sprintf("%d.tar.%s", s.archives, t.compressor))
}

func (t *tarball) command(_ context.Context, st step, s *site) (command, error) {
	c := command{env: s.env()}
	switch st {
	case check:
		// That the archive's compression is whole; tar has no sums of contents.
		c.args = shell(`"$1" -dc <"$2" | tar -tf - >/dev/null`, t.path, t.archive(s))
	case restore, update:
		c.blind = true
		c.args = shell(`"$1" -dc <"$2" | tar -C "$3" -xpf -`, t.path, t.archive(s), s.target)
	default:
		_ = os.Remove(t.archive(s))
		s.archives++
		create := "tar -cf"
		if s.sparse {
			create = "tar -cSf"
		}
		c.args = shell(create+` - -C "$3" . | "$1" -c >"$2"`, t.path, t.archive(s), s.source)
	}
	return c, nil
}

func (t *tarball) told([]byte) told { return told{} }
