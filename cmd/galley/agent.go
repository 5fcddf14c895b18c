package main

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/review"
	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/events"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/sandbox/tools"
	"github.com/galleyfs/galley/snapshots"
)

// agentFlags are the options of the commands that land tools in a session.
func agentFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "base", Usage: "the project `DIR` (default: the nearest directory upwards that has a .git, else this one)"},
		&cli.StringFlag{Name: "session", Aliases: []string{"s"}, Usage: "use the session `NAME`; with --new, give the new one this name"},
		boolFlag("new", "start a new session, even if the project has one"),
		maxSizeFlag(), sandboxFlag(), secretFlag(),
	}, append(guestFlags(), sandboxFlags()...)...)
}

// agentOptions are those options.
func agentOptions(e *env, c *cli.Context) (runOptions, error) {
	o := runOptions{base: c.String("base"), session: c.String("session"), create: c.Bool("new")}
	if o.base != "" && o.session != "" && !o.create {
		return o, usagef(c, "--base chooses a project and --session a session; give one of them, or --new")
	}
	var err error
	if o.maxSize, err = maxSizeOf(c); err != nil {
		return o, err
	}
	if o.sandbox, err = sandboxOptionsOf(c); err != nil {
		return o, err
	}
	return o, o.sandbox.more(c, e)
}

// toolSet makes the tools over a sandbox of a session, which the first call
// starts.
func (e *env) toolSet(sess *snapshots.Session, o sandboxOptions, client string) *tools.Set {
	p := &place{e: e, sess: sess, opt: o, what: client}
	return tools.New(tools.Options{
		Client:  client,
		History: &agentHistory{e, sess, p},
		Events:  e.events(sess),
		Secrets: o.secrets,
		Sandbox: p.open,
	})
}

// agentHistory is what of a session's history an agent may use. It holds no
// way to commit.
type agentHistory struct {
	e     *env
	sess  *snapshots.Session
	place *place
}

var _ tools.History = (*agentHistory)(nil)

// control runs fn with the session's owner, or under its lock.
func (h *agentHistory) control(ctx context.Context, fn func(owner.Controller) error) error {
	ctrl, err := h.place.control(ctx)
	if err != nil {
		return err
	}
	err = fn(ctrl)
	if closeErr := ctrl.Close(); err == nil {
		err = closeErr
	}
	return err
}

// Before is [tools.History.Before].
func (h *agentHistory) Before(ctx context.Context, c tools.Checkpoint) error {
	_, err := h.seal(ctx, snapshots.SealOptions{Cause: causeOf(c, snapshots.CauseBefore)})
	return err
}

// Checkpoint is [tools.History.Checkpoint].
func (h *agentHistory) Checkpoint(ctx context.Context, c tools.Checkpoint) (tools.Sealed, error) {
	cause := causeOf(c, snapshots.CauseTool)
	snap, err := h.seal(ctx, snapshots.SealOptions{Cause: cause, Calls: c.Calls, Self: c.Self})
	if err != nil {
		return tools.Sealed{}, err
	}
	return sealedOf(snap, cause), nil
}

func causeOf(c tools.Checkpoint, kind snapshots.CauseKind) snapshots.Cause {
	return snapshots.Cause{Kind: kind, Text: c.Tool, Args: c.Args, Start: c.Start, Duration: c.Duration, Exit: c.Exit}
}

// sealedOf is what a seal of that cause made: nothing, where it found that
// nothing had changed and answered with the snapshot before.
func sealedOf(snap snapshots.Snapshot, cause snapshots.Cause) tools.Sealed {
	if snap.Cause.Kind != cause.Kind || !snap.Cause.Start.Equal(cause.Start) {
		return tools.Sealed{}
	}
	out := tools.Sealed{Number: int(snap.Number), Changed: snap.Changed}
	for _, c := range snap.Changes {
		tree := c.Tree
		if tree == snapshots.Workspace {
			tree = ""
		}
		out.Changes = append(out.Changes, events.Change{Tree: tree, Path: strings.ToValidUTF8(string(c.Path), "\ufffd"), Kind: string(c.Kind), By: c.By})
	}
	return out
}

func (h *agentHistory) seal(ctx context.Context, opt snapshots.SealOptions) (snap snapshots.Snapshot, err error) {
	err = h.control(ctx, func(ctrl owner.Controller) error {
		snap, err = ctrl.Seal(ctx, opt)
		return err
	})
	return snap, err
}

