package local

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/fsmount"
	"github.com/galleyfs/galley/vm/guest/spawn"
)

// supervisorName is argv[0] of the supervisor; it is also what ps shows.
const supervisorName = "galley: sandbox supervisor"

// The descriptors that the supervisor inherits besides 0, 1 and 2, which are
// the command's own.
const (
	socketFD = 3
	setupFD  = 4
)

// Init does the supervisor's work and never returns in a process that [Run]
// started, and returns at once in every other. Call it first thing in main,
// and in TestMain, before flags are read.
func Init() {
	if len(os.Args) != 1 {
		return
	}
	// The main thread must be the one that never loses its rights.
	switch os.Args[0] {
	case supervisorName:
		runtime.LockOSThread()
		s := &supervisor{channel: channel{socketFD}, calls: map[int]int32{}, pending: map[int32]pendingMount{}}
		os.Exit(s.main())
	case callName:
		runtime.LockOSThread()
		os.Exit(callMain())
	case agentName:
		os.Exit(agentMain())
	}
}

// A supervisor is pid 1 of the sandbox. When it exits, the kernel kills every
// process left in the pid namespace, and lets go of the mounts with the last.
type supervisor struct {
	channel channel
	setup   *setup
	tty     int // the controlling terminal, or -1

	mu      sync.Mutex
	group   int                    // the command's process group, its pid; 0 before it runs
	ttyPgrp int                    // the group that had the terminal when the command stopped
	calls   map[int]int32          // the calls under way, by pid
	pending map[int32]pendingMount // views that are mounted and not yet placed

	fuse    int        // a place by which /dev/fuse is found when the host's /dev is out of sight
	builder *builder   // immutable once the command runs
	placing sync.Mutex // one mount at a time is put in its place
	added   int        // directories made by an overlay; placing is held
}

func (s *supervisor) main() int {
	err := s.prepare()
	if err == nil {
		err = s.build()
	}
	if err == nil && s.setup.Agent {
		err = s.sendProc()
	}
	if err == nil {
		err = s.start()
	}
	if errors.Is(err, io.EOF) {
		return 1 // the caller is gone, nobody is there to tell
	}
	if err != nil {
		s.fail(err)
		return 1
	}
	go s.serve()
	return s.reap()
}

func (s *supervisor) fail(err error) {
	m := message{kind: kindFailed, code: spawn.CodeFailed, text: err.Error()}
	var errno unix.Errno
	if errors.As(err, &errno) {
		m.n = int32(errno)
	}
	var start *spawn.Error
	if errors.As(err, &start) {
		m.code = int32(start.Code)
	}
	_ = s.channel.send(m, -1)
}

// prepare makes sure that the supervisor ends with its caller and that nothing
// of it leaks into the command.
func (s *supervisor) prepare() error {
	// Should the caller have died before this call, then the socket is at its
	// end and the first receive says so.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("set the parent death signal: %w", err)
	}
	if err := unix.CloseRange(3, ^uint(0)>>1&0x7fffffff, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w (Galley needs Linux 5.12 or later)", err)
	}
	var err error
	setupFile := os.NewFile(setupFD, "set-up")
	if s.setup, err = readSetup(setupFile); err != nil {
		return err
	}
	_ = setupFile.Close()
	if s.tty, err = unix.Open("/dev/tty", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0); err != nil {
		s.tty = -1
	}
	// The kernel drops a signal to pid 1 that has no handler, but the Go
	// runtime has handlers. These swallow what a program inside sends; what
	// the caller ignores stays ignored, for the command to inherit.
	swallow := make(chan os.Signal, 1)
	for _, sig := range forwarded {
		if !signal.Ignored(sig) {
			signal.Notify(swallow, sig)
		}
	}
	// Nothing inside may look into this process: its memory, descriptors,
	// root and working directory.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the supervisor non-dumpable: %w", err)
	}
	return nil
}

// build makes the namespaces' content and enters it.
func (s *supervisor) build() error {
	umask := unix.Umask(0)
	defer unix.Umask(umask)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	b := &builder{setup: s.setup}
	s.builder = b
	var err error
	if s.fuse, err = unix.Open("/dev/fuse", unix.O_PATH|unix.O_CLOEXEC, 0); err != nil && len(s.setup.Views) > 0 {
		return explainDevFuse(err)
	}
	for i := range s.setup.Views {
		if err := s.mountView(b, i); err != nil {
			return fmt.Errorf("view %s: %w", s.setup.Views[i].Path, err)
		}
	}
	// Whoever serves the views starts meanwhile.
	if err := b.build(); err != nil {
		return err
	}
	for served := 0; served < len(s.setup.Views); {
		m, _, err := s.channel.receive()
		if err != nil {
			return err
		}
		if m.kind == kindServed {
			served++
		}
	}
	if err := b.placeViews(); err != nil {
		return err
	}
	return b.enter()
}

