package overlay

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// renameWhiteout is RENAME_WHITEOUT of renameat2(2): the old name becomes a
// whiteout in the same step.
const renameWhiteout = 1 << 2

// move is a rename on its way.
type move struct {
	oldDir, newDir   *Node
	oldName, newName string
	n, over          *Node // what moves, and what it replaces
	exchange         bool
	frees            int64 // bytes of the content that it replaces, for the quota
}

// Rename moves a name, atomically, also a directory of the base; flags is 0,
// RENAME_NOREPLACE or RENAME_EXCHANGE.
func (f *Face) Rename(oldp *Node, oldname string, newp *Node, newname string, flags uint32) error {
	if flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 || flags == unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE {
		return unix.EINVAL
	}
	for _, name := range [...]string{oldname, newname} {
		if err := checkName(name); err != nil {
			return err
		}
	}
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	t := f.t
	m := &move{
		oldDir: oldp, newDir: newp, oldName: strings.Clone(oldname), newName: strings.Clone(newname),
		exchange: flags&unix.RENAME_EXCHANGE != 0,
	}
	for {
		again, err := t.tryRename(m, flags)
		if err != nil {
			return err
		}
		if len(again) == 0 {
			break
		}
		// Copy-ups run without the lock, so that a large file holds up
		// nobody; then everything is looked at anew.
		for _, n := range again {
			if err := t.raise(n, want{meta: true}); err != nil {
				return err
			}
		}
	}
	evs := []Event{{Parent: oldp, Name: m.oldName}, {Parent: newp, Name: m.newName}, {Node: m.n}}
	if m.over != nil && m.over != m.n {
		evs = append(evs, Event{Node: m.over})
	}
	f.emit(evs...)
	return nil
}

// tryRename does the rename, or returns the nodes that must first be in the
// active layer.
func (t *Tree) tryRename(m *move, flags uint32) ([]*Node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	same, err := t.checkRename(m, flags)
	if err != nil || same {
		return nil, err
	}
	var up []*Node
	for _, n := range [...]*Node{m.n, m.over} {
		if n == nil || n == m.over && !m.exchange {
			continue
		}
		x := n.verIn(t.view)
		if n.isDir() {
			if _, err := t.raiseDir(n); err != nil {
				return nil, err
			}
		} else if !t.writable(x) {
			up = append(up, n)
		}
	}
	if len(up) > 0 {
		return up, nil
	}
	if m.exchange {
		err = t.exchange(m)
	} else {
		err = t.rename(m)
	}
	if err != nil {
		return nil, err
	}
	return nil, t.flushRecord()
}

// checkRename finds both sides and applies the rules of rename(2). It reports
// true where there is nothing to do: both names are one file.
func (t *Tree) checkRename(m *move, flags uint32) (bool, error) {
	if !m.oldDir.isDir() || !m.newDir.isDir() {
		return false, unix.ENOTDIR
	}
	src, err := t.child(t.view, m.oldDir, m.oldName, true)
	if err != nil {
		return false, err
	}
	if src.node == nil {
		return false, unix.ENOENT
	}
	dst, err := t.child(t.view, m.newDir, m.newName, true)
	if err != nil {
		return false, err
	}
	m.n, m.over = src.node, dst.node
	for _, d := range [...]*Node{m.oldDir, m.newDir} {
		if t.removed(d) {
			return false, unix.ENOENT
		}
	}
	if m.oldDir.readOnly || m.newDir.readOnly || m.n.readOnly || m.over != nil && m.over.readOnly {
		return false, unix.EROFS
	}
	if err := t.forbidden(m.newDir, m.newName, m.n.isDir()); err != nil {
		return false, err
	}
	if m.exchange {
		if m.over == nil {
			return false, unix.ENOENT
		}
		if t.within(m.newDir, m.n) || t.within(m.oldDir, m.over) {
			return false, unix.EINVAL
		}
		return m.n == m.over, nil
	}
	if m.over != nil && flags&unix.RENAME_NOREPLACE != 0 {
		return false, unix.EEXIST
	}
	if m.n == m.over {
		return true, nil
	}
	if t.within(m.newDir, m.n) {
		return false, unix.EINVAL
	}
	if m.over == nil {
		return false, nil
	}
	if t.within(m.oldDir, m.over) {
		return false, unix.ENOTEMPTY
	}
	switch {
	case m.over.isDir() && !m.n.isDir():
		return false, unix.EISDIR
	case !m.over.isDir() && m.n.isDir():
		return false, unix.ENOTDIR
	}
	if !m.over.isDir() {
		return false, nil
	}
	empty, err := t.empty(m.over, t.view)
	if err == nil && !empty {
		err = unix.ENOTEMPTY
	}
	return false, err
}

