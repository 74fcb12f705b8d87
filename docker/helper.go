package docker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"

	"orlop/agent"
	"orlop/id"
)

// A HelperConfig says what a helper is for.
type HelperConfig struct {
	Volumes []string // mounted at Root(0), Root(1), ...; at least one, by their own names
	Mode    Mode
	Devices bool       // Restore: device nodes are to be made
	Run     id.Session // whose lock keeps the helper from being reaped

	// WeakSandbox accepts an engine that cannot confine system calls.
	WeakSandbox bool
	// SocketDir is where the directory for the socket is made; "" is where the
	// system keeps such things. Its path should be short: a socket's name
	// holds 107 bytes.
	SocketDir string
	// NoSocket keeps to stdio.
	NoSocket bool
	// Binary is the static Linux binary whose "agent" command is run; "" is
	// this program, or orlop-linux-ARCH beside it.
	Binary string
}

// Mode says what a helper may do to its volumes.
type Mode uint8

// The modes.
const (
	Backup  Mode = iota // read them
	Restore             // fill them
)

// String names the mode.
func (m Mode) String() string {
	if m == Restore {
		return "restore"
	}
	return "backup"
}

// ErrWeakSandbox is returned by [Engine.StartHelper] when the engine cannot
// confine system calls and the caller did not say that this is accepted.
var ErrWeakSandbox = errors.New("the engine runs containers without seccomp, so a helper could not be confined")

// A StartError says that a helper did not come up. With several volumes, each
// may do better in a helper of its own.
type StartError struct {
	Volumes []string // that it was for
	Volume  string   // the one the engine complained of, or "" if it did not say
	Err     error
}

// Error implements error.
func (e *StartError) Error() string {
	if e.Volume != "" {
		return fmt.Sprintf("start a helper for volume %q: %v", e.Volume, e.Err)
	}
	return fmt.Sprintf("start a helper for volume %s: %v", quoted(e.Volumes), e.Err)
}

// Unwrap returns the reason.
func (e *StartError) Unwrap() error { return e.Err }

// An ExitError says that a helper ended while it was needed. It is what reads
// and writes on its stream return from then on.
type ExitError struct {
	Code int64
	Log  string // the end of what it wrote to stderr
}

// Error implements error.
func (e *ExitError) Error() string {
	s := fmt.Sprintf("the helper ended with exit code %d", e.Code)
	if e.Code == 137 {
		s += " (killed, by somebody or for want of memory)"
	}
	if e.Log != "" {
		s += ": " + e.Log
	}
	return s
}

const (
	readyPatience = 20 * time.Second // from start to the agent's first word
	closePatience = 5 * time.Second  // for the helper to end by itself
)

// A Helper is a running container with the agent in it.
type Helper struct {
	Client *agent.Client // greeted and ready

	e     *Engine
	id    string
	dir   string // of the socket, or ""
	out   *demux // what the container writes
	conns conns
	watch context.CancelFunc
	ended chan struct{} // closed when the container has, or the engine lost sight of it
	code  int64         // valid once ended is closed; -1 if not known
	once  sync.Once
	err   error // of closing
}

// Root returns where the i-th volume is mounted in the helper.
func (h *Helper) Root(i int) string { return root(i) }

func root(i int) string { return fmt.Sprintf("/v/%d", i) }

// ID returns the container's ID.
func (h *Helper) ID() string { return h.id }

// Log returns the end of what the agent wrote to its stderr.
func (h *Helper) Log() string { return h.out.log.String() }

