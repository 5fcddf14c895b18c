package local

import (
	"errors"
	"os"
	"path"
	"syscall"

	"github.com/galleyfs/galley/vm/guest/spawn"
)

// codeDirectory is between the supervisor and its caller only: the command has
// no directory to start in, and Code is [spawn.CodeFailed].
const codeDirectory = -1

// ErrDirectory is why a command did not start that has no directory to start
// in: it is not there, or may not be entered.
var ErrDirectory = errors.New("no directory to start in")

// startCommand starts the command with the calling thread's rights, in a
// process group of its own, which gets the terminal if the caller had it.
func startCommand(s *setup, tty int) (int, error) {
	if err := spawn.CheckDir(s.Dir); err != nil {
		return 0, &spawn.Error{Code: codeDirectory, Err: err}
	}
	attr := &syscall.ProcAttr{
		Dir:   s.Dir,
		Env:   s.Env,
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	}
	if s.Foreground && tty >= 0 {
		attr.Sys.Foreground = true
		attr.Sys.Ctty = tty
	}
	if s.Agent {
		pid, err := spawn.File("/proc/self/exe", []string{agentName}, attr)
		if err != nil {
			return 0, &spawn.Error{Code: spawn.CodeFailed, Err: err}
		}
		return pid, nil
	}
	return spawn.Command(s.Command, attr)
}

// resolve is the path of what p leads to on the host.
func resolve(p string) (string, error) {
	target, err := os.Readlink(p)
	if err != nil {
		return "", err
	}
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(p), target)
	}
	return path.Clean(target), nil
}
