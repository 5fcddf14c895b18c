package overlay

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
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
	s.attr = attrOf(&s.st)
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
	metaOnly := regular && w.meta && src.attr.Size >= metaThreshold
	if w.meta {
		w.limit = allContent
	}
	if regular && !metaOnly && w.limit > 0 {
		t.mu.RLock()
		src.fd, err = t.contentFD(n, y)
		t.mu.RUnlock()
		if err != nil {
			return false, fmt.Errorf("copy up: %w", err)
		}
	}
	tmp := t.tempName()
	var digest *[32]byte
	if regular {
		digest, err = t.copyFile(&src, tmp, metaOnly, w.limit)
	} else {
		err = t.copySpecial(&src, n, tmp)
	}
	if err == nil {
		err = t.copyMeta(src.dir.fd, src.name, t.scratchFD, tmp, &src.attr)
	}
	if err == nil && metaOnly {
		err = t.fs.Setxattr(t.scratchFD, tmp, t.prefix+"metacopy", nil, 0)
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
		return false, fmt.Errorf("copy up: %w", err)
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

// copyFile makes a regular file in scratch with the source's content up to
// limit, holes kept; without content when metaOnly, but with its size.
func (t *Tree) copyFile(src *source, tmp string, metaOnly bool, limit int64) (*[32]byte, error) {
	fd, err := t.fs.Open(t.scratchFD, tmp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer t.fs.Close(fd)
	if metaOnly {
		return nil, t.fs.Truncate(fd, src.attr.Size)
	}
	if src.fd == nil || src.attr.Size == 0 {
		return nil, nil
	}
	return t.copyContent(fd, src.fd.fd, src.attr.Size, limit)
}

// copyContent fills dst from src by the cheapest means there is. It returns
// the digest of the content if all of it went through memory.
func (t *Tree) copyContent(dst, src int, size, limit int64) (*[32]byte, error) {
	if limit >= size {
		if err := t.fs.Clone(dst, src); err == nil {
			return nil, nil
		}
		if size <= DigestLimit {
			return t.copySmall(dst, src, size)
		}
	}
	size = min(size, limit)
	if err := t.copyRanges(dst, src, size); err != nil {
		return nil, err
	}
	return nil, t.fs.Truncate(dst, size)
}

func (t *Tree) copySmall(dst, src int, size int64) (*[32]byte, error) {
	buf := make([]byte, size+1)
	n := 0
	for n < len(buf) {
		c, err := t.fs.Pread(src, buf[n:], int64(n))
		if err != nil {
			return nil, err
		}
		if c == 0 {
			break
		}
		n += c
	}
	buf = buf[:n]
	d := sha256.Sum256(buf)
	t.stats.copiedBytes.Add(uint64(n))
	if err := t.writeSparse(dst, buf); err != nil {
		return nil, err
	}
	return &d, nil
}

// writeSparse leaves holes for whole blocks of zeros, as the source may have
// had them.
func (t *Tree) writeSparse(dst int, buf []byte) error {
	const block = 4096
	if len(buf) <= block {
		return hostfs.WriteFull(t.fs, dst, buf, 0)
	}
	if err := t.fs.Truncate(dst, int64(len(buf))); err != nil {
		return err
	}
	for off := 0; off < len(buf); {
		end := off
		for end < len(buf) && !zero(buf[end:min(end+block, len(buf))]) {
			end = min(end+block, len(buf))
		}
		if end > off {
			if err := hostfs.WriteFull(t.fs, dst, buf[off:end], int64(off)); err != nil {
				return err
			}
		}
		off = end
		for off < len(buf) && zero(buf[off:min(off+block, len(buf))]) {
			off = min(off+block, len(buf))
		}
	}
	return nil
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// copyRanges copies the data of src below size, and leaves its holes.
func (t *Tree) copyRanges(dst, src int, size int64) error {
	for off := int64(0); off < size; {
		data, err := t.fs.Seek(src, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		}
		if err != nil {
			return err
		}
		hole, err := t.fs.Seek(src, data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := t.copyRange(dst, src, data, min(hole, size)); err != nil {
			return err
		}
		off = hole
	}
	return nil
}

func (t *Tree) copyRange(dst, src int, off, end int64) error {
	for off < end {
		n, err := t.fs.CopyRange(src, off, dst, off, int(min(end-off, 1<<30)))
		if err == unix.EXDEV || err == unix.EINVAL || err == unix.ENOSYS || err == unix.EOPNOTSUPP {
			return t.copyByHand(dst, src, off, end)
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return nil // the source was cut meanwhile; the check after the copy tells
		}
		t.stats.copiedBytes.Add(uint64(n))
		off += int64(n)
	}
	return nil
}

func (t *Tree) copyByHand(dst, src int, off, end int64) error {
	buf := make([]byte, min(end-off, 1<<20))
	for off < end {
		n, err := t.fs.Pread(src, buf[:min(int64(len(buf)), end-off)], off)
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		if err := hostfs.WriteFull(t.fs, dst, buf[:n], off); err != nil {
			return err
		}
		t.stats.copiedBytes.Add(uint64(n))
		off += int64(n)
	}
	return nil
}

func (t *Tree) copySpecial(src *source, n *Node, tmp string) error {
	if n.typ == unix.S_IFLNK {
		target, err := t.fs.Readlink(src.dir.fd, src.name)
		if err != nil {
			return err
		}
		return t.fs.Symlink(target, t.scratchFD, tmp)
	}
	return t.fs.Mknod(t.scratchFD, tmp, src.attr.Mode, src.attr.Rdev)
}

// copyMeta gives (dstDir, dst) the owner, mode, xattrs and times in a, and the
// xattrs of (srcDir, src), but for Galley's own.
func (t *Tree) copyMeta(srcDir int, src string, dstDir int, dst string, a *Attr) error {
	if err := t.fs.Chown(dstDir, dst, int(a.UID), int(a.GID)); err != nil && !t.ownerUnmapped(err) {
		return fmt.Errorf("set owner %d:%d: %w", a.UID, a.GID, err)
	}
	if !a.IsSymlink() {
		if err := t.fs.Chmod(dstDir, dst, a.Mode&0o7777); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if err := t.copyXattrs(srcDir, src, dstDir, dst); err != nil {
		return err
	}
	ts := [2]unix.Timespec{a.Atime.spec(), a.Mtime.spec()}
	if err := t.fs.Utimes(dstDir, dst, &ts); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// ownerUnmapped tells that the owner cannot be stored by this user. A layer of
// an ordinary user then has the user as owner: all that they could have done
// to the file natively, in a directory of theirs, is to replace it.
func (t *Tree) ownerUnmapped(err error) bool {
	return err == unix.EINVAL || err == unix.EPERM
}

func (t *Tree) copyXattrs(srcDir int, src string, dstDir int, dst string) error {
	names, err := t.listXattrs(srcDir, src)
	if err != nil {
		return err
	}
	for _, name := range names {
		val, err := t.getXattr(srcDir, src, name)
		if err == unix.ENODATA || err == unix.EPERM || err == unix.EACCES {
			continue
		}
		if err != nil {
			return fmt.Errorf("read xattr %s: %w", name, err)
		}
		err = t.fs.Setxattr(dstDir, dst, name, val, 0)
		// What this user may not set, or the file system does not have,
		// overlayfs leaves out as well (security labels, above all).
		if err != nil && err != unix.EPERM && err != unix.EOPNOTSUPP {
			return fmt.Errorf("copy xattr %s: %w", name, err)
		}
	}
	return nil
}

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
	names := slices.Clone(n.links)
	if len(names) == 0 {
		if dir, name := n.placeIn(t.view); dir != nil {
			names = []dent{{dir, name}}
		}
	}
	if src.base {
		t.noteWas(n.basePath(), &src.st, digest, n)
	}
	if len(names) == 0 || x != nil && x.flags&verGone != 0 || !t.named(n, names) {
		return t.installOrphan(n, nlink, tmp)
	}
	var vers []*nodeVer
	for _, d := range names {
		px, err := t.raiseDir(d.dir)
		if err != nil {
			return err
		}
		vers = append(vers, px)
	}
	v := &nodeVer{layer: t.view.active, nlink: nlink, parent: names[0].dir, name: names[0].name}
	if metaOnly {
		v.flags |= verMeta
		v.data = dataVer(y)
		v.lower = join(t.pathIn(t.lower, names[0].dir), names[0].name)
		if y != nil && y.flags&verMeta != 0 && y.lower != "" {
			v.lower = y.lower
		}
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

// setEntry notes what the active layer now has under a name: a node, or a
// whiteout.
//
// Preconditions: mu is held.
func (t *Tree) setEntry(dir *Node, name string, n *Node) {
	dir.putEntry(t.view.active, name, n)
	t.rec.enc.entry(dir.ino, name, inoOf(n))
	t.all[dir] = struct{}{}
}

// dataVer is the version whose payload holds the content of y.
func dataVer(y *nodeVer) *nodeVer {
	for y != nil && y.flags&verMeta != 0 {
		y = y.data
	}
	return y
}

// named reports whether n is still reachable by its names: all directories
// above them are.
func (t *Tree) named(_ *Node, names []dent) bool {
	for _, d := range names {
		if x := d.dir.verIn(t.view); x != nil && x.flags&verGone != 0 {
			return false
		}
	}
	return true
}

func (t *Tree) installOrphan(n *Node, nlink uint32, tmp string) error {
	if err := t.fs.Rename(t.scratchFD, tmp, t.scratchFD, orphanName(n), 0); err != nil {
		return err
	}
	n.setVer(&nodeVer{layer: t.view.active, flags: verOrphan | verGone, nlink: nlink})
	return nil
}

// keepTimes runs fn, which changes the payload of directory n without changing
// what the view has in it, and puts the directory's times back.
//
// Preconditions: mu is held; x is n's version in the active layer.
func (t *Tree) keepTimes(n *Node, x *nodeVer, fn func(dir int) error) error {
	fd, err := t.layerDirFD(n, x)
	if err != nil {
		return err
	}
	defer t.fds.done(fd)
	var st unix.Statx_t
	if err := t.fs.Stat(fd.fd, "", &st); err != nil {
		return err
	}
	if err := fn(fd.fd); err != nil {
		return err
	}
	x.flags |= verUnsynced
	if x.flags&verCtime == 0 {
		x.flags |= verCtime
		x.ctime = timeOf(st.Ctime)
		t.logNode(n, x)
	}
	ts := [2]unix.Timespec{timeOf(st.Atime).spec(), timeOf(st.Mtime).spec()}
	return t.fs.Utimes(fd.fd, "", &ts)
}

// touched notes that something about directory n itself changed: its entries
// or its attributes. The payload's times are then its own.
//
// Preconditions: mu is held; x is n's version in the active layer.
func (t *Tree) touched(n *Node, x *nodeVer) {
	t.dirty = true
	x.flags |= verUnsynced
	if x.flags&(verCtime|verImplicit) == 0 {
		return
	}
	x.flags &^= verCtime
	t.logNode(n, x)
}

// raiseDir gives directory n, and those above it, a payload in the active
// layer. The caller flushes the record.
//
// Preconditions: mu is held.
func (t *Tree) raiseDir(n *Node) (*nodeVer, error) {
	var chain []*Node
	for m := n; ; {
		x := m.verIn(t.view)
		if x != nil && x.flags&verGone != 0 {
			return nil, unix.ENOENT
		}
		if x != nil && x.layer == t.view.active {
			break
		}
		chain = append(chain, m)
		if m, _ = m.placeIn(t.view); m == nil {
			return nil, unix.ENOENT
		}
	}
	for _, m := range slices.Backward(chain) {
		if err := t.copyUpDir(m); err != nil {
			return nil, fmt.Errorf("copy up directory %q: %w", t.pathIn(t.view, m), err)
		}
	}
	return n.verIn(t.view), nil
}

// copyUpDir copies one directory whose parent is in the active layer.
func (t *Tree) copyUpDir(n *Node) error {
	old := n.verIn(t.view)
	parent, name := n.placeIn(t.view)
	a, err := t.attrIn(n, t.view)
	if err != nil {
		return err
	}
	src, err := t.dirFDIn(n, old)
	if err != nil {
		return err
	}
	defer t.fds.done(src)
	tmp := t.tempName()
	if err := t.fs.Mkdir(t.scratchFD, tmp, 0o700); err != nil {
		return err
	}
	err = t.copyMeta(src.fd, "", t.scratchFD, tmp, &a)
	if err == nil {
		err = t.keepTimes(parent, parent.verIn(t.view), func(dir int) error {
			return t.fs.Rename(t.scratchFD, tmp, dir, name, unix.RENAME_NOREPLACE)
		})
	}
	if err != nil {
		_ = t.fs.Unlink(t.scratchFD, tmp, unix.AT_REMOVEDIR)
		return err
	}
	x := &nodeVer{
		layer: t.view.active, flags: verImplicit | verCtime, ctime: a.Ctime,
		parent: parent, name: name, nlink: 1,
	}
	n.setVer(x)
	t.logNode(n, x)
	t.setEntry(parent, name, n)
	return nil
}

// fill completes a metadata-only copy with content up to limit.
func (t *Tree) fill(n *Node, x *nodeVer, limit int64) error {
	for try := 0; ; try++ {
		done, err := t.tryFill(n, x, limit)
		if err != nil {
			return fmt.Errorf("copy up content: %w", err)
		}
		if done {
			return nil
		}
		if try == copyTries {
			return fmt.Errorf("copy up content: the host keeps writing the file: %w", unix.EBUSY)
		}
	}
}

func (t *Tree) tryFill(n *Node, x *nodeVer, limit int64) (bool, error) {
	src, err := t.openSource(n, x.data, true)
	if err != nil {
		return false, err
	}
	defer t.closeSource(&src)
	t.mu.RLock()
	dir, name, err := t.payloadAt(n, x)
	t.mu.RUnlock()
	if err != nil {
		return false, err
	}
	defer t.fds.done(dir)
	var st unix.Statx_t
	if err := t.fs.Stat(dir.fd, name, &st); err != nil {
		return false, err
	}
	dst, err := t.openForce(dir.fd, name, unix.O_RDWR)
	if err != nil {
		return false, err
	}
	defer t.fs.Close(dst)
	if err := t.fs.Truncate(dst, 0); err != nil {
		return false, err
	}
	// Cutting and writing may clear set-id bits that the copy must keep.
	_, err = t.copyContent(dst, src.fd.fd, src.attr.Size, limit)
	if err == nil && src.attr.Size > 0 && limit < src.attr.Size {
		err = t.fs.Truncate(dst, limit)
	}
	if err != nil {
		return false, t.unfill(dst, &st, err)
	}
	if src.base && !t.unchanged(&src) {
		return false, t.unfill(dst, &st, nil)
	}
	if err := t.fs.Chmod(dst, "", uint32(st.Mode)&0o7777); err != nil {
		return false, t.unfill(dst, &st, err)
	}
	ts := [2]unix.Timespec{timeOf(st.Atime).spec(), timeOf(st.Mtime).spec()}
	if err := t.fs.Utimes(dst, "", &ts); err != nil {
		return false, t.unfill(dst, &st, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, mark := range [...]string{"metacopy", "redirect"} {
		if err := t.fs.Removexattr(dst, "", t.prefix+mark); err != nil && err != unix.ENODATA {
			return false, err
		}
	}
	x.flags &^= verMeta
	x.data, x.lower = nil, ""
	x.flags |= verCtime
	x.ctime = timeOf(st.Ctime)
	t.logNode(n, x)
	t.stats.copyUps.Add(1)
	return true, t.flushRecord()
}

// unfill puts a half-filled metadata-only copy back to what it was.
func (t *Tree) unfill(dst int, st *unix.Statx_t, cause error) error {
	if err := t.fs.Truncate(dst, 0); err != nil {
		return fmt.Errorf("%w; and while undoing it: %w", cause, err)
	}
	if err := t.fs.Truncate(dst, int64(st.Size)); err != nil {
		return fmt.Errorf("%w; and while undoing it: %w", cause, err)
	}
	ts := [2]unix.Timespec{timeOf(st.Atime).spec(), timeOf(st.Mtime).spec()}
	if err := t.fs.Utimes(dst, "", &ts); err != nil && cause == nil {
		return err
	}
	return cause
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
