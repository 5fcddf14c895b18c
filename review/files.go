package review

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/review/termsafe"
)

// Modes as git knows them.
const (
	gitFile = 0o100644
	gitExec = 0o100755
	gitLink = 0o120000
)

// side is one side of a file as git sees it: a regular file or a symbolic link.
type side struct {
	path string
	mode uint32 // gitFile, gitExec or gitLink
	open func() (*Content, error)
}

// fileDiff is one file's difference as git tells it. One of the sides may be
// nil. With both, at two paths, it is a rename.
type fileDiff struct {
	old, new *side
	// same: the contents are known to be equal.
	same bool
}

func (f *fileDiff) rename() bool { return f.old != nil && f.new != nil && f.old.path != f.new.path }

// path is where git sorts the difference.
func (f *fileDiff) path() string {
	if f.new != nil {
		return f.new.path
	}
	return f.old.path
}

// Uncarried is something about a change set that a git patch cannot say; a
// commit carries it all the same, or says why not.
type Uncarried struct {
	Tree, Path string
	// Text is plain ASCII, without the path.
	Text string
}

// String is one line, safe for a terminal.
func (u Uncarried) String() string { return termsafe.Quote(u.Path) + ": " + u.Text }

// lister breaks the changes of one tree down to files.
type lister struct {
	ctx     context.Context
	tree    *tree
	changes []*Change
	byOld   map[string]*Change // by Origin
	files   []*fileDiff
	left    []Uncarried
}

// filesOf lists the file differences of one tree, in git's order, and what they
// leave out.
func filesOf(ctx context.Context, t *tree, changes []Change) ([]*fileDiff, []Uncarried, error) {
	l := &lister{ctx: ctx, tree: t, byOld: map[string]*Change{}}
	for i := range changes {
		if c := &changes[i]; c.Tree == t.name {
			l.changes = append(l.changes, c)
			if c.Old != nil {
				l.byOld[c.Origin] = c
			}
		}
	}
	for _, c := range l.changes {
		if err := l.change(c); err != nil {
			return nil, nil, err
		}
	}
	l.resolvePlaces()
	l.splitRefused()
	slices.SortStableFunc(l.files, func(a, b *fileDiff) int { return compareGit(a, b) })
	hadFiles := l.dirsWithout()
	if err := l.dropBlocked(hadFiles); err != nil {
		return nil, nil, err
	}
	if err := l.emptied(hadFiles); err != nil {
		return nil, nil, err
	}
	return l.files, l.left, nil
}

// compareGit is git's order: by the whole path's bytes; what goes first.
func compareGit(a, b *fileDiff) int {
	switch pa, pb := a.path(), b.path(); {
	case pa < pb:
		return -1
	case pa > pb:
		return 1
	}
	return boolInt(a.new != nil) - boolInt(b.new != nil)
}

func (l *lister) leave(path, format string, args ...any) {
	l.left = append(l.left, Uncarried{l.tree.name, path, fmt.Sprintf(format, args...)})
}

// carried reports whether git has a mode for a node.
func carried(m *Meta) bool { return m != nil && (m.IsRegular() || m.IsSymlink()) }

func gitMode(m *Meta) uint32 {
	switch {
	case m.IsSymlink():
		return gitLink
	case m.Mode&unix.S_IXUSR != 0:
		return gitExec
	}
	return gitFile
}

func (l *lister) oldSide(path string, m *Meta) *side {
	if !carried(m) {
		return nil
	}
	s := &side{path: path, mode: gitMode(m)}
	s.open = func() (*Content, error) { return l.tree.base.open(path) }
	if m.IsSymlink() {
		s.open = func() (*Content, error) { return bytesContent(m.Target), nil }
	}
	return s
}

func (l *lister) newSide(path string, m *Meta) *side {
	if !carried(m) {
		return nil
	}
	s := &side{path: path, mode: gitMode(m)}
	s.open = func() (*Content, error) { return l.tree.view.Open(path) }
	if m.IsSymlink() {
		s.open = func() (*Content, error) { return bytesContent(m.Target), nil }
	}
	return s
}

// bytesContent is a content of bytes at hand: a link's target, which git stores
// as if it were a file's.
func bytesContent(s string) *Content {
	return &Content{
		Size: int64(len(s)),
		read: func(p []byte, off int64) (int, error) {
			if off >= int64(len(s)) {
				return 0, nil
			}
			return copy(p, s[off:]), nil
		},
		fd:    func() (int, func(), error) { return -1, nil, errors.New("not a file") },
		close: func() {},
	}
}

