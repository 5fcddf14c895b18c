package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

const (
	rootID = 1

	// firstOwnIno is where the inode numbers of nodes born in a session
	// begin. It leaves all numbers that file systems use in practice to the
	// base, and stays below 2^53 with all that can follow, since programs
	// that hold inode numbers in a double compare them.
	firstOwnIno = 1 << 52
	// deviceShift spreads the objects of a base's further devices.
	deviceShift = 44

	defaultMaxFDs = 512

	// DigestLimit is up to which size, in bytes, a copy-up also hashes what
	// it copies. Above it, drift is decided on the other facts.
	DigestLimit = 1 << 20

	dirtyMark = "dirty"
	indexName = "index"
)

// Tree is a base and its stack of layers, merged. Its operations are those of
// the faces attached to it ([Tree.Attach]); they may be called concurrently.
type Tree struct {
	cfg    Config
	fs     hostfs.FS
	base   *Base
	prefix string // of Galley's xattrs in layers, with the final dot
	hide   map[HostID]bool

	stateFD, layersFD, scratchFD int

	ruledFiles ruledFiles
	fds        *fdCache
	noClone    sync.Map // devices (uint64) whose files cannot be cloned into a layer
	uid, gid   uint32   // of what this process makes
	keep       bool     // owners are kept in the record: see kept
	watch      *watcher

	// admit is held shared by every operation and exclusively by a Barrier.
	admit sync.RWMutex

	mu       sync.RWMutex
	view     *view // live; replaced, never changed
	lower    *view // view without its active layer
	root     *Node
	rec      *recordWriter
	was      map[string]*wasVer // by path in the base
	nextIno  uint64
	all      map[*Node]struct{}
	goneDirs map[*Node]Attr // removed directories that a face still holds, as they were
	tmpSeq   atomic.Uint64
	dirty    bool             // the active layer has changes
	loaded   map[LayerID]bool // layers whose records are in memory
	checked  []Range          // of layers that are all loaded
	// inos are the nodes of all by their number, of which views of different
	// layers may have several. An object of the base whose number is another
	// node's, because the host used it again, gets one made of its whole
	// identity.
	inos map[uint64][]*Node
	// identify gives an object of the base the identity that it has in another
	// tree on the base; nil asks nobody.
	identify func(*Node)
	names    map[dent]bool // names that the active layer changed
	sealed   sealedNames   // those of the layer sealed last
	closed   bool

	liveMu  sync.Mutex
	byBase  map[HostID]*Node
	devices map[uint64]uint32 // the base's devices and their numbers
	newDevs []uint64          // not yet in a record
	nextID  atomic.Uint64

	facesMu sync.RWMutex
	faces   []*Face

	stats counters
}

type wasVer struct {
	layer LayerID
	was   *Was
	prev  *wasVer
}

type counters struct {
	copyUps, copiedBytes, baseCalls atomic.Uint64
}

// Stats are counters of a tree since it was opened, and its present size.
type Stats struct {
	CopyUps     uint64 // files whose content or metadata was copied into a layer
	CopiedBytes uint64 // bytes that copy-ups moved; clones count nothing
	BaseCalls   uint64 // lookups that asked the base
	Nodes       int    // nodes of the base that faces hold, and nodes of layers
	FDs         int    // cached descriptors
}

// Stats returns the tree's counters.
func (t *Tree) Stats() Stats {
	t.liveMu.Lock()
	nodes := len(t.byBase)
	t.liveMu.Unlock()
	return Stats{
		CopyUps:     t.stats.copyUps.Load(),
		CopiedBytes: t.stats.copiedBytes.Load(),
		BaseCalls:   t.stats.baseCalls.Load(),
		Nodes:       nodes,
		FDs:         t.fds.len(),
	}
}

// Name is the tree's name in its session.
func (t *Tree) Name() string { return t.cfg.Name }

// Stack is what the live view is made of.
func (t *Tree) Stack() Stack {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.view.stack()
}

// remember notes a node that layers know.
//
// Preconditions: mu is held, or nobody else knows t.
func (t *Tree) remember(n *Node) {
	t.all[n] = struct{}{}
	if same := t.inos[n.ino]; !slices.Contains(same, n) {
		t.inos[n.ino] = append(same, n)
	}
}

