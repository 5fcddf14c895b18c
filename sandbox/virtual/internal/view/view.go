// Package view is a name space of overlay trees in process: paths, symbolic
// links, working directories and open files as a program would have them, with
// no mount and no process. It knows paths of the view alone; the host is
// reached by the engine, beneath the trees' own roots.
package view

import (
	"fmt"
	"io/fs"
	"path"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// maxLinks is how many symbolic links one path may lead through, as in Linux.
const maxLinks = 40

// View is a name space. Its methods may be called at the same time. Paths are
// absolute; they are not cleaned, since "a/.." leads where a leads.
type View struct {
	uid    uint32 // who runs Galley, and owns what is made
	gid    uint32
	shown  uint32 // as whom the view shows that user
	mu     sync.RWMutex
	mounts map[string]*mount
	root   *mount
}

// mount is a tree that stands at a path.
type mount struct {
	path     string
	face     *overlay.Face
	readOnly bool
}

// New makes a view whose root is the given face. uid and gid own what is made
// in the trees, and are shown as user number shown.
func New(root *overlay.Face, uid, gid, shown uint32) *View {
	m := &mount{path: "/", face: root}
	return &View{uid: uid, gid: gid, shown: shown, root: m, mounts: map[string]*mount{"/": m}}
}

// Mount makes the root of face stand at a directory of the view; the path must
// be resolved already ([View.Real]).
func (v *View) Mount(p string, face *overlay.Face, readOnly bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.mounts[p] != nil {
		return unix.EEXIST
	}
	v.mounts[p] = &mount{path: p, face: face, readOnly: readOnly}
	return nil
}

// MountPoints are the paths at which something stands, sorted.
func (v *View) MountPoints() []string {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var out []string
	for p := range v.mounts {
		out = append(out, p)
	}
	sort.Strings(out)
	return out
}

func (v *View) mountAt(p string) *mount {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.mounts[p]
}

// beneath reports whether something is mounted at p or below it.
func (v *View) beneath(p string) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for q := range v.mounts {
		if q == p || strings.HasPrefix(q, p+"/") {
			return true
		}
	}
	return false
}

// step is a directory on the way.
type step struct {
	m    *mount
	node *overlay.Node
	name string
	attr overlay.Attr
}

// spot is where a path leads: a name in a directory, and the node under it if
// there is one. release gives the references back.
type spot struct {
	v     *View
	steps []step // the way to the directory; the last is the directory itself
	name  string // "" when the path names a directory by ".", ".." or "/"
	m     *mount
	node  *overlay.Node // nil: nothing is there
	attr  overlay.Attr
	own   bool // node holds a reference of its own
}

func (s *spot) release() {
	for _, st := range s.steps {
		st.m.face.Forget(st.node, 1)
	}
	if s.own {
		s.m.face.Forget(s.node, 1)
	}
}

// dir is the directory that the name is in.
func (s *spot) dir() *step { return &s.steps[len(s.steps)-1] }

// path is the resolved path.
func (s *spot) path() string {
	p := pathOf(s.steps)
	if s.name == "" {
		return p
	}
	return path.Join(p, s.name)
}

func pathOf(steps []step) string {
	if len(steps) <= 1 {
		return "/"
	}
	var b strings.Builder
	for _, s := range steps[1:] {
		b.WriteByte('/')
		b.WriteString(s.name)
	}
	return b.String()
}

// find resolves a path. A last symbolic link is followed if asked to, or if
// the path ends with a slash.
func (v *View) find(p string, follow bool) (*spot, error) {
	if !strings.HasPrefix(p, "/") || strings.IndexByte(p, 0) >= 0 {
		return nil, unix.EINVAL
	}
	if len(p) >= unix.PathMax {
		return nil, unix.ENAMETOOLONG
	}
	s := &spot{v: v}
	if err := v.walk(s, p, follow); err != nil {
		s.release()
		return nil, err
	}
	return s, nil
}

func (v *View) walk(s *spot, p string, follow bool) error {
	if err := v.enterRoot(s); err != nil {
		return err
	}
	rest := strings.Split(p, "/")
	slash := strings.HasSuffix(p, "/")
	links := 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		last := !hasName(rest)
		switch name {
		case "", ".":
			continue
		case "..":
			if len(s.steps) > 1 {
				top := s.dir()
				top.m.face.Forget(top.node, 1)
				s.steps = s.steps[:len(s.steps)-1]
			}
			continue
		}
		if err := v.access(s.dir().attr, 1); err != nil {
			return err
		}
		found, err := v.lookup(s, name)
		if err != nil {
			return err
		}
		if !found {
			if !last || hasDots(rest) {
				return unix.ENOENT
			}
			s.name = name
			return nil
		}
		if s.attr.IsSymlink() && (!last || follow || slash) {
			if links++; links > maxLinks {
				return unix.ELOOP
			}
			target, err := s.m.face.Readlink(s.node)
			if err != nil {
				return err
			}
			s.drop()
			if strings.HasPrefix(target, "/") {
				s.unwind()
			}
			slash = slash || last && strings.HasSuffix(target, "/")
			rest = append(strings.Split(target, "/"), rest...)
			continue
		}
		if last && !hasDots(rest) && !s.attr.IsDir() {
			if slash {
				return unix.ENOTDIR
			}
			s.name = name
			return nil
		}
		if !s.attr.IsDir() {
			return unix.ENOTDIR
		}
		if last && !hasDots(rest) {
			s.name = name
			return nil
		}
		s.steps = append(s.steps, step{s.m, s.node, name, s.attr})
		s.node, s.own = nil, false
	}
	top := s.dir()
	s.m, s.node, s.attr, s.own = top.m, top.node, top.attr, false
	return nil
}

