package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// maxRecord bounds what is read into memory of one record or index.
const maxRecord = 4 << 30

// loader builds the index from records.
type loader struct {
	t     *Tree
	byIno map[uint64]*Node
	layer LayerID
	max   uint64 // highest own inode number met
	born  map[*Node]string
	fresh []*Node // made by this loader
	v     *view   // what is loaded for
	met   map[LayerID]bool
	lone  bool // a record is looked at by itself: what it says of other layers counts for nothing
	end   struct {
		seen   bool
		active LayerID
		size   int64
	}
}

// load reads the index and the records it does not cover. It reports whether
// the active layer was closed cleanly.
func (t *Tree) load() (clean bool, err error) {
	ld := &loader{t: t, v: t.view, met: t.loaded, byIno: map[uint64]*Node{}, born: map[*Node]string{}}
	ld.byIno[t.root.ino] = t.root
	ld.fresh = []*Node{t.root}
	if err := ld.index(); err != nil {
		return false, err
	}
	// The record of what was the active layer then has perhaps grown since.
	delete(t.loaded, ld.end.active)
	size := int64(0)
	for _, l := range t.notLoaded(t.view) {
		if size, err = ld.record(l); err != nil {
			return false, err
		}
	}
	if err := ld.finish(); err != nil {
		return false, err
	}
	var st unix.Statx_t
	dirty := t.fs.Stat(t.stateFD, dirtyMark, &st) == nil
	clean = !dirty && (ld.end.seen && ld.end.active == t.view.active && ld.end.size == size)
	return clean, nil
}

// notLoaded lists the layers of the view whose records are not in memory yet,
// the lowest first.
func (t *Tree) notLoaded(v *view) (out []LayerID) {
	for _, r := range v.sealed {
		for l := r.From; l <= r.To && l >= r.From; l++ {
			if !t.loaded[l] {
				out = append(out, l)
			}
		}
	}
	if a := v.active; a != 0 && (!t.loaded[a] || t.rec == nil) {
		out = append(out, a)
	}
	return out
}

// index reads the index, if there is a whole one.
func (ld *loader) index() error {
	t := ld.t
	if t.cfg.NoIndex {
		return nil
	}
	b, err := hostfs.ReadFile(t.fs, t.stateFD, indexName, maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read index: %w", err)
	}
	// The index is a cache: one that is damaged or was made by another
	// version is left aside, and everything is read from the records.
	probe := &loader{t: &Tree{}, byIno: map[uint64]*Node{}, born: map[*Node]string{}}
	if n, err := readFrames(b, probe.peek); err != nil || n != len(b) || !probe.end.seen {
		return nil
	}
	if _, err := readFrames(b, ld.frame); err != nil {
		return fmt.Errorf("index (a cache: it may be removed): %w", err)
	}
	return nil
}

// peek only looks for the version and the end mark.
func (ld *loader) peek(k frameKind, d *decoder) error {
	switch k {
	case frameHeader:
		if v := d.uint(); v != recordVersion {
			return ErrFormat
		}
	case frameEnd:
		ld.end.seen, ld.end.active, ld.end.size = true, LayerID(d.uint32()), d.int()
	}
	d.b = nil
	return nil
}

// record reads the record of one layer and returns the length of what was
// good. A torn tail of the active layer's record is cut off.
func (ld *loader) record(l LayerID) (int64, error) {
	t := ld.t
	fd, err := t.openLayerFile(l, ".", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return 0, fmt.Errorf("layer %d: %w", l, err)
	}
	defer t.fs.Close(fd)
	b, err := hostfs.ReadFile(t.fs, fd, "record", maxRecord)
	if err != nil {
		return 0, fmt.Errorf("layer %d: read record: %w", l, err)
	}
	ld.layer = 0
	n, err := readFrames(b, ld.frame)
	if err != nil {
		return 0, fmt.Errorf("layer %d: record: %w", l, err)
	}
	if ld.layer != l && l != t.view.active {
		return 0, fmt.Errorf("layer %d: record: header names layer %d: %w", l, ld.layer, ErrCorrupt)
	}
	t.loaded[l] = true
	if n == len(b) && ld.layer == l || l != t.view.active || t.cfg.ReadOnly {
		return int64(n), nil
	}
	return ld.cut(l, n)
}

