package snapshots

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// Prune says what [Live.Prune] forgets: every snapshot that none of the fields
// keeps. The latest is always kept, and so are those that views show.
type Prune struct {
	// KeepLast snapshots, counted from the latest.
	KeepLast int `json:"keep_last,omitempty"`
	// KeepNamed keeps those that have a name.
	KeepNamed bool `json:"keep_named,omitempty"`
	// Before keeps what was made then or later; zero keeps nothing for its age.
	Before time.Time `json:"before,omitzero"`
	// Keep are further snapshots to keep.
	Keep []overlay.LayerID `json:"keep,omitempty"`
	// Only these snapshots go, unless it is nil; the other fields then count
	// for nothing, and a name given meanwhile keeps. What a commit retired then
	// stays known as such.
	Only []overlay.LayerID `json:"only,omitempty"`
	// DryRun only reports which snapshots would go.
	DryRun bool `json:"dry_run,omitempty"`
}

// Pruned tells what a [Live.Prune] did.
type Pruned struct {
	Snapshots []overlay.LayerID `json:"snapshots"` // forgotten
	Merged    int               `json:"merged"`    // layers that others were put together in
	Layers    int               `json:"layers"`    // layers removed
	Bytes     int64             `json:"bytes"`     // allocated bytes of those
}

// Prune forgets snapshots and frees what only they needed. Layers between the
// snapshots that are kept are merged; what these show stays the same.
//
// The steps: merged layers are written, which nothing names yet; the manifest
// that has them in the live stack, and says which layers are to go, is renamed;
// the history without what goes,
// and with the merged layers, is renamed, which is the moment it happened; and
// layers that nothing names any more are removed, which the next GC completes
// where a crash interrupts it. At each of these points every snapshot that is
// kept is whole.
func (l *Live) Prune(ctx context.Context, p Prune) (Pruned, error) {
	if err := l.acquire(ctx); err != nil {
		return Pruned{}, err
	}
	defer l.releaseSem()
	var out Pruned
	// Nobody forks meanwhile, so that what forks need is known.
	err := l.held.store.locked(func() (err error) {
		out, err = l.prune(ctx, p)
		return err
	})
	if err != nil {
		return out, fmt.Errorf("prune session %s: %w", l.held.Name(), err)
	}
	return out, nil
}

func (l *Live) prune(ctx context.Context, p Prune) (out Pruned, err error) {
	store := l.held.store
	shared, err := store.allShared()
	if err != nil {
		return out, err
	}
	l.viewing.Lock() // whoever looks at a snapshot from here on sees what is left
	defer l.viewing.Unlock()
	m := l.held.man.Load()
	discards, err := store.discards(m.Retired)
	if err != nil {
		return out, err
	}
	all, err := readHistory(store.fs, l.held.dir)
	if err != nil {
		return out, fmt.Errorf("%s: %w", historyFile, err)
	}
	looked := l.looked()
	var kept []Snapshot
	for i, snap := range all {
		if snap.Number > m.last().Number || p.keeps(snap, len(all)-i, m) || looked[snap.Number] {
			kept = append(kept, m.withReplaced(snap))
		} else {
			out.Snapshots = append(out.Snapshots, snap.Number)
		}
	}
	if p.DryRun || ctx.Err() != nil {
		return out, context.Cause(ctx)
	}
	if err := store.checkRoom(); err != nil {
		return out, err
	}
	if out.Merged, err = l.merge(kept); err != nil {
		return out, err
	}
	if err := l.dropUnneeded(kept); err != nil {
		return out, err
	}
	if err := l.forget(kept); err != nil {
		return out, err
	}
	return out, l.free(shared[l.held.id], discards, kept, p.Only != nil, &out)
}

