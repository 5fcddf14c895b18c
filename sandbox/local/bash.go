package local

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/command"
	"github.com/galleyfs/galley/vm/guest/spawn"
)

// safeEnv is what of env commands see.
func safeEnv(env []string) []string {
	out := command.BaseEnv()
	for _, name := range command.SafeNames {
		if v := spawn.Getenv(env, name); v != "" {
			out = append(out, name+"="+v)
		}
	}
	return out
}

// running is how the process of a call is reached.
type running struct {
	*command.Command
	s       *Sandbox
	req     sandbox.BashRequest
	channel channel

	reading  sync.WaitGroup
	gone     chan struct{} // all of it has ended
	followed chan struct{} // the call's process says no more
	terminal chan struct{} // stdin is the terminal's master
	closing  sync.Once

	mu    sync.Mutex
	stdin *os.File // the writing end; nil where there is none
	out   []*os.File
}

var _ command.Wire = (*running)(nil)

// run is [command.Host.Launch].
func (s *Sandbox) run(_ context.Context, op string, r sandbox.BashRequest, dir string, back bool) (*command.Command, error) {
	set := callSetup{Command: r.Command, Dir: dir, Env: command.Env(s.env, &r), Background: back, AllowAbstract: s.config.AllowAbstractSockets}
	set.Rows, set.Cols = command.Size(&r)
	c := &running{s: s, req: r, gone: make(chan struct{}), followed: make(chan struct{}), terminal: make(chan struct{})}
	c.Command = command.New(r, c)
	if err := c.launch(op, set); err != nil {
		return nil, err
	}
	return c.Command, nil
}

// launch has the supervisor start the call's process and hands that one its
// descriptors.
func (c *running) launch(op string, set callSetup) (err error) {
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
	}()
	if theirs, err = c.pipes(); err != nil {
		return sandbox.Wrap(op, "", err)
	}
	f, err := writeSetup(&set)
	if err != nil {
		return sandbox.Wrap(op, "", err)
	}
	theirs = append([]*os.File{f}, theirs...)
	own, their, err := newChannelPair()
	if err != nil {
		return sandbox.Wrap(op, "", err)
	}
	defer their.Close()
	c.channel = own
	gone := make(chan message, 1)
	s := c.s
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		own.close()
		return sandbox.Errorf(sandbox.Closed, op, "", "the sandbox was closed")
	}
	number := s.last
	s.last++
	s.calls[number] = gone
	s.mu.Unlock()
	err = s.channel.send(message{kind: kindCall, n: number}, int(their.Fd()))
	for _, f := range theirs {
		if err == nil {
			err = own.send(message{kind: kindFile}, int(f.Fd()))
		}
	}
	if err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		own.close()
		return sandbox.Wrap(op, "", err)
	}
	go c.follow()
	go c.await(gone)
	c.readAll()
	return nil
}

// pty tells whether the command has a terminal.
func (c *running) pty() bool { return c.req.PTY != nil }

// pipes makes the command's standard streams and returns its ends.
func (c *running) pipes() ([]*os.File, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	theirs := []*os.File{null, null, null}
	if c.pty() {
		return theirs, nil // the call makes the terminal
	}
	if c.req.Stdin != nil || c.req.OpenStdin {
		r, w, err := os.Pipe()
		if err != nil {
			return theirs[:1], err
		}
		theirs[0], c.stdin = r, w
	}
	streams := 1
	if c.req.Separate {
		streams = 2
	}
	for i := range streams {
		r, w, err := os.Pipe()
		if err != nil {
			return theirs, err
		}
		c.out = append(c.out, r)
		theirs[1+i] = w
	}
	if streams == 1 {
		theirs[2] = theirs[1] // one pipe keeps the order
	}
	return theirs, nil
}

// follow takes what the call's process says.
func (c *running) follow() {
	defer close(c.followed)
	for {
		m, fd, err := c.channel.receive()
		if err != nil {
			return
		}
		switch m.kind {
		case kindTerminal:
			f, err := pollable(fd, "terminal")
			if err != nil {
				continue
			}
			c.mu.Lock()
			c.stdin, c.out = f, []*os.File{f}
			close(c.terminal)
			c.mu.Unlock()
			c.reading.Go(func() { c.read(f, sandbox.Stdout) })
		case kindStarted:
			if c.req.OnStart != nil && m.text != "" {
				c.req.OnStart(m.text)
			}
			go c.Feed()
		case kindExited:
			c.Exited(syscall.WaitStatus(m.n))
		case kindFailed:
			c.Failed(&sandboxError{m.text, unix.Errno(m.n)})
		}
	}
}

// pollable makes a file of a descriptor, with deadlines.
func pollable(fd int, name string) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// await waits until nothing of the call is left.
func (c *running) await(gone chan message) {
	m := <-gone
	<-c.followed
	for _, f := range c.files() {
		_ = f.SetReadDeadline(time.Now().Add(command.DrainTime))
	}
	c.reading.Wait()
	if m.text != "" {
		c.Failed(&sandboxError{m.text, unix.Errno(m.code)})
	}
	c.closing.Do(c.channel.close)
	c.mu.Lock()
	for _, f := range c.out {
		_ = f.Close()
	}
	if c.stdin != nil {
		_ = c.stdin.Close()
	}
	c.mu.Unlock()
	close(c.gone)
	c.Gone()
}

func (c *running) files() []*os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.out)
}

// readAll begins to read the output.
func (c *running) readAll() {
	if c.pty() {
		return // it has no terminal yet
	}
	for i, f := range c.files() {
		c.reading.Go(func() { c.read(f, sandbox.Stream(i+1)) })
	}
}

func (c *running) read(f *os.File, stream sandbox.Stream) {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			c.Output(stream, buf[:n])
		}
		if err != nil {
			return // the end; EIO on a terminal
		}
	}
}

// input is where standard input is written to.
func (c *running) input(ctx context.Context) (*os.File, error) {
	if c.pty() {
		select {
		case <-c.terminal:
		case <-c.gone:
			return nil, unix.EPIPE
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stdin, nil
}

// Write is [command.Wire.Write].
func (c *running) Write(ctx context.Context, b []byte) error {
	in, err := c.input(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = in.SetWriteDeadline(time.Now()) })
	defer stop()
	_, err = in.Write(b)
	return err
}

// CloseStdin is [command.Wire.CloseStdin].
func (c *running) CloseStdin() {
	in, err := c.input(context.Background())
	if err != nil {
		return // it has ended
	}
	if c.pty() {
		_, _ = in.Write([]byte{4})
		return
	}
	_ = in.Close()
}

// Signal is [command.Wire.Signal].
func (c *running) Signal(sig syscall.Signal) error {
	return c.channel.send(message{kind: kindSignalGroup, n: int32(sig)}, -1)
}

// Resize is [command.Wire.Resize].
func (c *running) Resize(rows, cols uint16) error {
	tty, err := c.input(context.Background())
	if err != nil {
		return err
	}
	raw, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	return errors.Join(err, serr)
}

// End is [command.Wire.End].
func (c *running) End() {
	select {
	case <-c.gone:
	default:
		_ = unix.Shutdown(c.channel.fd, unix.SHUT_RDWR)
	}
}
