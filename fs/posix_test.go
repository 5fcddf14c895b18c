package fs

import (
	"errors"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"
)

// notPosix are cases of posixtest that no file system of the kernel's passes
// either, with the reason; another test holds what is true in their place.
var notPosix = map[string]string{
	// One process's POSIX locks never conflict with each other (fcntl_locking(2));
	// the case expects them to. See TestLocksAreTheKernels.
	"FcntlFlockLocksFile": "a process does not lock itself out",
}

// TestPosix runs go-fuse's file system cases over a mount, each on a fresh
// one, without and with the writeback cache.
func TestPosix(t *testing.T) {
	for _, mode := range []struct {
		name      string
		writeback bool
	}{{"default", false}, {"writeback", true}} {
		t.Run(mode.name, func(t *testing.T) {
			for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
				if notPosix[name] != "" {
					continue
				}
				t.Run(name, func(t *testing.T) {
					s := mount(t, serveConfig{Base: t.TempDir(), State: roomyDir(t), Writeback: mode.writeback})
					posixtest.All[name](t, s.Dir)
				})
			}
		})
	}
}

// roomyDir is a directory on a file system that takes xattrs of 64 KiB, as
// tmpfs does and ext4 does not.
func roomyDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "galley-fs-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}

// TestLocksAreTheKernels: open file descriptions exclude each other, one
// process's POSIX locks do not, and no lock asks the server.
func TestLocksAreTheKernels(t *testing.T) {
	s := mount(t, serveConfig{})
	open := func() int {
		fd, err := unix.Open(s.path("a.txt"), unix.O_RDWR|unix.O_CLOEXEC, 0)
		must(t, err)
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	a, b := open(), open()
	lock := func(typ int16) *unix.Flock_t { return &unix.Flock_t{Type: typ} }
	got := s.during(func() {
		must(t, unix.Flock(a, unix.LOCK_EX))
		if err := unix.Flock(b, unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
			t.Errorf("flock of a locked file: %v", err)
		}
		must(t, unix.FcntlFlock(uintptr(a), unix.F_SETLK, lock(unix.F_WRLCK)))
		must(t, unix.FcntlFlock(uintptr(b), unix.F_SETLK, lock(unix.F_RDLCK)))
		must(t, unix.FcntlFlock(uintptr(a), unix.F_SETLK, lock(unix.F_UNLCK)))
		must(t, unix.FcntlFlock(uintptr(a), unix.F_OFD_SETLK, lock(unix.F_WRLCK)))
		if err := unix.FcntlFlock(uintptr(b), unix.F_OFD_SETLK, lock(unix.F_RDLCK)); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("open file description lock of a locked file: %v", err)
		}
	})
	if len(got) != 0 {
		t.Errorf("locks asked the server: %v", got)
	}
}
