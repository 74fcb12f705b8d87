//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Local starts an agent in this process. Close waits for it.
func Local(ctx context.Context) (*Client, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	host, agent := os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "agent")
	served := make(chan error, 1)
	// Not ctx: the agent ends with the stream, which Close closes.
	set := usual()
	set.beside = make(chan payload, set.queue)
	go func() { served <- serve(context.WithoutCancel(ctx), agent, set) }()
	c, err := newClient(ctx, host, TransportLocal, set)
	if err != nil {
		<-served
		return nil, err
	}
	c.served = served
	return c, nil
}

// Serve is the agent: it greets the host on the other end of rw and does what
// it asks for, one operation after another, until the stream ends, which is no
// error. If rw is an io.Closer it is closed at the end, and before when ctx is
// done or the host was not heard for a minute.
func Serve(ctx context.Context, rw io.ReadWriter) error {
	return serve(ctx, rw, usual())
}

func serve(ctx context.Context, rw io.ReadWriter, set settings) error {
	c := newConn(rw, set)
	c.beat()
	defer c.stop()
	defer context.AfterFunc(ctx, c.close)()

	t, body, err := c.read()
	if err != nil {
		return err
	}
	if t != frameHello {
		return protocolError("frame %d instead of a greeting", t)
	}
	granted, err := parseHello(body)
	if err != nil {
		return err
	}
	if err := c.send(frameHello, appendHello(nil, set.credits)); err != nil {
		return err
	}
	c.credits = set.credits.least(granted)
	for {
		t, body, err := c.read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			switch t {
			case frameBackup:
				err = serveBackup(ctx, c, append([]byte(nil), body...))
			case frameRestore:
				err = serveRestore(ctx, c, append([]byte(nil), body...))
			default:
				err = protocolError("frame %d where a request was expected", t)
			}
		}
		if err != nil {
			return errors.Join(ctx.Err(), err)
		}
	}
}
