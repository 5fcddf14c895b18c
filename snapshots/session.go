package snapshots

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

const (
	sessionLock = "lock"
	dirTrees    = "trees"
	dirCommits  = "commits"
	dirLayers   = "layers"
	layerTree   = "tree"
	layerRecord = "record"
)

// Session is a session on disk, as its manifest was when it was last read. It
// holds no lock and no descriptor, and is safe for concurrent use.
type Session struct {
	store *Store
	id    string
	// trashed: it is in the trash, and opened to keep what it shows.
	trashed bool

	man  atomic.Pointer[manifest]
	hist atomic.Pointer[historyCache]
}

// load reads the session in sessions/<id>.
func (s *Store) load(id string) (*Session, error) {
	if !validID(id) {
		return nil, fmt.Errorf("session id %q: %w", id, ErrBadName)
	}
	sess := &Session{store: s, id: id}
	return sess, sess.Reload()
}

// ID is the session's id: short, lower-case, never changing.
func (s *Session) ID() string { return s.id }

// Name is the session's name.
func (s *Session) Name() string { return s.man.Load().Name }

// Created is when the session was made.
func (s *Session) Created() time.Time { return s.man.Load().Created }

// Store is where the session is.
func (s *Session) Store() *Store { return s.store }

// InTrash tells that the session is one of those in the trash that
// [Store.Family] lists.
func (s *Session) InTrash() bool { return s.trashed }

func (s *Session) rel() string {
	if s.trashed {
		return filepath.Join(dirTrash, s.id)
	}
	return filepath.Join(dirSessions, s.id)
}

// Dir is the session's directory.
func (s *Session) Dir() string { return filepath.Join(s.store.home, s.rel()) }

// Trees are the session's trees, the workspace first.
func (s *Session) Trees() []TreeSpec {
	m := s.man.Load()
	out := make([]TreeSpec, len(m.Trees))
	for i, t := range m.Trees {
		out[i] = t.TreeSpec
	}
	return out
}

// StateDir is the state directory of a tree.
func (s *Session) StateDir(tree string) string { return filepath.Join(s.Dir(), dirTrees, tree) }

// CommitsDir is where commits keep their journals, one directory each.
func (s *Session) CommitsDir() string { return filepath.Join(s.Dir(), dirCommits) }

// Socket is the path of the control socket, which is there while the session
// has an owner.
func (s *Session) Socket() string { return filepath.Join(s.store.home, dirRun, s.id+socketSuffix) }

const socketSuffix = ".sock"

// Rules are the session's rules.
func (s *Session) Rules() Rules { return s.man.Load().Rules }

// Last is the latest snapshot; its number is 0 before the first seal.
func (s *Session) Last() Snapshot { return s.man.Load().last() }

// openDir opens the session's directory.
func (s *Session) openDir() (int, error) {
	fd, err := openDir(s.store.fs, s.store.dir, s.rel())
	if err == unix.ENOENT {
		return -1, fmt.Errorf("session %s: %w: it was removed or discarded meanwhile", s.id, ErrNotFound)
	}
	if err != nil {
		return -1, fmt.Errorf("%s: %w", s.Dir(), err)
	}
	return fd, nil
}

// Reload reads the manifest again. Where the session is this process's own and
// changes at the same moment, what it became is kept.
func (s *Session) Reload() error {
	before := s.man.Load()
	dir, err := s.openDir()
	if err != nil {
		return err
	}
	defer s.store.fs.Close(dir)
	m, err := readManifest(s.store.fs, dir, s.Dir())
	if err != nil {
		return err
	}
	if m.ID != s.id {
		return fmt.Errorf("%s: %w: the manifest is of session %q; was the directory copied?", s.Dir(), overlay.ErrCorrupt, m.ID)
	}
	s.man.CompareAndSwap(before, m)
	return nil
}

// Live tells whether a process has the session open, and which (0 where that
// is not known). It disturbs nobody who is about to open it.
func (s *Session) Live() (pid int, live bool, err error) {
	dir, err := s.openDir()
	if err != nil {
		return 0, false, err
	}
	defer s.store.fs.Close(dir)
	fd, err := s.store.fs.Open(dir, sessionLock, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, false, fmt.Errorf("%s: lock: %w", s.Dir(), err)
	}
	defer s.store.fs.Close(fd)
	live, err = lockHeld(fd)
	if err != nil {
		return 0, false, fmt.Errorf("%s: lock: %w", s.Dir(), err)
	}
	if live {
		pid = readPID(s.store.fs, fd)
	}
	return pid, live, nil
}

