package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox/internal/hostdir"
	"github.com/galleyfs/galley/vm/guest/spawn"
)

// defaultMaxRead is View.MaxRead where that is 0: the largest request that the
// kernel makes before fs.fuse.max_pages_limit is raised, in bytes.
const defaultMaxRead = 1 << 20

// orphanWait is how long a stop of the caller's own group may take before it is
// taken to be one that the kernel does not stop.
const orphanWait = 100 * time.Millisecond

// Run runs cfg.Command in a sandbox and returns when the command has ended
// and every process it left behind is gone. Meanwhile it handles the caller's
// signals, which mean the command, and the terminal's job control: the caller must not
// act on the signals itself, and only one Run at a time may use the terminal.
// Cancelling ctx ends the sandbox with SIGKILL.
//
// A non-nil error means that the command did not start, or that the sandbox
// broke; Result.Code is then still what to exit with.
func Run(ctx context.Context, cfg Config) (Result, error) {
	term := openTerminal()
	defer term.close()
	s, err := newSetup(&cfg, term)
	if err != nil {
		return Result{Code: spawn.CodeFailed}, err
	}
	// The supervisor dies with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r := &runner{cfg: &cfg, term: term, hasTerm: s.Foreground, messages: make(chan received)}
	r.signals = make(chan os.Signal, 64)
	for _, sig := range forwarded {
		// What the caller was told to ignore (nohup), the command
		// inherits as ignored.
		if !signal.Ignored(sig) {
			signal.Notify(r.signals, sig)
		}
	}
	defer signal.Stop(r.signals)
	if err := r.start(s); err != nil {
		return Result{Code: spawn.CodeFailed}, err
	}
	return r.loop(ctx)
}

// A runner is the caller's side of one sandbox.
type runner struct {
	cfg      *Config
	term     *terminal
	hasTerm  bool // the command has the terminal
	started  bool
	early    []syscall.Signal // came before the command ran
	process  *os.Process
	channel  channel
	signals  chan os.Signal
	messages chan received
}

// received is one message of the supervisor, or the end of them.
type received struct {
	message
	fd  int
	err error
}

// newSetup checks cfg and makes of it what the supervisor is told.
func newSetup(cfg *Config, term *terminal) (*setup, error) {
	if len(cfg.Command) == 0 {
		return nil, errors.New("no command to run")
	}
	if !path.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("working directory %q is not an absolute path", cfg.Dir)
	}
	s := &setup{
		Command: cfg.Command, Dir: cfg.Dir,
		AllowAbstract: cfg.AllowAbstractSockets, HostTmp: cfg.HostTmp,
		UserNamespace: !canMount(), Foreground: term.foreground(),
		TerminalOnStdio: terminalOnStdio(cfg.Stdin, cfg.Stdout, cfg.Stderr),
	}
	for _, v := range cfg.Views {
		if !path.IsAbs(v.Path) || path.Clean(v.Path) != v.Path || v.Path == "/" {
			return nil, fmt.Errorf("view %q: not an absolute, clean path of a directory below /", v.Path)
		}
		s.Views = append(s.Views, viewSetup{
			Path: v.Path, Source: orDefault(v.Source, "galley"), Subtype: orDefault(v.Subtype, "galley"),
			ReadOnly: v.ReadOnly, MaxRead: max(v.MaxRead, 0),
		})
		if v.MaxRead == 0 {
			s.Views[len(s.Views)-1].MaxRead = defaultMaxRead
		}
	}
	for _, p := range cfg.AllowSockets {
		real, err := filepath.EvalSymlinks(p)
		if err != nil {
			return nil, fmt.Errorf("allowed socket: %w", err)
		}
		st, err := os.Stat(real)
		if err != nil {
			return nil, fmt.Errorf("allowed socket: %w", err)
		}
		if st.Mode().Type() != os.ModeSocket || !path.IsAbs(real) {
			return nil, fmt.Errorf("allowed socket %s: not the absolute path of a socket", p)
		}
		s.AllowSockets = append(s.AllowSockets, real)
	}
	s.Hide = realPaths(cfg.Hide)
	s.Caches = realPaths(cfg.Caches)
	s.Env = sandboxEnv(cfg.Env, s)
	return s, nil
}

// realPaths resolves the symbolic links of the absolute ones of paths, as far as
// they exist.
func realPaths(paths []string) []string {
	var out []string
	for _, p := range paths {
		if path.IsAbs(p) {
			out = append(out, hostdir.Real(p))
		}
	}
	return out
}

