package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm/guest"
)

func forwardCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"forward SESSION [PORT:]GUESTPORT…"},
		about: `
Forwards TCP ports of this machine's loopback to ports of the virtual machine of a session,
as long as it runs itself. It needs no network of the machine: connections go by the
guest's agent. Without PORT, the guest's number is used; 0 is any that is free.`,
		examples: [][2]string{
			{"galley forward fix-login 8080", "http://127.0.0.1:8080 is the guest's port 8080"},
			{"galley forward fix-login 0:3000", "at any free port, which it says"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "forward", Category: catWork, Usage: "reach ports of the machine of a session", ArgsUsage: "SESSION PORT…",
		Action: func(c *cli.Context) error {
			if c.NArg() < 2 {
				return usagef(c, "expected the name of a session and a port")
			}
			var ports [][2]uint16
			for _, arg := range c.Args().Tail() {
				p, err := portsOf(arg)
				if err != nil {
					return usagef(c, "%v", err)
				}
				ports = append(ports, p)
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return e.forward(ctx, st, c.Args().First(), ports)
			})
		},
	})
}

// portsOf reads [PORT:]GUESTPORT.
func portsOf(arg string) (out [2]uint16, err error) {
	here, there, both := strings.Cut(arg, ":")
	if !both {
		there = here
	}
	h, herr := strconv.ParseUint(here, 10, 16)
	g, gerr := strconv.ParseUint(there, 10, 16)
	if herr != nil || gerr != nil || g == 0 {
		return out, fmt.Errorf("%q: expected a port of the guest, such as 8080, or both, such as 9000:8080", arg)
	}
	return [2]uint16{uint16(h), uint16(g)}, nil
}

func (e *env) forward(ctx context.Context, st *snapshots.Store, name string, ports [][2]uint16) error {
	sess, err := e.namedSession(st, name)
	if err != nil {
		return err
	}
	client, _, err := e.machineOf(ctx, sess)
	if err != nil {
		return err
	}
	defer client.Close()
	agent := guest.NewClient(client.DialVM)
	for _, p := range ports {
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(p[0]))))
		if err != nil {
			return fmt.Errorf("forward port %d: %w", p[0], err)
		}
		defer ln.Close()
		fmt.Fprintf(e.stdout, "%s is port %d of the guest\n", ln.Addr(), p[1])
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				go e.forwardOne(ctx, agent, conn, p[1])
			}
		}()
	}
	<-ctx.Done()
	return nil
}

// forwardOne joins one connection with the guest's port.
func (e *env) forwardOne(ctx context.Context, agent *guest.Client, conn net.Conn, port uint16) {
	far, err := agent.Dial(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err != nil {
		fmt.Fprintf(e.stderr, "galley: port %d, in the guest: %s\n", port, safeLine(err.Error()))
		_ = conn.Close()
		return
	}
	guest.Join(conn, far)
}
