package agent

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/fsmount"
)

// cloneTree copies the mount at p, with those beneath it.
func cloneTree(p string) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, p, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return -1, &os.PathError{Op: "copy the mount of", Path: p, Err: err}
	}
	return fd, nil
}

// lookup opens what stands at the absolute path p, for its place only. A
// symbolic link on the way is an error (ELOOP): who names a place for a mount
// means that very place.
func lookup(p string) (int, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, p, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: p, Err: err}
	}
	return fd, nil
}

// makeDir opens the directory at p, which it makes, with its parents, where it
// is missing.
func makeDir(p string) (int, error) {
	fd, err := lookup(p)
	if !errors.Is(err, unix.ENOENT) || p == "/" {
		return fd, err
	}
	parent, err := makeDir(path.Dir(p))
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	if err := unix.Mkdirat(parent, path.Base(p), 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, &os.PathError{Op: "mkdir", Path: p, Err: err}
	}
	return lookup(p)
}

// mountAt places the detached mount fd on the directory p.
func mountAt(fd int, p string) error {
	target, err := makeDir(p)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	if err := fsmount.Place(fd, target); err != nil {
		return fmt.Errorf("mount at %s: %w", p, err)
	}
	return nil
}

// newMountAt is [fsmount.New] and mountAt.
func newMountAt(p, fstype string, attrs int, options ...fsmount.Option) error {
	fd, err := fsmount.New(fstype, attrs, append([]fsmount.Option{{"source", fstype}}, options...)...)
	if err != nil {
		return err
	}
	return mountAt(fd, p)
}

// freePlace opens the directory p that a mount is to cover, and makes it where
// it is missing.
func freePlace(p string) (int, error) {
	target, err := makeDir(p)
	if err != nil {
		return -1, err
	}
	if err := fsmount.CheckFree(target, p); err != nil {
		_ = unix.Close(target)
		return -1, err
	}
	return target, nil
}

// beneath reports whether p is dir or lies in it.
func beneath(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// checkPlace refuses where nothing may be mounted.
func checkPlace(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
		return fmt.Errorf("%q: expected the absolute path of a directory below /: %w", p, unix.EINVAL)
	}
	for _, own := range []string{"/proc", "/sys", "/dev"} {
		if beneath(p, own) {
			return fmt.Errorf("nothing is mounted in %s: %w", own, unix.EPERM)
		}
	}
	return nil
}
