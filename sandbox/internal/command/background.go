package command

import (
	"context"
	"syscall"
	"time"

	"github.com/galleyfs/galley/sandbox"
)

// Background is a command in the background.
type Background struct {
	*Command
	calls *Calls
	id    string
}

var _ sandbox.Process = (*Background)(nil)

// watch ends it when its time is over. A shell that ended in time leaves behind
// what it likes.
func (b *Background) watch(timeout time.Duration) {
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-b.exited:
	case <-t.C:
		b.end(sandbox.Errorf(sandbox.Timeout, "start", "", "the command ran longer than %v and was ended with all it had started", timeout))
	}
}

// ID is [sandbox.Process.ID].
func (b *Background) ID() string { return b.id }

// Poll is [sandbox.Process.Poll].
func (b *Background) Poll(ctx context.Context, wait time.Duration) (sandbox.ProcessState, error) {
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
func (b *Background) state() sandbox.ProcessState {
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
		st.ExitCode, st.Signal = ending(b.status)
	}
	return st
}

// Wait is [sandbox.Process.Wait]. What the shell left running does not hold it
// up.
func (b *Background) Wait(ctx context.Context) (sandbox.BashResult, error) {
	select {
	case <-b.exited:
	case <-ctx.Done():
		return sandbox.BashResult{}, sandbox.Wrap("wait", b.id, ctx.Err())
	}
	// Usually nothing is left, and the last of the output is on its way.
	t := time.NewTimer(DrainTime)
	defer t.Stop()
	select {
	case <-b.gone:
	case <-t.C:
	}
	return b.result("wait")
}

// Write is [sandbox.Process.Write].
func (b *Background) Write(ctx context.Context, p []byte) error {
	if !b.req.OpenStdin && b.req.PTY == nil {
		return sandbox.Errorf(sandbox.Invalid, "write", b.id, "the process was started without OpenStdin")
	}
	if err := b.wire.Write(ctx, p); err != nil {
		if ctx.Err() != nil {
			return sandbox.Wrap("write", b.id, ctx.Err())
		}
		return sandbox.Errorf(sandbox.NotFound, "write", b.id, "the process reads no more: %w", err)
	}
	return nil
}

// CloseStdin is [sandbox.Process.CloseStdin].
func (b *Background) CloseStdin() error {
	if b.req.OpenStdin || b.req.PTY != nil {
		b.wire.CloseStdin()
	}
	return nil
}

// Signal is [sandbox.Process.Signal].
func (b *Background) Signal(sig syscall.Signal) error {
	b.mu.Lock()
	over := b.over || b.known
	b.mu.Unlock()
	if over {
		return sandbox.Errorf(sandbox.NotFound, "signal", b.id, "the process has ended")
	}
	if sig <= 0 || sig > 64 {
		return sandbox.Errorf(sandbox.Invalid, "signal", b.id, "%d is no signal", sig)
	}
	if err := b.wire.Signal(sig); err != nil {
		return sandbox.Errorf(sandbox.NotFound, "signal", b.id, "the process has ended: %w", err)
	}
	return nil
}

// Resize is [sandbox.Process.Resize].
func (b *Background) Resize(rows, cols uint16) error {
	if b.req.PTY == nil {
		return sandbox.Errorf(sandbox.Invalid, "resize", b.id, "the process has no terminal")
	}
	return sandbox.Wrap("resize", b.id, b.wire.Resize(rows, cols))
}

// Kill is [sandbox.Process.Kill].
func (b *Background) Kill() error {
	b.end(nil)
	<-b.gone
	return nil
}

// Release is [sandbox.Process.Release].
func (b *Background) Release() error {
	_ = b.Kill()
	b.calls.remove(b.id)
	return nil
}
