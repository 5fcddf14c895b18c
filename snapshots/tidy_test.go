package snapshots

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/galleyfs/galley/overlay"
)

// TestTidy lets checkpoints grow old: those without a name are merged, those
// with one, the latest and what is mounted show what they showed.
func TestTidy(t *testing.T) {
	f := newFixture(t, nil)
	began := time.Now()
	now := began.Add(-30 * 24 * time.Hour)
	f.store.now = func() time.Time { return now }
	s := f.create(Spec{})
	o := mustOpen(t, s)
	views := map[overlay.LayerID]string{}
	policy := TidyPolicy{Age: DefaultRetention, KeepLast: 10, Most: 1000, Least: 20, AtOnce: 40}
	var mounted *overlay.Face
	var shown string
	put := func(i int) Snapshot {
		check(t, o.put(Workspace, "a", fmt.Sprint(i)))
		check(t, o.put(Workspace, fmt.Sprintf("f%d", i%7), fmt.Sprint(i)))
		name := ""
		if i%13 == 5 {
			name = fmt.Sprint("n", i)
		}
		snap := o.mustSeal(t, name)
		if name != "" || i == 20 {
			views[snap.Number] = sealedContent(t, s, snap.Number, Workspace)
		}
		if i == 20 {
			var err error
			mounted, err = o.View(Workspace, snap.Number)
			check(t, err)
			t.Cleanup(mounted.Detach)
			shown = views[snap.Number]
		}
		return snap
	}
	tidy := func(want int) {
		t.Helper()
		done, err := o.Tidy(ctx, policy)
		check(t, err)
		if len(done.Snapshots) != want {
			t.Errorf("%d snapshots are forgotten, want %d: %v", len(done.Snapshots), want, done.Snapshots)
		}
		if got, err := content(mounted); err != nil || got != shown {
			t.Errorf("what is mounted shows %q, %v, want %q", got, err, shown)
		}
		for n, want := range views {
			if got := sealedContent(t, s, n, Workspace); got != want {
				t.Errorf("snapshot %d shows %q, want %q", n, got, want)
			}
		}
	}
	for i := range 60 {
		put(i)
	}
	tidy(0) // none is old
	now = began
	for i := range 5 {
		put(60 + i)
	}
	live := o.content(t, Workspace)
	before, err := f.store.Du(ctx, s)
	check(t, err)
	tidy(40) // of 55 that are old and not among the last ten, less four with names and the mounted one, as many as go at once
	tidy(0)  // the rest is too few
	if got := o.content(t, Workspace); got != live {
		t.Errorf("the live view is %q, was %q", got, live)
	}
	after, err := f.store.Du(ctx, s)
	check(t, err)
	// What is looked at stays on the disk so long.
	if after.Exclusive > before.Exclusive*4/5 {
		t.Errorf("%d bytes before, %d after", before.Exclusive, after.Exclusive)
	}
	history, err := s.History()
	check(t, err)
	if len(history) != 25 {
		t.Errorf("%d snapshots are left", len(history))
	}
	// Too many, however young they are.
	policy.Most, policy.Least = 20, 5
	now = began.Add(time.Second)
	for i := range 10 {
		put(100 + i)
	}
	history, err = s.History()
	check(t, err)
	unnamed := 0
	for _, snap := range history {
		if snap.Name == "" {
			unnamed++
		}
	}
	tidy(unnamed - 15)
}

