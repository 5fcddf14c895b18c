package fs

import (
	"sync"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// Notifications tell the kernel to drop what it was told. They may wait for
// locks that the kernel holds while a request is being answered, so they are
// never sent from a request's goroutine.

// Notify implements overlay.Notifier: it passes on what changed through
// another face, on the host, or by a switch of layers.
func (r *rawFS) Notify(events []overlay.Event) {
	if r.guest != nil {
		r.notifyGuest(events)
		return
	}
	srv := r.server.Load()
	if srv == nil {
		return // the kernel has not been told anything yet
	}
	var listed *overlay.Node // whose listing was dropped last
	for _, e := range events {
		switch {
		case e.Parent != nil:
			r.notifyName(srv, e.Parent, e.Name)
			if e.Parent != listed {
				// A name that the kernel never looked up still
				// stands, or is missing, in a listing it keeps.
				r.notifyData(srv, e.Parent)
				listed = e.Parent
			}
		case e.Node == nil:
		case e.Data:
			r.notifyData(srv, e.Node)
		default:
			if id := r.nodes.id(e.Node); r.nodes.get(id) != nil {
				r.dev.use(func(int) { srv.InodeNotify(id, -1, 0) }) // attributes only
			}
		}
	}
}

func (r *rawFS) notifyData(srv *fuse.Server, n *overlay.Node) {
	if id := r.nodes.id(n); r.nodes.get(id) != nil {
		r.dev.use(func(int) { srv.InodeNotify(id, 0, 0) }) // attributes and all pages
	}
}

// notifyName makes the kernel look up the name again. Where it can, the entry
// is only expired: dropped, a directory that is somebody's working directory
// would count as deleted even though the name still leads to it.
func (r *rawFS) notifyName(srv *fuse.Server, parent *overlay.Node, name string) {
	id := r.nodes.id(parent)
	if r.nodes.get(id) == nil {
		return
	}
	expire := srv.KernelSettings().Flags64()&fuse.CAP_HAS_EXPIRE_ONLY != 0
	r.dev.use(func(fd int) {
		if expire {
			sendExpire(fd, id, name)
			return
		}
		srv.EntryNotify(id, name)
	})
}

// expireMessage is FUSE_NOTIFY_INVAL_ENTRY up to the name.
type expireMessage struct {
	head fuse.OutHeader
	body fuse.NotifyInvalEntryOut
}

// sendExpire sends an entry notification with FUSE_EXPIRE_ONLY, which go-fuse
// has no call for. Errors mean that the kernel does not know the name (ENOENT)
// or that the mount is gone; neither is of interest.
func sendExpire(fd int, parent uint64, name string) {
	const size = unsafe.Sizeof(expireMessage{})
	buf := make([]byte, int(size)+len(name)+1)
	*(*expireMessage)(unsafe.Pointer(unsafe.SliceData(buf))) = expireMessage{
		head: fuse.OutHeader{Length: uint32(len(buf)), Status: -fuse.NOTIFY_INVAL_ENTRY},
		body: fuse.NotifyInvalEntryOut{Parent: parent, NameLen: uint32(len(name)), Flags: fuse.EXPIRE_ONLY},
	}
	copy(buf[size:], name)
	for {
		if _, err := unix.Write(fd, buf); err != syscall.EINTR {
			return
		}
	}
}

// device is the server's own descriptor of /dev/fuse, beside the one that
// go-fuse reads from, and the gate that all notifications pass. A notification
// may wait for a request to be answered, so the gate is closed before the
// readers are.
type device struct {
	mu   sync.RWMutex
	fd   int  // protected by mu; -1 once closed
	shut bool // protected by mu; no notification passes any more
}

// use calls f with the descriptor, unless the gate is shut.
func (d *device) use(f func(fd int)) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if !d.shut {
		f(d.fd)
	}
}

// shutGate waits for notifications under way, lets no more pass, and makes
// reads of the device fail with EAGAIN instead of waiting. It reports false if
// the device is closed already.
func (d *device) shutGate() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut = true
	return d.fd >= 0 && unix.SetNonblock(d.fd, true) == nil
}

func (d *device) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut = true
	if d.fd >= 0 {
		_ = unix.Close(d.fd)
		d.fd = -1
	}
}

// staler invalidates nodes on behalf of request handlers, which must not do
// it themselves.
type staler struct {
	mu      sync.Mutex
	pending map[uint64]struct{} // protected by mu
	wake    chan struct{}       // of capacity 1
}

func newStaler() *staler {
	return &staler{pending: make(map[uint64]struct{}), wake: make(chan struct{}, 1)}
}

// data asks for the node's attributes and pages to be dropped soon.
func (s *staler) data(id uint64) {
	s.mu.Lock()
	s.pending[id] = struct{}{}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run sends what is asked for until done is closed.
func (s *staler) run(srv *fuse.Server, dev *device, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-s.wake:
		}
		s.mu.Lock()
		ids := s.pending
		s.pending = make(map[uint64]struct{})
		s.mu.Unlock()
		for id := range ids {
			dev.use(func(int) { srv.InodeNotify(id, 0, 0) })
		}
	}
}
