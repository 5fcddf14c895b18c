package snapshots

import (
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
	var mounted overlay.LayerID
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
			mounted = snap.Number
		}
		return snap
	}
	tidy := func(want int) {
		t.Helper()
		done, err := o.Tidy(ctx, policy, []overlay.LayerID{mounted})
		check(t, err)
		if len(done.Snapshots) != want {
			t.Errorf("%d snapshots are forgotten, want %d: %v", len(done.Snapshots), want, done.Snapshots)
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
	if after.Exclusive > before.Exclusive*2/3 {
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