// proof is the session's proof now, or the part of it that paths name.
func (h *agentHistory) proof(ctx context.Context, paths []string, cause snapshots.Cause) (*proof, *review.ChangeSet, error) {
	snap, err := h.seal(ctx, snapshots.SealOptions{Cause: cause})
	if err != nil {
		return nil, nil, fmt.Errorf("seal session %q: %w", h.sess.Name(), err)
	}
	p, err := openProof(ctx, h.sess, snap)
	if err != nil {
		return nil, nil, err
	}
	abs := make([]string, len(paths))
	for i, path := range paths {
		if abs[i] = path; !filepath.IsAbs(path) {
			abs[i] = filepath.Join(h.sess.Trees()[0].Mount, path)
		}
	}
	set, err := p.selected(abs)
	if err != nil {
		p.Close()
		return nil, nil, err
	}
	return p, set, nil
}

// Diff is [tools.History.Diff].
func (h *agentHistory) Diff(ctx context.Context, paths []string, summary bool) (string, error) {
	p, set, err := h.proof(ctx, paths, snapshots.Cause{Kind: snapshots.CauseReview})
	if err != nil {
		return "", err
	}
	defer p.Close()
	var b bytes.Buffer
	if summary {
		err = review.WriteNameStatus(ctx, &b, set)
	} else {
		_, err = review.WritePatch(ctx, &b, set, review.PatchOptions{NoBinary: true})
	}
	return b.String(), err
}

// Log is [tools.History.Log].
func (h *agentHistory) Log(_ context.Context, limit int) ([]tools.Point, error) {
	if err := h.sess.Reload(); err != nil {
		return nil, err
	}
	history, err := h.sess.History()
	if err != nil {
		return nil, err
	}
	last := h.sess.Last()
	var out []tools.Point
	for i := len(history) - 1; i >= 0 && len(out) < limit; i-- {
		if listed(history[i]) {
			out = append(out, pointOf(history[i], last))
		}
	}
	return out, nil
}

// shownPaths is how many paths a point names.
const shownPaths = 10

func pointOf(s, last snapshots.Snapshot) tools.Point {
	info := newSnapshotInfo(s, last)
	p := tools.Point{Number: int(s.Number), Name: s.Name, What: whatRan(info), Time: s.Time, Changed: s.Changed}
	for _, c := range info.Changes[:min(shownPaths, len(info.Changes))] {
		p.Paths = append(p.Paths, safePath(c.Path))
	}
	return p
}

// Snapshot is [tools.History.Snapshot].
func (h *agentHistory) Snapshot(ctx context.Context, name string) (tools.Point, error) {
	var out tools.Point
	err := h.control(ctx, func(ctrl owner.Controller) error {
		s, err := ctrl.Seal(ctx, snapshots.SealOptions{Name: name, Cause: snapshots.Cause{Kind: snapshots.CauseAsked}, Durable: true})
		out = pointOf(s, s)
		return err
	})
	return out, err
}

// Rollback is [tools.History.Rollback].
func (h *agentHistory) Rollback(ctx context.Context, to string) (now, before tools.Point, err error) {
	if err := refuseInterrupted(h.sess); err != nil {
		return now, before, err
	}
	if err := h.sess.Reload(); err != nil {
		return now, before, err
	}
	snap, err := h.sess.Snapshot(to)
	if err != nil {
		return now, before, sandbox.Errorf(sandbox.NotFound, "rollback", to, "%w; Log lists the points", err)
	}
	err = h.control(ctx, func(ctrl owner.Controller) error {
		done, err := ctrl.Rollback(ctx, snapshots.Rollback{To: snap.Number})
		now, before = pointOf(done.Now, done.Now), pointOf(done.Before, done.Now)
		return err
	})
	return now, before, err
}

// RequestReview is [tools.History.RequestReview]. The request is a point of the
// history with the agent's message, and its digest is remembered as one that
// can be committed by name.
func (h *agentHistory) RequestReview(ctx context.Context, message string) (tools.Review, error) {
	p, set, err := h.proof(ctx, nil, snapshots.Cause{Kind: snapshots.CauseReview, Text: message, Start: time.Now()})
	if err != nil {
		return tools.Review{}, err
	}
	defer p.Close()
	if set.Empty() {
		return tools.Review{}, sandbox.Errorf(sandbox.NotFound, "request review", "", "the session has changed nothing")
	}
	h.e.remember(p, set)
	return tools.Review{
		Digest: set.Digest().String(), Changes: len(set.Changes), Summary: review.Summary(set),
		Command: "galley diff --session " + strconv.Quote(h.sess.Name()),
	}, nil
}

// inSession finds or makes the session and runs fn with its tools.
func (e *env) inSession(ctx context.Context, o runOptions, client string, fn func(*snapshots.Session, *tools.Set) error) error {
	return e.withStore(ctx, func(ctx context.Context, st *snapshots.Store) error {
		sess, _, err := e.runSession(ctx, st, o)
		if err != nil {
			return err
		}
		set := e.toolSet(sess, o.sandbox, client)
		err = fn(sess, set)
		if closeErr := set.Close(); err == nil && closeErr != nil {
			err = fmt.Errorf("close the sandbox: %w", closeErr)
		}
		return err
	})
}