// hasName reports whether an element of the rest names something.
func hasName(rest []string) bool {
	for _, r := range rest {
		if r != "" && r != "." && r != ".." {
			return true
		}
	}
	return false
}

// hasDots reports whether what is left has "." or "..", which ask for a
// directory.
func hasDots(rest []string) bool {
	for _, r := range rest {
		if r == "." || r == ".." {
			return true
		}
	}
	return false
}

func (v *View) enterRoot(s *spot) error {
	root := v.root.face.Root()
	a, err := v.root.face.Getattr(root)
	if err != nil {
		return err
	}
	s.steps = append(s.steps, step{m: v.root, node: root, attr: a})
	return nil
}

// unwind goes back to the root.
func (s *spot) unwind() {
	for _, st := range s.steps[1:] {
		st.m.face.Forget(st.node, 1)
	}
	s.steps = s.steps[:1]
}

// drop gives back the node that was looked up last.
func (s *spot) drop() {
	if s.own {
		s.m.face.Forget(s.node, 1)
	}
	s.node, s.own = nil, false
}

// lookup finds name in the present directory, and what is mounted there.
func (v *View) lookup(s *spot, name string) (bool, error) {
	d := s.dir()
	if len(name) > 255 {
		return false, unix.ENAMETOOLONG
	}
	n, a, err := d.m.face.Lookup(d.node, name)
	if err == unix.ENOENT || overlay.Errno(err) == unix.ENOENT {
		s.m = d.m
		return false, nil
	}
	if err != nil {
		return false, err
	}
	s.m, s.node, s.attr, s.own = d.m, n, a, true
	if !a.IsDir() {
		return true, nil
	}
	m := v.mountAt(path.Join(pathOf(s.steps), name))
	if m == nil {
		return true, nil
	}
	s.drop()
	root := m.face.Root()
	if a, err = m.face.Getattr(root); err != nil {
		return false, err
	}
	s.m, s.node, s.attr = m, root, a
	return true, nil
}

// access checks permission bits: 4 to read, 2 to write, 1 to search or run. The
// super-user may all, but run only what somebody may run.
func (v *View) access(a overlay.Attr, want uint32) error {
	if v.uid == 0 {
		if want&1 != 0 && !a.IsDir() && a.Mode&0o111 == 0 {
			return unix.EACCES
		}
		return nil
	}
	bits := a.Mode & 7
	switch {
	case a.UID == v.uid:
		bits = a.Mode >> 6 & 7
	case a.GID == v.gid:
		bits = a.Mode >> 3 & 7
	}
	if bits&want != want {
		return unix.EACCES
	}
	return nil
}

// there is find for something that must exist.
func (v *View) there(p string, follow bool) (*spot, error) {
	s, err := v.find(p, follow)
	if err != nil {
		return nil, err
	}
	if s.node == nil {
		s.release()
		return nil, unix.ENOENT
	}
	return s, nil
}

// changing is find for a name that is to be made or taken away.
func (v *View) changing(p string) (*spot, error) {
	if !strings.HasPrefix(p, "/") {
		return nil, unix.EINVAL
	}
	s, err := v.find("/"+strings.Trim(p, "/"), false)
	if err != nil {
		return nil, err
	}
	if s.name == "" {
		return s, nil
	}
	// Where something is there already, that is the more telling answer.
	if err := v.mayChange(s); err != nil && (s.node == nil || overlay.Errno(err) != unix.EROFS) {
		s.release()
		return nil, err
	}
	return s, nil
}

// mayChange checks that names in the spot's directory may be changed.
func (v *View) mayChange(s *spot) error {
	d := s.dir()
	if d.m.readOnly {
		return unix.EROFS
	}
	return v.access(d.attr, 3)
}

// Real resolves all symbolic links; the last element need not exist.
func (v *View) Real(p string) (string, error) {
	s, err := v.find(p, true)
	if err != nil {
		return "", err
	}
	defer s.release()
	return s.path(), nil
}

// PathError says what happened to a path in the words of the C library, which
// is what tools print.
func PathError(op, p string, err error) error {
	return &fs.PathError{Op: op, Path: p, Err: fmt.Errorf("%w", err)}
}

// Message is what strerror(3) says.
func Message(err error) string {
	e := overlay.Errno(err)
	if e == 0 {
		return "Success"
	}
	s := e.Error()
	return strings.ToUpper(s[:1]) + s[1:]
}
