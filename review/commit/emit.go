package commit

import (
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/review"
)

// tick is how coarse the times of files may be (a timer tick of a kernel with
// 100 Hz, twice). A file written less than that ago may be written again
// without another time, so that its content is compared as well.
const tick = 20 * time.Millisecond

// capture looks at everything that leaves the base, or changes in place, as
// the steps will expect it.
func (j *job) capture() error {
	for tree, s := range j.shapes {
		s.pairSlots()
		for _, n := range s.inOrder {
			if err := j.captureLink(tree, s, n); err != nil {
				return err
			}
		}
		for _, o := range s.outOrder {
			f, err := j.captureNode(tree, o.path)
			if err != nil {
				return err
			}
			o.facts = f
			j.noteLinks(o)
		}
		for _, o := range s.outOrder {
			if !o.isDir() || o.above != nil || o.moved != nil {
				continue
			}
			left := map[string]bool{}
			for _, m := range s.outOrder {
				if m.moved != nil && within(m.path, o.path) {
					left[m.path[len(o.path)+1:]] = true
				}
			}
			bad, err := checkTree(j.pl, loc{tree, pathName(o.path)}, o.entries(), left)
			if err != nil {
				return fmt.Errorf("look through the directory %q, which is to be removed: %w", o.path, err)
			}
			if bad != nil {
				return &DriftError{Paths: []Drifted{{j.trees[tree].Name, join(o.path, bad.path), bad.kind, bad.text}}}
			}
		}
	}
	return nil
}

// entries are the nodes that a removed directory takes along.
func (o *out) entries() []treeEntry {
	out := make([]treeEntry, len(o.below))
	for i, b := range o.below {
		out[i] = treeEntry{b.facts, pathName(b.path[len(o.path)+1:])}
	}
	return out
}

// captureLink looks at the node of the base that a new name is for: it must have
// the content that was reviewed under the new name.
func (j *job) captureLink(tree int, s *shape, n *in) error {
	if n.other == "" {
		return nil
	}
	var err error
	n.oldPath, _ = s.oldNode(n.other)
	if n.facts, err = j.captureNode(tree, n.oldPath); err != nil {
		return err
	}
	m := n.c.New
	if !m.IsRegular() || !m.HasDigest {
		return nil
	}
	fd, name, err := j.pl.at(loc{tree, pathName(n.oldPath)})
	if err != nil {
		return j.driftOr(tree, n.oldPath, err, "open")
	}
	sum, err := hashAt(j.fs, fd, name)
	if err != nil {
		return fmt.Errorf("read %q in the base: %w", n.oldPath, err)
	}
	if sum != m.Digest {
		return &DriftError{Paths: []Drifted{{j.trees[tree].Name, n.oldPath, review.DriftContent, "its content changed on the host"}}}
	}
	return nil
}

func (j *job) captureNode(tree int, path string) (facts, error) {
	fd, name, err := j.pl.at(loc{tree, pathName(path)})
	if err != nil {
		return facts{}, j.driftOr(tree, path, err, "open")
	}
	var st unix.Statx_t
	if err := j.fs.Stat(fd, name, &st); err != nil {
		return facts{}, j.driftOr(tree, path, err, "examine")
	}
	f := factsOf(&st)
	age := time.Since(time.Unix(f.Mtime.Sec, int64(f.Mtime.Nsec)))
	coarse := f.Mtime.Nsec == 0 && age < 2*time.Second
	if f.Mode&unix.S_IFMT == unix.S_IFREG && f.Size > 0 && (age < tick || coarse) {
		sum, err := hashAt(j.fs, fd, name)
		if err != nil {
			return facts{}, fmt.Errorf("read %q in the base: %w", path, err)
		}
		f.Digest = &sum
	}
	return f, nil
}

// noteLinks reports a replaced file that has other names.
func (j *job) noteLinks(o *out) {
	if o.facts.Nlink > 1 && !o.facts.isDir() && o.moved == nil && o.c.New != nil {
		j.note(noteLinks, o.c, fmt.Sprintf("it had %d names; the others keep the old content", o.facts.Nlink))
	}
}

// emit turns shapes into objects and steps.
func (j *job) emit() error {
	for tree := range j.shapes {
		e := &emitter{job: j, s: j.shapes[tree], tree: tree, finals: map[string]*final{}}
		if err := e.unlockDirs(); err != nil {
			return err
		}
		e.takeOuts()
		e.putIns()
		if err := e.metas(); err != nil {
			return err
		}
		e.finish()
	}
	j.recordApplied()
	return nil
}

// emitter makes the steps of one tree.
type emitter struct {
	*job
	s      *shape
	tree   int
	finals map[string]*final // by path in the view
	unlock []step
	puts   []step
}

// final is the metadata that a node gets in the end, in its place.
type final struct {
	obj           int
	before, after *meta
}

func (e *emitter) base(path string) loc { return loc{e.tree, pathName(path)} }

