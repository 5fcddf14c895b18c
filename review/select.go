package review

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/galleyfs/galley/overlay"
)

// Pattern chooses changes by where they are.
type Pattern struct {
	// Tree restricts it to one tree; "" is any.
	Tree string
	// Path is a path in the tree, which also chooses everything below it, or
	// a pattern in doublestar syntax, which does the same for what it
	// matches. "" is the whole tree. A change is chosen by its path, by
	// the path it was renamed from, and by where the session removed it.
	Path string
}

// Selection is part of a change set that can be applied on its own.
type Selection struct {
	// Set is the chosen changes with what they depend on; it has a digest of
	// its own.
	Set *ChangeSet
	// Added lists what was not chosen but is needed.
	Added []Dependency
	// Unmatched are the patterns that chose nothing.
	Unmatched []Pattern
}

// Dependency is a change that came into a selection because of another.
type Dependency struct {
	Change *Change
	For    *Change
	// Reason is plain ASCII, without the paths.
	Reason string
}

// Select picks the changes that any pattern chooses and closes them under what
// they depend on:
//
//   - something new needs the directories above it that are new, renamed or of
//     another type, and needs what the base has in its place to go;
//   - a directory that goes (deleted, or replaced by another type) needs
//     everything below it to go;
//   - a renamed directory takes along every change on either side of it, since
//     those are recorded relative to where it was;
//   - a further name of a hard-linked file needs the leading one.
//
// A pattern that does not parse is an error that names it.
func (cs *ChangeSet) Select(patterns []Pattern) (*Selection, error) {
	for _, p := range patterns {
		if !doublestar.ValidatePattern(p.Path) {
			return nil, fmt.Errorf("pattern %q: unbalanced brackets or braces, or a trailing backslash", p.Path)
		}
	}
	matched := make([]bool, len(patterns))
	s := newSelector(cs.Changes)
	for i := range cs.Changes {
		for j, p := range patterns {
			if p.chooses(&cs.Changes[i]) {
				matched[j] = true
				s.take(i)
			}
		}
	}
	s.close()
	out := &Selection{}
	var changes []Change
	for i := range cs.Changes {
		if s.chosen[i] {
			changes = append(changes, cs.Changes[i])
		}
	}
	out.Set = newChangeSet(cs.trees, changes)
	out.Added = s.added
	for j, p := range patterns {
		if !matched[j] {
			out.Unmatched = append(out.Unmatched, p)
		}
	}
	return out, nil
}

// chooses reports whether the pattern covers a change.
func (p Pattern) chooses(c *Change) bool {
	if p.Tree != "" && p.Tree != c.Tree {
		return false
	}
	if p.covers(c.Path) || c.Kind == Deleted && p.covers(c.At) {
		return true
	}
	return c.Kind == Renamed && p.covers(c.From)
}

func (p Pattern) covers(path string) bool {
	want := strings.TrimRight(p.Path, "/")
	if within(path, want) {
		return true
	}
	// The pattern was validated, so that an error cannot occur; and an
	// invalid name of the tree simply does not match.
	if ok, _ := doublestar.Match(want, path); ok {
		return true
	}
	ok, _ := doublestar.Match(want+"/**", path)
	return ok
}

// key is a path in one tree, of the base or of the view.
type key struct{ tree, path string }

func compareKeys(a, b key) int {
	if n := cmp.Compare(a.tree, b.tree); n != 0 {
		return n
	}
	return overlay.ComparePaths(a.path, b.path)
}

// place is a change by one of its paths.
type place struct {
	key
	at int
}

// selector computes the closure of a choice.
type selector struct {
	changes []Change
	chosen  []bool
	queue   []int
	added   []Dependency
	// news finds the change that puts a node at a path of the view; olds
	// the changes by the path in the base of what they take away, and
	// views by the path in the view, both sorted.
	news        map[key]int
	olds, views []place
}

func newSelector(changes []Change) *selector {
	s := &selector{changes: changes, chosen: make([]bool, len(changes)), news: map[key]int{}}
	for i := range changes {
		c := &changes[i]
		if c.New != nil {
			s.news[key{c.Tree, c.Path}] = i
			s.views = append(s.views, place{key{c.Tree, c.Path}, i})
		}
		if c.Old != nil {
			s.olds = append(s.olds, place{key{c.Tree, c.Origin}, i})
		}
	}
	order := func(a, b place) int { return compareKeys(a.key, b.key) }
	slices.SortFunc(s.olds, order)
	slices.SortFunc(s.views, order)
	return s
}

func (s *selector) take(i int) bool {
	if s.chosen[i] {
		return false
	}
	s.chosen[i] = true
	s.queue = append(s.queue, i)
	return true
}

