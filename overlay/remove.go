package overlay

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

const whiteoutName = "whiteout"

// putWhiteout makes (dir, name) a whiteout. All whiteouts of a tree are names
// of one device node, as in the kernel's overlayfs, until the host runs out of
// links to it.
//
// Preconditions: mu is held.
func (t *Tree) putWhiteout(dir int, name string, over bool) error {
	target, at := name, dir
	if over {
		target, at = t.tempName(), t.scratchFD
	}
	err := t.fs.Link(t.scratchFD, whiteoutName, at, target)
	if err == unix.EMLINK || err == unix.ENOENT {
		if err == unix.EMLINK {
			_ = t.fs.Unlink(t.scratchFD, whiteoutName, 0)
		}
		if err := t.fs.Mknod(t.scratchFD, whiteoutName, unix.S_IFCHR, 0); err != nil && err != unix.EEXIST {
			return fmt.Errorf("make whiteout: %w", err)
		}
		err = t.fs.Link(t.scratchFD, whiteoutName, at, target)
	}
	if err != nil {
		return fmt.Errorf("make whiteout: %w", err)
	}
	if !over {
		return nil
	}
	if err := t.fs.Rename(at, target, dir, name, 0); err != nil {
		_ = t.fs.Unlink(at, target, 0)
		return fmt.Errorf("make whiteout: %w", err)
	}
	return nil
}

// lowerHas reports whether the layers below the active one, or the base, have
// something at (parent, name), so that its removal needs a whiteout. What the
// base has is noted.
//
// Preconditions: mu is held.
func (t *Tree) lowerHas(parent *Node, name string) (bool, error) {
	if e := parent.entryIn(t.lower, name); e != nil {
		if e.node == nil {
			return false, nil
		}
		if e.node.isDir() {
			// A sealed layer may hold it only as the parent of something
			// changed, and then nothing was noted yet.
			t.noteDir(e.node)
		}
		return true, nil
	}
	if !t.mergesBase(t.view, parent) {
		return false, nil
	}
	fd, err := t.baseDirFD(parent)
	if err != nil {
		return false, err
	}
	defer t.fds.done(fd)
	var st unix.Statx_t
	if err := t.fs.Stat(fd.fd, name, &st); err != nil {
		if err == unix.ENOENT {
			return false, nil
		}
		return false, err
	}
	if isWhiteoutDev(uint32(st.Mode), st.Rdev_major, st.Rdev_minor) {
		return false, nil
	}
	var n *Node
	if uint32(st.Mode)&unix.S_IFMT == unix.S_IFLNK {
		n = &Node{bparent: parent, bname: name, hasBase: true}
	}
	t.noteWas(join(parent.basePath(), name), &st, nil, n)
	return true, nil
}

// Unlink removes a name of anything but a directory.
func (f *Face) Unlink(parent *Node, name string) error { return f.remove(parent, name, false) }

// Rmdir removes an empty directory.
func (f *Face) Rmdir(parent *Node, name string) error { return f.remove(parent, name, true) }

func (f *Face) remove(parent *Node, name string, dir bool) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	t := f.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if !parent.isDir() {
		return unix.ENOTDIR
	}
	c, err := t.child(t.view, parent, name, true)
	if err != nil {
		return err
	}
	n := c.node
	switch {
	case n == nil:
		return unix.ENOENT
	case dir && !n.isDir():
		return unix.ENOTDIR
	case !dir && n.isDir():
		return unix.EISDIR
	case n.readOnly || parent.readOnly:
		return unix.EROFS
	}
	if dir {
		empty, err := t.empty(n, t.view)
		if err != nil {
			return err
		}
		if !empty {
			return unix.ENOTEMPTY
		}
	}
	if err := t.remove(parent, name, n); err != nil {
		return err
	}
	f.emit(Event{Parent: parent, Name: name}, Event{Node: n})
	return t.flushRecord()
}

// remove takes the name (parent, name) from n.
//
// Preconditions: mu is held; a directory is empty.
func (t *Tree) remove(parent *Node, name string, n *Node) error {
	lower, err := t.lowerHas(parent, name)
	if err != nil {
		return err
	}
	px, err := t.raiseDir(parent)
	if err != nil {
		return err
	}
	dir, err := t.layerDirFD(parent, px)
	if err != nil {
		return err
	}
	defer t.fds.done(dir)
	e := parent.ents[name]
	here := e != nil && e.layer == t.view.active
	t.keepAttr(n)
	switch {
	case !here:
		err = t.putWhiteout(dir.fd, name, false)
	case n.isDir():
		err = t.removeDirPayload(dir.fd, name, lower)
	default:
		err = t.removeFilePayload(dir.fd, name, lower, n)
	}
	if err != nil {
		return err
	}
	t.touched(parent, px)
	t.unname(parent, strings.Clone(name), lower)
	if n.isDir() {
		t.goneDir(n)
		return nil
	}
	return t.goneName(n, dent{parent, name})
}

// unname notes that the view has nothing under a name any more.
func (t *Tree) unname(parent *Node, name string, lower bool) {
	if lower {
		t.setEntry(parent, name, nil)
		return
	}
	parent.dropEntry(t.view.active, name)
	t.rec.enc.dropped(parent.ino, name)
}

