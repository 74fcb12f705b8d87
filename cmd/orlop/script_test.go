package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"orlop/treetest"
)

// built is the directory of the orlop that the tests run: the static binary
// that users get.
var built string

func TestMain(m *testing.M) {
	testscript.Main(building{m}, map[string]func(){"when": when})
}

// building builds orlop before the tests are run.
type building struct{ *testing.M }

func (m building) Run() int {
	dir, err := os.MkdirTemp("", "orlop-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	built = dir
	c := exec.Command("go", "build", "-o", filepath.Join(dir, "orlop"), ".")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.M.Run()
}

// TestScripts runs testdata/*.txtar: what a user could have typed.
//
// Beside the commands of testscript there are
//
//	orlop ARGUMENT...             run it; it ends with 0
//	exits CODE COMMAND...         run a command that ends with CODE
//	when GLOB SIGNAL COMMAND...   run a command, signal it once GLOB matches a file
//	lowly CODE COMMAND...         exits, of a command to which modes of files apply, also as root
//	json FROM PATH WANT           a value of the last JSON text in FROM: stdout, stderr, a file
//	capture NAME FROM PATH        the same, into the environment
//	names DIR                     make files of odd names
//	fill DIR, same DIR DIR        treetest's fixture and comparison
//	noise FILE BYTES              a file that does not compress
//	damage GLOB                   flip a bit in the middle of the one file GLOB matches
//	count N GLOB                  GLOB matches N files
//
// PATH is made of .field, [index] and [len]; [-1] is the last. One that begins
// with @N is of the N-th text, from 0. WANT is JSON, a bare word, /regexp/, >N or <N.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "testdata",
		RequireUniqueNames: true,
		Cmds:               scriptCommands(),
		Setup:              func(env *testscript.Env) error { return setUp(env) },
	})
}

func setUp(env *testscript.Env) error {
	env.Values["t"] = env.T().(testing.TB)
	env.Setenv("HOME", env.WorkDir+"/home")
	env.Setenv("XDG_DATA_HOME", env.WorkDir+"/data")
	env.Setenv("XDG_CONFIG_HOME", env.WorkDir+"/config")
	env.Setenv("XDG_CACHE_HOME", env.WorkDir+"/cache")
	env.Setenv("REPO", env.WorkDir+"/data/orlop/repository")
	env.Setenv("DOCKER_CONFIG", env.WorkDir+"/docker")
	env.Setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
	env.Setenv("TZ", "UTC")
	env.Setenv("PATH", built+":"+env.Getenv("PATH"))
	return os.Mkdir(env.WorkDir+"/home", 0o700)
}

type scriptCommand = func(ts *testscript.TestScript, neg bool, args []string)

func scriptCommands() map[string]scriptCommand {
	return map[string]scriptCommand{
		"orlop": func(ts *testscript.TestScript, neg bool, args []string) {
			need(ts, neg, args, 0, "orlop ARGUMENT...")
			exits(ts, false, append([]string{"0", "orlop"}, args...))
		},
		"exits":   exits,
		"lowly":   lowly,
		"json":    jsonCommand,
		"capture": capture,
		"names":   oddNames,
		"fill":    fillTree,
		"same":    sameTrees,
		"noise":   noise,
		"damage":  damage,
		"count":   count,
	}
}

// need refuses a wrong use of a script command.
func need(ts *testscript.TestScript, neg bool, args []string, n int, usage string) {
	if neg || len(args) < n {
		ts.Fatalf("usage: %s", usage)
	}
}

func tb(ts *testscript.TestScript) testing.TB { return ts.Value("t").(testing.TB) }

func exits(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "exits CODE COMMAND...")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// when is a program: see TestScripts.
func when() {
	glob, sig, args := os.Args[1], unix.SignalNum("SIG"+os.Args[2]), os.Args[3:]
	c := exec.Command(args[0], args[1:]...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	if err := c.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(99)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	for tick := time.NewTicker(time.Millisecond); ; {
		select {
		case <-ended:
			fmt.Fprintf(os.Stderr, "when: it ended before there was a %s\n", glob)
			os.Exit(99)
		case <-tick.C:
		}
		if found, _ := filepath.Glob(glob); len(found) > 0 {
			_ = c.Process.Signal(sig)
			break
		}
	}
	<-ended
	if s := c.ProcessState.Sys().(interface{ Signaled() bool }); s.Signaled() {
		os.Exit(98)
	}
	os.Exit(c.ProcessState.ExitCode())
}

func lowly(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "lowly CODE COMMAND...")
	if os.Geteuid() == 0 {
		args = append([]string{args[0], "setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"}, args[1:]...)
	}
	exits(ts, false, args)
}

func fillTree(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "fill DIR")
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	treetest.Small(tb(ts), dir)
}

