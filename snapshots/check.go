package snapshots

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// CheckOptions says what [Store.Check] does.
type CheckOptions struct {
	// Sessions are the ids of those to look at; nil is all, and the store too.
	Sessions []string
	// Repair also repairs what can be repaired. It removes nothing that may
	// hold work: what is damaged stays beside what takes its place, and a layer
	// that no record accounts for goes to the trash.
	Repair bool
}

// Finding is one thing that is not as it should be.
type Finding struct {
	// Session is the session's name, or its id where the name is not known;
	// empty for what belongs to none.
	Session string
	// Path is the file or directory.
	Path string
	// What is wrong with it.
	What string
	// Fix is what repairs it; empty where nothing can.
	Fix string
	// Repaired: it was done.
	Repaired bool
}

// CheckReport tells what [Store.Check] looked at and found.
type CheckReport struct {
	Sessions, Snapshots, Layers int
	// Hidden counts points without a name that lack layers. gc makes such of
	// what was committed long ago; no history lists them.
	Hidden int
	// Live are the names of sessions at work, of which only what is sealed was
	// looked at, and nothing repaired.
	Live     []string
	Findings []Finding
}

// Bad counts the findings that were not repaired.
func (r *CheckReport) Bad() int {
	n := 0
	for _, f := range r.Findings {
		if !f.Repaired {
			n++
		}
	}
	return n
}

// Check looks at every record and every layer: whether each decodes and has the
// checksums that it says, whether the records name layers that are there, and
// whether each layer has the files that its record says, and no others. The
// content of a file has no checksum.
func (s *Store) Check(ctx context.Context, opt CheckOptions) (CheckReport, error) {
	c := &checker{store: s, ctx: ctx, repair: opt.Repair}
	err := s.locked(func() error { return c.run(opt.Sessions) })
	return c.report, err
}

type checker struct {
	store  *Store
	ctx    context.Context
	repair bool
	report CheckReport
	name   string // of the session that is looked at

	shared map[string]layerSet // layers of each session that forks of it need
	blind  error               // why that is not known
}

// found notes a finding, and repairs it where fix says how. It reports whether
// all is well now.
func (c *checker) found(path, what, how string, fix func() error) bool {
	f := Finding{Session: c.name, Path: path, What: what, Fix: how}
	if c.repair && fix != nil {
		if err := fix(); err != nil {
			f.What += fmt.Sprintf("; the repair failed: %v", err)
		} else {
			f.Repaired = true
		}
	}
	c.report.Findings = append(c.report.Findings, f)
	return f.Repaired
}

func (c *checker) run(only []string) error {
	ids, err := names(c.store.fs, c.store.dir, dirSessions)
	if err != nil {
		return fmt.Errorf("state directory %q: %w", c.store.home, err)
	}
	c.shared, c.blind = c.store.allShared()
	// What a fork shares is looked at, and repaired, in the session that it came
	// from.
	slices.Sort(ids)
	slices.SortStableFunc(ids, func(a, b string) int { return c.origins(a) - c.origins(b) })
	for _, id := range ids {
		if err := c.ctx.Err(); err != nil {
			return context.Cause(c.ctx)
		}
		if validID(id) && (only == nil || slices.Contains(only, id)) {
			c.session(id)
		}
	}
	c.name = ""
	if only != nil {
		return nil
	}
	return c.leftovers(ids)
}

// origins is how many sessions a session descends from.
func (c *checker) origins(id string) int {
	sess, err := c.store.load(id)
	if err != nil {
		return 0
	}
	return len(sess.man.Load().Origins)
}

// leftovers looks for what belongs to no session.
func (c *checker) leftovers(ids []string) error {
	g := &collector{store: c.store, ctx: c.ctx, dry: !c.repair, before: time.Time{}}
	for _, id := range ids {
		if strings.HasPrefix(id, stagePrefix) {
			g.orphan(filepath.Join(dirSessions, id))
		} else if !validID(id) {
			c.found(filepath.Join(c.store.home, dirSessions, id), "not a session", "", nil)
		}
	}
	trash, err := names(c.store.fs, c.store.dir, dirTrash)
	if err != nil {
		return fmt.Errorf("state directory %q: %w", c.store.home, err)
	}
	for _, id := range trash {
		if t, err := c.store.openTrash(id); err != nil && (t == nil || t.man == nil || !t.man.Purged) {
			c.found(filepath.Join(c.store.home, dirTrash, id), fmt.Sprintf("what was discarded cannot be brought back: %v", err), "", nil)
		}
	}
	if err := g.imports(); err != nil {
		return err
	}
	if err := g.sockets(); err != nil {
		return err
	}
	for _, path := range g.report.Orphans {
		c.noted(path, "left by a crash")
	}
	for _, name := range g.report.Sockets {
		c.noted(filepath.Join(c.store.home, dirRun, name), "a socket without a process")
	}
	for _, kept := range g.report.Kept {
		c.found(c.store.home, kept, "", nil)
	}
	return nil
}

