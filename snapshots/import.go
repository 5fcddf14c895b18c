package snapshots

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// importPrefix begins the name of the directory, beside those of a store, in
// which an import puts a session together: a store of its own, with one session,
// which is moved over when it is whole.
const importPrefix = "import-"

// importLock is held by the process that imports. A directory whose lock nobody
// holds is what a crash left.
const importLock = "importing"

// Import says what session [Store.Import] makes.
type Import struct {
	// Name may be empty: then it is made from the base's last component.
	Name string
	// Trees are the session's trees, [Workspace] first.
	Trees []TreeSpec
	// Rules apply from the end of the import on.
	Rules Rules
}

// Importing is a session that is being put together. Nobody else sees it.
type Importing struct {
	live *Live
	now  time.Time
}

// Tree is a tree of the session, or nil. Its changes go to the active layer.
func (i *Importing) Tree(name string) *overlay.Tree { return i.live.Tree(name) }

// Seal closes the active layers as a snapshot that was made at some other time.
// Where nothing changed since the last there is no new one, unless it has a
// name.
func (i *Importing) Seal(ctx context.Context, opt SealOptions, made time.Time) (Snapshot, error) {
	i.now = made
	return i.live.Seal(ctx, opt)
}

// Import makes a session whose layers fill writes. It is there whole, with all
// of them durable, or not at all: what fill returns an error for is gone, and
// what a crash leaves is removed by [Store.GC].
func (s *Store) Import(ctx context.Context, imp Import, fill func(*Importing) error) (*Session, error) {
	if imp.Name != "" {
		if err := checkName(imp.Name); err != nil {
			return nil, err
		}
		if _, err := s.Find(imp.Name); err == nil {
			return nil, fmt.Errorf("session %q %w", imp.Name, ErrExists)
		}
	}
	if err := imp.Rules.Check(); err != nil {
		return nil, err
	}
	if len(imp.Trees) == 0 || imp.Trees[0].Name != Workspace {
		return nil, fmt.Errorf("import: the first tree is not %q: %w", Workspace, ErrBadName)
	}
	trees := make([]TreeSpec, len(imp.Trees))
	for i, t := range imp.Trees {
		var err error
		if trees[i], err = s.resolveTree(t); err != nil {
			return nil, err
		}
	}
	stage := importPrefix + newID()
	lock, err := s.stageImport(stage)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer s.fs.Close(lock)
	defer func() { _ = hostfs.RemoveAll(s.fs, s.dir, stage) }()
	id, err := s.importInto(ctx, stage, trees, imp, fill)
	if err != nil {
		return nil, err
	}
	if err := s.locked(func() error { return s.adopt(stage, id, imp) }); err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	return s.load(id)
}

// stageImport makes the directory of an import and takes its lock, both under
// the store's, so that no clean-up comes between.
func (s *Store) stageImport(stage string) (lock int, err error) {
	lock, done := -1, false
	defer func() {
		if !done && lock >= 0 {
			_ = s.fs.Close(lock)
		}
	}()
	err = s.locked(func() error {
		if err := s.fs.Mkdir(s.dir, stage, 0o700); err != nil {
			return err
		}
		dir, err := openDir(s.fs, s.dir, stage)
		if err != nil {
			return err
		}
		defer s.fs.Close(dir)
		if lock, err = openLock(s.fs, dir, importLock); err != nil {
			return err
		}
		return tryLock(lock)
	})
	if err != nil {
		_ = hostfs.RemoveAll(s.fs, s.dir, stage)
	}
	done = err == nil
	return lock, err
}

