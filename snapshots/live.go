package snapshots

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// OpenOptions configures [Session.Open]; the zero value is the default.
type OpenOptions struct {
	// Hide lists further host objects that no view shows, such as a mount
	// point inside a base. The store itself is always hidden.
	Hide []overlay.HostID
	// OpenBase opens a tree's base; nil is overlay.OpenBase.
	OpenBase func(path string) (*overlay.Base, error)
	// NoWatch switches off watching the bases.
	NoWatch bool
	// UpTo, unless it is empty, are the trees that [Live.Replacing] is to work
	// on, the only thing that the session can be used for then: those behind the
	// last of them stay closed, so that nothing is asked of their bases.
	UpTo []string
}

// Live is a session that this process has open for work: it holds the lock and
// its trees are open. It is safe for concurrent use; seals are made one after
// the other.
type Live struct {
	held *held
	// trees are in the manifest's order; bases tells of each whether its base
	// is detached. Who holds sem may read them, and append with treesMu held;
	// others read with treesMu held.
	trees   []*overlay.Tree
	bases   []bool
	treesMu sync.RWMutex // a leaf

	// viewing is held while a view of a snapshot is made, and while a prune
	// looks which there are and removes the rest. It is taken after sem, and
	// before the locks of the trees.
	viewing sync.Mutex
	views   map[*overlay.Face]overlay.LayerID // of which snapshot; protected by viewing

	// sem holds one token: who has it may change the manifest and the fields
	// below. It is a channel so that waiting for it can be given up.
	sem     chan struct{}
	durable overlay.LayerID // see manifest.Durable
	broken  error           // the manifest and the trees may differ: no more seals
	// lazy: the manifest may not be on the disk yet; see lazy.go.
	lazy   lazyState
	quota  *overlay.Quota // nil without a bound
	acts   actors
	closed bool
	part   bool // not all trees are open
}

