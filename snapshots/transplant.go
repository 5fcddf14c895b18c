package snapshots

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// transplant brings paths of one view into another, whole: content, attributes,
// extended attributes, and hard links among what it brings. What is there
// already and the same stays.
type transplant struct {
	ctx      context.Context
	src, dst *overlay.Face
	made     map[uint64]string // by inode of src with several names: where dst has it
	seq      int
}

// absent tells whether an error is about something that is not there.
func absent(err error) bool {
	e := overlay.Errno(err)
	return e == unix.ENOENT || e == unix.ENOTDIR
}

// has tells whether a view has something at path.
func has(f *overlay.Face, path string) (bool, error) {
	n, _, err := f.Walk(path)
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	f.Forget(n, 1)
	return true, nil
}

// path makes dst at path what src has there.
func (t *transplant) path(path string) error {
	n, a, err := t.src.Walk(path)
	gone := absent(err)
	if err != nil && !gone {
		return err
	}
	if !gone {
		defer t.src.Forget(n, 1)
	}
	if path == "" {
		return t.fill(n, t.dst.Root(), "")
	}
	dir, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	parent, _, err := t.dst.Walk(dir)
	if absent(err) && gone {
		return nil
	}
	if absent(err) {
		parent, err = t.parents(dir)
	}
	if err != nil {
		return err
	}
	defer t.dst.Forget(parent, 1)
	if gone {
		return t.remove(parent, name)
	}
	return t.put(n, &a, parent, name, path)
}

// parents makes the directories that lead to dir, as src has them.
func (t *transplant) parents(dir string) (*overlay.Node, error) {
	at, path := t.dst.Root(), ""
	for name := range strings.SplitSeq(dir, "/") {
		path = strings.TrimPrefix(path+"/"+name, "/")
		next, _, err := t.dst.Lookup(at, name)
		if overlay.Errno(err) == unix.ENOENT {
			var n *overlay.Node
			var a overlay.Attr
			if n, a, err = t.src.Walk(path); err == nil {
				next, _, err = t.dst.Mkdir(at, name, a.Mode&0o7777, t.caller(&a))
				if err == nil {
					err = t.meta(n, &a, next)
				}
				t.src.Forget(n, 1)
			}
		}
		t.dst.Forget(at, 1)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", path, err)
		}
		at = next
	}
	return at, nil
}

