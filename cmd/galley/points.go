package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/review"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

// point is a session at one snapshot.
type point struct {
	session  *snapshots.Session
	snapshot snapshots.Snapshot
}

// now is the session as it is, sealed for it.
func (e *env) now(ctx context.Context, sess *snapshots.Session) (point, error) {
	snap, err := e.seal(ctx, sess, snapshots.Cause{Kind: snapshots.CauseReview})
	return point{sess, snap}, err
}

// pointOf finds SESSION or SESSION@N, the first as it is now.
func (e *env) pointOf(ctx context.Context, st *snapshots.Store, operand string) (point, error) {
	name, ref, at := strings.Cut(operand, "@")
	sess, err := e.namedSession(st, name)
	if err != nil {
		return point{}, err
	}
	if !at {
		return e.now(ctx, sess)
	}
	snap, err := findSnapshot(sess, ref)
	return point{sess, snap}, err
}

// isNumber tells whether an operand is the number of a snapshot. A file of such
// a name is given as ./12.
func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// twoPoints finds the points that the operands of galley diff name, and the
// paths after them; false where they name none, and all are paths: N, N..M,
// or two sessions.
func (e *env) twoPoints(ctx context.Context, st *snapshots.Store, sess func() (*snapshots.Session, error), operands []string) (from, to point, paths []string, ok bool, err error) {
	if len(operands) == 0 {
		return
	}
	first := operands[0]
	if isNumber(first) || isRange(first) {
		var s *snapshots.Session
		if s, err = sess(); err != nil {
			return
		}
		from, to, err = e.rangeOf(ctx, s, first)
		return from, to, operands[1:], true, err
	}
	if isName(sess, first) {
		s, _ := sess()
		from, to, err = e.rangeOf(ctx, s, first)
		return from, to, operands[1:], true, err
	}
	if len(operands) < 2 || !isSession(st, first) || !isSession(st, operands[1]) {
		return
	}
	if from, err = e.pointOf(ctx, st, first); err == nil {
		to, err = e.pointOf(ctx, st, operands[1])
	}
	return from, to, operands[2:], true, err
}

// isName tells the name of a snapshot from a path.
func isName(sess func() (*snapshots.Session, error), operand string) bool {
	s, err := sess()
	if err != nil || strings.Contains(operand, "/") || exists(operand) {
		return false
	}
	_, err = s.Snapshot(operand)
	return err == nil
}

