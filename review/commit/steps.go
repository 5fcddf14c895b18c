package commit

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// A commit is a list of steps, each one system call that can be taken back by
// one system call, or a change of one node's metadata. Whether a step has
// happened is never written down: it is told from where the node is that the
// step moves. So a crash between any two system calls leaves nothing unknown.

// area is a root that the places of steps are relative to: the base of a tree,
// or a stage.
type area struct {
	Stage bool `json:"stage,omitempty"`
	Tree  int  `json:"tree"`
	// Ino and Btime of the root. A stage has them only once it is made, from
	// its rootRecord.
	Ino   uint64       `json:"ino,omitempty"`
	Btime overlay.Time `json:"btime"`
	// Of a stage: the directory it is in, by host path where it is outside
	// the base, else by path in the base; and its name there.
	HostDir pathName `json:"hostDir,omitempty"`
	BaseDir pathName `json:"baseDir,omitempty"`
	Name    pathName `json:"name,omitempty"`
}

// loc is a place: a path in an area.
type loc struct {
	Area int      `json:"a"`
	Path pathName `json:"p"`
}

// object is a node that steps move or change, old or new.
type object struct {
	facts
	// New: it was made in a stage. What is moved out of the base is not.
	New bool `json:"new,omitempty"`
	// Gone: it leaves the tree for good, and everything in tree with it.
	Gone bool `json:"gone,omitempty"`
	// Start are the places where it may be before any step moved it: more
	// than one where a directory above it moves.
	Start []loc `json:"start"`
	// Label is its path in the view or the base, for messages.
	Tree  int      `json:"tree"`
	Label pathName `json:"label"`

	// tree is everything below a directory that moves with it and must be
	// as it was: what a deletion deletes, or what was staged.
	tree []treeEntry
}

// treeEntry is a node below an object.
type treeEntry struct {
	facts
	Path pathName `json:"path"` // relative to the object
}

// op is what a step does.
type op string

const (
	// opMove renames an object from one place to another, where nothing is.
	opMove op = "move"
	// opSwap exchanges a staged object with an old one.
	opSwap op = "swap"
	// opLink makes an object that stays known by one more name.
	opLink op = "link"
	// opMeta changes mode, owner, xattrs or times of a node in place.
	opMeta op = "meta"
)

// step is one step. Its undo is the same with From and To exchanged, or with
// Before and After exchanged.
type step struct {
	Op  op  `json:"op"`
	Obj int `json:"obj"`
	// Old is the object that a swap takes out.
	Old  int `json:"old,omitempty"`
	From loc `json:"from"`
	// To is where the object goes; of an opMeta where it is (From is unused),
	// of an opLink its further name.
	To loc `json:"to"`
	// Slot is where the name that an opLink made goes when it is taken back.
	Slot loc `json:"slot,omitzero"`
	// Lend: an opMeta that only lends access for the steps after it.
	Lend bool `json:"lend,omitempty"`
	// Before and After of an opMeta.
	Before *meta `json:"before,omitempty"`
	After  *meta `json:"after,omitempty"`
}

// meta is metadata to set; nil fields stay as they are.
type meta struct {
	Mode   *uint32       `json:"mode,omitempty"` // permission bits
	UID    *uint32       `json:"uid,omitempty"`
	GID    *uint32       `json:"gid,omitempty"`
	Mtime  *overlay.Time `json:"mtime,omitempty"`
	Xattrs []xattr       `json:"xattrs,omitempty"`
}

// xattr is an attribute's value, or its absence.
type xattr struct {
	Name   pathName `json:"name"`
	Absent bool     `json:"absent,omitempty"`
	Value  []byte   `json:"value,omitempty"`
}

func (m *meta) empty() bool {
	return m.Mode == nil && m.UID == nil && m.GID == nil && m.Mtime == nil && len(m.Xattrs) == 0
}

// check refuses a journal whose parts do not fit together, before anything is
// done on its word.
func (r *record) check() error {
	for i := range r.areas {
		if err := r.checkArea(&r.areas[i]); err != nil {
			return fmt.Errorf("area %d: %w", i, err)
		}
	}
	for i := range r.objects {
		o := &r.objects[i]
		if o.Tree < 0 || o.Tree >= len(r.start.Trees) {
			return fmt.Errorf("object %d is in tree %d of %d", i, o.Tree, len(r.start.Trees))
		}
		for _, l := range o.Start {
			if err := r.checkLoc(l); err != nil {
				return fmt.Errorf("object %d: %w", i, err)
			}
		}
		for k := range o.tree {
			if p := string(o.tree[k].Path); p == "" || checkPath(p) != nil {
				return fmt.Errorf("object %d: entry %q", i, p)
			}
		}
	}
	for i := range r.steps {
		if err := r.checkStep(&r.steps[i]); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	for i := range r.applied {
		a := &r.applied[i]
		if a.Tree < 0 || a.Tree >= len(r.start.Trees) {
			return fmt.Errorf("change %d is in tree %d of %d", i, a.Tree, len(r.start.Trees))
		}
	}
	return nil
}

func (r *record) checkArea(a *area) error {
	if a.Tree < 0 || a.Tree >= len(r.start.Trees) {
		return fmt.Errorf("it is in tree %d of %d", a.Tree, len(r.start.Trees))
	}
	if !a.Stage {
		return nil
	}
	if !strings.HasPrefix(string(a.Name), stagePrefix) || strings.IndexByte(string(a.Name), '/') >= 0 {
		return fmt.Errorf("a stage named %q", a.Name)
	}
	return checkPath(string(a.BaseDir))
}

func (r *record) checkLoc(l loc) error {
	if l.Area < 0 || l.Area >= len(r.areas) {
		return fmt.Errorf("a place in area %d of %d", l.Area, len(r.areas))
	}
	return checkPath(string(l.Path))
}

func (r *record) checkStep(s *step) error {
	if s.Obj < 0 || s.Obj >= len(r.objects) {
		return fmt.Errorf("object %d of %d", s.Obj, len(r.objects))
	}
	if err := r.checkLoc(s.To); err != nil {
		return err
	}
	switch s.Op {
	case opMove, opSwap, opLink:
		if s.Op == opSwap && (s.Old < 0 || s.Old >= len(r.objects) || s.Old == s.Obj) {
			return fmt.Errorf("swap of object %d of %d", s.Old, len(r.objects))
		}
		if s.From.Path == "" || s.To.Path == "" {
			return fmt.Errorf("it moves a root")
		}
		if s.Op == opLink && s.Slot.Path == "" {
			return fmt.Errorf("a link without a slot")
		}
		if err := r.checkLoc(s.Slot); err != nil {
			return err
		}
		return r.checkLoc(s.From)
	case opMeta:
		if s.Before == nil || s.After == nil {
			return fmt.Errorf("metadata without a before and after")
		}
		for _, m := range []*meta{s.Before, s.After} {
			if m.Mode != nil && *m.Mode&^uint32(0o7777) != 0 {
				return fmt.Errorf("mode %o", *m.Mode)
			}
		}
		return nil
	}
	return fmt.Errorf("unknown operation %q", s.Op)
}

// permissions are the bits of a mode that chmod(2) sets.
func permissions(mode uint32) uint32 { return mode & 0o7777 }

// needsUnlock reports whether an ordinary user cannot add and remove entries of
// a directory with this mode.
func needsUnlock(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFDIR && mode&0o300 != 0o300 }
