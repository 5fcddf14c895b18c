package overlaytest

import (
	"bytes"
	"fmt"
	"slices"
	"sort"

	"golang.org/x/sys/unix"
)

// walkSlot is the first of the slots that a comparison holds nodes in, one for
// each level.
const walkSlot = 1 << 20

// diffStat compares attributes. The size and the link count of a directory
// are the file system's own.
func diffStat(what string, want, got Stat, mtime stamp) error {
	dir := want.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case got.Mode != want.Mode:
		return fmt.Errorf("%w: %s: mode %#o, want %#o", errDiff, what, got.Mode, want.Mode)
	case got.UID != want.UID || got.GID != want.GID:
		return fmt.Errorf("%w: %s: owner %d:%d, want %d:%d", errDiff, what, got.UID, got.GID, want.UID, want.GID)
	case !dir && got.Nlink != want.Nlink:
		return fmt.Errorf("%w: %s: %d links, want %d", errDiff, what, got.Nlink, want.Nlink)
	case !dir && got.Size != want.Size:
		return fmt.Errorf("%w: %s: %d bytes, want %d", errDiff, what, got.Size, want.Size)
	case got.Rdev != want.Rdev:
		return fmt.Errorf("%w: %s: device %#x, want %#x", errDiff, what, got.Rdev, want.Rdev)
	case !mtime.holds(got.Mtime):
		want, how := mtime.at, "at"
		if want == nil {
			want, how = mtime.since, "since"
		}
		return fmt.Errorf("%w: %s: modified at %v, want %s %v", errDiff, what, got.Mtime, how, *want)
	}
	return nil
}

// Comparer compares a file system with the reference, again and again, and
// holds it to inode numbers that never change.
type Comparer struct {
	inos  map[uint64]uint64 // node of the reference to inode
	known map[uint64]uint64 // the reverse, of the last comparison
	// Xattrs, if not nil, says which attributes count.
	Xattrs func(name string) bool
	// LooseTimes leaves modification times out.
	LooseTimes bool
	// LooseLinks leaves link counts out.
	LooseLinks bool
	// LooseInos lets inode numbers change between comparisons.
	LooseInos bool
}

// NewComparer makes a Comparer that has seen nothing yet.
func NewComparer() *Comparer { return &Comparer{inos: map[uint64]uint64{}} }

// Forget lets the inode numbers of nodes that keep does not know be used again.
func (c *Comparer) Forget(keep map[uint64]bool) {
	for id := range c.inos {
		if !keep[id] {
			delete(c.inos, id)
		}
	}
}

// Compare finds a difference between what is reachable in both.
func (c *Comparer) Compare(ref *Ref, fs FS) error {
	if c.LooseInos {
		clear(c.inos)
	}
	c.known = map[uint64]uint64{}
	return c.node(ref.root, fs, Loc{Root, ""}, "", 0)
}

// CompareSlots compares the nodes that both hold in slots.
func (c *Comparer) CompareSlots(ref *Ref, fs FS) error {
	for slot, n := range ref.slots {
		if slot >= walkSlot || n.isDir() {
			continue
		}
		at := Loc{slot, ""}
		if err := c.attrs(n, fs, at, fmt.Sprintf("#%d", slot)); err != nil {
			return err
		}
	}
	return nil
}

func (c *Comparer) node(n *node, fs FS, at Loc, path string, depth int) error {
	if err := c.attrs(n, fs, at, path); err != nil {
		return err
	}
	if !n.isDir() {
		return nil
	}
	return c.dir(n, fs, at, path, depth)
}

func (c *Comparer) attrs(n *node, fs FS, at Loc, path string) error {
	st, err := fs.Stat(at)
	if err != nil {
		return fmt.Errorf("%w: %q: stat: %w", errDiff, path, err)
	}
	mtime := n.mtime
	if c.LooseTimes {
		mtime = stamp{}
	}
	want := n.stat()
	if c.LooseLinks {
		want.Nlink = st.Nlink
	}
	if err := diffStat(fmt.Sprintf("%q", path), want, st, mtime); err != nil {
		return err
	}
	if err := c.ino(n, st.Ino, path); err != nil {
		return err
	}
	if err := c.xattrs(n, fs, at, path); err != nil {
		return err
	}
	switch n.kind() {
	case unix.S_IFLNK:
		target, err := fs.Readlink(at)
		if err != nil || target != n.target {
			return fmt.Errorf("%w: %q: link to %q (%v), want %q", errDiff, path, target, err, n.target)
		}
	case unix.S_IFREG:
		return c.data(n, fs, at, path)
	}
	return nil
}

