package commit

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// touched collects the directories and nodes that steps changed, to make them
// durable at the end. They are held by descriptors, since their paths may change
// meanwhile; where there are many on one file system, one syncfs(2) does for all.
type touched struct {
	fs   hostfs.FS
	seen map[touchKey]struct{}
	devs map[uint64]*touchedDev
}

// touchKey names a directory as long as no directory moves.
type touchKey struct {
	area, gen int
	dir       string
}

// touchedDev is what was touched on one device.
type touchedDev struct {
	fds  []int
	bulk bool // sync the whole file system; fds has one at most
	// syncfs: that is possible.
	syncfs bool
}

func newTouched(fs hostfs.FS) *touched {
	return &touched{fs: fs, seen: map[touchKey]struct{}{}, devs: map[uint64]*touchedDev{}}
}

// dir adds the directory behind a descriptor (O_PATH will do).
func (t *touched) dir(k touchKey, fd int) error {
	if _, ok := t.seen[k]; ok {
		return nil
	}
	var st unix.Statx_t
	if err := t.fs.Stat(fd, "", &st); err != nil {
		return err
	}
	if err := t.add(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, &st); err != nil {
		return err
	}
	t.seen[k] = struct{}{}
	return nil
}

// whole adds the whole file system of a directory, where one call can sync it.
func (t *touched) whole(k touchKey, fd int) error {
	if err := t.dir(k, fd); err != nil {
		return err
	}
	for _, d := range t.devs {
		d.bulk = d.bulk || d.syncfs
	}
	return nil
}

// node adds a node whose metadata changes.
func (t *touched) node(dirfd int, name string, st *unix.Statx_t) error {
	if name == "" {
		name = "."
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
		return t.add(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, st)
	}
	// A link or a special file cannot be synced by itself; its directory's
	// sync writes the same journal.
	return t.add(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY, st)
}

func (t *touched) add(dirfd int, name string, flags int, st *unix.Statx_t) error {
	dev := unix.Mkdev(st.Dev_major, st.Dev_minor)
	d := t.devs[dev]
	if d == nil {
		var fst unix.Statfs_t
		if err := t.fs.Statfs(dirfd, &fst); err != nil {
			return err
		}
		d = &touchedDev{syncfs: reachesDisk(int64(fst.Type))}
		t.devs[dev] = d
	}
	if d.bulk && len(d.fds) > 0 {
		return nil
	}
	fd, err := t.fs.Open(dirfd, name, flags, 0)
	if err == unix.EACCES && d.syncfs {
		// Not readable by its owner: the file system as a whole is synced,
		// by another descriptor.
		d.bulk = true
		return nil
	}
	if err != nil {
		return err
	}
	d.fds = append(d.fds, fd)
	if len(d.fds) <= manyFiles {
		return nil
	}
	if d.syncfs {
		d.bulk = true
		t.closeAll(d.fds[1:])
		d.fds = d.fds[:1]
		return nil
	}
	// It will be synced again if it is touched again, so it can go now.
	oldest := d.fds[0]
	d.fds = d.fds[1:]
	clear(t.seen)
	err = t.fs.Fsync(oldest)
	_ = t.fs.Close(oldest)
	return err
}

// sync makes everything touched durable. It may be called again after more was
// touched.
func (t *touched) sync() error {
	for _, d := range t.devs {
		if d.bulk && len(d.fds) == 0 {
			return fmt.Errorf("sync directories that cannot be read: %w", unix.EACCES)
		}
		if d.bulk {
			if err := t.fs.Syncfs(d.fds[0]); err != nil {
				return fmt.Errorf("sync the file system: %w", err)
			}
			continue
		}
		for _, fd := range d.fds {
			if err := t.fs.Fsync(fd); err != nil {
				return fmt.Errorf("sync a changed directory: %w", err)
			}
		}
	}
	return nil
}

func (t *touched) close() {
	for _, d := range t.devs {
		t.closeAll(d.fds)
		d.fds = nil
	}
}

func (t *touched) closeAll(fds []int) {
	for _, fd := range fds {
		_ = t.fs.Close(fd)
	}
}