// within reports whether directory d is n or lies below it.
func (t *Tree) within(d, n *Node) bool {
	if !n.isDir() {
		return false
	}
	for m := d; m != nil; m, _ = m.placeIn(t.view) {
		if m == n {
			return true
		}
		if m == t.root {
			return false
		}
	}
	return false
}

// redirect marks a payload that is about to move, so that it still finds what
// it covers: a directory the one it merges with, a metadata-only copy its
// content. New directories that come to lie over a lower one are made opaque.
//
// Preconditions: mu is held; n has a payload in the active layer.
func (t *Tree) redirect(n *Node, newDir *Node) error {
	x := n.ver
	at, name, err := t.payloadAt(n, x)
	if err != nil {
		return err
	}
	defer t.fds.done(at)
	if !n.isDir() {
		if x.flags&verMeta == 0 {
			return nil
		}
		return t.metered(at.fd, name, nil, func() error {
			return t.fs.Setxattr(at.fd, name, t.prefix+"redirect", []byte("/"+x.lower), 0)
		})
	}
	if t.hasLower(n) {
		return t.fs.Setxattr(at.fd, name, t.prefix+"redirect", []byte("/"+t.pathIn(t.lower, n)), 0)
	}
	if !t.hasLower(newDir) {
		return nil
	}
	return t.fs.Setxattr(at.fd, name, t.prefix+"opaque", []byte("y"), 0)
}

// rename moves m.n, which has a payload in the active layer.
func (t *Tree) rename(m *move) error {
	oldX, err := t.raiseDir(m.oldDir)
	if err != nil {
		return err
	}
	newX, err := t.raiseDir(m.newDir)
	if err != nil {
		return err
	}
	oldFD, err := t.layerDirFD(m.oldDir, oldX)
	if err != nil {
		return err
	}
	defer t.fds.done(oldFD)
	newFD, err := t.layerDirFD(m.newDir, newX)
	if err != nil {
		return err
	}
	defer t.fds.done(newFD)
	lower, err := t.lowerHas(m.oldDir, m.oldName)
	if err != nil {
		return err
	}
	if _, err := t.lowerHas(m.newDir, m.newName); err != nil {
		return err
	}
	if m.n.isDir() {
		t.noteDir(m.n)
	}
	if err := t.redirect(m.n, m.newDir); err != nil {
		return fmt.Errorf("mark for rename: %w", err)
	}
	t.keepAttr(m.over)
	if err := t.clearTarget(m, newFD.fd); err != nil {
		return err
	}
	flags := uint(0)
	if lower {
		flags = renameWhiteout
	}
	if err := t.movePayload(oldFD.fd, newFD.fd, m, flags); err != nil {
		return err
	}
	t.cfg.Quota.Add(-m.frees)
	t.touched(m.oldDir, oldX)
	t.touched(m.newDir, newX)
	if m.over != nil {
		if m.over.isDir() {
			t.goneDir(m.over)
		} else if err := t.goneName(m.over, dent{m.newDir, m.newName}); err != nil {
			return err
		}
	}
	t.unname(m.oldDir, m.oldName, lower)
	t.rename1(m.n, dent{m.oldDir, m.oldName}, dent{m.newDir, m.newName})
	return nil
}

// noteDir records what the base has where a directory of it was.
func (t *Tree) noteDir(n *Node) {
	if !n.hasBase || n == t.root {
		return
	}
	var st unix.Statx_t
	if t.baseStat(n, &st) == nil {
		t.noteWas(n.basePath(), &st, nil, nil)
	}
}

// rename1 gives n its new place.
func (t *Tree) rename1(n *Node, from, to dent) {
	x := n.ver
	if x.parent == from.dir && x.name == from.name {
		x.parent, x.name, x.above = to.dir, to.name, to.dir.verAt(x.layer)
	}
	if len(n.links) > 0 {
		n.dropLink(from)
		n.addLink(to)
	}
	x.flags &^= verCtime | verImplicit
	t.logNode(n, x)
	t.setEntry(to.dir, to.name, n)
	t.dirty = true
}