// removeDirPayload removes a directory, and the whiteouts that may be in it,
// from the layer.
func (t *Tree) removeDirPayload(dir int, name string, lower bool) error {
	if !lower {
		err := t.fs.Unlink(dir, name, unix.AT_REMOVEDIR)
		if err != unix.ENOTEMPTY && err != unix.EEXIST {
			return err
		}
		tmp := t.tempName()
		if err := t.fs.Rename(dir, name, t.scratchFD, tmp, 0); err != nil {
			return err
		}
		t.sweep(tmp)
		return nil
	}
	tmp := t.tempName()
	if err := t.putWhiteout(t.scratchFD, tmp, false); err != nil {
		return err
	}
	if err := t.fs.Rename(t.scratchFD, tmp, dir, name, unix.RENAME_EXCHANGE); err != nil {
		_ = t.fs.Unlink(t.scratchFD, tmp, 0)
		return err
	}
	t.sweep(tmp)
	return nil
}

// sweep removes something from scratch. It holds nothing but whiteouts, so what
// a failure leaves is harmless, and removed by the next open.
func (t *Tree) sweep(tmp string) { _ = hostfs.RemoveAll(t.fs, t.scratchFD, tmp) }

// removeFilePayload removes a name from the layer. The last one of a file that
// is still held goes to scratch with its content.
func (t *Tree) removeFilePayload(dir int, name string, lower bool, n *Node) error {
	keep := n.refs.Load() > 0 && len(n.links) <= 1
	freed := t.lastName(dir, name)
	if keep && !lower {
		return t.fs.Rename(dir, name, t.scratchFD, orphanName(n), 0)
	}
	if keep {
		if err := t.linkOrphan(dir, name, n); err != nil {
			return err
		}
	}
	var err error
	if lower {
		err = t.putWhiteout(dir, name, true)
	} else {
		err = t.fs.Unlink(dir, name, 0)
	}
	if err != nil && keep {
		_ = t.fs.Unlink(t.scratchFD, orphanName(n), 0)
	}
	if err == nil && !keep {
		t.cfg.Quota.Add(-freed)
	}
	return err
}

// linkOrphan keeps the content of n, which is about to lose its last name, in
// scratch. What lies there under its number is from before a switch of layers.
func (t *Tree) linkOrphan(dir int, name string, n *Node) error {
	err := t.fs.Link(dir, name, t.scratchFD, orphanName(n))
	if err != unix.EEXIST {
		return err
	}
	if err := t.unlinkOrphan(n); err != nil {
		return err
	}
	return t.fs.Link(dir, name, t.scratchFD, orphanName(n))
}

// keepAttr remembers what a directory that is about to be removed looks like:
// whoever has it open may still ask (fstat(2)). A file keeps its content
// instead.
//
// Preconditions: mu is held.
func (t *Tree) keepAttr(n *Node) {
	if n == nil || !n.isDir() || n.refs.Load() == 0 {
		return
	}
	a, err := t.attrIn(n, t.view)
	if err != nil {
		return
	}
	a.Nlink = 0
	t.goneDirs[n] = a
}

func (t *Tree) goneDir(n *Node) {
	x := n.verIn(t.view)
	if x != nil {
		t.fds.drop(x, nil)
	}
	_, indexed := t.all[n]
	n.removals.Add(1)
	n.setVer(&nodeVer{layer: t.view.active, flags: verGone | verGhost})
	t.noteGone(n, indexed)
}

// noteGone records that a node has no name any more, and forgets one that only
// the active layer knew.
func (t *Tree) noteGone(n *Node, indexed bool) {
	if !indexed {
		return
	}
	older := n.ver.prev != nil
	t.rec.enc.gone(n.ino, older)
	if !older {
		t.disregard(n)
	}
}

// goneName takes one name from a file's count.
func (t *Tree) goneName(n *Node, d dent) error {
	_, indexed := t.all[n]
	x := n.verIn(t.view)
	nlink := uint32(1)
	if x != nil {
		nlink = x.nlink
	} else {
		var st unix.Statx_t
		if t.baseStat(n, &st) == nil {
			nlink = st.Nlink
		}
	}
	if nlink > 0 {
		nlink--
	}
	n.dropLink(d)
	now := time.Now()
	ctime := Time{now.Unix(), uint32(now.Nanosecond())}
	if !t.writable(x) || x.flags&verOrphan != 0 {
		// Nothing of it is in the active layer: only the count changes.
		g := &nodeVer{layer: t.view.active, flags: verGhost | verCtime, nlink: nlink, ctime: ctime}
		if nlink == 0 {
			g.flags |= verGone
		}
		n.setVer(g)
		if nlink == 0 {
			t.noteGone(n, indexed)
		} else {
			t.logNode(n, g)
		}
		return nil
	}
	x.nlink = nlink
	x.flags &^= verCtime
	if len(n.links) > 0 {
		x.parent, x.name = n.links[0].dir, n.links[0].name
		x.above = x.parent.verAt(x.layer)
		t.logNode(n, x)
		return nil
	}
	x.flags |= verGone | verOrphan
	n.orphaned = true
	x.parent, x.name, x.above = nil, "", nil
	if n.refs.Load() == 0 {
		t.fds.drop(x, nil)
		n.ver = x.prev
		n.setVer(&nodeVer{layer: t.view.active, flags: verGone | verGhost})
		if nlink > 0 {
			t.leaveToBase(n)
		}
	}
	t.noteGone(n, indexed)
	return nil
}
