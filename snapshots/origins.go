package snapshots

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// A fork has the sealed layers of the session that it came from in common with
// it: its manifest names that session, and numbers up to a bound are layers of
// the other's directory. Nothing is copied, however large a layer is and
// however many there are. What a session shares so stays on the disk as long as
// a fork needs it, also when the session itself is discarded and purged.

// maxOrigins bounds how long a line of forks of forks can be.
const maxOrigins = 256

// minLayer is below all numbers that layers have.
const minLayer overlay.LayerID = math.MinInt32 + 1

// maxLayer is above all of them.
const maxLayer overlay.LayerID = math.MaxInt32

// origin tells whose layers a session has beside its own: those numbered up to
// UpTo, the merged ones from Merged up and those of replaced files from
// Replaced up, but for what an origin before it has.
type origin struct {
	Session  string          `json:"session"`
	UpTo     overlay.LayerID `json:"up_to"`
	Merged   overlay.LayerID `json:"merged,omitempty"`
	Replaced overlay.LayerID `json:"replaced,omitempty"`
}

// originsOf are the origins of a fork of m at a snapshot: those of m as far as
// the snapshot reaches, and m itself.
func originsOf(m *manifest, at overlay.LayerID) []origin {
	var out []origin
	for _, o := range m.Origins {
		out = append(out, o)
		out[len(out)-1].UpTo = min(o.UpTo, at)
	}
	o := origin{Session: m.ID, UpTo: at}
	if m.Merges > 0 {
		o.Merged = overlay.Merged - overlay.LayerID(m.Merges-1)
	}
	if m.Replacements > 0 {
		o.Replaced = overlay.Replaced - overlay.LayerID(m.Replacements-1)
	}
	return append(out, o)
}

// checkOrigins checks that each origin has more than the one before it.
func (m *manifest) checkOrigins() error {
	if len(m.Origins) > maxOrigins {
		return fmt.Errorf("a fork of %d others; up to %d are possible", len(m.Origins), maxOrigins)
	}
	if m.Merges < 0 || m.Replacements < 0 || m.Merges > math.MaxInt32/4 || m.Replacements > math.MaxInt32/4 {
		return fmt.Errorf("%d merged and %d layers of replaced files", m.Merges, m.Replacements)
	}
	var last origin
	for _, o := range m.Origins {
		if !validID(o.Session) || o.Session == m.ID {
			return fmt.Errorf("forked from %q: %w", o.Session, ErrBadName)
		}
		if o.UpTo < last.UpTo || o.UpTo >= m.active() || o.Merged > last.Merged || o.Replaced > last.Replaced ||
			o.Merged < 0 && o.Merged <= overlay.Replaced || o.Replaced < 0 && o.Replaced > overlay.Replaced {
			return fmt.Errorf("forked from %s: layers up to %d, %d, %d", o.Session, o.UpTo, o.Merged, o.Replaced)
		}
		last = o
	}
	return nil
}

// shared are the layers among ranges that are in the directory of origin i.
func (m *manifest) shared(i int, ranges []overlay.Range) []overlay.Range {
	var last origin
	if i > 0 {
		last = m.Origins[i-1]
	}
	o := m.Origins[i]
	above := func(l, none overlay.LayerID) overlay.LayerID {
		if l == 0 {
			return none
		}
		return l - 1
	}
	var out []overlay.Range
	if o.Replaced != 0 {
		out = append(out, clip(ranges, o.Replaced, above(last.Replaced, overlay.Replaced))...)
	}
	if o.Merged != 0 {
		out = append(out, clip(ranges, o.Merged, above(last.Merged, overlay.Merged))...)
	}
	return append(out, clip(ranges, last.UpTo+1, o.UpTo)...)
}

// own are the layers among ranges that are in the session's own directory.
func (m *manifest) own(ranges []overlay.Range) []overlay.Range {
	ranges = withoutImages(ranges)
	for i := range m.Origins {
		ranges = without(ranges, m.shared(i, ranges))
	}
	return ranges
}

// openOrigins opens the directories of a tree's layers that are other
// sessions'. The caller, or the tree that they are given to, closes them. One
// that is gone is an error only where stack needs it.
func (s *Store) openOrigins(m *manifest, tree string, stack overlay.Stack) ([]overlay.LayerDir, error) {
	var out []overlay.LayerDir
	for i, o := range m.Origins {
		fd, err := s.openLayers(o.Session, tree)
		if err != nil && len(m.shared(i, stack.Sealed)) > 0 {
			closeOrigins(s.fs, out)
			return nil, err
		}
		out = append(out, overlay.LayerDir{UpTo: o.UpTo, Merged: o.Merged, Replaced: o.Replaced, FD: fd})
	}
	return out, nil
}

func closeOrigins(fs hostfs.FS, dirs []overlay.LayerDir) {
	for _, d := range dirs {
		if d.FD >= 0 {
			_ = fs.Close(d.FD)
		}
	}
}

// openLayers opens the directory of a tree's layers in any session, which may
// be in the trash by now, or on its way there or back.
func (s *Store) openLayers(id, tree string) (int, error) {
	for _, where := range []string{dirSessions, dirTrash, dirSessions, dirTrash} {
		fd, err := s.fs.Open(s.dir, filepath.Join(where, id, dirTrees, tree, dirLayers), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.ENOENT) {
			return -1, fmt.Errorf("layers shared with session %s: %w", id, err)
		}
	}
	return -1, fmt.Errorf("layers shared with session %s: recorded, but not there: %w", id, overlay.ErrCorrupt)
}

// clip are the layers of ranges from one number to another.
func clip(ranges []overlay.Range, from, to overlay.LayerID) []overlay.Range {
	var out []overlay.Range
	for _, r := range ranges {
		r.From, r.To = max(r.From, from), min(r.To, to)
		if r.From <= r.To {
			out = append(out, r)
		}
	}
	return out
}

// union are the layers of a and of b.
func union(a, b []overlay.Range) []overlay.Range {
	out := append(append([]overlay.Range(nil), a...), without(b, a)...)
	return join(out)
}
