package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/sandbox/redact"
)

// sandboxFlag chooses where tools and commands land.
func sandboxFlag() cli.Flag {
	return &cli.StringFlag{Name: "sandbox", Value: "local", Usage: "where it runs: local (programs of this machine), virtual (Galley's own bash, no process at all) or microvm (an image in a virtual machine); `KIND`"}
}

// secretFlag gives what runs a secret.
func secretFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "secret", Usage: "`NAME[=VARIABLE|=FILE]`: set the variable NAME to its own value here, to VARIABLE's, or to what a file with a slash in its path holds; never recorded"}
}

// more reads the options that say where it runs, and with which secrets.
func (o *sandboxOptions) more(c *cli.Context, e *env) (err error) {
	if o.guest, err = guestOf(c, e); err != nil {
		return err
	}
	switch kind := c.String("sandbox"); kind {
	case "local":
	case "virtual", "microvm":
		o.virtual = kind == "virtual"
		for _, name := range []string{"allow-socket", "cache"} {
			if len(c.StringSlice(name)) > 0 {
				return usagef(c, "--%s is for the local sandbox; the %s one reaches nothing of the host", name, kind)
			}
		}
		if o.hostTmp || o.writeback {
			return usagef(c, "--host-tmp and --writeback are for the local sandbox; the %s one reaches nothing of the host", kind)
		}
	default:
		return usagef(c, "--sandbox %q: expected local, virtual or microvm", kind)
	}
	for _, spec := range c.StringSlice("secret") {
		name, from, given := strings.Cut(spec, "=")
		value, err := e.secret(name, from, given)
		if err == nil {
			err = redact.Check(name, value)
		}
		if err != nil {
			return usagef(c, "--secret: %w", err)
		}
		if o.secrets == nil {
			o.secrets = map[string]string{}
		}
		o.secrets[name] = value
	}
	return nil
}

// maxSecret bounds a secret, in bytes.
const maxSecret = 64 << 10

// secret is the value that a --secret means.
func (e *env) secret(name, from string, given bool) (string, error) {
	if !given {
		from = name
	}
	if !strings.Contains(from, "/") {
		if value := e.getenv(from); value != "" {
			return value, nil
		}
		return "", fmt.Errorf("%s: the variable %q is not set here; a file is named by a path with a slash in it, such as ./token", name, from)
	}
	f, err := os.Open(from)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(b) > maxSecret {
		err = fmt.Errorf("more than %d bytes", maxSecret)
	}
	if err != nil {
		return "", fmt.Errorf("%s: read %q: %w", name, from, err)
	}
	// As $(cat file) has it.
	return strings.TrimRight(string(b), "\n"), nil
}

// environ is an environment with the secrets in it, and without the token of
// Galley's own tool server: a command reaches the host's network, and with the
// token the server of another session.
func environ(env []string, secrets map[string]string) []string {
	out := slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		_, ok := secrets[name]
		return ok || name == tokenVariable
	})
	for name, value := range secrets {
		out = append(out, name+"="+value)
	}
	return out
}

// struck are the outputs of a command, from which secrets are struck on their
// way, where they do not go to a terminal: a program must find its terminal.
type struck struct {
	stdout, stderr *os.File
	ends           []*os.File
	copying        sync.WaitGroup
}

// struckOutput makes the outputs of a command; close waits until all is out.
func (e *env) struckOutput(secrets map[string]string) (*struck, error) {
	s := &struck{stdout: e.stdout, stderr: e.stderr}
	r := redact.New(secrets)
	if r.Empty() {
		return s, nil
	}
	for _, f := range []**os.File{&s.stdout, &s.stderr} {
		to := *f
		if ui.IsTerminal(to) {
			continue
		}
		pr, pw, err := os.Pipe()
		if err != nil {
			s.close()
			return nil, err
		}
		*f = pw
		s.ends = append(s.ends, pw)
		s.copying.Go(func() {
			defer pr.Close()
			out := r.Stream(func(b []byte) { _, _ = to.Write(b) })
			_, _ = io.Copy(out, pr)
			out.Close()
		})
	}
	return s, nil
}

func (s *struck) close() {
	for _, f := range s.ends {
		_ = f.Close()
	}
	s.copying.Wait()
}
