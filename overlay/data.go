package overlay

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// openForce opens an object of a layer even where its mode keeps its owner
// out, as a file that was made with mode 0444 must be written until it is
// closed: the mode is widened for the moment of the call.
func (t *Tree) openForce(dir int, name string, flags int) (int, error) {
	flags |= unix.O_NOFOLLOW | unix.O_NONBLOCK
	fd, err := t.fs.Open(dir, name, flags, 0)
	if err != unix.EACCES {
		return fd, err
	}
	var st unix.Statx_t
	if serr := t.fs.Stat(dir, name, &st); serr != nil {
		return -1, err
	}
	mode := uint32(st.Mode) & 0o7777
	if t.fs.Chmod(dir, name, mode|0o600) != nil {
		return -1, err
	}
	fd, err = t.fs.Open(dir, name, flags, 0)
	if cerr := t.fs.Chmod(dir, name, mode); cerr != nil && err == nil {
		_ = t.fs.Close(fd)
		return -1, cerr
	}
	return fd, err
}

// contentFD is a descriptor to read the content that version y (nil: the base)
// of n shows.
//
// Preconditions: mu is held.
func (t *Tree) contentFD(n *Node, y *nodeVer) (*fdEnt, error) {
	y = dataVer(y)
	if y == nil {
		return t.baseFD(n)
	}
	if e := t.fds.get(fdKey{ver: y, kind: fdWrite}); e != nil {
		return e, nil
	}
	k := fdKey{ver: y, kind: fdRead}
	if e := t.fds.get(k); e != nil {
		return e, nil
	}
	dir, name, err := t.payloadAt(n, y)
	if err != nil {
		return nil, err
	}
	defer t.fds.done(dir)
	fd, err := t.openForce(dir.fd, name, unix.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("layer %d: open %q: %w", y.layer, y.name, lost(err))
	}
	return t.fds.put(k, fd), nil
}

// baseFD is a descriptor to read the content of an object of the base.
func (t *Tree) baseFD(n *Node) (*fdEnt, error) {
	k := fdKey{node: n, kind: fdRead}
	if e := t.fds.get(k); e != nil {
		return e, nil
	}
	if n.bparent == nil {
		return nil, unix.EISDIR
	}
	dir, err := t.baseDirFD(n.bparent)
	if err != nil {
		return nil, err
	}
	defer t.fds.done(dir)
	fd, err := t.fs.Open(dir.fd, n.bname, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		if err == unix.ENOENT || err == unix.ELOOP {
			return nil, fmt.Errorf("%q: %w", n.basePath(), ErrDrifted)
		}
		return nil, fmt.Errorf("open %q in the base: %w", n.basePath(), err)
	}
	var st unix.Statx_t
	err = t.fs.Stat(fd, "", &st)
	if err == nil && (hostID(&st) != n.bid || !n.sameBase(&st)) {
		err = fmt.Errorf("%q: %w", n.basePath(), ErrDrifted)
	}
	if err != nil {
		_ = t.fs.Close(fd)
		return nil, err
	}
	return t.fds.put(k, fd), nil
}

// forRead is a descriptor on what the face shows of n now.
func (f *Face) forRead(n *Node) (*fdEnt, error) {
	if n.typ != unix.S_IFREG {
		if n.isDir() {
			return nil, unix.EISDIR
		}
		return nil, unix.EINVAL
	}
	f.t.mu.RLock()
	defer f.t.mu.RUnlock()
	return f.t.contentFD(n, contentVer(n, f.view()))
}

// Read reads at off; 0 is the end of the file.
func (f *Face) Read(n *Node, p []byte, off int64) (int, error) {
	t := f.t
	t.admit.RLock()
	defer t.admit.RUnlock()
	fd, err := f.forRead(n)
	if err != nil {
		return 0, err
	}
	defer t.fds.done(fd)
	got := 0
	for got < len(p) {
		c, err := t.fs.Pread(fd.fd, p[got:], off+int64(got))
		if err != nil {
			if got > 0 {
				return got, nil
			}
			return 0, err
		}
		if c == 0 {
			break
		}
		got += c
	}
	return got, nil
}

