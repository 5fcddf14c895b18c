package overlay

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// keepTimes runs fn, which changes the payload of directory n without changing
// what the view has in it, and puts the directory's times back.
//
// Preconditions: mu is held; x is n's version in the active layer.
func (t *Tree) keepTimes(n *Node, x *nodeVer, fn func(dir int) error) error {
	fd, err := t.layerDirFD(n, x)
	if err != nil {
		return err
	}
	defer t.fds.done(fd)
	var st unix.Statx_t
	if err := t.fs.Stat(fd.fd, "", &st); err != nil {
		return err
	}
	if err := fn(fd.fd); err != nil {
		return err
	}
	x.flags |= verUnsynced
	if x.flags&verCtime == 0 {
		x.flags |= verCtime
		x.ctime = timeOf(st.Ctime)
		t.logNode(n, x)
	}
	// It is done, whether or not the times can be put back.
	ts := [2]unix.Timespec{timeOf(st.Atime).spec(), timeOf(st.Mtime).spec()}
	_ = t.fs.Utimes(fd.fd, "", &ts)
	return nil
}

// touched notes that something about directory n itself changed: its entries
// or its attributes. The payload's times are then its own.
//
// Preconditions: mu is held; x is n's version in the active layer.
func (t *Tree) touched(n *Node, x *nodeVer) {
	t.dirty = true
	x.flags |= verUnsynced
	if x.flags&(verCtime|verImplicit) == 0 {
		return
	}
	x.flags &^= verCtime
	t.logNode(n, x)
}

// raiseDir gives directory n, and those above it, a payload in the active
// layer. The caller flushes the record.
//
// Preconditions: mu is held.
func (t *Tree) raiseDir(n *Node) (*nodeVer, error) {
	var chain []*Node
	for m := n; ; {
		x := m.verIn(t.view)
		if x != nil && x.flags&verGone != 0 {
			return nil, unix.ENOENT
		}
		if x != nil && x.layer == t.view.active {
			break
		}
		chain = append(chain, m)
		if m, _ = m.placeIn(t.view); m == nil {
			return nil, unix.ENOENT
		}
	}
	for _, m := range slices.Backward(chain) {
		if err := t.copyUpDir(m); err != nil {
			return nil, fmt.Errorf("copy up directory %q: %w", t.pathIn(t.view, m), err)
		}
	}
	return n.verIn(t.view), nil
}

// copyUpDir copies one directory whose parent is in the active layer.
func (t *Tree) copyUpDir(n *Node) error {
	old := contentVer(n, t.view)
	parent, name := n.placeIn(t.view)
	a, err := t.attrIn(n, t.view)
	if err != nil {
		return err
	}
	src, err := t.dirFDIn(n, old)
	if err != nil {
		return err
	}
	defer t.fds.done(src)
	tmp := t.tempName()
	if err := t.fs.Mkdir(t.scratchFD, tmp, 0o700); err != nil {
		return err
	}
	k, err := t.keptCopy(&a, keptOf(old), src.fd, "")
	if err == nil {
		err = t.copyMeta(src.fd, "", t.scratchFD, tmp, &a)
	}
	if err == nil {
		err = t.keepTimes(parent, parent.verIn(t.view), func(dir int) error {
			return t.fs.Rename(t.scratchFD, tmp, dir, name, unix.RENAME_NOREPLACE)
		})
	}
	if err != nil {
		_ = t.fs.Unlink(t.scratchFD, tmp, unix.AT_REMOVEDIR)
		return err
	}
	x := &nodeVer{
		layer: t.view.active, flags: verImplicit | verCtime, ctime: a.Ctime,
		parent: parent, name: name, above: parent.verIn(t.view), nlink: 1, kept: k,
	}
	n.setVer(x)
	t.logNode(n, x)
	t.setEntry(parent, name, n)
	return nil
}
