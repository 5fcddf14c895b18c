// Package osfs is the file system of the process itself, for sandboxes in
// which a process of their own works on files: every path is resolved by the
// kernel, in the namespaces that the process lives in.
package osfs

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/files"
)

// FS is the process's own view.
type FS struct{}

var _ files.DirFS = FS{}

// file is an open file. It is read by plain system calls: the runtime's poller
// is of no use for regular files.
type file struct {
	fd    int
	off   int64
	whole bool // see dir
	ended bool // nothing follows off
}

// Open is [files.FS.Open].
func (FS) Open(p string) (files.File, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	})
	if errors.Is(err, unix.ENXIO) {
		// A socket, or a device without a driver: tell what it is.
		fd, err = unix.Open(p, unix.O_PATH|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, err
	}
	return &file{fd: fd}, nil
}

// Stat is [files.FS.Stat].
func (FS) Stat(p string, follow bool) (sandbox.FileInfo, error) {
	var st unix.Stat_t
	flags := unix.AT_SYMLINK_NOFOLLOW
	if follow {
		flags = 0
	}
	if err := unix.Fstatat(unix.AT_FDCWD, p, &st, flags); err != nil {
		return sandbox.FileInfo{}, err
	}
	info := infoOf(&st)
	if info.Mode&fs.ModeSymlink != 0 {
		target, err := os.Readlink(p)
		if err != nil {
			return info, err
		}
		info.Target = target
	}
	return info, nil
}

func infoOf(st *unix.Stat_t) sandbox.FileInfo {
	return sandbox.FileInfo{
		Mode: files.ModeOf(st.Mode), Size: st.Size, ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec),
		UID: st.Uid, GID: st.Gid, Nlink: uint32(st.Nlink), Ino: st.Ino,
	}
}

// ReadDir is [files.FS.ReadDir].
func (FS) ReadDir(p string) ([]files.DirEntry, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_DIRECTORY, 0)
	})
	if err != nil {
		return nil, err
	}
	d := os.NewFile(uintptr(fd), p)
	defer d.Close()
	return entriesOf(d)
}

func entriesOf(d *os.File) ([]files.DirEntry, error) {
	list, err := d.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	out := make([]files.DirEntry, len(list))
	for i, e := range list {
		out[i] = files.DirEntry{Name: e.Name(), Type: e.Type()}
	}
	return out, nil
}

// dir is an open directory.
type dir struct {
	file *os.File
	// whole: a read that returns less than was asked for has come to the end
	// of a file. That holds for Galley's views, and not for /proc, say.
	whole bool
}

// OpenDir is [files.DirFS.OpenDir].
func (FS) OpenDir(p string) (files.Dir, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_DIRECTORY, 0)
	})
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	whole := unix.Fstatfs(fd, &st) == nil && st.Type == unix.FUSE_SUPER_MAGIC
	return &dir{os.NewFile(uintptr(fd), p), whole}, nil
}

func (d *dir) ReadDir() ([]files.DirEntry, error) { return entriesOf(d.file) }

func (d *dir) OpenFile(name string) (files.File, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(int(d.file.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_NOFOLLOW, 0)
	})
	if err != nil {
		return nil, err
	}
	return &file{fd: fd, whole: d.whole}, nil
}

func (d *dir) Close() error { return d.file.Close() }

// maxLinks is how many links that lead nowhere Real follows.
const maxLinks = 40

// Real is [files.FS.Real].
func (f FS) Real(p string) (string, error) {
	for range maxLinks {
		real, err := whereIs(p)
		if !errors.Is(err, unix.ENOENT) {
			return real, err
		}
		// The last element is missing, or a link that leads nowhere.
		dir, name := path.Split(p)
		if name == "" || name == "." || name == ".." {
			return "", err
		}
		if dir, err = whereIs(dir); err != nil {
			return "", err
		}
		target, err := os.Readlink(files.Join(dir, name))
		if err != nil {
			return files.Join(dir, name), nil
		}
		p = files.Join(dir, target)
	}
	return "", unix.ELOOP
}

