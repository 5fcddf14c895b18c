package snapshots

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/galleyfs/galley/overlay"
)

// commitAll does what a commit of paths does, with write in the committer's
// place.
func commitAll(t *testing.T, o *opened, others []*opened, at overlay.LayerID, id string, paths []Path, whole map[Path]bool, write func()) {
	t.Helper()
	var list []ReplacedPath
	for _, p := range paths {
		list = append(list, ReplacedPath{Path: p, Whole: whole[p]})
	}
	check(t, o.Replacing(ctx, Replacing{Commit: id, Paths: map[string][]ReplacedPath{Workspace: list}}))
	for _, other := range others {
		check(t, other.Replacing(ctx, Replacing{Commit: id, Paths: map[string][]ReplacedPath{Workspace: list}, Live: true}))
	}
	write()
	_, err := o.Committed(ctx, Committed{Snapshot: at, Commit: id, Paths: map[string][]Path{Workspace: paths}})
	check(t, err)
}

func TestCommitLeavesOlderViews(t *testing.T) {
	f := newFixture(t, nil)
	for _, p := range []string{"same", "mod", "gone", "dir/a", "dir/deep/b", "typed/x", "meta"} {
		write(t, filepath.Join(f.base, p), "base "+p)
	}
	s := f.create(Spec{})
	o := mustOpen(t, s)
	views := map[overlay.LayerID]string{}
	note := func(n overlay.LayerID) { views[n] = sealedContent(t, s, n, Workspace) }
	check(t, o.put(Workspace, "early", "1"))
	one := o.mustSeal(t, "one")
	note(0)
	note(one.Number)
	forked, err := f.store.Fork(ctx, s, Fork{At: one.Number, Name: "fork"})
	check(t, err)
	p := mustOpen(t, forked)
	check(t, p.put(Workspace, "mine", "fork"))
	check(t, p.put(Workspace, "mod", "fork's"))
	mine := p.mustSeal(t, "")
	check(t, p.put(Workspace, "mine", "fork, later"))
	forkLive := p.content(t, Workspace)

	// The first commit changes, removes and adds files, removes a directory
	// and puts a file where one was.
	check(t, o.put(Workspace, "mod", "session"))
	check(t, o.put(Workspace, "added/new", "session"))
	for _, path := range []string{"gone", "dir/a", "dir/deep/b", "typed/x"} {
		check(t, o.remove(Workspace, path))
	}
	for _, d := range [][2]string{{"dir", "deep"}, {"", "dir"}, {"", "typed"}} {
		n, _, err := o.faces[Workspace].Walk(d[0])
		check(t, err)
		check(t, o.faces[Workspace].Rmdir(n, d[1]))
		o.faces[Workspace].Forget(n, 1)
	}
	check(t, o.put(Workspace, "typed", "a file now"))
	two := o.mustSeal(t, "two")
	note(two.Number)
	check(t, o.put(Workspace, "open", "not sealed"))
	live := o.content(t, Workspace)
	commitAll(t, o, []*opened{p}, two.Number, "c1",
		[]Path{"mod", "added", "added/new", "gone", "dir", "dir/a", "dir/deep", "dir/deep/b", "typed", "typed/x", "early"},
		map[Path]bool{"dir": true, "dir/deep": true, "typed": true},
		func() {
			write(t, filepath.Join(f.base, "mod"), "session")
			write(t, filepath.Join(f.base, "early"), "1")
			write(t, filepath.Join(f.base, "added", "new"), "session")
			for _, path := range []string{"gone", "dir", "typed"} {
				check(t, os.RemoveAll(filepath.Join(f.base, path)))
			}
			write(t, filepath.Join(f.base, "typed"), "a file now")
		})
	if got := o.content(t, Workspace); got != live {
		t.Errorf("the session shows %q after the commit, want %q", got, live)
	}
	if got := p.content(t, Workspace); got != forkLive {
		t.Errorf("the fork shows %q after the commit, want %q", got, forkLive)
	}
	checkViews := func(when string) {
		t.Helper()
		for n, want := range views {
			if got := sealedContent(t, s, n, Workspace); got != want {
				t.Errorf("%s: snapshot %d shows %q, want %q", when, n, got, want)
			}
		}
		const theirs = "dir/a=base dir/a dir/deep/b=base dir/deep/b early=1 gone=base gone kept=base meta=base meta mine=fork mod=fork's same=base same sub/file=base typed/x=base typed/x"
		if got := sealedContent(t, forked, mine.Number, Workspace); got != theirs {
			t.Errorf("%s: the fork's snapshot shows %q, want %q", when, got, theirs)
		}
	}
	checkViews("after the first commit")
	// A fork's changes are its own: not what it has otherwise than the base
	// because that was changed beneath it.
	after := p.mustSeal(t, "")
	if got := changes(t, forked, after.Number, Workspace); got != "early mine mod" {
		t.Errorf("the fork changed %q", got)
	}

	// The second commit changes some of it again, with the host's own edits in
	// between.
	write(t, filepath.Join(f.base, "same"), "host")
	check(t, o.put(Workspace, "mod", "again"))
	check(t, o.put(Workspace, "dir/a", "new dir"))
	three := o.mustSeal(t, "three")
	note(three.Number)
	views[0] = sealedContent(t, s, 0, Workspace)
	for n := range views {
		views[n] = sealedContent(t, s, n, Workspace) // with the host's edit
	}
	forkLive = p.content(t, Workspace)
	commitAll(t, o, []*opened{p}, three.Number, "c2", []Path{"mod", "dir", "dir/a"}, nil, func() {
		write(t, filepath.Join(f.base, "mod"), "again")
		write(t, filepath.Join(f.base, "dir", "a"), "new dir")
	})
	for n, want := range views {
		if got := sealedContent(t, s, n, Workspace); got != want {
			t.Errorf("after the second commit: snapshot %d shows %q, want %q", n, got, want)
		}
	}
	if got := p.content(t, Workspace); got != forkLive {
		t.Errorf("the fork shows %q after the second commit, want %q", got, forkLive)
	}
	check(t, p.close())
	p = mustOpen(t, forked)
	if got := p.content(t, Workspace); got != forkLive {
		t.Errorf("the fork opened again shows %q, want %q", got, forkLive)
	}

	// Back before both commits, and on from there.
	o.mustRollback(t, one.Number)
	if got := o.content(t, Workspace); got != views[one.Number] {
		t.Errorf("rolled back to %q, want %q", got, views[one.Number])
	}
	check(t, o.put(Workspace, "gone", "after all"))
	check(t, o.put(Workspace, "dir/c", "beside"))
	four := o.mustSeal(t, "")
	if got := changes(t, s, four.Number, Workspace); got != "dir/c early gone" {
		t.Errorf("changed after the rollback: %q", got)
	}
	check(t, o.close())
	if err := os.Remove(filepath.Join(s.StateDir(Workspace), "index")); err != nil {
		t.Fatal(err)
	}
	for n, want := range views {
		if got := sealedContent(t, s, n, Workspace); got != want {
			t.Errorf("without an index: snapshot %d shows %q, want %q", n, got, want)
		}
	}
	rep, err := f.store.GC(ctx, GCOptions{})
	check(t, err)
	if len(rep.Kept)+len(rep.Orphans)+rep.Layers != 0 {
		t.Errorf("gc: %+v", rep)
	}
}

