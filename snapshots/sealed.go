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
	out := &Sealed{snap: snap}
	for _, t := range s.Trees() {
		if err := out.add(s, t, snap.Stacks[t.Name]); err != nil {
			_ = out.Close()
			return nil, fmt.Errorf("session %s: snapshot %d: tree %q: %w", s.Name(), n, t.Name, err)
		}
	}
	return out, nil
}

func (o *Sealed) add(s *Session, spec TreeSpec, stack overlay.Stack) error {
	base, err := overlay.OpenBase(s.store.fs, spec.Base)
	if err != nil {
		return err
	}
	origins, err := s.store.openOrigins(s.man.Load(), spec.Name, stack)
	if err != nil {
		_ = base.Close()
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

		LayerDirs: origins,
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