// ReadFD is a descriptor from which the present content of n can be read (or
// spliced) until release is called. Later changes through the tree may or may
// not show in it; it must not be kept across requests.
func (f *Face) ReadFD(n *Node) (fd int, release func(), err error) {
	t := f.t
	t.admit.RLock()
	defer t.admit.RUnlock()
	e, err := f.forRead(n)
	if err != nil {
		return -1, nil, err
	}
	return e.fd, func() { t.fds.done(e) }, nil
}

// forWrite is a descriptor to change the content of n in place, with the copy
// up that it may take.
func (t *Tree) forWrite(n *Node) (*fdEnt, error) {
	if n.typ != unix.S_IFREG {
		if n.isDir() {
			return nil, unix.EISDIR
		}
		return nil, unix.EINVAL
	}
	if n.readOnly {
		return nil, unix.EROFS
	}
	for {
		fd, err := t.writeFD(n)
		if fd != nil || err != nil {
			return fd, err
		}
		if err := t.raise(n, want{limit: allContent}); err != nil {
			return nil, err
		}
	}
}

// writeFD is nil where the payload is not to be written.
func (t *Tree) writeFD(n *Node) (*fdEnt, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	x := n.verIn(t.view)
	if contentVer(n, t.view) == nil && !n.born(t.view) {
		return nil, unix.ESTALE
	}
	if !t.writable(x) || x.flags&verMeta != 0 {
		return nil, nil
	}
	k := fdKey{ver: x, kind: fdWrite}
	if e := t.fds.get(k); e != nil {
		return e, nil
	}
	dir, name, err := t.payloadAt(n, x)
	if err != nil {
		return nil, err
	}
	defer t.fds.done(dir)
	fd, err := t.openForce(dir.fd, name, unix.O_RDWR)
	if err != nil {
		return nil, fmt.Errorf("layer %d: open %q: %w", x.layer, x.name, lost(err))
	}
	return t.fds.put(k, fd), nil
}

// wrote notes that the content of n changed: a recorded change time is over.
func (f *Face) wrote(n *Node) {
	t := f.t
	t.mu.RLock()
	x := n.verIn(t.view)
	stale := x != nil && x.flags&verCtime != 0 || !t.dirty
	t.mu.RUnlock()
	if stale {
		t.mu.Lock()
		t.dirty = true
		if x := n.verIn(t.view); x != nil && x.flags&verCtime != 0 && x.flags&verGhost == 0 {
			x.flags &^= verCtime
			if x.flags&verOrphan == 0 {
				t.logNode(n, x)
			}
		}
		_ = t.flushRecord()
		t.mu.Unlock()
	}
	f.emit(Event{Node: n, Data: true})
}

// Write writes p at off, extending the file as need be.
func (f *Face) Write(n *Node, p []byte, off int64) (int, error) {
	if err := f.begin(); err != nil {
		return 0, err
	}
	defer f.end()
	if len(p) == 0 && n.typ == unix.S_IFREG {
		return 0, nil // nothing to copy up for
	}
	fd, err := f.t.forWrite(n)
	if err != nil {
		return 0, err
	}
	defer f.t.fds.done(fd)
	if f.t.cfg.Quota != nil {
		n.up.Lock()
		defer n.up.Unlock()
	}
	return f.write(n, fd.fd, p, off)
}

// write is the end of all writing.
//
// Preconditions: with a quota, n.up is held.
func (f *Face) write(n *Node, fd int, p []byte, off int64) (int, error) {
	fit, err := f.t.fits(fd, off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	done := 0
	err = f.t.metered(fd, "", nil, func() (err error) { done, err = f.writeAll(n, fd, p[:fit], off); return err })
	return done, err
}

func (f *Face) writeAll(n *Node, fd int, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		c, err := f.t.fs.Pwrite(fd, p[done:], off+int64(done))
		done += max(c, 0)
		if err != nil && done == 0 {
			return 0, err
		}
		if err != nil || c == 0 {
			break
		}
	}
	f.wrote(n)
	return done, nil
}

// WriteKeepTimes is Write that leaves the modification time as it was: for a
// kernel that keeps the times itself while it holds writes back, and sets them
// by Setattr.
func (f *Face) WriteKeepTimes(n *Node, p []byte, off int64) (int, error) {
	if err := f.begin(); err != nil {
		return 0, err
	}
	defer f.end()
	t := f.t
	fd, err := t.forWrite(n)
	if err != nil {
		return 0, err
	}
	defer t.fds.done(fd)
	n.up.Lock()
	defer n.up.Unlock()
	var st unix.Statx_t
	if err := t.fs.Stat(fd.fd, "", &st); err != nil {
		return 0, err
	}
	done, err := f.write(n, fd.fd, p, off)
	if err != nil {
		return done, err
	}
	ts := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, timeOf(st.Mtime).spec()}
	return done, t.fs.Utimes(fd.fd, "", &ts)
}

