package overlay

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// Base is the tree below a session, held by one descriptor. Where the process
// may (CAP_SYS_ADMIN in the user namespace that owns its mount namespace), the
// descriptor is a detached, recursive, read-only clone of the mount: nothing
// mounted later covers it, and no call through it can write
// (open_tree(2), mount_setattr(2)).
type Base struct {
	// Detached tells that the base is reached through a read-only mount of
	// its own. Otherwise the descriptor is an ordinary one, and the engine
	// merely never writes through it.
	Detached bool

	fs hostfs.FS
	fd int
	id HostID
}

// OpenBase opens the directory at path as a base. path is trusted: it is what
// a person named, and its symbolic links are followed.
func OpenBase(fs hostfs.FS, path string) (*Base, error) {
	if fs == nil {
		fs = hostfs.OS
	}
	fd, err := DetachBase(path)
	detached := err == nil
	if err != nil {
		fd, err = hostfs.OpenRoot(path)
	}
	if err != nil {
		return nil, fmt.Errorf("base %q: %w", path, err)
	}
	return NewBase(fs, fd, path, detached)
}

// NewBase takes over fd, a directory, as a base; path is for messages. detached
// says that fd came from [DetachBase], perhaps of another process.
func NewBase(fs hostfs.FS, fd int, path string, detached bool) (*Base, error) {
	if fs == nil {
		fs = hostfs.OS
	}
	b := &Base{fs: fs, Detached: detached}
	var st unix.Statx_t
	if err := fs.Stat(fd, "", &st); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("base %q: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("base %q: %w", path, unix.ENOTDIR)
	}
	b.fd, b.id = fd, hostID(&st)
	return b, nil
}

// FD is the base's directory, an O_PATH-like descriptor that stays the
// property of b. Review reads what the base has through it.
func (b *Base) FD() int { return b.fd }

// ID is the identity of the base's root directory.
func (b *Base) ID() HostID { return b.id }

// Close gives the descriptor back. A tree closes the base it was given.
func (b *Base) Close() error { return b.fs.Close(b.fd) }

// DetachBase makes a detached, recursive, read-only clone of the mount at path.
// It fails with EPERM for a process that may not mount.
func DetachBase(path string) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path,
		unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, err
	}
	attr := unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
		Propagation: unix.MS_PRIVATE,
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func hostID(st *unix.Statx_t) HostID {
	return HostID{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino}
}
