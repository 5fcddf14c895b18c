package snapshots

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// sessionChecker looks at one session.
type sessionChecker struct {
	*checker
	h      *held
	live   bool // somebody works in it
	reopen bool // something is wrong that an open mends
	// whole: all records of a tree decode, so that the engine can open it.
	whole bool
	// others are layers of the session that only forks of it, or paths in the
	// trash, need; blind says why they are not known.
	others layerSet
	blind  error
}

// path is that of something in the session's directory.
func (c *sessionChecker) path(parts ...string) string {
	return filepath.Join(append([]string{c.h.Dir()}, parts...)...)
}

func (c *sessionChecker) run() {
	m := c.h.man.Load()
	if m.Discarded != nil && !c.live {
		c.found(c.h.Dir(), "discarded, and not in the trash", "move it there", func() error {
			return c.store.move(dirSessions, dirTrash, m.ID)
		})
		return
	}
	if !c.history() {
		return
	}
	history, err := readHistory(c.store.fs, c.h.dir)
	if err != nil {
		c.found(c.path(historyFile), err.Error(), "", nil)
		return
	}
	lines := len(history)
	history, there := c.shown(m, history)
	c.report.Snapshots += len(history)
	c.report.Hidden += lines - len(history)
	needs, err := c.store.needs(m, c.h.dir)
	if err != nil {
		c.found(c.path(historyFile), err.Error(), "", nil)
		return
	}
	c.blind = c.checker.blind
	if c.others, err = c.store.discards(m.Retired); err != nil && c.blind == nil {
		c.blind = err
	}
	for tree, ranges := range c.checker.shared[m.ID] {
		c.others.add(tree, ranges)
	}
	for _, t := range m.Trees {
		c.tree(m, t, needs[t.Name], there[t.Name], history)
	}
	for _, tree := range needs.sortedTrees() {
		if !hasTree(m, tree) {
			c.found(c.path(historyFile), fmt.Sprintf("names a tree %q that the session has not", tree), "", nil)
		}
	}
}

// shown are the snapshots that there are for a user, and the layers that must be
// there for them and for what the manifest names. Like [Session.History] it
// leaves out an unnamed one that lacks layers: gc removes those of what was
// committed long ago, and the lines of the history stay.
func (c *sessionChecker) shown(m *manifest, all []Snapshot) ([]Snapshot, layerSet) {
	there := &present{store: c.store, man: m, dir: c.h.dir, have: map[string][]overlay.LayerID{}}
	list, layers := make([]Snapshot, 0, len(all)), m.needs()
	for _, s := range all {
		if s.Name == "" && !there.all(m.withReplaced(s)) {
			continue
		}
		list = append(list, s)
		layers.addSnapshot(s)
	}
	return list, layers
}

func hasTree(m *manifest, name string) bool {
	for _, t := range m.Trees {
		if t.Name == name {
			return true
		}
	}
	return false
}

// history looks at the history, and reports whether it can be read.
func (c *sessionChecker) history() bool {
	fs := c.store.fs
	b, err := hostfs.ReadFile(fs, c.h.dir, historyFile, historyLimit)
	if err == unix.ENOENT {
		b, err = nil, nil
	}
	if err != nil {
		return c.found(c.path(historyFile), err.Error(), "", nil)
	}
	bad, why, torn := badLines(b)
	if len(bad) > 0 {
		what := fmt.Sprintf("line %d: %v", bad[0], why)
		if more := len(bad) - 1; more > 0 {
			what += fmt.Sprintf(", and %d more lines", more)
		}
		fixed := c.found(c.path(historyFile), what, "leave those snapshots out; the file is kept as "+historyFile+damagedSuffix, func() error {
			if err := replaceFile(fs, c.h.dir, historyFile+damagedSuffix, b); err != nil {
				return err
			}
			return replaceFile(fs, c.h.dir, historyFile, withoutLines(b, bad))
		})
		if !fixed {
			return false
		}
	}
	// The line of the last snapshot may be about to be written.
	last := c.h.man.Load().last().Number
	if !c.live && (torn || last != 0 && lastNumber(withoutLines(b, bad)) != last) {
		c.reopen = true
		c.found(c.path(historyFile), "it does not end with the latest snapshot", fixReopen, nil)
	}
	return true
}

