package commit

import (
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// maxDirs bounds the directories kept open; a commit of any size needs no more.
const maxDirs = 64

// places resolves the places of steps. A directory is opened once, by one
// openat2(2) beneath its area with no link followed, and everything in it is
// then done relative to its descriptor. It is used by one goroutine.
type places struct {
	fs    hostfs.FS
	areas []area
	roots []int // descriptor of each area's root, -1 where it is not open
	devs  []uint64
	dirs  map[loc]int
	order []loc // of dirs, oldest first
	last  loc   // given out last; a rename works with two directories
	// gen counts how often paths may have changed their meaning.
	gen int
}

func newPlaces(fs hostfs.FS, areas []area) *places {
	p := &places{fs: fs, areas: areas, dirs: map[loc]int{}}
	for range areas {
		p.roots = append(p.roots, -1)
		p.devs = append(p.devs, 0)
	}
	return p
}

// setRoot hands over the open root of an area.
func (p *places) setRoot(area, fd int, st *unix.Statx_t) {
	p.roots[area] = fd
	p.devs[area] = unix.Mkdev(st.Dev_major, st.Dev_minor)
}

// add appends an area that is not open yet.
func (p *places) add(a area) int {
	p.areas = append(p.areas, a)
	p.roots = append(p.roots, -1)
	p.devs = append(p.devs, 0)
	return len(p.areas) - 1
}

// close closes everything.
func (p *places) close() {
	p.forget()
	for i, fd := range p.roots {
		if fd >= 0 {
			_ = p.fs.Close(fd)
			p.roots[i] = -1
		}
	}
}

// forget closes the cached directories: a directory moved, so that a path may
// mean another one now.
func (p *places) forget() {
	for _, fd := range p.dirs {
		_ = p.fs.Close(fd)
	}
	clear(p.dirs)
	p.order = p.order[:0]
	p.gen++
}

// dir opens a directory. The descriptor belongs to the cache; it and the one
// given out before it are valid until the next is asked for.
func (p *places) dir(l loc) (int, error) {
	if l.Path == "" {
		if p.roots[l.Area] < 0 {
			return -1, unix.ENOENT
		}
		return p.roots[l.Area], nil
	}
	if fd, ok := p.dirs[l]; ok {
		p.last = l
		return fd, nil
	}
	if p.roots[l.Area] < 0 {
		return -1, unix.ENOENT
	}
	fd, err := hostfs.OpenDeep(p.fs, p.roots[l.Area], string(l.Path), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return -1, err
	}
	if len(p.order) >= maxDirs {
		oldest := 0
		if p.order[0] == p.last {
			oldest = 1
		}
		_ = p.fs.Close(p.dirs[p.order[oldest]])
		delete(p.dirs, p.order[oldest])
		p.order = slices.Delete(p.order, oldest, oldest+1)
	}
	p.last = l
	p.dirs[l] = fd
	p.order = append(p.order, l)
	return fd, nil
}

// at opens the directory of a place and gives its last component, "" for a
// root itself.
func (p *places) at(l loc) (dirfd int, name string, err error) {
	dir, name := split(string(l.Path))
	fd, err := p.dir(loc{l.Area, pathName(dir)})
	return fd, name, err
}

// stat describes what is at a place.
func (p *places) stat(l loc, st *unix.Statx_t) error {
	fd, name, err := p.at(l)
	if err != nil {
		return err
	}
	return p.fs.Stat(fd, name, st)
}

// absent reports whether an error of stat or dir says that nothing is there:
// nothing at all, or something on the way that is no directory.
func absent(err error) bool {
	return err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP
}

// hostPath names a place for people.
func (p *places) hostPath(trees []treeRecord, l loc) string {
	a := &p.areas[l.Area]
	root := string(trees[a.Tree].BasePath)
	if a.Stage {
		if a.HostDir != "" {
			root = string(a.HostDir)
		} else {
			root = join(root, string(a.BaseDir))
		}
		root = join(root, string(a.Name))
	}
	return join(root, string(l.Path))
}

// openRoot opens the root of a base, which a person named: links on the way
// are followed, this once.
func openRoot(fs hostfs.FS, path string, st *unix.Statx_t) (int, error) {
	if !filepath.IsAbs(path) {
		return -1, fmt.Errorf("the base %q is not an absolute path", path)
	}
	fd, err := hostfs.OpenRoot(path)
	if err != nil {
		return -1, fmt.Errorf("open the base %q: %w", path, err)
	}
	if err := fs.Stat(fd, "", st); err != nil {
		_ = fs.Close(fd)
		return -1, fmt.Errorf("examine the base %q: %w", path, err)
	}
	return fd, nil
}

// openBase opens a tree's base and refuses another directory than the
// session's.
func openBase(fs hostfs.FS, t *Tree, st *unix.Statx_t) (int, error) {
	fd, err := openRoot(fs, t.BasePath, st)
	if err != nil {
		return -1, err
	}
	id := overlay.HostID{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino}
	if t.BaseID != (overlay.HostID{}) && t.BaseID != id {
		_ = fs.Close(fd)
		return -1, &DriftError{Paths: []Drifted{{Tree: t.Name, Text: "another directory stands at the base " +
			fmt.Sprintf("%q", t.BasePath) + " than when the session began"}}}
	}
	return fd, nil
}
