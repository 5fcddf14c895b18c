package virtual

import (
	"context"
	"errors"
	"io"
	"path"
	"sort"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/command"
	"github.com/galleyfs/galley/sandbox/internal/files"
	"github.com/galleyfs/galley/sandbox/internal/keep"
	"github.com/galleyfs/galley/sandbox/virtual/internal/shell"
)

// Bash implements [sandbox.Sandbox].
func (s *Sandbox) Bash(ctx context.Context, r sandbox.BashRequest) (sandbox.BashResult, error) {
	if err := s.begin("bash", ""); err != nil {
		return sandbox.BashResult{}, err
	}
	defer s.end()
	if r.OpenStdin {
		return sandbox.BashResult{}, sandbox.Errorf(sandbox.Invalid, "bash", "", "an open standard input is for background processes: use Start")
	}
	if r.Timeout == 0 {
		r.Timeout = sandbox.BashTimeout
	}
	script, err := s.script(r)
	if err != nil {
		return sandbox.BashResult{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(s.ctx, func() { stop(errClosed) })()
	o := newOutput(r)
	script.Stdin, script.Stdout, script.Stderr = r.Stdin, o.writer(sandbox.Stdout), o.writer(sandbox.Stderr)
	start := time.Now()
	status, err := shell.Run(ctx, s.view, script)
	res := o.result()
	res.ExitCode, res.Duration = status, since(start)
	return res, ended(err, r.Timeout)
}

// ended is the contract's error for what ended a script.
func ended(err error, timeout time.Duration) error {
	var limit *shell.LimitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &limit):
		return sandbox.Errorf(sandbox.Limit, "bash", "", "%w; split the work, or use a sandbox with processes", err)
	case errors.Is(err, errClosed):
		return sandbox.Errorf(sandbox.Closed, "bash", "", "the sandbox was closed")
	case errors.Is(err, context.DeadlineExceeded):
		return sandbox.Errorf(sandbox.Timeout, "bash", "", "the command ran longer than %v", timeout)
	}
	return sandbox.Wrap("bash", "", err)
}

// script checks a request and makes a script of it.
func (s *Sandbox) script(r sandbox.BashRequest) (shell.Script, error) {
	var none shell.Script
	if r.PTY != nil {
		return none, sandbox.Errorf(sandbox.NotSupported, "bash", "", "the virtual sandbox has no terminals; run the command without one")
	}
	if err := command.Check("bash", &r); err != nil {
		return none, err
	}
	dir := s.cfg.Workdir
	if r.Dir != "" {
		dir = path.Clean(files.Join(dir, r.Dir))
	}
	i, err := s.view.Stat(dir, true)
	if err == nil && !i.IsDir() {
		err = unix.ENOTDIR
	}
	if err != nil {
		return none, sandbox.Wrap("bash", dir, overlay.Errno(err))
	}
	return shell.Script{Text: r.Command, Dir: dir, Env: s.environ(r.Env), Home: home, UID: userID, Umask: s.umask, Limits: s.cfg.Limits}, nil
}

func (s *Sandbox) environ(extra map[string]string) []string {
	vars := map[string]string{
		"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": home, "USER": "user", "LOGNAME": "user", "SHELL": "/bin/bash", "LANG": "C.UTF-8",
		"TZ": "UTC", "TMPDIR": tempDir, "TERM": "dumb", "PAGER": "cat", "GIT_PAGER": "cat",
	}
	for k, v := range s.cfg.Env {
		vars[k] = v
	}
	for k, v := range extra {
		vars[k] = v
	}
	out := make([]string, 0, len(vars))
	for k, v := range vars {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return out
}

// output keeps and passes on what a command puts out. In it mu is held while
// OnOutput runs, so that its calls are one at a time.
type output struct {
	mu       sync.Mutex
	separate bool
	on       func(sandbox.Output)
	bufs     [2]*keep.Buffer
	fresh    [2]*keep.Buffer // what was not polled; nil for Bash
	news     chan struct{}   // capacity 1: there is something to poll
}

func newOutput(r sandbox.BashRequest) *output {
	limit := r.MaxOutput
	if limit == 0 {
		limit = sandbox.OutputLimit
	}
	o := &output{separate: r.Separate, on: r.OnOutput, news: make(chan struct{}, 1)}
	for i := range o.bufs {
		o.bufs[i] = keep.New(limit)
	}
	return o
}

type streamWriter struct {
	o      *output
	stream sandbox.Stream
}

func (o *output) writer(s sandbox.Stream) io.Writer {
	if !o.separate {
		s = sandbox.Stdout
	}
	return &streamWriter{o, s}
}

func (w *streamWriter) Write(p []byte) (int, error) {
	o := w.o
	o.mu.Lock()
	defer o.mu.Unlock()
	_, _ = o.bufs[w.stream-1].Write(p)
	if f := o.fresh[w.stream-1]; f != nil {
		_, _ = f.Write(p)
		select {
		case o.news <- struct{}{}:
		default:
		}
	}
	if o.on != nil {
		o.on(sandbox.Output{Stream: w.stream, Data: p})
	}
	return len(p), nil
}

func (o *output) result() sandbox.BashResult {
	o.mu.Lock()
	defer o.mu.Unlock()
	var r sandbox.BashResult
	if o.separate {
		r.Stdout, r.Dropped, r.Head = o.bufs[0].Take()
		r.Stderr, r.DroppedErr, r.HeadErr = o.bufs[1].Take()
		return r
	}
	r.Output, r.Dropped, r.Head = o.bufs[0].Take()
	return r
}