// isRange tells N..M from a path.
func isRange(s string) bool {
	return strings.Contains(s, "..") && !strings.Contains(s, "/") && s != ".." && !exists(s)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// isSession tells the name of a session from a path.
func isSession(st *snapshots.Store, operand string) bool {
	name, _, _ := strings.Cut(operand, "@")
	if exists(operand) {
		return false
	}
	_, err := st.Find(name)
	return err == nil
}

// rangeOf finds the two points of N (what it was made from, and it), or N..M,
// where an empty N is the base and an empty M what the session is now.
func (e *env) rangeOf(ctx context.Context, sess *snapshots.Session, operand string) (from, to point, err error) {
	a, b, both := strings.Cut(operand, "..")
	from.session, to.session = sess, sess
	if !both {
		if to.snapshot, err = findSnapshot(sess, a); err == nil {
			from.snapshot, err = sess.Before(to.snapshot)
		}
		return from, to, err
	}
	if a == "" {
		a = "0"
	}
	if from.snapshot, err = findSnapshot(sess, a); err != nil {
		return from, to, err
	}
	if b == "" {
		to, err = e.now(ctx, sess)
		return from, to, err
	}
	to.snapshot, err = findSnapshot(sess, b)
	return from, to, err
}

// comparison is the change set between two points, with what it reads from.
type comparison struct {
	proof
	old *snapshots.Sealed
}

// Close gives back what the comparison holds open.
func (c *comparison) Close() {
	c.proof.Close()
	if c.old != nil {
		_ = c.old.Close()
	}
}

// compare computes what the second point has otherwise than the first.
func compare(ctx context.Context, from, to point) (*comparison, error) {
	c := &comparison{proof: proof{session: to.session, snapshot: to.snapshot}}
	var err error
	if c.sealed, err = to.session.OpenStacks(to.snapshot); err == nil {
		c.old, err = from.session.OpenStacks(from.snapshot)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	old := map[string]*overlay.Face{}
	for _, t := range c.old.Trees() {
		old[t.Name] = t.Face
	}
	var pairs []review.Pair
	for _, t := range c.sealed.Trees() {
		pairs = append(pairs, review.Pair{Name: t.Name, Old: old[t.Name], New: t.Face})
		delete(old, t.Name)
	}
	for _, t := range c.old.Trees() {
		if old[t.Name] != nil {
			pairs = append(pairs, review.Pair{Name: t.Name, Old: t.Face})
		}
	}
	if c.set, err = review.Between(ctx, pairs, review.Options{}); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// sameBase refuses to compare sessions of different projects, of which every
// file would differ.
func sameBase(from, to point) error {
	a, b := from.session.Trees()[0].Base, to.session.Trees()[0].Base
	if a == b {
		return nil
	}
	return withHint(fmt.Errorf("session %q is on %q and session %q on %q; only sessions of one project can be compared",
		from.session.Name(), a, to.session.Name(), b), "galley sessions lists all with their projects")
}

// takePaths brings paths of a point into a session.
func (e *env) takePaths(ctx context.Context, sess *snapshots.Session, from point, operands []string) error {
	paths, err := resolvePaths(sess.Trees(), operands)
	if err != nil {
		return err
	}
	take := snapshots.Take{Session: from.session.ID(), Snapshot: from.snapshot.Number, Paths: map[string][]snapshots.Path{}}
	take.From = "snapshot " + nameOf(from.snapshot)
	if from.session.ID() != sess.ID() {
		take.From = from.session.Name() + "@" + fmt.Sprint(from.snapshot.Number)
	}
	for _, p := range paths {
		take.Paths[p.tree] = append(take.Paths[p.tree], snapshots.Path(p.path))
	}
	var done snapshots.Taken
	err = controlled(ctx, sess, func(ctrl owner.Controller) (err error) {
		done, err = ctrl.Take(ctx, take)
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return withHint(err, "paths are relative to this directory, or absolute; TREE:PATH names one in a tree on an image")
	}
	if err != nil {
		return err
	}
	if done.Now.Number == done.Before.Number {
		fmt.Fprintln(e.stdout, "nothing changed: the session has the same there")
		return nil
	}
	fmt.Fprintf(e.stdout, "%s; galley rollback %d takes that back\n", changedCount(done.Now), done.Before.Number)
	return nil
}

func changedCount(s snapshots.Snapshot) string {
	if s.Changed == 1 {
		return "1 path changed"
	}
	return fmt.Sprintf("%d paths changed", s.Changed)
}

// snapshotNames are the names and the latest numbers of the snapshots of the
// session that a command line is about, for completion; it fails silently.
func snapshotNames(e *env, words []string) []string {
	st, err := e.openStore()
	if err != nil {
		return nil
	}
	defer st.Close()
	name := ""
	for i, w := range words {
		if (w == "--session" || w == "-s") && i+1 < len(words) {
			name = words[i+1]
		}
	}
	sess, err := e.findSession(st, name)
	if err != nil {
		return nil
	}
	history, err := sess.History()
	if err != nil {
		return nil
	}
	const few = 20
	var out []string
	for i := len(history) - 1; i >= 0; i-- {
		s := history[i]
		what := "\t" + clipped(whatRan(newSnapshotInfo(s, s)), 40)
		if s.Name != "" {
			out = append(out, s.Name+what)
		}
		if len(out) < few && listed(s) {
			out = append(out, fmt.Sprint(s.Number)+what)
		}
	}
	return out
}
