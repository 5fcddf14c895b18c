package overlay

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Timeouts for what a kernel may cache: long where every change is notified,
// short where the host may change something unseen, so that it is seen within
// the second, finding out and dropping pages included.
const (
	longTimeout  = 24 * time.Hour
	shortTimeout = time.Second / 2
)

// Face is one way into a tree: a mount, a guest, a program in process. All
// operations are its methods; they may be called concurrently. A face follows
// the live view ([Tree.Attach]) or stays on one stack of sealed layers
// ([Tree.View]) and is then read-only.
//
// A *Node that an operation returns carries one reference of the face, which
// [Face.Forget] gives back. A node without references may still be named by a
// directory, and is found again by a lookup.
type Face struct {
	t        *Tree
	fixed    *view // nil: the live one
	notifier Notifier

	mu    sync.Mutex
	refs  map[*Node]uint64
	queue []Event
	// flushes are closed when what is in the queue was delivered.
	flushes []chan struct{}
	wake    chan struct{}
	stop    chan struct{}
	ended   sync.WaitGroup
	closed  bool
	lists   listings
}

// Attach makes a face of the live view. n may be nil for a face that caches
// nothing. Detach it after use.
func (t *Tree) Attach(n Notifier) *Face {
	f := &Face{t: t, notifier: n, refs: make(map[*Node]uint64)}
	t.addFace(f)
	return f
}

// View makes a read-only face of the sealed layers in s. Host edits that no
// layer covers show through.
func (t *Tree) View(s Stack) (*Face, error) {
	s.Active = 0
	if err := t.Load(s); err != nil {
		return nil, err
	}
	f := &Face{t: t, fixed: newView(s), refs: make(map[*Node]uint64)}
	t.addFace(f)
	return f, nil
}

func (t *Tree) addFace(f *Face) {
	if f.notifier != nil {
		f.wake, f.stop = make(chan struct{}, 1), make(chan struct{})
		f.ended.Add(1)
		go f.deliver()
	}
	t.facesMu.Lock()
	t.faces = append(t.faces, f)
	t.facesMu.Unlock()
}

// Detach ends the face: its references are given back and it is notified of
// nothing more. No operation may be under way or follow.
func (f *Face) Detach() {
	t := f.t
	t.facesMu.Lock()
	for i, g := range t.faces {
		if g == f {
			t.faces = append(t.faces[:i:i], t.faces[i+1:]...)
			break
		}
	}
	t.facesMu.Unlock()
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return
	}
	f.closed = true
	refs := f.refs
	f.refs = nil
	f.mu.Unlock()
	if f.notifier != nil {
		close(f.stop)
		f.ended.Wait()
	}
	t.admit.RLock()
	defer t.admit.RUnlock()
	for n, c := range refs {
		t.unref(n, int64(c))
	}
}

// Root is the root node; it needs no Forget.
func (f *Face) Root() *Node { return f.t.root }

// ReadOnly reports whether the face refuses all changes.
func (f *Face) ReadOnly() bool { return f.fixed != nil || f.t.view.active == 0 }

// view is what the face shows.
//
// Preconditions: Tree.mu is held.
func (f *Face) view() *view {
	if f.fixed != nil {
		return f.fixed
	}
	return f.t.view
}

// hold takes a reference for the face.
func (f *Face) hold(n *Node) {
	if n == f.t.root {
		return
	}
	n.refs.Add(1)
	f.mu.Lock()
	if f.refs != nil {
		f.refs[n]++
	}
	f.mu.Unlock()
}

// Forget gives back count references to n.
func (f *Face) Forget(n *Node, count uint64) {
	if n == f.t.root || count == 0 {
		return
	}
	f.mu.Lock()
	have := f.refs[n]
	count = min(count, have)
	if count == have {
		delete(f.refs, n)
	} else {
		f.refs[n] = have - count
	}
	f.mu.Unlock()
	if count == 0 {
		return
	}
	f.t.admit.RLock()
	defer f.t.admit.RUnlock()
	f.t.unref(n, int64(count))
}

// unref drops references, and with the last one what only they kept: a node
// that no layer knows, or the content of a file that has no name any more.
func (t *Tree) unref(n *Node, count int64) {
	for n != nil && n != t.root {
		if n.refs.Add(-count) > 0 {
			return
		}
		n, count = t.drop(n), 1
	}
}

