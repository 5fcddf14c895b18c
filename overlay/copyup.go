package overlay

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// metaThreshold is from which size a change of metadata alone copies only
	// metadata, in bytes.
	metaThreshold = 64 << 10
	// copyTries is how often a copy of a file that the host writes at the
	// same moment is begun anew.
	copyTries = 8
	// clockGrain is the coarsest step of a change time on the kernels that
	// Galley runs on: within it, two writes may leave the same time.
	clockGrain = 10 * time.Millisecond
)

// want says what an operation needs of a file before it can go on.
type want struct {
	meta  bool  // only metadata will change
	limit int64 // content beyond this is not needed
}

const allContent = int64(1)<<62 - 1

// writable reports whether a payload may be changed in place.
func (t *Tree) writable(x *nodeVer) bool {
	return x != nil && x.flags&verGhost == 0 && (x.layer == t.view.active || x.flags&verOrphan != 0)
}

// raise gives n a payload in the active layer, or in scratch when it has no
// name any more. Admission is held; no other lock is.
func (t *Tree) raise(n *Node, w want) error {
	if n.readOnly {
		return unix.EROFS
	}
	t.mu.RLock()
	x := n.verIn(t.view)
	ok := t.writable(x) && (w.meta || x.flags&verMeta == 0)
	t.mu.RUnlock()
	if ok {
		return nil
	}
	if n.isDir() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if _, err := t.raiseDir(n); err != nil {
			return err
		}
		return t.flushRecord()
	}
	n.up.Lock()
	defer n.up.Unlock()
	t.mu.RLock()
	x = n.verIn(t.view)
	t.mu.RUnlock()
	if t.writable(x) {
		if w.meta || x.flags&verMeta == 0 {
			return nil
		}
		return t.fill(n, x, w.limit)
	}
	return t.copyUp(n, x, w)
}

// source is what a copy-up reads.
type source struct {
	attr Attr
	fd   *fdEnt // of content; nil where none is copied
	dir  *fdEnt // directory that holds it, and its name there
	name string
	base bool
	st   unix.Statx_t // of the base's object
	kept *kept        // beside the object; of a copy that is made, beside that
}

// open finds the content version y of n (nil: the base).
func (t *Tree) openSource(n *Node, y *nodeVer, content bool) (s source, err error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if y != nil {
		s.dir, s.name, err = t.payloadAt(n, y)
	} else {
		s.base, s.name = true, n.bname
		s.dir, err = t.baseDirFD(n.bparent)
	}
	if err != nil {
		return s, err
	}
	if s.base {
		err = t.baseStat(n, &s.st)
	} else {
		err = t.statVer(n, y, &s.st)
	}
	if err == nil && content {
		s.fd, err = t.contentFD(n, y)
	}
	if err != nil {
		t.closeSource(&s)
		return s, err
	}
	s.attr, s.kept = attrOf(&s.st), keptOf(y)
	s.kept.show(&s.attr, n.typ)
	if y != nil && y.flags&verCtime != 0 {
		s.attr.Ctime = y.ctime
	}
	return s, nil
}

func (t *Tree) closeSource(s *source) {
	if s.fd != nil {
		t.fds.done(s.fd)
	}
	if s.dir != nil {
		t.fds.done(s.dir)
	}
}

// copyUp copies n from what version x (nil: the base) shows. n.up is held.
func (t *Tree) copyUp(n *Node, x *nodeVer, w want) error {
	t.mu.RLock()
	y := contentVer(n, t.view)
	t.mu.RUnlock()
	for try := 0; ; try++ {
		done, err := t.tryCopyUp(n, x, y, w)
		if err != nil || done {
			return err
		}
		if try == copyTries {
			return fmt.Errorf("copy up: the host keeps writing the file: %w", unix.EBUSY)
		}
	}
}

