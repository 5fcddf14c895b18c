package fs

import (
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// during counts the requests that f causes. FORGET is left out: the kernel
// sends it when it likes. So is STATFS, with which any other Galley on this
// machine asks whether the mount is dead.
func (s *served) during(f func()) map[string]uint64 {
	s.t.Helper()
	before := s.do(command{Op: "stats"}).Stats
	f()
	after := s.do(command{Op: "stats"}).Stats
	for op, n := range before {
		after[op] -= n
	}
	delete(after, "FORGET")
	delete(after, "STATFS")
	maps.DeleteFunc(after, func(_ string, n uint64) bool { return n == 0 })
	return after
}

// repeat is how often each step is done in a count.
const repeat = 10

func each(f func(i int)) func() {
	return func() {
		for i := range repeat {
			f(i)
		}
	}
}

type counts = map[string]uint64

// TestRequests asserts what each common step costs, exactly: a lost flag or a
// lost timeout shows here at once. The figures do not depend on the machine.
func TestRequests(t *testing.T) {
	for _, writeback := range []bool{false, true} {
		t.Run(fmt.Sprintf("writeback=%t", writeback), func(t *testing.T) {
			s := mount(t, serveConfig{Writeback: writeback})
			for _, step := range requestSteps(t, s) {
				want := step.want
				got := s.during(step.do)
				if writeback && step.writeback != nil {
					want = step.writeback
				}
				if writeback && step.ticks {
					delete(got, "SETATTR")
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", step.name, diff)
				}
			}
		})
	}
}

// requestStep is something that programs do, and what it costs.
type requestStep struct {
	name      string
	do        func()
	want      counts
	writeback counts // with the writeback cache, where it differs
	// ticks: with the writeback cache the kernel sends an mtime if its clock
	// ticked in between, so those SETATTR are not counted.
	ticks bool
}

func requestSteps(t *testing.T, s *served) []requestStep {
	read := func(name string) {
		f, err := os.Open(s.path(name))
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Fstat(int(f.Fd()), &st))
		_, err = io.ReadAll(f)
		must(t, err)
		must(t, f.Close())
	}
	var st unix.Stat_t
	stat := func(name string, want error) {
		if err := unix.Lstat(s.path(name), &st); err != want {
			t.Errorf("stat %s: %v, want %v", name, err, want)
		}
	}
	list := func(name string, want int) {
		got, err := os.ReadDir(s.path(name))
		must(t, err)
		if len(got) != want {
			t.Errorf("%s: %d entries, want %d", name, len(got), want)
		}
	}
	name := func(i int) string { return s.path(fmt.Sprintf("dir/new%d", i)) }
	create := func(name string) {
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		must(t, err)
		_, err = f.Write([]byte("x"))
		must(t, err)
		must(t, f.Close())
	}

	// What the first use of a mount costs once: OPEN, OPENDIR, FLUSH.
	read("a.txt")
	list(".", 3)
	list("dir", 2)
	list("dir/sub", 1)
	read("dir/sub/d.txt")
	stat("nothing", unix.ENOENT)
	stat("dir/sub/d.txt", nil)
	must(t, os.Symlink("a.txt", s.path("dir/link")))
	_, err := os.Readlink(s.path("dir/link"))
	must(t, err)
	list("dir", 3)
	walk(t, s.Dir)

	return []requestStep{
		{name: "stat", do: each(func(int) { stat("dir/sub/d.txt", nil) }), want: counts{}},
		{name: "failed stat", do: each(func(int) { stat("nothing", unix.ENOENT) }), want: counts{}},
		{name: "open, fstat, read, close", do: each(func(int) { read("a.txt") }), want: counts{}, writeback: counts{"GETATTR": repeat - 1}},
		{name: "readlink", do: each(func(int) { _, err := os.Readlink(s.path("dir/link")); must(t, err) }), want: counts{}},
		{name: "readdir", do: each(func(int) { list("dir", 3) }), want: counts{}},
		{name: "find", do: each(func(int) { walk(t, s.Dir) }), want: counts{}, writeback: counts{"GETATTR": 1}},
		{name: "create, write, close", do: each(func(i int) { create(name(i)) }), want: counts{
			"LOOKUP": repeat, "CREATE": repeat, "GETXATTR": repeat, "WRITE": repeat, "GETATTR": repeat - 1,
		}, ticks: true},
		{name: "append", do: each(func(i int) {
			f, err := os.OpenFile(name(0), os.O_WRONLY|os.O_APPEND, 0)
			must(t, err)
			_, err = f.Write([]byte("y"))
			must(t, err)
			must(t, f.Close())
		}), want: counts{"WRITE": repeat, "GETATTR": 1}, ticks: true},
		{name: "pwrite of 4 KiB to one open file", do: func() {
			f, err := os.OpenFile(name(1), os.O_WRONLY, 0)
			must(t, err)
			for i := range repeat {
				_, err = f.WriteAt(make([]byte, 4096), int64(i)*4096)
				must(t, err)
			}
			must(t, f.Close())
		}, want: counts{"WRITE": repeat}, writeback: counts{"WRITE": 1}, ticks: true},
		{name: "read back what was written", do: func() { read("dir/new1") }, want: counts{"GETATTR": 1}},
		{name: "chmod", do: each(func(i int) { must(t, os.Chmod(name(i), 0o600)) }), want: counts{"SETATTR": repeat}},
		{name: "rename", do: each(func(i int) { must(t, unix.Rename(name(i), name(i)+".r")) }), want: counts{
			"LOOKUP": repeat, "RENAME": repeat, "GETATTR": repeat - 1,
		}, ticks: true},
		{name: "unlink", do: each(func(i int) { must(t, os.Remove(name(i)+".r")) }), want: counts{
			"UNLINK": repeat, "GETATTR": repeat,
		}, ticks: true},
		{name: "mkdir", do: each(func(i int) { must(t, os.Mkdir(name(i), 0o755)) }), want: counts{
			"LOOKUP": repeat, "MKDIR": repeat, "GETATTR": repeat,
		}},
		{name: "rmdir", do: each(func(i int) { must(t, unix.Rmdir(name(i))) }), want: counts{
			"RMDIR": repeat, "GETATTR": repeat,
		}},
		{name: "fsync", do: func() {
			f, err := os.Open(s.path("a.txt"))
			must(t, err)
			must(t, f.Sync())
			must(t, f.Close())
		}, want: counts{"FSYNC": 1}},
	}
}