// change adds the files of one change.
func (l *lister) change(c *Change) error {
	l.leaveMeta(c)
	if c.Kind == Renamed && c.New.IsDir() {
		return l.moved(c.From, c.Path)
	}
	f := &fileDiff{old: l.oldSide(c.Origin, c.Old), new: l.newSide(c.Path, c.New)}
	f.same = c.Old != nil && c.New != nil && c.Old.Type() == c.New.Type() && c.Parts&(PartContent|PartTarget) == 0
	switch {
	case f.old == nil && f.new == nil:
		return nil
	case f.old == nil && c.Old != nil && !c.Old.IsDir():
		l.leave(c.Path, "it takes the place of a %s", TypeName(c.Old.Mode))
		return nil
	case f.old != nil && f.new != nil && f.old.mode&unix.S_IFMT != f.new.mode&unix.S_IFMT:
		// Git has no patch from a file to a link: one goes, one comes.
		l.files = append(l.files, &fileDiff{old: f.old}, &fileDiff{new: f.new})
		return nil
	case f.same && f.old.path == f.new.path && f.old.mode == f.new.mode:
		return nil // metadata that git does not know
	}
	l.files = append(l.files, f)
	return nil
}

// moved adds a rename for every file that moved with its directory and has no
// change of its own.
func (l *lister) moved(from, to string) error {
	if err := l.ctx.Err(); err != nil {
		return context.Cause(l.ctx)
	}
	base := l.tree.base
	var names []string
	if err := base.each(from, func(name string) error { names = append(names, name); return nil }); err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		src, dst := join(from, name), join(to, name)
		if c := l.byOld[src]; c != nil {
			// It has a change of its own, which a directory that is still
			// where it was below the renamed one does not move.
			if !c.IsDir() || c.Kind == Deleted || c.Kind == Renamed || c.Kind == TypeChanged {
				continue
			}
		}
		var st unix.Statx_t
		if absent, err := base.stat(src, &st); absent || err != nil {
			if err != nil {
				return wrapBase(src, err)
			}
			continue
		}
		m := &Meta{Mode: uint32(st.Mode)}
		switch {
		case m.IsDir():
			if err := l.moved(src, dst); err != nil {
				return err
			}
			continue
		case m.IsSymlink():
			target, err := base.readlink(src)
			if err != nil {
				return wrapBase(src, err)
			}
			m.Target = target
		case !m.IsRegular():
			l.leave(dst, "a %s moved with its directory", TypeName(m.Mode))
			continue
		}
		l.files = append(l.files, &fileDiff{old: l.oldSide(src, m), new: l.newSide(dst, m), same: true})
	}
	if len(names) == 0 {
		l.leave(to, "an empty directory moved")
	}
	return nil
}

// resolvePlaces rewrites differences that meet at one path, as a directory
// that was moved over a deleted one makes them: a file that goes where another
// comes is a modification, whatever the new one came from, and what that came
// from goes. So no path appears twice but as a change of type.
func (l *lister) resolvePlaces() {
	gone := map[string]*fileDiff{}
	for _, f := range l.files {
		if f.new == nil {
			gone[f.old.path] = f
		}
	}
	drop := map[*fileDiff]bool{}
	for i := 0; i < len(l.files); i++ {
		f := l.files[i]
		if f.new == nil || f.old != nil && !f.rename() {
			continue
		}
		g := gone[f.new.path]
		if g == nil || drop[g] || g.old.mode&unix.S_IFMT != f.new.mode&unix.S_IFMT {
			continue
		}
		drop[g] = true
		delete(gone, f.new.path)
		src := f.old
		f.old, f.same = g.old, false
		if src != nil {
			d := &fileDiff{old: src}
			gone[src.path] = d
			l.files = append(l.files, d)
			i = -1 // the deletion may be another one's place
		}
	}
	l.files = slices.DeleteFunc(l.files, func(f *fileDiff) bool { return drop[f] })
}

// splitRefused makes of a rename between a path that git refuses and one that it
// takes a deletion and an addition, one of which a patch can carry.
func (l *lister) splitRefused() {
	for _, f := range l.files {
		if f.rename() && refusedPath(f.old) != refusedPath(f.new) {
			l.files = append(l.files, &fileDiff{old: f.old})
			f.old, f.same = nil, false
		}
	}
}

