package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mountInfo is the kernel's list of this process's mounts, see proc(5).
const mountInfo = "/proc/self/mountinfo"

// fuseControl is where the kernel shows FUSE connections by device minor, when
// fusectl is mounted (Linux documentation, filesystems/fuse).
const fuseControl = "/sys/fs/fuse/connections"

// deadTimeout is how long a mount may take to answer before it counts as
// hung. A hung mount is not a dead one.
const deadTimeout = 2 * time.Second

// ErrHung: the server of a mount is there, but did not answer in time.
var ErrHung = errors.New("the server of the mount does not answer")

// Mount is one Galley mount of this process's mount namespace.
type Mount struct {
	ID     int    // the kernel's number of the mount
	Minor  uint32 // of the device; also the number of the FUSE connection
	Dir    string // where it is mounted
	FsName string
	UID    uint32 // who mounted it, as this user namespace sees it
}

// Mounts lists the Galley mounts of this mount namespace, the oldest first; a
// directory that was mounted over twice is listed twice.
func Mounts() ([]Mount, error) {
	data, err := os.ReadFile(mountInfo)
	if err != nil {
		return nil, err
	}
	var out []Mount
	for line := range bytes.Lines(data) {
		m, ok := parseMountInfo(string(line))
		if ok && m.fstype == "fuse."+Subtype {
			out = append(out, m.Mount)
		}
	}
	return out, nil
}

// infoLine is one line of mountinfo.
type infoLine struct {
	Mount
	parent int
	dev    string // major:minor
	fstype string
}

// parseMountInfo reads a line as proc_pid_mountinfo(5) has it: id, parent,
// major:minor, root, mount point, options, optional fields, a lone "-", type,
// source, options of the file system.
func parseMountInfo(line string) (infoLine, bool) {
	f := strings.Fields(line)
	sep := -1
	for i := 6; i < len(f); i++ {
		if f[i] == "-" {
			sep = i
			break
		}
	}
	if sep < 0 || len(f) < sep+4 {
		return infoLine{}, false
	}
	var m infoLine
	var err error
	if m.ID, err = strconv.Atoi(f[0]); err != nil {
		return infoLine{}, false
	}
	if m.parent, err = strconv.Atoi(f[1]); err != nil {
		return infoLine{}, false
	}
	m.dev = f[2]
	_, minor, _ := strings.Cut(f[2], ":")
	n, err := strconv.ParseUint(minor, 10, 32)
	if err != nil {
		return infoLine{}, false
	}
	m.Minor = uint32(n)
	m.Dir = unescapeMount(f[4])
	m.fstype, m.FsName = f[sep+1], unescapeMount(f[sep+2])
	for opt := range strings.SplitSeq(f[sep+3], ",") {
		if v, ok := strings.CutPrefix(opt, "user_id="); ok {
			n, _ := strconv.ParseUint(v, 10, 32)
			m.UID = uint32(n)
		}
	}
	return m, true
}

// unescapeMount undoes the kernel's octal escapes of space, tab, newline,
// backslash and #.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out = append(out, byte(n))
				i += 3
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}

// mountAt is the topmost mount at dir, of any type.
func mountAt(dir string) (infoLine, error) {
	data, err := os.ReadFile(mountInfo)
	if err != nil {
		return infoLine{}, err
	}
	var found infoLine
	ok := false
	for line := range bytes.Lines(data) {
		if m, good := parseMountInfo(string(line)); good && m.Dir == dir {
			found, ok = m, true
		}
	}
	if !ok {
		return infoLine{}, fmt.Errorf("%s is not a mount point", dir)
	}
	return found, nil
}

// Alive asks the mount's server for the file system's figures, which the
// kernel never caches. It returns nil if it answers, ENOTCONN wrapped if
// there is none any more, and [ErrHung] if none came in two seconds or before
// ctx ended. A hung server keeps one thread of this process until it answers
// or dies.
func (m Mount) Alive(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, deadTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		for {
			err := unix.Statfs(m.Dir, &st)
			switch err {
			case unix.EINTR:
			case unix.ECONNABORTED, unix.ECANCELED:
				// The server has just gone; the kernel takes its connection
				// down, in the background where it was over io_uring.
				select {
				case <-ctx.Done():
					done <- err
					return
				case <-time.After(time.Millisecond):
				}
			default:
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		if err != nil {
			return &os.PathError{Op: "statfs", Path: m.Dir, Err: err}
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", m.Dir, ErrHung)
	}
}

// Dead lists the Galley mounts whose server is gone. Only the topmost of
// several mounts at one directory can be asked.
func Dead(ctx context.Context) ([]Mount, error) {
	all, err := Mounts()
	if err != nil {
		return nil, err
	}
	var dead []Mount
	for i, m := range all {
		if covered(all[i+1:], m.Dir) {
			continue
		}
		if errors.Is(m.Alive(ctx), unix.ENOTCONN) {
			dead = append(dead, m)
		}
	}
	return dead, nil
}

func covered(later []Mount, dir string) bool {
	for _, m := range later {
		if m.Dir == dir {
			return true
		}
	}
	return false
}

// ClearDead unmounts every dead Galley mount that this user may unmount and
// returns those it cleared. Mounts that are alive, or of other users, are left
// alone. What it could not clear is in the error, which names each directory.
func ClearDead(ctx context.Context) ([]Mount, error) {
	var cleared []Mount
	for {
		dead, err := Dead(ctx)
		if err != nil {
			return cleared, err
		}
		var failed []error
		progress := false
		for _, m := range dead {
			if uid := os.Geteuid(); uid != 0 && m.UID != uint32(uid) {
				continue
			}
			if err := detach(ctx, m.Dir); err != nil {
				failed = append(failed, err)
				continue
			}
			cleared, progress = append(cleared, m), true
		}
		// A dead mount may have lain on top of another.
		if !progress {
			return cleared, errors.Join(failed...)
		}
	}
}

// Abort ends the connection of a mount from outside: every call on it fails
// with ENOTCONN from then on, and its server, if it hangs, gets no more
// requests. It needs fusectl mounted at /sys/fs/fuse/connections, and to be
// the user who mounted or root.
func Abort(m Mount) error {
	name := filepath.Join(fuseControl, strconv.FormatUint(uint64(m.Minor), 10), "abort")
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("abort the mount at %s: %w; as root: mount -t fusectl none %s", m.Dir, err, fuseControl)
		}
		return fmt.Errorf("abort the mount at %s: %w", m.Dir, err)
	}
	defer f.Close()
	if _, err := f.WriteString("1"); err != nil {
		return fmt.Errorf("abort the mount at %s: %w", m.Dir, err)
	}
	return nil
}
