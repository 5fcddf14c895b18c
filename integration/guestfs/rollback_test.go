package guestfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/integration/testvm"
	"github.com/galleyfs/galley/overlay"
)

// seal makes the active layer immutable; id is the next one's.
func (s *share) seal(id overlay.LayerID) {
	s.t.Helper()
	must(s.t, s.tree.Prepare(id))
	b := overlay.Quiesce(s.tree)
	defer b.Release()
	must(s.t, b.Seal(id))
}

// rollback makes the layers up to last the top again.
func (s *share) rollback(last, active overlay.LayerID) {
	s.t.Helper()
	must(s.t, s.tree.Prepare(active))
	b := overlay.Quiesce(s.tree)
	defer b.Release()
	must(s.t, b.Switch(0, overlay.Stack{Sealed: []overlay.Range{{From: 1, To: last}}, Active: active}, nil))
}

// TestRollback: with a file open, a file mapped and a working directory in the
// guest, it sees what it was rolled back to.
func TestRollback(t *testing.T) {
	s := guest(t).newShare(t, "back", func(base string) {
		must(t, os.WriteFile(filepath.Join(base, "base"), []byte("base"), 0o644))
	})
	s.do(testvm.Request{Op: "write", Path: "kept", Data: []byte("one " + strings.Repeat("1", 4092))})
	s.do(testvm.Request{Op: "mkdir", Path: "stays", N: 0o755})
	s.do(testvm.Request{Op: "write", Path: "stays/in", Data: []byte("one")})
	before := s.do(testvm.Request{Op: "stat", Path: "kept"}).Stat
	open := s.do(testvm.Request{Op: "open", Path: "kept", N: os.O_RDWR}).N
	s.do(testvm.Request{Op: "map", N: open, Size: 4096})
	s.seal(2)

	s.do(testvm.Request{Op: "pwrite", N: open, Data: []byte("two!")})
	s.do(testvm.Request{Op: "write", Path: "base", Data: []byte("changed")})
	s.do(testvm.Request{Op: "mkdir", Path: "later", N: 0o755})
	s.do(testvm.Request{Op: "write", Path: "later/f", Data: []byte("later")})
	late := s.do(testvm.Request{Op: "open", Path: "later/f", N: os.O_RDWR}).N
	s.do(testvm.Request{Op: "chdir", Path: "stays"})
	defer func() { _, _ = s.m.call(t, testvm.Request{Op: "chdir", Path: "/"}) }()
	peek := func() string { return string(s.do(testvm.Request{Op: "peek", N: open, Size: 4}).Data) }
	if got := peek(); got != "two!" {
		t.Fatalf("mapped before: %q", got)
	}

	s.rollback(1, 3)
	within(t, "the mapped file as it was", func() bool {
		s.do(testvm.Request{Op: "look", Path: "kept"})
		return peek() == "one "
	})
	if got := string(s.do(testvm.Request{Op: "pread", N: open, Size: 4}).Data); got != "one " {
		t.Errorf("the open file: %q", got)
	}
	if after := s.do(testvm.Request{Op: "stat", Path: "kept"}).Stat; after.Ino != before.Ino || after.Mtime != before.Mtime {
		t.Errorf("the file was %+v and is %+v", before, after)
	}
	read := func(path string) (string, error) {
		got, err := s.m.call(t, testvm.Request{Op: "read", Path: path})
		return string(got.Data), err
	}
	within(t, "a file of the base", func() bool { got, err := read("/export/back/base"); return err == nil && got == "base" })
	within(t, "a directory that is not there any more", func() bool {
		_, err := s.call(testvm.Request{Op: "stat", Path: "later"})
		return errors.Is(err, unix.ENOENT)
	})
	if got, err := read("in"); err != nil || got != "one" {
		t.Errorf("in the working directory: %q, %v", got, err)
	}
	if got := string(s.do(testvm.Request{Op: "pread", N: late, Size: 5}).Data); got != "later" {
		t.Errorf("an open file that is not there any more: %q", got)
	}
	// The session goes on from there, on both sides.
	s.do(testvm.Request{Op: "pwrite", N: open, Data: []byte("tri.")})
	if got, err := s.hostRead("kept"); err != nil || got[:4] != "tri." {
		t.Errorf("the host reads %q, %v", got[:4], err)
	}
	s.do(testvm.Request{Op: "close", N: late})
	s.do(testvm.Request{Op: "close", N: open})
}

// TestRollbackOfTheSameTimes: content that differs while size and mtime are equal
// is seen as well.
func TestRollbackOfTheSameTimes(t *testing.T) {
	s := guest(t).newShare(t, "times", nil)
	at := []unix.Timespec{{Sec: 1_500_000_000}, {Sec: 1_500_000_000}}
	set := func(content string) {
		s.hostWrite("f", content)
		n, _, err := s.host.Walk("f")
		must(t, err)
		defer s.host.Forget(n, 1)
		when := overlay.Time{Sec: at[1].Sec}
		_, err = s.host.Setattr(n, overlay.SetAttr{Mtime: &when})
		must(t, err)
	}
	read := func() string {
		got, err := s.call(testvm.Request{Op: "read", Path: "f"})
		if err != nil {
			return err.Error()
		}
		return string(got.Data)
	}
	set("one")
	within(t, "one", func() bool { return read() == "one" })
	s.seal(2)
	set("two")
	within(t, "two", func() bool { return read() == "two" })
	s.rollback(1, 3)
	within(t, "one again", func() bool { return read() == "one" })
	within(t, "the true mtime", func() bool {
		return s.do(testvm.Request{Op: "stat", Path: "f"}).Stat.Mtime == at[1].Nano()
	})
}
