package overlay

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// writerHost is a host on which somebody writes to a file of the base at the
// worst moment: between the calls that copy it.
type writerHost struct {
	hostfs.FS
	clones bool // the file system shares blocks
	during func()
}

func (h *writerHost) CopyRange(src int, srcOff int64, dst int, dstOff int64, n int) (int, error) {
	c, err := h.FS.CopyRange(src, srcOff, dst, dstOff, min(n, 1<<20))
	h.during()
	return c, err
}

func (h *writerHost) Pread(fd int, p []byte, off int64) (int, error) {
	c, err := h.FS.Pread(fd, p[:min(len(p), 100<<10)], off)
	h.during()
	return c, err
}

// Clone copies where the test's file system may have no clones: as much as
// there is, at once.
func (h *writerHost) Clone(dst, src int) error {
	if !h.clones {
		return unix.EOPNOTSUPP
	}
	var st unix.Statx_t
	if err := h.FS.Stat(src, "", &st); err != nil {
		return err
	}
	for off := int64(0); off < int64(st.Size); {
		n, err := h.FS.CopyRange(src, off, dst, off, int(int64(st.Size)-off))
		if err != nil || n == 0 {
			return err
		}
		off += int64(n)
	}
	h.during()
	return nil
}

// openOn opens the tree in dir on another host than hostfs.OS.
func openOn(t *testing.T, h hostfs.FS, dir string, maxFDs int) (*Tree, *Face) {
	t.Helper()
	base, err := OpenBase(h, filepath.Join(dir, "base"))
	must(t, err)
	tr, err := Open(Config{Name: "workspace", StateDir: filepath.Join(dir, "state"), Base: base, FS: h, MaxFDs: maxFDs, NoWatch: true}, Stack{Active: 1})
	must(t, err)
	return tr, tr.Attach(nil)
}

// TestCopyUpAgainstAWriter: whatever way a file is copied, and whatever a
// writer on the host does to it meanwhile, the layer gets one version of it, or
// the program an error and the layer nothing.
func TestCopyUpAgainstAWriter(t *testing.T) {
	version := func(c byte, size int) []byte { return bytes.Repeat([]byte{c}, size) }
	inPlace := func(name string, c byte, size int) error {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt(version(c, size), 0)
		return err
	}
	for _, how := range []struct {
		name   string
		size   int
		clones bool
		chmod  bool // first, so that the content of a metadata-only copy is filled in
	}{
		{"small", 300 << 10, false, false},
		{"large", 3 << 20, false, false},
		{"cloned", 3 << 20, true, false},
		{"filled", 3 << 20, false, true},
	} {
		for _, edit := range []struct {
			name string
			do   func(name string, c byte, size int) error
			gone bool // the file that was there is another one then
		}{
			{"in place", inPlace, false},
			{"shorter", func(name string, c byte, size int) error {
				if err := os.Truncate(name, int64(size/2)); err != nil {
					return err
				}
				return inPlace(name, c, size/2)
			}, false},
			{"replaced", func(name string, c byte, size int) error {
				if err := os.WriteFile(name+".new", version(c, size), 0o644); err != nil {
					return err
				}
				return os.Rename(name+".new", name)
			}, true},
		} {
			t.Run(how.name+"/"+edit.name, func(t *testing.T) {
				tr, f, dir := newTestTree(t, nil)
				closeTree(t, tr, f)
				name := filepath.Join(dir, "base", "f")
				must(t, os.WriteFile(name, version('a', how.size), 0o644))
				h := &writerHost{FS: hostfs.OS, clones: how.clones, during: func() {}}
				tr, f = openOn(t, h, dir, 0)
				defer closeTree(t, tr, f)
				n, _ := walk(t, f, "f")
				defer f.Forget(n, 1)
				if how.chmod {
					mode := uint32(0o600)
					_, err := f.Setattr(n, SetAttr{Mode: &mode})
					must(t, err)
				}
				edits := 0
				h.during = func() {
					if edits < 2 {
						edits++
						must(t, edit.do(name, 'a'+byte(edits), how.size))
					}
				}
				_, err := f.Write(n, []byte("!"), 0)
				if edits == 0 {
					t.Fatal("the host did not write during the copy")
				}
				if edit.gone && Errno(err) == unix.ESTALE {
					return
				}
				must(t, err)
				want, err := os.ReadFile(name)
				must(t, err)
				want[0] = '!'
				got := make([]byte, how.size)
				k, err := f.Read(n, got, 0)
				must(t, err)
				if !bytes.Equal(got[:k], want) {
					t.Errorf("the copy has %d bytes, %q to %q; want %d, %q to %q",
						k, got[:4], got[max(k-4, 0):k], len(want), want[:4], want[len(want)-4:])
				}
			})
		}
	}
}

