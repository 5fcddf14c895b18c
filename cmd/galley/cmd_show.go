package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/review"
	"github.com/galleyfs/galley/snapshots"
)

func showCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"show [--json] [--session NAME] N|NAME"},
		about: `
Says all there is to know about one point of the session's history: what ran and how it
ended, the first processes that changed something (by their numbers in the sandbox, where
there was one), and which files it changed. galley diff N shows how.`,
		json:     `an element of galley log --json, with all changes`,
		examples: [][2]string{{"galley show 12", "the point that galley log lists as 12"}},
		exits:    [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "show", Category: catHistory, Usage: "say what one point of the history is", ArgsUsage: "N|NAME",
		Flags: []cli.Flag{jsonFlag(), sessionFlag()},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usagef(c, "expected one snapshot, by number or name; galley log lists them")
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return runShow(ctx, e, st, c.String("session"), c.Args().First(), c.Bool("json"))
			})
		},
	})
}

func runShow(ctx context.Context, e *env, st *snapshots.Store, session, ref string, asJSON bool) error {
	sess, err := e.findSession(st, session)
	if err != nil {
		return err
	}
	from, to, err := e.rangeOf(ctx, sess, ref)
	if err != nil {
		return err
	}
	// The history has more of a snapshot than the session's record.
	history, err := sess.History()
	if err != nil {
		return err
	}
	for _, s := range history {
		if s.Number == to.snapshot.Number {
			to.snapshot = s
		}
	}
	c, err := compare(ctx, from, to)
	if err != nil {
		return err
	}
	defer c.Close()
	info := newSnapshotInfo(to.snapshot, sess.Last())
	info.Changes, info.Changed = []pathInfo{}, len(c.set.Changes)
	for i := range c.set.Changes {
		info.Changes = append(info.Changes, newPathInfo(&c.set.Changes[i]))
	}
	if asJSON {
		return ui.JSON(e.stdout, info)
	}
	fmt.Fprintf(e.stdout, "snapshot %s of session %s\n", e.out.Bold(nameOf(to.snapshot)), safeLine(sess.Name()))
	for _, line := range [][2]string{
		{"made", info.Time.Local().Format(time.RFC1123)},
		{"cause", whatRan(snapshotInfo{Kind: info.Kind, Text: info.Text, Args: info.Args})},
		{"ended", howEnded(info)},
		{"processes", processesText(info.Processes)},
	} {
		if line[1] != "" {
			fmt.Fprintf(e.stdout, "  %-10s %s\n", line[0], line[1])
		}
	}
	if c.set.Empty() {
		_, err = fmt.Fprintln(e.stdout, "\nnothing changed")
		return err
	}
	fmt.Fprintln(e.stdout)
	e.printChanges(pointers(c.set.Changes), nil)
	_, err = fmt.Fprintf(e.stdout, "\n%s; galley diff %d shows how\n", review.Summary(c.set), to.snapshot.Number)
	return err
}

// processesText names processes for a person.
func processesText(list []snapshots.Process) string {
	var out []string
	for _, p := range list {
		out = append(out, fmt.Sprintf("%s (%d)", or(safeLine(p.Name), "?"), p.PID))
	}
	if len(list) == snapshots.MaxProcesses {
		out = append(out, "…")
	}
	return strings.Join(out, " ")
}

// blameInfo is one line of `galley blame --json`.
type blameInfo struct {
	Line int `json:"line"`
	// Snapshot is 0 for a line of the base.
	Snapshot overlay.LayerID     `json:"snapshot"`
	Kind     snapshots.CauseKind `json:"kind,omitempty"`
	Cause    string              `json:"cause,omitempty"`
	Time     *time.Time          `json:"time,omitempty"`
	Text     string              `json:"text"`
	TextB64  []byte              `json:"text_base64,omitempty"`
}

func blameCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"blame [--json] [--session NAME] PATH"},
		about: `
Shows a file of the session, and for each line the point of the history that last changed
it, with the command that ran, or "base" where it is the project's own. What a commit has
put into the project is the project's own.`,
		json:     `[{"line", "snapshot", "kind", "cause", "time", "text"}]`,
		examples: [][2]string{{"galley blame src/main.go", "who wrote which line"}},
		exits:    [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "blame", Category: catHistory, Usage: "show which command changed each line of a file", ArgsUsage: "PATH",
		Flags: []cli.Flag{jsonFlag(), sessionFlag()},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usagef(c, "expected one file")
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return runBlame(ctx, e, st, c.String("session"), c.Args().First(), c.Bool("json"))
			})
		},
	})
}

