// Package spawn starts a program as execvp(3) does, with errors that say what
// was wrong: not there, not executable, its interpreter missing.
package spawn

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

// What a command's status is when it did not start, as shells and env(1) have
// it.
const (
	CodeFailed        = 125 // what it was to run in could not be made
	CodeNotExecutable = 126
	CodeNotFound      = 127
)

// DefaultPath is where a command is looked for when its environment has no
// PATH.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Error is a command that did not start.
type Error struct {
	Code int
	Err  error
}

// Error is the cause's.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }

// Getenv is the value of a variable of an environment; the last one counts.
func Getenv(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(env[i], name+"="); ok {
			return v
		}
	}
	return ""
}

// Command starts argv in attr.Dir, with the calling thread's rights and
// namespaces. A name without a slash is looked for in the PATH of attr.Env.
func Command(argv []string, attr *syscall.ProcAttr) (int, error) {
	var first error
	for _, file := range candidates(argv[0], Getenv(attr.Env, "PATH"), attr.Dir) {
		pid, err := File(file, argv, attr)
		if err == nil {
			return pid, nil
		}
		// As execvp(3): go on looking, but remember what was there and
		// could not be executed. A directory of PATH that this user may not
		// search has nothing for him, as shells see it.
		if errors.Is(err, unix.EACCES) && unix.Access(path.Dir(file), unix.X_OK) != nil && !strings.Contains(argv[0], "/") {
			err = pathError(file, unix.ENOENT)
		}
		if first == nil || errors.Is(first, fs.ErrNotExist) {
			first = err
		}
	}
	return 0, describe(argv[0], attr.Dir, first)
}

// File starts file. A text without a #! line is a shell script, as for
// execvp(3).
func File(file string, argv []string, attr *syscall.ProcAttr) (int, error) {
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
		pathList = DefaultPath
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

func describe(name, dir string, err error) error {
	var perr *os.PathError
	switch {
	case name == "":
		return &Error{CodeNotFound, errors.New("the command's name is empty")}
	case !errors.As(err, &perr):
		return &Error{CodeNotExecutable, err}
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
		return &Error{CodeNotExecutable, fmt.Errorf("%s: cannot be executed: %w", perr.Path, perr.Err)}
	case !strings.Contains(name, "/"):
		return &Error{CodeNotFound, fmt.Errorf("%s: command not found in PATH", name)}
	}
	file := perr.Path
	if !path.IsAbs(file) {
		file = path.Join(dir, file)
	}
	if _, serr := os.Stat(file); serr == nil {
		return &Error{CodeNotFound, fmt.Errorf("%s: its interpreter (the #! line, or the dynamic loader) was not found: %w", name, perr.Err)}
	}
	return &Error{CodeNotFound, fmt.Errorf("%s: command not found: %w", name, perr.Err)}
}

// CheckDir says what is wrong with a working directory.
func CheckDir(dir string) error {
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
