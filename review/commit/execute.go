package commit

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/review"
)

// executor does steps and takes them back.
type executor struct {
	fs      hostfs.FS
	log     *slog.Logger
	pl      *places
	objects []object
	steps   []step
	trees   []treeRecord
	// done says which steps have happened.
	done []bool
	// recovering: another process did the steps that are done. Metadata is
	// then set again, or set back, wherever its node is found.
	recovering bool
	// gone are objects that are nowhere any more: the host removed them.
	gone     map[int]bool
	progress func(phase string, done, total int)
	touched  *touched
	metas    map[int][]*meta // of objects, by index; made by metasOf
}

func newExecutor(fs hostfs.FS, log *slog.Logger, pl *places, objects []object, steps []step, trees []treeRecord) *executor {
	return &executor{fs: fs, log: log, pl: pl, objects: objects, steps: steps, trees: trees,
		done: make([]bool, len(steps)), touched: newTouched(fs)}
}

func (x *executor) close() { x.touched.close() }

// forward does every step that has not happened.
func (x *executor) forward() error {
	for i := range x.steps {
		if x.done[i] {
			continue
		}
		if err := x.do(i); err != nil {
			return err
		}
		x.done[i] = true
		if x.progress != nil {
			x.progress("apply", i+1, len(x.steps))
		}
	}
	return nil
}

// backward takes back every step that has happened, last first.
func (x *executor) backward() error {
	for i := len(x.steps) - 1; i >= 0; i-- {
		if !x.done[i] {
			continue
		}
		if err := x.undo(i); err != nil {
			return err
		}
		x.done[i] = false
	}
	return nil
}

func (x *executor) do(i int) error {
	s := &x.steps[i]
	switch {
	case s.Op == opMeta:
		// What was lent for a step that has happened is not lent again.
		return x.setMeta(i, s.After, s.Lend)
	case s.Op == opLink:
		return x.link(s)
	case x.gone[s.Obj]:
		o := &x.objects[s.Obj]
		if o.Gone {
			return nil // the host was faster
		}
		return x.drift(o, &mismatch{"", review.DriftDeleted, "it is gone on the host"})
	case s.Op == opSwap && !x.gone[s.Old]:
		return x.swap(s)
	}
	return x.move(s)
}

// move renames an object to a place where nothing is. What comes out of the
// base is looked at once it is out of everybody's reach; if it is not what was
// expected it goes back.
func (x *executor) move(s *step) error {
	o := &x.objects[s.Obj]
	if err := x.rename(s.From, s.To, unix.RENAME_NOREPLACE); err != nil {
		return x.renameError(o, s, err)
	}
	x.moved(o)
	if o.New {
		return nil
	}
	bad, err := x.compare(o, s.To)
	if bad == nil && err == nil {
		return nil
	}
	if rerr := x.rename(s.To, s.From, unix.RENAME_NOREPLACE); rerr != nil {
		return x.putBackError(o, bad, err, rerr)
	}
	x.moved(o)
	return x.refusal(o, bad, err)
}

// swap exchanges a staged object with what is in its place.
func (x *executor) swap(s *step) error {
	o, old := &x.objects[s.Obj], &x.objects[s.Old]
	if err := x.rename(s.From, s.To, unix.RENAME_EXCHANGE); err != nil {
		return x.renameError(old, s, err)
	}
	x.moved(o)
	x.moved(old)
	bad, err := x.compare(old, s.From)
	if bad == nil && err == nil {
		return nil
	}
	if rerr := x.rename(s.From, s.To, unix.RENAME_EXCHANGE); rerr != nil {
		return x.putBackError(old, bad, err, rerr)
	}
	return x.refusal(old, bad, err)
}

