// The orlop command backs up Docker volumes, and directories of this host,
// into an encrypted repository, and restores them.
//
// One file holds one command. main.go has what they share: global flags, exit
// codes, and how an error is told.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"orlop/agent"
	"orlop/docker"
	"orlop/repo"
	"orlop/seal"
)

// version is set by the build.
var version = "0.0.0-dev"

// Exit codes, restic's where they mean the same.
const (
	exitOK           = 0
	exitFailed       = 1
	exitUsage        = 2
	exitPartial      = 3
	exitDamage       = 4
	exitNoRepository = 10
	exitWrongKey     = 12
	exitInterrupted  = 130
)

// errPartial ends a command that did its work but not all of it; what is
// missing was listed already.
var errPartial = errors.New("not everything was done")

// errFound ends a check that found damage and has listed it.
var errFound = errors.New("damage was found")

// A usageError is a mistake of whoever typed the command.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// A hinted error knows a way forward.
type hinted struct {
	error
	hint string
}

func (e hinted) Unwrap() error { return e.error }

func hint(err error, format string, args ...any) error {
	return hinted{err, fmt.Sprintf(format, args...)}
}

// globals are the flags of every command.
type globals struct {
	repo         string
	passwordFile string
	keyFile      string
	json         bool
	quiet        bool
	verbose      bool
	noProgress   bool
}

// An app is one run of the command.
type app struct {
	globals
	out io.Writer // results
	err io.Writer // words and progress
	log *slog.Logger

	noQuestions bool   // the shell completes: nobody can answer
	cacheAt     string // what cache returned
	cleanUp     func() // before the program ends; may be nil
}

func main() {
	// The agent is not a command of a user's: it is this program inside the
	// helper container, and must not spend its first milliseconds elsewhere.
	if len(os.Args) > 1 && os.Args[1] == "agent" {
		growTo(agentHeap)
		os.Exit(agent.Main(os.Args[2:]))
	}
	growTo(hostHeap)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	a := &app{out: os.Stdout, err: os.Stderr}
	os.Exit(a.run(ctx, os.Args[1:]))
}

// run runs one command line and returns its exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.command()
	results := &printed{w: a.out}
	a.out = results
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(ctx)
	if a.cleanUp != nil {
		a.cleanUp()
	}
	if err == nil {
		err = results.err
	}
	code := exitCode(ctx, err)
	if err != nil {
		a.tell(err, code)
	}
	return code
}

// printed notices when results cannot be printed: a script must not take half
// a list for all of it.
type printed struct {
	w   io.Writer
	err error
}

func (p *printed) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	if err != nil && p.err == nil {
		p.err = fmt.Errorf("print the results: %w", err)
	}
	return n, err
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "orlop",
		Short: "Back up Docker volumes and get them back exactly",
		Long: `orlop backs up Docker volumes, and directories of this host, into an encrypted
repository. Every backup costs only what changed and restores as if it were full.

  orlop init                           make a repository and a key
  orlop backup pgdata uploads          back up two volumes
  orlop snapshots                      what there is
  orlop restore pgdata --to pg-copy    get a volume back, into a new one`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
		Args:          unknownCommand,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			level := slog.LevelWarn
			if a.verbose {
				level = slog.LevelDebug
			}
			a.log = slog.New(&words{w: a.err, level: level, quiet: a.quiet})
			if a.quiet && a.verbose {
				return usagef("--quiet and --verbose contradict each other")
			}
			return noneEmpty(c)
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	f := root.PersistentFlags()
	f.StringVarP(&a.repo, "repo", "r", "", "`DIR` of the repository (default $ORLOP_REPOSITORY, or where init makes one)")
	f.StringVar(&a.passwordFile, "password-file", "", "`FILE` whose first line is the password (default $ORLOP_PASSWORD_FILE)")
	f.StringVar(&a.keyFile, "key-file", "", "`FILE` with the generated key (default $ORLOP_KEY_FILE, or where init put it)")
	f.BoolVar(&a.json, "json", false, "print results as JSON")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print results and errors only")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "say what is being done")
	f.BoolVar(&a.noProgress, "no-progress", false, "show no progress")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return suggestFlag(c, usageError{err})
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		a.initCommand(), a.backupCommand(), a.snapshotsCommand(), a.lsCommand(),
		a.restoreCommand(), a.checkCommand(), a.keyCommand(), a.versionCommand(),
	)
	for _, c := range root.Commands() {
		wrapArgs(c)
	}
	setHelp(root)
	return root
}

// wrapArgs makes a wrong number of arguments a usage error that says what is
// right.
func wrapArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			var usage usageError
			if err == nil || errors.As(err, &usage) {
				return err
			}
			_, takes, _ := strings.Cut(c.Use, " ")
			switch {
			case takes == "":
				err = usagef("%s takes no arguments, but was given %q", c.Name(), args[0])
			case len(args) == 0:
				err = usagef("%s needs %s", c.Name(), takes)
			default:
				err = usagef("%s takes %s, but was given %d arguments", c.Name(), takes, len(args))
			}
			return hint(err, "usage: %s", c.UseLine())
		}
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}