func runBlame(ctx context.Context, e *env, st *snapshots.Store, session, operand string, asJSON bool) error {
	sess, err := e.findSession(st, session)
	if err != nil {
		return err
	}
	paths, err := resolvePaths(sess.Trees(), []string{operand})
	if err != nil {
		return err
	}
	p, err := e.now(ctx, sess)
	if err != nil {
		return err
	}
	lines, layers, err := blame(p, paths[0].tree, paths[0].path)
	if err != nil {
		return fmt.Errorf("%q: %w", operand, err)
	}
	history, err := sess.History()
	if err != nil {
		return err
	}
	byNumber := map[overlay.LayerID]snapshots.Snapshot{}
	for _, s := range history {
		byNumber[s.Number] = s
	}
	infos := make([]blameInfo, 0, len(lines))
	for i, l := range lines {
		info := blameInfo{Line: i + 1, Text: strings.TrimSuffix(l.Text, "\n")}
		info.TextB64 = rawBytes(info.Text)
		if l.Version > 0 {
			info.Snapshot = layers[l.Version-1]
		}
		if s, ok := byNumber[info.Snapshot]; ok {
			info.Kind, info.Cause, info.Time = s.Cause.Kind, s.Cause.Text, &s.Time
		}
		infos = append(infos, info)
	}
	if asJSON {
		return ui.JSON(e.stdout, infos)
	}
	rows := make([][]string, 0, len(infos))
	now := time.Now()
	for _, i := range infos {
		who, when := "base", ""
		if i.Snapshot != 0 {
			who = fmt.Sprint(i.Snapshot)
		}
		if i.Time != nil {
			who += " " + clipped(whatRan(snapshotInfo{Kind: i.Kind, Text: i.Cause}), 30)
			when = ui.Age(now, *i.Time) + " ago"
		}
		rows = append(rows, []string{who, when, fmt.Sprintf("%d|", i.Line), safeLine(i.Text)})
	}
	return ui.Table(e.stdout, rows)
}

// blame tells the version of each line of a file at a point: 0 is the base, and
// above that the layers that changed the file, in their order.
func blame(p point, tree, path string) ([]review.BlameLine, []overlay.LayerID, error) {
	sealed, err := p.session.OpenStacks(p.snapshot)
	if err != nil {
		return nil, nil, err
	}
	defer sealed.Close()
	at := slices.IndexFunc(sealed.Trees(), func(t snapshots.SealedTree) bool { return t.Name == tree })
	if at < 0 {
		return nil, nil, fmt.Errorf("tree %q: %w", tree, snapshots.ErrNotFound)
	}
	layers := sealed.Trees()[at].Face.PathLayers(path)
	layers = slices.DeleteFunc(layers, func(l overlay.LayerID) bool { return l <= overlay.Replaced })
	stacks := append([]overlay.LayerID{overlay.Replaced}, layers...)
	var face *overlay.Face
	defer func() {
		if face != nil {
			face.Detach()
		}
	}()
	lines, err := review.Blame(len(stacks), func(i int) (*review.Content, error) {
		if face != nil {
			face.Detach()
		}
		if face, err = sealed.View(tree, p.snapshot.Upto(stacks[i]).Stacks[tree]); err != nil {
			return nil, err
		}
		c, err := review.FaceView(face).Open(path)
		if err != nil && i < len(stacks)-1 && !isFailure(err) {
			return nil, nil // it was not there yet, or no file
		}
		return c, err
	})
	if errors.Is(err, review.ErrBinary) {
		err = withHint(err, "galley diff tells whether it changed")
	}
	return lines, layers, err
}

// isFailure tells an error of reading from the answer that no file is there.
func isFailure(err error) bool {
	switch overlay.Errno(err).Error() {
	case "no such file or directory", "not a directory", "invalid argument":
		return false
	}
	return true
}

func restoreCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"restore [--session NAME] N|NAME -- PATHS…"},
		about: `
Makes files and directories of the session what they were at a snapshot; what was not
there then goes. All else stays. What the session was until now is sealed first, so that
galley rollback takes it back. Programs in the session see new files in place of the old.`,
		examples: [][2]string{
			{"galley restore 7 -- src/main.go", "one file"},
			{"galley restore green -- test docs", "two directories"},
			{"galley restore 0 -- go.mod", "as the project has it"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "restore", Category: catHistory, Usage: "bring back some files of a snapshot", ArgsUsage: "N|NAME -- PATHS",
		Flags: []cli.Flag{sessionFlag()},
		Action: func(c *cli.Context) error {
			if c.NArg() < 2 {
				return usagef(c, "expected a snapshot and the paths to restore")
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				sess, err := e.findSession(st, c.String("session"))
				if err != nil {
					return err
				}
				snap, err := findSnapshot(sess, c.Args().First())
				if err != nil {
					return err
				}
				return e.takePaths(ctx, sess, point{sess, snap}, c.Args().Tail())
			})
		},
	})
}

func pickCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"pick [--session NAME] SESSION2[@N] -- PATHS…"},
		about: `
Takes files and directories of another session of the same project into this one: of
several attempts, the best parts. They become what they are there; what is not there
goes. What the session was until now is sealed first, so that galley rollback takes it
back.`,
		examples: [][2]string{
			{"galley pick second-try -- src/parser.go", "one file, as it is there now"},
			{"galley pick second-try@4 -- src", "a directory, as it was there at snapshot 4"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "pick", Category: catHistory, Usage: "take files of another session into this one", ArgsUsage: "SESSION2 -- PATHS",
		Flags: []cli.Flag{sessionFlag()},
		Action: func(c *cli.Context) error {
			if c.NArg() < 2 {
				return usagef(c, "expected a session and the paths to take from it")
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				sess, err := e.findSession(st, c.String("session"))
				if err != nil {
					return err
				}
				from, err := e.pointOf(ctx, st, c.Args().First())
				if err != nil {
					return err
				}
				if from.session.ID() == sess.ID() {
					return withHint(fmt.Errorf("pick: %q is the session that would be picked into", sess.Name()),
						"galley pick --session NAME "+sess.Name()+" -- PATHS picks into NAME; without --session it is the one used last",
						"galley restore --session "+sess.Name()+" N -- PATHS takes from its own past")
				}
				if err := sameBase(from, point{session: sess}); err != nil {
					return err
				}
				return e.takePaths(ctx, sess, from, c.Args().Tail())
			})
		},
	})
}
