package hostfs

import (
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

type osFS struct{}

const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// retry repeats f while a signal interrupts it; the runtime's preemption
// signals make EINTR common on slow file systems.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

func (osFS) Open(dirfd int, name string, flags int, mode uint32) (int, error) {
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_LARGEFILE),
		Resolve: resolve,
	}
	if flags&(unix.O_CREAT) != 0 {
		how.Mode = uint64(mode & 0o7777)
	}
	if flags&unix.O_PATH != 0 {
		how.Flags &^= unix.O_LARGEFILE
	}
	for {
		fd, err := unix.Openat2(dirfd, name, &how)
		// EAGAIN: a rename or mount raced with the ".." check of
		// RESOLVE_BENEATH (openat2(2)); the call is to be repeated.
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		return fd, err
	}
}

func (osFS) OpenTmp(dirfd int, mode uint32) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dirfd, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, mode)
		return err
	})
	return fd, err
}

// Close never retries: on Linux the descriptor is gone even after EINTR.
func (osFS) Close(fd int) error { return unix.Close(fd) }

func (osFS) Dup(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }

func (osFS) Stat(dirfd int, name string, st *unix.Statx_t) error {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return retry(func() error {
		return unix.Statx(dirfd, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, st)
	})
}

func (osFS) Statfs(fd int, st *unix.Statfs_t) error {
	return retry(func() error { return unix.Fstatfs(fd, st) })
}

func (osFS) Readlink(dirfd int, name string) (string, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Readlinkat(dirfd, name, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", err
		}
		if n < len(buf) {
			return string(buf[:n]), nil
		}
		buf = make([]byte, 2*len(buf))
	}
}

func (osFS) Getdents(fd int, buf []byte) (n int, err error) {
	err = retry(func() error { n, err = unix.Getdents(fd, buf); return err })
	return n, err
}

func (osFS) Seek(fd int, off int64, whence int) (int64, error) { return unix.Seek(fd, off, whence) }

func (osFS) Pread(fd int, p []byte, off int64) (n int, err error) {
	err = retry(func() error { n, err = unix.Pread(fd, p, off); return err })
	return max(n, 0), err
}

func (osFS) Mkdir(dirfd int, name string, mode uint32) error {
	return retry(func() error { return unix.Mkdirat(dirfd, name, mode) })
}

func (osFS) Mknod(dirfd int, name string, mode uint32, dev uint64) error {
	return retry(func() error { return unix.Mknodat(dirfd, name, mode, int(dev)) })
}

func (osFS) Symlink(target string, dirfd int, name string) error {
	return retry(func() error { return unix.Symlinkat(target, dirfd, name) })
}

func (osFS) Link(olddir int, oldname string, newdir int, newname string) error {
	if oldname == "" {
		return retry(func() error {
			return unix.Linkat(unix.AT_FDCWD, ProcPath(olddir, ""), newdir, newname, unix.AT_SYMLINK_FOLLOW)
		})
	}
	return retry(func() error { return unix.Linkat(olddir, oldname, newdir, newname, 0) })
}

func (osFS) Unlink(dirfd int, name string, flags int) error {
	return retry(func() error { return unix.Unlinkat(dirfd, name, flags) })
}

func (osFS) Rename(olddir int, oldname string, newdir int, newname string, flags uint) error {
	return retry(func() error { return unix.Renameat2(olddir, oldname, newdir, newname, flags) })
}

func (osFS) Chmod(dirfd int, name string, mode uint32) error {
	if name == "" {
		err := retry(func() error { return unix.Fchmod(dirfd, mode) })
		if err != unix.EBADF {
			return err
		}
		// An O_PATH descriptor.
		return retry(func() error { return unix.Chmod(ProcPath(dirfd, ""), mode) })
	}
	// fchmodat has no flag before Linux 6.6: pin the file and refuse a link.
	fd, err := (osFS{}).Open(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	return retry(func() error { return unix.Chmod(ProcPath(fd, ""), mode) })
}

func (osFS) Chown(dirfd int, name string, uid, gid int) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return retry(func() error { return unix.Fchownat(dirfd, name, uid, gid, flags) })
}