// importInto makes the session in the store of the import.
func (s *Store) importInto(ctx context.Context, stage string, trees []TreeSpec, imp Import, fill func(*Importing) error) (id string, err error) {
	i := &Importing{}
	clock := func() time.Time {
		if i.now.IsZero() {
			return s.now()
		}
		return i.now
	}
	own, err := OpenStore(filepath.Join(s.home, stage), StoreOptions{FS: s.fs, Log: s.log, Now: clock})
	if err != nil {
		return "", err
	}
	defer own.Close()
	// Its session hides what every session hides.
	own.id = s.id
	own.lower = s.dir
	sess, err := own.Create(ctx, Spec{Name: imp.Name, Base: trees[0].Base, Extra: trees[1:]})
	if err != nil {
		return "", err
	}
	if i.live, err = sess.Open(ctx, OpenOptions{NoWatch: true}); err != nil {
		return "", err
	}
	if err := fill(i); err != nil {
		_ = i.live.Close()
		return "", err
	}
	if err := i.finish(ctx); err != nil {
		_ = i.live.Close()
		return "", err
	}
	i.now = time.Time{}
	if err := i.live.Close(); err != nil {
		return "", err
	}
	// The mount of a workspace is where its base is, unless it is told.
	return sess.ID(), own.settle(ctx, sess, trees[0].Mount, imp.Rules)
}

// finish makes all layers durable, with one call for the many small files.
func (i *Importing) finish(ctx context.Context) error {
	if err := i.live.acquire(ctx); err != nil {
		return err
	}
	defer i.live.releaseSem()
	if err := i.live.fs().Syncfs(i.live.held.dir); err != nil {
		return fmt.Errorf("sync the imported layers: %w", err)
	}
	return i.live.makeDurable(i.live.held.Last().Number)
}

func (s *Store) settle(_ context.Context, sess *Session, mount string, rules Rules) error {
	h, err := sess.hold(0)
	if err != nil {
		return err
	}
	defer h.release()
	return h.update(func(m *manifest) { m.Trees[0].Mount, m.Rules = mount, rules })
}

// adopt moves a session from the store of an import to this one.
//
// Preconditions: the store is locked.
func (s *Store) adopt(stage, id string, imp Import) error {
	infos, err := s.List()
	if err != nil {
		return err
	}
	taken := takenBy(infos)
	from, err := openDir(s.fs, s.dir, filepath.Join(stage, dirSessions))
	if err != nil {
		return err
	}
	defer s.fs.Close(from)
	dir, err := openDir(s.fs, from, id)
	if err != nil {
		return err
	}
	defer s.fs.Close(dir)
	m, err := readManifest(s.fs, dir, filepath.Join(s.home, stage, dirSessions, id))
	if err != nil {
		return err
	}
	if imp.Name != "" && taken(imp.Name) {
		return fmt.Errorf("session %q %w", imp.Name, ErrExists)
	}
	if free := freeName(m.Name, taken); free != m.Name {
		m.Name = free
		if err := writeManifest(s.fs, dir, m); err != nil {
			return err
		}
	}
	to, err := openDir(s.fs, s.dir, dirSessions)
	if err != nil {
		return err
	}
	defer s.fs.Close(to)
	if err := s.fs.Rename(from, id, to, id, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("move session %q into %q: %w", m.Name, s.home, err)
	}
	return s.fs.Fsync(to)
}

// imports removes what imports that crashed left.
func (g *collector) imports() error {
	all, err := names(g.store.fs, g.store.dir, ".")
	if err != nil {
		return fmt.Errorf("state directory %q: %w", g.store.home, err)
	}
	for _, name := range all {
		if strings.HasPrefix(name, importPrefix) && !g.importing(name) {
			g.orphan(name)
		}
	}
	return nil
}

// importing tells whether an import's process is still at work.
func (g *collector) importing(name string) bool {
	fd, err := g.store.fs.Open(g.store.dir, filepath.Join(name, importLock), unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer g.store.fs.Close(fd)
	held, err := lockHeld(fd)
	return held || err != nil
}

// FreeName is a name that a new session can have: want, or one like it. A name
// that no session could have gives an empty one.
func (s *Store) FreeName(want string) (string, error) {
	if checkName(want) != nil {
		return "", nil
	}
	infos, err := s.List()
	if err != nil {
		return "", err
	}
	return freeName(want, func(name string) bool {
		for _, i := range infos {
			if i.Name == name {
				return true
			}
		}
		return false
	}), nil
}

// Chain is the snapshots on the way to one and it, the oldest first.
func (s *Session) Chain(snap Snapshot) ([]Snapshot, error) {
	all, err := s.History()
	if err != nil {
		return nil, err
	}
	var out []Snapshot
	for _, other := range all {
		if other.Number < snap.Number && snap.BuiltOn(other) {
			out = append(out, other)
		}
	}
	return append(out, snap), nil
}
