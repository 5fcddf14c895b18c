package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
)

// usageInfo is one element of `galley du --json`; sizes are allocated bytes.
type usageInfo struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Exclusive int64  `json:"exclusive"`
	Shared    int64  `json:"shared"`
	Retired   int64  `json:"retired"`
	Files     int64  `json:"files"`
}

func duCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"du [--json] [SESSION…]", "du --snapshots [--json] SESSION"},
		about: `
Says what sessions occupy on disk: what removing one would free (SIZE), what it has in
common with a fork or with the session that it is a fork of (SHARED), and how much of
SIZE belongs to layers that a commit or discard has retired and galley gc will remove
after 14 days (RETIRED).

--snapshots does so for the points of one session's history: what only that point has
(SIZE), and what it has in common with others, with the session as it is now, or with a
fork (SHARED). What several old points share goes when galley prune forgets them all.`,
		json: `[{"id", "name", "exclusive", "shared", "retired", "files"}]     in allocated bytes
--snapshots: [{"number", "name", "exclusive", "shared"}]`,
		examples: [][2]string{
			{"galley du", "all sessions"}, {"galley du app --json", "one, for a script"},
			{"galley du --snapshots app", "what each point of its history costs"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "du", Category: catManage, Usage: "say what sessions occupy on disk", ArgsUsage: "SESSION…",
		Flags: []cli.Flag{jsonFlag(), boolFlag("snapshots", "the points of one session's history")},
		Action: func(c *cli.Context) error {
			if c.Bool("snapshots") {
				if c.NArg() > 1 {
					return usagef(c, "--snapshots: expected one session")
				}
				return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
					return runDuSnapshots(ctx, e, st, c.Args().First(), c.Bool("json"))
				})
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return runDu(ctx, e, st, c.Args().Slice(), c.Bool("json"))
			})
		},
	})
}

func runDu(ctx context.Context, e *env, st *snapshots.Store, names []string, asJSON bool) error {
	sessions, err := e.chooseSessions(st, names)
	if err != nil {
		return err
	}
	p := e.progress("measuring")
	defer p.Close()
	infos := make([]usageInfo, 0, len(sessions))
	for i, s := range sessions {
		p.Set(int64(i), int64(len(sessions)))
		u, err := st.Du(ctx, s)
		if err != nil {
			return err
		}
		infos = append(infos, usageInfo{s.ID(), s.Name(), u.Exclusive, u.Shared, u.Retired, u.Files})
	}
	p.Close()
	if asJSON {
		return ui.JSON(e.stdout, infos)
	}
	rows := [][]string{{"SESSION", "SIZE", "SHARED", "RETIRED"}}
	var total int64
	for _, i := range infos {
		total += i.Exclusive
		rows = append(rows, []string{safeLine(i.Name), ui.Bytes(i.Exclusive), ui.Bytes(i.Shared), ui.Bytes(i.Retired)})
	}
	if len(infos) > 1 {
		rows = append(rows, []string{"together", ui.Bytes(total)})
	}
	return ui.Table(e.stdout, rows)
}

// chooseSessions are the named sessions, or all that can be opened.
func (e *env) chooseSessions(st *snapshots.Store, names []string) ([]*snapshots.Session, error) {
	if len(names) == 0 {
		all, err := st.List()
		if err != nil {
			return nil, err
		}
		for _, i := range all {
			if i.Err == nil {
				names = append(names, i.ID)
			}
		}
	}
	var out []*snapshots.Session
	for _, n := range names {
		s, err := e.namedSession(st, n)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// snapshotUsage is one element of `galley du --snapshots --json`.
type snapshotUsage struct {
	Number    overlay.LayerID `json:"number"`
	Name      string          `json:"name,omitempty"`
	Exclusive int64           `json:"exclusive"`
	Shared    int64           `json:"shared"`
}

func runDuSnapshots(ctx context.Context, e *env, st *snapshots.Store, name string, asJSON bool) error {
	sess, err := e.findSession(st, name)
	if err != nil {
		return err
	}
	p := e.progress("measuring")
	defer p.Close()
	all, err := st.DuSnapshots(ctx, sess)
	p.Close()
	if err != nil {
		return err
	}
	infos := []snapshotUsage{}
	rows := [][]string{{"SNAPSHOT", "SIZE", "SHARED", "WHAT"}}
	for _, u := range slices.Backward(all) {
		infos = append(infos, snapshotUsage{u.Snapshot.Number, u.Snapshot.Name, u.Exclusive, u.Shared})
		what := whatRan(newSnapshotInfo(u.Snapshot, u.Snapshot))
		rows = append(rows, []string{fmt.Sprint(u.Snapshot.Number), ui.Bytes(u.Exclusive), ui.Bytes(u.Shared), what})
	}
	if asJSON {
		return ui.JSON(e.stdout, infos)
	}
	return ui.Table(e.stdout, rows)
}
