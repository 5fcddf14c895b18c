package overlay

import (
	"fmt"

	"golang.org/x/sys/unix"
)

func attrOf(st *unix.Statx_t) Attr {
	return Attr{
		Ino: st.Ino, Mode: uint32(st.Mode), Nlink: st.Nlink, UID: st.Uid, GID: st.Gid,
		Rdev: unix.Mkdev(st.Rdev_major, st.Rdev_minor), Size: int64(st.Size), Blocks: int64(st.Blocks),
		Blksize: st.Blksize, Atime: timeOf(st.Atime), Mtime: timeOf(st.Mtime), Ctime: timeOf(st.Ctime),
	}
}

// baseAttr is what st says of the untouched node n of the base, and notes what
// of its content was reported.
func (t *Tree) baseAttr(n *Node, st *unix.Statx_t) Attr {
	a := attrOf(st)
	a.Ino = n.ino
	if n.isDir() {
		a.Nlink = 1
		return a
	}
	stamp := contentStamp(st)
	if old := n.stamp.Swap(stamp); old != 0 && old != stamp {
		// Where the host's directory cannot be watched, this is how a change
		// of content is noticed.
		t.emit(nil, []Event{{Node: n, Data: true}})
	}
	return a
}

func contentStamp(st *unix.Statx_t) uint64 {
	h := uint64(st.Mtime.Sec)*1e9 + uint64(st.Mtime.Nsec)
	h = h*0x9e3779b97f4a7c15 + uint64(st.Ctime.Sec)*1e9 + uint64(st.Ctime.Nsec)
	h = h*0x9e3779b97f4a7c15 + st.Size
	return h | 1
}

// baseStat looks at the untouched node n in the base.
//
// Preconditions: mu is held.
func (t *Tree) baseStat(n *Node, st *unix.Statx_t) error {
	if n == t.root {
		return t.fs.Stat(t.base.fd, "", st)
	}
	fd, err := t.baseDirFD(n.bparent)
	if err != nil {
		return err
	}
	defer t.fds.done(fd)
	if err := t.fs.Stat(fd.fd, n.bname, st); err != nil {
		if err == unix.ENOENT {
			return fmt.Errorf("%q: %w", n.basePath(), ErrDrifted)
		}
		return fmt.Errorf("%q in the base: %w", n.basePath(), err)
	}
	if hostID(st) != n.bid || !n.sameBase(st) {
		return fmt.Errorf("%q: %w", n.basePath(), ErrDrifted)
	}
	return nil
}

// attrIn is what view v shows of n.
//
// Preconditions: mu is held.
func (t *Tree) attrIn(n *Node, v *view) (Attr, error) {
	var st unix.Statx_t
	x := n.verIn(v)
	if x == nil {
		if !n.born(v) {
			if n == t.root {
				return Attr{Ino: n.ino, Mode: unix.S_IFDIR | 0o755, Nlink: 1, Blksize: 4096}, nil
			}
			return t.strandedAttr(n)
		}
		if err := t.baseStat(n, &st); err != nil {
			return Attr{}, err
		}
		return t.baseAttr(n, &st), nil
	}
	if x.flags&verGhost != 0 {
		return t.ghostAttr(n, x, v)
	}
	if err := t.statVer(n, x, &st); err != nil {
		return Attr{}, err
	}
	a := attrOf(&st)
	x.kept.show(&a, n.typ)
	a.Ino = n.ino
	if n.isDir() {
		a.Nlink = 1
	} else {
		a.Nlink = x.nlink
	}
	if x.flags&verCtime != 0 {
		a.Ctime = x.ctime
	}
	if x.flags&verMeta != 0 {
		var ds unix.Statx_t
		if err := t.statData(n, x, &ds); err != nil {
			return Attr{}, err
		}
		a.Blocks = int64(ds.Blocks)
	}
	return a, nil
}

// strandedAttr describes a node that the view has nothing of any more.
func (t *Tree) strandedAttr(n *Node) (Attr, error) {
	if a, ok := t.goneDirs[n]; ok {
		return a, nil
	}
	x := contentVer(n, t.view)
	if x == nil {
		return Attr{}, unix.ESTALE
	}
	var st unix.Statx_t
	if err := t.statVer(n, x, &st); err != nil {
		return Attr{}, err
	}
	a := attrOf(&st)
	x.kept.show(&a, n.typ)
	a.Ino, a.Nlink = n.ino, 0
	return a, nil
}

