package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/local"
	"github.com/galleyfs/galley/sandbox/redact"
	"github.com/galleyfs/galley/snapshots"
)

// workVirtual is work in the virtual sandbox: this process owns the session,
// and runs the command itself.
func (e *env) workVirtual(ctx context.Context, sess *snapshots.Session, o runOptions, command []string) (err error) {
	h, err := e.host(ctx, sess)
	if err != nil {
		return &notStarted{fmt.Errorf("open session %q: %w", sess.Name(), err)}
	}
	defer func() {
		if cerr := h.Close(); err == nil {
			err = cerr
		}
	}()
	return e.around(ctx, sess, h.Control(), o, command, func() (local.Result, error) {
		sb, err := newVirtual(sess, h)
		if err != nil {
			return local.Result{Code: exitFailed}, err
		}
		defer sb.Close()
		noteSandbox(sess, inVirtual, e.log)
		dir, err := os.Getwd()
		if err != nil {
			return local.Result{Code: exitFailed}, fmt.Errorf("find the current directory: %w", err)
		}
		return e.runScript(ctx, sb, e.workDir(sess, dir), o.sandbox.secrets, command)
	})
}

// runScript runs a command in a sandbox without processes, with this process's
// standard streams.
func (e *env) runScript(ctx context.Context, sb sandbox.Sandbox, dir string, secrets map[string]string, command []string) (local.Result, error) {
	r := redact.New(secrets)
	out := r.Stream(func(b []byte) { _, _ = e.stdout.Write(b) })
	errs := r.Stream(func(b []byte) { _, _ = e.stderr.Write(b) })
	res, err := sb.Bash(ctx, sandbox.BashRequest{
		Command: quoted(command), Dir: dir, Env: secrets, Stdin: e.stdin, Separate: true, MaxOutput: 1, Timeout: sandbox.MaxTimeout,
		OnOutput: func(o sandbox.Output) {
			if o.Stream == sandbox.Stderr {
				_, _ = errs.Write(o.Data)
				return
			}
			_, _ = out.Write(o.Data)
		},
	})
	out.Close()
	errs.Close()
	switch {
	case errors.Is(err, sandbox.Canceled):
		return local.Result{Code: 128 + int(unix.SIGINT), Signal: unix.SIGINT}, nil
	case err != nil && res.Duration == 0:
		return local.Result{Code: exitFailed}, err
	case err != nil: // a limit, say: what it did until then stays
		fmt.Fprintf(e.stderr, "galley: %s\n", safeLine(r.String(err.Error())))
		return local.Result{Code: exitFailed}, nil
	}
	return local.Result{Code: res.ExitCode}, nil
}

// quoted is a command as bash reads it back.
func quoted(command []string) string {
	words := make([]string, len(command))
	for i, w := range command {
		words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return strings.Join(words, " ")
}
