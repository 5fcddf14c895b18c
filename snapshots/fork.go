package snapshots

import (
	"context"
	"fmt"

	"github.com/galleyfs/galley/overlay"
)

// Fork makes a session that begins as a snapshot of another, live or not: on
// the same bases, with the same sealed layers, which the two share. Neither
// sees what the other does from then on.
func (s *Store) Fork(ctx context.Context, from *Session, f Fork) (*Session, error) {
	if f.Name != "" {
		if err := checkName(f.Name); err != nil {
			return nil, err
		}
	}
	if err := s.checkRoom(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var m *manifest
	// Under the store's lock no layer is removed, of any session.
	err := s.locked(func() error {
		if err := from.Reload(); err != nil {
			return err
		}
		parent := from.man.Load()
		if parent.Discarded != nil {
			return fmt.Errorf("%w: it was discarded", ErrNotFound)
		}
		snap, err := from.snapshot(f.At)
		if err != nil {
			return err
		}
		if m, err = s.planFork(parent, snap, f.Name); err != nil {
			return err
		}
		if snap.Number > parent.Durable {
			// What a fork rests on must not go with the power.
			if err := s.fs.Syncfs(s.dir); err != nil {
				return fmt.Errorf("sync the layers: %w", err)
			}
		}
		return s.create(m)
	})
	if err != nil {
		return nil, fmt.Errorf("fork session %s: %w", from.Name(), err)
	}
	return s.load(m.ID)
}

// planFork is the manifest of a fork.
//
// Preconditions: the store is locked.
func (s *Store) planFork(parent *manifest, snap Snapshot, name string) (*manifest, error) {
	active := snap.Number + 1
	m := &manifest{
		Name: name, Created: s.now().UTC(), Boot: bootID(), Next: active + 1, Rules: parent.Rules,
		Family: parent.Family, Merges: parent.Merges, Replacements: parent.Replacements,
		Durable: snap.Number, MaxSize: parent.MaxSize,
	}
	if m.Family == "" {
		m.Family = parent.ID
	}
	if m.Name == "" {
		// The name that a new session on the base would get tells nothing.
		infos, err := s.List()
		if err != nil {
			return nil, err
		}
		m.Name = freeName(parent.Name, func(name string) bool {
			for _, i := range infos {
				if i.Name == name {
					return true
				}
			}
			return false
		})
	}
	if snap.Number > 0 {
		m.Origins = originsOf(parent, snap.Number)
		m.Last = &lastRecord{
			Number: snap.Number, Time: m.Created,
			Cause: Cause{Kind: CauseFork, Text: parent.Name + "@" + refOf(snap)},
		}
	}
	for _, t := range parent.Trees {
		stack := overlay.Stack{Sealed: append([]overlay.Range(nil), snap.Stacks[t.Name].Sealed...), Active: active}
		m.Trees = append(m.Trees, treeRecord{TreeSpec: t.TreeSpec, Stack: stack, Inodes: t.Inodes})
	}
	return m, nil
}

// layHistory writes the first line of a fork's history to a new session's
// directory.
func (s *Store) layHistory(dir int, m *manifest) error {
	if m.Last == nil {
		return nil
	}
	snap := m.last()
	snap.Changed = 0
	return appendHistory(s.fs, dir, historyLine{Snapshot: snap}, true)
}
