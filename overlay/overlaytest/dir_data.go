package overlaytest

import (
	"bytes"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// Chmod implements [FS].
func (d *DirFS) Chmod(at Loc, mode uint32) error {
	return d.with(at, func(dirfd int, name string) error {
		if st, err := fstatat(dirfd, name); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return syscall.EOPNOTSUPP
		}
		return hostfs.OS.Chmod(dirfd, name, mode)
	})
}

// Chown implements [FS].
func (d *DirFS) Chown(at Loc, uid, gid int) error {
	return d.with(at, func(dirfd int, name string) error { return hostfs.OS.Chown(dirfd, name, uid, gid) })
}

// Utimes implements [FS].
func (d *DirFS) Utimes(at Loc, mtime overlay.Time) error {
	ts := unix.Timespec{Sec: mtime.Sec, Nsec: int64(mtime.Nsec)}
	return d.with(at, func(dirfd int, name string) error {
		return hostfs.OS.Utimes(dirfd, name, &[2]unix.Timespec{ts, ts})
	})
}

// Truncate implements [FS].
func (d *DirFS) Truncate(at Loc, size int64) error {
	return d.regular(at, func(fd int) error { return unix.Ftruncate(fd, size) })
}

// Read implements [FS].
func (d *DirFS) Read(at Loc, p []byte, off int64) (n int, err error) {
	err = d.regular(at, func(fd int) error {
		n, err = readAt(p, off, func(p []byte, off int64) (int, error) { return unix.Pread(fd, p, off) })
		return err
	})
	return n, err
}

// Write implements [FS].
func (d *DirFS) Write(at Loc, p []byte, off int64) (n int, err error) {
	err = d.regular(at, func(fd int) error { n, err = unix.Pwrite(fd, p, off); return err })
	return n, err
}

// WriteKill implements [FS].
func (d *DirFS) WriteKill(at Loc, p []byte, off int64) (n int, err error) {
	err = d.regular(at, func(fd int) error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		return withoutFsetid(int(st.Gid), func() error { n, err = unix.Pwrite(fd, p, off); return err })
	})
	return n, err
}

// withoutFsetid runs fn on a thread without CAP_FSETID, and as a member of the
// group: for others the kernel clears the set-group-id bit also where it means
// mandatory locking.
func withoutFsetid(gid int, fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setfsgid(gid); err != nil {
		return err
	}
	defer unix.Setfsgid(0)
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var was, less [2]unix.CapUserData
	if err := unix.Capget(&hdr, &was[0]); err != nil {
		return err
	}
	less = was
	less[0].Effective &^= 1 << unix.CAP_FSETID
	if err := unix.Capset(&hdr, &less[0]); err != nil {
		return err
	}
	err := fn()
	if rerr := unix.Capset(&hdr, &was[0]); rerr != nil {
		return rerr
	}
	return err
}

// Append implements [FS].
func (d *DirFS) Append(at Loc, p []byte) (n int, err error) {
	err = d.regular(at, func(fd int) error {
		w, err := unix.Open(hostfs.ProcPath(fd, ""), unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(w)
		n, err = unix.Write(w, p)
		return err
	})
	return n, err
}

// Fallocate implements [FS].
func (d *DirFS) Fallocate(at Loc, mode uint32, off, n int64) error {
	return d.regular(at, func(fd int) error { return unix.Fallocate(fd, mode, off, n) })
}

// Seek implements [FS].
func (d *DirFS) Seek(at Loc, off int64, whence int) (pos int64, err error) {
	err = d.regular(at, func(fd int) error { pos, err = unix.Seek(fd, off, whence); return err })
	return pos, err
}

// CopyRange implements [FS].
func (d *DirFS) CopyRange(from Loc, fromOff int64, to Loc, toOff, size int64) (n int64, err error) {
	err = d.regular(from, func(src int) error {
		return d.regular(to, func(dst int) error {
			c, err := hostfs.OS.CopyRange(src, fromOff, dst, toOff, int(size))
			n = int64(c)
			return err
		})
	})
	return n, err
}

// Fsync implements [FS]. What cannot be opened has nothing to sync.
func (d *DirFS) Fsync(at Loc) error {
	return d.with(at, func(dirfd int, name string) error {
		st, err := fstatat(dirfd, name)
		if err != nil {
			return err
		}
		if t := st.Mode & unix.S_IFMT; t != unix.S_IFREG && t != unix.S_IFDIR {
			return nil
		}
		return d.open(at, unix.O_RDONLY, unix.Fsync)
	})
}

// Getxattr implements [FS].
func (d *DirFS) Getxattr(at Loc, attr string) (val []byte, err error) {
	err = d.with(at, func(dirfd int, name string) error {
		buf := make([]byte, 64<<10)
		n, err := hostfs.OS.Getxattr(dirfd, name, attr, buf)
		val = buf[:n]
		return err
	})
	return val, err
}

// Listxattr implements [FS].
func (d *DirFS) Listxattr(at Loc) (names []string, err error) {
	err = d.with(at, func(dirfd int, name string) error {
		buf := make([]byte, 64<<10)
		n, err := hostfs.OS.Listxattr(dirfd, name, buf)
		names = splitNames(buf[:n])
		return err
	})
	return names, err
}

func splitNames(b []byte) []string {
	if len(b) == 0 {
		return nil
	}
	names := strings.Split(string(bytes.TrimSuffix(b, []byte{0})), "\x00")
	slices.Sort(names)
	return names
}

// Setxattr implements [FS].
func (d *DirFS) Setxattr(at Loc, attr string, val []byte, flags int) error {
	return d.with(at, func(dirfd int, name string) error {
		return hostfs.OS.Setxattr(dirfd, name, attr, val, flags)
	})
}

// Removexattr implements [FS].
func (d *DirFS) Removexattr(at Loc, attr string) error {
	return d.with(at, func(dirfd int, name string) error { return hostfs.OS.Removexattr(dirfd, name, attr) })
}
