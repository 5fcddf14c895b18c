package overlay

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Create makes a regular file. EEXIST if the name is there.
func (f *Face) Create(parent *Node, name string, mode uint32, c Caller) (*Node, Attr, error) {
	return f.make(parent, name, spec{mode: unix.S_IFREG | mode&0o7777}, c)
}

// Mkdir makes a directory.
func (f *Face) Mkdir(parent *Node, name string, mode uint32, c Caller) (*Node, Attr, error) {
	return f.make(parent, name, spec{mode: unix.S_IFDIR | mode&0o7777}, c)
}

// Mknod makes a node of the type in mode; rdev counts for devices.
func (f *Face) Mknod(parent *Node, name string, mode uint32, rdev uint64, c Caller) (*Node, Attr, error) {
	if mode&unix.S_IFMT == 0 {
		mode |= unix.S_IFREG
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFBLK, unix.S_IFCHR:
	default:
		return nil, Attr{}, unix.EINVAL
	}
	if mode&unix.S_IFMT == unix.S_IFCHR && rdev == 0 {
		return nil, Attr{}, unix.EPERM // it would be a whiteout
	}
	return f.make(parent, name, spec{mode: mode, rdev: rdev}, c)
}

// Symlink makes a symbolic link to target, which is not looked at.
func (f *Face) Symlink(parent *Node, name, target string, c Caller) (*Node, Attr, error) {
	if target == "" {
		return nil, Attr{}, unix.ENOENT
	}
	if len(target) >= unix.PathMax || strings.IndexByte(target, 0) >= 0 {
		return nil, Attr{}, unix.ENAMETOOLONG
	}
	return f.make(parent, name, spec{mode: unix.S_IFLNK | 0o777, target: target}, c)
}

// spec is what to make.
type spec struct {
	mode   uint32
	rdev   uint64
	target string
}

func checkName(name string) error {
	if len(name) > maxNameLen {
		return unix.ENAMETOOLONG
	}
	if !validName(name) {
		return unix.EINVAL
	}
	return nil
}

func (f *Face) make(parent *Node, name string, s spec, c Caller) (*Node, Attr, error) {
	if err := checkName(name); err != nil {
		return nil, Attr{}, err
	}
	if err := f.begin(); err != nil {
		return nil, Attr{}, err
	}
	defer f.end()
	t := f.t
	n, a, err := t.make(parent, name, s, c, func(n *Node) { f.hold(n) })
	if err != nil {
		return nil, Attr{}, err
	}
	f.emit(Event{Parent: parent, Name: name})
	return n, a, nil
}

func (t *Tree) make(parent *Node, name string, s spec, c Caller, hold func(*Node)) (*Node, Attr, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.mayAdd(parent, name, s.mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return nil, Attr{}, err
	}
	px, err := t.raiseDir(parent)
	if err != nil {
		return nil, Attr{}, err
	}
	dir, err := t.layerDirFD(parent, px)
	if err != nil {
		return nil, Attr{}, err
	}
	defer t.fds.done(dir)
	n := &Node{id: t.nextID.Add(1), typ: s.mode & unix.S_IFMT, plain: true}
	x := &nodeVer{layer: t.view.active, parent: parent, name: strings.Clone(name), above: px, nlink: 1}
	if t.keep {
		pa, err := t.attrIn(parent, t.view)
		if err != nil {
			return nil, Attr{}, err
		}
		x.kept = keptNew(s, c, &pa)
	}
	covered := t.whiteoutAt(parent, name)
	var st unix.Statx_t
	if err := t.makePayload(dir.fd, x, s, c, covered, parent, &st); err != nil {
		return nil, Attr{}, err
	}
	n.ino = t.nextIno
	t.nextIno++
	n.setVer(x)
	t.touched(parent, px)
	t.logNode(n, x)
	t.setEntry(parent, x.name, n)
	hold(n)
	a := attrOf(&st)
	x.kept.show(&a, n.typ)
	a.Ino, a.Nlink = n.ino, 1
	return n, a, t.flushRecord()
}

// mayAdd checks that name can be made in parent.
//
// Preconditions: mu is held.
func (t *Tree) mayAdd(parent *Node, name string, isDir bool) error {
	if !parent.isDir() {
		return unix.ENOTDIR
	}
	if t.removed(parent) {
		return unix.ENOENT
	}
	if parent.readOnly {
		return unix.EROFS
	}
	if err := t.forbidden(parent, name, isDir); err != nil {
		return err
	}
	c, err := t.child(t.view, parent, name, true)
	if err != nil {
		return err
	}
	if c.node != nil {
		return unix.EEXIST
	}
	return nil
}

