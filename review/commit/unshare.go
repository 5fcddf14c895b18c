package commit

import (
	"context"
	"crypto/sha256"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// unshareName is where a copy is made before it takes the place of a file. No
// slot of a stage has a name like it.
const unshareName = ".unshare"

// unshare gives each file in a kept stage that has further names elsewhere a
// node of its own: a later write through one of those would otherwise change what
// was kept as well, and the name that stays would count one more than it has.
func unshare(fs hostfs.FS, dirfd int) error {
	var names []string
	err := hostfs.ReadDir(fs, dirfd, func(d hostfs.Dirent) error {
		if d.Type == unix.DT_REG || d.Type == unix.DT_DIR || d.Type == unix.DT_UNKNOWN {
			names = append(names, d.Name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Statx_t
		if err := fs.Stat(dirfd, name, &st); err != nil {
			return err
		}
		switch f := factsOf(&st); {
		case f.isDir():
			err = unshareDir(fs, dirfd, name, f.Mode)
		case f.Mode&unix.S_IFMT == unix.S_IFREG && f.Nlink > 1:
			err = ownCopy(fs, dirfd, name, &st)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	return nil
}

// unshareDir goes into a directory, also into one that its owner may not
// read or write.
func unshareDir(fs hostfs.FS, dirfd int, name string, mode uint32) error {
	if needsUnlock(mode) {
		if err := fs.Chmod(dirfd, name, permissions(mode)|0o700); err != nil {
			return err
		}
		defer func() { _ = fs.Chmod(dirfd, name, permissions(mode)) }()
	}
	fd, err := fs.Open(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer fs.Close(fd)
	return unshare(fs, fd)
}

// ownCopy replaces (dirfd, name) by a copy that is equal in all but its links.
func ownCopy(fs hostfs.FS, dirfd int, name string, st *unix.Statx_t) error {
	src, err := fs.Open(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer fs.Close(src)
	if err := fs.Unlink(dirfd, unshareName, 0); err != nil && err != unix.ENOENT {
		return err
	}
	dst, err := fs.Open(dirfd, unshareName, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer fs.Close(dst)
	err = fillCopy(fs, dst, src, st)
	if err == nil {
		err = fs.Rename(dirfd, unshareName, dirfd, name, 0)
	}
	if err != nil {
		_ = fs.Unlink(dirfd, unshareName, 0)
	}
	return err
}

func fillCopy(fs hostfs.FS, dst, src int, st *unix.Statx_t) error {
	if fs.Clone(dst, src) != nil {
		j := &job{fs: fs}
		if _, err := j.copyData(context.Background(), src, dst, int64(st.Size), sha256.New()); err != nil {
			return err
		}
	}
	if err := copyXattrs(fs, dst, src); err != nil {
		return err
	}
	if err := fs.Chown(dst, "", int(st.Uid), int(st.Gid)); err != nil && err != unix.EPERM && err != unix.EINVAL {
		return err
	}
	if err := fs.Chmod(dst, "", permissions(uint32(st.Mode))); err != nil {
		return err
	}
	return fs.Utimes(dst, "", timespecs(factsOf(st).Mtime))
}

// copyXattrs copies what this user may read and set.
func copyXattrs(fs hostfs.FS, dst, src int) error {
	names, err := hostfs.ListXattrs(fs, src, "")
	if err != nil {
		return err
	}
	for _, name := range names {
		val, err := hostfs.GetXattr(fs, src, "", name)
		if err == nil {
			err = fs.Setxattr(dst, "", name, val, 0)
		}
		if err != nil && err != unix.ENODATA && err != unix.EPERM && err != unix.EACCES && err != unix.EOPNOTSUPP {
			return fmt.Errorf("copy its extended attribute %q: %w", name, err)
		}
	}
	return nil
}
