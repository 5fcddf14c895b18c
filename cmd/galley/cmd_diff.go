package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/review"
	"github.com/galleyfs/galley/review/termsafe"
	"github.com/galleyfs/galley/snapshots"
)

// diffOptions choose how a change set is shown.
type diffOptions struct {
	stat, nameStatus, json bool
	session                string
	snapshot               string
	tree                   string
}

func diffCommand(e *env) *cli.Command {
	return manual{
		usage: []string{
			"diff [--stat | --name-status | --json] [--session NAME] [--snapshot N] [--tree NAME] [PATHS…]",
			"diff [--stat | --name-status | --json] [--session NAME] N | N..M [PATHS…]",
			"diff [--stat | --name-status | --json] SESSION1[@N] SESSION2[@M] [PATHS…]",
		},
		about: `
Shows what the session changed, as a patch that git apply takes, binary files included.
What a patch cannot carry (empty directories, exact modes, owners, extended attributes,
special files) is listed on standard error; galley commit carries it all the same.

A session at work is sealed for it and works on. PATHS are files and directories; they
need not be there any more.

With a number or name of galley log, N, it shows what that command or call changed; with
N..M what lies between two of them (N.. is up to now, ..M from the base); with two
sessions, what the second has otherwise than the first. Such a difference is for reading:
it has no digest that could be committed. A file called 12 is given as ./12.

A tree that stands on an image, such as root in a microVM, is shown with --tree alone, and
PATHS are then paths in it. It is never committed; galley image from keeps its changes.`,
		json: review.JSONHelp,
		examples: [][2]string{
			{"galley diff", "the whole patch"},
			{"galley diff --stat", "a line for each file, with a sum"},
			{"galley diff --name-status src docs", "letters A M D R T, below two directories"},
			{"galley diff | git -C ../copy apply", "the same changes on a copy of the base"},
			{"galley diff 12", "what the command at 12 in galley log changed"},
			{"galley diff 3..green --stat", "from snapshot 3 to the one called green"},
			{"galley diff app second-try", "two attempts"},
			{"galley diff --tree root --stat", "what was changed in the guest's own file system"},
			{"galley diff --json | jq -r .digest", "the digest that galley commit --digest takes"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "diff", Category: catWork, Usage: "show what the session changed", ArgsUsage: "PATHS…",
		Flags: []cli.Flag{
			boolFlag("stat", "one line for each file and a sum"),
			boolFlag("name-status", "a letter and the name of each file"),
			jsonFlag(), sessionFlag(),
			&cli.StringFlag{Name: "tree", Usage: "only the tree `NAME`, such as workspace or root"},
			&cli.StringFlag{Name: "snapshot", Usage: "show the session as it was at snapshot `N`, sealed earlier"},
		},
		Action: func(c *cli.Context) error {
			o := diffOptions{
				stat: c.Bool("stat"), nameStatus: c.Bool("name-status"), json: c.Bool("json"),
				session: c.String("session"), snapshot: c.String("snapshot"), tree: c.String("tree"),
			}
			if atMostOne(o.stat, o.nameStatus, o.json) != nil {
				return usagef(c, "--stat, --name-status and --json exclude each other")
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return runDiff(ctx, e, st, o, c.Args().Slice())
			})
		},
	})
}

// atMostOne fails when more than one of its arguments is set.
func atMostOne(set ...bool) error {
	n := 0
	for _, s := range set {
		if s {
			n++
		}
	}
	if n > 1 {
		return fmt.Errorf("%d of the options exclude each other", n)
	}
	return nil
}