// removed reports whether directory n is not in the live view any more.
func (t *Tree) removed(n *Node) bool {
	x := n.verIn(t.view)
	if x == nil {
		return n != t.root && !n.born(t.view)
	}
	return x.flags&verGone != 0
}

// whiteoutAt reports whether the active layer has a whiteout under the name.
func (t *Tree) whiteoutAt(parent *Node, name string) bool {
	e := parent.ents[name]
	return e != nil && e.layer == t.view.active && e.node == nil
}

// hasLower reports whether directory n merges with anything below the active
// layer.
func (t *Tree) hasLower(n *Node) bool { return n.born(t.view) || n.verIn(t.lower) != nil }

// makePayload makes the object in the layer's directory dir, over a whiteout if
// covered, and describes it.
func (t *Tree) makePayload(dir int, x *nodeVer, s spec, c Caller, covered bool, parent *Node, st *unix.Statx_t) error {
	isDir := s.mode&unix.S_IFMT == unix.S_IFDIR
	opaque := isDir && t.hasLower(parent)
	at, name := dir, x.name
	if covered || opaque {
		at, name = t.scratchFD, t.tempName()
	}
	host := s
	if x.kept != nil && isDevice(s.mode&unix.S_IFMT) {
		host.mode = unix.S_IFREG | 0o600
	}
	fd, err := t.makeHost(at, name, host)
	if err != nil {
		return err
	}
	if fd >= 0 {
		// The descriptor stays: what is made is mostly written next.
		defer func() { t.fds.done(t.fds.put(fdKey{ver: x, kind: fdWrite}, fd)) }()
	}
	undo := func(err error) error {
		flags := 0
		if isDir {
			flags = unix.AT_REMOVEDIR
		}
		_ = t.fs.Unlink(at, name, flags)
		return err
	}
	if x.kept != nil {
		err = t.settleKept(at, name, s.mode&unix.S_IFMT, x.kept, st)
	} else {
		err = t.settle(at, name, s, c, dir, st)
	}
	if err != nil {
		return undo(err)
	}
	if opaque {
		if err := t.fs.Setxattr(at, name, t.prefix+"opaque", []byte("y"), 0); err != nil {
			return undo(fmt.Errorf("mark opaque: %w", err))
		}
	}
	if at == dir {
		return nil
	}
	return t.moveIn(name, dir, x.name, isDir, covered, undo)
}

// moveIn renames an object from scratch into dir, over a whiteout if covered.
func (t *Tree) moveIn(tmp string, dir int, name string, isDir, covered bool, undo func(error) error) error {
	if !covered {
		if err := t.fs.Rename(t.scratchFD, tmp, dir, name, unix.RENAME_NOREPLACE); err != nil {
			return undo(err)
		}
		return nil
	}
	if !isDir {
		if err := t.fs.Rename(t.scratchFD, tmp, dir, name, 0); err != nil {
			return undo(err)
		}
		return nil
	}
	if err := t.fs.Rename(t.scratchFD, tmp, dir, name, unix.RENAME_EXCHANGE); err != nil {
		return undo(err)
	}
	// The whiteout is in scratch now; a failure leaves it for the next open.
	_ = t.fs.Unlink(t.scratchFD, tmp, 0)
	return nil
}

func (t *Tree) makeHost(dir int, name string, s spec) (int, error) {
	perm := s.mode & 0o7777
	switch s.mode & unix.S_IFMT {
	case unix.S_IFREG:
		return t.fs.Open(dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, perm)
	case unix.S_IFDIR:
		return -1, t.fs.Mkdir(dir, name, perm)
	case unix.S_IFLNK:
		return -1, t.fs.Symlink(s.target, dir, name)
	}
	return -1, t.fs.Mknod(dir, name, s.mode, s.rdev)
}

