// Package shell runs bash scripts in process: the interpreter mvdan.cc/sh on a
// view of files, with the commands of package tools. Left to itself, the
// interpreter reaches the host in a dozen ways (it searches PATH for command
// -v, makes FIFOs for process substitutions, reads the password file for
// ~user, …); each of them is closed here, and its test is named after it.
//
// Three things close them: the handlers that the interpreter offers, an
// environment that answers before the host is asked ([environ]), and a rewrite
// of the script's syntax tree before it runs ([prepared]), which also puts in
// the marks by which loops and assignments are counted. What a script makes
// while it runs (eval, source, trap) is rewritten in the same way by the call
// handler, which sees every command before it runs.
package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"mvdan.cc/sh/v3/interp"

	"github.com/galleyfs/galley/sandbox/virtual/internal/view"
)

// Limits bound what one script may use. A zero field is its default.
type Limits struct {
	Commands int   // simple commands that are run
	Loops    int   // iterations of all loops together
	Frames   int   // depth of the interpreter's stack, about ten for each call of a function
	Output   int64 // bytes put out, and bytes captured by $(…)
	Input    int64 // bytes taken from the standard input
	Variable int   // bytes of one variable
	Memory   int   // bytes that one command holds in memory
	Script   int   // bytes of one script
	Nesting  int   // open brackets and blocks of one script
	Parallel int   // goroutines of the whole program, which pipes and & make
}

// DefaultLimits are generous to an agent's scripts and stop one that runs away.
var DefaultLimits = Limits{
	Commands: 200_000,
	Loops:    1_000_000,
	Frames:   8_000,
	Output:   64 << 20,
	Input:    64 << 20,
	Variable: 4 << 20,
	Memory:   64 << 20,
	Script:   1 << 20,
	Nesting:  1_000,
	Parallel: 20_000,
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits
	for _, f := range []struct{ have, deflt *int }{
		{&l.Commands, &d.Commands}, {&l.Loops, &d.Loops}, {&l.Frames, &d.Frames}, {&l.Variable, &d.Variable},
		{&l.Memory, &d.Memory}, {&l.Script, &d.Script}, {&l.Nesting, &d.Nesting}, {&l.Parallel, &d.Parallel},
	} {
		if *f.have == 0 {
			*f.have = *f.deflt
		}
	}
	if l.Output == 0 {
		l.Output = d.Output
	}
	if l.Input == 0 {
		l.Input = d.Input
	}
	return l
}

// LimitError says which limit ended a script.
type LimitError struct{ Limit string }

func (e *LimitError) Error() string {
	return "the virtual sandbox stopped the command: " + e.Limit
}

func limited(format string, args ...any) error {
	return &LimitError{fmt.Sprintf(format, args...)}
}

// Script is a script and what it runs with.
type Script struct {
	Text   string
	Name   string   // $0; default "bash"
	Args   []string // $1 and on
	Dir    string   // resolved, in the view
	Env    []string // NAME=value
	Home   string
	UID    int
	Stdin  io.Reader // nil is empty
	Stdout io.Writer // written to by one goroutine at a time
	Stderr io.Writer
	Umask  uint32
	Limits Limits
	// Linger, unless nil, lets what the script leaves behind in the background
	// run on until the context ends, and is called when nothing of it is left.
	Linger func()
}

var lastPID atomic.Int64

// run is a script that runs, with all shells that it starts.
type run struct {
	view   *view.View
	script *Script
	limits Limits
	cancel context.CancelCauseFunc
	start  time.Time
	pid    int64
	umask  atomic.Uint32

	commands, loops atomic.Int64
	calls           atomic.Int64 // all that the call handler saw
	output, input   atomic.Int64
	busy            sync.WaitGroup // handlers under way

	mu      sync.Mutex
	over    bool                // no handler may begin any more
	files   map[string][]byte   // what stands at /dev/fd/N and elsewhere, by path
	nextFD  int                 // of files
	held    int                 // bytes in files
	sourced map[string]string   // texts for the source builtin, by the path it is given
	pipes   map[*os.File]func() // ends of pipes to be closed at the end
	guards  []string            // texts for cmdGuard, by number
	guardNo map[string]int
}