// StartHelper starts a container with c's volumes and connects to the agent in
// it. The caller closes it; ctx bounds only the start.
//
// The errors to tell apart are [NoVolumeError], [ErrWeakSandbox], a
// [BinaryError] and a [StartError].
func (e *Engine) StartHelper(ctx context.Context, c HelperConfig) (*Helper, error) {
	if len(c.Volumes) == 0 {
		return nil, errors.New("start a helper: no volumes")
	}
	if !e.info.Seccomp && !c.WeakSandbox {
		return nil, ErrWeakSandbox
	}
	for _, name := range c.Volumes {
		if _, err := e.inspect(ctx, name); errors.Is(err, ErrNoVolume) {
			return nil, e.noVolume(ctx, name)
		} else if err != nil {
			return nil, err
		}
	}
	binary, err := e.binary(c.Binary)
	if err != nil {
		return nil, err
	}
	c.Binary = binary
	dir := ""
	if e.info.Local && !c.NoSocket {
		if dir, err = socketDir(c.SocketDir, e.socketPrefix(), c.Run); err != nil {
			return nil, fmt.Errorf("make a directory for the helper's socket: %w", err)
		}
	}
	h, err := e.startHelper(ctx, c, dir)
	if err != nil && dir != "" && strings.Contains(err.Error(), dir) && ctx.Err() == nil {
		// The engine could not mount it, so it sees another file system: it
		// is in a virtual machine, or this program is in a container.
		e.log.Debug("the engine does not share this file system", "err", err)
		h, err = e.startHelper(ctx, c, "")
	}
	if err == nil {
		return h, nil
	}
	if ctx.Err() != nil || errors.Is(err, ErrNoVolume) {
		return nil, err
	}
	failed := &StartError{Volumes: c.Volumes, Err: err}
	for _, name := range c.Volumes {
		// Engines quote the source of a mount that fails, or its directory.
		if len(c.Volumes) == 1 || strings.Contains(err.Error(), "/"+name+"/") || strings.Contains(err.Error(), strconv.Quote(name)) {
			failed.Volume = name
			break
		}
	}
	return nil, failed
}

// startHelper makes one try, with a socket in dir unless that is "". It owns
// dir.
func (e *Engine) startHelper(ctx context.Context, c HelperConfig, dir string) (_ *Helper, err error) {
	h := &Helper{
		e: e, dir: dir, code: -1, watch: func() {},
		out: &demux{ended: make(chan struct{})}, conns: conns{done: make(chan struct{})}, ended: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			h.abandon(ctx)
		}
	}()
	var listener *agent.Listener
	mounted := ""
	start := agent.Start{Memory: helperMemory, Weak: c.WeakSandbox}
	if dir != "" {
		if listener, _, err = agent.Listen(dir); err != nil {
			return nil, err
		}
		defer listener.Close()
		listener.Wrap = func(rw io.ReadWriteCloser) io.ReadWriteCloser {
			h.conns.add(rw)
			return &stream{h, rw, rw}
		}
		mounted = listener.Dir()
		start.Socket = path.Join(socketTarget, agent.SocketName)
	}
	if h.id, err = e.createHelper(ctx, c, mounted); err != nil {
		return nil, err
	}

	// This order loses no byte and no exit: attach, wait, start.
	attached, err := e.attach(ctx, h.id)
	if err != nil {
		return nil, err
	}
	h.conns.add(attached.Conn)
	h.out.r = attached.Reader
	if err := h.watchExit(ctx); err != nil {
		return nil, err
	}
	err = tell(ctx, e, "start the container", func(ctx context.Context) error {
		return e.cli.ContainerStart(ctx, h.id, container.StartOptions{})
	})
	if err != nil {
		return nil, err
	}
	h.Client, err = agent.Connect(ctx, &stream{h, h.out, attached.Conn}, listener, start, readyPatience)
	if err != nil {
		return nil, err
	}
	if h.Client.Transport() != agent.TransportStdio {
		// Somebody must read on: the log comes by this way, and the end.
		go func() { _, _ = io.Copy(io.Discard, h.out) }()
	}
	e.log.Debug("helper started", "container", h.id[:12], "mode", c.Mode.String(), "transport", h.Client.Transport(), "volumes", len(c.Volumes))
	return h, nil
}

