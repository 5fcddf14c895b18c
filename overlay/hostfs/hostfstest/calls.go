package hostfstest

import (
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

var _ hostfs.FS = (*Fault)(nil)

// The methods of hostfs.FS. Each says by do or look whether it is counted;
// Close is always done, so that a crash in a test leaks no descriptor.

func (f *Fault) Open(dirfd int, name string, flags int, mode uint32) (fd int, err error) {
	call := func() error { fd, err = f.under.Open(dirfd, name, flags, mode); return err }
	if flags&(unix.O_CREAT|unix.O_TRUNC) != 0 {
		err = f.do("Open", name, call)
	} else {
		err = f.look(call)
	}
	if err != nil {
		return -1, err
	}
	return fd, nil
}

func (f *Fault) OpenTmp(dirfd int, mode uint32) (fd int, err error) {
	err = f.do("OpenTmp", "", func() error { fd, err = f.under.OpenTmp(dirfd, mode); return err })
	if err != nil {
		return -1, err
	}
	return fd, nil
}

func (f *Fault) Close(fd int) error { return f.under.Close(fd) }

func (f *Fault) Dup(fd int) (n int, err error) {
	err = f.look(func() error { n, err = f.under.Dup(fd); return err })
	if err != nil {
		return -1, err
	}
	return n, nil
}

func (f *Fault) Stat(dirfd int, name string, st *unix.Statx_t) error {
	return f.look(func() error { return f.under.Stat(dirfd, name, st) })
}

func (f *Fault) Statfs(fd int, st *unix.Statfs_t) error {
	return f.look(func() error { return f.under.Statfs(fd, st) })
}

func (f *Fault) Readlink(dirfd int, name string) (target string, err error) {
	err = f.look(func() error { target, err = f.under.Readlink(dirfd, name); return err })
	return target, err
}

func (f *Fault) Getdents(fd int, buf []byte) (n int, err error) {
	err = f.look(func() error { n, err = f.under.Getdents(fd, buf); return err })
	return n, err
}

func (f *Fault) Seek(fd int, off int64, whence int) (pos int64, err error) {
	err = f.look(func() error { pos, err = f.under.Seek(fd, off, whence); return err })
	return pos, err
}

func (f *Fault) Pread(fd int, p []byte, off int64) (n int, err error) {
	err = f.look(func() error { n, err = f.under.Pread(fd, p, off); return err })
	return n, err
}

func (f *Fault) Mkdir(dirfd int, name string, mode uint32) error {
	return f.do("Mkdir", name, func() error { return f.under.Mkdir(dirfd, name, mode) })
}

func (f *Fault) Mknod(dirfd int, name string, mode uint32, dev uint64) error {
	return f.do("Mknod", name, func() error { return f.under.Mknod(dirfd, name, mode, dev) })
}

func (f *Fault) Symlink(target string, dirfd int, name string) error {
	return f.do("Symlink", name, func() error { return f.under.Symlink(target, dirfd, name) })
}

func (f *Fault) Link(olddir int, oldname string, newdir int, newname string) error {
	return f.do("Link", newname, func() error { return f.under.Link(olddir, oldname, newdir, newname) })
}

func (f *Fault) Unlink(dirfd int, name string, flags int) error {
	return f.do("Unlink", name, func() error { return f.under.Unlink(dirfd, name, flags) })
}

func (f *Fault) Rename(olddir int, oldname string, newdir int, newname string, flags uint) error {
	return f.do("Rename", newname, func() error {
		return f.under.Rename(olddir, oldname, newdir, newname, flags)
	})
}

func (f *Fault) Chmod(dirfd int, name string, mode uint32) error {
	return f.do("Chmod", name, func() error { return f.under.Chmod(dirfd, name, mode) })
}

func (f *Fault) Chown(dirfd int, name string, uid, gid int) error {
	return f.do("Chown", name, func() error { return f.under.Chown(dirfd, name, uid, gid) })
}

func (f *Fault) Utimes(dirfd int, name string, ts *[2]unix.Timespec) error {
	return f.do("Utimes", name, func() error { return f.under.Utimes(dirfd, name, ts) })
}

func (f *Fault) Pwrite(fd int, p []byte, off int64) (n int, err error) {
	v := f.before("Pwrite", "")
	if v.err != nil {
		return 0, v.err
	}
	if (v.short || v.torn) && len(p) > 1 {
		p = p[:len(p)/2]
	}
	n, err = f.under.Pwrite(fd, p, off)
	return n, f.after(v, err)
}

func (f *Fault) Truncate(fd int, size int64) error {
	return f.do("Truncate", "", func() error { return f.under.Truncate(fd, size) })
}

func (f *Fault) Fallocate(fd int, mode uint32, off, n int64) error {
	return f.do("Fallocate", "", func() error { return f.under.Fallocate(fd, mode, off, n) })
}

func (f *Fault) Clone(dst, src int) error {
	return f.do("Clone", "", func() error { return f.under.Clone(dst, src) })
}

func (f *Fault) CopyRange(src int, srcOff int64, dst int, dstOff int64, n int) (c int, err error) {
	v := f.before("CopyRange", "")
	if v.err != nil {
		return 0, v.err
	}
	if v.short && n > 1 {
		n /= 2
	}
	c, err = f.under.CopyRange(src, srcOff, dst, dstOff, n)
	return c, f.after(v, err)
}

func (f *Fault) Fsync(fd int) error {
	return f.do("Fsync", "", func() error { return f.under.Fsync(fd) })
}

func (f *Fault) Fdatasync(fd int) error {
	return f.do("Fdatasync", "", func() error { return f.under.Fdatasync(fd) })
}

func (f *Fault) Syncfs(fd int) error {
	return f.do("Syncfs", "", func() error { return f.under.Syncfs(fd) })
}

func (f *Fault) Getxattr(dirfd int, name, attr string, buf []byte) (n int, err error) {
	err = f.look(func() error { n, err = f.under.Getxattr(dirfd, name, attr, buf); return err })
	return n, err
}

func (f *Fault) Listxattr(dirfd int, name string, buf []byte) (n int, err error) {
	err = f.look(func() error { n, err = f.under.Listxattr(dirfd, name, buf); return err })
	return n, err
}

func (f *Fault) Setxattr(dirfd int, name, attr string, val []byte, flags int) error {
	return f.do("Setxattr", name, func() error { return f.under.Setxattr(dirfd, name, attr, val, flags) })
}

func (f *Fault) Removexattr(dirfd int, name, attr string) error {
	return f.do("Removexattr", name, func() error { return f.under.Removexattr(dirfd, name, attr) })
}
