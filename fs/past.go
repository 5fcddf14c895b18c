package fs

import (
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// Past lets a live mount show older points of its tree, read-only, under
// .galley/snapshots at its root, as ZFS does under .zfs: the directory is in no
// listing, but a lookup finds it. Where the tree has a .galley of its own, that
// is found instead.
type Past interface {
	// Names lists the points that there are.
	Names() ([]string, error)
	// View makes a read-only face of a point; the server detaches it. An
	// unknown one is ENOENT. Number tells points apart.
	View(name string) (face *overlay.Face, number uint64, err error)
}

const (
	pastName     = ".galley"
	pastListName = "snapshots"

	// Node ids: those of a point's nodes have the point's slot in front.
	pastBit   = 1 << 63
	pastShift = 40
	pastMask  = 1<<pastShift - 1

	pastDir  = 1<<62 | 1 // .galley
	pastList = 1<<62 | 2 // .galley/snapshots

	// pastTimeout is how long the kernel may keep what it was told of the
	// past: notifications tell of the live view only.
	pastTimeout = time.Second / 2
)

// slot is the place of a point's ids among those of its mount.
type slot struct {
	base   uint64 // of node ids, with pastBit
	number uint64 // of the point
}

// ino makes an inode number that no other point has for the same node: with
// equal ones programs would take two points' files for one.
func (s *slot) ino(ino uint64) uint64 {
	h := (ino + s.number*0x9e3779b97f4a7c15) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h>>11 | 1
}

// pastFS serves a live view and its past. Requests for the live view go to the
// embedded rawFS.
type pastFS struct {
	*rawFS
	past  Past
	began time.Time

	mu     sync.Mutex
	points map[uint64]*point // by slot
	last   uint64
}

// point is one older point that the kernel knows something of.
type point struct {
	raw     *rawFS
	slot    uint64
	lookups uint64 // of its root; protected by pastFS.mu
}

func newPastFS(r *rawFS, past Past) *pastFS {
	return &pastFS{rawFS: r, past: past, began: time.Now(), points: map[uint64]*point{}}
}

// close detaches all faces.
func (p *pastFS) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pt := range p.points {
		pt.raw.face.Detach()
	}
	p.points = map[uint64]*point{}
}

// at is the file system of the point that an id belongs to, and the id in it.
func (p *pastFS) at(id uint64) (*rawFS, uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pt := p.points[id&^pastBit>>pastShift]
	if pt == nil {
		return nil, 0
	}
	return pt.raw, id & pastMask
}

func isPast(id uint64) bool { return id >= pastDir }

// virtual fills in what .galley and .galley/snapshots are.
func (p *pastFS) virtual(id uint64, out *fuse.Attr) {
	t := uint64(p.began.Unix())
	*out = fuse.Attr{
		Ino: id, Mode: unix.S_IFDIR | 0o555, Nlink: 2, Blksize: 4096, Atime: t, Mtime: t, Ctime: t,
		Owner: fuse.Owner{Uid: uint32(unix.Geteuid()), Gid: uint32(unix.Getegid())},
	}
}

func (p *pastFS) found(id uint64, out *fuse.EntryOut) fuse.Status {
	out.NodeId = id
	out.SetEntryTimeout(pastTimeout)
	out.SetAttrTimeout(pastTimeout)
	p.virtual(id, &out.Attr)
	return fuse.OK
}

// Lookup finds .galley at the root where nothing else is there.
func (p *pastFS) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	switch {
	case h.NodeId == rootID && name == pastName:
		st := p.rawFS.Lookup(cancel, h, name, out)
		if st == fuse.ENOENT || st == fuse.OK && out.NodeId == 0 {
			return p.found(pastDir, out)
		}
		return st
	case !isPast(h.NodeId):
		return p.rawFS.Lookup(cancel, h, name, out)
	case h.NodeId == pastDir:
		p.stats.count(opLookup)
		if name != pastListName {
			return fuse.ENOENT
		}
		return p.found(pastList, out)
	case h.NodeId == pastList:
		p.stats.count(opLookup)
		return p.lookupPoint(name, out)
	}
	r, id := p.at(h.NodeId)
	if r == nil {
		return errStale
	}
	in := *h
	in.NodeId = id
	return r.Lookup(cancel, &in, name, out)
}

