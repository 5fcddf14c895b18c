package local

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox"
)

// background is a command in the background.
type background struct {
	*running
	id string
}

var _ sandbox.Process = (*background)(nil)

// Start is [sandbox.Sandbox.Start].
func (s *Sandbox) Start(ctx context.Context, r sandbox.BashRequest) (sandbox.Process, error) {
	c, err := s.run(ctx, "start", r, true)
	if err != nil {
		return nil, err
	}
	b := &background{running: c, id: fmt.Sprintf("p%d", c.number)}
	s.mu.Lock()
	s.started[b.id] = b
	s.order = append(s.order, b.id)
	s.mu.Unlock()
	if r.Timeout == 0 {
		return b, nil
	}
	go func() {
		// A shell that ended in time leaves behind what it likes.
		t := time.NewTimer(r.Timeout)
		defer t.Stop()
		select {
		case <-c.exited:
		case <-t.C:
			c.end(sandbox.Errorf(sandbox.Timeout, "start", "", "the command ran longer than %v and was ended with all it had started", r.Timeout))
		}
	}()
	return b, nil
}

// Process is [sandbox.Sandbox.Process].
func (s *Sandbox) Process(id string) (sandbox.Process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.started[id]
	if b == nil {
		return nil, sandbox.Errorf(sandbox.NotFound, "process", id, "there is no such background process")
	}
	return b, nil
}

// Processes is [sandbox.Sandbox.Processes].
func (s *Sandbox) Processes() []sandbox.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]sandbox.Process, 0, len(s.order))
	for _, id := range s.order {
		out = append(out, s.started[id])
	}
	return out
}

// ID is [sandbox.Process.ID].
func (b *background) ID() string { return b.id }

// Poll is [sandbox.Process.Poll].
func (b *background) Poll(ctx context.Context, wait time.Duration) (sandbox.ProcessState, error) {
	deadline := time.NewTimer(max(wait, 0))
	defer deadline.Stop()
	for {
		b.mu.Lock()
		if b.polled[0].Len()+b.polled[1].Len() > 0 || b.over || wait <= 0 {
			defer b.mu.Unlock()
			return b.state(), nil
		}
		ch := make(chan struct{})
		b.told = append(b.told, ch)
		b.mu.Unlock()
		select {
		case <-ch:
		case <-b.gone:
		case <-deadline.C:
			wait = 0
		case <-ctx.Done():
			return sandbox.ProcessState{}, sandbox.Wrap("poll", b.id, ctx.Err())
		}
	}
}

// state takes the output since the last poll.
//
// Preconditions: mu is held.
func (b *background) state() sandbox.ProcessState {
	var st sandbox.ProcessState
	st.Output, st.Dropped, _ = b.polled[0].Take()
	if b.req.Separate {
		st.Stdout, st.Output = st.Output, nil
		var dropped int64
		st.Stderr, dropped, _ = b.polled[1].Take()
		st.Dropped += dropped
	}
	b.polled[0].Reset()
	b.polled[1].Reset()
	st.Running = !b.over
	if b.over {
		r := resultOf(syscall.WaitStatus(b.status))
		st.ExitCode = r.Code
		if r.Signal != 0 {
			st.Signal = unix.SignalName(r.Signal)
		}
	}
	return st
}

// Wait is [sandbox.Process.Wait]. What the shell left running does not hold it
// up.
func (b *background) Wait(ctx context.Context) (sandbox.BashResult, error) {
	select {
	case <-b.exited:
	case <-ctx.Done():
		return sandbox.BashResult{}, sandbox.Wrap("wait", b.id, ctx.Err())
	}
	// Usually nothing is left, and the last of the output is on its way.
	t := time.NewTimer(drainTime)
	defer t.Stop()
	select {
	case <-b.gone:
	case <-t.C:
	}
	return b.result("wait")
}

// Write is [sandbox.Process.Write].
func (b *background) Write(ctx context.Context, p []byte) error {
	if !b.req.OpenStdin && !b.pty {
		return sandbox.Errorf(sandbox.Invalid, "write", b.id, "the process was started without OpenStdin")
	}
	in, err := b.input(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = in.SetWriteDeadline(time.Now()) })
	defer stop()
	if _, err := in.Write(p); err != nil {
		if ctx.Err() != nil {
			return sandbox.Wrap("write", b.id, ctx.Err())
		}
		return sandbox.Errorf(sandbox.NotFound, "write", b.id, "the process reads no more: %w", err)
	}
	return nil
}

// CloseStdin is [sandbox.Process.CloseStdin].
func (b *background) CloseStdin() error {
	if !b.req.OpenStdin && !b.pty {
		return nil
	}
	in, err := b.input(context.Background())
	if err != nil {
		return nil // it has ended
	}
	if b.pty {
		_, _ = in.Write([]byte{4})
		return nil
	}
	_ = in.Close()
	return nil
}

// Signal is [sandbox.Process.Signal].
func (b *background) Signal(sig syscall.Signal) error { return b.signal(sig) }

// Resize is [sandbox.Process.Resize].
func (b *background) Resize(rows, cols uint16) error {
	if !b.pty {
		return sandbox.Errorf(sandbox.Invalid, "resize", b.id, "the process has no terminal")
	}
	tty, err := b.input(context.Background())
	if err != nil {
		return err
	}
	raw, err := tty.SyscallConn()
	if err != nil {
		return sandbox.Wrap("resize", b.id, err)
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	if err == nil {
		err = serr
	}
	return sandbox.Wrap("resize", b.id, err)
}

// Kill is [sandbox.Process.Kill].
func (b *background) Kill() error {
	b.end(nil)
	<-b.gone
	return nil
}

// Release is [sandbox.Process.Release].
func (b *background) Release() error {
	_ = b.Kill()
	s := b.s
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.started, b.id)
	s.order = slices.DeleteFunc(s.order, func(id string) bool { return id == b.id })
	return nil
}
