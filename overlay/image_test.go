package overlay

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// imageLayer makes a layer of an image by fn, on those below it, as vm/images
// does, and returns the directory that holds it.
func imageLayer(t *testing.T, l LayerID, below []string, fn func(*Face)) string {
	t.Helper()
	state := t.TempDir()
	must(t, InitState(nil, state, l))
	tree, err := Open(Config{Name: "image", StateDir: state, LayerDirs: layerDirs(t, below), KeepOwners: true}, onImage(len(below), l))
	must(t, err)
	f := tree.Attach(nil)
	fn(f)
	f.Detach()
	must(t, tree.Close())
	return filepath.Join(state, "layers")
}

func layerDirs(t *testing.T, dirs []string) (out []LayerDir) {
	t.Helper()
	for i, d := range dirs {
		fd, err := unix.Open(d, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		out = append(out, LayerDir{Only: Image + LayerID(i), FD: fd})
	}
	return out
}

func onImage(n int, active LayerID) Stack {
	s := Stack{Active: active}
	if n > 0 {
		s.Sealed = []Range{{Image, Image + LayerID(n-1)}}
	}
	return s
}

var guestRoot = Caller{}

func create(t *testing.T, f *Face, path, text string, mode uint32, c Caller) *Node {
	t.Helper()
	dir, _, err := f.Walk(filepath.Dir("/" + path)[1:])
	must(t, err)
	n, _, err := f.Create(dir, filepath.Base(path), mode, c)
	must(t, err)
	_, err = f.Write(n, []byte(text), 0)
	must(t, err)
	return n
}

func mkdir(t *testing.T, f *Face, path string, mode uint32, c Caller) *Node {
	t.Helper()
	dir, _, err := f.Walk(filepath.Dir("/" + path)[1:])
	must(t, err)
	n, _, err := f.Mkdir(dir, filepath.Base(path), mode, c)
	must(t, err)
	return n
}

func remove(t *testing.T, f *Face, path string) {
	t.Helper()
	dir, _, err := f.Walk(filepath.Dir("/" + path)[1:])
	must(t, err)
	must(t, f.Unlink(dir, filepath.Base(path)))
}

func deltaPaths(t *testing.T, f *Face) (out []string) {
	t.Helper()
	must(t, f.Delta(func(e Entry) error {
		if e.Implicit {
			return nil
		}
		s := e.Path
		if e.Whiteout {
			s = "-" + s
		}
		out = append(out, s)
		return nil
	}))
	return out
}

// A tree stands on the layers of an image that others have in common with it:
// what it shows is theirs, what differs from them is its own, and a discard of
// everything leads back to them.
func TestTreeOnImage(t *testing.T) {
	one := imageLayer(t, Image, nil, func(f *Face) {
		mkdir(t, f, "etc", 0o755, guestRoot)
		create(t, f, "etc/passwd", "root", 0o644, guestRoot)
		create(t, f, "etc/shadow", "secret", 0o640, Caller{0, 42})
		mkdir(t, f, "usr", 0o555, guestRoot)
		n := create(t, f, "usr/a", "linked", 0o644, guestRoot)
		dir, _, err := f.Walk("usr")
		must(t, err)
		_, err = f.Link(n, dir, "b")
		must(t, err)
	})
	two := imageLayer(t, Image+1, []string{one}, func(f *Face) {
		remove(t, f, "etc/passwd")
		create(t, f, "etc/motd", "hello", 0o644, guestRoot)
		n, _, err := f.Walk("etc/shadow")
		must(t, err)
		_, err = f.Write(n, []byte("SECRET"), 0)
		must(t, err)
	})
	state := t.TempDir()
	must(t, InitState(nil, state, 1))
	open := func(s Stack) (*Tree, *Face) {
		tree, err := Open(Config{Name: "root", StateDir: state, LayerDirs: layerDirs(t, []string{one, two}), KeepOwners: true}, s)
		must(t, err)
		return tree, tree.Attach(nil)
	}
	tree, f := open(onImage(2, 1))
	if got := deltaPaths(t, f); got != nil {
		t.Errorf("a tree that changed nothing differs from its image at %q", got)
	}
	if _, _, err := f.Walk("etc/passwd"); Errno(err) != unix.ENOENT {
		t.Errorf("what a layer of the image removed: %v", err)
	}
	if got := read(t, f, "etc/shadow"); got != "SECRET" {
		t.Errorf("etc/shadow is %q", got)
	}
	shadow, a, err := f.Walk("etc/shadow")
	must(t, err)
	if a.UID != 0 || a.GID != 42 || a.Mode != unix.S_IFREG|0o640 {
		t.Errorf("etc/shadow is of %d:%d, mode %o", a.UID, a.GID, a.Mode)
	}
	before := a.Ino
	_, err = f.Write(shadow, []byte("changed"), 0)
	must(t, err)
	remove(t, f, "etc/motd")
	remove(t, f, "usr/a")
	create(t, f, "etc/new", "", 0o600, Caller{1000, 1000})
	usr, _, err := f.Walk("usr")
	must(t, err)
	must(t, f.Rename(f.Root(), "usr", f.Root(), "moved", 0))
	a, err = f.Getattr(shadow)
	must(t, err)
	if a.Ino != before || a.UID != 0 || a.GID != 42 {
		t.Errorf("copied up: inode %d was %d, owner %d:%d", a.Ino, before, a.UID, a.GID)
	}
	_ = usr
	want := []string{"-etc/motd", "etc/new", "etc/shadow", "moved", "-moved/a", "-usr"}
	if got := deltaPaths(t, f); !slices.Equal(got, want) {
		t.Errorf("it differs from its image at %q, not %q", got, want)
	}
	_, b, err := f.Walk("moved/b")
	must(t, err)
	if b.Nlink != 1 || read(t, f, "moved/b") != "linked" {
		t.Errorf("moved/b has %d links", b.Nlink)
	}
	// Merged, it shows the same; with all left out, the image.
	seal(t, tree, 2)
	must(t, tree.Flatten(onImage(2, 0).with(1), 3, Keep{}))
	must(t, tree.Flatten(onImage(2, 0).with(1), 4, Keep{Drop: func(string) bool { return true }}))
	merged, err := tree.View(onImage(2, 0).with(3))
	must(t, err)
	if got := deltaPaths(t, merged); !slices.Equal(got, want) {
		t.Errorf("merged it differs from its image at %q, not %q", got, want)
	}
	if read(t, merged, "moved/b") != "linked" || read(t, merged, "etc/shadow") != "changed"[:7] {
		t.Error("merged it has other contents")
	}
	merged.Detach()
	bare, err := tree.View(onImage(2, 0).with(4))
	must(t, err)
	if got := deltaPaths(t, bare); got != nil || read(t, bare, "usr/a") != "linked" || read(t, bare, "etc/motd") != "hello" {
		t.Errorf("after all was left out it differs from its image at %q", got)
	}
	bare.Detach()
	f.Detach()
	must(t, tree.Close())
	// From the records alone, without the index, it is the same.
	must(t, os.Remove(filepath.Join(state, "index")))
	tree, f = open(Stack{Sealed: append(onImage(2, 0).Sealed, Range{1, 1}), Active: 2})
	if got := deltaPaths(t, f); !slices.Equal(got, want) {
		t.Errorf("opened again it differs from its image at %q, not %q", got, want)
	}
	f.Detach()
	must(t, tree.Close())
}

func (s Stack) with(l LayerID) Stack {
	s.Sealed = append(slices.Clone(s.Sealed), Range{l, l})
	return s
}

func seal(t *testing.T, tree *Tree, next LayerID) {
	t.Helper()
	must(t, tree.Prepare(next))
	b := Quiesce(tree)
	defer b.Release()
	must(t, b.Seal(next))
}

// Owners, device numbers and attributes that this process cannot give to a file
// are kept beside it, through copies, reopening and a crash.
func TestKeptOwners(t *testing.T) {
	state := t.TempDir()
	must(t, InitState(nil, state, 1))
	open := func() (*Tree, *Face) {
		tree, err := Open(Config{Name: "root", StateDir: state, KeepOwners: true}, Stack{Active: 1})
		must(t, err)
		tree.keep = true // as for an ordinary user, also where root runs this
		return tree, tree.Attach(nil)
	}
	tree, f := open()
	file := create(t, f, "file", "text", 0o4755, Caller{7, 8})
	dir := mkdir(t, f, "dir", 0o000, Caller{9, 10})
	sgid := mkdir(t, f, "sgid", 0o2775, Caller{1, 50})
	inner, _, err := f.Create(sgid, "inner", 0o644, Caller{2, 3})
	must(t, err)
	null, _, err := f.Mknod(f.Root(), "null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3), guestRoot)
	must(t, err)
	_, _, err = f.Mknod(f.Root(), "pipe", unix.S_IFIFO|0o620, 0, Caller{4, 5})
	must(t, err)
	_, _, err = f.Symlink(f.Root(), "link", "file", Caller{11, 12})
	must(t, err)
	must(t, f.Setxattr(file, "security.capability", []byte("cap"), 0))
	must(t, f.Setxattr(file, "user.plain", []byte("u"), 0))
	must(t, f.Setxattr(null, "trusted.x", nil, 0))
	if err := f.Setxattr(null, "user.x", []byte("y"), 0); Errno(err) != unix.EPERM {
		t.Errorf("a user attribute of a device: %v", err)
	}
	if err := f.Setxattr(file, "security.capability", nil, unix.XATTR_CREATE); Errno(err) != unix.EEXIST {
		t.Errorf("an attribute that is there: %v", err)
	}
	// A directory that lets nobody in is worked in all the same, as root would.
	_, _, err = f.Create(dir, "x", 0o000, Caller{1, 1})
	must(t, err)
	uid := uint32(70000)
	a, err := f.Setattr(inner, SetAttr{UID: &uid})
	must(t, err)
	if a.UID != uid || a.GID != 50 {
		t.Errorf("inner is of %d:%d", a.UID, a.GID)
	}
	check := func(when string) {
		t.Helper()
		for _, c := range []struct {
			path     string
			uid, gid uint32
			mode     uint32
			rdev     uint64
		}{
			{"file", 7, 8, unix.S_IFREG | 0o4755, 0}, {"dir", 9, 10, unix.S_IFDIR, 0}, {"dir/x", 1, 1, unix.S_IFREG, 0},
			{"sgid", 1, 50, unix.S_IFDIR | 0o2775, 0}, {"sgid/inner", uid, 50, unix.S_IFREG | 0o644, 0},
			{"null", 0, 0, unix.S_IFCHR | 0o666, unix.Mkdev(1, 3)}, {"pipe", 4, 5, unix.S_IFIFO | 0o620, 0},
			{"link", 11, 12, unix.S_IFLNK | 0o777, 0},
		} {
			n, a, err := f.Walk(c.path)
			must(t, err)
			if a.UID != c.uid || a.GID != c.gid || a.Mode != c.mode || a.Rdev != c.rdev {
				t.Errorf("%s: %s is of %d:%d, mode %o, device %x", when, c.path, a.UID, a.GID, a.Mode, a.Rdev)
			}
			f.Forget(n, 1)
		}
		n, _, err := f.Walk("file")
		must(t, err)
		names, err := f.Listxattr(n)
		must(t, err)
		val, err := f.Getxattr(n, "security.capability")
		if !slices.Equal(names, []string{"user.plain", "security.capability"}) || string(val) != "cap" {
			t.Errorf("%s: attributes %q, %q (%v)", when, names, val, err)
		}
		f.Forget(n, 1)
	}
	check("made")
	f.Detach()
	must(t, tree.Close())
	tree, f = open()
	check("opened again")
	f.Detach()
	must(t, tree.Close())
	must(t, os.WriteFile(filepath.Join(state, dirtyMark), nil, 0o600)) // as a crash leaves it
	tree, f = open()
	check("after a crash")
	// Copied up into the next layer, and changed there.
	seal(t, tree, 2)
	n, _, err := f.Walk("file")
	must(t, err)
	_, err = f.Append(n, []byte("more"))
	must(t, err)
	for _, p := range []string{"dir", "null", "pipe", "link", "sgid/inner"} {
		n, _, err := f.Walk(p)
		must(t, err)
		at := Time{Sec: 1}
		_, err = f.Setattr(n, SetAttr{Mtime: &at})
		must(t, err)
	}
	check("copied up")
	_, err = f.Setattr(n, SetAttr{KillSuidgid: true})
	must(t, err)
	a, err = f.Getattr(n)
	if _, xerr := f.Getxattr(n, "security.capability"); err != nil || a.Mode != unix.S_IFREG|0o755 || Errno(xerr) != unix.ENODATA {
		t.Errorf("after somebody wrote it has mode %o, capabilities %v", a.Mode, xerr)
	}
	f.Detach()
	must(t, tree.Close())
}
