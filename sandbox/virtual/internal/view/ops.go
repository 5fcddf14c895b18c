package view

import (
	"io/fs"
	"path"
	"sort"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/sandbox/internal/files"
)

// Stat tells of a file; a last symbolic link is followed if asked to.
func (v *View) Stat(p string, follow bool) (*Info, error) {
	if i := device(p); i != nil {
		return i, nil
	}
	s, err := v.there(p, follow)
	if err != nil {
		return nil, err
	}
	defer s.release()
	return v.info(path.Base(s.path()), s.m, &s.attr), nil
}

// Access checks that the view's user may read (4), write (2) or run (1).
func (v *View) Access(p string, want uint32) error {
	if device(p) != nil {
		return nil
	}
	s, err := v.there(p, true)
	if err != nil {
		return err
	}
	defer s.release()
	if want&2 != 0 && (s.m.readOnly || s.m.face.ReadOnly()) {
		return unix.EROFS
	}
	return v.access(s.attr, want)
}

// Readlink is what a symbolic link says; EINVAL for anything else.
func (v *View) Readlink(p string) (string, error) {
	s, err := v.there(p, false)
	if err != nil {
		return "", err
	}
	defer s.release()
	if !s.attr.IsSymlink() {
		return "", unix.EINVAL
	}
	return s.m.face.Readlink(s.node)
}

// DirEntry is a name in a directory; it is an [fs.DirEntry].
type DirEntry struct {
	name string
	typ  uint32
	v    *View
	dir  string
}

// Name, IsDir, Type and Info are those of [fs.DirEntry].
func (e DirEntry) Name() string      { return e.name }
func (e DirEntry) IsDir() bool       { return e.typ == unix.S_IFDIR }
func (e DirEntry) Type() fs.FileMode { return files.ModeOf(e.typ).Type() }
func (e DirEntry) Info() (fs.FileInfo, error) {
	return e.v.Stat(path.Join(e.dir, e.name), false)
}

// ReadDir lists a directory, sorted by name.
func (v *View) ReadDir(p string) ([]DirEntry, error) {
	s, err := v.there(p, true)
	if err != nil {
		return nil, err
	}
	defer s.release()
	if !s.attr.IsDir() {
		return nil, unix.ENOTDIR
	}
	if err := v.access(s.attr, 4); err != nil {
		return nil, err
	}
	dir := s.path()
	var out []DirEntry
	err = s.m.face.ReadDir(s.node, 0, func(e overlay.DirEntry) bool {
		out = append(out, DirEntry{strings.Clone(e.Name), e.Type & unix.S_IFMT, v, dir})
		return true
	})
	sort.Slice(out, func(i, j int) bool { return out[i].name < out[j].name })
	return out, err
}

// Mkdir makes a directory with exactly these permission bits.
func (v *View) Mkdir(p string, perm uint32) error {
	return v.make(p, func(s *spot, c overlay.Caller) (*overlay.Node, error) {
		n, _, err := s.dir().m.face.Mkdir(s.dir().node, s.name, perm, c)
		return n, err
	})
}

// Symlink makes a symbolic link.
func (v *View) Symlink(target, p string) error {
	if strings.HasSuffix(p, "/") {
		return unix.ENOENT
	}
	return v.make(p, func(s *spot, c overlay.Caller) (*overlay.Node, error) {
		n, _, err := s.dir().m.face.Symlink(s.dir().node, s.name, target, c)
		return n, err
	})
}

// Mkfifo makes a named pipe: an entry only, nothing can pass through it.
func (v *View) Mkfifo(p string, perm uint32) error {
	return v.make(p, func(s *spot, c overlay.Caller) (*overlay.Node, error) {
		n, _, err := s.dir().m.face.Mknod(s.dir().node, s.name, unix.S_IFIFO|perm, 0, c)
		return n, err
	})
}

func (v *View) make(p string, fn func(*spot, overlay.Caller) (*overlay.Node, error)) error {
	s, err := v.changing(p)
	if err != nil {
		return err
	}
	defer s.release()
	if s.node != nil {
		return unix.EEXIST
	}
	n, err := fn(s, v.caller())
	if err != nil {
		return err
	}
	s.dir().m.face.Forget(n, 1)
	return nil
}

func (v *View) caller() overlay.Caller { return overlay.Caller{UID: v.uid, GID: v.gid} }

// Remove takes away a file (dir false) or an empty directory (dir true).
func (v *View) Remove(p string, dir bool) error {
	s, err := v.changing(p)
	if err != nil {
		return err
	}
	defer s.release()
	switch {
	case s.node == nil:
		return unix.ENOENT
	case s.name == "" && strings.HasSuffix(strings.TrimRight(p, "/"), "."):
		return unix.EINVAL
	case s.name == "" || s.attr.IsDir() && v.beneath(s.path()):
		return unix.EBUSY
	case dir && !s.attr.IsDir():
		return unix.ENOTDIR
	case !dir && s.attr.IsDir():
		return unix.EISDIR
	}
	if err := v.mayChange(s); err != nil {
		return err
	}
	d := s.dir()
	if dir {
		return d.m.face.Rmdir(d.node, s.name)
	}
	if strings.HasSuffix(p, "/") {
		return unix.ENOTDIR
	}
	return d.m.face.Unlink(d.node, s.name)
}

