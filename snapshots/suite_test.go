package snapshots

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots/snapshotstest"
)

// underSuite is a session as the suite sees it.
type underSuite struct {
	f      *fixture
	sess   *Session
	o      *opened
	family *[]*underSuite
}

func TestSuite(t *testing.T) {
	snapshotstest.Run(t, func(t *testing.T, base snapshotstest.Files) snapshotstest.History {
		f := &fixture{t: t, home: filepath.Join(t.TempDir(), "home"), base: filepath.Join(t.TempDir(), "project")}
		for path, text := range base {
			write(t, filepath.Join(f.base, path), text)
		}
		f.store = f.open(nil)
		return newUnderSuite(f, f.create(Spec{}), new([]*underSuite))
	})
}

func newUnderSuite(f *fixture, s *Session, family *[]*underSuite) *underSuite {
	u := &underSuite{f: f, sess: s, o: mustOpen(f.t, s), family: family}
	*family = append(*family, u)
	return u
}

// filesOf lists the files of a view.
func filesOf(f *overlay.Face) (snapshotstest.Files, error) {
	out := snapshotstest.Files{}
	var walk func(n *overlay.Node, path string) error
	walk = func(n *overlay.Node, path string) error {
		names, err := listNames(f, n)
		if err != nil {
			return err
		}
		for _, name := range names {
			c, a, err := f.Lookup(n, name)
			if err != nil {
				return err
			}
			defer f.Forget(c, 1)
			at := filepath.Join(path, name)
			if a.IsDir() {
				err = walk(c, at)
			} else {
				buf := make([]byte, a.Size)
				_, err = f.Read(c, buf, 0)
				out[at] = string(buf)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	return out, walk(f.Root(), "")
}

func (u *underSuite) Put(path, text string) error { return u.o.put(Workspace, path, text) }
func (u *underSuite) Remove(path string) error    { return u.o.remove(Workspace, path) }

func (u *underSuite) Live() (snapshotstest.Files, error) { return filesOf(u.o.faces[Workspace]) }

func (u *underSuite) At(n int) (snapshotstest.Files, error) {
	v, err := u.sess.OpenSealed(overlay.LayerID(n))
	if err != nil {
		return nil, err
	}
	defer v.Close()
	return filesOf(v.Trees()[0].Face)
}

func (u *underSuite) Seal(name string) (int, error) {
	s, err := u.o.Seal(ctx, SealOptions{Name: name})
	return int(s.Number), err
}

func (u *underSuite) Find(name string) (int, error) {
	s, err := u.sess.Snapshot(name)
	return int(s.Number), err
}

func (u *underSuite) Numbers() ([]int, error) {
	history, err := u.sess.History()
	var out []int
	for _, s := range history {
		out = append(out, int(s.Number))
	}
	return out, err
}

func (u *underSuite) Rollback(n int) error {
	_, err := u.o.Rollback(ctx, Rollback{To: overlay.LayerID(n)})
	return err
}

func (u *underSuite) Fork(n int) (snapshotstest.History, error) {
	s, err := u.f.store.Fork(ctx, u.sess, Fork{At: overlay.LayerID(n)})
	if err != nil {
		return nil, err
	}
	return newUnderSuite(u.f, s, u.family), nil
}

func (u *underSuite) Prune() error {
	_, err := u.o.Prune(ctx, Prune{KeepNamed: true})
	return err
}

// Commit does to the base what the committer does with files alone.
func (u *underSuite) Commit() error {
	snap, err := u.o.Seal(ctx, SealOptions{})
	if err != nil {
		return err
	}
	v, err := u.sess.OpenSealed(snap.Number)
	if err != nil {
		return err
	}
	var paths []Path
	var replaced []ReplacedPath
	err = v.Trees()[0].Face.Delta(func(e overlay.Entry) error {
		paths = append(paths, Path(e.Path))
		replaced = append(replaced, ReplacedPath{Path: Path(e.Path)})
		return nil
	})
	if cerr := v.Close(); err != nil || cerr != nil {
		return err
	}
	for _, other := range *u.family {
		r := Replacing{Commit: "c", Live: other != u, Paths: map[string][]ReplacedPath{Workspace: replaced}}
		if err := other.o.Replacing(ctx, r); err != nil {
			return err
		}
	}
	live, err := u.Live()
	if err != nil {
		return err
	}
	for _, path := range paths {
		p := string(path)
		at := filepath.Join(u.f.base, p)
		if text, ok := live[p]; ok {
			write(u.f.t, at+".new", text)
			if err := os.Rename(at+".new", at); err != nil {
				return err
			}
		} else if info, err := os.Lstat(at); err == nil && !info.IsDir() {
			if err := os.Remove(at); err != nil {
				return err
			}
		}
	}
	_, err = u.o.Committed(ctx, Committed{Snapshot: snap.Number, Commit: "c", Paths: map[string][]Path{Workspace: paths}})
	return err
}

func (u *underSuite) Reopen() error {
	if err := u.o.close(); err != nil {
		return err
	}
	var err error
	u.o, err = openLive(u.sess)
	if err == nil {
		o := u.o
		u.f.t.Cleanup(func() { _ = o.close() })
	}
	return err
}
