package snapshots

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// layerFile in trash/<id>/ is the record of a layer that a check found without
// one; trashedLayer beside it is the layer.
const (
	layerFile    = "layer.json"
	trashedLayer = "layer"
)

type layerTrash struct {
	Version int             `json:"version"`
	Session string          `json:"session"`
	Name    string          `json:"name"`
	Base    string          `json:"base"`
	Tree    string          `json:"tree"`
	Layer   overlay.LayerID `json:"layer"`
	Time    time.Time       `json:"time"`
}

// trashLayer moves layer n of a session's tree to the trash.
//
// Preconditions: the store is locked.
func (s *Store) trashLayer(m *manifest, tree string, layers int, n overlay.LayerID) error {
	text, err := json.MarshalIndent(layerTrash{
		Version: manifestVersion, Session: m.ID, Name: m.Name, Base: m.Trees[0].Base, Tree: tree, Layer: n, Time: s.now().UTC(),
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("trash: %w", err)
	}
	trash, err := openDir(s.fs, s.dir, dirTrash)
	if err != nil {
		return fmt.Errorf("trash: %w", err)
	}
	defer s.fs.Close(trash)
	id := newID()
	if err := s.fs.Mkdir(trash, id, 0o700); err != nil {
		return fmt.Errorf("trash: %w", err)
	}
	dir, err := openDir(s.fs, trash, id)
	if err != nil {
		return fmt.Errorf("trash: %w", err)
	}
	defer s.fs.Close(dir)
	if err := replaceFile(s.fs, dir, layerFile, append(text, '\n')); err != nil {
		return fmt.Errorf("trash: %w", err)
	}
	if err := s.fs.Rename(layers, layerDir(n), dir, trashedLayer, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("move layer %d to the trash: %w", n, err)
	}
	for _, fd := range []int{dir, trash, layers} {
		if err := s.fs.Fsync(fd); err != nil {
			return fmt.Errorf("trash: %w", err)
		}
	}
	return nil
}

// openTrashedLayer reads an element of the trash that is a layer; nil where it
// is none.
func (s *Store) openTrashedLayer(dir int, id, path string) (*trashed, error) {
	b, err := hostfs.ReadFile(s.fs, dir, layerFile, manifestLimit)
	if err == unix.ENOENT {
		return nil, nil
	}
	var r layerTrash
	if err == nil {
		if err = decodeStrict(b, &r); err != nil {
			err = fmt.Errorf("%w: %v", overlay.ErrCorrupt, err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(path, layerFile), err)
	}
	return &trashed{TrashEntry: TrashEntry{
		ID: id, Kind: TrashLayer, Session: r.Session, Name: r.Name, Base: r.Base, Time: r.Time, Expires: r.Time.Add(DefaultRetention), Paths: 1,
	}}, nil
}