// link gives a node that stays in the base another name there.
func (x *executor) link(s *step) error {
	o := &x.objects[s.Obj]
	bad, err := x.compare(o, s.From)
	if bad != nil {
		return x.drift(o, bad)
	}
	if err != nil {
		return x.renameError(o, s, err)
	}
	fromFD, fromName, err := x.pl.at(s.From)
	if err != nil {
		return x.renameError(o, s, err)
	}
	toFD, toName, err := x.pl.at(s.To)
	if err == nil {
		err = x.touch(s.To, toFD)
	}
	if err == nil {
		err = x.fs.Link(fromFD, fromName, toFD, toName)
	}
	if err != nil {
		return x.renameError(&object{Tree: o.Tree, Label: s.To.Path}, s, err)
	}
	return nil
}

// unlink takes back a name that link made: into the stage, where it can be
// looked at before it is gone.
func (x *executor) unlink(s *step) error {
	o := &x.objects[s.Obj]
	if err := x.rename(s.To, s.Slot, unix.RENAME_NOREPLACE); err != nil {
		return x.renameError(o, &step{From: s.To, To: s.Slot}, err)
	}
	var st unix.Statx_t
	err := x.pl.stat(s.Slot, &st)
	now := factsOf(&st)
	if err == nil && o.sameNode(&now) {
		return nil
	}
	var bad *mismatch
	if err == nil {
		bad = &mismatch{"", review.DriftReplaced, "it was replaced on the host"}
	}
	if rerr := x.rename(s.Slot, s.To, unix.RENAME_NOREPLACE); rerr != nil {
		return x.putBackError(o, bad, err, rerr)
	}
	return x.refusal(o, bad, err)
}

// undo takes one step back. What leaves the base must be what the commit put
// there: where the host wrote to it meanwhile, it stays.
func (x *executor) undo(i int) error {
	s := &x.steps[i]
	switch {
	case s.Op == opMeta:
		// A step that was not reached may have no place yet.
		return x.setMeta(i, s.Before, !s.Lend || x.gone[s.Obj])
	case s.Op == opLink:
		return x.unlink(s)
	case s.Op == opSwap && x.gone[s.Obj]:
		// The host removed what was put in place: the old one goes back.
		old := &x.objects[s.Old]
		if err := x.rename(s.From, s.To, unix.RENAME_NOREPLACE); err != nil {
			return x.renameError(old, s, err)
		}
		x.moved(old)
		return nil
	case x.gone[s.Obj]:
		return nil
	case s.Op == opSwap && !x.gone[s.Old]:
		return x.moveBack(s, unix.RENAME_EXCHANGE)
	}
	return x.moveBack(s, unix.RENAME_NOREPLACE)
}

// moveBack undoes a move or a swap.
func (x *executor) moveBack(s *step, flags uint) error {
	o := &x.objects[s.Obj]
	if err := x.rename(s.To, s.From, flags); err != nil {
		return x.renameError(o, &step{From: s.To, To: s.From}, err)
	}
	x.moved(o)
	if s.Op == opSwap {
		x.moved(&x.objects[s.Old])
	}
	if !o.New {
		return nil
	}
	bad, err := x.compareContent(o, s.From)
	if bad == nil && err == nil {
		return nil
	}
	if rerr := x.rename(s.From, s.To, flags); rerr != nil {
		return x.putBackError(o, bad, err, rerr)
	}
	x.moved(o)
	return x.refusal(o, bad, err)
}

// rename is one renameat2(2) between two places.
func (x *executor) rename(from, to loc, flags uint) error {
	fromFD, fromName, err := x.pl.at(from)
	if err != nil {
		return err
	}
	toFD, toName, err := x.pl.at(to)
	if err != nil {
		return err
	}
	// Both are synced at the end; to know of them now is to lose none when
	// their paths change meanwhile.
	if err := x.touch(from, fromFD); err != nil {
		return err
	}
	if err := x.touch(to, toFD); err != nil {
		return err
	}
	return x.fs.Rename(fromFD, fromName, toFD, toName, flags)
}

