package fs

import (
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// maxName is the longest name in bytes (NAME_MAX). FUSE lets longer ones
// through to the server.
const maxName = 255

// rawFS answers FUSE requests from a face. Its methods are called from many
// goroutines at once. They validate all that comes in: node ids, names,
// offsets and sizes are what the client says they are, and a client may be a
// hostile guest.
type rawFS struct {
	// Answers for locks alone: they are never asked for, since the kernel keeps
	// the locks of a mount itself (and a guest's kernel those of the guest).
	fuse.RawFileSystem
	face      *overlay.Face
	nodes     *table
	stats     counters
	log       *slog.Logger
	writeback bool   // the kernel collects writes
	past      *slot  // of an older point; nil for what the mount is of
	guest     *guest // of a guest's kernel; nil for a mount's
	stale     *staler
	lister    *lister // nil: listings tell all
	dev       *device
	acting    func(pid uint32) // see Options

	server atomic.Pointer[fuse.Server] // set by Init
}

func (r *rawFS) String() string { return Subtype }

// Init is called when the kernel's INIT has been answered.
func (r *rawFS) Init(s *fuse.Server) { r.server.Store(s) }

// status is the answer for an error of the engine. ENOSYS would switch an
// operation off for the whole mount, which is never what one failed call
// means.
func status(err error) fuse.Status {
	e := overlay.Errno(err)
	if e == syscall.ENOSYS {
		e = syscall.EOPNOTSUPP
	}
	return fuse.Status(e)
}

const (
	errStale       = fuse.Status(syscall.ESTALE)
	errNameTooLong = fuse.Status(syscall.ENAMETOOLONG)
	errTooBig      = fuse.Status(syscall.EFBIG)
	errExist       = fuse.Status(syscall.EEXIST)
)

// checkName refuses what is no single name of an entry.
func checkName(name string) fuse.Status {
	switch {
	case len(name) > maxName:
		return errNameTooLong
	case name == "" || name == "." || name == "..", strings.ContainsAny(name, "/\x00"):
		return fuse.EINVAL
	}
	return fuse.OK
}

// parent is the directory that a request names, with the name in it checked.
func (r *rawFS) parent(id uint64, name string) (*overlay.Node, fuse.Status) {
	n := r.nodes.get(id)
	if n == nil {
		return nil, errStale
	}
	if st := checkName(name); st != fuse.OK {
		return nil, st
	}
	return n, fuse.OK
}

// caller is who a request is made for.
func (r *rawFS) caller(h *fuse.InHeader) overlay.Caller {
	if r.guest != nil && r.guest.one {
		return overlay.Caller{UID: r.guest.owner.Uid, GID: r.guest.owner.Gid}
	}
	return overlay.Caller{UID: h.Uid, GID: h.Gid}
}

// acts tells on whose behalf a request changes something.
func (r *rawFS) acts(h *fuse.InHeader) {
	if r.acting != nil && h.Pid != 0 {
		r.acting(h.Pid)
	}
}

// fillAttr is an engine's Attr on the wire.
func fillAttr(out *fuse.Attr, a *overlay.Attr) {
	out.Ino = a.Ino
	out.Size = uint64(a.Size)
	out.Blocks = uint64(a.Blocks)
	out.Atime, out.Atimensec = uint64(a.Atime.Sec), a.Atime.Nsec
	out.Mtime, out.Mtimensec = uint64(a.Mtime.Sec), a.Mtime.Nsec
	out.Ctime, out.Ctimensec = uint64(a.Ctime.Sec), a.Ctime.Nsec
	out.Mode = a.Mode
	out.Nlink = a.Nlink
	out.Uid, out.Gid = a.UID, a.GID
	// The kernel's 32-bit encoding equals the low half of makedev(3)'s for
	// all numbers that Linux has.
	out.Rdev = uint32(a.Rdev)
	out.Blksize = a.Blksize
}

// entry answers with a node that was found or made in parent; refs engine
// references come with it.
func (r *rawFS) entry(out *fuse.EntryOut, parent, n *overlay.Node, a *overlay.Attr, refs uint64) {
	entryValid, _ := r.timeouts(parent)
	_, attrValid := r.timeouts(n)
	id := r.nodes.add(n, refs)
	out.NodeId, out.Generation = id, n.Generation()
	fillAttr(&out.Attr, a)
	if r.past != nil {
		out.NodeId |= r.past.base
		out.Attr.Ino = r.past.ino(a.Ino)
	}
	if r.guest != nil {
		out.NodeId |= r.guest.base
		r.guest.show(&out.Attr.Owner)
		if r.tell(id, &out.Attr) {
			attrValid = 0
		}
	}
	out.SetEntryTimeout(entryValid)
	out.SetAttrTimeout(attrValid)
}

// timeouts tells how long the kernel may trust what it is told of names in n,
// and of n itself.
func (r *rawFS) timeouts(n *overlay.Node) (entry, attr time.Duration) {
	entry, attr = r.face.Timeouts(n)
	switch {
	case r.past != nil:
		return min(entry, pastTimeout), min(attr, pastTimeout)
	case r.guest != nil:
		return min(entry, guestTimeout), min(attr, guestTimeout)
	}
	return entry, attr
}

func (r *rawFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	r.stats.count(opLookup)
	p, st := r.parent(h.NodeId, name)
	if st != fuse.OK {
		return st
	}
	n, a, err := r.face.Lookup(p, name)
	if err == nil {
		if r.lister != nil && n.Type() != unix.S_IFDIR {
			r.lister.looked(h.NodeId)
		}
		r.entry(out, p, n, &a, 1)
		return fuse.OK
	}
	st = status(err)
	if st != fuse.ENOENT {
		return st
	}
	entryValid, _ := r.timeouts(p)
	if entryValid == 0 {
		return st
	}
	// Node id 0 says "not there" and may be cached, unlike ENOENT.
	out.NodeId = 0
	out.SetEntryTimeout(entryValid)
	return fuse.OK
}

// Forget also serves BATCH_FORGET, one call for each node.
func (r *rawFS) Forget(id, count uint64) {
	r.stats.count(opForget)
	if n, refs := r.nodes.forget(id, count); n != nil && refs > 0 {
		r.face.Forget(n, refs)
	}
}

func (r *rawFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	r.stats.count(opGetattr)
	n := r.nodes.get(in.NodeId)
	if n == nil {
		return errStale
	}
	a, err := r.face.Getattr(n)
	if err != nil {
		return status(err)
	}
	r.attr(out, n, &a)
	return fuse.OK
}

func (r *rawFS) attr(out *fuse.AttrOut, n *overlay.Node, a *overlay.Attr) {
	_, valid := r.timeouts(n)
	fillAttr(&out.Attr, a)
	if r.past != nil {
		out.Attr.Ino = r.past.ino(a.Ino)
	}
	if r.guest != nil {
		r.guest.show(&out.Attr.Owner)
		if r.tell(r.nodes.id(n), &out.Attr) {
			valid = 0
		}
	}
	out.SetTimeout(valid)
}

func (r *rawFS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	r.stats.count(opSetattr)
	r.acts(&in.InHeader)
	n := r.nodes.get(in.NodeId)
	if n == nil {
		return errStale
	}
	set, st := setAttr(in, n)
	if st == fuse.OK && r.guest != nil {
		st = r.guest.store(&set)
	}
	if st != fuse.OK {
		return st
	}
	a, err := r.face.Setattr(n, set)
	if err != nil {
		return status(err)
	}
	r.attr(out, n, &a)
	return fuse.OK
}

// setAttr reads the request. FATTR_CTIME, which a kernel with the writeback
// cache sends, is left out: a host's ctime cannot be set.
func setAttr(in *fuse.SetAttrIn, n *overlay.Node) (overlay.SetAttr, fuse.Status) {
	var set overlay.SetAttr
	if mode, ok := in.GetMode(); ok {
		set.Mode = &mode
	}
	if uid, ok := in.GetUID(); ok {
		set.UID = &uid
	}
	if gid, ok := in.GetGID(); ok {
		set.GID = &gid
	}
	if size, ok := in.GetSize(); ok {
		if size > 1<<63-1 {
			return set, errTooBig
		}
		s := int64(size)
		set.Size = &s
	}
	if in.Valid&fuse.FATTR_ATIME != 0 {
		set.Atime = timeOf(in.Atime, in.Atimensec, in.Valid&fuse.FATTR_ATIME_NOW != 0)
	}
	if in.Valid&fuse.FATTR_MTIME != 0 {
		set.Mtime = timeOf(in.Mtime, in.Mtimensec, in.Valid&fuse.FATTR_MTIME_NOW != 0)
	}
	// With HANDLE_KILLPRIV_V2 a truncation says when set-id bits go; a change
	// of owner does not, and always takes them from a file (chown(2)).
	set.KillSuidgid = in.Valid&fuse.FATTR_KILL_SUIDGID != 0
	if (set.UID != nil || set.GID != nil) && n.Type() != unix.S_IFDIR {
		set.KillSuidgid = true
	}
	return set, fuse.OK
}

// timeOf is a time of the request, or now by the clock that file systems stamp
// with: a finer one would put this file after others that are made later.
func timeOf(sec uint64, nsec uint32, now bool) *overlay.Time {
	if !now {
		return &overlay.Time{Sec: int64(sec), Nsec: min(nsec, 999_999_999)}
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &ts); err != nil {
		t := time.Now()
		return &overlay.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
	}
	return &overlay.Time{Sec: ts.Sec, Nsec: uint32(ts.Nsec)}
}

func (r *rawFS) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	r.stats.count(opStatfs)
	s, err := r.face.Statfs()
	if err != nil {
		return status(err)
	}
	*out = fuse.StatfsOut{
		Blocks: s.Blocks, Bfree: s.Bfree, Bavail: s.Bavail,
		Files: s.Files, Ffree: s.Ffree,
		Bsize: uint32(s.Bsize), Frsize: uint32(s.Frsize), NameLen: maxName,
	}
	return fuse.OK
}
