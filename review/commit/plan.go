package commit

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/review"
)

// Options decide what a commit carries.
type Options struct {
	// KeepSetID carries set-user-id and set-group-id bits.
	KeepSetID bool
	// KeepSpecial carries device nodes (as root), fifos and sockets.
	KeepSpecial bool
	// KeepSecurityXattrs carries security.* and trusted.* attributes, file
	// capabilities among them.
	KeepSecurityXattrs bool
}

// Plan is what a commit will do. It is immutable.
type Plan struct {
	// Digest of the change set that the plan was made from.
	Digest review.Digest
	// Changes to apply, in the order of the change set.
	Changes []*review.Change
	// Skipped are the changes that are left out by the options.
	Skipped []Note
	// Dropped are the privileges that are stripped by the options.
	Dropped []Note

	opts Options
}

// Empty reports whether there is nothing to do.
func (p *Plan) Empty() bool { return len(p.Changes) == 0 }

// NewPlan makes a plan for a change set: a whole one, or a part that
// [review.ChangeSet.Select] chose, which is closed under what its changes need.
// It reads neither the base nor any content.
func NewPlan(cs *review.ChangeSet, o Options) (*Plan, error) {
	p := &Plan{Digest: cs.Digest(), opts: o}
	for i := range cs.Changes {
		c := &cs.Changes[i]
		if err := checkChange(c); err != nil {
			return nil, err
		}
		if why := p.skip(c); why != "" {
			p.Skipped = append(p.Skipped, Note{c.Tree, c.Path, why})
			continue
		}
		p.Changes = append(p.Changes, c)
		p.noteDropped(c)
	}
	return p, p.checkSkipped()
}

// checkChange refuses what no review makes: it would lead outside the tree, or
// mean nothing.
func checkChange(c *review.Change) error {
	for _, path := range []string{c.Path, c.From, c.Origin} {
		if err := checkPath(path); err != nil {
			return fmt.Errorf("change set: %w", err)
		}
	}
	if c.Kind != review.Deleted && c.New == nil || c.Kind != review.Added && c.Old == nil {
		return fmt.Errorf("change set: the %s %q lacks a side", c.Kind, c.Path)
	}
	return nil
}

// skip says why the options leave a change out.
func (p *Plan) skip(c *review.Change) string {
	if c.New == nil {
		return ""
	}
	switch c.New.Type() {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK:
	case unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
		if !p.opts.KeepSpecial {
			return "a " + review.TypeName(c.New.Mode) + " is not committed unless asked"
		}
	default:
		return "a node of unknown type is not committed"
	}
	if c.Kind == review.MetaOnly && p.nothingLeft(c) {
		return "only privileges changed, and they are not committed unless asked"
	}
	return ""
}

// nothingLeft reports whether a change of metadata alone has nothing that the
// options let through.
func (p *Plan) nothingLeft(c *review.Change) bool {
	if c.Parts&review.PartOwner != 0 {
		return false
	}
	if c.Parts&review.PartMode != 0 && p.mode(c) != c.Old.Mode {
		return false
	}
	if c.Parts&review.PartXattrs == 0 {
		return true
	}
	return slices.EqualFunc(p.xattrs(c.New), p.xattrs(c.Old), func(a, b review.Xattr) bool {
		return a.Name == b.Name && string(a.Value) == string(b.Value)
	})
}

// checkSkipped refuses a plan in which something would be put below a node
// that is left out.
func (p *Plan) checkSkipped() error {
	for _, s := range p.Skipped {
		for _, c := range p.Changes {
			if c.Tree == s.Tree && c.New != nil && c.Path != s.Path && within(c.Path, s.Path) {
				return fmt.Errorf("%q cannot be committed without %q, which is left out: %s", c.Path, s.Path, s.What)
			}
		}
	}
	return nil
}

// mode is the mode that a change's new node gets. A directory keeps a
// set-group-id bit that it already had.
func (p *Plan) mode(c *review.Change) uint32 {
	m := c.New.Mode
	if p.opts.KeepSetID {
		return m
	}
	had := c.Old != nil && c.Old.IsDir() && c.New.IsDir() && c.Old.Mode&unix.S_ISGID != 0
	m &^= unix.S_ISUID | unix.S_ISGID
	if had {
		m |= c.New.Mode & unix.S_ISGID
	}
	return m
}

// xattrs are the attributes of one side that the options let through.
func (p *Plan) xattrs(m *review.Meta) []review.Xattr {
	var out []review.Xattr
	for _, x := range m.Xattrs {
		if p.carries(x.Name) {
			out = append(out, x)
		}
	}
	return out
}

// carries reports whether an attribute is committed.
func (p *Plan) carries(name string) bool {
	switch {
	case strings.HasPrefix(name, "security."), strings.HasPrefix(name, "trusted."):
		return p.opts.KeepSecurityXattrs
	case name == "system.posix_acl_access", name == "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.")
}

// noteDropped records what the options strip from a change.
func (p *Plan) noteDropped(c *review.Change) {
	if c.New == nil {
		return
	}
	note := func(what string) { p.Dropped = append(p.Dropped, Note{c.Tree, c.Path, what}) }
	gone := c.New.Mode &^ p.mode(c)
	if gone&unix.S_ISUID != 0 {
		note("set-user-id bit")
	}
	if gone&unix.S_ISGID != 0 {
		note("set-group-id bit")
	}
	for _, x := range c.New.Xattrs {
		if !p.carries(x.Name) {
			note("extended attribute " + fmt.Sprintf("%q", x.Name))
		}
	}
}

// Set is the changes of the plan as a change set without content: what
// [review.ChangeSet.Dropped] wants to know of a commit that left out some.
func (p *Plan) Set() *review.ChangeSet {
	set := &review.ChangeSet{}
	for _, c := range p.Changes {
		set.Changes = append(set.Changes, *c)
	}
	return set
}