// noted adds a finding that the collector removes, or would.
func (c *checker) noted(path, what string) {
	c.report.Findings = append(c.report.Findings, Finding{Path: path, What: what, Fix: "remove it", Repaired: c.repair})
}

// session looks at one session.
func (c *checker) session(id string) {
	c.name = id
	c.report.Sessions++
	dir := filepath.Join(c.store.home, dirSessions, id)
	sess, err := c.store.load(id)
	if err != nil {
		path := filepath.Join(dir, manifestFile)
		if !c.damagedManifest(id, path, err) {
			return
		}
		if sess, err = c.store.load(id); err != nil {
			c.found(path, err.Error(), "", nil)
			return
		}
	}
	c.name = sess.Name()
	h, err := sess.hold(0)
	if errors.Is(err, ErrBusy) {
		c.report.Live = append(c.report.Live, sess.Name())
		c.live(sess)
		return
	}
	if err != nil {
		c.found(dir, err.Error(), "", nil)
		return
	}
	sc := &sessionChecker{checker: c, h: h}
	sc.run()
	h.release()
	if sc.reopen && c.repair {
		c.reopen(sess)
	}
}

// damagedManifest reports whether a manifest that cannot be read was replaced by
// the one before it, where that was kept.
func (c *checker) damagedManifest(id, path string, bad error) bool {
	fs := c.store.fs
	dir, err := openDir(fs, c.store.dir, filepath.Join(dirSessions, id))
	if err != nil {
		return c.found(path, bad.Error(), "", nil)
	}
	defer fs.Close(dir)
	b, err := hostfs.ReadFile(fs, dir, manifestKept, manifestLimit)
	if err == nil {
		_, err = decodeManifest(b)
	}
	if err != nil {
		return c.found(path, bad.Error(), "", nil)
	}
	return c.found(path, bad.Error(), "take the one before it, "+manifestKept, func() error {
		lock, err := openLock(fs, dir, sessionLock)
		if err != nil {
			return err
		}
		defer fs.Close(lock)
		if err := tryLock(lock); err != nil {
			return fmt.Errorf("its lock: %w", err)
		}
		// What was there is kept, for people who know more.
		if err := fs.Rename(dir, manifestFile, dir, manifestFile+damagedSuffix, 0); err != nil && err != unix.ENOENT {
			return err
		}
		return replaceFile(fs, dir, manifestFile, b)
	})
}

// damagedSuffix is added to the name of what was replaced in a repair.
const damagedSuffix = ".damaged"

// live looks at what is sealed of a session at work.
func (c *checker) live(sess *Session) {
	dir, err := sess.openDir()
	if err != nil {
		c.found(sess.Dir(), err.Error(), "", nil)
		return
	}
	defer c.store.fs.Close(dir)
	sc := &sessionChecker{checker: c, h: &held{Session: sess, dir: dir, lock: -1}, live: true}
	repair := c.repair
	c.repair = false
	sc.run()
	c.repair = repair
}

// reopen has the session mended as any open does: what a crash left of the
// active layer and of the end of the history.
func (c *checker) reopen(sess *Session) {
	l, err := sess.Open(c.ctx, OpenOptions{NoWatch: true})
	if err == nil {
		err = l.Close()
	}
	for i := range c.report.Findings {
		f := &c.report.Findings[i]
		if f.Session != c.name || f.Fix != fixReopen || f.Repaired {
			continue
		}
		if f.Repaired = err == nil; err != nil {
			f.What += fmt.Sprintf("; the repair failed: %v", err)
		}
	}
}

// fixReopen repairs what every open repairs.
const fixReopen = "open it, which mends what a crash left"

// badLines finds the lines of a history that do not decode, counted from 1, and
// whether it ends within a line.
func badLines(b []byte) (bad []int, why error, torn bool) {
	for n := 1; len(b) > 0; n++ {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		if !whole {
			return bad, why, true
		}
		b = rest
		if _, err := decodeHistoryLine(line); err != nil {
			if why == nil {
				why = err
			}
			bad = append(bad, n)
		}
	}
	return bad, why, false
}

// withoutLines is a history without the lines of these numbers.
func withoutLines(b []byte, bad []int) []byte {
	var out []byte
	for n := 1; len(b) > 0; n++ {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		if whole && !slices.Contains(bad, n) {
			out = append(append(out, line...), '\n')
		}
		b = rest
	}
	return out
}

// sortedTrees are the names of the trees of a set.
func (s layerSet) sortedTrees() []string {
	var out []string
	for tree := range s {
		out = append(out, tree)
	}
	slices.Sort(out)
	return out
}

// missingFrom lists layers of ranges that have, which is sorted, lacks, up to a
// few.
func missingFrom(ranges []overlay.Range, have []overlay.LayerID) (out []overlay.LayerID) {
	const few = 10
	for _, r := range ranges {
		i, _ := slices.BinarySearch(have, r.From)
		for n := r.From; n <= r.To && len(out) < few; n++ {
			if i < len(have) && have[i] == n {
				i++
			} else {
				out = append(out, n)
			}
			if n == r.To {
				break // it may be the highest number that there is
			}
		}
	}
	return out
}
