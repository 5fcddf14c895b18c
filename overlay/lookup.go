package overlay

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// found is what a view has under a name.
type found struct {
	node *Node // nil: nothing
	// held: the lookup already took a tree reference on node for the caller.
	st   unix.Statx_t
	base bool // st is filled in: the node is the base's, unchanged
}

// errRetry asks for the operation to be repeated with mu held exclusively:
// something about a node of the base must be changed first.
type retryError struct{}

func (retryError) Error() string { return "retry" }

// child finds name in dir as view v has it.
//
// Preconditions: mu is held, exclusively if excl.
func (t *Tree) child(v *view, dir *Node, name string, excl bool) (found, error) {
	if e := dir.entryIn(v, name); e != nil {
		if e.node == nil || t.hidden(v, e.node) {
			return found{}, nil
		}
		return found{node: e.node}, nil
	}
	if !t.mergesBase(v, dir) {
		return found{}, nil
	}
	return t.baseChild(v, dir, name, excl)
}

// mergesBase reports whether the directory shows entries of the base.
func (t *Tree) mergesBase(v *view, dir *Node) bool {
	if !dir.born(v) {
		return false
	}
	if !dir.whole || !v.hasReplaced() {
		return true
	}
	for x := dir.ver; x != nil; x = x.prev {
		if x.flags&verWhole != 0 && v.has(x.layer) {
			return false
		}
	}
	return true
}

func (t *Tree) baseChild(v *view, dir *Node, name string, excl bool) (found, error) {
	fd, err := t.baseDirFD(dir)
	if err != nil {
		return found{}, err
	}
	defer t.fds.done(fd)
	if t.watch != nil {
		t.watch.add(dir, fd.fd)
	}
	var f found
	t.stats.baseCalls.Add(1)
	if err := t.fs.Stat(fd.fd, name, &f.st); err != nil {
		if err == unix.ENOENT {
			return found{}, nil
		}
		return found{}, fmt.Errorf("look up %q in the base: %w", name, err)
	}
	if t.concealed(dir, name, &f.st) {
		return found{}, nil
	}
	n, err := t.baseNode(v, dir, name, &f.st, excl)
	if err != nil {
		return found{}, err
	}
	f.node = n
	f.base = n.verIn(v) == nil
	return f, nil
}

