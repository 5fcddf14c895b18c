package commit

import (
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/review"
)

// stagePrefix begins the name of every staging directory.
const stagePrefix = overlay.StagePrefix

// stageIgnore hides a stage from git, whichever repository it falls into.
const stageIgnore = ".gitignore"

// manyFiles is from how many files on one syncfs(2) is cheaper than an fsync(2)
// each: measured on ext4, an fsync costs a journal write, a syncfs one for all.
const manyFiles = 16

// stage is a directory on one volume of a base, in which new content is made
// ready, through which moved nodes pass, and to which old ones go.
type stage struct {
	area int
	vol  volume
	next int // number of the next slot
	// uid and gid are what a file made in the stage gets.
	uid, gid uint32
	// exchange: the file system knows RENAME_EXCHANGE.
	exchange bool
	// syncfs: one call makes the whole file system durable.
	syncfs bool
	files  int // regular files to stage
	// noClone is set once a clone was refused.
	noClone atomic.Bool
	// rw is the stage open for reading, to sync it.
	rw int
}

func (s *stage) close(fs hostfs.FS) {
	if s.rw >= 0 {
		_ = fs.Close(s.rw)
		s.rw = -1
	}
}

// slot names a new place in the stage: 'n' for new nodes, 'o' for old ones.
func (s *stage) slot(kind byte) string {
	s.next++
	return string(kind) + strconv.Itoa(s.next)
}

// makeShapes sorts the plan's changes into what leaves, arrives and stays.
func (j *job) makeShapes() error {
	for _, c := range j.plan.Changes {
		tree := j.treeIndex(c.Tree)
		inPlace, err := j.inPlace(tree, c)
		if err != nil {
			return err
		}
		j.shapes[tree].add(c, inPlace)
	}
	for _, s := range j.shapes {
		s.finish()
	}
	return nil
}

// inPlace decides whether a change of metadata or a rename can act on the node
// itself. A file with several names is replaced instead, since the other names
// may be outside the base.
func (j *job) inPlace(tree int, c *review.Change) (bool, error) {
	switch {
	case c.Kind != review.MetaOnly && c.Kind != review.Renamed:
		return false, nil
	case c.New.IsDir():
		return true, nil
	case c.HasFromAt:
		// A pair of a deletion and an addition that are alike: the file that
		// came is another one, with links and times of its own.
		return false, nil
	case c.Kind == review.Renamed && c.Parts == 0 && !setsTime(c):
		return true, nil
	case c.Link != "" || c.Parts&(review.PartContent|review.PartTarget|review.PartRdev) != 0:
		return false, nil
	}
	var st unix.Statx_t
	if err := j.pl.stat(loc{tree, pathName(c.Origin)}, &st); err != nil {
		return false, j.driftOr(tree, c.Origin, err, "examine")
	}
	return st.Nlink == 1, nil
}

