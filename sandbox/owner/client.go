package owner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/snapshots"
)

// Client is a connection to an owner, and a lease: as long as it is open, the
// owner stays. It is safe for concurrent use.
type Client struct {
	link *link
	name string // of the session, for messages
	peer helloAnswer
	gone chan struct{} // closed when the connection has ended

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan response
	err     error // why the connection ended
}

// newClient greets the owner at the other end of conn, which it takes over.
func newClient(ctx context.Context, conn *net.UnixConn, name, what string) (*Client, error) {
	c := &Client{link: &link{conn: conn}, name: name, waiting: map[uint64]chan response{}, gone: make(chan struct{})}
	go c.receive()
	err := c.call(ctx, opHello, helloBody{Protocol: protocol, What: what}, -1, &c.peer)
	if err != nil {
		if ctx.Err() != nil {
			err = silence(conn, name, err)
		}
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// silence is the error of an owner that does not greet back: it is stopped, or
// hangs.
func silence(conn *net.UnixConn, name string, err error) error {
	who := "its owner"
	if cred, cerr := credentials(conn); cerr == nil && cred.Pid > 0 {
		who = fmt.Sprintf("its owner, process %d,", cred.Pid)
	}
	return fmt.Errorf("session %s: %s does not answer: %w; nothing was asked of it; if it was stopped, let it go on, and if it hangs, kill it: what it had acknowledged stays",
		name, who, err)
}

// receive hands responses to those who wait for them.
func (c *Client) receive() {
	for {
		b, fd, err := c.link.read()
		closeFD(fd) // an owner sends none
		var r response
		if err == nil {
			err = decode(b, &r)
		}
		c.mu.Lock()
		if err != nil {
			c.err = c.lost(err)
			for _, ch := range c.waiting {
				close(ch)
			}
			c.waiting = nil
			c.mu.Unlock()
			_ = c.link.conn.Close()
			close(c.gone)
			return
		}
		ch := c.waiting[r.Number]
		delete(c.waiting, r.Number)
		c.mu.Unlock()
		if ch != nil {
			ch <- r
		}
	}
}

func (c *Client) lost(err error) error {
	// An owner that ends with a request unread resets the connection.
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("session %s: its owner process ended: %w", c.name, ErrNoOwner)
	}
	return fmt.Errorf("session %s: its owner process: %w", c.name, err)
}

// call sends a request and waits for its answer, which it decodes into out
// unless that is nil.
func (c *Client) call(ctx context.Context, what op, in any, fd int, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	ch := make(chan response, 1)
	c.mu.Lock()
	if c.waiting == nil {
		err := c.err
		c.mu.Unlock()
		return err
	}
	c.next++
	n := c.next
	c.waiting[n] = ch
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, n)
		c.mu.Unlock()
	}()
	if err := c.link.write(request{Number: n, Op: what, Body: b}, fd); err != nil {
		return c.lost(err)
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("session %s: %s: %w", c.name, what, context.Cause(ctx))
	case r, ok := <-ch:
		if !ok {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.err
		}
		if r.Error != nil {
			return r.Error.err()
		}
		if out == nil {
			return nil
		}
		if err := decode(r.Body, out); err != nil {
			return fmt.Errorf("session %s: answer to %s: %w", c.name, what, err)
		}
		return nil
	}
}