// ino holds a node to the number it had, and no two nodes to the same.
func (c *Comparer) ino(n *node, ino uint64, path string) error {
	if was, ok := c.inos[n.id]; ok && was != ino {
		return fmt.Errorf("%w: %q: inode %d, was %d", errDiff, path, ino, was)
	}
	if other, ok := c.known[ino]; ok && other != n.id && !c.LooseInos {
		return fmt.Errorf("%w: %q: inode %d is another file's too", errDiff, path, ino)
	}
	c.inos[n.id] = ino
	if c.known != nil {
		c.known[ino] = n.id
	}
	return nil
}

func (c *Comparer) xattrs(n *node, fs FS, at Loc, path string) error {
	names, err := fs.Listxattr(at)
	if err != nil {
		return fmt.Errorf("%w: %q: listxattr: %w", errDiff, path, err)
	}
	if c.Xattrs != nil {
		names = slices.DeleteFunc(names, func(name string) bool { return !c.Xattrs(name) })
	}
	want := make([]string, 0, len(n.xattr))
	for name := range n.xattr {
		want = append(want, name)
	}
	slices.Sort(want)
	if !slices.Equal(names, want) {
		return fmt.Errorf("%w: %q: attributes %q, want %q", errDiff, path, names, want)
	}
	for _, name := range want {
		val, err := fs.Getxattr(at, name)
		if err != nil || string(val) != n.xattr[name] {
			return fmt.Errorf("%w: %q: attribute %s is %s (%v), want %q", errDiff, path, name, short(val), err, n.xattr[name])
		}
	}
	return nil
}

func (c *Comparer) data(n *node, fs FS, at Loc, path string) error {
	p := make([]byte, len(n.data)+1)
	got, err := fs.Read(at, p, 0)
	if err != nil {
		return fmt.Errorf("%w: %q: read: %w", errDiff, path, err)
	}
	if !bytes.Equal(p[:got], n.data) {
		i := 0
		for i < got && i < len(n.data) && p[i] == n.data[i] {
			i++
		}
		return fmt.Errorf("%w: %q: %d bytes, want %d; from %d on %s, want %s",
			errDiff, path, got, len(n.data), i, short(p[i:got]), short(n.data[i:]))
	}
	return nil
}

func (c *Comparer) dir(n *node, fs FS, at Loc, path string, depth int) error {
	list, err := fs.ReadDir(at, 0, nil)
	if err != nil {
		return fmt.Errorf("%w: %q: readdir: %w", errDiff, path, err)
	}
	names := make([]string, 0, len(n.ents))
	for name := range n.ents {
		names = append(names, name)
	}
	sort.Strings(names)
	for i, name := range names {
		if i >= len(list) || list[i].Name != name || list[i].Type != n.ents[name].kind() {
			return fmt.Errorf("%w: %q: lists %v, want %q (of type %#o)", errDiff, path, listed(list), names, n.ents[name].kind())
		}
	}
	if len(list) != len(names) {
		return fmt.Errorf("%w: %q: lists %v, want %q", errDiff, path, listed(list), names)
	}
	slot := walkSlot + depth
	defer fs.Release(slot)
	for i, name := range names {
		child := path + "/" + name
		if err := fs.Open(slot, Loc{at.Slot, name}); err != nil {
			return fmt.Errorf("%w: %q: %w", errDiff, child, err)
		}
		if err := c.node(n.ents[name], fs, Loc{slot, ""}, child, depth+1); err != nil {
			return err
		}
		if ino := c.inos[n.ents[name].id]; list[i].Ino != ino && !c.LooseInos {
			return fmt.Errorf("%w: %q: listed with inode %d, has %d", errDiff, child, list[i].Ino, ino)
		}
	}
	return nil
}

func listed(list []Dirent) []string {
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = fmt.Sprintf("%s:%o", e.Name, e.Type>>12)
	}
	return out
}
