package virtual

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/keep"
	"github.com/galleyfs/galley/sandbox/virtual/internal/shell"
)

// errSignal ends a process as a signal would.
type errSignal struct{ sig syscall.Signal }

func (e errSignal) Error() string { return "ended by " + e.sig.String() }

// proc is a command in the background.
type proc struct {
	s       *Sandbox
	id      string
	out     *output
	timeout time.Duration
	start   time.Time
	cancel  context.CancelCauseFunc
	done    chan struct{} // closed when the shell has ended
	gone    chan struct{} // closed when what it left behind has ended, too

	mu     sync.Mutex
	stdin  *os.File // the end to write to
	status int
	err    error
	took   time.Duration
}

var _ sandbox.Process = (*proc)(nil)

// Start implements [sandbox.Sandbox].
func (s *Sandbox) Start(ctx context.Context, r sandbox.BashRequest) (sandbox.Process, error) {
	if err := s.begin("bash", ""); err != nil {
		return nil, err
	}
	p, err := s.startProc(ctx, r)
	if err != nil {
		s.end()
		return nil, sandbox.Wrap("bash", "", err)
	}
	return p, nil
}

// startProc starts a process, which is a call until it has ended.
func (s *Sandbox) startProc(ctx context.Context, r sandbox.BashRequest) (*proc, error) {
	script, err := s.script(r)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.ctx.Err(); err != nil {
		return nil, sandbox.Errorf(sandbox.Closed, "bash", "", "the sandbox was closed")
	}
	p := &proc{s: s, out: newOutput(r), timeout: r.Timeout, start: time.Now(), done: make(chan struct{}), gone: make(chan struct{})}
	limit := r.MaxOutput
	if limit == 0 {
		limit = sandbox.OutputLimit
	}
	p.out.fresh = [2]*keep.Buffer{keep.New(limit), keep.New(limit)}
	script.Stdin = r.Stdin
	if r.OpenStdin {
		pr, pw, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		script.Stdin, p.stdin = pr, pw
	}
	script.Stdout, script.Stderr = p.out.writer(sandbox.Stdout), p.out.writer(sandbox.Stderr)
	base, cancel := context.WithCancelCause(s.ctx)
	p.cancel = cancel
	run, timer := base, func() {}
	if r.Timeout > 0 {
		run, timer = context.WithTimeout(base, r.Timeout)
	}
	s.mu.Lock()
	s.lastID++
	p.id = strconv.Itoa(s.lastID)
	s.procs = append(s.procs, p)
	s.mu.Unlock()
	script.Linger = func() {
		close(p.gone)
		timer()
		s.end()
	}
	go func() {
		status, err := shell.Run(run, s.view, script)
		p.finish(status, err, script.Stdin)
	}()
	return p, nil
}

func (p *proc) finish(status int, err error, in io.Reader) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status, p.err, p.took = status, err, since(p.start)
	var sig errSignal
	if errors.As(err, &sig) {
		p.status = 128 + int(sig.sig)
	}
	if p.stdin != nil {
		_ = p.stdin.Close()
		p.stdin = nil
		if f, ok := in.(*os.File); ok {
			_ = f.Close()
		}
	}
	close(p.done)
}

// Process implements [sandbox.Sandbox].
func (s *Sandbox) Process(id string) (sandbox.Process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.procs {
		if p.id == id {
			return p, nil
		}
	}
	return nil, sandbox.Errorf(sandbox.NotFound, "process", id, "there is no such process")
}

// Processes implements [sandbox.Sandbox].
func (s *Sandbox) Processes() []sandbox.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]sandbox.Process, len(s.procs))
	for i, p := range s.procs {
		out[i] = p
	}
	return out
}

// ID implements [sandbox.Process].
func (p *proc) ID() string { return p.id }

