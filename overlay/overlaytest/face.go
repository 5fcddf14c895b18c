package overlaytest

import (
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// FaceFS drives an overlay.Face in process, as a caller that is root.
type FaceFS struct {
	Face  *overlay.Face
	slots map[int]*overlay.Node
}

// NewFaceFS makes a driver of a face, which stays the caller's.
func NewFaceFS(f *overlay.Face) *FaceFS {
	return &FaceFS{Face: f, slots: map[int]*overlay.Node{}}
}

// ReleaseAll releases every slot.
func (f *FaceFS) ReleaseAll() {
	for slot := range f.slots {
		f.Release(slot)
	}
}

// Release implements [FS].
func (f *FaceFS) Release(slot int) {
	if n := f.slots[slot]; n != nil {
		f.Face.Forget(n, 1)
		delete(f.slots, slot)
	}
}

func (f *FaceFS) hold(slot int, n *overlay.Node) {
	f.Release(slot)
	f.slots[slot] = n
}

// with calls fn with the node at a location; its reference lasts for the call.
func (f *FaceFS) with(at Loc, fn func(n *overlay.Node) error) error {
	cur := f.Face.Root()
	if at.Slot != Root {
		if cur = f.slots[at.Slot]; cur == nil {
			return syscall.EBADF
		}
	}
	var owned *overlay.Node
	for _, name := range components(at.Path) {
		n, _, err := f.Face.Lookup(cur, name)
		if owned != nil {
			f.Face.Forget(owned, 1)
		}
		if err != nil {
			return err
		}
		cur, owned = n, n
	}
	err := fn(cur)
	if owned != nil {
		f.Face.Forget(owned, 1)
	}
	return err
}

// place calls fn with the parent of a location and the name in it.
func (f *FaceFS) place(at Loc, fn func(dir *overlay.Node, name string) error) error {
	parent, name := at.split()
	return f.with(parent, func(dir *overlay.Node) error {
		if dir.Type() != unix.S_IFDIR {
			return syscall.ENOTDIR // before the name is looked at
		}
		return fn(dir, name)
	})
}

// Open implements [FS].
func (f *FaceFS) Open(slot int, at Loc) error {
	if at.Path == "" && at.Slot != Root {
		// Another reference to a held node is had from its holder only.
		return syscall.EBADF
	}
	if at.Path == "" {
		n, _, err := f.Face.Walk("")
		if err == nil {
			f.hold(slot, n)
		}
		return err
	}
	return f.place(at, func(dir *overlay.Node, name string) error {
		n, _, err := f.Face.Lookup(dir, name)
		if err == nil {
			f.hold(slot, n)
		}
		return err
	})
}

// Stat implements [FS].
func (f *FaceFS) Stat(at Loc) (st Stat, err error) {
	err = f.with(at, func(n *overlay.Node) error {
		a, err := f.Face.Getattr(n)
		st = Stat{
			Ino: a.Ino, Mode: a.Mode, Nlink: a.Nlink, UID: a.UID, GID: a.GID, Rdev: a.Rdev,
			Size: a.Size, Mtime: a.Mtime, Ctime: a.Ctime,
		}
		return err
	})
	return st, err
}

// Readlink implements [FS].
func (f *FaceFS) Readlink(at Loc) (target string, err error) {
	err = f.with(at, func(n *overlay.Node) error { target, err = f.Face.Readlink(n); return err })
	return target, err
}

// ReadDir implements [FS].
func (f *FaceFS) ReadDir(at Loc, batch int, between func()) (out []Dirent, err error) {
	err = f.with(at, func(n *overlay.Node) error {
		var cookie uint64
		for {
			count := 0
			err := f.Face.ReadDir(n, cookie, func(e overlay.DirEntry) bool {
				out = append(out, Dirent{e.Name, e.Ino, e.Type})
				cookie = e.Cookie
				count++
				return batch == 0 || count < batch
			})
			if err != nil {
				return err
			}
			if between != nil {
				between()
			}
			if batch == 0 || count < batch {
				return nil
			}
		}
	})
	sortDirents(out)
	return out, err
}

// made drops or keeps the reference of a node just made.
func (f *FaceFS) made(n *overlay.Node, err error) error {
	if err == nil {
		f.Face.Forget(n, 1)
	}
	return err
}

// Mkdir implements [FS].
func (f *FaceFS) Mkdir(at Loc, mode uint32) error {
	return f.place(at, func(dir *overlay.Node, name string) error {
		n, _, err := f.Face.Mkdir(dir, name, mode, overlay.Caller{})
		return f.made(n, err)
	})
}

// Mknod implements [FS].
func (f *FaceFS) Mknod(at Loc, mode uint32, rdev uint64) error {
	return f.place(at, func(dir *overlay.Node, name string) error {
		n, _, err := f.Face.Mknod(dir, name, mode, rdev, overlay.Caller{})
		return f.made(n, err)
	})
}

// Create implements [FS].
func (f *FaceFS) Create(slot int, at Loc, mode uint32) error {
	return f.place(at, func(dir *overlay.Node, name string) error {
		n, _, err := f.Face.Create(dir, name, mode, overlay.Caller{})
		if err == nil {
			f.hold(slot, n)
		}
		return err
	})
}

// Symlink implements [FS].
func (f *FaceFS) Symlink(target string, at Loc) error {
	return f.place(at, func(dir *overlay.Node, name string) error {
		n, _, err := f.Face.Symlink(dir, name, target, overlay.Caller{})
		return f.made(n, err)
	})
}

// Tmpfile implements [FS].
func (f *FaceFS) Tmpfile(slot int, dir Loc, mode uint32) error {
	return f.with(dir, func(dir *overlay.Node) error {
		n, _, err := f.Face.Tmpfile(dir, mode, overlay.Caller{})
		if err == nil {
			f.hold(slot, n)
		}
		return err
	})
}

// Link implements [FS].
func (f *FaceFS) Link(from, to Loc) error {
	return f.with(from, func(n *overlay.Node) error {
		return f.place(to, func(dir *overlay.Node, name string) error {
			_, err := f.Face.Link(n, dir, name)
			return err
		})
	})
}

// Unlink implements [FS].
func (f *FaceFS) Unlink(at Loc) error { return f.place(at, f.Face.Unlink) }

// Rmdir implements [FS].
func (f *FaceFS) Rmdir(at Loc) error { return f.place(at, f.Face.Rmdir) }

// Rename implements [FS].
func (f *FaceFS) Rename(from, to Loc, flags uint32) error {
	return f.place(from, func(fdir *overlay.Node, fname string) error {
		return f.place(to, func(tdir *overlay.Node, tname string) error {
			return f.Face.Rename(fdir, fname, tdir, tname, flags)
		})
	})
}

func (f *FaceFS) setattr(at Loc, in overlay.SetAttr) error {
	return f.with(at, func(n *overlay.Node) error {
		_, err := f.Face.Setattr(n, in)
		return err
	})
}

// Chmod implements [FS].
func (f *FaceFS) Chmod(at Loc, mode uint32) error {
	return f.setattr(at, overlay.SetAttr{Mode: &mode})
}

// Chown implements [FS] with the flag that the kernel sends along.
func (f *FaceFS) Chown(at Loc, uid, gid int) error {
	in := overlay.SetAttr{}
	if uid >= 0 {
		u := uint32(uid)
		in.UID = &u
	}
	if gid >= 0 {
		g := uint32(gid)
		in.GID = &g
	}
	return f.with(at, func(n *overlay.Node) error {
		in.KillSuidgid = n.Type() != unix.S_IFDIR && n.Type() != unix.S_IFLNK
		_, err := f.Face.Setattr(n, in)
		return err
	})
}

// Utimes implements [FS].
func (f *FaceFS) Utimes(at Loc, mtime overlay.Time) error {
	return f.setattr(at, overlay.SetAttr{Atime: &mtime, Mtime: &mtime})
}

// Truncate implements [FS].
func (f *FaceFS) Truncate(at Loc, size int64) error {
	return f.setattr(at, overlay.SetAttr{Size: &size})
}

// Read implements [FS].
func (f *FaceFS) Read(at Loc, p []byte, off int64) (n int, err error) {
	err = f.with(at, func(node *overlay.Node) error {
		n, err = readAt(p, off, func(p []byte, off int64) (int, error) { return f.Face.Read(node, p, off) })
		return err
	})
	return n, err
}

// Write implements [FS].
func (f *FaceFS) Write(at Loc, p []byte, off int64) (n int, err error) {
	err = f.with(at, func(node *overlay.Node) error { n, err = f.Face.Write(node, p, off); return err })
	return n, err
}

// MapRead implements [FS]. In process nothing can be mapped.
func (f *FaceFS) MapRead(at Loc, p []byte, off int64) (int, error) { return f.Read(at, p, off) }

// MapWrite implements [FS].
func (f *FaceFS) MapWrite(at Loc, p []byte, off int64) (n int, err error) {
	err = f.with(at, func(node *overlay.Node) error {
		a, err := f.Face.Getattr(node)
		if err != nil {
			return err
		}
		if node.Type() == unix.S_IFREG {
			p = p[:max(0, min(int64(len(p)), a.Size-off))]
		}
		n, err = f.Face.Write(node, p, off)
		return err
	})
	return n, err
}

// WriteKill implements [FS].
func (f *FaceFS) WriteKill(at Loc, p []byte, off int64) (n int, err error) {
	err = f.with(at, func(node *overlay.Node) error { n, err = f.Face.WriteKill(node, p, off); return err })
	return n, err
}

// Append implements [FS].
func (f *FaceFS) Append(at Loc, p []byte) (n int, err error) {
	err = f.with(at, func(node *overlay.Node) error { n, err = f.Face.Append(node, p); return err })
	return n, err
}

// Fallocate implements [FS].
func (f *FaceFS) Fallocate(at Loc, mode uint32, off, n int64) error {
	return f.with(at, func(node *overlay.Node) error { return f.Face.Fallocate(node, mode, off, n) })
}

// Seek implements [FS].
func (f *FaceFS) Seek(at Loc, off int64, whence int) (pos int64, err error) {
	err = f.with(at, func(node *overlay.Node) error { pos, err = f.Face.Seek(node, off, whence); return err })
	return pos, err
}

// CopyRange implements [FS].
func (f *FaceFS) CopyRange(from Loc, fromOff int64, to Loc, toOff, size int64) (n int64, err error) {
	err = f.with(from, func(src *overlay.Node) error {
		return f.with(to, func(dst *overlay.Node) error {
			n, err = f.Face.CopyRange(src, fromOff, dst, toOff, size)
			return err
		})
	})
	return n, err
}

// Fsync implements [FS].
func (f *FaceFS) Fsync(at Loc) error {
	return f.with(at, func(n *overlay.Node) error {
		if t := n.Type(); t != unix.S_IFREG && t != unix.S_IFDIR {
			return nil
		}
		return f.Face.Fsync(n, false)
	})
}

// Getxattr implements [FS].
func (f *FaceFS) Getxattr(at Loc, attr string) (val []byte, err error) {
	err = f.with(at, func(n *overlay.Node) error { val, err = f.Face.Getxattr(n, attr); return err })
	return val, err
}

// Listxattr implements [FS].
func (f *FaceFS) Listxattr(at Loc) (names []string, err error) {
	err = f.with(at, func(n *overlay.Node) error { names, err = f.Face.Listxattr(n); return err })
	slices.Sort(names)
	return names, err
}

// Setxattr implements [FS].
func (f *FaceFS) Setxattr(at Loc, attr string, val []byte, flags int) error {
	return f.with(at, func(n *overlay.Node) error { return f.Face.Setxattr(n, attr, val, flags) })
}

// Removexattr implements [FS].
func (f *FaceFS) Removexattr(at Loc, attr string) error {
	return f.with(at, func(n *overlay.Node) error { return f.Face.Removexattr(n, attr) })
}
