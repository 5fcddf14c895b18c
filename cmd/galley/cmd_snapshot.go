package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

func snapshotCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"snapshot [--json] [--session NAME] [NAME]"},
		about: `
Seals what the session is now as a point to go back to, and gives it a name. Programs in
the session work on. When the command has ended, the snapshot survives a power cut.

A snapshot with a name outlasts galley gc; galley prune forgets what it is told to. The
same name may be given again: then it means the latest of them.`,
		json: `{"session", "number", "name", "time"}`,
		examples: [][2]string{
			{"galley snapshot green", "the tests pass: remember this"},
			{"galley rollback green", "and come back to it"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "snapshot", Category: catHistory, Usage: "give what the session is now a name", ArgsUsage: "NAME",
		Flags: []cli.Flag{jsonFlag(), sessionFlag()},
		Action: func(c *cli.Context) error {
			if c.NArg() > 1 {
				return usagef(c, "expected one name")
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return runSnapshot(ctx, e, st, c.String("session"), c.Args().First(), c.Bool("json"))
			})
		},
	})
}

func runSnapshot(ctx context.Context, e *env, st *snapshots.Store, session, name string, asJSON bool) error {
	sess, err := e.findSession(st, session)
	if err != nil {
		return err
	}
	var snap snapshots.Snapshot
	err = controlled(ctx, sess, func(ctrl owner.Controller) (err error) {
		snap, err = ctrl.Seal(ctx, snapshots.SealOptions{Name: name, Cause: snapshots.Cause{Kind: snapshots.CauseAsked}, Durable: true})
		return err
	})
	if errors.Is(err, snapshots.ErrBadName) {
		return withHint(err, "letters, digits, '-', '_' and '.' make a name; a number alone is none")
	}
	if err != nil {
		return err
	}
	if asJSON {
		return ui.JSON(e.stdout, struct {
			Session string          `json:"session"`
			Number  overlay.LayerID `json:"number"`
			Name    string          `json:"name,omitempty"`
			Time    time.Time       `json:"time"`
		}{sess.Name(), snap.Number, snap.Name, snap.Time})
	}
	fmt.Fprintf(e.stdout, "snapshot %s of session %s\n", nameOf(snap), safeLine(sess.Name()))
	return nil
}

// nameOf is a snapshot for a person: its number, and its name if it has one.
func nameOf(s snapshots.Snapshot) string {
	if s.Name == "" {
		return fmt.Sprint(s.Number)
	}
	return fmt.Sprintf("%d (%s)", s.Number, safeLine(s.Name))
}

func rollbackCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"rollback [--json] [--session NAME] N|NAME"},
		about: `
Makes a snapshot what the session shows. Programs in the session see the old tree at
once, what they have open included: a file that both sides have changes as if it had been
overwritten, one that the old side lacks is as if removed. What the session was until now
is sealed first and stays in galley log, so that a rollback can be rolled back. The
project itself is not touched. 0 is the session before any change.`,
		json: `{"session", "to": N, "before": N, "now": N, "switch", "invalidate"}     in seconds`,
		examples: [][2]string{
			{"galley rollback 12", "to the point that galley log lists as 12"},
			{"galley rollback green", "to the snapshot of that name"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "rollback", Category: catHistory, Usage: "make a snapshot what the session shows", ArgsUsage: "N|NAME",
		Flags: []cli.Flag{jsonFlag(), sessionFlag()},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usagef(c, "expected one snapshot, by number or name; galley log lists them")
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return runRollback(ctx, e, st, c.String("session"), c.Args().First(), c.Bool("json"))
			})
		},
	})
}