// caller is the owner of what is made; the rest is for meta to set.
func (t *transplant) caller(*overlay.Attr) overlay.Caller {
	return overlay.Caller{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
}

// remove removes a name and all below it.
func (t *transplant) remove(parent *overlay.Node, name string) error {
	if err := context.Cause(t.ctx); err != nil {
		return err
	}
	n, a, err := t.dst.Lookup(parent, name)
	if overlay.Errno(err) == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer t.dst.Forget(n, 1)
	if !a.IsDir() {
		return t.dst.Unlink(parent, name)
	}
	names, err := listNames(t.dst, n)
	if err != nil {
		return err
	}
	for _, child := range names {
		if err := t.remove(n, child); err != nil {
			return err
		}
	}
	return t.dst.Rmdir(parent, name)
}

func listNames(f *overlay.Face, n *overlay.Node) ([]string, error) {
	var names []string
	err := f.ReadDir(n, 0, func(e overlay.DirEntry) bool { names = append(names, e.Name); return true })
	return names, err
}

// put makes name in parent, a directory of dst, what n is in src.
func (t *transplant) put(n *overlay.Node, a *overlay.Attr, parent *overlay.Node, name, path string) error {
	if err := context.Cause(t.ctx); err != nil {
		return err
	}
	old, b, err := t.dst.Lookup(parent, name)
	there := err == nil
	if err != nil && overlay.Errno(err) != unix.ENOENT {
		return fmt.Errorf("%q: %w", path, err)
	}
	if there {
		defer t.dst.Forget(old, 1)
	}
	switch {
	case there && a.IsDir() && b.IsDir():
		return t.fill(n, old, path)
	case there:
		same, err := t.same(n, a, old, &b)
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		if same {
			return nil
		}
	}
	// Made beside its place, and moved into it when it is complete.
	t.seq++
	tmp := ".galley-new-" + strconv.Itoa(t.seq)
	if err := t.make(n, a, parent, tmp, path); err != nil {
		_ = t.remove(parent, tmp)
		return fmt.Errorf("%q: %w", path, err)
	}
	if there && (b.IsDir() || a.IsDir()) {
		if err := t.remove(parent, name); err != nil {
			_ = t.remove(parent, tmp)
			return fmt.Errorf("%q: %w", path, err)
		}
	}
	if err := t.dst.Rename(parent, tmp, parent, name, 0); err != nil {
		_ = t.remove(parent, tmp)
		return fmt.Errorf("%q: %w", path, err)
	}
	if a.Nlink > 1 && !a.IsDir() {
		t.made[a.Ino] = path
	}
	return nil
}

// same tells whether dst has at old, which is not a directory, what src has at
// n, links to other names aside.
func (t *transplant) same(n *overlay.Node, a *overlay.Attr, old *overlay.Node, b *overlay.Attr) (bool, error) {
	if a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || a.Size != b.Size || a.Rdev != b.Rdev ||
		a.Mtime != b.Mtime || a.Nlink != b.Nlink || a.Nlink > 1 {
		return false, nil
	}
	if a.Ino == b.Ino && a.Ctime == b.Ctime {
		return true, nil
	}
	xa, errA := t.src.Listxattr(n)
	xb, errB := t.dst.Listxattr(old)
	if errA != nil || errB != nil || len(xa)+len(xb) > 0 {
		return false, nil
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		la, err := t.src.Readlink(n)
		if err != nil {
			return false, err
		}
		lb, err := t.dst.Readlink(old)
		return la == lb, err
	case unix.S_IFREG:
		return t.sameContent(n, old, a.Size)
	}
	return true, nil
}

func (t *transplant) sameContent(n, old *overlay.Node, size int64) (bool, error) {
	var x, y [64 << 10]byte
	for off := int64(0); off < size; {
		if err := context.Cause(t.ctx); err != nil {
			return false, err
		}
		k, err := t.src.Read(n, x[:], off)
		if err != nil || k == 0 {
			return false, err
		}
		m, err := t.dst.Read(old, y[:k], off)
		if err != nil || m != k || !bytes.Equal(x[:k], y[:k]) {
			return false, err
		}
		off += int64(k)
	}
	return true, nil
}

// make makes a node in dst.
func (t *transplant) make(n *overlay.Node, a *overlay.Attr, parent *overlay.Node, name, path string) error {
	if first, ok := t.made[a.Ino]; ok && a.Nlink > 1 && !a.IsDir() {
		node, _, err := t.dst.Walk(first)
		if err != nil {
			return err
		}
		defer t.dst.Forget(node, 1)
		_, err = t.dst.Link(node, parent, name)
		return err
	}
	var made *overlay.Node
	var err error
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if made, _, err = t.dst.Mkdir(parent, name, 0o700, t.caller(a)); err == nil {
			defer t.dst.Forget(made, 1)
			return t.fill(n, made, path)
		}
	case unix.S_IFLNK:
		target := ""
		if target, err = t.src.Readlink(n); err == nil {
			made, _, err = t.dst.Symlink(parent, name, target, t.caller(a))
		}
	case unix.S_IFREG:
		if made, _, err = t.dst.Create(parent, name, 0o600, t.caller(a)); err == nil {
			err = t.content(n, a.Size, made)
		}
	default:
		made, _, err = t.dst.Mknod(parent, name, a.Mode, a.Rdev, t.caller(a))
	}
	if made != nil {
		defer t.dst.Forget(made, 1)
	}
	if err != nil {
		return err
	}
	return t.meta(n, a, made)
}

