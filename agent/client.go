package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// The transports by which an agent is reached.
const (
	TransportSocket = "socket" // a Unix socket shared with the helper
	TransportStdio  = "stdio"  // the attached stdio of the helper
	TransportLocal  = "local"  // an agent in this process
)

// A Client is the host's end of a stream to an agent. It does one operation at
// a time; after one that failed it may be of no more use, and says so.
type Client struct {
	conn      *conn
	credits   credits
	transport string
	served    chan error // the result of an agent in this process

	mu     sync.Mutex
	busy   bool
	broken error
}

// NewClient greets the agent at the other end of rw, which must be
// authenticated. The client owns rw from here on, also when there is an error.
func NewClient(ctx context.Context, rw io.ReadWriteCloser, transport string) (*Client, error) {
	return newClient(ctx, rw, transport, usual())
}

func newClient(ctx context.Context, rw io.ReadWriteCloser, transport string, set settings) (*Client, error) {
	c := &Client{conn: newConn(rw, set), transport: transport}
	c.conn.watchWrites = true
	defer context.AfterFunc(ctx, c.conn.close)()
	err := func() error {
		if err := c.conn.send(frameHello, appendHello(nil, set.credits)); err != nil {
			return err
		}
		t, body, err := c.conn.read()
		if err != nil {
			return err
		}
		if t != frameHello {
			return protocolError("frame %d instead of a greeting", t)
		}
		has, err := parseHello(body)
		c.credits = set.credits.least(has)
		return err
	}()
	if err != nil {
		c.conn.close()
		return nil, fmt.Errorf("greet the agent: %w", cause(ctx, err))
	}
	c.conn.beat()
	return c, nil
}

// cause says why the stream broke: when ctx ended, because it did.
func cause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) {
		return protocolError("the stream ended")
	}
	return err
}

// Transport says how the agent is reached: one of the constants above.
func (c *Client) Transport() string { return c.transport }

// Close ends the stream, and with it the agent.
func (c *Client) Close() error {
	c.mu.Lock()
	closed := errors.Is(c.broken, os.ErrClosed)
	c.broken = fmt.Errorf("agent: %w", os.ErrClosed)
	c.mu.Unlock()
	if closed {
		return nil
	}
	c.conn.stop()
	if c.served != nil {
		<-c.served
	}
	return nil
}

// ErrRefused is wrapped by the error of an operation that the agent could not
// do. The stream is fine: the client can be used for others.
var ErrRefused = errors.New("the agent refused")

type refusal struct{ text string }

func (r refusal) Error() string        { return "the agent says: " + r.text }
func (r refusal) Is(target error) bool { return target == ErrRefused }

// begin claims the stream for one operation and closes it when ctx ends. The
// returned function ends the operation: it turns the operation's error into
// the one to return, and unless that is [ErrRefused] the stream is broken.
func (c *Client) begin(ctx context.Context) (end func(error) error, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return nil, c.broken
	}
	if c.busy {
		return nil, errors.New("the agent is busy")
	}
	c.busy = true
	stop := context.AfterFunc(ctx, c.conn.close)
	return func(err error) error {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		err = cause(ctx, err)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.busy = false
		if err != nil && !errors.Is(err, ErrRefused) && c.broken == nil {
			c.broken = fmt.Errorf("the agent was lost: %w", err)
			c.conn.close()
		}
		return err
	}, nil
}

// failed turns the body of an ERROR into an error.
func failed(body []byte) error {
	f, err := parseFailure(body)
	if err != nil {
		return err
	}
	if f.Final {
		return fmt.Errorf("the agent gave up: %s", f.Text)
	}
	return refusal{f.Text}
}
