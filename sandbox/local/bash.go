package local

import (
	"context"
	"errors"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/files"
	"github.com/galleyfs/galley/sandbox/internal/keep"
)

// safeNames are the variables of the caller that commands see. All others may
// be secrets.
var safeNames = []string{"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"}

// safeEnv is what of env commands see.
func safeEnv(env []string) []string {
	out := []string{"TERM=dumb", "PAGER=cat", "GIT_PAGER=cat"}
	for _, name := range safeNames {
		if v := getenv(env, name); v != "" {
			out = append(out, name+"="+v)
		}
	}
	return out
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// running is a command at work.
type running struct {
	s       *Sandbox
	req     sandbox.BashRequest
	channel channel
	number  int32
	began   time.Time
	pty     bool
	stdin   *os.File // the writing end; nil where there is none
	out     []*os.File

	reading  sync.WaitGroup
	gone     chan struct{} // all of it has ended and its output is read
	followed chan struct{} // the call's process says no more
	exited   chan struct{} // the shell has ended
	terminal chan struct{} // stdin is the terminal's master
	closing  sync.Once

	mu     sync.Mutex
	kept   [2]*keep.Buffer // of standard output (or both), and error
	status unix.WaitStatus
	lost   error // why it did not start, or was ended
	known  bool  // status is the shell's own
	over   bool  // exited is closed
	told   []chan struct{}
	polled [2]*keep.Buffer

	callback sync.Mutex // one OnOutput at a time; taken before nothing
}

// checkBash refuses what cannot be run, and fills in defaults.
func checkBash(op string, r *sandbox.BashRequest) error {
	switch i := strings.IndexByte(r.Command, 0); {
	case strings.TrimSpace(r.Command) == "":
		return sandbox.Errorf(sandbox.Invalid, op, "", "the command is empty")
	case i >= 0:
		e := sandbox.Errorf(sandbox.Invalid, op, "", "the command has a NUL byte at offset %d", i)
		e.Offset = i
		return e
	case len(r.Command) > sandbox.MaxCommand:
		return sandbox.Errorf(sandbox.TooLarge, op, "", "the command has %d bytes; up to %d are possible", len(r.Command), sandbox.MaxCommand)
	case r.Timeout < 0 || r.Timeout > sandbox.MaxTimeout:
		return sandbox.Errorf(sandbox.Invalid, op, "", "the timeout is %v; expected more than 0 and up to %v", r.Timeout, sandbox.MaxTimeout)
	case r.MaxOutput < 0 || r.MaxOutput > sandbox.MaxOutput:
		return sandbox.Errorf(sandbox.Invalid, op, "", "max_output is %d; expected up to %d", r.MaxOutput, sandbox.MaxOutput)
	case r.OpenStdin && r.Stdin != nil:
		return sandbox.Errorf(sandbox.Invalid, op, "", "Stdin and OpenStdin exclude each other")
	}
	if r.MaxOutput == 0 {
		r.MaxOutput = sandbox.OutputLimit
	}
	if r.Dir != "" {
		if err := files.CheckPath(op, r.Dir); err != nil {
			return err
		}
	}
	size := 0
	for k, v := range r.Env {
		if size += len(k) + len(v); !envName.MatchString(k) || strings.IndexByte(v, 0) >= 0 {
			return sandbox.Errorf(sandbox.Invalid, op, "", "variable %q: expected a name of letters, digits and _, and a value without NUL", k)
		}
	}
	if size > sandbox.MaxEnv {
		return sandbox.Errorf(sandbox.TooLarge, op, "", "the variables have %d bytes; up to %d are possible", size, sandbox.MaxEnv)
	}
	return nil
}

// run starts a command.
func (s *Sandbox) run(ctx context.Context, op string, r sandbox.BashRequest, back bool) (*running, error) {
	if err := s.open(op); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, sandbox.Wrap(op, "", err)
	}
	if err := checkBash(op, &r); err != nil {
		return nil, err
	}
	set := callSetup{Command: r.Command, Dir: s.info.Workdir, Background: back, AllowAbstract: s.config.AllowAbstractSockets}
	if r.Dir != "" {
		set.Dir = files.Join(s.info.Workdir, r.Dir)
		info, err := s.files.Stat(ctx, sandbox.StatRequest{Path: set.Dir})
		if err != nil {
			return nil, sandbox.Wrap(op, r.Dir, relabel(op, r.Dir, err))
		}
		if !info.Mode.IsDir() {
			return nil, sandbox.Errorf(sandbox.NotDirectory, op, r.Dir, "it is not a directory")
		}
	}
	set.Env = slices.Clone(s.env)
	if t := r.PTY; t != nil {
		set.Rows, set.Cols = t.Rows, t.Cols
		if set.Rows == 0 {
			set.Rows = 24
		}
		if set.Cols == 0 {
			set.Cols = 80
		}
		set.Env = append(set.Env, "TERM="+orDefault(t.Term, "xterm-256color"))
	}
	for k, v := range r.Env {
		set.Env = append(set.Env, k+"="+v)
	}
	c := &running{
		s: s, req: r, pty: r.PTY != nil, began: time.Now(), gone: make(chan struct{}), followed: make(chan struct{}), exited: make(chan struct{}), terminal: make(chan struct{}),
		kept: [2]*keep.Buffer{keep.New(r.MaxOutput), keep.New(r.MaxOutput)}, polled: [2]*keep.Buffer{keep.New(r.MaxOutput), keep.New(r.MaxOutput)},
	}
	if err := c.launch(op, set); err != nil {
		return nil, err
	}
	return c, nil
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
	c.number = s.last
	s.last++
	s.calls[c.number] = gone
	s.mu.Unlock()
	err = s.channel.send(message{kind: kindCall, n: c.number}, int(their.Fd()))
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

// pipes makes the command's standard streams and returns its ends.
func (c *running) pipes() ([]*os.File, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	theirs := []*os.File{null, null, null}
	if c.pty {
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
			c.reading.Go(func() { c.read(f, 0) })
		case kindStarted:
			if c.req.OnStart != nil && m.text != "" {
				c.req.OnStart(m.text)
			}
			if c.req.Stdin != nil {
				go c.feed()
			}
		case kindExited:
			c.mu.Lock()
			c.status, c.known = unix.WaitStatus(m.n), true
			c.mu.Unlock()
			// The last of the output is on its way, and await sees its end;
			// what the shell left in the background may hold it open.
			time.AfterFunc(drainTime, func() { c.exit(nil) })
		case kindFailed:
			c.exit(&sandboxError{m.text, unix.Errno(m.n)})
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

// exit lets those know who wait for the shell. One that did not tell how it
// ended was killed.
func (c *running) exit(err error) {
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

// drainTime is how long output may still be on its way when nothing of the
// call is left that could write: a descriptor of its pipe may have been handed
// to another call.
const drainTime = time.Second

// await waits until nothing of the call is left.
func (c *running) await(gone chan message) {
	m := <-gone
	<-c.followed
	for _, f := range c.files() {
		_ = f.SetReadDeadline(time.Now().Add(drainTime))
	}
	c.reading.Wait()
	if m.text != "" {
		c.exit(&sandboxError{m.text, unix.Errno(m.code)})
	}
	c.exit(nil)
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
}

func (c *running) files() []*os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.out)
}

// readAll begins to read the output.
func (c *running) readAll() {
	for i, f := range c.files() {
		if !c.pty {
			c.reading.Go(func() { c.read(f, i) })
		}
	}
}

func (c *running) read(f *os.File, stream int) {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			c.take(stream, buf[:n])
		}
		if err != nil {
			return // the end; EIO on a terminal
		}
	}
}