// WriteKill is Write for a writer whose writing clears the set-id bits.
func (f *Face) WriteKill(n *Node, p []byte, off int64) (int, error) {
	if len(p) > 0 {
		if err := f.DropPrivileges(n); err != nil {
			return 0, err
		}
	}
	return f.Write(n, p, off)
}

// DropPrivileges clears what somebody else's write to n clears: set-id bits and
// file capabilities. It comes before the write, so that nobody can run what was
// written with them, and after the copy-up, which brings them along.
func (f *Face) DropPrivileges(n *Node) error {
	if err := f.begin(); err != nil {
		return err
	}
	fd, err := f.t.forWrite(n)
	if err == nil {
		f.t.fds.done(fd)
	}
	f.end()
	if err != nil {
		return err
	}
	_, err = f.Setattr(n, SetAttr{KillSuidgid: true})
	return err
}

// Append writes p at the end of the file. Appends of one tree do not overlap.
func (f *Face) Append(n *Node, p []byte) (int, error) {
	if err := f.begin(); err != nil {
		return 0, err
	}
	defer f.end()
	if len(p) == 0 && n.typ == unix.S_IFREG {
		return 0, nil // nothing to copy up for
	}
	fd, err := f.t.forWrite(n)
	if err != nil {
		return 0, err
	}
	defer f.t.fds.done(fd)
	n.up.Lock()
	defer n.up.Unlock()
	var st unix.Statx_t
	if err := f.t.fs.Stat(fd.fd, "", &st); err != nil {
		return 0, err
	}
	return f.write(n, fd.fd, p, int64(st.Size))
}

// Fallocate is fallocate(2).
func (f *Face) Fallocate(n *Node, mode uint32, off, size int64) error {
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	fd, err := f.t.forWrite(n)
	if err != nil {
		return err
	}
	defer f.t.fds.done(fd)
	if err := f.t.fallocate(n, fd.fd, mode, off, size); err != nil {
		return err
	}
	f.wrote(n)
	return nil
}

func (t *Tree) fallocate(n *Node, fd int, mode uint32, off, size int64) error {
	if t.cfg.Quota == nil {
		return t.fs.Fallocate(fd, mode, off, size)
	}
	n.up.Lock()
	defer n.up.Unlock()
	grow := func(st *unix.Statx_t) int64 {
		if mode&unix.FALLOC_FL_PUNCH_HOLE != 0 {
			return 0
		}
		return grows(st, off, size)
	}
	if mode&(unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE) == unix.FALLOC_FL_KEEP_SIZE {
		// What lies beyond the end is not counted, and would be a way around.
		return unix.EOPNOTSUPP
	}
	return t.metered(fd, "", grow, func() error { return t.fs.Fallocate(fd, mode, off, size) })
}

// Seek finds data or a hole (SEEK_DATA, SEEK_HOLE) from off.
func (f *Face) Seek(n *Node, off int64, whence int) (int64, error) {
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, unix.EINVAL
	}
	t := f.t
	t.admit.RLock()
	defer t.admit.RUnlock()
	fd, err := f.forRead(n)
	if err != nil {
		return 0, err
	}
	defer t.fds.done(fd)
	return t.fs.Seek(fd.fd, off, whence)
}

