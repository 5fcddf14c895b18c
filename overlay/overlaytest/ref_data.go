package overlaytest

import (
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// Chmod implements [FS].
func (r *Ref) Chmod(at Loc, mode uint32) error {
	n, err := r.find(at)
	if err != nil {
		return err
	}
	if n.kind() == unix.S_IFLNK {
		return syscall.EOPNOTSUPP
	}
	n.mode = n.kind() | mode&0o7777
	n.ownMeta = true
	return nil
}

// killPriv clears the set-id bits as a change by somebody without privilege
// does (setattr_should_drop_suidgid).
func (n *node) killPriv() {
	n.mode &^= unix.S_ISUID
	if n.mode&unix.S_IXGRP != 0 {
		n.mode &^= unix.S_ISGID
	}
}

// Chown implements [FS].
func (r *Ref) Chown(at Loc, uid, gid int) error {
	n, err := r.find(at)
	if err != nil {
		return err
	}
	if uid >= 0 {
		n.uid = uint32(uid)
	}
	if gid >= 0 {
		n.gid = uint32(gid)
	}
	if !n.isDir() && n.kind() != unix.S_IFLNK {
		n.killPriv()
	}
	n.ownMeta = true
	return nil
}

// Utimes implements [FS].
func (r *Ref) Utimes(at Loc, mtime overlay.Time) error {
	n, err := r.find(at)
	if err != nil {
		return err
	}
	n.mtime = stamp{at: &mtime}
	n.ownMeta = true
	return nil
}

func (r *Ref) regular(at Loc) (*node, error) {
	n, err := r.find(at)
	if err != nil {
		return nil, err
	}
	if n.isDir() {
		return nil, syscall.EISDIR
	}
	if !n.isReg() {
		return nil, syscall.EINVAL
	}
	return n, nil
}

// resize gives the file a size, which the caller owns already.
func (n *node) resize(size int64) {
	if size <= int64(len(n.data)) {
		n.data = n.data[:size]
		return
	}
	old := len(n.data)
	n.data = slices.Grow(n.data, int(size)-old)[:size]
	clear(n.data[old:])
}

// Truncate implements [FS].
func (r *Ref) Truncate(at Loc, size int64) error {
	n, err := r.regular(at)
	if err != nil {
		return err
	}
	if size < 0 {
		return syscall.EINVAL
	}
	same := size == int64(len(n.data))
	n.own()
	n.resize(size)
	if same {
		// ftruncate sets the time, truncate need not.
		n.mtime = stamp{}
	}
	return nil
}

// Read implements [FS].
func (r *Ref) Read(at Loc, p []byte, off int64) (int, error) {
	n, err := r.regular(at)
	if err != nil || off >= int64(len(n.data)) {
		return 0, err
	}
	return copy(p, n.data[off:]), nil
}

func (n *node) write(p []byte, off int64) int {
	if len(p) == 0 {
		return 0
	}
	n.own()
	if end := off + int64(len(p)); end > int64(len(n.data)) {
		n.resize(end)
	}
	return copy(n.data[off:], p)
}

// Write implements [FS].
func (r *Ref) Write(at Loc, p []byte, off int64) (int, error) {
	n, err := r.regular(at)
	if err != nil {
		return 0, err
	}
	return n.write(p, off), nil
}

// MapRead implements [FS].
func (r *Ref) MapRead(at Loc, p []byte, off int64) (int, error) { return r.Read(at, p, off) }

// MapWrite implements [FS]. Whether and when a store sets the time is the file
// system's own.
func (r *Ref) MapWrite(at Loc, p []byte, off int64) (int, error) {
	n, err := r.regular(at)
	if err != nil || off >= int64(len(n.data)) || len(p) == 0 {
		return 0, err
	}
	n.own()
	n.mtime = stamp{}
	return copy(n.data[off:], p), nil
}

// WriteKill implements [FS].
func (r *Ref) WriteKill(at Loc, p []byte, off int64) (int, error) {
	n, err := r.regular(at)
	if err != nil {
		return 0, err
	}
	if len(p) > 0 {
		n.killPriv()
	}
	return n.write(p, off), nil
}

// Append implements [FS].
func (r *Ref) Append(at Loc, p []byte) (int, error) {
	n, err := r.regular(at)
	if err != nil {
		return 0, err
	}
	return n.write(p, int64(len(n.data))), nil
}

// Fallocate implements [FS] for the modes that FUSE passes on: allocation,
// punching and zeroing.
func (r *Ref) Fallocate(at Loc, mode uint32, off, size int64) error {
	n, err := r.regular(at)
	if err != nil {
		return err
	}
	if off < 0 || size <= 0 {
		return syscall.EINVAL
	}
	n.own()
	end := off + size
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 && end > int64(len(n.data)) {
		n.resize(end)
	} else if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) == 0 {
		n.mtime = stamp{} // nothing that a reader sees changed
	}
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
		if off < int64(len(n.data)) {
			clear(n.data[off:min(end, int64(len(n.data)))])
		} else {
			n.mtime = stamp{}
		}
	}
	return nil
}

