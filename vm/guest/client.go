package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Client asks a guest's agent. It holds no connection of its own: each call
// opens a stream. It is safe for concurrent use.
type Client struct {
	dial func(context.Context) (net.Conn, error)
}

// NewClient makes a client of a way to open streams: [Mux.Open], or a
// connection to the process that has the Mux.
func NewClient(dial func(context.Context) (net.Conn, error)) *Client { return &Client{dial} }

// open opens a stream and sends the call. The context ends the stream until
// release is called, which reports whether it did not.
func (c *Client) open(ctx context.Context, what op, body any) (f *frames, conn net.Conn, release func() bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, nil, err
	}
	var b []byte
	if body != nil {
		if b, err = Encode(body); err != nil {
			return nil, nil, nil, err
		}
	}
	if conn, err = c.dial(ctx); err != nil {
		return nil, nil, nil, err
	}
	release = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	f = &frames{rw: conn}
	if err := f.sendValue(frameCall, call{Op: what, Body: b}); err != nil {
		release()
		_ = conn.Close()
		return nil, nil, nil, c.lost(ctx, what, err)
	}
	return f, conn, release, nil
}

// ErrGone: the guest, or the agent in it, has ended.
var ErrGone = errors.New("the guest has ended")

// lost is why a conversation broke off.
func (c *Client) lost(ctx context.Context, what op, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s in the guest: %w", what, context.Cause(ctx))
	case errors.Is(err, ErrProtocol):
		return fmt.Errorf("%s in the guest: %w", what, err)
	}
	return fmt.Errorf("%s in the guest: %w: %w", what, ErrGone, err)
}

// answer takes the first frame of the agent and decodes it into out.
func (c *Client) answer(ctx context.Context, f *frames, what op, out any) error {
	t, b, err := f.receive()
	if err != nil {
		return c.lost(ctx, what, err)
	}
	switch t {
	case frameAnswer:
		if out == nil {
			return nil
		}
		if err := Decode(b, out); err != nil {
			return c.lost(ctx, what, err)
		}
		return nil
	case frameFailed:
		var fail Failure
		if err := Decode(b, &fail); err != nil {
			return c.lost(ctx, what, err)
		}
		return &fail
	}
	return c.lost(ctx, what, fmt.Errorf("%w: message of type %d where an answer was due", ErrProtocol, t))
}

// call makes a call of one frame each way.
func (c *Client) call(ctx context.Context, what op, body, out any) error {
	f, conn, release, err := c.open(ctx, what, body)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer release()
	return c.answer(ctx, f, what, out)
}

// Setup mounts the export and makes the guest's tree of it. It is the first
// call, and is made once.
func (c *Client) Setup(ctx context.Context, s Setup) (Info, error) {
	var out Info
	err := c.call(ctx, opSetup, s, &out)
	return out, err
}

// Info asks how the guest is.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var out Info
	err := c.call(ctx, opInfo, nil, &out)
	return out, err
}

// Mount puts a directory of the export at a path of the guest.
func (c *Client) Mount(ctx context.Context, m Mount) error { return c.call(ctx, opMount, m, nil) }

// Unmount takes away what [Client.Mount] put at path. What is in use there
// goes on until it is closed.
func (c *Client) Unmount(ctx context.Context, path string) error {
	return c.call(ctx, opUnmount, unmountBody{path}, nil)
}

// Sync has the guest write back what it holds. Give it a deadline.
func (c *Client) Sync(ctx context.Context) error { return c.call(ctx, opSync, nil, nil) }

// Invalidate has the guest look again at what changed. Give it a deadline.
func (c *Client) Invalidate(ctx context.Context, i Invalidate) error {
	return c.call(ctx, opInvalidate, i, nil)
}

// SetClock sets the guest's clock.
func (c *Client) SetClock(ctx context.Context, now time.Time) error {
	return c.call(ctx, opClock, clockBody{now}, nil)
}

// Shutdown ends every call, syncs and ends the guest. It returns when the agent
// has synced; the guest ends just then.
func (c *Client) Shutdown(ctx context.Context) error { return c.call(ctx, opShutdown, nil, nil) }

// Dial connects to an address as the guest sees it: "tcp" or "unix".
func (c *Client) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return c.stream(ctx, opDial, dialBody{network, address})
}

// Files starts the process in the guest that works on files. What is spoken
// with it is the caller's affair.
func (c *Client) Files(ctx context.Context, r Files) (net.Conn, error) {
	return c.stream(ctx, opFiles, r)
}

// Copy starts the process in the guest that works on files for one copy.
func (c *Client) Copy(ctx context.Context, r Copy) (net.Conn, error) {
	return c.stream(ctx, opCopy, r)
}

// stream makes a call whose stream carries bytes of its own from the answer
// on.
func (c *Client) stream(ctx context.Context, what op, body any) (net.Conn, error) {
	f, conn, release, err := c.open(ctx, what, body)
	if err != nil {
		return nil, err
	}
	err = c.answer(ctx, f, what, nil)
	if !release() && err == nil {
		err = c.lost(ctx, what, io.ErrUnexpectedEOF)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}
