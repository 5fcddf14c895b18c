package fs

import (
	"fmt"
	"log/slog"
	"path"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// guestTimeout is how long a guest's kernel may trust what it was told: it
// cannot be notified (the Linux driver of virtio-fs takes no notifications),
// and what changes elsewhere is to be seen within a second.
const guestTimeout = 900 * time.Millisecond

// maxChanges bounds how many paths are named in one [Changes].
const maxChanges = 1024

// GuestIDBits is how many low bits of a node id are a [Guest]'s own.
const GuestIDBits = 48

// Guest answers the requests that a guest's kernel makes of one tree. That
// kernel is told nothing by itself. It asks again after at most a second, and
// throws the pages of a file and the listing of a directory away when the mtime
// that it is told is not the one it was told before (FUSE_AUTO_INVAL_DATA);
// where the mtime alone would not show a change, the first answer after it has
// an mtime that is off by a nanosecond.
//
// Owners are the guest's own, as they come. Where the host can store one alone (a
// server without root, and a tree whose record keeps none), that one is the
// guest's root, everything that is made belongs to it, and giving a file to
// another fails with EPERM.
//
// Requests are those of several goroutines; [Guest.Reset] and [Guest.Close] must
// not be called while any is under way.
type Guest struct{ raw *rawFS }

// guest is what a rawFS has besides when it serves a guest.
type guest struct {
	base    uint64 // in front of every node id
	changed func(Changes)
	ready   chan struct{} // closed when the face is known
	// one: the host can store one owner alone.
	one   bool
	owner fuse.Owner
}

// Changes are points of a tree that changed in another way than by requests of
// the guest that is told of them.
type Changes struct {
	// Paths are slash-separated and relative to the tree's root, which is "".
	// Only what the guest has asked about is named.
	Paths []string
	// All: so much changed that it is not listed.
	All bool
}

// GuestOptions configures [NewGuest].
type GuestOptions struct {
	// Slot is the number of the tree among those of one guest: node ids of
	// different slots differ, and [GuestSlot] tells it from an id.
	Slot uint16
	// Changed is called when something changed that the guest may have in its
	// caches; it may block. nil is called never.
	Changed func(Changes)
	// Logger takes what goes wrong in serving (default slog.Default()).
	Logger *slog.Logger
}

// GuestSlot is the slot that a node id belongs to, and the id without it.
func GuestSlot(id uint64) (slot uint16, inner uint64) {
	return uint16(id >> GuestIDBits), id & (1<<GuestIDBits - 1)
}

// NewGuest makes the face that src makes ready for a guest.
func NewGuest(src Source, o GuestOptions) (*Guest, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	raw := &rawFS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		log:           o.Logger,
		guest:         &guest{base: uint64(o.Slot) << GuestIDBits, changed: o.Changed, ready: make(chan struct{})},
	}
	face, err := src(raw)
	if err != nil {
		return nil, fmt.Errorf("serve a guest: %w", err)
	}
	raw.face, raw.nodes = face, newTable(face.Root())
	raw.guest.one = face.OneOwner()
	raw.guest.owner = fuse.Owner{Uid: uint32(unix.Geteuid()), Gid: uint32(unix.Getegid())}
	close(raw.guest.ready)
	return &Guest{raw}, nil
}

// Requests answers requests, whose node ids are without a slot; those in
// answers have it.
func (g *Guest) Requests() fuse.RawFileSystem { return g.raw }

// Quick reports whether the request is answered at once: nothing is copied up
// and nothing synced.
func (g *Guest) Quick(opcode uint32, inner uint64) bool {
	return g.raw.quick(&fuse.InHeader{Opcode: opcode, NodeId: inner})
}

// Root describes the root directory.
func (g *Guest) Root() (fuse.Attr, fuse.Status) {
	var out fuse.AttrOut
	in := fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: rootID}}
	st := g.raw.GetAttr(nil, &in, &out)
	return out.Attr, st
}

// Sync makes durable what the guest has written.
func (g *Guest) Sync() fuse.Status { return status(g.raw.face.Sync()) }

// ReadOnly reports whether the face refuses all changes.
func (g *Guest) ReadOnly() bool { return g.raw.face.ReadOnly() }

// Known is how many nodes the guest knows of.
func (g *Guest) Known() int { return g.raw.nodes.len() }

// Stats are the requests answered so far; see [Server.Stats].
func (g *Guest) Stats() map[string]uint64 { return g.raw.stats.snapshot() }

// Reset forgets what the guest was told: it begins anew, or is gone.
func (g *Guest) Reset() {
	for n, refs := range g.raw.nodes.reset() {
		if refs > 0 {
			g.raw.face.Forget(n, refs)
		}
	}
}

