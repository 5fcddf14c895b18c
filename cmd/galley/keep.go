package main

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/review"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

// keepOlder has the session and its family keep what a commit is about to
// replace, so that no older snapshot and no fork changes with the base.
func keepOlder(ctx context.Context, h *hand, id string, changes []*review.Change) error {
	sess := h.sess
	byBase := map[string][]snapshots.ReplacedPath{}
	for _, t := range sess.Trees() {
		if t.OnImage() {
			continue // nothing of it is committed
		}
		byBase[t.Base] = append(byBase[t.Base], replacedPaths(t.Name, changes)...)
	}
	family, err := sess.Store().Family(sess)
	if err != nil {
		return err
	}
	for _, s := range append([]*snapshots.Session{sess}, family...) {
		r := snapshots.Replacing{Commit: id, Paths: map[string][]snapshots.ReplacedPath{}, Live: s != sess}
		for _, t := range s.Trees() {
			if paths := byBase[t.Base]; len(paths) > 0 && !t.OnImage() {
				r.Paths[t.Name] = paths
			}
		}
		if err := keepIn(ctx, h, s, r); err != nil {
			hint := "galley status --session " + s.Name() + " tells what uses it"
			if s.InTrash() {
				hint = "it is in the trash: galley sessions restore " + s.ID() + " brings it back"
			}
			return withHint(fmt.Errorf("keep the snapshots of session %q as they are: %w; nothing was committed", s.Name(), err), hint)
		}
	}
	return nil
}

// keepIn has one of them do it; h is the hold on the session that is committed.
func keepIn(ctx context.Context, h *hand, s *snapshots.Session, r snapshots.Replacing) error {
	replacing := func(ctrl owner.Controller) error { return ctrl.Replacing(ctx, r) }
	if s == h.sess {
		return h.do(ctx, replacing)
	}
	if len(r.Paths) == 0 {
		return nil
	}
	// The directory of another of its trees may be gone, which is none of the
	// commit's business.
	other := &hand{sess: s, upTo: slices.Collect(maps.Keys(r.Paths))}
	err := other.do(ctx, replacing)
	if closeErr := other.letGo(); err == nil {
		err = closeErr
	}
	return err
}

// replacedPaths are the paths of a tree's base that changes touch.
func replacedPaths(tree string, changes []*review.Change) []snapshots.ReplacedPath {
	var out []snapshots.ReplacedPath
	for _, c := range changes {
		if c.Tree != tree {
			continue
		}
		// A directory that stays one keeps what is in it.
		whole := c.Kind == review.Deleted || c.Kind == review.TypeChanged
		out = append(out, snapshots.ReplacedPath{Path: snapshots.Path(c.Path), Whole: whole})
		if c.Kind == review.Renamed {
			dir := c.Old != nil && c.Old.Mode&unix.S_IFMT == unix.S_IFDIR
			out = append(out, snapshots.ReplacedPath{Path: snapshots.Path(c.From), Whole: dir})
		}
	}
	return out
}