// Open takes the session's lock and opens its trees. A session that another
// process has open is refused with ErrBusy. What a crash left is mended first.
func (s *Session) Open(ctx context.Context, opt OpenOptions) (*Live, error) {
	if err := s.store.checkRoom(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h, err := s.hold(os.Getpid())
	if err != nil {
		return nil, err
	}
	l := &Live{held: h, sem: make(chan struct{}, 1)}
	l.part = l.upTo(opt) < len(h.man.Load().Trees)
	l.lazy.lazy = l.keptBefore()
	h.written = l.manifestWritten
	if err := l.open(opt); err != nil {
		_ = l.closeTrees()
		h.release()
		return nil, fmt.Errorf("session %s: %w", s.Name(), err)
	}
	return l, nil
}

func (l *Live) open(opt OpenOptions) error {
	m := l.held.man.Load()
	if m.Discarded != nil && !l.held.trashed {
		return fmt.Errorf("%w: it was discarded at %s; galley gc finishes that", ErrNotFound, m.Discarded.Format("2006-01-02 15:04"))
	}
	if m.Building != 0 {
		if err := l.dropUnfinished(m.Building); err != nil {
			return err
		}
	}
	if err := mendHistory(l.fs(), l.held.dir, m); err != nil {
		return err
	}
	l.durable = m.Durable
	if m.Boot != bootID() {
		if err := l.recoverSealed(m, l.upTo(opt)); err != nil {
			return err
		}
	}
	var err error
	if l.quota, err = l.openQuota(); err != nil {
		return err
	}
	for _, t := range m.Trees[:l.upTo(opt)] {
		tree, detached, err := l.openTree(t, opt, t.Stack)
		if err != nil {
			return err
		}
		l.trees = append(l.trees, tree)
		l.bases = append(l.bases, detached)
	}
	if m := l.held.man.Load(); m.Taking != nil {
		if err := l.endTake(context.Background(), *m.Taking); err != nil {
			return fmt.Errorf("return to snapshot %d, after paths were taken in part: %w", *m.Taking, err)
		}
	}
	return nil
}

// upTo is how many trees are to be opened.
func (l *Live) upTo(opt OpenOptions) int {
	m := l.held.man.Load()
	if len(opt.UpTo) == 0 || m.Taking != nil {
		return len(m.Trees)
	}
	count := 0
	for i, t := range m.Trees {
		if slices.Contains(opt.UpTo, t.Name) {
			count = i + 1
		}
	}
	return count
}

func (l *Live) fs() hostfs.FS { return l.held.store.fs }

func (l *Live) openTree(t treeRecord, opt OpenOptions, stack overlay.Stack) (*overlay.Tree, bool, error) {
	open := opt.OpenBase
	if open == nil {
		open = func(path string) (*overlay.Base, error) { return overlay.OpenBase(l.fs(), path) }
	}
	base, dirs, err := l.held.store.openLower(l.held.man.Load(), t.TreeSpec, stack, open)
	if err != nil {
		return nil, false, fmt.Errorf("tree %q: %w", t.Name, err)
	}
	detached := base == nil || base.Detached
	tree, err := overlay.Open(overlay.Config{
		Name:     t.Name,
		StateDir: l.held.StateDir(t.Name),
		Base:     base,
		FS:       l.fs(),
		Rules:    l.held.Rules().Compile(),
		Hide:     append([]overlay.HostID{l.held.store.id}, opt.Hide...),
		NoWatch:  opt.NoWatch,

		LayerDirs:  dirs,
		KeepOwners: t.Image != nil,
		FirstIno:   t.Inodes,
		Synced:     l.syncManifest,
		Quota:      l.quota,
	}, stack)
	if err != nil {
		return nil, false, fmt.Errorf("tree %q: %w", t.Name, err)
	}
	return tree, detached, nil
}

// dropUnfinished removes a layer that was being put together from others when
// the process ended; the others still hold all of it.
func (l *Live) dropUnfinished(building overlay.LayerID) error {
	for _, t := range l.held.man.Load().Trees {
		if err := l.removeLayer(t.Name, building); err != nil {
			return fmt.Errorf("remove the unfinished layer %d: %w", building, err)
		}
	}
	return l.held.update(func(m *manifest) { m.Building = 0 })
}

func (l *Live) removeLayer(tree string, n overlay.LayerID) error {
	return removeLayer(l.fs(), l.held.dir, tree, n)
}

func removeLayer(fs hostfs.FS, sessionDir int, tree string, n overlay.LayerID) error {
	layers, err := openDir(fs, sessionDir, filepath.Join(dirTrees, tree, dirLayers))
	if err != nil {
		return err
	}
	defer fs.Close(layers)
	return hostfs.RemoveAll(fs, layers, layerDir(n))
}

// recoverSealed compares the layers that were sealed but perhaps not on the
// disk when the power went with their records, the lowest first, by opening
// each as the active layer that it then was.
func (l *Live) recoverSealed(m *manifest, upTo int) error {
	for _, t := range m.Trees[:upTo] {
		var below []overlay.Range
		for _, r := range t.Stack.Sealed {
			for n := r.From; n <= r.To; n++ {
				if n > m.Durable {
					stack := overlay.Stack{Sealed: append([]overlay.Range(nil), below...), Active: n}
					if err := l.recoverLayer(t, stack); err != nil {
						return fmt.Errorf("recover layer %d after a power cut: %w", n, err)
					}
				}
				below = addLayer(below, n)
			}
		}
	}
	if l.part {
		return nil // the others are still to be looked at
	}
	return l.held.update(func(m *manifest) { m.Boot = bootID() })
}

func (l *Live) recoverLayer(t treeRecord, stack overlay.Stack) error {
	tree, _, err := l.openTree(t, OpenOptions{NoWatch: true}, stack)
	if err != nil {
		return err
	}
	return tree.Close()
}

// Session is the session, with its manifest as the last seal left it.
func (l *Live) Session() *Session { return l.held.Session }

// Tree is an open tree, or nil.
func (l *Live) Tree(name string) *overlay.Tree {
	l.treesMu.RLock()
	defer l.treesMu.RUnlock()
	for _, t := range l.trees {
		if t.Name() == name {
			return t
		}
	}
	return nil
}

// View makes a read-only view of tree as snapshot n has it, which stays what it
// is until it is detached. An unknown snapshot or tree is ErrNotFound.
func (l *Live) View(tree string, n overlay.LayerID) (*overlay.Face, error) {
	t := l.Tree(tree)
	if t == nil {
		return nil, fmt.Errorf("session %s: tree %q: %w", l.held.Name(), tree, ErrNotFound)
	}
	l.viewing.Lock()
	defer l.viewing.Unlock()
	snap, err := l.held.snapshot(n)
	if err != nil {
		return nil, err
	}
	face, err := t.View(snap.Stacks[tree])
	if err != nil {
		return nil, err
	}
	l.looked() // those that were detached are forgotten
	l.views[face] = n
	return face, nil
}

// looked are the snapshots that views show.
//
// Preconditions: viewing is held.
func (l *Live) looked() map[overlay.LayerID]bool {
	out := map[overlay.LayerID]bool{}
	views := map[*overlay.Face]overlay.LayerID{}
	for _, t := range l.held.man.Load().Trees {
		tree := l.Tree(t.Name)
		if tree == nil {
			continue // it is being added
		}
		for face := range tree.Shown() {
			if n, ok := l.views[face]; ok {
				views[face], out[n] = n, true
			}
		}
	}
	l.views = views
	return out
}

// ReadOnlyBase tells whether a tree's base is reached through a detached
// read-only mount.
func (l *Live) ReadOnlyBase(name string) bool {
	l.treesMu.RLock()
	defer l.treesMu.RUnlock()
	for i, t := range l.trees {
		if t.Name() == name {
			return l.bases[i]
		}
	}
	return false
}

// acquire waits for the right to change the session.
func (l *Live) acquire(ctx context.Context) error {
	if l.part {
		return fmt.Errorf("session %s: not all of its trees are open", l.held.Name())
	}
	return l.acquirePart(ctx)
}

// acquirePart is acquire for what can do without some of the trees.
func (l *Live) acquirePart(ctx context.Context) error {
	select {
	case l.sem <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("session %s: %w", l.held.Name(), context.Cause(ctx))
	}
	err := l.broken
	if l.closed {
		err = errors.New("closed")
	}
	if err != nil {
		l.releaseSem()
		return fmt.Errorf("session %s: %w", l.held.Name(), err)
	}
	return nil
}

func (l *Live) releaseSem() { <-l.sem }

// Close closes the trees and gives the lock back. It seals nothing. It fails
// with EBUSY, and closes nothing, while views of the trees are in use.
func (l *Live) Close() error {
	l.sem <- struct{}{}
	defer l.releaseSem()
	if l.closed {
		return nil
	}
	if err := l.closeTrees(); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return err
		}
		l.closed = true
		l.held.release()
		return err
	}
	l.closed = true
	err := l.syncManifest()
	if m := l.held.man.Load(); !l.part && (l.durable > m.Durable || m.Boot != bootID() || l.quota != nil) {
		err = errors.Join(err, l.held.update(func(m *manifest) {
			m.Durable, m.Boot = l.durable, bootID()
			if l.quota != nil {
				used := max(0, l.quota.Used())
				m.Used = &used
			}
		}))
	}
	l.held.release()
	return err
}

func (l *Live) closeTrees() error {
	var errs []error
	for _, t := range l.trees {
		errs = append(errs, t.Close())
	}
	return errors.Join(errs...)
}
