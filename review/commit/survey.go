package commit

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/review"
)

// where is one place on an object's way, and the step that brought it there
// (-1: none, it starts there).
type where struct {
	loc
	step int
}

// survey finds out which steps have happened, from where every object is. It
// changes nothing.
func (x *executor) survey() error {
	x.gone = map[int]bool{}
	ways := make([][]where, len(x.objects))
	for i := range x.objects {
		for _, l := range x.objects[i].Start {
			ways[i] = append(ways[i], where{l, -1})
		}
	}
	for i := range x.steps {
		s := &x.steps[i]
		if s.Op == opMeta || s.Op == opLink {
			continue
		}
		ways[s.Obj] = append(ways[s.Obj], where{s.To, i})
		if s.Op == opSwap {
			ways[s.Old] = append(ways[s.Old], where{s.From, i})
		}
	}
	at := make([]int, len(x.objects)) // the last step that an object has made
	for i := range x.objects {
		found, err := x.locate(&x.objects[i], ways[i])
		if err != nil {
			return err
		}
		if found == nil {
			x.gone[i], at[i] = true, -1
			continue
		}
		at[i] = found.step
	}
	return x.decide(at)
}

// locate finds an object on its way, nil if it is nowhere on it.
func (x *executor) locate(o *object, way []where) (*where, error) {
	for i := len(way) - 1; i >= 0; i-- {
		var st unix.Statx_t
		err := x.pl.stat(way[i].loc, &st)
		if absent(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("examine %s: %w", x.pl.hostPath(x.trees, way[i].loc), err)
		}
		if now := factsOf(&st); o.sameNode(&now) {
			return &way[i], nil
		}
	}
	return nil, nil
}

// isAt reports whether an object is at a place.
func (x *executor) isAt(obj int, l loc) (bool, error) {
	w, err := x.locate(&x.objects[obj], []where{{l, -1}})
	return w != nil, err
}

// decide marks the steps that have happened. An object has made every step up
// to the one that brought it where it is.
func (x *executor) decide(at []int) error {
	for i := range x.steps {
		s := &x.steps[i]
		switch {
		case s.Op == opMeta:
		case s.Op == opLink:
			var err error
			if x.done[i], err = x.isAt(s.Obj, s.To); err != nil {
				return err
			}
		case s.Op == opMove && !x.gone[s.Obj]:
			x.done[i] = at[s.Obj] >= i
		case s.Op == opMove:
			// Gone: for what was to be removed that is as good as done; a
			// commit that lacks anything else cannot be finished, and to
			// take it back there is nothing to do.
			x.done[i] = false
		default:
			if err := x.decideSwap(i, at); err != nil {
				return err
			}
		}
	}
	return nil
}

func (x *executor) decideSwap(i int, at []int) error {
	s := &x.steps[i]
	newIn, oldOut := at[s.Obj] >= i, at[s.Old] >= i
	switch {
	case x.gone[s.Obj] && !oldOut:
		// What was staged is gone, and nothing tells that it was ever in
		// its place.
		return x.drift(&x.objects[s.Obj], &mismatch{"", review.DriftDeleted, "what was staged for it is gone"})
	case x.gone[s.Obj]:
		x.done[i] = true // the host removed it after it was put in place
	case x.gone[s.Old]:
		x.done[i] = newIn
	case newIn != oldOut:
		return x.drift(&x.objects[s.Obj], &mismatch{"", review.DriftReplaced, "it was exchanged only by half"})
	default:
		x.done[i] = newIn
	}
	return nil
}