// Run runs a script to its end and returns its exit status. The error is a
// [*LimitError], or the context's when that ended the script.
func Run(ctx context.Context, v *view.View, s Script) (int, error) {
	if s.Name == "" {
		s.Name = "bash"
	}
	linger, background, lingers := s.Linger, s.Linger != nil, false
	if !background {
		linger = func() {}
	}
	defer func() {
		if !lingers {
			linger()
		}
	}()
	parent := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	r := &run{
		view: v, script: &s, limits: s.Limits.withDefaults(), cancel: cancel, start: time.Now(), pid: 1000 + lastPID.Add(1),
		files: map[string][]byte{}, nextFD: 63, sourced: map[string]string{}, pipes: map[*os.File]func(){}, guardNo: map[string]int{},
	}
	r.umask.Store(s.Umask)
	out := &sink{r: r, w: s.Stdout, mu: new(sync.Mutex)}
	errOut := &sink{r: r, w: s.Stderr, mu: out.mu}
	in, err := r.reader(ctx, &counted{r: r, in: s.Stdin})
	if err != nil {
		cancel(nil)
		return 1, err
	}
	status, err := r.shell(ctx, shellCall{
		text: s.Text, name: s.Name, args: s.Args, env: s.Env, dir: s.Dir, in: in, out: out, err: errOut, top: true,
	})
	if background && ctx.Err() == nil {
		lingers = true
		go func() {
			<-parent.Done()
			r.finish(nil)
			linger()
		}()
		return status, err
	}
	cause := context.Cause(ctx)
	r.finish(nil)
	var limit *LimitError
	switch {
	case errors.As(cause, &limit):
		return 1, limit
	case cause != nil:
		return 128 + 9, cause
	}
	return status, err
}

// finish ends what is left in the background and gives everything back.
func (r *run) finish(cause error) {
	if cause == nil {
		cause = context.Canceled
	}
	r.mu.Lock()
	r.over = true
	r.mu.Unlock()
	r.cancel(cause)
	r.busy.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for f := range r.pipes {
		_ = f.Close()
	}
	r.pipes = nil
	r.files = nil
}

// enter admits a handler; leave must follow. It is refused when the script is
// over, so that nothing that was left behind changes a file later.
func (r *run) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return context.Canceled
	}
	r.busy.Add(1)
	return nil
}

func (r *run) leave() { r.busy.Done() }

// stop ends the script for a limit, and returns the error for the interpreter.
func (r *run) stop(err error) error {
	r.cancel(err)
	return err
}

// shellCall is one shell: the script's own, or a bash or script that it calls.
type shellCall struct {
	text, name string
	args, env  []string
	dir        string
	in         *os.File
	out, err   io.Writer
	opts       []string // of set
	top        bool
}

// shell runs one shell to its end.
func (r *run) shell(ctx context.Context, c shellCall) (int, error) {
	file, err := r.parse(c.text, c.name)
	if err != nil {
		var limit *LimitError
		if errors.As(err, &limit) {
			return 1, r.stop(err)
		}
		fmt.Fprintf(c.err, "%s: %v\n", c.name, err)
		return 2, nil
	}
	env := r.environ(c)
	params := append(append([]string{}, c.opts...), "--")
	params = append(params, c.args...)
	sh, err := interp.New(
		interp.Env(env),
		// interp.Dir asks the host whether the directory is there.
		func(sh *interp.Runner) error { sh.Dir = c.dir; return nil },
		interp.StdIO(c.in, c.out, c.err),
		interp.Params(params...),
		interp.CallHandler(r.call),
		interp.ExecHandlers(func(interp.ExecHandlerFunc) interp.ExecHandlerFunc { return r.exec }),
		interp.OpenHandler(r.open),
		interp.StatHandler(r.stat),
		interp.AccessHandler(r.access),
		interp.ReadDirHandler2(r.readDir),
	)
	if err != nil {
		fmt.Fprintf(c.err, "%s: %v\n", c.name, err)
		return 2, nil
	}
	sh.Reset()
	env.ready.Store(true)
	err = r.interpret(ctx, sh, file)
	var exit interp.ExitStatus
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return int(exit), nil
	case ctx.Err() != nil:
		return 128 + 9, context.Cause(ctx)
	}
	var limit *LimitError
	if errors.As(err, &limit) {
		return 1, r.stop(err)
	}
	fmt.Fprintf(c.err, "%s: %v\n", c.name, err)
	return 1, nil
}