// held is a session whose lock this process has.
type held struct {
	*Session
	dir  int // the session's directory
	lock int
	// written is called when a manifest was written out; it may be nil.
	written func()
}

// hold takes the session's lock and reads the manifest as it is then.
func (s *Session) hold(pid int) (*held, error) {
	fs := s.store.fs
	dir, err := s.openDir()
	if err != nil {
		return nil, err
	}
	h := &held{Session: s, dir: dir, lock: -1}
	if err := h.take(pid); err != nil {
		h.release()
		return nil, err
	}
	// The directory may have been moved to the trash while the lock was
	// another's.
	var mine, there unix.Statx_t
	err = fs.Stat(dir, "", &mine)
	if err == nil {
		err = fs.Stat(s.store.dir, s.rel(), &there)
	}
	if err == nil && mine.Ino != there.Ino || err == unix.ENOENT {
		err = ErrNotFound
	}
	if err != nil {
		h.release()
		return nil, fmt.Errorf("session %s: %w: it was removed or discarded meanwhile", s.id, err)
	}
	if err := s.Reload(); err != nil {
		h.release()
		return nil, err
	}
	return h, nil
}

func (h *held) take(pid int) error {
	var err error
	if h.lock, err = openLock(h.store.fs, h.dir, sessionLock); err != nil {
		return fmt.Errorf("%s: lock: %w", h.Dir(), err)
	}
	err = tryLock(h.lock)
	if err == unix.EAGAIN {
		by := ""
		if p := readPID(h.store.fs, h.lock); p != 0 {
			by = fmt.Sprintf(" by process %d", p)
		}
		return fmt.Errorf("session %s: %w%s", h.Name(), ErrBusy, by)
	}
	if err != nil {
		return fmt.Errorf("%s: lock: %w", h.Dir(), err)
	}
	writePID(h.store.fs, h.lock, pid)
	return nil
}

// release gives the lock back.
func (h *held) release() {
	if h.lock >= 0 {
		_ = h.store.fs.Close(h.lock)
	}
	_ = h.store.fs.Close(h.dir)
}

// update replaces the manifest of a session that is held.
func (h *held) update(change func(*manifest)) error { return h.put(change, replaceFile) }

// updateWith is update with everything that was written before, in one go: the
// manifest may name what is not on the disk yet.
func (h *held) updateWith(change func(*manifest)) error { return h.put(change, replaceWith) }

func (h *held) put(change func(*manifest), write func(fs hostfs.FS, dir int, name string, text []byte) error) error {
	m := h.man.Load().clone()
	change(m)
	if err := m.check(); err != nil {
		return fmt.Errorf("session %s: %w", h.Name(), err)
	}
	text, err := m.encode()
	if err == nil {
		err = write(h.store.fs, h.dir, manifestFile, text)
	}
	if err != nil {
		return fmt.Errorf("session %s: %w", h.Name(), err)
	}
	h.man.Store(m)
	if h.written != nil {
		h.written()
	}
	return nil
}

// SetRules replaces the rules of a session that is not live. Patterns that do
// not parse are refused by name.
func (s *Session) SetRules(r Rules) error {
	if err := r.Check(); err != nil {
		return err
	}
	if cur := s.Rules(); slices.Equal(cur.Hide, r.Hide) && slices.Equal(cur.ReadOnly, r.ReadOnly) {
		return nil
	}
	h, err := s.hold(0)
	if err != nil {
		return err
	}
	defer h.release()
	return h.update(func(m *manifest) { m.Rules = r })
}

// AddTree adds a tree to a session that is not live. Its history begins empty:
// in earlier snapshots it is its base.
func (s *Session) AddTree(ctx context.Context, t TreeSpec) error {
	t, err := s.store.resolveTree(t)
	if err != nil {
		return err
	}
	h, err := s.hold(0)
	if err != nil {
		return err
	}
	defer h.release()
	m := h.man.Load()
	for _, have := range m.Trees {
		if have.Name == t.Name {
			return fmt.Errorf("session %s: tree %q: %w, on %q", m.Name, t.Name, ErrExists, have.Base)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	err = s.store.layTree(h.dir, h.Dir(), t.Name, m.active())
	if err == nil {
		err = s.store.syncTree(h.dir, t.Name, m.active())
	}
	if err != nil {
		return fmt.Errorf("session %s: tree %q: %w", m.Name, t.Name, err)
	}
	return h.update(func(m *manifest) {
		m.Trees = append(m.Trees, treeRecord{TreeSpec: t, Stack: t.newStack(m.active())})
	})
}
