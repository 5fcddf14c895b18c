package snapshots

import (
	"context"
	"fmt"
	"strings"

	"github.com/galleyfs/galley/overlay"
)

// Committed and discarded entries leave a session's layers in one step of the
// manifest, with the programs held:
//
//  1. Two numbers are taken, and the first is noted as that of a layer being
//     built: should the process end now, the next open removes it.
//  2. What all layers of an affected tree show, the active one included, is
//     written as that layer, without the entries.
//  3. One manifest makes it the only sealed layer, below a new active one, and
//     lists the layers that left as retired.
//
// The retired layers stay on the disk, where the history and the trash refer
// to them, until GC finds them past the retention: whatever they held is in
// the base, was discarded, or is in the new layer.

// Committed takes the committed entries out of the session's layers, so that
// they do not mask later edits of the host. What changed at a committed path
// after the snapshot stays.
func (l *Live) Committed(ctx context.Context, c Committed) (Snapshot, error) {
	if err := l.checkPaths(c.Paths); err != nil {
		return Snapshot{}, err
	}
	if err := l.acquire(ctx); err != nil {
		return Snapshot{}, err
	}
	defer l.releaseSem()
	if c.Snapshot == 0 || c.Snapshot > l.held.Last().Number {
		return Snapshot{}, fmt.Errorf("session %s: snapshot %d: %w; the latest is %d",
			l.held.Name(), c.Snapshot, ErrNotFound, l.held.Last().Number)
	}
	return l.retire(retirement{
		cause:   Cause{Kind: CauseCommit, Text: c.Commit},
		affects: func(tree string) bool { return len(c.Paths[tree]) > 0 },
		keep: func(tree string) overlay.Keep {
			set := exactPaths(c.Paths[tree])
			return overlay.Keep{Drop: func(path string) bool { return set[path] }, UpTo: c.Snapshot}
		},
	})
}

// Discard drops changes. They can be brought back with [Store.Restore] until
// the retention is over, as long as the session did not change meanwhile.
func (l *Live) Discard(ctx context.Context, d Discard) (TrashEntry, error) {
	if err := l.checkPaths(d.Paths); err != nil {
		return TrashEntry{}, err
	}
	if err := l.acquire(ctx); err != nil {
		return TrashEntry{}, err
	}
	defer l.releaseSem()
	id := newID()
	_, err := l.retire(retirement{
		cause:   Cause{Kind: CauseDiscard, Text: id},
		trash:   id,
		count:   countPaths(d.Paths),
		affects: func(tree string) bool { return d.Paths == nil || len(d.Paths[tree]) > 0 },
		keep: func(tree string) overlay.Keep {
			if d.Paths == nil {
				return overlay.Keep{Drop: func(string) bool { return true }}
			}
			return overlay.Keep{Drop: exactPaths(d.Paths[tree]).covers}
		},
	})
	if err != nil {
		return TrashEntry{}, err
	}
	return l.held.store.trashEntry(id)
}

// retirement is one removal of entries from the layers.
type retirement struct {
	cause Cause
	trash string // id of the element of the trash to make, or ""
	count int    // of paths, for that element
	// affects tells which trees lose something; the others keep their layers.
	affects func(tree string) bool
	// keep says what an affected tree keeps.
	keep func(tree string) overlay.Keep
	// beneath is the number for a layer of replaced files that takes the place
	// of those in a stack, without what a commit has just written to the base.
	beneath overlay.LayerID
}

// under are the layers of replaced files that a tree with the layers all keeps.
func (r *retirement) under(all []overlay.Range) []overlay.Range {
	have := under(all)
	if len(have) > 0 && r.cause.Kind == CauseCommit {
		return []overlay.Range{{From: r.beneath, To: r.beneath}}
	}
	return have
}

// retire does the three steps.
//
// Preconditions: sem is held.
func (l *Live) retire(r retirement) (Snapshot, error) {
	snap, err := l.tryRetire(r)
	if err != nil {
		return snap, fmt.Errorf("session %s: %w", l.held.Name(), err)
	}
	return snap, nil
}

func (l *Live) tryRetire(r retirement) (Snapshot, error) {
	if err := l.held.store.checkRoom(); err != nil {
		return Snapshot{}, err
	}
	built := l.held.man.Load().Next
	next := built + 1
	r.beneath = overlay.Replaced - overlay.LayerID(l.held.man.Load().Replacements)
	if err := l.held.update(func(m *manifest) { m.Building, m.Next, m.Replacements = built, next+1, m.Replacements+1 }); err != nil {
		return Snapshot{}, err
	}
	if err := l.prepare(next, false); err != nil {
		return Snapshot{}, err
	}
	q := l.quiesce(r.affects)
	defer q.release()
	m, stacks, points := l.planRetirement(r, built, next)
	if err := l.flatten(r, built); err != nil {
		return Snapshot{}, err
	}
	if r.trash != "" {
		if err := l.recordDiscard(r, points[0], built, m.Last.Time); err != nil {
			return Snapshot{}, err
		}
	}
	// The layer that was built, the next one and the manifest that names them
	// get on the disk together, with all that lies below.
	durable := l.durable
	if q.rest == nil {
		// Else a seal follows, which may still write to a record.
		l.durable = built
	}
	err := l.switchTo(m, withAll, q, nil, func(q *quiesced) error {
		if q.rest != nil {
			if err := q.rest.Seal(next); err != nil {
				return err
			}
		}
		return switchAll(q.flat, stacks)
	})
	if err != nil {
		l.durable = durable
		return Snapshot{}, err
	}
	snap := m.last()
	for _, p := range append(points[1:], snap) {
		if err := appendHistory(l.fs(), l.held.dir, historyLine{Snapshot: p}, false); err != nil {
			return snap, err
		}
	}
	if err := l.fs().Syncfs(l.held.dir); err != nil {
		return snap, fmt.Errorf("sync the session's directory: %w", err)
	}
	l.durable = built
	return snap, nil
}

