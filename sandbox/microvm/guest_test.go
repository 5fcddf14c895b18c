package microvm_test

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/microvm"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/snapshots/snapshotstest"
	"github.com/galleyfs/galley/vm/images/imagestest"
)

// project makes a base with one file.
func project(t *testing.T) string {
	t.Helper()
	base := filepath.Join(t.TempDir(), "base")
	must(t, os.Mkdir(base, 0o755))
	must(t, os.WriteFile(filepath.Join(base, "f"), []byte("of the host\n"), 0o644))
	return base
}

// emptyImage is the path of an image without a program: its /etc/hosts is a
// FIFO, and its only account's.
func emptyImage(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "empty.tar")
	f, err := os.Create(path)
	must(t, err)
	w := tar.NewWriter(f)
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755}))
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeFifo, Name: "etc/hosts", Mode: 0o644}))
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "etc/os-release", Mode: 0o644}))
	must(t, w.Close())
	must(t, f.Close())
	return path
}

// A guest without a shell, with an odd /etc, serves files all the same and says
// what it lacks. What cannot be opened leaves no machine.
func TestGuestWithoutAShell(t *testing.T) {
	w := newWorld(t, emptyImage(t))
	sess := w.session(t, project(t))
	o := w.options(t, sess)
	o.User = "nobody-here" // each is a boot
	if sb, err := microvm.Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "nobody-here") {
		t.Errorf("%v, %v", sb, err)
	}
	o.User, o.Dir = "", "/nowhere"
	if !testing.Short() {
		if sb, err := microvm.Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "/nowhere") {
			t.Errorf("%v, %v", sb, err)
		}
	}
	o.Dir = ""
	sb := open(t, o)
	_, err := sb.Bash(t.Context(), sandbox.BashRequest{Command: "true"})
	if !errors.Is(err, sandbox.NotFound) || !strings.Contains(err.Error(), "neither bash nor sh") {
		t.Errorf("%v", err)
	}
	r, err := sb.Read(t.Context(), sandbox.ReadRequest{Path: "f"})
	if err != nil || string(r.Content) != "of the host\n" {
		t.Errorf("%q, %v", r.Content, err)
	}
	for path, code := range map[string]sandbox.Code{"/": sandbox.Invalid, "/proc/x": sandbox.Permission, "/workspace/f": sandbox.NotDirectory} {
		if _, err := sb.Mount(t.Context(), sandbox.MountRequest{Host: t.TempDir(), Path: path}); !errors.Is(err, code) {
			t.Errorf("mount at %s: %v, want %s", path, err, code)
		}
	}
	pid := sb.Machine().PID
	must(t, sb.Close())
	snapshotstest.WaitIdle(t, sess.Dir())
	if !gone(pid) {
		t.Error("the machine is left")
	}
}

// A rollback reaches what the guest has open: a file that is on both sides
// changes under its descriptor, one that is not behaves as unlinked, and so does
// a working directory.
func TestRollbackReachesTheGuest(t *testing.T) {
	w := newWorld(t, imagestest.Busybox(t))
	sb := open(t, w.options(t, w.session(t, project(t))))
	run := func(line string) string {
		t.Helper()
		r, err := sb.Bash(t.Context(), sandbox.BashRequest{Command: line})
		must(t, err)
		return string(r.Output)
	}
	run("echo first >both; echo tool >/usr/tool")
	point, err := sb.Owner().Seal(t.Context(), snapshots.SealOptions{Cause: snapshots.Cause{Kind: snapshots.CauseAsked}})
	must(t, err)
	run("echo second, longer >both; mkdir later; echo x >later/x; rm /usr/tool")
	p, err := sb.Start(t.Context(), sandbox.BashRequest{
		Command:   "exec 3<both 4<later/x; cd later; cat /workspace/both; read go; cat <&3; cat <&4; ls /usr/tool; ls -A . | wc -l",
		OpenStdin: true,
	})
	must(t, err)
	var got string
	for !strings.Contains(got, "second, longer\n") {
		st, err := p.Poll(t.Context(), patience)
		must(t, err)
		if got += string(st.Output); !st.Running {
			t.Fatalf("it ended: %q", got)
		}
	}
	_, err = sb.Owner().Rollback(t.Context(), snapshots.Rollback{To: point.Number})
	must(t, err)
	must(t, p.Write(t.Context(), []byte("go\n")))
	r, err := p.Wait(t.Context())
	must(t, err)
	if want := "second, longer\nfirst\nx\n/usr/tool\n0\n"; string(r.Output) != want {
		t.Errorf("%q, want %q", r.Output, want)
	}
	if out := run("cat both /usr/tool; ls"); out != "first\ntool\nboth\nf\n" {
		t.Errorf("%q", out)
	}
}
