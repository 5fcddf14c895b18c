package commit

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// facts are what a commit knows of one node of the host as it is about to be
// moved: enough to know it again wherever it is, after a reboot too, and to see
// whether anybody wrote to it meanwhile.
//
// The device number is not among them: it may be another one after a reboot.
// A node is only ever looked for on the file system of the stage that it came
// from or goes to.
type facts struct {
	Ino   uint64       `json:"ino"`
	Btime overlay.Time `json:"btime"` // zero where the file system has none
	Mode  uint32       `json:"mode"`
	UID   uint32       `json:"uid"`
	GID   uint32       `json:"gid"`
	Nlink uint32       `json:"nlink"`
	Size  int64        `json:"size"`
	Rdev  uint64       `json:"rdev,omitempty"`
	Mtime overlay.Time `json:"mtime"`
	Ctime overlay.Time `json:"ctime"`
	// Digest of a regular file's content, where it is known.
	Digest *digest `json:"digest,omitempty"`
}

type digest [sha256.Size]byte

// MarshalText writes a digest in hexadecimal.
func (d digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText reads what MarshalText wrote.
func (d *digest) UnmarshalText(text []byte) error {
	if len(text) != 2*len(d) {
		return fmt.Errorf("a digest of %d digits, expected %d", len(text), 2*len(d))
	}
	_, err := hex.Decode(d[:], text)
	return err
}

func (f *facts) isDir() bool { return f.Mode&unix.S_IFMT == unix.S_IFDIR }

func timeOf(ts unix.StatxTimestamp) overlay.Time { return overlay.Time{Sec: ts.Sec, Nsec: ts.Nsec} }

func factsOf(st *unix.Statx_t) facts {
	f := facts{
		Ino: st.Ino, Mode: uint32(st.Mode), UID: st.Uid, GID: st.Gid, Nlink: st.Nlink, Size: int64(st.Size),
		Rdev: unix.Mkdev(st.Rdev_major, st.Rdev_minor), Mtime: timeOf(st.Mtime), Ctime: timeOf(st.Ctime),
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		f.Btime = timeOf(st.Btime)
	}
	return f
}

// sameNode reports whether g is the very node that f describes: inode, birth
// time and type. A number that was freed and used again has another birth time.
func (f *facts) sameNode(g *facts) bool {
	return f.Ino == g.Ino && f.Btime == g.Btime && f.Mode&unix.S_IFMT == g.Mode&unix.S_IFMT
}

// differs says how the node at g (the same node) was changed since f, "" if it
// was not. A rename changes the ctime of what it moves, under all its names, so
// that is compared only where the node itself did not move and has no other
// name. Of a directory, times and size follow its entries, which are compared
// one by one, and the owner's own permission may be lent to the commit.
func (f *facts) differs(g *facts, moved bool) string {
	switch {
	case f.isDir() && f.Mode|0o300 == g.Mode|0o300 && f.UID == g.UID && f.GID == g.GID:
		return ""
	case f.Mode != g.Mode:
		return fmt.Sprintf("its mode changed on the host from %04o to %04o", f.Mode&0o7777, g.Mode&0o7777)
	case f.UID != g.UID || f.GID != g.GID:
		return fmt.Sprintf("its owner changed on the host from %d:%d to %d:%d", f.UID, f.GID, g.UID, g.GID)
	case f.Size != g.Size || f.Mtime != g.Mtime || f.Rdev != g.Rdev:
		return "its content changed on the host"
	case !moved && f.Nlink == 1 && f.Ctime != g.Ctime:
		return "it was changed on the host"
	}
	return ""
}

// hashFD is the SHA-256 of the regular file behind a descriptor.
func hashFD(fs hostfs.FS, fd int) (digest, error) {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	h := sha256.New()
	for off := int64(0); ; {
		n, err := fs.Pread(fd, *buf, off)
		if err != nil {
			return digest{}, err
		}
		if n == 0 {
			return digest(h.Sum(nil)), nil
		}
		h.Write((*buf)[:n])
		off += int64(n)
	}
}

// hashAt is the SHA-256 of the regular file name in dirfd. O_NONBLOCK keeps a
// fifo that was swapped in from blocking.
func hashAt(fs hostfs.FS, dirfd int, name string) (digest, error) {
	fd, err := fs.Open(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return digest{}, err
	}
	defer fs.Close(fd)
	return hashFD(fs, fd)
}

// volume is what rename(2) cannot leave: a mount, and on it one device (a btrfs
// subvolume has a device number of its own).
type volume struct {
	mount, dev uint64
}

func volumeOf(st *unix.Statx_t) volume {
	return volume{st.Mnt_id, unix.Mkdev(st.Dev_major, st.Dev_minor)}
}
