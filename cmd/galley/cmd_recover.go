package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/review/commit"
	"github.com/galleyfs/galley/snapshots"
)

// recoveryInfo is one element of `galley recover --json`.
type recoveryInfo struct {
	Session string `json:"session"`
	Commit  string `json:"commit"`
	Digest  string `json:"digest"`
	// Outcome is "finished", "reverted" or "cleaned"; with --dry-run the
	// state that the commit is in.
	Outcome string `json:"outcome"`
	Changes int    `json:"changes"`
}

func recoverCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"recover [--finish | --revert] [--dry-run] [--json] [--session NAME]"},
		about: `
Brings commits to an end that a crash, a power cut or a full disk interrupted: each is
finished where everything for it is there, else taken back, so that the project is as
before it or as after it. What somebody changed on the host in between is not touched;
then the message names it, and recover can be run again. Without --session it looks at
all sessions.`,
		json: `[{"session", "commit", "digest", "outcome": "finished"|"reverted"|"cleaned", "changes"}]`,
		examples: [][2]string{
			{"galley recover", "finish or take back, as it comes"},
			{"galley recover --revert", "take back what can be taken back"},
		},
		exits: [][2]string{exitDone, {"1", "refused: another process works on the commit"}, exitErrors},
	}.apply(&cli.Command{
		Name: "recover", Category: catWork, Usage: "finish or take back interrupted commits",
		Flags: []cli.Flag{
			boolFlag("finish", "finish, never take back"),
			boolFlag("revert", "take back, even where it could be finished"),
			boolFlag("dry-run", "only list the interrupted commits", "n"),
			jsonFlag(), sessionFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := noOperands(c); err != nil {
				return err
			}
			want := commit.Auto
			switch finish, revert := c.Bool("finish"), c.Bool("revert"); {
			case finish && revert:
				return usagef(c, "--finish and --revert exclude each other")
			case finish:
				want = commit.Finish
			case revert:
				want = commit.Revert
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				var names []string
				if s := c.String("session"); s != "" {
					names = []string{s}
				}
				sessions, err := e.chooseSessions(st, names)
				if err != nil {
					return err
				}
				return runRecover(ctx, e, sessions, want, c.Bool("dry-run"), c.Bool("json"))
			})
		},
	})
}

// runRecover goes on to the next commit after one that fails, and fails in the
// end.
func runRecover(ctx context.Context, e *env, sessions []*snapshots.Session, want commit.Want, dryRun, asJSON bool) error {
	infos := []recoveryInfo{}
	var failed []error
	for _, s := range sessions {
		pending, err := commit.Pending(hostfs.OS, s.CommitsDir())
		if err != nil {
			failed = append(failed, fmt.Errorf("session %q: %w", s.Name(), err))
			continue
		}
		for _, c := range pending {
			info := recoveryInfo{Session: s.Name(), Commit: filepath.Base(c.Dir), Digest: c.Digest.String(), Outcome: c.State.String(), Changes: c.Changes}
			if !dryRun {
				info.Outcome, err = e.recoverOne(ctx, s, c, want)
			}
			if err != nil {
				failed = append(failed, fmt.Errorf("commit %s of session %q: %w", info.Commit, s.Name(), err))
				continue
			}
			infos = append(infos, info)
		}
	}
	if asJSON {
		if err := ui.JSON(e.stdout, infos); err != nil {
			return err
		}
	} else {
		for _, i := range infos {
			fmt.Fprintf(e.stdout, "%s: commit %s of session %s, %s\n", i.Outcome, i.Commit, safeLine(i.Session), ui.Count(i.Changes, "change", "changes"))
		}
		if len(infos)+len(failed) == 0 {
			fmt.Fprintln(e.stderr, "galley: no interrupted commit")
		}
	}
	return recoverError(failed)
}

func recoverError(failed []error) error {
	if len(failed) == 0 {
		return nil
	}
	err := errors.Join(failed...)
	if errors.Is(err, commit.ErrLocked) {
		return withHint(&failure{err: err, code: exitRefused}, "a commit is at work on that base; wait until it has ended")
	}
	return err
}

// recoverOne ends one commit. What it finished is taken out of the session, as
// after any commit.
func (e *env) recoverOne(ctx context.Context, s *snapshots.Session, c commit.PendingCommit, want commit.Want) (string, error) {
	r, err := commit.Recover(ctx, commit.RecoverConfig{CommitDir: c.Dir, LockDir: lockDir(s), Log: e.log, Want: want})
	if err != nil {
		return "", err
	}
	if r.Outcome != commit.Finished {
		return r.Outcome.String(), nil
	}
	id := filepath.Base(c.Dir)
	n, ok := committedSnapshot(id)
	if !ok {
		return "", fmt.Errorf("%s: not a name that galley commit gives; expected TIME-ID-SNAPSHOT", c.Dir)
	}
	return r.Outcome.String(), settle(context.WithoutCancel(ctx), &hand{sess: s}, n, c.Dir, id, r.Result)
}