// dropUnneeded notes which layers only forgotten snapshots need.
func (l *Live) dropUnneeded(kept []Snapshot) error {
	needs := layerSet{}
	for _, snap := range kept {
		needs.addSnapshot(snap)
	}
	drop := map[string][]overlay.Range{}
	for _, t := range l.held.man.Load().Trees {
		fd, err := openDir(l.fs(), l.held.dir, filepath.Join(dirTrees, t.Name, dirLayers))
		if err != nil {
			return fmt.Errorf("tree %q: %w", t.Name, err)
		}
		var all []overlay.Range
		for _, n := range layersIn(l.fs(), fd) {
			all = append(all, overlay.Range{From: n, To: n})
		}
		_ = l.fs().Close(fd)
		all = without(without(join(all), needs[t.Name]), addLayer(t.Stack.Sealed, t.Stack.Active))
		if len(all) > 0 {
			drop[t.Name] = all
		}
	}
	return l.held.update(func(m *manifest) { m.Dropping = drop })
}

// keeps tells whether a snapshot stays; it is the nth from the end.
func (p *Prune) keeps(s Snapshot, nth int, m *manifest) bool {
	if p.Only != nil {
		_, goes := slices.BinarySearch(p.Only, s.Number)
		return !goes || s.Name != "" || m.Last != nil && s.Number == m.Last.Number
	}
	return nth <= p.KeepLast || p.KeepNamed && s.Name != "" || !p.Before.IsZero() && !s.Time.Before(p.Before) ||
		m.Last != nil && s.Number == m.Last.Number || slices.Contains(p.Keep, s.Number)
}

// merge puts the layers between the kept snapshots of the live line together,
// in every tree, and says how many layers it made. kept have the new stacks
// then.
func (l *Live) merge(kept []Snapshot) (int, error) {
	made := 0
	m := l.held.man.Load().clone()
	for i, t := range l.trees {
		old := overlay.Stack{}
		live := m.Trees[i].Stack.Sealed
		for _, snap := range kept {
			s := snap.Stacks[t.Name()]
			if len(without(s.Sealed, live)) > 0 {
				continue // not in the live line
			}
			gap := without(without(s.Sealed, old.Sealed), under(s.Sealed))
			old = s
			if layers(gap) < 2 {
				continue
			}
			n := overlay.Merged - overlay.LayerID(m.Merges)
			m.Merges++
			if err := t.Load(s); err != nil {
				return made, err
			}
			// What a crash left of an earlier attempt.
			if err := l.removeLayer(t.Name(), n); err != nil {
				return made, err
			}
			if err := t.Flatten(s, n, overlay.Keep{}); err != nil {
				return made, err
			}
			if err := l.madeLayer(t.Name(), n); err != nil {
				return made, err
			}
			made++
			live = replacePrefix(live, s.Sealed, n)
			m.Trees[i].Stack.Sealed = live
			for _, other := range kept {
				st := other.Stacks[t.Name()]
				if len(without(s.Sealed, st.Sealed)) == 0 {
					other.Stacks[t.Name()] = overlay.Stack{Sealed: replacePrefix(st.Sealed, s.Sealed, n)}
				}
			}
			old = overlay.Stack{Sealed: replacePrefix(s.Sealed, s.Sealed, n)}
		}
	}
	if made == 0 {
		return 0, nil
	}
	if err := l.fs().Syncfs(l.held.dir); err != nil {
		return made, fmt.Errorf("sync the merged layers: %w", err)
	}
	return made, l.restack(m)
}

// layers counts the layers of ranges.
func layers(ranges []overlay.Range) int {
	n := 0
	for _, r := range ranges {
		n += int(r.To-r.From) + 1
	}
	return n
}

// replacePrefix is stack with layer n in the place of those of prefix, but for
// layers of replaced files, which stay beneath.
func replacePrefix(stack, prefix []overlay.Range, n overlay.LayerID) []overlay.Range {
	rest := without(stack, without(prefix, under(prefix)))
	return union(rest, []overlay.Range{{From: n, To: n}})
}

