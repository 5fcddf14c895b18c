package snapshots

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/galleyfs/galley/overlay"
)

func TestPruneMerges(t *testing.T) {
	f := newFixture(t, nil)
	write(t, filepath.Join(f.base, "big"), string(make([]byte, 100<<10)))
	s := f.create(Spec{})
	o := mustOpen(t, s)
	views := map[overlay.LayerID]string{}
	var named []overlay.LayerID
	for i := range 30 {
		check(t, o.put(Workspace, "a", fmt.Sprint(i)))
		check(t, o.put(Workspace, fmt.Sprintf("f%d", i%7), fmt.Sprint(i)))
		if i%5 == 4 {
			check(t, o.remove(Workspace, fmt.Sprintf("f%d", i%7)))
		}
		if i == 12 {
			// Metadata alone: content stays where it was, in the base.
			n, _, err := o.faces[Workspace].Walk("big")
			check(t, err)
			mode := uint32(0o600)
			_, err = o.faces[Workspace].Setattr(n, overlay.SetAttr{Mode: &mode})
			check(t, err)
			o.faces[Workspace].Forget(n, 1)
		}
		name := ""
		if i == 3 || i == 17 {
			name = fmt.Sprintf("n%d", i)
		}
		snap := o.mustSeal(t, name)
		if name != "" {
			named = append(named, snap.Number)
			views[snap.Number] = sealedContent(t, s, snap.Number, Workspace)
		}
		if i == 20 {
			back := o.mustRollback(t, 10) // the rest of the line goes aside
			check(t, o.put(Workspace, "branch", "x"))
			b := o.mustSeal(t, "branch")
			views[b.Number] = sealedContent(t, s, b.Number, Workspace)
			o.mustRollback(t, back.Before.Number)
		}
	}
	check(t, o.put(Workspace, "open", "not sealed"))
	live := o.content(t, Workspace)
	dry, err := o.Prune(ctx, Prune{KeepLast: 2, KeepNamed: true, DryRun: true})
	check(t, err)
	done, err := o.Prune(ctx, Prune{KeepLast: 2, KeepNamed: true})
	check(t, err)
	if len(dry.Snapshots) != len(done.Snapshots) || done.Merged < 3 || done.Layers < 20 {
		t.Errorf("pruned %+v", done)
	}
	verify := func(when string) {
		t.Helper()
		for n, want := range views {
			if got := sealedContent(t, s, n, Workspace); got != want {
				t.Errorf("%s: snapshot %d shows %.200q, want %.200q", when, n, got, want)
			}
		}
	}
	if got := o.content(t, Workspace); got != live {
		t.Errorf("the live view is %.300q, was %.300q", got, live)
	}
	verify("pruned")
	if h, err := s.History(); err != nil || len(h) != 5 {
		t.Errorf("history of %d, %v", len(h), err)
	}
	check(t, o.put(Workspace, "big", "written")) // copies up what was merged
	o.mustRollback(t, named[1])
	if got := o.content(t, Workspace); got != views[named[1]] {
		t.Errorf("rolled back to %.200q, want %.200q", got, views[named[1]])
	}
	o.mustRollback(t, 0)
	check(t, o.close())
	verify("closed")
	check(t, os.Remove(filepath.Join(s.StateDir(Workspace), "index")))
	verify("without an index")
	o = mustOpen(t, s)
	// Again, down to nothing but the names.
	_, err = o.Prune(ctx, Prune{KeepNamed: true})
	check(t, err)
	verify("pruned again")
	check(t, o.close())
	rep, err := f.store.GC(ctx, GCOptions{Retention: -1})
	check(t, err)
	if len(rep.Kept)+len(rep.Orphans)+rep.Layers != 0 {
		t.Errorf("gc: %+v", rep)
	}
	verify("collected")
}

func TestPruneLeavesForks(t *testing.T) {
	f := newFixture(t, nil)
	s := f.create(Spec{})
	o := mustOpen(t, s)
	for i := range 8 {
		check(t, o.put(Workspace, "a", fmt.Sprint(i)))
		o.mustSeal(t, "")
	}
	forked, err := f.store.Fork(ctx, s, Fork{At: 4})
	check(t, err)
	_, err = o.Prune(ctx, Prune{})
	check(t, err)
	if got := sealedContent(t, forked, 4, Workspace); got != "a=3 kept=base sub/file=base" {
		t.Errorf("the fork shows %q", got)
	}
	if got := o.content(t, Workspace); got != "a=7 kept=base sub/file=base" {
		t.Errorf("the session shows %q", got)
	}
	// A fork of what was merged shares the merged layer.
	third, err := f.store.Fork(ctx, s, Fork{At: 8})
	check(t, err)
	p := mustOpen(t, third)
	if got := p.content(t, Workspace); got != "a=7 kept=base sub/file=base" {
		t.Errorf("the second fork shows %q", got)
	}
	check(t, p.put(Workspace, "b", "1"))
	p.mustSeal(t, "")
	p.mustSeal(t, "named")
	_, err = p.Prune(ctx, Prune{})
	check(t, err)
	if got := p.content(t, Workspace); got != "a=7 b=1 kept=base sub/file=base" {
		t.Errorf("the pruned fork shows %q", got)
	}
	if got := sealedContent(t, s, 8, Workspace); got != "a=7 kept=base sub/file=base" {
		t.Errorf("the session's snapshot shows %q", got)
	}
}
