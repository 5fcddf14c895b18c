package fs

import (
	"math"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// Directories are listed without handles: a READDIR names the directory and
// the cookie of the entry it continues after. The engine's cookies leave the
// low numbers free for "." and "..".
const (
	cookieDot    = 1
	cookieDotDot = 2
)

// Sizes of one entry in an answer (struct fuse_dirent, fuse_entry_out).
const (
	direntSize   = 24
	entryOutSize = 128
)

// direntLen is what a name takes in an answer, besides an entryOutSize in
// READDIRPLUS.
func direntLen(name string) int { return (direntSize + len(name) + 7) &^ 7 }

// OpenDir answers ENOSYS, which switches it off: the kernel opens by itself
// and keeps the listing until it is told that the directory changed.
func (r *rawFS) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	r.stats.count(opOpendir)
	return fuse.ENOSYS
}

// ReleaseDir is never sent once OPENDIR is off.
func (r *rawFS) ReleaseDir(_ *fuse.ReleaseIn) { r.stats.count(opReleasedir) }

// batch is the entries that fit one answer.
type batch struct{ list []overlay.DirEntry }

var batches = sync.Pool{New: func() any { return new(batch) }}

func (b *batch) free() {
	clear(b.list)
	b.list = b.list[:0]
	batches.Put(b)
}

// dir is the directory that a request names.
func (r *rawFS) dir(in *fuse.ReadIn) (*overlay.Node, fuse.Status) {
	n := r.nodes.get(in.NodeId)
	if n == nil {
		return nil, errStale
	}
	if n.Type() != unix.S_IFDIR {
		return nil, fuse.ENOTDIR
	}
	return n, fuse.OK
}

// list collects what follows the cookie off and fits into room bytes,
// with extra bytes beside each name.
func (r *rawFS) list(n *overlay.Node, off uint64, room, extra int) (*batch, error) {
	if off > math.MaxInt64 {
		return nil, unix.EINVAL
	}
	b := batches.Get().(*batch)
	if off <= cookieDotDot {
		off = 0
	}
	err := r.face.ReadDir(n, off, func(e overlay.DirEntry) bool {
		room -= direntLen(e.Name) + extra
		if room < 0 {
			return false
		}
		b.list = append(b.list, e)
		return true
	})
	if err != nil {
		b.free()
		return nil, err
	}
	return b, nil
}

// dots adds "." and ".." where off has not passed them yet. It reports false
// when the answer is full.
func (r *rawFS) dots(n *overlay.Node, off uint64, add func(fuse.DirEntry) bool) bool {
	if off < cookieDot {
		self := fuse.DirEntry{Name: ".", Mode: unix.S_IFDIR, Off: cookieDot}
		if a, err := r.face.Getattr(n); err == nil {
			self.Ino = a.Ino
			if r.past != nil {
				self.Ino = r.past.ino(a.Ino)
			}
		}
		if !add(self) {
			return false
		}
	}
	// The parent's number is not known here and left unknown; the kernel
	// resolves ".." by itself.
	return off >= cookieDotDot || add(fuse.DirEntry{Name: "..", Mode: unix.S_IFDIR, Off: cookieDotDot})
}

func (r *rawFS) wireEntry(e overlay.DirEntry) fuse.DirEntry {
	if r.past != nil {
		e.Ino = r.past.ino(e.Ino)
	}
	return fuse.DirEntry{Name: e.Name, Mode: e.Type, Ino: e.Ino, Off: e.Cookie}
}

func (r *rawFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	r.stats.count(opReaddir)
	n, st := r.dir(in)
	if st != fuse.OK {
		return st
	}
	room := int(in.Size)
	if !r.dots(n, in.Offset, func(e fuse.DirEntry) bool {
		room -= direntLen(e.Name)
		return out.AddDirEntry(e)
	}) {
		return fuse.OK
	}
	b, err := r.list(n, in.Offset, room, 0)
	if err != nil {
		return status(err)
	}
	defer b.free()
	for _, e := range b.list {
		if !out.AddDirEntry(r.wireEntry(e)) {
			break
		}
	}
	return fuse.OK
}

// ReadDirPlus is ReadDir with a LOOKUP of every entry; ".", "..", what
// cannot be looked up, what the kernel knows already and what the lister leaves
// out have node id 0, and it learns nothing of them.
func (r *rawFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	r.stats.count(opReaddirplus)
	n, st := r.dir(in)
	if st != fuse.OK {
		return st
	}
	room := int(in.Size)
	if !r.dots(n, in.Offset, func(e fuse.DirEntry) bool {
		room -= direntLen(e.Name) + entryOutSize
		return out.AddDirLookupEntry(e) != nil
	}) {
		return fuse.OK
	}
	b, err := r.list(n, in.Offset, room, entryOutSize)
	if err != nil {
		return status(err)
	}
	defer b.free()
	valid, _ := r.timeouts(n)
	plain, left := 0, 0
	if r.lister != nil {
		left = r.lister.plainly(in.NodeId, in.Offset)
	}
	for _, e := range b.list {
		if plain < left && e.Type != unix.S_IFDIR && e.Type != 0 {
			if out.AddDirLookupEntry(r.wireEntry(e)) == nil {
				break
			}
			plain++
			continue
		}
		if !r.plus(n, e, valid, out) {
			break
		}
	}
	if plain > 0 {
		r.lister.listed(in.NodeId, plain)
	}
	return fuse.OK
}

// plus adds one entry and reports false when the answer is full. An entry that
// has gone since it was listed is left out.
func (r *rawFS) plus(dir *overlay.Node, e overlay.DirEntry, valid time.Duration, out *fuse.DirEntryList) bool {
	if e.Node != nil && r.past == nil && valid > time.Second && r.nodes.get(e.Node.ID()) != nil {
		// The kernel keeps what it was told before. A program that looks at
		// each file and lists afterwards, as git does, is spared a second
		// stat of them all.
		return out.AddDirLookupEntry(r.wireEntry(e)) != nil
	}
	n, a, err := r.face.Lookup(dir, e.Name)
	if status(err) == fuse.ENOENT {
		return true
	}
	w := r.wireEntry(e)
	if err == nil && r.past == nil {
		w.Ino, w.Mode = a.Ino, a.Mode
	}
	slot := out.AddDirLookupEntry(w)
	if err != nil {
		return slot != nil
	}
	if slot == nil {
		r.face.Forget(n, 1)
		return false
	}
	r.entry(slot, dir, n, &a, 1)
	return true
}
