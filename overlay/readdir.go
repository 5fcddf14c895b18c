package overlay

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// DirEntry is one entry of a listing.
type DirEntry struct {
	Name string
	Ino  uint64
	Type uint32 // S_IFMT bits
	// Cookie continues a listing behind this entry. It is a hash of the name
	// and so means the same in every listing of the directory, whatever was
	// added or removed meanwhile.
	Cookie uint64
	// Node is the entry's node if it was looked up under this name and is
	// still in use, by this face or another; it comes without a reference.
	Node *Node
}

// fnvOffset and fnvPrime are the parameters of the 64-bit FNV-1a hash.
const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
	// minCookie leaves room for "." and "..", which faces add.
	minCookie = 16
)

// cookieOf is stable across processes, so that a mount that was taken over
// goes on where it was. The top bit stays clear: offsets are signed.
func cookieOf(name string) uint64 {
	h := uint64(fnvOffset)
	for i := 0; i < len(name); i++ {
		h = (h ^ uint64(name[i])) * fnvPrime
	}
	h ^= h >> 29
	h = h << 1 >> 1
	return max(h, minCookie)
}

// listing is a directory as one reader saw it when it began.
type listing struct {
	node *Node
	view *view
	ents []DirEntry // by cookie, then name
}

// listings keeps the last few, so that a reader that goes on in pieces does
// not have the directory read again for each.
type listings struct {
	mu   sync.Mutex
	list [8]*listing
	next int
}

func (c *listings) get(n *Node, v *view) *listing {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.list {
		if l != nil && l.node == n && l.view == v {
			return l
		}
	}
	return nil
}

func (c *listings) put(l *listing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, old := range c.list {
		if old != nil && old.node == l.node && old.view == l.view {
			c.list[i] = l
			return
		}
	}
	c.list[c.next] = l
	c.next = (c.next + 1) % len(c.list)
}

func (c *listings) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.list[:])
}

// ReadDir calls fn for the entries of n behind cookie (0: from the beginning)
// until fn returns false. "." and ".." are not among them. A listing that goes
// on shows the directory as it was when the listing began, which POSIX allows;
// names made or removed since may be missing or shown.
func (f *Face) ReadDir(n *Node, cookie uint64, fn func(DirEntry) bool) error {
	if !n.isDir() {
		return unix.ENOTDIR
	}
	l, err := f.listing(n, cookie == 0)
	if err != nil {
		return err
	}
	at, _ := slices.BinarySearchFunc(l.ents, cookie, func(e DirEntry, c uint64) int {
		if e.Cookie <= c {
			return -1
		}
		return 1
	})
	for _, e := range l.ents[at:] {
		if !fn(e) {
			return nil
		}
	}
	return nil
}

func (f *Face) listing(n *Node, fresh bool) (*listing, error) {
	t := f.t
	t.admit.RLock()
	defer t.admit.RUnlock()
	t.mu.RLock()
	defer t.mu.RUnlock()
	v := f.view()
	if !fresh {
		if l := f.lists.get(n, v); l != nil {
			return l, nil
		}
	}
	ents, err := t.list(n, v)
	if err != nil {
		return nil, err
	}
	l := &listing{node: n, view: v, ents: ents}
	f.lists.put(l)
	return l, nil
}

// list merges the directory n as view v has it.
//
// Preconditions: mu is held.
func (t *Tree) list(n *Node, v *view) ([]DirEntry, error) {
	x := n.verIn(v)
	if _, was := t.goneDirs[n]; x != nil && x.flags&verGone != 0 || x == nil && was && !n.born(v) {
		return nil, unix.ENOENT
	}
	var out []DirEntry
	for name := range n.ents {
		e := n.entryIn(v, name)
		if e == nil || e.node == nil || t.hidden(v, e.node) {
			continue
		}
		out = append(out, DirEntry{Name: name, Ino: e.node.ino, Type: e.node.typ, Cookie: cookieOf(name), Node: e.node})
	}
	if t.mergesBase(v, n) {
		base, err := t.listBase(n, v)
		if err != nil {
			return nil, err
		}
		out = append(out, base...)
	}
	slices.SortFunc(out, func(a, b DirEntry) int {
		return cmp.Or(cmp.Compare(a.Cookie, b.Cookie), cmp.Compare(a.Name, b.Name))
	})
	return spread(out), nil
}

// spread makes the cookies of names whose hashes meet differ, in the order of
// the names.
func spread(ents []DirEntry) []DirEntry {
	for i := 1; i < len(ents); i++ {
		if ents[i].Cookie <= ents[i-1].Cookie {
			ents[i].Cookie = ents[i-1].Cookie + 1
		}
	}
	return ents
}

