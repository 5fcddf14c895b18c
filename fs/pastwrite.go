package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// The past is read-only. Each of these requests is the live view's, unless it
// is about a node of the past, or about the .galley that only lookups find.

const (
	errReadOnly = fuse.EROFS
	errCross    = fuse.Status(syscall.EXDEV)
)

// reserved tells whether a name is the .galley that the tree itself has not.
func (p *pastFS) reserved(dir uint64, name string) bool {
	if dir != rootID || name != pastName {
		return false
	}
	n, _, err := p.face.Lookup(p.face.Root(), name)
	if err != nil {
		return true
	}
	p.face.Forget(n, 1)
	return false
}

func (p *pastFS) readOnly(dir uint64, name string) bool { return isPast(dir) || p.reserved(dir, name) }

// SetAttr changes attributes in the live view.
func (p *pastFS) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if isPast(in.NodeId) {
		return errReadOnly
	}
	return p.rawFS.SetAttr(cancel, in, out)
}

// Mknod makes a node in the live view.
func (p *pastFS) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if p.readOnly(in.NodeId, name) {
		return errReadOnly
	}
	return p.rawFS.Mknod(cancel, in, name, out)
}

// Mkdir makes a directory in the live view.
func (p *pastFS) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if p.readOnly(in.NodeId, name) {
		return errReadOnly
	}
	return p.rawFS.Mkdir(cancel, in, name, out)
}

// Symlink makes a link in the live view.
func (p *pastFS) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if p.readOnly(h.NodeId, name) {
		return errReadOnly
	}
	return p.rawFS.Symlink(cancel, h, target, name, out)
}

// Create makes a file in the live view.
func (p *pastFS) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if p.readOnly(in.NodeId, name) {
		return errReadOnly
	}
	return p.rawFS.Create(cancel, in, name, out)
}

// Tmpfile makes a file without a name in the live view.
func (p *pastFS) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if isPast(in.NodeId) {
		return errReadOnly
	}
	return p.rawFS.Tmpfile(cancel, in, out)
}

// Link names a file of the live view once more.
func (p *pastFS) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if p.readOnly(in.NodeId, name) {
		return errReadOnly
	}
	if isPast(in.Oldnodeid) {
		return errCross
	}
	return p.rawFS.Link(cancel, in, name, out)
}

// Unlink removes a name of the live view.
func (p *pastFS) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if p.readOnly(h.NodeId, name) {
		return errReadOnly
	}
	return p.rawFS.Unlink(cancel, h, name)
}

// Rmdir removes a directory of the live view.
func (p *pastFS) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if p.readOnly(h.NodeId, name) {
		return errReadOnly
	}
	return p.rawFS.Rmdir(cancel, h, name)
}

// Rename moves a name of the live view.
func (p *pastFS) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	if p.readOnly(in.NodeId, oldName) || p.readOnly(in.Newdir, newName) {
		return errReadOnly
	}
	return p.rawFS.Rename(cancel, in, oldName, newName)
}

// SetXAttr sets an attribute in the live view.
func (p *pastFS) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	if isPast(in.NodeId) {
		return errReadOnly
	}
	return p.rawFS.SetXAttr(cancel, in, attr, data)
}

// RemoveXAttr removes an attribute in the live view.
func (p *pastFS) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, attr string) fuse.Status {
	if isPast(h.NodeId) {
		return errReadOnly
	}
	return p.rawFS.RemoveXAttr(cancel, h, attr)
}

// Write writes to a file of the live view.
func (p *pastFS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if isPast(in.NodeId) {
		return 0, errReadOnly
	}
	return p.rawFS.Write(cancel, in, data)
}

// Fallocate makes room in a file of the live view.
func (p *pastFS) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if isPast(in.NodeId) {
		return errReadOnly
	}
	return p.rawFS.Fallocate(cancel, in)
}

// CopyFileRange copies within the live view; from the past the kernel copies by
// itself.
func (p *pastFS) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if isPast(in.NodeIdOut) {
		return 0, errReadOnly
	}
	if isPast(in.NodeId) {
		return 0, errCross
	}
	return p.rawFS.CopyFileRange(cancel, in)
}

// Fsync makes a file of the live view durable; what is sealed has been.
func (p *pastFS) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if isPast(in.NodeId) {
		return fuse.OK
	}
	return p.rawFS.Fsync(cancel, in)
}

// FsyncDir makes a directory of the live view durable.
func (p *pastFS) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if isPast(in.NodeId) {
		return fuse.OK
	}
	return p.rawFS.FsyncDir(cancel, in)
}
