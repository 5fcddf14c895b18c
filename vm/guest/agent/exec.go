package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/guest"
	"github.com/galleyfs/galley/vm/guest/spawn"
)

// drainTime is how long output may still be on its way when nothing of a call is
// left that could write: a descriptor of its pipe may have been handed to
// another call.
const drainTime = time.Second

// task is a command at work.
type task struct {
	task  *guest.Task
	group *cgroup
	child *child
	input *input // nil where standard input is empty
	tty   *os.File
	out   []*os.File
	copy  sync.WaitGroup
}

// Exec is [guest.Handler.Exec].
func (a *Agent) Exec(_ context.Context, r guest.Exec, gt *guest.Task) error {
	w, err := a.inside()
	if err != nil {
		return err
	}
	group, err := w.cgroups.add()
	if err != nil {
		return err
	}
	defer group.remove()
	a.count(1)
	defer a.count(-1)
	t := &task{task: gt, group: group}
	err = t.start(a, w, r)
	defer t.close()
	if err != nil {
		group.kill()
		_ = group.wait(endPatience)
		return err
	}
	if err := gt.Started(t.child.pid); err != nil {
		group.kill()
	}
	t.run(r)
	return nil
}

func (a *Agent) count(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls += n
}

// start makes the streams and starts the process.
func (t *task) start(a *Agent, w *world, r guest.Exec) error {
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
	}()
	return w.do(func() error {
		u, err := findUser(r.User)
		if err != nil {
			return err
		}
		if theirs, err = t.streams(r, u); err != nil {
			return fmt.Errorf("make the command's streams: %w", err)
		}
		dir := r.Dir
		if dir == "" {
			dir = "/"
		}
		if err := spawn.CheckDir(dir); err != nil {
			return guest.FailureOf(guest.BadDir, err)
		}
		attr := &syscall.ProcAttr{
			Dir: dir, Env: environment(r.Env, u, w.hostname),
			Sys: &syscall.SysProcAttr{
				Setsid: true, Setctty: r.TTY != nil, Ctty: 0, Credential: u.credential(),
				UseCgroupFD: true, CgroupFD: t.group.fd,
			},
		}
		for _, f := range theirs[:3] {
			attr.Files = append(attr.Files, f.Fd())
		}
		t.child, err = a.reaper.launch(func() (int, error) { return launch(r, attr) })
		return err
	})
}

// launch starts the program, or the shell.
func launch(r guest.Exec, attr *syscall.ProcAttr) (int, error) {
	if r.Line == "" {
		if len(r.Argv) == 0 {
			return 0, guest.Failuref(guest.NotFound, "the command is empty")
		}
		pid, err := spawn.Command(r.Argv, attr)
		return pid, startFailure(err)
	}
	var first error
	for _, shell := range []string{"bash", "sh"} {
		pid, err := spawn.Command([]string{shell, "-c", r.Line}, attr)
		if err == nil {
			return pid, nil
		}
		var e *spawn.Error
		if !errors.As(err, &e) || e.Code != spawn.CodeNotFound {
			return 0, startFailure(err)
		}
		if first == nil {
			first = err
		}
	}
	return 0, guest.Failuref(guest.NoShell, "the image has neither bash nor sh in PATH (%s), so that it runs no command line; a program can be run without a shell: %w",
		spawn.Getenv(attr.Env, "PATH"), first)
}

// startFailure is why a command did not start, as the protocol says it.
func startFailure(err error) error {
	var e *spawn.Error
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &e):
		return err
	case e.Code == spawn.CodeNotFound:
		return guest.FailureOf(guest.NotFound, err)
	}
	return guest.FailureOf(guest.NotExecutable, err)
}

// environment adds what every command has where it is missing.
func environment(env []string, u *user, hostname string) []string {
	out := slices.Clone(env)
	add := func(name, value string) {
		if value != "" && !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") }) {
			out = append(out, name+"="+value)
		}
	}
	add("PATH", spawn.DefaultPath)
	add("HOME", u.home)
	add("HOSTNAME", hostname)
	return out
}

// streams makes the command's standard streams and returns its ends of them,
// which may be one file more than once.
func (t *task) streams(r guest.Exec, u *user) ([]*os.File, error) {
	if r.TTY != nil {
		return t.terminal(*r.TTY, u)
	}
	var theirs []*os.File
	if r.Stdin {
		in, mine, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, in)
		t.input = newInput(mine, false)
	} else {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, null)
	}
	streams := 1
	if r.Separate {
		streams = 2
	}
	for range streams {
		mine, theirEnd, err := os.Pipe()
		if err != nil {
			return theirs, err
		}
		t.out = append(t.out, mine)
		theirs = append(theirs, theirEnd)
	}
	if streams == 1 {
		theirs = append(theirs, theirs[1]) // one pipe keeps the order
	}
	return theirs, nil
}

