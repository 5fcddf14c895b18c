package review

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// Pair is one tree seen at two points: of one session, or of two with the same
// base.
type Pair struct {
	// Name of the tree.
	Name string
	// Old and New are on sealed layers. Nil is an empty tree.
	Old, New *overlay.Face
}

// Between lists what the new views differ in from the old ones. The base plays
// no part in it: the result is for reading, and cannot be committed.
func Between(ctx context.Context, pairs []Pair, opts Options) (*ChangeSet, error) {
	var changes []Change
	var trees []*tree
	for _, p := range pairs {
		b := &between{old: p.Old, now: p.New, oldView: FaceView(p.Old), nowView: FaceView(p.New), seen: map[string]bool{}}
		t := &tree{name: p.Name, base: viewSide{p.Old, b.oldView}, view: b.nowView}
		if p.New == nil {
			t.view = b.oldView
		}
		b.d = &differ{ctx: ctx, tree: t, leader: map[uint64]string{}, digests: map[uint64][32]byte{}}
		if err := b.run(opts); err != nil {
			return nil, fmt.Errorf("compare the tree %s at two points: %w", p.Name, err)
		}
		trees = append(trees, t)
		changes = append(changes, b.d.changes...)
	}
	return newChangeSet(trees, changes), nil
}

// between compares two views of one tree.
type between struct {
	d        *differ
	old, now *overlay.Face
	// oldView and nowView are the same as views.
	oldView, nowView View

	seen map[string]bool // paths that were compared
}

func (b *between) run(opts Options) error {
	paths, err := b.candidates()
	if err != nil {
		return err
	}
	for _, p := range paths {
		if err := b.path(p); err != nil {
			return err
		}
	}
	if !opts.NoSimilarity {
		if err := b.d.findRenames(opts.MaxPairs); err != nil {
			return err
		}
	}
	slices.SortFunc(b.d.changes, compareChanges)
	for i := range b.d.changes {
		b.d.changes[i].Flags = flagsOf(&b.d.changes[i])
	}
	return nil
}

