package overlay

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// Preserved is a path of the base that is about to be replaced.
type Preserved struct {
	Path string
	// Whole: a directory there is about to go, or to become another one, with
	// all that is in it.
	Whole bool
}

// preserveDir is where a layer of replaced files is made before it is moved to
// its place.
const preserveDir = "preserve"

// Preserve writes what the base has now at paths, which are going to be
// replaced, as the sealed layer to, which must be one of replaced files (see
// [Replaced]): nodes as they are, and whiteouts where there is nothing yet. It
// shows only in views that have the layer. Nothing of it need be on the disk yet.
// It may be called while programs work in the tree, one call at a time.
func (t *Tree) Preserve(to LayerID, paths []Preserved) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("tree %q: keep what is to be replaced: %w", t.cfg.Name, err)
		}
	}()
	if t.cfg.ReadOnly {
		return unix.EROFS
	}
	p, err := t.preserver(to)
	if err != nil {
		return err
	}
	slices.SortFunc(paths, func(a, b Preserved) int { return strings.Compare(a.Path, b.Path) })
	for _, path := range paths {
		if err = p.preserve(path); err != nil {
			err = fmt.Errorf("%q: %w", path.Path, err)
			break
		}
	}
	if cerr := p.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	from := preserveDir + "/layers/" + layerName(to)
	if err := t.fs.Rename(t.stateFD, from, t.layersFD, layerName(to), unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	return hostfs.RemoveAll(t.fs, t.stateFD, preserveDir)
}

// preserver opens a tree on the same base whose active layer is the one to
// write. It has its own scratch, so that it is in nobody's way.
func (t *Tree) preserver(to LayerID) (*Tree, error) {
	if err := hostfs.RemoveAll(t.fs, t.stateFD, preserveDir); err != nil {
		return nil, err
	}
	if err := hostfs.RemoveAll(t.fs, t.layersFD, layerName(to)); err != nil {
		return nil, err
	}
	if err := t.fs.Mkdir(t.stateFD, preserveDir, 0o700); err != nil {
		return nil, err
	}
	dir := t.cfg.StateDir + "/" + preserveDir
	if err := InitState(t.fs, dir, to); err != nil {
		return nil, err
	}
	fd, err := t.fs.Dup(t.base.fd)
	if err != nil {
		return nil, err
	}
	base, err := NewBase(t.fs, fd, t.cfg.StateDir, t.base.Detached)
	if err != nil {
		return nil, err
	}
	cfg := Config{Name: t.cfg.Name, StateDir: dir, Base: base, FS: t.fs, UserXattr: t.cfg.UserXattr, NoWatch: true}
	t.liveMu.Lock()
	for id := range t.hide {
		cfg.Hide = append(cfg.Hide, id)
	}
	t.liveMu.Unlock()
	p, err := Open(cfg, Stack{Active: to})
	if err != nil {
		return nil, err
	}
	t.liveMu.Lock()
	for dev, n := range t.devices {
		p.devices[dev] = n
	}
	t.liveMu.Unlock()
	// A node that a commit put into the base stays the node that it was, and is
	// one of the base here.
	every := &view{sealed: []Range{{math.MinInt32 + 1, math.MaxInt32}}}
	p.view.births, p.lower.births = every, every
	known := t.known()
	p.identify = func(n *Node) {
		if same := known[n.bid]; same != nil && same.typ == n.typ && same.btime == n.btime {
			n.ino, n.bornIn = same.ino, slices.Clone(same.bornIn)
			return
		}
		t.mu.RLock()
		defer t.mu.RUnlock()
		t.ownIno(n)
	}
	return p, nil
}

// known are the nodes that layers know, by what they are in the base. The live
// view need not have them.
func (t *Tree) known() map[HostID]*Node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make(map[HostID]*Node)
	for n := range t.all {
		if !n.hasBase {
			continue
		}
		if have := out[n.bid]; have == nil || have.ver == nil || len(have.bornIn) == 0 && len(n.bornIn) > 0 {
			out[n.bid] = n
		}
	}
	return out
}

// preserve copies up what the base has at one path.
func (t *Tree) preserve(p Preserved) error {
	n := t.root
	if p.Path == "" {
		return nil // the root is in every layer
	}
	for part, rest := range parts(p.Path) {
		if !n.isDir() {
			return nil // what is there in its stead is a path of its own
		}
		c, covered, err := t.preservedChild(n, part)
		if err != nil || covered {
			return err
		}
		if c == nil {
			return t.preserveAbsence(n, part)
		}
		n = c
		if rest == "" {
			return t.preserveNode(n, p.Whole)
		}
	}
	return nil
}

// parts are the components of a path, each with what follows it.
func parts(path string) func(func(string, string) bool) {
	return func(yield func(string, string) bool) {
		for more := true; more; {
			var name string
			name, path, more = strings.Cut(path, "/")
			if !yield(name, path) {
				return
			}
		}
	}
}

// preservedChild finds a name; covered is true where a whiteout already stands
// for it.
func (t *Tree) preservedChild(dir *Node, name string) (n *Node, covered bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := dir.entryIn(t.view, name); e != nil {
		return e.node, e.node == nil, nil
	}
	c, err := t.child(t.view, dir, name, true)
	return c.node, false, err
}

// preserveAbsence notes that the base has nothing under a name.
func (t *Tree) preserveAbsence(dir *Node, name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	x, err := t.raiseDir(dir)
	if err != nil {
		return err
	}
	err = t.keepTimes(dir, x, func(fd int) error { return t.putWhiteout(fd, name, false) })
	if err != nil {
		return err
	}
	t.setEntry(dir, name, nil)
	w := &Was{Path: join(dir.basePath(), name)}
	t.putWas(t.view.active, w)
	t.rec.enc.was(w)
	return t.flushRecord()
}

func (t *Tree) preserveNode(n *Node, whole bool) error {
	if !n.isDir() {
		return t.raise(n, want{limit: allContent})
	}
	names, err := t.preserveDir(n, whole)
	if err != nil {
		return err
	}
	for _, name := range names {
		c, covered, err := t.preservedChild(n, name)
		if err == nil && c != nil && !covered {
			err = t.preserveNode(c, true)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	return nil
}

// preserveDir copies up one directory, and where it is to be kept whole cuts it
// off from the base and lists it.
func (t *Tree) preserveDir(n *Node, whole bool) ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x, err := t.raiseDir(n)
	if err != nil {
		return nil, err
	}
	if dir, name := n.placeIn(t.view); dir != nil && dir.hasBase {
		// The facts that drift is decided on.
		fd, err := t.baseDirFD(dir)
		if err != nil {
			return nil, err
		}
		var st unix.Statx_t
		err = t.fs.Stat(fd.fd, name, &st)
		t.fds.done(fd)
		if err != nil {
			return nil, err
		}
		t.noteWas(n.basePath(), &st, nil, nil)
	}
	if !whole || x.flags&verWhole != 0 {
		return nil, t.flushRecord()
	}
	list, err := t.list(n, t.view)
	if err != nil {
		return nil, err
	}
	fd, err := t.layerDirFD(n, x)
	if err != nil {
		return nil, err
	}
	defer t.fds.done(fd)
	if err := t.fs.Setxattr(fd.fd, "", t.prefix+"opaque", []byte("y"), 0); err != nil {
		return nil, err
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name)
	}
	x.flags |= verWhole
	n.whole = true
	t.logNode(n, x)
	return names, t.flushRecord()
}