// createHelper makes the container and sees to it that it made no volume.
func (e *Engine) createHelper(ctx context.Context, c HelperConfig, socket string) (string, error) {
	create := func() (string, error) {
		img, err := e.helperImage(ctx, c.Binary)
		if err != nil {
			return "", err
		}
		config, host := sandbox(c, e, img, socket)
		name := fmt.Sprintf("orlop-%s-%.8x", c.Mode, rand.Uint32())
		made, err := ask(ctx, e, "create the container", func(ctx context.Context) (container.CreateResponse, error) {
			return e.cli.ContainerCreate(ctx, config, host, nil, nil, name)
		})
		for _, w := range made.Warnings {
			e.log.Warn("the engine about the helper", "warning", w)
		}
		return made.ID, err
	}
	id, err := create()
	if errdefs.IsNotFound(err) {
		// Somebody removed the image since it was last looked for.
		e.forgetImage(c.Binary)
		id, err = create()
	}
	if err != nil {
		return "", err
	}
	for _, name := range c.Volumes {
		v, err := e.inspect(ctx, name)
		if err == nil && v.Labels[labelMounted] == "" {
			continue
		}
		e.removeContainer(ctx, id)
		if err == nil && v.Labels[labelMounted] == c.Run.String() {
			// It vanished after it was inspected, and our mount has made an
			// empty one in its place. That one is ours to remove.
			if err := e.RemoveVolume(ctx, name); err != nil {
				e.log.Warn("an empty volume is left", "volume", name, "err", err)
			}
			err = &NoVolumeError{Name: name}
		}
		if err == nil {
			err = fmt.Errorf("volume %q was made by another run of orlop that found it missing; remove it", name)
		}
		return "", err
	}
	return id, nil
}

// attach opens the helper's stdio. Its context lives as long as the connection
// does (over ssh that is a process), so it is not the bounded one.
func (e *Engine) attach(ctx context.Context, id string) (types.HijackedResponse, error) {
	living, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() { cancel(ctx.Err()) })()
	slow := fmt.Errorf("no answer within %v", e.patience)
	defer time.AfterFunc(e.patience, func() { cancel(slow) }).Stop()
	r, err := e.cli.ContainerAttach(living, id, container.AttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		if living.Err() != nil {
			err = context.Cause(living)
		}
		return r, fmt.Errorf("attach to the container: %w", err)
	}
	return r, nil
}

// watchExit learns of the container's end, whatever the streams do.
func (h *Helper) watchExit(ctx context.Context) error {
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	h.watch = stop
	defer context.AfterFunc(ctx, stop)()
	// ContainerWait returns when the engine has taken the request; until then
	// it is bounded like every other call.
	late := time.AfterFunc(h.e.patience, stop)
	exits, errs := h.e.cli.ContainerWait(watching, h.id, container.WaitConditionNextExit)
	if !late.Stop() {
		return fmt.Errorf("watch the container: no answer within %v", h.e.patience)
	}
	go func() {
		defer close(h.ended)
		select {
		case err := <-errs:
			// Not the end of the helper: its socket may outlive an engine
			// that is restarted. If it is the end, the stream will tell.
			if watching.Err() == nil {
				h.e.log.Debug("the engine lost sight of the helper", "err", err)
			}
			return
		case r := <-exits:
			h.code = r.StatusCode
		}
		// What it wrote last may still be under way. After that nothing will
		// come, whatever state a connection is in.
		time.AfterFunc(closePatience, h.conns.close)
		select {
		case <-h.out.ended:
		case <-h.conns.done:
		case <-time.After(time.Second):
		}
	}()
	return nil
}

// A stream is what the client talks over. Its errors say why it broke, if that
// is because the helper is no more.
type stream struct {
	h *Helper
	r io.Reader
	w io.WriteCloser
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil {
		err = s.h.why(err)
	}
	return n, err
}

func (s *stream) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err != nil {
		err = s.h.why(err)
	}
	return n, err
}

// Close ends both directions. The agent sees the end of its input and exits.
func (s *stream) Close() error {
	s.h.conns.close()
	return nil
}

// why turns the error of a broken stream into the reason, which the engine
// gives a moment later.
func (h *Helper) why(err error) error {
	patience := 2 * time.Second
	select {
	case <-h.conns.done:
		patience = time.Millisecond // it was closed from this side
	default:
	}
	select {
	case <-h.ended:
		if h.code >= 0 {
			return &ExitError{Code: h.code, Log: h.Log()}
		}
	case <-time.After(patience):
	}
	return err
}

// Close ends the helper and returns when the container is gone. It first lets
// the agent end by itself, unless ctx is done, in which case it is killed.
func (h *Helper) Close(ctx context.Context) error {
	h.once.Do(func() {
		_ = h.Client.Close()
		h.conns.close()
		timer := time.NewTimer(closePatience)
		defer timer.Stop()
		select {
		case <-h.ended:
		case <-timer.C:
		case <-ctx.Done():
		}
		select {
		case <-h.ended:
			// Whatever went wrong in it, its client has said so; and an agent
			// whose stream was closed in the middle of its work is no news.
			if h.code > 0 {
				h.e.log.Debug("the helper failed as it ended", "code", h.code, "stderr", h.Log())
			}
		default:
			h.e.log.Debug("the helper is killed", "container", h.id[:12])
		}
		h.err = h.e.removeContainer(ctx, h.id)
		h.release()
	})
	return h.err
}

