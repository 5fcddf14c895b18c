package overlay

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Setattr changes attributes of n and returns what they are then.
func (f *Face) Setattr(n *Node, in SetAttr) (Attr, error) {
	if err := f.begin(); err != nil {
		return Attr{}, err
	}
	defer f.end()
	t := f.t
	if n.readOnly {
		return Attr{}, unix.EROFS
	}
	if in.Size != nil {
		if err := f.resize(n, *in.Size); err != nil {
			return Attr{}, err
		}
	}
	if in.KillSuidgid && in.Mode == nil {
		kill, err := t.killMode(n, f)
		if err != nil {
			return Attr{}, err
		}
		in.Mode = kill
	}
	if in.Mode != nil || in.UID != nil || in.GID != nil || in.Atime != nil || in.Mtime != nil {
		if err := f.setMeta(n, &in); err != nil {
			return Attr{}, err
		}
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.attrIn(n, f.view())
}

// killMode is the mode without the bits that somebody else's write clears, nil
// where there are none (inode_should_drop_suidgid in the kernel: set-gid
// without group execute means mandatory locking, and stays).
func (t *Tree) killMode(n *Node, f *Face) (*uint32, error) {
	t.mu.RLock()
	a, err := t.attrIn(n, f.view())
	t.mu.RUnlock()
	if err != nil || n.isDir() || n.typ == unix.S_IFLNK {
		return nil, err
	}
	mode := a.Mode & 0o7777
	kept := mode &^ unix.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		kept &^= unix.S_ISGID
	}
	if err := f.dropCapability(n); err != nil {
		return nil, err
	}
	if kept == mode && !f.keepsCapability(n) {
		return nil, nil
	}
	return &kept, nil
}

// keepsCapability reports whether file capabilities of n are kept in the record.
func (f *Face) keepsCapability(n *Node) bool {
	f.t.mu.RLock()
	defer f.t.mu.RUnlock()
	k := keptOf(contentVer(n, f.view()))
	if k == nil {
		return false
	}
	_, have := k.xattrs[capability]
	return have
}

// dropCapability removes file capabilities, if any.
func (f *Face) dropCapability(n *Node) error {
	const attr = capability
	t := f.t
	t.mu.RLock()
	defer t.mu.RUnlock()
	x := n.verIn(t.view)
	if n.plain || !t.writable(x) {
		return nil
	}
	if x.kept != nil {
		return nil // setMeta does it
	}
	dir, name, err := t.payloadAt(n, x)
	if err != nil {
		return err
	}
	defer t.fds.done(dir)
	err = t.fs.Removexattr(dir.fd, name, attr)
	if err == unix.ENODATA || err == unix.EOPNOTSUPP || err == unix.EPERM {
		return nil
	}
	return err
}

// resize truncates or extends the content of n.
func (f *Face) resize(n *Node, size int64) error {
	if size < 0 {
		return unix.EINVAL
	}
	if n.isDir() {
		return unix.EISDIR
	}
	if n.typ != unix.S_IFREG {
		return unix.EINVAL
	}
	t := f.t
	if err := t.raise(n, want{limit: size}); err != nil {
		return err
	}
	fd, err := t.forWrite(n)
	if err != nil {
		return err
	}
	defer t.fds.done(fd)
	if t.cfg.Quota != nil {
		n.up.Lock()
		defer n.up.Unlock()
	}
	if err := t.metered(fd.fd, "", nil, func() error { return t.fs.Truncate(fd.fd, size) }); err != nil {
		return err
	}
	f.wrote(n)
	return nil
}

// setMeta changes mode, owner and times.
func (f *Face) setMeta(n *Node, in *SetAttr) error {
	t := f.t
	if err := t.raise(n, want{meta: true}); err != nil {
		return err
	}
	n.up.Lock() // times do not change between the two halves of WriteKeepTimes
	defer n.up.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	x := n.verIn(t.view)
	if !t.writable(x) {
		return unix.ESTALE
	}
	if n.isDir() {
		t.noteDir(n)
	}
	dir, name, err := t.payloadAt(n, x)
	if err != nil {
		return err
	}
	defer t.fds.done(dir)
	kept := x.kept
	if t.keep || kept != nil {
		left, err := t.keepMeta(n, x, *in)
		if in.KillSuidgid && err == nil {
			x.kept = x.kept.without(capability)
		}
		if err != nil {
			return err
		}
		in = &left
	}
	if err := t.applyMeta(dir.fd, name, n, in); err != nil {
		x.kept = kept
		return err
	}
	t.dirty = true
	if x.flags&(verCtime|verImplicit) != 0 || x.kept != kept {
		x.flags &^= verCtime | verImplicit
		if x.flags&verOrphan == 0 {
			t.logNode(n, x)
		}
	}
	f.emit(Event{Node: n})
	return t.flushRecord()
}

func (t *Tree) applyMeta(dir int, name string, n *Node, in *SetAttr) error {
	if in.UID != nil || in.GID != nil {
		uid, gid := -1, -1
		if in.UID != nil {
			uid = int(*in.UID)
		}
		if in.GID != nil {
			gid = int(*in.GID)
		}
		if err := t.fs.Chown(dir, name, uid, gid); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if in.Mode != nil {
		if n.typ == unix.S_IFLNK {
			return unix.EOPNOTSUPP
		}
		if err := t.fs.Chmod(dir, name, *in.Mode&0o7777); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if in.Atime == nil && in.Mtime == nil {
		return nil
	}
	ts := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	if in.Atime != nil {
		ts[0] = in.Atime.spec()
	}
	if in.Mtime != nil {
		ts[1] = in.Mtime.spec()
	}
	if err := t.fs.Utimes(dir, name, &ts); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}
