package overlay

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

// must ends the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func closeTree(t *testing.T, tr *Tree, f *Face) {
	t.Helper()
	f.Detach()
	must(t, tr.Close())
}

// sealTo seals the active layer and makes next the active one.
func sealTo(t *testing.T, tr *Tree, next LayerID) {
	t.Helper()
	must(t, tr.Prepare(next))
	b := Quiesce(tr)
	defer b.Release()
	must(t, b.Seal(next))
}

func walk(t *testing.T, f *Face, path string) (*Node, Attr) {
	t.Helper()
	n, a, err := f.Walk(path)
	if err != nil {
		t.Fatalf("walk %.60q: %v", path, err)
	}
	return n, a
}

// TestNames: a component may have 255 bytes, any of them but NUL and the slash.
func TestNames(t *testing.T) {
	long := strings.Repeat("n", 255)
	odd := "\x01\x1b[31m\n\\ \xff\xfe"
	tr, f, dir := newTestTree(t, map[string]string{"d/" + long: "base", "d/" + odd: "odd"})
	d, _ := walk(t, f, "d")
	for _, name := range []string{long, odd} {
		n, _, err := f.Lookup(d, name)
		must(t, err)
		_, err = f.Write(n, []byte("WRIT"), 0)
		must(t, err)
		f.Forget(n, 1)
	}
	own := strings.Repeat("é", 127) + "e"
	n, _, err := f.Create(d, own, 0o644, self())
	must(t, err)
	f.Forget(n, 1)
	must(t, f.Rename(d, long, d, strings.Repeat("m", 255), 0))
	for _, c := range []struct {
		name string
		want unix.Errno
	}{
		{long + "n", unix.ENAMETOOLONG}, {"", unix.EINVAL}, {".", unix.EINVAL}, {"..", unix.EINVAL},
		{"a/b", unix.EINVAL}, {"a\x00b", unix.EINVAL},
	} {
		if _, _, err := f.Create(d, c.name, 0o644, self()); Errno(err) != c.want {
			t.Errorf("create %.20q: %v, want %v", c.name, err, c.want)
		}
	}
	f.Forget(d, 1)
	closeTree(t, tr, f)
	tr, f, _ = openTestTree(t, dir, Stack{Active: 1})
	defer closeTree(t, tr, f)
	if got := read(t, f, "d/"+strings.Repeat("m", 255)); got != "WRIT" {
		t.Errorf("after a remount: %q", got)
	}
	if got := read(t, f, "d/"+odd); got != "WRIT" {
		t.Errorf("after a remount: %q", got)
	}
}

// TestDeeperThanAPath: directories below each other beyond PATH_MAX, of the base
// and of the session, can be read, changed, renamed, compared and removed.
func TestDeeperThanAPath(t *testing.T) {
	tr, f, dir := newTestTree(t, nil)
	const depth, part = 120, 100 // 12 kB of path
	name := strings.Repeat("p", part)
	base, err := hostfs.OpenRoot(filepath.Join(dir, "base"))
	must(t, err)
	defer unix.Close(base)
	at := base
	for range depth {
		must(t, unix.Mkdirat(at, name, 0o755))
		next, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		must(t, err)
		if at != base {
			unix.Close(at)
		}
		at = next
	}
	fd, err := unix.Openat(at, "leaf", unix.O_CREAT|unix.O_WRONLY, 0o644)
	must(t, err)
	_, err = unix.Write(fd, []byte("deep"))
	must(t, err)
	unix.Close(fd)
	unix.Close(at)

	path := strings.TrimSuffix(strings.Repeat(name+"/", depth), "/")
	if got := read(t, f, path+"/leaf"); got != "deep" {
		t.Fatalf("the deepest file holds %q", got)
	}
	leaf, _ := walk(t, f, path+"/leaf")
	_, err = f.Write(leaf, []byte("DEEP"), 0)
	must(t, err)
	f.Forget(leaf, 1)
	// As deep again, in the session.
	cur, _ := walk(t, f, path)
	for range depth {
		n, _, err := f.Mkdir(cur, name, 0o755, self())
		must(t, err)
		f.Forget(cur, 1)
		cur = n
	}
	n, _, err := f.Create(cur, "own", 0o644, self())
	must(t, err)
	f.Forget(n, 1)
	f.Forget(cur, 1)
	// Everything moves at once.
	must(t, f.Rename(f.Root(), name, f.Root(), "moved", 0))
	moved := "moved" + path[part:]
	sealTo(t, tr, 2)
	closeTree(t, tr, f)

	tr, f, _ = openTestTree(t, dir, Stack{Sealed: []Range{{1, 1}}, Active: 2})
	defer closeTree(t, tr, f)
	if got := read(t, f, moved+"/leaf"); got != "DEEP" {
		t.Errorf("after rename and remount: %q", got)
	}
	found := false
	must(t, f.Delta(func(e Entry) error {
		found = found || strings.HasSuffix(e.Path, "/own")
		return nil
	}))
	if !found {
		t.Error("the deepest new file is not in the delta")
	}
	deep := moved + strings.Repeat("/"+name, depth)
	for _, last := range []string{"own", "leaf"} {
		parent := deep
		if last == "leaf" {
			parent = moved
		}
		p, _ := walk(t, f, parent)
		must(t, f.Unlink(p, last))
		f.Forget(p, 1)
	}
	for p := deep; p != ""; {
		up, last := "", p
		if i := strings.LastIndexByte(p, '/'); i >= 0 {
			up, last = p[:i], p[i+1:]
		}
		n, _ := walk(t, f, up)
		if err := f.Rmdir(n, last); err != nil {
			t.Fatalf("remove at depth %d: %v", strings.Count(p, "/"), err)
		}
		f.Forget(n, 1)
		p = up
	}
}

