package overlay

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Prepare makes the directories of layer next ahead of a seal, so that the
// seal itself makes none.
func (t *Tree) Prepare(next LayerID) error {
	if t.cfg.ReadOnly {
		return unix.EROFS
	}
	return makeLayer(t.fs, t.layersDir(next), next, t.prefix)
}

// Barrier holds up all operations of some trees: one cut through all of them.
// Between Quiesce and Release no operation of their faces runs, so it should
// be short.
type Barrier struct {
	trees  []*Tree
	events [][]Event
}

// Quiesce stops the admission of operations and waits for those under way.
// Trees are always to be named in the same order.
func Quiesce(trees ...*Tree) *Barrier {
	for _, t := range trees {
		t.admit.Lock()
	}
	return &Barrier{trees: trees, events: make([][]Event, len(trees))}
}

// Release admits operations again, and has the faces told what a switch made
// untrue.
func (b *Barrier) Release() {
	for _, t := range b.trees {
		t.admit.Unlock()
	}
	for i, t := range b.trees {
		t.emit(nil, b.events[i])
	}
	b.trees = nil
}

// Seal makes the active layer of every tree immutable and next, which must
// have been prepared, the active one. What the views show does not change.
// Either all trees are cut or, with an error, none.
func (b *Barrier) Seal(next LayerID) error {
	var opened []*recordWriter
	for _, t := range b.trees {
		if err := t.rec.flush(); err != nil {
			closeAll(opened)
			return fmt.Errorf("tree %q: seal: %w", t.cfg.Name, err)
		}
		rec, err := t.openRecord(next)
		if err != nil {
			closeAll(opened)
			return fmt.Errorf("tree %q: seal: %w", t.cfg.Name, err)
		}
		opened = append(opened, rec)
	}
	var cuts []*cut
	for i, t := range b.trees {
		c, err := t.cut(opened[i], next)
		if err != nil {
			for _, c := range cuts {
				c.undo()
			}
			closeAll(opened)
			return fmt.Errorf("tree %q: seal: %w", t.cfg.Name, err)
		}
		cuts = append(cuts, c)
	}
	for _, c := range cuts {
		c.done()
	}
	return nil
}

func closeAll(recs []*recordWriter) {
	for _, r := range recs {
		_ = r.close()
	}
}

// cut is the seal of one tree, which can be undone until all are sealed.
type cut struct {
	t    *Tree
	rec  *recordWriter // of the layer that was active
	view *view
}

// cut makes next, whose record is rec, the active layer.
//
// Preconditions: admit is held exclusively.
func (t *Tree) cut(rec *recordWriter, next LayerID) (*cut, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := &cut{t, t.rec, t.view}
	t.rec = rec
	t.setView(t.view.sealedWith(next))
	err := t.startRoot(next)
	if err == nil {
		err = t.flushRecord()
	}
	if err != nil {
		c.restore()
		return nil, err
	}
	t.loaded[next] = true
	return c, nil
}

// undo makes the layer that was active the active one again.
func (c *cut) undo() {
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	c.restore()
}

// restore is undo with mu held.
func (c *cut) restore() {
	t := c.t
	next := t.view.active
	if x := t.root.verAt(next); x != nil {
		t.fds.drop(x, nil)
		t.root.dropVer(next)
	}
	delete(t.loaded, next)
	t.rec.enc.b = nil // what it was to say is not so
	t.rec = c.rec
	t.setView(c.view)
}

// done ends the life of the record that is sealed. All of it was flushed
// before, so that its close has nothing to lose.
func (c *cut) done() {
	t := c.t
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dirty = false
	t.sealed = sealedNames{layer: c.view.active, stack: c.view.sealedWith(0).sealed, names: t.names}
	t.names = make(map[dent]bool)
	_ = c.rec.close()
}

// Switch makes tree i show another stack, whose active layer must be new,
// prepared and empty. Nodes that are on both sides stay what they are and
// change under those who hold them, as if they had been overwritten; those
// that the new side lacks are as unlinked.
//
// The plan, which may be nil, is that of [Tree.PlanSwitch]. Without one, or
// where something changed since, the switch takes time in all that the tree
// knows.
func (b *Barrier) Switch(i int, s Stack, plan *Plan) error {
	t := b.trees[i]
	if !plan.fits(t, s) {
		plan = nil
	}
	if err := t.rec.flush(); err != nil {
		return fmt.Errorf("tree %q: switch: %w", t.cfg.Name, err)
	}
	rec, err := t.openRecord(s.Active)
	if err != nil {
		return fmt.Errorf("tree %q: switch: %w", t.cfg.Name, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	oldRec, oldView := t.rec, t.view
	t.rec = rec
	t.loaded[s.Active] = true
	t.logTaken()
	t.setView(newView(s))
	if err := t.startRoot(s.Active); err != nil {
		t.rec = oldRec
		t.setView(oldView)
		_ = rec.close()
		return fmt.Errorf("tree %q: switch: %w", t.cfg.Name, err)
	}
	t.dirty = false
	t.sealed = sealedNames{layer: oldView.active, stack: oldView.sealedWith(0).sealed, names: t.names}
	t.names = make(map[dent]bool)
	if plan != nil {
		b.events[i] = append(b.events[i], plan.apply(t)...)
	} else {
		t.findLinks()
		t.remapBase()
		b.events[i] = append(b.events[i], t.differences(oldView)...)
	}
	if err := t.flushRecord(); err != nil {
		return err
	}
	return oldRec.close()
}

// remapBase makes the objects of the base lead to the nodes that the view has.
func (t *Tree) remapBase() {
	t.liveMu.Lock()
	defer t.liveMu.Unlock()
	for n := range t.all {
		if n.hasBase {
			t.leadTo(n)
		}
	}
}

// leadTo makes n's object of the base lead to it, unless n has no name in the
// live view and another node is found by that object.
//
// Preconditions: liveMu is held, or nobody else knows t.
func (t *Tree) leadTo(n *Node) {
	if n.nameless(t.view) && t.byBase[n.baseKey()] != nil {
		return
	}
	t.byBase[n.baseKey()] = n
}

// differences is what faces must forget when the live view was old.
//
// Preconditions: mu is held.
func (t *Tree) differences(old *view) (evs []Event) {
	for n := range t.all {
		if n.verIn(old) != n.verIn(t.view) {
			evs = append(evs, Event{Node: n, Data: true})
		}
		for name := range n.ents {
			if n.entryIn(old, name) != n.entryIn(t.view, name) {
				evs = append(evs, Event{Parent: n, Name: name})
			}
		}
	}
	return evs
}
