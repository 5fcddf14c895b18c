package local

import (
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The command gets the caller's terminal itself, not a pseudo-terminal behind
// it. It stays in the caller's session, so that the terminal is its controlling
// one, but in a process group of its own: a group shared with the caller could
// be signalled from inside (kill 0), and has no number in the sandbox's pid
// namespace. What a shared group would have done, Run does:
//
//   - the new group gets the terminal when the caller's had it, and the caller's gets
//     it back when the command stops or ends;
//   - when the command stops, the caller's whole group stops by the same
//     signal, so that the shell sees its job stop; when the shell continues
//     the job, the command goes on, with the terminal if the job has it;
//   - when the command dies of Ctrl-C or Ctrl-\, the rest of the caller's
//     group gets that signal too, as it would have from the terminal.

// forwarded are the signals to the caller that mean the command.
var forwarded = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
	unix.SIGALRM, unix.SIGWINCH, unix.SIGTSTP, unix.SIGCONT,
}

// deadly are those of them that end a command which does not care.
var deadly = map[syscall.Signal]bool{unix.SIGHUP: true, unix.SIGINT: true, unix.SIGQUIT: true, unix.SIGTERM: true}

// A terminal is the caller's controlling terminal; nil is none.
type terminal struct {
	file  *os.File
	group int // the caller's process group
}

func openTerminal() *terminal {
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	return &terminal{os.NewFile(uintptr(fd), "/dev/tty"), unix.Getpgrp()}
}

// holder is the process group that has the terminal, or -1.
func (t *terminal) holder() int {
	if t == nil {
		return -1
	}
	pgrp, err := unix.IoctlGetInt(int(t.file.Fd()), unix.TIOCGPGRP)
	if err != nil {
		return -1
	}
	return pgrp
}

// foreground reports whether the caller's group has the terminal.
func (t *terminal) foreground() bool {
	return t != nil && t.holder() == t.group
}

// take gives the terminal to the caller's group.
func (t *terminal) take() {
	if t != nil {
		_ = setForeground(int(t.file.Fd()), t.group)
	}
}

func (t *terminal) close() {
	if t != nil {
		_ = t.file.Close()
	}
}

// setForeground makes group the terminal's foreground group. A background
// process that asks for it would be stopped by SIGTTOU, which is therefore
// blocked meanwhile.
func setForeground(tty, group int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var block, old unix.Sigset_t
	block.Val[0] = 1 << (unix.SIGTTOU - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &block, &old); err != nil {
		return err
	}
	defer func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil) }()
	return unix.IoctlSetPointerInt(tty, unix.TIOCSPGRP, group)
}

// terminalOnStdio is the first of the three files that is a terminal, or -1.
func terminalOnStdio(files ...*os.File) int {
	for i, f := range files {
		if f == nil {
			continue
		}
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			return i
		}
	}
	return -1
}

// sigaction is the kernel's struct sigaction on the architectures that Go
// runs on with Linux, other than mips.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// withDefaultAction runs f while the signal sig has its default action.
// signal.Reset does not do that for the signals that stop a process: the Go
// runtime leaves a handler in place, which drops them.
func withDefaultAction(sig syscall.Signal, f func()) {
	var deflt, old sigaction
	if !setAction(sig, &deflt, &old) {
		f() // SIGKILL and SIGSTOP have no other
		return
	}
	f()
	setAction(sig, &old, nil)
}

func setAction(sig syscall.Signal, to, old *sigaction) bool {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(to)),
		uintptr(unsafe.Pointer(old)), unsafe.Sizeof(to.mask), 0, 0)
	return errno == 0
}
