package overlay

import (
	"golang.org/x/sys/unix"
)

// Time is a point in time as stat(2) reports it: seconds and nanoseconds since
// the epoch.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Attr is what stat(2) tells of a node in a view.
type Attr struct {
	// Ino is st_ino: the same through copy-up, seal and remount. It is
	// neither the node's identity in a face nor the host's inode number.
	Ino                 uint64
	Mode                uint32 // type and permission bits, as st_mode
	Nlink               uint32 // names in this view; 1 for every directory, as btrfs and overlayfs report
	UID, GID            uint32
	Rdev                uint64 // as makedev(3) encodes it
	Size                int64
	Blocks              int64 // of 512 bytes
	Blksize             uint32
	Atime, Mtime, Ctime Time
}

// IsDir, IsRegular and IsSymlink tell the type in Mode.
func (a *Attr) IsDir() bool     { return a.Mode&unix.S_IFMT == unix.S_IFDIR }
func (a *Attr) IsRegular() bool { return a.Mode&unix.S_IFMT == unix.S_IFREG }
func (a *Attr) IsSymlink() bool { return a.Mode&unix.S_IFMT == unix.S_IFLNK }

// SetAttr says which attributes [Face.Setattr] changes: a nil field stays.
type SetAttr struct {
	Mode         *uint32 // permission bits only
	UID, GID     *uint32
	Size         *int64
	Atime, Mtime *Time
	// KillSuidgid asks to clear set-uid and set-gid (of a group-executable
	// file) and security.capability, as the kernel does when somebody
	// without CAP_FSETID writes, truncates or changes the owner.
	KillSuidgid bool
}

// Caller is on whose behalf a node is made: its owner.
type Caller struct {
	UID, GID uint32
}

// Durability of a rename or creation is not implied by any call here; Fsync
// and Seal give it.

func timeOf(ts unix.StatxTimestamp) Time { return Time{ts.Sec, ts.Nsec} }

func (t Time) spec() unix.Timespec { return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)} }

// Before reports whether t is earlier than u.
func (t Time) Before(u Time) bool { return t.Sec < u.Sec || t.Sec == u.Sec && t.Nsec < u.Nsec }