// cut removes a torn tail; a record without even a header gets a new one.
func (ld *loader) cut(l LayerID, n int) (int64, error) {
	t := ld.t
	fd, err := t.openLayerFile(l, "record", unix.O_RDWR)
	if err != nil {
		return 0, fmt.Errorf("layer %d: record: %w", l, err)
	}
	defer t.fs.Close(fd)
	if err := t.fs.Truncate(fd, int64(n)); err != nil {
		return 0, fmt.Errorf("layer %d: cut torn record: %w", l, err)
	}
	if ld.layer == l {
		return int64(n), nil
	}
	prefix, err := t.xattrPrefix()
	if err != nil {
		return 0, fmt.Errorf("layer %d: %w", l, err)
	}
	var enc encoder
	enc.header(l, prefix)
	if err := hostfs.WriteFull(t.fs, fd, enc.b, 0); err != nil {
		return 0, fmt.Errorf("layer %d: record: %w", l, err)
	}
	return int64(len(enc.b)), nil
}

func (ld *loader) frame(k frameKind, d *decoder) error {
	switch k {
	case frameHeader:
		if v := d.uint(); v != recordVersion {
			return fmt.Errorf("version %d, this program knows %d: %w", v, recordVersion, ErrFormat)
		}
		ld.layer = LayerID(d.uint32())
		if p := d.str(); ld.t.prefix == "" {
			ld.t.prefix = p
		}
		return nil
	case frameLayer:
		ld.layer = LayerID(d.uint32())
		ld.met[ld.layer] = true
		return nil
	case frameEnd:
		ld.end.seen, ld.end.active, ld.end.size = true, LayerID(d.uint32()), d.int()
		return nil
	}
	if ld.layer == 0 && k != frameDevice && k != frameInode {
		return fmt.Errorf("kind %q before any layer: %w", k, ErrCorrupt)
	}
	switch k {
	case frameNode:
		return ld.node(d.node(), d)
	case frameEntry:
		dir, name, child := d.uint(), d.str(), d.uint()
		return ld.entry(dir, name, child, d)
	case frameDropped:
		dir, name := d.uint(), d.str()
		if n := ld.byIno[dir]; n != nil {
			n.dropEntry(ld.layer, name)
		}
	case frameGone:
		ino, entirely := d.uint(), d.bool()
		ld.gone(ino, entirely)
	case frameKept:
		ino, k := d.kept()
		if d.bad {
			return nil
		}
		n := ld.byIno[ino]
		if n == nil || n.verAt(ld.layer) == nil {
			return fmt.Errorf("inode %d: what is kept of no node: %w", ino, ErrCorrupt)
		}
		n.verAt(ld.layer).kept = k
	case frameWas:
		ld.t.putWas(ld.layer, d.was())
	case frameDevice:
		dev, n := d.uint(), d.uint32()
		ld.t.devices[dev] = n
	case frameInode:
		ld.max = max(ld.max, d.uint())
	default:
		return fmt.Errorf("kind %q is not known: %w", k, ErrCorrupt)
	}
	return nil
}

// get returns the node of that number, making it when it is first met.
func (ld *loader) get(ino uint64, typ uint32) (*Node, error) {
	n := ld.byIno[ino]
	if n == nil {
		n = &Node{id: ld.t.nextID.Add(1), ino: ino, typ: typ}
		ld.byIno[ino] = n
		ld.fresh = append(ld.fresh, n)
		if ino >= firstOwnIno && ino < 2*firstOwnIno {
			ld.max = max(ld.max, ino)
		}
	}
	ld.t.remember(n)
	if n.typ == 0 {
		n.typ = typ
	}
	if typ != 0 && n.typ != typ {
		return nil, fmt.Errorf("inode %d is of type %o and of type %o: %w", ino, n.typ, typ, ErrCorrupt)
	}
	return n, nil
}

