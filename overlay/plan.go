package overlay

import "slices"

// Plan is what a switch to another stack has to do beside taking it, found
// while programs work. It holds as long as nothing changes in the active layer.
type Plan struct {
	old, next *view
	links     map[*Node][]dent // names of the nodes whose names are not as they were
	remap     []*Node
	events    []Event
}

// planStep is how many names and nodes are looked at in one go, before others
// get a turn.
const planStep = 256

// PlanSwitch prepares a switch to s, which must have been loaded, so that the
// switch itself takes time only in what is different. Programs work meanwhile,
// and the plan is of use only while nothing they do changes the tree.
func (t *Tree) PlanSwitch(s Stack) *Plan {
	t.mu.RLock()
	defer t.mu.RUnlock()
	p := &Plan{old: t.view, next: newView(s), links: map[*Node][]dent{}}
	there := reach{v: p.next, root: t.root, known: map[*Node]bool{}}
	seen := 0
	yield := func() {
		if seen++; seen%planStep == 0 {
			t.mu.RUnlock()
			t.mu.RLock()
		}
	}
	for n := range t.all {
		yield()
		if n.verIn(p.old) != n.verIn(p.next) {
			p.events = append(p.events, Event{Node: n, Data: true})
		}
		for name := range n.ents {
			yield()
			e := n.entryIn(p.next, name)
			if n.entryIn(p.old, name) != e {
				p.events = append(p.events, Event{Parent: n, Name: name})
			}
			if e == nil || e.node == nil || e.node.isDir() {
				continue
			}
			if x := e.node.verIn(p.next); x != nil && (x.nlink > 1 || x.flags&verGhost != 0) && there.dir(n) {
				p.links[e.node] = append(p.links[e.node], dent{n, name})
			}
		}
		if n.hasBase {
			p.planBase(t, n)
		}
	}
	for n := range t.all {
		yield()
		if _, ok := p.links[n]; !ok && len(n.links) > 0 {
			p.links[n] = nil
		}
	}
	return p
}

// planBase notes that an object of the base is to lead to n, if it does not.
func (p *Plan) planBase(t *Tree, n *Node) {
	t.liveMu.Lock()
	defer t.liveMu.Unlock()
	if at := t.byBase[n.baseKey()]; at != n && (at == nil || !n.nameless(p.next)) {
		p.remap = append(p.remap, n)
	}
}

// fits reports whether the plan is still the one for a switch of t to s.
//
// Preconditions: admit is held exclusively.
func (p *Plan) fits(t *Tree, s Stack) bool {
	return p != nil && !t.dirty && p.old == t.view && p.next.active == s.Active && slices.Equal(p.next.sealed, s.Sealed)
}

// apply does what the plan found. The new view is set already.
//
// Preconditions: mu is held.
func (p *Plan) apply(t *Tree) []Event {
	for n, names := range p.links {
		n.clearLinks()
		for _, d := range names {
			n.addLink(d)
		}
	}
	t.liveMu.Lock()
	for _, n := range p.remap {
		t.byBase[n.baseKey()] = n
	}
	t.liveMu.Unlock()
	return p.events
}
