package snapshots

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTakePaths(t *testing.T) {
	f := newFixture(t, nil)
	s := f.create(Spec{Name: "one"})
	o := mustOpen(t, s)
	check(t, o.put(Workspace, "a", "1"))
	check(t, o.put(Workspace, "sub/x", "1"))
	check(t, o.put(Workspace, "sub/y", "1"))
	one := o.mustSeal(t, "")
	other, err := f.store.Fork(ctx, s, Fork{At: one.Number, Name: "two"})
	check(t, err)
	check(t, o.put(Workspace, "a", "2"))
	check(t, o.put(Workspace, "sub/x", "22"))
	check(t, o.put(Workspace, "sub/z", "2"))
	check(t, o.remove(Workspace, "sub/y"))
	check(t, o.remove(Workspace, "sub/file"))
	check(t, o.put(Workspace, "late", "2"))

	done, err := o.Take(ctx, Take{Snapshot: one.Number, From: "1", Paths: map[string][]Path{Workspace: {"sub", "late"}}})
	check(t, err)
	const want = "a=2 kept=base sub/file=base sub/x=1 sub/y=1"
	if got := o.content(t, Workspace); got != want {
		t.Errorf("restored %q, want %q", got, want)
	}
	if got := sealedContent(t, s, done.Now.Number, Workspace); got != want {
		t.Errorf("the snapshot shows %q, want %q", got, want)
	}
	if got := sealedContent(t, s, done.Before.Number, Workspace); got != "a=2 kept=base late=2 sub/x=22 sub/z=2" {
		t.Errorf("before: %q", got)
	}
	again, err := o.Take(ctx, Take{Snapshot: one.Number, From: "1", Paths: map[string][]Path{Workspace: {"sub"}}})
	check(t, err)
	if again.Now.Number != done.Now.Number {
		t.Errorf("the same again made snapshot %d after %d", again.Now.Number, done.Now.Number)
	}

	p := mustOpen(t, other)
	check(t, p.put(Workspace, "new/deep/file", "fork"))
	check(t, p.put(Workspace, "a", "fork"))
	theirs := p.mustSeal(t, "")
	_, err = o.Take(ctx, Take{Session: other.ID(), Snapshot: theirs.Number, From: "two", Paths: map[string][]Path{Workspace: {"new/deep"}}})
	check(t, err)
	if got := o.content(t, Workspace); got != "a=2 kept=base new/deep/file=fork sub/file=base sub/x=1 sub/y=1" {
		t.Errorf("picked: %q", got)
	}
	before := s.Last().Number
	_, err = o.Take(ctx, Take{Session: other.ID(), Snapshot: theirs.Number, From: "two", Paths: map[string][]Path{Workspace: {"a", "nothing"}}})
	if !errors.Is(err, unix.ENOENT) {
		t.Errorf("taking nothing: %v", err)
	}
	if s.Last().Number != before || o.Live.dirty() {
		t.Error("a refused take changed something")
	}
}