func (ld *loader) node(f *nodeFrame, d *decoder) error {
	if d.bad {
		return nil // reported by the reader of frames
	}
	n, err := ld.get(f.ino, f.typ)
	if err != nil {
		return err
	}
	x := n.putVer(ld.layer)
	n.orphaned = n.orphaned || f.flags&verOrphan != 0
	x.flags, x.nlink, x.lower, x.ctime, x.kept = f.flags, f.nlink, f.lower, f.ctime, nil
	n.whole = n.whole || f.flags&verWhole != 0
	x.parent, x.name = nil, f.name
	if ld.lone && f.name == "" && n.isDir() {
		ld.t.root = n // its number is the base's, which is not asked
	}
	if n != ld.t.root && f.flags&(verOrphan|verGhost) == 0 {
		if !validName(f.name) {
			return fmt.Errorf("name %q of inode %d: %w", f.name, f.ino, ErrCorrupt)
		}
		if x.parent, err = ld.get(f.parent, unix.S_IFDIR); err != nil {
			return err
		}
	}
	x.data = nil
	if f.flags&verMeta != 0 && f.hasData {
		if x.data = n.verAt(f.data); x.data == nil && f.data < ld.layer {
			// Merged with others meanwhile: the layer that they became has it.
			x.data = contentBelow(n, ld.v, ld.layer)
		}
		if (x.data == nil || f.data >= ld.layer) && !ld.lone {
			return fmt.Errorf("inode %d: content in layer %d is not recorded: %w", f.ino, f.data, ErrCorrupt)
		}
	}
	if f.born && f.bornIn != 0 && !slices.Contains(n.bornIn, f.bornIn) {
		n.bornIn = append(n.bornIn, f.bornIn)
	}
	if f.born && n != ld.t.root && n.bparent == nil {
		n.hasBase, n.bid, n.btime = true, f.id, f.btime
		ld.born[n] = f.base
	}
	return nil
}

// contentBelow is the content that view v has of n beneath layer l.
func contentBelow(n *Node, v *view, l LayerID) *nodeVer {
	for x := n.ver; x != nil; x = x.prev {
		if x.layer < l && v.has(x.layer) && x.flags&verGhost == 0 {
			return dataVer(x)
		}
	}
	return nil
}

func (ld *loader) entry(dir uint64, name string, child uint64, d *decoder) error {
	if d.bad {
		return nil
	}
	if !validName(name) {
		return fmt.Errorf("entry %q: not a name: %w", name, ErrCorrupt)
	}
	p, err := ld.get(dir, unix.S_IFDIR)
	if err != nil {
		return err
	}
	var c *Node
	if child != 0 {
		if c, err = ld.get(child, 0); err != nil {
			return err
		}
		if c == ld.t.root || c == p {
			return fmt.Errorf("entry %q: inode %d inside itself: %w", name, child, ErrCorrupt)
		}
	}
	p.putEntry(ld.layer, name, c)
	return nil
}

func (ld *loader) gone(ino uint64, entirely bool) {
	n := ld.byIno[ino]
	if n == nil {
		return
	}
	n.dropVer(ld.layer)
	if entirely {
		x := n.putVer(ld.layer)
		x.flags = verGone | verGhost
	}
}