// interpret is sh.Run; a panic of the interpreter ends the script and not the
// program. One in a goroutine of the interpreter's own cannot be caught, which
// is why no handler may panic.
func (r *run) interpret(ctx context.Context, sh *interp.Runner, file *prepared) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("internal error: %v", p)
		}
	}()
	return sh.Run(ctx, file.File)
}

// sink counts and serialises the output.
type sink struct {
	r  *run
	w  io.Writer
	mu *sync.Mutex
}

func (s *sink) Write(p []byte) (int, error) {
	if n := s.r.output.Add(int64(len(p))); n > s.r.limits.Output {
		return 0, s.r.stop(limited("more than %d bytes of output", s.r.limits.Output))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.w == nil {
		return len(p), nil
	}
	return s.w.Write(p)
}

// captured counts what $(…) collects, which is kept in memory.
type captured struct {
	r *run
	w io.Writer
}

func (c *captured) Write(p []byte) (int, error) {
	if n := c.r.output.Add(int64(len(p))); n > c.r.limits.Output {
		return 0, c.r.stop(limited("more than %d bytes of output, with what $(…) captured", c.r.limits.Output))
	}
	return c.w.Write(p)
}

// counted is the script's standard input.
type counted struct {
	r  *run
	in io.Reader
}

func (c *counted) Read(p []byte) (int, error) {
	if c.in == nil {
		return 0, io.EOF
	}
	n, err := c.in.Read(p)
	if c.r.input.Add(int64(n)) > c.r.limits.Input {
		return 0, c.r.stop(limited("more than %d bytes of standard input", c.r.limits.Input))
	}
	return n, err
}

// pipeRoom is what a pipe takes without a reader, as Linux has it by default.
const pipeRoom = 60 << 10

// reader makes the interpreter's kind of standard input of a reader: the read
// end of a pipe. It is closed at the end of the run at the latest.
func (r *run) reader(ctx context.Context, in io.Reader) (*os.File, error) {
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("a pipe for the standard input: %w", err)
	}
	r.keep(pr)
	if b, ok := in.(*bytesReader); ok && len(b.b) <= pipeRoom {
		_, err := pw.Write(b.b)
		return pr, errors.Join(err, pw.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = pw.SetWriteDeadline(time.Now()) })
	go func() {
		defer stop()
		defer pw.Close()
		_, _ = io.Copy(pw, in)
		if c, ok := in.(io.Closer); ok {
			_ = c.Close()
		}
	}()
	return pr, nil
}

func (r *run) keep(f *os.File) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pipes != nil {
		r.pipes[f] = nil
	}
}

func (r *run) dropped(f *os.File) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pipes, f)
}

// bytesReader reads from memory.
type bytesReader struct{ b []byte }

func (b *bytesReader) Read(p []byte) (int, error) {
	if len(b.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, b.b)
	b.b = b.b[n:]
	return n, nil
}

func (b *bytesReader) Close() error { return nil }

// absolute is a path as the view wants it.
func absolute(dir, p string) string {
	if path.IsAbs(p) {
		return p
	}
	if dir == "/" {
		return "/" + p
	}
	return dir + "/" + p
}