// candidates are the paths at which either view differs from the base, parents
// first: the two can differ from each other only there and below.
func (b *between) candidates() ([]string, error) {
	set := map[string]bool{}
	for _, f := range []*overlay.Face{b.old, b.now} {
		if f == nil {
			continue
		}
		err := f.Delta(func(e overlay.Entry) error {
			if !e.Implicit {
				set[e.Path] = true
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	paths := make([]string, 0, len(set))
	for p := range set {
		paths = append(paths, p)
	}
	slices.SortFunc(paths, overlay.ComparePaths)
	return paths, nil
}

// attrAt describes path in a view; nil where there is nothing, or no view.
func attrAt(f *overlay.Face, path string) (*overlay.Attr, error) {
	if f == nil {
		return nil, nil
	}
	return f.Look(path)
}

// path compares one path, and what lies below it where the one cannot be told
// from changes further down.
func (b *between) path(p string) error {
	if err := b.d.ctx.Err(); err != nil {
		return context.Cause(b.d.ctx)
	}
	if b.seen[p] {
		return nil
	}
	b.seen[p] = true
	old, err := attrAt(b.old, p)
	if err != nil {
		return err
	}
	now, err := attrAt(b.now, p)
	if err != nil {
		return err
	}
	if old == nil && now == nil || old != nil && now != nil && !old.IsDir() && overlay.Untouched(b.old, b.now, p, old, now) {
		return nil
	}
	if err := b.compare(p, old, now); err != nil {
		return err
	}
	oldDir, newDir := old != nil && old.IsDir(), now != nil && now.IsDir()
	if oldDir && newDir && old.Ino == now.Ino {
		return nil // what differs below is a candidate of its own
	}
	if oldDir {
		if err := b.below(b.oldView, p); err != nil {
			return err
		}
	}
	if newDir {
		return b.below(b.nowView, p)
	}
	return nil
}

func (b *between) below(v View, dir string) error {
	var names []string
	err := v.List(dir, func(name string, _ uint32) bool { names = append(names, name); return true })
	if err != nil {
		return fmt.Errorf("list %q: %w", dir, err)
	}
	for _, name := range names {
		if err := b.path(join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// compare adds the change at one path, if there is any.
func (b *between) compare(p string, old, now *overlay.Attr) error {
	d := b.d
	c := Change{Tree: d.tree.name, Path: p, At: p, Origin: p}
	var err error
	if old != nil {
		if c.Old, err = metaOf(b.oldView, p, old); err != nil {
			return err
		}
	}
	if now != nil {
		if c.New, err = metaOf(b.nowView, p, now); err != nil {
			return err
		}
		if c.New.IsRegular() {
			if err := d.digestNew(&overlay.Entry{Path: p, Attr: *now}, c.New); err != nil {
				return err
			}
		}
	}
	switch {
	case old == nil:
		c.Kind, c.Origin = Added, ""
	case now == nil:
		c.Kind = Deleted
	case c.Old.Type() != c.New.Type():
		c.Kind = TypeChanged
	default:
		c.Parts = metaParts(c.Old, c.New)
		if c.New.IsRegular() {
			same, err := d.sameContent(&c, p, false)
			if err != nil {
				return err
			}
			if !same {
				c.Parts |= PartContent
			}
		}
		if c.Parts == 0 {
			return nil
		}
		c.Kind = Modified
		if c.Parts&(PartContent|PartTarget|PartRdev) == 0 {
			c.Kind = MetaOnly
		}
	}
	d.changes = append(d.changes, c)
	return nil
}

// metaOf describes a node of a view, without its digest.
func metaOf(v View, path string, a *overlay.Attr) (*Meta, error) {
	d := &differ{tree: &tree{view: v}}
	return d.newMeta(&overlay.Entry{Path: path, Attr: *a})
}

// viewSide is a view in the place of a base.
type viewSide struct {
	f    *overlay.Face // nil: nothing
	view View          // of f
}

func (v viewSide) stat(path string, st *unix.Statx_t) (bool, error) {
	a, err := attrAt(v.f, path)
	if a == nil || err != nil {
		return err == nil, err
	}
	st.Mode, st.Ino, st.Size, st.Uid, st.Gid, st.Nlink = uint16(a.Mode), a.Ino, uint64(a.Size), a.UID, a.GID, a.Nlink
	return false, nil
}

func (v viewSide) open(path string) (*Content, error) {
	if v.f == nil {
		return nil, unix.ENOENT
	}
	return v.view.Open(path)
}

func (v viewSide) readlink(path string) (string, error) {
	if v.f == nil {
		return "", unix.ENOENT
	}
	return v.view.Readlink(path)
}

func (v viewSide) xattrs(path string) ([]Xattr, error) {
	if v.f == nil {
		return nil, unix.ENOENT
	}
	return v.view.Xattrs(path)
}

func (v viewSide) factsNow(path string) (*overlay.Was, error) {
	a, err := attrAt(v.f, path)
	if a == nil || err != nil {
		return nil, err
	}
	w := &overlay.Was{Path: path, Exists: true, Mode: a.Mode, UID: a.UID, GID: a.GID, Nlink: a.Nlink,
		Size: a.Size, Rdev: a.Rdev, Mtime: a.Mtime, Ctime: a.Ctime}
	if typeBits(a.Mode) == unix.S_IFLNK {
		w.Target, err = v.readlink(path)
	}
	return w, err
}

func (v viewSide) each(dir string, fn func(name string) error) error {
	if v.f == nil {
		return nil
	}
	var names []string
	err := v.view.List(dir, func(name string, _ uint32) bool { names = append(names, name); return true })
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	for i := 0; err == nil && i < len(names); i++ {
		err = fn(names[i])
	}
	return err
}

func (viewSide) drift(overlay.Was) Drift { return Drift{} }