// abandon undoes a start that failed, also because ctx ended.
func (h *Helper) abandon(ctx context.Context) {
	h.conns.close()
	if h.id != "" {
		if err := h.e.removeContainer(ctx, h.id); err != nil {
			h.e.log.Warn("a helper may be left", "container", h.id[:12], "err", err)
		}
	}
	h.release()
}

func (h *Helper) release() {
	h.watch()
	if h.dir != "" {
		_ = os.RemoveAll(h.dir)
	}
}

// removeContainer kills the container if it runs and returns when it is gone,
// so that its volumes are free. It works also when ctx has ended.
func (e *Engine) removeContainer(ctx context.Context, id string) error {
	ctx = context.WithoutCancel(ctx)
	err := tell(ctx, e, "remove container "+id[:12], func(ctx context.Context) error {
		return e.cli.ContainerRemove(ctx, id, container.RemoveOptions{Force: true})
	})
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case errdefs.IsConflict(err):
		// "removal is already in progress": the engine does it by itself.
	default:
		return err
	}
	return tell(ctx, e, "wait until container "+id[:12]+" is removed", func(ctx context.Context) error {
		done, errs := e.cli.ContainerWait(ctx, id, container.WaitConditionRemoved)
		select {
		case <-done:
			return nil
		case err := <-errs:
			if errdefs.IsNotFound(err) {
				return nil
			}
			return err
		}
	})
}

// conns closes what it was given, and what it is given afterwards.
type conns struct {
	mu   sync.Mutex
	done chan struct{} // closed when they are
	list []io.Closer
}

func (c *conns) add(conn io.Closer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done:
		_ = conn.Close()
	default:
		c.list = append(c.list, conn)
	}
}

func (c *conns) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done:
		return
	default:
	}
	close(c.done)
	for _, conn := range c.list {
		_ = conn.Close()
	}
}

// A demux reads a container's stdout from its attached stream, in which stdout
// and stderr come in turn; stderr goes to the log.
//
// The stream is a sequence of u8 which (1 stdout, 2 stderr, 3 the engine's own
// trouble), 3 zero bytes, u32 big-endian length, bytes (Engine API, "Attach to
// a container").
type demux struct {
	r     io.Reader
	left  int // of the frame of stdout that is being read
	log   tail
	ended chan struct{} // closed at the first error
	err   error
}

// Read implements io.Reader.
func (d *demux) Read(p []byte) (int, error) {
	if len(p) == 0 || d.err != nil {
		return 0, d.err
	}
	for d.left == 0 {
		if err := d.next(); err != nil {
			d.err = err
			close(d.ended)
			return 0, err
		}
	}
	n, err := d.r.Read(p[:min(len(p), d.left)])
	d.left -= n
	if err != nil {
		d.err = err
		if errors.Is(err, io.EOF) && d.left > 0 {
			d.err = io.ErrUnexpectedEOF
		}
		close(d.ended)
	}
	return n, d.err
}

// next reads up to the next bytes of stdout.
func (d *demux) next() error {
	var header [8]byte
	if _, err := io.ReadFull(d.r, header[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(header[4:])
	switch header[0] {
	case 1:
		d.left = int(n)
		return nil
	case 2:
		if _, err := io.CopyN(&d.log, d.r, int64(n)); err != nil {
			return unexpected(err)
		}
		return nil
	case 3:
		text, err := io.ReadAll(io.LimitReader(d.r, min(int64(n), 4096)))
		if err != nil {
			return err
		}
		return fmt.Errorf("the engine says: %s", text)
	}
	return fmt.Errorf("the engine sends a stream of kind %d", header[0])
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A tail keeps the last bytes written to it.
type tail struct {
	mu sync.Mutex
	p  []byte
}

const tailSize = 4096

// Write implements io.Writer; it never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.p = append(t.p, p...)
	if drop := len(t.p) - tailSize; drop > 0 {
		t.p = append(t.p[:0], t.p[drop:]...)
	}
	return len(p), nil
}

// String returns them without space at the ends.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.p))
}
