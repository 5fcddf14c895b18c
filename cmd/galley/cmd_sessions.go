package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/snapshots"
)

// sessionInfo is one element of `galley sessions --json`.
type sessionInfo struct {
	ID      string               `json:"id"`
	Name    string               `json:"name"`
	Base    string               `json:"base"`
	Trees   []snapshots.TreeSpec `json:"trees"`
	Created time.Time            `json:"created"`
	Used    time.Time            `json:"used"`
	Live    bool                 `json:"live"`
	// Bytes is the space that the session occupies; -1 if it cannot be told.
	Bytes int64 `json:"bytes"`
	// MaxSize is what its layers may hold; absent without a bound.
	MaxSize int64 `json:"max_size,omitempty"`
	// Changes counts the changes at the last snapshot; -1 if they cannot
	// be told. A live session may have more.
	Changes int    `json:"changes"`
	Error   string `json:"error,omitempty"` // why the session cannot be opened
}

// trashInfo is one element of `galley sessions --trash --json`.
type trashInfo struct {
	ID      string              `json:"id"`
	Kind    snapshots.TrashKind `json:"kind"`
	Session string              `json:"session"`
	Name    string              `json:"name"`
	Base    string              `json:"base"`
	Paths   int                 `json:"paths"`
	Time    time.Time           `json:"time"`
	Expires time.Time           `json:"expires"`
}

func sessionsCommand(e *env) *cli.Command {
	return manual{
		usage: []string{
			"sessions [--json] [--trash]",
			"sessions rm NAME…",
			"sessions rename NAME NEW",
			"sessions restore ID",
		},
		about: `
Lists the sessions: what each is based on, when it was last used, what it occupies and
how many changes it holds. Removed sessions and discarded changes go to a trash and stay
there for 14 days; --trash lists it, and restore takes something out of it again.`,
		json: `[{"id", "name", "base", "trees": [{"name", "base", "mount"}], "created", "used",
  "live": bool, "bytes", "max_size", "changes", "error"}]    bytes and changes are -1 if unknown
--trash: [{"id", "kind": "session"|"paths"|"layer", "session", "name", "base", "paths", "time", "expires"}]`,
		examples: [][2]string{
			{"galley sessions", "the list"},
			{"galley sessions rm brave-otter", "to the trash with it"},
			{"galley sessions rename app-2 fix-login", "a better name"},
			{"galley sessions --trash", "what could be restored"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name:     "sessions",
		Category: catManage,
		Usage:    "list, remove, rename and restore sessions",
		Flags:    []cli.Flag{jsonFlag(), boolFlag("trash", "list what was removed or discarded")},
		Subcommands: []*cli.Command{
			sessionsRmCommand(e), sessionsRenameCommand(e), sessionsRestoreCommand(e),
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usagef(c, "no action %q; there are rm, rename and restore", c.Args().First())
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				if c.Bool("trash") {
					return listTrash(e, st, c.Bool("json"))
				}
				return listSessions(ctx, e, st, c.Bool("json"))
			})
		},
	})
}

func listSessions(ctx context.Context, e *env, st *snapshots.Store, asJSON bool) error {
	all, err := st.List()
	if err != nil {
		return err
	}
	p := e.progress("looking at the sessions")
	defer p.Close()
	infos := make([]sessionInfo, 0, len(all))
	for i, s := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		p.Set(int64(i), int64(len(all)))
		infos = append(infos, describeSession(ctx, e, st, s))
	}
	p.Close()
	if asJSON {
		return ui.JSON(e.stdout, infos)
	}
	if len(infos) == 0 {
		fmt.Fprintln(e.stderr, "galley: no sessions; galley run -- COMMAND starts one")
		return nil
	}
	now := time.Now()
	rows := [][]string{{"NAME", "BASE", "USED", "SIZE", "CHANGES"}}
	for _, i := range infos {
		rows = append(rows, sessionRow(now, i))
	}
	return ui.Table(e.stdout, rows)
}

