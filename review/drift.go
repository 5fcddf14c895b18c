package review

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// DriftKind says how a base path differs from what the session saw there.
type DriftKind uint8

const (
	// DriftNone: the base is as the session saw it.
	DriftNone DriftKind = iota
	// DriftCreated: there was nothing, and now there is something.
	DriftCreated
	// DriftDeleted: what was there is gone.
	DriftDeleted
	// DriftType: a node of another type is there now.
	DriftType
	// DriftContent: a file's content, or a link's target, changed, or may
	// have (nothing recorded can tell that it has not).
	DriftContent
	// DriftMeta: mode, owner or device number changed.
	DriftMeta
	// DriftReplaced: another directory stands at the path.
	DriftReplaced
	// DriftParent: a directory on the way to the path is gone, or is now
	// something else, such as a symbolic link.
	DriftParent
	// DriftEntries: a directory that the session removed has entries that
	// the session never saw.
	DriftEntries
	// DriftUnreadable: the base cannot be read there, so nothing is known.
	DriftUnreadable
)

// String is the word used in JSON.
func (k DriftKind) String() string {
	words := [...]string{"none", "created", "deleted", "type", "content", "metadata",
		"replaced", "parent", "entries", "unreadable"}
	if int(k) < len(words) {
		return words[k]
	}
	return fmt.Sprintf("drift(%d)", uint8(k))
}

// Drift is how the base differs, at one path, from what a session saw.
type Drift struct {
	Kind DriftKind
	// Path in the base that drifted: a change's own path, its origin, or a
	// directory above them.
	Path string
	// Text says what happened, for people, without the path; plain ASCII.
	Text string
}

// CheckDrift decides whether the base still has what a session recorded. It
// is the one place where that is decided: for the review, and again by the
// committer right before it replaces a path.
//
// baseFD is a descriptor of the base's root; nothing is written. The rules:
//
//   - A fact with a zero ID states only that a directory (or other node) of
//     that type is at the path.
//   - A directory has drifted when it is gone, is another inode, or changed its
//     mode or owner; what is in it are facts of their own.
//   - A file whose size, mtime, ctime, inode, mode and owner are as recorded has
//     not drifted. If its ctime is so close to the moment of recording that a
//     later write could carry the same time (git's racy timestamps), its
//     content is compared, where a digest is known.
//   - A file whose times or inode differ has not drifted if its mode and owner
//     are the same and its content has the recorded digest: an editor that
//     saved the same bytes, or a touch. Without a digest it has.
//
// A path that cannot be examined is drift of kind DriftUnreadable, not an
// error: it must refuse a commit of that path, and no more.
func CheckDrift(fs hostfs.FS, baseFD int, was overlay.Was) Drift {
	dirfd, name, closeDir, drift := openParent(fs, baseFD, was)
	if drift.Kind != DriftNone || name == "" && was.Path != "" {
		return drift
	}
	defer closeDir()
	var st unix.Statx_t
	switch err := fs.Stat(dirfd, name, &st); {
	case err == unix.ENOENT && !was.Exists:
		return Drift{}
	case err == unix.ENOENT:
		return Drift{DriftDeleted, was.Path, "the " + TypeName(was.Mode) + " was deleted on the host"}
	case err != nil:
		return Drift{DriftUnreadable, was.Path, "cannot be examined: " + err.Error()}
	case !was.Exists:
		return Drift{DriftCreated, was.Path, "a " + TypeName(uint32(st.Mode)) + " was created on the host"}
	}
	return compareFacts(fs, dirfd, name, &st, &was)
}