// finish gives every node its place in the base and its names, and checks that
// the directories form a tree.
func (ld *loader) finish() error {
	t := ld.t
	for n := range t.all {
		if n.typ == 0 {
			return fmt.Errorf("inode %d is named but not described: %w", n.ino, ErrCorrupt)
		}
	}
	dirs := map[string]*Node{"": t.root}
	for _, n := range ld.byIno {
		if n.isDir() && n.bparent != nil {
			ld.dirAt(dirs, n.basePath(), n)
		}
	}
	for n, p := range ld.born {
		if n.isDir() {
			ld.dirAt(dirs, p, n)
		}
	}
	for n, p := range ld.born {
		if err := ld.place(n, p, dirs); err != nil {
			return err
		}
		t.leadTo(n)
	}
	if ld.max >= t.nextIno {
		t.nextIno = ld.max + 1
	}
	if err := ld.acyclic(); err != nil {
		return err
	}
	t.findLinks()
	t.applyRules(ld.fresh)
	if ld.v.hasReplaced() {
		t.relink(ld.v)
	}
	return nil
}

// dirAt notes which directory has a path in the base. Of several, since a commit
// or the host put one in the place of another, it is the one that is there now.
func (ld *loader) dirAt(dirs map[string]*Node, path string, n *Node) {
	have := dirs[path]
	if have == nil || have == n {
		dirs[path] = n
		return
	}
	t := ld.t
	if t.base == nil {
		return
	}
	fd, err := hostfs.OpenDeep(t.fs, t.base.fd, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return
	}
	defer t.fs.Close(fd)
	var st unix.Statx_t
	if t.fs.Stat(fd, "", &st) == nil && hostID(&st) == n.bid {
		dirs[path] = n
	}
}

// place sets where in the base n is; directories above it that no layer knows
// get nodes of their own.
func (ld *loader) place(n *Node, path string, dirs map[string]*Node) error {
	for {
		dir, name := "", path
		if i := strings.LastIndexByte(path, '/'); i >= 0 {
			dir, name = path[:i], path[i+1:]
		}
		if !validName(name) {
			return fmt.Errorf("inode %d: base path %q: %w", n.ino, path, ErrCorrupt)
		}
		n.bname = name
		if p := dirs[dir]; p != nil {
			n.bparent = p
			return nil
		}
		p := &Node{id: ld.t.nextID.Add(1), typ: unix.S_IFDIR, hasBase: true}
		p.refs.Store(1) // for good: nothing counts the references of loaded nodes
		dirs[dir] = p
		n.bparent = p
		if err := ld.identify(p, dir); err != nil {
			return err
		}
		n, path = p, dir
	}
}

// identify fills in what the base says of a directory that no record names.
func (ld *loader) identify(p *Node, path string) error {
	t := ld.t
	if t.base == nil {
		return fmt.Errorf("base path %q, but there is no base: %w", path, ErrCorrupt)
	}
	fd, err := hostfs.OpenDeep(t.fs, t.base.fd, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		// Gone on the host: drift, which the operations on it will tell.
		p.ino = t.nextIno
		t.nextIno++
		return nil
	}
	defer t.fs.Close(fd)
	var st unix.Statx_t
	if err := t.fs.Stat(fd, "", &st); err != nil {
		return fmt.Errorf("base path %q: %w", path, err)
	}
	p.bid, p.btime = hostID(&st), timeOf(st.Btime)
	p.ino = t.baseIno(p.bid)
	t.ownIno(p)
	if t.byBase[p.bid] == nil {
		t.byBase[p.bid] = p
	}
	return nil
}

// acyclic checks, for every layer, that each directory version leads to the
// root, so that no path is endless.
func (ld *loader) acyclic() error {
	type key struct {
		n *Node
		l LayerID
	}
	good := map[key]bool{}
	roots := map[LayerID]*nodeVer{}
	for y := ld.t.root.ver; y != nil; y = y.prev {
		roots[y.layer] = y
	}
	for n := range ld.t.all {
		for x := n.ver; x != nil; x = x.prev {
			if x.flags&(verGone|verOrphan|verGhost) != 0 {
				continue
			}
			var trail []key
			for m, y := n, x; m != ld.t.root; {
				k := key{m, y.layer}
				if good[k] {
					break
				}
				if len(trail) > len(ld.t.all) {
					return fmt.Errorf("layer %d: inode %d lies inside itself: %w", y.layer, n.ino, ErrCorrupt)
				}
				trail = append(trail, k)
				p := y.parent
				if p == nil {
					return fmt.Errorf("layer %d: inode %d has no place: %w", y.layer, m.ino, ErrCorrupt)
				}
				py := roots[y.layer]
				if p != ld.t.root {
					py = p.verAt(y.layer)
				}
				if p != ld.t.root && (py == nil || py.flags&(verGone|verOrphan|verGhost) != 0) {
					return fmt.Errorf("layer %d: directory %d of inode %d is not in the layer: %w", y.layer, p.ino, m.ino, ErrCorrupt)
				}
				y.above = py
				m, y = p, py
			}
			for _, k := range trail {
				good[k] = true
			}
		}
	}
	return nil
}

