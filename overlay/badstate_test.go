package overlay

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mounted mounts a file system of the kernel's own in a directory of its own.
// The caller is in a mount namespace of its own.
func mounted(t *testing.T, fstype, options string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount("none", dir, fstype, 0, options))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// TestStateWhereItCannotBe: a file system that takes no xattrs, or is full,
// holds no state: the error says which directory and why, and leaves nothing.
func TestStateWhereItCannotBe(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: to mount such file systems")
	}
	if !inNamespaces(t, unix.CLONE_NEWNS) {
		return
	}
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	full := mounted(t, "tmpfs", "size=64k,nr_inodes=16")
	must(t, os.Mkdir(filepath.Join(full, "state"), 0o755))
	fill, err := os.Create(filepath.Join(full, "fill"))
	must(t, err)
	defer fill.Close()
	for err == nil {
		_, err = fill.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir  string
		want error
		says string
	}{
		{filepath.Join(full, "state"), unix.ENOSPC, "no space left"},
		{mounted(t, "ramfs", ""), unix.EOPNOTSUPP, "extended attributes"},
		{filepath.Join(full, "none"), unix.ENOENT, "no such file"},
		{filepath.Join(full, "fill"), unix.ENOTDIR, "not a directory"},
	} {
		err := InitState(nil, c.dir, 1)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.dir) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %v", c.dir, err, c.want)
		}
		if left, _ := os.ReadDir(c.dir); len(left) != 0 {
			t.Errorf("%s: left %v", c.dir, left)
		}
	}
}

// TestFullDisk: a disk that fills up during a copy-up is ENOSPC to the program,
// and nothing that was there is lost: the file shows what it did, other changes
// stay, and once there is room the same call works.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: to mount a small file system")
	}
	if !inNamespaces(t, unix.CLONE_NEWNS) {
		return
	}
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	dir := t.TempDir()
	small := filepath.Join(dir, "state")
	for _, d := range []string{"base", "state"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	must(t, unix.Mount("none", small, "tmpfs", 0, "size=3m"))
	defer func() { _ = unix.Unmount(small, unix.MNT_DETACH) }()
	big := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
	must(t, os.WriteFile(filepath.Join(dir, "base", "big"), big, 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "base", "small"), []byte("one"), 0o644))
	must(t, InitState(nil, small, 1))
	tr, f, _ := openTestTree(t, dir, Stack{Active: 1})
	n, _ := walk(t, f, "small")
	_, err := f.Write(n, []byte("ONE"), 0)
	must(t, err)
	f.Forget(n, 1)
	n, _ = walk(t, f, "big")
	for range 3 {
		if _, err := f.Write(n, []byte("X"), 0); Errno(err) != unix.ENOSPC {
			t.Errorf("write: %v, want %v", err, unix.ENOSPC)
		}
	}
	got := make([]byte, len(big))
	k, err := f.Read(n, got, 0)
	must(t, err)
	if !bytes.Equal(got[:k], big) {
		t.Error("the file does not show what it did")
	}
	if got := read(t, f, "small"); got != "ONE" {
		t.Errorf("what was changed before holds %q", got)
	}
	if left, err := os.ReadDir(filepath.Join(small, "scratch")); err != nil || len(left) > 1 {
		t.Errorf("left in scratch: %v, %v", left, err)
	}
	must(t, unix.Mount("none", small, "tmpfs", unix.MS_REMOUNT, "size=16m"))
	_, err = f.Write(n, []byte("X"), 0)
	must(t, err)
	f.Forget(n, 1)
	closeTree(t, tr, f)
	tr, f, _ = openTestTree(t, dir, Stack{Active: 1})
	defer closeTree(t, tr, f)
	big[0] = 'X'
	if got := read(t, f, "big"); got != string(big) {
		t.Error("once there is room the copy is not the file with the change")
	}
	if got := read(t, f, "small"); got != "ONE" {
		t.Errorf("after a remount: %q", got)
	}
}
