package commit

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/review"
)

// setAll gives a staged node the owner, mode, attributes and time of its
// change. The order matters: a change of owner clears set-id bits and file
// capabilities, and everything else changes times.
func (j *job) setAll(n *in, s *stage, fd int, name string) error {
	m := n.c.New
	if err := j.setOwner(n, s, fd, name); err != nil {
		return err
	}
	if !m.IsSymlink() {
		if err := j.fs.Chmod(fd, name, j.stagedMode(n)); err != nil {
			return fmt.Errorf("set its mode: %w", err)
		}
	}
	for _, x := range j.plan.xattrs(m) {
		err := j.fs.Setxattr(fd, name, x.Name, x.Value, 0)
		switch err {
		case nil:
		case unix.EOPNOTSUPP, unix.EPERM:
			j.note(noteDropped, n.c, fmt.Sprintf("extended attribute %q: %v", x.Name, err))
		default:
			return fmt.Errorf("set its extended attribute %q: %w", x.Name, err)
		}
	}
	if err := j.fs.Utimes(fd, name, timespecs(m.Mtime)); err != nil {
		return fmt.Errorf("set its time: %w", err)
	}
	return nil
}

// setOwner gives a staged node its owner: root gives what the session has,
// others a group that they are in.
func (j *job) setOwner(n *in, s *stage, fd int, name string) error {
	m := n.c.New
	uid, gid := -1, -1
	if m.UID != s.uid {
		uid = int(m.UID)
	}
	if m.GID != s.gid {
		gid = int(m.GID)
	}
	if uid < 0 && gid < 0 {
		return nil
	}
	if !j.cfg.privileged() && uid >= 0 {
		j.note(noteDropped, n.c, fmt.Sprintf("owner %d: only root can give it", m.UID))
		if uid = -1; gid < 0 {
			return nil
		}
	}
	err := j.fs.Chown(fd, name, uid, gid)
	if err != nil && !j.cfg.privileged() && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL)) {
		j.note(noteDropped, n.c, fmt.Sprintf("group %d: only root or a member can give it", m.GID))
		return nil
	}
	if err != nil {
		return fmt.Errorf("set its owner to %d:%d: %w", m.UID, m.GID, err)
	}
	return nil
}

// finalMode is the mode that a staged node ends with. A new directory takes the
// set-group-id bit from the directory it is made in, as mkdir(2) would give it.
func (j *job) finalMode(n *in) uint32 {
	mode := permissions(j.plan.mode(n.c))
	if !n.c.New.IsDir() || mode&unix.S_ISGID != 0 || n.c.New.Mode&unix.S_ISGID == 0 {
		return mode
	}
	if n.parent != nil {
		return mode | j.finalMode(n.parent)&unix.S_ISGID
	}
	if n.inherits {
		mode |= unix.S_ISGID
	}
	return mode
}

// deferred reports whether a staged directory gets its final mode and time only
// in its place: an ordinary user can neither move a directory nor put something
// into it without being allowed to write it.
func (j *job) deferred(n *in) bool {
	if !n.c.New.IsDir() || !n.staged() {
		return false
	}
	return n.receives || n.parent == nil && j.lendsAccess(n.c.New.Mode)
}

// lendsAccess reports whether a directory of this mode must be made writable
// for the commit.
func (j *job) lendsAccess(mode uint32) bool { return !j.cfg.privileged() && needsUnlock(mode) }

// stagedMode is the mode of a node in the stage.
func (j *job) stagedMode(n *in) uint32 {
	mode := j.finalMode(n)
	if j.deferred(n) && j.lendsAccess(n.c.New.Mode) {
		mode |= 0o300
	}
	return mode
}

// note records something to be reported. Workers call it too.
func (j *job) note(class string, c *review.Change, what string) {
	j.noteMu.Lock()
	defer j.noteMu.Unlock()
	j.notes = append(j.notes, noteRecord{class, c.Tree, pathName(c.Path), what})
}

