package overlay

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// flattening writes a view as one layer.
type flattening struct {
	t *Tree
	v *view // what is written
	// beneath are the layers of replaced files, or of an image, below what is
	// written.
	beneath *view
	all     *view // both
	to      LayerID
	rule    Keep
	above   map[*Node]bool // directories with something to keep below them
	keep    map[string]bool
	under   []string // what takes the place of directories: what was noted below is kept
	held    []*Node  // without a name
	enc     encoder
}

// Keep says what a flattened layer leaves out.
type Keep struct {
	// Drop returns true for the paths, in the view, whose changes are left
	// out; nil leaves out none.
	Drop func(path string) bool
	// UpTo limits Drop to what was last changed in this layer or below: what
	// was changed again since is kept. 0 is no limit.
	UpTo LayerID
}

// Flatten writes what the sealed layers of s change as one new sealed layer,
// but for what k leaves out and what only that needed. Nothing of it need be on
// the disk yet. The layer shows only after a [Barrier.Switch] to a stack that
// has it; the
// number of the live view's active layer must not be below to, unless the
// switch follows within the same barrier. It may be called inside a barrier
// and outside.
//
// It is what a commit does with what it has not committed, a partial discard
// with what it keeps, and a merge of old checkpoints with all of them. Where a
// commit has put a dropped node into the base, the node stays what it was: same
// inode number, same open files.
func (t *Tree) Flatten(s Stack, to LayerID, k Keep) error {
	if k.Drop == nil {
		k.Drop = func(string) bool { return false }
	}
	if k.UpTo == 0 {
		k.UpTo = to
	}
	s.Active = 0
	all := s.Sealed
	beneath := all
	if !to.replaced() {
		s.Sealed = withoutReplaced(s.Sealed)
	}
	beneath = beneath[:len(beneath)-len(s.Sealed)]
	if err := t.Prepare(to); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.loaded[to] = true
	v := newView(s)
	if to.replaced() {
		v.births = t.view
	}
	f := &flattening{t: t, v: v, beneath: &view{sealed: beneath, births: v}, all: &view{sealed: all}, to: to, rule: k, above: map[*Node]bool{}, keep: map[string]bool{}}
	if err := f.run(); err != nil {
		f.undo()
		return fmt.Errorf("tree %q: write layer %d: %w", t.cfg.Name, to, err)
	}
	return nil
}

// drops reports whether the change that e makes at path is left out.
func (f *flattening) drops(path string, e *entry) bool {
	if e.layer > f.rule.UpTo || !f.rule.Drop(path) {
		return false
	}
	if e.node == nil {
		return true
	}
	x := e.node.verIn(f.v)
	return x == nil || x.layer <= f.rule.UpTo || x.flags&verImplicit != 0
}

// withoutReplaced are the layers of ranges above those of replaced files, or of
// an image, which are no change of the session's.
func withoutReplaced(ranges []Range) []Range {
	for len(ranges) > 0 && ranges[0].From <= Replaced {
		ranges = ranges[1:]
	}
	return ranges
}

func (f *flattening) run() error {
	t := f.t
	for n := range t.all {
		// What an earlier commit put into the base is there for this layer too.
		if len(n.bornIn) > 0 && n.born(f.v) {
			f.bear(n)
		}
	}
	f.mark(t.root, "")
	if err := f.root(); err != nil {
		return err
	}
	type step struct {
		dir  *Node
		path string
	}
	steps := []step{{t.root, ""}}
	for len(steps) > 0 {
		st := steps[len(steps)-1]
		steps = steps[:len(steps)-1]
		for _, name := range t.changedNames(st.dir, f.v) {
			n, err := f.entry(st.dir, name, join(st.path, name))
			if err != nil {
				return fmt.Errorf("%q: %w", join(st.path, name), err)
			}
			if n != nil && n.isDir() {
				steps = append(steps, step{n, join(st.path, name)})
			}
		}
	}
	f.ghosts()
	f.unlinked()
	f.facts()
	return f.finish()
}

