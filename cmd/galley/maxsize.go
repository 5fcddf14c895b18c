package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/snapshots"
)

// asItIs leaves a session's bound as it is.
const asItIs = -1

func maxSizeFlag() cli.Flag {
	return &cli.StringFlag{Name: "max-size", Usage: "what the session's layers may hold: `SIZE`, such as 500M or 2G; beyond it programs get ENOSPC (0: no bound)"}
}

// maxSizeOf reads the option; asItIs where it is not given.
func maxSizeOf(c *cli.Context) (int64, error) {
	if !c.IsSet("max-size") {
		return asItIs, nil
	}
	n, err := parseSize(c.String("max-size"))
	if err != nil {
		return 0, usagef(c, "--max-size: %v", err)
	}
	if n != 0 && n < snapshots.MinMaxSize {
		return 0, usagef(c, "--max-size %s: expected at least %s, or 0 for no bound", c.String("max-size"), ui.Bytes(snapshots.MinMaxSize))
	}
	return n, nil
}

// bound gives a session that exists another bound.
func (e *env) bound(ctx context.Context, sess *snapshots.Session, size int64) error {
	if size == asItIs || size == sess.MaxSize() {
		return nil
	}
	if err := whenIdle(ctx, sess, func() error { return sess.SetMaxSize(size) }); err != nil {
		return extendError(sess, "change --max-size", err)
	}
	return nil
}