// ghostAttr describes a file of which this view changed only the number of
// names, down to none.
func (t *Tree) ghostAttr(n *Node, x *nodeVer, v *view) (Attr, error) {
	if a, ok := t.goneDirs[n]; ok {
		return a, nil
	}
	var st unix.Statx_t
	y := contentVer(n, v)
	var err error
	switch {
	case y != nil:
		err = t.statVer(n, y, &st)
	case n.hasBase:
		err = t.baseStat(n, &st)
	default:
		err = unix.ESTALE
	}
	if err != nil {
		return Attr{}, err
	}
	a := attrOf(&st)
	keptOf(y).show(&a, n.typ)
	a.Ino, a.Nlink = n.ino, x.nlink
	if x.flags&verCtime != 0 {
		a.Ctime = x.ctime
	}
	return a, nil
}

func (t *Tree) statVer(n *Node, x *nodeVer, st *unix.Statx_t) error {
	fd, name, err := t.payloadAt(n, x)
	if err != nil {
		return err
	}
	defer t.fds.done(fd)
	if err := t.fs.Stat(fd.fd, name, st); err != nil {
		return fmt.Errorf("layer %d: %q: %w", x.layer, x.name, lost(err))
	}
	return nil
}

// statData looks at the content of a metadata-only copy.
func (t *Tree) statData(n *Node, x *nodeVer, st *unix.Statx_t) error {
	if x.data != nil {
		return t.statVer(n, x.data, st)
	}
	return t.baseStat(n, st)
}

// Getattr describes n.
func (f *Face) Getattr(n *Node) (Attr, error) {
	t := f.t
	t.admit.RLock()
	defer t.admit.RUnlock()
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.attrIn(n, f.view())
}

// Readlink is the target of a symbolic link.
func (f *Face) Readlink(n *Node) (string, error) {
	if n.typ != unix.S_IFLNK {
		return "", unix.EINVAL
	}
	t := f.t
	t.admit.RLock()
	defer t.admit.RUnlock()
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.readlink(n, contentVer(n, f.view()))
}

// contentVer is the version that holds what view v shows of n, nil for the
// base. A node that v has nothing of, because the view was switched under those
// who hold it, keeps its newest content, as an unlinked file does.
func contentVer(n *Node, v *view) *nodeVer {
	for x := n.ver; x != nil; x = x.prev {
		if v.has(x.layer) && x.flags&verGhost == 0 {
			return x
		}
	}
	if n.born(v) {
		return nil
	}
	for x := n.ver; x != nil; x = x.prev {
		if x.flags&verGhost == 0 {
			return x
		}
	}
	return nil
}

// untouched reports whether v shows of n what the base has: a layer has at most
// taken a name from it, or a commit has put it there.
func (n *Node) untouched(v *view) bool {
	if !n.born(v) {
		return false
	}
	x := n.verIn(v)
	return x == nil || x.onlyCounts() && contentVer(n, v) == nil
}

// nameless reports whether n lost its last name in v, and is not kept for
// others that the base may have.
func (n *Node) nameless(v *view) bool {
	x := n.verIn(v)
	return x != nil && x.flags&verGone != 0 && (x.flags&verOrphan == 0 || x.nlink == 0)
}

func (t *Tree) readlink(n *Node, x *nodeVer) (string, error) {
	if x != nil {
		fd, name, err := t.payloadAt(n, x)
		if err != nil {
			return "", err
		}
		defer t.fds.done(fd)
		return t.fs.Readlink(fd.fd, name)
	}
	fd, err := t.baseDirFD(n.bparent)
	if err != nil {
		return "", err
	}
	defer t.fds.done(fd)
	return t.fs.Readlink(fd.fd, n.bname)
}

// Statfs describes the file system that takes the session's writes.
func (f *Face) Statfs() (unix.Statfs_t, error) {
	var st unix.Statfs_t
	err := f.t.fs.Statfs(f.t.scratchFD, &st)
	if q := f.t.cfg.Quota; q != nil && err == nil && st.Bsize > 0 {
		size := uint64(st.Bsize)
		room := uint64(q.room()) / size
		st.Blocks = min(st.Blocks, uint64(q.Limit())/size)
		st.Bfree, st.Bavail = min(st.Bfree, room), min(st.Bavail, room)
	}
	return st, err
}
