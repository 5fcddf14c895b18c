package snapshots

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/galleyfs/galley/overlay"
)

// Committed and discarded entries leave a session's layers in three steps:
//
//  1. A seal closes the active layer A. The next one is A+2, and A+1 is noted
//     in the manifest as being built.
//  2. The sealed stack is flattened into layer A+1 without the entries, while
//     programs go on working.
//  3. Each tree shows A+1 and a new active layer A+3. The same manifest lists
//     the layers that left as retired. Where programs changed something during
//     step 2, it is repeated from step 1; after a few rounds the last one is
//     made with the programs held.
//
// So numbers ascend in every stack. The retired layers stay on the disk, where
// the history and the trash refer to them, until GC finds them past the
// retention: whatever they held is in the base, was discarded, or is in A+1.

// retireRounds is how often a busy session is flattened beside its programs
// before they are held for it.
const retireRounds = 3

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
	then, err := l.held.snapshot(c.Snapshot)
	if err != nil {
		return Snapshot{}, err
	}
	return l.retire(retirement{
		cause:   Cause{Kind: CauseCommit, Text: c.Commit},
		affects: func(tree string) bool { return len(c.Paths[tree]) > 0 },
		drop: func(t *overlay.Tree, now overlay.Stack) (dropper, error) {
			set := exactPaths(c.Paths[t.Name()])
			if l.wentOn(then, t.Name(), now) {
				var err error
				if set, err = stillSame(t, then.Stacks[t.Name()], now, set); err != nil {
					return nil, err
				}
			}
			return func(path string) bool { return set[path] }, nil
		},
	})
}

// wentOn tells whether a tree has anything in layers above a snapshot.
func (l *Live) wentOn(then Snapshot, tree string, now overlay.Stack) bool {
	above := without(now.Sealed, then.Stacks[tree].Sealed)
	layers := filepath.Join(dirTrees, tree, dirLayers)
	have, err := names(l.fs(), l.held.dir, layers)
	if err != nil {
		return true
	}
	for _, name := range have {
		if n, ok := layerNumber(name); !ok || !contains(above, n) {
			continue
		}
		files, err := names(l.fs(), l.held.dir, filepath.Join(layers, name, layerTree))
		if err != nil || len(files) > 0 {
			return true
		}
	}
	return false
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
		drop: func(t *overlay.Tree, _ overlay.Stack) (dropper, error) {
			if d.Paths == nil {
				return func(string) bool { return true }, nil
			}
			return exactPaths(d.Paths[t.Name()]).covers, nil
		},
	})
	if err != nil {
		return TrashEntry{}, err
	}
	return l.held.store.trashEntry(id)
}

// dropper tells which paths of a tree leave its layers.
type dropper func(path string) bool

// retirement is one removal of entries from the layers.
type retirement struct {
	cause Cause
	trash string // id of the element of the trash to make, or ""
	count int    // of paths, for that element
	// affects tells which trees lose something; the others keep their layers.
	affects func(tree string) bool
	// drop decides for an affected tree whose sealed layers are now.
	drop func(t *overlay.Tree, now overlay.Stack) (dropper, error)
}

// retire does the three steps.
//
// Preconditions: sem is held.
func (l *Live) retire(r retirement) (Snapshot, error) {
	for round := 1; ; round++ {
		snap, done, err := l.retireOnce(r, round == retireRounds)
		if err != nil {
			return Snapshot{}, fmt.Errorf("session %s: %w", l.held.Name(), err)
		}
		if done {
			return snap, nil
		}
	}
}

