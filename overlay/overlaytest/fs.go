package overlaytest

import (
	"strings"
	"syscall"

	"github.com/galleyfs/galley/overlay"
)

// Root is the slot number that stands for the root of the file system.
const Root = -1

// Loc names a node: a slot that holds one (or [Root]) and a path of components
// below it. No component is followed if it is a symbolic link. An empty path
// is the held node itself.
type Loc struct {
	Slot int
	Path string
}

// At is the location of a path from the root.
func At(path string) Loc { return Loc{Root, path} }

func (l Loc) split() (parent Loc, name string) {
	i := strings.LastIndexByte(l.Path, '/')
	if i < 0 {
		return Loc{l.Slot, ""}, l.Path
	}
	return Loc{l.Slot, l.Path[:i]}, l.Path[i+1:]
}

func components(path string) []string {
	if path == "" {
		return nil
	}
	return strings.Split(path, "/")
}

// Stat is what a driver tells of a node.
type Stat struct {
	// Ino identifies the node as the file system sees it: st_ino, and for
	// [Ref] the number of the node.
	Ino      uint64
	Mode     uint32
	Nlink    uint32
	UID, GID uint32
	Rdev     uint64
	Size     int64
	Mtime    overlay.Time
	Ctime    overlay.Time
}

// Dirent is one entry of a directory.
type Dirent struct {
	Name string
	Ino  uint64
	Type uint32 // S_IFMT bits
}

// FS is a file system under test. Every method fails with the errno that Linux
// answers for the same call, or nil. Slots hold nodes as descriptors do:
// through rename and unlink, until they are released or filled again.
type FS interface {
	Open(slot int, at Loc) error
	Release(slot int)

	Stat(at Loc) (Stat, error)
	Readlink(at Loc) (string, error)
	// ReadDir lists a directory without "." and "..", sorted by name. After
	// every batch entries (0: all at once) the listing is taken up again from
	// the last cookie, and between is called, which may change the directory.
	ReadDir(at Loc, batch int, between func()) ([]Dirent, error)

	Mkdir(at Loc, mode uint32) error
	Mknod(at Loc, mode uint32, rdev uint64) error
	// Create makes a regular file that must not exist and holds it in slot.
	Create(slot int, at Loc, mode uint32) error
	Symlink(target string, at Loc) error
	// Tmpfile makes an unnamed file in the directory and holds it in slot.
	Tmpfile(slot int, dir Loc, mode uint32) error
	Link(from, to Loc) error
	Unlink(at Loc) error
	Rmdir(at Loc) error
	Rename(from, to Loc, flags uint32) error

	Chmod(at Loc, mode uint32) error
	// Chown changes owner and group; -1 leaves one as it is.
	Chown(at Loc, uid, gid int) error
	Utimes(at Loc, mtime overlay.Time) error
	Truncate(at Loc, size int64) error

	Read(at Loc, p []byte, off int64) (int, error)
	Write(at Loc, p []byte, off int64) (int, error)
	// MapRead and MapWrite read and write through a shared mapping, what lies
	// within the file, and sync what was written.
	MapRead(at Loc, p []byte, off int64) (int, error)
	MapWrite(at Loc, p []byte, off int64) (int, error)
	// WriteKill writes as somebody without CAP_FSETID.
	WriteKill(at Loc, p []byte, off int64) (int, error)
	Append(at Loc, p []byte) (int, error)
	Fallocate(at Loc, mode uint32, off, n int64) error
	Seek(at Loc, off int64, whence int) (int64, error)
	CopyRange(from Loc, fromOff int64, to Loc, toOff, n int64) (int64, error)
	Fsync(at Loc) error

	Getxattr(at Loc, name string) ([]byte, error)
	Listxattr(at Loc) ([]string, error)
	Setxattr(at Loc, name string, val []byte, flags int) error
	Removexattr(at Loc, name string) error
}

// errno is the innermost errno of err, 0 for nil.
func errno(err error) syscall.Errno { return overlay.Errno(err) }
