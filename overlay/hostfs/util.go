package hostfs

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"
)

// Dirent is one entry of a directory as getdents64(2) reports it.
type Dirent struct {
	Name string
	Ino  uint64
	Type uint8 // DT_*; DT_UNKNOWN where the file system does not tell
}

// ReadDir calls fn for every entry of the directory dirfd except "." and "..",
// until fn returns an error. dirfd must not be an O_PATH descriptor; it is
// rewound first. A name is valid beyond the call.
func ReadDir(fs FS, dirfd int, fn func(Dirent) error) error {
	if _, err := fs.Seek(dirfd, 0, unix.SEEK_SET); err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := fs.Getdents(dirfd, buf)
		if err != nil || n <= 0 {
			return err
		}
		for b := buf[:n]; len(b) >= 19; {
			reclen := int(binary.NativeEndian.Uint16(b[16:]))
			if reclen < 19 || reclen > len(b) {
				return unix.EIO
			}
			name := b[19:reclen]
			if i := strings.IndexByte(string(name), 0); i >= 0 {
				name = name[:i]
			}
			d := Dirent{Name: string(name), Ino: binary.NativeEndian.Uint64(b), Type: b[18]}
			b = b[reclen:]
			if d.Name == "." || d.Name == ".." {
				continue
			}
			if err := fn(d); err != nil {
				return err
			}
		}
	}
}

// OpenDeep opens a slash-separated relative path of any length beneath dirfd,
// by steps that each stay under PATH_MAX. An empty path opens dirfd itself.
func OpenDeep(fs FS, dirfd int, path string, flags int) (int, error) {
	const step = 3000
	cur, owned := dirfd, false
	for len(path) > step {
		cut := strings.LastIndexByte(path[:step], '/')
		if cut <= 0 {
			break
		}
		fd, err := fs.Open(cur, path[:cut], unix.O_PATH|unix.O_DIRECTORY, 0)
		if owned {
			_ = fs.Close(cur)
		}
		if err != nil {
			return -1, err
		}
		cur, owned, path = fd, true, path[cut+1:]
	}
	fd, err := fs.Open(cur, path, flags, 0)
	if owned {
		_ = fs.Close(cur)
	}
	return fd, err
}

// RemoveAll removes name beneath dirfd and everything under it, following no
// link and leaving no file system. A name that is not there is no error.
func RemoveAll(fs FS, dirfd int, name string) error {
	err := fs.Unlink(dirfd, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	fd, oerr := fs.Open(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if oerr == unix.EACCES {
		// A directory without permission for its owner, as a test suite
		// or a build may leave it.
		if fs.Chmod(dirfd, name, 0o700) == nil {
			fd, oerr = fs.Open(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		}
	}
	if oerr != nil {
		if oerr == unix.ENOTDIR {
			return err
		}
		return oerr
	}
	defer fs.Close(fd)
	var names []string
	if err := ReadDir(fs, fd, func(d Dirent) error { names = append(names, d.Name); return nil }); err != nil {
		return err
	}
	_ = fs.Chmod(fd, "", 0o700)
	for _, n := range names {
		if err := RemoveAll(fs, fd, n); err != nil {
			return err
		}
	}
	err = fs.Unlink(dirfd, name, unix.AT_REMOVEDIR)
	if err == unix.ENOENT {
		return nil
	}
	return err
}

// WriteFull writes all of p at off, continuing after short writes.
func WriteFull(fs FS, fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := fs.Pwrite(fd, p, off)
		if err != nil {
			return err
		}
		if n == 0 {
			return unix.EIO
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// ReadFile reads a whole regular file of at most limit bytes beneath dirfd;
// a larger one fails with EFBIG.
func ReadFile(fs FS, dirfd int, name string, limit int64) ([]byte, error) {
	fd, err := fs.Open(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer fs.Close(fd)
	var st unix.Statx_t
	if err := fs.Stat(fd, "", &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, unix.EINVAL
	}
	if int64(st.Size) > limit {
		return nil, unix.EFBIG
	}
	out := make([]byte, 0, st.Size+1)
	for {
		if len(out) == cap(out) {
			out = append(out, 0)[:len(out)]
		}
		n, err := fs.Pread(fd, out[len(out):cap(out)], int64(len(out)))
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return out, nil
		}
		out = out[:len(out)+n]
		if int64(len(out)) > limit {
			return nil, unix.EFBIG
		}
	}
}

// ListXattrs is the names of all xattrs of (dirfd, name) that the caller may
// see; none where the file system has no xattrs.
func ListXattrs(fs FS, dirfd int, name string) ([]string, error) {
	list, err := grow(func(buf []byte) (int, error) { return fs.Listxattr(dirfd, name, buf) })
	if err == unix.EOPNOTSUPP {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return strings.FieldsFunc(string(list), func(r rune) bool { return r == 0 }), nil
}

// GetXattr is the whole value of one xattr of (dirfd, name).
func GetXattr(fs FS, dirfd int, name, attr string) ([]byte, error) {
	return grow(func(buf []byte) (int, error) { return fs.Getxattr(dirfd, name, attr, buf) })
}

// grow repeats an xattr call with a larger buffer until the value fits.
func grow(call func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := call(buf)
		if err == unix.ERANGE && size < 1<<20 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n:n], nil
	}
}

// OpenRoot opens a directory that a person named, with the links in its path
// followed, as the place beneath which everything else is reached. It is the
// one call that takes a path.
func OpenRoot(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
