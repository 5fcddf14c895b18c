package fs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseMountInfo(t *testing.T) {
	line := `421 29 0:57 / /home/me/a\040b\134c rw,nosuid,nodev,relatime shared:201 master:1 - fuse.galley my\011tree rw,user_id=1000,group_id=1000` + "\n"
	m, ok := parseMountInfo(line)
	if !ok {
		t.Fatal("not parsed")
	}
	want := Mount{ID: 421, Minor: 57, Dir: `/home/me/a b\c`, FsName: "my\ttree", UID: 1000}
	if m.Mount != want || m.fstype != "fuse.galley" || m.parent != 29 || m.dev != "0:57" {
		t.Errorf("got %+v", m)
	}
	for _, bad := range []string{"", "a b c", "1 2 0:3 / /x rw", "1 2 0:3 / /x rw - fuse", "x 2 0:3 / /x rw - fuse a rw", "1 2 03 / /x rw - fuse a rw"} {
		if _, ok := parseMountInfo(bad); ok {
			t.Errorf("%q: parsed", bad)
		}
	}
}

func TestDeadMountIsClearedLiveOneIsKept(t *testing.T) {
	live := mount(t, serveConfig{})
	dir := filepath.Join(t.TempDir(), "with space")
	must(t, os.Mkdir(dir, 0o755))
	dev := openMountFor(t, dir, MountOptions{FsName: "dead one"})
	must(t, dev.Close())

	if err := unix.Access(dir, unix.R_OK); err != unix.ENOTCONN {
		t.Fatalf("access: %v, want ENOTCONN", err)
	}
	cleared, err := ClearDead(t.Context())
	must(t, err)
	// Any other Galley that runs on this machine may have cleared it before.
	for _, m := range cleared {
		if m.Dir == dir && m.FsName != "dead one" {
			t.Errorf("cleared %+v, want the name it was mounted with", m)
		}
	}
	if _, err := mountAt(dir); err == nil {
		t.Errorf("%s is still mounted, cleared %+v", dir, cleared)
	}
	if _, err := os.ReadFile(live.path("a.txt")); err != nil {
		t.Errorf("the live mount: %v", err)
	}
}

func TestKilledServerLeavesAMountThatIsCleared(t *testing.T) {
	s := mount(t, serveConfig{})
	if _, err := os.ReadFile(s.path("a.txt")); err != nil {
		t.Fatal(err)
	}
	open, err := os.Open(s.path("dir"))
	must(t, err)
	defer open.Close()
	s.kill()
	// The kernel takes queues over io_uring down in the background.
	eventually(t, 30*time.Second, s.Dir+" is among the dead mounts", func() bool {
		dead, err := Dead(t.Context())
		must(t, err)
		// Any other Galley that runs on this machine may have cleared it.
		_, gone := mountAt(s.Dir)
		return gone != nil || slices.ContainsFunc(dead, func(m Mount) bool { return m.Dir == s.Dir })
	})
	// Somebody's open directory does not keep it.
	_, err = ClearDead(t.Context())
	must(t, err)
	if _, err := mountAt(s.Dir); err == nil {
		t.Errorf("%s is still mounted", s.Dir)
	}
}

func TestAbort(t *testing.T) {
	if _, err := mountAt(fuseControl); err != nil {
		if os.Geteuid() != 0 {
			t.Skip("needs root to mount fusectl at " + fuseControl)
		}
		must(t, unix.Mount("none", fuseControl, "fusectl", 0, ""))
		t.Cleanup(func() { _ = unix.Unmount(fuseControl, unix.MNT_DETACH) })
	}
	s := mount(t, serveConfig{})
	m, err := mountAt(s.Dir)
	must(t, err)
	must(t, Abort(m.Mount))
	if err := m.Alive(t.Context()); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("after abort: %v, want ENOTCONN", err)
	}
}

func TestCloseEndsTheConnection(t *testing.T) {
	s := mount(t, serveConfig{})
	if _, err := os.ReadFile(s.path("a.txt")); err != nil {
		t.Fatal(err)
	}
	s.do(command{Op: "close"})
	// With queues over io_uring, a call may fail otherwise while the kernel
	// takes them down.
	eventually(t, 30*time.Second, "statfs fails with ENOTCONN", func() bool {
		var st unix.Statfs_t
		err := unix.Statfs(s.Dir, &st)
		if err != unix.ENOTCONN && err != unix.ECANCELED && err != unix.ECONNABORTED {
			t.Fatalf("statfs: %v, want ENOTCONN", err)
		}
		return err == unix.ENOTCONN
	})
}
