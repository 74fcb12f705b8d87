package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"orlop/id"
	"orlop/repo"
	"orlop/seal"
	"orlop/store"
)

// Where things are when nobody says otherwise. Root uses the places of the
// system, so that a backup made by cron and one made by hand meet.
func dataDir() string   { return place("XDG_DATA_HOME", "/var/lib", ".local/share") }
func configDir() string { return place("XDG_CONFIG_HOME", "/etc", ".config") }
func cacheDir() string  { return place("XDG_CACHE_HOME", "/var/cache", ".cache") }

// place returns "" if there is none: a user without a home. A directory that
// others may write would be the wrong one for keys, and for caches.
func place(variable, system, home string) string {
	if dir := os.Getenv(variable); filepath.IsAbs(dir) {
		return filepath.Join(dir, "orlop")
	}
	if os.Geteuid() == 0 {
		return filepath.Join(system, "orlop")
	}
	if dir := os.Getenv("HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, home, "orlop")
	}
	if u, err := user.Current(); err == nil && filepath.IsAbs(u.HomeDir) && u.HomeDir != "/" {
		return filepath.Join(u.HomeDir, home, "orlop")
	}
	return ""
}

// errHomeless is told to a user without a home who names no place either.
func errHomeless(variable string) error {
	return hint(errors.New("there is no home directory"), "set HOME, or %s", variable)
}

// cache returns the directory below which this host remembers. Where none can
// be written, one that lasts for this command does.
func (a *app) cache() (string, error) {
	if a.cacheAt != "" {
		return a.cacheAt, nil
	}
	dir := cacheDir()
	err := os.MkdirAll(dir, 0o700) // fails if it is ""
	if err == nil {
		if err = unix.Access(dir, unix.R_OK|unix.W_OK|unix.X_OK); err != nil {
			err = &fs.PathError{Op: "write to", Path: dir, Err: err}
		}
	}
	if err == nil {
		a.cacheAt = dir
		return dir, nil
	}
	temporary, terr := os.MkdirTemp("", "orlop-cache-")
	if terr != nil {
		return "", fmt.Errorf("keep a cache: %w", errors.Join(err, terr))
	}
	a.say("note: nothing is remembered, so the next backup reads every file: %v", err)
	a.cacheAt, a.cleanUp = temporary, func() { _ = os.RemoveAll(temporary) }
	return temporary, nil
}

func defaultRepository() string {
	dir := dataDir()
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, "repository")
}

// repository says where the repository is.
func (a *app) repository() (string, error) {
	where := a.repo
	if where == "" {
		where = os.Getenv("ORLOP_REPOSITORY")
	}
	if where == "" {
		if where = defaultRepository(); where == "" {
			return "", errHomeless("--repo")
		}
		return where, nil
	}
	if scheme, _, ok := strings.Cut(where, ":"); ok && !strings.ContainsAny(scheme, "/.") && len(scheme) > 1 {
		return "", usagef("the repository %q is not a directory; only directories are supported", where)
	}
	abs, err := filepath.Abs(where)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", where, err)
	}
	return abs, nil
}

// openStore opens the store of an existing repository.
func (a *app) openStore() (store.Store, string, error) {
	where, err := a.repository()
	if err != nil {
		return nil, "", err
	}
	st, err := store.OpenDir(where)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", fmt.Errorf("%s: %w", where, repo.ErrNoRepository)
	}
	if err != nil {
		return nil, "", fmt.Errorf("open %s: %w", where, err)
	}
	return st, where, nil
}

// open opens the repository with whatever key or password there is.
func (a *app) open(ctx context.Context) (*repo.Repo, error) {
	st, where, err := a.openStore()
	if err != nil {
		return nil, err
	}
	name, err := repo.Peek(ctx, st)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	s, err := a.secret(name)
	if err != nil {
		return nil, err
	}
	cache, err := a.cache()
	if err != nil {
		return nil, err
	}
	r, err := repo.Open(ctx, st, s.secret, repo.Options{Text: s.text, Cache: cache, Log: a.log})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", where, err)
	}
	return r, nil
}

// A given is the secret that the user gave, and how.
type given struct {
	secret seal.Secret
	text   string // of a generated key; else ""
	from   string // for people
}

