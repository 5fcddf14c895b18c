package commit

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/review"
)

// A change set is applied in two phases: first everything old leaves (outs, by
// path in the base, deepest first), then everything new is put in place (ins, by
// path in the view, parents first). Paths of the base and of the view differ
// only below renamed directories. Where something new takes the very place of
// something old, one exchange does both.

// out is a node that leaves its path in the base.
type out struct {
	c    *review.Change
	path string // in the base
	// moved is where it goes, nil when it is removed.
	moved *in
	// slot is the staged node that is exchanged with it.
	slot *in
	// above is the topmost removed directory that takes it along.
	above *out
	// below are the removed nodes that this one takes along, parents first.
	below []*out
	stage *stage // on its volume
	facts facts
	obj   int // in job.objects; -1 for one that goes with above
}

// in is a node that arrives at a path of the view.
type in struct {
	c    *review.Change
	tree int
	path string // in the view
	// from is the node of the base that is moved here; nil: it is staged.
	from *out
	// direct: it is renamed from path to path, without the stage between.
	direct bool
	// parent is the staged directory that it is staged in; nil for one that
	// is put in place by a step of its own.
	parent *in
	// inherits: the directory that it is put into has the set-group-id bit.
	inherits bool
	// receives: nodes of the base are moved into this staged directory.
	receives bool
	// link is the staged node that this one is another name of.
	link *in
	// other is the path in the view of the base's node that this one is to be
	// another name of, "" for none: nothing is staged then.
	other   string
	oldPath string // of other, in the base
	// area and slot say where it is staged, or passes through.
	area int
	slot string
	// facts of a staged node, when it is complete.
	facts facts
	obj   int
}

// shape is what is to happen in one tree.
type shape struct {
	tree int
	outs map[string]*out
	ins  map[string]*in
	// metas are the changes of metadata in place.
	metas []*review.Change
	// moved finds a renamed node by its path in the base.
	moved map[string]*in

	outOrder []*out // by path
	inOrder  []*in
}

func newShape(tree int) *shape {
	return &shape{tree: tree, outs: map[string]*out{}, ins: map[string]*in{}, moved: map[string]*in{}}
}

// add takes one change. inPlace: its metadata can be changed where it is, and a
// rename can move the node itself.
func (s *shape) add(c *review.Change, inPlace bool) {
	switch {
	case c.Kind == review.Deleted:
		s.takeOut(c, c.Path)
	case c.Kind == review.Added:
		s.putIn(c, nil)
	case c.Kind == review.MetaOnly && inPlace:
		s.metas = append(s.metas, c)
	case c.Kind == review.Renamed && inPlace:
		o := s.takeOut(c, c.From)
		o.moved = s.putIn(c, o)
		s.moved[c.From] = o.moved
		if c.Parts != 0 || setsTime(c) {
			s.metas = append(s.metas, c)
		}
	default:
		s.takeOut(c, c.Origin)
		s.putIn(c, nil)
	}
}

// setsTime reports whether the session gave a file or link, of which it changed
// something else, another modification time.
func setsTime(c *review.Change) bool {
	return c.Old != nil && c.New != nil && !c.New.IsDir() && c.New.Mtime != c.Old.Mtime
}

func (s *shape) takeOut(c *review.Change, path string) *out {
	o := &out{c: c, path: path, obj: -1}
	s.outs[path] = o
	s.outOrder = append(s.outOrder, o)
	return o
}

func (s *shape) putIn(c *review.Change, from *out) *in {
	n := &in{c: c, tree: s.tree, path: c.Path, from: from, obj: -1}
	s.ins[c.Path] = n
	s.inOrder = append(s.inOrder, n)
	return n
}

// finish derives everything else, once all changes are there.
func (s *shape) finish() {
	slices.SortFunc(s.outOrder, func(a, b *out) int { return overlay.ComparePaths(a.path, b.path) })
	slices.SortFunc(s.inOrder, func(a, b *in) int { return overlay.ComparePaths(a.path, b.path) })
	for _, o := range s.outOrder {
		if a := s.outAbove(o.path); a != nil && a.moved == nil && o.moved == nil {
			if a.above != nil {
				a = a.above
			}
			o.above = a
			a.below = append(a.below, o)
		}
	}
	for _, n := range s.inOrder {
		s.pairLink(n)
		dir, _ := split(n.path)
		p := s.ins[dir]
		if n.path == "" || p == nil || !p.staged() {
			continue
		}
		if n.staged() {
			n.parent = p
		} else {
			p.receives = true
		}
	}
	for _, n := range s.inOrder {
		n.direct = n.from != nil && s.canMoveDirectly(n)
	}
}

// staged reports whether a node is made in a stage.
func (n *in) staged() bool { return n.from == nil && n.other == "" }

// pairLink finds what a further name is a name of. The change of the leading
// name comes first.
func (s *shape) pairLink(n *in) {
	if n.from != nil || n.c.Link == "" || n.c.New.IsDir() {
		return
	}
	switch to := s.ins[n.c.Link]; {
	case to == nil, to.from != nil:
		n.other = n.c.Link
	case to.other != "":
		n.other = to.other
	case to.c.New.Type() == n.c.New.Type():
		n.link = to
	}
}

// pairSlots finds the old nodes whose very place a staged one takes.
func (s *shape) pairSlots() {
	for _, o := range s.outOrder {
		if o.moved != nil || o.above != nil {
			continue
		}
		if n := s.ins[s.newPath(o.path)]; n != nil && n.staged() && n.parent == nil {
			o.slot = n
		}
	}
}

// outAbove is the nearest directory above a path of the base that leaves.
func (s *shape) outAbove(path string) *out {
	for path != "" {
		path, _ = split(path)
		if o := s.outs[path]; o != nil {
			return o
		}
	}
	return nil
}

// canMoveDirectly reports whether a rename can be done in one step: nothing
// above the node moves or leaves before it, its place is free from the start,
// and its own place is not taken before it left. Names that differ only in case
// may be one name to the file system.
func (s *shape) canMoveDirectly(n *in) bool {
	from := n.from.path
	if s.outAbove(from) != nil || s.ins[from] != nil {
		return false
	}
	fromDir, fromName := split(from)
	toDir, toName := split(n.path)
	if fromDir == toDir && strings.EqualFold(fromName, toName) {
		return false
	}
	old, ok := s.oldPath(n.path)
	return !ok || s.outs[old] == nil
}

// newPath is where a node of the base that does not itself move or leave is in
// the view: the nearest renamed directory above decides.
func (s *shape) newPath(path string) string {
	for at := path; at != ""; {
		at, _ = split(at)
		if n := s.moved[at]; n != nil {
			return join(n.path, path[len(at)+1:])
		}
	}
	return path
}

// oldPath is the path of the base that lies under a path of the view; false
// where it is in a staged directory.
func (s *shape) oldPath(path string) (string, bool) {
	for at := path; at != ""; {
		at, _ = split(at)
		n := s.ins[at]
		switch {
		case n == nil:
		case n.from == nil:
			return "", false
		default:
			return join(n.from.path, path[len(at)+1:]), true
		}
	}
	return path, true
}

// oldNode is the path in the base of a node of the view that comes from there.
func (s *shape) oldNode(path string) (string, bool) {
	if n := s.ins[path]; n != nil {
		if n.from == nil {
			return "", false
		}
		return n.from.path, true
	}
	return s.oldPath(path)
}

// isDir reports whether the node that leaves is a directory.
func (o *out) isDir() bool { return o.c.Old.Mode&unix.S_IFMT == unix.S_IFDIR }
