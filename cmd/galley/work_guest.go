package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/sandbox/local"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm/guest"
)

// workGuest is work in a virtual machine.
func (e *env) workGuest(ctx context.Context, sess *snapshots.Session, o runOptions, command []string) error {
	g := o.sandbox.guest
	img, err := e.guestRoot(ctx, sess, g.image)
	if err != nil {
		return &notStarted{err}
	}
	argv, err := img.Config.Command(command)
	if err != nil {
		return &notStarted{err}
	}
	r, err := e.guestRequest(ctx, sess, g, img, commandText(argv))
	if err != nil {
		return &notStarted{err}
	}
	r.Detach, r.Idle = o.detach, o.idle
	client, err := owner.Ensure(ctx, sess, owner.Options{Log: e.log, What: commandText(argv)})
	if err != nil {
		return withHint(&notStarted{fmt.Errorf("start the owner of session %q: %w", sess.Name(), err)}, "galley doctor explains what this machine lacks")
	}
	defer client.Close()
	status, err := e.startMachine(ctx, client, r)
	if err == nil {
		err = g.fits(sess, status)
	}
	if err != nil {
		return &notStarted{err}
	}
	noteSandbox(sess, inMachine, e.log)
	err = e.around(ctx, sess, client, o, argv, func() (local.Result, error) {
		return e.inGuest(ctx, guest.NewClient(client.DialVM), execOf(img, g.as, o.sandbox.secrets, argv), o.sandbox.secrets)
	})
	if o.detach {
		e.say(o, "galley: the machine of session %s stays; galley exec %s -- COMMAND · galley stop %s\n",
			safeLine(sess.Name()), safeLine(sess.Name()), safeLine(sess.Name()))
		return err
	}
	return err
}

// inGuest runs a command in a guest with this process's standard streams: on a
// terminal of its own, if they are one.
func (e *env) inGuest(ctx context.Context, c *guest.Client, r guest.Exec, secrets map[string]string) (local.Result, error) {
	out, err := e.struckOutput(secrets)
	if err != nil {
		return local.Result{Code: exitFailed}, err
	}
	defer out.close()
	r.Stdin, r.Separate = true, true
	tty := ui.IsTerminal(e.stdin) && ui.IsTerminal(e.stdout)
	if tty {
		r.TTY, r.Separate = terminalSize(e.stdout), false
		r.Env = append(r.Env, "TERM="+or(e.getenv("TERM"), "xterm-256color"))
	}
	var lost atomic.Pointer[error] // nobody takes the output any more
	var k *guest.Command
	started := make(chan struct{})
	k, err = c.Start(ctx, r, func(stream int, b []byte) {
		to := out.stdout
		if stream == guest.Stderr {
			to = out.stderr
		}
		if _, err := to.Write(b); err != nil && lost.CompareAndSwap(nil, &err) {
			<-started
			_ = k.Signal(unix.SIGPIPE)
		}
	})
	close(started)
	if err != nil {
		return startResult(err)
	}
	if tty {
		restore, err := term.MakeRaw(int(e.stdin.Fd()))
		if err == nil {
			defer func() { _ = term.Restore(int(e.stdin.Fd()), restore) }()
		}
	}
	stop := e.passSignals(k, tty)
	defer stop()
	go feedGuest(k, e.stdin, tty)
	<-k.Exited()
	select {
	case <-k.Gone():
	case <-time.After(guestDrain):
	}
	status, known, err := k.Status()
	switch {
	case !known && err != nil:
		return local.Result{Code: exitFailed}, fmt.Errorf("the command broke off: %w", err)
	case status.Signaled():
		return local.Result{Code: 128 + int(status.Signal()), Signal: status.Signal()}, nil
	}
	return local.Result{Code: status.ExitStatus()}, nil
}

// guestDrain is how long a guest may take to end what a command left running.
const guestDrain = time.Minute

// startResult is how a command ended that did not start.
func startResult(err error) (local.Result, error) {
	var f *guest.Failure
	if errors.As(err, &f) {
		switch f.Kind {
		case guest.NotFound, guest.NoShell:
			return local.Result{Code: exitMissing}, f
		case guest.NotExecutable:
			return local.Result{Code: exitCannot}, f
		case guest.BadDir:
			return local.Result{Code: exitFailed}, fmt.Errorf("%w: %w", local.ErrDirectory, f)
		}
	}
	return local.Result{Code: exitFailed}, err
}

func terminalSize(f *os.File) *guest.Size {
	cols, rows, err := term.GetSize(int(f.Fd()))
	if err != nil || cols <= 0 || rows <= 0 {
		return &guest.Size{Rows: 24, Cols: 80}
	}
	return &guest.Size{Rows: uint16(rows), Cols: uint16(cols)}
}

// feedGuest passes standard input on until its end.
func feedGuest(k *guest.Command, from io.Reader, tty bool) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if n > 0 {
			if _, werr := k.Write(context.Background(), b[:n]); werr != nil {
				return // it reads no more
			}
		}
		if err != nil {
			if !tty {
				_ = k.CloseStdin()
			}
			return
		}
	}
}

// guestSignals are the signals to this process that mean the command.
var guestSignals = []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH}

// patienceWithGuest is how many times a command may be told to end before it is
// ended.
const patienceWithGuest = 3

// passSignals passes signals on to the command until the function that it
// returns is called.
func (e *env) passSignals(k *guest.Command, tty bool) func() {
	c := make(chan os.Signal, 16)
	signal.Notify(c, guestSignals...)
	done := make(chan struct{})
	go func() {
		told := 0
		for {
			select {
			case <-done:
				return
			case s := <-c:
				sig, _ := s.(syscall.Signal)
				switch sig {
				case unix.SIGWINCH:
					if tty {
						_ = k.Resize(*terminalSize(e.stdout))
					}
					continue
				case unix.SIGINT, unix.SIGTERM, unix.SIGHUP:
					told++
				}
				if told >= patienceWithGuest {
					k.End()
					continue
				}
				_ = k.Signal(sig)
			}
		}
	}()
	return func() {
		signal.Stop(c)
		close(done)
	}
}
