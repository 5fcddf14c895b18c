package snapshots

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// GC removes what is past its retention and what crashes left, and finishes
// removals and restores that a crash interrupted. It never removes a layer
// that holds work which was neither committed nor discarded: a directory that
// no record accounts for is reported in Kept unless it is empty.
func (s *Store) GC(ctx context.Context, opt GCOptions) (GCReport, error) {
	keep := opt.Retention
	if keep == 0 {
		keep = DefaultRetention
	}
	g := &collector{store: s, ctx: ctx, dry: opt.DryRun, before: s.now().Add(-max(keep, 0))}
	err := s.locked(g.run)
	return g.report, err
}

type collector struct {
	store  *Store
	ctx    context.Context
	dry    bool
	before time.Time // what was discarded earlier goes
	shared map[string]layerSet
	blind  error // why it is not known what forks share: then no layer goes
	report GCReport
}

func (g *collector) run() error {
	ids, err := names(g.store.fs, g.store.dir, dirSessions)
	if err != nil {
		return fmt.Errorf("state directory %q: %w", g.store.home, err)
	}
	if g.shared, g.blind = g.store.allShared(); g.blind != nil {
		g.kept("layers, which forks may share", g.blind)
	}
	referenced := map[string]bool{} // elements of the trash that a session names
	for _, id := range ids {
		if err := g.ctx.Err(); err != nil {
			return err
		}
		g.session(id, referenced)
	}
	trash, err := names(g.store.fs, g.store.dir, dirTrash)
	if err != nil {
		return fmt.Errorf("state directory %q: %w", g.store.home, err)
	}
	for _, id := range trash {
		if err := g.ctx.Err(); err != nil {
			return err
		}
		g.trash(id, referenced)
	}
	if err := g.imports(); err != nil {
		return err
	}
	return g.sockets()
}

func (g *collector) kept(what string, err error) {
	g.report.Kept = append(g.report.Kept, fmt.Sprintf("%s: %v", what, err))
}

// session collects in one entry of sessions/. Errors of one session do not
// keep the others from being collected; they are reported in Kept.
func (g *collector) session(id string, referenced map[string]bool) {
	rel := filepath.Join(dirSessions, id)
	if strings.HasPrefix(id, stagePrefix) {
		// Sessions are made under the lock that we hold: this one never
		// became one.
		g.orphan(rel)
		return
	}
	sess, err := g.store.load(id)
	if err != nil {
		g.kept(filepath.Join(g.store.home, rel), err)
		return
	}
	for _, r := range sess.man.Load().Retired {
		referenced[r.Trash] = true
	}
	h, err := sess.hold(0)
	if errors.Is(err, ErrBusy) {
		return // its owner is at work; another time
	}
	if err != nil {
		g.kept(filepath.Join(g.store.home, rel), err)
		return
	}
	defer h.release()
	if h.man.Load().Discarded != nil {
		if !g.dry {
			err = g.store.move(dirSessions, dirTrash, id)
		}
	} else {
		err = g.layers(h)
	}
	if err != nil {
		g.kept(filepath.Join(g.store.home, rel), err)
	}
}

// layers removes what no stack of a session needs.
func (g *collector) layers(h *held) error {
	if g.blind != nil {
		return nil
	}
	m := h.man.Load()
	history, err := readHistory(g.store.fs, h.dir)
	if err != nil {
		return fmt.Errorf("%s: %w", historyFile, err)
	}
	// Named snapshots outlast the retention, and so does what forks share.
	named, known := layerSet{}, layerSet{}
	for _, snap := range history {
		known.addSnapshot(snap)
		if snap.Name != "" {
			named.addSnapshot(snap)
		}
	}
	for _, r := range m.Replaced {
		for _, tree := range r.Trees {
			known.add(tree, []overlay.Range{{From: r.Layer, To: r.Layer}})
		}
	}
	for tree, ranges := range g.shared[h.id] {
		known.add(tree, ranges)
		named.add(tree, ranges)
	}
	var stay, gone []retired
	for _, r := range m.Retired {
		if g.expired(r) {
			gone = append(gone, r)
		} else {
			stay = append(stay, r)
		}
	}
	discards, err := g.store.discards(stay)
	if err != nil {
		return err
	}
	for tree, ranges := range discards {
		known.add(tree, ranges)
		named.add(tree, ranges)
	}
	for _, r := range gone {
		for tree, layers := range r.Layers {
			if err := g.retire(h, tree, without(layers, named[tree]), stay); err != nil {
				return err
			}
		}
	}
	if len(gone) > 0 && !g.dry {
		// Last, so that a crash in between only has the removal repeated.
		if err := h.update(func(m *manifest) { m.Retired, m.Used = stay, nil }); err != nil {
			return err
		}
	}
	for _, t := range m.Trees {
		if err := g.strays(h, m, t, known[t.Name]); err != nil {
			return err
		}
	}
	if len(m.Dropping) == 0 || g.dry {
		return nil
	}
	later := layerSet{}
	for tree, layers := range m.Dropping {
		if rest := without(layers, without(layers, known[tree])); len(rest) > 0 {
			later[tree] = rest
		}
	}
	return h.update(func(m *manifest) { m.Dropping, m.Used = later, nil })
}

// expired tells whether retired layers are due: past the retention, or of a
// discard whose element of the trash was purged.
func (g *collector) expired(r retired) bool {
	if !r.Time.After(g.before) {
		return true
	}
	if r.Trash == "" {
		return false
	}
	_, err := g.store.openTrash(r.Trash)
	return errors.Is(err, ErrNotFound)
}

