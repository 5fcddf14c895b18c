package snapshots

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// resolveBase is the canonical path of a directory that can be a base, or an
// error that says why it cannot.
func (s *Store) resolveBase(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("base %q: %w: %w", path, ErrBadBase, err)
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", fmt.Errorf("base %q: %w: %w", path, ErrBadBase, err)
	}
	fd, err := unix.Open(real, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	switch {
	case err == unix.ENOTDIR:
		return "", fmt.Errorf("base %q: %w: a directory is needed: %w", real, ErrBadBase, err)
	case err == unix.EACCES:
		return "", fmt.Errorf("base %q: %w: you may not list it: %w", real, ErrBadBase, err)
	case err != nil:
		return "", fmt.Errorf("base %q: %w: %w", real, ErrBadBase, err)
	}
	defer unix.Close(fd)
	if err := unix.Faccessat(fd, ".", unix.X_OK, unix.AT_EACCESS); err != nil {
		return "", fmt.Errorf("base %q: %w: you may not enter it: %w", real, ErrBadBase, err)
	}
	if beneath(s.home, real) {
		return "", fmt.Errorf("base %q: %w: it lies in Galley's own state, %q", real, ErrBadBase, s.home)
	}
	galley, err := onGalleyMount(fd)
	if err != nil {
		return "", fmt.Errorf("base %q: find its mount: %w", real, err)
	}
	if galley {
		return "", fmt.Errorf("base %q: %w: it is itself shown by Galley; name the directory of the host, outside the session",
			real, ErrBadBase)
	}
	return real, nil
}

// beneath tells whether path is dir or lies in it. Both are clean.
func beneath(dir, path string) bool {
	rest, ok := strings.CutPrefix(path, dir)
	return ok && (rest == "" || rest[0] == '/' || dir == "/")
}

// onGalleyMount tells whether fd lies on a FUSE mount of Galley. The mount is
// looked up by its id (statx(2), STATX_MNT_ID): paths may be covered by other
// mounts.
func onGalleyMount(fd int) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return false, err
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return false, unix.ENOSYS
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	defer f.Close()
	want := strconv.FormatUint(st.Mnt_id, 10)
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if id, rest, ok := strings.Cut(lines.Text(), " "); ok && id == want {
			return isGalley(rest), nil
		}
	}
	return false, lines.Err()
}

// isGalley reads the end of a line of mountinfo (proc(5)): after the field "-"
// come the type, the source and the options of the file system. A mount may
// have been given another subtype, or another source, but hardly both.
func isGalley(line string) bool {
	_, tail, ok := strings.Cut(line, " - ")
	if !ok {
		return false
	}
	f := strings.Fields(tail)
	if len(f) < 2 {
		return false
	}
	return f[0] == "fuse.galley" || strings.HasPrefix(f[0], "fuse") && f[1] == "galley"
}