func (p *proc) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Poll implements [sandbox.Process].
func (p *proc) Poll(ctx context.Context, wait time.Duration) (sandbox.ProcessState, error) {
	t := time.NewTimer(wait)
	defer t.Stop()
	for {
		// What ran before is asked first: its last output is then there.
		running := p.running()
		st := p.take()
		st.Running = running
		if !running {
			p.mu.Lock()
			st.ExitCode, st.Signal = p.status, p.signal()
			p.mu.Unlock()
		}
		if !running || wait <= 0 || len(st.Output)+len(st.Stdout)+len(st.Stderr) > 0 {
			return st, nil
		}
		select {
		case <-p.out.news:
		case <-p.done:
		case <-t.C:
			wait = 0
		case <-ctx.Done():
			return st, sandbox.Wrap("poll", p.id, ctx.Err())
		}
	}
}

// take is what was not polled yet.
func (p *proc) take() sandbox.ProcessState {
	o := p.out
	o.mu.Lock()
	defer o.mu.Unlock()
	var st sandbox.ProcessState
	first, dropped, _ := o.fresh[0].Take()
	o.fresh[0].Reset()
	st.Dropped = dropped
	if !o.separate {
		st.Output = first
		return st
	}
	st.Stdout = first
	st.Stderr, dropped, _ = o.fresh[1].Take()
	o.fresh[1].Reset()
	st.Dropped += dropped
	return st
}

// signal is the name of what ended it.
//
// Preconditions: mu is held.
func (p *proc) signal() string {
	var sig errSignal
	if !errors.As(p.err, &sig) {
		return ""
	}
	if sig.sig == syscall.SIGTERM {
		return "SIGTERM"
	}
	return "SIGKILL"
}

// Wait implements [sandbox.Process].
func (p *proc) Wait(ctx context.Context) (sandbox.BashResult, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		return sandbox.BashResult{}, sandbox.Wrap("wait", p.id, ctx.Err())
	}
	r := p.out.result()
	p.mu.Lock()
	defer p.mu.Unlock()
	r.ExitCode, r.Duration, r.Signal = p.status, p.took, p.signal()
	var sig errSignal
	if errors.As(p.err, &sig) {
		return r, nil
	}
	return r, ended(p.err, p.timeout)
}

// Write implements [sandbox.Process].
func (p *proc) Write(ctx context.Context, b []byte) error {
	p.mu.Lock()
	w := p.stdin
	p.mu.Unlock()
	if w == nil {
		if !p.running() {
			return sandbox.Errorf(sandbox.NotFound, "write", p.id, "the process has ended")
		}
		return sandbox.Errorf(sandbox.Invalid, "write", p.id, "its standard input was not left open; start it with open_stdin")
	}
	stop := context.AfterFunc(ctx, func() { _ = w.SetWriteDeadline(time.Now()) })
	defer stop()
	_, err := w.Write(b)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return sandbox.Wrap("write", p.id, err)
}

// CloseStdin implements [sandbox.Process].
func (p *proc) CloseStdin() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stdin == nil {
		return nil
	}
	err := p.stdin.Close()
	p.stdin = nil
	return sandbox.Wrap("close stdin", p.id, err)
}

// Signal implements [sandbox.Process].
func (p *proc) Signal(sig syscall.Signal) error {
	if !p.running() {
		return sandbox.Errorf(sandbox.NotFound, "signal", p.id, "the process has ended")
	}
	if sig != syscall.SIGTERM && sig != syscall.SIGKILL {
		return sandbox.Errorf(sandbox.NotSupported, "signal", p.id, "the virtual sandbox has SIGTERM and SIGKILL alone, which end the process")
	}
	p.cancel(errSignal{sig})
	<-p.done
	<-p.gone
	return nil
}

// Resize implements [sandbox.Process].
func (p *proc) Resize(uint16, uint16) error {
	return sandbox.Errorf(sandbox.NotSupported, "resize", p.id, "the virtual sandbox has no terminals")
}

// Kill implements [sandbox.Process].
func (p *proc) Kill() error {
	p.cancel(errSignal{syscall.SIGKILL})
	<-p.done
	<-p.gone
	return nil
}

// Release implements [sandbox.Process].
func (p *proc) Release() error {
	_ = p.Kill()
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	for i, q := range p.s.procs {
		if q == p {
			p.s.procs = append(p.s.procs[:i:i], p.s.procs[i+1:]...)
			break
		}
	}
	return nil
}
