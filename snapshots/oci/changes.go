package oci

import (
	"context"
	"fmt"
	"io"

	"github.com/galleyfs/galley/overlay"
)

// Packed is a layer that was written.
type Packed struct {
	// Digest is that of the blob, DiffID that of the tar in it, both in
	// hexadecimal.
	Digest, DiffID string
	Size           int64 // of the blob
	Entries        int
}

// WriteChanges writes as a layer what makes one view of a tree of another.
func WriteChanges(ctx context.Context, w io.Writer, old, now *overlay.Face, told func(int64)) (Packed, error) {
	entries, err := compare(ctx, old, now, func() (map[uint64][]string, error) { return linksIn(ctx, old) })
	if err != nil {
		return Packed{}, err
	}
	return writePacked(w, now, entries, told)
}

// WriteTree writes all of a view as one layer.
func WriteTree(ctx context.Context, w io.Writer, now *overlay.Face, told func(int64)) (Packed, error) {
	d := &diff{ctx: ctx, now: now, entries: map[string]*entry{}, links: map[uint64][]string{}}
	// A file may have names outside of the tree.
	d.inBase = func() (map[uint64][]string, error) { return nil, nil }
	root, err := now.Look("")
	if err != nil {
		return Packed{}, err
	}
	d.entries[""] = &entry{attr: *root}
	if err := d.all(""); err != nil {
		return Packed{}, err
	}
	if err := d.linkNames(); err != nil {
		return Packed{}, err
	}
	return writePacked(w, now, d.sorted(), told)
}

func writePacked(w io.Writer, f *overlay.Face, entries []*entry, told func(int64)) (Packed, error) {
	p, err := writeLayer(w, f, entries, told)
	return Packed{Digest: p.digest, DiffID: p.diffID, Size: p.size, Entries: len(entries)}, err
}

// linksIn finds the names that a view has of files with several.
func linksIn(ctx context.Context, f *overlay.Face) (map[uint64][]string, error) {
	m := map[uint64][]string{}
	for dirs := []string{""}; len(dirs) > 0; {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		names, err := list(f, dir)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", dir, err)
		}
		for _, name := range names {
			a, err := f.Look(join(dir, name))
			if err != nil || a == nil {
				continue // not readable, or gone: no name that a view could show
			}
			if a.IsDir() {
				dirs = append(dirs, join(dir, name))
			} else if a.Nlink > 1 {
				m[a.Ino] = append(m[a.Ino], join(dir, name))
			}
		}
	}
	return m, nil
}
