package commit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/review"
)

// job is one Apply at work. It is used by one goroutine, but for the workers
// that stage content.
type job struct {
	cfg  *Config
	fs   hostfs.FS
	log  *slog.Logger
	plan *Plan

	trees  []Tree // those that the plan touches; shapes are in the same order
	shapes []*shape
	roots  []volume // of each base's root
	pl     *places  // area i < len(trees) is the base of tree i

	// stages by volume, and in the order in which they are made.
	stages    map[stageKey]*stage
	stageList []*stage

	objects []object
	steps   []step
	applied []appliedRecord
	noteMu  sync.Mutex
	notes   []noteRecord
	// byBase finds the object of a base path, so that a node that several
	// steps touch is one object.
	byBase map[baseKey]int

	dirFD   int // CommitDir
	journal *journal
	// dirDev is the device of CommitDir, and dirBulk whether one call syncs all
	// of it.
	dirDev  uint64
	dirBulk bool
}

type baseKey struct {
	tree int
	path string
}

type stageKey struct {
	tree int
	vol  volume
}

// Apply commits a plan: all of it or nothing. It returns with the base new and
// durable, or as it was, or, if even taking it back failed, with an
// [InterruptedError]; a crash leaves what [Recover] finishes or reverts. When
// ctx ends before the first change of the base, nothing was done; after that it
// no longer matters.
//
// After a success the session must drop the entries of [Result.Paths] from its
// layers, and then call [Settle].
func Apply(ctx context.Context, cfg Config, plan *Plan) (*Result, error) {
	j := &job{cfg: &cfg, fs: cfg.fs(), log: cfg.log(), plan: plan, dirFD: -1,
		stages: map[stageKey]*stage{}, byBase: map[baseKey]int{}}
	defer j.close()
	if err := j.open(); err != nil {
		return nil, err
	}
	unlock, err := lockBases(j.fs, cfg.LockDir, j.pl, len(j.trees))
	if err != nil {
		return nil, err
	}
	defer unlock()
	return j.run(ctx)
}

func (j *job) close() {
	for _, s := range j.stages {
		s.close(j.fs)
	}
	if j.pl != nil {
		j.pl.close()
	}
	if j.journal != nil {
		_ = j.fs.Close(j.journal.fd)
	}
	if j.dirFD >= 0 {
		_ = j.fs.Close(j.dirFD)
	}
}

// open opens the bases that the plan touches.
func (j *job) open() error {
	j.pl = newPlaces(j.fs, nil)
	index := map[string]int{}
	for _, c := range j.plan.Changes {
		if _, ok := index[c.Tree]; ok {
			continue
		}
		index[c.Tree] = -1
		for _, t := range j.cfg.Trees {
			if t.Name != c.Tree {
				continue
			}
			var st unix.Statx_t
			fd, err := openBase(j.fs, &t, &st)
			if err != nil {
				return err
			}
			f := factsOf(&st)
			index[c.Tree] = j.pl.add(area{Tree: len(j.trees), Ino: f.Ino, Btime: f.Btime})
			j.pl.setRoot(index[c.Tree], fd, &st)
			j.trees = append(j.trees, t)
			j.roots = append(j.roots, volumeOf(&st))
			j.shapes = append(j.shapes, newShape(len(j.trees)-1))
		}
		if index[c.Tree] < 0 {
			return fmt.Errorf("the change set has changes in the tree %q, for which no base was given", c.Tree)
		}
	}
	return nil
}

// run is the whole protocol, under the locks of all bases.
func (j *job) run(ctx context.Context) (*Result, error) {
	if j.plan.Empty() {
		return j.result(), nil
	}
	if err := j.checkDrift(ctx); err != nil {
		return nil, err
	}
	if j.cfg.Before != nil {
		if err := j.cfg.Before(ctx); err != nil {
			return nil, err
		}
	}
	if err := j.makeShapes(); err != nil {
		return nil, err
	}
	if err := j.startJournal(); err != nil {
		return nil, errors.Join(err, j.abandon())
	}
	if err := j.prepare(ctx); err != nil {
		return nil, j.failedEarly(err)
	}
	// From here on the base changes.
	x := newExecutor(j.fs, j.log, j.pl, j.objects, j.steps, j.treeRecords())
	defer x.close()
	x.progress = j.progress
	if err := x.forward(); err != nil {
		return nil, j.takeBack(x, err)
	}
	if err := x.syncTouched(); err != nil {
		return nil, j.takeBack(x, err)
	}
	if err := j.journal.mark(frameDone); err != nil {
		return nil, j.takeBack(x, err)
	}
	res := j.result()
	kept, err := j.cleanStages(true)
	if err != nil {
		// The commit stands. What is left of a stage is removed by Settle
		// or a recovery.
		j.log.Warn("clean the stage of a commit", "dir", j.cfg.CommitDir, "err", err)
	}
	res.Replaced = kept
	return res, nil
}