// listBase lists what the base has in n and no layer of v changes.
func (t *Tree) listBase(n *Node, v *view) ([]DirEntry, error) {
	fd, err := t.baseDirFD(n)
	if err != nil {
		return nil, err
	}
	defer t.fds.done(fd)
	if t.watch != nil {
		t.watch.add(n, fd.fd)
	}
	dir, err := t.fs.Open(fd.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("list %q in the base: %w", n.basePath(), err)
	}
	defer t.fs.Close(dir)
	var self unix.Statx_t
	if err := t.fs.Stat(dir, "", &self); err != nil {
		return nil, err
	}
	dev := hostID(&self).Dev
	var out []DirEntry
	err = hostfs.ReadDir(t.fs, dir, func(d hostfs.Dirent) error {
		if len(n.ents) > 0 && n.entryIn(v, d.Name) != nil {
			return nil
		}
		e, ok, err := t.baseDirent(n, dir, dev, d)
		if ok {
			out = append(out, e)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list %q in the base: %w", n.basePath(), err)
	}
	return out, nil
}

// baseDirent turns an entry of a base directory into one of the view.
func (t *Tree) baseDirent(n *Node, dirFD int, dev uint64, d hostfs.Dirent) (DirEntry, bool, error) {
	if n == t.root && strings.HasPrefix(d.Name, StagePrefix) {
		return DirEntry{}, false, nil
	}
	typ := uint32(d.Type) << 12
	id := HostID{Dev: dev, Ino: d.Ino}
	ruled := t.cfg.Rules != nil
	if ruled || d.Type == unix.DT_UNKNOWN || d.Type == unix.DT_CHR || d.Type == unix.DT_DIR && len(t.hide) > 0 {
		var st unix.Statx_t
		if err := t.fs.Stat(dirFD, d.Name, &st); err != nil {
			if err == unix.ENOENT {
				return DirEntry{}, false, nil
			}
			return DirEntry{}, false, err
		}
		if t.concealed(n, d.Name, &st) {
			return DirEntry{}, false, nil
		}
		typ, id = uint32(st.Mode)&unix.S_IFMT, hostID(&st)
	}
	e := DirEntry{Name: d.Name, Type: typ, Cookie: cookieOf(d.Name)}
	t.liveMu.Lock()
	defer t.liveMu.Unlock()
	e.Ino = t.baseIno(id)
	if known := t.byBase[id]; known != nil && known.typ == typ {
		e.Ino = known.ino
		if known.bparent == n && known.bname == d.Name {
			e.Node = known
		}
	} else if len(t.inos[e.Ino]) > 0 {
		// The number may be another's that the session has.
		var st unix.Statx_t
		if t.fs.Stat(dirFD, d.Name, &st) == nil {
			o := &Node{ino: e.Ino, typ: typ, hasBase: true, bid: hostID(&st), btime: timeOf(st.Btime)}
			t.ownIno(o)
			e.Ino = o.ino
		}
	}
	return e, true, nil
}

// empty reports whether directory n shows no entry in view v. What rules hide
// counts as an entry: it must not be lost with its directory.
func (t *Tree) empty(n *Node, v *view) (bool, error) {
	for name := range n.ents {
		if e := n.entryIn(v, name); e != nil && e.node != nil {
			return false, nil
		}
	}
	if !t.mergesBase(v, n) {
		return true, nil
	}
	fd, err := t.baseDirFD(n)
	if err != nil {
		return false, err
	}
	defer t.fds.done(fd)
	dir, err := t.fs.Open(fd.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return false, fmt.Errorf("list %q in the base: %w", n.basePath(), err)
	}
	defer t.fs.Close(dir)
	err = hostfs.ReadDir(t.fs, dir, func(d hostfs.Dirent) error {
		if n.entryIn(v, d.Name) != nil {
			return nil
		}
		if d.Type == unix.DT_CHR || d.Type == unix.DT_UNKNOWN {
			var st unix.Statx_t
			if t.fs.Stat(dir, d.Name, &st) != nil || isWhiteoutDev(uint32(st.Mode), st.Rdev_major, st.Rdev_minor) {
				return nil
			}
		}
		return errNotEmpty{}
	})
	if _, full := err.(errNotEmpty); full {
		return false, nil
	}
	return err == nil, err
}

type errNotEmpty struct{}

func (errNotEmpty) Error() string { return "not empty" }
