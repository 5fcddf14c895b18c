package virtiofs

import (
	"maps"
	"slices"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// rootTimeout is how long a guest may trust what it was told of the export's
// root. A name that is not there is never trusted to stay away.
const rootTimeout = 900 * time.Millisecond

// rootFS answers requests for the root directory of an export, which has the
// trees in it and never changes by a request. Its one node is rootID.
type rootFS struct {
	fuse.RawFileSystem
	x *Export
}

func newRootFS(x *Export) *rootFS { return &rootFS{fuse.NewDefaultRawFileSystem(), x} }

func (*rootFS) String() string { return "galley" }

func (r *rootFS) attr(out *fuse.Attr) {
	since := r.x.now.Load().since
	*out = fuse.Attr{
		Ino: rootID, Mode: unix.S_IFDIR | 0o555, Nlink: 2, Blksize: 4096,
		Mtime: uint64(since.Unix()), Mtimensec: uint32(since.Nanosecond()),
		Ctime: uint64(since.Unix()), Ctimensec: uint32(since.Nanosecond()),
		Atime: uint64(since.Unix()), Atimensec: uint32(since.Nanosecond()),
	}
}

// GetAttr describes the root.
func (r *rootFS) GetAttr(_ <-chan struct{}, _ *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	r.attr(&out.Attr)
	out.SetTimeout(rootTimeout)
	return fuse.OK
}

// Lookup finds the root of a tree, which the guest's kernel mounts for itself.
func (r *rootFS) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	t := r.x.now.Load().byName[name]
	if t == nil || !t.enter() {
		return fuse.ENOENT
	}
	defer t.leave()
	a, st := t.guest.Root()
	if st != fuse.OK {
		return st
	}
	out.NodeId = t.node(rootID)
	out.Attr = a
	out.Attr.Flags |= fuse.ATTR_SUBMOUNT
	out.SetEntryTimeout(rootTimeout)
	out.SetAttrTimeout(rootTimeout)
	return fuse.OK
}

// Forget has nothing to forget.
func (*rootFS) Forget(uint64, uint64) {}

// Open answers ENOSYS, as in all trees.
func (*rootFS) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// OpenDir answers ENOSYS, as in all trees.
func (*rootFS) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// ReadDir lists the trees.
func (r *rootFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	r.list(in.Offset, out.AddDirEntry)
	return fuse.OK
}

// ReadDirPlus lists the trees without looking them up.
func (r *rootFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	r.list(in.Offset, func(e fuse.DirEntry) bool { return out.AddDirLookupEntry(e) != nil })
	return fuse.OK
}

func (r *rootFS) list(off uint64, add func(fuse.DirEntry) bool) {
	names := append([]string{".", ".."}, slices.Sorted(maps.Keys(r.x.now.Load().byName))...)
	for i := off; i < uint64(len(names)); i++ {
		if !add(fuse.DirEntry{Name: names[i], Mode: unix.S_IFDIR, Off: i + 1}) {
			return
		}
	}
}

// StatFs describes an empty file system.
func (*rootFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: maxName}
	return fuse.OK
}

// GetXAttr finds no attribute.
func (*rootFS) GetXAttr(<-chan struct{}, *fuse.InHeader, string, []byte) (uint32, fuse.Status) {
	return 0, fuse.ENODATA
}

// ListXAttr lists no attribute.
func (*rootFS) ListXAttr(<-chan struct{}, *fuse.InHeader, []byte) (uint32, fuse.Status) {
	return 0, fuse.OK
}

// Fsync has nothing to do.
func (*rootFS) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// FsyncDir has nothing to do.
func (*rootFS) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }
