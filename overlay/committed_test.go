package overlay

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// committed takes the changes at the given paths out of the layers, as a
// session does when a commit has put them into the base.
func committed(t *testing.T, tr *Tree, paths ...string) {
	t.Helper()
	active := tr.Stack().Active
	to, next := active+1, active+2
	if err := tr.Prepare(next); err != nil {
		t.Fatal(err)
	}
	drop := map[string]bool{}
	for _, p := range paths {
		drop[p] = true
	}
	b := Quiesce(tr)
	defer b.Release()
	all := newView(tr.Stack()).sealedWith(0).stack()
	if err := tr.Flatten(all, to, Keep{Drop: func(p string) bool { return drop[p] }}); err != nil {
		t.Fatal(err)
	}
	if err := b.Switch(0, Stack{Sealed: []Range{{to, to}}, Active: next}, nil); err != nil {
		t.Fatal(err)
	}
}

func on(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestCommittedNodesGoOn changes, after a commit, what the commit has put into
// the base: a directory that the session renamed, a file that it made, and one
// of two names. Until then, looking at them takes nothing into a layer.
func TestCommittedNodesGoOn(t *testing.T) {
	for _, reopen := range []bool{false, true} {
		t.Run(map[bool]string{false: "live", true: "reopened"}[reopen], func(t *testing.T) { committedNodesGoOn(t, reopen) })
	}
}

func committedNodesGoOn(t *testing.T, reopen bool) {
	tr, f, dir := newTestTree(t, map[string]string{"old/a": "a", "old/b": "b", "old/sub/c": "c"})
	root := f.Root()
	on(t, f.Rename(root, "old", root, "new", 0))
	made, _, err := f.Create(root, "made", 0o644, self())
	on(t, err)
	_, err = f.Write(made, []byte("made"), 0)
	on(t, err)
	_, err = f.Link(made, root, "other")
	on(t, err)

	base := func(name string) string { return filepath.Join(dir, "base", name) }
	on(t, os.Rename(base("old"), base("new")), os.WriteFile(base("made"), []byte("made"), 0o644), os.Link(base("made"), base("other")))
	committed(t, tr, "old", "new", "made", "other")
	if reopen {
		st := tr.Stack()
		f.Forget(made, 1)
		f.Detach()
		on(t, tr.Close())
		tr, f, _ = openTestTree(t, dir, st)
		root = f.Root()
	}

	for _, p := range []string{"new", "new/a", "new/sub/c", "made", "other"} {
		_, _, err := f.Walk(p)
		on(t, err)
	}
	if tr.Dirty() || tr.Stats().CopyUps != 0 && reopen {
		t.Error("looking at what was committed changed the layer")
	}
	changed := ""
	on(t, f.Delta(func(e Entry) error { changed += e.Path + " "; return nil }))
	if changed != "" {
		t.Errorf("still changed after the commit: %q", changed)
	}

	d, _, err := f.Walk("new")
	on(t, err)
	sub, _, err := f.Walk("new/sub")
	on(t, err)
	n, _, err := f.Create(d, "more", 0o644, self())
	on(t, err)
	_, err = f.Write(n, []byte("more"), 0)
	on(t, err, f.Unlink(d, "a"), f.Rename(d, "b", sub, "b", 0))
	if got := read(t, f, "new/more") + read(t, f, "new/sub/b"); got != "moreb" {
		t.Errorf("in the renamed directory: %q", got)
	}
	made, _, err = f.Walk("made")
	on(t, err)
	_, err = f.Write(made, []byte("M"), 0)
	on(t, err)
	if a, err := f.Getattr(made); err != nil || a.Nlink != 2 {
		t.Errorf("a file of two names has %d (%v)", a.Nlink, err)
	}
	if got := read(t, f, "made") + read(t, f, "other"); got != "MadeMade" {
		t.Errorf("a committed file, written again: %q", got)
	}
	on(t, f.Unlink(root, "made"))
	if _, _, err := f.Walk("made"); Errno(err) != unix.ENOENT {
		t.Errorf("a name that was removed: %v", err)
	}
	if got := read(t, f, "other"); got != "Made" {
		t.Errorf("its other name: %q", got)
	}

	on(t, f.Unlink(sub, "b"), f.Unlink(sub, "c"), f.Rmdir(d, "sub"), f.Unlink(d, "more"), f.Rmdir(root, "new"))
	if _, _, err := f.Walk("new"); Errno(err) != unix.ENOENT {
		t.Errorf("a directory that was removed: %v", err)
	}
	f.Detach()
	on(t, tr.Close())
}
