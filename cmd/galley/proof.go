package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/review"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

// proof is what is reviewed: the change set of one snapshot of a session. Its
// files stay readable until Close.
type proof struct {
	session  *snapshots.Session
	snapshot snapshots.Snapshot
	set      *review.ChangeSet
	sealed   *snapshots.Sealed
	bases    map[string]int // descriptor of each tree's base
	views    []*overlay.Face
}

// takeProof seals what the session has so far, by its owner or, without one,
// under its lock, and computes the change set of that snapshot. A session that
// is at work goes on while the proof is read.
func (e *env) takeProof(ctx context.Context, sess *snapshots.Session, cause snapshots.Cause) (*proof, error) {
	snap, err := e.seal(ctx, sess, cause)
	if err != nil {
		return nil, err
	}
	return openProof(ctx, sess, snap)
}

func (e *env) seal(ctx context.Context, sess *snapshots.Session, cause snapshots.Cause) (snapshots.Snapshot, error) {
	h := &hand{sess: sess}
	snap, err := h.seal(ctx, cause)
	if closeErr := h.letGo(); err == nil && closeErr != nil {
		err = fmt.Errorf("seal session %q: %w", sess.Name(), closeErr)
	}
	return snap, err
}

// seal seals what the session has so far.
func (h *hand) seal(ctx context.Context, cause snapshots.Cause) (snap snapshots.Snapshot, err error) {
	err = h.do(ctx, func(ctrl owner.Controller) error {
		snap, err = ctrl.Seal(ctx, snapshots.SealOptions{Cause: cause})
		return err
	})
	if err != nil {
		return snap, fmt.Errorf("seal session %q: %w", h.sess.Name(), err)
	}
	return snap, nil
}

// openProof computes the change set of a snapshot that was sealed before.
func openProof(ctx context.Context, sess *snapshots.Session, snap snapshots.Snapshot) (*proof, error) {
	p := &proof{session: sess, snapshot: snap, bases: map[string]int{}}
	if err := sess.Reload(); err != nil {
		return nil, err
	}
	sealed, err := sess.OpenSealed(snap.Number)
	if err != nil {
		return nil, fmt.Errorf("open snapshot %d of session %q: %w", snap.Number, sess.Name(), err)
	}
	p.sealed = sealed
	var in []review.TreeInput
	for _, t := range sealed.Trees() {
		if t.OnImage() {
			continue // never committed: see imageChanges
		}
		fd, err := unix.Open(t.Base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			p.Close()
			return nil, withHint(fmt.Errorf("open the base %q of tree %s: %w", t.Base, t.Name, err),
				"the changes are still in the session; put the directory back where it was")
		}
		p.bases[t.Name] = fd
		in = append(in, review.TreeInput{Name: t.Name, View: review.FaceView(t.Face), BaseFD: fd})
	}
	p.set, err = review.Compute(ctx, in, review.Options{})
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("compute the changes of session %q: %w", sess.Name(), err)
	}
	return p, nil
}

// imageChanges are the changes that a tree on an image has otherwise than its
// image. They are for reading: the image stays what it is.
func (p *proof) imageChanges(ctx context.Context, tree snapshots.TreeSpec) (*review.ChangeSet, error) {
	old, now, err := p.imageFaces(tree)
	if err != nil {
		return nil, err
	}
	set, err := review.Between(ctx, []review.Pair{{Name: tree.Name, Old: old, New: now}}, review.Options{})
	if err != nil {
		return nil, fmt.Errorf("compute the changes of tree %s in session %q: %w", tree.Name, p.session.Name(), err)
	}
	return set, nil
}

// imageFaces are a tree on an image without its changes, until Close, and with
// them.
func (p *proof) imageFaces(tree snapshots.TreeSpec) (old, now *overlay.Face, err error) {
	old, err = p.sealed.View(tree.Name, overlay.Stack{Sealed: tree.Image.Ranges()})
	if err != nil {
		return nil, nil, fmt.Errorf("look at the image of tree %s: %w", tree.Name, err)
	}
	p.views = append(p.views, old)
	return old, p.faces()[tree.Name], nil
}