// sandboxEnv is env with a TMPDIR that can be written to.
func sandboxEnv(env []string, s *setup) []string {
	dir := path.Clean(spawn.Getenv(env, "TMPDIR"))
	if dir == "." || beneath(dir, "/tmp") || beneath(dir, "/var/tmp") {
		return env
	}
	for _, v := range s.Views {
		if beneath(dir, v.Path) && !v.ReadOnly {
			return env
		}
	}
	out := make([]string, 0, len(env))
	for _, kv := range env {
		if !strings.HasPrefix(kv, "TMPDIR=") {
			out = append(out, kv)
		}
	}
	return append(out, "TMPDIR=/tmp")
}

func orDefault(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

// start starts the supervisor in its namespaces.
func (r *runner) start(s *setup) error {
	var err error
	r.process, r.channel, err = launch(s, []*os.File{r.cfg.Stdin, r.cfg.Stdout, r.cfg.Stderr}, false)
	if err != nil {
		return err
	}
	go r.receive()
	return nil
}

// launch starts a supervisor. stdio are the command's descriptors, nil for
// /dev/null. It ends with the thread that calls this. Apart, it has a session
// of its own and no terminal.
func launch(s *setup, stdio []*os.File, apart bool) (*os.Process, channel, error) {
	setupFile, err := writeSetup(s)
	if err != nil {
		return nil, channel{}, err
	}
	defer setupFile.Close()
	own, theirs, err := newChannelPair()
	if err != nil {
		return nil, channel{}, err
	}
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		own.close()
		return nil, channel{}, err
	}
	defer null.Close()
	files := append(append([]*os.File(nil), stdio...), theirs, setupFile)
	for i, f := range files {
		if f == nil {
			files[i] = null
		}
	}
	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC, Setsid: apart}
	if s.UserNamespace {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
		attr.AmbientCaps = supervisorCapabilities
	}
	process, err := os.StartProcess("/proc/self/exe", []string{supervisorName}, &os.ProcAttr{
		Dir: "/", Env: supervisorEnv(), Files: files, Sys: attr,
	})
	if err != nil {
		own.close()
		return nil, channel{}, explainNamespaces(fmt.Errorf("make the sandbox's namespaces: %w", err), s.UserNamespace)
	}
	return process, own, nil
}

