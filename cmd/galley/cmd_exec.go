package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/sandbox/local"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm/guest"
	"github.com/galleyfs/galley/vm/images"
)

func execCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"exec [options] SESSION [--] COMMAND [ARGS…]"},
		about: `
Runs a command in the virtual machine of a session, which must run: galley run --sandbox
microvm and galley start start it. The command has the image's environment, user and
directory, and no entry point. What it changes is the session's, as with galley run.`,
		examples: [][2]string{
			{"galley exec fix-login -- make test", "in the machine of that session"},
			{"galley exec --user root fix-login -- apt-get install -y jq", "as another user"},
		},
		exits: [][2]string{
			{"N", "the command's own status; 128+S when signal S ended it"},
			{"125", "Galley failed before the command ran; among others, the machine does not run"},
			{"126", "the command was found and cannot be executed"},
			{"127", "the command was not found"},
		},
	}.apply(&cli.Command{
		Name: "exec", Category: catWork, Usage: "run a command in the machine of a session", ArgsUsage: "SESSION COMMAND",
		Flags: append(asFlags(), boolFlag("quiet", "do not say afterwards what changed", "q")),
		Action: func(c *cli.Context) error {
			argv := c.Args().Tail()
			if len(argv) > 0 && argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return usagef(c, "expected the name of a session and a command; galley ps lists the machines")
			}
			return e.execIn(c, c.Args().First(), argv)
		},
	})
}

func shellCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"shell [options] [SESSION]"},
		about: `
Opens a shell in the virtual machine of a session, which must run: bash, or sh where the
image has no bash.`,
		examples: [][2]string{
			{"galley shell", "in the machine of this project's session"},
			{"galley shell --user root fix-login", "as another user"},
		},
		exits: [][2]string{{"N", "the shell's own status"}, {"125", "Galley failed; among others, the machine does not run"}, {"127", "the image has no shell"}},
	}.apply(&cli.Command{
		Name: "shell", Category: catWork, Usage: "open a shell in the machine of a session", ArgsUsage: "SESSION",
		Flags: append(asFlags(), boolFlag("quiet", "do not say afterwards what changed", "q")),
		Action: func(c *cli.Context) error {
			if c.NArg() > 1 {
				return usagef(c, "one session at a time; galley exec runs a command")
			}
			return e.execIn(c, c.Args().First(), nil)
		},
	})
}

// shellLine starts the best shell there is.
const shellLine = "if command -v bash >/dev/null 2>&1; then exec bash; else exec sh; fi"

// execIn runs a command, or a shell, in the machine of a session.
func (e *env) execIn(c *cli.Context, name string, argv []string) error {
	as, err := asOf(c, e)
	if err != nil {
		return err
	}
	o := runOptions{quiet: c.Bool("quiet"), sandbox: sandboxOptions{guest: guestOptions{on: true}}}
	return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
		sess, err := e.operandSession(st, name)
		if err != nil {
			return err
		}
		client, img, err := e.machineOf(ctx, sess)
		if err != nil {
			return err
		}
		defer client.Close()
		text, x := argv, execOf(img, as, nil, argv)
		if len(argv) == 0 {
			text, x.Line = []string{"shell"}, shellLine
		}
		return e.around(ctx, sess, client, o, text, func() (local.Result, error) {
			return e.inGuest(ctx, guest.NewClient(client.DialVM), x, nil)
		})
	})
}

// machineOf connects to the owner of a session whose machine runs, and finds the
// image that it boots.
func (e *env) machineOf(ctx context.Context, sess *snapshots.Session) (*owner.Client, *images.Image, error) {
	stopped := func() error {
		var hints []string
		if _, err := owner.LastVM(sess); err == nil {
			hints = append(hints, "galley start "+sess.Name()+" starts the one it had")
		}
		return withHint(fmt.Errorf("session %q has no machine that runs", sess.Name()),
			append(hints, "galley run --session "+sess.Name()+" --sandbox microvm --image IMAGE --detach -- COMMAND starts one")...)
	}
	client, err := owner.Dial(ctx, sess)
	if errors.Is(err, owner.ErrNoOwner) {
		return nil, nil, stopped()
	}
	if err != nil {
		return nil, nil, err
	}
	status, err := client.Status(ctx)
	if err == nil && (status.VM == nil || status.VM.Phase != owner.Running) {
		err = stopped()
	}
	var img *images.Image
	if err == nil {
		img, err = e.guestRoot(ctx, sess, "")
	}
	if err != nil {
		_ = client.Close()
		return nil, nil, err
	}
	return client, img, nil
}
