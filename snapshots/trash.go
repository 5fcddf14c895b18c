package snapshots

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// discardFile in trash/<id>/ is the record of discarded paths; a discarded
// session has its manifest there instead.
const discardFile = "discard.json"

// discardRecord tells what a discard of paths dropped.
type discardRecord struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Session string    `json:"session"`
	Name    string    `json:"name"`
	Base    string    `json:"base"`
	Time    time.Time `json:"time"`
	Paths   int       `json:"paths"`
	// Stacks are the trees' sealed layers with the discarded entries.
	Stacks map[string]overlay.Stack `json:"stacks"`
	// After is the snapshot made by the discard.
	After overlay.LayerID `json:"after"`
}

// recordDiscard makes the element of the trash for a discard that is about to
// become true. Until the manifest names it, GC takes it for an orphan.
func (l *Live) recordDiscard(r retirement, before Snapshot, after overlay.LayerID, now time.Time) error {
	m := l.held.man.Load()
	rec := discardRecord{
		Version: manifestVersion, ID: r.trash, Session: m.ID, Name: m.Name,
		Base: m.Trees[0].Base, Time: now, Paths: r.count,
		Stacks: before.Stacks, After: after,
	}
	text, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return fmt.Errorf("trash: %w", err)
	}
	s := l.held.store
	trash, err := openDir(s.fs, s.dir, dirTrash)
	if err != nil {
		return fmt.Errorf("trash: %w", err)
	}
	defer s.fs.Close(trash)
	if err := s.fs.Mkdir(trash, r.trash, 0o700); err != nil {
		return fmt.Errorf("trash: %w", err)
	}
	dir, err := openDir(s.fs, trash, r.trash)
	if err != nil {
		return fmt.Errorf("trash: %w", err)
	}
	defer s.fs.Close(dir)
	if err := replaceFile(s.fs, dir, discardFile, append(text, '\n')); err != nil {
		return fmt.Errorf("trash: %w", err)
	}
	return s.fs.Fsync(trash)
}

func decodeDiscard(b []byte) (*discardRecord, error) {
	r := new(discardRecord)
	if err := decodeStrict(b, r); err != nil {
		return nil, fmt.Errorf("%w: %v", overlay.ErrCorrupt, err)
	}
	if r.Version > manifestVersion {
		return nil, fmt.Errorf("%w: version %d, this program knows up to %d", overlay.ErrFormat, r.Version, manifestVersion)
	}
	if !validID(r.ID) || !validID(r.Session) || r.Paths < 0 {
		return nil, fmt.Errorf("%w: ids %q and %q, %d paths", overlay.ErrCorrupt, r.ID, r.Session, r.Paths)
	}
	for name, st := range r.Stacks {
		st.Active = r.After + 1
		if err := checkStack(st); err != nil {
			return nil, fmt.Errorf("%w: tree %q: %w", overlay.ErrCorrupt, name, err)
		}
	}
	return r, nil
}

// trashed is one element of the trash as it is on the disk.
type trashed struct {
	TrashEntry
	discard *discardRecord // of paths
	man     *manifest      // of a session
}

