package snapshots

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// Seal makes a snapshot of all trees at one point. Where nothing changed since
// the last one, no layer is made and that one is returned (and gets the name,
// if one is given). A failed seal leaves the session as it was.
func (l *Live) Seal(ctx context.Context, opt SealOptions) (Snapshot, error) {
	if opt.Name != "" {
		if err := checkSnapshotName(opt.Name); err != nil {
			return Snapshot{}, err
		}
	}
	if err := l.acquire(ctx); err != nil {
		return Snapshot{}, err
	}
	defer l.releaseSem()
	last := l.held.Last()
	if !l.dirty() && (opt.Name == "" || opt.Name == last.Name || last.Name == "" && last.Number != 0) {
		return l.sealNothing(opt)
	}
	return l.seal(opt)
}

func (l *Live) dirty() bool {
	for _, t := range l.trees {
		if t.Dirty() {
			return true
		}
	}
	return false
}

// sealNothing is a seal of a session that did not change since the last.
func (l *Live) sealNothing(opt SealOptions) (Snapshot, error) {
	last := l.held.Last()
	if last.Number == 0 || opt.Name == "" || opt.Name == last.Name {
		if opt.Durable {
			return last, l.makeDurable(last.Number)
		}
		return last, nil
	}
	err := l.held.update(func(m *manifest) {
		named := *m.Last
		named.Name = opt.Name
		m.Last = &named
	})
	if err != nil {
		return Snapshot{}, err
	}
	last.Name = opt.Name
	err = appendHistory(l.fs(), l.held.dir, historyLine{Snapshot: last, Renamed: true}, opt.Durable)
	if err == nil && opt.Durable {
		err = l.makeDurable(last.Number)
	}
	if err != nil {
		return last, fmt.Errorf("session %s: %w", l.held.Name(), err)
	}
	return last, nil
}

// seal closes the active layer, which becomes the snapshot of its number.
//
// The order of steps is what makes it safe: the next layer exists before a
// manifest names it, the manifest names it before anything is written to it,
// and no operation is in flight while the two change places.
//
// Preconditions: sem is held.
func (l *Live) seal(opt SealOptions) (Snapshot, error) {
	fail := func(err error) (Snapshot, error) {
		return Snapshot{}, fmt.Errorf("seal session %s: %w", l.held.Name(), err)
	}
	if err := l.held.store.checkRoom(); err != nil {
		return fail(err)
	}
	if opt.Durable {
		// The bulk of the writing out, while programs go on.
		if err := l.sync(); err != nil {
			return fail(err)
		}
	}
	m := l.held.man.Load().clone()
	next := m.Next
	if err := l.prepare(next, opt.Durable); err != nil {
		return fail(err)
	}
	sealed := m.active()
	opt.Cause.bound()
	m.Last = &lastRecord{Number: sealed, Name: opt.Name, Cause: opt.Cause, Time: l.held.store.now().UTC()}
	for i := range m.Trees {
		m.Trees[i].Stack = overlay.Stack{Sealed: addLayer(m.Trees[i].Stack.Sealed, sealed), Active: next}
	}
	m.Next = next + 1
	how := lazily
	if opt.Durable {
		how = byItself
	}
	var procs []Process
	err := l.switchTo(m, how, nil, nil, func(q *quiesced) error {
		if err := q.rest.Seal(next); err != nil {
			return err
		}
		procs = l.acts.take()
		return nil
	})
	if err != nil {
		return fail(err)
	}
	snap := m.last()
	snap.Processes = procs
	l.count(&snap, sealed, opt.By)
	err = appendHistory(l.fs(), l.held.dir, historyLine{Snapshot: snap}, opt.Durable)
	if err == nil && opt.Durable {
		err = l.makeDurable(sealed)
	}
	if err != nil {
		return snap, fmt.Errorf("seal session %s: %w", l.held.Name(), err)
	}
	return snap, nil
}

// prepare makes the directories of layer n in every tree. An empty layer of
// that number that a crash left is taken; one that holds something is not
// touched, whatever the manifest says.
func (l *Live) prepare(n overlay.LayerID, durable bool) error {
	for _, t := range l.trees {
		old := filepath.Join(dirTrees, t.Name(), dirLayers, layerDir(n), layerTree)
		have, err := names(l.fs(), l.held.dir, old)
		if err != nil && err != unix.ENOENT {
			return fmt.Errorf("tree %q: %w", t.Name(), err)
		}
		if len(have) > 0 {
			return fmt.Errorf("%w: %s is not empty, and the manifest does not know it; move it away if it is not needed",
				overlay.ErrCorrupt, filepath.Join(l.held.Dir(), old))
		}
		if err := t.Prepare(n); err != nil {
			return fmt.Errorf("tree %q: %w", t.Name(), err)
		}
		if !durable {
			continue
		}
		if err := syncLayer(l.fs(), l.held.dir, filepath.Join(dirTrees, t.Name()), n); err != nil {
			return fmt.Errorf("tree %q: %w", t.Name(), err)
		}
	}
	return nil
}