func (s *selector) need(i, by int, reason string) {
	if s.take(i) {
		s.added = append(s.added, Dependency{&s.changes[i], &s.changes[by], reason})
	}
}

func (s *selector) close() {
	for len(s.queue) > 0 {
		i := s.queue[0]
		s.queue = s.queue[1:]
		c := &s.changes[i]
		if c.New != nil {
			s.needParents(i, c)
			s.needRoom(i, c)
		}
		goes := c.Kind == Deleted || c.Kind == TypeChanged && c.Old.IsDir()
		if goes && c.Old.IsDir() {
			s.needBelow(s.olds, i, c.Origin, "is below a directory that goes", goesAway)
		}
		if c.Kind == Renamed && c.New.IsDir() {
			all := func(*Change) bool { return true }
			s.needBelow(s.olds, i, c.From, "is below a renamed directory", all)
			s.needBelow(s.views, i, c.Path, "is below a renamed directory", all)
		}
		if c.Link != "" {
			if lead, ok := s.news[key{c.Tree, c.Link}]; ok {
				s.need(lead, i, "is the same file under its leading name")
			}
		}
	}
}

// goesAway tells the changes that take their old node away from its path.
func goesAway(c *Change) bool { return c.Kind == Deleted || c.Kind == Renamed }

// needParents takes the directories above a new node that are not in the base.
func (s *selector) needParents(i int, c *Change) {
	for dir := c.Path; dir != ""; {
		dir = parentOf(dir)
		if p, ok := s.news[key{c.Tree, dir}]; ok {
			switch s.changes[p].Kind {
			case Added, Renamed, TypeChanged:
				s.need(p, i, "is a directory above it")
			}
		}
	}
}

// needRoom takes what removes the node that the base has in a new one's place.
func (s *selector) needRoom(i int, c *Change) {
	if c.Kind == Modified || c.Kind == MetaOnly || c.Kind == TypeChanged {
		return
	}
	under := key{c.Tree, s.under(c)}
	at, _ := slices.BinarySearchFunc(s.olds, under, func(p place, k key) int { return compareKeys(p.key, k) })
	for ; at < len(s.olds) && s.olds[at].key == under; at++ {
		if j := s.olds[at].at; j != i && goesAway(&s.changes[j]) {
			s.need(j, i, "makes room for it")
		}
	}
}

// under is the path in the base under a change's new node.
func (s *selector) under(c *Change) string {
	for dir := c.Path; dir != ""; {
		dir = parentOf(dir)
		if p, ok := s.news[key{c.Tree, dir}]; ok && s.changes[p].Kind == Renamed {
			return s.changes[p].From + c.Path[len(dir):]
		}
	}
	return c.Path
}

// needBelow takes the changes strictly below a directory, of those that want
// says.
func (s *selector) needBelow(list []place, i int, dir, reason string, want func(*Change) bool) {
	tree := s.changes[i].Tree
	at, _ := slices.BinarySearchFunc(list, key{tree, dir}, func(p place, k key) int { return compareKeys(p.key, k) })
	for ; at < len(list) && list[at].tree == tree && within(list[at].path, dir); at++ {
		if j := list[at].at; j != i && want(&s.changes[j]) {
			s.need(j, i, reason)
		}
	}
}

// TreePath is a path in the view of one tree.
type TreePath struct{ Tree, Path string }

// Dropped lists the layer entries that a session no longer needs once some
// changes of its change set are in the base: those all of whose changes are
// applied, and those that never were a change, which would only mask later edits
// on the host. The session's layers are flattened without exactly these.
func (cs *ChangeSet) Dropped(applied []*Change) []TreePath {
	type id struct {
		tree, path string
		kind       Kind
	}
	done := map[id]bool{}
	for _, c := range applied {
		done[id{c.Tree, c.Path, c.Kind}] = true
	}
	open := map[TreePath]bool{}
	var order []TreePath
	note := func(at TreePath, done bool) {
		if _, seen := open[at]; !seen {
			order = append(order, at)
		}
		open[at] = open[at] || !done
	}
	for i := range cs.Changes {
		c := &cs.Changes[i]
		ok := done[id{c.Tree, c.Path, c.Kind}]
		note(TreePath{c.Tree, c.At}, ok)
		if c.HasFromAt {
			note(TreePath{c.Tree, c.FromAt}, ok)
		}
	}
	for _, e := range cs.idle { // directories before what is in them
		within := TreePath{e.Tree, e.within}
		if _, seen := open[within]; e.within != "" && (!seen || open[within]) {
			note(e.TreePath, false)
			continue
		}
		note(e.TreePath, true)
	}
	return slices.DeleteFunc(order, func(at TreePath) bool { return open[at] })
}