// findLinks collects the names of the nodes that have more than one, or whose
// newest version does not tell the one that is left.
func (t *Tree) findLinks() {
	for n := range t.all {
		n.clearLinks()
	}
	there := reach{v: t.view, root: t.root, known: map[*Node]bool{}}
	for dir := range t.all {
		for name := range dir.ents {
			e := dir.entryIn(t.view, name)
			if e == nil || e.node == nil || e.node.isDir() {
				continue
			}
			if x := e.node.verIn(t.view); x != nil && (x.nlink > 1 || x.flags&verGhost != 0) && there.dir(dir) {
				e.node.addLink(dent{dir, name})
			}
		}
	}
}

// reach tells which directories a view shows. Of one that went, with a layer that
// was merged into another since, the layers below still have the names in it.
type reach struct {
	v     *view
	root  *Node
	known map[*Node]bool
}

func (r *reach) dir(n *Node) bool {
	if n == r.root {
		return true
	}
	if there, ok := r.known[n]; ok {
		return there
	}
	r.known[n] = false // until it is known; a circle leads to no root
	p, name := n.placeIn(r.v)
	if p == nil {
		return false
	}
	if e := p.entryIn(r.v, name); e != nil && e.node != n {
		return false
	}
	r.known[n] = r.dir(p)
	return r.known[n]
}

// validName reports whether s is one component that the kernel could have
// sent: not empty, not "." or "..", no slash, no NUL, at most 255 bytes.
func validName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= maxNameLen && strings.IndexByte(s, '/') < 0 && strings.IndexByte(s, 0) < 0
}

func (t *Tree) putWas(l LayerID, w *Was) {
	head := t.was[w.Path]
	if head == nil || head.layer < l {
		t.was[w.Path] = &wasVer{layer: l, was: w, prev: head}
		return
	}
	for h := head; ; h = h.prev {
		if h.layer == l {
			h.was = w
			return
		}
		if h.prev == nil || h.prev.layer < l {
			h.prev = &wasVer{layer: l, was: w, prev: h.prev}
			return
		}
	}
}

// wasAt is what exactly layer l has recorded of the base at path.
func (t *Tree) wasAt(l LayerID, path string) *Was {
	for w := t.was[path]; w != nil && w.layer >= l; w = w.prev {
		if w.layer == l {
			return w.was
		}
	}
	return nil
}

func (t *Tree) wasIn(v *view, path string) *Was {
	var out *Was
	for w := t.was[path]; w != nil; w = w.prev {
		// The oldest one visible counts: what the session first saw. What a
		// commit replaced counts where the session itself saw nothing.
		if v.has(w.layer) && (out == nil || !w.layer.replaced()) {
			out = w.was
		}
	}
	return out
}

// dropWas forgets what layer l has recorded of the base.
func (t *Tree) dropWas(l LayerID) {
	for path, head := range t.was {
		if head.layer == l && head.prev == nil {
			delete(t.was, path)
			continue
		}
		if head.layer == l {
			t.was[path] = head.prev
			continue
		}
		for h := head; h.prev != nil; h = h.prev {
			if h.prev.layer == l {
				h.prev = h.prev.prev
				break
			}
		}
	}
}
