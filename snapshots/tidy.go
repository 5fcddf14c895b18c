package snapshots

import (
	"context"
	"slices"
	"time"

	"github.com/galleyfs/galley/overlay"
)

// TidyPolicy says which snapshots [Live.Tidy] forgets: old ones that have no
// name. Those with a name always stay, and so does what they show.
type TidyPolicy struct {
	// Age is from when on a snapshot is old, unless it is one of the latest
	// KeepLast.
	Age      time.Duration
	KeepLast int
	// Most is how many snapshots without a name there may be at all.
	Most int
	// Least is how many must have to go before any does, and AtOnce how many
	// go at a time: merging copies content. Seals wait for no more than Hold of
	// them; 0 is AtOnce.
	Least, AtOnce, Hold int
}

// DefaultTidy is the policy of every owner: docs/history.md tells people of it.
var DefaultTidy = TidyPolicy{Age: DefaultRetention, KeepLast: 100, Most: 10_000, Least: 100, AtOnce: 1000, Hold: 200}

// Tidy forgets old snapshots without a name and merges their layers, so that a
// session that goes on for ever does not grow for ever. What views show stays,
// and so does the latest snapshot of a line that a rollback left: nothing else
// may have what is in it.
func (l *Live) Tidy(ctx context.Context, policy TidyPolicy) (Pruned, error) {
	if int(l.held.man.Load().Next) <= policy.KeepLast+policy.Least && int(l.held.man.Load().Next) <= policy.Most {
		return Pruned{}, nil // there cannot be as many
	}
	history, err := l.held.History()
	if err != nil {
		return Pruned{}, err
	}
	before := l.held.store.now().Add(-policy.Age)
	unnamed := 0
	stay := l.lineEnds(history)
	l.viewing.Lock()
	for n := range l.looked() {
		stay[n] = true
	}
	l.viewing.Unlock()
	for _, s := range history {
		if s.Name == "" && !stay[s.Number] {
			unnamed++
		}
	}
	var gone []overlay.LayerID
	for i, s := range history {
		tooMany := unnamed-len(gone) > policy.Most-policy.Least
		old := s.Time.Before(before) && len(history)-i > policy.KeepLast
		if s.Name == "" && s.Number != l.held.Last().Number && !stay[s.Number] &&
			(old || unnamed > policy.Most && tooMany) && len(gone) < policy.AtOnce {
			gone = append(gone, s.Number)
		}
	}
	if len(gone) < policy.Least {
		return Pruned{}, nil
	}
	var out Pruned
	hold := policy.Hold
	if hold == 0 {
		hold = policy.AtOnce
	}
	// Whoever waits meanwhile gets his turn after each.
	for some := range slices.Chunk(gone, hold) {
		done, err := l.Prune(ctx, Prune{Only: some})
		out.Snapshots = append(out.Snapshots, done.Snapshots...)
		out.Merged += done.Merged
		out.Layers += done.Layers
		out.Bytes += done.Bytes
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

// lineEnds are the snapshots that have layers which were neither committed nor
// discarded, which the live view has not, and which no other snapshot has all
// of: the latest of the lines that rollbacks left.
func (l *Live) lineEnds(history []Snapshot) map[overlay.LayerID]bool {
	m := l.held.man.Load()
	known := layerSet{}
	for _, t := range m.Trees {
		known.add(t.Name, t.Stack.Sealed)
	}
	for _, r := range m.Retired {
		for tree, layers := range r.Layers {
			known.add(tree, layers)
		}
	}
	ends := map[overlay.LayerID]bool{}
	for i, s := range history {
		covered := known.has(s)
		// Mostly it is the next one that has them all.
		for j := i + 1; j < len(history) && !covered; j++ {
			covered = builtOn(history[j], s)
		}
		// A rollback may have gone back to what is in an earlier one.
		for j := 0; j < i && !covered; j++ {
			covered = builtOn(history[j], s) && !builtOn(s, history[j])
		}
		if !covered {
			ends[s.Number] = true
		}
	}
	return ends
}

// builtOn is [Snapshot.BuiltOn] without the layers of replaced files.
func builtOn(s, other Snapshot) bool {
	set := layerSet{}
	set.addSnapshot(s)
	return set.has(other)
}

// has tells whether all layers of a snapshot are in the set, but for those of
// replaced files.
func (s layerSet) has(snap Snapshot) bool {
	for tree, stack := range snap.Stacks {
		if len(without(without(stack.Sealed, under(stack.Sealed)), s[tree])) > 0 {
			return false
		}
	}
	return true
}
