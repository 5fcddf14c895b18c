package command

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/keep"
)

// Wire is how a sandbox reaches a process. Its methods may be called at the same
// time, and before the process runs.
type Wire interface {
	// Write writes standard input; on a terminal it types.
	Write(ctx context.Context, b []byte) error
	// CloseStdin ends standard input, or types the end-of-file character.
	CloseStdin()
	// Signal sends a signal to the process group of the shell.
	Signal(sig syscall.Signal) error
	// Resize sets the size of the terminal.
	Resize(rows, cols uint16) error
	// End ends all of it and returns at once; the sandbox then calls
	// [Command.Gone].
	End()
}

// DrainTime is how long output may still be on its way when nothing of a
// command is left that could write, or when its shell has ended: a descriptor of
// its pipe may have been handed to another call.
const DrainTime = time.Second

// Command is a command at work. The sandbox tells it what happens by Output,
// Exited, Failed and Gone.
type Command struct {
	req   sandbox.BashRequest
	wire  Wire
	began time.Time

	gone   chan struct{} // all of it has ended and its output is read
	exited chan struct{} // the shell has ended

	mu     sync.Mutex
	kept   [2]*keep.Buffer // of standard output (or both), and error
	polled [2]*keep.Buffer
	status unix.WaitStatus
	lost   error // why it did not start, or was ended
	known  bool  // status is the shell's own
	over   bool  // exited is closed
	told   []chan struct{}

	callback sync.Mutex // one OnOutput at a time; mu is not held
}

// New makes a command of a request that [Calls] has checked.
func New(r sandbox.BashRequest, w Wire) *Command {
	return &Command{
		req: r, wire: w, began: time.Now(), gone: make(chan struct{}), exited: make(chan struct{}),
		kept:   [2]*keep.Buffer{keep.New(r.MaxOutput), keep.New(r.MaxOutput)},
		polled: [2]*keep.Buffer{keep.New(r.MaxOutput), keep.New(r.MaxOutput)},
	}
}

// Output keeps a piece of output and passes it on. The sandbox calls it from one
// goroutine for each stream.
func (c *Command) Output(stream sandbox.Stream, b []byte) {
	i := 0
	if stream == sandbox.Stderr {
		i = 1
	}
	c.mu.Lock()
	_, _ = c.kept[i].Write(b)
	_, _ = c.polled[i].Write(b)
	c.tell()
	c.mu.Unlock()
	if c.req.OnOutput != nil {
		c.callback.Lock()
		defer c.callback.Unlock()
		c.req.OnOutput(sandbox.Output{Stream: stream, Data: b})
	}
}

// tell wakes those who poll.
//
// Preconditions: mu is held.
func (c *Command) tell() {
	for _, ch := range c.told {
		close(ch)
	}
	c.told = nil
}

// Exited tells how the shell ended. The last of the output is on its way, and
// Gone comes at its end; what the shell left in the background may hold it
// open.
func (c *Command) Exited(status syscall.WaitStatus) {
	c.mu.Lock()
	c.status, c.known = unix.WaitStatus(status), true
	c.mu.Unlock()
	time.AfterFunc(DrainTime, func() { c.exit(nil) })
}

// Failed tells why the command did not start, or broke off.
func (c *Command) Failed(err error) { c.exit(err) }

// Gone tells that all of it has ended and its output was given to Output.
func (c *Command) Gone() {
	c.exit(nil)
	close(c.gone)
}

// exit lets those know who wait for the shell. One that did not tell how it
// ended was killed.
func (c *Command) exit(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	if c.over = true; !c.known {
		c.status = unix.WaitStatus(unix.SIGKILL)
	}
	if c.lost == nil {
		c.lost = err
	}
	close(c.exited)
	c.tell()
}

// Feed writes the request's standard input, if it has one. A command that does
// not read it ends that. The sandbox calls it when the command runs.
func (c *Command) Feed() {
	if c.req.Stdin == nil {
		return
	}
	_, _ = io.Copy(stdin{c}, c.req.Stdin)
	c.wire.CloseStdin()
}

// stdin is a command's standard input as a writer.
type stdin struct{ c *Command }

func (s stdin) Write(b []byte) (int, error) {
	if err := s.c.wire.Write(context.Background(), b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// end ends all of the call.
func (c *Command) end(why error) {
	c.mu.Lock()
	if c.lost == nil && !c.over {
		c.lost = why
	}
	c.mu.Unlock()
	c.wire.End()
}

// result is how it ended.
func (c *Command) result(op string) (sandbox.BashResult, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := sandbox.BashResult{Duration: time.Since(c.began)}
	r.Output, r.Dropped, r.Head = c.kept[0].Take()
	if c.req.Separate {
		r.Stdout, r.Output = r.Output, nil
		r.Stderr, r.DroppedErr, r.HeadErr = c.kept[1].Take()
	}
	r.ExitCode, r.Signal = ending(c.status)
	if c.lost == nil {
		return r, nil
	}
	return r, sandbox.Wrap(op, "", relabelOp(op, c.lost))
}

// ending is the status of a shell, and the name of the signal that ended it.
func ending(ws unix.WaitStatus) (int, string) {
	if ws.Signaled() {
		return 128 + int(ws.Signal()), unix.SignalName(ws.Signal())
	}
	return ws.ExitStatus(), ""
}

// relabelOp makes an error one of another call.
func relabelOp(op string, err error) error {
	var e *sandbox.Error
	if !errors.As(err, &e) {
		return err
	}
	out := *e
	out.Op = op
	return &out
}

// relabel makes an error of a call on files one of another call.
func relabel(op, p string, err error) error {
	var e *sandbox.Error
	if errors.As(err, &e) {
		out := *e
		out.Op, out.Path = op, p
		return &out
	}
	return err
}

// run waits for the end of all of it, as [sandbox.Sandbox.Bash] does, and brings
// that about when the time is over, the caller gives up or the sandbox is
// closed.
func (c *Command) run(ctx context.Context, closed <-chan struct{}) (sandbox.BashResult, error) {
	timeout := c.req.Timeout
	if timeout == 0 {
		timeout = sandbox.BashTimeout
	}
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-c.gone:
		return c.result("bash")
	case <-t.C:
		c.end(sandbox.Errorf(sandbox.Timeout, "bash", "", "the command ran longer than %v and was ended with all it had started", timeout))
	case <-ctx.Done():
		c.end(sandbox.Errorf(sandbox.Canceled, "bash", "", "the command was canceled and ended with all it had started"))
	case <-closed:
		c.end(sandbox.Errorf(sandbox.Closed, "bash", "", "the sandbox was closed"))
	}
	<-c.gone
	return c.result("bash")
}
