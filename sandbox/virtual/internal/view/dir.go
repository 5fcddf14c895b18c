package view

import (
	"os"
	"path"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// Dir is an open directory, in which files are found without a walk from the
// root. Its methods may be called at the same time.
type Dir struct {
	v    *View
	spot *spot
	path string
}

// OpenDir opens a directory; it follows.
func (v *View) OpenDir(p string) (*Dir, error) {
	s, err := v.there(p, true)
	if err != nil {
		return nil, err
	}
	if !s.attr.IsDir() {
		err = unix.ENOTDIR
	} else {
		err = v.access(s.attr, 4)
	}
	if err != nil {
		s.release()
		return nil, err
	}
	return &Dir{v: v, spot: s, path: s.path()}, nil
}

// ReadDir lists it, sorted by name.
func (d *Dir) ReadDir() ([]DirEntry, error) {
	var out []DirEntry
	err := d.spot.m.face.ReadDir(d.spot.node, 0, func(e overlay.DirEntry) bool {
		out = append(out, DirEntry{strings.Clone(e.Name), e.Type & unix.S_IFMT, d.v, d.path})
		return true
	})
	sort.Slice(out, func(i, j int) bool { return out[i].name < out[j].name })
	return out, err
}

// OpenFile opens a regular file in it for reading; it does not follow.
func (d *Dir) OpenFile(name string) (*File, error) {
	if err := d.v.access(d.spot.attr, 1); err != nil {
		return nil, err
	}
	m := d.spot.m
	n, a, err := m.face.Lookup(d.spot.node, name)
	if err != nil {
		return nil, err
	}
	s := &spot{v: d.v, m: m, node: n, attr: a, own: true}
	if !a.IsRegular() {
		err = unix.ENXIO
	} else {
		err = d.v.access(a, 4)
	}
	if err != nil {
		s.release()
		return nil, err
	}
	return &File{v: d.v, spot: s, m: m, node: n, path: path.Join(d.path, name), flag: os.O_RDONLY}, nil
}

// Close gives it back.
func (d *Dir) Close() error {
	d.spot.release()
	return nil
}
