package snapshots

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// fixture is a store and a project.
type fixture struct {
	t     testing.TB
	home  string
	base  string
	store *Store
}

func newFixture(t testing.TB, fs hostfs.FS) *fixture {
	t.Helper()
	dir := t.TempDir()
	f := &fixture{t: t, home: filepath.Join(dir, "home"), base: filepath.Join(dir, "project")}
	write(t, filepath.Join(f.base, "kept"), "base")
	write(t, filepath.Join(f.base, "sub", "file"), "base")
	f.store = f.open(fs)
	return f
}

func (f *fixture) open(fs hostfs.FS) *Store {
	f.t.Helper()
	s, err := OpenStore(f.home, StoreOptions{FS: fs})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { s.Close() })
	return s
}

func (f *fixture) create(spec Spec) *Session {
	f.t.Helper()
	if spec.Base == "" {
		spec.Base = f.base
	}
	s, err := f.store.Create(context.Background(), spec)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// opened is a live session with a face on each tree. Its methods return errors,
// for they also run under injected crashes.
type opened struct {
	*Live
	faces map[string]*overlay.Face
}

func openLive(s *Session) (*opened, error) {
	l, err := s.Open(context.Background(), OpenOptions{NoWatch: true})
	if err != nil {
		return nil, err
	}
	o := &opened{Live: l, faces: map[string]*overlay.Face{}}
	for _, t := range s.Trees() {
		o.faces[t.Name] = l.Tree(t.Name).Attach(nil)
	}
	return o, nil
}

func mustOpen(t testing.TB, s *Session) *opened {
	t.Helper()
	o, err := openLive(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.close() })
	return o
}

func (o *opened) close() error {
	for _, f := range o.faces {
		f.Detach()
	}
	o.faces = nil
	return o.Live.Close()
}

// put makes or replaces a file in a tree.
func (o *opened) put(tree, path, text string) error {
	f := o.faces[tree]
	if err := o.mkdirs(f, parentOf(path)); err != nil {
		return err
	}
	dir, _, err := f.Walk(parentOf(path))
	if err != nil {
		return err
	}
	defer f.Forget(dir, 1)
	name := path[strings.LastIndexByte(path, '/')+1:]
	n, _, err := f.Create(dir, name, 0o644, overlay.Caller{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())})
	if errors.Is(err, unix.EEXIST) {
		if n, _, err = f.Lookup(dir, name); err == nil {
			size := int64(0)
			_, err = f.Setattr(n, overlay.SetAttr{Size: &size})
		}
	}
	if err != nil {
		return err
	}
	defer f.Forget(n, 1)
	_, err = f.Write(n, []byte(text), 0)
	return err
}

func (o *opened) remove(tree, path string) error {
	f := o.faces[tree]
	if err := o.mkdirs(f, parentOf(path)); err != nil {
		return err
	}
	dir, _, err := f.Walk(parentOf(path))
	if err != nil {
		return err
	}
	defer f.Forget(dir, 1)
	return f.Unlink(dir, path[strings.LastIndexByte(path, '/')+1:])
}

func parentOf(path string) string { return path[:max(0, strings.LastIndexByte(path, '/'))] }

// content lists the files of a view with their content, one per line.
func content(f *overlay.Face) (string, error) {
	var lines []string
	var walk func(n *overlay.Node, path string) error
	walk = func(n *overlay.Node, path string) error {
		var names []string
		if err := f.ReadDir(n, 0, func(e overlay.DirEntry) bool { names = append(names, e.Name); return true }); err != nil {
			return err
		}
		for _, name := range names {
			p := strings.TrimPrefix(path+"/"+name, "/")
			c, a, err := f.Lookup(n, name)
			if err != nil {
				return err
			}
			if a.IsDir() {
				err = walk(c, p)
			} else {
				b := make([]byte, a.Size)
				var k int
				k, err = f.Read(c, b, 0)
				lines = append(lines, p+"="+string(b[:k]))
			}
			f.Forget(c, 1)
			if err != nil {
				return err
			}
		}
		return nil
	}
	err := walk(f.Root(), "")
	sort.Strings(lines)
	return strings.Join(lines, " "), err
}

func (o *opened) content(t testing.TB, tree string) string {
	t.Helper()
	s, err := content(o.faces[tree])
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sealedContent is what a snapshot shows of a tree.
func sealedContent(t testing.TB, s *Session, n overlay.LayerID, tree string) string {
	t.Helper()
	v, err := s.OpenSealed(n)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for _, st := range v.Trees() {
		if st.Name == tree {
			got, err := content(st.Face)
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
	}
	t.Fatalf("snapshot %d has no tree %q", n, tree)
	return ""
}

// changes are the paths at which a snapshot differs from the base.
func changes(t testing.TB, s *Session, n overlay.LayerID, tree string) string {
	t.Helper()
	v, err := s.OpenSealed(n)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	var out []string
	for _, st := range v.Trees() {
		if st.Name != tree {
			continue
		}
		err := st.Face.Delta(func(e overlay.Entry) error {
			if !e.Implicit {
				out = append(out, e.Path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return strings.Join(out, " ")
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mkdirs makes the directories that lead to dir, and it.
func (o *opened) mkdirs(f *overlay.Face, dir string) error {
	if dir == "" {
		return nil
	}
	if n, _, err := f.Walk(dir); err == nil {
		f.Forget(n, 1)
		return nil
	}
	if err := o.mkdirs(f, parentOf(dir)); err != nil {
		return err
	}
	parent, _, err := f.Walk(parentOf(dir))
	if err != nil {
		return err
	}
	defer f.Forget(parent, 1)
	n, _, err := f.Mkdir(parent, dir[strings.LastIndexByte(dir, '/')+1:], 0o755, overlay.Caller{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())})
	if err == nil {
		f.Forget(n, 1)
	}
	return err
}
