package overlay

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// insideEnv tells a test that it already runs in namespaces of its own.
const insideEnv = "GALLEY_TEST_INSIDE"

// inNamespaces runs the calling test again in namespaces of its own, with only
// this user's ids mapped where flags has CLONE_NEWUSER, and returns true there.
func inNamespaces(t *testing.T, flags uintptr) bool {
	t.Helper()
	if os.Getenv(insideEnv) == t.Name() {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	if flags&unix.CLONE_NEWUSER != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in namespaces of its own: %v\n%s", err, out)
	}
	if !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("in namespaces of its own it did not run:\n%s", out)
	}
	return false
}

// TestSeveralDevices: a base may span file systems. Inode numbers of both do
// not collide, copy-up and deletion work on both, and the second one's files
// are written as little as the first's.
func TestSeveralDevices(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: to mount a file system inside the base")
	}
	if !inNamespaces(t, unix.CLONE_NEWNS) {
		return
	}
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	tr, f, dir := newTestTree(t, map[string]string{"a": "first", "sub/keep": ""})
	closeTree(t, tr, f)
	sub := filepath.Join(dir, "base", "sub")
	must(t, unix.Mount("tmpfs", sub, "tmpfs", 0, ""))
	defer func() { _ = unix.Unmount(sub, unix.MNT_DETACH) }()
	for name, text := range map[string]string{"b": "second", "d/c": "third", "gone": "x"} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(sub, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(sub, name), []byte(text), 0o644))
	}
	tr, f, _ = openTestTree(t, dir, Stack{Active: 1})
	inos := map[uint64]string{}
	for _, p := range []string{"a", "sub", "sub/b", "sub/d", "sub/d/c"} {
		n, a := walk(t, f, p)
		if other := inos[a.Ino]; other != "" {
			t.Errorf("%s and %s have one inode number, %d", other, p, a.Ino)
		}
		inos[a.Ino] = p
		f.Forget(n, 1)
	}
	if _, _, err := f.Walk("sub/keep"); Errno(err) != unix.ENOENT {
		t.Errorf("what the second file system covers is shown: %v", err)
	}
	n, _ := walk(t, f, "sub/d/c")
	_, err := f.Write(n, []byte("THIRD"), 0)
	must(t, err)
	f.Forget(n, 1)
	s, _ := walk(t, f, "sub")
	must(t, f.Unlink(s, "gone"))
	must(t, f.Rename(s, "b", f.Root(), "b2", 0))
	must(t, f.Rename(s, "d", f.Root(), "d2", 0))
	f.Forget(s, 1)
	sealTo(t, tr, 2)
	closeTree(t, tr, f)
	tr, f, _ = openTestTree(t, dir, Stack{Sealed: []Range{{1, 1}}, Active: 2})
	defer closeTree(t, tr, f)
	if a, b, c := read(t, f, "a"), read(t, f, "b2"), read(t, f, "d2/c"); a+b+c != "firstsecondTHIRD" {
		t.Errorf("after a remount: %q %q %q", a, b, c)
	}
	s, _ = walk(t, f, "sub")
	if got := names(t, f, s); got != "" {
		t.Errorf("left in the second file system: %q", got)
	}
	f.Forget(s, 1)
	if b, err := os.ReadFile(filepath.Join(sub, "d", "c")); string(b) != "third" {
		t.Errorf("the base now holds %q, %v", b, err)
	}
}

// TestOwnersThatAreNotMapped: in a user namespace, giving a file to an id that
// is not mapped fails as it does natively.
func TestOwnersThatAreNotMapped(t *testing.T) {
	if !inNamespaces(t, unix.CLONE_NEWUSER) {
		return
	}
	tr, f, dir := newTestTree(t, map[string]string{"f": "x"})
	defer closeTree(t, tr, f)
	native := filepath.Join(dir, "native")
	must(t, os.WriteFile(native, nil, 0o644))
	n, _ := walk(t, f, "f")
	for _, id := range []uint32{uint32(os.Getuid()) + 12345, 65534} {
		want := Errno(unix.Chown(native, int(id), -1))
		_, err := f.Setattr(n, SetAttr{UID: &id})
		if want == 0 || Errno(err) != want {
			t.Errorf("chown to %d: %v, natively %v", id, err, want)
		}
		want = Errno(unix.Chown(native, -1, int(id)))
		_, err = f.Setattr(n, SetAttr{GID: &id})
		if want == 0 || Errno(err) != want {
			t.Errorf("chgrp to %d: %v, natively %v", id, err, want)
		}
	}
	f.Forget(n, 1)
	if got := read(t, f, "f"); got != "x" {
		t.Errorf("the file holds %q", got)
	}
}

// TestXattrsOfLinks: symbolic links cannot carry user xattrs. A view says so as
// the host does, and keeps what it must know of a link elsewhere.
func TestXattrsOfLinks(t *testing.T) {
	tr, f, dir := newTestTree(t, map[string]string{"f": "x"})
	must(t, os.Symlink("f", filepath.Join(dir, "base", "l")))
	n, _ := walk(t, f, "l")
	native := Errno(unix.Lsetxattr(filepath.Join(dir, "base", "l"), "user.a", []byte("1"), 0))
	if err := f.Setxattr(n, "user.a", []byte("1"), 0); native == 0 || Errno(err) != native {
		t.Errorf("setxattr on a link: %v, natively %v", err, native)
	}
	f.Forget(n, 1)
	must(t, f.Rename(f.Root(), "l", f.Root(), "l2", 0))
	sealTo(t, tr, 2)
	closeTree(t, tr, f)
	tr, f, _ = openTestTree(t, dir, Stack{Sealed: []Range{{1, 1}}, Active: 2})
	defer closeTree(t, tr, f)
	n, a := walk(t, f, "l2")
	if to, err := f.Readlink(n); to != "f" || !a.IsSymlink() {
		t.Errorf("the moved link points to %q, %v", to, err)
	}
	f.Forget(n, 1)
	if w, ok := f.WasAt("l"); !ok || w.Target != "f" {
		t.Errorf("of the base's link is recorded: %+v, %v", w, ok)
	}
}