// TestCopyUpGivesUp: a file that the host never stops writing is an error, and
// nothing of it stays; once the writer stops, it can be changed.
func TestCopyUpGivesUp(t *testing.T) {
	tr, f, dir := newTestTree(t, nil)
	closeTree(t, tr, f)
	name := filepath.Join(dir, "base", "f")
	must(t, os.WriteFile(name, make([]byte, 2<<20), 0o644))
	h := &writerHost{FS: hostfs.OS}
	edits := 0
	writes := func() {
		edits++
		must(t, os.WriteFile(name, bytes.Repeat([]byte{byte(edits)}, 2<<20+edits), 0o644))
	}
	h.during = writes
	tr, f = openOn(t, h, dir, 0)
	defer closeTree(t, tr, f)
	n, _ := walk(t, f, "f")
	defer f.Forget(n, 1)
	if _, err := f.Write(n, []byte("!"), 0); Errno(err) != unix.EBUSY {
		t.Errorf("write: %v, want %v", err, unix.EBUSY)
	}
	for _, d := range []string{"scratch", "layers/1/tree"} {
		if left, err := os.ReadDir(filepath.Join(dir, "state", d)); err != nil || len(left) != 0 {
			t.Errorf("left in %s: %v, %v", d, left, err)
		}
	}
	h.during = func() {}
	_, err := f.Write(n, []byte("!"), 0)
	must(t, err)
	if a, err := f.Getattr(n); err != nil || a.Size != int64(2<<20+edits) {
		t.Errorf("size %d, %v; want %d", a.Size, err, 2<<20+edits)
	}
}

// extents lists where data and holes begin.
func extents(t *testing.T, size int64, seek func(off int64, whence int) (int64, error)) (out []int64) {
	t.Helper()
	for off := int64(0); off < size; {
		data, err := seek(off, unix.SEEK_DATA)
		if Errno(err) == unix.ENXIO {
			break
		}
		must(t, err)
		hole, err := seek(data, unix.SEEK_HOLE)
		must(t, err)
		out = append(out, data, hole)
		off = hole
	}
	return out
}

// TestCopyUpKeeps: holes, xattrs, times, mode and the other names of a file
// come along with a copy, small or large, of content or of metadata alone.
func TestCopyUpKeeps(t *testing.T) {
	for _, size := range []int64{512 << 10, 6 << 20} {
		for _, change := range []string{"content", "metadata"} {
			t.Run(fmt.Sprint(change, "/", size), func(t *testing.T) {
				tr, f, dir := newTestTree(t, map[string]string{"d/x": ""})
				name := filepath.Join(dir, "base", "f")
				fd, err := unix.Open(name, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o640)
				must(t, err)
				defer unix.Close(fd)
				must(t, unix.Ftruncate(fd, size))
				for off := int64(0); off < size; off += size / 4 {
					_, err := unix.Pwrite(fd, bytes.Repeat([]byte{'d'}, 8192), off)
					must(t, err)
				}
				must(t, unix.Fsync(fd)) // delayed blocks would count as data
				must(t, unix.Fsetxattr(fd, "user.note", []byte("kept"), 0))
				must(t, os.Link(name, filepath.Join(dir, "base", "d", "other")))
				ts := []unix.Timespec{{Sec: 1e9, Nsec: 5}, {Sec: 1e9 + 7, Nsec: 123456789}}
				must(t, unix.UtimesNanoAt(unix.AT_FDCWD, name, ts, 0))
				want := extents(t, size, func(off int64, whence int) (int64, error) { return unix.Seek(fd, off, whence) })
				if len(want) < 8 {
					t.Skipf("the kernel has no holes on this file system: %v", want)
				}
				other, before := walk(t, f, "d/other")
				n, _ := walk(t, f, "f")
				if change == "content" {
					_, err = f.Write(n, []byte("D"), 0)
				} else {
					mode := uint32(0o600)
					_, err = f.Setattr(n, SetAttr{Mode: &mode})
				}
				must(t, err)
				f.Forget(n, 1)
				f.Forget(other, 1)
				for _, when := range []string{"live", "reopened"} {
					n, a := walk(t, f, "f")
					m, b := walk(t, f, "d/other")
					if a.Ino != before.Ino || b != a || a.Nlink != 2 {
						t.Errorf("%s: the two names show %+v and %+v; before %+v", when, a, b, before)
					}
					if change == "metadata" && (a.Mtime != before.Mtime || a.Mode&0o7777 != 0o600) || a.Size != size {
						t.Errorf("%s: %+v; before %+v", when, a, before)
					}
					got := extents(t, size, func(off int64, whence int) (int64, error) { return f.Seek(n, off, whence) })
					if fmt.Sprint(got) != fmt.Sprint(want) {
						t.Errorf("%s: data and holes at %v, want %v", when, got, want)
					}
					if v, err := f.Getxattr(m, "user.note"); string(v) != "kept" {
						t.Errorf("%s: its xattr is %q, %v", when, v, err)
					}
					f.Forget(n, 1)
					f.Forget(m, 1)
					closeTree(t, tr, f)
					tr, f, _ = openTestTree(t, dir, Stack{Active: 1})
				}
				closeTree(t, tr, f)
			})
		}
	}
}

