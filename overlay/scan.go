package overlay

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// scan makes the index agree with what the active layer's tree really holds:
// after a crash, in which the last steps may be missing from either, and for a
// layer that something else made. The tree is the truth about what is there;
// the record about what it is.
type scan struct {
	t     *Tree
	seen  map[*Node]bool
	inode map[uint64]*Node // hard links, by the host's inode number
}

// reconcile scans the active layer.
func (t *Tree) reconcile() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &scan{t: t, seen: map[*Node]bool{t.root: true}, inode: map[uint64]*Node{}}
	s.linked()
	dirs := []*Node{t.root}
	for len(dirs) > 0 {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		sub, err := s.dir(dir)
		if err != nil {
			return fmt.Errorf("%q: %w", t.pathIn(t.view, dir), err)
		}
		dirs = append(dirs, sub...)
	}
	s.dropUnseen()
	t.findLinks()
	t.countLinks()
	return t.rec.flush()
}

// clearScratch removes what an earlier process left: unfinished objects, and
// files without a name that it held.
func (t *Tree) clearScratch() error {
	fd, err := t.fs.Open(t.scratchFD, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("scratch: %w", err)
	}
	defer t.fs.Close(fd)
	var names []string
	if err := hostfs.ReadDir(t.fs, fd, func(d hostfs.Dirent) error {
		if d.Name != whiteoutName {
			names = append(names, d.Name)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("scratch: %w", err)
	}
	for _, name := range names {
		if err := hostfs.RemoveAll(t.fs, t.scratchFD, name); err != nil {
			return fmt.Errorf("scratch: remove %q: %w", name, err)
		}
	}
	return nil
}

// linked finds the recorded files of the active layer that have several names
// there, of which one may not be recorded.
func (s *scan) linked() {
	t := s.t
	for n := range t.all {
		x := n.verAt(t.view.active)
		if x == nil || n.isDir() || x.flags&(verGone|verOrphan|verGhost) != 0 {
			continue
		}
		var st unix.Statx_t
		if t.statVer(n, x, &st) == nil && uint32(st.Mode)&unix.S_IFMT == payloadType(x, n.typ) && st.Nlink > 1 {
			s.inode[st.Ino] = n
		}
	}
}

// refill puts back the whiteouts of a directory that was being emptied, for a
// rename over it: opaque meanwhile, it showed nothing of the base.
func (s *scan) refill(dir *Node, fd int, there map[string]bool) error {
	t := s.t
	if v, err := t.getXattr(fd, "", t.prefix+"opaque"); err != nil || string(v) != "y" || !t.hasLower(dir) {
		return nil
	}
	for name, e := range dir.ents {
		if e.layer != t.view.active || e.node != nil || there[name] {
			continue
		}
		if err := t.putWhiteout(fd, name, false); err != nil {
			return err
		}
		there[name] = true
	}
	return t.fs.Removexattr(fd, "", t.prefix+"opaque")
}

// dir compares one directory and returns those below it.
func (s *scan) dir(dir *Node) (sub []*Node, err error) {
	t := s.t
	at, err := t.layerDirFD(dir, dir.verAt(t.view.active))
	if err != nil {
		return nil, err
	}
	defer t.fds.done(at)
	fd, err := t.fs.Open(at.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer t.fs.Close(fd)
	there := map[string]bool{}
	var names []string
	if err := hostfs.ReadDir(t.fs, fd, func(d hostfs.Dirent) error {
		names = append(names, d.Name)
		return nil
	}); err != nil {
		return nil, err
	}
	for _, name := range names {
		n, kept, err := s.entry(dir, fd, name)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		there[name] = kept
		if n != nil && n.isDir() {
			sub = append(sub, n)
		}
	}
	if err := s.refill(dir, fd, there); err != nil {
		return nil, err
	}
	for name, e := range dir.ents {
		if e.layer == t.view.active && !there[name] {
			dir.dropEntry(t.view.active, name)
			t.rec.enc.dropped(dir.ino, name)
		}
	}
	return sub, nil
}

// entry compares one name. It returns the node there, nil for a whiteout, and
// whether anything is there.
func (s *scan) entry(dir *Node, fd int, name string) (*Node, bool, error) {
	t := s.t
	var st unix.Statx_t
	if err := t.fs.Stat(fd, name, &st); err != nil {
		return nil, false, err
	}
	if !validName(name) {
		return nil, false, ErrCorrupt
	}
	var known *entry
	if e := dir.ents[name]; e != nil && e.layer == t.view.active {
		known = e
	}
	if isWhiteoutDev(uint32(st.Mode), st.Rdev_major, st.Rdev_minor) {
		if known == nil || known.node != nil {
			if _, err := t.lowerHas(dir, name); err != nil && !errors.Is(err, ErrDrifted) {
				return nil, false, err
			}
			if known == nil {
				if err := s.unlinked(dir, name); err != nil {
					return nil, false, err
				}
			}
			t.setEntry(dir, strings.Clone(name), nil)
		}
		return nil, true, nil
	}
	if known != nil && known.node == nil && s.placeholder(fd, name, &st) {
		return nil, true, t.putWhiteout(fd, name, false)
	}
	typ := uint32(st.Mode) & unix.S_IFMT
	if known != nil && known.node != nil && payloadType(known.node.verAt(t.view.active), known.node.typ) == typ && !s.moved(known.node, dir, name) && s.leadsTo(dir, fd, name, known.node) {
		if x := known.node.ver; x != nil && x.layer == t.view.active && x.flags&verGhost == 0 {
			s.saw(known.node, &st)
			return known.node, true, nil
		}
	}
	n, err := s.adopt(dir, fd, name, &st)
	return n, true, err
}

// placeholder removes the empty opaque directory that an interrupted rename
// left in the place of a whiteout.
func (s *scan) placeholder(fd int, name string, st *unix.Statx_t) bool {
	if uint32(st.Mode) != unix.S_IFDIR|0o700 {
		return false
	}
	if v, err := s.t.getXattr(fd, name, s.t.prefix+"opaque"); err != nil || string(v) != "y" {
		return false
	}
	return s.t.fs.Unlink(fd, name, unix.AT_REMOVEDIR) == nil
}

// moved reports whether the record has the directory n in another place.
func (s *scan) moved(n, dir *Node, name string) bool {
	x := n.ver
	return n.isDir() && x != nil && (s.seen[n] || x.parent != dir || x.name != name)
}

// leadsTo reports whether the object's redirect, if it has one, leads to what
// the directory n merges with.
func (s *scan) leadsTo(dir *Node, fd int, name string, n *Node) bool {
	if !n.isDir() {
		return true
	}
	r, err := s.t.getXattr(fd, name, s.t.prefix+"redirect")
	if err != nil || len(r) == 0 {
		return true
	}
	to, err := s.redirected(dir, string(r))
	return err == nil && to == n
}

// stale reports whether the object that the record has of n in the active layer
// is not there any more, since it was moved and that was not recorded.
func (s *scan) stale(n *Node) bool {
	x := n.verAt(s.t.view.active)
	if x == nil || x.flags&(verGhost|verOrphan) != 0 {
		return false
	}
	at, name, err := s.t.payloadAt(n, x)
	if err != nil {
		return true
	}
	defer s.t.fds.done(at)
	var st unix.Statx_t
	if s.t.fs.Stat(at.fd, name, &st) != nil || uint32(st.Mode)&unix.S_IFMT != payloadType(x, n.typ) {
		return true
	}
	return n.isDir() && !s.leadsTo(x.parent, at.fd, name, n)
}

// unlinked takes a name from the count of a file of which the layer has only
// that it was removed.
func (s *scan) unlinked(dir *Node, name string) error {
	t := s.t
	n, err := s.lower(dir, name)
	if err != nil || n == nil || n.isDir() || n.verAt(t.view.active) != nil {
		return err
	}
	return t.goneName(n, dent{dir, name})
}

func (s *scan) saw(n *Node, st *unix.Statx_t) {
	s.seen[n] = true
	if !n.isDir() && st.Nlink > 1 {
		s.inode[st.Ino] = n
	}
}

// adopt takes in an object of the layer that the record does not know.
func (s *scan) adopt(dir *Node, fd int, name string, st *unix.Statx_t) (*Node, error) {
	t := s.t
	typ := uint32(st.Mode) & unix.S_IFMT
	name = strings.Clone(name)
	if typ != unix.S_IFDIR && st.Nlink > 1 {
		if n := s.inode[st.Ino]; n != nil && payloadType(n.verAt(t.view.active), n.typ) == typ {
			s.seen[n] = true
			t.setEntry(dir, name, n)
			return n, nil
		}
	}
	x := &nodeVer{layer: t.view.active, parent: dir, name: name, above: dir.verAt(t.view.active), nlink: 1}
	n, err := s.origin(dir, fd, name, typ, x)
	if err != nil {
		return nil, err
	}
	if n == nil {
		n = &Node{id: t.nextID.Add(1), typ: typ, ino: t.nextIno}
		t.nextIno++
	}
	if old := n.verAt(t.view.active); old != nil && old.flags&(verGhost|verOrphan) == 0 {
		// It moved: what is in it refers to the version as it is.
		t.fds.drop(old, nil)
		old.parent, old.name, old.above = x.parent, x.name, x.above
		x = old
	} else {
		n.setVer(x)
	}
	s.saw(n, st)
	t.logNode(n, x)
	t.setEntry(dir, name, n)
	t.dirty = true
	return n, nil
}

// origin finds the node of a lower layer or the base that an object of the
// layer is a copy of, and says in x what it takes from it.
func (s *scan) origin(dir *Node, fd int, name string, typ uint32, x *nodeVer) (*Node, error) {
	t := s.t
	if typ != unix.S_IFDIR && typ != unix.S_IFREG {
		return nil, nil
	}
	mark := func(attr string) (string, bool) {
		v, err := t.getXattr(fd, name, t.prefix+attr)
		return string(v), err == nil
	}
	if v, ok := mark("opaque"); ok && v == "y" && typ == unix.S_IFDIR {
		return nil, nil
	}
	_, meta := mark("metacopy")
	var n *Node
	var err error
	if r, ok := mark("redirect"); ok && r != "" {
		n, err = s.redirected(dir, r)
	} else {
		n, err = s.lower(dir, name)
	}
	if err != nil {
		return nil, err
	}
	usable := n != nil && n.typ == typ && !s.seen[n] && (n.verAt(t.view.active) == nil || s.stale(n))
	if meta && !usable {
		return nil, fmt.Errorf("metadata-only copy whose content is not there: %w", ErrCorrupt)
	}
	if !usable {
		return nil, nil
	}
	if typ == unix.S_IFDIR {
		x.flags |= verImplicit
		return n, nil
	}
	y := contentVer(n, t.lower)
	if meta {
		x.flags |= verMeta
		x.data, x.lower = dataVer(y), t.pathIn(t.lower, n)
	}
	if z := n.verIn(t.lower); z != nil {
		x.nlink = z.nlink
	}
	if n.hasBase && y == nil {
		var st unix.Statx_t
		if t.baseStat(n, &st) == nil {
			t.noteWas(n.basePath(), &st, nil, n)
			if n.verIn(t.lower) == nil {
				x.nlink = st.Nlink
			}
		}
	}
	return n, nil
}

// lower is what the view below the active layer has under a name.
func (s *scan) lower(dir *Node, name string) (*Node, error) {
	c, err := s.t.child(s.t.lower, dir, name, true)
	if errors.Is(err, ErrDrifted) {
		return nil, nil
	}
	return c.node, err
}

// redirected follows a redirect: from the root of the view below, or, without
// a leading slash, to another name in the same directory.
func (s *scan) redirected(dir *Node, to string) (*Node, error) {
	if !strings.HasPrefix(to, "/") {
		if !validName(to) {
			return nil, fmt.Errorf("redirect %q: %w", to, ErrCorrupt)
		}
		return s.lower(dir, to)
	}
	n := s.t.root
	for name := range strings.SplitSeq(to[1:], "/") {
		if !validName(name) || !n.isDir() {
			return nil, fmt.Errorf("redirect %q: %w", to, ErrCorrupt)
		}
		next, err := s.lower(n, name)
		if err != nil || next == nil {
			return nil, err
		}
		n = next
	}
	return n, nil
}

// dropUnseen forgets versions of the active layer whose payload is not there.
func (s *scan) dropUnseen() {
	t := s.t
	for n := range t.all {
		x := n.verAt(t.view.active)
		if x == nil || s.seen[n] || x.flags&verGhost != 0 {
			continue
		}
		n.dropVer(t.view.active)
		t.rec.enc.gone(n.ino, false)
		for name, e := range n.ents {
			if e.layer == t.view.active {
				n.dropEntry(t.view.active, name)
				t.rec.enc.dropped(n.ino, name)
			}
		}
	}
}

// countLinks sets the link counts of files in the active layer that have more
// names, or fewer, than was recorded.
func (t *Tree) countLinks() {
	names := map[*Node]uint32{}
	there := reach{v: t.view, root: t.root, known: map[*Node]bool{}}
	for dir := range t.all {
		for name := range dir.ents {
			if e := dir.entryIn(t.view, name); e != nil && e.node != nil && !e.node.isDir() && there.dir(dir) {
				names[e.node]++
			}
		}
	}
	for n, c := range names {
		x := n.verAt(t.view.active)
		if x == nil || x.nlink >= c && (n.hasBase || x.nlink == c) {
			continue
		}
		x.nlink = c
		t.logNode(n, x)
	}
}
