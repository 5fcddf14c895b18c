package snapshots

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// stageFile writes text durably to tmp in dir, ready to be renamed over what it
// replaces. A tmp that a crash left is overwritten.
func stageFile(fs hostfs.FS, dir int, tmp string, text []byte) error {
	return stage(fs, dir, tmp, text, true)
}

// stage is stageFile, durably or not.
func stage(fs hostfs.FS, dir int, tmp string, text []byte, durable bool) error {
	fd, err := fs.Open(dir, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("create %s: %w", tmp, err)
	}
	err = hostfs.WriteFull(fs, fd, text, 0)
	if err == nil && durable {
		err = fs.Fsync(fd)
	}
	if cerr := fs.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		_ = fs.Unlink(dir, tmp, 0)
		return fmt.Errorf("write %s: %w", tmp, err)
	}
	return nil
}

// replaceFile replaces name in dir by text in one step that survives a power
// cut once it returned.
func replaceFile(fs hostfs.FS, dir int, name string, text []byte) error {
	tmp := name + ".new"
	if err := stageFile(fs, dir, tmp, text); err != nil {
		return err
	}
	return putStaged(fs, dir, tmp, name)
}

// replaceWith is replaceFile, and makes everything that was written on the file
// system of dir durable before the text counts.
func replaceWith(fs hostfs.FS, dir int, name string, text []byte) error {
	tmp := name + ".new"
	if err := stage(fs, dir, tmp, text, false); err != nil {
		return err
	}
	if err := fs.Syncfs(dir); err != nil {
		_ = fs.Unlink(dir, tmp, 0)
		return fmt.Errorf("sync %s with what it names: %w", name, err)
	}
	return putStaged(fs, dir, tmp, name)
}

// putStaged puts what is ready under tmp in the place of name, durably.
func putStaged(fs hostfs.FS, dir int, tmp, name string) error {
	if err := fs.Rename(dir, tmp, dir, name, 0); err != nil {
		_ = fs.Unlink(dir, tmp, 0)
		return fmt.Errorf("rename %s to %s: %w", tmp, name, err)
	}
	if err := fs.Fsync(dir); err != nil {
		return fmt.Errorf("sync directory of %s: %w", name, err)
	}
	return nil
}

// syncDir makes the entries of the directory name beneath dirfd durable.
func syncDir(fs hostfs.FS, dirfd int, name string) error {
	fd, err := openDir(fs, dirfd, name)
	if err != nil {
		return err
	}
	defer fs.Close(fd)
	return fs.Fsync(fd)
}

func openDir(fs hostfs.FS, dirfd int, name string) (int, error) {
	return fs.Open(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// names lists a directory beneath dirfd.
func names(fs hostfs.FS, dirfd int, name string) ([]string, error) {
	fd, err := openDir(fs, dirfd, name)
	if err != nil {
		return nil, err
	}
	defer fs.Close(fd)
	var out []string
	err = hostfs.ReadDir(fs, fd, func(d hostfs.Dirent) error {
		out = append(out, d.Name)
		return nil
	})
	return out, err
}