// TestLargeDirectory: a directory of very many entries is listed whole, with
// changes among them, also after a remount. Descriptors stay bounded.
func TestLargeDirectory(t *testing.T) {
	count := 100_000
	switch {
	case os.Getenv("SOAK") != "":
		count = 1_000_000
	case testing.Short():
		count = 2_000
	}
	tr, f, dir := newTestTree(t, map[string]string{"d/0": ""})
	in, err := unix.Open(filepath.Join(dir, "base", "d"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for i := 1; i < count; i++ {
		must(t, unix.Mknodat(in, fmt.Sprint(i), unix.S_IFREG|0o644, 0))
	}
	must(t, unix.Close(in))
	d, _ := walk(t, f, "d")
	want := make(map[string]bool, count)
	for i := range count {
		want[fmt.Sprint(i)] = true
	}
	for i := 0; i < count; i += 50 {
		name := fmt.Sprint(i)
		switch i / 50 % 3 {
		case 0:
			must(t, f.Unlink(d, name))
			delete(want, name)
		case 1:
			must(t, f.Rename(d, name, d, "r"+name, 0))
			delete(want, name)
			want["r"+name] = true
		case 2:
			n, _, err := f.Create(d, "new"+name, 0o644, self())
			must(t, err)
			f.Forget(n, 1)
			want["new"+name] = true
		}
		if fds := tr.Stats().FDs; fds > defaultMaxFDs {
			t.Fatalf("%d descriptors are open", fds)
		}
	}
	check := func(f *Face, d *Node) {
		t.Helper()
		got := make(map[string]bool, count)
		var cookie uint64
		for more := true; more; { // in pieces, as a kernel asks
			more = false
			left := 1000
			must(t, f.ReadDir(d, cookie, func(e DirEntry) bool {
				if got[e.Name] {
					t.Fatalf("%q is listed twice", e.Name)
				}
				got[e.Name], cookie, more = true, e.Cookie, true
				left--
				return left > 0
			}))
		}
		for name := range want {
			if !got[name] {
				t.Fatalf("%q is not listed", name)
			}
		}
		if len(got) != len(want) {
			t.Fatalf("%d names are listed, want %d", len(got), len(want))
		}
	}
	check(f, d)
	f.Forget(d, 1)
	closeTree(t, tr, f)
	tr, f, _ = openTestTree(t, dir, Stack{Active: 1})
	defer closeTree(t, tr, f)
	d, _ = walk(t, f, "d")
	check(f, d)
	f.Forget(d, 1)
}

// TestHugeSparseFile: a file of 8 TiB that is almost all hole is copied up as
// one, and stays one when it is written far out.
func TestHugeSparseFile(t *testing.T) {
	const size = 8 << 40
	tr, f, dir := newTestTree(t, map[string]string{"huge": "begin"})
	defer closeTree(t, tr, f)
	name := filepath.Join(dir, "base", "huge")
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Skipf("the kernel has no files of 8 TiB on this file system: %v", err)
	}
	_, err = unix.Pwrite(fd, []byte("middle"), size/2)
	must(t, err)
	must(t, unix.Setxattr(name, "user.note", []byte("kept"), 0))
	must(t, os.Link(name, filepath.Join(dir, "base", "other")))

	n, before := walk(t, f, "huge")
	_, err = f.Write(n, []byte("end"), size-3)
	must(t, err)
	after, err := f.Getattr(n)
	must(t, err)
	if after.Size != size || after.Ino != before.Ino || after.Blocks > 1<<12 {
		t.Errorf("after a write: size %d, inode %d (was %d), %d blocks", after.Size, after.Ino, before.Ino, after.Blocks)
	}
	for _, c := range []struct {
		off  int64
		want string
	}{{0, "begin\x00"}, {size / 2, "middle"}, {size - 3, "end"}, {size / 4, "\x00\x00\x00"}} {
		got := make([]byte, len(c.want))
		k, err := f.Read(n, got, c.off)
		must(t, err)
		if string(got[:k]) != c.want {
			t.Errorf("at %d: %q, want %q", c.off, got[:k], c.want)
		}
	}
	if at, err := f.Seek(n, 1<<20, unix.SEEK_DATA); err != nil || at > size/2 || at < size/2-1<<20 {
		t.Errorf("the next data behind 1 MiB is at %d, %v", at, err)
	}
	if v, err := f.Getxattr(n, "user.note"); string(v) != "kept" {
		t.Errorf("its xattr is %q, %v", v, err)
	}
	// Its other name, met only now, is the same file.
	m, a := walk(t, f, "other")
	if a.Ino != after.Ino || m != n {
		t.Errorf("the other name has inode %d, want %d", a.Ino, after.Ino)
	}
	f.Forget(m, 1)
	f.Forget(n, 1)
}

// TestSetIDGoesWithAWrite: what a write or a truncation by somebody else does
// to a program's set-id bits natively, it does in a view.
func TestSetIDGoesWithAWrite(t *testing.T) {
	tr, f, dir := newTestTree(t, map[string]string{"prog": "#!/bin/sh\n"})
	defer closeTree(t, tr, f)
	must(t, os.Chmod(filepath.Join(dir, "base", "prog"), 0o755|os.ModeSetuid|os.ModeSetgid))
	n, a := walk(t, f, "prog")
	if a.Mode&0o6000 != 0o6000 {
		t.Fatalf("mode %o", a.Mode)
	}
	_, err := f.WriteKill(n, []byte("#"), 0)
	must(t, err)
	if a, err = f.Getattr(n); err != nil || a.Mode&0o7777 != 0o755 {
		t.Errorf("after another's write: mode %o, %v", a.Mode, err)
	}
	mode := uint32(0o6755)
	_, err = f.Setattr(n, SetAttr{Mode: &mode})
	must(t, err)
	size := int64(0)
	a, err = f.Setattr(n, SetAttr{Size: &size, KillSuidgid: true})
	if err != nil || a.Mode&0o7777 != 0o755 {
		t.Errorf("after another's truncation: mode %o, %v", a.Mode, err)
	}
	f.Forget(n, 1)
}

// TestCapabilitiesGoWithAWrite: what somebody else wrote to never keeps a file
// capability, neither that of the base nor one that it got in the session, and
// has lost it before the new content is there.
func TestCapabilitiesGoWithAWrite(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: to give files capabilities")
	}
	const attr = "security.capability"
	net := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // cap_net_bind_service=ep
	tr, f, dir := newTestTree(t, map[string]string{"written": "#!/bin/sh\n", "appended": "#!/bin/sh\n", "big": strings.Repeat("x", 1<<20)})
	closeTree(t, tr, f)
	for _, name := range []string{"written", "appended", "big"} {
		must(t, unix.Setxattr(filepath.Join(dir, "base", name), attr, net, 0))
	}
	var watch func()
	h := &writeHost{FS: hostfs.OS, before: func() { watch() }}
	tr, f = openOn(t, h, dir, 0)
	defer closeTree(t, tr, f)
	for name, write := range map[string]func(*Node) error{
		"written":  func(n *Node) error { _, err := f.WriteKill(n, []byte("evil"), 0); return err },
		"appended": func(n *Node) error { must(t, f.DropPrivileges(n)); _, err := f.Append(n, []byte("evil")); return err },
		"big": func(n *Node) error {
			mode := uint32(0o6755)
			_, err := f.Setattr(n, SetAttr{Mode: &mode})
			must(t, err)
			_, err = f.WriteKill(n, []byte("evil"), 0)
			return err
		},
	} {
		n, _ := walk(t, f, name)
		gone := func(when string) {
			if v, err := f.Getxattr(n, attr); Errno(err) != unix.ENODATA {
				t.Errorf("%s: %s its capability is %x, %v", name, when, v, err)
			}
			if a, err := f.Getattr(n); err != nil || a.Mode&0o6000 != 0 {
				t.Errorf("%s: %s its mode is %o, %v", name, when, a.Mode, err)
			}
		}
		for _, round := range []string{"first", "second"} {
			seen := false
			watch = func() { seen = true; gone(round + " while it is written") }
			must(t, write(n))
			watch = func() {}
			if !seen {
				t.Errorf("%s: nothing was written", name)
			}
			gone(round + " afterwards")
			must(t, f.Setxattr(n, attr, net, 0))
		}
		f.Forget(n, 1)
	}
}