// take keeps a piece of output and passes it on.
func (c *running) take(stream int, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.kept[stream].Write(b)
	_, _ = c.polled[stream].Write(b)
	c.tell()
	if c.req.OnOutput != nil {
		c.mu.Unlock()
		c.callback.Lock()
		c.req.OnOutput(sandbox.Output{Stream: sandbox.Stream(stream + 1), Data: b})
		c.callback.Unlock()
		c.mu.Lock()
	}
}

// tell wakes those who poll.
//
// Preconditions: mu is held.
func (c *running) tell() {
	for _, ch := range c.told {
		close(ch)
	}
	c.told = nil
}

// feed writes the request's standard input. A command that does not read it
// ends that.
func (c *running) feed() {
	c.mu.Lock()
	in := c.stdin
	c.mu.Unlock()
	_, _ = io.Copy(in, c.req.Stdin)
	if c.pty {
		_, _ = in.Write([]byte{4})
		return
	}
	_ = in.Close()
}

// input is where standard input is written to.
func (c *running) input(ctx context.Context) (*os.File, error) {
	if c.pty {
		select {
		case <-c.terminal:
		case <-c.gone:
			return nil, sandbox.Errorf(sandbox.NotFound, "write", "", "the process has ended")
		case <-ctx.Done():
			return nil, sandbox.Wrap("write", "", ctx.Err())
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stdin, nil
}

// end ends all of the call.
func (c *running) end(why error) {
	c.mu.Lock()
	if c.lost == nil && !c.over {
		c.lost = why
	}
	c.mu.Unlock()
	_ = unix.Shutdown(c.channel.fd, unix.SHUT_RDWR)
}

// result is how it ended.
func (c *running) result(op string) (sandbox.BashResult, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := sandbox.BashResult{Duration: time.Since(c.began)}
	out, dropped, head := c.kept[0].Take()
	r.Output, r.Dropped, r.Head = out, dropped, head
	if c.req.Separate {
		r.Stdout, r.Output = r.Output, nil
		r.Stderr, r.DroppedErr, r.HeadErr = c.kept[1].Take()
	}
	res := resultOf(syscall.WaitStatus(c.status))
	r.ExitCode = res.Code
	if res.Signal != 0 {
		r.Signal = unix.SignalName(res.Signal)
	}
	if c.lost == nil {
		return r, nil
	}
	var e *sandbox.Error
	if errors.As(c.lost, &e) {
		e.Op = op
		return r, e
	}
	return r, sandbox.Wrap(op, "", c.lost)
}

// Bash is [sandbox.Sandbox.Bash].
func (s *Sandbox) Bash(ctx context.Context, r sandbox.BashRequest) (sandbox.BashResult, error) {
	if r.OpenStdin {
		return sandbox.BashResult{}, sandbox.Errorf(sandbox.Invalid, "bash", "", "OpenStdin is for background processes")
	}
	timeout := r.Timeout
	if timeout == 0 {
		timeout = sandbox.BashTimeout
	}
	c, err := s.run(ctx, "bash", r, false)
	if err != nil {
		return sandbox.BashResult{}, err
	}
	c.guard(ctx, timeout)
	return c.result("bash")
}

// guard waits for the end of all of it, and brings that about when the time is
// over or the caller gives up.
func (c *running) guard(ctx context.Context, timeout time.Duration) {
	var over <-chan time.Time
	if timeout > 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-c.gone:
		return
	case <-over:
		c.end(sandbox.Errorf(sandbox.Timeout, "bash", "", "the command ran longer than %v and was ended with all it had started", timeout))
	case <-ctx.Done():
		c.end(sandbox.Errorf(sandbox.Canceled, "bash", "", "the command was canceled and ended with all it had started"))
	case <-c.s.ctx.Done():
		c.end(sandbox.Errorf(sandbox.Closed, "bash", "", "the sandbox was closed"))
	}
	<-c.gone
}

// signal sends a signal to the shell's process group.
func (c *running) signal(sig syscall.Signal) error {
	c.mu.Lock()
	over := c.over
	c.mu.Unlock()
	if over {
		return sandbox.Errorf(sandbox.NotFound, "signal", "", "the process has ended")
	}
	if sig <= 0 || sig > 64 {
		return sandbox.Errorf(sandbox.Invalid, "signal", "", "%d is no signal", sig)
	}
	if err := c.channel.send(message{kind: kindSignalGroup, n: int32(sig)}, -1); err != nil {
		return sandbox.Errorf(sandbox.NotFound, "signal", "", "the process has ended: %w", err)
	}
	return nil
}
