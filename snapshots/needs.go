package snapshots

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// layerSet are layers of each tree, by its name.
type layerSet map[string][]overlay.Range

func (s layerSet) add(tree string, ranges []overlay.Range) {
	if len(without(ranges, s[tree])) > 0 {
		s[tree] = union(s[tree], ranges)
	}
}

func (s layerSet) addSnapshot(snap Snapshot) {
	for tree, stack := range snap.Stacks {
		s.add(tree, stack.Sealed)
	}
}

// within is what s has of layers.
func (s layerSet) within(layers map[string][]overlay.Range) map[string][]overlay.Range {
	out := map[string][]overlay.Range{}
	for tree, ranges := range layers {
		if both := without(ranges, without(ranges, s[tree])); len(both) > 0 {
			out[tree] = both
		}
	}
	return out
}

// needs are the layers that a session in directory dir cannot do without: those
// of its stacks and of its history, and those that wait for their removal.
func (s *Store) needs(m *manifest, dir int) (layerSet, error) {
	out := m.needs()
	all, err := readHistory(s.fs, dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", historyFile, err)
	}
	for _, snap := range all {
		out.addSnapshot(snap)
	}
	return out, nil
}

// needs are the layers that the manifest itself names.
func (m *manifest) needs() layerSet {
	out := layerSet{}
	for _, t := range m.Trees {
		out.add(t.Name, t.Stack.Sealed)
	}
	for _, r := range m.Retired {
		for tree, layers := range r.Layers {
			out.add(tree, layers)
		}
	}
	for _, r := range m.Replaced {
		for _, tree := range r.Trees {
			out.add(tree, []overlay.Range{{From: r.Layer, To: r.Layer}})
		}
	}
	return out
}

// discards are the layers that are needed for paths in the trash to be brought
// back, by what a session retired. They are not nil where there is an error, which means that no
// layer may be removed.
func (s *Store) discards(all []retired) (layerSet, error) {
	out := layerSet{}
	for _, r := range all {
		if r.Trash == "" {
			continue
		}
		t, err := s.openTrash(r.Trash)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return out, err
		}
		if t.discard != nil {
			out.addSnapshot(Snapshot{Stacks: t.discard.Stacks})
		}
	}
	return out, nil
}

// allShared are the layers of each session, by its id, that forks of it cannot
// do without. Forks in the trash count, since they can be brought back. An
// error means that no layer may be removed.
//
// Preconditions: the store is locked.
func (s *Store) allShared() (map[string]layerSet, error) {
	out := map[string]layerSet{}
	for _, where := range []string{dirSessions, dirTrash} {
		ids, err := names(s.fs, s.dir, where)
		if err != nil {
			return nil, fmt.Errorf("state directory %q: %w", s.home, err)
		}
		for _, id := range ids {
			if !validID(id) {
				continue
			}
			if err := s.addShared(filepath.Join(where, id), out); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// addShared adds what the session in directory rel needs of others.
func (s *Store) addShared(rel string, out map[string]layerSet) error {
	path := filepath.Join(s.home, rel)
	dir, err := openDir(s.fs, s.dir, rel)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer s.fs.Close(dir)
	m, err := readManifest(s.fs, dir, path)
	if errors.Is(err, unix.ENOENT) {
		return nil // the record of discarded paths, say
	}
	if err != nil {
		return err
	}
	if len(m.Origins) == 0 || m.Purged {
		return nil
	}
	needs, err := s.needs(m, dir)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	discards, err := s.discards(m.Retired)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for tree, ranges := range discards {
		needs.add(tree, ranges)
	}
	for i, o := range m.Origins {
		if out[o.Session] == nil {
			out[o.Session] = layerSet{}
		}
		for tree, ranges := range needs {
			out[o.Session].add(tree, m.shared(i, ranges))
		}
	}
	return nil
}

// purge removes an element of the trash for good, but for layers that forks
// share: those go with the last fork.
//
// Preconditions: the store is locked.
func (s *Store) purge(t *trashed, needed layerSet) error {
	if t.man == nil || len(needed) == 0 {
		return s.removeTrash(t.ID)
	}
	dir, err := openDir(s.fs, s.dir, filepath.Join(dirTrash, t.ID))
	if err != nil {
		return err
	}
	defer s.fs.Close(dir)
	if !t.man.Purged {
		m := t.man.clone()
		m.Purged = true
		if err := writeManifest(s.fs, dir, m); err != nil {
			return err
		}
	}
	trees, err := openDir(s.fs, dir, dirTrees)
	if err != nil {
		return err
	}
	defer s.fs.Close(trees)
	for _, tree := range t.man.Trees {
		if len(needed[tree.Name]) == 0 {
			err = hostfs.RemoveAll(s.fs, trees, tree.Name)
		} else {
			err = s.keepLayers(trees, filepath.Join(tree.Name, dirLayers), needed[tree.Name])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// keepLayers removes all layers in a directory but those of keep.
func (s *Store) keepLayers(dirfd int, path string, keep []overlay.Range) error {
	layers, err := openDir(s.fs, dirfd, path)
	if err != nil {
		return err
	}
	defer s.fs.Close(layers)
	for _, n := range layersIn(s.fs, layers) {
		if contains(keep, n) {
			continue
		}
		if err := hostfs.RemoveAll(s.fs, layers, layerDir(n)); err != nil {
			return err
		}
	}
	return nil
}
