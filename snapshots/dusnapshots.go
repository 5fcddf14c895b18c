package snapshots

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// SnapshotUsage is what a snapshot occupies, in allocated bytes.
type SnapshotUsage struct {
	Snapshot Snapshot
	// Exclusive bytes are in layers that only this snapshot has: forgetting it
	// frees them. Shared bytes are in layers that other snapshots, the session
	// as it is now, what was discarded, or a fork has as well.
	Exclusive, Shared int64
}

// DuSnapshots measures the snapshots of a session, the oldest first.
func (s *Store) DuSnapshots(ctx context.Context, sess *Session) ([]SnapshotUsage, error) {
	out, err := s.duSnapshots(ctx, sess)
	if err != nil {
		return nil, fmt.Errorf("measure the snapshots of session %s: %w", sess.Name(), err)
	}
	return out, nil
}

func (s *Store) duSnapshots(ctx context.Context, sess *Session) ([]SnapshotUsage, error) {
	history, err := sess.History()
	if err != nil {
		return nil, err
	}
	shared, err := s.allShared()
	if err != nil {
		return nil, err
	}
	m := sess.man.Load()
	out := make([]SnapshotUsage, len(history))
	for i, snap := range history {
		out[i].Snapshot = snap
	}
	for _, t := range m.Trees {
		w, err := s.weigh(ctx, sess, m, t.Name)
		if err != nil {
			return nil, err
		}
		w.use(addLayer(t.Stack.Sealed, t.Stack.Active))
		w.use(shared[sess.id][t.Name])
		for _, r := range m.Retired {
			if r.Trash != "" {
				w.use(r.Layers[t.Name])
			}
		}
		for _, snap := range history {
			w.use(snap.Stacks[t.Name].Sealed)
		}
		w.sum(m.own(minToMax))
		for i, snap := range history {
			all, alone := w.of(snap.Stacks[t.Name].Sealed)
			out[i].Exclusive += alone
			out[i].Shared += all - alone
		}
	}
	return out, nil
}

var minToMax = []overlay.Range{{From: minLayer, To: -1}, {From: 1, To: 1<<31 - 1}}

// weights are the sizes of a tree's layers and how many have each.
type weights struct {
	layers []overlay.LayerID // sorted
	bytes  []int64
	users  []int // as differences from layer to layer, until sum
	// all and alone are sums up to each layer: of all, and of those with one
	// user.
	all, alone []int64
}

// weigh measures the layers of a tree, those shared with other sessions
// included.
func (s *Store) weigh(ctx context.Context, sess *Session, m *manifest, tree string) (*weights, error) {
	w := &weights{}
	size := map[overlay.LayerID]int64{}
	add := func(fd int, among func([]overlay.Range) []overlay.Range) error {
		defer s.fs.Close(fd)
		for _, n := range layersIn(s.fs, fd) {
			if len(among([]overlay.Range{{From: n, To: n}})) == 0 {
				continue
			}
			meter := &meter{ctx: ctx, fs: s.fs, links: map[uint64]*linked{}}
			if err := meter.walk(fd, layerDir(n)); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
			sum := meter.usage.Exclusive
			for _, l := range meter.links {
				sum += l.bytes
			}
			size[n] = sum
		}
		return nil
	}
	dir, err := sess.openDir()
	if err != nil {
		return nil, err
	}
	defer s.fs.Close(dir)
	fd, err := openDir(s.fs, dir, filepath.Join(dirTrees, tree, dirLayers))
	if err == nil {
		err = add(fd, m.own)
	}
	for i, o := range m.Origins {
		if err != nil {
			break
		}
		if fd, err = s.openLayersToRead(o.Session, tree); err == nil {
			err = add(fd, func(r []overlay.Range) []overlay.Range { return m.shared(i, r) })
		}
	}
	if err != nil {
		return nil, fmt.Errorf("tree %q: %w", tree, err)
	}
	for n := range size {
		w.layers = append(w.layers, n)
	}
	slices.Sort(w.layers)
	for _, n := range w.layers {
		w.bytes = append(w.bytes, size[n])
	}
	w.users = make([]int, len(w.layers)+1)
	return w, nil
}

// openLayersToRead is openLayers with a descriptor that lists.
func (s *Store) openLayersToRead(id, tree string) (int, error) {
	fd, err := s.openLayers(id, tree)
	if err != nil {
		return -1, err
	}
	defer s.fs.Close(fd)
	return openDir(s.fs, fd, ".")
}

// span is where the layers of a range lie in the list.
func (w *weights) span(r overlay.Range) (from, to int) {
	from, _ = slices.BinarySearch(w.layers, r.From)
	to, found := slices.BinarySearch(w.layers, r.To)
	if found {
		to++
	}
	return from, to
}

// use counts one more that has the layers.
func (w *weights) use(ranges []overlay.Range) {
	for _, r := range ranges {
		from, to := w.span(r)
		w.users[from]++
		w.users[to]--
	}
}

// sum ends the counting. Layers that are not among own are another session's,
// and nobody's alone.
func (w *weights) sum(own []overlay.Range) {
	w.all, w.alone = make([]int64, len(w.layers)+1), make([]int64, len(w.layers)+1)
	users := 0
	for i, n := range w.layers {
		users += w.users[i]
		w.all[i+1], w.alone[i+1] = w.all[i]+w.bytes[i], w.alone[i]
		if users == 1 && contains(own, n) {
			w.alone[i+1] += w.bytes[i]
		}
	}
}

// of adds up layers: all of them, and those that one alone has.
func (w *weights) of(ranges []overlay.Range) (all, alone int64) {
	for _, r := range ranges {
		from, to := w.span(r)
		all += w.all[to] - w.all[from]
		alone += w.alone[to] - w.alone[from]
	}
	return all, alone
}
