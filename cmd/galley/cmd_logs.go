package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

// maxLog bounds what of a log is read, in bytes. Logs are bounded themselves.
const maxLog = 16 << 20

func logsCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"logs [--owner] [--lines N] [SESSION]"},
		about: `
Shows what the session's virtual machine wrote on its console, which is its kernel's log,
the last machine's too. With --owner it shows the log of the session's owner process.
What could act on a terminal is shown harmlessly.`,
		examples: [][2]string{
			{"galley logs", "the console of this project's machine"},
			{"galley logs --owner --lines 20 fix-login", "why did it not start?"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "logs", Category: catManage, Usage: "show the console of a session's machine", ArgsUsage: "SESSION",
		Flags: []cli.Flag{
			boolFlag("owner", "show the log of the session's owner process instead"),
			&cli.IntFlag{Name: "lines", Aliases: []string{"n"}, Usage: "only the last `N` lines", DefaultText: "all"},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 1 {
				return usagef(c, "one session at a time")
			}
			if c.IsSet("lines") && c.Int("lines") < 1 {
				return usagef(c, "--lines %d: expected a number of lines, 1 or more", c.Int("lines"))
			}
			return e.withStore(c.Context, func(_ context.Context, st *snapshots.Store) error {
				sess, err := e.operandSession(st, c.Args().First())
				if err != nil {
					return err
				}
				name := owner.ConsoleLog
				if c.Bool("owner") {
					name = owner.LogFile
				}
				return showLog(e, sess, name, c.Int("lines"))
			})
		},
	})
}

// showLog prints the end of a log and of the one before it.
func showLog(e *env, sess *snapshots.Session, name string, count int) error {
	var text strings.Builder
	found := false
	for _, n := range []string{name + ".old", name} {
		f, err := os.Open(filepath.Join(sess.Dir(), n))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("session %s: read its log: %w", sess.Name(), err)
		}
		found = true
		_, err = io.Copy(&text, io.LimitReader(f, maxLog))
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("session %s: read its log: %w", sess.Name(), err)
		}
	}
	if !found {
		return withHint(fmt.Errorf("session %q has had no machine, so that there is no log of one", sess.Name()),
			"galley logs --owner "+sess.Name()+" shows the owner's", "galley run --sandbox microvm -- COMMAND starts a machine")
	}
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	if count > 0 {
		lines = lines[max(0, len(lines)-count):]
	}
	for _, l := range lines {
		if _, err := fmt.Fprintln(e.stdout, safeLine(strings.TrimRight(l, "\r"))); err != nil {
			return err
		}
	}
	return nil
}
