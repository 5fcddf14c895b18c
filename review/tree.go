package review

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// differ computes the changes of one tree.
type differ struct {
	ctx     context.Context
	tree    *tree
	layout  *layout
	changes []Change
	// idle are the entries that are no change.
	idle []idleEntry
	// leader is, by inode of the view, the path that a hard-linked node is
	// known by; digests saves reading such a node once for each name.
	leader  map[uint64]string
	digests map[uint64][32]byte
	// ahead are digests of entries that were computed several at a time.
	ahead map[*overlay.Entry]aheadDigest
}

// computeTree lists the changes of one tree, and the entries that are none.
func computeTree(ctx context.Context, t *tree, opts Options) (changes []Change, idle []idleEntry, err error) {
	l, err := newLayout(t.view, t.base)
	if err != nil {
		return nil, nil, err
	}
	d := &differ{ctx: ctx, tree: t, layout: l, leader: map[uint64]string{}, digests: map[uint64][32]byte{}}
	d.digestAhead()
	for _, e := range l.order {
		if err := ctx.Err(); err != nil {
			return nil, nil, context.Cause(ctx)
		}
		if err := d.entry(e); err != nil {
			return nil, nil, err
		}
	}
	if !opts.NoSimilarity {
		if err := d.findRenames(opts.MaxPairs); err != nil {
			return nil, nil, err
		}
	}
	slices.SortFunc(d.changes, compareChanges)
	d.linkNames()
	for i := range d.changes {
		c := &d.changes[i]
		if c.Drift.Kind == DriftNone {
			c.Drift = d.drift(c)
		}
		c.Flags = flagsOf(c)
	}
	return d.changes, d.idle, nil
}

