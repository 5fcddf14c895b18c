package commit

import (
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/review"
)

// mismatch is one entry of a directory that is not what it must be.
type mismatch struct {
	path string // relative to the directory
	kind review.DriftKind
	text string
}

// checkTree compares everything below a directory with a list, which has
// parents before what is in them. Entries in ignore, and what is below them, may
// be there too. It returns the first difference, nil if there is none.
func checkTree(pl *places, at loc, want []treeEntry, ignore map[string]bool) (*mismatch, error) {
	expected := make(map[string]*treeEntry, len(want))
	dirs := []string{""}
	for i := range want {
		expected[string(want[i].Path)] = &want[i]
		if want[i].isDir() {
			dirs = append(dirs, string(want[i].Path))
		}
	}
	root, err := pl.dir(at)
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		bad, err := checkDir(pl.fs, root, dir, expected, ignore)
		if err != nil && absent(err) {
			return &mismatch{dir, review.DriftDeleted, "the directory is gone on the host"}, nil
		}
		if bad != nil || err != nil {
			return bad, err
		}
	}
	for i := range want {
		if expected[string(want[i].Path)] != nil {
			return &mismatch{string(want[i].Path), review.DriftDeleted, "it is gone on the host"}, nil
		}
	}
	return nil, nil
}

// checkDir compares the entries of one directory, and takes those that it found
// out of expected.
func checkDir(fs hostfs.FS, root int, dir string, expected map[string]*treeEntry, ignore map[string]bool) (*mismatch, error) {
	fd, err := hostfs.OpenDeep(fs, root, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	defer fs.Close(fd)
	var bad *mismatch
	err = hostfs.ReadDir(fs, fd, func(d hostfs.Dirent) error {
		path := join(dir, d.Name)
		if bad != nil || ignore[path] {
			return nil
		}
		want := expected[path]
		if want == nil {
			bad = &mismatch{path, review.DriftCreated, "it was created on the host"}
			return nil
		}
		var st unix.Statx_t
		if err := fs.Stat(fd, d.Name, &st); err != nil {
			return err
		}
		now := factsOf(&st)
		if !want.sameNode(&now) {
			bad = &mismatch{path, review.DriftReplaced, "it was replaced on the host"}
		} else if text := want.differs(&now, false); text != "" {
			bad = &mismatch{path, review.DriftContent, text}
		}
		delete(expected, path)
		return nil
	})
	return bad, err
}