// chooseStages finds on which volumes there must be a stage, and where.
func (j *job) chooseStages() error {
	for tree, s := range j.shapes {
		for _, n := range s.inOrder {
			if n.parent != nil {
				n.area = n.parent.area
				continue
			}
			dir, _ := split(n.path)
			old, ok := s.oldNode(dir)
			if !ok { // below a staged directory that receives it
				n.area = s.ins[dir].area
				continue
			}
			st, err := j.stageFor(tree, old)
			if err != nil {
				return err
			}
			n.area = st.area
			if n.inherits, err = j.inheritsGroup(tree, old); err != nil {
				return err
			}
			if err := j.checkLink(tree, s, n, st.vol); err != nil {
				return err
			}
			if n.from == nil {
				continue
			}
			if err := j.checkVolume(tree, n.from.path, st.vol); err != nil {
				return err
			}
		}
		for _, o := range s.outOrder {
			dir, _ := split(o.path)
			var err error
			if o.stage, err = j.stageFor(tree, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// inheritsGroup reports whether what is made in a directory of the base gets
// its group.
func (j *job) inheritsGroup(tree int, dir string) (bool, error) {
	fd, err := j.pl.dir(loc{tree, pathName(dir)})
	var st unix.Statx_t
	if err == nil {
		err = j.fs.Stat(fd, "", &st)
	}
	if err != nil {
		return false, j.driftOr(tree, dir, err, "examine")
	}
	return st.Mode&unix.S_ISGID != 0, nil
}

// checkLink makes a copy of what was to be another name of a node of the base,
// where that is on another file system.
func (j *job) checkLink(tree int, s *shape, n *in, vol volume) error {
	if n.other == "" {
		return nil
	}
	old, ok := s.oldNode(n.other)
	if !ok {
		return fmt.Errorf("change set: %q is another name of %q, which is not in the base", n.path, n.other)
	}
	var st unix.Statx_t
	if err := j.pl.stat(loc{tree, pathName(old)}, &st); err != nil {
		return j.driftOr(tree, old, err, "examine")
	}
	if volumeOf(&st) != vol {
		n.other = ""
	}
	return nil
}

// checkVolume refuses a rename from one file system to another, which no rename
// can do.
func (j *job) checkVolume(tree int, path string, vol volume) error {
	var st unix.Statx_t
	if err := j.pl.stat(loc{tree, pathName(path)}, &st); err != nil {
		return j.driftOr(tree, path, err, "examine")
	}
	if volumeOf(&st) != vol {
		return fmt.Errorf("rename %q: it would leave its file system; copy it in the session instead: %w", path, unix.EXDEV)
	}
	return nil
}

// driftOr makes a drift of an error that says that a path of the base is not
// there any more.
func (j *job) driftOr(tree int, path string, err error, verb string) error {
	if !absent(err) {
		return fmt.Errorf("%s %q in the base: %w", verb, path, err)
	}
	kind, text := review.DriftDeleted, "it is gone on the host"
	if err != unix.ENOENT {
		kind, text = review.DriftParent, "a directory above it was replaced on the host by something else"
	}
	return &DriftError{Paths: []Drifted{{j.trees[tree].Name, path, kind, text}}}
}

// stageFor gives the stage on the volume of a directory of a base.
func (j *job) stageFor(tree int, dir string) (*stage, error) {
	fd, err := j.pl.dir(loc{tree, pathName(dir)})
	if err != nil {
		return nil, j.driftOr(tree, dir, err, "open")
	}
	var st unix.Statx_t
	if err := j.fs.Stat(fd, "", &st); err != nil {
		return nil, fmt.Errorf("examine %q in the base: %w", dir, err)
	}
	k := stageKey{tree, volumeOf(&st)}
	if s := j.stages[k]; s != nil {
		return s, nil
	}
	a := area{Stage: true, Tree: tree, Name: pathName(stageName())}
	switch {
	case k.vol != j.roots[tree]:
		top, err := j.volumeTop(tree, dir, k.vol)
		if err != nil {
			return nil, err
		}
		a.BaseDir = pathName(top)
	case j.cfg.StageDir != "" && tree == 0:
		a.HostDir = pathName(j.cfg.StageDir)
	default:
		a.HostDir = pathName(j.besideBase(tree))
	}
	s := &stage{area: j.pl.add(a), vol: k.vol, rw: -1}
	j.stages[k] = s
	j.stageList = append(j.stageList, s)
	return s, nil
}

// volumeTop is the highest directory above dir that is on the same volume.
func (j *job) volumeTop(tree int, dir string, vol volume) (string, error) {
	top := dir
	for dir != "" {
		dir, _ = split(dir)
		var st unix.Statx_t
		if err := j.pl.stat(loc{tree, pathName(dir)}, &st); err != nil {
			return "", fmt.Errorf("examine %q in the base: %w", dir, err)
		}
		if volumeOf(&st) == vol {
			top = dir
		}
	}
	return top, nil
}

// besideBase is the directory that holds the base, where a stage in it would
// be on the same volume, else "".
func (j *job) besideBase(tree int) string {
	path := filepath.Clean(j.trees[tree].BasePath)
	parent, name := filepath.Split(path)
	if name == "" {
		return ""
	}
	var st unix.Statx_t
	fd, err := openRoot(j.fs, parent, &st)
	if err != nil {
		return ""
	}
	defer j.fs.Close(fd)
	if volumeOf(&st) != j.roots[tree] {
		return ""
	}
	// The last component may be a link: then the parent is another one.
	root := &j.pl.areas[tree]
	if err := j.fs.Stat(fd, name, &st); err != nil || st.Ino != root.Ino || volumeOf(&st) != j.roots[tree] {
		return ""
	}
	return filepath.Clean(parent)
}

func stageName() string {
	var b [5]byte
	_, _ = rand.Read(b[:])
	return stagePrefix + strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}

// makeStages makes the staging directories.
func (j *job) makeStages() error {
	for _, s := range j.stageList {
		err := j.mkdirStage(s)
		a := &j.pl.areas[s.area]
		if a.HostDir != "" && j.cfg.StageDir == "" && isDenied(err) {
			// The base's parent is not ours to write: stage in the base.
			inside := area{Stage: true, Tree: a.Tree, Name: a.Name}
			*a = inside
			if err = j.moveStage(s, inside); err == nil {
				err = j.mkdirStage(s)
			}
		}
		if err == nil {
			err = j.openStage(s)
		}
		if err != nil {
			return fmt.Errorf("make the staging directory %q: %w", j.pl.hostPath(j.treeRecords(), loc{Area: s.area}), err)
		}
		if err := j.journal.add(frameRoot, rootRecord{s.area, j.pl.areas[s.area].Ino, j.pl.areas[s.area].Btime}); err != nil {
			return err
		}
	}
	return nil
}

// moveStage says in the journal, durably, that a stage will be elsewhere.
func (j *job) moveStage(s *stage, to area) error {
	if err := j.journal.add(frameMoved, movedRecord{s.area, to}); err != nil {
		return err
	}
	return j.journal.flush()
}

func isDenied(err error) bool {
	return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS)
}

// stageParent opens the directory that holds a stage.
func stageParent(fs hostfs.FS, pl *places, a *area) (int, error) {
	if a.HostDir != "" {
		return openHostDir(fs, string(a.HostDir))
	}
	fd, err := pl.dir(loc{a.Tree, a.BaseDir})
	if err != nil {
		return -1, err
	}
	return fs.Dup(fd)
}

func (j *job) mkdirStage(s *stage) error {
	a := &j.pl.areas[s.area]
	parent, err := stageParent(j.fs, j.pl, a)
	if err != nil {
		return err
	}
	defer j.fs.Close(parent)
	return j.fs.Mkdir(parent, string(a.Name), 0o700)
}

// openStage opens the stage that was just made, and finds out what it can do.
func (j *job) openStage(s *stage) error {
	a := &j.pl.areas[s.area]
	parent, err := stageParent(j.fs, j.pl, a)
	if err != nil {
		return err
	}
	defer j.fs.Close(parent)
	fd, err := j.fs.Open(parent, string(a.Name), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	var st unix.Statx_t
	if err := j.fs.Stat(fd, "", &st); err != nil {
		_ = j.fs.Close(fd)
		return err
	}
	f := factsOf(&st)
	a.Ino, a.Btime = f.Ino, f.Btime
	j.pl.setRoot(s.area, fd, &st)
	if volumeOf(&st) != s.vol {
		return fmt.Errorf("it is not on the file system of the base: %w", unix.EXDEV)
	}
	if s.rw, err = j.fs.Dup(fd); err != nil {
		return err
	}
	return j.probe(s, fd)
}

// probe finds out what the stage's file system can do.
func (j *job) probe(s *stage, fd int) error {
	ignore, err := j.fs.Open(fd, stageIgnore, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer j.fs.Close(ignore)
	if err := hostfs.WriteFull(j.fs, ignore, []byte("*\n"), 0); err != nil {
		return err
	}
	var st unix.Statx_t
	if err := j.fs.Stat(ignore, "", &st); err != nil {
		return err
	}
	s.uid, s.gid = st.Uid, st.Gid
	var fst unix.Statfs_t
	if err := j.fs.Statfs(fd, &fst); err != nil {
		return err
	}
	s.syncfs = reachesDisk(int64(fst.Type))
	const probe = "probe"
	if err := j.fs.Mkdir(fd, probe, 0o700); err != nil {
		return err
	}
	switch err := j.fs.Rename(fd, probe, fd, stageIgnore, unix.RENAME_NOREPLACE); err {
	case unix.EEXIST:
	case nil, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP:
		return fmt.Errorf("%w: rename without replacing (RENAME_NOREPLACE)", ErrUnsupported)
	default:
		return err
	}
	switch err := j.fs.Rename(fd, probe, fd, stageIgnore, unix.RENAME_EXCHANGE); err {
	case nil:
		s.exchange = true
		if err := j.fs.Rename(fd, probe, fd, stageIgnore, unix.RENAME_EXCHANGE); err != nil {
			return err
		}
	case unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP:
		j.log.Debug("no RENAME_EXCHANGE: files are missing for a moment while they are replaced", "err", err)
	default:
		return err
	}
	return j.fs.Unlink(fd, probe, unix.AT_REMOVEDIR)
}

// reachesDisk lists the file systems on which syncfs(2) makes everything
// durable: local ones. FUSE and network file systems are synced file by file.
func reachesDisk(fstype int64) bool {
	switch fstype {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC,
		unix.F2FS_SUPER_MAGIC, unix.OVERLAYFS_SUPER_MAGIC:
		return true
	}
	return false
}

// syncStages makes everything staged durable, and the journal.
func (j *job) syncStages() error {
	j.progress("sync", 0, len(j.plan.Changes))
	journal := false
	for _, s := range j.stageList {
		if s.bulk() {
			if err := j.fs.Syncfs(s.rw); err != nil {
				return fmt.Errorf("sync the staged content: %w", err)
			}
			journal = journal || s.vol.dev == j.dirDev && j.dirBulk
			continue
		}
		if err := j.fs.Fsync(s.rw); err != nil {
			return fmt.Errorf("sync the staging directory: %w", err)
		}
	}
	if !journal {
		if err := j.journal.flush(); err != nil {
			return err
		}
	}
	j.progress("sync", len(j.plan.Changes), len(j.plan.Changes))
	return nil
}

// bulk reports whether the stage is synced by one call, instead of a call for
// each file in it.
func (s *stage) bulk() bool { return s.syncfs && s.files > manyFiles }

// openHostDir opens a directory that Galley or a person named by its path, for
// reading.
func openHostDir(fs hostfs.FS, path string) (int, error) {
	root, err := hostfs.OpenRoot(path)
	if err != nil {
		return -1, err
	}
	defer fs.Close(root)
	return fs.Open(root, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
}