func (osFS) Utimes(dirfd int, name string, ts *[2]unix.Timespec) error {
	if name == "" {
		// A null path means the descriptor itself (utimensat(2)), unless it
		// is an O_PATH one; AT_EMPTY_PATH is newer than 6.1 for this call.
		err := retry(func() error {
			_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(dirfd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
			if e != 0 {
				return e
			}
			return nil
		})
		if err != unix.EBADF {
			return err
		}
		return retry(func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, ProcPath(dirfd, ""), ts[:], 0) })
	}
	return retry(func() error { return unix.UtimesNanoAt(dirfd, name, ts[:], unix.AT_SYMLINK_NOFOLLOW) })
}

func (osFS) Pwrite(fd int, p []byte, off int64) (n int, err error) {
	err = retry(func() error { n, err = unix.Pwrite(fd, p, off); return err })
	return max(n, 0), err
}

func (osFS) Truncate(fd int, size int64) error {
	return retry(func() error { return unix.Ftruncate(fd, size) })
}

func (osFS) Fallocate(fd int, mode uint32, off, n int64) error {
	return retry(func() error { return unix.Fallocate(fd, mode, off, n) })
}

func (osFS) Clone(dst, src int) error {
	return retry(func() error { return unix.IoctlFileClone(dst, src) })
}

func (osFS) CopyRange(src int, srcOff int64, dst int, dstOff int64, n int) (c int, err error) {
	err = retry(func() error {
		so, do := srcOff, dstOff
		c, err = unix.CopyFileRange(src, &so, dst, &do, n, 0)
		return err
	})
	return max(c, 0), err
}

func (osFS) Fsync(fd int) error     { return retry(func() error { return unix.Fsync(fd) }) }
func (osFS) Fdatasync(fd int) error { return retry(func() error { return unix.Fdatasync(fd) }) }
func (osFS) Syncfs(fd int) error    { return retry(func() error { return unix.Syncfs(fd) }) }

func (osFS) Getxattr(dirfd int, name, attr string, buf []byte) (n int, err error) {
	p := ProcPath(dirfd, name)
	err = retry(func() error {
		if name == "" {
			n, err = unix.Getxattr(p, attr, buf)
		} else {
			n, err = unix.Lgetxattr(p, attr, buf)
		}
		return err
	})
	return max(n, 0), err
}

func (osFS) Listxattr(dirfd int, name string, buf []byte) (n int, err error) {
	p := ProcPath(dirfd, name)
	err = retry(func() error {
		if name == "" {
			n, err = unix.Listxattr(p, buf)
		} else {
			n, err = unix.Llistxattr(p, buf)
		}
		return err
	})
	return max(n, 0), err
}

func (osFS) Setxattr(dirfd int, name, attr string, val []byte, flags int) error {
	p := ProcPath(dirfd, name)
	return retry(func() error {
		if name == "" {
			return unix.Setxattr(p, attr, val, flags)
		}
		return unix.Lsetxattr(p, attr, val, flags)
	})
}

func (osFS) Removexattr(dirfd int, name, attr string) error {
	p := ProcPath(dirfd, name)
	return retry(func() error {
		if name == "" {
			return unix.Removexattr(p, attr)
		}
		return unix.Lremovexattr(p, attr)
	})
}

// ProcPath names one component beneath a descriptor for the calls that have no
// *at form. Only the link of our own descriptor is followed: the component
// after it is the last, and the l-calls do not follow that one.
func ProcPath(fd int, name string) string {
	b := make([]byte, 0, 32+len(name))
	b = append(b, "/proc/self/fd/"...)
	b = strconv.AppendInt(b, int64(fd), 10)
	if name != "" {
		b = append(b, '/')
		b = append(b, name...)
	}
	return unsafe.String(unsafe.SliceData(b), len(b))
}