// disregard forgets a node that layers no longer know.
//
// Preconditions: mu is held.
func (t *Tree) disregard(n *Node) {
	delete(t.all, n)
	same := slices.DeleteFunc(t.inos[n.ino], func(m *Node) bool { return m == n })
	if len(same) == 0 {
		delete(t.inos, n.ino)
		return
	}
	t.inos[n.ino] = same
}

// ownIno gives n, an object of the base, a number of its own, if that of the
// object is another's that the session has: the host used it again. A record
// could not tell the two apart. Only what the live view shows counts, so that
// the answer does not depend on what else is in memory.
//
// Preconditions: mu is held, or nobody else knows t.
func (t *Tree) ownIno(n *Node) {
	for _, other := range t.inos[n.ino] {
		x := other.verIn(t.view)
		if x == nil || x.flags&verGone != 0 || other == n ||
			other.hasBase && other.bid == n.bid && other.btime == n.btime && other.typ == n.typ {
			continue
		}
		h := fnv.New64a()
		_ = binary.Write(h, binary.LittleEndian, [4]uint64{n.bid.Dev, n.bid.Ino, uint64(n.btime.Sec), uint64(n.btime.Nsec)})
		n.ino = firstOwnIno<<1 | h.Sum64()&(firstOwnIno-1)
		return
	}
}

// NextIno is one above all inode numbers that nodes of the tree's own got so
// far: see [Config.FirstIno].
func (t *Tree) NextIno() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.nextIno
}

// Dirty reports whether the active layer has any change.
func (t *Tree) Dirty() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.dirty
}

// InitState lays out the state of a new tree in the existing, empty directory
// dir, with an empty active layer. With an error dir is empty again.
func InitState(fs hostfs.FS, dir string, active LayerID) error {
	if fs == nil {
		fs = hostfs.OS
	}
	fd, err := hostfs.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("state directory %q: %w", dir, err)
	}
	defer unix.Close(fd)
	if err := initState(fs, fd, active); err != nil {
		return fmt.Errorf("state directory %q: %w", dir, err)
	}
	return nil
}

