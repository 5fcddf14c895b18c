package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/review"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

// discardInfo is what `galley discard --json` prints.
type discardInfo struct {
	Session   string     `json:"session"`
	Discarded []pathInfo `json:"discarded"`
	// Trash is the id that galley sessions restore takes; "" if nothing was
	// discarded.
	Trash   string    `json:"trash"`
	Expires time.Time `json:"expires"`
}

func discardCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"discard [--yes] [--json] [--session NAME] [--tree NAME] [PATHS…]"},
		about: `
Drops the session's changes, all of them or those at and below PATHS, so that the base
shows again. What is dropped goes to a trash and stays there for 14 days; galley sessions
restore takes it out again. On a terminal it asks first.`,
		json: `{"session", "discarded": [{"tree", "path", "kind"}], "trash": id, "expires"}`,
		examples: [][2]string{
			{"galley discard", "all changes, after a question"},
			{"galley discard --yes go.sum vendor", "two paths, in a script"},
			{"galley discard --tree root", "what was changed in the guest's own file system"},
			{"galley sessions --trash", "what can be restored"},
		},
		exits: [][2]string{exitDone, exitRefusal, exitErrors},
	}.apply(&cli.Command{
		Name: "discard", Category: catWork, Usage: "drop the session's changes, to the trash", ArgsUsage: "PATHS…",
		Flags: []cli.Flag{
			boolFlag("yes", "discard without a question", "y"),
			&cli.StringFlag{Name: "tree", Usage: "only changes of the tree `NAME`; PATHS are in it, if it stands on an image"},
			jsonFlag(), sessionFlag(),
		},
		Action: func(c *cli.Context) error {
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				sess, err := e.findSession(st, c.String("session"))
				if err != nil {
					return err
				}
				operands := c.Args().Slice()
				if name := c.String("tree"); name != "" {
					tree, err := treeOf(sess, name)
					if err != nil {
						return err
					}
					if tree.OnImage() {
						return discardTree(ctx, e, sess, tree, c.Bool("yes"), c.Bool("json"), operands)
					}
					if operands, err = onlyTree(sess, name, operands); err != nil {
						return err
					}
				}
				return runDiscard(ctx, e, sess, c.Bool("yes"), c.Bool("json"), operands)
			})
		},
	})
}

func runDiscard(ctx context.Context, e *env, sess *snapshots.Session, yes, asJSON bool, operands []string) error {
	if !yes && !e.interactive() {
		return withHint(refusef("no terminal to ask on, and no --yes"),
			"galley discard --yes drops the changes; they stay in the trash for 14 days")
	}
	if err := refuseInterrupted(sess); err != nil {
		return err
	}
	p, err := e.proofAt(ctx, sess, "")
	if err != nil {
		return err
	}
	defer p.Close()
	sel, err := p.choose(operands)
	if err != nil {
		return err
	}
	set := p.set
	if sel != nil {
		set = sel.Set
	}
	info := discardInfo{Session: sess.Name(), Discarded: changePaths(pointers(set.Changes))}
	inImages := ""
	if sel == nil {
		if inImages, err = p.inImages(); err != nil {
			return err
		}
	}
	if set.Empty() && inImages == "" {
		if asJSON {
			return ui.JSON(e.stdout, info)
		}
		fmt.Fprintf(e.stderr, "galley: nothing to discard in session %s\n", safeLine(sess.Name()))
		return nil
	}
	if !yes {
		if err := e.askToDiscard(set, inImages); err != nil {
			return err
		}
	}
	d := snapshots.Discard{}
	if sel != nil {
		d.Paths = layerPaths(set)
	}
	trash, err := discard(ctx, sess, d)
	if err != nil {
		return err
	}
	info.Trash, info.Expires = trash.ID, trash.Expires
	if asJSON {
		return ui.JSON(e.stdout, info)
	}
	what := ui.Count(len(set.Changes), "change", "changes")
	if inImages != "" {
		what += " and all " + inImages
	}
	e.tellDiscarded(what, sess, trash)
	return nil
}

