package jail

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/fsmount"
)

// rootSize bounds the file system in memory that carries the places of what is
// seen; it has no content of its own.
const rootSize = "4m"

// makeRoot makes a root of what w names, and enters it. The host is out of
// reach afterwards.
func makeRoot(w work) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	umask := unix.Umask(0)
	defer unix.Umask(umask)
	// All of the host is looked up before anything covers it, and before an
	// owner of files is root of its own.
	h, err := w.openHost()
	if err != nil {
		return err
	}
	if w.Owners {
		if err := becomeOwner(); err != nil {
			return err
		}
	}
	root, err := newMemory(rootSize, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return err
	}
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("make a file system in memory: %w", err)
	}
	if err := w.furnish(root, h); err != nil {
		return err
	}
	return enter(root)
}

// newMemory makes a file system in memory that stands nowhere yet.
func newMemory(size string, attrs int) (int, error) {
	fd, err := fsmount.New("tmpfs", attrs, fsmount.Option{"source", "galley"}, fsmount.Option{"mode", "0755"}, fsmount.Option{"size", size})
	if err != nil {
		return -1, fmt.Errorf("make a file system in memory: %w", err)
	}
	return fd, nil
}

// placeBind puts tree, which it closes, at its place below root.
func placeBind(root, tree int, b Bind) error {
	defer unix.Close(tree)
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	attr := uint64(unix.MOUNT_ATTR_NOSUID)
	if !b.Write {
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		attr |= unix.MOUNT_ATTR_NODEV
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attr}); err != nil {
		return fmt.Errorf("restrict: %w", err)
	}
	target, err := makePlace(root, b.Inside, st.Mode&unix.S_IFMT == unix.S_IFDIR)
	if err != nil {
		return fmt.Errorf("make %s: %w", b.Inside, err)
	}
	defer unix.Close(target)
	return unix.MoveMount(tree, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// makePlace makes the directory or empty file p below root with its parents,
// and opens it.
func makePlace(root int, p string, dir bool) (int, error) {
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
		return -1, errors.New("not an absolute path below /")
	}
	names := strings.Split(p[1:], "/")
	at, err := unix.Openat(root, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for i, name := range names {
		if err != nil {
			return -1, err
		}
		up := at
		flags := unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
		if i < len(names)-1 || dir {
			err = unix.Mkdirat(up, name, 0o755)
			flags |= unix.O_DIRECTORY
		} else {
			err = unix.Mknodat(up, name, unix.S_IFREG|0o444, 0)
		}
		if err == nil || errors.Is(err, unix.EEXIST) {
			at, err = unix.Openat(up, name, flags, 0)
		}
		_ = unix.Close(up)
	}
	return at, err
}

// enter makes root the root, lets go of the host's and makes it read-only.
func enter(root int) error {
	if err := unix.Fchdir(root); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the host's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := unix.MountSetattr(root, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	return unix.Close(root)
}