// touch notes that the directory of a place changes.
func (x *executor) touch(l loc, fd int) error {
	dir, _ := split(string(l.Path))
	if err := x.touched.dir(touchKey{l.Area, x.pl.gen, dir}, fd); err != nil {
		return fmt.Errorf("open %s to sync it: %w", x.pl.hostPath(x.trees, loc{l.Area, pathName(dir)}), err)
	}
	return nil
}

// syncTouched makes all steps durable.
func (x *executor) syncTouched() error { return x.touched.sync() }

// syncAll makes all steps durable, those of an earlier process too: whole file
// systems where that is possible, and else every directory that a step names.
func (x *executor) syncAll() error {
	for i, fd := range x.pl.roots {
		if err := x.touched.whole(touchKey{i, x.pl.gen, ""}, fd); err != nil {
			return fmt.Errorf("open %s to sync it: %w", x.pl.hostPath(x.trees, loc{Area: i}), err)
		}
	}
	for i := range x.steps {
		for _, l := range []loc{x.steps[i].From, x.steps[i].To} {
			fd, _, err := x.pl.at(l)
			if absent(err) {
				continue // it has another path now, or is gone
			}
			if err == nil {
				err = x.touch(l, fd)
			}
			if err != nil {
				return err
			}
		}
	}
	return x.touched.sync()
}

// moved forgets directories that may have another path now.
func (x *executor) moved(o *object) {
	if o.isDir() {
		x.pl.forget()
	}
}

// setMeta changes the metadata of a step's node, which must be where the step
// says and must hold nothing but values that this commit knows of. A recovery
// may find it elsewhere; with optional, that is no error.
func (x *executor) setMeta(i int, m *meta, optional bool) error {
	s := &x.steps[i]
	o := &x.objects[s.Obj]
	if x.recovering && optional {
		if there, err := x.isAt(s.Obj, s.To); err != nil || !there {
			return err
		}
	}
	dirfd, name, err := x.pl.at(s.To)
	if err != nil {
		return x.renameError(o, s, err)
	}
	fd, err := x.fs.Open(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return x.renameError(o, s, err)
	}
	defer x.fs.Close(fd)
	var st unix.Statx_t
	if err := x.fs.Stat(fd, "", &st); err != nil {
		return fmt.Errorf("examine %s: %w", x.pl.hostPath(x.trees, s.To), err)
	}
	now := factsOf(&st)
	if !o.sameNode(&now) {
		return x.drift(o, &mismatch{"", review.DriftReplaced, "it was replaced on the host"})
	}
	if !x.knownMeta(s.Obj, &now) {
		return x.drift(o, &mismatch{"", review.DriftMeta, "its mode or owner changed on the host"})
	}
	if err := x.touched.node(dirfd, name, &st); err != nil {
		return fmt.Errorf("open %s to sync it: %w", x.pl.hostPath(x.trees, s.To), err)
	}
	// It may fail half-way: then it is taken back like a step that is done.
	x.done[i] = true
	if err := m.apply(x.fs, fd); err != nil {
		return fmt.Errorf("%s: %w", x.pl.hostPath(x.trees, s.To), err)
	}
	return nil
}

// knownMeta reports whether a node's mode and owner are ones that some step of
// this commit gave it or will give it, or that it had in the beginning. A change
// of owner may have cleared its set-id bits.
func (x *executor) knownMeta(obj int, now *facts) bool {
	o := &x.objects[obj]
	modes := []uint32{permissions(o.Mode)}
	uids, gids := []uint32{o.UID}, []uint32{o.GID}
	for _, m := range x.metasOf(obj) {
		if m.Mode != nil {
			modes = append(modes, *m.Mode)
		}
		if m.UID != nil {
			uids = append(uids, *m.UID)
		}
		if m.GID != nil {
			gids = append(gids, *m.GID)
		}
	}
	const setID = unix.S_ISUID | unix.S_ISGID
	mode := permissions(now.Mode)
	known := func(m uint32) bool { return mode == m || mode == m&^setID }
	return slices.ContainsFunc(modes, known) && slices.Contains(uids, now.UID) && slices.Contains(gids, now.GID)
}

