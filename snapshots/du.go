package snapshots

import (
	"context"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// Du measures a session: the blocks allocated to it, as du(1) counts them, and
// those of the layers that it shares with others, wherever they lie. Blocks that a file
// shares as a clone cannot be told apart and count in full.
func (s *Store) Du(ctx context.Context, sess *Session) (Usage, error) {
	u, err := s.measure(ctx, sess.rel())
	if err != nil {
		return u, fmt.Errorf("measure session %s: %w", sess.Name(), err)
	}
	if err := s.moveShared(ctx, sess, &u); err != nil {
		return u, fmt.Errorf("measure session %s: %w", sess.Name(), err)
	}
	for _, r := range sess.man.Load().Retired {
		for tree, layers := range r.Layers {
			n, err := s.measureLayers(ctx, filepath.Join(sess.rel(), dirTrees, tree, dirLayers), layers)
			if err != nil {
				return u, fmt.Errorf("measure session %s: tree %q: %w", sess.Name(), tree, err)
			}
			u.Retired += n
		}
	}
	return u, nil
}

// moveShared tells what of a session's own layers its forks have too, and adds
// what it has of others.
func (s *Store) moveShared(ctx context.Context, sess *Session, u *Usage) error {
	shared, err := s.allShared()
	if err != nil {
		return err
	}
	for tree, layers := range shared[sess.id] {
		n, err := s.measureLayers(ctx, filepath.Join(sess.rel(), dirTrees, tree, dirLayers), layers)
		if err != nil {
			return err
		}
		u.Exclusive -= n
		u.Shared += n
	}
	m := sess.man.Load()
	if len(m.Origins) == 0 {
		return nil
	}
	dir, err := sess.openDir()
	if err != nil {
		return err
	}
	defer s.fs.Close(dir)
	needs, err := s.needs(m, dir)
	if err != nil {
		return err
	}
	for _, t := range m.Trees {
		w, err := s.weigh(ctx, sess, m, t.Name)
		if err != nil {
			return err
		}
		w.sum(nil)
		for i := range m.Origins {
			all, _ := w.of(m.shared(i, needs[t.Name]))
			u.Shared += all
		}
	}
	return nil
}

// measureLayers adds up the bytes of some layers in the directory rel.
func (s *Store) measureLayers(ctx context.Context, rel string, layers []overlay.Range) (int64, error) {
	have, err := names(s.fs, s.dir, rel)
	if err != nil {
		return 0, err
	}
	sum := int64(0)
	for _, name := range have {
		if n, ok := layerNumber(name); !ok || !contains(layers, n) {
			continue
		}
		u, err := s.measure(ctx, filepath.Join(rel, name))
		if err != nil && err != unix.ENOENT {
			return sum, err
		}
		sum += u.Exclusive
	}
	return sum, nil
}

// linked is a file with several names of which some were met.
type linked struct {
	bytes        int64
	names, links uint32
}

// measure adds up what lies at a path in the store.
func (s *Store) measure(ctx context.Context, rel string) (Usage, error) {
	m := &meter{ctx: ctx, fs: s.fs, links: map[uint64]*linked{}}
	if err := m.walk(s.dir, rel); err != nil {
		return m.usage, err
	}
	for _, l := range m.links {
		if l.names < l.links {
			m.usage.Shared += l.bytes
		} else {
			m.usage.Exclusive += l.bytes
		}
	}
	return m.usage, nil
}

type meter struct {
	ctx   context.Context
	fs    hostfs.FS
	usage Usage
	links map[uint64]*linked
}

func (m *meter) walk(dirfd int, name string) error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	var st unix.Statx_t
	if err := m.fs.Stat(dirfd, name, &st); err != nil {
		return err
	}
	m.usage.Files++
	const block = 512
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		m.file(&st, int64(st.Blocks)*block)
		return nil
	}
	m.usage.Exclusive += int64(st.Blocks) * block
	dir, err := openDir(m.fs, dirfd, name)
	if err != nil {
		return err
	}
	defer m.fs.Close(dir)
	var entries []string
	err = hostfs.ReadDir(m.fs, dir, func(d hostfs.Dirent) error {
		entries = append(entries, d.Name)
		return nil
	})
	if err != nil {
		return err
	}
	for _, e := range entries {
		// What goes away meanwhile occupies nothing.
		if err := m.walk(dir, e); err != nil && err != unix.ENOENT {
			return err
		}
	}
	return nil
}

func (m *meter) file(st *unix.Statx_t, bytes int64) {
	if st.Nlink <= 1 {
		m.usage.Exclusive += bytes
		return
	}
	l := m.links[st.Ino]
	if l == nil {
		l = &linked{bytes: bytes, links: st.Nlink}
		m.links[st.Ino] = l
	}
	l.names++
}