var errNoSecret = hint(fmt.Errorf("no key and no password was given: %w", seal.ErrWrongSecret),
	"give the key with --key-file, ORLOP_KEY or ORLOP_KEY_FILE, or a password with --password-file, ORLOP_PASSWORD, ORLOP_PASSWORD_FILE or ORLOP_PASSWORD_COMMAND")

// secret finds the key or password for a repository: what was given, else the
// key file that init made for it, else a question at the terminal.
func (a *app) secret(name id.Repository) (given, error) {
	s, err := a.givenSecret()
	if err != nil || s != nil {
		if err != nil {
			return given{}, err
		}
		return *s, nil
	}
	if !name.IsZero() {
		path := keyPath(name)
		if _, err := os.Lstat(path); err == nil {
			return readKeyFile(path)
		}
	} else if files, _ := filepath.Glob(filepath.Join(configDir(), "keys", "*")); configDir() != "" && len(files) == 1 {
		return readKeyFile(files[0]) // config is gone: the only key is the one
	}
	if !a.noQuestions && term.IsTerminal(int(os.Stdin.Fd())) {
		fmt.Fprint(a.err, "password: ")
		p, err := term.ReadPassword(int(os.Stdin.Fd()))
		fmt.Fprintln(a.err)
		if err != nil {
			return given{}, fmt.Errorf("read the password: %w", err)
		}
		return given{secret: seal.Password(p), from: "the terminal"}, nil
	}
	return given{}, errNoSecret
}

// givenSecret returns the secret given by flags or else by the environment, or
// nil. Two that contradict each other are an error: guessing which was meant
// could make a repository that nobody can open.
func (a *app) givenSecret() (*given, error) {
	switch {
	case a.keyFile != "" && a.passwordFile != "":
		return nil, usagef("--key-file and --password-file were both given")
	case a.keyFile != "":
		return some(readKeyFile(a.keyFile))
	case a.passwordFile != "":
		return some(readPasswordFile(a.passwordFile))
	}
	var set []string
	for _, v := range []string{"ORLOP_KEY", "ORLOP_KEY_FILE", "ORLOP_PASSWORD", "ORLOP_PASSWORD_FILE", "ORLOP_PASSWORD_COMMAND"} {
		if os.Getenv(v) != "" {
			set = append(set, v)
		}
	}
	if len(set) == 0 {
		return nil, nil
	}
	if len(set) > 1 {
		return nil, usagef("%s are both set", strings.Join(set, " and "))
	}
	value := os.Getenv(set[0])
	switch set[0] {
	case "ORLOP_KEY":
		return some(keyText(value, set[0]))
	case "ORLOP_KEY_FILE":
		return some(readKeyFile(value))
	case "ORLOP_PASSWORD":
		return &given{secret: seal.Password([]byte(value)), from: set[0]}, nil
	case "ORLOP_PASSWORD_FILE":
		return some(readPasswordFile(value))
	}
	c := exec.Command("/bin/sh", "-c", value)
	c.Stderr = a.err
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("run ORLOP_PASSWORD_COMMAND: %w", err)
	}
	return some(password(out, set[0]))
}

func some(s given, err error) (*given, error) {
	if err != nil {
		return nil, err
	}
	return &s, nil
}

func readPasswordFile(path string) (given, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return given{}, fmt.Errorf("read the password: %w", err)
	}
	return password(data, path)
}

// password takes the first line: editors and echo add a newline.
func password(data []byte, from string) (given, error) {
	line, _, _ := bytes.Cut(data, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) == 0 {
		return given{}, usagef("the password in %s is empty", from)
	}
	return given{secret: seal.Password(line), from: from}, nil
}

func readKeyFile(path string) (given, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return given{}, fmt.Errorf("read the key: %w", err)
	}
	return keyText(string(data), path)
}

func keyText(text, from string) (given, error) {
	text = strings.TrimSpace(text)
	s, err := seal.Text(text)
	if err != nil {
		return given{}, fmt.Errorf("the key in %s: %w", from, err)
	}
	return given{secret: s, text: text, from: from}, nil
}

// keyPath is where init keeps the key that it generates for a repository; ""
// if there is no place.
func keyPath(name id.Repository) string {
	if configDir() == "" {
		return ""
	}
	return filepath.Join(configDir(), "keys", name.String()[:16]+".key")
}
