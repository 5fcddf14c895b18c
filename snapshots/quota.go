package snapshots

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// A session may have a bound on the content of its layers, which the engine
// holds (overlay.Quota). All layers in the session's own directory count, also
// those that only older snapshots need and those that a commit or discard
// retired: galley prune and galley gc make room. What a fork shares counts
// where it lies, in the session that it came from.
//
// The count outlives the process in the manifest. It stands there only while
// nobody has the session open; after a crash the layers are measured again.

// MinMaxSize is the least bound that a session can have.
const MinMaxSize = 1 << 20

// MaxSize is how many bytes the session's layers may hold, 0 without a bound.
func (s *Session) MaxSize() int64 { return s.man.Load().MaxSize }

// SetMaxSize bounds what the layers of a session that is not live may hold; 0
// lifts the bound. A bound below what they hold already refuses new content.
func (s *Session) SetMaxSize(n int64) error {
	if err := checkMaxSize(n); err != nil {
		return fmt.Errorf("session %s: %w", s.Name(), err)
	}
	if n == s.MaxSize() {
		return nil
	}
	h, err := s.hold(0)
	if err != nil {
		return err
	}
	defer h.release()
	return h.update(func(m *manifest) {
		if m.MaxSize = n; n == 0 {
			m.Used = nil
		}
	})
}

func checkMaxSize(n int64) error {
	if n != 0 && n < MinMaxSize {
		return fmt.Errorf("a bound of %d bytes; 0 is none, and the least is %d: %w", n, MinMaxSize, unix.EINVAL)
	}
	return nil
}

// openQuota makes the quota of the session's trees, if it has a bound.
//
// Preconditions: the session is held, and its trees are open.
func (l *Live) openQuota() (*overlay.Quota, error) {
	m := l.held.man.Load()
	if m.MaxSize == 0 {
		return nil, nil
	}
	used := int64(0)
	if m.Used != nil && m.Boot == bootID() {
		used = *m.Used
	} else {
		for _, t := range m.Trees {
			n, err := l.contentOf(t.Name, nil)
			if err != nil {
				return nil, err
			}
			used += n
		}
	}
	// From here on it is known to this process alone.
	if m.Used != nil {
		if err := l.held.update(func(m *manifest) { m.Used = nil }); err != nil {
			return nil, err
		}
	}
	return overlay.NewQuota(m.MaxSize, used), nil
}

// contentOf adds up what the quota counts in a tree's own layers, or in those
// of them that are among only.
func (l *Live) contentOf(tree string, only []overlay.Range) (int64, error) {
	fd, err := openDir(l.fs(), l.held.dir, filepath.Join(dirTrees, tree, dirLayers))
	if err != nil {
		return 0, fmt.Errorf("tree %q: %w", tree, err)
	}
	defer l.fs().Close(fd)
	sum := int64(0)
	for _, n := range layersIn(l.fs(), fd) {
		if only != nil && !contains(only, n) {
			continue
		}
		bytes, err := overlay.LayerBytes(l.fs(), fd, n)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("tree %q: %w", tree, err)
		}
		sum += bytes
	}
	return sum, nil
}

// madeLayer counts a layer that was written otherwise than by programs.
func (l *Live) madeLayer(tree string, n overlay.LayerID) error {
	return l.countLayer(tree, n, 1)
}

// countLayer counts a layer that came, or with -1 one that is about to go.
func (l *Live) countLayer(tree string, n overlay.LayerID, sign int64) error {
	if l.quota == nil {
		return nil
	}
	bytes, err := l.contentOf(tree, []overlay.Range{{From: n, To: n}})
	l.quota.Add(sign * bytes)
	return err
}

// Used is how many bytes the session's layers hold, where it has a bound.
func (l *Live) Used() (used, limit int64) {
	if l.quota == nil {
		return 0, 0
	}
	return l.quota.Used(), l.quota.Limit()
}