// starts are the places where a node of the base may be before it moves
// itself: the nearest moved directory above takes it along.
func (e *emitter) starts(path string) []loc {
	out := []loc{e.base(path)}
	for at := path; at != ""; {
		at, _ = split(at)
		n := e.s.moved[at]
		if n == nil {
			continue
		}
		rest := path[len(at)+1:]
		if !n.direct {
			out = append(out, loc{n.area, pathName(join(n.slot, rest))})
		}
		return append(out, e.base(join(n.path, rest)))
	}
	return out
}

// oldObject is the object of a node of the base.
func (e *emitter) oldObject(path string, f facts) int {
	k := baseKey{e.tree, path}
	if i, ok := e.byBase[k]; ok {
		return i
	}
	e.byBase[k] = len(e.objects)
	e.objects = append(e.objects, object{facts: f, Start: e.starts(path), Tree: e.tree, Label: pathName(path)})
	return len(e.objects) - 1
}

// newObject is the object of a staged node.
func (e *emitter) newObject(n *in) int {
	if n.obj >= 0 {
		return n.obj
	}
	start := loc{n.area, pathName(n.slot)}
	n.obj = len(e.objects)
	o := object{facts: n.facts, New: true, Start: []loc{start}, Tree: e.tree, Label: pathName(n.path)}
	if n.parent == nil && n.c.New.IsDir() {
		for _, b := range e.s.inOrder {
			if b.parent != nil && b.slot != n.slot && within(b.slot, n.slot) && b.area == n.area {
				o.tree = append(o.tree, treeEntry{b.facts, pathName(b.slot[len(n.slot)+1:])})
			}
		}
	}
	if n.parent != nil {
		o.Start = append(o.Start, e.base(n.path))
	}
	e.objects = append(e.objects, o)
	return n.obj
}

// unlockDirs makes the directories writable that an ordinary user could not
// otherwise change, though they are theirs.
func (e *emitter) unlockDirs() error {
	if e.cfg.privileged() {
		return nil
	}
	dirs := map[string]bool{}
	parent := func(path string) string { dir, _ := split(path); return dir }
	for _, o := range e.s.outOrder {
		if o.above != nil {
			continue
		}
		if o.slot == nil {
			dirs[parent(o.path)] = true
		}
		if o.isDir() {
			dirs[o.path] = true
		}
	}
	for _, n := range e.s.inOrder {
		if old, ok := e.s.oldNode(parent(n.path)); ok && n.parent == nil {
			dirs[old] = true
		}
	}
	paths := make([]string, 0, len(dirs))
	for p := range dirs {
		paths = append(paths, p)
	}
	slices.SortFunc(paths, overlay.ComparePaths)
	for _, p := range paths {
		if err := e.unlockDir(p); err != nil {
			return err
		}
	}
	return nil
}

func (e *emitter) unlockDir(path string) error {
	var st unix.Statx_t
	if err := e.pl.stat(e.base(path), &st); err != nil {
		return e.driftOr(e.tree, path, err, "examine")
	}
	f := factsOf(&st)
	if !needsUnlock(f.Mode) || int(f.UID) != os.Geteuid() {
		return nil
	}
	obj := e.oldObject(path, f)
	old, lent := permissions(f.Mode), permissions(f.Mode)|0o300
	e.unlock = append(e.unlock, step{Op: opMeta, Obj: obj, Lend: true, To: e.base(path),
		Before: &meta{Mode: &old}, After: &meta{Mode: &lent}})
	if o := e.s.outs[path]; o != nil && o.moved == nil || e.s.outAbove(path) != nil && e.goes(path) {
		return nil // it leaves: nobody needs its mode
	}
	view := e.s.newPath(path)
	if n := e.s.moved[path]; n != nil {
		view = n.path
	}
	e.finals[view] = &final{obj, &meta{Mode: &lent}, &meta{Mode: &old}}
	return nil
}

// goes reports whether a path of the base is removed with a directory above.
func (e *emitter) goes(path string) bool {
	a := e.s.outAbove(path)
	return a != nil && a.moved == nil
}

// takeOuts moves what leaves into the stage, deepest first.
func (e *emitter) takeOuts() {
	for i := len(e.s.outOrder) - 1; i >= 0; i-- {
		o := e.s.outOrder[i]
		if o.above != nil {
			continue
		}
		if o.slot != nil && !e.stageOf(o.slot).exchange {
			o.slot = nil
		}
		o.obj = e.oldObject(o.path, o.facts)
		obj := &e.objects[o.obj]
		if o.moved == nil {
			obj.Gone, obj.tree = true, o.entries()
		}
		if o.slot != nil || o.moved != nil && o.moved.direct {
			continue
		}
		to := loc{}
		if o.moved != nil {
			to = loc{o.moved.area, pathName(o.moved.slot)}
		} else {
			to = loc{o.stage.area, pathName(o.stage.slot('o'))}
		}
		e.puts = append(e.puts, step{Op: opMove, Obj: o.obj, From: e.base(o.path), To: to})
	}
}

