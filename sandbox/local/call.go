package local

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/fsmount"
	"github.com/galleyfs/galley/vm/guest/spawn"
)

// A call is one command in a sandbox that stays. The supervisor starts the
// executable again for it, as the first process of a pid namespace of the
// call's own: nothing in there can leave it, so that all of the call ends when
// that process does, and no call sees or signals another. The mount namespace
// is a slave of the sandbox's, with a /proc of its own: what is mounted in the
// sandbox while the call runs appears in it.
//
// The process talks with the sandbox's owner over a socket pair that the
// supervisor hands it. When the owner closes its end, the call ends.

// callName is argv[0] of the first process of a call.
const callName = "galley: sandbox call"

// callSetup says what a call runs.
type callSetup struct {
	Command       string
	Dir           string
	Env           []string
	Rows, Cols    uint16 // of the terminal; no terminal when 0
	Background    bool   // what the shell leaves running lives on
	AllowAbstract bool
}

// startCall starts the process of call n, whose socket is fd.
func (s *supervisor) startCall(n int32, fd int) {
	socket := os.NewFile(uintptr(fd), "call's socket")
	defer socket.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		s.sayGone(n, err)
		return
	}
	defer null.Close()
	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Setsid: true}
	if s.setup.UserNamespace {
		attr.AmbientCaps = supervisorCapabilities
	}
	// Held until the pid is noted: the one who reaps it looks there.
	s.mu.Lock()
	defer s.mu.Unlock()
	pid, err := syscall.ForkExec("/proc/self/exe", []string{callName}, &syscall.ProcAttr{
		Dir: "/", Env: supervisorEnv(), Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), socket.Fd()}, Sys: attr,
	})
	if err != nil {
		s.sayGone(n, err)
		return
	}
	s.calls[pid] = n
}

func (s *supervisor) sayGone(n int32, err error) {
	m := message{kind: kindGone, n: n}
	if err != nil {
		m.text = err.Error()
		var errno unix.Errno
		if errors.As(err, &errno) {
			m.code = int32(errno)
		}
	}
	_ = s.channel.send(m, -1)
}

// callEnded tells that the call whose first process was pid is gone. The kernel
// lets that process be reaped only after all others of its namespace.
func (s *supervisor) callEnded(pid int) {
	s.mu.Lock()
	n, ok := s.calls[pid]
	delete(s.calls, pid)
	s.mu.Unlock()
	if ok {
		s.sayGone(n, nil)
	}
}

// call is the process of a call.
type call struct {
	channel channel
	setup   callSetup
	stdio   [3]int
	shell   int
}

func callMain() int {
	c := &call{channel: channel{socketFD}}
	if err := c.prepare(); err != nil {
		return c.fail(err)
	}
	if err := c.isolate(); err != nil {
		return c.fail(err)
	}
	if err := c.start(); err != nil {
		return c.fail(err)
	}
	return c.reap()
}

func (c *call) fail(err error) int {
	if errors.Is(err, io.EOF) {
		return 1
	}
	m := message{kind: kindFailed, code: spawn.CodeFailed, text: err.Error()}
	var errno unix.Errno
	if errors.As(err, &errno) {
		m.n = int32(errno)
	}
	_ = c.channel.send(m, -1)
	return 1
}

// prepare takes what the owner sends.
func (c *call) prepare() error {
	if err := unix.CloseRange(3, ^uint(0)>>1&0x7fffffff, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	// As the supervisor does: nothing inside ends or looks into this process.
	signal.Notify(make(chan os.Signal, 1))
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the call's process non-dumpable: %w", err)
	}
	fds := make([]int, 0, 4)
	for len(fds) < 4 {
		m, fd, err := c.channel.receive()
		if err != nil {
			return err
		}
		if m.kind != kindFile || fd < 0 {
			return fmt.Errorf("message %d where a descriptor was due", m.kind)
		}
		fds = append(fds, fd)
	}
	f := os.NewFile(uintptr(fds[0]), "set-up")
	defer f.Close()
	if err := gob.NewDecoder(f).Decode(&c.setup); err != nil {
		return fmt.Errorf("read the call's set-up: %w", err)
	}
	copy(c.stdio[:], fds[1:])
	return nil
}

// isolate gives the call a /proc that shows its own processes. What is covered
// in the sandbox's is covered in this one by the same covers.
func (c *call) isolate() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts slaves of the sandbox's: %w", err)
	}
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	b := &builder{root: root{fd}}
	covers := make(map[string]int)
	for _, name := range maskedProc {
		if fd, err := cloneTree(b.root.fd, "proc/"+name, false); err == nil {
			covers["/proc/"+name] = fd
		} else if !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	proc, err := newProc()
	if err != nil {
		return err
	}
	if err := b.showProc(proc); err != nil {
		return err
	}
	for p, fd := range covers {
		target, err := b.root.lookup(p)
		if err == nil {
			err = fsmount.Place(fd, target)
		}
		if err != nil {
			return fmt.Errorf("cover %s: %w", p, err)
		}
	}
	return unix.Close(fd)
}

// start starts the shell from a thread that has given up its rights, as the
// supervisor starts its command.
func (c *call) start() error {
	tty := -1
	if c.setup.Rows > 0 {
		var err error
		if tty, err = c.openTerminal(); err != nil {
			return err
		}
	}
	type started struct {
		pid int
		err error
	}
	done := make(chan started)
	go func() {
		runtime.LockOSThread()
		if err := restrictThread(&setup{AllowAbstract: c.setup.AllowAbstract}); err != nil {
			done <- started{err: err}
			return
		}
		pid, err := c.startShell(tty >= 0)
		done <- started{pid, err}
	}()
	r := <-done
	if r.err != nil {
		return r.err
	}
	c.shell = r.pid
	for _, fd := range c.stdio {
		_ = unix.Close(fd)
	}
	go c.serve()
	return c.channel.send(message{kind: kindStarted, n: int32(r.pid), text: ownTree()}, -1)
}

// openTerminal makes the call's terminal, sends its master to the owner and
// makes the slave standard input, output and error.
func (c *call) openTerminal() (int, error) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make a terminal: %w", err)
	}
	defer unix.Close(master)
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return -1, fmt.Errorf("make a terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return -1, fmt.Errorf("make a terminal: %w", err)
	}
	size := &unix.Winsize{Row: c.setup.Rows, Col: c.setup.Cols}
	if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, size); err != nil {
		return -1, fmt.Errorf("set the terminal's size: %w", err)
	}
	slave, err := unix.Open("/dev/pts/"+strconv.Itoa(n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the terminal: %w", err)
	}
	for i, fd := range c.stdio {
		_ = unix.Close(fd)
		if c.stdio[i], err = unix.FcntlInt(uintptr(slave), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			return -1, err
		}
	}
	return slave, c.channel.send(message{kind: kindTerminal}, master)
}

// startShell starts bash in a session of its own.
func (c *call) startShell(tty bool) (int, error) {
	if err := spawn.CheckDir(c.setup.Dir); err != nil {
		return 0, err
	}
	attr := &syscall.ProcAttr{
		Dir: c.setup.Dir, Env: c.setup.Env,
		Files: []uintptr{uintptr(c.stdio[0]), uintptr(c.stdio[1]), uintptr(c.stdio[2])},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: tty, Ctty: 0},
	}
	pid, err := spawn.Command([]string{"bash", "-c", c.setup.Command}, attr)
	if err != nil {
		return 0, fmt.Errorf("the sandbox's shell: %w", err)
	}
	return pid, nil
}

// serve does what the owner asks for. When the owner lets go of the call, it
// ends.
func (c *call) serve() {
	for {
		m, _, err := c.channel.receive()
		if err != nil {
			os.Exit(1)
		}
		if m.kind == kindSignalGroup {
			_ = unix.Kill(-c.shell, syscall.Signal(m.n))
		}
	}
}

// reap waits for what ends in the call, and returns when the shell has ended,
// or, in the background, all of it.
func (c *call) reap() int {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0 // none is left
		}
		if pid != c.shell {
			continue
		}
		_ = c.channel.send(message{kind: kindExited, n: int32(ws)}, -1)
		if !c.setup.Background {
			return 0
		}
	}
}
