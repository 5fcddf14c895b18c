package owner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/fs"
	"github.com/galleyfs/galley/snapshots"
)

const (
	// startTimeout is how long Ensure waits for an owner that starts, one
	// that ends, or a command that has the session open without one.
	startTimeout = 15 * time.Second
	retryPause   = 10 * time.Millisecond
)

// Dial connects to the owner of sess and takes a lease; with no owner it fails
// with [ErrNoOwner].
func Dial(ctx context.Context, sess *snapshots.Session) (*Client, error) {
	return dialAs(ctx, sess, "galley")
}

func dialAs(ctx context.Context, sess *snapshots.Session, what string) (*Client, error) {
	conn, err := dial(sess.Socket())
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, fmt.Errorf("session %s: %w", sess.Name(), ErrNoOwner)
	}
	if err != nil {
		return nil, fmt.Errorf("session %s: connect to its owner: %w", sess.Name(), err)
	}
	return newClient(ctx, conn, sess.Name(), what)
}

// dial connects to a socket of any path length: sun_path holds 107 bytes, so
// the directory is named by a descriptor.
func dial(path string) (*net.UnixConn, error) {
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	return net.DialUnix("unix", nil, socketAddr(dir, path))
}

func socketAddr(dir int, path string) *net.UnixAddr {
	return &net.UnixAddr{Net: "unix", Name: "/proc/self/fd/" + strconv.Itoa(dir) + "/" + filepath.Base(path)}
}

// Ensure connects to the owner of sess and takes a lease, starting the owner
// first where there is none. An owner that cannot start tells why in the error.
func Ensure(ctx context.Context, sess *snapshots.Session, opt Options) (*Client, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		c, err := dialAs(ctx, sess, opt.What)
		if err == nil || !errors.Is(err, ErrNoOwner) {
			return c, err
		}
		if _, serr := os.Lstat(sess.Socket()); serr == nil {
			clearDead(ctx, opt.Log)
		}
		c, err = spawn(ctx, sess, opt)
		// Another owner may be starting or ending at this moment.
		if err == nil || !errors.Is(err, snapshots.ErrBusy) {
			return c, err
		}
		if !pause(ctx) {
			return nil, err
		}
	}
}

// pause waits a little before the next try; false when the time is over.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(retryPause):
		return true
	}
}

// clearDead unmounts what an owner that was killed left mounted.
func clearDead(ctx context.Context, log *slog.Logger) {
	gone, err := fs.ClearDead(ctx)
	for _, m := range gone {
		log.Info("cleared a dead mount", "mount", m)
	}
	if err != nil {
		log.Warn("clear dead mounts", "error", err)
	}
}

// Control reaches sess whichever way there is: through its owner where it is
// live, else by opening it in this process under its lock. A session that is
// busy without an owner is waited for. Where upTo names trees it is opened for
// [Controller.Replacing] on them alone, as [snapshots.OpenOptions] tells.
func Control(ctx context.Context, sess *snapshots.Session, upTo ...string) (Controller, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		c, err := Dial(ctx, sess)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, ErrNoOwner) {
			return nil, err
		}
		l, err := sess.Open(ctx, snapshots.OpenOptions{NoWatch: true, UpTo: upTo})
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, snapshots.ErrBusy) || !pause(ctx) {
			return nil, err
		}
	}
}

// readiness is what a new owner says once.
type readiness struct {
	Error *wireError `json:"error,omitempty"`
}

// spawn starts an owner. The connection of its first user is made here, so
// that it has one from its beginning.
func spawn(ctx context.Context, sess *snapshots.Session, opt Options) (*Client, error) {
	fail := func(err error) (*Client, error) {
		return nil, fmt.Errorf("session %s: start its owner process: %w", sess.Name(), err)
	}
	exe := opt.Exe
	if exe == "" {
		var err error
		if exe, err = os.Executable(); err != nil {
			return fail(err)
		}
	}
	mine, theirs, err := socketPair()
	if err != nil {
		return fail(err)
	}
	defer theirs.Close()
	ready, report, err := os.Pipe()
	if err != nil {
		_ = mine.Close()
		return fail(err)
	}
	defer ready.Close()
	defer report.Close()

	cmd := exec.Command(exe, append([]string{Command, sess.Store().Home(), sess.ID()}, opt.HidePaths...)...)
	cmd.Dir = "/"
	// Nothing of the environment is needed, and an owner outlives the command
	// whose secrets may be in it.
	cmd.Env = testEnv()
	cmd.ExtraFiles = []*os.File{report, theirs} // 3 and 4
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		_ = mine.Close()
		return fail(err)
	}
	go cmd.Wait() // reaps it, should it end before this process
	_ = report.Close()
	if err := awaitReady(ctx, ready); err != nil {
		_ = mine.Close()
		return fail(err)
	}
	return newClient(ctx, mine, sess.Name(), opt.What)
}

// testEnv is what of the environment is passed on: what tests tell Go's runtime.
func testEnv() []string {
	env := []string{}
	for _, name := range []string{"GOCOVERDIR", "GORACE"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// awaitReady reads what a new owner says. One that dies says nothing.
func awaitReady(ctx context.Context, ready *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })
	defer stop()
	b, err := io.ReadAll(io.LimitReader(ready, 64<<10))
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return err
	}
	var r readiness
	if err := decode(bytes.TrimSpace(b), &r); err != nil {
		return errors.New("it ended before it was ready; " + LogFile + " in the session's directory may say why")
	}
	return r.Error.err()
}

// say reports readiness, or why there is none.
func say(report *os.File, err error) {
	b, merr := json.Marshal(readiness{Error: toWire(err)})
	if merr == nil {
		_, _ = report.Write(append(b, '\n'))
	}
	_ = report.Close()
}

// socketPair makes a connection; the other end is for a child.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), "owner connection")
	mine, err := connOf(os.NewFile(uintptr(fds[0]), "owner connection"))
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return mine, theirs, nil
}

// connOf makes a connection of f, which it takes over.
func connOf(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, errors.New("not a unix socket")
	}
	return u, nil
}
