package snapshots

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// firstLayer is the active layer of a new session.
const firstLayer overlay.LayerID = 1

// resolveTree checks a tree's name and its base, and fills in the paths.
func (s *Store) resolveTree(t TreeSpec) (TreeSpec, error) {
	if t.Image != nil {
		err := t.check()
		if err == nil {
			err = s.checkImage(t.Image)
		}
		if err != nil {
			return t, fmt.Errorf("tree %q: %w", t.Name, err)
		}
		return t, nil
	}
	var err error
	if t.Base, err = s.resolveBase(t.Base); err != nil {
		return t, fmt.Errorf("tree %q: %w", t.Name, err)
	}
	if t.Mount == "" {
		t.Mount = t.Base
	}
	if err := t.check(); err != nil {
		return t, fmt.Errorf("tree %q: %w", t.Name, err)
	}
	return t, nil
}

// Create makes a session. It is there whole or not at all. Errors wrap
// ErrBadBase, ErrBadName or ErrExists where they apply.
func (s *Store) Create(ctx context.Context, spec Spec) (*Session, error) {
	if spec.Name != "" {
		if err := checkName(spec.Name); err != nil {
			return nil, err
		}
	}
	if err := spec.Rules.Check(); err != nil {
		return nil, err
	}
	if err := checkMaxSize(spec.MaxSize); err != nil {
		return nil, err
	}
	base, err := s.resolveBase(spec.Base)
	if err != nil {
		return nil, err
	}
	m := &manifest{
		Name:    spec.Name,
		Created: s.now().UTC(),
		Boot:    bootID(),
		Next:    firstLayer + 1,
		Rules:   spec.Rules,
		MaxSize: spec.MaxSize,
	}
	for _, t := range append([]TreeSpec{{Name: Workspace, Base: base}}, spec.Extra...) {
		t, err := s.resolveTree(t)
		if err != nil {
			return nil, err
		}
		m.Trees = append(m.Trees, treeRecord{TreeSpec: t, Stack: t.newStack(firstLayer)})
	}
	if err := s.checkRoom(); err != nil {
		return nil, err
	}
	if err := s.checkXattrs(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = s.locked(func() error { return s.create(m) })
	if err != nil {
		return nil, err
	}
	return s.load(m.ID)
}

// create lays a session out beside the others and renames it into its place.
//
// Preconditions: the store is locked.
func (s *Store) create(m *manifest) error {
	infos, err := s.List()
	if err != nil {
		return err
	}
	taken := takenBy(infos)
	if m.Name == "" {
		m.Name = freeName(nameFor(m.Trees[0].Base), taken)
	} else if taken(m.Name) {
		return fmt.Errorf("session %q %w", m.Name, ErrExists)
	}
	sessions, err := openDir(s.fs, s.dir, dirSessions)
	if err != nil {
		return fmt.Errorf("state directory %q: %w", s.home, err)
	}
	defer s.fs.Close(sessions)
	for {
		m.ID = newID()
		if err := m.check(); err != nil {
			return fmt.Errorf("new session: %w", err)
		}
		stage := stagePrefix + m.ID
		err := s.layOut(sessions, stage, m)
		if err == nil {
			err = s.fs.Rename(sessions, stage, sessions, m.ID, unix.RENAME_NOREPLACE)
		}
		if err == nil {
			break
		}
		_ = hostfs.RemoveAll(s.fs, sessions, stage)
		if err != unix.EEXIST {
			return fmt.Errorf("make session %q in %q: %w", m.Name, s.home, err)
		}
	}
	if err := s.fs.Fsync(sessions); err != nil {
		return fmt.Errorf("state directory %q: %w", s.home, err)
	}
	return nil
}

// layOut writes a new session to the directory stage.
func (s *Store) layOut(sessions int, stage string, m *manifest) error {
	if err := s.fs.Mkdir(sessions, stage, 0o700); err != nil {
		return err
	}
	dir, err := openDir(s.fs, sessions, stage)
	if err != nil {
		return err
	}
	defer s.fs.Close(dir)
	for _, name := range []string{dirTrees, dirCommits} {
		if err := s.fs.Mkdir(dir, name, 0o700); err != nil {
			return err
		}
	}
	lock, err := openLock(s.fs, dir, sessionLock)
	if err != nil {
		return err
	}
	_ = s.fs.Close(lock)
	for _, t := range m.Trees {
		if err := s.layTree(dir, filepath.Join(s.home, dirSessions, stage), t.Name, t.Stack.Active); err != nil {
			return fmt.Errorf("tree %q: %w", t.Name, err)
		}
	}
	if err := s.layHistory(dir, m); err != nil {
		return err
	}
	text, err := m.encode()
	if err != nil {
		return err
	}
	// Nobody sees any of it before all of it is durable. The first sync writes
	// most of it.
	if err := stageFile(s.fs, dir, manifestFile, text); err != nil {
		return err
	}
	for _, t := range m.Trees {
		if err := s.syncTree(dir, t.Name, t.Stack.Active); err != nil {
			return fmt.Errorf("tree %q: %w", t.Name, err)
		}
	}
	return s.fs.Fsync(dir)
}

// layTree makes the state directory of a tree in a session's directory dir,
// whose path is path; syncTree makes it durable. What a crash left of an earlier
// attempt is replaced.
func (s *Store) layTree(dir int, path, name string, active overlay.LayerID) error {
	trees, err := openDir(s.fs, dir, dirTrees)
	if err != nil {
		return err
	}
	defer s.fs.Close(trees)
	if err := hostfs.RemoveAll(s.fs, trees, name); err != nil {
		return err
	}
	if err := s.fs.Mkdir(trees, name, 0o700); err != nil {
		return err
	}
	return overlay.InitState(s.fs, filepath.Join(path, dirTrees, name), active)
}

// syncTree makes what layTree made durable.
func (s *Store) syncTree(dir int, name string, active overlay.LayerID) error {
	if err := syncLayer(s.fs, dir, filepath.Join(dirTrees, name), active); err != nil {
		return err
	}
	return syncDir(s.fs, dir, dirTrees)
}

// syncLayer makes a layer that is new and empty durable, with the directories
// it lies in up to dirfd: a manifest must never name a layer that a power cut
// took away.
func syncLayer(fs hostfs.FS, dirfd int, tree string, l overlay.LayerID) error {
	layer := filepath.Join(tree, dirLayers, layerDir(l))
	rec, err := fs.Open(dirfd, filepath.Join(layer, layerRecord), unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	err = fs.Fsync(rec)
	_ = fs.Close(rec)
	if err != nil {
		return err
	}
	for _, d := range []string{layer, filepath.Join(tree, dirLayers), tree} {
		if err := syncDir(fs, dirfd, d); err != nil {
			return err
		}
	}
	return nil
}

// bootID names this run of the kernel (random(4)), or is empty where /proc
// does not tell; then every open is taken as one after a power cut.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(b) < 36 {
		return ""
	}
	return string(b[:36])
}