// settle gives a new object the owner and mode that it would have got from the
// kernel for that caller: the group, and set-gid on a directory, come from a
// set-gid parent, and this process's umask counts for nothing.
func (t *Tree) settle(at int, name string, s spec, c Caller, parent int, st *unix.Statx_t) error {
	if err := t.fs.Stat(at, name, st); err != nil {
		return err
	}
	mode, gid := s.mode&0o7777, c.GID
	if st.Gid != gid || st.Uid != c.UID || at != parent {
		var ps unix.Statx_t
		if err := t.fs.Stat(parent, "", &ps); err != nil {
			return err
		}
		if ps.Mode&unix.S_ISGID != 0 {
			gid = ps.Gid
			if s.mode&unix.S_IFMT == unix.S_IFDIR {
				mode |= unix.S_ISGID
			}
		}
	} else if s.mode&unix.S_IFMT == unix.S_IFDIR {
		mode |= uint32(st.Mode) & unix.S_ISGID
	}
	again := false
	if st.Uid != c.UID || st.Gid != gid {
		if err := t.fs.Chown(at, name, int(c.UID), int(gid)); err != nil {
			return fmt.Errorf("set owner %d:%d: %w", c.UID, gid, err)
		}
		again = true
	}
	if s.mode&unix.S_IFMT != unix.S_IFLNK && (uint32(st.Mode)&0o7777 != mode || again && mode&0o6000 != 0) {
		if err := t.fs.Chmod(at, name, mode); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
		again = true
	}
	if !again {
		return nil
	}
	return t.fs.Stat(at, name, st)
}

// Tmpfile makes a regular file without a name (O_TMPFILE), which Link can give
// one.
func (f *Face) Tmpfile(parent *Node, mode uint32, c Caller) (*Node, Attr, error) {
	if err := f.begin(); err != nil {
		return nil, Attr{}, err
	}
	defer f.end()
	if !parent.isDir() {
		return nil, Attr{}, unix.ENOTDIR
	}
	if parent.readOnly {
		return nil, Attr{}, unix.EROFS
	}
	t := f.t
	t.mu.Lock()
	defer t.mu.Unlock()
	pa, err := t.attrIn(parent, t.view)
	if err != nil {
		return nil, Attr{}, err
	}
	if pa.Mode&unix.S_ISGID != 0 {
		c.GID = pa.GID
	}
	n := &Node{id: t.nextID.Add(1), typ: unix.S_IFREG, plain: true, linkable: true, ino: t.nextIno}
	t.nextIno++
	s := spec{mode: unix.S_IFREG | mode&0o7777}
	x := &nodeVer{layer: t.view.active, flags: verOrphan | verGone}
	if t.keep {
		x.kept = keptNew(s, c, &pa)
	}
	fd, err := t.makeHost(t.scratchFD, orphanName(n), s)
	if err != nil {
		return nil, Attr{}, err
	}
	t.fds.done(t.fds.put(fdKey{ver: x, kind: fdWrite}, fd))
	var st unix.Statx_t
	if x.kept != nil {
		err = t.settleKept(t.scratchFD, orphanName(n), unix.S_IFREG, x.kept, &st)
	} else {
		err = t.settle(t.scratchFD, orphanName(n), s, c, t.scratchFD, &st)
	}
	if err != nil {
		t.fds.drop(x, nil)
		_ = t.unlinkOrphan(n)
		return nil, Attr{}, err
	}
	n.setVer(x)
	f.hold(n)
	a := attrOf(&st)
	x.kept.show(&a, n.typ)
	a.Ino, a.Nlink = n.ino, 0
	return n, a, nil
}

