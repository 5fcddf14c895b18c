package snapshots

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// Rollback makes an older (or, after an earlier rollback, a newer) snapshot
// what the session shows. Files that are on both sides change under those who
// have them open, as if they had been overwritten; others are as unlinked. What
// the session was until now is sealed first, and can be returned to.
//
// The steps: what was changed is sealed; the records of layers that are not in
// memory are read; the switch is planned, the next active layer prepared and the
// new manifest staged, while programs go on; admission stops; the manifest is
// renamed, which is the moment it happened; the trees switch; admission goes on;
// the views are told what is no longer true, and Rollback returns when they
// were.
func (l *Live) Rollback(ctx context.Context, r Rollback) (RolledBack, error) {
	if err := l.acquire(ctx); err != nil {
		return RolledBack{}, err
	}
	defer l.releaseSem()
	out, err := l.rollback(ctx, r)
	if err != nil {
		return out, fmt.Errorf("roll session %s back to snapshot %d: %w", l.held.Name(), r.To, err)
	}
	return out, nil
}

func (l *Live) rollback(ctx context.Context, r Rollback) (out RolledBack, err error) {
	if err := l.held.store.checkRoom(); err != nil {
		return out, err
	}
	if out.To, err = l.held.snapshot(r.To); err != nil {
		return out, err
	}
	// What is changed up to here is sealed, and the switch planned, while
	// programs go on. Where they change something in between, however often it
	// is tried, the switch itself has to look at all there is.
	for try := 0; ; try++ {
		if l.dirty() {
			if out.Before, err = l.seal(SealOptions{Cause: beforeRollback(out.To)}); err != nil {
				return out, err
			}
		}
		if err := l.trySwitch(ctx, &out, try == rollbackTries); !errors.Is(err, errDirty) {
			return out, err
		}
	}
}

// rollbackTries is how often a switch is planned anew.
const rollbackTries = 3

// errDirty: something changed since the switch was planned.
var errDirty = errors.New("changed since")

func beforeRollback(to Snapshot) Cause {
	return Cause{Kind: CauseBefore, Text: "rollback to " + refOf(to)}
}

// trySwitch does all that follows the first seal; unless it is the last try, it
// does nothing and fails with errDirty where programs changed something since.
func (l *Live) trySwitch(ctx context.Context, out *RolledBack, last bool) error {
	m := l.held.man.Load().clone()
	number, next := m.Next, m.Next+1
	stacks := make([]overlay.Stack, len(m.Trees))
	plans := make([]*overlay.Plan, len(m.Trees))
	for i, t := range l.trees {
		stacks[i] = overlay.Stack{Sealed: out.To.Stacks[t.Name()].Sealed}
		if err := t.Load(stacks[i]); err != nil {
			return err
		}
		stacks[i].Active = next
		m.Trees[i].Stack = stacks[i]
		plans[i] = t.PlanSwitch(stacks[i])
	}
	m.unretire()
	if err := l.prepare(next, true); err != nil {
		return err
	}
	m.Next = next + 1
	m.Last = &lastRecord{Number: number, Cause: rollbackCause(out.To), Time: l.held.store.now().UTC()}
	if last := l.held.Last(); last.Number != out.Before.Number {
		out.Before = last
	}
	var began time.Time
	dirty := false
	err := l.switchTo(m, byItself, nil, func() error {
		began = time.Now()
		if dirty = l.dirty(); !dirty {
			return nil
		}
		if !last {
			return errDirty
		}
		out.Before = l.unsealed(beforeRollback(out.To))
		return appendHistory(l.fs(), l.held.dir, historyLine{Snapshot: out.Before}, true)
	}, func(q *quiesced) error { return switchAll(q.rest, stacks, plans...) })
	if err != nil {
		return err
	}
	out.Switch = time.Since(began)
	if out.Invalidate, err = l.tellViews(ctx); err != nil {
		return err
	}
	out.Now = m.last()
	out.Now.Changed = 0
	if err := appendHistory(l.fs(), l.held.dir, historyLine{Snapshot: out.Now}, true); err != nil {
		return err
	}
	if err := l.fs().Fsync(l.held.dir); err != nil {
		return fmt.Errorf("sync the session's directory: %w", err)
	}
	if dirty {
		return l.recount(&out.Before)
	}
	// The active layer, which held nothing, has no use any more.
	return l.dropEmpty(out.Before, next)
}

// tellViews waits until all views were told what a switch made untrue.
func (l *Live) tellViews(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	for _, t := range l.trees {
		if err := t.Flush(ctx); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

// unretire takes out of the records of retired layers those that a stack has
// again.
func (m *manifest) unretire() {
	for i, r := range m.Retired {
		left := make(map[string][]overlay.Range, len(r.Layers))
		for tree, layers := range r.Layers {
			left[tree] = layers
		}
		for _, t := range m.Trees {
			if rest := without(left[t.Name], t.Stack.Sealed); len(rest) > 0 {
				left[t.Name] = rest
			} else {
				delete(left, t.Name)
			}
		}
		m.Retired[i].Layers = left
	}
}

// unsealed is the session as it is, as the snapshot that a seal would make.
func (l *Live) unsealed(c Cause) Snapshot {
	m := l.held.man.Load()
	s := Snapshot{
		Number: m.active(), Cause: c, Time: l.held.store.now().UTC(), Changed: Unknown,
		Processes: l.acts.take(), Stacks: map[string]overlay.Stack{},
	}
	for _, t := range m.Trees {
		s.Stacks[t.Name] = overlay.Stack{Sealed: addLayer(t.Stack.Sealed, m.active())}
	}
	return s
}

// recount adds to the history what a snapshot changed whose line was written in
// haste.
func (l *Live) recount(s *Snapshot) error {
	l.count(s, s.Number, nil)
	if s.Changed == Unknown {
		return nil
	}
	return appendHistory(l.fs(), l.held.dir, historyLine{Snapshot: *s, Counted: true}, false)
}

// dropEmpty removes the layer that was active and empty before a switch. GC
// would do so too.
func (l *Live) dropEmpty(before Snapshot, next overlay.LayerID) error {
	for n := before.Number + 1; n < next; n++ {
		for _, t := range l.trees {
			have, err := names(l.fs(), l.held.dir, filepath.Join(dirTrees, t.Name(), dirLayers, layerDir(n), layerTree))
			if errors.Is(err, unix.ENOENT) || err == nil && len(have) > 0 {
				continue
			}
			if err == nil {
				err = l.removeLayer(t.Name(), n)
			}
			if err != nil {
				return fmt.Errorf("remove the empty layer %d: %w", n, err)
			}
		}
	}
	return nil
}

func rollbackCause(to Snapshot) Cause { return Cause{Kind: CauseRollback, Text: refOf(to)} }

// refOf is how a person refers to a snapshot.
func refOf(s Snapshot) string {
	if s.Name != "" {
		return s.Name
	}
	return strconv.Itoa(int(s.Number))
}
