package local

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/fsmount"
)

// The calls of Linux 5.2 and 5.12 that make, copy and place mounts by
// descriptor. No path of the host or of a view is ever joined and walked as a
// string: places are opened beneath the new root first.

// attrs is what a mount of the host gets in the sandbox.
const hostAttrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

func newTmpfs(mode string) (int, error) {
	return fsmount.New("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV,
		fsmount.Option{"source", "galley"}, fsmount.Option{"mode", mode})
}

// cloneTree copies the mount at name, relative to dir, and with recursive those
// beneath it. A final symbolic link is not followed.
func cloneTree(dir int, name string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(dir, name, flags)
	if err != nil {
		return -1, &os.PathError{Op: "copy the mount of", Path: name, Err: err}
	}
	return fd, nil
}

// restrictMount adds attrs to the detached mount fd and all beneath it.
func restrictMount(fd int, attrs uint64) error {
	err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attrs})
	if err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

// hostTree copies the host's mounts at name for the sandbox: all of it
// read-only, without devices and set-user-ID.
func hostTree(dir int, name string) (int, error) {
	fd, err := cloneTree(dir, name, true)
	if err != nil {
		return -1, err
	}
	if err := restrictMount(fd, hostAttrs); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("make %s read-only: %w", name, err)
	}
	return fd, nil
}

// A root is the root directory of the sandbox while it is built.
type root struct{ fd int }

// lookup opens what stands at the absolute path p in the new root, for its
// place only. A symbolic link on the way is an error (ELOOP): who names a place
// for a mount means that very place.
func (r root) lookup(p string) (int, error) {
	fd, err := unix.Openat2(r.fd, relative(p), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: p, Err: err}
	}
	return fd, nil
}

// lookupFollowing is lookup that follows symbolic links, inside the new root.
func (r root) lookupFollowing(p string) (int, error) {
	fd, err := unix.Openat2(r.fd, relative(p), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: p, Err: err}
	}
	return fd, nil
}

// makeDir returns the directory at p, which it makes, with its parents, where
// the sandbox has a writable file system of its own there.
func (r root) makeDir(p string) (int, error) {
	fd, err := r.lookup(p)
	if !errors.Is(err, unix.ENOENT) || p == "/" {
		return fd, err
	}
	parent, err := r.makeDir(path.Dir(p))
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	if err := unix.Mkdirat(parent, path.Base(p), 0o755); err != nil {
		return -1, &os.PathError{Op: "mkdir", Path: p, Err: err}
	}
	return r.lookup(p)
}

// makeFile is makeDir for an empty regular file that a file is mounted over.
func (r root) makeFile(p string) (int, error) {
	fd, err := r.lookup(p)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	parent, err := r.makeDir(path.Dir(p))
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	fd, err = unix.Openat(parent, path.Base(p), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, &os.PathError{Op: "create", Path: p, Err: err}
	}
	_ = unix.Close(fd)
	return r.lookup(p)
}

// mountAt places the detached mount fd on the directory p, which is made where
// that is possible.
func (r root) mountAt(fd int, p string) error {
	target, err := r.makeDir(p)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	if err := fsmount.Place(fd, target); err != nil {
		return fmt.Errorf("mount at %s: %w", p, err)
	}
	return nil
}

// mountFileAt is mountAt for a mount whose root is not a directory.
func (r root) mountFileAt(fd int, p string) error {
	target, err := r.makeFile(p)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	if err := fsmount.Place(fd, target); err != nil {
		return fmt.Errorf("mount at %s: %w", p, err)
	}
	return nil
}

// tmpfsAt makes an empty file system in memory at p, with the given mode in
// octal digits.
func (r root) tmpfsAt(p, mode string) error {
	fd, err := newTmpfs(mode)
	if err != nil {
		return err
	}
	return r.mountAt(fd, p)
}

// relative is the absolute path p as openat2 wants it beneath a descriptor.
func relative(p string) string {
	if p = strings.TrimLeft(p, "/"); p == "" {
		return "."
	}
	return p
}

func fileType(fd int) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	return st.Mode & unix.S_IFMT, nil
}
