package snapshots

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// Take brings paths of a snapshot, of this session or another, into what the
// session shows: they become what they are there, or go where the snapshot has
// nothing. What the session was until now is sealed first; where Take fails
// half-way it is returned to.
func (l *Live) Take(ctx context.Context, t Take) (Taken, error) {
	if err := l.checkPaths(t.Paths); err != nil {
		return Taken{}, err
	}
	if err := l.acquire(ctx); err != nil {
		return Taken{}, err
	}
	defer l.releaseSem()
	out, err := l.take(ctx, t)
	if err != nil {
		return out, fmt.Errorf("session %s: %w", l.held.Name(), err)
	}
	return out, nil
}

func (l *Live) take(ctx context.Context, t Take) (out Taken, err error) {
	src, err := l.takeFrom(t)
	if err != nil {
		return out, err
	}
	defer src.Close()
	what := fmt.Sprintf("%d paths of %s", countPaths(t.Paths), t.From)
	if countPaths(t.Paths) == 1 {
		what = "a path of " + t.From
	}
	if l.dirty() {
		if _, err := l.seal(SealOptions{Cause: Cause{Kind: CauseBefore, Text: what}}); err != nil {
			return out, err
		}
	}
	out.Before = l.held.Last()
	// Should the process end before all is there, the next open goes back.
	if err := l.held.update(func(m *manifest) { m.Taking = &out.Before.Number }); err != nil {
		return out, err
	}
	for _, tree := range src.trees {
		if len(t.Paths[tree.Name]) == 0 {
			continue
		}
		if err := l.takeTree(ctx, tree, t.Paths[tree.Name]); err != nil {
			// The way back is not given up when ctx is.
			back := l.endTake(context.WithoutCancel(ctx), out.Before.Number)
			return out, errors.Join(fmt.Errorf("tree %q: %w; nothing was taken", tree.Name, err), back)
		}
	}
	out.Now = out.Before
	if !l.dirty() {
		return out, l.endTake(ctx, out.Before.Number)
	}
	out.Now, err = l.seal(SealOptions{Cause: Cause{Kind: CausePaths, Text: what}})
	return out, err
}

// endTake ends a take that did not come to its end, or had nothing to do.
func (l *Live) endTake(ctx context.Context, before overlay.LayerID) error {
	if l.dirty() {
		_, err := l.rollback(ctx, Rollback{To: before})
		return err
	}
	return l.held.update(func(m *manifest) { m.Taking = nil })
}

// takeFrom opens the snapshot that paths are taken from, and checks that each
// is in it or in the session.
func (l *Live) takeFrom(t Take) (*Sealed, error) {
	sess := l.held.Session
	if t.Session != "" && t.Session != sess.id {
		var err error
		if sess, err = sess.store.load(t.Session); err != nil {
			return nil, err
		}
	}
	src, err := sess.OpenSealed(t.Snapshot)
	if err != nil {
		return nil, err
	}
	for tree, paths := range t.Paths {
		var from *overlay.Face
		for _, s := range src.trees {
			if s.Name == tree {
				from = s.Face
			}
		}
		err := l.checkTaken(tree, from, paths)
		if err != nil {
			_ = src.Close()
			return nil, err
		}
	}
	return src, nil
}

func (l *Live) checkTaken(tree string, from *overlay.Face, paths []Path) error {
	if from == nil {
		return fmt.Errorf("tree %q of the other session: %w", tree, ErrNotFound)
	}
	mine := l.Tree(tree).Attach(nil)
	defer mine.Detach()
	for _, p := range paths {
		there, err := has(from, string(p))
		if err == nil && !there {
			there, err = has(mine, string(p))
		}
		if err == nil && !there {
			err = unix.ENOENT
		}
		if err != nil {
			return fmt.Errorf("%q, in the snapshot and in the session: %w", string(p), err)
		}
	}
	return nil
}

func (l *Live) takeTree(ctx context.Context, from SealedTree, paths []Path) error {
	dst := l.Tree(from.Name).Attach(nil)
	defer dst.Detach()
	t := &transplant{ctx: ctx, src: from.Face, dst: dst, made: map[uint64]string{}}
	for _, p := range paths {
		if err := t.path(string(p)); err != nil {
			return err
		}
	}
	return nil
}
