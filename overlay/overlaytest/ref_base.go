package overlaytest

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// Import makes a reference of what a file system holds; every node counts as
// coming from there.
func Import(fs FS) (*Ref, error) {
	r := NewRef()
	err := r.importNode(r.root, fs, Loc{Root, ""}, "", 0, map[uint64]*node{})
	return r, err
}

func (r *Ref) importNode(n *node, fs FS, at Loc, path string, depth int, met map[uint64]*node) error {
	if err := n.load(fs, at); err != nil {
		return err
	}
	n.origin, n.hasOrigin = path, true
	if !n.isDir() {
		return nil
	}
	list, err := fs.ReadDir(at, 0, nil)
	if err != nil {
		return err
	}
	slot := walkSlot + depth
	defer fs.Release(slot)
	for _, e := range list {
		if err := fs.Open(slot, Loc{at.Slot, e.Name}); err != nil {
			return err
		}
		st, err := fs.Stat(Loc{slot, ""})
		if err != nil {
			return err
		}
		c := met[st.Ino]
		if c == nil {
			c = r.newNode(st.Mode)
			c.nlink = 1
			if !c.isDir() {
				met[st.Ino] = c
				c.nlink = int(st.Nlink)
			}
			if err := r.importNode(c, fs, Loc{slot, ""}, join(path, e.Name), depth+1, met); err != nil {
				return err
			}
		}
		n.ents[e.Name] = c
		if c.isDir() {
			c.parent = n
		}
	}
	return nil
}

// load takes over the attributes and the content of the node at a location.
func (n *node) load(fs FS, at Loc) error {
	st, err := fs.Stat(at)
	if err != nil {
		return err
	}
	n.mode, n.uid, n.gid, n.rdev = st.Mode, st.UID, st.GID, st.Rdev
	n.mtime = stamp{at: &st.Mtime}
	switch n.kind() {
	case unix.S_IFLNK:
		n.target, err = fs.Readlink(at)
	case unix.S_IFREG:
		n.data, n.shared = make([]byte, st.Size), false
		_, err = fs.Read(at, n.data, 0)
	}
	if err != nil {
		return err
	}
	names, err := fs.Listxattr(at)
	if err != nil {
		return err
	}
	n.xattr = map[string]string{}
	for _, name := range names {
		val, err := fs.Getxattr(at, name)
		if err != nil {
			return err
		}
		n.xattr[name] = string(val)
	}
	return nil
}

// fromBase finds the node that came from a path in the base, among those with
// a name and those held in slots.
func (r *Ref) fromBase(path string) *node {
	var found *node
	match := func(n *node) {
		if n.hasOrigin && n.origin == path {
			found = n
		}
	}
	r.root.walk(match)
	for _, n := range r.slots {
		match(n)
	}
	return found
}

// tracksHost tells whether it is settled what an edit of the base file by the
// host does to this view: it shows if the session changed nothing of the
// file, and does not if the session has content of its own.
func (r *Ref) tracksHost(path string) bool {
	n := r.fromBase(path)
	return n == nil || n.ownData || !n.ownMeta && n.nlink == 1
}

// hostWrote takes over what the host now has at the path of a base file.
func (r *Ref) hostWrote(host *node) {
	n := r.fromBase(host.origin)
	if n == nil || n.ownData {
		return
	}
	n.data, n.shared = slices.Clone(host.data), false
	n.mtime = host.mtime
}

// mayCreate tells whether a file that the host makes in the base is certain
// to show in this view, or certain not to: the session never used the name.
func (r *Ref) mayCreate(path string) bool {
	dir, name := splitPath(path)
	d := r.fromBase(dir)
	if d == nil {
		return true
	}
	return d.ents[name] == nil && !d.used[name] && !d.gone()
}

func (r *Ref) hostCreated(path string, host *node) {
	dir, name := splitPath(path)
	d := r.fromBase(dir)
	if d == nil {
		return
	}
	c := *host
	c.data, c.xattr = slices.Clone(host.data), cloneMap(host.xattr)
	d.ents[name] = &c
	d.mtime = stamp{} // its own if the directory was copied up, the host's else
}

func (r *Ref) hostRemoved(path string) {
	n := r.fromBase(path)
	if n == nil || n.ownData {
		return
	}
	r.root.walk(func(d *node) {
		for name, c := range d.ents {
			if c == n {
				delete(d.ents, name)
				d.mtime = stamp{}
			}
		}
	})
}

func splitPath(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}

// baseFiles are the paths of the regular files with one name.
func (r *Ref) baseFiles() []string {
	return r.paths(func(n *node) bool { return n.isReg() && n.nlink == 1 })
}

func (r *Ref) baseDirs() []string { return r.paths((*node).isDir) }

func (r *Ref) paths(want func(*node) bool) []string {
	var out []string
	var walk func(n *node, path string)
	walk = func(n *node, path string) {
		if want(n) {
			out = append(out, path)
		}
		for name, c := range n.ents {
			walk(c, join(path, name))
		}
	}
	walk(r.root, "")
	slices.Sort(out)
	return out
}

// IDs are the numbers of all nodes that have a name.
func (r *Ref) IDs(into map[uint64]bool) {
	r.root.walk(func(n *node) { into[n.id] = true })
}

// Mtime is what is known of a node's modification time.
func (r *Ref) Mtime(path string) *overlay.Time {
	n, err := r.find(At(path))
	if err != nil {
		return nil
	}
	return n.mtime.at
}