// Link gives n another name.
func (f *Face) Link(n *Node, parent *Node, name string) (Attr, error) {
	if err := checkName(name); err != nil {
		return Attr{}, err
	}
	if err := f.begin(); err != nil {
		return Attr{}, err
	}
	defer f.end()
	t := f.t
	if err := t.mayLink(n, parent, name); err != nil {
		return Attr{}, err
	}
	if err := t.raise(n, want{meta: true}); err != nil {
		return Attr{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.mayAdd(parent, name, false); err != nil {
		return Attr{}, err
	}
	if err := t.link(n, parent, name); err != nil {
		return Attr{}, err
	}
	a, err := t.attrIn(n, t.view)
	if err != nil {
		return Attr{}, err
	}
	f.emit(Event{Parent: parent, Name: name}, Event{Node: n})
	return a, t.flushRecord()
}

// mayLink checks before anything is copied up what will be checked again.
func (t *Tree) mayLink(n, parent *Node, name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.mayAdd(parent, name, false); err != nil {
		return err
	}
	switch {
	case n.isDir():
		return unix.EPERM
	case t.unlinked(n) && !n.linkable:
		return unix.ENOENT
	}
	return nil
}

// unlinked reports whether n has no name left, not even in the base.
//
// Preconditions: mu is held.
func (t *Tree) unlinked(n *Node) bool {
	x := n.verIn(t.view)
	if x == nil {
		return !n.born(t.view)
	}
	return x.flags&verGone != 0 && x.nlink == 0
}

// link adds the name (parent, name) to n, which has a payload in the active
// layer or in scratch.
//
// Preconditions: mu is held; the name is free.
func (t *Tree) link(n, parent *Node, name string) error {
	name = strings.Clone(name)
	x := n.verIn(t.view)
	px, err := t.raiseDir(parent)
	if err != nil {
		return err
	}
	if err := t.linkPayload(n, x, parent, px, name); err != nil {
		return err
	}
	t.touched(parent, px)
	d := dent{parent, name}
	if x.flags&verOrphan != 0 {
		x = t.settleOrphan(n, x, d, px)
	} else if len(n.links) == 0 {
		n.addLink(dent{x.parent, x.name})
	}
	n.linkable = false
	x.nlink++
	if x.nlink > 1 {
		n.addLink(d)
	}
	x.flags &^= verCtime
	t.logNode(n, x)
	t.setEntry(parent, name, n)
	return nil
}

func (t *Tree) linkPayload(n *Node, x *nodeVer, parent *Node, px *nodeVer, name string) error {
	src, srcName, err := t.payloadAt(n, x)
	if err != nil {
		return err
	}
	defer t.fds.done(src)
	dir, err := t.layerDirFD(parent, px)
	if err != nil {
		return err
	}
	defer t.fds.done(dir)
	if x.flags&verMeta != 0 {
		// What lies below the new name is not what it takes its content from.
		err := t.metered(src.fd, srcName, nil, func() error {
			return t.fs.Setxattr(src.fd, srcName, t.prefix+"redirect", []byte("/"+x.lower), 0)
		})
		if err != nil {
			return fmt.Errorf("mark for link: %w", err)
		}
	}
	if !t.whiteoutAt(parent, name) {
		return t.fs.Link(src.fd, srcName, dir.fd, name)
	}
	tmp := t.tempName()
	if err := t.fs.Link(src.fd, srcName, t.scratchFD, tmp); err != nil {
		return err
	}
	if err := t.fs.Rename(t.scratchFD, tmp, dir.fd, name, 0); err != nil {
		_ = t.fs.Unlink(t.scratchFD, tmp, 0)
		return err
	}
	return nil
}

// settleOrphan gives the content of a file that had no name its place in the
// active layer, where d is already a name of it.
//
// Preconditions: mu is held; px is the version of d's directory.
func (t *Tree) settleOrphan(n *Node, x *nodeVer, d dent, px *nodeVer) *nodeVer {
	_ = t.unlinkOrphan(n)
	if x.layer != t.view.active {
		// The content was made before a seal and belongs to no layer yet.
		n.dropVer(x.layer)
		y := *x
		y.layer = t.view.active
		t.fds.drop(x, nil)
		n.setVer(&y)
		x = &y
	}
	x.flags &^= verOrphan | verGone
	x.parent, x.name, x.above = d.dir, d.name, px
	return x
}

// adoptLink gives a file that the session changed its further name (dir, name)
// in the base, met only now, in the layer as well.
func (t *Tree) adoptLink(n, dir *Node, name string) (Attr, error) {
	if err := t.raise(n, want{meta: true}); err != nil {
		return Attr{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	x := n.verIn(t.view)
	if dir.entryIn(t.view, name) != nil || !t.writable(x) {
		return t.attrIn(n, t.view)
	}
	if _, err := t.lowerHas(dir, name); err != nil {
		return Attr{}, err
	}
	px, err := t.raiseDir(dir)
	if err != nil {
		return Attr{}, err
	}
	if x.flags&verOrphan == 0 && len(n.links) == 0 {
		n.addLink(dent{x.parent, x.name})
	}
	err = t.keepTimes(dir, px, func(fd int) error {
		src, srcName, err := t.payloadAt(n, x)
		if err != nil {
			return err
		}
		defer t.fds.done(src)
		return t.fs.Link(src.fd, srcName, fd, name)
	})
	if err != nil {
		return Attr{}, fmt.Errorf("link %q as the base has it: %w", name, err)
	}
	if x.flags&verOrphan != 0 {
		x = t.settleOrphan(n, x, dent{dir, strings.Clone(name)}, px)
	}
	n.addLink(dent{dir, strings.Clone(name)})
	t.logNode(n, x)
	t.setEntry(dir, strings.Clone(name), n)
	a, err := t.attrIn(n, t.view)
	if err != nil {
		return Attr{}, err
	}
	return a, t.flushRecord()
}