func (e *env) tellDiscarded(what string, sess *snapshots.Session, trash snapshots.TrashEntry) {
	fmt.Fprintf(e.stderr, "galley: discarded %s of session %s; galley sessions restore %s brings them back until %s\n",
		what, safeLine(sess.Name()), trash.ID, trash.Expires.Format(time.DateOnly))
}

// discardTree drops changes of a tree on an image, at and below paths in it.
func discardTree(ctx context.Context, e *env, sess *snapshots.Session, tree snapshots.TreeSpec, yes, asJSON bool, operands []string) error {
	if !yes && !e.interactive() {
		return withHint(refusef("no terminal to ask on, and no --yes"),
			"galley discard --tree "+tree.Name+" --yes drops the changes; they stay in the trash for 14 days")
	}
	p, err := e.proofAt(ctx, sess, "")
	if err != nil {
		return err
	}
	defer p.Close()
	if p.set, err = p.imageChanges(ctx, tree); err != nil {
		return err
	}
	set, err := p.selectedIn(tree, operands)
	if err != nil {
		return err
	}
	info := discardInfo{Session: sess.Name(), Discarded: changePaths(pointers(set.Changes))}
	if set.Empty() {
		if asJSON {
			return ui.JSON(e.stdout, info)
		}
		fmt.Fprintf(e.stderr, "galley: nothing to discard in tree %s of session %s\n", tree.Name, safeLine(sess.Name()))
		return nil
	}
	if !yes {
		if err := e.askToDiscard(set, ""); err != nil {
			return err
		}
	}
	paths := layerPaths(set)
	if len(operands) == 0 {
		if paths[tree.Name], err = p.touched(tree); err != nil {
			return err
		}
	}
	trash, err := discard(ctx, sess, snapshots.Discard{Paths: paths})
	if err != nil {
		return err
	}
	info.Trash, info.Expires = trash.ID, trash.Expires
	if asJSON {
		return ui.JSON(e.stdout, info)
	}
	e.tellDiscarded(ui.Count(len(set.Changes), "change", "changes")+" in tree "+tree.Name, sess, trash)
	return nil
}

func (e *env) askToDiscard(set *review.ChangeSet, inImages string) error {
	e.printChanges(pointers(set.Changes), nil)
	what := ui.Count(len(set.Changes), "change", "changes")
	if inImages != "" {
		what += ", and all " + inImages
	}
	yes, err := ui.Ask(e.stderr, e.stdin, "discard "+what+"?")
	if err != nil {
		return err
	}
	if !yes {
		return refusef("nothing was discarded")
	}
	return nil
}

func discard(ctx context.Context, sess *snapshots.Session, d snapshots.Discard) (snapshots.TrashEntry, error) {
	ctrl, err := owner.Control(ctx, sess)
	if err != nil {
		return snapshots.TrashEntry{}, fmt.Errorf("session %q: %w", sess.Name(), err)
	}
	t, err := ctrl.Discard(ctx, d)
	if closeErr := ctrl.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return t, fmt.Errorf("discard changes of session %q: %w", sess.Name(), err)
	}
	return t, nil
}

// layerPaths are the entries in the layers that the changes come from, which
// is what a session drops.
func layerPaths(set *review.ChangeSet) map[string][]snapshots.Path {
	out := map[string][]snapshots.Path{}
	add := func(tree, path string) {
		if p := snapshots.Path(path); !slices.Contains(out[tree], p) {
			out[tree] = append(out[tree], p)
		}
	}
	for i := range set.Changes {
		c := &set.Changes[i]
		add(c.Tree, c.At)
		if c.HasFromAt {
			add(c.Tree, c.FromAt)
		}
	}
	return out
}

func pointers(changes []review.Change) []*review.Change {
	out := make([]*review.Change, len(changes))
	for i := range changes {
		out[i] = &changes[i]
	}
	return out
}