// leaveMeta lists what a patch cannot say of a change's metadata.
func (l *lister) leaveMeta(c *Change) {
	n := c.New
	switch {
	case n == nil:
		if !carried(c.Old) && !c.Old.IsDir() {
			l.leave(c.Path, "a %s is deleted", TypeName(c.Old.Mode))
		}
		return
	case !carried(n) && !n.IsDir():
		l.leave(c.Path, "a %s with mode %04o", TypeName(n.Mode), n.Mode&0o7777)
	case c.Link != "":
		l.leave(c.Path, "a hard link to %s", termsafe.Quote(c.Link))
	}
	plainMode := uint32(0o644)
	if n.IsDir() || n.Mode&unix.S_IXUSR != 0 {
		plainMode = 0o755
	}
	fresh := c.Kind == Added || c.Kind == TypeChanged
	switch perm := n.Mode & 0o7777; {
	case n.IsSymlink(), !carried(n) && !n.IsDir():
	case fresh && perm != plainMode:
		l.leave(c.Path, "mode %04o", perm)
	case c.Parts&PartMode != 0 && (n.IsDir() || gitMode(c.Old) == gitMode(n) || perm != plainMode):
		l.leave(c.Path, "mode %04o, was %04o", perm, c.Old.Mode&0o7777)
	}
	if c.Parts&PartOwner != 0 {
		l.leave(c.Path, "owner %d:%d, was %d:%d", n.UID, n.GID, c.Old.UID, c.Old.GID)
	}
	if c.Parts&PartXattrs != 0 || fresh && len(n.Xattrs) > 0 {
		l.leave(c.Path, "extended attributes")
	}
}

// dirsWithout is the directories of the base from which, or from below which, a
// patch takes a file.
func (l *lister) dirsWithout() map[string]bool {
	out := map[string]bool{}
	for _, f := range l.files {
		if f.old == nil || f.new != nil && !f.rename() || gitRefuses(f) {
			continue
		}
		for dir := parentOf(f.old.path); dir != "" && !out[dir]; dir = parentOf(dir) {
			out[dir] = true
		}
	}
	return out
}

// dropBlocked takes out the files that come where the base has a directory of
// which a patch leaves something, such as an empty directory in it: git would
// refuse the whole patch for them.
func (l *lister) dropBlocked(hadFiles map[string]bool) error {
	wasDir := map[string]bool{}
	for _, c := range l.changes {
		if c.Old != nil && c.Old.IsDir() && c.Kind != MetaOnly {
			wasDir[c.Origin] = true
		}
	}
	blocked := map[*fileDiff]bool{}
	for _, f := range l.files {
		if f.new == nil || f.old != nil && !f.rename() || !wasDir[f.new.path] {
			continue
		}
		stays, err := l.stays(f.new.path, hadFiles)
		if err != nil {
			return err
		}
		if stays {
			blocked[f] = true
			l.leave(f.new.path, "it takes the place of a directory that git would not remove, for what is in it")
		}
	}
	l.files = slices.DeleteFunc(l.files, func(f *fileDiff) bool { return blocked[f] })
	return nil
}

// stays reports whether a patch leaves anything of a directory of the base.
func (l *lister) stays(dir string, hadFiles map[string]bool) (bool, error) {
	if !hadFiles[dir] {
		return true, nil
	}
	stays := false
	err := l.tree.base.each(dir, func(name string) error {
		path := join(dir, name)
		var st unix.Statx_t
		if absent, err := l.tree.base.stat(path, &st); absent || err != nil || stays {
			return err
		}
		m := &Meta{Mode: uint32(st.Mode)}
		var err error
		switch {
		case m.IsDir():
			stays, err = l.stays(path, hadFiles)
		case !carried(m) || refusedPath(&side{path: path, mode: gitMode(m)}):
			stays = true
		}
		return err
	})
	return stays, err
}

// emptied lists the directories of the view that the patch cannot make or
// would remove: git knows a directory only by the files in it.
func (l *lister) emptied(hadFiles map[string]bool) error {
	seen := map[string]bool{"": true}
	for _, c := range l.changes {
		if c.Kind == Deleted && c.Old.IsDir() && !hadFiles[c.Path] {
			l.leave(c.Path, "an empty directory is deleted")
		}
		look := []string{parentOf(c.At)}
		switch {
		case c.Kind == Deleted, c.Kind != MetaOnly && c.New.IsDir():
			look = append(look, c.At)
		case c.Kind == Renamed:
			look = append(look, parentOf(c.From))
		}
		for _, dir := range look {
			if seen[dir] {
				continue
			}
			seen[dir] = true
			if err := l.leaveIfEmpty(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lister) leaveIfEmpty(dir string) error {
	empty := true
	err := l.tree.view.List(dir, func(string, uint32) bool { empty = false; return false })
	switch overlay.Errno(err) {
	case 0:
		if empty {
			l.leave(dir, "an empty directory")
		}
		return nil
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EINVAL:
		return nil // not, or no longer, a directory of the view
	}
	return fmt.Errorf("list the directory %q of the view: %w", dir, err)
}
