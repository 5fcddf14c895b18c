package overlay

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// sealedNames are the names that one sealed layer changed.
type sealedNames struct {
	layer LayerID
	stack []Range // it and those below it
	names map[dent]bool
}

// ChangeKind says what became of a name in a layer.
type ChangeKind string

// The kinds of a [NameChange].
const (
	NameAdded    ChangeKind = "added"
	NameModified ChangeKind = "modified"
	NameDeleted  ChangeKind = "deleted"
)

// NameChange is one name that a layer changed.
type NameChange struct {
	Path string
	Kind ChangeKind
}

// countedNames bounds how many names of a layer are looked at one by one.
const countedNames = 4096

// Changes lists, in the order of their paths, up to limit names that layer l
// changed, and how many there are. It knows only the layer that was sealed last
// and answers false for any other. Of a layer that changed very many names the
// list is not the first of them all, and the number is an upper bound.
func (t *Tree) Changes(l LayerID, limit int) (list []NameChange, count int, ok bool) {
	t.admit.RLock()
	defer t.admit.RUnlock()
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.sealed.layer != l {
		return nil, 0, false
	}
	v := &view{sealed: t.sealed.stack}
	below := &view{sealed: upTo(t.sealed.stack, l-1)}
	for d := range t.sealed.names {
		if count++; count > countedNames {
			return sorted(list, limit), len(t.sealed.names), true
		}
		e := d.dir.entryIn(v, d.name)
		if e == nil || e.layer != l || e.node != nil && t.onlyParent(e.node, l) {
			count--
			continue
		}
		c := NameChange{Kind: NameAdded, Path: join(t.pathIn(v, d.dir), d.name)}
		there := t.shows(below, d)
		switch {
		case e.node == nil && !there:
			count-- // came and went within the layer
			continue
		case e.node == nil:
			c.Kind = NameDeleted
		case there:
			c.Kind = NameModified
		}
		list = append(list, c)
	}
	return sorted(list, limit), count, true
}

// onlyParent reports whether layer l has directory n only for what lies in it.
func (t *Tree) onlyParent(n *Node, l LayerID) bool {
	x := n.verAt(l)
	return x != nil && x.flags&verImplicit != 0
}

// shows reports whether view v has something under a name.
func (t *Tree) shows(v *view, d dent) bool {
	if e := d.dir.entryIn(v, d.name); e != nil {
		return e.node != nil
	}
	return t.mergesBase(v, d.dir) && t.inBase(d.dir, d.name)
}

// upTo are the layers of ranges up to l.
func upTo(ranges []Range, l LayerID) []Range {
	out := make([]Range, 0, len(ranges))
	for _, r := range ranges {
		if r.From > l {
			break
		}
		out = append(out, Range{r.From, min(r.To, l)})
	}
	return out
}

func sorted(list []NameChange, limit int) []NameChange {
	slices.SortFunc(list, func(a, b NameChange) int { return strings.Compare(a.Path, b.Path) })
	return list[:min(len(list), limit)]
}

// touchActive finds the names that the active layer changed before the tree
// was opened.
func (t *Tree) touchActive() {
	for n := range t.all {
		if n.typ != unix.S_IFDIR {
			continue
		}
		for name, e := range n.ents {
			if e.layer == t.view.active {
				t.names[dent{n, name}] = true
			}
		}
	}
}
