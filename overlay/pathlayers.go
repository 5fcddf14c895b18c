package overlay

import (
	"slices"
	"strings"
)

// PathLayers lists the layers of the face's view that changed what is at path,
// or a directory on the way to it, the lowest first.
func (f *Face) PathLayers(path string) []LayerID {
	t := f.t
	t.admit.RLock()
	defer t.admit.RUnlock()
	t.mu.RLock()
	defer t.mu.RUnlock()
	v := f.view()
	found := map[LayerID]bool{}
	add := func(n *Node) {
		for x := n.ver; x != nil; x = x.prev {
			if v.has(x.layer) && x.flags&(verImplicit|verGhost) == 0 {
				found[x.layer] = true
			}
		}
	}
	dirs := []*Node{t.root}
	parts := strings.Split(path, "/")
	for i, name := range parts {
		last := i == len(parts)-1
		var next []*Node
		for _, dir := range dirs {
			for e := dir.ents[name]; e != nil; e = e.prev {
				if !v.has(e.layer) {
					continue
				}
				if e.node == nil || !t.onlyParent(e.node, e.layer) {
					found[e.layer] = true
				}
				if e.node != nil && !slices.Contains(next, e.node) {
					next = append(next, e.node)
				}
			}
		}
		if last {
			for _, n := range next {
				add(n)
			}
		}
		dirs = next
	}
	out := make([]LayerID, 0, len(found))
	for l := range found {
		out = append(out, l)
	}
	slices.Sort(out)
	return out
}