func walk(t testing.TB, dir string) (files int) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil {
			_, err = d.Info()
		}
		files++
		return err
	}))
	return files
}

// TestRequestsOfGitStatus: a warm git status asks for nothing but what it
// changes itself, its index.lock, which it makes and removes.
func TestRequestsOfGitStatus(t *testing.T) {
	base := newBase(t)
	git := func(dir string, args ...string) string {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.org"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	// Older than the index, so that git need not compare their content again.
	must(t, filepath.WalkDir(base, func(name string, _ os.DirEntry, err error) error {
		must(t, err)
		return os.Chtimes(name, time.Unix(1e9, 0), time.Unix(1e9, 0))
	}))
	git(base, "init", "-q")
	git(base, "add", ".")
	git(base, "commit", "-qm", "first")
	s := mount(t, serveConfig{Base: base})
	for range 2 {
		git(s.Dir, "status", "--porcelain")
	}
	got := s.during(func() {
		if out := git(s.Dir, "status", "--porcelain"); out != "" {
			t.Errorf("status: %s", out)
		}
	})
	want := counts{"LOOKUP": 1, "CREATE": 1, "UNLINK": 1, "GETATTR": 2}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("warm git status (-want +got):\n%s", diff)
	}
}

// TestRequestsWithWriteback: small writes collect, and each file that was
// closed costs one GETATTR at its next stat.
func TestRequestsWithWriteback(t *testing.T) {
	s := mount(t, serveConfig{Writeback: true})
	f, err := os.OpenFile(s.path("a.txt"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	write := func(n int) {
		for i := range n {
			_, err := f.WriteAt(make([]byte, 4096), int64(i)*4096)
			must(t, err)
		}
	}
	write(1)
	if got := s.during(func() { write(64) }); got["WRITE"] != 0 {
		t.Errorf("cached writes reached the server: %v", got)
	}
	got := s.during(func() { must(t, f.Sync()) })
	if got["WRITE"] == 0 || got["WRITE"] > 2 || got["FSYNC"] != 1 {
		t.Errorf("fsync of 64 cached writes: %v, want 1 or 2 WRITE and 1 FSYNC", got)
	}
}

// TestPrime: after it, a created file costs no RELEASE.
func TestPrime(t *testing.T) {
	s := mount(t, serveConfig{})
	create := func(name string) func() {
		return func() { must(t, os.WriteFile(s.path(name), nil, 0o644)) }
	}
	create("before")()
	// It is sent in the background.
	eventually(t, patience, "a RELEASE of the file created first", func() bool {
		return s.do(command{Op: "stats"}).Stats["RELEASE"] == 1
	})
	must(t, Prime(s.Dir))
	if got := s.during(create("after"))["RELEASE"]; got != 0 {
		t.Errorf("a file created after Prime: %d RELEASE, want 0", got)
	}
}

// TestListingAfterLookups: what the kernel was told of by name is not looked
// up again to list it, and both ways of learning it agree.
func TestListingAfterLookups(t *testing.T) {
	s := mount(t, serveConfig{})
	asked := func(f func()) uint64 {
		before := s.do(command{Op: "stats"}).Base
		f()
		return s.do(command{Op: "stats"}).Base - before
	}
	names := []string{"a.txt", "b.txt", "dir"}
	before := make(map[string]os.FileInfo)
	for _, name := range names[:2] {
		info, err := os.Lstat(s.path(name))
		must(t, err)
		before[name] = info
	}
	var entries []os.DirEntry
	if n := asked(func() {
		var err error
		entries, err = os.ReadDir(s.Dir)
		must(t, err)
	}); n != 1 {
		t.Errorf("the listing asked the base %d times, want once, for dir", n)
	}
	if len(entries) != len(names) {
		t.Fatalf("listed %v, want %v", entries, names)
	}
	for i, e := range entries {
		info, err := e.Info()
		must(t, err)
		if e.Name() != names[i] || e.IsDir() != info.IsDir() || before[e.Name()] != nil && !os.SameFile(before[e.Name()], info) {
			t.Errorf("entry %v, then %v", e, info)
		}
	}
}
