package review

import (
	"fmt"
	"io"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// View is what a change set needs of a face: [FaceView] makes one of an
// [overlay.Face]. Paths are relative to the root; no link is followed.
type View interface {
	// Delta calls fn for every difference from the base, parents first.
	Delta(fn func(overlay.Entry) error) error
	// WasAt is what is recorded of a path of the base, also of what lay below
	// a directory that was removed whole.
	WasAt(basePath string) (overlay.Was, bool)
	// Open gives the content of a regular file. It is called from several
	// goroutines.
	Open(path string) (*Content, error)
	Readlink(path string) (string, error)
	// Xattrs lists what listxattr(2) and getxattr(2) tell of a node.
	Xattrs(path string) ([]Xattr, error)
	// List calls fn with every name in a directory and its S_IFMT bits, in no
	// order, until fn returns false.
	List(path string, fn func(name string, typ uint32) bool) error
}

// Content is the bytes of one regular file, of the view or of the base. It
// must be closed.
type Content struct {
	// Size in bytes when it was opened.
	Size  int64
	read  func(p []byte, off int64) (int, error)
	fd    func() (int, func(), error)
	close func()
}

// ReadAt implements io.ReaderAt.
func (c *Content) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := c.read(p[done:], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, io.EOF
		}
	}
	return done, nil
}

// Reader reads the whole content from its start.
func (c *Content) Reader() io.Reader { return io.NewSectionReader(c, 0, 1<<62) }

// FD gives a descriptor to read the content from (for a clone, or to find
// holes), with a function that gives it back.
func (c *Content) FD() (fd int, release func(), err error) { return c.fd() }

// Close frees the content.
func (c *Content) Close() { c.close() }

// FaceView makes a View of a face, which should be read-only and on sealed
// layers: a change set of anything that still changes means nothing.
func FaceView(f *overlay.Face) View { return &faceView{f: f} }

// faceView keeps the directories that it was last asked about: a change set is
// gone through in order, by a few goroutines, and finding a deep path costs a
// call for each component.
type faceView struct {
	f *overlay.Face

	mu   sync.Mutex
	kept [aheadWorkers]keptDir // protected by mu
	next int                   // protected by mu
}

// keptDir is a directory with a reference on its node.
type keptDir struct {
	path string
	node *overlay.Node // nil: none
}