// tryCopyUp reports false where the host changed the source meanwhile.
func (t *Tree) tryCopyUp(n *Node, x, y *nodeVer, w want) (bool, error) {
	regular := n.typ == unix.S_IFREG
	src, err := t.openSource(n, y, false)
	if err != nil {
		return false, err
	}
	defer func() { t.closeSource(&src) }()
	t.mu.RLock()
	metaOnly := regular && w.meta && src.attr.Size >= metaThreshold && len(t.namesOf(n)) > 0
	t.mu.RUnlock()
	if w.meta {
		w.limit = allContent
	}
	if regular && !metaOnly && w.limit > 0 {
		if err := t.cfg.Quota.admit(min(contentBytes(&src.st), w.limit)); err != nil {
			return false, fmt.Errorf("copy up: %w", err)
		}
		t.mu.RLock()
		src.fd, err = t.contentFD(n, y)
		t.mu.RUnlock()
		if err != nil {
			return false, fmt.Errorf("copy up: %w", err)
		}
	}
	tmp, fd := t.tempName(), -1
	var digest *[32]byte
	if regular {
		fd, digest, err = t.copyFile(&src, tmp, metaOnly, w.limit)
	} else {
		err = t.copySpecial(&src, n, tmp)
	}
	defer func() {
		if fd >= 0 {
			_ = t.fs.Close(fd)
		}
	}()
	at, name := t.scratchFD, tmp
	if fd >= 0 {
		at, name = fd, ""
	}
	if err == nil {
		err = t.copyMeta(src.dir.fd, src.name, at, name, &src.attr)
	}
	if err == nil {
		src.kept, err = t.keptCopy(&src.attr, src.kept, src.dir.fd, src.name)
	}
	if err == nil && metaOnly {
		err = t.fs.Setxattr(at, name, t.prefix+"metacopy", nil, 0)
	}
	if err != nil {
		_ = t.fs.Unlink(t.scratchFD, tmp, 0)
		return false, fmt.Errorf("copy up: %w", err)
	}
	if src.base && !t.unchanged(&src) {
		_ = t.fs.Unlink(t.scratchFD, tmp, 0)
		return false, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.install(n, x, y, &src, tmp, metaOnly, digest); err != nil {
		_ = t.fs.Unlink(t.scratchFD, tmp, 0)
		if errors.Is(err, errLostName) {
			return false, nil
		}
		return false, fmt.Errorf("copy up: %w", err)
	}
	if fd >= 0 {
		t.countCopy(fd)
		// What is copied up is mostly written next.
		t.fds.done(t.fds.put(fdKey{ver: n.ver, kind: fdWrite}, fd))
		fd = -1
	}
	t.stats.copyUps.Add(1)
	return true, t.flushRecord()
}

// unchanged verifies that the base's object is still what it was before it was
// copied. Where the file was written so recently that a further write might
// leave the same change time, it waits for the clock to move on.
func (t *Tree) unchanged(src *source) bool {
	if age := time.Since(time.Unix(src.attr.Ctime.Sec, int64(src.attr.Ctime.Nsec))); age >= 0 && age < clockGrain {
		time.Sleep(clockGrain - age)
	}
	var now unix.Statx_t
	if t.fs.Stat(src.dir.fd, src.name, &now) != nil {
		return false
	}
	return now.Ctime == src.st.Ctime && now.Mtime == src.st.Mtime && now.Size == src.st.Size && hostID(&now) == hostID(&src.st)
}

func (t *Tree) tempName() string { return "t" + strconv.FormatUint(t.tmpSeq.Add(1), 10) }

// install puts a copy that is ready in scratch in its place.
//
// Preconditions: mu is held.
func (t *Tree) install(n *Node, x, y *nodeVer, src *source, tmp string, metaOnly bool, digest *[32]byte) error {
	if cur := n.verIn(t.view); cur != x {
		return fmt.Errorf("superseded: %w", unix.EAGAIN)
	}
	nlink := src.attr.Nlink
	if y != nil {
		nlink = y.nlink
	}
	if x != nil {
		nlink = x.nlink
	}
	if x == nil && !n.born(t.view) {
		nlink = 0 // a switch of layers took its names away
	}
	names := t.namesOf(n)
	if src.base {
		t.noteWas(n.basePath(), &src.st, digest, n)
		t.noteNames(names, &src.st, digest, n)
	}
	if len(names) == 0 {
		if metaOnly {
			return errLostName
		}
		return t.installOrphan(n, nlink, src, tmp)
	}
	var vers []*nodeVer
	for _, d := range names {
		px, err := t.raiseDir(d.dir)
		if err != nil {
			return err
		}
		vers = append(vers, px)
	}
	v := &nodeVer{
		layer: t.view.active, nlink: nlink, parent: names[0].dir, name: names[0].name, above: vers[0],
		kept: src.kept,
	}
	if metaOnly {
		v.flags |= verMeta
		v.data = dataVer(y)
		v.lower = join(t.pathIn(t.lower, names[0].dir), names[0].name)
	}
	for i, d := range names {
		if err := t.keepTimes(d.dir, vers[i], func(dir int) error {
			if i == 0 {
				return t.fs.Rename(t.scratchFD, tmp, dir, d.name, unix.RENAME_NOREPLACE)
			}
			first, err := t.layerDirFD(names[0].dir, vers[0])
			if err != nil {
				return err
			}
			defer t.fds.done(first)
			return t.fs.Link(first.fd, names[0].name, dir, d.name)
		}); err != nil {
			return err
		}
		if i == 0 {
			n.setVer(v)
			t.dirty = true
			t.logNode(n, v)
		}
		t.setEntry(d.dir, d.name, n)
	}
	return nil
}

// noteNames records what the base has at those of a file's names that no layer
// has yet: each becomes an entry of the active layer.
//
// Preconditions: mu is held.
func (t *Tree) noteNames(names []dent, st *unix.Statx_t, digest *[32]byte, n *Node) {
	for _, d := range names {
		if d.dir.born(t.view) && d.dir.entryIn(t.view, d.name) == nil {
			t.noteWas(join(d.dir.basePath(), d.name), st, digest, n)
		}
	}
}

// setEntry notes what the active layer now has under a name: a node, or a
// whiteout.
//
// Preconditions: mu is held.
func (t *Tree) setEntry(dir *Node, name string, n *Node) {
	dir.putEntry(t.view.active, name, n)
	t.names[dent{dir, name}] = true
	t.rec.enc.entry(dir.ino, name, inoOf(n))
	t.remember(dir)
}

// dataVer is the version whose payload holds the content of y.
func dataVer(y *nodeVer) *nodeVer {
	for y != nil && y.flags&verMeta != 0 {
		y = y.data
	}
	return y
}

// namesOf is the names of n that the live view shows, as far as they were met:
// none where it is unlinked, or a directory above is.
//
// Preconditions: mu is held.
func (t *Tree) namesOf(n *Node) []dent {
	if x := n.verIn(t.view); x != nil && x.flags&verGone != 0 {
		return nil
	}
	names := slices.Clone(n.links)
	if len(names) == 0 {
		if dir, name := n.placeIn(t.view); dir != nil {
			names = []dent{{dir, name}}
		}
	}
	for _, d := range names {
		if x := d.dir.verIn(t.view); x != nil && x.flags&verGone != 0 {
			return nil
		}
	}
	return names
}

// errLostName: a file lost its last name while only its metadata were copied,
// which is too little for one that has none.
var errLostName = errors.New("lost its name")

func (t *Tree) installOrphan(n *Node, nlink uint32, src *source, tmp string) error {
	if err := t.fs.Rename(t.scratchFD, tmp, t.scratchFD, orphanName(n), 0); err != nil {
		return err
	}
	n.setVer(&nodeVer{layer: t.view.active, flags: verOrphan | verGone, nlink: nlink, kept: src.kept})
	return nil
}

// noteWas records what the base has at path, once.
//
// Preconditions: mu is held.
func (t *Tree) noteWas(path string, st *unix.Statx_t, digest *[32]byte, n *Node) {
	if t.wasIn(t.view, path) != nil {
		return
	}
	w := wasOf(path, st)
	if digest != nil {
		w.Digest, w.HasDigest = *digest, true
	}
	if w.Mode&unix.S_IFMT == unix.S_IFLNK && n != nil {
		w.Target, _ = t.readlink(n, nil)
	}
	t.putWas(t.view.active, w)
	t.rec.enc.was(w)
}

func wasOf(path string, st *unix.Statx_t) *Was {
	return &Was{
		Path: path, Exists: true, ID: hostID(st), Mode: uint32(st.Mode), UID: st.Uid, GID: st.Gid,
		Nlink: st.Nlink, Size: int64(st.Size), Rdev: unix.Mkdev(st.Rdev_major, st.Rdev_minor),
		Mtime: timeOf(st.Mtime), Ctime: timeOf(st.Ctime), Btime: timeOf(st.Btime), Seen: coarseNow(),
	}
}

// coarseNow is the clock that the kernel stamps files with.
func coarseNow() Time {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &ts) != nil {
		return Time{}
	}
	return Time{ts.Sec, uint32(ts.Nsec)}
}

// flushRecord brings what was noted to the kernel. A full disk keeps it in
// memory for the next call: the layer itself has the change, and Fsync and a
// seal report the failure.
//
// Preconditions: mu is held.
func (t *Tree) flushRecord() error {
	t.liveMu.Lock()
	for _, dev := range t.newDevs {
		t.rec.enc.device(dev, t.devices[dev])
	}
	t.newDevs = t.newDevs[:0]
	t.liveMu.Unlock()
	const patience = 1 << 20
	err := t.rec.flush()
	if err != nil && len(t.rec.enc.b) < patience && t.rec.err == nil {
		return nil
	}
	return err
}
