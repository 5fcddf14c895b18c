package microvm

import (
	"context"
	"syscall"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/command"
	"github.com/galleyfs/galley/vm/guest"
)

// running is how a command in the guest is reached.
type running struct {
	*command.Command
	command *guest.Command
}

var _ command.Wire = (*running)(nil)

// run is [command.Host.Launch].
func (s *Sandbox) run(ctx context.Context, op string, r sandbox.BashRequest, dir string, back bool) (*command.Command, error) {
	req := guest.Exec{
		Line: r.Command, Dir: dir, Env: command.Env(s.env, &r), User: s.user,
		Stdin: r.Stdin != nil || r.OpenStdin, Separate: r.Separate, Background: back,
	}
	if rows, cols := command.Size(&r); rows > 0 {
		req.TTY = &guest.Size{Rows: rows, Cols: cols}
	}
	c := &running{}
	c.Command = command.New(r, c)
	var err error
	if c.command, err = s.guest.Start(ctx, req, func(stream int, b []byte) { c.Output(sandbox.Stream(stream), b) }); err != nil {
		return nil, s.wrap(op, "", err)
	}
	s.mu.Lock()
	s.running[c] = struct{}{}
	s.mu.Unlock()
	go c.Feed()
	go s.follow(c, op)
	return c.Command, nil
}

// follow tells the command what becomes of it.
func (s *Sandbox) follow(c *running, op string) {
	<-c.command.Exited()
	if status, known, _ := c.command.Status(); known {
		c.Exited(status)
	}
	<-c.command.Gone()
	s.mu.Lock()
	delete(s.running, c)
	s.mu.Unlock()
	if _, _, err := c.command.Status(); err != nil {
		c.Failed(s.wrap(op, "", err))
	}
	c.Gone()
}

// Write is [command.Wire.Write].
func (c *running) Write(ctx context.Context, b []byte) error {
	_, err := c.command.Write(ctx, b)
	return err
}

// CloseStdin is [command.Wire.CloseStdin].
func (c *running) CloseStdin() { _ = c.command.CloseStdin() }

// Signal is [command.Wire.Signal].
func (c *running) Signal(sig syscall.Signal) error { return c.command.Signal(sig) }

// Resize is [command.Wire.Resize].
func (c *running) Resize(rows, cols uint16) error {
	return c.command.Resize(guest.Size{Rows: rows, Cols: cols})
}

// End is [command.Wire.End].
func (c *running) End() { c.command.End() }
