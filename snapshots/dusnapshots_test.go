package snapshots

import (
	"bytes"
	"testing"

	"github.com/galleyfs/galley/overlay"
)

// TestDu: what a fork and its session have in common is told from what each has
// alone, and so it is for snapshots.
func TestDu(t *testing.T) {
	f := newFixture(t, nil)
	s := f.create(Spec{})
	o := mustOpen(t, s)
	const kb = 1 << 10
	seal := func(file string, size int) Snapshot {
		check(t, o.put(Workspace, file, string(bytes.Repeat([]byte("x"), size))))
		return o.mustSeal(t, "")
	}
	seal("a", 400*kb)
	second := seal("b", 200*kb)
	third := seal("c", 100*kb)
	o.mustRollback(t, second.Number) // the third is set aside
	last := seal("d", 50*kb)
	near := func(what string, got, want int64) {
		t.Helper()
		// Directories and records come on top.
		if got < want || got > want+150*kb {
			t.Errorf("%s: %d KB, want %d and a little", what, got/kb, want/kb)
		}
	}
	u, err := f.store.Du(ctx, s)
	check(t, err)
	near("the session alone", u.Exclusive, 750*kb)
	near("the session shares", u.Shared, 0)
	sizes := func() map[overlay.LayerID]SnapshotUsage {
		t.Helper()
		all, err := f.store.DuSnapshots(ctx, s)
		check(t, err)
		out := map[overlay.LayerID]SnapshotUsage{}
		for _, u := range all {
			out[u.Snapshot.Number] = u
		}
		return out
	}
	by := sizes()
	near("the second alone", by[second.Number].Exclusive, 0)
	near("the second shares", by[second.Number].Shared, 600*kb)
	near("the third alone", by[third.Number].Exclusive, 100*kb)
	near("the third shares", by[third.Number].Shared, 600*kb)
	near("the last alone", by[last.Number].Exclusive, 0)

	fork, err := f.store.Fork(ctx, s, Fork{At: third.Number})
	check(t, err)
	u, err = f.store.Du(ctx, s)
	check(t, err)
	near("with a fork, the session alone", u.Exclusive, 50*kb)
	near("with a fork, the session shares", u.Shared, 700*kb)
	u, err = f.store.Du(ctx, fork)
	check(t, err)
	near("the fork alone", u.Exclusive, 0)
	near("the fork shares", u.Shared, 700*kb)
	near("with a fork, the third alone", sizes()[third.Number].Exclusive, 0)
	all, err := f.store.DuSnapshots(ctx, fork)
	check(t, err)
	near("the fork's first alone", all[0].Exclusive, 0)
	near("the fork's first shares", all[0].Shared, 700*kb)
}