func sameTrees(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, false, args, 2, "[!] same DIR DIR")
	diff, err := treetest.Diff(ts.MkAbs(args[0]), ts.MkAbs(args[1]))
	ts.Check(err)
	if (len(diff) == 0) == neg {
		ts.Fatalf("%d differences\n%s", len(diff), strings.Join(diff[:min(len(diff), 10)], "\n"))
	}
}

// oddNames makes files whose names would do mischief on a terminal or in a
// list of lines.
func oddNames(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "names DIR")
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	for _, name := range []string{"a\nb", "\x1b[31mred", "bad\xff\xfeutf8", "tab\there", "umläut", "\u202eltr", "back\\slash", " lead"} {
		ts.Check(os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
	}
	ts.Check(os.Symlink("to\x1b[2J", filepath.Join(dir, "link")))
}

func noise(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "noise FILE BYTES")
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	path := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(filepath.Dir(path), 0o755))
	ts.Check(os.WriteFile(path, treetest.Bytes(filepath.Base(path), n), 0o644))
}

func damage(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "damage GLOB")
	found, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(found) != 1 {
		ts.Fatalf("%s matches %d files, not one: %q", args[0], len(found), found)
	}
	data, err := os.ReadFile(found[0])
	ts.Check(err)
	data[len(data)/2] ^= 1
	ts.Check(os.Chmod(found[0], 0o600))
	ts.Check(os.WriteFile(found[0], data, 0o600))
}

func count(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "count N GLOB")
	found, err := filepath.Glob(ts.MkAbs(args[1]))
	ts.Check(err)
	if strconv.Itoa(len(found)) != args[0] {
		ts.Fatalf("%s matches %d files, want %s: %q", args[1], len(found), args[0], found)
	}
}

func capture(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 3, "capture NAME FROM PATH")
	v, err := jsonValue(ts.ReadFile(args[1]), args[2])
	ts.Check(err)
	ts.Setenv(args[0], fmt.Sprint(v))
}

func jsonCommand(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, false, args, 3, "[!] json FROM PATH WANT")
	got, err := jsonValue(ts.ReadFile(args[0]), args[1])
	if err != nil && neg {
		return
	}
	ts.Check(err)
	ok, err := jsonMatch(got, args[2])
	ts.Check(err)
	if ok == neg {
		text, _ := json.Marshal(got)
		ts.Fatalf("%s is %s, want %s", args[1], text, args[2])
	}
}

// jsonValue finds what path leads to in text, a sequence of JSON texts.
func jsonValue(text, path string) (any, error) {
	var all []any
	for d := json.NewDecoder(strings.NewReader(text)); ; {
		d.UseNumber()
		var v any
		if err := d.Decode(&v); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("%q is no JSON: %w", text, err)
		}
		all = append(all, v)
	}
	at := len(all) - 1
	if rest, ok := strings.CutPrefix(path, "@"); ok {
		n := strings.IndexAny(rest+".", ".[")
		i, err := strconv.Atoi(rest[:n])
		if err != nil {
			return nil, fmt.Errorf("path %q: %w", path, err)
		}
		at, path = i, rest[n:]
	}
	if at < 0 || at >= len(all) {
		return nil, fmt.Errorf("there are %d JSON texts", len(all))
	}
	v := all[at]
	for _, step := range regexp.MustCompile(`\.?\w+|\[(-?\d+|len)\]`).FindAllString(path, -1) {
		switch list, isList := v.([]any); {
		case step == "[len]" && isList:
			v = json.Number(strconv.Itoa(len(list)))
		case step[0] == '[' && isList:
			i, _ := strconv.Atoi(strings.Trim(step, "[]"))
			if i < 0 {
				i += len(list)
			}
			if i < 0 || i >= len(list) {
				return nil, fmt.Errorf("%s: there are %d", path, len(list))
			}
			v = list[i]
		default:
			object, isObject := v.(map[string]any)
			value, ok := object[strings.TrimPrefix(step, ".")]
			if !isObject || !ok {
				return nil, fmt.Errorf("%s: there is no %s in %v", path, step, v)
			}
			v = value
		}
	}
	return v, nil
}

// jsonMatch compares a value with what a script says of it.
func jsonMatch(v any, want string) (bool, error) {
	text := fmt.Sprint(v)
	if b, err := json.Marshal(v); err == nil {
		if _, isText := v.(string); !isText {
			text = string(b)
		}
	}
	if len(want) > 1 && want[0] == '/' && want[len(want)-1] == '/' {
		return regexp.MatchString(want[1:len(want)-1], text)
	}
	if want != "" && strings.ContainsRune("<>", rune(want[0])) {
		got, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return false, err
		}
		limit, err := strconv.ParseFloat(want[1:], 64)
		return (got < limit) == (want[0] == '<') && got != limit, err
	}
	return text == want, nil
}