// Close detaches the face.
func (g *Guest) Close() { g.raw.face.Detach() }

// nobody is what the guest is shown of owners that it has no name for, as in user
// namespaces.
const nobody = 65534

// show makes an owner what the guest is shown of it: the one that the host can
// store is the guest's root.
func (g *guest) show(o *fuse.Owner) {
	if !g.one {
		return
	}
	one := func(id, own uint32) uint32 {
		if id == own {
			return 0
		}
		return nobody
	}
	o.Uid, o.Gid = one(o.Uid, g.owner.Uid), one(o.Gid, g.owner.Gid)
}

// store makes a change of owner what the host can store, or refuses it.
func (g *guest) store(set *overlay.SetAttr) fuse.Status {
	if !g.one {
		return fuse.OK
	}
	for _, id := range []struct {
		want *uint32
		own  uint32
	}{{set.UID, g.owner.Uid}, {set.GID, g.owner.Gid}} {
		if id.want == nil {
			continue
		}
		if *id.want != 0 {
			return fuse.EPERM
		}
		*id.want = id.own
	}
	return fuse.OK
}

// told is what a guest's kernel was told last of a node.
type told struct {
	mtime, ctime stamp
	// shift is how many nanoseconds were added to the mtime.
	shift uint32
	// any: something was told.
	any bool
	// fresh: when it was told of this ctime the mtime moved, so that it has
	// no older pages than those of this ctime, and has not written since.
	fresh bool
	// early: that was so soon after the ctime that a later change may have
	// the same.
	early bool
	// stale: something changed by another way than the guest. The news of it
	// may come after an answer that showed it.
	stale bool
}

// stamp is a time as it is on the wire.
type stamp struct {
	sec  uint64
	nsec uint32
}

// tick is longer than those of the clocks that stamp files.
const tick = 20 * time.Millisecond

// tell notes what the guest is about to be told. If the answer would not make it
// look again at what changed, tell alters the mtime and reports true: the answer
// must not be trusted for any time then.
func (r *rawFS) tell(id uint64, a *fuse.Attr) (altered bool) {
	now := told{
		mtime: stamp{a.Mtime, a.Mtimensec}, ctime: stamp{a.Ctime, a.Ctimensec},
		any:   true,
		early: time.Since(time.Unix(int64(a.Ctime), int64(a.Ctimensec))) < tick,
	}
	dir := a.Mode&unix.S_IFMT == unix.S_IFDIR
	r.nodes.withTold(id, func(t *told) {
		same := t.any && t.mtime == now.mtime
		now.fresh = !same || t.fresh && t.ctime == now.ctime
		switch {
		case dir && same:
			// A directory's times are those of one layer, and names may
			// change in another. The guest compares when it lists: what it
			// was told last has to stay.
			now.shift = t.shift
			if t.stale {
				now.shift++
			}
		case same && t.stale && (t.early || !now.fresh):
			now.shift = 1 - t.shift
			now.fresh, altered = true, true
		}
		*t = now
	})
	a.Mtimensec = (a.Mtimensec + now.shift) % 1_000_000_000
	return altered
}

// staleGuest makes the guest drop pages or listing of a node at its next look.
func (r *rawFS) staleGuest(id uint64) {
	r.nodes.withTold(id, func(t *told) { t.stale = true })
}

// wrote notes that the guest has written to a file: what it was told of it is not
// what it has.
func (r *rawFS) wrote(id uint64) {
	if r.guest != nil {
		r.nodes.withTold(id, func(t *told) { t.fresh = false })
	}
}

// notifyGuest notes what changed, and passes it on to whoever can tell the
// guest.
func (r *rawFS) notifyGuest(events []overlay.Event) {
	<-r.guest.ready
	var c Changes
	seen := make(map[string]bool)
	add := func(p string) {
		if c.All || seen[p] {
			return
		}
		if len(c.Paths) == maxChanges {
			c = Changes{All: true}
			return
		}
		seen[p] = true
		c.Paths = append(c.Paths, p)
	}
	for _, e := range events {
		n := e.Node
		if e.Parent != nil {
			n = e.Parent
		}
		if n == nil {
			continue
		}
		id := r.nodes.id(n)
		if r.nodes.get(id) == nil {
			continue // the guest was told nothing of it
		}
		if e.Parent != nil {
			r.staleGuest(id)
			dir := r.face.Path(n)
			add(dir)
			add(path.Join(dir, e.Name))
			continue
		}
		if e.Data {
			r.staleGuest(id)
		}
		add(r.face.Path(n))
	}
	if r.guest.changed != nil && (c.All || len(c.Paths) > 0) {
		r.guest.changed(c)
	}
}