// forget makes kept the history.
func (l *Live) forget(kept []Snapshot) error {
	var b bytes.Buffer
	for _, snap := range kept {
		line, err := json.Marshal(historyLine{Version: manifestVersion, Snapshot: snap})
		if err != nil {
			return fmt.Errorf("%s: %w", historyFile, err)
		}
		b.Write(append(line, '\n'))
	}
	return replaceFile(l.fs(), l.held.dir, historyFile, b.Bytes())
}

// free removes the layers that nothing needs any more.
func (l *Live) free(shared, discards layerSet, kept []Snapshot, retirees bool, out *Pruned) error {
	wanted := layerSet{}
	for _, snap := range kept {
		wanted.addSnapshot(snap)
	}
	// Stacks in the history name their layers of replaced files by now, and
	// what a commit retired has no use but to show older snapshots.
	err := l.held.update(func(m *manifest) {
		m.Replaced = nil
		var stay []retired
		for _, r := range m.Retired {
			if r.Trash == "" {
				r.Layers = wanted.within(r.Layers)
			}
			if r.Trash != "" || retirees && len(r.Layers) > 0 {
				stay = append(stay, r)
			}
		}
		m.Retired = stay
	})
	if err != nil {
		return err
	}
	m := l.held.man.Load()
	needs, err := l.held.store.needs(m, l.held.dir)
	if err != nil {
		return err
	}
	// What others still need, or what is open without a name, goes with a later
	// GC.
	later := layerSet{}
	for i, t := range m.Trees {
		later.add(t.Name, without(shared[t.Name], needs[t.Name]))
		later.add(t.Name, without(m.own(discards[t.Name]), needs[t.Name]))
		for _, v := range l.trees[i].Shown() {
			later.add(t.Name, without(m.own(v), needs[t.Name]))
		}
		for _, n := range l.trees[i].Pinned() {
			later.add(t.Name, without([]overlay.Range{{From: n, To: n}}, needs[t.Name]))
		}
		keep := union(union(needs[t.Name], shared[t.Name]), []overlay.Range{{From: m.active(), To: m.active()}})
		keep = union(keep, later[t.Name])
		for _, v := range l.trees[i].Shown() {
			keep = union(keep, v)
		}
		if err := forgetLayers(l.trees[i], keep, kept); err != nil {
			return err
		}
		if err := l.freeTree(t.Name, keep, out); err != nil {
			return fmt.Errorf("tree %q: %w", t.Name, err)
		}
	}
	return l.held.update(func(m *manifest) { m.Dropping = later })
}

// forgetLayers has a tree forget all layers but those of keep.
func forgetLayers(t *overlay.Tree, keep []overlay.Range, kept []Snapshot) error {
	var stacks []overlay.Stack
	for _, snap := range kept {
		s := snap.Stacks[t.Name()]
		// A stack of nothing but what it always had needs no second look.
		if len(s.Sealed) > 0 && s.Sealed[0].From < 0 {
			stacks = append(stacks, s)
		}
	}
	return t.Forget(func(n overlay.LayerID) bool { return contains(keep, n) }, stacks)
}

func (l *Live) freeTree(tree string, keep []overlay.Range, out *Pruned) error {
	rel := filepath.Join(dirTrees, tree, dirLayers)
	fd, err := openDir(l.fs(), l.held.dir, rel)
	if err != nil {
		return err
	}
	defer l.fs().Close(fd)
	for _, n := range layersIn(l.fs(), fd) {
		if contains(keep, n) {
			continue
		}
		u, err := l.held.store.measure(context.Background(), filepath.Join(l.held.rel(), rel, layerDir(n)))
		if err == nil {
			out.Bytes += u.Exclusive
		}
		if err := l.countLayer(tree, n, -1); err != nil {
			return err
		}
		if err := hostfs.RemoveAll(l.fs(), fd, layerDir(n)); err != nil {
			return fmt.Errorf("remove layer %d: %w", n, err)
		}
		out.Layers++
	}
	return nil
}
