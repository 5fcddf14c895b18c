package overlay

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// Quota bounds the content that the layers of one or more trees hold: the
// blocks of their regular files, sealed and active, as du(1) counts them. What
// would take more fails with ENOSPC, as on a full disk. A clone counts in full.
//
// What a file system adds by itself when it writes out (blocks of an index) is
// not seen until the file changes again.
//
// The count costs the same however much there is: what an operation adds or
// frees is the difference of two looks at the one file that it changes. These
// are made with the node's lock held (Node.up), which only content that grows
// or shrinks waits for, as it does in the kernel.
type Quota struct {
	limit int64
	used  atomic.Int64
}

// NewQuota allows limit bytes, of which used are taken.
func NewQuota(limit, used int64) *Quota {
	q := &Quota{limit: limit}
	q.used.Store(used)
	return q
}

// Used is how many bytes are taken.
func (q *Quota) Used() int64 { return q.used.Load() }

// Limit is how many bytes there may be.
func (q *Quota) Limit() int64 { return q.limit }

// Add counts bytes that came or went (negative) other than through a face of a
// tree: a layer that was merged or removed.
func (q *Quota) Add(n int64) {
	if q != nil {
		q.used.Add(n)
	}
}

// room is how many bytes more there may be.
func (q *Quota) room() int64 { return max(0, q.limit-q.used.Load()) }

// admit fails where n more bytes are too many.
func (q *Quota) admit(n int64) error {
	if q != nil && n > 0 && n > q.room() {
		return unix.ENOSPC
	}
	return nil
}

// quotaBlock is what content is counted in.
const quotaBlock = 4096

func roundUp(n int64) int64 { return (n + quotaBlock - 1) &^ (quotaBlock - 1) }

// contentBytes is what a file counts for: its blocks, but not more than its size
// needs, for some file systems allocate ahead of a writer.
func contentBytes(st *unix.Statx_t) int64 {
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0
	}
	return min(int64(st.Blocks)*512, roundUp(int64(st.Size)))
}

// grows is the most that writing n bytes at off can add to a file.
func grows(st *unix.Statx_t, off, n int64) int64 {
	whole := roundUp(max(off+n, int64(st.Size))) - contentBytes(st)
	return max(0, min(whole, roundUp(n)+quotaBlock))
}

// metered changes the content of a file, or its attributes, and counts what came and went. grow is
// asked, with a look at the file, how many bytes the change may add.
//
// Preconditions: with a quota, the node's up is held, or it takes no content in
// place.
func (t *Tree) metered(dir int, name string, grow func(st *unix.Statx_t) int64, do func() error) error {
	q := t.cfg.Quota
	if q == nil {
		return do()
	}
	var before, after unix.Statx_t
	if err := t.fs.Stat(dir, name, &before); err != nil {
		return err
	}
	if grow != nil {
		if err := q.admit(grow(&before)); err != nil {
			return err
		}
	}
	err := do()
	if t.fs.Stat(dir, name, &after) == nil {
		q.used.Add(contentBytes(&after) - contentBytes(&before))
	}
	return err
}

// fits is how many of n bytes at off there is room for; none is ENOSPC.
//
// Preconditions: with a quota, the node's up is held.
func (t *Tree) fits(fd int, off, n int64) (int64, error) {
	q := t.cfg.Quota
	if q == nil {
		return n, nil
	}
	var st unix.Statx_t
	if err := t.fs.Stat(fd, "", &st); err != nil {
		return 0, err
	}
	room := q.room()
	if grows(&st, off, n) <= room {
		return n, nil
	}
	// As on a full disk, the part is written that there is room for.
	if n = room&^(quotaBlock-1) - quotaBlock; n <= 0 {
		return 0, unix.ENOSPC
	}
	return n, nil
}

// countCopy counts a file that was copied up.
func (t *Tree) countCopy(fd int) {
	var st unix.Statx_t
	if t.cfg.Quota != nil && t.fs.Stat(fd, "", &st) == nil {
		t.cfg.Quota.Add(contentBytes(&st))
	}
}

// lastName is what removing a name frees: the content, where it has no other.
func (t *Tree) lastName(dir int, name string) int64 {
	if t.cfg.Quota == nil {
		return 0
	}
	var st unix.Statx_t
	if t.fs.Stat(dir, name, &st) != nil || st.Nlink > 1 {
		return 0
	}
	return contentBytes(&st)
}

// unlinkOrphan removes the content of n from scratch.
func (t *Tree) unlinkOrphan(n *Node) error {
	freed := t.lastName(t.scratchFD, orphanName(n))
	err := t.fs.Unlink(t.scratchFD, orphanName(n), 0)
	if err == nil {
		t.cfg.Quota.Add(-freed)
	}
	return err
}

// LayerBytes adds up what a quota counts in layer l of a directory of layers.
func LayerBytes(fs hostfs.FS, layers int, l LayerID) (int64, error) {
	dir, err := fs.Open(layers, layerName(l)+"/tree", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, fmt.Errorf("measure layer %d: %w", l, err)
	}
	m := layerMeter{fs: fs, met: map[uint64]bool{}}
	if err := m.dir(dir); err != nil {
		return 0, fmt.Errorf("measure layer %d: %w", l, err)
	}
	return m.sum, nil
}

type layerMeter struct {
	fs  hostfs.FS
	met map[uint64]bool // files with several names
	sum int64
}

// dir adds up one directory, whose descriptor it takes over.
func (m *layerMeter) dir(fd int) error {
	defer m.fs.Close(fd)
	var names []string
	err := hostfs.ReadDir(m.fs, fd, func(d hostfs.Dirent) error {
		names = append(names, d.Name)
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Statx_t
		err := m.fs.Stat(fd, name, &st)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if st.Nlink > 1 && m.met[st.Ino] {
				continue
			}
			if st.Nlink > 1 {
				m.met[st.Ino] = true
			}
			m.sum += contentBytes(&st)
			continue
		}
		sub, err := m.fs.Open(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err == unix.ENOENT {
			continue
		}
		if err == nil {
			err = m.dir(sub)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
