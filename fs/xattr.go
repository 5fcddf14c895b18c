package fs

import (
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// Limits of xattr(7).
const (
	maxXattrName  = 255
	maxXattrValue = 64 << 10
)

// xattrOf is the node and checked attribute name of a request.
func (r *rawFS) xattrOf(id uint64, attr string) (*overlay.Node, fuse.Status) {
	n := r.nodes.get(id)
	if n == nil {
		return nil, errStale
	}
	if attr == "" || len(attr) > maxXattrName {
		return nil, fuse.ERANGE
	}
	if strings.IndexByte(attr, 0) >= 0 {
		return nil, fuse.EINVAL
	}
	return n, fuse.OK
}

// sized answers with value, or with its size where the caller asks for that
// (an empty dest), or ERANGE where it does not fit.
func sized(value, dest []byte) (uint32, fuse.Status) {
	if len(dest) == 0 {
		return uint32(len(value)), fuse.OK
	}
	if len(value) > len(dest) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

func (r *rawFS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	r.stats.count(opGetxattr)
	n, st := r.xattrOf(h.NodeId, attr)
	if st != fuse.OK {
		return 0, st
	}
	value, err := r.face.Getxattr(n, attr)
	if err != nil {
		return 0, status(err)
	}
	return sized(value, dest)
}

func (r *rawFS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	r.stats.count(opListxattr)
	n := r.nodes.get(h.NodeId)
	if n == nil {
		return 0, errStale
	}
	names, err := r.face.Listxattr(n)
	if err != nil {
		return 0, status(err)
	}
	var list []byte
	for _, name := range names {
		list = append(append(list, name...), 0)
	}
	return sized(list, dest)
}

func (r *rawFS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	r.stats.count(opSetxattr)
	r.acts(&in.InHeader)
	n, st := r.xattrOf(in.NodeId, attr)
	if st != fuse.OK {
		return st
	}
	if in.Size > maxXattrValue {
		return fuse.Status(unix.E2BIG)
	}
	if uint32(len(data)) < in.Size || in.Flags&^(unix.XATTR_CREATE|unix.XATTR_REPLACE) != 0 {
		return fuse.EINVAL
	}
	return status(r.face.Setxattr(n, attr, data[:in.Size], int(in.Flags)))
}

func (r *rawFS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string) fuse.Status {
	r.stats.count(opRemovexattr)
	r.acts(h)
	n, st := r.xattrOf(h.NodeId, attr)
	if st != fuse.OK {
		return st
	}
	return status(r.face.Removexattr(n, attr))
}
