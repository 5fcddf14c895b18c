package snapshots

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// Locks are open file description locks (fcntl(2), F_OFD_SETLK): like flock(2)
// they belong to the open file and go with the last descriptor of it, however
// the process ends, and unlike flock(2) they can be asked about without being
// taken, so that looking at a session never makes an opener fail.

func wholeFile(typ int16) unix.Flock_t { return unix.Flock_t{Type: typ, Whence: unix.SEEK_SET} }

// openLock opens (and makes) a lock file.
func openLock(fs hostfs.FS, dir int, name string) (int, error) {
	return fs.Open(dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
}

// tryLock takes the lock of fd, or fails with EAGAIN.
func tryLock(fd int) error {
	lk := wholeFile(unix.F_WRLCK)
	err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lk)
	if err == unix.EACCES {
		return unix.EAGAIN
	}
	return err
}

// waitLock takes the lock of fd as soon as it is free.
func waitLock(fd int) error {
	for {
		lk := wholeFile(unix.F_WRLCK)
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLKW, &lk); err != unix.EINTR {
			return err
		}
	}
}

// lockHeld tells whether anybody has the lock of fd.
func lockHeld(fd int) (bool, error) {
	lk := wholeFile(unix.F_WRLCK)
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lk); err != nil {
		return false, err
	}
	return lk.Type != unix.F_UNLCK, nil
}

// writePID notes who holds a lock, for messages only.
func writePID(fs hostfs.FS, fd, pid int) {
	if fs.Truncate(fd, 0) == nil {
		_, _ = fs.Pwrite(fd, []byte(strconv.Itoa(pid)+"\n"), 0)
	}
}

// readPID is the process that noted itself in a lock file, or 0.
func readPID(fs hostfs.FS, fd int) int {
	buf := make([]byte, 32)
	n, err := fs.Pread(fd, buf, 0)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil || pid <= 0 {
		return 0
	}
	return pid
}

// locked runs fn while this process alone makes, renames, removes or collects
// sessions. Work within sessions goes on meanwhile.
func (s *Store) locked(fn func() error) error {
	fd, err := openLock(s.fs, s.dir, storeLock)
	if err != nil {
		return fmt.Errorf("state directory %q: open its lock: %w", s.home, err)
	}
	defer s.fs.Close(fd)
	if err := waitLock(fd); err != nil {
		return fmt.Errorf("state directory %q: lock: %w", s.home, err)
	}
	return fn()
}