// openParent opens the directory that holds was.Path. A name of "" with a
// drift of kind DriftNone means that the path is known to be absent, as recorded.
func openParent(fs hostfs.FS, baseFD int, was overlay.Was) (fd int, name string, done func(), drift Drift) {
	if was.Path == "" {
		return baseFD, "", func() {}, Drift{}
	}
	dir := parentOf(was.Path)
	if dir == "" {
		return baseFD, was.Path, func() {}, Drift{}
	}
	fd, err := hostfs.OpenDeep(fs, baseFD, dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	switch err {
	case nil:
		return fd, baseName(was.Path), func() { _ = fs.Close(fd) }, Drift{}
	case unix.ENOENT:
		if !was.Exists {
			return -1, "", nil, Drift{}
		}
		return -1, "", nil, Drift{DriftDeleted, was.Path, "it was deleted on the host with its directory"}
	case unix.ENOTDIR, unix.ELOOP:
		return -1, "", nil, Drift{DriftParent, was.Path, "a directory above it was replaced on the host by something else"}
	}
	return -1, "", nil, Drift{DriftUnreadable, was.Path, "cannot be examined: " + err.Error()}
}

// compareFacts decides on a path that exists, as it was recorded to.
func compareFacts(fs hostfs.FS, dirfd int, name string, st *unix.Statx_t, was *overlay.Was) Drift {
	mode := uint32(st.Mode)
	if mode&unix.S_IFMT != was.Mode&unix.S_IFMT {
		return Drift{DriftType, was.Path, "the " + TypeName(was.Mode) + " became a " + TypeName(mode) + " on the host"}
	}
	if was.ID == (overlay.HostID{}) {
		return Drift{}
	}
	sameID := st.Ino == was.ID.Ino && unix.Mkdev(st.Dev_major, st.Dev_minor) == was.ID.Dev
	if mode&unix.S_IFMT == unix.S_IFDIR && !sameID {
		return Drift{DriftReplaced, was.Path, "the directory was replaced by another one on the host"}
	}
	if text := metaDiffers(st, was); text != "" {
		return Drift{DriftMeta, was.Path, text}
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return compareFile(fs, dirfd, name, st, was, sameID)
	case unix.S_IFLNK:
		target, err := fs.Readlink(dirfd, name)
		if err != nil {
			return Drift{DriftUnreadable, was.Path, "cannot be examined: " + err.Error()}
		}
		if target != was.Target {
			return Drift{DriftContent, was.Path, "the symbolic link points elsewhere now"}
		}
	}
	return Drift{}
}

// metaDiffers says how mode, owner or device number differ, "" if they do not.
func metaDiffers(st *unix.Statx_t, was *overlay.Was) string {
	switch {
	case uint32(st.Mode) != was.Mode && was.Mode&unix.S_IFMT != unix.S_IFLNK:
		return fmt.Sprintf("its mode changed on the host from %04o to %04o", was.Mode&0o7777, st.Mode&0o7777)
	case st.Uid != was.UID || st.Gid != was.GID:
		return fmt.Sprintf("its owner changed on the host from %d:%d to %d:%d", was.UID, was.GID, st.Uid, st.Gid)
	case unix.Mkdev(st.Rdev_major, st.Rdev_minor) != was.Rdev:
		return "its device number changed on the host"
	}
	return ""
}

// compareFile decides on a regular file of unchanged mode and owner.
func compareFile(fs hostfs.FS, dirfd int, name string, st *unix.Statx_t, was *overlay.Was, sameID bool) Drift {
	if int64(st.Size) != was.Size {
		return Drift{DriftContent, was.Path, fmt.Sprintf("its content changed on the host (%d bytes, was %d)", st.Size, was.Size)}
	}
	same := sameID && timeOf(st.Mtime) == was.Mtime && timeOf(st.Ctime) == was.Ctime
	if same && !(was.HasDigest && racy(was)) {
		return Drift{}
	}
	if !was.HasDigest {
		return Drift{DriftContent, was.Path, "it was written or replaced on the host"}
	}
	sum, err := hashAt(fs, dirfd, name)
	if err != nil {
		return Drift{DriftUnreadable, was.Path, "cannot be read: " + err.Error()}
	}
	if sum != was.Digest {
		return Drift{DriftContent, was.Path, "its content changed on the host"}
	}
	return Drift{}
}

// racy reports whether a write after the facts were read could have left the
// times as they were: they were read within the same tick of the clock that
// stamps files, which is at most 10 ms long, or, on a file system that keeps
// whole seconds (two on some), within two seconds.
func racy(was *overlay.Was) bool {
	slack := 10 * time.Millisecond
	if was.Ctime.Nsec == 0 && was.Mtime.Nsec == 0 {
		slack = 2 * time.Second
	}
	changed := time.Unix(was.Ctime.Sec, int64(was.Ctime.Nsec))
	seen := time.Unix(was.Seen.Sec, int64(was.Seen.Nsec))
	return !changed.Add(slack).Before(seen)
}

func timeOf(ts unix.StatxTimestamp) overlay.Time { return overlay.Time{Sec: ts.Sec, Nsec: ts.Nsec} }
