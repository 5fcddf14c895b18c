package overlay

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestRemovedDirectoryCanStillBeDescribed: whoever has a removed directory open
// sees what it was, without links, and nothing in it.
func TestRemovedDirectoryCanStillBeDescribed(t *testing.T) {
	_, f, _ := newTestTree(t, map[string]string{"d/f": "x"})
	d, _, err := f.Lookup(f.Root(), "d")
	if err != nil {
		t.Fatal(err)
	}
	own, _, err := f.Mkdir(f.Root(), "own", 0o750, self())
	if err != nil {
		t.Fatal(err)
	}
	over, _, err := f.Mkdir(f.Root(), "over", 0o700, self())
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{f.Unlink(d, "f"), f.Rmdir(f.Root(), "d"), f.Rename(f.Root(), "own", f.Root(), "over", 0)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Rmdir(f.Root(), "over"); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		n    *Node
		perm uint32
	}{"of the base": {d, 0o755}, "made here": {own, 0o750}, "renamed over": {over, 0o700}} {
		a, err := f.Getattr(c.n)
		if err != nil || a.Nlink != 0 || a.Mode != unix.S_IFDIR|c.perm {
			t.Errorf("%s: mode %o, %d links, %v", name, a.Mode, a.Nlink, err)
		}
		if err := f.ReadDir(c.n, 0, func(e DirEntry) bool { t.Errorf("%s: lists %s", name, e.Name); return true }); Errno(err) != unix.ENOENT {
			t.Errorf("%s: list: %v, want ENOENT", name, err)
		}
		if _, _, err := f.Create(c.n, "new", 0o644, self()); Errno(err) != unix.ENOENT {
			t.Errorf("%s: create: %v, want ENOENT", name, err)
		}
	}
}
