package overlay

import (
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Node is one file identity of a tree: what an inode is to a file system. A
// node lives as long as a layer or a face refers to it. Nodes are compared by
// pointer; all their fields belong to the tree.
type Node struct {
	id   uint64 // immutable
	ino  uint64 // immutable
	typ  uint32 // S_IFMT; immutable
	refs atomic.Int64

	// Where the node is in the base, if it was born there: in the directory
	// bparent under bname. Protected by Tree.mu; for a node no layer knows,
	// also by Tree.liveMu.
	bparent *Node
	bname   string
	bid     HostID // identity in the base, zero if not born there
	btime   Time
	hasBase bool
	bornIn  []LayerID // by which layers a commit put it into the base; none: it came from there

	// readOnly says that a rule forbids changes. Immutable.
	readOnly bool

	// The rest is protected by Tree.mu.
	ver   *nodeVer          // newest first
	ents  map[string]*entry // of a directory: names that layers changed
	links []dent            // all known names, when there is more than one

	up       sync.Mutex    // held while the node is copied up
	plain    bool          // made in this process and given no xattr since
	linkable bool          // made without a name, and may be given one
	stamp    atomic.Uint64 // of the base's content when last reported to a face
	watch    atomic.Int32  // watchState of a base directory
	// removals counts how often this directory was removed: a switch of layers
	// may bring it back.
	removals atomic.Uint32
	whole    bool // has a version that is verWhole
	orphaned bool // has had a version that is verOrphan
	alias    bool // met in the base under an identity that another node holds
}

// ID is the node's identity in this process, never reused. The root has 1.
func (n *Node) ID() uint64 { return n.id }

// Generation tells a directory that came back, with a switch of layers, after
// it was removed from what it was before: a kernel never lets a directory live
// again.
func (n *Node) Generation() uint64 { return uint64(n.removals.Load()) }

// Type is the node's type, as S_IFMT bits.
func (n *Node) Type() uint32 { return n.typ }

func (n *Node) isDir() bool { return n.typ == unix.S_IFDIR }

// born reports whether, in view v, the node is one of the base.
func (n *Node) born(v *view) bool {
	if !n.hasBase || len(n.bornIn) == 0 {
		return n.hasBase
	}
	if v.births != nil {
		v = v.births
	}
	return slices.ContainsFunc(n.bornIn, v.has)
}

// bornAs is what a version in layer l records of how the node came to be in the
// base: 0 where it was there.
func (n *Node) bornAs(l LayerID) LayerID {
	if len(n.bornIn) == 0 {
		return 0
	}
	if slices.Contains(n.bornIn, l) {
		return l
	}
	return n.bornIn[0]
}

// dent is a name in a directory.
type dent struct {
	dir  *Node
	name string
}

// nodeVer is a node as one layer has it.
type nodeVer struct {
	layer LayerID
	flags verFlags
	nlink uint32 // names in views whose newest layer for this node is this one; unused for directories
	// parent and name locate the payload in the layer's tree: parent has a
	// version in the same layer, unless it is the root. In the active layer
	// a rename changes them.
	parent *Node
	name   string
	above  *nodeVer // parent's version in the same layer
	// data is the version whose payload holds the content of a metadata-only
	// copy; nil for the base.
	data *nodeVer
	// lower is where the node is in the view of the layers below: the target
	// of a redirect. Only in the active layer, only where it matters.
	lower string
	ctime Time  // when verCtime
	kept  *kept // nil: the payload has all
	prev  *nodeVer
}

type verFlags uint8

const (
	verGone     verFlags = 1 << iota // the node has no name any more
	verMeta                          // metadata only: content is data's, or the base's
	verCtime                         // ctime is not the payload's
	verOrphan                        // the payload is in scratch, under the node's number
	verGhost                         // no payload: only nlink and ctime differ from what is beneath
	verImplicit                      // a directory that is there only as a parent
	verUnsynced                      // of a directory: names changed since its last fsync; never recorded
	verWhole                         // in a layer of replaced files: a directory with all that the base had in it
)

// onlyCounts reports whether the layer has nothing of the node but that other
// names of it went: what it contains, and its names that are left, are still
// those of the layers below.
func (x *nodeVer) onlyCounts() bool { return x.flags&(verGhost|verGone) == verGhost }

// entry is a name as one layer has it; a nil node is a whiteout.
type entry struct {
	layer LayerID
	node  *Node
	prev  *entry
}

// view is a set of layers.
type view struct {
	sealed []Range // ascending
	active LayerID // 0: none
	// births is the view by which nodes are of the base, nil for the view
	// itself.
	births *view
}

func newView(s Stack) *view {
	return &view{sealed: append([]Range(nil), s.Sealed...), active: s.Active}
}

func (v *view) stack() Stack {
	return Stack{Sealed: append([]Range(nil), v.sealed...), Active: v.active}
}

func (v *view) has(l LayerID) bool {
	if l == v.active {
		return l != 0
	}
	// Most of what is asked for lies in the topmost range.
	n := len(v.sealed)
	if n == 0 {
		return false
	}
	if r := v.sealed[n-1]; l >= r.From {
		return l <= r.To
	}
	i := sort.Search(n, func(i int) bool { return v.sealed[i].From > l }) - 1
	return i >= 0 && l <= v.sealed[i].To
}

// hasReplaced reports whether the view has layers of replaced files.
func (v *view) hasReplaced() bool {
	return len(v.sealed) > 0 && v.sealed[0].From.replaced()
}

// image is the part of the view that is an image's layers, nil where there are
// none.
func (v *view) image() *view {
	out := upTo(v.sealed, Image+MaxImageLayers-1)
	if len(out) == 0 {
		return nil
	}
	return &view{sealed: out}
}

// lower is the view without the active layer.
func (v *view) lower() *view { return &view{sealed: v.sealed} }

// sealedWith is the stack after the active layer was sealed.
func (v *view) sealedWith(next LayerID) *view {
	out := append([]Range(nil), v.sealed...)
	a := v.active
	if n := len(out); n > 0 && out[n-1].To+1 == a {
		out[n-1].To = a
	} else if a != 0 {
		out = append(out, Range{a, a})
	}
	return &view{sealed: out, active: next}
}

func (n *Node) verIn(v *view) *nodeVer {
	for x := n.ver; x != nil; x = x.prev {
		if v.has(x.layer) {
			return x
		}
	}
	return nil
}

// verAt is the node's version in exactly that layer.
func (n *Node) verAt(l LayerID) *nodeVer {
	for x := n.ver; x != nil && x.layer >= l; x = x.prev {
		if x.layer == l {
			return x
		}
	}
	return nil
}

func (n *Node) entryIn(v *view, name string) *entry {
	for e := n.ents[name]; e != nil; e = e.prev {
		if !v.has(e.layer) {
			continue
		}
		if e.layer.replaced() && !n.born(v) {
			// What the base had in the directory before it came to be there.
			return nil
		}
		return e
	}
	return nil
}

// inImage reports whether the layers of an image in v have the node.
func (n *Node) inImage(v *view) bool {
	for x := n.ver; x != nil; x = x.prev {
		if x.layer.image() && v.has(x.layer) {
			return x.flags&verGone == 0
		}
	}
	return false
}

// putVer adds or returns the node's version in layer l, which is the newest.
func (n *Node) putVer(l LayerID) *nodeVer {
	if n.ver != nil && n.ver.layer == l {
		return n.ver
	}
	if n.ver != nil && n.ver.layer > l {
		// Out of order only while records of a flattened layer are read.
		at := &n.ver
		for *at != nil && (*at).layer > l {
			at = &(*at).prev
		}
		if *at != nil && (*at).layer == l {
			return *at
		}
		x := &nodeVer{layer: l, prev: *at}
		*at = x
		return x
	}
	n.ver = &nodeVer{layer: l, prev: n.ver}
	return n.ver
}

// setVer makes x the node's version in its layer, which is the newest.
func (n *Node) setVer(x *nodeVer) {
	n.orphaned = n.orphaned || x.flags&verOrphan != 0
	x.prev = n.ver
	if n.ver != nil && n.ver.layer == x.layer {
		x.prev = n.ver.prev
	}
	n.ver = x
}

func (n *Node) dropVer(l LayerID) {
	for at := &n.ver; *at != nil; at = &(*at).prev {
		if (*at).layer == l {
			*at = (*at).prev
			return
		}
	}
}

func (n *Node) putEntry(l LayerID, name string, child *Node) {
	if n.ents == nil {
		n.ents = make(map[string]*entry)
	}
	head := n.ents[name]
	if head == nil || head.layer < l {
		n.ents[name] = &entry{layer: l, node: child, prev: head}
		return
	}
	for e := head; ; e = e.prev {
		if e.layer == l {
			e.node = child
			return
		}
		if e.prev == nil || e.prev.layer < l {
			e.prev = &entry{layer: l, node: child, prev: e.prev}
			return
		}
	}
}

func (n *Node) dropEntry(l LayerID, name string) {
	head := n.ents[name]
	if head == nil {
		return
	}
	if head.layer == l {
		if head.prev == nil {
			delete(n.ents, name)
		} else {
			n.ents[name] = head.prev
		}
		return
	}
	for e := head; e.prev != nil; e = e.prev {
		if e.prev.layer == l {
			e.prev = e.prev.prev
			return
		}
	}
}

// addLink notes a name of a file. It holds the name's directory: one that was
// forgotten and looked up again would be another node, and its name another
// name.
func (n *Node) addLink(d dent) {
	for _, l := range n.links {
		if l == d {
			return
		}
	}
	d.dir.refs.Add(1)
	n.links = append(n.links, d)
}

func (n *Node) dropLink(d dent) {
	for i, l := range n.links {
		if l == d {
			d.dir.refs.Add(-1)
			n.links = append(n.links[:i], n.links[i+1:]...)
			return
		}
	}
}

func (n *Node) clearLinks() {
	for _, l := range n.links {
		l.dir.refs.Add(-1)
	}
	n.links = nil
}