// openTrash reads element id.
func (s *Store) openTrash(id string) (*trashed, error) {
	if !validID(id) {
		return nil, fmt.Errorf("trash %q: %w", id, ErrNotFound)
	}
	path := filepath.Join(s.home, dirTrash, id)
	dir, err := openDir(s.fs, s.dir, filepath.Join(dirTrash, id))
	if err == unix.ENOENT {
		return nil, fmt.Errorf("trash %q: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer s.fs.Close(dir)
	b, err := hostfs.ReadFile(s.fs, dir, discardFile, manifestLimit)
	if err == nil {
		r, err := decodeDiscard(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(path, discardFile), err)
		}
		return &trashed{discard: r, TrashEntry: TrashEntry{
			ID: id, Kind: TrashPaths, Session: r.Session, Name: r.Name, Base: r.Base,
			Time: r.Time, Expires: r.Time.Add(DefaultRetention), Paths: r.Paths,
		}}, nil
	}
	if t, err := s.openTrashedLayer(dir, id, path); t != nil || err != nil {
		return t, err
	}
	m, err := readManifest(s.fs, dir, path)
	if err != nil {
		return nil, err
	}
	if m.Purged {
		return &trashed{man: m, TrashEntry: TrashEntry{ID: id}}, fmt.Errorf("trash %q: %w: it was purged, and only what its forks share is left", id, ErrNotFound)
	}
	t := &trashed{man: m, TrashEntry: TrashEntry{
		ID: id, Kind: TrashSession, Session: m.ID, Name: m.Name, Base: m.Trees[0].Base,
	}}
	if m.Discarded != nil {
		t.Time, t.Expires = *m.Discarded, m.Discarded.Add(DefaultRetention)
	}
	return t, nil
}

func (s *Store) trashEntry(id string) (TrashEntry, error) {
	t, err := s.openTrash(id)
	if err != nil {
		return TrashEntry{}, err
	}
	return t.TrashEntry, nil
}

// Trash lists the trash, the latest first. Elements that cannot be read are
// left out; GC names them.
func (s *Store) Trash() ([]TrashEntry, error) {
	ids, err := names(s.fs, s.dir, dirTrash)
	if err != nil {
		return nil, fmt.Errorf("state directory %q: %w", s.home, err)
	}
	var out []TrashEntry
	for _, id := range ids {
		if t, err := s.openTrash(id); err == nil {
			out = append(out, t.TrashEntry)
		}
	}
	sort.Slice(out, func(a, b int) bool { return out[a].Time.After(out[b].Time) })
	return out, nil
}

// Remove moves a session to the trash. A live one is refused with ErrBusy.
func (s *Store) Remove(sess *Session) (TrashEntry, error) {
	err := s.locked(func() error {
		h, err := sess.hold(0)
		if err != nil {
			return err
		}
		defer h.release()
		now := s.now().UTC()
		// Marked first, moved second: in between the session is in no list,
		// and GC moves it.
		if err := h.update(func(m *manifest) { m.Discarded = &now }); err != nil {
			return err
		}
		return s.move(dirSessions, dirTrash, sess.id)
	})
	if err != nil {
		return TrashEntry{}, fmt.Errorf("discard session %s: %w", sess.Name(), err)
	}
	return s.trashEntry(sess.id)
}

// move moves a session between sessions and trash, durably.
func (s *Store) move(from, to, id string) error {
	src, err := openDir(s.fs, s.dir, from)
	if err != nil {
		return err
	}
	defer s.fs.Close(src)
	dst, err := openDir(s.fs, s.dir, to)
	if err != nil {
		return err
	}
	defer s.fs.Close(dst)
	if err := s.fs.Rename(src, id, dst, id, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("move %s from %s to %s: %w", id, from, to, err)
	}
	if err := s.fs.Fsync(dst); err != nil {
		return err
	}
	return s.fs.Fsync(src)
}

// Restore takes an element out of the trash: a whole session, under another
// name if its own is taken, or the discarded paths of a session that is not
// live and did not change since.
func (s *Store) Restore(ctx context.Context, id string) (*Session, error) {
	t, err := s.openTrash(id)
	if err != nil {
		return nil, err
	}
	if t.Kind == TrashPaths {
		return s.restorePaths(ctx, t.discard)
	}
	if t.Kind == TrashLayer {
		return nil, fmt.Errorf("trash %s: a layer without a record of what it is; its files are in %q",
			id, filepath.Join(s.home, dirTrash, id, trashedLayer, layerTree))
	}
	if err := s.locked(func() error { return s.restoreSession(id) }); err != nil {
		return nil, fmt.Errorf("restore session %s: %w", t.Name, err)
	}
	return s.load(id)
}

// restoreSession is Remove backwards: the mark goes first.
//
// Preconditions: the store is locked.
func (s *Store) restoreSession(id string) error {
	sess := &Session{store: s, id: id, trashed: true}
	if err := sess.Reload(); err != nil {
		return err
	}
	// A commit may be keeping what it shows at this moment.
	h, err := sess.hold(0)
	if err != nil {
		return err
	}
	defer h.release()
	infos, err := s.List()
	if err != nil {
		return err
	}
	err = h.update(func(m *manifest) {
		m.Discarded = nil
		m.Name = freeName(m.Name, takenBy(infos))
	})
	if err != nil {
		return err
	}
	return s.move(dirTrash, dirSessions, id)
}

// restorePaths makes the stack that a discard left current again.
func (s *Store) restorePaths(ctx context.Context, r *discardRecord) (*Session, error) {
	sess, err := s.load(r.Session)
	if err != nil {
		return nil, fmt.Errorf("restore %s: its session: %w", r.ID, err)
	}
	l, err := sess.Open(ctx, OpenOptions{NoWatch: true})
	if err != nil {
		return nil, fmt.Errorf("restore %s: %w", r.ID, err)
	}
	err = l.restore(ctx, r)
	if cerr := l.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("restore %s in session %s: %w", r.ID, sess.Name(), err)
	}
	if err := s.locked(func() error { return s.removeTrash(r.ID) }); err != nil {
		return nil, fmt.Errorf("restore %s: %w", r.ID, err)
	}
	return sess, nil
}

