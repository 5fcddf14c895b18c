package local_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox/local"
)

func TestViewStandsAtItsPath(t *testing.T) {
	forUsers(t, func(t *testing.T, h *host) {
		out := h.shell(t, `cat file; echo changed >file; echo new >new; pwd; /bin/pwd`)
		if want := "view" + h.project + "\n" + h.project + "\n"; out != want {
			t.Errorf("printed %q, want %q", out, want)
		}
		for name, want := range map[string]string{
			h.backing + "/file": "changed\n", h.backing + "/new": "new\n", h.project + "/file": "base",
		} {
			got, err := os.ReadFile(name)
			if err != nil || string(got) != want {
				t.Errorf("%s holds %q, %v; want %q", name, got, err, want)
			}
		}
		if _, err := os.Lstat(h.project + "/new"); err == nil {
			t.Error("the view's new file is in the base")
		}
	})
}

func TestSeveralViews(t *testing.T) {
	forUsers(t, func(t *testing.T, h *host) {
		inner := h.dir + "/inner"
		h.write(t, inner+"/deep", "deep")
		h.write(t, h.backing+"/sub/covered", "")
		h.write(t, h.backing+"/ro/file", "")
		s := h.spec("sh", "-c", "cat sub/deep /tmp/made/here/deep; echo x >sub/deep && echo y >/tmp/made/here/deep; touch ro/x; grep ' fuse.sub ' /proc/self/mountinfo")
		// The inner before the outer, to see that the order does not matter.
		s.Views = append([]viewSpec{
			{Path: h.project + "/ro", Backing: inner, ReadOnly: true, Source: "the source", Subtype: "sub"},
			{Path: "/tmp/made/here", Backing: inner},
			{Path: h.project + "/sub", Backing: inner},
		}, s.Views...)
		h.own(t)
		out, o := h.run(t, s, "")
		if !strings.HasPrefix(out, "deepdeep") || !strings.Contains(out, "Read-only file system") || !strings.Contains(out, `the\040source`) {
			t.Errorf("printed %q (%+v)", out, o)
		}
		if got, _ := os.ReadFile(inner + "/deep"); string(got) != "y\n" {
			t.Errorf("the inner view's file holds %q", got)
		}
	})
}