func isWhiteoutDev(mode, major, minor uint32) bool {
	return mode&unix.S_IFMT == unix.S_IFCHR && major == 0 && minor == 0
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// baseNode is the node for the object that the base has in dir under name.
//
// Preconditions: mu is held, exclusively if excl.
func (t *Tree) baseNode(v *view, dir *Node, name string, st *unix.Statx_t, excl bool) (*Node, error) {
	id := hostID(st)
	typ := uint32(st.Mode) & unix.S_IFMT
	t.liveMu.Lock()
	defer t.liveMu.Unlock()
	n := t.byBase[id]
	if n != nil && !n.sameBase(st) {
		n = t.replaced(n)
	}
	if n != nil && (n.typ == unix.S_IFDIR && n.ver != nil && (n.bparent != dir || n.bname != name) || n.nameless(v)) {
		// The host moved a directory that layers refer to by its old place, or
		// this is a name that was not met before a file lost those that were.
		// What stands here now is another object for the session.
		n = t.byBase[HostID{Dev: id.Dev, Ino: id.Ino | 1<<63}]
		if n == nil {
			n = t.newBaseNode(dir, name, st, true)
		}
		return n, nil
	}
	if n == nil {
		n = t.newBaseNode(dir, name, st, false)
		if st.Nlink > 1 && typ != unix.S_IFDIR {
			n.addLink(dent{dir, strings.Clone(name)})
		}
		return n, nil
	}
	if n.bparent == dir && n.bname == name {
		return n, nil
	}
	if typ == unix.S_IFDIR || st.Nlink == 1 {
		if n.ver != nil {
			return n, nil
		}
		if !excl {
			return nil, retryError{}
		}
		t.moveBase(n, dir, name)
		return n, nil
	}
	for _, l := range n.links {
		if l == (dent{dir, name}) {
			return n, nil
		}
	}
	// The known names are those of the live view, whichever view met this one.
	if !n.untouched(t.view) || dir.entryIn(t.view, name) != nil {
		return n, nil
	}
	if !excl {
		return nil, retryError{}
	}
	n.addLink(dent{dir, strings.Clone(name)})
	return n, nil
}

// replaced handles an inode number that now belongs to another object: the old
// node keeps what it was, and is found by its number no more.
func (t *Tree) replaced(n *Node) *Node {
	delete(t.byBase, n.baseKey())
	return nil
}

// moveBase notes that the host renamed an untouched object.
func (t *Tree) moveBase(n, dir *Node, name string) {
	if n.bparent != dir {
		dir.refs.Add(1)
		if old := n.bparent; old != nil && old != t.root {
			old.refs.Add(-1)
		}
	}
	n.bparent, n.bname = dir, name
	n.clearLinks()
	t.fds.drop(nil, n)
}

// newBaseNode makes a node for an object of the base; it holds a reference on
// its directory.
//
// Preconditions: liveMu is held.
func (t *Tree) newBaseNode(dir *Node, name string, st *unix.Statx_t, alias bool) *Node {
	n := &Node{
		id: t.nextID.Add(1), typ: uint32(st.Mode) & unix.S_IFMT,
		bparent: dir, bname: strings.Clone(name), bid: hostID(st), btime: timeOf(st.Btime), hasBase: true, alias: alias,
	}
	n.ino = t.baseIno(n.bid)
	if t.identify != nil {
		t.identify(n)
	} else {
		t.ownIno(n)
	}
	if alias {
		n.ino |= firstOwnIno << 1
	}
	n.readOnly = dir.readOnly || t.unwritable(dir, name, st)
	dir.refs.Add(1)
	t.byBase[n.baseKey()] = n
	return n
}

// resolve runs fn with mu held shared, and again exclusively if it must change
// something.
func (t *Tree) resolve(fn func(excl bool) error) error {
	t.mu.RLock()
	err := fn(false)
	t.mu.RUnlock()
	if _, again := err.(retryError); !again {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return fn(true)
}

// Lookup finds name in parent. A name that is not there is ENOENT.
func (f *Face) Lookup(parent *Node, name string) (*Node, Attr, error) {
	if !parent.isDir() {
		return nil, Attr{}, unix.ENOTDIR
	}
	if len(name) > maxNameLen {
		return nil, Attr{}, unix.ENAMETOOLONG
	}
	if !validName(name) {
		return nil, Attr{}, unix.EINVAL
	}
	t := f.t
	t.admit.RLock()
	defer t.admit.RUnlock()
	var n *Node
	var a Attr
	var adopt bool
	err := t.resolve(func(excl bool) error {
		v := f.view()
		c, err := t.child(v, parent, name, excl)
		if err != nil {
			return err
		}
		if c.node == nil {
			return unix.ENOENT
		}
		n = c.node
		if c.base {
			a = t.baseAttr(n, &c.st)
		} else if a, err = t.attrIn(n, v); err != nil {
			return err
		}
		adopt = f.fixed == nil && t.rec != nil && parent.hasBase && t.unmetLink(v, n, parent, name)
		f.hold(n)
		return nil
	})
	if err != nil {
		return nil, Attr{}, err
	}
	if adopt {
		if a, err = t.adoptLink(n, parent, name); err != nil {
			f.release(n)
			return nil, Attr{}, err
		}
	}
	return n, a, nil
}

// release gives back one reference from within an operation, where admission
// is already held.
func (f *Face) release(n *Node) {
	f.mu.Lock()
	if f.refs[n] <= 1 {
		delete(f.refs, n)
	} else {
		f.refs[n]--
	}
	f.mu.Unlock()
	f.t.unref(n, 1)
}

// unmetLink reports whether (dir, name) is a hard link of the base to a file
// that the session changed under another name before this one was met.
func (t *Tree) unmetLink(v *view, n, dir *Node, name string) bool {
	if n.isDir() || !n.hasBase {
		return false
	}
	x := n.verIn(v)
	if x == nil || n.untouched(v) || dir.entryIn(v, name) != nil {
		return false
	}
	return x.flags&verGone == 0 || x.flags&verOrphan != 0 && x.nlink > 0
}

// Walk finds the node at a slash-separated path from the root, following no
// symbolic link. The empty path is the root.
func (f *Face) Walk(path string) (*Node, Attr, error) {
	cur := f.Root()
	if path == "" {
		a, err := f.Getattr(cur)
		return cur, a, err
	}
	for {
		name, rest, more := strings.Cut(path, "/")
		n, a, err := f.Lookup(cur, name)
		f.Forget(cur, 1)
		if err != nil || !more {
			return n, a, err
		}
		cur, path = n, rest
	}
}