func sessionRow(now time.Time, i sessionInfo) []string {
	name, base := safeLine(i.Name), safeLine(i.Base)
	if i.Error != "" {
		return []string{safeLine(or(i.Name, i.ID)), base, "", "", "damaged: " + safeLine(i.Error)}
	}
	size, changes := "?", "?"
	if i.Bytes >= 0 {
		size = ui.Bytes(i.Bytes)
	}
	if i.MaxSize > 0 {
		size += " of " + ui.Bytes(i.MaxSize)
	}
	if i.Changes >= 0 {
		changes = fmt.Sprint(i.Changes)
	}
	if i.Live {
		changes += " (live)"
	}
	return []string{name, base, ui.Age(now, i.Used) + " ago", size, changes}
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// describeSession never fails: what cannot be told is said to be unknown.
func describeSession(ctx context.Context, e *env, st *snapshots.Store, s snapshots.Info) sessionInfo {
	i := sessionInfo{ID: s.ID, Name: s.Name, Trees: s.Trees, Created: s.Created, Used: s.Used, Live: s.Live, Bytes: -1, Changes: -1}
	if len(s.Trees) > 0 {
		i.Base = s.Trees[0].Base
	}
	if s.Err != nil {
		i.Error = s.Err.Error()
		return i
	}
	sess, err := st.Find(s.ID)
	if err != nil {
		i.Error = err.Error()
		return i
	}
	i.MaxSize = sess.MaxSize()
	if u, err := st.Du(ctx, sess); err == nil {
		i.Bytes = u.Exclusive + u.Shared
	}
	if n, err := countChanges(ctx, sess); err == nil {
		i.Changes = n
	} else {
		e.log.Debug("count changes", "session", s.Name, "err", err)
	}
	return i
}

func listTrash(e *env, st *snapshots.Store, asJSON bool) error {
	all, err := st.Trash()
	if err != nil {
		return err
	}
	infos := make([]trashInfo, 0, len(all))
	for _, t := range all {
		infos = append(infos, trashInfo{t.ID, t.Kind, t.Session, t.Name, t.Base, t.Paths, t.Time, t.Expires})
	}
	if asJSON {
		return ui.JSON(e.stdout, infos)
	}
	if len(infos) == 0 {
		fmt.Fprintln(e.stderr, "galley: the trash is empty")
		return nil
	}
	now := time.Now()
	rows := [][]string{{"ID", "SESSION", "WHAT", "BASE", "DISCARDED", "KEPT FOR"}}
	for _, t := range infos {
		what := "the session"
		switch {
		case t.Kind == snapshots.TrashLayer:
			what = "a layer"
		case t.Kind == snapshots.TrashPaths && t.Paths > 0:
			what = ui.Count(t.Paths, "path", "paths")
		case t.Kind == snapshots.TrashPaths:
			what = "all changes"
		}
		rows = append(rows, []string{t.ID, safeLine(t.Name), what, safeLine(t.Base), ui.Age(now, t.Time) + " ago", ui.Age(t.Expires, now)})
	}
	return ui.Table(e.stdout, rows)
}

func sessionsRmCommand(e *env) *cli.Command {
	return manual{
		usage:    []string{"sessions rm NAME…"},
		about:    "Moves sessions to the trash, with all their changes. A session in use is refused.",
		examples: [][2]string{{"galley sessions rm app app-2", "both; galley sessions restore brings them back"}},
		exits:    [][2]string{exitDone, {"1", "refused: a session is in use"}, exitErrors},
	}.apply(&cli.Command{
		Name: "rm", Usage: "move sessions to the trash", ArgsUsage: "SESSION…",
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				return usagef(c, "name the sessions to remove")
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return removeSessions(ctx, e, st, c.Args().Slice())
			})
		},
	})
}

