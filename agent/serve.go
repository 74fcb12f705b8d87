package agent

import (
	"context"
	"errors"
	"io"
)

// serveRestore carries out a RESTORE whose body is request: it reads frames
// from c until the last one of the operation. It returns nil if c may be used
// for another operation, also when this one failed and the host was told so.
// It is set by the restore half.
var serveRestore = func(ctx context.Context, c *conn, request []byte) error {
	return errors.New("this agent cannot restore")
}

// Serve is the agent: it greets the host on the other end of rw and does what
// it asks for, one operation after another, until the stream ends, which is no
// error. If rw is an io.Closer it is closed at the end, and before when ctx is
// done or the host was not heard for a minute.
func Serve(ctx context.Context, rw io.ReadWriter) error {
	return serve(ctx, newConn(rw, silence), fullCredits)
}

func serve(ctx context.Context, c *conn, own credits) error {
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
	if err := c.send(frameHello, appendHello(nil, own)); err != nil {
		return err
	}
	c.credits = own.least(granted)
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

func serveBackup(ctx context.Context, c *conn, request []byte) error {
	return errors.New("not yet")
}
