package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/fs"
	"github.com/galleyfs/galley/overlay"
)

// overlayServer is the argument that makes this program the process behind a
// mount of `galley overlay`: what serves a mount must not be the process that
// uses it.
const overlayServer = "overlay-server"

// startOverlay starts that process and waits until the mount is there. done is
// closed when the process has ended.
func startOverlay(ctx context.Context, r overlayRequest) (done <-chan struct{}, err error) {
	spec, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ready, report, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	cmd := exec.Command(exe, overlayServer, string(spec))
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + os.Getenv("PATH")}
	cmd.ExtraFiles = []*os.File{report} // 3
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = report.Close()
	if err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	said, err := io.ReadAll(io.LimitReader(ready, 64<<10))
	switch text := string(said); {
	case err != nil:
		return nil, err
	case text == "ready":
		return ended, nil
	case text == "":
		return nil, errors.New("the process that serves it ended before it was ready")
	default:
		return nil, errors.New(strings.TrimSpace(text))
	}
}

// overlayMain is that process: it opens the directories, mounts, says so, and
// serves until the mount is taken down.
func overlayMain(args []string) int {
	report := os.NewFile(3, "readiness")
	var r overlayRequest
	if len(args) != 1 || json.Unmarshal([]byte(args[0]), &r) != nil || report == nil {
		fmt.Fprintln(os.Stderr, "galley: "+overlayServer+" is started by galley itself")
		return exitFailed
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	if err := serveOverlay(ctx, r, report); err != nil {
		_, _ = io.WriteString(report, err.Error())
		return exitFailed
	}
	return exitOK
}

func serveOverlay(ctx context.Context, r overlayRequest, report *os.File) (err error) {
	if r.Dirs.Upper == "" {
		// Records of the lower directories have to be somewhere.
		if r.Dirs.Work, err = os.MkdirTemp("", "galley-overlay-"); err != nil {
			return err
		}
		defer os.RemoveAll(r.Dirs.Work)
	}
	unlock, err := lockDirs(r.Dirs)
	if err != nil {
		return err
	}
	defer unlock()
	tree, err := overlay.OpenDirs(r.Dirs, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	// The modes that programs ask for arrive masked by their own umask.
	unix.Umask(0)
	dev, err := openMount(ctx, r.Dir, r.Options)
	if err != nil {
		return err
	}
	source := fs.Live(tree)
	if r.Dirs.Upper == "" {
		source = fs.Snapshot(tree, tree.Stack())
	}
	server, err := fs.Serve(dev, source, fs.Options{Writeback: r.Options.Writeback})
	if err != nil {
		_ = dev.Close()
		return errors.Join(err, fs.UnmountLazy(context.WithoutCancel(ctx), r.Dir))
	}
	_, _ = io.WriteString(report, "ready")
	_ = report.Close()
	select {
	case <-server.Done():
	case <-ctx.Done():
		if err := fs.UnmountLazy(context.WithoutCancel(ctx), r.Dir); err != nil {
			return err
		}
		<-server.Done()
	}
	return nil
}

// lockWait is how long a mount that has just been taken down may take to write
// down what it knows.
const lockWait = 5 * time.Second

// lockSoon takes a lock that may just be given back.
func lockSoon(fd int) error {
	for end := time.Now().Add(lockWait); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK || time.Now().After(end) {
			return err
		}
	}
}

// lockDirs keeps two mounts from writing to one upper or work directory.
func lockDirs(d overlay.Dirs) (unlock func(), err error) {
	var held []*os.File
	unlock = func() {
		for _, f := range held {
			_ = f.Close()
		}
	}
	for _, dir := range []string{d.Upper, d.Work} {
		if dir == "" {
			continue
		}
		f, err := os.Open(dir)
		if err == nil {
			held = append(held, f)
			err = lockSoon(int(f.Fd()))
		}
		if err == unix.EWOULDBLOCK {
			err = fmt.Errorf("%q is in use by another mount: %w; take that down first", dir, unix.EBUSY)
		}
		if err != nil {
			unlock()
			return nil, err
		}
	}
	return unlock, nil
}
