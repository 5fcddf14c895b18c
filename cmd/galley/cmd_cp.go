package main

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/sandbox/local"
	"github.com/galleyfs/galley/sandbox/microvm"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm/guest"
)

func cpCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"cp [options] SESSION:PATH DEST", "cp [options] SOURCE SESSION:PATH"},
		about: `
Copies a file, or a directory with all in it, between this machine and the virtual machine
of a session, which must run. PATH is the guest's, absolute or below its /workspace. Into a
directory that is there it is copied by its name. Links are copied as they are; owners,
devices and set-user-ID bits are not. What is copied into the guest is the session's
change; what is copied out of it is written to DEST, and to nothing outside.`,
		examples: [][2]string{
			{"galley cp fix-login:/var/log/build.log .", "out of the guest"},
			{"galley cp ./data fix-login:/srv", "into the guest"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "cp", Category: catWork, Usage: "copy files into the machine of a session, or out of it", ArgsUsage: "SOURCE DEST",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "read and write as `USER[:GROUP]` of the guest (default: the image's)"},
			boolFlag("quiet", "do not say afterwards what changed", "q"),
		},
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				return usagef(c, "expected what to copy and where to")
			}
			from, fromGuest := guestPath(c.Args().Get(0))
			to, toGuest := guestPath(c.Args().Get(1))
			if fromGuest == toGuest {
				return usagef(c, "expected one of the two as SESSION:PATH; a file of this machine with a colon in its name is written ./NAME")
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return e.copyGuest(ctx, st, c, from, to)
			})
		},
	})
}

// copyPlace is one side of a copy: a session's guest, or this machine where session is empty.
type copyPlace struct{ session, path string }

// guestPath reads SESSION:PATH. What begins with a slash or a dot is a file.
func guestPath(arg string) (copyPlace, bool) {
	name, p, ok := strings.Cut(arg, ":")
	if !ok || name == "" || strings.ContainsAny(name, "/") || strings.HasPrefix(arg, ".") {
		return copyPlace{path: arg}, false
	}
	if !path.IsAbs(p) {
		p = path.Join(microvm.Workdir, p)
	}
	return copyPlace{name, p}, true
}

func (e *env) copyGuest(ctx context.Context, st *snapshots.Store, c *cli.Context, from, to copyPlace) error {
	sess, err := e.namedSession(st, from.session+to.session)
	if err != nil {
		return err
	}
	client, img, err := e.machineOf(ctx, sess)
	if err != nil {
		return err
	}
	defer client.Close()
	agent := guest.NewClient(client.DialVM)
	user := or(c.String("user"), img.Config.User)
	if from.session != "" {
		done, err := microvm.CopyOut(ctx, agent, user, from.path, to.path)
		if err != nil {
			return fmt.Errorf("copy %s of the guest: %w", from.path, err)
		}
		if !c.Bool("quiet") {
			fmt.Fprintf(e.stderr, "galley: copied %s, %s\n", ui.Count(done.Files, "file", "files"), ui.Bytes(done.Bytes))
		}
		if done.Skipped > 0 {
			fmt.Fprintf(e.stderr, "galley: left out %s that are no files\n", ui.Count(done.Skipped, "entry", "entries"))
		}
		return nil
	}
	abs, err := filepath.Abs(from.path)
	if err != nil {
		return err
	}
	o := runOptions{quiet: c.Bool("quiet"), sandbox: sandboxOptions{guest: guestOptions{on: true}}}
	var failed error
	err = e.around(ctx, sess, client, o, []string{"cp", from.path, to.path}, func() (local.Result, error) {
		if err := microvm.CopyIn(ctx, agent, user, abs, filepath.Base(abs), to.path); err != nil {
			failed = fmt.Errorf("copy %s into the guest: %w", from.path, err)
			return local.Result{Code: exitFailed}, nil // some of it may be there
		}
		return local.Result{}, nil
	})
	if failed != nil {
		return failed
	}
	return err
}
