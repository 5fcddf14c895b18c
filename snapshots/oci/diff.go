package oci

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// entry is one entry of a layer.
type entry struct {
	path     string // in the tree; "" is its root
	whiteout bool
	opaque   bool // a directory that takes the place of what was there
	same     bool // the node that was there, changed
	link     string
	attr     overlay.Attr
	was      *overlay.Was
}

// diff finds what one view has otherwise than another of the same tree.
type diff struct {
	ctx      context.Context
	old, now *overlay.Face
	entries  map[string]*entry
	replaced []string            // directories of which all is written
	links    map[uint64][]string // names of files with several
	was      map[string]*overlay.Was
	// inBase tells the names in the base of files that have several there.
	inBase func() (map[uint64][]string, error)
}

// compare lists, parents first and siblings by their bytes, what makes now of
// old.
func compare(ctx context.Context, old, now *overlay.Face, inBase func() (map[uint64][]string, error)) ([]*entry, error) {
	d := &diff{ctx: ctx, old: old, now: now, inBase: inBase, entries: map[string]*entry{}, links: map[uint64][]string{}, was: map[string]*overlay.Was{}}
	paths, err := d.candidates()
	if err != nil {
		return nil, err
	}
	for _, p := range paths {
		if err := d.path(p); err != nil {
			return nil, err
		}
	}
	if err := d.linkNames(); err != nil {
		return nil, err
	}
	if err := d.parents(); err != nil {
		return nil, err
	}
	return d.sorted(), nil
}

// candidates are the paths at which either view differs from the base.
func (d *diff) candidates() ([]string, error) {
	set := map[string]bool{}
	for _, f := range []*overlay.Face{d.old, d.now} {
		err := f.Delta(func(e overlay.Entry) error {
			set[e.Path] = true
			if f != d.now {
				return nil
			}
			d.was[e.Path] = e.Was
			if !e.Whiteout && !e.Attr.IsDir() && e.Attr.Nlink > 1 {
				d.links[e.Attr.Ino] = append(d.links[e.Attr.Ino], e.Path)
			}
			return nil
		})
		if err == nil {
			err = f.Replaced(func(path string) { set[path] = true })
		}
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

// path compares what the views have at one path.
func (d *diff) path(p string) error {
	if err := d.ctx.Err(); err != nil {
		return context.Cause(d.ctx)
	}
	if len(d.replaced) > 0 && below(p, d.replaced[len(d.replaced)-1]) {
		return nil // written with the directory
	}
	old, err := d.old.Look(p)
	if err != nil {
		return err
	}
	now, err := d.now.Look(p)
	if err != nil {
		return err
	}
	switch {
	case now == nil && old == nil:
		return nil
	case now == nil:
		d.entries[p] = &entry{path: p, whiteout: true, was: d.was[p]}
		return nil
	case old != nil && overlay.Untouched(d.old, d.now, p, old, now):
		return nil
	}
	same := old != nil && old.Ino == now.Ino && old.Mode&unix.S_IFMT == now.Mode&unix.S_IFMT
	e := &entry{path: p, attr: *now, same: same, was: d.was[p]}
	d.entries[p] = e
	if !now.IsDir() || same {
		return nil
	}
	e.opaque = old != nil && old.IsDir()
	d.replaced = append(d.replaced, p)
	return d.all(p)
}

// below tells whether p lies in dir.
func below(p, dir string) bool {
	return dir == "" || strings.HasPrefix(p, dir) && len(p) > len(dir) && p[len(dir)] == '/'
}

// all adds everything below a directory.
func (d *diff) all(dir string) error {
	dirs := []string{dir}
	for len(dirs) > 0 {
		at := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		names, err := list(d.now, at)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := d.ctx.Err(); err != nil {
				return context.Cause(d.ctx)
			}
			p := join(at, name)
			a, err := d.now.Look(p)
			if err != nil {
				return err
			}
			if a == nil {
				continue
			}
			d.entries[p] = &entry{path: p, attr: *a, was: d.was[p]}
			if a.IsDir() {
				dirs = append(dirs, p)
			} else if a.Nlink > 1 && !slices.Contains(d.links[a.Ino], p) {
				d.links[a.Ino] = append(d.links[a.Ino], p)
			}
		}
	}
	return nil
}

func list(f *overlay.Face, path string) (names []string, err error) {
	n, _, err := f.Walk(path)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	defer f.Forget(n, 1)
	err = f.ReadDir(n, 0, func(e overlay.DirEntry) bool {
		if e.Name != "." && e.Name != ".." {
			names = append(names, e.Name)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	return names, nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// linkNames writes files with several names with all of them: the first has the
// content, and the others are links to it.
func (d *diff) linkNames() error {
	for ino, paths := range d.links {
		nlink := uint32(0)
		for _, p := range paths {
			if e := d.entries[p]; e != nil && !e.whiteout {
				nlink = e.attr.Nlink
			}
		}
		if nlink == 0 {
			continue
		}
		if int(nlink) > len(paths) {
			// Names that the base has and no layer knows.
			base, err := d.inBase()
			if err != nil {
				return err
			}
			for _, p := range base[ino] {
				if !slices.Contains(paths, p) {
					paths = append(paths, p)
				}
			}
		}
		slices.SortFunc(paths, overlay.ComparePaths)
		first := ""
		for _, p := range paths {
			e := d.entries[p]
			if e == nil {
				a, err := d.now.Look(p)
				if err != nil {
					return err
				}
				if a == nil || a.Ino != ino {
					continue
				}
				// A name at which nothing changed is that of the same file.
				e = &entry{path: p, attr: *a, same: true}
				d.entries[p] = e
			}
			switch {
			case e.whiteout || e.attr.Ino != ino:
			case first == "":
				first = p
			default:
				e.link = first
			}
		}
	}
	return nil
}

// parents adds the directories on the way to each entry.
func (d *diff) parents() error {
	for _, p := range keys(d.entries) {
		for p != "" {
			p = dirOf(p)
			if d.entries[p] != nil {
				break
			}
			a, err := d.now.Look(p)
			if err != nil {
				return err
			}
			if a == nil || !a.IsDir() {
				// The directory itself is gone, and its whiteout says so.
				break
			}
			d.entries[p] = &entry{path: p, attr: *a, same: true}
		}
	}
	return nil
}

func keys(m map[string]*entry) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}

func dirOf(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return ""
}

// sorted are the entries but for whiteouts in directories that are gone or new.
func (d *diff) sorted() []*entry {
	out := make([]*entry, 0, len(d.entries))
	for _, p := range keys(d.entries) {
		e := d.entries[p]
		if e.whiteout {
			dir := d.entries[dirOf(p)]
			if dir == nil || dir.whiteout || !dir.attr.IsDir() || !dir.same {
				continue
			}
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *entry) int { return overlay.ComparePaths(a.path, b.path) })
	return out
}
