//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A role says what a tool is measured for.
type role string

// The roles.
const (
	ours    role = "orlop"
	peer    role = "peer"    // deduplicates, as we do
	archive role = "archive" // what tar-based tools for volumes do: everything, each time
	floor   role = "floor"   // less than a backup; what the disk and the kernel allow
)

// A tool is one way to do the steps.
type tool interface {
	name() string
	role() role

	// version returns what the tool says it is.
	version(ctx context.Context) (string, error)

	// setup makes an empty repository in s, with caches that know nothing.
	setup(ctx context.Context, s *site) error

	// command returns what does a step on s. A step that the tool does not have
	// is an error satisfying errors.Is(err, errNotDone).
	command(ctx context.Context, st step, s *site) (command, error)

	// told returns what a backup printed of bytes, as far as it did.
	told(stdout []byte) told
}

// errNotDone says that a tool has nothing for a step.
var errNotDone = errors.New("not done by this tool")

// told is what a tool says of the bytes of a backup; 0 is not told. What was
// stored is measured.
type told struct {
	Raw int64 `json:"raw_bytes,omitempty"` // all that is in the snapshot
	New int64 `json:"new_bytes,omitempty"` // of that what the repository did not have, before compression
}

// A site is where a tool works on a corpus. All but source is its own.
type site struct {
	dir    string // repository, caches, configuration
	source string // directory to back up
	target string // directory to restore to: new for restore, a copy for update
	sparse bool   // the source has holes that are worth keeping

	volume string // the engine's name of the volume whose directory source is, or ""
	into   string // the engine's name of a volume to make, in restore

	archives int // made so far
}

func (s *site) repository() string { return filepath.Join(s.dir, "repository") }
func (s *site) home() string       { return filepath.Join(s.dir, "home") }
func (s *site) kept() string       { return filepath.Join(s.dir, "kept") }

// env returns an environment in which nothing of this user's is found, and
// nothing of it is left: paths below the site's own directory.
func (s *site) env(more ...string) []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "TZ=UTC", "HOME=" + s.home(),
		"XDG_CONFIG_HOME=" + filepath.Join(s.home(), "config"),
		"XDG_CACHE_HOME=" + filepath.Join(s.home(), "cache"),
		"XDG_DATA_HOME=" + filepath.Join(s.home(), "data"),
	}
	return append(env, more...)
}

// fresh empties the site.
func (s *site) fresh() error {
	s.archives = 0
	if err := os.RemoveAll(s.dir); err != nil {
		return err
	}
	return os.MkdirAll(s.home(), 0o700)
}

// reset makes all that a tool keeps beside its repository what it was when reset
// was first called since the last backup: a check or a restore may fill caches,
// and the next one is to begin as this one did.
func (s *site) reset(ctx context.Context) error {
	if _, err := os.Stat(s.kept()); err == nil {
		return mirror(ctx, s.kept(), s.home())
	}
	if _, err := os.Stat(s.home()); err != nil {
		return nil // it keeps nothing
	}
	_, err := run(ctx, command{args: []string{"cp", "-a", s.home(), s.kept()}, env: os.Environ()})
	return err
}

// forget has the next reset keep what is there then.
func (s *site) forget() error { return os.RemoveAll(s.kept()) }

// programs a bench knows, in the order of the tables: with the names that -peers takes.
var families = []struct {
	name string
	make func(label, path string) tool
	get  string // how to come by it
}{
	{"restic", newRestic, "make bench-setup, or https://restic.net"},
	{"kopia", newKopia, "https://kopia.io/docs/installation"},
	{"borg", newBorg, "make bench-setup, or https://www.borgbackup.org"},
	{"tar-gzip", newTar, "tar and gzip come with Debian"},
	{"tar-zstd", newTar, "make bench-setup"},
}

// peerNames returns the names that -peers takes.
func peerNames() (all []string) {
	for _, f := range families {
		all = append(all, f.name)
	}
	return all
}