// Close ends the lease. Mounts that were made through it stay until they are
// unmounted.
func (c *Client) Close() error {
	err := c.link.conn.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// PID is the owner's process id.
func (c *Client) PID() int { return c.peer.PID }

// Version is the version of Galley that the owner runs.
func (c *Client) Version() string { return c.peer.Version }

// Seal is [snapshots.Live.Seal] in the owner.
func (c *Client) Seal(ctx context.Context, opt snapshots.SealOptions) (snapshots.Snapshot, error) {
	var s snapshots.Snapshot
	return s, c.call(ctx, opSeal, opt, -1, &s)
}

// Committed is [snapshots.Live.Committed] in the owner.
func (c *Client) Committed(ctx context.Context, m snapshots.Committed) (snapshots.Snapshot, error) {
	var s snapshots.Snapshot
	return s, c.call(ctx, opCommitted, m, -1, &s)
}

// Discard is [snapshots.Live.Discard] in the owner.
func (c *Client) Discard(ctx context.Context, d snapshots.Discard) (snapshots.TrashEntry, error) {
	var t snapshots.TrashEntry
	return t, c.call(ctx, opDiscard, d, -1, &t)
}

// Rollback is [snapshots.Live.Rollback] in the owner.
func (c *Client) Rollback(ctx context.Context, r snapshots.Rollback) (snapshots.RolledBack, error) {
	var out snapshots.RolledBack
	return out, c.call(ctx, opRollback, r, -1, &out)
}

// Take is [snapshots.Live.Take] in the owner.
func (c *Client) Take(ctx context.Context, t snapshots.Take) (snapshots.Taken, error) {
	var out snapshots.Taken
	return out, c.call(ctx, opTake, t, -1, &out)
}

// Replacing is [snapshots.Live.Replacing] in the owner.
func (c *Client) Replacing(ctx context.Context, r snapshots.Replacing) error {
	return c.call(ctx, opReplacing, r, -1, nil)
}

// AddTree adds a tree to the live session and returns its name, which is made
// of the directory's. A session has one tree on a base: one that is there
// already is returned.
func (c *Client) AddTree(ctx context.Context, a AddTree) (string, error) {
	var name string
	return name, c.call(ctx, opAddTree, a, -1, &name)
}

// Prune is [snapshots.Live.Prune] in the owner, which keeps what is mounted.
func (c *Client) Prune(ctx context.Context, p snapshots.Prune) (snapshots.Pruned, error) {
	var out snapshots.Pruned
	return out, c.call(ctx, opPrune, p, -1, &out)
}

// ServeFUSE hands the /dev/fuse descriptor fd of a fresh mount to the owner,
// which serves it until it is unmounted. The descriptor stays the caller's,
// who should close it soon: as long as another process has a copy, a killed
// owner leaves a mount on which programs wait instead of failing.
func (c *Client) ServeFUSE(ctx context.Context, m FUSE, fd int) (Mount, error) {
	var out Mount
	return out, c.call(ctx, opFUSE, m, fd, &out)
}

// Watch has the owner note which process tree changes what through a mount that
// it serves, for the names of [snapshots.SealOptions.Calls]. proc is a /proc of the
// namespace that the mount was made in; the caller keeps it.
func (c *Client) Watch(ctx context.Context, mount, proc int) error {
	return c.call(ctx, opWatch, watchBody{Mount: mount}, proc, nil)
}

// Status asks how the owner is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.call(ctx, opStatus, nil, -1, &s)
}

// Mounts lists the mounts that the owner serves.
func (c *Client) Mounts(ctx context.Context) ([]Mount, error) {
	s, err := c.Status(ctx)
	return s.Mounts, err
}

// WaitUnmount waits until the owner no longer serves mount id.
func (c *Client) WaitUnmount(ctx context.Context, id int) error {
	return c.call(ctx, opWait, mountBody{ID: id}, -1, nil)
}

// Abort ends the serving of mount id whether it is in use or not: its users
// get ENOTCONN. It is for mounts that cannot be unmounted from here.
func (c *Client) Abort(ctx context.Context, id int) error {
	return c.call(ctx, opAbort, mountBody{ID: id}, -1, nil)
}

// Stop asks the owner to end. It refuses with snapshots.ErrBusy while others
// use it or something is mounted, unless force is set, which aborts the mounts.
// The owner is gone when Stop returns.
func (c *Client) Stop(ctx context.Context, force bool) error {
	if err := c.call(ctx, opStop, stopBody{Force: force}, -1, nil); err != nil {
		return err
	}
	select {
	case <-c.gone: // what the owner does last
		return nil
	case <-ctx.Done():
		return fmt.Errorf("session %s: wait for its owner to end: %w", c.name, context.Cause(ctx))
	}
}
