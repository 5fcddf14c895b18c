package snapshots

import (
	"bytes"
	"fmt"

	"github.com/galleyfs/galley/overlay"
)

// stillSame decides which committed paths a session still has as they were
// committed, where it went on after the snapshot. A path that changed since is
// kept, and so is what lies in a directory that changed since: keeping too much
// costs a later review one look at equal contents, keeping too little would
// lose work.
//
// The two views are those of the snapshot and of what was sealed last.
func stillSame(t *overlay.Tree, then, now overlay.Stack, paths pathSet) (pathSet, error) {
	a, err := openView(t, then)
	if err != nil {
		return nil, err
	}
	defer a.face.Detach()
	b, err := openView(t, now)
	if err != nil {
		return nil, err
	}
	defer b.face.Detach()
	changed := pathSet{}
	for p := range paths {
		same, err := equalAt(a, b, p)
		if err != nil {
			return nil, fmt.Errorf("compare %q: %w", p, err)
		}
		if !same {
			changed[p] = true
		}
	}
	out := pathSet{}
	for p := range paths {
		if !changed.covers(p) {
			out[p] = true
		}
	}
	return out, nil
}

// deltaView is a view with its differences from the base.
type deltaView struct {
	face    *overlay.Face
	entries map[string]overlay.Entry
}

func openView(t *overlay.Tree, s overlay.Stack) (*deltaView, error) {
	f, err := t.View(s)
	if err != nil {
		return nil, err
	}
	v := &deltaView{face: f, entries: map[string]overlay.Entry{}}
	err = f.Delta(func(e overlay.Entry) error {
		v.entries[e.Path] = e
		return nil
	})
	if err != nil {
		f.Detach()
		return nil, err
	}
	return v, nil
}

// equalAt tells whether two views have the same change at a path.
func equalAt(a, b *deltaView, path string) (bool, error) {
	x, inA := a.entries[path]
	y, inB := b.entries[path]
	if !inA || !inB || x.Whiteout || y.Whiteout {
		return inA == inB && x.Whiteout == y.Whiteout, nil
	}
	if x.Origin != y.Origin || x.Attr.Ino != y.Attr.Ino || x.Attr.Mode != y.Attr.Mode ||
		x.Attr.UID != y.Attr.UID || x.Attr.GID != y.Attr.GID || x.Attr.Rdev != y.Attr.Rdev {
		return false, nil
	}
	if !x.Attr.IsDir() {
		return x.Attr.Size == y.Attr.Size && x.Attr.Mtime == y.Attr.Mtime && x.Attr.Ctime == y.Attr.Ctime, nil
	}
	// A directory's times change with what is in it; what is its own are,
	// beyond mode and owner, its xattrs.
	if x.Opaque != y.Opaque {
		return false, nil
	}
	return equalXattrs(a.face, b.face, path)
}

func equalXattrs(a, b *overlay.Face, path string) (bool, error) {
	x, err := xattrsAt(a, path)
	if err != nil {
		return false, err
	}
	y, err := xattrsAt(b, path)
	if err != nil {
		return false, err
	}
	if len(x) != len(y) {
		return false, nil
	}
	for name, val := range x {
		if other, ok := y[name]; !ok || !bytes.Equal(val, other) {
			return false, nil
		}
	}
	return true, nil
}

func xattrsAt(f *overlay.Face, path string) (map[string][]byte, error) {
	n, _, err := f.Walk(path)
	if err != nil {
		return nil, err
	}
	defer f.Forget(n, 1)
	list, err := f.Listxattr(n)
	if err != nil {
		return nil, err
	}
	out := make(map[string][]byte, len(list))
	for _, name := range list {
		if out[name], err = f.Getxattr(n, name); err != nil {
			return nil, err
		}
	}
	return out, nil
}