// TestExit runs commands and compares what Run reports with what the same
// command gives without a sandbox.
func TestExit(t *testing.T) {
	h := newHost(t, user{"self", os.Getuid()})
	h.write(t, h.backing+"/script", "echo no interpreter line; exit 3")
	h.write(t, h.backing+"/text", "x")
	h.write(t, h.backing+"/lost", "#!/no/such/interpreter\n")
	for _, name := range []string{"script", "lost"} {
		if err := os.Chmod(h.backing+"/"+name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		command []string
		code    int
		signal  syscall.Signal
		err     string // part of the error
	}{
		{[]string{"true"}, 0, 0, ""},
		{[]string{"false"}, 1, 0, ""},
		{[]string{"sh", "-c", "exit 42"}, 42, 0, ""},
		{[]string{"sh", "-c", "exit 255"}, 255, 0, ""},
		{[]string{"sh", "-c", "kill -TERM $$"}, 143, unix.SIGTERM, ""},
		{[]string{"sh", "-c", "kill -KILL $$"}, 137, unix.SIGKILL, ""},
		{[]string{"sh", "-c", "kill -INT $$"}, 130, unix.SIGINT, ""},
		{[]string{"sh", "-c", "kill -HUP $$"}, 129, unix.SIGHUP, ""},
		{[]string{"sh", "-c", "ulimit -c 0; kill -SEGV $$"}, 139, unix.SIGSEGV, ""},
		{[]string{"sh", "-c", "ulimit -c 0; kill -QUIT $$"}, 131, unix.SIGQUIT, ""},
		{[]string{"sh", "-c", "kill -USR1 $$"}, 138, unix.SIGUSR1, ""},
		{[]string{"sh", "-c", "kill -PIPE $$"}, 141, unix.SIGPIPE, ""},
		{[]string{"./script"}, 3, 0, ""},
		{[]string{"no-such-command"}, 127, 0, "no-such-command: command not found in PATH"},
		{[]string{"./no-such-file"}, 127, 0, "./no-such-file: command not found"},
		{[]string{"./lost"}, 127, 0, "interpreter"},
		{[]string{"./text"}, 126, 0, "./text: cannot be executed: permission denied"},
		{[]string{"./"}, 126, 0, "cannot be executed"},
		{[]string{""}, 127, 0, "empty"},
	} {
		t.Run(strings.Join(c.command, " "), func(t *testing.T) {
			s := h.spec(c.command...)
			cmd := h.command(t, s)
			err := cmd.Run()
			o := h.outcome(t, s)
			if o.Result.Code != c.code || o.Result.Signal != c.signal {
				t.Errorf("result %+v, want code %d, signal %d", o.Result, c.code, c.signal)
			}
			if (o.Err == "") != (c.err == "") || !strings.Contains(o.Err, c.err) {
				t.Errorf("error %q, want %q in it", o.Err, c.err)
			}
			ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if c.signal != 0 && ws.Signal() != c.signal {
				t.Errorf("the caller ended with %v (%v), not by the command's signal", ws, err)
			}
			if c.signal == 0 && ws.ExitStatus() != c.code {
				t.Errorf("the caller exited with %d, want %d", ws.ExitStatus(), c.code)
			}
		})
	}
}

func TestBadConfig(t *testing.T) {
	h := newHost(t, user{"self", os.Getuid()})
	for name, c := range map[string]struct {
		change func(s *spec)
		err    string
	}{
		"no command":         {func(s *spec) { s.Config.Command = nil }, "no command"},
		"relative directory": {func(s *spec) { s.Config.Dir = "x" }, "not an absolute path"},
		"no directory":       {func(s *spec) { s.Config.Dir = "/nowhere" }, "working directory"},
		"directory is file":  {func(s *spec) { s.Config.Dir = h.bin }, "not a directory"},
		"relative view":      {func(s *spec) { s.Views[0].Path = "x" }, "absolute, clean"},
		"view at the root":   {func(s *spec) { s.Views[0].Path = "/" }, "absolute, clean"},
		"view in a file":     {func(s *spec) { s.Views[0].Path = h.bin + "/none" }, h.bin + "/none"},
		"socket not there":   {func(s *spec) { s.Config.AllowSockets = []string{"/run/none"} }, "allowed socket"},
		"not a socket":       {func(s *spec) { s.Config.AllowSockets = []string{h.bin} }, "socket"},
		"serving fails":      {func(s *spec) { s.ServeFails = "no engine" }, "no engine"},
	} {
		t.Run(name, func(t *testing.T) {
			s := h.spec("true")
			c.change(s)
			_, o := h.run(t, s, "")
			if !strings.Contains(o.Err, c.err) || o.Result.Code != 125 {
				t.Errorf("outcome %+v, want %q in the error and code 125", o, c.err)
			}
		})
	}
}

func TestStdin(t *testing.T) {
	h := newHost(t, user{"self", os.Getuid()})
	input := strings.Repeat("line\n", 100000)
	out, o := h.run(t, h.spec("cat"), input)
	if out != input || o.Result.Code != 0 {
		t.Errorf("cat passed on %d of %d bytes, %+v", len(out), len(input), o)
	}
}

// TestLeftovers: what the command leaves running ends with it, however it
// detached itself, and does not keep Run from returning.
func TestLeftovers(t *testing.T) {
	forUsers(t, func(t *testing.T, h *host) {
		mark := "4" + filepath.Base(h.dir)[len("galley-local-test-"):]
		h.shell(t, `sh -c 'sleep 1000; : `+mark+`' & setsid sh -c 'sleep 1000; : `+mark+`' & (setsid -f sh -c 'trap "" TERM HUP; sleep 1000; : `+mark+`') ; echo started`)
		if left := processes(mark); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

func TestSignalsReachTheCommand(t *testing.T) {
	h := newHost(t, user{"self", os.Getuid()})
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			s := h.spec("sh", "-c", "trap 'echo got; exit 9' HUP INT QUIT TERM USR1 USR2 ALRM; echo ready >ready; while :; do sleep 0.02; done")
			_ = os.Remove(h.backing + "/ready")
			cmd := h.command(t, s)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the command", func() bool { _, err := os.Stat(h.backing + "/ready"); return err == nil })
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if o := h.outcome(t, s); o.Result.Code != 9 {
				t.Errorf("outcome %+v, want the trap's exit 9", o)
			}
		})
	}
}

func TestIgnoredSignalsStayIgnored(t *testing.T) {
	h := newHost(t, user{"self", os.Getuid()})
	s := h.spec("sh", "-c", "kill -HUP $$; echo still here")
	s.CallerIgnores = []int{int(unix.SIGHUP)}
	if out, o := h.run(t, s, ""); out != "still here\n" {
		t.Errorf("printed %q, %+v", out, o)
	}
}

func TestEnvironment(t *testing.T) {
	h := newHost(t, user{"self", os.Getuid()})
	for name, c := range map[string]struct{ tmpdir, want string }{
		"writable":    {"/tmp/x", "/tmp/x"},
		"in the view": {h.project + "/t", h.project + "/t"},
		"read-only":   {h.home, "/tmp"},
	} {
		t.Run(name, func(t *testing.T) {
			s := h.spec("/usr/bin/env", "-0")
			s.Config.Env = []string{"LINES=a\nb ", "EMPTY=", "TMPDIR=" + c.tmpdir}
			out, o := h.run(t, s, "")
			if want := "LINES=a\nb \x00EMPTY=\x00TMPDIR=" + c.want + "\x00"; out != want || o.Result.Code != 0 {
				t.Errorf("printed %q, %+v; want %q", out, o, want)
			}
		})
	}
}

func TestPrivateTmp(t *testing.T) {
	forUsers(t, func(t *testing.T, h *host) {
		out := h.shell(t, `ls -A /tmp /var/tmp /dev/shm /run; echo x >/tmp/x && echo y >/var/tmp/y && echo z >/dev/shm/z && ls /tmp`)
		if want := "/dev/shm:\n\n/run:\n\n/tmp:\n\n/var/tmp:\nx\n"; out != want {
			t.Errorf("printed %q, want %q", out, want)
		}
	})
}

func TestHostTmp(t *testing.T) {
	h := newHost(t, user{"self", os.Getuid()})
	dir := t.TempDir()
	s := h.spec("sh", "-c", "echo x >"+dir+"/made")
	s.Config.HostTmp = true
	if out, o := h.run(t, s, ""); o.Result.Code != 0 {
		t.Fatalf("%+v: %s", o, out)
	}
	if _, err := os.Stat(dir + "/made"); err != nil {
		t.Error(err)
	}
}

func TestHide(t *testing.T) {
	forUsers(t, func(t *testing.T, h *host) {
		h.write(t, h.home+"/state/secret", "secret")
		h.write(t, h.home+"/token", "secret")
		if err := os.Symlink("state", h.home+"/link"); err != nil {
			t.Fatal(err)
		}
		s := h.spec("sh", "-c", "cat ~/state/secret ~/token ~/link/secret; ls -A ~/state; wc -c <~/token; echo x >~/token; rm -rf ~/state ~/token; true")
		s.Config.Hide = []string{h.home + "/link", h.home + "/token", h.home + "/none/at/all"}
		out, o := h.run(t, s, "")
		if strings.Contains(out, "\nsecret") || strings.HasPrefix(out, "secret") || o.Result.Code != 0 {
			t.Errorf("printed %q, %+v", out, o)
		}
		for _, name := range []string{"/state/secret", "/token"} {
			if got, err := os.ReadFile(h.home + name); err != nil || string(got) != "secret" {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
	})
}

// TestCaches: writes in a cache work, what the host has there shows through,
// and nothing of it reaches the host; also where the host has no such cache.
func TestCaches(t *testing.T) {
	forUsers(t, func(t *testing.T, h *host) {
		h.write(t, h.home+"/.cache/warm/old", "old")
		h.write(t, h.home+"/other", "other")
		h.own(t)
		s := h.spec("sh", "-c", `set -e
cat ~/.cache/warm/old ~/other
echo more >>~/.cache/warm/old; rm -r ~/.cache/warm; mkdir ~/.cache/warm; echo x >~/.cache/x
mkdir ~/.npm/_logs; echo x >~/go/pkg/x
cat file
! touch ~/y 2>/dev/null; ! touch ~/other 2>/dev/null
ls -A ~/.cache/warm`)
		s.Config.Caches = local.DefaultCaches(h.home)
		out, o := h.run(t, s, "")
		if out != "oldotherview" || o.Result.Code != 0 {
			t.Errorf("printed %q, %+v", out, o)
		}
		names, err := filepath.Glob(h.home + "/.*")
		if err != nil || len(names) != 1 {
			t.Errorf("the host's home now has %q, %v", names, err)
		}
		if got, err := os.ReadFile(h.home + "/.cache/warm/old"); err != nil || string(got) != "old" {
			t.Errorf("the host's cache holds %q, %v", got, err)
		}
	})
}

func TestFeatures(t *testing.T) {
	for _, f := range local.Features() {
		if f.Name == "" || f.Detail == "" {
			t.Errorf("%+v says too little", f)
		}
		if f.Required && !f.OK {
			t.Errorf("%s is missing, and yet these tests run: %s", f.Name, f.Detail)
		}
	}
}
