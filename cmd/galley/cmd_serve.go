package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/events"
	"github.com/galleyfs/galley/sandbox/httpapi"
	"github.com/galleyfs/galley/sandbox/tools"
	"github.com/galleyfs/galley/snapshots"
)

func serveCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"serve [options] [--socket PATH]"},
		about: `
Serves the sandbox as JSON over HTTP on a unix socket, for programs in other languages:
read, write, edit, stat, list, glob, grep, mount, exec with its output as it comes,
background processes, and the tools of galley mcp. docs/openapi.json describes it. What
they change lands in the session and not in the project. Nothing here commits.

The socket's path is printed on standard output once it answers. Without --socket it is
made in a directory of its own, which nobody else can enter; it can be opened by this
user alone. The sandbox starts with the first call that needs it, and ends with the
server, as does everything that runs in it. The session stays.`,
		examples: [][2]string{
			{"galley serve --socket ./galley.sock", "for programs that know where to look"},
			{`curl --unix-socket ./galley.sock http://galley/v1/exec --json '{"command": "ls"}'`, "a call"},
			{"galley serve --sandbox virtual --new", "without any process of the host"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "serve", Category: catWork, Usage: "serve the sandbox to programs (HTTP on a unix socket)",
		Flags: append(agentFlags(), &cli.StringFlag{Name: "socket", Usage: "where the socket is made, `PATH`"}),
		Action: func(c *cli.Context) error {
			if err := noOperands(c); err != nil {
				return err
			}
			o, err := agentOptions(e, c)
			if err != nil {
				return err
			}
			return e.inSession(c.Context, o, "serve", func(sess *snapshots.Session, set *tools.Set) error {
				return e.serve(c.Context, sess, set, o.sandbox, c.String("socket"))
			})
		},
	})
}

func (e *env) serve(ctx context.Context, sess *snapshots.Session, set *tools.Set, o sandboxOptions, socket string) error {
	if socket == "" {
		dir, err := privateDir(e.getenv("XDG_RUNTIME_DIR"))
		if err != nil {
			return fmt.Errorf("a directory for the socket: %w", err)
		}
		defer os.RemoveAll(dir)
		socket = filepath.Join(dir, "serve.sock")
	}
	ln, err := listenPrivate(socket)
	if err != nil {
		return err
	}
	defer os.Remove(ln.Addr().String())
	work := sess.Trees()[0]
	info := sandbox.Info{Kind: "local", Session: sess.Name(), Workdir: work.Mount, TempDir: "/tmp", Network: "host"}
	if o.virtual {
		info.Kind, info.Network, info.Lacks = "virtual", "none", []sandbox.Feature{sandbox.PTY, sandbox.Signals, sandbox.Binaries}
	}
	h := httpapi.Handler(httpapi.Options{Set: set, Info: info, Events: func(ctx context.Context, follow bool, fn func(json.RawMessage) error) error {
		return events.Read(ctx, sess.Dir(), follow, func(ev events.Event) error { return fn(ev.Raw) })
	}})
	fmt.Fprintf(e.stderr, "galley: serving session %s of %s\n", safeLine(sess.Name()), safeLine(work.Base))
	fmt.Fprintln(e.stdout, ln.Addr().String())
	return httpapi.Serve(ctx, ln, h)
}

// privateDir makes a directory that this user alone can enter.
func privateDir(runtime string) (string, error) {
	if runtime != "" {
		if dir, err := os.MkdirTemp(runtime, "galley-serve-"); err == nil {
			return dir, nil
		}
	}
	return os.MkdirTemp("", "galley-serve-")
}

// maxSocket is how long the path of a socket may be, in bytes (unix(7)).
const maxSocket = 107

// listenPrivate listens on a socket that this user alone can open. A socket
// that nobody answers is taken over; anything else in its place is left alone.
func listenPrivate(path string) (net.Listener, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("--socket: %w", err)
	}
	if len(path) > maxSocket {
		return nil, withHint(fmt.Errorf("--socket %q: its path has %d bytes, and the system knows sockets of up to %d", path, len(path), maxSocket), "choose a shorter path")
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("--socket %q: there is %s already; expected nothing, or a socket that nobody serves", path, fileKind(st.Mode()))
		}
		if conn, err := net.Dial("unix", path); err == nil {
			_ = conn.Close()
			return nil, fmt.Errorf("--socket %q: somebody serves it already", path)
		} else if !errors.Is(err, unix.ECONNREFUSED) {
			return nil, fmt.Errorf("--socket %q: %w", path, err)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("--socket: take over a socket that nobody serves: %w", err)
		}
	}
	old := unix.Umask(0o177)
	ln, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("--socket %q: %w", path, err)
	}
	return ln, nil
}

func fileKind(m os.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m.IsRegular():
		return "a file"
	}
	return "something else"
}