// writeHost calls before ahead of each write of what a program wrote.
type writeHost struct {
	hostfs.FS
	before func()
}

func (h *writeHost) Pwrite(fd int, p []byte, off int64) (int, error) {
	if string(p) == "evil" {
		h.before()
	}
	return h.FS.Pwrite(fd, p, off)
}

// TestReadingCopiesNothing: looking at everything leaves the layer empty.
func TestReadingCopiesNothing(t *testing.T) {
	tr, f, dir := newTestTree(t, map[string]string{"a/b/c": "1", "a/d": "2", "e": "3"})
	defer closeTree(t, tr, f)
	must(t, os.Link(filepath.Join(dir, "base", "e"), filepath.Join(dir, "base", "a", "e2")))
	must(t, os.Symlink("a/d", filepath.Join(dir, "base", "link")))
	var visit func(n *Node)
	visit = func(n *Node) {
		var names []string
		must(t, f.ReadDir(n, 0, func(e DirEntry) bool { names = append(names, e.Name); return true }))
		for _, name := range names {
			m, a, err := f.Lookup(n, name)
			must(t, err)
			_, err = f.Listxattr(m)
			must(t, err)
			switch {
			case a.IsDir():
				visit(m)
			case a.IsSymlink():
				_, err = f.Readlink(m)
			default:
				_, err = f.Read(m, make([]byte, 10), 0)
			}
			must(t, err)
			f.Forget(m, 1)
		}
	}
	visit(f.Root())
	if s := tr.Stats(); s.CopyUps != 0 || tr.Dirty() {
		t.Errorf("%d copy-ups, changed: %v", s.CopyUps, tr.Dirty())
	}
	entries, err := os.ReadDir(filepath.Join(dir, "state", "layers", "1", "tree"))
	if err != nil || len(entries) != 0 {
		t.Errorf("the layer holds %v, %v", entries, err)
	}
}

