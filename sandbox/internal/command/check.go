// Package command is the half of the contract that is about commands, written
// once for every sandbox that has processes: what a request may say, what is
// kept of the output, when a call ends, and the processes in the background. A
// sandbox brings along how a command is started ([Host]) and its process reached
// ([Wire]), and tells what becomes of it.
package command

import (
	"regexp"
	"slices"
	"strings"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/files"
)

// SafeNames are the variables of the caller that commands on the host see. All
// others may be secrets.
var SafeNames = []string{"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"}

// BaseEnv is what every command's environment begins with.
func BaseEnv() []string { return []string{"TERM=dumb", "PAGER=cat", "GIT_PAGER=cat"} }

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// Check refuses what cannot be run, and fills in defaults.
func Check(op string, r *sandbox.BashRequest) error {
	switch i := strings.IndexByte(r.Command, 0); {
	case strings.TrimSpace(r.Command) == "":
		return sandbox.Errorf(sandbox.Invalid, op, "", "the command is empty")
	case i >= 0:
		e := sandbox.Errorf(sandbox.Invalid, op, "", "the command has a NUL byte at offset %d", i)
		e.Offset = i
		return e
	case len(r.Command) > sandbox.MaxCommand:
		return sandbox.Errorf(sandbox.TooLarge, op, "", "the command has %d bytes; up to %d are possible", len(r.Command), sandbox.MaxCommand)
	case r.Timeout < 0 || r.Timeout > sandbox.MaxTimeout:
		return sandbox.Errorf(sandbox.Invalid, op, "", "the timeout is %v; expected more than 0 and up to %v", r.Timeout, sandbox.MaxTimeout)
	case r.MaxOutput < 0 || r.MaxOutput > sandbox.MaxOutput:
		return sandbox.Errorf(sandbox.Invalid, op, "", "max_output is %d; expected up to %d", r.MaxOutput, sandbox.MaxOutput)
	case r.OpenStdin && r.Stdin != nil:
		return sandbox.Errorf(sandbox.Invalid, op, "", "Stdin and OpenStdin exclude each other")
	}
	if r.MaxOutput == 0 {
		r.MaxOutput = sandbox.OutputLimit
	}
	if r.Dir != "" {
		if err := files.CheckPath(op, r.Dir); err != nil {
			return err
		}
	}
	size := 0
	for k, v := range r.Env {
		if size += len(k) + len(v); !envName.MatchString(k) || strings.IndexByte(v, 0) >= 0 {
			return sandbox.Errorf(sandbox.Invalid, op, "", "variable %q: expected a name of letters, digits and _, and a value without NUL", k)
		}
	}
	if size > sandbox.MaxEnv {
		return sandbox.Errorf(sandbox.TooLarge, op, "", "the variables have %d bytes; up to %d are possible", size, sandbox.MaxEnv)
	}
	return nil
}

// Env is the environment of a request: the sandbox's own, the terminal's type
// and the request's variables. The last of a name counts.
func Env(base []string, r *sandbox.BashRequest) []string {
	env := slices.Clone(base)
	if t := r.PTY; t != nil {
		term := t.Term
		if term == "" {
			term = "xterm-256color"
		}
		env = append(env, "TERM="+term)
	}
	for k, v := range r.Env {
		env = append(env, k+"="+v)
	}
	return env
}

// Size is the size of a request's terminal; zeros are no terminal.
func Size(r *sandbox.BashRequest) (rows, cols uint16) {
	if r.PTY == nil {
		return 0, 0
	}
	if rows, cols = r.PTY.Rows, r.PTY.Cols; rows == 0 {
		rows = 24
	}
	if cols == 0 {
		cols = 80
	}
	return rows, cols
}

// checkDir resolves a request's directory against the working directory and
// refuses what is none. Stat is the sandbox's.
func checkDir(op, workdir, dir string, stat func(path string) (sandbox.FileInfo, error)) (string, error) {
	if dir == "" {
		return workdir, nil
	}
	full := files.Join(workdir, dir)
	info, err := stat(full)
	if err != nil {
		return "", sandbox.Wrap(op, dir, relabel(op, dir, err))
	}
	if !info.Mode.IsDir() {
		return "", sandbox.Errorf(sandbox.NotDirectory, op, dir, "it is not a directory")
	}
	return full, nil
}