// putIns puts what arrives in its place, parents first.
func (e *emitter) putIns() {
	var links []*in // last: what they are names of is in its place then
	swapped := map[*in]*out{}
	for _, o := range e.s.outOrder {
		if o.slot != nil {
			swapped[o.slot] = o
		}
	}
	for _, n := range e.s.inOrder {
		to := e.base(n.path)
		switch {
		case n.parent != nil:
		case n.other != "":
			links = append(links, n)
		case n.from != nil && n.direct:
			e.puts = append(e.puts, step{Op: opMove, Obj: n.from.obj, From: e.base(n.from.path), To: to})
		case n.from != nil:
			e.puts = append(e.puts, step{Op: opMove, Obj: n.from.obj, From: loc{n.area, pathName(n.slot)}, To: to})
		case swapped[n] != nil:
			e.puts = append(e.puts, step{Op: opSwap, Obj: e.newObject(n), Old: swapped[n].obj, From: loc{n.area, pathName(n.slot)}, To: to})
		default:
			e.puts = append(e.puts, step{Op: opMove, Obj: e.newObject(n), From: loc{n.area, pathName(n.slot)}, To: to})
		}
		if e.deferred(n) {
			e.finishStaged(n)
		}
	}
	for _, n := range links {
		e.puts = append(e.puts, step{Op: opLink, Obj: e.oldObject(n.oldPath, n.facts), From: e.base(n.other),
			To: e.base(n.path), Slot: loc{n.area, pathName(n.slot)}})
	}
}

// finishStaged gives a staged directory in its place what would have been in
// the way before.
func (e *emitter) finishStaged(n *in) {
	before, after := &meta{}, &meta{}
	if staged, mode := e.stagedMode(n), e.finalMode(n); staged != mode {
		before.Mode, after.Mode = &staged, &mode
	}
	mtime := n.c.New.Mtime
	before.Mtime, after.Mtime = &mtime, &mtime
	e.finals[n.path] = &final{e.newObject(n), before, after}
}

// metas adds the changes of metadata in place.
func (e *emitter) metas() error {
	for _, c := range e.s.metas {
		var st unix.Statx_t
		if err := e.pl.stat(e.base(c.Origin), &st); err != nil {
			return e.driftOr(e.tree, c.Origin, err, "examine")
		}
		f := factsOf(&st)
		before, after := e.metaOf(c, &f)
		view := c.Path
		if old := e.finals[view]; old != nil {
			// It was made writable meanwhile.
			before.Mode = old.before.Mode
			if after.Mode == nil {
				after.Mode = old.after.Mode
			}
		}
		e.finals[view] = &final{e.oldObject(c.Origin, f), before, after}
	}
	return nil
}

// finish orders the steps: lend access, take out, put in, and in the end the
// metadata, deepest first, so that no directory is closed before what is in it
// is done.
func (e *emitter) finish() {
	e.steps = append(append(e.steps, e.unlock...), e.puts...)
	paths := make([]string, 0, len(e.finals))
	for p := range e.finals {
		paths = append(paths, p)
	}
	slices.SortFunc(paths, func(a, b string) int { return overlay.ComparePaths(b, a) })
	for _, p := range paths {
		f := e.finals[p]
		if f.after.empty() {
			continue
		}
		e.steps = append(e.steps, step{Op: opMeta, Obj: f.obj, To: e.base(p), Before: f.before, After: f.after})
	}
}

// recordApplied lists the changes for the result.
func (j *job) recordApplied() {
	for _, c := range j.plan.Changes {
		tree := j.treeIndex(c.Tree)
		a := appliedRecord{Tree: tree, Path: pathName(c.Path), Kind: uint8(c.Kind)}
		id := j.identity(tree, c)
		a.Dev, a.Ino = id.Dev, id.Ino
		j.applied = append(j.applied, a)
	}
	for _, n := range j.plan.Skipped {
		j.notes = append(j.notes, noteRecord{noteSkipped, n.Tree, pathName(n.Path), n.What})
	}
	for _, n := range j.plan.Dropped {
		j.notes = append(j.notes, noteRecord{noteDropped, n.Tree, pathName(n.Path), n.What})
	}
}

// identity is the host's identity of what a change leaves at its path.
func (j *job) identity(tree int, c *review.Change) overlay.HostID {
	if c.New == nil {
		return overlay.HostID{}
	}
	n := j.shapes[tree].ins[c.Path]
	switch {
	case n == nil:
		if i, ok := j.byBase[baseKey{tree, c.Origin}]; ok {
			return overlay.HostID{Dev: j.pl.devs[tree], Ino: j.objects[i].Ino}
		}
		return overlay.HostID{}
	case n.from != nil:
		return overlay.HostID{Dev: j.pl.devs[n.area], Ino: n.from.facts.Ino}
	case n.other != "":
		return overlay.HostID{Dev: j.pl.devs[n.area], Ino: n.facts.Ino}
	}
	return overlay.HostID{Dev: j.pl.devs[n.area], Ino: n.facts.Ino}
}
