package overlay

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Load reads the records of those layers of s that are not in memory, so that
// the tree can be switched to s or show it beside the live view. A stack that
// was rolled off before the tree was opened is brought back by it.
func (t *Tree) Load(s Stack) error {
	t.admit.RLock()
	defer t.admit.RUnlock()
	s.Active = 0
	v := newView(s)
	t.mu.Lock()
	defer t.mu.Unlock()
	// Mostly it is a part of what was asked for before.
	within := func(r Range) bool {
		return slices.ContainsFunc(t.checked, func(c Range) bool { return c.From <= r.From && r.To <= c.To })
	}
	if !slices.ContainsFunc(v.sealed, func(r Range) bool { return !within(r) }) {
		return nil
	}
	missing := t.notLoaded(v)
	if len(missing) == 0 {
		t.checked = v.sealed
		return nil
	}
	ld := &loader{t: t, v: v, met: t.loaded, byIno: map[uint64]*Node{}, born: map[*Node]string{}}
	t.liveMu.Lock()
	for _, n := range t.byBase {
		ld.byIno[n.ino] = n
	}
	t.liveMu.Unlock()
	for n := range t.all {
		ld.byIno[n.ino] = n
	}
	for _, l := range missing {
		if _, err := ld.record(l); err != nil {
			return fmt.Errorf("tree %q: %w", t.cfg.Name, err)
		}
	}
	if err := ld.finish(); err != nil {
		return fmt.Errorf("tree %q: %w", t.cfg.Name, err)
	}
	return nil
}

// Restack gives tree i another stack that shows the same, with the same active
// layer: sealed layers of the old one were merged, say. Nobody is told, since
// nothing changed.
func (b *Barrier) Restack(i int, s Stack) error {
	t := b.trees[i]
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.Active != t.view.active {
		return fmt.Errorf("tree %q: restack: active layer %d is to become %d: %w", t.cfg.Name, t.view.active, s.Active, ErrCorrupt)
	}
	t.setView(newView(s))
	t.relink(t.view)
	return nil
}

// relink makes metadata-only copies refer to content that view v has, where
// they referred to a layer that was merged, or to a base that was replaced.
//
// Preconditions: mu is held.
func (t *Tree) relink(v *view) {
	for n := range t.all {
		for x := n.ver; x != nil; x = x.prev {
			if x.flags&verMeta == 0 || !v.has(x.layer) {
				continue
			}
			// Without such a version it was the base that had the content,
			// which may have been replaced since.
			if x.data == nil && v.hasReplaced() || x.data != nil && !v.has(x.data.layer) {
				x.data = contentBelow(n, v, x.layer)
			}
		}
	}
}

// Flush waits until all faces were told everything that happened before it.
func (t *Tree) Flush(ctx context.Context) error {
	var waits []chan struct{}
	t.facesMu.RLock()
	for _, f := range t.faces {
		if f.notifier == nil {
			continue
		}
		ch := make(chan struct{})
		f.mu.Lock()
		f.flushes = append(f.flushes, ch)
		f.mu.Unlock()
		waits = append(waits, ch)
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
	t.facesMu.RUnlock()
	for _, ch := range waits {
		select {
		case <-ch:
		case <-ctx.Done():
			return fmt.Errorf("tree %q: tell the views what changed: %w", t.cfg.Name, context.Cause(ctx))
		}
	}
	return nil
}

// Pinned lists layers that hold the content of files which have no name any
// more and are still open.
func (t *Tree) Pinned() (out []LayerID) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for n := range t.all {
		if n.isDir() || n.refs.Load() == 0 {
			continue
		}
		if x := n.verIn(t.view); x != nil && x.flags&verGone == 0 {
			continue
		}
		y := dataVer(contentVer(n, t.view))
		if y == nil || y.flags&verOrphan != 0 {
			continue
		}
		out = append(out, y.layer)
		if y.above != nil {
			out = append(out, y.above.layer)
		}
	}
	return out
}

// Shown are the views that [Tree.View] made and that are not detached, each with
// the layers that it shows.
func (t *Tree) Shown() map[*Face][]Range {
	out := map[*Face][]Range{}
	t.facesMu.RLock()
	defer t.facesMu.RUnlock()
	for _, f := range t.faces {
		if f.fixed != nil {
			out[f] = f.fixed.sealed
		}
	}
	return out
}

// Forget drops what is known of all layers that keep does not want, whose
// directories are about to be removed, and the index that has it too. Stacks
// are those that may still be shown: content that they had in such layers is
// looked for in the layers that those were merged into.
func (t *Tree) Forget(keep func(LayerID) bool, stacks []Stack) error {
	t.admit.RLock()
	defer t.admit.RUnlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.fs.Unlink(t.stateFD, indexName, 0)
	if err != nil && err != unix.ENOENT {
		return fmt.Errorf("tree %q: drop the index: %w", t.cfg.Name, err)
	}
	for _, s := range stacks {
		s.Active = 0
		t.relink(newView(s))
	}
	gone := func(l LayerID) bool { return l != t.view.active && !t.view.has(l) && !keep(l) }
	for n := range t.all {
		for at := &n.ver; *at != nil; {
			if gone((*at).layer) && (*at).flags&verOrphan == 0 && ((*at).above == nil || gone((*at).above.layer)) {
				t.fds.drop(*at, nil)
				*at = (*at).prev
				continue
			}
			at = &(*at).prev
		}
		for name, head := range n.ents {
			for at := &head; *at != nil; {
				if gone((*at).layer) {
					*at = (*at).prev
					continue
				}
				at = &(*at).prev
			}
			if head == nil {
				delete(n.ents, name)
			} else {
				n.ents[name] = head
			}
		}
	}
	t.checked = nil
	for l := range t.loaded {
		if gone(l) {
			t.dropWas(l)
			delete(t.loaded, l)
		}
	}
	return nil
}
