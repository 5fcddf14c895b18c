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
	// go at a time: merging copies content.
	Least, AtOnce int
}

// DefaultTidy is the policy of every owner: docs/history.md tells people of it.
var DefaultTidy = TidyPolicy{Age: DefaultRetention, KeepLast: 100, Most: 10_000, Least: 100, AtOnce: 1000}

// Tidy forgets old snapshots without a name and merges their layers, so that a
// session that goes on for ever does not grow for ever. keep are snapshots that
// stay in any case, such as those that are mounted.
func (l *Live) Tidy(ctx context.Context, policy TidyPolicy, keep []overlay.LayerID) (Pruned, error) {
	if int(l.held.man.Load().Next) <= policy.KeepLast+policy.Least && int(l.held.man.Load().Next) <= policy.Most {
		return Pruned{}, nil // there cannot be as many
	}
	history, err := l.held.History()
	if err != nil {
		return Pruned{}, err
	}
	before := l.held.store.now().Add(-policy.Age)
	unnamed := 0
	for _, s := range history {
		if s.Name == "" {
			unnamed++
		}
	}
	var gone []overlay.LayerID
	for i, s := range history {
		tooMany := unnamed-len(gone) > policy.Most-policy.Least
		old := s.Time.Before(before) && len(history)-i > policy.KeepLast
		if s.Name == "" && s.Number != l.held.Last().Number && !slices.Contains(keep, s.Number) &&
			(old || unnamed > policy.Most && tooMany) && len(gone) < policy.AtOnce {
			gone = append(gone, s.Number)
		}
	}
	if len(gone) < policy.Least {
		return Pruned{}, nil
	}
	return l.Prune(ctx, Prune{Only: gone})
}