// mark finds the directories that are needed for what lies below them.
func (f *flattening) mark(dir *Node, path string) bool {
	any := false
	for _, name := range f.t.changedNames(dir, f.v) {
		p := join(path, name)
		e := dir.entryIn(f.v, name)
		n := e.node
		if f.lost(n) {
			continue
		}
		kept := !f.drops(p, e)
		if n != nil && n.isDir() && f.mark(n, p) {
			kept = true
			f.above[n] = true
		}
		any = any || kept
	}
	return any
}

// root makes the new layer's root look as the view's.
func (f *flattening) root() error {
	t := f.t
	x := &nodeVer{layer: f.to, flags: verImplicit | verCtime}
	a, err := t.attrIn(t.root, f.v)
	if err != nil {
		return err
	}
	x.ctime = a.Ctime
	for y := t.root.ver; y != nil; y = y.prev {
		if f.v.has(y.layer) && y.flags&verImplicit == 0 {
			x.flags &^= verImplicit
		}
	}
	if f.rule.Drop("") {
		x.flags |= verImplicit
	}
	t.root.insertVer(x)
	x.kept = t.keptFrom(&a, keptOf(contentVer(t.root, f.v)))
	src, err := t.dirFDIn(t.root, t.root.verIn(f.v))
	if err != nil {
		return err
	}
	defer t.fds.done(src)
	dst, err := t.layerDirFD(t.root, x)
	if err != nil {
		return err
	}
	defer t.fds.done(dst)
	t.encodeVersion(&f.enc, t.root, x)
	return t.copyMeta(src.fd, "", dst.fd, "", &a)
}

// insertVer adds x in the order of layers.
func (n *Node) insertVer(x *nodeVer) {
	at := &n.ver
	for *at != nil && (*at).layer > x.layer {
		at = &(*at).prev
	}
	x.prev = *at
	if *at != nil && (*at).layer == x.layer {
		x.prev = (*at).prev
	}
	*at = x
}

// lost reports whether a layer of replaced files is written and the live view
// has removed n: then nothing shows what was in it.
func (f *flattening) lost(n *Node) bool {
	if n == nil || !f.to.replaced() {
		return false
	}
	x := n.verIn(f.t.view)
	return x != nil && x.flags&verGone != 0
}

// entry writes one name and returns a directory to go into.
func (f *flattening) entry(dir *Node, name, path string) (*Node, error) {
	t := f.t
	e := dir.entryIn(f.v, name)
	n, dropped := e.node, f.drops(path, e)
	if f.lost(n) {
		return nil, nil
	}
	if !dropped && f.rule.Drop(path) {
		f.refresh(dir, name, n)
	}
	if n == nil {
		if dropped || !f.merges(dir) || !f.to.replaced() && !t.shows(f.beneath, dent{dir, name}) {
			return nil, nil
		}
		return nil, f.whiteout(dir, name)
	}
	if dropped {
		f.alias(dir, name, n)
		if !f.above[n] {
			// All below is left out too; the base has these nodes as well.
			return n, nil
		}
	}
	if err := f.node(dir, name, path, n, dropped); err != nil {
		return nil, err
	}
	return n, nil
}

// merges reports whether a directory shows what the base, or an image, has in it.
func (f *flattening) merges(dir *Node) bool {
	return dir.born(f.v) || dir.inImage(f.beneath)
}

func (f *flattening) dstDir(dir *Node) (*fdEnt, error) {
	x := dir.verAt(f.to)
	if x == nil {
		return nil, fmt.Errorf("its directory is not in the layer: %w", unix.ENOENT)
	}
	return f.t.layerDirFD(dir, x)
}

func (f *flattening) name(dir *Node, name string, n *Node) {
	dir.putEntry(f.to, name, n)
	f.enc.entry(dir.ino, name, inoOf(n))
}

func (f *flattening) whiteout(dir *Node, name string) error {
	dst, err := f.dstDir(dir)
	if err != nil {
		return err
	}
	defer f.t.fds.done(dst)
	if err := f.t.putWhiteout(dst.fd, name, false); err != nil {
		return err
	}
	f.name(dir, name, nil)
	p := join(dir.basePath(), name)
	f.keep[p] = true
	f.under = append(f.under, p+"/")
	return nil
}