// walk finds the node at a path, as [overlay.Face.Walk] does.
func (v *faceView) walk(path string) (*overlay.Node, overlay.Attr, error) {
	dir := parentOf(path)
	if dir == "" {
		return v.f.Walk(path)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, k := range v.kept {
		if k.node != nil && k.path == dir {
			return v.f.Lookup(k.node, baseName(path))
		}
	}
	n, _, err := v.f.Walk(dir)
	if err != nil {
		return nil, overlay.Attr{}, err
	}
	if old := v.kept[v.next].node; old != nil {
		v.f.Forget(old, 1)
	}
	v.kept[v.next] = keptDir{dir, n}
	v.next = (v.next + 1) % len(v.kept)
	return v.f.Lookup(n, baseName(path))
}

func (v *faceView) Delta(fn func(overlay.Entry) error) error { return v.f.Delta(fn) }

func (v *faceView) WasAt(basePath string) (overlay.Was, bool) { return v.f.WasAt(basePath) }

func (v *faceView) Open(path string) (*Content, error) {
	n, a, err := v.walk(path)
	if err != nil {
		return nil, err
	}
	if !a.IsRegular() {
		v.f.Forget(n, 1)
		return nil, unix.EINVAL
	}
	return &Content{
		Size:  a.Size,
		read:  func(p []byte, off int64) (int, error) { return v.f.Read(n, p, off) },
		fd:    func() (int, func(), error) { return v.f.ReadFD(n) },
		close: func() { v.f.Forget(n, 1) },
	}, nil
}

func (v *faceView) Readlink(path string) (string, error) {
	n, _, err := v.walk(path)
	if err != nil {
		return "", err
	}
	defer v.f.Forget(n, 1)
	return v.f.Readlink(n)
}

func (v *faceView) Xattrs(path string) ([]Xattr, error) {
	n, _, err := v.walk(path)
	if err != nil {
		return nil, err
	}
	defer v.f.Forget(n, 1)
	names, err := v.f.Listxattr(n)
	if err == unix.EOPNOTSUPP {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return collectXattrs(names, func(name string) ([]byte, error) { return v.f.Getxattr(n, name) })
}

func (v *faceView) List(path string, fn func(name string, typ uint32) bool) error {
	n, _, err := v.walk(path)
	if err != nil {
		return err
	}
	defer v.f.Forget(n, 1)
	return v.f.ReadDir(n, 0, func(e overlay.DirEntry) bool { return fn(e.Name, e.Type) })
}

// collectXattrs reads the named attributes, sorted, without the ignored ones.
func collectXattrs(names []string, get func(string) ([]byte, error)) ([]Xattr, error) {
	var out []Xattr
	for _, name := range names {
		if ignoredXattr(name) {
			continue
		}
		val, err := get(name)
		switch overlay.Errno(err) {
		case 0:
			out = append(out, Xattr{name, val})
		case unix.ENODATA, unix.EPERM, unix.EACCES, unix.EOPNOTSUPP:
			// Removed meanwhile, or not for this user to see: then the
			// same user cannot commit it either.
		default:
			return nil, err
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

// ignoredXattr tells the attributes that are no part of a change: the
// overlay's own bookkeeping, and the labels and measurements that the host's
// security policy gives every file by itself. The committer does not carry
// them either, so that leaving them out hides nothing.
func ignoredXattr(name string) bool {
	for _, p := range []string{"trusted.overlay.", "user.overlay.", "security.selinux",
		"security.SMACK64", "security.ima", "security.evm", "security.apparmor", "system.nfs4_acl"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// oldSide is what a change set is relative to: a base, or another view.
type oldSide interface {
	stat(path string, st *unix.Statx_t) (absent bool, err error)
	open(path string) (*Content, error)
	readlink(path string) (string, error)
	xattrs(path string) ([]Xattr, error)
	factsNow(path string) (*overlay.Was, error)
	// each calls fn for every name in a directory, in no order.
	each(dir string, fn func(name string) error) error
	// drift tells whether a fact still holds.
	drift(was overlay.Was) Drift
}

// hostDir reads a base through descriptors; every path is resolved beneath the
// root with no symbolic link followed.
type hostDir struct {
	fs hostfs.FS
	fd int
}

// at opens the directory of path and gives the last component.
func (h hostDir) at(path string) (fd int, name string, done func(), err error) {
	dir := parentOf(path)
	if dir == "" {
		return h.fd, path, func() {}, nil
	}
	fd, err = hostfs.OpenDeep(h.fs, h.fd, dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return -1, "", nil, err
	}
	return fd, baseName(path), func() { _ = h.fs.Close(fd) }, nil
}

// stat describes path; absent is true where there is nothing (a parent that is
// gone or is no directory included).
func (h hostDir) stat(path string, st *unix.Statx_t) (absent bool, err error) {
	fd, name, done, err := h.at(path)
	if err == nil {
		err = h.fs.Stat(fd, name, st)
		done()
	}
	switch err {
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return true, nil
	}
	return false, err
}

func (h hostDir) open(path string) (*Content, error) {
	dirfd, name, done, err := h.at(path)
	if err != nil {
		return nil, err
	}
	defer done()
	fd, size, err := openRegular(h.fs, dirfd, name)
	if err != nil {
		return nil, err
	}
	return &Content{
		Size:  size,
		read:  func(p []byte, off int64) (int, error) { return h.fs.Pread(fd, p, off) },
		fd:    func() (int, func(), error) { return fd, func() {}, nil },
		close: func() { _ = h.fs.Close(fd) },
	}, nil
}

// openRegular opens one component that must be a regular file. Its type is
// looked at first, since opening a device has effects; O_NONBLOCK keeps a fifo
// that was swapped in between from blocking.
func openRegular(fs hostfs.FS, dirfd int, name string) (fd int, size int64, err error) {
	var st unix.Statx_t
	if err := fs.Stat(dirfd, name, &st); err != nil {
		return -1, 0, err
	}
	if uint32(st.Mode)&unix.S_IFMT != unix.S_IFREG {
		return -1, 0, unix.EINVAL
	}
	fd, err = fs.Open(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return -1, 0, err
	}
	if err = fs.Stat(fd, "", &st); err == nil && uint32(st.Mode)&unix.S_IFMT != unix.S_IFREG {
		err = unix.EINVAL
	}
	if err != nil {
		_ = fs.Close(fd)
		return -1, 0, err
	}
	return fd, int64(st.Size), nil
}

func (h hostDir) readlink(path string) (string, error) {
	fd, name, done, err := h.at(path)
	if err != nil {
		return "", err
	}
	defer done()
	return h.fs.Readlink(fd, name)
}

func (h hostDir) xattrs(path string) ([]Xattr, error) {
	fd, name, done, err := h.at(path)
	if err != nil {
		return nil, err
	}
	defer done()
	names, err := hostfs.ListXattrs(h.fs, fd, name)
	if err != nil {
		return nil, err
	}
	return collectXattrs(names, func(attr string) ([]byte, error) {
		return hostfs.GetXattr(h.fs, fd, name, attr)
	})
}

// factsNow records what the base has at path now, nil for nothing: for nodes
// that the session hid together with their directory.
func (h hostDir) factsNow(path string) (*overlay.Was, error) {
	var st unix.Statx_t
	if absent, err := h.stat(path, &st); absent || err != nil {
		return nil, err
	}
	w := &overlay.Was{
		Path: path, Exists: true,
		ID:   overlay.HostID{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino},
		Mode: uint32(st.Mode), UID: st.Uid, GID: st.Gid, Nlink: st.Nlink, Size: int64(st.Size),
		Rdev:  unix.Mkdev(st.Rdev_major, st.Rdev_minor),
		Mtime: timeOf(st.Mtime), Ctime: timeOf(st.Ctime), Btime: timeOf(st.Btime),
	}
	if typeBits(w.Mode) == unix.S_IFLNK {
		target, err := h.readlink(path)
		if err != nil {
			return nil, err
		}
		w.Target = target
	}
	return w, nil
}

func (h hostDir) drift(was overlay.Was) Drift { return CheckDrift(h.fs, h.fd, was) }

// each calls fn for every name in a directory of the base, in no order. No
// descriptor is kept while fn runs, however deep the tree. A directory that is
// gone has none.
func (h hostDir) each(dir string, fn func(name string) error) error {
	fd, err := hostfs.OpenDeep(h.fs, h.fd, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	switch err {
	case nil:
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return nil
	default:
		return fmt.Errorf("list the directory %q of the base: %w", dir, err)
	}
	var names []string
	err = hostfs.ReadDir(h.fs, fd, func(de hostfs.Dirent) error { names = append(names, de.Name); return nil })
	_ = h.fs.Close(fd)
	if err != nil {
		return fmt.Errorf("list the directory %q of the base: %w", dir, err)
	}
	for _, name := range names {
		if err := fn(name); err != nil {
			return err
		}
	}
	return nil
}