// supervisorEnv is the supervisor's environment. Nothing inside can read it.
// The supervisor lives too shortly, or does too little, for garbage to matter.
func supervisorEnv() []string {
	env := []string{"GOGC=off", "GOMEMLIMIT=64MiB"}
	for _, name := range []string{"GOCOVERDIR", "GORACE"} { // of tests
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// receive passes the supervisor's messages on, until its end of the socket is
// closed.
func (r *runner) receive() {
	defer close(r.messages)
	for {
		m, fd, err := r.channel.receive()
		r.messages <- received{m, fd, err}
		if err != nil {
			return
		}
	}
}

// loop serves the sandbox until it has ended.
func (r *runner) loop(ctx context.Context) (Result, error) {
	var result Result
	var failure error
	ended := false
	serveErrs := make(chan error, len(r.cfg.Views))
	cancelled := ctx.Done()
	for open := true; open; {
		select {
		case m := <-r.messages:
			switch {
			case m.err != nil:
				if !errors.Is(m.err, io.EOF) && failure == nil {
					failure = m.err
				}
				open = false
			case m.kind == kindView:
				r.serveView(ctx, m, serveErrs)
			case m.kind == kindStarted:
				r.commandStarted()
			case m.kind == kindStopped:
				r.stopped(syscall.Signal(m.n))
			case m.kind == kindExited:
				result, ended = resultOf(syscall.WaitStatus(m.n)), true
			case m.kind == kindFailed:
				failure = r.describeFailure(m.message)
				if result.Code, ended = int(m.code), true; m.code == codeDirectory {
					result.Code = spawn.CodeFailed
				}
			}
		case sig := <-r.signals:
			if s := sig.(syscall.Signal); !r.started && deadly[s] {
				// A set-up that hangs can be interrupted, too.
				result, ended = Result{Code: 128 + int(s), Signal: s}, true
				_ = r.process.Kill()
				continue
			}
			r.forward(sig.(syscall.Signal))
		case err := <-serveErrs:
			if err != nil && failure == nil {
				failure = err
				_ = r.process.Kill()
			}
		case <-cancelled:
			cancelled = nil
			failure = context.Cause(ctx)
			_ = r.process.Kill()
		}
	}
	// The supervisor is reaped when the last process of its pid namespace is.
	state, err := r.process.Wait()
	r.channel.close()
	if !ended {
		result = Result{Code: spawn.CodeFailed}
		if failure == nil {
			failure = fmt.Errorf("the sandbox's supervisor died: %v %w", state, err)
		}
	}
	r.finish(result)
	return result, failure
}

// commandStarted notes that the command runs and passes on what came before.
func (r *runner) commandStarted() {
	r.started = true
	for _, sig := range r.early {
		r.forward(sig)
	}
	r.early = nil
}

func (r *runner) serveView(ctx context.Context, m received, done chan<- error) {
	view := r.cfg.Views[m.n]
	dev := os.NewFile(uintptr(m.fd), "/dev/fuse")
	go func() {
		if err := view.Serve(ctx, dev); err != nil {
			done <- fmt.Errorf("serve the view %s: %w", view.Path, err)
			return
		}
		done <- r.channel.send(message{kind: kindServed, n: m.n}, -1)
	}()
}

func (r *runner) describeFailure(m message) error {
	err := errors.New(m.text)
	if m.n != 0 {
		err = &sandboxError{m.text, unix.Errno(m.n)}
	}
	switch m.code {
	case spawn.CodeFailed:
	case codeDirectory:
		return fmt.Errorf("%w: %w", ErrDirectory, err)
	default:
		return err
	}
	return explainNamespaces(fmt.Errorf("set up the sandbox: %w", err), !canMount())
}

// A sandboxError is an error of the supervisor with its errno.
type sandboxError struct {
	text  string
	errno unix.Errno
}

func (e *sandboxError) Error() string { return e.text }
func (e *sandboxError) Unwrap() error { return e.errno }

// forward passes a signal that the caller got on to the command. One that the
// terminal may have sent means its whole group.
func (r *runner) forward(sig syscall.Signal) {
	if !r.started {
		r.early = append(r.early, sig)
		return
	}
	if sig == unix.SIGCONT {
		r.resume()
		return
	}
	kind := kindSignal
	switch sig {
	case unix.SIGHUP:
		kind = kindSignalGroup
	case unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGWINCH:
		if r.term.foreground() {
			kind = kindSignalGroup
		}
	}
	_ = r.channel.send(message{kind: kind, n: int32(sig)}, -1)
}

// stopped makes the caller stop as the command did, and lets the command go on
// when the caller does.
func (r *runner) stopped(sig syscall.Signal) {
	if (sig == unix.SIGTTIN || sig == unix.SIGTTOU) && r.term.foreground() {
		// The shell put the running job in the foreground, of which it
		// tells nobody: the command may have the terminal at once.
		r.resume()
		return
	}
	holder := r.term.holder()
	if sig == unix.SIGSTOP {
		sig = unix.SIGTSTP // which does not stop what nobody could continue
	}
	withDefaultAction(sig, func() {
		if r.hasTerm {
			_ = unix.Kill(0, sig)
		} else {
			_ = unix.Kill(os.Getpid(), sig)
		}
		r.awaitContinue()
	})
	if r.term.holder() != holder {
		r.hasTerm = false // the shell took it
	}
	r.resume()
}

// awaitContinue returns when the caller is continued, or was not stopped.
func (r *runner) awaitContinue() {
	timeout := time.After(orphanWait)
	for {
		select {
		case sig := <-r.signals:
			if sig == unix.SIGCONT {
				return
			}
			r.forward(sig.(syscall.Signal))
		case <-timeout:
			return
		}
	}
}

// resume lets the command go on, with the terminal if the caller's group has it.
func (r *runner) resume() {
	var foreground int32
	if r.term.foreground() {
		foreground, r.hasTerm = 1, true
	}
	_ = r.channel.send(message{kind: kindContinue, n: foreground}, -1)
}

// finish puts the terminal back, and lets the caller's group know of a signal
// from the keyboard that it would have had itself.
func (r *runner) finish(result Result) {
	if !r.hasTerm {
		return
	}
	r.term.take()
	if r.started && (result.Signal == unix.SIGINT || result.Signal == unix.SIGQUIT) {
		_ = unix.Kill(0, result.Signal)
	}
}

func resultOf(ws syscall.WaitStatus) Result {
	if ws.Signaled() {
		return Result{Code: 128 + int(ws.Signal()), Signal: ws.Signal(), CoreDumped: ws.CoreDump()}
	}
	return Result{Code: ws.ExitStatus()}
}

// Exit ends the process as the command ended: by the same signal, so that a
// shell sees an interrupted or a crashed job, but without a core file of its
// own; or with Code.
func (r Result) Exit() {
	if r.Signal != 0 {
		_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
		withDefaultAction(r.Signal, func() {
			_ = unix.Kill(os.Getpid(), r.Signal)
			time.Sleep(orphanWait) // the signal ends the process meanwhile
		})
	}
	os.Exit(r.Code)
}