// prepare stages all content and writes the intent. The base stays as it is.
func (j *job) prepare(ctx context.Context) error {
	if err := j.makeStages(); err != nil {
		return err
	}
	if err := j.stageAll(ctx); err != nil {
		return err
	}
	if err := j.capture(); err != nil {
		return err
	}
	// What was captured is what the steps will insist on, and what the
	// session saw is compared after it was captured: no change of the host
	// falls between the two.
	if err := j.checkDrift(ctx); err != nil {
		return err
	}
	if err := j.emit(); err != nil {
		return err
	}
	if err := j.writeIntent(); err != nil {
		return err
	}
	if err := j.syncStages(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return j.placeJournal()
}

// checkDrift compares every fact of the plan with the base.
func (j *job) checkDrift(ctx context.Context) error {
	var drift DriftError
	for i, c := range j.plan.Changes {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		j.progress("check", i, len(j.plan.Changes))
		tree := j.treeIndex(c.Tree)
		for _, was := range c.Facts {
			if d := review.CheckDrift(j.fs, j.pl.roots[tree], was); d.Kind != review.DriftNone {
				drift.Paths = append(drift.Paths, Drifted{c.Tree, d.Path, d.Kind, d.Text})
			}
		}
	}
	if drift.Paths != nil {
		return &drift
	}
	return nil
}

func (j *job) treeIndex(name string) int {
	for i := range j.trees {
		if j.trees[i].Name == name {
			return i
		}
	}
	return -1
}

func (j *job) treeRecords() []treeRecord {
	var out []treeRecord
	for _, t := range j.trees {
		out = append(out, treeRecord{t.Name, pathName(t.BasePath)})
	}
	return out
}

func (j *job) progress(phase string, done, total int) {
	if j.cfg.Progress != nil {
		j.cfg.Progress(Progress{phase, done, total})
	}
}

// startJournal makes the commit's directory and says in its journal where the
// stages will be, durably, before any is made.
func (j *job) startJournal() error {
	parent, name := filepath.Split(filepath.Clean(j.cfg.CommitDir))
	parentFD, err := openHostDir(j.fs, parent)
	if err != nil {
		return fmt.Errorf("open the directory for commits %q: %w", parent, err)
	}
	defer j.fs.Close(parentFD)
	if err := j.fs.Mkdir(parentFD, name, 0o700); err != nil && err != unix.EEXIST {
		return fmt.Errorf("make the commit's directory %q: %w", j.cfg.CommitDir, err)
	}
	if j.dirFD, err = j.fs.Open(parentFD, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); err != nil {
		return fmt.Errorf("open the commit's directory %q: %w", j.cfg.CommitDir, err)
	}
	var st unix.Statx_t
	if err := j.fs.Stat(j.dirFD, journalName, &st); err != unix.ENOENT {
		return fmt.Errorf("%q holds a commit already: %w", j.cfg.CommitDir, unix.EEXIST)
	}
	fd, err := j.fs.Open(j.dirFD, journalNew, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("make the journal in %q, which must be new: %w", j.cfg.CommitDir, err)
	}
	j.journal = &journal{fs: j.fs, dir: j.dirFD, fd: fd, buf: journalStart()}
	start := startRecord{Digest: digest(j.plan.Digest), Started: time.Now().Unix(), Trees: j.treeRecords(),
		Keep: j.cfg.Keep == KeepAuto}
	if err := j.journal.add(frameStart, start); err != nil {
		return err
	}
	if err := j.chooseStages(); err != nil {
		return err
	}
	for i := range j.pl.areas {
		if err := j.journal.add(frameArea, &j.pl.areas[i]); err != nil {
			return err
		}
	}
	return j.syncStart(parentFD)
}

// syncStart makes the beginning of the journal durable, with the directories
// that lead to it.
func (j *job) syncStart(parent int) error {
	var st unix.Statx_t
	var fst unix.Statfs_t
	err := j.fs.Stat(j.dirFD, "", &st)
	if err == nil {
		err = j.fs.Statfs(j.dirFD, &fst)
	}
	if err != nil {
		return fmt.Errorf("examine the commit's directory: %w", err)
	}
	j.dirDev, j.dirBulk = unix.Mkdev(st.Dev_major, st.Dev_minor), reachesDisk(int64(fst.Type))
	if j.dirBulk {
		if err := j.journal.write(); err != nil {
			return err
		}
		if err := j.fs.Syncfs(j.dirFD); err != nil {
			return fmt.Errorf("sync the commit's directory: %w", err)
		}
		return nil
	}
	if err := j.journal.flush(); err != nil {
		return err
	}
	for _, dir := range []int{j.dirFD, parent} {
		if err := j.fs.Fsync(dir); err != nil {
			return fmt.Errorf("sync the commit's directory: %w", err)
		}
	}
	return nil
}

// writeIntent writes everything the commit is about to do.
func (j *job) writeIntent() error {
	for i := range j.objects {
		o := &j.objects[i]
		if err := j.journal.add(frameObject, o); err != nil {
			return err
		}
		for k := range o.tree {
			if err := j.journal.add(frameTree, &o.tree[k]); err != nil {
				return err
			}
		}
	}
	if err := addAll(j.journal, frameStep, j.steps); err != nil {
		return err
	}
	if err := addAll(j.journal, frameApplied, j.applied); err != nil {
		return err
	}
	if err := addAll(j.journal, frameLeaving, j.leaving()); err != nil {
		return err
	}
	if err := addAll(j.journal, frameNote, j.notes); err != nil {
		return err
	}
	if err := j.journal.add(frameIntent, intentRecord{len(j.objects), len(j.steps), len(j.applied), len(j.cfg.Leaving)}); err != nil {
		return err
	}
	return j.journal.write()
}

// placeJournal makes the journal count, durably.
func (j *job) placeJournal() error {
	if err := j.fs.Rename(j.dirFD, journalNew, j.dirFD, journalName, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("put the journal in place: %w", err)
	}
	if err := j.fs.Fsync(j.dirFD); err != nil {
		// Whether the name is durable is unknown, but nothing has been
		// done on its word: without it there was no commit.
		if rerr := j.fs.Rename(j.dirFD, journalName, j.dirFD, journalNew, unix.RENAME_NOREPLACE); rerr != nil {
			return &InterruptedError{Dir: j.cfg.CommitDir, Cause: err, Revert: rerr}
		}
		return fmt.Errorf("sync the commit's directory: %w", err)
	}
	return nil
}

func addAll[T any](j *journal, kind byte, list []T) error {
	for i := range list {
		if err := j.add(kind, &list[i]); err != nil {
			return err
		}
	}
	return nil
}

// failedEarly cleans up after a failure before the base changed.
func (j *job) failedEarly(cause error) error {
	var interrupted *InterruptedError
	if errors.As(cause, &interrupted) {
		return cause
	}
	if _, err := j.cleanStages(false); err != nil {
		j.log.Warn("clean up after a refused commit", "dir", j.cfg.CommitDir, "err", err)
		return cause
	}
	if err := j.abandon(); err != nil {
		j.log.Warn("clean up after a refused commit", "dir", j.cfg.CommitDir, "err", err)
	}
	return cause
}

// abandon removes the commit's directory, if this commit made it: nothing
// happened.
func (j *job) abandon() error {
	if j.journal == nil {
		return nil
	}
	return removeCommit(j.fs, j.cfg.CommitDir)
}

// takeBack reverts after a failure in the middle.
func (j *job) takeBack(x *executor, cause error) error {
	// The mark only tells a recovery which way to go first.
	markErr := j.journal.mark(frameReverting)
	if err := x.backward(); err != nil {
		return &InterruptedError{Dir: j.cfg.CommitDir, Cause: cause, Revert: err}
	}
	if err := x.syncTouched(); err != nil {
		return &InterruptedError{Dir: j.cfg.CommitDir, Cause: cause, Revert: err}
	}
	if markErr == nil {
		markErr = j.journal.mark(frameReverted)
	}
	if markErr != nil {
		return &InterruptedError{Dir: j.cfg.CommitDir, Cause: cause, Revert: markErr}
	}
	if _, err := j.cleanStages(false); err != nil {
		j.log.Warn("clean the stage of a reverted commit", "dir", j.cfg.CommitDir, "err", err)
		return cause
	}
	if err := removeCommit(j.fs, j.cfg.CommitDir); err != nil {
		j.log.Warn("remove the journal of a reverted commit", "dir", j.cfg.CommitDir, "err", err)
	}
	return cause
}

// leaving is what the session should drop, for the journal.
func (j *job) leaving() []leavingRecord {
	list := make([]leavingRecord, 0, len(j.cfg.Leaving))
	for _, p := range j.cfg.Leaving {
		list = append(list, leavingRecord{p.Tree, pathName(p.Path)})
	}
	return list
}

// result is what a commit that went through did.
func (j *job) result() *Result {
	rec := record{start: startRecord{Digest: digest(j.plan.Digest), Trees: j.treeRecords()},
		areas: j.pl.areas, applied: j.applied, leaving: j.leaving(), notes: j.notes}
	return rec.result(j.pl)
}

// result rebuilds what Apply returns from a journal.
func (r *record) result(pl *places) *Result {
	res := &Result{Digest: review.Digest(r.start.Digest)}
	for i := range r.applied {
		a := &r.applied[i]
		res.Applied = append(res.Applied, Applied{
			Tree: r.start.Trees[a.Tree].Name, Path: string(a.Path), Kind: review.Kind(a.Kind),
			ID: overlay.HostID{Dev: a.Dev, Ino: a.Ino},
		})
	}
	for _, l := range r.leaving {
		res.Leaving = append(res.Leaving, review.TreePath{Tree: l.Tree, Path: string(l.Path)})
	}
	for _, n := range r.notes {
		note := Note{n.Tree, string(n.Path), n.What}
		switch n.Class {
		case noteSkipped:
			res.Skipped = append(res.Skipped, note)
		case noteDropped:
			res.Dropped = append(res.Dropped, note)
		case noteLinks:
			res.BrokenLinks = append(res.BrokenLinks, note)
		}
	}
	for i := range r.areas {
		if r.areas[i].Stage && r.areas[i].Ino != 0 {
			res.Stages = append(res.Stages, strings.TrimSuffix(pl.hostPath(r.start.Trees, loc{Area: i}), "/"))
		}
	}
	return res
}