// whereIs is the path, free of links, of what p leads to. What was replaced or
// removed meanwhile is ENOENT: the kernel then names it, but with " (deleted)"
// behind, which would be another file.
func whereIs(p string) (string, error) {
	fd, err := retry(func() (int, error) { return unix.Open(p, unix.O_PATH|unix.O_CLOEXEC, 0) })
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	real, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(real, "/") {
		return path.Clean(p), nil // a pipe, say, through /proc/self/fd
	}
	if strings.HasSuffix(real, " (deleted)") && !standsAt(fd, real) {
		return "", unix.ENOENT
	}
	return real, nil
}

// standsAt reports whether p names what fd is open on.
func standsAt(fd int, p string) bool {
	var is, there unix.Stat_t
	return unix.Fstat(fd, &is) == nil && unix.Lstat(p, &there) == nil && is.Dev == there.Dev && is.Ino == there.Ino
}

// Create is [files.FS.Create].
func (FS) Create(p string, perm fs.FileMode) (files.File, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(p, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(perm.Perm()))
	})
	if err != nil {
		return nil, err
	}
	return &file{fd: fd}, nil
}

// Mkdir is [files.FS.Mkdir].
func (FS) Mkdir(p string, perm fs.FileMode) error { return unix.Mkdir(p, uint32(perm.Perm())) }

// Rename is [files.FS.Rename].
func (FS) Rename(from, to string, noReplace bool) error {
	if noReplace {
		return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	}
	return unix.Rename(from, to)
}

// Remove is [files.FS.Remove].
func (FS) Remove(p string) error {
	err := unix.Unlink(p)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		return unix.Rmdir(p)
	}
	return err
}

// CopyMeta is [files.FS.CopyMeta]. The owner goes first: changing it clears
// mode bits. What is so already is not asked for: in a view each is a request.
func (FS) CopyMeta(from, to string) error {
	var st, now unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if err := unix.Lstat(to, &now); err != nil {
		return err
	}
	if now.Uid != st.Uid || now.Gid != st.Gid {
		err := unix.Lchown(to, int(st.Uid), int(st.Gid))
		if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EINVAL) {
			return err
		}
		now.Mode = ^st.Mode
	}
	if now.Mode&0o7777 != st.Mode&0o7777 {
		if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
			return err
		}
	}
	return copyXattrs(from, to)
}

// copyXattrs copies what the user may set; security attributes are the
// system's own business.
func copyXattrs(from, to string) error {
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(from, names)
	if err != nil {
		return nil // the file system has none
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if !strings.HasPrefix(name, "user.") && name != "system.posix_acl_access" {
			continue
		}
		value := make([]byte, 64<<10)
		size, err := unix.Lgetxattr(from, name, value)
		if err != nil {
			continue // gone meanwhile
		}
		if err := unix.Lsetxattr(to, name, value[:size], 0); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	return nil
}

func (f *file) Read(b []byte) (int, error) {
	if f.ended {
		return 0, io.EOF
	}
	n, err := f.ReadAt(b, f.off)
	f.off += int64(n)
	f.ended = f.whole && err == nil && n < len(b)
	return n, err
}

// ReadAt may return less than was asked for, and says io.EOF only with nothing.
func (f *file) ReadAt(b []byte, off int64) (int, error) {
	n, err := retry(func() (int, error) { return unix.Pread(f.fd, b, off) })
	if err != nil {
		return 0, err
	}
	if n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (f *file) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := retry(func() (int, error) { return unix.Write(f.fd, b[done:]) })
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

func (f *file) Close() error { return unix.Close(f.fd) }

func (f *file) Stat() (sandbox.FileInfo, error) {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return sandbox.FileInfo{}, err
	}
	return infoOf(&st), nil
}

func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != syscall.EINTR {
			return n, err
		}
	}
}
