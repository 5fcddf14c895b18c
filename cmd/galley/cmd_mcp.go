package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/sandbox/events"
	"github.com/galleyfs/galley/sandbox/mcpserver"
	"github.com/galleyfs/galley/sandbox/tools"
	"github.com/galleyfs/galley/snapshots"
)

// tokenVariable names the variable that holds the token of galley mcp --http.
const tokenVariable = "GALLEY_MCP_TOKEN"

func mcpCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"mcp [options]", "mcp --http ADDRESS [options]"},
		about: `
Serves the tools Read, Write, Edit, Bash, Glob, Grep, Mount, Diff, Log, Snapshot, Rollback
and RequestReview over the Model Context Protocol, on standard input and output. What they
change lands in the session and not in the project. No tool commits.

A client is answered at once; the sandbox starts with the first call that needs it. It
ends with the client, and so does everything that runs in it. The session stays.

--http serves streamable HTTP at http://ADDRESS/mcp instead. A request needs the header
"Authorization: Bearer TOKEN", with the token of the variable ` + tokenVariable + `, or
one that is made and told on standard error. Its Host header must be ADDRESS, and its
Origin, if it has one, http://ADDRESS.`,
		examples: [][2]string{
			{"claude mcp add galley -- galley mcp", "for an agent that starts its servers itself"},
			{"galley mcp --new --session fix", "in a new session called fix"},
			{"galley mcp --http 127.0.0.1:8080", "for clients over HTTP"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "mcp", Category: catWork, Usage: "serve the tools to an agent (MCP)",
		Flags: append(agentFlags(), &cli.StringFlag{Name: "http", Usage: "serve streamable HTTP on `ADDRESS`, such as 127.0.0.1:8080"}),
		Action: func(c *cli.Context) error {
			if err := noOperands(c); err != nil {
				return err
			}
			o, err := agentOptions(e, c)
			if err != nil {
				return err
			}
			return e.inSession(c.Context, o, "mcp", func(sess *snapshots.Session, set *tools.Set) error {
				return e.serveMCP(c.Context, sess, set, c.String("http"))
			})
		},
	})
}

func (e *env) serveMCP(ctx context.Context, sess *snapshots.Session, set *tools.Set, address string) error {
	work := sess.Trees()[0]
	server := mcpserver.New(set, mcpserver.Options{
		Version: thisVersion().Version, Log: e.log,
		Instructions: fmt.Sprintf("The tools work in %s, in a copy-on-write session named %q: changes do not reach the project until a person "+
			"has reviewed and committed them. When the work is done, call RequestReview.", work.Mount, sess.Name()),
	})
	if address == "" {
		fmt.Fprintf(e.stderr, "galley: serving session %s of %s\n", safeLine(sess.Name()), safeLine(work.Base))
		return mcpserver.ServeIO(ctx, server, e.stdin, e.stdout)
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return withHint(fmt.Errorf("--http %q: %w", address, err), "expected HOST:PORT, such as 127.0.0.1:8080")
	}
	token := e.getenv(tokenVariable)
	if token == "" {
		var b [24]byte
		_, _ = rand.Read(b[:])
		token = base64.RawURLEncoding.EncodeToString(b[:])
		fmt.Fprintf(e.stderr, "galley: the token is %s\n", token)
	}
	host := ln.Addr().String()
	fmt.Fprintf(e.stderr, "galley: serving session %s of %s at http://%s%s\n", safeLine(sess.Name()), safeLine(work.Base), host, mcpserver.Path)
	denied := func(r *http.Request, why string) {
		e.events(sess).Info(events.Denied, "client", "mcp", "text", why, "from", r.RemoteAddr)
	}
	return mcpserver.ServeHTTP(ctx, ln, mcpserver.Handler(server, token, httpHosts(host), denied))
}

// httpHosts are the Host headers that mean the server: its address, and
// localhost where that is the same.
func httpHosts(address string) []string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return []string{address}
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
		return []string{address, net.JoinHostPort("localhost", port)}
	}
	return []string{address}
}
