package virtiofs

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/galleyfs/galley/fs"
)

// maxSlots bounds how many trees an export may have in its life.
const maxSlots = 1<<15 - 1

// ExportOptions configures [NewExport].
type ExportOptions struct {
	// Logger takes what goes wrong in serving (default slog.Default()).
	Logger *slog.Logger
	// Changed is called when something changed in a tree by another way than
	// the guest, which may have it in its caches. It is called by one goroutine
	// for each tree, that serves no request, and may block.
	Changed func(tree string, c fs.Changes)
}

// Export is the trees that one guest sees, each under its name in the root
// directory. Its methods may be called from any goroutine.
type Export struct {
	log     *slog.Logger
	changed func(string, fs.Changes)

	// now is replaced as a whole, so that requests need no lock to read it.
	now atomic.Pointer[listing]

	mu     sync.Mutex
	last   uint16 // latest slot; protected by mu
	served bool   // protected by mu
}

// listing is what an export's root holds at one time.
type listing struct {
	bySlot map[uint16]*tree
	byName map[string]*tree
	since  time.Time // when it became so
}

// tree is one tree of an export.
type tree struct {
	name     string
	slot     uint16
	guest    *fs.Guest
	requests fuse.RawFileSystem
	protocol *fuse.ProtocolServer // over requests
	readOnly bool

	// use is held by every request in the tree.
	use  sync.RWMutex
	gone bool // protected by use
}

// NewExport is an export without trees.
func NewExport(o ExportOptions) *Export {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	x := &Export{log: o.Logger, changed: o.Changed}
	x.now.Store(&listing{since: time.Now()})
	return x
}

// TreeOptions are the options of one tree of an export.
type TreeOptions struct {
	// ReadOnly refuses all changes, to the guest's kernel too.
	ReadOnly bool
}

// Add shows the face that src makes under name, a single name such as
// "workspace". A guest that is running finds it by looking it up.
func (x *Export) Add(name string, src fs.Source, o TreeOptions) error {
	if name == "" || name == "." || name == ".." || len(name) > maxName || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("export tree %q: not the name of a directory: %w", name, syscall.EINVAL)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	old := x.now.Load()
	if old.byName[name] != nil {
		return fmt.Errorf("export tree %q: %w", name, syscall.EEXIST)
	}
	if x.last == maxSlots {
		return fmt.Errorf("export tree %q: the guest was shown %d trees before: %w", name, maxSlots, syscall.ENFILE)
	}
	t := &tree{name: name, slot: x.last + 1, readOnly: o.ReadOnly}
	opt := fs.GuestOptions{Slot: t.slot, Logger: x.log}
	if x.changed != nil {
		opt.Changed = func(c fs.Changes) { x.changed(name, c) }
	}
	guest, err := fs.NewGuest(src, opt)
	if err != nil {
		return fmt.Errorf("export tree %q: %w", name, err)
	}
	x.last = t.slot
	t.guest, t.requests = guest, guest.Requests()
	t.protocol = fuse.NewProtocolServer(t.requests, mountOptions(x.log))
	x.replace(old, t, nil)
	return nil
}

// Remove takes a tree away and detaches its face, once the requests that are
// under way in it are answered. To the guest, what it has open there is stale
// from then on.
func (x *Export) Remove(name string) error {
	x.mu.Lock()
	old := x.now.Load()
	t := old.byName[name]
	if t == nil {
		x.mu.Unlock()
		return fmt.Errorf("export tree %q: %w", name, syscall.ENOENT)
	}
	x.replace(old, nil, t)
	x.mu.Unlock()
	t.end()
	return nil
}

// Close removes all trees. No server may serve the export any more.
func (x *Export) Close() {
	for _, name := range x.Names() {
		_ = x.Remove(name) // gone already: somebody else removed it
	}
}

// Names are the names of the trees, sorted.
func (x *Export) Names() []string { return slices.Sorted(maps.Keys(x.now.Load().byName)) }

// Known is how many nodes of a tree the guest knows of.
func (x *Export) Known(name string) int {
	t := x.now.Load().byName[name]
	if t == nil || !t.enter() {
		return 0
	}
	defer t.leave()
	return t.guest.Known()
}

// Stats are the requests answered so far in a tree; see [fs.Server.Stats].
func (x *Export) Stats(name string) map[string]uint64 {
	t := x.now.Load().byName[name]
	if t == nil || !t.enter() {
		return nil
	}
	defer t.leave()
	return t.guest.Stats()
}

// replace makes a new listing.
//
// Preconditions: mu is held.
func (x *Export) replace(old *listing, add, remove *tree) {
	l := &listing{bySlot: maps.Clone(old.bySlot), byName: maps.Clone(old.byName), since: time.Now()}
	if !l.since.After(old.since) {
		l.since = old.since.Add(time.Nanosecond)
	}
	if l.bySlot == nil {
		l.bySlot, l.byName = map[uint16]*tree{}, map[string]*tree{}
	}
	if add != nil {
		l.bySlot[add.slot], l.byName[add.name] = add, add
	}
	if remove != nil {
		delete(l.bySlot, remove.slot)
		delete(l.byName, remove.name)
	}
	x.now.Store(l)
}

// hold reserves the export for one server.
func (x *Export) hold() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.served {
		return fmt.Errorf("export: another guest is served already: %w", syscall.EBUSY)
	}
	x.served = true
	return nil
}

// release gives the export back and forgets what the guest knew.
func (x *Export) release() {
	x.reset()
	x.mu.Lock()
	x.served = false
	x.mu.Unlock()
}

// reset forgets what the guest was told. No request is under way.
func (x *Export) reset() {
	for _, t := range x.now.Load().bySlot {
		if t.enter() {
			t.guest.Reset()
			t.leave()
		}
	}
}

// node is the id that the guest knows a node of the tree by.
func (t *tree) node(inner uint64) uint64 { return uint64(t.slot)<<fs.GuestIDBits | inner }

// enter lets a request into the tree, unless the tree is gone. The caller leaves.
func (t *tree) enter() bool {
	t.use.RLock()
	if t.gone {
		t.use.RUnlock()
		return false
	}
	return true
}

func (t *tree) leave() { t.use.RUnlock() }

// end waits for the requests under way and detaches the face.
func (t *tree) end() {
	t.use.Lock()
	t.gone = true
	t.use.Unlock()
	t.guest.Close()
}
