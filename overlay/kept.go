package overlay

import (
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// kept is what the host does not take of a node, in a tree with
// [Config.KeepOwners]: the record has it, and the payload has a mode that lets
// this user work on it. A device node is an empty file there. It is immutable:
// a change puts another one in its place.
type kept struct {
	uid, gid uint32
	mode     uint32 // permission bits
	rdev     uint64
	xattrs   map[string]string // all but those in "user."
}

// maxKeptXattrs bounds the extended attributes of one node that are kept, so
// that a frame holds them.
const maxKeptXattrs = 256 << 10

// show makes a say what is kept of a node of type typ.
func (k *kept) show(a *Attr, typ uint32) {
	if k == nil {
		return
	}
	a.UID, a.GID, a.Mode = k.uid, k.gid, typ|k.mode
	if isDevice(typ) {
		a.Rdev = k.rdev
	}
}

func isDevice(typ uint32) bool { return typ == unix.S_IFCHR || typ == unix.S_IFBLK }

// payloadMode is the mode of the payload of what is kept.
func payloadMode(typ, mode uint32) uint32 {
	if typ == unix.S_IFDIR {
		return mode&0o777 | 0o700
	}
	return mode&0o777 | 0o600
}

// payloadType is the type of the payload of version x of a node of type typ.
func payloadType(x *nodeVer, typ uint32) uint32 {
	if x != nil && x.kept != nil && isDevice(typ) {
		return unix.S_IFREG
	}
	return typ
}

// keptXattr reports whether an extended attribute is kept, where anything is.
func keptXattr(attr string) bool { return !strings.HasPrefix(attr, "user.") }

// mayGiveAway reports whether this process can give files to any owner.
func (t *Tree) mayGiveAway() bool {
	const probe = "owner"
	if unix.Geteuid() != 0 {
		return false
	}
	fd, err := t.fs.Open(t.scratchFD, probe, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return true // it will be said where it matters
	}
	defer t.fs.Close(fd)
	err = t.fs.Chown(fd, "", 1, 1)
	_ = t.fs.Unlink(t.scratchFD, probe, 0)
	return err == nil
}

// OneOwner reports whether this process can make files of no owner but its own,
// and the tree's record keeps no other either.
func (f *Face) OneOwner() bool { return !f.t.keep && unix.Geteuid() != 0 }

// keptFrom is what is kept of a copy of a node that had attributes a, and of
// which old was kept.
func (t *Tree) keptFrom(a *Attr, old *kept) *kept {
	if !t.keep && (old == nil || len(old.xattrs) == 0) {
		return nil
	}
	k := &kept{uid: a.UID, gid: a.GID, mode: a.Mode & 0o7777, rdev: a.Rdev}
	if old != nil {
		k.xattrs = old.xattrs
	}
	return k
}

// keptCopy is keptFrom for a copy of what lies at (dir, name), which has the
// extended attributes itself where nothing was kept of it.
func (t *Tree) keptCopy(a *Attr, old *kept, dir int, name string) (*kept, error) {
	k := t.keptFrom(a, old)
	if k == nil || old != nil {
		return k, nil
	}
	names, err := t.listXattrs(dir, name)
	if err != nil {
		return nil, err
	}
	for _, attr := range names {
		if !keptXattr(attr) {
			continue
		}
		val, err := t.getXattr(dir, name, attr)
		if err == unix.ENODATA || err == unix.EPERM || err == unix.EACCES {
			continue
		}
		if err != nil {
			return nil, err
		}
		if k.xattrs == nil {
			k.xattrs = map[string]string{}
		}
		k.xattrs[attr] = string(val)
	}
	return k, nil
}

// keptOf is what is kept in version x, which may be nil.
func keptOf(x *nodeVer) *kept {
	if x == nil {
		return nil
	}
	return x.kept
}

// keptNew is what is kept of a node that caller c makes in a directory with
// attributes dir: group, and set-gid on a directory, come from a set-gid parent.
func keptNew(s spec, c Caller, dir *Attr) *kept {
	k := &kept{uid: c.UID, gid: c.GID, mode: s.mode & 0o7777, rdev: s.rdev}
	if dir.Mode&unix.S_ISGID != 0 {
		k.gid = dir.GID
		if s.mode&unix.S_IFMT == unix.S_IFDIR {
			k.mode |= unix.S_ISGID
		}
	}
	if s.mode&unix.S_IFMT == unix.S_IFLNK {
		k.mode = 0o777
	}
	return k
}

// settleKept gives the payload of a new node its mode and describes it.
func (t *Tree) settleKept(at int, name string, typ uint32, k *kept, st *unix.Statx_t) error {
	if typ != unix.S_IFLNK {
		if err := t.fs.Chmod(at, name, payloadMode(typ, k.mode)); err != nil {
			return err
		}
	}
	return t.fs.Stat(at, name, st)
}

// keepMeta takes into x what in says of owner and mode, and returns what is left
// to do on the payload.
//
// Preconditions: mu is held; x is n's version in the active layer.
func (t *Tree) keepMeta(n *Node, x *nodeVer, in SetAttr) (SetAttr, error) {
	if in.Mode != nil && n.typ == unix.S_IFLNK {
		return in, unix.EOPNOTSUPP
	}
	if in.Mode == nil && in.UID == nil && in.GID == nil {
		return in, nil
	}
	k := &kept{}
	if x.kept != nil {
		*k = *x.kept
	} else {
		a, err := t.attrIn(n, t.view)
		if err != nil {
			return in, err
		}
		k = &kept{uid: a.UID, gid: a.GID, mode: a.Mode & 0o7777, rdev: a.Rdev}
	}
	if in.UID != nil || in.GID != nil {
		k.give(n.typ, in)
	}
	if in.Mode != nil {
		k.mode = *in.Mode & 0o7777
	}
	x.kept = k
	in.UID, in.GID = nil, nil
	if n.typ != unix.S_IFLNK {
		mode := payloadMode(n.typ, k.mode)
		in.Mode = &mode
	}
	return in, nil
}

// give changes the owner, with what the kernel does to anything but a directory
// then: set-id bits and file capabilities go.
func (k *kept) give(typ uint32, in SetAttr) {
	if in.UID != nil {
		k.uid = *in.UID
	}
	if in.GID != nil {
		k.gid = *in.GID
	}
	if typ == unix.S_IFDIR {
		return
	}
	k.mode &^= unix.S_ISUID
	if k.mode&unix.S_IXGRP != 0 {
		k.mode &^= unix.S_ISGID
	}
	*k = *k.without(capability)
}

// without is k without an extended attribute.
func (k *kept) without(attr string) *kept {
	if k == nil {
		return nil
	}
	if _, have := k.xattrs[attr]; !have {
		return k
	}
	out := *k
	out.xattrs = maps.Clone(k.xattrs)
	delete(out.xattrs, attr)
	return &out
}

const capability = "security.capability"

// keepXattr sets an extended attribute of version x; val nil removes it.
func (k *kept) keepXattr(attr string, val []byte, flags int) (*kept, error) {
	_, have := k.xattrs[attr]
	if have && flags&unix.XATTR_CREATE != 0 {
		return nil, unix.EEXIST
	}
	if !have && (flags&unix.XATTR_REPLACE != 0 || val == nil) {
		return nil, unix.ENODATA
	}
	out := *k
	out.xattrs = maps.Clone(k.xattrs)
	if val == nil {
		delete(out.xattrs, attr)
		return &out, nil
	}
	if out.xattrs == nil {
		out.xattrs = map[string]string{}
	}
	out.xattrs[attr] = string(val)
	sum := 0
	for name, v := range out.xattrs {
		sum += len(name) + len(v)
	}
	switch {
	case len(attr) > maxNameLen:
		return nil, unix.ERANGE
	case len(val) > maxXattrSize:
		return nil, unix.E2BIG
	case sum > maxKeptXattrs:
		return nil, unix.ENOSPC
	}
	return &out, nil
}

// keptNames are the names of the extended attributes that are kept, among those
// that the payload has.
func (k *kept) names(payload []string) []string {
	if k == nil {
		return payload
	}
	out := slices.DeleteFunc(payload, keptXattr)
	return append(out, slices.Sorted(maps.Keys(k.xattrs))...)
}

func (e *encoder) kept(ino uint64, k *kept) {
	at := e.begin(frameKept)
	e.uint(ino)
	e.uint(uint64(k.uid))
	e.uint(uint64(k.gid))
	e.uint(uint64(k.mode))
	e.uint(k.rdev)
	e.uint(uint64(len(k.xattrs)))
	for _, name := range slices.Sorted(maps.Keys(k.xattrs)) {
		e.str(name)
		e.str(k.xattrs[name])
	}
	e.end(at)
}

func (d *decoder) kept() (ino uint64, k *kept) {
	ino = d.uint()
	k = &kept{uid: d.uint32(), gid: d.uint32(), mode: d.uint32(), rdev: d.uint()}
	n := d.uint()
	if k.mode&^0o7777 != 0 {
		d.bad = true
	}
	for i := uint64(0); i < n && !d.bad; i++ {
		if k.xattrs == nil {
			k.xattrs = map[string]string{}
		}
		name := d.str()
		k.xattrs[name] = d.str()
	}
	return ino, k
}