// tree looks at the layers of one tree: needed are all that anything names, and
// there those that must be there for what is shown.
func (c *sessionChecker) tree(m *manifest, t treeRecord, needed, there []overlay.Range, history []Snapshot) {
	fs := c.store.fs
	rel := filepath.Join(dirTrees, t.Name)
	state, err := openDir(fs, c.h.dir, rel)
	if err != nil {
		c.found(c.path(rel), err.Error(), "", nil)
		return
	}
	defer fs.Close(state)
	layers, err := openDir(fs, state, dirLayers)
	if err != nil {
		c.found(c.path(rel, dirLayers), err.Error(), "", nil)
		return
	}
	defer fs.Close(layers)
	if _, err := names(fs, state, dirScratch); err == unix.ENOENT && !c.live {
		c.found(c.path(rel, dirScratch), "not there", "make it", func() error { return fs.Mkdir(state, dirScratch, 0o700) })
	}
	c.whole = true
	have := layersIn(fs, layers)
	own, must := m.own(needed), m.own(there)
	if !c.live {
		active := []overlay.Range{{From: t.Stack.Active, To: t.Stack.Active}}
		own, must = union(own, active), union(must, active)
	}
	for _, n := range missingFrom(must, have) {
		c.whole = false
		c.found(c.path(rel, dirLayers, layerDir(n)), "a layer that is recorded, and not there"+c.usedBy(t.Name, n, history), "", nil)
	}
	c.fromOrigins(m, t.Name, there)
	for _, n := range have {
		switch {
		case contains(own, n) || contains(c.others[t.Name], n):
			c.report.Layers++
			c.record(state, layers, rel, n, n == t.Stack.Active)
		case !c.live && n != m.Building:
			c.stray(m, t, state, layers, n)
		}
	}
	if err := overlay.CheckIndex(fs, state); err != nil && !c.live {
		c.found(c.path(rel, "index"), fmt.Sprintf("a cache, damaged: %v", err), "remove it; it is made again", func() error {
			return fs.Unlink(state, "index", 0)
		})
	}
	if c.whole {
		c.content(m, t, state, must, history)
	}
}

// dirScratch is the engine's.
const dirScratch = "scratch"

// usedBy names the snapshots that have a layer.
func (c *sessionChecker) usedBy(tree string, n overlay.LayerID, history []Snapshot) string {
	count, first := 0, ""
	for _, s := range history {
		if contains(s.Stacks[tree].Sealed, n) {
			if count++; count == 1 {
				first = refOf(s)
			}
		}
	}
	switch count {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("; snapshot %s needs it", first)
	}
	return fmt.Sprintf("; %d snapshots from %s on need it", count, first)
}

// fromOrigins looks for the layers that are another session's.
func (c *sessionChecker) fromOrigins(m *manifest, tree string, needed []overlay.Range) {
	there := &present{store: c.store, man: m, dir: c.h.dir, have: map[string][]overlay.LayerID{}}
	for i, o := range m.Origins {
		ranges := m.shared(i, needed)
		if !there.in(o.Session+"/"+tree, ranges, func(string) (int, error) { return c.store.openLayers(o.Session, tree) }) {
			c.whole = false
			c.found(c.path(), fmt.Sprintf("layers %v of tree %q, which it shares with session %s, are not all there", ranges, tree, o.Session), "", nil)
		}
	}
}

// record looks at one record.
func (c *sessionChecker) record(state, layers int, rel string, n overlay.LayerID, active bool) {
	fs := c.store.fs
	err := overlay.CheckRecord(fs, layers, n, active)
	if err == nil {
		return
	}
	path := c.path(rel, dirLayers, layerDir(n), layerRecord)
	if errors.Is(err, overlay.ErrFormat) {
		c.whole = false
		c.found(path, err.Error(), "", nil)
		return
	}
	fixed := c.found(path, err.Error(), "make it again of the index; the old one is kept as "+layerRecord+damagedSuffix, func() error {
		return overlay.MendRecord(fs, state, layers, n)
	})
	c.whole = c.whole && fixed
}

