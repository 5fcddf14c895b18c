package fs

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// TestWritebackKeepsTimes: pages that are written after the program's write
// do not move the mtime that the program saw.
func TestWritebackKeepsTimes(t *testing.T) {
	s := mount(t, serveConfig{Writeback: true})
	f, err := os.OpenFile(s.path("new"), os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	defer f.Close()
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<12)
	for i := range 8 {
		_, err := f.WriteAt(data, int64(i*len(data)))
		must(t, err)
	}
	must(t, f.Sync())
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	want := overlay.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}
	if got := s.do(command{Op: "stat", Path: "new"}).Attr.Mtime; got != want {
		t.Errorf("the layer has mtime %v, the program sees %v", got, want)
	}
}

// TestWritebackShowsClosedFiles: close(2) writes what is cached, so that other
// faces, and a seal, have it.
func TestWritebackShowsClosedFiles(t *testing.T) {
	s := mount(t, serveConfig{Writeback: true})
	must(t, os.WriteFile(s.path("dir/c.txt"), []byte("written\n"), 0o644))
	if got := s.do(command{Op: "read", Path: "dir/c.txt"}).Data; string(got) != "written\n" {
		t.Errorf("another face reads %q", got)
	}
	f, err := os.OpenFile(s.path("a.txt"), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString("more\n")
	must(t, err)
	must(t, f.Close())
	if got := s.do(command{Op: "read", Path: "a.txt"}).Data; string(got) != "alpha\nmore\n" {
		t.Errorf("after an append another face reads %q", got)
	}
}

// TestSetIDBitsGoWithAWrite: in both modes the server clears them, as the
// kernel leaves it to do (HANDLE_KILLPRIV_V2).
func TestSetIDBitsGoWithAWrite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to write as another user")
	}
	for _, writeback := range []bool{false, true} {
		dir := userDir(t)
		s := serveOn(t, openMountFor(t, dir, MountOptions{AllowOther: true}), serveConfig{Writeback: writeback})
		s.Dir = dir
		name := s.path("dir/c.txt")
		for what, do := range map[string]string{
			"write":    `echo x >> "$1"`,
			"truncate": `: > "$1"`,
		} {
			must(t, os.Chmod(name, 0o777|os.ModeSetuid|os.ModeSetgid))
			cmd := asUser(shell(do, name))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", what, err, out)
			}
			fi, err := os.Stat(name)
			must(t, err)
			if fi.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 {
				t.Errorf("writeback=%t: after a %s by another user the mode is %v", writeback, what, fi.Mode())
			}
		}
	}
}
