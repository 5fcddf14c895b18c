// Package hostfs is the one door through which Galley touches the host's file
// systems: a small interface of directory-descriptor relative calls.
//
// Everything that reads or writes a base, a layer, a journal or a staging
// directory goes through an [FS], so that tests can count calls, make any of
// them fail, and kill the process between any two. No call takes a path that
// is joined from strings: a name is either one component, or a relative path
// that [FS.Open] resolves beneath its directory with no symbolic link and no
// magic link followed (openat2(2), RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
// RESOLVE_NO_MAGICLINKS).
//
// All calls return a bare [syscall.Errno] (possibly as a [unix.Errno], the
// same type), never a wrapped error: callers add context and keep the errno.
// Calls interrupted by a signal are retried. Implementations are safe for
// concurrent use.
package hostfs

import (
	"golang.org/x/sys/unix"
)

// FS is the set of host calls that Galley uses. Descriptors are plain ints, as
// the kernel gives them; unix.AT_FDCWD is never passed except by the code that
// opens a root a person named.
type FS interface {
	// Open opens name beneath dirfd (openat2). O_CLOEXEC is always added.
	// A trailing component that is a symbolic link fails with ELOOP unless
	// flags has O_PATH|O_NOFOLLOW.
	Open(dirfd int, name string, flags int, mode uint32) (int, error)
	// OpenTmp makes an unnamed file in dirfd (O_TMPFILE|O_RDWR), or fails
	// with EOPNOTSUPP where the file system has no such files.
	OpenTmp(dirfd int, mode uint32) (int, error)
	// Close closes a descriptor that Open or OpenTmp returned.
	Close(fd int) error
	// Dup duplicates a descriptor with O_CLOEXEC set.
	Dup(fd int) (int, error)

	// Stat is statx(2) with AT_SYMLINK_NOFOLLOW on one component; with an
	// empty name it describes dirfd itself. It asks for basic stats and the
	// birth time.
	Stat(dirfd int, name string, st *unix.Statx_t) error
	// Statfs is fstatfs(2).
	Statfs(fd int, st *unix.Statfs_t) error
	Readlink(dirfd int, name string) (string, error)
	// Getdents is getdents64(2) on a directory opened without O_PATH.
	Getdents(fd int, buf []byte) (int, error)
	// Seek is lseek(2), SEEK_DATA and SEEK_HOLE included.
	Seek(fd int, off int64, whence int) (int64, error)
	Pread(fd int, p []byte, off int64) (int, error)

	Mkdir(dirfd int, name string, mode uint32) error
	Mknod(dirfd int, name string, mode uint32, dev uint64) error
	Symlink(target string, dirfd int, name string) error
	// Link makes (newdir, newname) another name of (olddir, oldname). It
	// does not follow a symbolic link. With an empty oldname it links the
	// unnamed file olddir (through /proc/self/fd, so no capability is needed).
	Link(olddir int, oldname string, newdir int, newname string) error
	// Unlink is unlinkat(2); flags is 0 or AT_REMOVEDIR.
	Unlink(dirfd int, name string, flags int) error
	// Rename is renameat2(2) with RENAME_NOREPLACE, RENAME_EXCHANGE or 0.
	Rename(olddir int, oldname string, newdir int, newname string, flags uint) error

	// Chmod, Chown and Utimes act on one component without following a
	// link; an empty name means dirfd itself, which may be an O_PATH
	// descriptor. Chmod of a symbolic link fails with EOPNOTSUPP.
	Chmod(dirfd int, name string, mode uint32) error
	Chown(dirfd int, name string, uid, gid int) error
	// Utimes sets atime and mtime; UTIME_OMIT and UTIME_NOW work.
	Utimes(dirfd int, name string, ts *[2]unix.Timespec) error

	Pwrite(fd int, p []byte, off int64) (int, error)
	Truncate(fd int, size int64) error
	Fallocate(fd int, mode uint32, off, n int64) error
	// Clone is ioctl FICLONE: dst becomes a reflink of src.
	Clone(dst, src int) error
	// CopyRange is copy_file_range(2) at explicit offsets.
	CopyRange(src int, srcOff int64, dst int, dstOff int64, n int) (int, error)
	Fsync(fd int) error
	Fdatasync(fd int) error
	// Syncfs is syncfs(2): it makes everything on fd's file system durable,
	// which for many small files costs one journal write where a call for each
	// costs one each. It reports errors of earlier write-back (Linux 5.8),
	// but does not reach the far side of FUSE or network file systems.
	Syncfs(fd int) error

	// The xattr calls act on one component without following a link; an
	// empty name means dirfd itself.
	Getxattr(dirfd int, name, attr string, buf []byte) (int, error)
	Listxattr(dirfd int, name string, buf []byte) (int, error)
	Setxattr(dirfd int, name, attr string, val []byte, flags int) error
	Removexattr(dirfd int, name, attr string) error
}

// OS is the host's own implementation.
var OS FS = osFS{}