// metaOf is what a change of metadata sets in place, before and after.
func (j *job) metaOf(c *review.Change, now *facts) (before, after *meta) {
	before, after = &meta{}, &meta{}
	if c.Parts&review.PartOwner != 0 {
		j.ownerOf(c, now, before, after)
	}
	if mode := permissions(j.plan.mode(c)); c.Parts&review.PartMode != 0 && !c.New.IsSymlink() {
		old := permissions(now.Mode)
		before.Mode, after.Mode = &old, &mode
	} else if (after.UID != nil || after.GID != nil) && !c.New.IsSymlink() {
		// A change of owner may clear set-id bits: say which mode stays.
		old := permissions(now.Mode)
		before.Mode, after.Mode = &old, &old
	}
	if setsTime(c) {
		old, mtime := now.Mtime, c.New.Mtime
		before.Mtime, after.Mtime = &old, &mtime
	}
	if c.Parts&review.PartXattrs != 0 {
		before.Xattrs, after.Xattrs = diffXattrs(j.plan.xattrs(c.Old), j.plan.xattrs(c.New))
	}
	return before, after
}

func (j *job) ownerOf(c *review.Change, now *facts, before, after *meta) {
	if c.New.UID != now.UID {
		if j.cfg.privileged() {
			old, uid := now.UID, c.New.UID
			before.UID, after.UID = &old, &uid
		} else {
			j.note(noteDropped, c, fmt.Sprintf("owner %d: only root can give it", c.New.UID))
		}
	}
	if c.New.GID != now.GID {
		if j.cfg.privileged() || memberOf(c.New.GID) {
			old, gid := now.GID, c.New.GID
			before.GID, after.GID = &old, &gid
		} else {
			j.note(noteDropped, c, fmt.Sprintf("group %d: only root or a member can give it", c.New.GID))
		}
	}
}

func memberOf(gid uint32) bool {
	if uint32(unix.Getegid()) == gid {
		return true
	}
	groups, err := unix.Getgroups()
	return err == nil && slices.Contains(groups, int(gid))
}

// diffXattrs lists the attributes that differ, as they were and as they will
// be.
func diffXattrs(old, new []review.Xattr) (before, after []xattr) {
	find := func(list []review.Xattr, name string) xattr {
		for _, x := range list {
			if x.Name == name {
				return xattr{Name: pathName(name), Value: x.Value}
			}
		}
		return xattr{Name: pathName(name), Absent: true}
	}
	add := func(name string) {
		b, a := find(old, name), find(new, name)
		if b.Absent != a.Absent || string(b.Value) != string(a.Value) {
			before, after = append(before, b), append(after, a)
		}
	}
	for _, x := range old {
		add(x.Name)
	}
	for _, x := range new {
		if find(old, x.Name).Absent {
			add(x.Name)
		}
	}
	return before, after
}

// apply sets metadata on the node behind an O_PATH descriptor.
func (m *meta) apply(fs hostfs.FS, fd int) error {
	if m.UID != nil || m.GID != nil {
		uid, gid := -1, -1
		if m.UID != nil {
			uid = int(*m.UID)
		}
		if m.GID != nil {
			gid = int(*m.GID)
		}
		if err := fs.Chown(fd, "", uid, gid); err != nil {
			return fmt.Errorf("set its owner: %w", err)
		}
	}
	if m.Mode != nil {
		if err := fs.Chmod(fd, "", *m.Mode); err != nil {
			return fmt.Errorf("set its mode: %w", err)
		}
	}
	for _, x := range m.Xattrs {
		var err error
		if x.Absent {
			if err = fs.Removexattr(fd, "", string(x.Name)); err == unix.ENODATA {
				err = nil
			}
		} else {
			err = fs.Setxattr(fd, "", string(x.Name), x.Value, 0)
		}
		if err != nil {
			return fmt.Errorf("set its extended attribute %q: %w", x.Name, err)
		}
	}
	if m.Mtime != nil {
		if err := fs.Utimes(fd, "", timespecs(*m.Mtime)); err != nil {
			return fmt.Errorf("set its time: %w", err)
		}
	}
	return nil
}

// allows reports whether a node with these facts holds only values of m.
func (m *meta) allows(f *facts) bool {
	return (m.UID == nil || *m.UID == f.UID) && (m.GID == nil || *m.GID == f.GID) &&
		(m.Mode == nil || *m.Mode == permissions(f.Mode))
}
