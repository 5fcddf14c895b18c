package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

func pruneCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"prune [--keep-last N] [--keep-named] [--older-than AGE] [--dry-run] [--json] [--session NAME]"},
		about: `
Forgets points of the session's history, and frees what only they needed. Of the rest
nothing changes: layers between the points that stay are merged. A point goes unless one
of the options keeps it; at least one must be given. The latest, mounted ones, and what
other sessions were forked from always stay, and so does what the session shows now.

AGE is a number with a unit: 30m, 12h, 14d.`,
		json: `{"session", "snapshots": [N], "merged", "layers", "bytes", "dry_run"}`,
		examples: [][2]string{
			{"galley prune --keep-last 100 --keep-named", "the last hundred, and those with a name"},
			{"galley prune --older-than 14d --keep-named", "what is older than two weeks and has no name"},
			{"galley prune --keep-last 20 --dry-run", "only say what would go"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "prune", Category: catHistory, Usage: "forget old points of the history",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "keep-last", Usage: "keep the last `N`"},
			boolFlag("keep-named", "keep those that have a name"),
			&cli.StringFlag{Name: "older-than", Usage: "keep what is not older than `AGE`"},
			boolFlag("dry-run", "only say what would go", "n"),
			jsonFlag(), sessionFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := noOperands(c); err != nil {
				return err
			}
			p := snapshots.Prune{KeepLast: c.Int("keep-last"), KeepNamed: c.Bool("keep-named"), DryRun: c.Bool("dry-run")}
			if p.KeepLast < 0 {
				return usagef(c, "--keep-last %d: expected a number of points to keep", p.KeepLast)
			}
			if age := c.String("older-than"); age != "" {
				d, err := parseAge(age)
				if err != nil {
					return usagef(c, "--older-than: %w", err)
				}
				p.Before = time.Now().Add(-d)
			}
			if !c.IsSet("keep-last") && !p.KeepNamed && p.Before.IsZero() {
				return usagef(c, "nothing says what to keep; --keep-last 0 forgets all but the latest")
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return runPrune(ctx, e, st, c.String("session"), p, c.Bool("json"))
			})
		},
	})
}

// parseAge reads a duration that may be in days.
func parseAge(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 && n < 100_000 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	} else if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return d, nil
	}
	return 0, fmt.Errorf("%q is no age; expected one such as 30m, 12h or 14d", s)
}

func runPrune(ctx context.Context, e *env, st *snapshots.Store, session string, p snapshots.Prune, asJSON bool) error {
	sess, err := e.findSession(st, session)
	if err != nil {
		return err
	}
	if err := refuseInterrupted(sess); err != nil {
		return err
	}
	var done snapshots.Pruned
	err = controlled(ctx, sess, func(ctrl owner.Controller) (err error) {
		done, err = ctrl.Prune(ctx, p)
		return err
	})
	if err != nil {
		return err
	}
	if asJSON {
		return ui.JSON(e.stdout, struct {
			Session   string            `json:"session"`
			Snapshots []overlay.LayerID `json:"snapshots"`
			Merged    int               `json:"merged"`
			Layers    int               `json:"layers"`
			Bytes     int64             `json:"bytes"`
			DryRun    bool              `json:"dry_run"`
		}{sess.Name(), append([]overlay.LayerID{}, done.Snapshots...), done.Merged, done.Layers, done.Bytes, p.DryRun})
	}
	what := ui.Count(len(done.Snapshots), "point", "points")
	if p.DryRun {
		fmt.Fprintf(e.stdout, "would forget %s of session %s\n", what, safeLine(sess.Name()))
		return nil
	}
	fmt.Fprintf(e.stdout, "forgot %s of session %s, removed %s, freed %s\n",
		what, safeLine(sess.Name()), ui.Count(done.Layers, "layer", "layers"), ui.Bytes(done.Bytes))
	return nil
}