// stray looks at a layer that no record accounts for.
func (c *sessionChecker) stray(m *manifest, t treeRecord, state, layers int, n overlay.LayerID) {
	fs := c.store.fs
	path := c.path(dirTrees, t.Name, dirLayers, layerDir(n))
	if c.blind != nil {
		c.found(path, fmt.Sprintf("a layer that no record of the session accounts for; a fork may need it, which is not known: %v", c.blind), "", nil)
		return
	}
	files, err := names(fs, layers, filepath.Join(layerDir(n), layerTree))
	if err == unix.ENOENT || err == nil && len(files) == 0 || n < 0 || contains(m.Dropping[t.Name], n) {
		// Prepared, or made of what is elsewhere, or on its way out.
		c.found(path, "left by a crash: a layer that no record accounts for, and that holds no work", "remove it", func() error {
			return hostfs.RemoveAll(fs, layers, layerDir(n))
		})
		return
	}
	c.found(path, "a layer that no record accounts for, and not empty", "move it to the trash", func() error {
		return c.store.trashLayer(m, t.Name, layers, n)
	})
}

// content compares the layers' trees with their records.
func (c *sessionChecker) content(m *manifest, t treeRecord, state int, own []overlay.Range, history []Snapshot) {
	tree, err := c.open(m, t)
	if err != nil {
		c.found(c.path(dirTrees, t.Name), err.Error(), "", nil)
		return
	}
	defer tree.Close()
	for _, s := range history {
		if err := tree.Load(m.withReplaced(s).Stacks[t.Name]); err != nil {
			c.found(c.path(historyFile), fmt.Sprintf("snapshot %s: %v", refOf(s), err), "", nil)
			return
		}
	}
	loaded := t.Stack.Sealed
	for _, s := range history {
		loaded = union(loaded, s.Stacks[t.Name].Sealed)
	}
	const most = 20
	look := func(n overlay.LayerID, fix string) {
		count := 0
		err := tree.CheckLayer(n, func(path, what string) {
			if count++; count <= most {
				c.found(c.path(dirTrees, t.Name, dirLayers, layerDir(n), layerTree, path), what, fix, nil)
			}
			if fix != "" {
				c.reopen = true
				if c.repair {
					err := overlay.Distrust(c.store.fs, state)
					if err != nil {
						c.found(c.path(dirTrees, t.Name), err.Error(), "", nil)
					}
				}
			}
		})
		if err == nil && count > most {
			err = fmt.Errorf("%d more differences", count-most)
		}
		if err != nil {
			c.found(c.path(dirTrees, t.Name, dirLayers, layerDir(n)), err.Error(), fix, nil)
		}
	}
	for _, r := range union(own, t.Image.Ranges()) {
		for n := r.From; n <= r.To; n++ {
			if contains(loaded, n) {
				look(n, "")
			}
		}
	}
	if !c.live {
		look(t.Stack.Active, fixReopen)
	}
}

// open opens a tree for looking, from its records alone.
func (c *sessionChecker) open(m *manifest, t treeRecord) (*overlay.Tree, error) {
	// The active layer is looked at as if it were sealed: nothing is written.
	stack := overlay.Stack{Sealed: t.Stack.Sealed}
	if !c.live {
		stack.Sealed = addLayer(stack.Sealed, t.Stack.Active)
	}
	base, dirs, err := c.store.openLower(m, t.TreeSpec, stack, func(path string) (*overlay.Base, error) {
		return overlay.OpenBase(c.store.fs, path)
	})
	if err != nil {
		return nil, err
	}
	return overlay.Open(overlay.Config{
		Name: t.Name, StateDir: c.h.StateDir(t.Name), Base: base, FS: c.store.fs,
		ReadOnly: true, NoWatch: true, NoIndex: true, LayerDirs: dirs,
	}, stack)
}