func runRollback(ctx context.Context, e *env, st *snapshots.Store, session, ref string, asJSON bool) error {
	sess, err := e.findSession(st, session)
	if err != nil {
		return err
	}
	if err := refuseInterrupted(sess); err != nil {
		return err
	}
	to, err := findSnapshot(sess, ref)
	if err != nil {
		return err
	}
	var done snapshots.RolledBack
	err = controlled(ctx, sess, func(ctrl owner.Controller) (err error) {
		done, err = ctrl.Rollback(ctx, snapshots.Rollback{To: to.Number})
		return err
	})
	if err != nil {
		return err
	}
	if asJSON {
		return ui.JSON(e.stdout, struct {
			Session    string          `json:"session"`
			To         overlay.LayerID `json:"to"`
			Before     overlay.LayerID `json:"before"`
			Now        overlay.LayerID `json:"now"`
			Switch     float64         `json:"switch"`
			Invalidate float64         `json:"invalidate"`
		}{sess.Name(), to.Number, done.Before.Number, done.Now.Number, done.Switch.Seconds(), done.Invalidate.Seconds()})
	}
	fmt.Fprintf(e.stdout, "session %s is as it was at snapshot %s; galley rollback %d goes back to what it was before\n",
		safeLine(sess.Name()), nameOf(to), done.Before.Number)
	return nil
}

// findSnapshot finds a snapshot by number or name; the error names the nearest.
func findSnapshot(sess *snapshots.Session, ref string) (snapshots.Snapshot, error) {
	snap, err := sess.Snapshot(ref)
	if err != nil {
		return snap, withHint(err, "galley log --session "+sess.Name()+" lists them")
	}
	return snap, nil
}

func forkCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"fork [--json] [--session NAME] N|NAME [NEWNAME]"},
		about: `
Starts another session from a snapshot of this one: on the same project, with the same
changes up to there. Nothing is copied, and neither session sees what the other does
from then on. galley diff SESSION1 SESSION2 compares them, galley pick takes files from
one into the other.`,
		json: `{"session", "id", "from", "snapshot"}`,
		examples: [][2]string{
			{"galley fork green second-try", "another attempt from the snapshot green"},
			{"galley run --session second-try -- agent", "work in it"},
			{"galley diff app second-try", "what is different"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "fork", Category: catHistory, Usage: "start another session from a snapshot", ArgsUsage: "N|NAME NEWNAME",
		Flags: []cli.Flag{jsonFlag(), sessionFlag()},
		Action: func(c *cli.Context) error {
			if c.NArg() < 1 || c.NArg() > 2 {
				return usagef(c, "expected a snapshot and, if wanted, the new session's name")
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return runFork(ctx, e, st, c.String("session"), c.Args().Get(0), c.Args().Get(1), c.Bool("json"))
			})
		},
	})
}

func runFork(ctx context.Context, e *env, st *snapshots.Store, session, ref, name string, asJSON bool) error {
	sess, err := e.findSession(st, session)
	if err != nil {
		return err
	}
	snap, err := findSnapshot(sess, ref)
	if err != nil {
		return err
	}
	fork, err := st.Fork(ctx, sess, snapshots.Fork{At: snap.Number, Name: name})
	if err != nil {
		return createError(err)
	}
	if asJSON {
		return ui.JSON(e.stdout, struct {
			Session  string          `json:"session"`
			ID       string          `json:"id"`
			From     string          `json:"from"`
			Snapshot overlay.LayerID `json:"snapshot"`
		}{fork.Name(), fork.ID(), sess.Name(), snap.Number})
	}
	fmt.Fprintf(e.stdout, "session %s, from snapshot %s of %s; galley run --session %s -- COMMAND works in it\n",
		safeLine(fork.Name()), nameOf(snap), safeLine(sess.Name()), safeLine(fork.Name()))
	return nil
}

// commandText is a command line that a shell would read as the same words.
func commandText(command []string) string {
	var b strings.Builder
	for i, w := range command {
		if i > 0 {
			b.WriteByte(' ')
		}
		if w != "" && strings.Trim(w, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=@%+,") == "" {
			b.WriteString(w)
			continue
		}
		b.WriteString("'" + strings.ReplaceAll(w, "'", `'\''`) + "'")
	}
	return b.String()
}