// TestDescriptorsAreBounded: 20,000 files are looked at, read and changed, and
// stay known, with a few descriptors.
func TestDescriptorsAreBounded(t *testing.T) {
	dirs, each := 200, 100
	if testing.Short() {
		dirs, each = 40, 20
	}
	const bound = 64
	tr, f, dir := newTestTree(t, nil)
	closeTree(t, tr, f)
	for i := range dirs {
		d := filepath.Join(dir, "base", fmt.Sprint(i))
		must(t, os.Mkdir(d, 0o755))
		for j := range each {
			must(t, os.WriteFile(filepath.Join(d, fmt.Sprint(j)), []byte("text"), 0o644))
		}
	}
	tr, f = openOn(t, hostfs.OS, dir, bound)
	defer closeTree(t, tr, f)
	open := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(list)
	}
	before := open()
	buf := make([]byte, 8)
	var held []*Node
	for i := range dirs {
		d, _ := walk(t, f, fmt.Sprint(i))
		for j := range each {
			n, _, err := f.Lookup(d, fmt.Sprint(j))
			must(t, err)
			_, err = f.Read(n, buf, 0)
			must(t, err)
			if j%10 == 0 {
				_, err = f.Write(n, []byte("TEXT"), 0)
				must(t, err)
			}
			held = append(held, n)
		}
		if fds := tr.Stats().FDs; fds > bound {
			t.Fatalf("%d descriptors are kept, the bound is %d", fds, bound)
		}
		if now := open(); now > before+bound+16 {
			t.Fatalf("the process has %d descriptors open, had %d", now, before)
		}
		held = append(held, d)
	}
	for _, n := range held {
		f.Forget(n, 1)
	}
}

// TestMarksOfAnOrdinaryUser: a whiteout can carry no user xattr, and a link
// none either: in a layer of an ordinary user whiteouts are devices without
// any, and a moved or chowned link is known by the record.
func TestMarksOfAnOrdinaryUser(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"base/d", "state"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(dir, "base/f"), []byte("x"), 0o644))
	must(t, os.Symlink("f", filepath.Join(dir, "base/l")))
	state := filepath.Join(dir, "state")
	must(t, InitState(nil, state, 1))
	open := func() (*Tree, *Face) {
		base, err := OpenBase(nil, filepath.Join(dir, "base"))
		must(t, err)
		tr, err := Open(Config{Name: "workspace", StateDir: state, Base: base, UserXattr: true}, Stack{Active: 1})
		must(t, err)
		return tr, tr.Attach(nil)
	}
	tr, f := open()
	must(t, f.Unlink(f.Root(), "f"))
	d, _ := walk(t, f, "d")
	must(t, f.Rename(f.Root(), "l", d, "l", 0))
	f.Forget(d, 1)
	for _, name := range []string{"f", "l"} {
		at := filepath.Join(state, "layers/1/tree", name)
		var st unix.Stat_t
		must(t, unix.Lstat(at, &st))
		if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("whiteout of %s: mode %o, device %d", name, st.Mode, st.Rdev)
		}
		if err := unix.Lsetxattr(at, "user.overlay.x", []byte("y"), 0); err != unix.EPERM {
			t.Errorf("a whiteout took a user xattr: %v", err)
		}
	}
	if err := unix.Lsetxattr(filepath.Join(state, "layers/1/tree/d/l"), "user.overlay.x", []byte("y"), 0); err != unix.EPERM {
		t.Errorf("a link took a user xattr: %v", err)
	}
	closeTree(t, tr, f)
	// Also where only the layer's tree can tell, after a crash.
	must(t, os.Remove(filepath.Join(state, "index")))
	must(t, os.WriteFile(filepath.Join(state, "dirty"), nil, 0o600))
	tr, f = open()
	defer closeTree(t, tr, f)
	if got := names(t, f, f.Root()); got != "d" {
		t.Errorf("the root lists %q", got)
	}
	n, _ := walk(t, f, "d/l")
	if to, err := f.Readlink(n); to != "f" {
		t.Errorf("the link points to %q, %v", to, err)
	}
	f.Forget(n, 1)
	if w, ok := f.WasAt("l"); !ok || w.Target != "f" {
		t.Errorf("of the base's link is recorded: %+v, %v", w, ok)
	}
}
