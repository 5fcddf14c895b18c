package snapshots

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/galleyfs/galley/overlay"
)

// A commit changes the base under every older snapshot, and under the forks. So
// that none of them changes, what it is about to replace is kept first, as a
// layer directly above the base: for the snapshots of the session itself, whose
// live view is to show the base as the commit leaves it, and for the snapshots
// and the live view of every fork. Until the commit writes, such a layer shows
// what the base shows, so that it does no harm where the commit then fails.

// maxReplaced bounds how many such layers the snapshots of a session need.
const maxReplaced = 4096

// replaced is the record of one such layer.
type replaced struct {
	Layer overlay.LayerID `json:"layer"`
	// Trees have the layer.
	Trees []string `json:"trees"`
	// Until is the latest snapshot that needs it. The stacks in later lines of
	// the history name it themselves where they do.
	Until  overlay.LayerID `json:"until"`
	Commit string          `json:"commit"`
	Time   time.Time       `json:"time"`
}

// Replacing announces what a commit is about to replace.
type Replacing struct {
	// Commit is the commit's id, for the record.
	Commit string `json:"commit"`
	// Paths are paths of each tree's base, by the tree's name.
	Paths map[string][]ReplacedPath `json:"paths"`
	// Live: the live view is to stay as it is, too. It is false for the
	// session that is committed.
	Live bool `json:"live,omitempty"`
}

// ReplacedPath is a path of a base that a commit is about to replace.
type ReplacedPath struct {
	Path Path `json:"path"`
	// Whole: a directory there goes, or becomes another one.
	Whole bool `json:"whole,omitempty"`
}

// Replacing keeps what a commit is about to replace for all snapshots that
// there are, durably.
func (l *Live) Replacing(ctx context.Context, r Replacing) error {
	for tree, paths := range r.Paths {
		var list []Path
		for _, p := range paths {
			list = append(list, p.Path)
		}
		if err := l.checkPaths(map[string][]Path{tree: list}); err != nil {
			return err
		}
	}
	if err := l.acquirePart(ctx); err != nil {
		return err
	}
	defer l.releaseSem()
	if err := l.replacing(r); err != nil {
		return fmt.Errorf("session %s: %w", l.held.Name(), err)
	}
	return nil
}

func (l *Live) replacing(r Replacing) error {
	if err := l.held.store.checkRoom(); err != nil {
		return err
	}
	// The nodes of all snapshots are to be known, so that what is kept are the
	// same ones.
	history, err := l.held.History()
	if err != nil {
		return err
	}
	for _, snap := range history {
		for _, t := range l.trees {
			if err := t.Load(snap.Stacks[t.Name()]); err != nil {
				return err
			}
		}
	}
	m := l.held.man.Load().clone()
	n := overlay.Replaced - overlay.LayerID(m.Replacements)
	rec := replaced{Layer: n, Until: m.active() - 1, Commit: r.Commit, Time: l.held.store.now().UTC()}
	for i, t := range l.trees {
		var paths []overlay.Preserved
		for _, p := range r.Paths[t.Name()] {
			paths = append(paths, overlay.Preserved{Path: string(p.Path), Whole: p.Whole})
		}
		if len(paths) == 0 {
			continue
		}
		if err := t.Preserve(n, paths); err != nil {
			return err
		}
		if err := l.madeLayer(t.Name(), n); err != nil {
			return err
		}
		rec.Trees = append(rec.Trees, t.Name())
		if r.Live {
			m.Trees[i].Stack.Sealed = append([]overlay.Range{{From: n, To: n}}, m.Trees[i].Stack.Sealed...)
		}
	}
	if len(rec.Trees) == 0 {
		return nil
	}
	m.Replacements++
	m.Replaced = append(m.Replaced, rec)
	if !r.Live {
		return l.held.updateWith(func(old *manifest) { *old = *m })
	}
	return l.restack(m)
}

// restack gives the trees the stacks of m, which show the same as before.
//
// Preconditions: sem is held.
func (l *Live) restack(m *manifest) error {
	for i, t := range l.trees {
		if err := t.Load(m.Trees[i].Stack); err != nil {
			return err
		}
	}
	err := l.switchTo(m, withAll, nil, nil, func(q *quiesced) error {
		for i := range l.trees {
			if err := q.rest.Restack(i, m.Trees[i].Stack); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := l.fs().Fsync(l.held.dir); err != nil {
		return fmt.Errorf("sync the session's directory: %w", err)
	}
	return nil
}

// checkReplaced checks the records of replaced files.
func (m *manifest) checkReplaced() error {
	if len(m.Replaced) > maxReplaced {
		return fmt.Errorf("%d layers of replaced files; up to %d are possible; galley prune makes them fewer", len(m.Replaced), maxReplaced)
	}
	for _, r := range m.Replaced {
		if r.Layer > overlay.Replaced || r.Layer <= overlay.Replaced-overlay.LayerID(m.Replacements) || r.Until < 0 || r.Until >= m.active() {
			return fmt.Errorf("layer %d of replaced files, up to snapshot %d", r.Layer, r.Until)
		}
	}
	return nil
}

// withReplaced adds to a snapshot's stacks what was replaced under it since, and
// the images that trees stand on.
func (m *manifest) withReplaced(s Snapshot) Snapshot {
	s = m.withImages(s)
	cloned := false
	for _, r := range m.Replaced {
		if s.Number > r.Until {
			continue
		}
		for _, tree := range r.Trees {
			stack, ok := s.Stacks[tree]
			if !ok || contains(stack.Sealed, r.Layer) {
				continue
			}
			if !cloned {
				stacks := make(map[string]overlay.Stack, len(s.Stacks))
				for k, v := range s.Stacks {
					stacks[k] = v
				}
				s.Stacks, cloned = stacks, true
			}
			s.Stacks[tree] = overlay.Stack{Sealed: union(stack.Sealed, []overlay.Range{{From: r.Layer, To: r.Layer}})}
		}
	}
	return s
}

// under are the layers of replaced files, or of an image, in ranges.
func under(ranges []overlay.Range) []overlay.Range { return clip(ranges, minLayer, overlay.Replaced) }

// Family are the other sessions that have layers in common with sess: those
// that it was forked from, and all their forks. Those in the trash are among
// them, since they may come back: they can be opened for [Live.Replacing] and
// must not be changed otherwise.
func (s *Store) Family(sess *Session) ([]*Session, error) {
	m := sess.man.Load()
	id := m.Family
	if id == "" {
		id = m.ID
	}
	infos, err := s.List()
	if err != nil {
		return nil, err
	}
	var all []*Session
	for _, i := range infos {
		if i.Err != nil || i.ID == sess.id {
			continue
		}
		other, err := s.load(i.ID)
		if err != nil {
			return nil, err
		}
		all = append(all, other)
	}
	trash, err := s.Trash()
	if err != nil {
		return nil, err
	}
	for _, t := range trash {
		if t.Kind != TrashSession {
			continue
		}
		other := &Session{store: s, id: t.ID, trashed: true}
		if err := other.Reload(); err != nil {
			return nil, err
		}
		all = append(all, other)
	}
	var out []*Session
	for _, other := range all {
		if om := other.man.Load(); om.ID == id || om.Family == id {
			out = append(out, other)
		}
	}
	slices.SortFunc(out, func(a, b *Session) int { return a.Created().Compare(b.Created()) })
	return out, nil
}