// fill makes directory d of dst what directory n of src is.
func (t *transplant) fill(n, d *overlay.Node, path string) error {
	want, err := listNames(t.src, n)
	if err != nil {
		return err
	}
	have, err := listNames(t.dst, d)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, name := range want {
		keep[name] = true
	}
	for _, name := range have {
		if keep[name] {
			continue
		}
		if err := t.remove(d, name); err != nil {
			return err
		}
	}
	for _, name := range want {
		c, a, err := t.src.Lookup(n, name)
		if err != nil {
			return err
		}
		err = t.put(c, &a, d, name, strings.TrimPrefix(path+"/"+name, "/"))
		t.src.Forget(c, 1)
		if err != nil {
			return err
		}
	}
	a, err := t.src.Getattr(n)
	if err != nil {
		return err
	}
	return t.meta(n, &a, d)
}

// content copies the data of a file, and leaves its holes.
func (t *transplant) content(n *overlay.Node, size int64, to *overlay.Node) error {
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; {
		start, err := t.src.Seek(n, off, unix.SEEK_DATA)
		if overlay.Errno(err) == unix.ENXIO {
			break
		}
		if err != nil {
			return err
		}
		end, err := t.src.Seek(n, start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for off = start; off < end; {
			if err := context.Cause(t.ctx); err != nil {
				return err
			}
			k, err := t.src.Read(n, buf[:min(int64(len(buf)), end-off)], off)
			if err != nil {
				return err
			}
			if k == 0 {
				return fmt.Errorf("it became shorter while it was read: %w", unix.EAGAIN)
			}
			if _, err := t.dst.Write(to, buf[:k], off); err != nil {
				return err
			}
			off += int64(k)
		}
	}
	_, err := t.dst.Setattr(to, overlay.SetAttr{Size: &size})
	return err
}

// meta gives d of dst the attributes that n has in src.
func (t *transplant) meta(n *overlay.Node, a *overlay.Attr, d *overlay.Node) error {
	b, err := t.dst.Getattr(d)
	if err != nil {
		return err
	}
	if err := t.xattrs(n, d); err != nil {
		return err
	}
	var set overlay.SetAttr
	if a.UID != b.UID || a.GID != b.GID {
		if _, err := t.dst.Setattr(d, overlay.SetAttr{UID: &a.UID, GID: &a.GID}); err != nil {
			return err
		}
	}
	if mode := a.Mode & 0o7777; a.Mode&unix.S_IFMT != unix.S_IFLNK && mode != b.Mode&0o7777 {
		set.Mode = &mode
	}
	if a.Mtime != b.Mtime {
		set.Atime, set.Mtime = &a.Atime, &a.Mtime
	}
	if set == (overlay.SetAttr{}) {
		return nil
	}
	_, err = t.dst.Setattr(d, set)
	return err
}

func (t *transplant) xattrs(n, d *overlay.Node) error {
	want, err := t.src.Listxattr(n)
	if err != nil && overlay.Errno(err) != unix.EOPNOTSUPP {
		return err
	}
	have, err := t.dst.Listxattr(d)
	if err != nil && overlay.Errno(err) != unix.EOPNOTSUPP {
		return err
	}
	keep := map[string]bool{}
	for _, attr := range want {
		keep[attr] = true
		val, err := t.src.Getxattr(n, attr)
		if err != nil {
			return err
		}
		if old, err := t.dst.Getxattr(d, attr); err == nil && string(old) == string(val) {
			continue
		}
		if err := t.dst.Setxattr(d, attr, val, 0); err != nil {
			return fmt.Errorf("set %s: %w", attr, err)
		}
	}
	for _, attr := range have {
		if keep[attr] {
			continue
		}
		if err := t.dst.Removexattr(d, attr); err != nil {
			return fmt.Errorf("remove %s: %w", attr, err)
		}
	}
	return nil
}
