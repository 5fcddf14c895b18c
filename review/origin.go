package review

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// layout is where everything of the base went: the entries of a delta by path,
// and which of them are renames.
type layout struct {
	view    View
	base    oldSide
	entries map[string]*overlay.Entry
	order   []*overlay.Entry
	// renamed holds the entries that are renames; movedFrom is the same by
	// their path in the base.
	renamed   map[*overlay.Entry]bool
	movedFrom map[string]*overlay.Entry
}

// newLayout reads a delta and decides which entries are renames.
//
// An entry whose origin is not what lies under it is one, unless
//
//   - its origin is still where it was, or was claimed by an earlier entry: then
//     it is a further hard link, an addition; or
//   - it is not a directory and stands where the base has a node that did not
//     move away: then that path was modified, and its origin deleted, as git
//     tells it. (Whoever reads "renamed" does not expect that something was
//     overwritten.) Whether a node moved away depends on the same question,
//     so it is answered by starting from all claims and dropping those that
//     fail until none does; a swap of two files stays two renames.
func newLayout(v View, base oldSide) (*layout, error) {
	l := &layout{view: v, base: base, entries: map[string]*overlay.Entry{},
		renamed: map[*overlay.Entry]bool{}, movedFrom: map[string]*overlay.Entry{}}
	err := v.Delta(func(e overlay.Entry) error {
		l.entries[e.Path] = &e
		l.order = append(l.order, &e)
		// Directories claim first: what moved with them is found by them.
		if e.HasOrigin && e.Attr.IsDir() && e.Origin != e.Path && l.movedFrom[e.Origin] == nil {
			l.movedFrom[e.Origin] = &e
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the differences: %w", err)
	}
	stays := map[string]bool{}
	for _, e := range l.order { // parents first
		if e.Whiteout || !e.HasOrigin {
			continue
		}
		if under, ok := l.under(e.Path); ok && under == e.Origin {
			stays[e.Origin] = true
			if l.movedFrom[e.Origin] == e {
				delete(l.movedFrom, e.Origin)
			}
			continue
		}
		if l.movedFrom[e.Origin] == nil {
			l.movedFrom[e.Origin] = e
		}
		l.renamed[e] = l.movedFrom[e.Origin] == e
	}
	return l, l.dropClaims(stays)
}

// dropClaims drops the claims on nodes that stayed where they were, and those
// of entries that took the place of a node that did not move.
func (l *layout) dropClaims(stays map[string]bool) error {
	for again := true; again; {
		again = false
		for _, e := range l.order {
			if !l.renamed[e] {
				continue
			}
			drop := stays[e.Origin]
			if !drop && !e.Attr.IsDir() {
				was, err := l.replaced(e)
				if err != nil {
					return err
				}
				drop = was != nil
			}
			if drop {
				l.renamed[e] = false
				delete(l.movedFrom, e.Origin)
				again = true
			}
		}
	}
	return nil
}

// replaced is what the base has under e, when that is not what e came from and
// did not move away: what the session deleted or overwrote there. It is nil
// where there was nothing.
func (l *layout) replaced(e *overlay.Entry) (*overlay.Was, error) {
	under, ok := l.under(e.Path)
	if !ok || l.movedFrom[under] != nil || e.HasOrigin && e.Origin == under {
		return nil, nil
	}
	return l.facts(e, under)
}

// under is the path in the base that lies at path of the view, whether or not
// it is visible there: that of the parent's base directory and the name. It is
// false where the parent has no base directory, having moved away or being
// below one that did.
func (l *layout) under(path string) (string, bool) {
	if path == "" {
		return "", true
	}
	dir, ok := l.dirUnder(parentOf(path))
	if !ok {
		return "", false
	}
	return join(dir, baseName(path)), true
}

// dirUnder is the directory of the base under a directory of the view.
func (l *layout) dirUnder(dir string) (string, bool) {
	// The nearest renamed ancestor decides; below it names are the same.
	base, top := dir, ""
	for at := dir; at != ""; at = parentOf(at) {
		if e := l.entries[at]; e != nil && l.renamed[e] {
			base, top = e.Origin+dir[len(at):], e.Origin
			break
		}
	}
	// What moved away on the way took all below it along.
	for at := base; len(at) > len(top); at = parentOf(at) {
		if l.movedFrom[at] != nil {
			return "", false
		}
	}
	return base, true
}

// merges reports whether a directory of the view shows what the base has
// under it.
func (l *layout) merges(dir string) bool {
	for at := dir; ; at = parentOf(at) {
		if e := l.entries[at]; e != nil {
			if e.Opaque || e.Whiteout || !e.Attr.IsDir() {
				return false
			}
			if e.HasOrigin {
				return true
			}
		}
		if at == "" {
			return true
		}
	}
}

// hiding is the nearest directory, dir itself or above it, that does not show
// what the base has under it, "" if there is none.
func (l *layout) hiding(dir string) string {
	for at := dir; at != ""; at = parentOf(at) {
		if e := l.entries[at]; e != nil && e.Opaque {
			return at
		}
	}
	return ""
}

// facts finds what the base had at a path when the session first changed or
// hid it, nil for nothing. Every entry of the base that the session hid was
// recorded; what was not is looked up now where it must have been there, since
// e came from it or hides it.
func (l *layout) facts(e *overlay.Entry, path string) (*overlay.Was, error) {
	if was, ok := l.recorded(path); ok {
		return was, nil
	}
	if e.Whiteout || e.HasOrigin && e.Origin == path {
		return l.base.factsNow(path)
	}
	if !e.HasOrigin || e.Attr.IsDir() || e.Attr.Nlink < 2 {
		return nil, nil
	}
	// Another name of a base file that the session copied up under a first
	// one: only that one is recorded.
	was, err := l.base.factsNow(path)
	if first, ok := l.recorded(e.Origin); err != nil || was == nil || !ok || first == nil || first.ID != was.ID {
		return nil, err
	}
	return was, nil
}

// recorded finds the facts of a path: nil if nothing was there, false if
// nothing is known.
func (l *layout) recorded(path string) (*overlay.Was, bool) {
	w, ok := l.view.WasAt(path)
	if !ok || !w.Exists {
		return nil, ok
	}
	return &w, true
}

// typeBits is the S_IFMT part of a mode.
func typeBits(mode uint32) uint32 { return mode & unix.S_IFMT }
