package snapshots

import (
	"errors"
	"fmt"

	"github.com/galleyfs/galley/overlay"
)

// Sealed is a snapshot opened for looking. Nothing that an owner does
// meanwhile changes it.
type Sealed struct {
	snap  Snapshot
	trees []SealedTree
	open  []*overlay.Tree
}

// SealedTree is one tree of a snapshot.
type SealedTree struct {
	TreeSpec
	// Face shows the tree as it was sealed. It is closed by Sealed.Close.
	Face *overlay.Face
}

// OpenSealed opens snapshot n for looking, also while an owner is at work. The
// rules of the session do not apply: review shows what is in the layers.
func (s *Session) OpenSealed(n overlay.LayerID) (*Sealed, error) {
	if err := s.Reload(); err != nil {
		return nil, err
	}
	snap, err := s.snapshot(n)
	if err != nil {
		return nil, err
	}
	return s.OpenStacks(snap)
}

func (o *Sealed) add(s *Session, spec TreeSpec, stack overlay.Stack) error {
	base, dirs, err := s.store.openLower(s.man.Load(), spec, stack, func(path string) (*overlay.Base, error) {
		return overlay.OpenBase(s.store.fs, path)
	})
	if err != nil {
		return err
	}
	tree, err := overlay.Open(overlay.Config{
		Name:     spec.Name,
		StateDir: s.StateDir(spec.Name),
		Base:     base,
		FS:       s.store.fs,
		Hide:     []overlay.HostID{s.store.id},
		ReadOnly: true,
		NoWatch:  true,

		LayerDirs: dirs,
	}, stack)
	if err != nil {
		return err
	}
	o.open = append(o.open, tree)
	face, err := tree.View(stack)
	if err != nil {
		return err
	}
	o.trees = append(o.trees, SealedTree{TreeSpec: spec, Face: face})
	return nil
}

// Snapshot tells which one it is.
func (o *Sealed) Snapshot() Snapshot { return o.snap }

// Trees are the trees, in the session's order.
func (o *Sealed) Trees() []SealedTree { return o.trees }

// Close closes the trees and their faces.
func (o *Sealed) Close() error {
	for _, t := range o.trees {
		t.Face.Detach()
	}
	var errs []error
	for _, t := range o.open {
		errs = append(errs, t.Close())
	}
	o.trees, o.open = nil, nil
	return errors.Join(errs...)
}

// OpenStacks opens what a snapshot shows for looking; unlike OpenSealed it
// takes any stacks of layers that the session has, such as those of
// [Session.Before].
func (s *Session) OpenStacks(snap Snapshot) (*Sealed, error) {
	if err := s.Reload(); err != nil {
		return nil, err
	}
	out := &Sealed{snap: snap}
	for _, t := range s.Trees() {
		if err := out.add(s, t, snap.Stacks[t.Name]); err != nil {
			_ = out.Close()
			return nil, fmt.Errorf("session %s: snapshot %d: tree %q: %w", s.Name(), snap.Number, t.Name, err)
		}
	}
	return out, nil
}

// Before is what a snapshot was made from: for one that a seal made, the layers
// below its own; for any other, such as a rollback's, the snapshot before it.
func (s *Session) Before(snap Snapshot) (Snapshot, error) {
	out := Snapshot{Number: snap.Number, Stacks: map[string]overlay.Stack{}, Time: snap.Time}
	sealed := false
	for tree, stack := range snap.Stacks {
		below := without(stack.Sealed, []overlay.Range{{From: snap.Number, To: snap.Number}})
		sealed = sealed || len(below) != len(stack.Sealed) || contains(stack.Sealed, snap.Number)
		out.Stacks[tree] = overlay.Stack{Sealed: below}
	}
	if sealed && snap.Cause.Kind != CauseCommit && snap.Cause.Kind != CauseDiscard {
		return out, nil
	}
	all, err := s.History()
	if err != nil {
		return out, err
	}
	prev, err := s.snapshot(0)
	for _, other := range all {
		if other.Number < snap.Number {
			prev = other
		}
	}
	return prev, err
}

// Upto is the part of a snapshot in layers up to n.
func (s Snapshot) Upto(n overlay.LayerID) Snapshot {
	out := s
	out.Stacks = map[string]overlay.Stack{}
	for tree, stack := range s.Stacks {
		out.Stacks[tree] = overlay.Stack{Sealed: clip(stack.Sealed, minLayer, n)}
	}
	return out
}

// View shows another stack of layers of an open tree, whose layers must be
// among those that it was opened with.
func (o *Sealed) View(tree string, stack overlay.Stack) (*overlay.Face, error) {
	for i, t := range o.trees {
		if t.Name == tree {
			return o.open[i].View(stack)
		}
	}
	return nil, fmt.Errorf("tree %q: %w", tree, ErrNotFound)
}