// durably says how a manifest gets on the disk before it counts.
type durably int

const (
	// lazily: it may be lost in a power cut, as long as nobody synced anything
	// after it.
	lazily durably = iota
	// byItself: it alone. What it names is there already.
	byItself
	// withAll: with everything that was written so far, in one go.
	withAll
)

// switchTo makes m the manifest and does in the trees what it says, with no
// operation in flight: q, or where that is nil a barrier of its own, holds them.
// Of first, which may be nil, an error leaves everything as it is.
//
// Preconditions: sem is held.
func (l *Live) switchTo(m *manifest, how durably, q *quiesced, first func() error, do func(*quiesced) error) error {
	m.Durable, m.Taking = l.durable, nil
	for i, t := range l.trees {
		// Some more are made until the programs are held.
		const room = 1 << 20
		m.Trees[i].Inodes = t.NextIno() + room
	}
	if err := m.check(); err != nil {
		return err
	}
	text, err := m.encode()
	if err != nil {
		return err
	}
	const tmp = manifestFile + ".new"
	fs, dir := l.fs(), l.held.dir
	if how == lazily {
		if err := l.keepManifest(); err != nil {
			return err
		}
		defer l.keptManifestDone()
	}
	if err := stage(fs, dir, tmp, text, how == byItself); err != nil {
		return err
	}
	if how == withAll {
		if err := fs.Syncfs(dir); err != nil {
			_ = fs.Unlink(dir, tmp, 0)
			return fmt.Errorf("sync the layers: %w", err)
		}
	}
	if q == nil {
		q = l.quiesce(func(string) bool { return false })
		defer q.release()
	}
	if first != nil {
		if err := first(); err != nil {
			_ = fs.Unlink(dir, tmp, 0)
			return err
		}
	}
	if err := fs.Rename(dir, tmp, dir, manifestFile, 0); err != nil {
		_ = fs.Unlink(dir, tmp, 0)
		return fmt.Errorf("replace %s: %w", manifestFile, err)
	}
	if err := do(q); err != nil {
		return l.revert(err)
	}
	l.held.man.Store(m)
	if how != lazily {
		l.manifestWritten()
	}
	return nil
}

// revert puts the old manifest back after the trees refused the new one.
//
// Preconditions: no operation is in flight.
func (l *Live) revert(err error) error {
	old := l.held.man.Load()
	if werr := writeManifest(l.fs(), l.held.dir, old); werr != nil {
		l.broken = fmt.Errorf("the record could not be put back after a failed seal (%w); end its commands and open it again", werr)
		return errors.Join(err, l.broken)
	}
	l.manifestWritten()
	return err
}

// sync makes what the trees acknowledged durable.
func (l *Live) sync() error {
	for _, t := range l.trees {
		if err := t.Sync(); err != nil {
			return fmt.Errorf("tree %q: %w", t.Name(), err)
		}
	}
	return nil
}

// makeDurable makes everything up to snapshot n, and the manifest that names
// it, survive a power cut.
//
// Preconditions: sem is held.
func (l *Live) makeDurable(n overlay.LayerID) error {
	if n <= l.durable {
		return nil
	}
	if err := l.sync(); err != nil {
		return err
	}
	if err := l.fs().Fsync(l.held.dir); err != nil {
		return fmt.Errorf("sync the session's directory: %w", err)
	}
	l.manifestWritten()
	l.durable = n
	return nil
}

// bound cuts off what a cause has too much of.
func (c *Cause) bound() {
	if len(c.Text) > maxCause {
		c.Text = strings.ToValidUTF8(c.Text[:maxCause], "")
	}
	if len(c.Args) > maxCause {
		c.Args = nil
	}
}

// count notes in s what layer n, the one sealed last, changed, and, unless by is
// nil, by whom.
func (l *Live) count(s *Snapshot, n overlay.LayerID, by func(tree, path string) []string) {
	s.Changed = 0
	for _, t := range l.trees {
		list, count, ok := t.Changes(n, MaxChanges-len(s.Changes))
		if !ok {
			s.Changed, s.Changes = Unknown, nil
			return
		}
		s.Changed += count
		for _, c := range list {
			change := Change{Tree: t.Name(), Path: Path(c.Path), Kind: c.Kind}
			if by != nil {
				change.By = by(t.Name(), c.Path)
			}
			s.Changes = append(s.Changes, change)
		}
	}
}
