package overlaytest

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// add makes a node with a name; the order of the checks is that of the
// kernel's filename_create and may_create.
func (r *Ref) add(at Loc, mode uint32) (*node, error) {
	dir, name, old, err := r.place(at)
	switch {
	case err != nil:
		return nil, err
	case old != nil:
		return nil, syscall.EEXIST
	case dir.gone():
		return nil, syscall.ENOENT
	}
	n := r.newNode(mode)
	n.inherit(dir)
	n.nlink = 1
	dir.bind(name, n)
	return n, nil
}

// inherit applies the rule of set-group-id directories (inode_init_owner).
func (n *node) inherit(dir *node) {
	if dir.mode&unix.S_ISGID == 0 {
		return
	}
	n.gid = dir.gid
	if n.isDir() {
		n.mode |= unix.S_ISGID
	}
}

func (n *node) bind(name string, c *node) {
	n.ents[name] = c
	n.touched(name)
	if c.isDir() {
		c.parent = n
	}
}

func (n *node) unbind(name string) {
	c := n.ents[name]
	delete(n.ents, name)
	n.touched(name)
	c.nlink--
	if c.isDir() {
		c.parent = nil
	}
}

// Mkdir implements [FS].
func (r *Ref) Mkdir(at Loc, mode uint32) error {
	// vfs_mkdir keeps S_IRWXUGO and S_ISVTX.
	_, err := r.add(at, unix.S_IFDIR|mode&0o1777)
	return err
}

// Mknod implements [FS].
func (r *Ref) Mknod(at Loc, mode uint32, rdev uint64) error {
	n, err := r.add(at, mode)
	if err == nil && (n.kind() == unix.S_IFCHR || n.kind() == unix.S_IFBLK) {
		n.rdev = rdev
	}
	return err
}

// Create implements [FS].
func (r *Ref) Create(slot int, at Loc, mode uint32) error {
	n, err := r.add(at, unix.S_IFREG|mode&0o7777)
	if err == nil {
		r.slots[slot] = n
	}
	return err
}

// Symlink implements [FS].
func (r *Ref) Symlink(target string, at Loc) error {
	n, err := r.add(at, unix.S_IFLNK|0o777)
	if err == nil {
		n.target = target
	}
	return err
}

// Tmpfile implements [FS].
func (r *Ref) Tmpfile(slot int, dir Loc, mode uint32) error {
	d, err := r.find(dir)
	switch {
	case err != nil:
		return err
	case !d.isDir():
		return syscall.ENOTDIR
	case d.gone():
		return syscall.ENOENT
	}
	n := r.newNode(unix.S_IFREG | mode&0o7777)
	n.inherit(d)
	n.linkable = true
	r.slots[slot] = n
	return nil
}

// Link implements [FS].
func (r *Ref) Link(from, to Loc) error {
	n, err := r.find(from)
	if err != nil {
		return err
	}
	dir, name, old, err := r.place(to)
	switch {
	case err != nil:
		return err
	case old != nil:
		return syscall.EEXIST
	case dir.gone():
		return syscall.ENOENT
	case n.isDir():
		return syscall.EPERM
	case n.nlink == 0 && !n.linkable:
		return syscall.ENOENT
	}
	n.linkable = false
	n.ownMeta = true
	n.nlink++
	dir.bind(name, n)
	return nil
}

// Unlink implements [FS].
func (r *Ref) Unlink(at Loc) error {
	dir, name, old, err := r.place(at)
	switch {
	case err != nil:
		return err
	case old == nil:
		return syscall.ENOENT
	case old.isDir():
		return syscall.EISDIR
	}
	old.ownMeta = true
	dir.unbind(name)
	return nil
}

// Rmdir implements [FS].
func (r *Ref) Rmdir(at Loc) error {
	dir, name, old, err := r.place(at)
	switch {
	case err != nil:
		return err
	case old == nil:
		return syscall.ENOENT
	case !old.isDir():
		return syscall.ENOTDIR
	case len(old.ents) > 0:
		return syscall.ENOTEMPTY
	}
	dir.unbind(name)
	return nil
}

// below tells whether n is dir or lies beneath it.
func (n *node) below(dir *node) bool {
	for ; n != nil; n = n.parent {
		if n == dir {
			return true
		}
	}
	return false
}

// Rename implements [FS]; the order of the checks is that of do_renameat2 and
// vfs_rename.
func (r *Ref) Rename(from, to Loc, flags uint32) error {
	fp, _ := from.split()
	tp, _ := to.split()
	for _, parent := range []Loc{fp, tp} {
		dir, err := r.find(parent)
		if err != nil {
			return err
		}
		if !dir.isDir() {
			return syscall.ENOTDIR
		}
	}
	fdir, fname, src, err := r.place(from)
	if err != nil {
		return err
	}
	if src == nil {
		return syscall.ENOENT
	}
	tdir, tname, dst, err := r.place(to)
	if err != nil {
		return err
	}
	exchange := flags&unix.RENAME_EXCHANGE != 0
	switch {
	case dst != nil && flags&unix.RENAME_NOREPLACE != 0:
		return syscall.EEXIST
	case dst == nil && exchange:
		return syscall.ENOENT
	case src.isDir() && tdir.below(src):
		return syscall.EINVAL
	case dst != nil && dst.isDir() && fdir.below(dst):
		if exchange {
			return syscall.EINVAL
		}
		return syscall.ENOTEMPTY
	case src == dst:
		return nil
	case tdir.gone():
		return syscall.ENOENT
	}
	if exchange {
		fdir.bind(fname, dst)
		tdir.bind(tname, src)
		src.ownMeta, dst.ownMeta = true, true
		return nil
	}
	if dst != nil {
		switch {
		case src.isDir() && !dst.isDir():
			return syscall.ENOTDIR
		case !src.isDir() && dst.isDir():
			return syscall.EISDIR
		case dst.isDir() && len(dst.ents) > 0:
			return syscall.ENOTEMPTY
		}
		dst.ownMeta = true
		tdir.unbind(tname)
	}
	delete(fdir.ents, fname)
	fdir.touched(fname)
	src.ownMeta = true
	tdir.bind(tname, src)
	return nil
}
