package overlay

import (
	"crypto/sha256"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// copyFile makes a regular file in scratch with the source's content up to
// limit, holes kept; without content when metaOnly, but with its size. The
// descriptor is open for writing, and valid also with some errors.
func (t *Tree) copyFile(src *source, tmp string, metaOnly bool, limit int64) (int, *[32]byte, error) {
	fd, err := t.fs.Open(t.scratchFD, tmp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return -1, nil, err
	}
	if metaOnly {
		return fd, nil, t.fs.Truncate(fd, src.attr.Size)
	}
	if src.fd == nil || src.attr.Size == 0 {
		return fd, nil, nil
	}
	d, err := t.copyContent(fd, src.fd.fd, hostID(&src.st).Dev, src.attr.Size, limit)
	return fd, d, err
}

// copyContent fills dst from src, on device dev, by the cheapest means there
// is. It returns the digest of the content if all of it went through memory.
func (t *Tree) copyContent(dst, src int, dev uint64, size, limit int64) (*[32]byte, error) {
	if limit >= size {
		if t.clone(dst, src, dev) {
			return nil, nil
		}
		if size <= DigestLimit {
			return t.copySmall(dst, src, size)
		}
	}
	size = min(size, limit)
	if err := t.copyRanges(dst, src, size); err != nil {
		return nil, err
	}
	return nil, t.fs.Truncate(dst, size)
}

// clone shares the blocks of src, where the file systems do that: one that
// said no is not asked again.
func (t *Tree) clone(dst, src int, dev uint64) bool {
	if _, no := t.noClone.Load(dev); no {
		return false
	}
	err := t.fs.Clone(dst, src)
	if err == unix.EOPNOTSUPP || err == unix.EXDEV || err == unix.ENOTTY || err == unix.ENOSYS {
		t.noClone.Store(dev, true)
	}
	return err == nil
}

func (t *Tree) copySmall(dst, src int, size int64) (*[32]byte, error) {
	buf := make([]byte, size)
	n := 0
	for n < len(buf) {
		c, err := t.fs.Pread(src, buf[n:], int64(n))
		if err != nil {
			return nil, err
		}
		if c == 0 {
			break
		}
		n += c
	}
	buf = buf[:n]
	d := sha256.Sum256(buf)
	t.stats.copiedBytes.Add(uint64(n))
	if err := t.writeSparse(dst, buf); err != nil {
		return nil, err
	}
	return &d, nil
}

// writeSparse leaves holes for whole blocks of zeros, as the source may have
// had them.
func (t *Tree) writeSparse(dst int, buf []byte) error {
	const block = 4096
	if len(buf) <= block {
		return hostfs.WriteFull(t.fs, dst, buf, 0)
	}
	if err := t.fs.Truncate(dst, int64(len(buf))); err != nil {
		return err
	}
	for off := 0; off < len(buf); {
		end := off
		for end < len(buf) && !zero(buf[end:min(end+block, len(buf))]) {
			end = min(end+block, len(buf))
		}
		if end > off {
			if err := hostfs.WriteFull(t.fs, dst, buf[off:end], int64(off)); err != nil {
				return err
			}
		}
		off = end
		for off < len(buf) && zero(buf[off:min(off+block, len(buf))]) {
			off = min(off+block, len(buf))
		}
	}
	return nil
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// copyRanges copies the data of src below size, and leaves its holes.
func (t *Tree) copyRanges(dst, src int, size int64) error {
	for off := int64(0); off < size; {
		data, err := t.fs.Seek(src, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		}
		if err != nil {
			return err
		}
		hole, err := t.fs.Seek(src, data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := t.copyRange(dst, src, data, min(hole, size)); err != nil {
			return err
		}
		off = hole
	}
	return nil
}

func (t *Tree) copyRange(dst, src int, off, end int64) error {
	for off < end {
		n, err := t.fs.CopyRange(src, off, dst, off, int(min(end-off, 1<<30)))
		if err == unix.EXDEV || err == unix.EINVAL || err == unix.ENOSYS || err == unix.EOPNOTSUPP {
			return t.copyByHand(dst, src, off, end)
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return nil // the source was cut meanwhile; the check after the copy tells
		}
		t.stats.copiedBytes.Add(uint64(n))
		off += int64(n)
	}
	return nil
}

func (t *Tree) copyByHand(dst, src int, off, end int64) error {
	buf := make([]byte, min(end-off, 1<<20))
	for off < end {
		n, err := t.fs.Pread(src, buf[:min(int64(len(buf)), end-off)], off)
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		if err := hostfs.WriteFull(t.fs, dst, buf[:n], off); err != nil {
			return err
		}
		t.stats.copiedBytes.Add(uint64(n))
		off += int64(n)
	}
	return nil
}

func (t *Tree) copySpecial(src *source, n *Node, tmp string) error {
	if n.typ == unix.S_IFLNK {
		target, err := t.fs.Readlink(src.dir.fd, src.name)
		if err != nil {
			return err
		}
		return t.fs.Symlink(target, t.scratchFD, tmp)
	}
	if t.keep && isDevice(n.typ) {
		return t.fs.Mknod(t.scratchFD, tmp, unix.S_IFREG|0o600, 0)
	}
	return t.fs.Mknod(t.scratchFD, tmp, src.attr.Mode, src.attr.Rdev)
}

// copyMeta gives (dstDir, dst) the owner, mode, xattrs and times in a, and the
// xattrs of (srcDir, src), but for Galley's own.
func (t *Tree) copyMeta(srcDir int, src string, dstDir int, dst string, a *Attr) error {
	mode := a.Mode & 0o7777
	if t.keep {
		mode = payloadMode(a.Mode&unix.S_IFMT, mode)
	} else if err := t.fs.Chown(dstDir, dst, int(a.UID), int(a.GID)); err != nil && !t.ownerUnmapped(err) {
		return fmt.Errorf("set owner %d:%d: %w", a.UID, a.GID, err)
	}
	if !a.IsSymlink() {
		if err := t.fs.Chmod(dstDir, dst, mode); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if err := t.copyXattrs(srcDir, src, dstDir, dst); err != nil {
		return err
	}
	ts := [2]unix.Timespec{a.Atime.spec(), a.Mtime.spec()}
	if err := t.fs.Utimes(dstDir, dst, &ts); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// ownerUnmapped tells that the owner cannot be stored by this user. A layer of
// an ordinary user then has the user as owner: all that they could have done
// to the file natively, in a directory of theirs, is to replace it.
func (t *Tree) ownerUnmapped(err error) bool {
	return err == unix.EINVAL || err == unix.EPERM
}

func (t *Tree) copyXattrs(srcDir int, src string, dstDir int, dst string) error {
	names, err := t.listXattrs(srcDir, src)
	if err != nil {
		return err
	}
	for _, name := range names {
		if t.keep && keptXattr(name) {
			continue // beside it: see kept
		}
		val, err := t.getXattr(srcDir, src, name)
		if err == unix.ENODATA || err == unix.EPERM || err == unix.EACCES {
			continue
		}
		if err != nil {
			return fmt.Errorf("read xattr %s: %w", name, err)
		}
		err = t.fs.Setxattr(dstDir, dst, name, val, 0)
		// What this user may not set, or the file system does not have,
		// overlayfs leaves out as well (security labels, above all).
		if err != nil && err != unix.EPERM && err != unix.EOPNOTSUPP {
			return fmt.Errorf("copy xattr %s: %w", name, err)
		}
	}
	return nil
}
