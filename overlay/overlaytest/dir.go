package overlaytest

import (
	"encoding/binary"
	"io"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// DirFS drives a real directory through system calls.
type DirFS struct {
	root  int
	slots map[int]int
	maps  map[int][]byte // mappings of held files, which stay
	rw    int            // the flag that regular files are opened with
}

// OpenDir opens a directory of the host as a file system under test. The
// process must be root and have a umask of 0.
func OpenDir(path string) (*DirFS, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &DirFS{root: fd, slots: map[int]int{}, maps: map[int][]byte{}, rw: unix.O_RDWR}, nil
}

// OpenDirReadOnly is OpenDir of something that is only looked at, such as a
// read-only mount.
func OpenDirReadOnly(path string) (*DirFS, error) {
	d, err := OpenDir(path)
	if err == nil {
		d.rw = unix.O_RDONLY
	}
	return d, err
}

// Close releases every slot and the directory.
func (d *DirFS) Close() error {
	for slot := range d.slots {
		d.Release(slot)
	}
	return unix.Close(d.root)
}

// Release implements [FS].
func (d *DirFS) Release(slot int) {
	d.unmap(slot)
	if fd, ok := d.slots[slot]; ok {
		_ = unix.Close(fd)
		delete(d.slots, slot)
	}
}

func (d *DirFS) hold(slot, fd int) {
	d.Release(slot)
	d.slots[slot] = fd
}

func (d *DirFS) base(slot int) (int, error) {
	if slot == Root {
		return d.root, nil
	}
	fd, ok := d.slots[slot]
	if !ok {
		return -1, syscall.EBADF
	}
	return fd, nil
}

// with calls fn with a descriptor and one component below it, or none for the
// held node itself.
func (d *DirFS) with(at Loc, fn func(dirfd int, name string) error) error {
	cur, err := d.base(at.Slot)
	if err != nil {
		return err
	}
	parts := components(at.Path)
	if len(parts) == 0 {
		return fn(cur, "")
	}
	owned := -1
	defer func() {
		if owned >= 0 {
			_ = unix.Close(owned)
		}
	}()
	for _, name := range parts[:len(parts)-1] {
		fd, err := unix.Openat(cur, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if owned >= 0 {
			_ = unix.Close(owned)
		}
		owned = fd
		if err != nil {
			return err
		}
		cur = fd
	}
	if owned < 0 && at.Slot != Root {
		// Two locations are walked one after the other: what is wrong with
		// the first is to be found before the second is looked at.
		if st, err := fstatat(cur, ""); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return syscall.ENOTDIR
		}
	}
	return fn(cur, parts[len(parts)-1])
}

// open calls fn with a descriptor of the node itself.
func (d *DirFS) open(at Loc, flags int, fn func(fd int) error) error {
	return d.with(at, func(dirfd int, name string) error {
		if name == "" && at.Slot != Root {
			return fn(dirfd)
		}
		if name == "" {
			name = "."
		}
		fd, err := unix.Openat(dirfd, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return fn(fd)
	})
}

func fstatat(dirfd int, name string) (st unix.Stat_t, err error) {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	err = unix.Fstatat(dirfd, name, &st, flags)
	return st, err
}

// Open implements [FS]: for reading and writing where the type allows it.
func (d *DirFS) Open(slot int, at Loc) error {
	return d.with(at, func(dirfd int, name string) error {
		if name == "" {
			fd, err := unix.FcntlInt(uintptr(dirfd), unix.F_DUPFD_CLOEXEC, 0)
			if err == nil {
				d.hold(slot, fd)
			}
			return err
		}
		st, err := fstatat(dirfd, name)
		if err != nil {
			return err
		}
		flags := unix.O_PATH
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			flags = d.rw
		case unix.S_IFDIR:
			flags = unix.O_RDONLY | unix.O_DIRECTORY
		}
		fd, err := unix.Openat(dirfd, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			d.hold(slot, fd)
		}
		return err
	})
}

// Stat implements [FS].
func (d *DirFS) Stat(at Loc) (out Stat, err error) {
	err = d.with(at, func(dirfd int, name string) error {
		st, err := fstatat(dirfd, name)
		if err != nil {
			return err
		}
		out = Stat{
			Ino: st.Ino, Mode: st.Mode, Nlink: uint32(st.Nlink), UID: st.Uid, GID: st.Gid,
			Rdev: uint64(st.Rdev), Size: st.Size,
			Mtime: overlay.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)},
			Ctime: overlay.Time{Sec: st.Ctim.Sec, Nsec: uint32(st.Ctim.Nsec)},
		}
		return nil
	})
	return out, err
}

// Readlink implements [FS].
func (d *DirFS) Readlink(at Loc) (target string, err error) {
	err = d.with(at, func(dirfd int, name string) error {
		// With an empty name the kernel answers ENOENT for what is no link.
		if st, err := fstatat(dirfd, name); err == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK {
			return syscall.EINVAL
		}
		target, err = hostfs.OS.Readlink(dirfd, name)
		return err
	})
	return target, err
}

