package overlay

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// basePath is the node's path in the base.
//
// Preconditions: n.hasBase; mu is held.
func (n *Node) basePath() string {
	var parts []string
	for m := n; m.bparent != nil; m = m.bparent {
		parts = append(parts, m.bname)
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/")
}

// placeIn is the directory and name of n in view v: nil where it has none.
//
// Preconditions: mu is held.
func (n *Node) placeIn(v *view) (*Node, string) {
	x := n.verIn(v)
	if x != nil && x.flags&verGone != 0 {
		return nil, ""
	}
	if x != nil && x.flags&verGhost != 0 {
		if len(n.links) > 0 {
			return n.links[0].dir, n.links[0].name
		}
		// A commit put it where the base now has it, or another of its names
		// went: this one counts unless it went too.
		if n.born(v) && n.bparent != nil {
			if e := n.bparent.entryIn(v, n.bname); e == nil || e.node == n {
				return n.bparent, n.bname
			}
		}
		return nil, ""
	}
	if x != nil {
		return x.parent, x.name
	}
	return n.bparent, n.bname
}

// maxDepth is deeper than any tree that can be made: only places that somebody
// wrote into records by hand lead up further, in a circle.
const maxDepth = 1 << 20

// pathIn is the node's path in view v, for redirects and messages.
//
// Preconditions: mu is held.
func (t *Tree) pathIn(v *view, n *Node) string {
	var parts []string
	for m := n; m != nil && m != t.root && len(parts) < maxDepth; {
		p, name := m.placeIn(v)
		parts = append(parts, name)
		m = p
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/")
}

// sameBase tells an object of the base that was met before from another one
// that got its inode number later.
func (n *Node) sameBase(st *unix.Statx_t) bool {
	return uint32(st.Mode)&unix.S_IFMT == n.typ && timeOf(st.Btime) == n.btime
}

// baseDirFD is a descriptor on n's directory in the base.
//
// Preconditions: mu is held shared; n.hasBase and n is a directory.
func (t *Tree) baseDirFD(n *Node) (*fdEnt, error) {
	if n == t.root {
		return &fdEnt{fd: t.base.fd, uses: 1 << 30}, nil
	}
	if e := t.fds.get(fdKey{node: n, kind: fdDir}); e != nil {
		return e, nil
	}
	// Open from the nearest ancestor that is open, without recursion: trees
	// may be deeper than a path is long.
	chain := []*Node{n}
	var cur *fdEnt
	for m := n.bparent; ; m = m.bparent {
		if m == t.root {
			cur = &fdEnt{fd: t.base.fd, uses: 1 << 30}
			break
		}
		if cur = t.fds.get(fdKey{node: m, kind: fdDir}); cur != nil {
			break
		}
		chain = append(chain, m)
	}
	for _, m := range slices.Backward(chain) {
		fd, err := t.openBaseDir(cur.fd, m)
		t.fds.done(cur)
		if err != nil {
			return nil, err
		}
		cur = t.fds.put(fdKey{node: m, kind: fdDir}, fd)
	}
	return cur, nil
}

func (t *Tree) openBaseDir(parent int, m *Node) (int, error) {
	fd, err := t.fs.Open(parent, m.bname, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
			return -1, fmt.Errorf("directory %q of the base is gone: %w", m.basePath(), ErrDrifted)
		}
		return -1, fmt.Errorf("directory %q of the base: %w", m.basePath(), err)
	}
	var st unix.Statx_t
	if err := t.fs.Stat(fd, "", &st); err != nil {
		_ = t.fs.Close(fd)
		return -1, err
	}
	if hostID(&st) != m.bid {
		_ = t.fs.Close(fd)
		return -1, fmt.Errorf("directory %q of the base was replaced: %w", m.basePath(), ErrDrifted)
	}
	return fd, nil
}

// layerDirFD is a descriptor on directory n in the tree of x's layer.
//
// Preconditions: mu is held; x is a version of the directory n.
func (t *Tree) layerDirFD(n *Node, x *nodeVer) (*fdEnt, error) {
	if e := t.fds.get(fdKey{ver: x, kind: fdDir}); e != nil {
		return e, nil
	}
	chain := []*nodeVer{}
	var cur *fdEnt
	for m, y := n, x; ; {
		if m == t.root {
			e, err := t.layerRootFD(y)
			if err != nil {
				return nil, err
			}
			cur = e
			break
		}
		if cur = t.fds.get(fdKey{ver: y, kind: fdDir}); cur != nil {
			break
		}
		chain = append(chain, y)
		if y.above == nil {
			return nil, fmt.Errorf("layer %d: directory of %q: %w", y.layer, y.name, ErrCorrupt)
		}
		m, y = y.parent, y.above
	}
	for _, y := range slices.Backward(chain) {
		fd, err := t.fs.Open(cur.fd, y.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		t.fds.done(cur)
		if err != nil {
			return nil, fmt.Errorf("layer %d: directory %q: %w", y.layer, y.name, lost(err))
		}
		cur = t.fds.put(fdKey{ver: y, kind: fdDir}, fd)
	}
	return cur, nil
}

func (t *Tree) layerRootFD(y *nodeVer) (*fdEnt, error) {
	k := fdKey{ver: y, kind: fdDir}
	if e := t.fds.get(k); e != nil {
		return e, nil
	}
	var fd int
	var err error
	if dir, ok := t.cfg.LayerTrees[y.layer]; ok {
		fd, err = t.fs.Dup(dir)
	} else {
		fd, err = t.openLayerFile(y.layer, "tree", unix.O_PATH|unix.O_DIRECTORY)
	}
	if err != nil {
		return nil, fmt.Errorf("layer %d: %w", y.layer, lost(err))
	}
	return t.fds.put(k, fd), nil
}

// lost turns the absence of something that a record promises into what it is.
func lost(err error) error {
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return fmt.Errorf("recorded, but not there: %w: %w", ErrCorrupt, unix.EIO)
	}
	return err
}

// dirFDIn is a descriptor on directory n as version x has it, or the base
// where x is nil.
func (t *Tree) dirFDIn(n *Node, x *nodeVer) (*fdEnt, error) {
	if x != nil {
		return t.layerDirFD(n, x)
	}
	return t.baseDirFD(n)
}

// payloadAt is where version x of n lies: a directory's descriptor, in use,
// and a name in it. The payload of a root is the directory itself, with an
// empty name.
//
// Preconditions: mu is held.
func (t *Tree) payloadAt(n *Node, x *nodeVer) (*fdEnt, string, error) {
	if x.flags&verOrphan != 0 {
		return &fdEnt{fd: t.scratchFD, uses: 1 << 30}, orphanName(n), nil
	}
	if n == t.root {
		e, err := t.layerRootFD(x)
		return e, "", err
	}
	if x.above == nil {
		return nil, "", fmt.Errorf("layer %d: directory of %q: %w", x.layer, x.name, ErrCorrupt)
	}
	e, err := t.layerDirFD(x.parent, x.above)
	return e, x.name, err
}

func orphanName(n *Node) string { return fmt.Sprintf("o%d", n.id) }
