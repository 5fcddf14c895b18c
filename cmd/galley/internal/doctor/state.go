package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// littleSpace is when the space that is left is worth a word, in bytes.
const littleSpace = 1 << 30

// stateDirectory looks at the file system that sessions are kept on, and tells
// whether sessions can be kept there at all.
func stateDirectory(home string) ([]Finding, bool) {
	dir := existing(home)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return []Finding{{Name: "state directory", Level: Fail, Found: fmt.Sprintf("%s: %v", dir, err),
			Means: "sessions cannot be kept", Fix: "set GALLEY_HOME to a directory of your own"}}, false
	}
	place := Finding{Name: "state directory", Level: OK, Found: fmt.Sprintf("%s on %s", home, fsName(int64(st.Type)))}
	free := int64(st.Bavail) * st.Bsize
	if free < littleSpace {
		place.Level = Note
		place.Found += fmt.Sprintf(", %d MiB left", free>>20)
		place.Means = "copies of what a session changes need space there"
		place.Fix = "galley gc, or set GALLEY_HOME to a file system with more room"
	}
	probe, err := os.MkdirTemp(dir, ".galley-doctor-")
	if err != nil {
		place.Level = Fail
		place.Found = err.Error()
		place.Means = "sessions cannot be kept"
		place.Fix = "set GALLEY_HOME to a directory of your own"
		return []Finding{place}, false
	}
	defer os.RemoveAll(probe)
	xattr := xattrFinding(probe)
	return []Finding{place, xattr, cloneFinding(probe)}, xattr.Level != Fail
}

// existing is the nearest directory above path that is there.
func existing(path string) string {
	for path != "/" && path != "." {
		if _, err := os.Stat(path); err == nil {
			return path
		}
		path = filepath.Dir(path)
	}
	return path
}

func xattrFinding(dir string) Finding {
	f := Finding{Name: "extended attributes", Level: OK, Found: "the state directory has them"}
	name := "user.overlay.opaque"
	if os.Geteuid() == 0 {
		name = "trusted.overlay.opaque"
	}
	if err := unix.Setxattr(dir, name, []byte("y"), 0); err != nil {
		f.Level = Fail
		f.Found = fmt.Sprintf("setxattr %s: %v", name, err)
		f.Means = "layers cannot be kept there: they mark directories with extended attributes"
		f.Fix = "set GALLEY_HOME to a directory on ext4, xfs, btrfs or tmpfs (user.* on tmpfs from Linux 6.6 on)"
	}
	return f
}

func cloneFinding(dir string) Finding {
	f := Finding{Name: "clones", Level: OK, Found: "the state directory's file system shares blocks between files"}
	if err := tryClone(dir); err != nil {
		f.Level = Note
		f.Found = "FICLONE: " + err.Error()
		f.Means = "the first write to a file of the base copies the whole file"
		f.Fix = "keep projects and GALLEY_HOME together on btrfs, or on xfs made with reflink=1"
	}
	return f
}

func tryClone(dir string) error {
	src, err := os.Create(filepath.Join(dir, "a"))
	if err != nil {
		return err
	}
	defer src.Close()
	if _, err := src.Write(make([]byte, 4096)); err != nil {
		return err
	}
	dst, err := os.Create(filepath.Join(dir, "b"))
	if err != nil {
		return err
	}
	defer dst.Close()
	err = unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// fsName names the file systems that people have; statfs(2) lists the numbers.
func fsName(magic int64) string {
	switch magic {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs"
	case unix.NFS_SUPER_MAGIC:
		return "nfs"
	case unix.FUSE_SUPER_MAGIC:
		return "fuse"
	case 0x2fc12fc1:
		return "zfs"
	case unix.F2FS_SUPER_MAGIC:
		return "f2fs"
	}
	return fmt.Sprintf("a file system of type %#x", magic)
}