// drop forgets n if nothing needs it and returns the parent that n's reference
// is to be taken from, if any.
func (t *Tree) drop(n *Node) *Node {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.refs.Load() > 0 {
		return nil
	}
	delete(t.goneDirs, n)
	// Rarely is there any, and a file may have a version in each of ten thousand
	// layers.
	for x := n.ver; x != nil && n.orphaned; x = x.prev {
		if x.flags&verOrphan != 0 {
			t.dropOrphan(n, x)
		}
	}
	n.orphaned = false
	if _, indexed := t.all[n]; indexed || !n.hasBase {
		return nil
	}
	t.liveMu.Lock()
	defer t.liveMu.Unlock()
	if t.byBase[n.baseKey()] != n {
		return nil
	}
	delete(t.byBase, n.baseKey())
	n.clearLinks()
	t.fds.drop(nil, n)
	if n.isDir() && t.watch != nil {
		t.watch.remove(n)
	}
	return n.bparent
}

// dropOrphan removes the content of a file without a name.
//
// Preconditions: mu is held.
func (t *Tree) dropOrphan(n *Node, x *nodeVer) {
	t.fds.drop(x, nil)
	// A failure leaves a file in scratch, which the next open removes.
	_ = t.unlinkOrphan(n)
	n.dropVer(x.layer)
	if x.nlink > 0 {
		t.leaveToBase(n)
	}
}

// leaveToBase parts n from its names in the base that were never met: they
// show the base.
func (t *Tree) leaveToBase(n *Node) {
	t.liveMu.Lock()
	if n.hasBase && t.byBase[n.baseKey()] == n {
		delete(t.byBase, n.baseKey())
	}
	t.liveMu.Unlock()
}

// baseKey is under what identity the node is found when the base is looked at.
func (n *Node) baseKey() HostID {
	if n.alias {
		return HostID{Dev: n.bid.Dev, Ino: n.bid.Ino | 1<<63}
	}
	return n.bid
}

// Timeouts tells how long a kernel may trust what it was told: entry, of the
// names in n, present and missing ones; attr, of n's attributes.
func (f *Face) Timeouts(n *Node) (entry, attr time.Duration) {
	t := f.t
	t.mu.RLock()
	defer t.mu.RUnlock()
	x := n.verIn(f.view())
	entry, attr = longTimeout, longTimeout
	if !n.hasBase {
		return entry, attr
	}
	if n.isDir() {
		if watchState(n.watch.Load()) != watched {
			entry = shortTimeout
			if x == nil {
				attr = shortTimeout
			}
		}
		return entry, attr
	}
	if x != nil && x.flags&verMeta == 0 {
		return entry, attr
	}
	if p := n.bparent; p == nil || watchState(p.watch.Load()) != watched {
		attr = shortTimeout
	}
	return entry, attr
}

// Path is the node's path in the face's view, "" for the root and for a node
// without a name. It is for messages and rules, not for reaching anything.
func (f *Face) Path(n *Node) string {
	f.t.mu.RLock()
	defer f.t.mu.RUnlock()
	return f.t.pathIn(f.view(), n)
}

// emit notifies the other faces.
func (f *Face) emit(evs ...Event) { f.t.emit(f, evs) }

// emit queues evs for all faces but the one they came through. No lock is held
// while a face is told.
func (t *Tree) emit(from *Face, evs []Event) {
	t.facesMu.RLock()
	defer t.facesMu.RUnlock()
	if len(evs) == 0 {
		return
	}
	for _, f := range t.faces {
		if f == from || f.notifier == nil {
			continue
		}
		f.mu.Lock()
		f.queue = append(f.queue, evs...)
		f.mu.Unlock()
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
}

func (f *Face) deliver() {
	defer f.ended.Done()
	defer f.flushed()
	for {
		select {
		case <-f.stop:
			return
		case <-f.wake:
		}
		f.mu.Lock()
		evs, waiting := f.queue, f.flushes
		f.queue, f.flushes = nil, nil
		f.mu.Unlock()
		if len(evs) > 0 {
			f.notifier.Notify(evs)
		}
		for _, ch := range waiting {
			close(ch)
		}
	}
}

// flushed lets those go who wait for a face that is no more.
func (f *Face) flushed() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, ch := range f.flushes {
		close(ch)
	}
	f.flushes = nil
}

// begin admits an operation that changes something.
func (f *Face) begin() error {
	f.t.admit.RLock()
	if f.fixed != nil || f.t.rec == nil {
		f.t.admit.RUnlock()
		return unix.EROFS
	}
	return nil
}

func (f *Face) end() { f.t.admit.RUnlock() }