// clearTarget makes way in the layer for what moves to m.newName: a directory
// there must hold no whiteouts, and a file that is still held keeps its
// content in scratch.
func (t *Tree) clearTarget(m *move, newFD int) error {
	e := m.newDir.ents[m.newName]
	if e == nil || e.layer != t.view.active {
		return nil
	}
	if e.node == nil {
		if !m.n.isDir() {
			return nil // a whiteout is renamed over
		}
		// A directory cannot replace the whiteout; both lead to "not there".
		return t.swapWhiteoutForDir(newFD, m.newName)
	}
	over := e.node
	if over.isDir() {
		return t.emptyPayload(over)
	}
	if over.refs.Load() == 0 || len(over.links) > 1 {
		m.frees = t.lastName(newFD, m.newName)
		return nil
	}
	return t.linkOrphan(newFD, m.newName, over)
}

// swapWhiteoutForDir replaces a whiteout by an empty opaque directory, which a
// rename of a directory can then replace. In between a crash leaves an empty
// directory, where the record still has a whiteout; recovery takes the record.
func (t *Tree) swapWhiteoutForDir(dir int, name string) error {
	tmp := t.tempName()
	if err := t.fs.Mkdir(t.scratchFD, tmp, 0o700); err != nil {
		return err
	}
	err := t.fs.Setxattr(t.scratchFD, tmp, t.prefix+"opaque", []byte("y"), 0)
	if err == nil {
		err = t.fs.Rename(t.scratchFD, tmp, dir, name, unix.RENAME_EXCHANGE)
	}
	if err != nil {
		_ = t.fs.Unlink(t.scratchFD, tmp, unix.AT_REMOVEDIR)
		return err
	}
	_ = t.fs.Unlink(t.scratchFD, tmp, 0)
	return nil
}

// emptyPayload removes the whiteouts from the payload of a directory that the
// view shows empty; it is made opaque first, so that nothing reappears.
func (t *Tree) emptyPayload(n *Node) error {
	fd, err := t.layerDirFD(n, n.ver)
	if err != nil {
		return err
	}
	defer t.fds.done(fd)
	var names []string
	for name, e := range n.ents {
		if e.layer == t.view.active && e.node == nil {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	if err := t.fs.Setxattr(fd.fd, "", t.prefix+"opaque", []byte("y"), 0); err != nil {
		return err
	}
	for _, name := range names {
		if err := t.fs.Unlink(fd.fd, name, 0); err != nil && err != unix.ENOENT {
			return err
		}
	}
	return nil
}

// movePayload renames within the layer. Where the file system cannot leave a
// whiteout in the same step, it is exchanged in.
func (t *Tree) movePayload(oldFD, newFD int, m *move, flags uint) error {
	err := t.fs.Rename(oldFD, m.oldName, newFD, m.newName, flags)
	if flags == 0 || err != unix.EINVAL && err != unix.EPERM {
		return err
	}
	if err := t.fs.Rename(oldFD, m.oldName, newFD, m.newName, 0); err != nil {
		return err
	}
	return t.putWhiteout(oldFD, m.oldName, false)
}

// exchange swaps two names, both with payloads in the active layer.
func (t *Tree) exchange(m *move) error {
	oldX, err := t.raiseDir(m.oldDir)
	if err != nil {
		return err
	}
	newX, err := t.raiseDir(m.newDir)
	if err != nil {
		return err
	}
	oldFD, err := t.layerDirFD(m.oldDir, oldX)
	if err != nil {
		return err
	}
	defer t.fds.done(oldFD)
	newFD, err := t.layerDirFD(m.newDir, newX)
	if err != nil {
		return err
	}
	defer t.fds.done(newFD)
	for _, d := range [...]dent{{m.oldDir, m.oldName}, {m.newDir, m.newName}} {
		if _, err := t.lowerHas(d.dir, d.name); err != nil {
			return err
		}
	}
	if err := t.redirect(m.n, m.newDir); err != nil {
		return fmt.Errorf("mark for rename: %w", err)
	}
	if err := t.redirect(m.over, m.oldDir); err != nil {
		return fmt.Errorf("mark for rename: %w", err)
	}
	if err := t.fs.Rename(oldFD.fd, m.oldName, newFD.fd, m.newName, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	t.touched(m.oldDir, oldX)
	t.touched(m.newDir, newX)
	a, b := dent{m.oldDir, m.oldName}, dent{m.newDir, m.newName}
	t.rename1(m.n, a, b)
	t.rename1(m.over, b, a)
	return nil
}
