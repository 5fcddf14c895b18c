package snapshots

import (
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"time"

	"golang.org/x/sys/unix"
)

// List lists the sessions, the last used first. One whose manifest cannot be
// read is listed with its error.
func (s *Store) List() ([]Info, error) {
	ids, err := names(s.fs, s.dir, dirSessions)
	if err != nil {
		return nil, fmt.Errorf("state directory %q: %w", s.home, err)
	}
	var out []Info
	for _, id := range ids {
		if !validID(id) {
			continue
		}
		i, ok := s.info(id)
		if ok {
			out = append(out, i)
		}
	}
	sort.Slice(out, func(a, b int) bool {
		if !out[a].Used.Equal(out[b].Used) {
			return out[a].Used.After(out[b].Used)
		}
		return out[a].ID < out[b].ID
	})
	return out, nil
}

// info describes a session; false where it is gone or on its way to the trash.
func (s *Store) info(id string) (Info, bool) {
	i := Info{ID: id, Name: id}
	var st unix.Statx_t
	if s.fs.Stat(s.dir, filepath.Join(dirSessions, id, sessionLock), &st) == nil {
		i.Used = time.Unix(st.Mtime.Sec, int64(st.Mtime.Nsec))
	}
	sess, err := s.load(id)
	if errors.Is(err, ErrNotFound) {
		return i, false
	}
	if err != nil {
		i.Err = err
		return i, true
	}
	m := sess.man.Load()
	if m.Discarded != nil {
		return i, false
	}
	i.Name, i.Trees, i.Created, i.Last = m.Name, sess.Trees(), m.Created, m.last().Number
	if _, i.Live, err = sess.Live(); err != nil {
		i.Err = err
	}
	return i, true
}

// Find finds a session by its name or id. The error for an unknown one wraps
// ErrNotFound and names the nearest there is.
func (s *Store) Find(ref string) (*Session, error) {
	infos, err := s.List()
	if err != nil {
		return nil, err
	}
	var known []string
	id := ""
	for _, i := range infos {
		known = append(known, i.Name)
		if i.Name == ref || i.ID == ref && id == "" {
			id = i.ID
		}
	}
	if id != "" {
		return s.load(id)
	}
	err = fmt.Errorf("session %q: %w", ref, ErrNotFound)
	switch near := nearest(ref, known); {
	case near != "":
		err = fmt.Errorf("%w; did you mean %q?", err, near)
	case len(known) == 0:
		err = fmt.Errorf("%w; there is no session yet", err)
	default:
		err = fmt.Errorf("%w; galley sessions lists the %d there are", err, len(known))
	}
	return nil, err
}

// FindForDir finds the session last used of the project that dir is, or lies
// in: the nearest directory upwards that is the base of a session's workspace.
func (s *Store) FindForDir(dir string) (*Session, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("directory %q: %w", dir, err)
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return nil, fmt.Errorf("directory %q: %w", dir, err)
	}
	infos, err := s.List()
	if err != nil {
		return nil, err
	}
	for at := real; ; at = filepath.Dir(at) {
		for _, i := range infos {
			if i.Err == nil && i.Trees[0].Base == at {
				return s.load(i.ID)
			}
		}
		if at == "/" {
			return nil, fmt.Errorf("session on %q: %w; galley run makes one", real, ErrNotFound)
		}
	}
}

// Rename gives a session that is not live another name; a live one is refused
// with ErrBusy, since its owner holds the manifest.
func (s *Store) Rename(sess *Session, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return s.locked(func() error {
		infos, err := s.List()
		if err != nil {
			return err
		}
		for _, i := range infos {
			if i.Name == name && i.ID != sess.id {
				return fmt.Errorf("session %q %w", name, ErrExists)
			}
		}
		h, err := sess.hold(0)
		if err != nil {
			return err
		}
		defer h.release()
		return h.update(func(m *manifest) { m.Name = name })
	})
}
