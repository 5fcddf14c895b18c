package overlay

import (
	"bytes"
	"strings"

	"golang.org/x/sys/unix"
)

// private reports whether an xattr belongs to the overlay format and not to
// the file that has it.
func private(attr string) bool {
	return strings.HasPrefix(attr, "trusted.overlay.") || strings.HasPrefix(attr, "user.overlay.")
}

// maxXattrList and maxXattrSize are the kernel's limits (xattr(7)).
const (
	maxXattrList = 64 << 10
	maxXattrSize = 64 << 10
)

func (t *Tree) getXattr(dir int, name, attr string) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := t.fs.Getxattr(dir, name, attr, buf)
		if err == unix.ERANGE && len(buf) < maxXattrSize {
			buf = make([]byte, maxXattrSize)
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// listXattrs lists the xattrs of an object but for Galley's own. A file system
// without xattrs has none.
func (t *Tree) listXattrs(dir int, name string) ([]string, error) {
	buf := make([]byte, 512)
	n, err := t.fs.Listxattr(dir, name, buf)
	if err == unix.ERANGE {
		buf = make([]byte, maxXattrList)
		n, err = t.fs.Listxattr(dir, name, buf)
	}
	if err == unix.EOPNOTSUPP {
		return nil, nil
	}
	if err != nil || n == 0 {
		return nil, err
	}
	var out []string
	for _, b := range bytes.Split(bytes.TrimSuffix(buf[:n], []byte{0}), []byte{0}) {
		if s := string(b); !private(s) {
			out = append(out, s)
		}
	}
	return out, nil
}

// locate is where the object lies that has n's attributes in the face's view.
//
// Preconditions: mu is held.
func (f *Face) locate(n *Node) (*fdEnt, string, error) {
	t := f.t
	if x := contentVer(n, f.view()); x != nil {
		return t.payloadAt(n, x)
	}
	if n == t.root {
		if t.base == nil {
			return nil, "", unix.ENODATA
		}
		e, err := t.baseDirFD(n)
		return e, "", err
	}
	if !n.hasBase {
		return nil, "", unix.ESTALE
	}
	e, err := t.baseDirFD(n.bparent)
	return e, n.bname, err
}

// Getxattr is the value of an xattr; ENODATA if there is none.
func (f *Face) Getxattr(n *Node, attr string) ([]byte, error) {
	if private(attr) {
		return nil, unix.ENODATA
	}
	t := f.t
	t.admit.RLock()
	defer t.admit.RUnlock()
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n.plain && attr == "security.capability" {
		// The kernel asks before the first write to every file.
		return nil, unix.ENODATA
	}
	if k := keptOf(contentVer(n, f.view())); k != nil && keptXattr(attr) {
		if val, ok := k.xattrs[attr]; ok {
			return []byte(val), nil
		}
		return nil, unix.ENODATA
	}
	fd, name, err := f.locate(n)
	if err != nil {
		return nil, err
	}
	defer t.fds.done(fd)
	return t.getXattr(fd.fd, name, attr)
}

// Listxattr lists the names of n's xattrs.
func (f *Face) Listxattr(n *Node) ([]string, error) {
	t := f.t
	t.admit.RLock()
	defer t.admit.RUnlock()
	t.mu.RLock()
	defer t.mu.RUnlock()
	fd, name, err := f.locate(n)
	if err == unix.ENODATA {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer t.fds.done(fd)
	names, err := t.listXattrs(fd.fd, name)
	return keptOf(contentVer(n, f.view())).names(names), err
}

// Setxattr sets an xattr; flags is 0, XATTR_CREATE or XATTR_REPLACE.
func (f *Face) Setxattr(n *Node, attr string, val []byte, flags int) error {
	if val == nil {
		val = []byte{}
	}
	return f.changeXattr(n, attr, val, flags, func(dir int, name string) error {
		return f.t.fs.Setxattr(dir, name, attr, val, flags)
	})
}

// Removexattr removes an xattr.
func (f *Face) Removexattr(n *Node, attr string) error {
	return f.changeXattr(n, attr, nil, unix.XATTR_REPLACE, func(dir int, name string) error {
		return f.t.fs.Removexattr(dir, name, attr)
	})
}

// changeXattr changes an xattr, by fn where the payload has it; val is the new
// value, nil to remove it.
func (f *Face) changeXattr(n *Node, attr string, val []byte, flags int, fn func(dir int, name string) error) error {
	if private(attr) {
		return unix.EPERM
	}
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	t := f.t
	if err := f.mayChangeXattr(n, attr, flags); err != nil {
		return err
	}
	if err := t.raise(n, want{meta: true}); err != nil {
		return err
	}
	if t.cfg.Quota != nil {
		n.up.Lock()
		defer n.up.Unlock()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	x := n.verIn(t.view)
	if !t.writable(x) {
		return unix.ESTALE
	}
	dir, name, err := t.payloadAt(n, x)
	if err != nil {
		return err
	}
	defer t.fds.done(dir)
	if n.isDir() {
		t.noteDir(n)
	}
	kept := x.kept
	switch {
	case kept != nil && keptXattr(attr):
		x.kept, err = kept.keepXattr(attr, val, flags)
		if err != nil {
			x.kept = kept
		}
	case kept != nil && isDevice(n.typ):
		err = unix.EPERM
	default:
		err = t.metered(dir.fd, name, nil, func() error { return fn(dir.fd, name) })
	}
	if err != nil {
		return err
	}
	n.plain = false
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

// mayChangeXattr finds out before anything is copied up that an xattr must be
// there and is not, or the reverse.
func (f *Face) mayChangeXattr(n *Node, attr string, flags int) error {
	if flags == 0 || strings.HasPrefix(attr, "user.") && n.typ != unix.S_IFREG && !n.isDir() {
		return nil // the last are refused for their type
	}
	t := f.t
	t.mu.RLock()
	defer t.mu.RUnlock()
	if keptOf(contentVer(n, f.view())) != nil {
		return nil // as the change itself will tell
	}
	fd, name, err := f.locate(n)
	if err != nil {
		return nil // as the change itself will tell
	}
	defer t.fds.done(fd)
	_, err = t.fs.Getxattr(fd.fd, name, attr, nil)
	switch {
	case err == nil && flags&unix.XATTR_CREATE != 0:
		return unix.EEXIST
	case err == unix.ENODATA && flags&unix.XATTR_REPLACE != 0:
		return unix.ENODATA
	}
	return nil
}