func runDiff(ctx context.Context, e *env, st *snapshots.Store, o diffOptions, operands []string) error {
	sess, err := e.findSession(st, o.session)
	from, to, paths, between, perr := e.twoPoints(ctx, st, func() (*snapshots.Session, error) { return sess, err }, operands)
	if perr != nil {
		return perr
	}
	if between {
		return e.diffPoints(ctx, from, to, o, paths)
	}
	if err != nil {
		return err
	}
	p, err := e.proofAt(ctx, sess, o.snapshot)
	if err != nil {
		return err
	}
	defer p.Close()
	if o.tree != "" {
		return e.diffTree(ctx, p, o, operands)
	}
	set, err := p.selected(operands)
	if err != nil {
		return err
	}
	e.remember(p, set)
	e.tellDrift(set)
	return e.show(ctx, set, o)
}

// diffTree shows one tree.
func (e *env) diffTree(ctx context.Context, p *proof, o diffOptions, operands []string) error {
	tree, err := treeOf(p.session, o.tree)
	if err != nil {
		return err
	}
	if tree.OnImage() {
		if p.set, err = p.imageChanges(ctx, tree); err != nil {
			return err
		}
	}
	set, err := p.selectedIn(tree, operands)
	if err != nil {
		return err
	}
	if !tree.OnImage() {
		e.remember(p, set)
		e.tellDrift(set)
	}
	return e.show(ctx, set, o)
}

// diffPoints shows what the second point has otherwise than the first.
func (e *env) diffPoints(ctx context.Context, from, to point, o diffOptions, operands []string) error {
	if err := sameBase(from, to); err != nil {
		return err
	}
	c, err := compare(ctx, from, to)
	if err != nil {
		return err
	}
	defer c.Close()
	var set *review.ChangeSet
	if o.tree == "" {
		set, err = c.selected(operands)
	} else if tree, terr := treeOf(c.session, o.tree); terr != nil {
		err = terr
	} else {
		set, err = c.selectedIn(tree, operands)
	}
	if err != nil {
		return err
	}
	return e.show(ctx, set, o)
}

// proofAt is the proof of a snapshot sealed earlier, or with no ref of the
// session as it is now.
func (e *env) proofAt(ctx context.Context, sess *snapshots.Session, ref string) (*proof, error) {
	progress := e.progress("computing the changes")
	defer progress.Close()
	if ref == "" {
		return e.takeProof(ctx, sess, snapshots.Cause{Kind: snapshots.CauseReview})
	}
	snap, err := sess.Snapshot(ref)
	if err != nil {
		return nil, fmt.Errorf("session %q: %w", sess.Name(), err)
	}
	return openProof(ctx, sess, snap)
}

func (e *env) show(ctx context.Context, set *review.ChangeSet, o diffOptions) error {
	switch {
	case o.json:
		return review.WriteJSON(e.stdout, set)
	case o.stat:
		return review.WriteStat(ctx, e.stdout, set)
	case o.nameStatus:
		return review.WriteNameStatus(ctx, e.stdout, set)
	}
	left, err := e.writePatch(ctx, set)
	if err != nil {
		return err
	}
	for _, u := range left {
		fmt.Fprintf(e.stderr, "galley: not in the patch: %s\n", safeLine(u.String()))
	}
	return nil
}

// writePatch writes the bytes as they are, for git apply, or to a terminal
// with colours and nothing that could act on it.
func (e *env) writePatch(ctx context.Context, set *review.ChangeSet) ([]review.Uncarried, error) {
	if !ui.IsTerminal(e.stdout) {
		return review.WritePatch(ctx, e.stdout, set, review.PatchOptions{})
	}
	safe := termsafe.NewDiffWriter(e.stdout, termsafe.NewPalette(e.stdout, e.getenv))
	left, err := review.WritePatch(ctx, safe, set, review.PatchOptions{NoBinary: true})
	if flushErr := safe.Flush(); err == nil {
		err = flushErr
	}
	return left, err
}

// tellDrift names the changes that a commit would refuse.
func (e *env) tellDrift(set *review.ChangeSet) {
	for _, c := range set.Drifted() {
		fmt.Fprintf(e.stderr, "galley: %s %s: %s\n", e.err.Yellow("drift:"), safeLine(c.Drift.Path), safeLine(c.Drift.Text))
	}
}
