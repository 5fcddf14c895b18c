package overlay

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCopyUpClones: on a file system that clones, a copy-up moves no data: the
// layer shares the blocks of the base, and still is a copy.
func TestCopyUpClones(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: to mount a file system that clones")
	}
	if !inNamespaces(t, unix.CLONE_NEWNS) {
		return
	}
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	dir := t.TempDir()
	image := dir + ".image"
	defer os.Remove(image)
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 400<<20))
	if out, err := exec.Command("mkfs.xfs", "-q", "-m", "reflink=1", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.xfs (package xfsprogs): %v\n%s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("the kernel has no XFS, or no loop device: %v: %s", err, out)
	}
	defer func() { must(t, unix.Unmount(dir, 0)) }()
	for _, d := range []string{"base", "state"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	const size = 32 << 20
	text := bytes.Repeat([]byte("block of data 16"), size/16)
	name := filepath.Join(dir, "base", "big")
	must(t, os.WriteFile(name, text, 0o644))
	must(t, InitState(nil, filepath.Join(dir, "state"), 1))
	free := func() int64 {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		must(t, unix.Syncfs(fd))
		var st unix.Statfs_t
		must(t, unix.Fstatfs(fd, &st))
		return int64(st.Bfree) * st.Bsize
	}
	tr, f, _ := openTestTree(t, dir, Stack{Active: 1})
	before := free()
	n, _ := walk(t, f, "big")
	_, err := f.Append(n, []byte("!"))
	must(t, err)
	if s := tr.Stats(); s.CopyUps != 1 || s.CopiedBytes != 0 {
		t.Errorf("%d copy-ups moved %d bytes", s.CopyUps, s.CopiedBytes)
	}
	got := make([]byte, size+1)
	k, err := f.Read(n, got, 0)
	must(t, err)
	if k != size+1 || !bytes.Equal(got[:size], text) || got[size] != '!' {
		t.Error("the copy is not the base's file and the byte")
	}
	f.Forget(n, 1)
	closeTree(t, tr, f)
	// While it is open, XFS keeps room behind the end of a file that grows.
	if took := before - free(); took > size/4 {
		t.Errorf("a clone of %d bytes takes %d on the disk", size, took)
	}
	if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b, text) {
		t.Errorf("the base's file was changed: %v", err)
	}
}