// lookupPoint finds the root of a point.
func (p *pastFS) lookupPoint(name string, out *fuse.EntryOut) fuse.Status {
	if st := checkName(name); st != fuse.OK {
		return st
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	face, number, err := p.past.View(name)
	if err != nil {
		return status(err)
	}
	pt, err := p.addPoint(face, number)
	if err != nil {
		return status(err)
	}
	root := pt.raw.face.Root()
	a, err := pt.raw.face.Getattr(root)
	if err != nil {
		p.dropIfIdle(pt)
		return status(err)
	}
	pt.lookups++
	out.NodeId = pt.raw.past.base | rootID
	out.SetEntryTimeout(pastTimeout)
	out.SetAttrTimeout(pastTimeout)
	fillAttr(&out.Attr, &a)
	out.Attr.Ino = pt.raw.past.ino(a.Ino)
	return fuse.OK
}

// addPoint takes a face over.
//
// Preconditions: mu is held.
func (p *pastFS) addPoint(face *overlay.Face, number uint64) (*point, error) {
	for _, pt := range p.points {
		if pt.raw.past.number == number {
			face.Detach()
			return pt, nil
		}
	}
	p.last++
	if p.last >= pastBit>>pastShift>>1 {
		face.Detach()
		return nil, unix.ENFILE
	}
	raw := &rawFS{
		RawFileSystem: p.rawFS.RawFileSystem, face: face, nodes: newTable(face.Root()), log: p.log, stale: p.stale, dev: p.dev,
		past: &slot{base: pastBit | p.last<<pastShift, number: number},
	}
	raw.server.Store(p.server.Load())
	pt := &point{raw: raw, slot: p.last}
	p.points[pt.slot] = pt
	return pt, nil
}

// dropIfIdle gives up a point that the kernel knows nothing of any more.
//
// Preconditions: mu is held.
func (p *pastFS) dropIfIdle(pt *point) {
	if pt.lookups == 0 && pt.raw.nodes.len() == 0 && p.points[pt.slot] == pt {
		delete(p.points, pt.slot)
		pt.raw.face.Detach()
	}
}

// Forget gives nodes of a point back, and with the last one the point.
func (p *pastFS) Forget(id, count uint64) {
	if !isPast(id) {
		p.rawFS.Forget(id, count)
		return
	}
	p.stats.count(opForget)
	if id == pastDir || id == pastList {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pt := p.points[id&^pastBit>>pastShift]
	if pt == nil {
		return
	}
	if id&pastMask == rootID {
		pt.lookups -= min(count, pt.lookups)
	} else {
		pt.raw.Forget(id&pastMask, count)
	}
	p.dropIfIdle(pt)
}

// GetAttr describes nodes of the past too.
func (p *pastFS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if !isPast(in.NodeId) {
		return p.rawFS.GetAttr(cancel, in, out)
	}
	if in.NodeId == pastDir || in.NodeId == pastList {
		p.stats.count(opGetattr)
		out.SetTimeout(pastTimeout)
		p.virtual(in.NodeId, &out.Attr)
		return fuse.OK
	}
	r, id := p.at(in.NodeId)
	if r == nil {
		return errStale
	}
	inner := *in
	inner.NodeId = id
	return r.GetAttr(cancel, &inner, out)
}

// ReadDir lists the points in .galley/snapshots, and what is in them.
func (p *pastFS) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if !isPast(in.NodeId) {
		return p.rawFS.ReadDir(cancel, in, out)
	}
	if in.NodeId == pastDir || in.NodeId == pastList {
		p.stats.count(opReaddir)
		return p.listPoints(in, out.AddDirEntry)
	}
	r, id := p.at(in.NodeId)
	if r == nil {
		return errStale
	}
	inner := *in
	inner.NodeId = id
	return r.ReadDir(cancel, &inner, out)
}

// ReadDirPlus is ReadDir with lookups, which the list of points goes without.
func (p *pastFS) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if !isPast(in.NodeId) {
		return p.rawFS.ReadDirPlus(cancel, in, out)
	}
	if in.NodeId == pastDir || in.NodeId == pastList {
		p.stats.count(opReaddirplus)
		return p.listPoints(in, func(e fuse.DirEntry) bool { return out.AddDirLookupEntry(e) != nil })
	}
	r, id := p.at(in.NodeId)
	if r == nil {
		return errStale
	}
	inner := *in
	inner.NodeId = id
	return r.ReadDirPlus(cancel, &inner, out)
}

func (p *pastFS) listPoints(in *fuse.ReadIn, add func(fuse.DirEntry) bool) fuse.Status {
	names := []string{pastListName}
	if in.NodeId == pastList {
		var err error
		if names, err = p.past.Names(); err != nil {
			return status(err)
		}
	}
	names = append([]string{".", ".."}, names...)
	for i := in.Offset; i < uint64(len(names)); i++ {
		if !add(fuse.DirEntry{Name: names[i], Mode: unix.S_IFDIR, Off: i + 1}) {
			break
		}
	}
	return fuse.OK
}

// Read reads a file of a point.
func (p *pastFS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if !isPast(in.NodeId) {
		return p.rawFS.Read(cancel, in, buf)
	}
	r, id := p.at(in.NodeId)
	if r == nil {
		return nil, errStale
	}
	inner := *in
	inner.NodeId = id
	return r.Read(cancel, &inner, buf)
}

// Lseek finds holes and data in a file of a point.
func (p *pastFS) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if !isPast(in.NodeId) {
		return p.rawFS.Lseek(cancel, in, out)
	}
	r, id := p.at(in.NodeId)
	if r == nil {
		return errStale
	}
	inner := *in
	inner.NodeId = id
	return r.Lseek(cancel, &inner, out)
}

// inner finds the point of a request that has nothing but a header.
func (p *pastFS) inner(h *fuse.InHeader) (*rawFS, fuse.InHeader, bool) {
	if !isPast(h.NodeId) {
		return p.rawFS, *h, true
	}
	r, id := p.at(h.NodeId)
	in := *h
	in.NodeId = id
	return r, in, r != nil
}

// Readlink reads a link of a point.
func (p *pastFS) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	r, in, ok := p.inner(h)
	if !ok {
		return nil, errStale
	}
	return r.Readlink(cancel, &in)
}

// GetXAttr reads an attribute of a node of a point.
func (p *pastFS) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	if h.NodeId == pastDir || h.NodeId == pastList {
		return 0, fuse.ENODATA
	}
	r, in, ok := p.inner(h)
	if !ok {
		return 0, errStale
	}
	return r.GetXAttr(cancel, &in, attr, dest)
}

// ListXAttr lists the attributes of a node of a point.
func (p *pastFS) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if h.NodeId == pastDir || h.NodeId == pastList {
		return 0, fuse.OK
	}
	r, in, ok := p.inner(h)
	if !ok {
		return 0, errStale
	}
	return r.ListXAttr(cancel, &in, dest)
}
