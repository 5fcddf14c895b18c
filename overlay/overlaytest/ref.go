package overlaytest

import (
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

const nameMax = 255

// Ref is the reference: a tree of nodes in memory. It implements [FS] for a
// caller that is root.
type Ref struct {
	root  *node
	slots map[int]*node
	last  *uint64 // the last node number, shared with snapshots
}

// stamp is what is known of a time: exactly at, at or after since, or (both
// nil) nothing.
type stamp struct {
	at    *overlay.Time
	since *overlay.Time
}

// holds tells whether a file system's time agrees with what is known.
func (s stamp) holds(t overlay.Time) bool {
	switch {
	case s.at != nil:
		return *s.at == t
	case s.since != nil:
		return !t.Before(*s.since)
	}
	return true
}

// clockSlack covers the coarse clock that the kernel stamps inodes with: it
// lags by up to one tick (10 ms at 100 Hz).
const clockSlack = 20 * time.Millisecond

func changedNow() stamp {
	t := time.Now().Add(-clockSlack)
	return stamp{since: &overlay.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}}
}

// node is one inode. The fields below origin are about the base that a view
// is a view of.
type node struct {
	id       uint64
	mode     uint32
	uid, gid uint32
	rdev     uint64
	data     []byte
	shared   bool // data is also that of a snapshot: copy before writing
	target   string
	ents     map[string]*node
	parent   *node // of a directory
	nlink    int   // names; 1 for a directory that is there, 0 for one that is gone
	linkable bool  // made without a name and never linked
	xattr    map[string]string
	mtime    stamp

	origin string // path in the base, where hasOrigin
	// hasOrigin: the node came from the base.
	hasOrigin bool
	// data and metadata changed by the session since.
	ownData, ownMeta bool
	// used are the names that the session ever changed in a directory of
	// the base.
	used map[string]bool
}

// NewRef makes an empty file system.
func NewRef() *Ref {
	r := &Ref{slots: map[int]*node{}, last: new(uint64)}
	r.root = r.newNode(unix.S_IFDIR | 0o755)
	r.root.nlink = 1
	return r
}

func (r *Ref) newNode(mode uint32) *node {
	*r.last++
	n := &node{id: *r.last, mode: mode, mtime: changedNow()}
	if n.isDir() {
		n.ents = map[string]*node{}
	}
	return n
}

func (n *node) kind() uint32 { return n.mode & unix.S_IFMT }
func (n *node) isDir() bool  { return n.kind() == unix.S_IFDIR }
func (n *node) isReg() bool  { return n.kind() == unix.S_IFREG }
func (n *node) gone() bool   { return n.nlink == 0 }

// touched notes that the session changed an entry of a directory.
func (n *node) touched(name string) {
	n.mtime = changedNow()
	if n.hasOrigin {
		if n.used == nil {
			n.used = map[string]bool{}
		}
		n.used[name] = true
	}
}

// own makes data writable by this reference alone.
func (n *node) own() {
	if n.shared {
		n.data, n.shared = slices.Clone(n.data), false
	}
	n.ownData = true
	n.mtime = changedNow()
}

// Snapshot is a deep copy that holds no slots. Nodes keep their numbers.
func (r *Ref) Snapshot() *Ref {
	seen := map[*node]*node{}
	return &Ref{root: copyNode(r.root, nil, seen), slots: map[int]*node{}, last: r.last}
}

func copyNode(n, parent *node, seen map[*node]*node) *node {
	if c := seen[n]; c != nil {
		return c
	}
	n.shared = n.isReg()
	c := *n
	seen[n] = &c
	c.parent = parent
	c.xattr = cloneMap(n.xattr)
	c.used = cloneMap(n.used)
	if n.ents != nil {
		c.ents = make(map[string]*node, len(n.ents))
		for name, e := range n.ents {
			c.ents[name] = copyNode(e, &c, seen)
		}
	}
	return &c
}

func cloneMap[V any](m map[string]V) map[string]V {
	if m == nil {
		return nil
	}
	c := make(map[string]V, len(m))
	for k, v := range m {
		c[k] = v
	}
	return c
}

// Replace makes r show what snapshot s shows. A slot keeps the node of the
// same number; slots whose node s lacks are released and returned.
func (r *Ref) Replace(s *Ref) (lost []int) {
	r.root = s.Snapshot().root
	byID := map[uint64]*node{}
	r.root.walk(func(n *node) { byID[n.id] = n })
	for slot, n := range r.slots {
		if m := byID[n.id]; m != nil {
			r.slots[slot] = m
			continue
		}
		delete(r.slots, slot)
		lost = append(lost, slot)
	}
	return lost
}