// removeSessions finds all of them before it removes the first, so that a
// name that was mistyped removes nothing.
func removeSessions(ctx context.Context, e *env, st *snapshots.Store, names []string) error {
	var found []*snapshots.Session
	for _, n := range names {
		s, err := e.namedSession(st, n)
		if err != nil {
			return err
		}
		found = append(found, s)
	}
	for _, s := range found {
		if err := ctx.Err(); err != nil {
			return err
		}
		var t snapshots.TrashEntry
		err := whenIdle(ctx, s, func() (err error) {
			t, err = st.Remove(s)
			return err
		})
		if errors.Is(err, snapshots.ErrBusy) {
			return inUseError(s)
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(e.stderr, "galley: session %s is in the trash until %s; galley sessions restore %s brings it back\n",
			safeLine(s.Name()), t.Expires.Format(time.DateOnly), t.ID)
	}
	return nil
}

func inUseError(s *snapshots.Session) error {
	return withHint(refusef("session %q is in use", s.Name()),
		"galley status --session "+s.Name()+" says by what", "galley unmount DIR takes a mount of it down, galley stop "+s.Name()+" ends its machine")
}

func sessionsRenameCommand(e *env) *cli.Command {
	return manual{
		usage:    []string{"sessions rename NAME NEW"},
		about:    "Gives a session another name. A session in use is refused.",
		examples: [][2]string{{"galley sessions rename app-2 fix-login", ""}},
		exits:    [][2]string{exitDone, {"1", "refused: the session is in use"}, exitErrors},
	}.apply(&cli.Command{
		Name: "rename", Usage: "give a session another name", ArgsUsage: "SESSION NEW",
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				return usagef(c, "expected the session's name and the new one")
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				s, err := e.namedSession(st, c.Args().Get(0))
				if err != nil {
					return err
				}
				err = whenIdle(ctx, s, func() error { return st.Rename(s, c.Args().Get(1)) })
				if errors.Is(err, snapshots.ErrBusy) {
					return inUseError(s)
				}
				return createError(err)
			})
		},
	})
}

func sessionsRestoreCommand(e *env) *cli.Command {
	return manual{
		usage:    []string{"sessions restore ID|NAME"},
		about:    "Takes a session, or discarded changes, out of the trash again.",
		examples: [][2]string{{"galley sessions restore k3v9q2", "the id is in galley sessions --trash"}},
		exits:    [][2]string{exitDone, {"1", "refused: the session is in use"}, exitErrors},
	}.apply(&cli.Command{
		Name: "restore", Usage: "take something out of the trash", ArgsUsage: "ID",
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usagef(c, "expected an id of galley sessions --trash")
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return restoreTrash(ctx, e, st, c.Args().First())
			})
		},
	})
}

// restoreTrash takes ref for an id, or for the name of a session of which
// exactly one thing is in the trash.
func restoreTrash(ctx context.Context, e *env, st *snapshots.Store, ref string) error {
	all, err := st.Trash()
	if err != nil {
		return err
	}
	var ids, known []string
	for _, t := range all {
		known = append(known, t.ID, t.Name)
		if t.ID == ref {
			ids = []string{ref}
			break
		}
		if t.Name == ref {
			ids = append(ids, t.ID)
		}
	}
	switch {
	case len(ids) == 0:
		err := fmt.Errorf("nothing called %q is in the trash", ref)
		if n := nearest(ref, known); n != "" {
			err = fmt.Errorf("nothing called %q is in the trash; did you mean %q?", ref, n)
		}
		return withHint(err, "galley sessions --trash lists it")
	case len(ids) > 1:
		return withHint(fmt.Errorf("%d things in the trash are of %q", len(ids), ref), "give an id of galley sessions --trash")
	}
	s, err := st.Restore(ctx, ids[0])
	if errors.Is(err, snapshots.ErrBusy) {
		return refusef("the session is in use; end what uses it first: %w", err)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stderr, "galley: restored to session %s\n", safeLine(s.Name()))
	return nil
}