// A fork that was in the trash during a commit comes back as it was.
func TestCommitLeavesAForkInTheTrash(t *testing.T) {
	f := newFixture(t, nil)
	write(t, filepath.Join(f.base, "mod"), "base mod")
	s := f.create(Spec{})
	o := mustOpen(t, s)
	check(t, o.put(Workspace, "early", "1"))
	one := o.mustSeal(t, "one")
	forked, err := f.store.Fork(ctx, s, Fork{At: one.Number, Name: "fork"})
	check(t, err)
	want := sealedContent(t, forked, one.Number, Workspace)
	_, err = f.store.Remove(forked)
	check(t, err)

	check(t, o.put(Workspace, "mod", "session"))
	two := o.mustSeal(t, "two")
	family, err := f.store.Family(s)
	check(t, err)
	if len(family) != 1 || family[0].ID() != forked.ID() || !family[0].InTrash() {
		t.Fatalf("family %v, want the fork in the trash", family)
	}
	p := mustOpen(t, family[0])
	commitAll(t, o, []*opened{p}, two.Number, "c1", []Path{"mod"}, nil, func() {
		write(t, filepath.Join(f.base, "mod"), "session")
	})
	check(t, p.close())

	back, err := f.store.Restore(ctx, forked.ID())
	check(t, err)
	if got := sealedContent(t, back, one.Number, Workspace); got != want {
		t.Errorf("the fork's snapshot shows %q, want %q", got, want)
	}
	p = mustOpen(t, back)
	if got := p.content(t, Workspace); got != want {
		t.Errorf("the fork shows %q, want %q", got, want)
	}
	check(t, p.close())
	check(t, o.close())
}

// TestReplacingWithoutAnotherTree: the directory of another tree of a fork may
// be gone while what a commit replaces is kept for it.
func TestReplacingWithoutAnotherTree(t *testing.T) {
	f := newFixture(t, nil)
	conf := filepath.Join(t.TempDir(), "conf")
	write(t, filepath.Join(conf, "c"), "base")
	s := f.create(Spec{Extra: []TreeSpec{{Name: "conf", Base: conf}}})
	o := mustOpen(t, s)
	check(t, o.put(Workspace, "a", "1"))
	check(t, o.put("conf", "c", "1"))
	o.mustSeal(t, "")
	fork, err := f.store.Fork(ctx, s, Fork{At: 1, Name: "two"})
	check(t, err)
	entry, err := f.store.Remove(fork)
	check(t, err)
	family, err := f.store.Family(s)
	check(t, err)
	if len(family) != 1 {
		t.Fatalf("family of %d", len(family))
	}
	check(t, os.Rename(conf, conf+".away"))
	r := Replacing{Commit: "c", Live: true, Paths: map[string][]ReplacedPath{Workspace: {{Path: "kept"}}}}
	if _, err := family[0].Open(ctx, OpenOptions{NoWatch: true}); err == nil {
		t.Fatal("the session can be opened as a whole")
	}
	p, err := family[0].Open(ctx, OpenOptions{NoWatch: true, UpTo: []string{Workspace}})
	check(t, err)
	check(t, p.Replacing(ctx, r))
	if _, err := p.Seal(ctx, SealOptions{}); err == nil {
		t.Error("a session that is open in part can be sealed")
	}
	check(t, p.Close())
	write(t, filepath.Join(f.base, "kept"), "committed")
	check(t, os.Rename(conf+".away", conf))
	fork, err = f.store.Restore(ctx, entry.ID)
	check(t, err)
	w := mustOpen(t, fork)
	if got := w.content(t, Workspace) + "; " + w.content(t, "conf"); got != "a=1 kept=base sub/file=base; c=1" {
		t.Errorf("the fork shows %q", got)
	}
	check(t, w.put("conf", "c", "2"))
	w.mustSeal(t, "after")
}
