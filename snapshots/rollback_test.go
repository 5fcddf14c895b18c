package snapshots

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/galleyfs/galley/overlay"
)

func (o *opened) mustSeal(t testing.TB, name string) Snapshot {
	t.Helper()
	s, err := o.Seal(ctx, SealOptions{Name: name, Cause: Cause{Kind: CauseAsked}})
	check(t, err)
	return s
}

func (o *opened) mustRollback(t testing.TB, to overlay.LayerID) RolledBack {
	t.Helper()
	r, err := o.Rollback(ctx, Rollback{To: to})
	check(t, err)
	return r
}

func TestRollbackAndReturn(t *testing.T) {
	f := newFixture(t, nil)
	s := f.create(Spec{})
	o := mustOpen(t, s)
	check(t, o.put(Workspace, "a", "1"))
	one := o.mustSeal(t, "one")
	check(t, o.put(Workspace, "a", "2"))
	check(t, o.put(Workspace, "b", "2"))
	check(t, o.remove(Workspace, "kept"))
	two := o.mustSeal(t, "")
	check(t, o.put(Workspace, "c", "3")) // in no snapshot yet

	back := o.mustRollback(t, one.Number)
	const first, second = "a=1 kept=base sub/file=base", "a=2 b=2 sub/file=base"
	if got := o.content(t, Workspace); got != first {
		t.Fatalf("after the rollback %q, want %q", got, first)
	}
	if got := sealedContent(t, s, back.Before.Number, Workspace); got != "a=2 b=2 c=3 sub/file=base" {
		t.Errorf("what was there before: %q", got)
	}
	if back.Before.Changed != 1 || back.Now.Number <= back.Before.Number {
		t.Errorf("rolled back: %+v", back)
	}
	check(t, o.put(Workspace, "d", "4"))
	branch := o.mustSeal(t, "branch")
	check(t, o.close())

	// The index is a cache: without it, what a rollback took off the stack
	// is read from its records.
	for _, index := range []bool{true, false} {
		if !index {
			check(t, os.Remove(filepath.Join(s.StateDir(Workspace), "index")))
		}
		for n, want := range map[overlay.LayerID]string{
			one.Number: first, two.Number: second, back.Before.Number: "a=2 b=2 c=3 sub/file=base",
			back.Now.Number: first, branch.Number: "a=1 d=4 kept=base sub/file=base", 0: "kept=base sub/file=base",
		} {
			if got := sealedContent(t, s, n, Workspace); got != want {
				t.Errorf("index %v: snapshot %d: %q, want %q", index, n, got, want)
			}
		}
	}
	o = mustOpen(t, s)
	check(t, o.put(Workspace, "new", "5"))
	o.mustRollback(t, two.Number)
	if got := o.content(t, Workspace); got != second {
		t.Fatalf("returned to %q, want %q", got, second)
	}
	check(t, o.put(Workspace, "e", "6"))
	o.mustSeal(t, "")
	o.mustRollback(t, branch.Number)
	o.mustRollback(t, 0)
	if got := o.content(t, Workspace); got != "kept=base sub/file=base" {
		t.Fatalf("the base shows %q", got)
	}
	if _, err := o.Rollback(ctx, Rollback{To: 4000}); !errors.Is(err, ErrNotFound) {
		t.Errorf("rollback to nowhere: %v", err)
	}
	check(t, o.close())
	h, err := s.History()
	check(t, err)
	if len(h) < 8 {
		t.Errorf("history of %d", len(h))
	}
	rep, err := f.store.GC(ctx, GCOptions{Retention: -1})
	check(t, err)
	if len(rep.Kept)+len(rep.Orphans)+rep.Layers != 0 {
		t.Errorf("gc: %+v", rep)
	}
	if got := sealedContent(t, s, back.Before.Number, Workspace); got != "a=2 b=2 c=3 sub/file=base" {
		t.Errorf("after gc: %q", got)
	}
}

func TestSnapshotsKeepTheirNames(t *testing.T) {
	f := newFixture(t, nil)
	s := f.create(Spec{})
	o := mustOpen(t, s)
	start := o.mustSeal(t, "start")
	if start.Number == 0 {
		t.Error("a name for the unchanged session made no snapshot")
	}
	check(t, o.put(Workspace, "a", "1"))
	a := o.mustSeal(t, "a")
	b := o.mustSeal(t, "b")
	for name, want := range map[string]Snapshot{"start": start, "a": a, "b": b} {
		got, err := s.Snapshot(name)
		if err != nil || got.Number != want.Number {
			t.Errorf("%s is %d, %v, want %d", name, got.Number, err, want.Number)
		}
	}
}

func TestFork(t *testing.T) {
	f := newFixture(t, nil)
	s := f.create(Spec{Name: "one"})
	o := mustOpen(t, s)
	check(t, o.put(Workspace, "a", "1"))
	first := o.mustSeal(t, "first")
	check(t, o.put(Workspace, "a", "2"))
	check(t, o.put(Workspace, "b", "2"))
	o.mustSeal(t, "")

	fork, err := f.store.Fork(ctx, s, Fork{At: first.Number})
	check(t, err)
	if fork.Name() != "one-2" {
		t.Errorf("named %q", fork.Name())
	}
	p := mustOpen(t, fork)
	const want = "a=1 kept=base sub/file=base"
	if got := p.content(t, Workspace); got != want {
		t.Fatalf("the fork shows %q, want %q", got, want)
	}
	check(t, p.put(Workspace, "a", "fork"))
	check(t, p.put(Workspace, "z", "fork"))
	mine := p.mustSeal(t, "mine")
	if got := o.content(t, Workspace); got != "a=2 b=2 kept=base sub/file=base" {
		t.Errorf("the session shows %q", got)
	}
	// A fork of the fork shares layers of both.
	third, err := f.store.Fork(ctx, fork, Fork{At: mine.Number, Name: "third"})
	check(t, err)
	check(t, p.close())
	check(t, o.close())

	// Nothing that becomes of the sessions harms the forks.
	for _, x := range []*Session{s, fork} {
		_, err = f.store.Remove(x)
		check(t, err)
		_, err = f.store.GC(ctx, GCOptions{Retention: -1})
		check(t, err)
	}
	if list, err := f.store.Trash(); err != nil || len(list) != 0 {
		t.Errorf("in the trash: %+v, %v", list, err)
	}
	q := mustOpen(t, third)
	const both = "a=fork kept=base sub/file=base z=fork"
	if got := q.content(t, Workspace); got != both {
		t.Errorf("the third shows %q, want %q", got, both)
	}
	check(t, q.put(Workspace, "z", "third"))
	last := q.mustSeal(t, "")
	q.mustRollback(t, mine.Number)
	if got := q.content(t, Workspace); got != both {
		t.Errorf("rolled back, the third shows %q, want %q", got, both)
	}
	check(t, q.close())
	if got := sealedContent(t, third, last.Number, Workspace); got != "a=fork kept=base sub/file=base z=third" {
		t.Errorf("the last snapshot shows %q", got)
	}
	_, err = f.store.Remove(third)
	check(t, err)
	for range 2 {
		_, err = f.store.GC(ctx, GCOptions{Retention: -1})
		check(t, err)
	}
	if left, err := os.ReadDir(filepath.Join(f.home, dirTrash)); err != nil || len(left) != 0 {
		t.Errorf("left in the trash: %v, %v", left, err)
	}
}
