package overlay

import (
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// counting counts the host calls that look at something: a lookup or an open
// of a session can make no others.
type counting struct {
	hostfs.FS
	calls, opens atomic.Int64
}

func (c *counting) Open(dirfd int, name string, flags int, mode uint32) (int, error) {
	c.calls.Add(1)
	c.opens.Add(1)
	return c.FS.Open(dirfd, name, flags, mode)
}

func (c *counting) Stat(dirfd int, name string, st *unix.Statx_t) error {
	c.calls.Add(1)
	return c.FS.Stat(dirfd, name, st)
}

func (c *counting) Readlink(dirfd int, name string) (string, error) {
	c.calls.Add(1)
	return c.FS.Readlink(dirfd, name)
}

func (c *counting) Getdents(fd int, buf []byte) (int, error) {
	c.calls.Add(1)
	return c.FS.Getdents(fd, buf)
}

func (c *counting) Getxattr(dirfd int, name, attr string, buf []byte) (int, error) {
	c.calls.Add(1)
	return c.FS.Getxattr(dirfd, name, attr, buf)
}

func (c *counting) Listxattr(dirfd int, name string, buf []byte) (int, error) {
	c.calls.Add(1)
	return c.FS.Listxattr(dirfd, name, buf)
}

func (c *counting) Pread(fd int, p []byte, off int64) (int, error) {
	c.calls.Add(1)
	return c.FS.Pread(fd, p, off)
}

// during is how many calls fn makes.
func (c *counting) during(t *testing.T, fn func() error) int64 {
	t.Helper()
	before := c.calls.Load()
	if err := fn(); err != nil {
		t.Fatal(err)
	}
	return c.calls.Load() - before
}

// layered makes a tree of n sealed layers, each with a file of its own and a
// change to one file that all of them change.
func layered(t *testing.T, n int) (dir string, next LayerID) {
	t.Helper()
	tr, f, dir := newTestTree(t, map[string]string{"d/base": "b", "d/changed": "c", "d/e/deep": "x"})
	d, _, err := f.Walk("d")
	if err != nil {
		t.Fatal(err)
	}
	changed, _, err := f.Lookup(d, "changed")
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if _, err := f.Write(changed, fmt.Appendf(nil, "%d", i), 0); err != nil {
			t.Fatal(err)
		}
		m, _, err := f.Create(d, fmt.Sprint("new", i), 0o644, self())
		if err != nil {
			t.Fatal(err)
		}
		f.Forget(m, 1)
		if err := tr.Prepare(LayerID(i + 2)); err != nil {
			t.Fatal(err)
		}
		b := Quiesce(tr)
		err = b.Seal(LayerID(i + 2))
		b.Release()
		if err != nil {
			t.Fatal(err)
		}
	}
	f.Detach()
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, LayerID(n + 1)
}

// TestCostIsThatOfOneLayer: however many layers there are, a lookup makes at
// most one call on the host, hit or miss, and opening a session makes as many as
// with one layer.
func TestCostIsThatOfOneLayer(t *testing.T) {
	many := 1000
	if testing.Short() {
		many = 100
	}
	var opening []int64
	for _, n := range []int{1, 10, many} {
		dir, active := layered(t, n)
		c := &counting{FS: hostfs.OS}
		base, err := OpenBase(c, filepath.Join(dir, "base"))
		if err != nil {
			t.Fatal(err)
		}
		var tr *Tree
		opening = append(opening, c.during(t, func() (err error) {
			tr, err = Open(Config{Name: "workspace", StateDir: filepath.Join(dir, "state"), Base: base, FS: c, NoWatch: true},
				Stack{Sealed: []Range{{1, active - 1}}, Active: active})
			return err
		}))
		f := tr.Attach(nil)
		d, _, err := f.Walk("d")
		if err != nil {
			t.Fatal(err)
		}
		// Its directory is open from here on.
		if _, _, err := f.Lookup(d, "nothing"); Errno(err) != unix.ENOENT {
			t.Fatal(err)
		}
		look := func(name string) func() error {
			return func() error {
				m, _, err := f.Lookup(d, name)
				if err == nil {
					f.Forget(m, 1)
				}
				if Errno(err) == unix.ENOENT && name == "missing" {
					return nil
				}
				return err
			}
		}
		for _, name := range []string{"base", "missing"} {
			if calls := c.during(t, look(name)); calls != 1 {
				t.Errorf("%d layers: the lookup of %q made %d calls on the host", n, name, calls)
			}
		}
		for _, name := range []string{"changed", "new0", fmt.Sprint("new", n-1)} {
			// The first time, the directory is opened in the layer that has it.
			before := tr.Stats().BaseCalls
			if calls := c.during(t, look(name)); calls > 3 {
				t.Errorf("%d layers: the first lookup of %q made %d calls on the host", n, name, calls)
			}
			if calls := c.during(t, look(name)); calls != 1 {
				t.Errorf("%d layers: the lookup of %q made %d calls on the host", n, name, calls)
			}
			if asked := tr.Stats().BaseCalls - before; asked != 0 {
				t.Errorf("%d layers: the lookup of %q, which a layer has, asked the base %d times", n, name, asked)
			}
		}
		f.Detach()
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if opening[2] > opening[0]+2 {
		t.Errorf("opening made %d calls with one layer, %d with ten, %d with %d", opening[0], opening[1], opening[2], many)
	}
}
