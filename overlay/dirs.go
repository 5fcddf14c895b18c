package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// Dirs are directories in overlayfs format to merge, as mount(8) names them
// for the kernel's overlayfs.
type Dirs struct {
	Lower []string // from the uppermost to the lowest; the last is the base
	Upper string   // takes the writes; empty for a read-only view
	Work  string   // on Upper's file system, or anywhere without one; Galley keeps its state in it
	// UserXattr reads and writes "user.overlay." marks (option userxattr).
	UserXattr bool
}

// dirsState is the name, in the work directory, of what Galley keeps there.
const (
	dirsState  = "galley"
	dirsConfig = "config"
)

// OpenDirs opens a tree on directories that something else made: the bare
// engine, with no session. The lower directories above the last, and what the
// upper one holds, are scanned when they are first used (their records are kept
// in the work directory) and must not be changed behind the tree's back, as the
// kernel demands as well. The caller is the only user of Upper and Work.
func OpenDirs(d Dirs, fsys hostfs.FS) (*Tree, error) {
	if fsys == nil {
		fsys = hostfs.OS
	}
	if len(d.Lower) == 0 {
		return nil, fmt.Errorf("no lower directory: %w", unix.EINVAL)
	}
	o := &dirsOpener{d: d, fs: fsys}
	t, err := o.open()
	if err != nil {
		o.closeAll()
		return nil, err
	}
	return t, nil
}

type dirsOpener struct {
	d     Dirs
	fs    hostfs.FS
	base  *Base
	trees map[LayerID]int
	ids   []HostID
}

func (o *dirsOpener) closeAll() {
	for _, fd := range o.trees {
		_ = o.fs.Close(fd)
	}
	if o.base != nil {
		_ = o.base.Close()
	}
}

func (o *dirsOpener) open() (*Tree, error) {
	last := len(o.d.Lower) - 1
	var err error
	if o.base, err = OpenBase(o.fs, o.d.Lower[last]); err != nil {
		return nil, err
	}
	o.ids = append(o.ids, o.base.ID())
	o.trees = make(map[LayerID]int)
	top := LayerID(0)
	for i := last - 1; i >= 0; i-- {
		lower, err := OpenBase(o.fs, o.d.Lower[i])
		if err != nil {
			return nil, err
		}
		top++
		o.trees[top] = lower.fd
		o.ids = append(o.ids, lower.ID())
	}
	if o.d.Upper != "" {
		if err := o.addUpper(top + 1); err != nil {
			return nil, err
		}
		top++
	}
	state, fresh, err := o.prepare()
	if err != nil {
		return nil, err
	}
	return o.stack(state, top, fresh)
}

func (o *dirsOpener) addUpper(l LayerID) error {
	fd, err := hostfs.OpenRoot(o.d.Upper)
	if err != nil {
		return fmt.Errorf("upper directory %q: %w", o.d.Upper, err)
	}
	o.trees[l] = fd
	var up, work unix.Statx_t
	if err := o.fs.Stat(fd, "", &up); err != nil {
		return fmt.Errorf("upper directory %q: %w", o.d.Upper, err)
	}
	o.ids = append(o.ids, hostID(&up))
	wfd, err := hostfs.OpenRoot(o.d.Work)
	if err != nil {
		return fmt.Errorf("work directory %q: %w", o.d.Work, err)
	}
	defer o.fs.Close(wfd)
	if err := o.fs.Stat(wfd, "", &work); err != nil {
		return fmt.Errorf("work directory %q: %w", o.d.Work, err)
	}
	if hostID(&up).Dev != hostID(&work).Dev {
		return fmt.Errorf("work directory %q is not on the file system of upper directory %q: %w", o.d.Work, o.d.Upper, unix.EXDEV)
	}
	return nil
}

// prepare makes the state directory, anew where it was made for other
// directories. It reports whether the layers are still to be scanned.
func (o *dirsOpener) prepare() (string, bool, error) {
	work, err := hostfs.OpenRoot(o.d.Work)
	if err != nil {
		return "", false, fmt.Errorf("work directory %q: %w", o.d.Work, err)
	}
	defer o.fs.Close(work)
	path := o.d.Work + "/" + dirsState
	want, err := json.Marshal(o.ids)
	if err != nil {
		return "", false, err
	}
	have, err := hostfs.ReadFile(o.fs, work, dirsState+"/"+dirsConfig, 1<<20)
	if err == nil && string(have) == string(want) {
		return path, false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", false, fmt.Errorf("%s: %w", path, err)
	}
	if err := hostfs.RemoveAll(o.fs, work, dirsState); err != nil {
		return "", false, fmt.Errorf("%s: %w", path, err)
	}
	if err := o.fs.Mkdir(work, dirsState, 0o700); err != nil {
		return "", false, fmt.Errorf("%s: %w", path, err)
	}
	return path, true, InitState(o.fs, path, 1)
}

// stack opens the tree; fresh layers are first scanned one by one, from the
// lowest up, each as the active one, and sealed.
func (o *dirsOpener) stack(state string, top LayerID, fresh bool) (*Tree, error) {
	s := Stack{}
	if top > 1 {
		s.Sealed = []Range{{1, top - 1}}
	}
	s.Active = top
	cfg := Config{Name: "overlay", StateDir: state, Base: o.base, FS: o.fs, LayerTrees: o.trees, UserXattr: o.d.UserXattr}
	looking := o.d.Upper == ""
	if top == 0 || looking && !fresh {
		if top > 0 {
			s = Stack{Sealed: []Range{{1, top}}}
		}
		cfg.ReadOnly = true
		return o.opened(cfg, s)
	}
	if !fresh {
		return o.opened(cfg, s)
	}
	t, err := o.opened(cfg, Stack{Active: 1})
	if err != nil {
		return nil, err
	}
	for l := LayerID(2); l <= top; l++ {
		if err := t.adoptNext(l); err != nil {
			_ = t.Close()
			return nil, err
		}
	}
	if err := o.remember(t); err != nil {
		_ = t.Close()
		return nil, err
	}
	if !looking {
		return t, nil
	}
	// Now that its layers are recorded, the tree is opened anew, to look at
	// them only.
	if err := t.Close(); err != nil {
		return nil, err
	}
	return OpenDirs(o.d, o.fs)
}

// opened opens the tree, which then owns the descriptors, also if it fails.
func (o *dirsOpener) opened(cfg Config, s Stack) (*Tree, error) {
	o.base, o.trees = nil, nil
	return Open(cfg, s)
}

// adoptNext seals the active layer and makes l, which holds something already,
// the active one.
func (t *Tree) adoptNext(l LayerID) error {
	if err := t.Prepare(l); err != nil {
		return err
	}
	b := Quiesce(t)
	defer b.Release()
	if err := b.Seal(l); err != nil {
		return err
	}
	if err := t.reconcile(); err != nil {
		return fmt.Errorf("scan layer %d: %w", l, err)
	}
	t.dirty = t.activeHasChanges()
	return nil
}

// remember notes for which directories the state was made.
func (o *dirsOpener) remember(t *Tree) error {
	want, err := json.Marshal(o.ids)
	if err != nil {
		return err
	}
	fd, err := o.fs.Open(t.stateFD, dirsConfig, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("note the directories: %w", err)
	}
	defer o.fs.Close(fd)
	return hostfs.WriteFull(o.fs, fd, want, 0)
}
