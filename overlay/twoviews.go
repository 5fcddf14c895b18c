package overlay

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// For comparing two views of one base: of one tree, or of two that have layers
// in common.

// Look describes what is at path; nil where there is nothing.
func (f *Face) Look(path string) (*Attr, error) {
	n, a, err := f.Walk(path)
	switch Errno(err) {
	case 0:
		f.Forget(n, 1)
		return &a, nil
	case unix.ENOENT, unix.ENOTDIR:
		return nil, nil
	}
	return nil, fmt.Errorf("%q: %w", path, err)
}

// Untouched reports whether two views show the very same thing at path, of
// which a and b are the attributes there, so that it need not be compared. Times
// alone do not tell that: two writes may fall in one tick of their clock. The
// layers that the path comes from do.
func Untouched(old, now *Face, path string, a, b *Attr) bool {
	return a.Ino == b.Ino && a.Ctime == b.Ctime && a.Mtime == b.Mtime && a.Size == b.Size && a.Nlink == b.Nlink &&
		a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.Rdev == b.Rdev &&
		slices.Equal(old.placesOf(path), now.placesOf(path))
}

// place is a layer of any session: its number in a directory of layers.
type place struct {
	dir   HostID
	layer LayerID
}

// placesOf is PathLayers for views of different trees, in which the same number
// may be two layers.
func (f *Face) placesOf(path string) []place {
	t := f.t
	layers := f.PathLayers(path)
	out := make([]place, len(layers))
	for i, l := range layers {
		out[i].layer = l
		var st unix.Statx_t
		if t.fs.Stat(t.layersDir(l), "", &st) != nil {
			out[i].dir = HostID{Dev: ^uint64(0), Ino: t.tmpSeq.Add(1)} // equal to no other
			continue
		}
		out[i].dir = hostID(&st)
	}
	return out
}

// ComparePaths orders paths so that a directory comes directly before what is in
// it, and siblings by their bytes.
func ComparePaths(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] == b[i] {
			continue
		}
		// The separator sorts below every other byte: "a/b" before "a-b".
		switch {
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		case a[i] < b[i]:
			return -1
		}
		return 1
	}
	return len(a) - len(b)
}
