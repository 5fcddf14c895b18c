package fs

import (
	"path"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// watchFS tells which process changed what. The process waits for the answer
// to its request meanwhile, so that what /proc says of it is true; but for what
// the kernel writes of its own accord, of which the process is 0.
type watchFS struct {
	fuse.RawFileSystem
	raw     *rawFS
	changed func(pid uint32, path func() string)
	// last is the process and the node of the last write: the next piece of
	// the same one tells nothing new.
	last atomic.Uint64
}

// name tells of a name in a directory.
func (w *watchFS) name(st fuse.Status, pid uint32, dir uint64, name string) fuse.Status {
	w.last.Store(0)
	if st != fuse.OK {
		return st
	}
	if p := w.raw.nodes.get(dir); p != nil {
		w.changed(pid, func() string { return path.Join(w.raw.face.Path(p), name) })
	}
	return st
}

// node tells of a file.
func (w *watchFS) node(st fuse.Status, pid uint32, id uint64) fuse.Status {
	w.last.Store(0)
	if n := w.raw.nodes.get(id); n != nil && st == fuse.OK {
		w.changed(pid, func() string { return w.raw.face.Path(n) })
	}
	return st
}

// sealed makes the next write tell of itself.
func (w *watchFS) sealed() { w.last.Store(0) }

func (w *watchFS) Mknod(c <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return w.name(w.RawFileSystem.Mknod(c, in, name, out), in.Pid, in.NodeId, name)
}

func (w *watchFS) Mkdir(c <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return w.name(w.RawFileSystem.Mkdir(c, in, name, out), in.Pid, in.NodeId, name)
}

func (w *watchFS) Symlink(c <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return w.name(w.RawFileSystem.Symlink(c, h, target, name, out), h.Pid, h.NodeId, name)
}

func (w *watchFS) Create(c <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return w.name(w.RawFileSystem.Create(c, in, name, out), in.Pid, in.NodeId, name)
}

func (w *watchFS) Link(c <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return w.name(w.RawFileSystem.Link(c, in, name, out), in.Pid, in.NodeId, name)
}

func (w *watchFS) Unlink(c <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return w.name(w.RawFileSystem.Unlink(c, h, name), h.Pid, h.NodeId, name)
}

func (w *watchFS) Rmdir(c <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return w.name(w.RawFileSystem.Rmdir(c, h, name), h.Pid, h.NodeId, name)
}

func (w *watchFS) Rename(c <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	st := w.name(w.RawFileSystem.Rename(c, in, oldName, newName), in.Pid, in.NodeId, oldName)
	return w.name(st, in.Pid, in.Newdir, newName)
}

func (w *watchFS) SetAttr(c <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return w.node(w.RawFileSystem.SetAttr(c, in, out), in.Pid, in.NodeId)
}

func (w *watchFS) SetXAttr(c <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	return w.node(w.RawFileSystem.SetXAttr(c, in, attr, data), in.Pid, in.NodeId)
}

func (w *watchFS) RemoveXAttr(c <-chan struct{}, h *fuse.InHeader, attr string) fuse.Status {
	return w.node(w.RawFileSystem.RemoveXAttr(c, h, attr), h.Pid, h.NodeId)
}

func (w *watchFS) Fallocate(c <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	return w.node(w.RawFileSystem.Fallocate(c, in), in.Pid, in.NodeId)
}

func (w *watchFS) CopyFileRange(c <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	n, st := w.RawFileSystem.CopyFileRange(c, in)
	return n, w.node(st, in.Pid, in.NodeIdOut)
}

func (w *watchFS) Write(c <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, st := w.RawFileSystem.Write(c, in, data)
	if who := uint64(in.Pid)<<32 ^ in.NodeId; st == fuse.OK && w.last.Swap(who) != who {
		if node := w.raw.nodes.get(in.NodeId); node != nil {
			w.changed(in.Pid, func() string { return w.raw.face.Path(node) })
		}
	}
	return n, st
}