// sendProc lets the caller see which process of the sandbox is which.
func (s *supervisor) sendProc() error {
	fd, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the sandbox's /proc: %w", err)
	}
	defer unix.Close(fd)
	return s.channel.send(message{kind: kindProc, text: ownTree()}, fd)
}

// ownTree identifies the pid namespace of this process, as whoever looks at one
// of its processes through a /proc sees it.
func ownTree() string {
	id, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ""
	}
	return id
}

// mountView makes the mount of view i, which stands nowhere yet, and sends its
// descriptor to the caller. /dev/fuse must be opened in the user namespace
// that the mount belongs to.
func (s *supervisor) mountView(b *builder, i int) error {
	fd, err := s.mountFUSE(s.setup.Views[i], int32(i))
	if err == nil {
		b.views = append(b.views, fd)
	}
	return err
}

// mountFUSE makes the mount of a view and sends its descriptor as view n's.
func (s *supervisor) mountFUSE(v viewSetup, n int32) (int, error) {
	// Each mount needs an open of its own.
	dev, err := unix.Open(fdPath(s.fuse, ""), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, explainDevFuse(err)
	}
	// This copy must go: with one open here, a dead server's mount would
	// wait for answers for ever.
	defer unix.Close(dev)
	attrs := unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	if v.ReadOnly {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	fd, err := fsmount.New("fuse", attrs,
		fsmount.Option{"source", v.Source}, fsmount.Option{"subtype", v.Subtype},
		fsmount.Option{"fd", strconv.Itoa(dev)}, fsmount.Option{"rootmode", "40000"},
		fsmount.Option{"user_id", strconv.Itoa(os.Geteuid())}, fsmount.Option{"group_id", strconv.Itoa(os.Getegid())},
		fsmount.Option{"max_read", strconv.Itoa(v.MaxRead)},
		fsmount.Option{"default_permissions", ""}, fsmount.Option{"allow_other", ""})
	if err != nil {
		return -1, err
	}
	if err := s.channel.send(message{kind: kindView, n: n}, dev); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// start starts the command, from a thread that has given up its rights first:
// a child has the rights of the thread that forks it. The thread ends with its
// goroutine, which stays locked to it.
func (s *supervisor) start() error {
	type started struct {
		pid int
		err error
	}
	done := make(chan started)
	go func() {
		runtime.LockOSThread()
		if err := restrictThread(s.setup); err != nil {
			done <- started{err: err}
			return
		}
		pid, err := startCommand(s.setup, s.tty)
		done <- started{pid, err}
	}()
	r := <-done
	if r.err != nil {
		return r.err
	}
	s.mu.Lock()
	s.group = r.pid
	s.mu.Unlock()
	return s.channel.send(message{kind: kindStarted, n: int32(r.pid)}, -1)
}

// reap waits for every process that ends in the sandbox, reports what becomes
// of the command, and returns when that has ended.
func (s *supervisor) reap() int {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WUNTRACED|unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			s.fail(fmt.Errorf("wait for the command: %w", err))
			return 1
		}
		if pid != s.group {
			if !ws.Stopped() {
				s.callEnded(pid)
			}
			continue
		}
		if ws.Stopped() {
			s.noteStop()
			_ = s.channel.send(message{kind: kindStopped, n: int32(ws.StopSignal())}, -1)
			continue
		}
		_ = s.channel.send(message{kind: kindExited, n: int32(ws)}, -1)
		return 0
	}
}

// noteStop remembers which of the sandbox's groups had the terminal.
func (s *supervisor) noteStop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ttyPgrp = s.group
	if s.tty < 0 {
		return
	}
	// A group outside this pid namespace reads as 0.
	if pgrp, err := unix.IoctlGetInt(s.tty, unix.TIOCGPGRP); err == nil && pgrp > 0 {
		s.ttyPgrp = pgrp
	}
}

// serve does what the caller asks for, until the caller dies.
func (s *supervisor) serve() {
	for {
		m, fd, err := s.channel.receive()
		if err != nil {
			os.Exit(1)
		}
		switch m.kind {
		case kindCall:
			s.startCall(m.n, fd)
		case kindMount:
			s.beginMount(m)
		case kindServed:
			go s.finishMount(m.n)
		case kindSignal:
			_ = unix.Kill(s.group, syscall.Signal(m.n))
		case kindSignalGroup:
			_ = unix.Kill(-s.group, syscall.Signal(m.n))
		case kindContinue:
			s.resume(m.n == 1)
		}
	}
}

func (s *supervisor) resume(foreground bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pgrp := s.ttyPgrp
	if pgrp == 0 {
		pgrp = s.group
	}
	if foreground && s.tty >= 0 {
		_ = setForeground(s.tty, pgrp)
	}
	_ = unix.Kill(-s.group, unix.SIGCONT)
	if pgrp != s.group {
		_ = unix.Kill(-pgrp, unix.SIGCONT)
	}
}
