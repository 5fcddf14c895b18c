package overlay

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Delta calls fn for every point in which the face's view differs from the
// base, directories before what is in them and siblings in the order of their
// bytes. It takes time in the number of changes. The view should be one of
// sealed layers; of a live one Delta shows a moving picture. fn is called with
// the tree's locks held, so it must not call the tree or a face of it.
//
// An entry may turn out to be no change at all: content that was written anew
// with the same bytes, for one. That is for the caller to compare.
func (f *Face) Delta(fn func(Entry) error) error {
	t := f.t
	t.admit.RLock()
	defer t.admit.RUnlock()
	t.mu.RLock()
	defer t.mu.RUnlock()
	v := f.view()
	if err := t.deltaRoot(v, fn); err != nil {
		return err
	}
	// An explicit stack: a tree may be deeper than a program's stack is
	// reasonably large.
	type frame struct {
		dir   *Node
		path  string
		names []string
	}
	stack := []frame{{t.root, "", t.changedNames(t.root, v)}}
	met := map[*Node]bool{t.root: true}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if len(top.names) == 0 {
			stack = stack[:len(stack)-1]
			continue
		}
		name := top.names[0]
		top.names = top.names[1:]
		dir, path := top.dir, join(top.path, name)
		n, err := t.deltaEntry(v, dir, name, path, fn)
		if err != nil {
			return err
		}
		if n == nil || !n.isDir() {
			continue
		}
		// A directory has one name. Records that say otherwise could make a
		// tree without an end.
		if met[n] {
			return fmt.Errorf("%.200q: directory %d has a second name: %w", path, n.ino, ErrCorrupt)
		}
		met[n] = true
		stack = append(stack, frame{n, path, t.changedNames(n, v)})
	}
	return nil
}

func (t *Tree) changedNames(n *Node, v *view) []string {
	var names []string
	for name := range n.ents {
		if e := n.entryIn(v, name); e != nil && !e.layer.image() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// deltaRoot reports a root whose own attributes changed.
func (t *Tree) deltaRoot(v *view, fn func(Entry) error) error {
	x := t.root.verIn(v)
	changed := false
	for y := t.root.ver; y != nil; y = y.prev {
		if v.has(y.layer) && !y.layer.image() && y.flags&verImplicit == 0 {
			changed = true
		}
	}
	if x == nil || !changed || !t.root.hasBase && !t.root.inImage(v) {
		return nil
	}
	a, err := t.attrIn(t.root, v)
	if err != nil {
		return err
	}
	return fn(Entry{Attr: a, HasOrigin: true, SameData: true, Was: t.wasIn(v, "")})
}

// deltaEntry reports one name and returns the node to go into, if any.
func (t *Tree) deltaEntry(v *view, dir *Node, name, path string, fn func(Entry) error) (*Node, error) {
	e := dir.entryIn(v, name)
	if e.layer.replaced() {
		// To this view it is the base that has it so.
		if e.node == nil || !e.node.isDir() {
			return nil, nil
		}
		return e.node, nil
	}
	e2 := Entry{Path: path}
	at := ""
	if dir.born(v) {
		at = join(dir.basePath(), name)
		e2.Was = t.wasIn(v, at)
		e2.Covers, e2.HasCovers = at, true
	}
	if e.node == nil && dir.inImage(v) {
		if !t.shows(v.image(), dent{dir, name}) {
			return nil, nil
		}
		e2.Whiteout = true
		return nil, fn(e2)
	}
	if e.node == nil {
		// A whiteout may hide what only a lower layer had.
		if !dir.born(v) || e2.Was == nil && !t.inBase(dir, name) {
			return nil, nil
		}
		e2.Whiteout = true
		return nil, fn(e2)
	}
	n := e.node
	if t.hidden(v, n) {
		return nil, nil
	}
	a, err := t.attrIn(n, v)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	e2.Attr = a
	if n.born(v) {
		e2.HasOrigin, e2.Origin = true, n.basePath()
		if e2.Origin != at {
			e2.OriginWas = t.wasIn(v, e2.Origin)
		}
	}
	e2.SameData = t.sameData(n, v)
	if n.isDir() {
		e2.Implicit = t.implicit(n, v)
		e2.Opaque = !n.born(v) && dir.born(v) || dir.inImage(v) && !n.inImage(v)
	}
	return n, fn(e2)
}

// implicit reports whether nothing about a directory of the base, or of the
// image, itself was changed in any layer of v: not its attributes, nor its place.
func (t *Tree) implicit(n *Node, v *view) bool {
	image := n.inImage(v)
	if !n.born(v) && !image {
		return false
	}
	for x := n.ver; x != nil; x = x.prev {
		if v.has(x.layer) && !x.layer.image() && x.flags&(verImplicit|verGhost) == 0 {
			return false
		}
	}
	p, name := n.placeIn(v)
	if image {
		old, oldName := n.placeIn(v.image())
		return p == old && name == oldName
	}
	return p == n.bparent && name == n.bname
}

// sameData reports whether what n contains is still the base's.
func (t *Tree) sameData(n *Node, v *view) bool {
	if !n.born(v) {
		return false
	}
	if n.typ != unix.S_IFREG {
		return true
	}
	y := dataVer(contentVer(n, v))
	return y == nil || y.layer.replaced()
}

func (t *Tree) inBase(dir *Node, name string) bool {
	fd, err := t.baseDirFD(dir)
	if err != nil {
		return false
	}
	defer t.fds.done(fd)
	var st unix.Statx_t
	return t.fs.Stat(fd.fd, name, &st) == nil
}

// WasAt is what the face's view has recorded of the base at a path of the base:
// also of what lay below a directory that was removed whole.
func (f *Face) WasAt(basePath string) (Was, bool) {
	f.t.mu.RLock()
	defer f.t.mu.RUnlock()
	w := f.t.wasIn(f.view(), basePath)
	if w == nil {
		return Was{}, false
	}
	return *w, true
}

// Replaced calls fn for the paths at which the face's view has what a commit or
// undo replaced in the base since: there it may differ from the base and Delta
// says nothing.
func (f *Face) Replaced(fn func(path string)) error {
	t := f.t
	t.admit.RLock()
	defer t.admit.RUnlock()
	t.mu.RLock()
	defer t.mu.RUnlock()
	v := f.view()
	if !v.hasReplaced() {
		return nil
	}
	type dir struct {
		n    *Node
		path string
	}
	for dirs := []dir{{t.root, ""}}; len(dirs) > 0; {
		d := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		for _, name := range t.changedNames(d.n, v) {
			e, path := d.n.entryIn(v, name), join(d.path, name)
			if e.layer.replaced() {
				fn(path)
			}
			if e.node != nil && e.node.isDir() {
				dirs = append(dirs, dir{e.node, path})
			}
		}
	}
	return nil
}