func initState(fs hostfs.FS, fd int, active LayerID) (err error) {
	var made []string
	defer func() {
		if err == nil {
			return
		}
		for _, name := range made {
			_ = hostfs.RemoveAll(fs, fd, name)
		}
	}()
	for _, name := range [...]string{"layers", "scratch"} {
		err := fs.Mkdir(fd, name, 0o700)
		if err == nil {
			made = append(made, name)
		} else if err != unix.EEXIST {
			return fmt.Errorf("make %s: %w", name, err)
		}
	}
	layers, err := fs.Open(fd, "layers", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer fs.Close(layers)
	prefix, err := probePrefix(fs, fd)
	if err == unix.ENOSPC || err == unix.EDQUOT {
		return err
	}
	if err != nil {
		return fmt.Errorf("its file system takes no extended attributes (%w); put GALLEY_HOME on one that does, such as ext4, xfs, btrfs or tmpfs", err)
	}
	return makeLayer(fs, layers, active, prefix)
}

// probePrefix finds the namespace for Galley's xattrs: "trusted." where the
// process may use it, else "user.".
func probePrefix(fs hostfs.FS, stateFD int) (string, error) {
	fd, err := fs.Open(stateFD, "scratch", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	defer fs.Close(fd)
	for _, ns := range [...]string{"trusted.", "user."} {
		probe := ns + "overlay.galley"
		if err = fs.Setxattr(fd, "", probe, []byte("y"), 0); err == nil {
			_ = fs.Removexattr(fd, "", probe)
			return ns + "overlay.", nil
		}
	}
	return "", err
}

// makeLayer makes the directories of layer l. A half-made one is completed.
func makeLayer(fs hostfs.FS, layersFD int, l LayerID, prefix string) error {
	name := layerName(l)
	if err := fs.Mkdir(layersFD, name, 0o700); err != nil && err != unix.EEXIST {
		return fmt.Errorf("make layer %d: %w", l, err)
	}
	fd, err := fs.Open(layersFD, name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("make layer %d: %w", l, err)
	}
	defer fs.Close(fd)
	if err := fs.Mkdir(fd, "tree", 0o755); err != nil && err != unix.EEXIST {
		return fmt.Errorf("make layer %d: %w", l, err)
	}
	rec, err := fs.Open(fd, "record", unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("make layer %d: record: %w", l, err)
	}
	defer fs.Close(rec)
	var enc encoder
	enc.header(l, prefix)
	if err := hostfs.WriteFull(fs, rec, enc.b, 0); err != nil {
		return fmt.Errorf("make layer %d: record: %w", l, err)
	}
	return nil
}

func layerName(l LayerID) string { return strconv.Itoa(int(l)) }

// Open opens the tree whose state is in cfg.StateDir, showing stack. Unless
// cfg.ReadOnly is set the caller must be the only one that does so, and a
// layer that was not closed cleanly is first compared with its record and made
// to agree with it.
func Open(cfg Config, stack Stack) (*Tree, error) {
	if cfg.FS == nil {
		cfg.FS = hostfs.OS
	}
	if cfg.MaxFDs <= 0 {
		cfg.MaxFDs = defaultMaxFDs
	}
	t := &Tree{
		cfg: cfg, fs: cfg.FS, base: cfg.Base,
		stateFD: -1, layersFD: -1, scratchFD: -1,
		fds:      newFDCache(cfg.FS, cfg.MaxFDs),
		was:      make(map[string]*wasVer),
		devices:  make(map[uint64]uint32),
		all:      make(map[*Node]struct{}),
		inos:     make(map[uint64][]*Node),
		goneDirs: make(map[*Node]Attr),
		byBase:   make(map[HostID]*Node),
		hide:     make(map[HostID]bool),
		nextIno:  max(firstOwnIno, cfg.FirstIno),
		loaded:   make(map[LayerID]bool),
		names:    make(map[dent]bool),
		uid:      uint32(unix.Geteuid()), gid: uint32(unix.Getegid()),
	}
	for _, id := range cfg.Hide {
		t.hide[id] = true
	}
	if cfg.ReadOnly {
		stack.Active = 0
	}
	t.setView(newView(stack))
	if err := t.open(); err != nil {
		t.release()
		return nil, fmt.Errorf("tree %q in %q: %w", cfg.Name, cfg.StateDir, err)
	}
	return t, nil
}

func (t *Tree) setView(v *view) { t.view, t.lower = v, v.lower() }

func (t *Tree) open() (err error) {
	dir := unix.O_PATH | unix.O_DIRECTORY
	if t.stateFD, err = hostfs.OpenRoot(t.cfg.StateDir); err != nil {
		return fmt.Errorf("open state directory: %w", err)
	}
	if t.layersFD, err = t.fs.Open(t.stateFD, "layers", dir, 0); err != nil {
		return fmt.Errorf("open layers: %w", err)
	}
	if t.scratchFD, err = t.fs.Open(t.stateFD, "scratch", dir, 0); err != nil {
		return fmt.Errorf("open scratch: %w", err)
	}
	if err := t.makeRoot(); err != nil {
		return err
	}
	clean, err := t.load()
	if err != nil {
		return err
	}
	if t.cfg.ReadOnly {
		return nil
	}
	if t.prefix, err = t.xattrPrefix(); err != nil {
		return fmt.Errorf("the file system of the state directory takes no extended attributes: %w", err)
	}
	if err := t.markDirty(); err != nil {
		return err
	}
	if err := t.clearScratch(); err != nil {
		return err
	}
	t.keep = t.cfg.KeepAlways || t.cfg.KeepOwners && !t.mayGiveAway()
	if t.view.active != 0 {
		if err := t.startActive(); err != nil {
			return err
		}
		if !clean {
			if err := t.reconcile(); err != nil {
				return fmt.Errorf("recover layer %d: %w", t.view.active, err)
			}
		}
		t.dirty = t.activeHasChanges()
		t.touchActive()
	}
	if !t.cfg.NoWatch && t.base != nil {
		t.watch = startWatcher(t)
	}
	return nil
}

// makeRoot makes the root node, whose number is that of the base's root.
func (t *Tree) makeRoot() error {
	t.root = &Node{id: rootID, typ: unix.S_IFDIR, ino: rootID}
	t.root.refs.Store(1)
	t.nextID.Store(rootID)
	t.remember(t.root)
	if t.base == nil {
		return nil
	}
	var st unix.Statx_t
	if err := t.fs.Stat(t.base.fd, "", &st); err != nil {
		return fmt.Errorf("base: %w", err)
	}
	t.devices[t.base.id.Dev] = 0
	t.root.hasBase = true
	t.root.bid, t.root.btime = hostID(&st), timeOf(st.Btime)
	t.root.ino = t.baseIno(t.root.bid)
	t.byBase[t.root.bid] = t.root
	return nil
}

// startActive opens the record of the active layer for appending and gives the
// root its version there.
func (t *Tree) startActive() error {
	rec, err := t.openRecord(t.view.active)
	if err != nil {
		return err
	}
	t.rec = rec
	t.loaded[t.view.active] = true
	if t.root.verAt(t.view.active) != nil {
		return nil
	}
	t.logTaken()
	return t.startRoot(t.view.active)
}

// logTaken begins a layer's record with the numbers that are taken, also by
// layers that no view has any more but that may come back.
func (t *Tree) logTaken() {
	t.rec.enc.inode(t.nextIno - 1)
	for dev, n := range t.devices {
		t.rec.enc.device(dev, n)
	}
}

func (t *Tree) openRecord(l LayerID) (*recordWriter, error) {
	fd, err := t.openLayerFile(l, "record", unix.O_RDWR)
	if err != nil {
		return nil, fmt.Errorf("record of layer %d: %w", l, err)
	}
	end, err := t.fs.Seek(fd, 0, unix.SEEK_END)
	if err != nil {
		_ = t.fs.Close(fd)
		return nil, fmt.Errorf("record of layer %d: %w", l, err)
	}
	return &recordWriter{fs: t.fs, fd: fd, size: end}, nil
}

// xattrPrefix is the namespace for the marks in layers.
func (t *Tree) xattrPrefix() (string, error) {
	if t.cfg.UserXattr {
		return "user.overlay.", nil
	}
	return probePrefix(t.fs, t.stateFD)
}

func (t *Tree) openLayerFile(l LayerID, name string, flags int) (int, error) {
	return t.fs.Open(t.layersDir(l), layerName(l)+"/"+name, flags|unix.O_NOFOLLOW, 0)
}

// layersDir is the directory that has layer l's.
func (t *Tree) layersDir(l LayerID) int {
	for i := range t.cfg.LayerDirs {
		if d := &t.cfg.LayerDirs[i]; d.holds(l) {
			return d.FD
		}
	}
	return t.layersFD
}

// startRoot makes the root of layer l look as the root of the view below it:
// its mode, owner, times and xattrs.
//
// Preconditions: mu is held, or nobody else knows t; t.view.active == l.
func (t *Tree) startRoot(l LayerID) error {
	x := &nodeVer{layer: l, flags: verImplicit}
	old := t.root.verIn(t.lower)
	if old == nil && t.base == nil {
		if t.keep {
			x.kept = &kept{mode: 0o755}
		}
		t.root.ver = x
		x.prev = nil
		t.logNode(t.root, x)
		return nil
	}
	if _, foreign := t.cfg.LayerTrees[l]; foreign {
		x.prev = t.root.ver
		t.root.ver = x
		t.logNode(t.root, x)
		return nil
	}
	a, err := t.attrIn(t.root, t.lower)
	if err != nil {
		return fmt.Errorf("root of layer %d: %w", l, err)
	}
	src, err := t.dirFDIn(t.root, old)
	if err != nil {
		return fmt.Errorf("root of layer %d: %w", l, err)
	}
	defer t.fds.done(src)
	x.prev = t.root.ver
	t.root.ver = x
	if x.kept, err = t.keptCopy(&a, keptOf(old), src.fd, ""); err != nil {
		t.root.ver = x.prev
		return fmt.Errorf("root of layer %d: %w", l, err)
	}
	dst, err := t.dirFDIn(t.root, x)
	if err != nil {
		t.root.ver = x.prev
		return fmt.Errorf("root of layer %d: %w", l, err)
	}
	defer t.fds.done(dst)
	if err := t.copyMeta(src.fd, "", dst.fd, "", &a); err != nil {
		t.root.ver = x.prev
		return fmt.Errorf("root of layer %d: %w", l, err)
	}
	x.flags |= verCtime
	x.ctime = a.Ctime
	t.logNode(t.root, x)
	return nil
}

func (t *Tree) markDirty() error {
	return Distrust(t.fs, t.stateFD)
}

func (t *Tree) activeHasChanges() bool {
	for n := range t.all {
		x := n.ver
		if x != nil && x.layer == t.view.active && x.flags&verImplicit == 0 {
			return true
		}
		for _, e := range n.ents {
			if e.layer == t.view.active && (e.node == nil || e.node.ver == nil ||
				e.node.ver.layer != t.view.active || e.node.ver.flags&verImplicit == 0) {
				return true
			}
		}
	}
	return false
}

// Hide makes an object of the host one that no view shows, from now on.
func (t *Tree) Hide(id HostID) {
	t.admit.Lock()
	t.hide[id] = true
	t.admit.Unlock()
}

// Sync makes everything acknowledged so far durable.
func (t *Tree) Sync() error {
	t.admit.RLock()
	defer t.admit.RUnlock()
	return t.syncAll()
}

// syncAll flushes the file system that holds the layers: one call does what a
// walk over every changed file and directory would.
func (t *Tree) syncAll() error {
	t.mu.Lock()
	var err error
	if t.rec != nil {
		err = t.rec.flush()
	}
	t.mu.Unlock()
	if err != nil {
		return err
	}
	fd, err := t.fs.Open(t.stateFD, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer t.fs.Close(fd)
	if err := t.fs.Syncfs(fd); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// Close ends the use of the tree. It fails with EBUSY while faces are attached.
func (t *Tree) Close() error {
	t.facesMu.RLock()
	busy := len(t.faces)
	t.facesMu.RUnlock()
	if busy > 0 {
		return fmt.Errorf("tree %q: %d views are still attached: %w", t.cfg.Name, busy, unix.EBUSY)
	}
	// The watcher's goroutine takes the admission lock to tell what it saw, so
	// that waiting for its end while holding the lock would wait for ever.
	if t.watch != nil {
		t.watch.close()
	}
	t.admit.Lock()
	defer t.admit.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	var errs []error
	if !t.cfg.ReadOnly {
		errs = append(errs, t.shutdown())
	}
	t.release()
	return errors.Join(errs...)
}

func (t *Tree) shutdown() error {
	if t.rec != nil {
		if err := t.rec.flush(); err != nil {
			return err
		}
	}
	if err := t.writeIndex(); err != nil {
		return err
	}
	err := t.fs.Unlink(t.stateFD, dirtyMark, 0)
	if err != nil && err != unix.ENOENT {
		return fmt.Errorf("mark as closed: %w", err)
	}
	return nil
}

func (t *Tree) release() {
	if t.watch != nil {
		t.watch.close()
	}
	t.fds.close()
	if t.rec != nil {
		_ = t.rec.close()
	}
	for _, fd := range [...]int{t.scratchFD, t.layersFD, t.stateFD} {
		if fd >= 0 {
			_ = t.fs.Close(fd)
		}
	}
	for _, fd := range t.cfg.LayerTrees {
		_ = t.fs.Close(fd)
	}
	for _, d := range t.cfg.LayerDirs {
		_ = t.fs.Close(d.FD)
	}
	if t.base != nil {
		_ = t.base.Close()
	}
}

// baseIno is the st_ino of an object of the base.
//
// Preconditions: liveMu is held, or nobody else knows t.
func (t *Tree) baseIno(id HostID) uint64 {
	i, ok := t.devices[id.Dev]
	if !ok {
		i = uint32(len(t.devices))
		t.devices[id.Dev] = i
		t.newDevs = append(t.newDevs, id.Dev)
	}
	if i == 0 {
		return id.Ino
	}
	return uint64(i)<<deviceShift ^ id.Ino
}