// compareChanges is the order of a change set within one tree.
func compareChanges(a, b Change) int {
	if n := overlay.ComparePaths(a.Path, b.Path); n != 0 {
		return n
	}
	// What goes comes before what takes its place.
	return boolInt(b.Kind == Deleted) - boolInt(a.Kind == Deleted)
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// entry adds the changes that one entry of the delta makes.
func (d *differ) entry(e *overlay.Entry) error {
	l := d.layout
	under, hasUnder := l.under(e.Path)
	if e.Whiteout {
		if !hasUnder || l.movedFrom[under] != nil {
			return nil
		}
		was, err := l.facts(e, under)
		if err != nil {
			return wrapBase(under, err)
		}
		if was == nil || d.goneNow(was) {
			d.noChange(e)
			return nil
		}
		return d.deleted(was, e.Path)
	}
	if l.renamed[e] {
		return d.renamed(e, under, hasUnder)
	}
	var was *overlay.Was
	if hasUnder && l.movedFrom[under] == nil {
		var err error
		if was, err = l.facts(e, under); err != nil {
			return wrapBase(under, err)
		}
	}
	if was == nil {
		return d.added(e, under, hasUnder)
	}
	return d.changed(e, was)
}

// noChange notes that an entry is no change.
func (d *differ) noChange(e *overlay.Entry) {
	d.idle = append(d.idle, idleEntry{TreePath{d.tree.name, e.Path}, d.layout.hiding(parentOf(e.Path))})
}

func wrapBase(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("look at %q in the base: %w", path, err)
}

// added handles a node where the base has none.
func (d *differ) added(e *overlay.Entry, under string, hasUnder bool) error {
	c := Change{Kind: Added, Path: e.Path, At: e.Path}
	var err error
	if c.New, err = d.newMeta(e); err != nil {
		return err
	}
	if c.New.IsRegular() {
		if err := d.digestNew(e, c.New); err != nil {
			return err
		}
	}
	c.Facts = d.absent(e.Path, under, hasUnder)
	d.add(c, e)
	return nil
}

// absent is the facts for a path at which the base must have nothing, in a
// directory that it must have if the change set does not bring it.
func (d *differ) absent(path, under string, hasUnder bool) []overlay.Was {
	if !hasUnder {
		return nil
	}
	for at := parentOf(under); at != ""; at = parentOf(at) {
		if was, ok := d.layout.recorded(at); ok && was != nil && typeBits(was.Mode) != unix.S_IFDIR {
			return nil // the base has no such directory: it comes with this change set
		}
	}
	var facts []overlay.Was
	if d.layout.movedFrom[under] == nil { // else what is there leaves with this very change set
		facts = append(facts, overlay.Was{Path: under})
	}
	if dir := parentOf(path); path != "" && d.layout.merges(dir) {
		facts = append(facts, overlay.Was{Path: parentOf(under), Exists: true, Mode: unix.S_IFDIR})
	}
	return facts
}

// renamed handles a node that came from elsewhere in the base.
func (d *differ) renamed(e *overlay.Entry, under string, hasUnder bool) error {
	was, err := d.layout.facts(e, e.Origin)
	if err != nil {
		return wrapBase(e.Origin, err)
	}
	if was == nil {
		// The host deleted it as well; what the session made of it is new,
		// and that it drifted is still to be told.
		was = &overlay.Was{Path: e.Origin, Exists: true, Mode: e.Attr.Mode}
	}
	c := Change{Kind: Renamed, Path: e.Path, From: e.Origin, Origin: e.Origin, At: e.Path, SameData: e.SameData}
	if _, err := d.compare(e, was, &c); err != nil {
		return err
	}
	if c.New.IsRegular() && c.Old.IsRegular() {
		if c.Similarity = 100; c.Parts&PartContent != 0 {
			c.Similarity = d.similarityTo(e, was.Path)
		}
	}
	c.Facts = []overlay.Was{*was}
	replaced, err := d.layout.replaced(e)
	if err != nil {
		return wrapBase(under, err)
	}
	if replaced == nil {
		c.Facts = append(c.Facts, d.absent(e.Path, under, hasUnder)...)
	}
	d.add(c, e)
	if replaced != nil {
		return d.deleted(replaced, e.Path)
	}
	return nil
}

// similarityTo compares a renamed file with what it was; 0 where that cannot be
// read, which is for drift to tell.
func (d *differ) similarityTo(e *overlay.Entry, path string) int {
	old, err := d.tree.base.open(path)
	if err != nil {
		return 0
	}
	defer old.Close()
	now, err := d.tree.view.Open(e.Path)
	if err != nil {
		return 0
	}
	defer now.Close()
	score, err := contentSimilarity(old, now)
	if err != nil {
		return 0
	}
	return score
}

// changed handles a node where the base has one that did not move away.
func (d *differ) changed(e *overlay.Entry, was *overlay.Was) error {
	oldDir, newDir := typeBits(was.Mode) == unix.S_IFDIR, e.Attr.IsDir()
	if oldDir && newDir && d.layout.merges(e.Path) && e.Implicit {
		return nil
	}
	c := Change{Kind: Modified, Path: e.Path, Origin: was.Path, At: e.Path, SameData: e.SameData}
	differs, err := d.compare(e, was, &c)
	if err != nil {
		return err
	}
	switch {
	case c.Old.Type() != c.New.Type():
		c.Kind = TypeChanged
	case c.Parts&(PartContent|PartTarget|PartRdev) == 0:
		c.Kind = MetaOnly
	}
	c.Facts = []overlay.Was{*was}
	index := -1
	if differs {
		index = len(d.changes)
		d.add(c, e)
	} else if e.Attr.Nlink > 1 && !newDir {
		d.leader[e.Attr.Ino] = e.Path
	} else if !newDir || !d.layout.merges(e.Path) {
		d.noChange(e)
	}
	if oldDir && !(newDir && d.layout.merges(e.Path)) {
		if newDir {
			index = -1 // the host's entries can stay
		}
		return d.hidden(was.Path, e.Path, index, func(name string) bool {
			return newDir && d.layout.entries[join(e.Path, name)] != nil
		})
	}
	return nil
}

// deleted adds the deletion of a node of the base, and of everything below it
// that the session hid and that did not move away. at is the path in the view
// of the entry that hides it.
func (d *differ) deleted(was *overlay.Was, at string) error {
	old, err := d.oldMeta(was)
	if err != nil {
		return err
	}
	index := len(d.changes)
	d.changes = append(d.changes, Change{Tree: d.tree.name, Kind: Deleted, Path: was.Path, Origin: was.Path,
		At: at, Old: old, Facts: []overlay.Was{*was}})
	if !old.IsDir() {
		return nil
	}
	return d.hidden(was.Path, at, index, func(string) bool { return false })
}

// goneNow reports whether the host deleted, by itself, what the session did.
func (d *differ) goneNow(was *overlay.Was) bool {
	var st unix.Statx_t
	absent, err := d.tree.base.stat(was.Path, &st)
	return absent && err == nil
}

// hidden adds the deletions of what the base has in a directory that the view
// does not show, but for what moved away and what ours says is another entry's
// affair. What the session never saw there, the host made later: it is no
// deletion, but drift of the change of the given index, if that is not negative.
func (d *differ) hidden(dir, at string, index int, ours func(name string) bool) error {
	return d.tree.base.each(dir, func(name string) error {
		if err := d.ctx.Err(); err != nil {
			return context.Cause(d.ctx)
		}
		path := join(dir, name)
		if d.layout.movedFrom[path] != nil || ours(name) {
			return nil
		}
		was, ok := d.layout.recorded(path)
		if ok && was != nil {
			return d.deleted(was, at)
		}
		if index >= 0 && d.changes[index].Drift.Kind == DriftNone {
			d.changes[index].Drift = Drift{DriftEntries, path, "it was created on the host in a directory that the session removed"}
		}
		return nil
	})
}

// add appends a change about a node of the view.
func (d *differ) add(c Change, e *overlay.Entry) {
	c.Tree = d.tree.name
	if e.Attr.Nlink > 1 && !e.Attr.IsDir() {
		c.ino = e.Attr.Ino
	}
	d.changes = append(d.changes, c)
}

// linkNames names the leading path in every further change about one node.
func (d *differ) linkNames() {
	for i := range d.changes {
		c := &d.changes[i]
		if c.ino == 0 {
			continue
		}
		if path, ok := d.leader[c.ino]; ok {
			c.Link = path
			continue
		}
		d.leader[c.ino] = c.Path
	}
}

// drift is the first fact of a change that does not hold.
func (d *differ) drift(c *Change) Drift {
	for _, was := range c.Facts {
		if drift := d.tree.base.drift(was); drift.Kind != DriftNone {
			return drift
		}
	}
	return Drift{}
}
