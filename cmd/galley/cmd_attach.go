package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

func attachCommand(e *env) *cli.Command {
	flags := append(sandboxFlags(), boolFlag("quiet", "do not say afterwards what changed", "q"))
	return manual{
		usage: []string{"attach [options] NAME [--] [COMMAND [ARGS…]]"},
		about: `
Joins a session that is at work: runs a command, or your shell, on the same view, while
what already runs in it goes on. Either sees at once what the other writes. Processes and
/tmp are its own. Whichever ends first takes nothing from the other.`,
		examples: [][2]string{
			{"galley attach fix-login", "a shell where the agent works"},
			{"galley attach fix-login -- git status", "one command"},
		},
		exits: [][2]string{
			{"N", "the command's own status; 128+S when signal S ended it"},
			{"125", "Galley failed before the command ran; among others, the session is not at work"},
			{"126", "the command was found and cannot be executed"},
			{"127", "the command was not found"},
		},
	}.apply(&cli.Command{
		Name: "attach", Category: catManage, Usage: "join a session that is at work", ArgsUsage: "SESSION [COMMAND]",
		Flags: flags,
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				return usagef(c, "name the session to join; galley sessions lists all")
			}
			o := runOptions{quiet: c.Bool("quiet")}
			var err error
			if o.sandbox, err = sandboxOptionsOf(c); err != nil {
				return err
			}
			command := c.Args().Tail()
			if len(command) > 0 && command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 {
				command = []string{or(e.getenv("SHELL"), "/bin/sh")}
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				sess, err := e.namedSession(st, c.Args().First())
				if err != nil {
					return err
				}
				return runAttach(ctx, e, sess, o, command)
			})
		},
	})
}

func runAttach(ctx context.Context, e *env, sess *snapshots.Session, o runOptions, command []string) error {
	client, err := owner.Dial(ctx, sess)
	if errors.Is(err, owner.ErrNoOwner) {
		return withHint(fmt.Errorf("session %q is not at work, so there is nothing to join", sess.Name()),
			"galley run --session "+sess.Name()+" -- "+command[0]+" starts work in it")
	}
	if err != nil {
		return fmt.Errorf("ask the owner of session %q: %w", sess.Name(), err)
	}
	defer client.Close()
	return e.work(ctx, sess, o, command)
}
