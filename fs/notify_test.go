package fs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

const (
	// soon is the time in which a host edit must show.
	soon = time.Second
	// patience is how long a test waits for what a busy machine may delay.
	patience = 30 * time.Second
)

func content(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return "(not there)"
	}
	if errors.Is(err, unix.ESTALE) {
		return "(stale)" // the host put another file there, and the kernel has not asked again yet
	}
	must(t, err)
	return string(b)
}

func names(t testing.TB, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	must(t, err)
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

// shows waits until the mount shows want under name.
func (s *served) shows(name, want string) {
	s.t.Helper()
	eventually(s.t, patience, name+" shows "+want, func() bool { return content(s.t, s.path(name)) == want })
}

func TestWriteThroughAnotherFaceIsSeen(t *testing.T) {
	s := mount(t, serveConfig{})
	s.shows("a.txt", "alpha\n")
	s.shows("new", "(not there)")
	if got := names(t, s.path("dir")); got != "c.txt sub" {
		t.Fatalf("dir: %s", got)
	}

	s.do(command{Op: "write", Path: "a.txt", Data: []byte("longer than it was\n")})
	s.shows("a.txt", "longer than it was\n")
	s.do(command{Op: "write", Path: "a.txt", Data: []byte("short\n")})
	s.shows("a.txt", "short\n")
	s.do(command{Op: "write", Path: "a.txt", Data: []byte("SHORT\n")})
	s.shows("a.txt", "SHORT\n")

	s.do(command{Op: "write", Path: "new", Data: []byte("made\n")})
	s.shows("new", "made\n")

	// A name that nobody looked up, in a directory that is listed.
	s.do(command{Op: "write", Path: "dir/unseen", Data: []byte("x")})
	eventually(t, patience, "dir lists unseen", func() bool { return names(t, s.path("dir")) == "c.txt sub unseen" })

	s.do(command{Op: "unlink", Path: "b.txt"})
	s.shows("b.txt", "(not there)")
	eventually(t, patience, "b.txt is not listed", func() bool { return names(t, s.Dir) == "a.txt dir new" })
}

func TestWriteIsSeenByAnotherFace(t *testing.T) {
	s := mount(t, serveConfig{})
	must(t, os.WriteFile(s.path("dir/c.txt"), []byte("from the mount\n"), 0o644))
	if got := s.do(command{Op: "read", Path: "dir/c.txt"}).Data; string(got) != "from the mount\n" {
		t.Errorf("the other face reads %q", got)
	}
}

func TestAppendsOfTwoFacesBothStay(t *testing.T) {
	s := mount(t, serveConfig{})
	f, err := os.OpenFile(s.path("a.txt"), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer f.Close()
	want := "alpha\n"
	for range 50 {
		// The notification of this append may not have arrived when the
		// mount appends.
		s.do(command{Op: "append", Path: "a.txt", Data: []byte("theirs\n")})
		_, err := f.WriteString("ours\n")
		must(t, err)
		want += "theirs\nours\n"
	}
	if got := s.do(command{Op: "read", Path: "a.txt"}).Data; string(got) != want {
		t.Errorf("the file has %d bytes, want %d", len(got), len(want))
	}
	s.shows("a.txt", want)
}

// withinASecond makes host edits until one shows soon enough: not each has to,
// since the machine may be busy with other things for longer than that.
func withinASecond(t *testing.T, what string, edit func(i int), shows func(i int) bool) {
	t.Helper()
	for i := range 5 {
		edit(i)
		start := time.Now()
		eventually(t, patience, what, func() bool { return shows(i) })
		if time.Since(start) <= soon {
			return
		}
	}
	t.Errorf("%s: never within %v", what, soon)
}

func TestHostEditIsSeen(t *testing.T) {
	for _, mode := range []struct {
		name    string
		noWatch bool
	}{{"watched", false}, {"not watched", true}} {
		t.Run(mode.name, func(t *testing.T) {
			s := mount(t, serveConfig{NoWatch: mode.noWatch})
			s.shows("dir/c.txt", "gamma\n")
			s.shows("dir/late0", "(not there)")
			names(t, s.path("dir"))

			host := filepath.Join(s.Base, "dir")
			put := func(name, text string) { must(t, os.WriteFile(filepath.Join(host, name), []byte(text), 0o644)) }
			withinASecond(t, "content of the same size",
				func(i int) { put("c.txt", fmt.Sprintf("GAMM%d\n", i)) },
				func(i int) bool { return content(t, s.path("dir/c.txt")) == fmt.Sprintf("GAMM%d\n", i) })
			withinASecond(t, "longer content",
				func(i int) { put("c.txt", strings.Repeat("longer ", i+5)) },
				func(i int) bool { return content(t, s.path("dir/c.txt")) == strings.Repeat("longer ", i+5) })
			withinASecond(t, "a file put in its place",
				func(i int) {
					put("new", fmt.Sprint("replaced", i))
					must(t, os.Rename(filepath.Join(host, "new"), filepath.Join(host, "c.txt")))
				},
				func(i int) bool { return content(t, s.path("dir/c.txt")) == fmt.Sprint("replaced", i) })
			withinASecond(t, "a new name, looked up",
				func(i int) {
					s.shows(fmt.Sprint("dir/late", i), "(not there)")
					put(fmt.Sprint("late", i), "late")
				},
				func(i int) bool { return content(t, s.path(fmt.Sprint("dir/late", i))) == "late" })
			withinASecond(t, "a new name, listed",
				func(i int) { put(fmt.Sprint("listed", i), "") },
				func(i int) bool { return strings.Contains(names(t, s.path("dir")), fmt.Sprint("listed", i)) })
			withinASecond(t, "mode",
				func(i int) { must(t, os.Chmod(filepath.Join(host, "c.txt"), 0o600+os.FileMode(i))) },
				func(i int) bool {
					st, err := os.Stat(s.path("dir/c.txt"))
					return err == nil && st.Mode() == 0o600+os.FileMode(i)
				})
			withinASecond(t, "a removed name",
				func(i int) {
					put("late0", "again")
					s.shows("dir/late0", "again")
					must(t, os.Remove(filepath.Join(host, "late0")))
				},
				func(i int) bool {
					return content(t, s.path("dir/late0")) == "(not there)" && !strings.Contains(names(t, s.path("dir")), "late0")
				})
		})
	}
}

func TestWorkingDirectoryOutlivesNotifications(t *testing.T) {
	s := mount(t, serveConfig{})
	cmd := exec.Command("sh", "-c", "read line; pwd -P; ls")
	cmd.Dir = s.path("dir")
	in, err := cmd.StdinPipe()
	must(t, err)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	// The shell's directory is renamed over on the host, that is, replaced by
	// nothing: only times change, and every name in the root is notified.
	s.do(command{Op: "write", Path: "dir/x", Data: []byte("x")})
	must(t, os.Chtimes(filepath.Join(s.Base, "dir"), time.Unix(1, 0), time.Unix(1, 0)))
	s.shows("dir/x", "x")
	_, err = in.Write([]byte("\n"))
	must(t, err)
	must(t, cmd.Wait())
	if want := s.path("dir") + "\nc.txt\nsub\nx\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestSwitchOfLayersUnderALiveMount(t *testing.T) {
	s := mount(t, serveConfig{})
	must(t, os.WriteFile(s.path("a.txt"), []byte("one\n"), 0o644))
	must(t, os.WriteFile(s.path("only1"), []byte("1\n"), 0o644))
	s.do(command{Op: "seal", Layer: 2})
	before := s.do(command{Op: "stack"}).Stack

	must(t, os.WriteFile(s.path("a.txt"), []byte("two, longer\n"), 0o644))
	must(t, os.Remove(s.path("only1")))
	must(t, os.WriteFile(s.path("only2"), []byte("2\n"), 0o644))
	must(t, os.Remove(s.path("b.txt")))
	must(t, os.Rename(s.path("dir"), s.path("moved")))
	s.shows("moved/c.txt", "gamma\n")
	open, err := os.Open(s.path("a.txt"))
	must(t, err)
	defer open.Close()
	gone, err := os.OpenFile(s.path("only2"), os.O_RDWR, 0)
	must(t, err)
	defer gone.Close()
	s.do(command{Op: "seal", Layer: 3})

	// Back to what was sealed first.
	s.do(command{Op: "switch", Stack: overlay.Stack{Sealed: before.Sealed, Active: 4}})
	s.shows("a.txt", "one\n")
	s.shows("only1", "1\n")
	s.shows("only2", "(not there)")
	s.shows("b.txt", "beta\n")
	s.shows("dir/c.txt", "gamma\n")
	s.shows("moved/c.txt", "(not there)")
	eventually(t, patience, "the root lists the first state", func() bool { return names(t, s.Dir) == "a.txt b.txt dir only1" })

	// A file on both sides changes under its descriptors; one that the new
	// side lacks behaves as unlinked.
	eventually(t, patience, "the open file changes", func() bool {
		buf := make([]byte, 64)
		n, err := open.ReadAt(buf, 0)
		return n == 4 && string(buf[:n]) == "one\n" && err != nil
	})
	{
		got := make([]byte, 2)
		if _, err := gone.ReadAt(got, 0); err != nil || string(got) != "2\n" {
			t.Errorf("read of a file that is gone: %q, %v", got, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(gone.Fd()), &st); err != nil || st.Nlink != 0 {
		t.Errorf("fstat of a file that is gone: nlink %d, %v", st.Nlink, err)
	}
	must(t, os.WriteFile(s.path("after"), []byte("after\n"), 0o644))
	s.shows("after", "after\n")
}