// terminal makes the command's terminal, whose user owns it.
func (t *task) terminal(s guest.Size, u *user) ([]*os.File, error) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	t.tty = os.NewFile(uintptr(master), "terminal")
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Cols}); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/pts/"+strconv.Itoa(n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	slave := os.NewFile(uintptr(fd), "terminal")
	_ = unix.Fchown(fd, int(u.uid), -1)
	t.out = []*os.File{t.tty}
	t.input = newInput(t.tty, true)
	return []*os.File{slave, slave, slave}, nil
}

// run works on the command until all of it has ended.
func (t *task) run(r guest.Exec) {
	for i, f := range t.out {
		t.copy.Go(func() { t.pass(i+1, f) })
	}
	if t.input != nil {
		go t.input.pump(t.task)
	}
	go t.listen()
	<-t.child.ended
	told := false
	if r.Background && t.group.wait(time.Millisecond) != nil {
		// What it left running may hold its output open.
		told = t.task.Exited(t.child.status) == nil
		_ = t.group.wait(0)
	}
	t.group.kill()
	left := t.group.wait(endPatience)
	for _, f := range t.out {
		_ = f.SetReadDeadline(time.Now().Add(drainTime))
	}
	t.copy.Wait()
	if !told {
		_ = t.task.Exited(t.child.status)
	}
	why := ""
	if left != nil {
		why = left.Error()
	}
	_ = t.task.Gone(why)
}

// pass sends what the command puts out. When nobody is there to get it, the
// command is ended.
func (t *task) pass(stream int, f *os.File) {
	b := make([]byte, 32<<10)
	lost := false
	for {
		n, err := f.Read(b)
		if n > 0 && !lost && t.task.Output(stream, b[:n]) != nil {
			lost = true
			t.group.kill()
		}
		if err != nil {
			return // the end; EIO on a terminal
		}
	}
}

// listen does what the host wants of the command. Without the host it ends.
func (t *task) listen() {
	for {
		e, err := t.task.Receive()
		switch {
		case err != nil || e.Kill:
			t.group.kill()
			if err != nil {
				return
			}
		case e.Signal != 0:
			t.child.signal(e.Signal)
		case e.Size != nil && t.tty != nil:
			t.resize(*e.Size)
		case e.EOF && t.input != nil:
			t.input.end()
		case t.input != nil && len(e.Input) > 0:
			if !t.input.add(e.Input) {
				t.group.kill()
			}
		}
	}
}

func (t *task) resize(s guest.Size) {
	raw, err := t.tty.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Cols})
	})
}

// close gives back the streams.
func (t *task) close() {
	if t.input != nil {
		t.input.close()
	}
	for _, f := range t.out {
		_ = f.Close()
	}
}

// Files is [guest.Handler.Files]: the process that works on files.
func (a *Agent) Files(_ context.Context, r guest.Files) (net.Conn, error) {
	if !path.IsAbs(r.Dir) {
		return nil, guest.Failuref(guest.BadDir, "%q: expected an absolute directory", r.Dir)
	}
	return a.files(r.User, r.Dir, nil)
}

// Copy is [guest.Handler.Copy]: that process, for one copy.
func (a *Agent) Copy(_ context.Context, r guest.Copy) (net.Conn, error) {
	return a.files(r.User, "/", r.Args)
}

// files starts this executable again as the process that works on files.
func (a *Agent) files(as, dir string, args []string) (net.Conn, error) {
	w, err := a.inside()
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "files"), os.NewFile(uintptr(fds[1]), "files")
	defer mine.Close()
	defer theirs.Close()
	group, err := w.cgroups.add()
	if err != nil {
		return nil, err
	}
	err = w.do(func() error {
		u, err := findUser(as)
		if err != nil {
			return err
		}
		if err := spawn.CheckDir(dir); err != nil {
			return guest.FailureOf(guest.BadDir, err)
		}
		attr := &syscall.ProcAttr{
			Dir: dir, Files: []uintptr{theirs.Fd(), 2, 2}, Env: []string{"PWD=" + dir},
			Sys: &syscall.SysProcAttr{Setsid: true, Credential: u.credential(), UseCgroupFD: true, CgroupFD: group.fd},
		}
		_, err = a.reaper.launch(func() (int, error) {
			return syscall.ForkExec("/proc/self/exe", append([]string{FilesName}, args...), attr)
		})
		if err != nil {
			return fmt.Errorf("start the process that works on files: %w", err)
		}
		return nil
	})
	if err != nil {
		group.remove()
		return nil, err
	}
	conn, err := net.FileConn(mine)
	if err != nil {
		group.kill()
		return nil, err
	}
	return &filesConn{Conn: conn, group: group}, nil
}

// filesConn ends its process when it is closed.
type filesConn struct {
	net.Conn
	group *cgroup
	once  sync.Once
}

// CloseWrite ends the direction to the process, which then ends.
func (c *filesConn) CloseWrite() error {
	if u, ok := c.Conn.(*net.UnixConn); ok {
		return u.CloseWrite()
	}
	return nil
}

// Close ends the process.
func (c *filesConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.group.kill()
		_ = c.group.wait(endPatience)
		c.group.remove()
	})
	return err
}