// retire removes the retired layers of one tree that no other record needs.
func (g *collector) retire(h *held, tree string, layers []overlay.Range, stay []retired) error {
	for _, r := range stay {
		layers = without(layers, r.Layers[tree])
	}
	for _, t := range h.man.Load().Trees {
		if t.Name == tree {
			layers = without(layers, t.Stack.Sealed)
		}
	}
	have, err := names(g.store.fs, h.dir, filepath.Join(dirTrees, tree, dirLayers))
	if err != nil {
		return err
	}
	for _, name := range have {
		n, ok := layerNumber(name)
		if !ok || !contains(layers, n) {
			continue
		}
		g.report.Bytes += g.size(filepath.Join(h.rel(), dirTrees, tree, dirLayers, name))
		g.report.Layers++
		if g.dry {
			continue
		}
		if err := removeLayer(g.store.fs, h.dir, tree, n); err != nil {
			return fmt.Errorf("remove layer %d of tree %q: %w", n, tree, err)
		}
	}
	return nil
}

// strays looks for layers that no record accounts for: an empty one was
// prepared when a crash came, another is not touched.
func (g *collector) strays(h *held, m *manifest, t treeRecord, used []overlay.Range) error {
	rel := filepath.Join(dirTrees, t.Name, dirLayers)
	have, err := names(g.store.fs, h.dir, rel)
	if err != nil {
		return err
	}
	known := func(n overlay.LayerID) bool {
		if n == t.Stack.Active || n == m.Building || contains(t.Stack.Sealed, n) || contains(used, n) {
			return true
		}
		for _, r := range m.Retired {
			if contains(r.Layers[t.Name], n) {
				return true
			}
		}
		return false
	}
	for _, name := range have {
		if n, ok := layerNumber(name); ok && known(n) {
			continue
		}
		files, err := names(g.store.fs, h.dir, filepath.Join(rel, name, layerTree))
		// Those beneath the others are made of what is elsewhere, too.
		// What a prune was about to remove goes.
		if n, _ := layerNumber(name); err == nil && len(files) > 0 && n >= 0 && !contains(m.Dropping[t.Name], n) {
			err = errors.New("a layer that no record accounts for, and not empty")
		}
		if err != nil && err != unix.ENOENT {
			g.kept(filepath.Join(h.Dir(), rel, name), err)
			continue
		}
		g.orphan(filepath.Join(h.rel(), rel, name))
	}
	return nil
}

// trash collects one element of the trash.
func (g *collector) trash(id string, referenced map[string]bool) {
	path := filepath.Join(g.store.home, dirTrash, id)
	t, err := g.store.openTrash(id)
	if t != nil && t.man != nil && t.man.Purged {
		if len(g.shared[id]) == 0 && g.blind == nil {
			g.orphan(filepath.Join(dirTrash, id))
		}
		return
	}
	if err != nil {
		g.kept(path, err)
		return
	}
	switch {
	case t.Kind == TrashSession && t.man.Discarded == nil:
		if !g.dry {
			err = g.store.move(dirTrash, dirSessions, id)
		}
	case t.Kind == TrashPaths && !referenced[id]:
		// The discard did not come to pass, or was taken back.
		g.orphan(filepath.Join(dirTrash, id))
	case !t.Time.After(g.before) && (g.blind == nil || t.Kind == TrashPaths):
		g.report.Bytes += g.size(filepath.Join(dirTrash, id))
		g.report.Trash = append(g.report.Trash, id)
		if !g.dry {
			err = g.store.purge(t, g.shared[id])
		}
	}
	if err != nil {
		g.kept(path, err)
	}
}

// orphan removes what a crash left, by its path in the store.
func (g *collector) orphan(rel string) {
	bytes := g.size(rel)
	if !g.dry {
		dir, err := openDir(g.store.fs, g.store.dir, filepath.Dir(rel))
		if err == nil {
			err = hostfs.RemoveAll(g.store.fs, dir, filepath.Base(rel))
			_ = g.store.fs.Close(dir)
		}
		if err != nil {
			g.kept(filepath.Join(g.store.home, rel), err)
			return
		}
	}
	g.report.Bytes += bytes
	g.report.Orphans = append(g.report.Orphans, filepath.Join(g.store.home, rel))
}

func (g *collector) size(rel string) int64 {
	u, err := g.store.measure(g.ctx, rel)
	if err != nil {
		return 0
	}
	return u.Exclusive + u.Shared
}

// sockets removes control sockets that nobody listens on.
func (g *collector) sockets() error {
	run, err := openDir(g.store.fs, g.store.dir, dirRun)
	if err != nil {
		return fmt.Errorf("state directory %q: %w", g.store.home, err)
	}
	defer g.store.fs.Close(run)
	have, err := names(g.store.fs, g.store.dir, dirRun)
	if err != nil {
		return fmt.Errorf("state directory %q: %w", g.store.home, err)
	}
	for _, name := range have {
		if !strings.HasSuffix(name, socketSuffix) || listening(filepath.Join(g.store.home, dirRun, name)) {
			continue
		}
		if !g.dry {
			if err := g.store.fs.Unlink(run, name, 0); err != nil && err != unix.ENOENT {
				g.kept(filepath.Join(g.store.home, dirRun, name), err)
				continue
			}
		}
		g.report.Sockets = append(g.report.Sockets, name)
	}
	return nil
}

// listening tells whether a process accepts connections on a socket. Doubt is
// taken for yes.
func listening(path string) bool {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return true
	}
	return !errors.Is(err, unix.ECONNREFUSED)
}
