package view

import (
	"io/fs"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/sandbox/internal/files"
)

// Info is what stat(2) tells; it is an [fs.FileInfo] whose Sys is a
// *syscall.Stat_t, as code expects that was written for the host's files.
type Info struct {
	name string
	st   syscall.Stat_t
}

var _ fs.FileInfo = (*Info)(nil)

// Name, Size, Mode, ModTime, IsDir and Sys are those of [fs.FileInfo].
func (i *Info) Name() string       { return i.name }
func (i *Info) Size() int64        { return i.st.Size }
func (i *Info) Mode() fs.FileMode  { return files.ModeOf(i.st.Mode) }
func (i *Info) ModTime() time.Time { return time.Unix(i.st.Mtim.Unix()) }
func (i *Info) IsDir() bool        { return i.st.Mode&unix.S_IFMT == unix.S_IFDIR }
func (i *Info) Sys() any           { return &i.st }

// Stat is the raw record.
func (i *Info) Stat() *syscall.Stat_t { return &i.st }

// Same reports whether two records are of one file.
func (i *Info) Same(j *Info) bool { return i.st.Ino == j.st.Ino && i.st.Dev == j.st.Dev }

// info makes an Info of what the engine says. The device number is the
// mount's, so that files of different trees are never taken for one.
func (v *View) info(name string, m *mount, a *overlay.Attr) *Info {
	i := &Info{name: name}
	st := &i.st
	st.Dev = devOf(m.path)
	st.Ino, st.Mode, st.Nlink = a.Ino, a.Mode, nlinkOf(a.Nlink)
	st.Uid, st.Gid = a.UID, a.GID
	if a.UID == v.uid {
		st.Uid = v.shown
	}
	if a.GID == v.gid {
		st.Gid = v.shown
	}
	st.Rdev, st.Size, st.Blocks = a.Rdev, a.Size, a.Blocks
	st.Blksize = blksizeOf(a.Blksize)
	st.Atim, st.Mtim, st.Ctim = spec(a.Atime), spec(a.Mtime), spec(a.Ctime)
	return i
}

// devOf numbers a tree by its path (FNV-1a, cut to what makedev can hold).
func devOf(p string) uint64 {
	h := uint64(14695981039346656037)
	for i := 0; i < len(p); i++ {
		h = (h ^ uint64(p[i])) * 1099511628211
	}
	return h&0xff | 0x5000
}

func spec(t overlay.Time) syscall.Timespec {
	return syscall.NsecToTimespec(time.Unix(t.Sec, int64(t.Nsec)).UnixNano())
}

// Made is an Info of something that no tree holds, such as a device.
func Made(name string, mode uint32, rdev uint64) *Info {
	i := &Info{name: name}
	i.st.Mode, i.st.Nlink, i.st.Rdev = mode, 1, rdev
	return i
}