// noneEmpty refuses an option whose value is empty: most likely a variable that
// was not set, and what happens without the option is not what was meant.
func noneEmpty(c *cobra.Command) (err error) {
	c.Flags().Visit(func(f *pflag.Flag) {
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		if slices.Contains(values, "") {
			err = usagef("--%s is empty", f.Name)
		}
	})
	return err
}

// unknownCommand answers a verb that there is none of.
func unknownCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	above := strings.TrimPrefix(c.CommandPath()+" ", c.Root().Name()+" ")
	err := usagef("unknown command %q", above+args[0])
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		return hint(err, `did you mean "%s"?`, above+strings.Join(near, `" or "`+above))
	}
	return hint(err, `"%s --help" lists the commands`, c.CommandPath())
}

// exitCode maps an error to the exit code that scripts rely on.
func exitCode(ctx context.Context, err error) int {
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case ctx.Err() != nil:
		return exitInterrupted
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, errPartial):
		return exitPartial
	case errors.Is(err, repo.ErrNoRepository):
		return exitNoRepository
	case errors.Is(err, seal.ErrWrongSecret):
		return exitWrongKey
	case errors.Is(err, errFound), errors.Is(err, repo.ErrDamaged):
		return exitDamage
	}
	return exitFailed
}

// tell prints an error, and a way forward where there is one.
func (a *app) tell(err error, code int) {
	if errors.Is(err, errPartial) || errors.Is(err, errFound) {
		return // said already, file by file
	}
	text, way := clean(err.Error()), clean(hintFor(err))
	if code == exitInterrupted {
		text, way = "interrupted", ""
	}
	if a.json {
		_ = json.NewEncoder(a.err).Encode(map[string]any{
			"message_type": "error", "code": code, "message": text, "hint": way,
		})
		return
	}
	fmt.Fprintf(a.err, "orlop: %s\n", text)
	if way != "" {
		fmt.Fprintf(a.err, "hint: %s\n", way)
	}
}

// hintFor finds the way forward that an error carries or that is known for it.
func hintFor(err error) string {
	var h hinted
	if errors.As(err, &h) {
		return h.hint
	}
	var with interface{ Hint() string }
	switch {
	case errors.As(err, &with):
		return with.Hint()
	case errors.Is(err, repo.ErrNoRepository):
		return `"orlop init" makes one; --repo or ORLOP_REPOSITORY says where it is`
	case errors.Is(err, repo.ErrExists):
		return "choose an empty directory with --repo, or use the repository that is there"
	case errors.Is(err, seal.ErrWrongSecret):
		return "give the key with --key-file or ORLOP_KEY, or the password with --password-file or ORLOP_PASSWORD"
	case errors.Is(err, seal.ErrPutOnly):
		return "use a full key on a host that may read"
	case errors.Is(err, docker.ErrNoEngine) && strings.Contains(err.Error(), "permission denied"):
		return "this user may not ask the engine: root may, and whoever is in the group docker"
	case errors.Is(err, docker.ErrNoEngine):
		return "is Docker running, and may this user ask it? DOCKER_HOST or a docker context says where it is"
	case errors.Is(err, docker.ErrWeakSandbox):
		return "--weak-sandbox accepts that, at the risk described in docs/design.md"
	case errors.Is(err, repo.ErrDamaged):
		return `"orlop check --read-data" finds out what is damaged and what it takes with it`
	}
	if errors.Is(err, fs.ErrPermission) {
		return "this user may not do that; what belongs to the system needs root"
	}
	return ""
}

// suggestFlag names the flag that was probably meant, or where to find it.
func suggestFlag(c *cobra.Command, err error) error {
	if _, typed, ok := strings.Cut(err.Error(), "unknown flag: --"); ok {
		if near := nearestFlag(c, typed); near != "" {
			return hint(err, "did you mean --%s?", near)
		}
	}
	return hint(err, `"%s --help" lists the flags`, c.CommandPath())
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				return a.printJSON(map[string]any{
					"version": version, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH, "format": repo.Version,
				})
			}
			fmt.Fprintf(a.out, "orlop %s (%s, %s/%s), repository format %d\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH, repo.Version)
			return nil
		},
	}
}

// printJSON prints one result as one line.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// say prints words for people.
func (a *app) say(format string, args ...any) {
	if !a.quiet && !a.json {
		fmt.Fprintf(a.err, format+"\n", args...)
	}
}

// warn prints what a person should know even when they want quiet.
func (a *app) warn(format string, args ...any) {
	text := clean(fmt.Sprintf(format, args...))
	if a.json {
		_ = json.NewEncoder(a.err).Encode(map[string]any{"message_type": "warning", "message": text})
		return
	}
	fmt.Fprintln(a.err, "warning: "+text)
}