// Rename moves a name; noReplace is EEXIST where the new one is taken.
func (v *View) Rename(from, to string, noReplace bool) error {
	a, err := v.changing(from)
	if err != nil {
		return err
	}
	defer a.release()
	b, err := v.changing(to)
	if err != nil {
		return err
	}
	defer b.release()
	switch {
	case a.node == nil:
		return unix.ENOENT
	case a.name == "" || b.name == "":
		return unix.EBUSY
	case a.attr.IsDir() && v.beneath(a.path()), b.node != nil && b.attr.IsDir() && v.beneath(b.path()):
		return unix.EBUSY
	case a.dir().m != b.dir().m:
		return unix.EXDEV
	}
	for _, s := range []*spot{a, b} {
		if err := v.mayChange(s); err != nil {
			return err
		}
	}
	var flags uint32
	if noReplace {
		flags = unix.RENAME_NOREPLACE
	}
	return a.dir().m.face.Rename(a.dir().node, a.name, b.dir().node, b.name, flags)
}

// Link gives a file another name. A symbolic link is followed if asked to.
func (v *View) Link(old, p string, follow bool) error {
	a, err := v.there(old, follow)
	if err != nil {
		return err
	}
	defer a.release()
	b, err := v.changing(p)
	if err != nil {
		return err
	}
	defer b.release()
	switch {
	case b.node != nil:
		return unix.EEXIST
	case a.attr.IsDir():
		return unix.EPERM
	case a.m != b.dir().m:
		return unix.EXDEV
	}
	_, err = b.dir().m.face.Link(a.node, b.dir().node, b.name)
	return err
}

// Chmod sets permission bits, those of what a symbolic link leads to.
func (v *View) Chmod(p string, mode uint32) error {
	return v.setattr(p, true, overlay.SetAttr{Mode: &mode}, false)
}

// Chtimes sets times; a zero time stays.
func (v *View) Chtimes(p string, follow bool, atime, mtime time.Time) error {
	var in overlay.SetAttr
	if !atime.IsZero() {
		in.Atime = &overlay.Time{Sec: atime.Unix(), Nsec: uint32(atime.Nanosecond())}
	}
	if !mtime.IsZero() {
		in.Mtime = &overlay.Time{Sec: mtime.Unix(), Nsec: uint32(mtime.Nanosecond())}
	}
	return v.setattr(p, follow, in, false)
}

// Truncate sets the size of a file.
func (v *View) Truncate(p string, size int64) error {
	return v.setattr(p, true, overlay.SetAttr{Size: &size}, true)
}

func (v *View) setattr(p string, follow bool, in overlay.SetAttr, content bool) error {
	if device(p) != nil {
		return nil
	}
	s, err := v.there(p, follow)
	if err != nil {
		return err
	}
	defer s.release()
	switch {
	case s.m.readOnly:
		return unix.EROFS
	case content && s.attr.IsDir():
		return unix.EISDIR
	case content:
		if err := v.access(s.attr, 2); err != nil {
			return err
		}
	case v.uid != 0 && s.attr.UID != v.uid:
		return unix.EPERM
	}
	_, err = s.m.face.Setattr(s.node, in)
	return err
}

// CopyMeta gives the file to the mode and the extended attributes of from, and
// its owner where the user may.
func (v *View) CopyMeta(from, to string) error {
	a, err := v.there(from, false)
	if err != nil {
		return err
	}
	defer a.release()
	b, err := v.there(to, false)
	if err != nil {
		return err
	}
	defer b.release()
	if a.attr.UID != b.attr.UID || a.attr.GID != b.attr.GID {
		if _, err := b.m.face.Setattr(b.node, overlay.SetAttr{UID: &a.attr.UID, GID: &a.attr.GID}); err != nil && v.uid == 0 {
			return err
		}
	}
	mode := a.attr.Mode & 0o7777
	if _, err := b.m.face.Setattr(b.node, overlay.SetAttr{Mode: &mode}); err != nil {
		return err
	}
	names, err := a.m.face.Listxattr(a.node)
	if err != nil {
		return nil // a file system without them
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		val, err := a.m.face.Getxattr(a.node, name)
		if err == nil {
			err = b.m.face.Setxattr(b.node, name, val, 0)
		}
		if err != nil && overlay.Errno(err) != unix.ENODATA && overlay.Errno(err) != syscall.ENOTSUP {
			return err
		}
	}
	return nil
}

// Stale reports whether an error says that something changed in the base while
// it was looked at.
func Stale(err error) bool { return overlay.Errno(err) == unix.ESTALE }