// torn is a host on which somebody writes to a file of the base while it is
// copied.
type torn struct {
	hostfs.FS
	write func()
}

func (h *torn) CopyRange(src int, srcOff int64, dst int, dstOff int64, n int) (int, error) {
	c, err := h.FS.CopyRange(src, srcOff, dst, dstOff, n)
	h.write()
	return c, err
}

func (h *torn) Clone(dst, src int) error { return unix.EOPNOTSUPP }

// TestCopyUpIsNotTorn: a copy during which the host wrote is thrown away and
// made again, so that the layer never holds half of two versions.
func TestCopyUpIsNotTorn(t *testing.T) {
	tr, f, dir := newTestTree(t, nil)
	closeTree(t, tr, f)
	name := filepath.Join(dir, "base", "f")
	version := func(c byte) []byte { return bytes.Repeat([]byte{c}, 3<<20) }
	must(t, os.WriteFile(name, version('a'), 0o644))
	edits := 0
	h := &torn{FS: hostfs.OS}
	h.write = func() {
		if edits < 3 {
			edits++
			must(t, os.WriteFile(name, version('a'+byte(edits)), 0o644))
		}
	}
	base, err := OpenBase(h, filepath.Join(dir, "base"))
	must(t, err)
	tr, err = Open(Config{Name: "workspace", StateDir: filepath.Join(dir, "state"), Base: base, FS: h, NoWatch: true}, Stack{Active: 1})
	must(t, err)
	f = tr.Attach(nil)
	defer closeTree(t, tr, f)
	n, _ := walk(t, f, "f")
	_, err = f.Write(n, []byte("!"), 0)
	must(t, err)
	if edits == 0 {
		t.Fatal("the host did not write during the copy")
	}
	got := make([]byte, 3<<20)
	k, err := f.Read(n, got, 0)
	must(t, err)
	if want := version('a' + byte(edits)); k != len(want) || got[0] != '!' || !bytes.Equal(got[1:], want[1:]) {
		t.Errorf("the copy is not the last version: it begins with %q and ends with %q", got[:8], got[len(got)-8:])
	}
	f.Forget(n, 1)
}
