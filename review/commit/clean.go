package commit

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// replacedName is the directory below a commit's that holds what it replaced.
const replacedName = "replaced"

var errEnough = errors.New("enough")

// cleaner removes stages, or keeps what was replaced.
type cleaner struct {
	fs    hostfs.FS
	pl    *places
	trees []treeRecord
	dir   string // the commit's directory
	dirFD int
}

func (j *job) cleanStages(committed bool) (kept string, err error) {
	c := &cleaner{j.fs, j.pl, j.treeRecords(), j.cfg.CommitDir, j.dirFD}
	return c.stages(committed && j.cfg.Keep == KeepAuto)
}

// stages removes every stage that is still there. With keep, one that holds old
// nodes is renamed below the commit's directory where that is possible; kept is
// that directory.
func (c *cleaner) stages(keep bool) (kept string, err error) {
	var errs []error
	for i := range c.pl.areas {
		if !c.pl.areas[i].Stage {
			continue
		}
		name := replacedName
		if i > len(c.trees) {
			name += strconv.Itoa(i)
		}
		done, err := c.stage(i, keep, name)
		if err != nil {
			errs = append(errs, fmt.Errorf("remove the staging directory %s: %w", c.pl.hostPath(c.trees, loc{Area: i}), err))
		}
		if done && kept == "" {
			kept = filepath.Join(c.dir, name)
		}
	}
	return kept, errors.Join(errs...)
}

// stage removes one stage, or keeps it under a name.
func (c *cleaner) stage(i int, keep bool, name string) (kept bool, err error) {
	a := &c.pl.areas[i]
	parent, err := stageParent(c.fs, c.pl, a)
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer c.fs.Close(parent)
	var st unix.Statx_t
	err = c.fs.Stat(parent, string(a.Name), &st)
	if err == unix.ENOENT {
		return c.fs.Stat(c.dirFD, name, &st) == nil, nil
	}
	if err != nil {
		return false, err
	}
	f := factsOf(&st)
	if !f.isDir() || a.Ino != 0 && (f.Ino != a.Ino || f.Btime != a.Btime) {
		return false, fmt.Errorf("something else stands there now")
	}
	if keep && c.holdsOld(i) {
		if err := unshareDir(c.fs, c.pl.roots[i], ".", f.Mode); err != nil {
			return false, fmt.Errorf("give what is kept of it nodes of its own: %w", err)
		}
		err := c.fs.Rename(parent, string(a.Name), c.dirFD, name, unix.RENAME_NOREPLACE)
		if err == nil {
			return true, nil
		}
		if err != unix.EXDEV {
			return false, err
		}
	}
	return false, hostfs.RemoveAll(c.fs, parent, string(a.Name))
}

// holdsOld reports whether anything but its own marks is left in a stage.
func (c *cleaner) holdsOld(i int) bool {
	fd, err := c.fs.Open(c.pl.roots[i], ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return false
	}
	defer c.fs.Close(fd)
	err = hostfs.ReadDir(c.fs, fd, func(d hostfs.Dirent) error {
		if d.Name != stageIgnore {
			return errEnough
		}
		return nil
	})
	return err == errEnough
}

// Remove removes the directory of a commit that is settled, with what it
// replaced, or of one that left nothing behind. Any other is refused with
// [ErrUnfinished].
func Remove(fs hostfs.FS, commitDir string) error {
	if fs == nil {
		fs = hostfs.OS
	}
	rec, _, err := readCommit(fs, commitDir)
	if err != nil {
		return err
	}
	if s := rec.state(); s != StateSettled && s != StateReverted {
		return fmt.Errorf("%s is %s: %w", commitDir, s, ErrUnfinished)
	}
	return removeCommit(fs, commitDir)
}

// removeCommit removes a commit's directory and everything in it.
func removeCommit(fs hostfs.FS, dir string) error {
	parent, name := filepath.Split(filepath.Clean(dir))
	fd, err := openHostDir(fs, parent)
	if err != nil {
		return err
	}
	defer fs.Close(fd)
	return hostfs.RemoveAll(fs, fd, name)
}
