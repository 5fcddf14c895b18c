package overlay

import (
	"encoding/binary"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// watchState of a base directory.
type watchState int32

const (
	unwatched watchState = iota
	watched
	unwatchable // the host's limit is reached, or its file system does not tell
)

const watchMask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
	unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK

// watcher tells faces what the host changes in directories of the base that
// somebody looked into (inotify(7)). What it misses (stores through mmap,
// changes made on other machines) is found when timeouts end.
type watcher struct {
	t      *Tree
	fd     int
	wakeFD int
	ended  sync.WaitGroup
	closed sync.Once
	broken atomic.Bool

	mu   sync.Mutex
	dirs map[int32]*Node
	wds  map[*Node]int32
}

// startWatcher returns nil where the host gives no inotify instance.
func startWatcher(t *Tree) *watcher {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		_ = unix.Close(fd)
		return nil
	}
	w := &watcher{t: t, fd: fd, wakeFD: wake, dirs: make(map[int32]*Node), wds: make(map[*Node]int32)}
	w.ended.Add(1)
	go w.run()
	return w
}

// close ends the watcher and waits for that; further calls do nothing.
func (w *watcher) close() {
	w.closed.Do(func() {
		var one [8]byte
		binary.NativeEndian.PutUint64(one[:], 1)
		_, _ = unix.Write(w.wakeFD, one[:])
		w.ended.Wait()
		_ = unix.Close(w.fd)
		_ = unix.Close(w.wakeFD)
	})
}

// add watches the base directory n, open as dirFD, from before its entries are
// first looked at.
func (w *watcher) add(n *Node, dirFD int) {
	if watchState(n.watch.Load()) != unwatched || w.broken.Load() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if watchState(n.watch.Load()) != unwatched {
		return
	}
	wd, err := unix.InotifyAddWatch(w.fd, hostfs.ProcPath(dirFD, ""), watchMask)
	if err != nil || !tellsChanges(dirFD) {
		n.watch.Store(int32(unwatchable))
		return
	}
	w.dirs[int32(wd)] = n
	w.wds[n] = int32(wd)
	n.watch.Store(int32(watched))
}

// tellsChanges reports whether all changes to a directory of that file system
// go through this kernel.
func tellsChanges(fd int) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil {
		return false
	}
	switch uint32(st.Type) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC,
		unix.FUSE_SUPER_MAGIC, unix.V9FS_MAGIC, unix.CEPH_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, unix.OCFS2_SUPER_MAGIC,
		unix.OVERLAYFS_SUPER_MAGIC:
		return false
	}
	return true
}

func (w *watcher) remove(n *Node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	wd, ok := w.wds[n]
	if !ok {
		return
	}
	delete(w.wds, n)
	delete(w.dirs, wd)
	n.watch.Store(int32(unwatched))
	_, _ = unix.InotifyRmWatch(w.fd, uint32(wd))
}

func (w *watcher) run() {
	defer w.ended.Done()
	buf := make([]byte, 64<<10)
	for {
		fds := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}, {Fd: int32(w.wakeFD), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			w.giveUp()
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		n, err := unix.Read(w.fd, buf)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			w.giveUp()
			return
		}
		w.t.emit(nil, w.decode(buf[:n]))
	}
}

// giveUp makes every directory one that is not watched, so that timeouts
// become short again.
func (w *watcher) giveUp() {
	w.broken.Store(true)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.dirs {
		n.watch.Store(int32(unwatchable))
	}
}

func (w *watcher) decode(b []byte) (evs []Event) {
	for len(b) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(b))
		mask := binary.NativeEndian.Uint32(b[4:])
		n := int(binary.NativeEndian.Uint32(b[12:]))
		if n > len(b)-unix.SizeofInotifyEvent {
			return evs
		}
		name := string(b[unix.SizeofInotifyEvent : unix.SizeofInotifyEvent+n])
		b = b[unix.SizeofInotifyEvent+n:]
		name, _, _ = strings.Cut(name, "\x00")
		if mask&unix.IN_Q_OVERFLOW != 0 {
			evs = append(evs, w.everything()...)
			continue
		}
		evs = append(evs, w.translate(wd, mask, name)...)
	}
	return evs
}

// everything is what to forget when the host's queue overflowed: all that is
// known of the base.
func (w *watcher) everything() (evs []Event) {
	w.t.liveMu.Lock()
	defer w.t.liveMu.Unlock()
	for _, n := range w.t.byBase {
		if n.bparent != nil {
			evs = append(evs, Event{Parent: n.bparent, Name: n.bname})
		}
		evs = append(evs, Event{Node: n, Data: true})
	}
	return evs
}

func (w *watcher) translate(wd int32, mask uint32, name string) (evs []Event) {
	w.mu.Lock()
	dir := w.dirs[wd]
	if mask&unix.IN_IGNORED != 0 && dir != nil {
		delete(w.dirs, wd)
		delete(w.wds, dir)
		dir.watch.Store(int32(unwatched))
	}
	w.mu.Unlock()
	if dir == nil {
		return nil
	}
	if name == "" {
		return []Event{{Node: dir}}
	}
	if mask&(unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_MOVED_TO) != 0 {
		evs = append(evs, Event{Parent: dir, Name: name}, Event{Node: dir, Data: true})
	}
	if n := w.t.baseNodeAt(dir, name); n != nil {
		evs = append(evs, Event{Node: n, Data: mask&(unix.IN_MODIFY|unix.IN_MOVED_TO|unix.IN_CREATE) != 0})
	}
	return evs
}

// baseNodeAt is the node that the base now has in dir under name, if a face
// holds it and the live view shows the base's content of it.
func (t *Tree) baseNodeAt(dir *Node, name string) *Node {
	t.admit.RLock()
	defer t.admit.RUnlock()
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.closed {
		return nil
	}
	fd, err := t.baseDirFD(dir)
	if err != nil {
		return nil
	}
	defer t.fds.done(fd)
	var st unix.Statx_t
	if t.fs.Stat(fd.fd, name, &st) != nil {
		return nil
	}
	t.liveMu.Lock()
	defer t.liveMu.Unlock()
	n := t.byBase[hostID(&st)]
	if n == nil {
		return nil
	}
	if x := n.verIn(t.view); x != nil && x.flags&(verMeta|verGhost) == 0 {
		return nil
	}
	n.stamp.Store(contentStamp(&st))
	return n
}
