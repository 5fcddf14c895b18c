package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/fs"
)

// unmountWait is how long unmount waits for those who use the mount.
const unmountWait = 10 * time.Second

func unmountCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"unmount [--lazy] [--wait SECONDS] DIR…"},
		about: `
Takes mounts of galley mount and galley overlay down. It waits for writers, for 10
seconds unless told otherwise, and then says who is busy. With --lazy the mount leaves
the tree of names at once, and ends with its last user. The session stays.`,
		examples: [][2]string{
			{"galley unmount /mnt/proof", "waits for those who use it"},
			{"galley unmount --lazy /mnt/proof", "does not wait"},
		},
		exits: [][2]string{exitDone, {"1", "not taken down: somebody uses it; the message says who"}, exitErrors},
	}.apply(&cli.Command{
		Name: "unmount", Aliases: []string{"umount"}, Category: catMount, Usage: "take a mount down", ArgsUsage: "DIR…",
		Flags: []cli.Flag{
			boolFlag("lazy", "do not wait for those who use it", "l"),
			&cli.IntFlag{Name: "wait", Usage: "wait for `SECONDS`", Value: int(unmountWait / time.Second)},
		},
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				return usagef(c, "name the directory to unmount")
			}
			if c.Int("wait") < 0 {
				return usagef(c, "--wait %d: expected 0 or more seconds", c.Int("wait"))
			}
			for _, dir := range c.Args().Slice() {
				if err := runUnmount(c.Context, e, dir, c.Bool("lazy"), time.Duration(c.Int("wait"))*time.Second); err != nil {
					return err
				}
			}
			return nil
		},
	})
}

func runUnmount(ctx context.Context, e *env, dir string, lazy bool, wait time.Duration) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("resolve %q: %w", dir, err)
	}
	if lazy {
		return fs.UnmountLazy(ctx, abs)
	}
	p := e.progress("waiting for those who use " + safePath(dir))
	defer p.Close()
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err = fs.Unmount(ctx, abs)
	p.Close()
	if busy := (*fs.BusyError)(nil); errors.As(err, &busy) {
		return withHint(&failure{err: err, code: exitRefused}, "end those, or galley unmount --lazy "+dir)
	}
	return err
}
