package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// What Run's Result.Code is when the command did not start, as shells and
// env(1) have it.
const (
	codeSandbox       = 125 // the sandbox could not be built
	codeNotExecutable = 126
	codeNotFound      = 127

	// codeDirectory is between the supervisor and its caller only: the command
	// has no directory to start in, and Code is codeSandbox.
	codeDirectory = -1
)

// ErrDirectory is why a command did not start that has no directory to start
// in: it is not there, or may not be entered.
var ErrDirectory = errors.New("no directory to start in")

// defaultPath is where a command is looked for when Env has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// A startError is a command that did not start.
type startError struct {
	code int
	err  error
}

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

// startCommand starts the command with the calling thread's rights, in a
// process group of its own, which gets the terminal if the caller had it.
func startCommand(s *setup, tty int) (int, error) {
	if err := checkDir(s.Dir); err != nil {
		return 0, &startError{codeDirectory, err}
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
		pid, err := exec("/proc/self/exe", []string{agentName}, attr)
		if err != nil {
			return 0, &startError{codeSandbox, err}
		}
		return pid, nil
	}
	var firstErr error
	for _, file := range candidates(s.Command[0], getenv(s.Env, "PATH"), s.Dir) {
		pid, err := exec(file, s.Command, attr)
		if err == nil {
			return pid, nil
		}
		// As execvp(3): go on looking, but remember what was there and
		// could not be executed. A directory of PATH that this user may not
		// search has nothing for him, as shells see it.
		if errors.Is(err, unix.EACCES) && unix.Access(path.Dir(file), unix.X_OK) != nil && !strings.Contains(s.Command[0], "/") {
			err = pathError(file, unix.ENOENT)
		}
		if firstErr == nil || errors.Is(firstErr, fs.ErrNotExist) {
			firstErr = err
		}
	}
	return 0, describeStart(s.Command[0], s.Dir, firstErr)
}

// exec starts file. A text without a #! line is a shell script, as for
// execvp(3).
func exec(file string, argv []string, attr *syscall.ProcAttr) (int, error) {
	pid, err := syscall.ForkExec(file, argv, attr)
	if !errors.Is(err, unix.ENOEXEC) {
		return pid, pathError(file, err)
	}
	argv = append([]string{"/bin/sh", file}, argv[1:]...)
	pid, err = syscall.ForkExec("/bin/sh", argv, attr)
	return pid, pathError(file, err)
}

func pathError(file string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: "exec", Path: file, Err: err}
}

// candidates are the files that a command's name may mean, in order.
func candidates(name, pathList, dir string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	if pathList == "" {
		pathList = defaultPath
	}
	var out []string
	for elem := range strings.SplitSeq(pathList, ":") {
		if elem == "" {
			elem = dir
		}
		out = append(out, elem+"/"+name)
	}
	return out
}

func describeStart(name, dir string, err error) error {
	var perr *os.PathError
	switch {
	case name == "":
		return &startError{codeNotFound, errors.New("the command's name is empty")}
	case !errors.As(err, &perr):
		return &startError{codeNotExecutable, err}
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
		return &startError{codeNotExecutable, fmt.Errorf("%s: cannot be executed: %w", perr.Path, perr.Err)}
	case !strings.Contains(name, "/"):
		return &startError{codeNotFound, fmt.Errorf("%s: command not found in PATH", name)}
	}
	file := perr.Path
	if !path.IsAbs(file) {
		file = path.Join(dir, file)
	}
	if _, serr := os.Stat(file); serr == nil {
		return &startError{codeNotFound, fmt.Errorf("%s: its interpreter (the #! line, or the dynamic loader) was not found: %w", name, perr.Err)}
	}
	return &startError{codeNotFound, fmt.Errorf("%s: command not found: %w", name, perr.Err)}
}

func checkDir(dir string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	if !st.IsDir() {
		return fmt.Errorf("working directory %s: %w", dir, unix.ENOTDIR)
	}
	if err := unix.Access(dir, unix.X_OK); err != nil {
		return fmt.Errorf("working directory: %w", &os.PathError{Op: "enter", Path: dir, Err: err})
	}
	return nil
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
