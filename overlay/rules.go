package overlay

import (
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// StagePrefix begins the name of the directory in a base's root in which a
// commit stages what it is about to rename into place. No view shows it.
const StagePrefix = ".galley-stage-"

// concealed reports whether an object of the base is one that no view shows.
func (t *Tree) concealed(dir *Node, name string, st *unix.Statx_t) bool {
	if isWhiteoutDev(uint32(st.Mode), st.Rdev_major, st.Rdev_minor) {
		return true
	}
	if len(t.hide) > 0 && t.hide[hostID(st)] {
		return true
	}
	if dir == t.root && strings.HasPrefix(name, StagePrefix) {
		return true
	}
	if t.cfg.Rules == nil {
		return false
	}
	if t.cfg.Rules.Hidden(join(dir.basePath(), name), uint32(st.Mode)&unix.S_IFMT == unix.S_IFDIR) {
		return true
	}
	return linked(st) && t.ruled().hidden[hostID(st)]
}

// hidden applies the rules to a node that a layer names: its place in the base
// decides if it has one, so that no rename leads around a rule.
func (t *Tree) hidden(v *view, n *Node) bool {
	if t.cfg.Rules == nil {
		return false
	}
	if n.hasBase {
		return t.cfg.Rules.Hidden(n.basePath(), n.isDir())
	}
	return t.cfg.Rules.Hidden(t.pathIn(v, n), n.isDir())
}

// forbidden applies the rules to a name that is to be made or moved to.
func (t *Tree) forbidden(parent *Node, name string, isDir bool) error {
	if t.cfg.Rules == nil {
		return nil
	}
	paths := [...]string{join(t.pathIn(t.view, parent), name), ""}
	use := paths[:1]
	if parent.hasBase {
		paths[1] = join(parent.basePath(), name)
		use = paths[:2]
	}
	for _, p := range use {
		if t.cfg.Rules.Hidden(p, isDir) {
			return unix.EACCES
		}
		if t.cfg.Rules.ReadOnly(p, isDir) {
			return unix.EROFS
		}
	}
	return nil
}

// unwritable reports whether the rules forbid changes to what the base has in
// dir under name.
func (t *Tree) unwritable(dir *Node, name string, st *unix.Statx_t) bool {
	if t.cfg.Rules == nil {
		return false
	}
	if t.cfg.Rules.ReadOnly(join(dir.basePath(), name), uint32(st.Mode)&unix.S_IFMT == unix.S_IFDIR) {
		return true
	}
	return linked(st) && t.ruled().readOnly[hostID(st)]
}

// applyRules sets what the rules say of nodes that records name.
func (t *Tree) applyRules(nodes []*Node) {
	if t.cfg.Rules == nil {
		return
	}
	for _, n := range nodes {
		path := ""
		if n.hasBase {
			path = n.basePath()
		} else {
			path = t.pathIn(t.view, n)
		}
		n.readOnly = t.cfg.Rules.ReadOnly(path, n.isDir())
	}
}

// linked reports whether an object of the base may have another name.
func linked(st *unix.Statx_t) bool {
	return st.Nlink > 1 && uint32(st.Mode)&unix.S_IFMT != unix.S_IFDIR
}

// ruledFiles are the files of the base with several names to one of which a
// rule applies: it then applies to all.
type ruledFiles struct {
	once             sync.Once
	hidden, readOnly map[HostID]bool
}

// ruled finds those files, once, when a file with several names is first met:
// only a walk over the whole base tells all names of a file. Hard links made
// on the host later are not looked for.
func (t *Tree) ruled() *ruledFiles {
	r := &t.ruledFiles
	r.once.Do(func() {
		r.hidden, r.readOnly = map[HostID]bool{}, map[HostID]bool{}
		dirs := []string{""}
		for len(dirs) > 0 {
			dir := dirs[len(dirs)-1]
			dirs = append(dirs[:len(dirs)-1], t.ruledIn(dir)...)
		}
	})
	return r
}

// ruledIn looks at one directory and returns those below it. What cannot be
// read hides nothing that a view could show.
func (t *Tree) ruledIn(dir string) (sub []string) {
	fd, err := hostfs.OpenDeep(t.fs, t.base.fd, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return nil
	}
	defer t.fs.Close(fd)
	_ = hostfs.ReadDir(t.fs, fd, func(d hostfs.Dirent) error {
		path := join(dir, d.Name)
		if d.Type == unix.DT_DIR {
			sub = append(sub, path)
			return nil
		}
		hidden, readOnly := t.cfg.Rules.Hidden(path, false), t.cfg.Rules.ReadOnly(path, false)
		if !hidden && !readOnly && d.Type != unix.DT_UNKNOWN {
			return nil
		}
		var st unix.Statx_t
		if t.fs.Stat(fd, d.Name, &st) != nil {
			return nil
		}
		if uint32(st.Mode)&unix.S_IFMT == unix.S_IFDIR {
			sub = append(sub, path)
			return nil
		}
		if hidden && linked(&st) {
			t.ruledFiles.hidden[hostID(&st)] = true
		}
		if readOnly && linked(&st) {
			t.ruledFiles.readOnly[hostID(&st)] = true
		}
		return nil
	})
	return sub
}
