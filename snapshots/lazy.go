package snapshots

import (
	"bytes"
	"fmt"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// An automatic checkpoint does not wait for the disk: its manifest is renamed
// into place before it is written out. Two things make that safe. The last
// manifest that is on the disk keeps a second name until another one is, for a
// file system may keep the rename and lose the content. And what a program
// syncs in a view must not be lost for want of the manifest that names its
// layer: the first fsync after such a checkpoint writes out the manifest too.

// manifestKept is that second name.
const manifestKept = "manifest.kept"

// keptBefore tells whether a process that had the session open before may have
// left a manifest that is not on the disk yet.
func (l *Live) keptBefore() bool {
	var st unix.Statx_t
	return l.fs().Stat(l.held.dir, manifestKept, &st) == nil
}

// lazyState tells whether the manifest may not be on the disk yet. Its lock is a
// leaf, and not held while anything is waited for.
type lazyState struct {
	mu        sync.Mutex
	lazy      bool
	replacing bool   // a lazy one is about to be renamed into place
	version   uint64 // of the manifest
}

// manifestWritten notes that the manifest is on the disk.
//
// Preconditions: sem is held.
func (l *Live) manifestWritten() {
	l.lazy.mu.Lock()
	defer l.lazy.mu.Unlock()
	l.lazy.version++
	l.dropKept()
}

// dropKept removes the second name.
//
// Preconditions: lazy.mu is held.
func (l *Live) dropKept() {
	if l.lazy.lazy {
		l.lazy.lazy = false
		// One that stays does no harm while the first name holds.
		_ = l.fs().Unlink(l.held.dir, manifestKept, 0)
	}
}

// keepManifest gives the manifest a second name, if it is on the disk and has
// none yet. A lazy manifest may be renamed into place after it, of which
// keptManifestDone tells.
//
// Preconditions: sem is held.
func (l *Live) keepManifest() error {
	l.lazy.mu.Lock()
	defer l.lazy.mu.Unlock()
	if !l.lazy.lazy {
		fs, dir := l.fs(), l.held.dir
		err := fs.Unlink(dir, manifestKept, 0)
		if err == nil || err == unix.ENOENT {
			err = fs.Link(dir, manifestFile, dir, manifestKept)
		}
		if err != nil {
			return fmt.Errorf("keep %s: %w", manifestFile, err)
		}
	}
	l.lazy.lazy, l.lazy.replacing = true, true
	return nil
}

func (l *Live) keptManifestDone() {
	l.lazy.mu.Lock()
	defer l.lazy.mu.Unlock()
	l.lazy.replacing = false
	l.lazy.version++
}

// syncManifest writes out the manifest, if that was not done yet: for those who
// have just synced something in a layer that it names.
func (l *Live) syncManifest() error {
	l.lazy.mu.Lock()
	lazy, version := l.lazy.lazy, l.lazy.version
	l.lazy.mu.Unlock()
	if !lazy {
		return nil
	}
	fs, dir := l.fs(), l.held.dir
	for _, name := range []string{manifestFile, historyFile} {
		fd, err := fs.Open(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err == unix.ENOENT {
			continue
		}
		if err == nil {
			err = fs.Fsync(fd)
			_ = fs.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("session %s: sync %s: %w", l.held.id, name, err)
		}
	}
	if err := fs.Fsync(dir); err != nil {
		return fmt.Errorf("session %s: sync its directory: %w", l.held.id, err)
	}
	l.lazy.mu.Lock()
	defer l.lazy.mu.Unlock()
	if l.lazy.version == version && !l.lazy.replacing {
		l.dropKept()
	}
	return nil
}

// keptManifest reads the manifest that was kept, where what stands in its place
// is what a power cut leaves of a file that was not written out: nothing, or
// zeros.
func keptManifest(fs hostfs.FS, dir int, path string, found []byte) (*manifest, error) {
	if len(bytes.Trim(found, "\x00")) > 0 {
		return nil, overlay.ErrCorrupt
	}
	b, err := hostfs.ReadFile(fs, dir, manifestKept, manifestLimit)
	if err != nil {
		return nil, err
	}
	m, err := decodeManifest(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(path, manifestKept), err)
	}
	return m, nil
}