// findPeers returns the peers that are wanted: names, NAME=PATH for a program
// that is not in PATH or a second version of one, and "all" for what is found in
// PATH, programs with a version in their name (restic-0.19) included. What is
// not there is told in missing.
func findPeers(wanted []string) (tools []tool, missing []string, err error) {
	add := func(label, path string) bool {
		for _, f := range families {
			if label != f.name && !strings.HasPrefix(label, f.name+"-") {
				continue
			}
			if !slices.ContainsFunc(tools, func(t tool) bool { return t.name() == label }) {
				tools = append(tools, f.make(label, path))
			}
			return true
		}
		return false
	}
	for _, w := range wanted {
		label, path, given := strings.Cut(w, "=")
		switch {
		case w == "all":
			for _, f := range families {
				if path, ok := lookPath(f.name); ok {
					add(f.name, path)
				} else {
					missing = append(missing, fmt.Sprintf("%s is not in PATH (%s)", f.name, f.get))
				}
				for _, v := range versioned(f.name) {
					add(filepath.Base(v), v)
				}
			}
		case w == "none":
		case given:
			if path, err = exec.LookPath(path); err != nil {
				return nil, nil, fmt.Errorf("find peer %s: %w", label, err)
			}
			if !add(label, path) {
				return nil, nil, fmt.Errorf("peer %q: a name begins with one of %s", label, strings.Join(peerNames(), ", "))
			}
		default:
			path, ok := lookPath(label)
			if !add(label, path) {
				return nil, nil, fmt.Errorf("no peer is called %q: there are %s, all, none, and NAME=PATH for another version of one", label, strings.Join(peerNames(), ", "))
			}
			if !ok {
				return nil, nil, fmt.Errorf("find peer %s: it is not in PATH", label)
			}
		}
	}
	return tools, missing, nil
}

// lookPath finds a peer's program. A tar pipeline needs two.
func lookPath(name string) (string, bool) {
	if compressor, ok := strings.CutPrefix(name, "tar-"); ok {
		if _, err := exec.LookPath("tar"); err != nil {
			return "", false
		}
		name = compressor
	}
	path, err := exec.LookPath(name)
	return path, err == nil
}

// versioned returns programs in PATH that are called NAME-DIGITS.
func versioned(name string) (all []string) {
	form := regexp.MustCompile("^" + regexp.QuoteMeta(name) + `-[0-9][0-9.]*$`)
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		found, _ := filepath.Glob(filepath.Join(dir, name+"-*"))
		for _, path := range found {
			if _, err := exec.LookPath(path); err == nil && form.MatchString(filepath.Base(path)) {
				all = append(all, path)
			}
		}
	}
	return all
}

// A program is the part that all tools have in common.
type program struct {
	label string
	path  string
	help  map[string][]byte // of its commands, as far as it was asked for
}

func newProgram(label, path string) program { return program{label, path, map[string][]byte{}} }

func (p program) name() string { return p.label }

// says returns the first line that the program prints.
func (p program) says(ctx context.Context, args ...string) (string, error) {
	out, err := run(ctx, command{args: append([]string{p.path}, args...), env: os.Environ()})
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", p.label, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line), nil
}

// has reports whether a program's help for a command tells of an option.
func (p program) has(ctx context.Context, option string, verb ...string) bool {
	key := strings.Join(verb, " ")
	if _, ok := p.help[key]; !ok {
		p.help[key], _ = exec.CommandContext(ctx, p.path, append(verb, "--help")...).CombinedOutput()
	}
	return regexp.MustCompile(regexp.QuoteMeta(option) + `\b`).Match(p.help[key])
}

// lastJSON decodes the last line that is an object of JSON into v.
func lastJSON(out []byte, v any) {
	for _, line := range slices.Backward(strings.Split(string(out), "\n")) {
		if strings.HasPrefix(line, "{") {
			_ = json.Unmarshal([]byte(line), v)
			return
		}
	}
}
