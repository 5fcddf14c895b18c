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

// Bash is [sandbox.Sandbox.Bash].
func (s *Sandbox) Bash(ctx context.Context, r sandbox.BashRequest) (sandbox.BashResult, error) {
	if r.OpenStdin {
		return sandbox.BashResult{}, sandbox.Errorf(sandbox.Invalid, "bash", "", "OpenStdin is for background processes")
	}
	c, err := s.run(ctx, "bash", r, false)
	if err != nil {
		return sandbox.BashResult{}, err
	}
	return c.Run(ctx, s.ctx.Done())
}

// Start is [sandbox.Sandbox.Start].
func (s *Sandbox) Start(ctx context.Context, r sandbox.BashRequest) (sandbox.Process, error) {
	c, err := s.run(ctx, "start", r, true)
	if err != nil {
		return nil, err
	}
	return s.background.Add(c.Command), nil
}

// Process is [sandbox.Sandbox.Process].
func (s *Sandbox) Process(id string) (sandbox.Process, error) { return s.background.Process(id) }

// Processes is [sandbox.Sandbox.Processes].
func (s *Sandbox) Processes() []sandbox.Process { return s.background.Processes() }

// run starts a command.
func (s *Sandbox) run(ctx context.Context, op string, r sandbox.BashRequest, back bool) (*running, error) {
	if err := s.open(op); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, sandbox.Wrap(op, "", err)
	}
	if err := command.Check(op, &r); err != nil {
		return nil, err
	}
	dir, err := command.CheckDir(op, s.info.Workdir, r.Dir, func(p string) (sandbox.FileInfo, error) {
		return s.Stat(ctx, sandbox.StatRequest{Path: p})
	})
	if err != nil {
		return nil, err
	}
	req := guest.Exec{
		Line: r.Command, Dir: dir, Env: command.Env(s.env, &r), User: s.user,
		Stdin: r.Stdin != nil || r.OpenStdin, Separate: r.Separate, Background: back,
	}
	if rows, cols := command.Size(&r); rows > 0 {
		req.TTY = &guest.Size{Rows: rows, Cols: cols}
	}
	c := &running{}
	c.Command = command.New(r, c)
	if c.command, err = s.guest.Start(ctx, req, func(stream int, b []byte) { c.Output(sandbox.Stream(stream), b) }); err != nil {
		return nil, s.wrap(op, "", err)
	}
	s.mu.Lock()
	s.running[c] = struct{}{}
	s.mu.Unlock()
	go c.Feed()
	go s.follow(c, op)
	return c, nil
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