// ReadDir implements [FS]. The descriptor of the listing is its own, and its
// position is the cookie.
func (d *DirFS) ReadDir(at Loc, batch int, between func()) (out []Dirent, err error) {
	err = d.with(at, func(dirfd int, name string) error {
		if name == "" {
			name = "."
			if st, err := fstatat(dirfd, ""); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
				return syscall.ENOTDIR
			}
		}
		fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		size := 32 << 10
		if batch > 0 {
			size = 512 // at least one entry of 255 bytes
		}
		buf := make([]byte, size)
		for {
			n, err := unix.Getdents(fd, buf)
			if err != nil || n <= 0 {
				return err
			}
			for b := buf[:n]; len(b) > 0; {
				reclen := int(binary.NativeEndian.Uint16(b[16:]))
				entry, _, _ := strings.Cut(string(b[19:reclen]), "\x00")
				if entry != "." && entry != ".." {
					out = append(out, Dirent{entry, binary.NativeEndian.Uint64(b), uint32(b[18]) << 12})
				}
				b = b[reclen:]
			}
			if between != nil {
				between()
			}
		}
	})
	sortDirents(out)
	return out, err
}

// Mkdir implements [FS].
func (d *DirFS) Mkdir(at Loc, mode uint32) error {
	return d.with(at, func(dirfd int, name string) error { return unix.Mkdirat(dirfd, name, mode) })
}

// Mknod implements [FS].
func (d *DirFS) Mknod(at Loc, mode uint32, rdev uint64) error {
	return d.with(at, func(dirfd int, name string) error { return unix.Mknodat(dirfd, name, mode, int(rdev)) })
}

// Create implements [FS].
func (d *DirFS) Create(slot int, at Loc, mode uint32) error {
	return d.with(at, func(dirfd int, name string) error {
		fd, err := unix.Openat(dirfd, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, mode)
		if err == nil {
			d.hold(slot, fd)
		}
		return err
	})
}

// Symlink implements [FS].
func (d *DirFS) Symlink(target string, at Loc) error {
	return d.with(at, func(dirfd int, name string) error { return unix.Symlinkat(target, dirfd, name) })
}

// Tmpfile implements [FS].
func (d *DirFS) Tmpfile(slot int, dir Loc, mode uint32) error {
	return d.with(dir, func(dirfd int, name string) error {
		if st, err := fstatat(dirfd, name); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return syscall.ENOTDIR
		}
		if name == "" {
			name = "."
		}
		fd, err := unix.Openat(dirfd, name, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, mode)
		if err == nil {
			d.hold(slot, fd)
		}
		return err
	})
}

// Link implements [FS].
func (d *DirFS) Link(from, to Loc) error {
	return d.with(from, func(fromDir int, fromName string) error {
		flags := 0
		if fromName == "" {
			flags = unix.AT_EMPTY_PATH
		} else if _, err := fstatat(fromDir, fromName); err != nil {
			return err
		}
		return d.with(to, func(toDir int, toName string) error {
			return unix.Linkat(fromDir, fromName, toDir, toName, flags)
		})
	})
}

// Unlink implements [FS].
func (d *DirFS) Unlink(at Loc) error {
	return d.with(at, func(dirfd int, name string) error { return unix.Unlinkat(dirfd, name, 0) })
}

// Rmdir implements [FS].
func (d *DirFS) Rmdir(at Loc) error {
	return d.with(at, func(dirfd int, name string) error { return unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR) })
}

// Rename implements [FS].
func (d *DirFS) Rename(from, to Loc, flags uint32) error {
	return d.with(from, func(fromDir int, fromName string) error {
		return d.with(to, func(toDir int, toName string) error {
			return unix.Renameat2(fromDir, fromName, toDir, toName, uint(flags))
		})
	})
}

// regular calls fn with a descriptor to read and write a regular file, and
// never opens anything else: opening a FIFO or a device has effects.
func (d *DirFS) regular(at Loc, fn func(fd int) error) error {
	return d.with(at, func(dirfd int, name string) error {
		st, err := fstatat(dirfd, name)
		switch {
		case err != nil:
			return err
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			return syscall.EISDIR
		case st.Mode&unix.S_IFMT != unix.S_IFREG:
			return syscall.EINVAL
		}
		if name == "" {
			return fn(dirfd)
		}
		fd, err := unix.Openat(dirfd, name, d.rw|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return fn(fd)
	})
}

// readAt reads until p is full or the file ends.
func readAt(p []byte, off int64, pread func(p []byte, off int64) (int, error)) (int, error) {
	for n := 0; ; {
		c, err := pread(p[n:], off+int64(n))
		if err != nil && err != io.EOF {
			return n, err
		}
		if n += c; c == 0 || n == len(p) {
			return n, nil
		}
	}
}
