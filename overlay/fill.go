package overlay

import (
	"fmt"

	"golang.org/x/sys/unix"
)

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
	had := contentBytes(&st)
	if err := t.cfg.Quota.admit(min(contentBytes(&src.st), limit) - had); err != nil {
		return false, err
	}
	dst, err := t.openForce(dir.fd, name, unix.O_RDWR)
	if err != nil {
		return false, err
	}
	defer t.fs.Close(dst)
	// Until the marks go, content is the lower layers' and only the size counts,
	// so that a crash in between shows nothing. Cutting and writing may clear set-id bits that the copy must keep.
	_, err = t.copyContent(dst, src.fd.fd, hostID(&src.st).Dev, src.attr.Size, limit)
	if size := min(src.attr.Size, limit); err == nil && size != int64(st.Size) {
		err = t.fs.Truncate(dst, size)
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
	t.countCopy(dst)
	t.cfg.Quota.Add(-had)
	return true, t.flushRecord()
}

// unfill puts a half-filled metadata-only copy back to what it was.
func (t *Tree) unfill(dst int, st *unix.Statx_t, cause error) error {
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	err := t.fs.Fallocate(dst, punch, 0, max(1, int64(st.Size)))
	if err == unix.EOPNOTSUPP {
		err = t.fs.Truncate(dst, 0)
	}
	if err == nil {
		err = t.fs.Truncate(dst, int64(st.Size))
	}
	if err != nil {
		return fmt.Errorf("%w; and while undoing it: %w", cause, err)
	}
	ts := [2]unix.Timespec{timeOf(st.Atime).spec(), timeOf(st.Mtime).spec()}
	if err := t.fs.Utimes(dst, "", &ts); err != nil && cause == nil {
		return err
	}
	return cause
}