var errChangedSince = fmt.Errorf("%w: it changed after the discard, and that would be lost; commit or discard the later changes first", ErrExists)

func (l *Live) restore(ctx context.Context, r *discardRecord) error {
	if err := l.acquire(ctx); err != nil {
		return err
	}
	defer l.releaseSem()
	m := l.held.man.Load().clone()
	if l.dirty() || m.Last == nil || m.Last.Number != r.After {
		return errChangedSince
	}
	for _, t := range l.trees {
		if err := t.Load(r.Stacks[t.Name()]); err != nil {
			return err
		}
	}
	closing, next := m.active(), m.Next
	if err := l.prepare(next, true); err != nil {
		return err
	}
	stacks := make([]overlay.Stack, len(m.Trees))
	gone := retired{Layers: map[string][]overlay.Range{}, Time: l.held.store.now().UTC(), Cause: Cause{Kind: CauseRestore, Text: r.ID}}
	for i := range m.Trees {
		t := &m.Trees[i]
		stacks[i] = overlay.Stack{Sealed: r.Stacks[t.Name].Sealed, Active: next}
		gone.Layers[t.Name] = without(addLayer(t.Stack.Sealed, closing), stacks[i].Sealed)
		t.Stack = stacks[i]
	}
	var left []retired
	for _, old := range m.Retired {
		if old.Trash != r.ID {
			left = append(left, old)
		}
	}
	m.Retired = append(left, gone)
	m.Next = next + 1
	m.Last = &lastRecord{Number: closing, Cause: gone.Cause, Time: gone.Time}
	if err := l.switchBack(m, stacks); err != nil {
		return err
	}
	if err := appendHistory(l.fs(), l.held.dir, historyLine{Snapshot: m.last()}, true); err != nil {
		return err
	}
	return l.makeDurable(closing)
}

// switchBack makes m true if the session is still unchanged.
func (l *Live) switchBack(m *manifest, stacks []overlay.Stack) error {
	q := l.quiesce(func(string) bool { return true })
	defer q.release()
	if l.dirty() {
		return errChangedSince
	}
	return l.switchTo(m, byItself, q, nil, func(q *quiesced) error { return switchAll(q.flat, stacks) })
}

// Purge removes an element of the trash for good: a session with all its
// layers, or the record of discarded paths, whose layers GC then removes.
func (s *Store) Purge(id string) error {
	return s.locked(func() error {
		t, err := s.openTrash(id)
		if err != nil {
			return err
		}
		shared, err := s.allShared()
		if err == nil {
			err = s.purge(t, shared[id])
		}
		if err != nil {
			return fmt.Errorf("purge %s: %w", id, err)
		}
		return nil
	})
}

func (s *Store) removeTrash(id string) error {
	trash, err := openDir(s.fs, s.dir, dirTrash)
	if err != nil {
		return err
	}
	defer s.fs.Close(trash)
	return hostfs.RemoveAll(s.fs, trash, id)
}
