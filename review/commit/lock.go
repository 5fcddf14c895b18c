package commit

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// lockBases takes the lock of every base, which is the first n areas. A lock is
// an flock(2) of a file outside the tree that is named after the base's device
// and inode, so that it is one lock whatever path led to the base; the kernel
// drops it with the process. The files stay: removing one that another process
// has just opened would make two locks of one.
func lockBases(fs hostfs.FS, dir string, pl *places, n int) (unlock func(), err error) {
	if dir == "" {
		return nil, errors.New("commit: no directory for locks given")
	}
	if err := makeHostDir(fs, dir); err != nil {
		return nil, fmt.Errorf("make the directory for locks %q: %w", dir, err)
	}
	dirfd, err := openHostDir(fs, dir)
	if err != nil {
		return nil, fmt.Errorf("open the directory for locks %q: %w", dir, err)
	}
	defer fs.Close(dirfd)
	var held []int
	unlock = func() {
		for _, fd := range held {
			_ = fs.Close(fd)
		}
	}
	for i := range n {
		if pl.roots[i] < 0 {
			continue
		}
		name := fmt.Sprintf("base-%x-%d.lock", pl.devs[i], pl.areas[i].Ino)
		fd, err := fs.Open(dirfd, name, unix.O_CREAT|unix.O_RDWR|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			unlock()
			return nil, fmt.Errorf("open the lock %q: %w", name, err)
		}
		held = append(held, fd)
		if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			unlock()
			if err == unix.EWOULDBLOCK {
				return nil, fmt.Errorf("%w: wait for it to end and try again", ErrLocked)
			}
			return nil, fmt.Errorf("lock %q: %w", name, err)
		}
	}
	return unlock, nil
}

// makeHostDir makes a directory, whose parent must be there, unless it is there.
func makeHostDir(fs hostfs.FS, path string) error {
	parent, name := filepath.Split(filepath.Clean(path))
	fd, err := openHostDir(fs, parent)
	if err != nil {
		return err
	}
	defer fs.Close(fd)
	if err := fs.Mkdir(fd, name, 0o700); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}