// touched are the paths that layers have of a tree on an image, beside
// directories that only hold them: what may have changed, without a look at what
// it contains.
func (p *proof) touched(tree snapshots.TreeSpec) (out []snapshots.Path, err error) {
	_, now, err := p.imageFaces(tree)
	if err != nil {
		return nil, err
	}
	err = now.Delta(func(e overlay.Entry) error {
		if !e.Implicit {
			out = append(out, snapshots.Path(e.Path))
		}
		return nil
	})
	return out, err
}

// inImages says in which trees on images something changed, as in "in tree
// root"; empty is in none.
func (p *proof) inImages() (string, error) {
	var trees []string
	for _, t := range p.onImages() {
		paths, err := p.touched(t)
		if err != nil {
			return "", err
		}
		if len(paths) > 0 {
			trees = append(trees, t.Name)
		}
	}
	if len(trees) == 0 {
		return "", nil
	}
	return "in tree " + strings.Join(trees, ", "), nil
}

// onImages are the session's trees on images.
func (p *proof) onImages() (out []snapshots.TreeSpec) {
	for _, t := range p.session.Trees() {
		if t.OnImage() {
			out = append(out, t)
		}
	}
	return out
}

// Close gives back what the proof holds open.
func (p *proof) Close() {
	for _, f := range p.views {
		f.Detach()
	}
	for _, fd := range p.bases {
		_ = unix.Close(fd)
	}
	if p.sealed != nil {
		_ = p.sealed.Close()
	}
}

// faces are the trees of the proof by name.
func (p *proof) faces() map[string]*overlay.Face {
	out := map[string]*overlay.Face{}
	for _, t := range p.sealed.Trees() {
		out[t.Name] = t.Face
	}
	return out
}

// countChanges is the number of changes at the last snapshot of a session.
func countChanges(ctx context.Context, sess *snapshots.Session) (int, error) {
	last := sess.Last()
	if last.Number == 0 {
		return 0, nil
	}
	p, err := openProof(ctx, sess, last)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	return len(p.set.Changes), nil
}

// selected is the part of the change set that the operands name, with what it
// depends on; all of it when there are none.
func (p *proof) selected(operands []string) (*review.ChangeSet, error) {
	sel, err := p.choose(operands)
	if err != nil || sel == nil {
		return p.set, err
	}
	return sel.Set, nil
}

// choose picks changes; nil when there are no operands. An operand that names
// no change is an error.
func (p *proof) choose(operands []string) (*review.Selection, error) {
	if len(operands) == 0 {
		return nil, nil
	}
	paths, err := resolvePaths(p.session.Trees(), operands)
	if err != nil {
		return nil, err
	}
	return p.pick(paths, operands)
}

// selectedIn is the part of the change set that lies in one tree, or that the
// operands name there. For a tree on an image they are paths in it.
func (p *proof) selectedIn(tree snapshots.TreeSpec, operands []string) (*review.ChangeSet, error) {
	var paths []treePath
	for _, o := range operands {
		if tree.OnImage() {
			paths = append(paths, treePath{tree.Name, strings.TrimPrefix(filepath.Clean("/"+o), "/")})
			continue
		}
		in, err := resolvePaths([]snapshots.TreeSpec{tree}, []string{o})
		if err != nil {
			return nil, err
		}
		paths = append(paths, in...)
	}
	if len(paths) == 0 {
		sel, err := p.set.Select([]review.Pattern{{Tree: tree.Name, Path: ""}})
		if err != nil {
			return nil, err
		}
		return sel.Set, nil
	}
	sel, err := p.pick(paths, operands)
	if err != nil {
		return nil, err
	}
	return sel.Set, nil
}

// pick picks the changes at and below paths, which the operands named.
func (p *proof) pick(paths []treePath, operands []string) (*review.Selection, error) {
	patterns := make([]review.Pattern, len(paths))
	for i, t := range paths {
		patterns[i] = review.Pattern{Tree: t.tree, Path: escapePattern(t.path)}
	}
	sel, err := p.set.Select(patterns)
	if err != nil {
		return nil, err
	}
	for i, pattern := range patterns {
		if slices.Contains(sel.Unmatched, pattern) {
			return nil, withHint(refusef("no change at or below %q", operands[i]), "galley diff --name-status lists the changes")
		}
	}
	return sel, nil
}

// escapePattern makes a pattern that matches the path and nothing else: the
// shell has expanded what was meant as a pattern, and a file may be called *.
func escapePattern(path string) string {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if strings.IndexByte(`*?[]{}\`, path[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(path[i])
	}
	return b.String()
}