// refresh replaces what is known of the base under a name that was changed
// again after what a commit has just put there.
func (f *flattening) refresh(dir *Node, name string, n *Node) {
	t := f.t
	if n != nil && n.isDir() {
		f.alias(dir, name, n)
	}
	if !dir.hasBase {
		return
	}
	path := join(dir.basePath(), name)
	w := &Was{Path: path}
	fd, err := t.baseDirFD(dir)
	if err != nil {
		return
	}
	defer t.fds.done(fd)
	var st unix.Statx_t
	if t.fs.Stat(fd.fd, name, &st) == nil {
		w = wasOf(path, &st)
	}
	t.putWas(f.to, w)
	f.enc.was(w)
}

// alias notes that the base now has n itself at its place, because a commit
// put it there.
func (f *flattening) alias(dir *Node, name string, n *Node) {
	t := f.t
	if !dir.hasBase || f.to.replaced() {
		return
	}
	fd, err := t.baseDirFD(dir)
	if err != nil {
		return
	}
	defer t.fds.done(fd)
	var st unix.Statx_t
	if t.fs.Stat(fd.fd, name, &st) != nil || uint32(st.Mode)&unix.S_IFMT != n.typ {
		return
	}
	if n.hasBase && hostID(&st) == n.bid && n.bparent == dir && n.bname == name {
		if len(n.bornIn) > 0 && n.verAt(f.to) == nil {
			// It was put there before, for views that this one is none of.
			f.bear(n)
			f.ghost(n, st.Nlink)
		}
		return
	}
	t.liveMu.Lock()
	old := t.byBase[hostID(&st)]
	if old != nil && old != n && old.ver != nil && old.sameBase(&st) && old.bparent == dir && old.bname == name {
		// The commit left what was there, which is the same as n, and that is
		// what is found by this name.
		t.liveMu.Unlock()
		if len(old.bornIn) > 0 && old.verAt(f.to) == nil {
			f.bear(old)
			f.ghost(old, st.Nlink)
		}
		return
	}
	if n.hasBase && t.byBase[n.baseKey()] == n {
		delete(t.byBase, n.baseKey())
	}
	if !n.hasBase || len(n.bornIn) > 0 {
		f.bear(n)
	}
	t.fds.drop(nil, n)
	n.hasBase, n.bid, n.btime, n.bparent, n.bname = true, hostID(&st), timeOf(st.Btime), dir, name
	dir.refs.Add(1)
	n.stamp.Store(0)
	if old := t.byBase[n.bid]; old == nil || old.ver == nil {
		t.byBase[n.bid] = n
	}
	t.liveMu.Unlock()
	f.ghost(n, st.Nlink)
}

// bear notes that n is one of the base in views with the new layer.
func (f *flattening) bear(n *Node) {
	if !slices.Contains(n.bornIn, f.to) {
		n.bornIn = append(n.bornIn, f.to)
	}
}

// ghost gives n a version without a payload.
func (f *flattening) ghost(n *Node, nlink uint32) {
	x := &nodeVer{layer: f.to, flags: verGhost, nlink: nlink}
	n.insertVer(x)
	f.t.remember(n)
	f.t.encodeVersion(&f.enc, n, x)
}

// node writes a node under one name.
func (f *flattening) node(dir *Node, name, path string, n *Node, dropped bool) error {
	t := f.t
	dst, err := f.dstDir(dir)
	if err != nil {
		return err
	}
	defer t.fds.done(dst)
	if x := n.verAt(f.to); x != nil && x.flags&verGhost == 0 {
		return f.secondName(dir, name, n, x, dst.fd)
	}
	a, err := t.attrIn(n, f.v)
	if err != nil {
		return err
	}
	x := &nodeVer{layer: f.to, parent: dir, name: name, above: dir.verAt(f.to), nlink: a.Nlink, flags: verCtime, ctime: a.Ctime}
	if n.isDir() {
		err = f.dir(dir, name, path, n, x, &a, dst.fd, dropped)
	} else {
		err = f.file(name, path, n, x, &a, dst.fd)
	}
	if err != nil {
		return err
	}
	n.insertVer(x)
	t.encodeVersion(&f.enc, n, x)
	f.name(dir, name, n)
	if n.hasBase {
		f.keep[n.basePath()] = true
	}
	if dir.hasBase {
		p := join(dir.basePath(), name)
		f.keep[p] = true
		if !n.hasBase || n.basePath() != p {
			f.under = append(f.under, p+"/")
		}
	}
	return nil
}

