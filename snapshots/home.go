package snapshots

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// The directories of a store.
const (
	dirSessions = "sessions"
	dirTrash    = "trash"
	dirRun      = "run"
	storeLock   = "lock"
	// stagePrefix marks what is being made; a session's id has no dot.
	stagePrefix = ".new-"
)

// minFree is how much a new session or seal wants to find free. Below it the
// manifest itself might not fit, and a clear refusal is better than a session
// that fails at its first write.
const minFree = 4 << 20

// StoreOptions configures a Store; the zero value is the default.
type StoreOptions struct {
	// FS is the host; nil is hostfs.OS.
	FS hostfs.FS
	// Log gets what is worth knowing later; nil discards it.
	Log *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Store is the directory that holds all sessions of a user. It is safe for
// concurrent use, by several processes too.
type Store struct {
	fs   hostfs.FS
	log  *slog.Logger
	now  func() time.Time
	home string // absolute, without symbolic links
	dir  int    // descriptor of home
	id   overlay.HostID
	// lower has the images of a store that an import makes within another; -1
	// is dir.
	lower int
}

// DefaultHome is $GALLEY_HOME, else $XDG_STATE_HOME/galley, else
// ~/.local/state/galley (XDG Base Directory Specification, 0.8).
func DefaultHome() (string, error) {
	if h := os.Getenv("GALLEY_HOME"); h != "" {
		return filepath.Abs(h)
	}
	// The specification has relative paths ignored.
	if h := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(h) {
		return filepath.Join(h, "galley"), nil
	}
	h, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no place for sessions: %w; set GALLEY_HOME", err)
	}
	return filepath.Join(h, ".local", "state", "galley"), nil
}

// OpenStore opens the store at home and makes it, with mode 0700, where it is
// not there. The directory must belong to the effective user: sessions hold
// copies of private files.
func OpenStore(home string, opt StoreOptions) (*Store, error) {
	s := &Store{fs: opt.FS, log: opt.Log, now: opt.Now, dir: -1, lower: -1}
	if s.fs == nil {
		s.fs = hostfs.OS
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	abs, err := filepath.Abs(home)
	if err != nil {
		return nil, fmt.Errorf("state directory %q: %w", home, err)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w; set GALLEY_HOME to a directory you can write", err)
	}
	if s.home, err = filepath.EvalSymlinks(abs); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if s.dir, err = unix.Open(s.home, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("state directory %q: %w", s.home, err)
	}
	if err := s.prepare(); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("state directory %q: %w", s.home, err)
	}
	return s, nil
}

// prepare checks the store's directory and makes what is missing in it.
func (s *Store) prepare() error {
	var st unix.Statx_t
	if err := s.fs.Stat(s.dir, "", &st); err != nil {
		return err
	}
	if uid := os.Geteuid(); int(st.Uid) != uid {
		return fmt.Errorf("it belongs to user id %d and you are %d; set GALLEY_HOME to a directory of your own: %w",
			st.Uid, uid, unix.EPERM)
	}
	if st.Mode&0o077 != 0 {
		if err := s.fs.Chmod(s.dir, "", 0o700); err != nil {
			return fmt.Errorf("open to others (mode %04o), and it cannot be closed: %w", st.Mode&0o7777, err)
		}
	}
	s.id = overlay.HostID{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino}
	for _, name := range []string{dirSessions, dirTrash, dirRun} {
		err := s.fs.Mkdir(s.dir, name, 0o700)
		if err == unix.EEXIST {
			continue
		}
		if err != nil {
			return fmt.Errorf("make %q: %w", name, err)
		}
	}
	return nil
}

// Close releases the store. Sessions that were opened from it stay usable only
// as far as they are open already.
func (s *Store) Close() error {
	if s.dir < 0 {
		return nil
	}
	err := s.fs.Close(s.dir)
	s.dir = -1
	return err
}

// Home is the store's absolute path.
func (s *Store) Home() string { return s.home }

// HostID names the store's directory, for overlay.Config.Hide.
func (s *Store) HostID() overlay.HostID { return s.id }

// checkRoom fails with ENOSPC where the store's file system is all but full.
func (s *Store) checkRoom() error {
	var st unix.Statfs_t
	if err := s.fs.Statfs(s.dir, &st); err != nil {
		return fmt.Errorf("state directory %q: %w", s.home, err)
	}
	// File systems without a fixed size report none at all.
	free := st.Bavail * uint64(st.Bsize)
	if st.Blocks > 0 && free < minFree {
		return fmt.Errorf("state directory %q: %d KiB free, %d needed; free some space (galley gc, galley du) or set GALLEY_HOME: %w",
			s.home, free>>10, minFree>>10, unix.ENOSPC)
	}
	// The same holds for a number of inodes.
	if st.Files > 0 && st.Ffree < 64 {
		return fmt.Errorf("state directory %q: %d inodes free; free some files or set GALLEY_HOME: %w",
			s.home, st.Ffree, unix.ENOSPC)
	}
	return nil
}

// checkXattrs fails where the store's file system keeps neither of the xattrs
// that a layer may be written with.
func (s *Store) checkXattrs() error {
	const probe = ".probe"
	fd, err := s.fs.Open(s.dir, probe, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("state directory %q: make a file in it: %w", s.home, err)
	}
	defer s.fs.Close(fd)
	defer s.fs.Unlink(s.dir, probe, 0)
	var errs []error
	for _, attr := range []string{"trusted.overlay.galley", "user.overlay.galley"} {
		err := s.fs.Setxattr(fd, "", attr, []byte("y"), 0)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", attr, err))
	}
	return fmt.Errorf("state directory %q: its file system keeps no extended attributes, which layers need; set GALLEY_HOME to a directory on ext4, xfs, btrfs or a newer tmpfs: %w",
		s.home, errors.Join(errs...))
}