// CopyRange copies within the tree as copy_file_range(2) does, sharing blocks
// where the file system can.
func (f *Face) CopyRange(src *Node, srcOff int64, dst *Node, dstOff int64, size int64) (int64, error) {
	if err := f.begin(); err != nil {
		return 0, err
	}
	defer f.end()
	if src.typ == unix.S_IFREG && dst.typ == unix.S_IFREG {
		f.t.mu.RLock()
		a, err := f.t.attrIn(src, f.view())
		f.t.mu.RUnlock()
		if err != nil {
			return 0, err
		}
		if size == 0 || srcOff >= a.Size {
			return 0, nil // nothing to copy up for
		}
	}
	out, err := f.t.forWrite(dst)
	if err != nil {
		return 0, err
	}
	defer f.t.fds.done(out)
	in, err := f.forRead(src)
	if err != nil {
		return 0, err
	}
	defer f.t.fds.done(in)
	if f.t.cfg.Quota != nil {
		dst.up.Lock()
		defer dst.up.Unlock()
	}
	if size, err = f.t.fits(out.fd, dstOff, min(size, 1<<30)); err != nil {
		return 0, err
	}
	n := 0
	err = f.t.metered(out.fd, "", nil, func() (err error) {
		n, err = f.t.fs.CopyRange(in.fd, srcOff, out.fd, dstOff, int(size))
		return err
	})
	if n > 0 {
		f.wrote(dst)
	}
	return int64(n), err
}

// Fsync makes the content of n durable, and, as the file systems that people
// use do, the names that lead to it.
func (f *Face) Fsync(n *Node, dataOnly bool) error {
	t := f.t
	t.admit.RLock()
	defer t.admit.RUnlock()
	if f.fixed != nil {
		return nil
	}
	t.mu.RLock()
	x := n.verIn(t.view)
	mine := t.writable(x)
	t.mu.RUnlock()
	if !mine {
		return nil
	}
	if n.typ == unix.S_IFREG && x.flags&verMeta == 0 {
		if err := t.syncFile(n, dataOnly); err != nil {
			return err
		}
	}
	if err := t.syncNames(n); err != nil || t.cfg.Synced == nil {
		return err
	}
	return t.cfg.Synced()
}

// Sync makes everything durable that was written through any face before.
func (f *Face) Sync() error {
	t := f.t
	t.admit.RLock()
	defer t.admit.RUnlock()
	if f.ReadOnly() {
		return nil
	}
	if err := t.syncAll(); err != nil || t.cfg.Synced == nil {
		return err
	}
	return t.cfg.Synced()
}

func (t *Tree) syncFile(n *Node, dataOnly bool) error {
	fd, err := t.writeFD(n)
	if err != nil || fd == nil {
		return err
	}
	defer t.fds.done(fd)
	if dataOnly {
		return t.fs.Fdatasync(fd.fd)
	}
	return t.fs.Fsync(fd.fd)
}

// syncNames makes durable the record and the directories above n whose entries
// changed since they were last synced.
func (t *Tree) syncNames(n *Node) error {
	t.mu.Lock()
	var dirs []*fdEnt
	var vers []*nodeVer
	defer func() {
		for _, e := range dirs {
			t.fds.done(e)
		}
	}()
	m := n
	if !m.isDir() {
		m, _ = n.placeIn(t.view)
	}
	for ; m != nil; m, _ = m.placeIn(t.view) {
		x := m.verIn(t.view)
		if x == nil || x.layer != t.view.active || x.flags&verGhost != 0 {
			break
		}
		if x.flags&verUnsynced != 0 {
			e, err := t.layerDirFD(m, x)
			if err != nil {
				t.mu.Unlock()
				return err
			}
			dirs, vers = append(dirs, e), append(vers, x)
			x.flags &^= verUnsynced
		}
		if m == t.root {
			break
		}
	}
	err := t.rec.flush()
	rec, synced := t.rec, t.rec.synced == t.rec.size
	size := t.rec.size
	t.mu.Unlock()
	if err == nil && !synced {
		if err = t.fs.Fdatasync(rec.fd); err == nil {
			t.mu.Lock()
			rec.synced = max(rec.synced, size)
			t.mu.Unlock()
		}
	}
	for _, e := range dirs {
		if err == nil {
			err = t.syncDir(e.fd)
		}
	}
	if err != nil {
		t.mu.Lock()
		for _, x := range vers {
			x.flags |= verUnsynced
		}
		t.mu.Unlock()
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// syncDir syncs a directory held by an O_PATH descriptor.
func (t *Tree) syncDir(path int) error {
	fd, err := t.fs.Open(path, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer t.fs.Close(fd)
	return t.fs.Fsync(fd)
}

// Raised reports whether n has a payload that writes go to at once: nothing is
// copied up for them.
func (f *Face) Raised(n *Node) bool {
	t := f.t
	t.mu.RLock()
	defer t.mu.RUnlock()
	x := n.verIn(t.view)
	return t.writable(x) && x.flags&verMeta == 0
}