// TestTidyLeavesEndsOfLines: what a rollback left, and was neither committed nor
// discarded, is in no other snapshot; what a commit left is in the base.
func TestTidyLeavesEndsOfLines(t *testing.T) {
	f := newFixture(t, nil)
	now := time.Now()
	f.store.now = func() time.Time { return now }
	s := f.create(Spec{})
	o := mustOpen(t, s)
	seal := func(path string, count int) (last Snapshot) {
		for i := range count {
			check(t, o.put(Workspace, path, fmt.Sprint(i)))
			last = o.mustSeal(t, "")
		}
		return last
	}
	start := seal("a", 5)
	left := seal("left", 5)
	want := sealedContent(t, s, left.Number, Workspace)
	o.mustRollback(t, start.Number)
	committed := seal("a", 5)
	_, err := o.Committed(ctx, Committed{Snapshot: committed.Number, Commit: "c", Paths: map[string][]Path{Workspace: {"a"}}})
	check(t, err)
	seal("b", 5)
	policy := TidyPolicy{Age: time.Hour, KeepLast: 7, Most: 1000, Least: 1, AtOnce: 1000}
	for range 3 {
		now = now.Add(2 * time.Hour)
		_, err := o.Tidy(ctx, policy)
		check(t, err)
		if got := sealedContent(t, s, left.Number, Workspace); got != want {
			t.Errorf("the end of the line shows %q, want %q", got, want)
		}
		seal("b", 7)
	}
	history, err := s.History()
	check(t, err)
	for _, snap := range history {
		if snap.Number != left.Number && snap.Number <= committed.Number {
			t.Errorf("snapshot %d is left", snap.Number)
		}
	}
}

// TestPruneLeavesWhatIsLookedAt: a view shows what it showed, and its snapshot
// stays as long as it is looked at.
func TestPruneLeavesWhatIsLookedAt(t *testing.T) {
	f := newFixture(t, nil)
	s := f.create(Spec{})
	o := mustOpen(t, s)
	views, want := map[overlay.LayerID]*overlay.Face{}, map[overlay.LayerID]string{}
	for i := range 12 {
		check(t, o.put(Workspace, "a", fmt.Sprint(i)))
		check(t, o.put(Workspace, fmt.Sprint("f", i%5), fmt.Sprint(i)))
		snap := o.mustSeal(t, "")
		if i%4 != 2 {
			continue
		}
		face, err := o.View(Workspace, snap.Number)
		check(t, err)
		views[snap.Number] = face
		want[snap.Number], err = content(face)
		check(t, err)
	}
	verify := func(when string) {
		t.Helper()
		for n, face := range views {
			if got, err := content(face); err != nil || got != want[n] {
				t.Errorf("%s: the view of %d shows %q, %v, want %q", when, n, got, err, want[n])
			}
			if got := sealedContent(t, s, n, Workspace); got != want[n] {
				t.Errorf("%s: snapshot %d shows %q, want %q", when, n, got, want[n])
			}
		}
	}
	for _, p := range []Prune{{Only: []overlay.LayerID{1, 2, 3, 4, 5}}, {}, {}} {
		_, err := o.Prune(ctx, p)
		check(t, err)
		verify(fmt.Sprintf("%+v", p))
	}
	for _, face := range views {
		face.Detach()
	}
	_, err := o.Prune(ctx, Prune{})
	check(t, err)
	if h, err := s.History(); err != nil || len(h) != 1 {
		t.Errorf("history of %d, %v", len(h), err)
	}
	if _, err := o.View(Workspace, 3); !errors.Is(err, ErrNotFound) {
		t.Errorf("a view of what went: %v", err)
	}
	check(t, o.close())
	rep, err := f.store.GC(ctx, GCOptions{Retention: -1})
	check(t, err)
	if len(rep.Kept)+len(rep.Orphans)+rep.Layers != 0 {
		t.Errorf("gc: %+v", rep)
	}
}

// TestTidyLetsSealsThrough: what goes at a time goes in several steps, between
// which others get their turn.
func TestTidyLetsSealsThrough(t *testing.T) {
	f := newFixture(t, nil)
	s := f.create(Spec{})
	o := mustOpen(t, s)
	for i := range 25 {
		check(t, o.put(Workspace, "a", fmt.Sprint(i)))
		o.mustSeal(t, "")
	}
	live := o.content(t, Workspace)
	done, err := o.Tidy(ctx, TidyPolicy{Age: -time.Hour, KeepLast: 3, AtOnce: 20, Hold: 8})
	check(t, err)
	if len(done.Snapshots) != 20 || done.Merged != 3 {
		t.Errorf("in three steps: %+v", done)
	}
	if got := o.content(t, Workspace); got != live {
		t.Errorf("the live view is %q, was %q", got, live)
	}
	if h, err := s.History(); err != nil || len(h) != 5 {
		t.Errorf("history of %d, %v", len(h), err)
	}
}