func (f *flattening) secondName(dir *Node, name string, n *Node, x *nodeVer, dst int) error {
	t := f.t
	src, srcName, err := t.payloadAt(n, x)
	if err != nil {
		return err
	}
	defer t.fds.done(src)
	if err := t.fs.Link(src.fd, srcName, dst, name); err != nil {
		return err
	}
	f.name(dir, name, n)
	return nil
}

func (f *flattening) dir(dir *Node, name, path string, n *Node, x *nodeVer, a *Attr, dst int, dropped bool) error {
	t := f.t
	whole := f.to.replaced() && !t.mergesBase(f.v, n)
	if dropped || t.implicit(n, f.v) || n.inImage(f.beneath) && t.implicit(n, f.all) || f.to.replaced() {
		x.flags |= verImplicit
	}
	if whole {
		x.flags |= verWhole
		n.whole = true
	}
	if err := t.fs.Mkdir(dst, name, 0o700); err != nil {
		return err
	}
	x.kept = t.keptFrom(a, keptOf(contentVer(n, f.v)))
	src, err := t.dirFDIn(n, contentVer(n, f.v))
	if err != nil {
		return err
	}
	defer t.fds.done(src)
	switch at, born := f.lowerPath(n); {
	case born && at != path:
		err = t.fs.Setxattr(dst, name, t.prefix+"redirect", []byte("/"+at), 0)
	case !born && f.merges(dir) || whole:
		err = t.fs.Setxattr(dst, name, t.prefix+"opaque", []byte("y"), 0)
	}
	if err != nil {
		return err
	}
	return t.copyMeta(src.fd, "", dst, name, a)
}

// lowerPath is where the directory n is in what lies beneath the layer, if it is
// there.
func (f *flattening) lowerPath(n *Node) (string, bool) {
	if n.hasBase {
		return n.basePath(), true
	}
	if n.inImage(f.beneath) {
		return f.t.pathIn(f.beneath, n), true
	}
	return "", false
}

// file writes the payload of anything but a directory: as another name of the
// sealed one where that says all, else as a copy.
func (f *flattening) file(name, path string, n *Node, x *nodeVer, a *Attr, dst int) error {
	t := f.t
	y := contentVer(n, f.v)
	if y == nil {
		return fmt.Errorf("content is not in a layer: %w", ErrCorrupt)
	}
	src, srcName, err := t.payloadAt(n, y)
	if err != nil {
		return err
	}
	defer t.fds.done(src)
	x.kept = y.kept
	if y.flags&verMeta == 0 {
		err := t.fs.Link(src.fd, srcName, dst, name)
		if err != unix.EMLINK && err != unix.EXDEV && err != unix.EPERM {
			return err
		}
	}
	x.kept = t.keptFrom(a, y.kept)
	if n.typ != unix.S_IFREG {
		s := source{dir: src, name: srcName, attr: *a}
		tmp := t.tempName()
		if err := t.copySpecial(&s, n, tmp); err != nil {
			return err
		}
		if err := t.copyMeta(src.fd, srcName, t.scratchFD, tmp, a); err != nil {
			return err
		}
		return t.fs.Rename(t.scratchFD, tmp, dst, name, unix.RENAME_NOREPLACE)
	}
	return f.copyFile(name, path, n, y, x, a, dst, src.fd, srcName)
}