// metasOf are all metadata that steps set on an object.
func (x *executor) metasOf(obj int) []*meta {
	if x.metas == nil {
		x.metas = map[int][]*meta{}
		for i := range x.steps {
			if s := &x.steps[i]; s.Op == opMeta {
				x.metas[s.Obj] = append(x.metas[s.Obj], s.Before, s.After)
			}
		}
	}
	return x.metas[obj]
}

// compare looks at an old object that has just been moved to l.
func (x *executor) compare(o *object, l loc) (*mismatch, error) {
	dirfd, name, err := x.pl.at(l)
	if err != nil {
		return nil, err
	}
	var st unix.Statx_t
	if err := x.fs.Stat(dirfd, name, &st); err != nil {
		return nil, err
	}
	now := factsOf(&st)
	if !o.sameNode(&now) {
		return &mismatch{"", review.DriftReplaced, "it was replaced on the host"}, nil
	}
	if text := o.differs(&now, true); text != "" {
		return &mismatch{"", review.DriftContent, text}, nil
	}
	if o.Gone && o.isDir() {
		return checkTree(x.pl, l, o.tree, nil)
	}
	if o.Digest == nil || o.New {
		return nil, nil
	}
	return x.compareDigest(o, dirfd, name)
}

func (x *executor) compareDigest(o *object, dirfd int, name string) (*mismatch, error) {
	sum, err := hashAt(x.fs, dirfd, name)
	if err != nil {
		return nil, err
	}
	if sum != *o.Digest {
		return &mismatch{"", review.DriftContent, "its content changed on the host"}, nil
	}
	return nil, nil
}

// compareContent looks at a new object that is being taken back, byte by byte:
// whoever wrote to it meanwhile may have put back its times.
func (x *executor) compareContent(o *object, l loc) (*mismatch, error) {
	if o.isDir() {
		return checkTree(x.pl, l, o.tree, nil)
	}
	bad, err := x.compare(o, l)
	if bad != nil || err != nil || o.Digest == nil {
		return bad, err
	}
	dirfd, name, err := x.pl.at(l)
	if err != nil {
		return nil, err
	}
	return x.compareDigest(o, dirfd, name)
}

// drift names an object in a DriftError.
func (x *executor) drift(o *object, bad *mismatch) error {
	return &DriftError{Paths: []Drifted{{x.trees[o.Tree].Name, join(string(o.Label), bad.path), bad.kind, bad.text}}}
}

// refusal is why an object was put back.
func (x *executor) refusal(o *object, bad *mismatch, err error) error {
	if bad != nil {
		return x.drift(o, bad)
	}
	return fmt.Errorf("examine %q: %w", o.Label, err)
}

func (x *executor) putBackError(o *object, bad *mismatch, err, rerr error) error {
	return errors.Join(x.refusal(o, bad, err), fmt.Errorf("put %q back: %w", o.Label, rerr))
}

// renameError explains a rename that failed.
func (x *executor) renameError(o *object, s *step, err error) error {
	switch {
	case err == unix.EEXIST:
		return x.drift(o, &mismatch{"", review.DriftCreated, "something was created there on the host"})
	case err == unix.ENOENT:
		return x.drift(o, &mismatch{"", review.DriftDeleted, "it is gone on the host"})
	case absent(err):
		return x.drift(o, &mismatch{"", review.DriftParent, "a directory above it was replaced on the host by something else"})
	case err == unix.EBUSY:
		return fmt.Errorf("%s: something is mounted on it, unmount that first: %w", x.pl.hostPath(x.trees, s.From), err)
	}
	return fmt.Errorf("rename %s to %s: %w", x.pl.hostPath(x.trees, s.From), x.pl.hostPath(x.trees, s.To), err)
}