// Seek implements [FS] as a file system without holes does.
func (r *Ref) Seek(at Loc, off int64, whence int) (int64, error) {
	n, err := r.regular(at)
	switch {
	case err != nil:
		return 0, err
	case off < 0 || off >= int64(len(n.data)):
		return 0, syscall.ENXIO
	case whence == unix.SEEK_HOLE:
		return int64(len(n.data)), nil
	}
	return off, nil
}

// CopyRange implements [FS].
func (r *Ref) CopyRange(from Loc, fromOff int64, to Loc, toOff, size int64) (int64, error) {
	src, err := r.regular(from)
	if err != nil {
		return 0, err
	}
	dst, err := r.regular(to)
	if err != nil {
		return 0, err
	}
	size = max(0, min(size, int64(len(src.data))-fromOff))
	if src == dst && fromOff < toOff+size && toOff < fromOff+size {
		return 0, syscall.EINVAL
	}
	if size == 0 {
		return 0, nil
	}
	p := slices.Clone(src.data[fromOff : fromOff+size])
	return int64(dst.write(p, toOff)), nil
}

// Fsync implements [FS].
func (r *Ref) Fsync(at Loc) error {
	_, err := r.find(at)
	return err
}

// userXattr tells whether the node may carry user.* attributes: regular files
// and directories only (xattr_permission).
func (n *node) userXattr(name string) bool {
	return len(name) < 5 || name[:5] != "user." || n.isReg() || n.isDir()
}

// Getxattr implements [FS].
func (r *Ref) Getxattr(at Loc, name string) ([]byte, error) {
	n, err := r.find(at)
	if err != nil {
		return nil, err
	}
	v, ok := n.xattr[name]
	if !ok {
		return nil, syscall.ENODATA
	}
	return []byte(v), nil
}

// Listxattr implements [FS]; sorted.
func (r *Ref) Listxattr(at Loc) ([]string, error) {
	n, err := r.find(at)
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range n.xattr {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// Setxattr implements [FS].
func (r *Ref) Setxattr(at Loc, name string, val []byte, flags int) error {
	n, err := r.find(at)
	if err != nil {
		return err
	}
	if !n.userXattr(name) {
		return syscall.EPERM
	}
	_, ok := n.xattr[name]
	switch {
	case ok && flags&unix.XATTR_CREATE != 0:
		return syscall.EEXIST
	case !ok && flags&unix.XATTR_REPLACE != 0:
		return syscall.ENODATA
	}
	if n.xattr == nil {
		n.xattr = map[string]string{}
	}
	n.xattr[name] = string(val)
	n.ownMeta = true
	return nil
}

// Removexattr implements [FS].
func (r *Ref) Removexattr(at Loc, name string) error {
	n, err := r.find(at)
	if err != nil {
		return err
	}
	if !n.userXattr(name) {
		return syscall.EPERM
	}
	if _, ok := n.xattr[name]; !ok {
		return syscall.ENODATA
	}
	delete(n.xattr, name)
	n.ownMeta = true
	return nil
}
