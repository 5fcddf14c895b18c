package snapshots

import (
	"context"
	"fmt"
)

// AddTree adds a tree to the session while it is live. Its history begins
// empty: in earlier snapshots it is its base. opt opens its base, as in
// [Session.Open].
func (l *Live) AddTree(ctx context.Context, spec TreeSpec, opt OpenOptions) error {
	spec, err := l.held.store.resolveTree(spec)
	if err != nil {
		return err
	}
	if err := l.acquire(ctx); err != nil {
		return err
	}
	defer l.releaseSem()
	m := l.held.man.Load()
	for _, have := range m.Trees {
		if have.Name == spec.Name {
			return fmt.Errorf("session %s: tree %q: %w, on %q", m.Name, spec.Name, ErrExists, have.Base)
		}
	}
	rec := treeRecord{TreeSpec: spec, Stack: spec.newStack(m.active())}
	err = l.held.store.layTree(l.held.dir, l.held.Dir(), spec.Name, m.active())
	if err == nil {
		err = l.held.store.syncTree(l.held.dir, spec.Name, m.active())
	}
	if err != nil {
		return fmt.Errorf("session %s: tree %q: %w", m.Name, spec.Name, err)
	}
	tree, detached, err := l.openTree(rec, opt, rec.Stack)
	if err != nil {
		return fmt.Errorf("session %s: %w", m.Name, err)
	}
	// The manifest first: a tree that it does not name is swept up when one of
	// that name is laid.
	if err := l.held.update(func(m *manifest) { m.Trees = append(m.Trees, rec) }); err != nil {
		_ = tree.Close()
		return err
	}
	l.treesMu.Lock()
	l.trees = append(l.trees[:len(l.trees):len(l.trees)], tree)
	l.bases = append(l.bases[:len(l.bases):len(l.bases)], detached)
	l.treesMu.Unlock()
	return nil
}
