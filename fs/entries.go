package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// Requests that make, remove and move names.

func (r *rawFS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	r.stats.count(opMknod)
	r.acts(&in.InHeader)
	p, st := r.parent(in.NodeId, name)
	if st != fuse.OK {
		return st
	}
	n, a, err := r.face.Mknod(p, name, in.Mode, uint64(in.Rdev), r.caller(&in.InHeader))
	return r.made(out, p, n, &a, err)
}

func (r *rawFS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	r.stats.count(opMkdir)
	r.acts(&in.InHeader)
	p, st := r.parent(in.NodeId, name)
	if st != fuse.OK {
		return st
	}
	n, a, err := r.face.Mkdir(p, name, in.Mode, r.caller(&in.InHeader))
	return r.made(out, p, n, &a, err)
}

func (r *rawFS) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	r.stats.count(opSymlink)
	r.acts(h)
	p, st := r.parent(h.NodeId, name)
	if st != fuse.OK {
		return st
	}
	if target == "" {
		return fuse.ENOENT // symlink(2)
	}
	if len(target) >= unix.PathMax {
		return errNameTooLong
	}
	n, a, err := r.face.Symlink(p, name, target, r.caller(h))
	return r.made(out, p, n, &a, err)
}

func (r *rawFS) made(out *fuse.EntryOut, p, n *overlay.Node, a *overlay.Attr, err error) fuse.Status {
	if err != nil {
		return status(err)
	}
	r.entry(out, p, n, a, 1)
	return fuse.OK
}

// Create answers with handle 0 and keeps no descriptor: with NO_OPEN the
// kernel sends no RELEASE for it.
func (r *rawFS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	r.stats.count(opCreate)
	r.acts(&in.InHeader)
	p, st := r.parent(in.NodeId, name)
	if st != fuse.OK {
		return st
	}
	n, a, err := r.face.Create(p, name, in.Mode, r.caller(&in.InHeader))
	if status(err) == errExist && in.Flags&unix.O_EXCL == 0 {
		// Another face made it since the kernel's lookup.
		n, a, err = r.openExisting(p, name, in)
	}
	if err != nil {
		return status(err)
	}
	r.entry(&out.EntryOut, p, n, &a, 1)
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (r *rawFS) openExisting(p *overlay.Node, name string, in *fuse.CreateIn) (*overlay.Node, overlay.Attr, error) {
	n, a, err := r.face.Lookup(p, name)
	if err != nil || n.Type() != unix.S_IFREG || in.Flags&unix.O_TRUNC == 0 {
		return n, a, err
	}
	zero := int64(0)
	a, err = r.face.Setattr(n, overlay.SetAttr{Size: &zero, KillSuidgid: in.OpenFlags&fuse.OPEN_KILL_SUIDGID != 0})
	if err != nil {
		r.face.Forget(n, 1)
	}
	return n, a, err
}

func (r *rawFS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	r.stats.count(opTmpfile)
	r.acts(&in.InHeader)
	p := r.nodes.get(in.NodeId)
	if p == nil {
		return errStale
	}
	n, a, err := r.face.Tmpfile(p, in.Mode, r.caller(&in.InHeader))
	if err != nil {
		return status(err)
	}
	r.entry(&out.EntryOut, p, n, &a, 1)
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (r *rawFS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	r.stats.count(opLink)
	r.acts(&in.InHeader)
	n := r.nodes.get(in.Oldnodeid)
	if n == nil {
		return errStale
	}
	p, st := r.parent(in.NodeId, name)
	if st != fuse.OK {
		return st
	}
	a, err := r.face.Link(n, p, name)
	if err != nil {
		return status(err)
	}
	r.entry(out, p, n, &a, 0)
	return fuse.OK
}

func (r *rawFS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	r.stats.count(opUnlink)
	r.acts(h)
	p, st := r.parent(h.NodeId, name)
	if st != fuse.OK {
		return st
	}
	return status(r.face.Unlink(p, name))
}

func (r *rawFS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	r.stats.count(opRmdir)
	r.acts(h)
	p, st := r.parent(h.NodeId, name)
	if st != fuse.OK {
		return st
	}
	return status(r.face.Rmdir(p, name))
}

// Rename serves RENAME and RENAME2.
func (r *rawFS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	r.stats.count(opRename)
	r.acts(&in.InHeader)
	oldp, st := r.parent(in.NodeId, oldName)
	if st != fuse.OK {
		return st
	}
	newp, st := r.parent(in.Newdir, newName)
	if st != fuse.OK {
		return st
	}
	switch in.Flags {
	case 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE:
	default:
		return fuse.EINVAL
	}
	return status(r.face.Rename(oldp, oldName, newp, newName, in.Flags))
}

func (r *rawFS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	r.stats.count(opReadlink)
	n := r.nodes.get(h.NodeId)
	if n == nil {
		return nil, errStale
	}
	if n.Type() != unix.S_IFLNK {
		return nil, fuse.EINVAL
	}
	target, err := r.face.Readlink(n)
	if err != nil {
		return nil, status(err)
	}
	return []byte(target), fuse.OK
}