func (f *flattening) copyFile(name, path string, n *Node, y, x *nodeVer, a *Attr, dst, srcDir int, srcName string) error {
	t := f.t
	fd, err := t.fs.Open(dst, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer t.fs.Close(fd)
	if err := t.copyMeta(srcDir, srcName, dst, name, a); err != nil {
		return err
	}
	if dataVer(y) == nil {
		x.flags |= verMeta
		x.lower = n.basePath()
		if err := t.fs.Setxattr(fd, "", t.prefix+"metacopy", nil, 0); err != nil {
			return err
		}
		if x.lower != path {
			if err := t.fs.Setxattr(fd, "", t.prefix+"redirect", []byte("/"+x.lower), 0); err != nil {
				return err
			}
		}
		err = t.fs.Truncate(fd, a.Size)
	} else {
		var content *fdEnt
		if content, err = t.contentFD(n, y); err != nil {
			return err
		}
		_, err = t.copyContent(fd, content.fd, 0, a.Size, allContent)
		t.fds.done(content)
	}
	if err != nil {
		return err
	}
	ts := [2]unix.Timespec{a.Atime.spec(), a.Mtime.spec()}
	return t.fs.Utimes(fd, "", &ts)
}

// ghosts carries over what changed only in the number of a file's names.
func (f *flattening) ghosts() {
	t := f.t
	for n := range t.all {
		x := n.verIn(f.v)
		if x == nil || x.flags&verGhost == 0 || x.flags&verGone != 0 || n.verAt(f.to) != nil || !n.hasBase && !n.inImage(f.beneath) {
			continue
		}
		y := *x
		y.layer = f.to
		n.insertVer(&y)
		t.encodeVersion(&f.enc, n, &y)
	}
}

// unlinked keeps without a name the nodes that lost theirs and are still held:
// in the new stack nothing else says so, nor what they had in this view.
func (f *flattening) unlinked() {
	t := f.t
	held := map[*Node]bool{}
	for n := range t.all {
		held[n] = n.refs.Load() > 0
	}
	t.liveMu.Lock()
	defer t.liveMu.Unlock()
	for _, n := range t.byBase {
		held[n] = n.refs.Load() > 0
	}
	for n, still := range held {
		x := n.verIn(f.v)
		if !still || x == nil || x.flags&verGone == 0 || n.isDir() && !n.hasBase {
			continue
		}
		y := *x
		if c := contentVer(n, f.v); c != nil && x.flags&verGhost != 0 {
			y = *c
			y.nlink, y.flags = x.nlink, y.flags|verGone
		}
		y.layer = f.to
		n.insertVer(&y)
		f.held = append(f.held, n)
	}
}

// facts carries over what is known of the base where changes remain.
func (f *flattening) facts() {
	t := f.t
	for path := range t.was {
		w := t.wasIn(f.v, path)
		if w == nil || t.wasAt(f.to, path) != nil || !f.keep[path] && !f.below(path) {
			continue
		}
		t.putWas(f.to, w)
		f.enc.was(w)
	}
}

func (f *flattening) below(path string) bool {
	for _, p := range f.under {
		if strings.HasPrefix(path, p) {
			return true
		}
	}
	return false
}

// finish restores the times that adding entries changed, and writes the layer's
// record.
func (f *flattening) finish() error {
	t := f.t
	for n := range t.all {
		x := n.verAt(f.to)
		if x == nil || !n.isDir() || x.flags&(verGhost|verGone) != 0 {
			continue
		}
		a, err := t.attrIn(n, f.v)
		if err != nil {
			return err
		}
		fd, err := t.layerDirFD(n, x)
		if err != nil {
			return err
		}
		ts := [2]unix.Timespec{a.Atime.spec(), a.Mtime.spec()}
		err = t.fs.Utimes(fd.fd, "", &ts)
		t.fds.done(fd)
		if err != nil {
			return err
		}
	}
	rec, err := t.openRecord(f.to)
	if err != nil {
		return err
	}
	defer t.fs.Close(rec.fd)
	return hostfs.WriteFull(t.fs, rec.fd, f.enc.b, rec.size)
}

// undo forgets a layer that could not be written.
func (f *flattening) undo() {
	t := f.t
	for _, n := range f.held {
		n.dropVer(f.to)
	}
	for n := range t.all {
		if x := n.verAt(f.to); x != nil {
			t.fds.drop(x, nil)
			n.dropVer(f.to)
		}
		for name := range n.ents {
			n.dropEntry(f.to, name)
		}
	}
	t.dropWas(f.to)
	delete(t.loaded, f.to)
	_ = hostfs.RemoveAll(t.fs, t.layersFD, layerName(f.to))
}
