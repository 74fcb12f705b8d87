// Package docker asks a Docker engine for all that orlop needs of one: what
// volumes there are and who uses them, and a helper container that reads or
// fills them.
//
// # The helper
//
// A volume can only be reached the way a container reaches it: on a remote
// engine, under Docker Desktop and with volume plugins there is no directory of
// this host to open. So [Engine.StartHelper] starts a container made of orlop's
// own static binary, imported through the API (nothing is ever pulled), and
// hands back a connected [orlop/agent.Client].
//
// # The danger
//
// The helper reads files as root that may have been put there to attack it, so
// it is given nothing it does not need: see sandbox.go and docs/design.md. And
// an engine makes what it does not know: a container that mounts a misspelt
// volume creates it. Volumes are therefore inspected before a helper is created
// and looked at again afterwards.
//
// Every call is bounded in time: a dead volume plugin stalls an engine.
package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/docker/cli/cli/connhelper"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/client"
	"github.com/docker/go-connections/tlsconfig"

	"orlop/id"
)

// An Engine is a Docker engine that has answered. Its methods may be called
// concurrently.
type Engine struct {
	// Owner names who made a helper and so who may reap it: this host, this
	// user, and where they keep their run locks. It is set to the first two;
	// callers whose locks lie in a place of their own add it before the first
	// helper is started.
	Owner string

	cli      *client.Client
	log      *slog.Logger
	info     Info
	patience time.Duration // for one answer

	image struct {
		sync.Mutex
		byBinary map[string]string // path of a binary -> ID of its image
	}
}

// Info is what an engine says about itself.
type Info struct {
	ID       string // its own, stays the same across restarts; may be empty
	Name     string // of its host
	Version  string // of the engine
	OS, Arch string // in Go's words: linux, arm64
	Seccomp  bool   // it can confine system calls
	Local    bool   // on Linux and reached through a Unix socket, so probably on this file system
	Host     string // where it was reached: unix:///var/run/docker.sock
}

// ErrNoEngine is what [Open] returns when no engine answers.
var ErrNoEngine = errors.New("no Docker engine answers")

// Open finds the engine as the docker command does: DOCKER_HOST (unix, tcp with
// TLS by DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, ssh), else the context that
// DOCKER_CONTEXT or the configuration in DOCKER_CONFIG (~/.docker) names, else
// the default socket. The API version is agreed with it.
func Open(ctx context.Context, log *slog.Logger) (*Engine, error) {
	at, err := findEndpoint(os.Getenv)
	if err != nil {
		return nil, fmt.Errorf("find the docker engine: %w", err)
	}
	return open(ctx, log, at)
}

func open(ctx context.Context, log *slog.Logger, at endpoint) (*Engine, error) {
	cli, err := at.client(log)
	if err != nil {
		return nil, fmt.Errorf("connect to the docker engine at %s: %w", at, err)
	}
	e := &Engine{Owner: thisOwner(), cli: cli, log: log, patience: time.Minute}
	e.image.byBinary = make(map[string]string)
	info, err := ask(ctx, e, "ask the docker engine at "+at.String()+" what it is", cli.Info)
	if err != nil {
		_ = cli.Close()
		if ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", ErrNoEngine, err)
		}
		return nil, err
	}
	e.info = Info{
		ID: info.ID, Name: info.Name, Version: info.ServerVersion,
		OS: info.OSType, Arch: goArch(info.Architecture),
		Seccomp: hasSeccomp(info), Host: at.host,
		// Elsewhere the engine is in a virtual machine, which no Unix socket enters.
		Local: runtime.GOOS == "linux" && strings.HasPrefix(at.host, "unix://"),
	}
	log.Debug("docker engine", "host", at.host, "version", info.ServerVersion, "api", cli.ClientVersion(), "arch", e.info.Arch)
	return e, nil
}

// Close gives up the connections to the engine. Helpers are closed first.
func (e *Engine) Close() error { return e.cli.Close() }

// Info returns what the engine said about itself when it was opened.
func (e *Engine) Info() Info { return e.info }

func hasSeccomp(info system.Info) bool {
	for _, o := range info.SecurityOptions {
		if o == "seccomp" || strings.HasPrefix(o, "name=seccomp") {
			return true
		}
	}
	return false
}

// goArch turns what uname calls a machine into Go's word for it.
func goArch(machine string) string {
	switch machine {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "i386", "i486", "i586", "i686":
		return "386"
	case "armv5l", "armv6l", "armv7l", "armv8l":
		return "arm"
	}
	return machine
}

// thisOwner is this host and user, hashed: a machine-id is not for others to read.
func thisOwner() string {
	machine, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		name, _ := os.Hostname()
		machine = []byte(name)
	}
	h := id.NewHash()
	fmt.Fprintf(h, "orlop host\n%s\n%d", strings.TrimSpace(string(machine)), os.Getuid())
	sum := h.Sum()
	return fmt.Sprintf("%x", sum[:16])
}

// ask bounds one call to the engine and says in its error what it was for.
func ask[T any](ctx context.Context, e *Engine, what string, call func(context.Context) (T, error)) (T, error) {
	slow := fmt.Errorf("no answer within %v", e.patience)
	bounded, cancel := context.WithTimeoutCause(ctx, e.patience, slow)
	defer cancel()
	v, err := call(bounded)
	if err == nil {
		return v, nil
	}
	if ctx.Err() == nil && bounded.Err() != nil {
		err = slow
	}
	return v, fmt.Errorf("%s: %w", what, err)
}

// tell is ask for calls that answer nothing.
func tell(ctx context.Context, e *Engine, what string, call func(context.Context) error) error {
	_, err := ask(ctx, e, what, func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) })
	return err
}

// client makes the API client for an endpoint. Nothing is sent yet.
func (at endpoint) client(log *slog.Logger) (*client.Client, error) {
	opts := []client.Opt{client.WithAPIVersionNegotiation()}
	if at.apiVersion != "" {
		opts = append(opts, client.WithVersion(at.apiVersion))
	}
	ssh, err := connhelper.GetConnectionHelper(at.host)
	switch {
	case err != nil:
		return nil, err
	case ssh != nil:
		transport := &http.Transport{DialContext: ssh.Dialer}
		opts = append(opts, client.WithHTTPClient(&http.Client{Transport: transport, CheckRedirect: client.CheckRedirect}),
			client.WithHost(ssh.Host), client.WithDialContext(ssh.Dialer))
	case at.tls != nil:
		if at.tls.InsecureSkipVerify {
			log.Warn("the docker engine's certificate is not verified; set DOCKER_TLS_VERIFY=1", "host", at.host)
		}
		config, err := tlsconfig.Client(*at.tls)
		if err != nil {
			return nil, err
		}
		transport := &http.Transport{TLSClientConfig: config}
		opts = append(opts, client.WithHTTPClient(&http.Client{Transport: transport, CheckRedirect: client.CheckRedirect}),
			client.WithHost(at.host))
	default:
		opts = append(opts, client.WithHost(at.host))
	}
	return client.NewClientWithOpts(opts...)
}

// quoted lists names for an error.
func quoted(names []string) string {
	q := make([]string, len(names))
	for i, n := range names {
		q[i] = strconv.Quote(n)
	}
	return strings.Join(q, ", ")
}