// planRetirement makes the manifest of the third step and the new stacks of
// the affected trees. points are the session as it is before the step: first
// as a snapshot to return to, and then again where the history has to have it
// because the active layer is not empty.
//
// Preconditions: sem is held, and no operation is in flight.
func (l *Live) planRetirement(r retirement, built, next overlay.LayerID) (m *manifest, stacks []overlay.Stack, points []Snapshot) {
	m = l.held.man.Load().clone()
	active := m.active()
	now := l.held.store.now().UTC()
	before := Snapshot{Number: active, Cause: r.cause, Time: now, Stacks: map[string]overlay.Stack{}}
	gone := retired{Layers: map[string][]overlay.Range{}, Time: now, Cause: r.cause, Trash: r.trash}
	for i := range m.Trees {
		t := &m.Trees[i]
		all := addLayer(t.Stack.Sealed, active)
		before.Stacks[t.Name] = overlay.Stack{Sealed: all}
		t.Stack = overlay.Stack{Sealed: all, Active: next}
		if r.affects(t.Name) {
			t.Stack.Sealed = append(r.under(all), overlay.Range{From: built, To: built})
			gone.Layers[t.Name] = without(all, t.Stack.Sealed)
			stacks = append(stacks, t.Stack)
		}
	}
	points = []Snapshot{before}
	if l.dirty() {
		before.Processes = l.acts.take()
		points = append(points, before)
	}
	m.Building = 0
	m.Last = &lastRecord{Number: built, Cause: r.cause, Time: now}
	m.Retired = append(m.Retired, gone)
	return m, stacks, points
}

// flatten writes layer built in each affected tree.
//
// Preconditions: no operation is in flight.
func (l *Live) flatten(r retirement, built overlay.LayerID) error {
	m := l.held.man.Load()
	for i, t := range l.trees {
		if !r.affects(t.Name()) {
			continue
		}
		all := overlay.Stack{Sealed: addLayer(m.Trees[i].Stack.Sealed, m.active())}
		if err := t.Flatten(all, built, r.keep(t.Name())); err != nil {
			return err
		}
		if err := l.madeLayer(t.Name(), built); err != nil {
			return err
		}
		if len(r.under(all.Sealed)) == 0 || r.cause.Kind != CauseCommit {
			continue
		}
		if err := t.Flatten(overlay.Stack{Sealed: under(all.Sealed)}, r.beneath, r.keep(t.Name())); err != nil {
			return err
		}
		if err := l.madeLayer(t.Name(), r.beneath); err != nil {
			return err
		}
	}
	return nil
}

// quiesced are the trees with no operation in flight, in two parts that change
// places differently.
type quiesced struct {
	flat, rest *overlay.Barrier // nil where there is no such tree
}

func (l *Live) quiesce(affects func(string) bool) *quiesced {
	var flat, rest []*overlay.Tree
	for _, t := range l.trees {
		if affects(t.Name()) {
			flat = append(flat, t)
		} else {
			rest = append(rest, t)
		}
	}
	q := new(quiesced)
	if len(flat) > 0 {
		q.flat = overlay.Quiesce(flat...)
	}
	if len(rest) > 0 {
		q.rest = overlay.Quiesce(rest...)
	}
	return q
}

// release lets operations in again.
func (q *quiesced) release() {
	for _, b := range []*overlay.Barrier{q.rest, q.flat} {
		if b != nil {
			b.Release()
		}
	}
}

// switchAll gives the trees of a barrier other stacks, by the plans that there
// are.
func switchAll(b *overlay.Barrier, stacks []overlay.Stack, plans ...*overlay.Plan) error {
	for i, s := range stacks {
		var plan *overlay.Plan
		if i < len(plans) {
			plan = plans[i]
		}
		if err := b.Switch(i, s, plan); err != nil {
			return err
		}
	}
	return nil
}

// pathSet is a set of paths in one tree.
type pathSet map[string]bool

func exactPaths(paths []Path) pathSet {
	if len(paths) == 0 {
		return nil
	}
	set := make(pathSet, len(paths))
	for _, p := range paths {
		set[string(p)] = true
	}
	return set
}

// covers tells whether path or a directory that it lies in is in the set.
func (s pathSet) covers(path string) bool {
	for {
		if s[path] {
			return true
		}
		if path == "" {
			return false
		}
		path = path[:max(0, strings.LastIndexByte(path, '/'))]
	}
}

func countPaths(paths map[string][]Path) int {
	n := 0
	for _, p := range paths {
		n += len(p)
	}
	return n
}

// checkPaths refuses trees that the session has not and paths that are none.
func (l *Live) checkPaths(paths map[string][]Path) error {
	for tree, list := range paths {
		if l.Tree(tree) == nil {
			return fmt.Errorf("session %s: tree %q: %w", l.held.Name(), tree, ErrNotFound)
		}
		for _, p := range list {
			if !cleanPath(string(p)) {
				return fmt.Errorf("session %s: %q is not a path in a tree: relative, without empty, '.' and '..' parts", l.held.Name(), string(p))
			}
		}
	}
	return nil
}

// cleanPath tells whether p is "" (the root) or a relative path without empty,
// "." and ".." components.
func cleanPath(p string) bool {
	if p == "" {
		return true
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == "" || part == "." || part == ".." || strings.IndexByte(part, 0) >= 0 {
			return false
		}
	}
	return true
}