// GoneDirs are the slots that hold directories without a name.
func (r *Ref) GoneDirs() (slots []int) {
	for slot, n := range r.slots {
		if n.isDir() && n.gone() {
			slots = append(slots, slot)
		}
	}
	return slots
}

// ReleaseAll releases every slot.
func (r *Ref) ReleaseAll() { clear(r.slots) }

// walk visits every node with a name, a node of several names several times.
func (n *node) walk(fn func(*node)) {
	fn(n)
	for _, e := range n.ents {
		e.walk(fn)
	}
}

// paths visits every name with its path, in no order.
func (n *node) paths(path string, fn func(string, *node)) {
	for name, e := range n.ents {
		p := join(path, name)
		fn(p, e)
		e.paths(p, fn)
	}
}

// Count is the number of names.
func (r *Ref) Count() int {
	c := -1
	r.root.walk(func(*node) { c++ })
	return c
}

func (r *Ref) find(at Loc) (*node, error) {
	n := r.root
	if at.Slot != Root {
		if n = r.slots[at.Slot]; n == nil {
			return nil, syscall.EBADF
		}
	}
	for _, name := range components(at.Path) {
		c, err := n.lookup(name)
		if err != nil {
			return nil, err
		}
		n = c
	}
	return n, nil
}

func (n *node) lookup(name string) (*node, error) {
	if !n.isDir() {
		return nil, syscall.ENOTDIR
	}
	if n.gone() {
		return nil, syscall.ENOENT
	}
	if len(name) > nameMax {
		return nil, syscall.ENAMETOOLONG
	}
	c := n.ents[name]
	if c == nil {
		return nil, syscall.ENOENT
	}
	return c, nil
}

// place finds the directory and the name of at, which need not be there: old
// is nil then.
func (r *Ref) place(at Loc) (dir *node, name string, old *node, err error) {
	parent, name := at.split()
	dir, err = r.find(parent)
	if err != nil {
		return nil, "", nil, err
	}
	old, err = dir.lookup(name)
	if err != nil && err != syscall.ENOENT {
		return nil, "", nil, err
	}
	return dir, name, old, nil
}

// Open implements [FS].
func (r *Ref) Open(slot int, at Loc) error {
	n, err := r.find(at)
	if err != nil {
		return err
	}
	r.slots[slot] = n
	return nil
}

// Release implements [FS].
func (r *Ref) Release(slot int) { delete(r.slots, slot) }

// Stat implements [FS].
func (r *Ref) Stat(at Loc) (Stat, error) {
	n, err := r.find(at)
	if err != nil {
		return Stat{}, err
	}
	return n.stat(), nil
}

func (n *node) stat() Stat {
	st := Stat{Ino: n.id, Mode: n.mode, Nlink: uint32(n.nlink), UID: n.uid, GID: n.gid, Rdev: n.rdev}
	switch n.kind() {
	case unix.S_IFREG:
		st.Size = int64(len(n.data))
	case unix.S_IFLNK:
		st.Size = int64(len(n.target))
	}
	if n.mtime.at != nil {
		st.Mtime = *n.mtime.at
	}
	return st
}

// Readlink implements [FS].
func (r *Ref) Readlink(at Loc) (string, error) {
	n, err := r.find(at)
	if err != nil {
		return "", err
	}
	if n.kind() != unix.S_IFLNK {
		return "", syscall.EINVAL
	}
	return n.target, nil
}

// ReadDir implements [FS]: what is there before the listing began.
func (r *Ref) ReadDir(at Loc, _ int, between func()) ([]Dirent, error) {
	n, err := r.find(at)
	if err != nil {
		return nil, err
	}
	if !n.isDir() {
		return nil, syscall.ENOTDIR
	}
	if n.gone() {
		return nil, syscall.ENOENT
	}
	var out []Dirent
	for name, e := range n.ents {
		out = append(out, Dirent{name, e.id, e.kind()})
	}
	sortDirents(out)
	if between != nil {
		between()
	}
	return out, nil
}

func sortDirents(d []Dirent) {
	slices.SortFunc(d, func(a, b Dirent) int {
		switch {
		case a.Name < b.Name:
			return -1
		case a.Name > b.Name:
			return 1
		}
		return 0
	})
}
