package filerpc

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/galleyfs/galley/sandbox"
)

// Client makes the calls. It is safe for concurrent use.
type Client struct {
	link link

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan answer
	err     error // why the connection ended
}

// answer is what came of a call.
type answer struct {
	err  *failure
	body []byte
}

// NewClient makes a client of a connection, which it takes over.
func NewClient(conn io.ReadWriteCloser) *Client {
	c := &Client{link: link{rw: conn}, waiting: map[uint64]chan answer{}}
	go c.receive()
	return c
}

// Close ends the connection; calls that wait fail with [sandbox.Closed].
func (c *Client) Close() error { return c.link.rw.Close() }

// receive hands answers to those who wait for them.
func (c *Client) receive() {
	for {
		h, body, err := c.link.receive()
		c.mu.Lock()
		if err != nil {
			c.err = err
			for _, ch := range c.waiting {
				close(ch)
			}
			c.waiting = nil
			c.mu.Unlock()
			_ = c.link.rw.Close()
			return
		}
		ch := c.waiting[h.Call]
		delete(c.waiting, h.Call)
		c.mu.Unlock()
		if ch != nil {
			ch <- answer{h.Error, body}
		}
	}
}

// cancelPatience is how long a call that was cancelled may take to end. It is
// waited for, so that it has ended when its caller hears of it; a process that
// does not answer holds nobody up for ever, and one that takes nothing of what
// it is sent is given up. Only tests change it.
var cancelPatience = 30 * time.Second

// call makes one call.
func call[A, R any](ctx context.Context, c *Client, op string, req A) (R, error) {
	var out R
	if err := ctx.Err(); err != nil {
		return out, sandbox.Wrap(op, "", err)
	}
	n, ch, err := c.begin(op)
	if err != nil {
		return out, err
	}
	defer c.forget(n)
	b, err := encode(head{Call: n, Op: op}, req)
	if errors.Is(err, errTooLarge) {
		return out, sandbox.Errorf(sandbox.TooLarge, op, "", "%w", err)
	}
	if err != nil {
		return out, sandbox.Wrap(op, "", err)
	}
	a, ok, err := c.exchange(ctx, op, n, b, ch)
	if err != nil {
		return out, err
	}
	if !ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		return out, closed(op, c.err)
	}
	if len(a.body) > 0 && a.body[0] != cborNull {
		if err := decMode.Unmarshal(a.body, &out); err != nil {
			return out, sandbox.Errorf(sandbox.Failed, op, "", "the answer of the process in the sandbox that works on files: %w", err)
		}
	}
	return out, a.err.err()
}

// exchange sends the call n, which is b, and waits for what comes of it on ch.
func (c *Client) exchange(ctx context.Context, op string, n uint64, b []byte, ch chan answer) (a answer, ok bool, err error) {
	sent := c.begun(nil, b)
	done := ctx.Done()
	var patience <-chan time.Time
	for {
		select {
		case a, ok = <-ch:
			return a, ok, nil
		case err := <-sent:
			if err != nil {
				return a, false, closed(op, err)
			}
			sent = nil
		case <-done:
			done = nil
			t := time.NewTimer(cancelPatience)
			defer t.Stop()
			patience = t.C
			cancel, err := encode(head{Call: n, Op: opCancel}, nil)
			if err != nil {
				return a, false, sandbox.Wrap(op, "", err)
			}
			sent = c.begun(sent, cancel)
		case <-patience:
			if sent != nil {
				_ = c.Close() // or whoever sends now waited for ever
			}
			return a, false, sandbox.Wrap(op, "", ctx.Err())
		}
	}
}

// begun sends b, after what is told on before if that is not nil, without
// waiting for it: the other side need not take it.
func (c *Client) begun(before <-chan error, b []byte) <-chan error {
	sent := make(chan error, 1)
	go func() {
		if before != nil {
			if err := <-before; err != nil {
				sent <- err
				return
			}
		}
		sent <- c.link.write(b)
	}()
	return sent
}

// cborNull is the body of an answer without a result.
const cborNull = 0xf6

func closed(op string, err error) error {
	return sandbox.Errorf(sandbox.Closed, op, "", "the sandbox was closed, or the process in it that works on files has ended: %w", err)
}

// begin gives a call its number.
func (c *Client) begin(op string) (uint64, chan answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil {
		return 0, nil, closed(op, c.err)
	}
	c.next++
	ch := make(chan answer, 1)
	c.waiting[c.next] = ch
	return c.next, ch, nil
}

func (c *Client) forget(n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, n)
}

// The calls of the contract. Empty lists, which the wire does not tell from
// none, are made anew.
func (c *Client) Read(ctx context.Context, r sandbox.ReadRequest) (sandbox.ReadResult, error) {
	return call[sandbox.ReadRequest, sandbox.ReadResult](ctx, c, "read", r)
}
func (c *Client) Write(ctx context.Context, r sandbox.WriteRequest) (sandbox.WriteResult, error) {
	return call[sandbox.WriteRequest, sandbox.WriteResult](ctx, c, "write", r)
}
func (c *Client) Edit(ctx context.Context, r sandbox.EditRequest) (sandbox.EditResult, error) {
	return call[sandbox.EditRequest, sandbox.EditResult](ctx, c, "edit", r)
}
func (c *Client) Stat(ctx context.Context, r sandbox.StatRequest) (sandbox.FileInfo, error) {
	return call[sandbox.StatRequest, sandbox.FileInfo](ctx, c, "stat", r)
}
func (c *Client) List(ctx context.Context, r sandbox.ListRequest) (sandbox.ListResult, error) {
	out, err := call[sandbox.ListRequest, sandbox.ListResult](ctx, c, "list", r)
	if out.Entries == nil {
		out.Entries = []sandbox.FileInfo{}
	}
	return out, err
}
func (c *Client) Glob(ctx context.Context, r sandbox.GlobRequest) (sandbox.GlobResult, error) {
	out, err := call[sandbox.GlobRequest, sandbox.GlobResult](ctx, c, "glob", r)
	if out.Paths == nil {
		out.Paths = []string{}
	}
	return out, err
}
func (c *Client) Grep(ctx context.Context, r sandbox.GrepRequest) (sandbox.GrepResult, error) {
	out, err := call[sandbox.GrepRequest, sandbox.GrepResult](ctx, c, "grep", r)
	if out.Matches == nil {
		out.Matches = []sandbox.GrepMatch{}
	}
	return out, err
}
