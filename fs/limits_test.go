package fs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// down opens the directory at a path of any length beneath root.
func down(t testing.TB, root, path string) int {
	t.Helper()
	top, err := hostfs.OpenRoot(root)
	must(t, err)
	defer unix.Close(top)
	fd, err := hostfs.OpenDeep(hostfs.OS, top, path, unix.O_RDONLY|unix.O_DIRECTORY)
	must(t, err)
	return fd
}

// deepen makes depth directories of that name below each other.
func deepen(t testing.TB, fd int, name string, depth int) {
	t.Helper()
	for range depth {
		must(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = next
	}
	must(t, unix.Close(fd))
}

func putAt(t testing.TB, dir int, name, text string) {
	t.Helper()
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	must(t, err)
	_, err = unix.Write(fd, []byte(text))
	must(t, err)
	must(t, unix.Close(fd))
}

func getAt(t testing.TB, dir int, name string) string {
	t.Helper()
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	buf := make([]byte, 64)
	n, err := unix.Read(fd, buf)
	must(t, err)
	return string(buf[:n])
}

// TestDeeperThanAPath: what no path can name can be read, changed, added to,
// renamed and removed through a mount, and names may have 255 bytes.
func TestDeeperThanAPath(t *testing.T) {
	s := mount(t, serveConfig{})
	const depth = 25 // of 255 bytes each: half as much again as PATH_MAX
	name := strings.Repeat("n", 255)
	path := strings.TrimSuffix(strings.Repeat(name+"/", depth), "/")
	top, err := unix.Open(s.Base, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	deepen(t, top, name, depth)
	host := down(t, s.Base, path)
	defer unix.Close(host)
	putAt(t, host, "leaf", "deep")

	dir := down(t, s.Dir, path)
	if got := getAt(t, dir, "leaf"); got != "deep" {
		t.Errorf("the deepest file holds %q", got)
	}
	putAt(t, dir, "leaf", "DEEP")
	again, err := unix.Dup(dir)
	must(t, err)
	deepen(t, again, name, depth)
	moved := strings.Repeat("m", 255)
	must(t, os.Rename(s.path(name), s.path(moved)))
	if got := getAt(t, dir, "leaf"); got != "DEEP" {
		t.Errorf("the open directory's file holds %q", got)
	}
	must(t, unix.Close(dir))

	dir = down(t, s.Dir, moved+path[len(name):])
	if got := getAt(t, dir, "leaf"); got != "DEEP" {
		t.Errorf("after the rename: %q", got)
	}
	must(t, unix.Close(dir))
	if got := getAt(t, host, "leaf"); got != "deep" {
		t.Errorf("the base now holds %q", got)
	}
	must(t, os.RemoveAll(s.path(moved)))
	if err := unix.Mkdir(s.path(name+"n"), 0o755); err != unix.ENAMETOOLONG {
		t.Errorf("mkdir of a name of 256 bytes: %v", err)
	}
}

// TestOpenFilesGoOn: a file that is open, for reading, for writing and mapped,
// stays the same file while it is copied up, renamed, sealed, unlinked and
// sealed again.
func TestOpenFilesGoOn(t *testing.T) {
	s := mount(t, serveConfig{})
	r, err := os.Open(s.path("dir/c.txt"))
	must(t, err)
	defer r.Close()
	w, err := os.OpenFile(s.path("dir/c.txt"), os.O_RDWR, 0)
	must(t, err)
	defer w.Close()
	mem, err := unix.Mmap(int(r.Fd()), 0, 6, unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	defer func() { must(t, unix.Munmap(mem)) }()
	var first unix.Stat_t
	must(t, unix.Fstat(int(r.Fd()), &first))
	check := func(when, want string, links uint64) {
		t.Helper()
		got := make([]byte, 64)
		n, _ := r.ReadAt(got, 0)
		if string(got[:n]) != want {
			t.Errorf("%s: the reader sees %q, want %q", when, got[:n], want)
		}
		if !bytes.Equal(mem, []byte(want)[:6]) {
			t.Errorf("%s: the mapping shows %q, want %q", when, mem, want[:6])
		}
		var st unix.Stat_t
		must(t, unix.Fstat(int(w.Fd()), &st))
		if st.Ino != first.Ino || uint64(st.Nlink) != links || st.Size != int64(len(want)) {
			t.Errorf("%s: inode %d (was %d), %d links, size %d; want %d links", when, st.Ino, first.Ino, st.Nlink, st.Size, links)
		}
	}
	write := func(text string) {
		t.Helper()
		_, err := w.WriteAt([]byte(text), 0)
		must(t, err)
	}
	check("at first", "gamma\n", 1)
	write("copied")
	check("after copy-up", "copied", 1)
	must(t, os.Rename(s.path("dir/c.txt"), s.path("dir/sub/e.txt")))
	write("renamed")
	check("after a rename", "renamed", 1)
	must(t, os.Rename(s.path("dir"), s.path("moved")))
	check("after a rename of its directory", "renamed", 1)
	s.do(command{Op: "seal", Layer: 2})
	check("after a seal", "renamed", 1)
	write("SEALED!")
	check("written after a seal", "SEALED!", 1)
	must(t, os.Remove(s.path("moved/sub/e.txt")))
	check("unlinked", "SEALED!", 0)
	write("orphan!")
	check("written when unlinked", "orphan!", 0)
	s.do(command{Op: "seal", Layer: 3})
	write("orphan?")
	check("sealed when unlinked", "orphan?", 0)
	must(t, w.Sync())
	must(t, os.WriteFile(s.path("moved/sub/e.txt"), []byte("another"), 0o644))
	check("another took its name", "orphan?", 0)
}

// TestInodeNumbersOverRemounts: a mount made anew, by another process, shows
// the same inode numbers, of what was copied up and sealed too.
func TestInodeNumbersOverRemounts(t *testing.T) {
	s := mount(t, serveConfig{})
	must(t, os.WriteFile(s.path("a.txt"), []byte("A"), 0o644))
	s.do(command{Op: "seal", Layer: 2})
	must(t, os.Rename(s.path("dir"), s.path("moved")))
	must(t, os.WriteFile(s.path("own"), []byte("o"), 0o644))
	list := func(s *served) (out []string) {
		for _, name := range []string{"", "a.txt", "b.txt", "moved", "moved/c.txt", "moved/sub/d.txt", "own"} {
			var st unix.Stat_t
			must(t, unix.Lstat(s.path(name), &st))
			out = append(out, fmt.Sprint(name, " ", st.Ino))
		}
		return out
	}
	before := list(s)
	stack := s.do(command{Op: "stack"}).Stack
	s.stop()
	again := mount(t, serveConfig{Base: s.Base, State: s.cfg.State, Stack: &stack})
	if got := list(again); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Errorf("inodes %v, were %v", got, before)
	}
}

// TestHostMovesADirectoryUnderAMount: the host renames a directory that the
// session has changed something in, while it is mounted and looked at. The view
// shows an error or what the session wrote, never an empty directory.
func TestHostMovesADirectoryUnderAMount(t *testing.T) {
	s := mount(t, serveConfig{})
	must(t, os.WriteFile(s.path("dir/c.txt"), []byte("mine\n"), 0o644))
	names(t, s.path("dir"))
	names(t, s.path("dir/sub"))
	must(t, os.Rename(s.Base+"/dir", s.Base+"/elsewhere"))
	s.shows("elsewhere/sub/d.txt", "delta\n")
	for _, dir := range []string{"dir", "dir/sub"} {
		list, err := os.ReadDir(s.path(dir))
		if err == nil && len(list) == 0 {
			t.Errorf("%s is shown empty", dir)
		}
	}
	if got := string(s.do(command{Op: "read", Path: "dir/c.txt"}).Data); got != "mine\n" {
		t.Errorf("what the session wrote: %q", got)
	}
}

// TestHugeFileThroughAMount: 8 TiB with holes are written at both ends, read,
// searched and copied up as what they are.
func TestHugeFileThroughAMount(t *testing.T) {
	const size = 8 << 40
	s := mount(t, serveConfig{})
	host, err := os.OpenFile(s.Base+"/huge", os.O_CREATE|os.O_RDWR, 0o644)
	must(t, err)
	defer host.Close()
	if err := host.Truncate(size); err != nil {
		t.Skipf("the kernel has no files of 8 TiB on this file system: %v", err)
	}
	_, err = host.WriteAt([]byte("middle"), size/2)
	must(t, err)
	f, err := os.OpenFile(s.path("huge"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("end"), size-3)
	must(t, err)
	_, err = f.WriteAt([]byte("beyond"), size+1<<20)
	must(t, err)
	must(t, f.Sync())
	for off, want := range map[int64]string{0: "\x00\x00", size / 2: "middle", size - 3: "end", size + 1<<20: "beyond"} {
		got := make([]byte, len(want))
		_, err := f.ReadAt(got, off)
		must(t, err)
		if string(got) != want {
			t.Errorf("at %d: %q, want %q", off, got, want)
		}
	}
	if at, err := f.Seek(1<<30, unix.SEEK_DATA); err != nil || at > size/2 || at < size/2-1<<20 {
		t.Errorf("the data behind 1 GiB is at %d, %v; want %d", at, err, int64(size/2))
	}
	if at, err := f.Seek(size/2, unix.SEEK_HOLE); err != nil || at <= size/2 || at > size/2+1<<20 {
		t.Errorf("the hole behind the middle is at %d, %v", at, err)
	}
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	if st.Size != size+1<<20+6 || st.Blocks > 1<<13 {
		t.Errorf("size %d, %d blocks", st.Size, st.Blocks)
	}
	if st, err := host.Stat(); err != nil || st.Size() != size {
		t.Errorf("the base's file has %d bytes, %v", st.Size(), err)
	}
}

// TestReadingCopiesNothing: looking at everything through a mount, and opening
// it for writing without writing, leaves the layer empty.
func TestReadingCopiesNothing(t *testing.T) {
	s := mount(t, serveConfig{})
	must(t, filepath.WalkDir(s.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := unix.Listxattr(path, make([]byte, 64)); err != nil {
			return err
		}
		_, err = f.Read(make([]byte, 64))
		return err
	}))
	if list, err := os.ReadDir(s.cfg.State + "/layers/1/tree"); err != nil || len(list) != 0 {
		t.Errorf("the layer holds %v, %v", list, err)
	}
}