// retireOnce does one round; done is false where programs changed something
// meanwhile. With hold they cannot.
//
// Preconditions: sem is held.
func (l *Live) retireOnce(r retirement, hold bool) (snap Snapshot, done bool, err error) {
	var q *quiesced
	if hold {
		q = l.quiesce(r.affects)
		defer q.release()
	}
	built := l.held.man.Load().active() + 1
	if snap, err = l.seal(SealOptions{Cause: r.cause}, built+1, built, q); err != nil {
		return snap, false, err
	}
	if err := l.prepare(built+2, true); err != nil {
		return snap, false, err
	}
	if err := l.flatten(r, built); err != nil {
		return snap, false, err
	}
	if !hold {
		q = l.quiesce(r.affects)
		defer q.release()
		if l.dirty() {
			return snap, false, l.dropUnfinished(built)
		}
	}
	snap, err = l.replaceLayers(r, built, q)
	return snap, err == nil, err
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

func (q *quiesced) seal(next overlay.LayerID) error {
	for _, b := range []*overlay.Barrier{q.flat, q.rest} {
		if b == nil {
			continue
		}
		if err := b.Seal(next); err != nil {
			return err
		}
	}
	return nil
}

func (q *quiesced) release() {
	for _, b := range []*overlay.Barrier{q.rest, q.flat} {
		if b != nil {
			b.Release()
		}
	}
}

// flatten writes layer built in each affected tree, durably.
func (l *Live) flatten(r retirement, built overlay.LayerID) error {
	m := l.held.man.Load()
	for i, t := range l.trees {
		if !r.affects(t.Name()) {
			continue
		}
		now := overlay.Stack{Sealed: m.Trees[i].Stack.Sealed}
		drop, err := r.drop(t, now)
		if err == nil {
			err = t.Flatten(now, built, overlay.Keep{Drop: drop})
		}
		if err != nil {
			return fmt.Errorf("tree %q: flatten: %w", t.Name(), err)
		}
	}
	// The only manifest that names the layers it replaces is about to go.
	if err := l.fs().Syncfs(l.held.dir); err != nil {
		return fmt.Errorf("sync the flattened layers: %w", err)
	}
	l.durable = built - 1
	return nil
}

// replaceLayers is the third step.
//
// Preconditions: sem is held, and no operation is in flight.
func (l *Live) replaceLayers(r retirement, built overlay.LayerID, q *quiesced) (Snapshot, error) {
	old := l.held.man.Load()
	m := old.clone()
	closing, next := built+1, built+2
	now := l.held.store.now().UTC()
	gone := retired{Layers: map[string][]overlay.Range{}, Time: now, Cause: r.cause, Trash: r.trash}
	var stacks []overlay.Stack // of the affected trees
	for i := range m.Trees {
		t := &m.Trees[i]
		if !r.affects(t.Name) {
			t.Stack = overlay.Stack{Sealed: addLayer(t.Stack.Sealed, closing), Active: next}
			continue
		}
		gone.Layers[t.Name] = addLayer(t.Stack.Sealed, closing)
		t.Stack = overlay.Stack{Sealed: []overlay.Range{{From: built, To: built}}, Active: next}
		stacks = append(stacks, t.Stack)
	}
	m.Building = 0
	m.Last = &lastRecord{Number: closing, Cause: r.cause, Time: now}
	m.Retired = append(m.Retired, gone)
	if r.trash != "" {
		if err := l.recordDiscard(r, old, closing, now); err != nil {
			return Snapshot{}, err
		}
	}
	err := l.switchTo(m, q, func(q *quiesced) error {
		if q.rest != nil {
			if err := q.rest.Seal(next); err != nil {
				return err
			}
		}
		return switchAll(q.flat, stacks)
	})
	if err != nil {
		return Snapshot{}, err
	}
	snap := m.last()
	if err := appendHistory(l.fs(), l.held.dir, historyLine{Snapshot: snap}, true); err != nil {
		return snap, err
	}
	if err := l.fs().Fsync(l.held.dir); err != nil {
		return snap, fmt.Errorf("sync the session's directory: %w", err)
	}
	l.durable = closing
	return snap, nil
}

// switchAll gives the trees of a barrier other stacks.
func switchAll(b *overlay.Barrier, stacks []overlay.Stack) error {
	for i, s := range stacks {
		if err := b.Switch(i, s); err != nil {
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
