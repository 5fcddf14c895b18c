package overlay

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBaseCannotBeWritten: no call through the descriptor of a detached base
// writes, not even one that opens it anew with other flags, as the kernel does
// for passthrough; while the host's own way to the same tree can.
func TestBaseCannotBeWritten(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: to make a mount; an ordinary user's owner has a child make it")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("base"), 0o666); err != nil {
		t.Fatal(err)
	}
	b, err := OpenBase(nil, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if !b.Detached {
		t.Fatal("the base is not reached through a mount of its own")
	}
	fd, err := unix.Openat(b.FD(), "f", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	again := func(flags int) error {
		n, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), flags|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(n)
		}
		return err
	}
	for what, err := range map[string]error{
		"open for writing":       openat(b.FD(), "f", unix.O_RDWR),
		"open again for writing": again(unix.O_RDWR),
		"truncate":               openat(b.FD(), "f", unix.O_WRONLY|unix.O_TRUNC),
		"create":                 openat(b.FD(), "new", unix.O_WRONLY|unix.O_CREAT),
		"unlink":                 unix.Unlinkat(b.FD(), "f", 0),
		"mkdir":                  unix.Mkdirat(b.FD(), "d", 0o755),
		"rename":                 unix.Renameat(b.FD(), "f", b.FD(), "g"),
		"chmod":                  unix.Fchmodat(b.FD(), "f", 0o600, 0),
		"chmod of what is open":  unix.Fchmod(fd, 0o600),
		"times":                  unix.UtimesNanoAt(b.FD(), "f", make([]unix.Timespec, 2), 0),
		"xattr":                  unix.Fsetxattr(fd, "user.x", []byte("y"), 0),
	} {
		if err != unix.EROFS {
			t.Errorf("%s through the base: %v, want EROFS", what, err)
		}
	}
	if got, err := os.ReadFile(file); string(got) != "base" {
		t.Errorf("the file holds %q, %v", got, err)
	}
	if err := os.WriteFile(file, []byte("host"), 0o666); err != nil {
		t.Errorf("the host's own way: %v", err)
	}
}

func openat(dir int, name string, flags int) error {
	fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0o600)
	if err == nil {
		unix.Close(fd)
	}
	return err
}
