package local_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/galleyfs/galley/sandbox"
)

// TestNothingLeadsOut: whatever a path or a link says, Galley's state and what
// the sandbox hides of the host are not reached, by any call.
func TestNothingLeadsOut(t *testing.T) {
	base := t.TempDir()
	sess := newSession(t, base)
	home := sess.Store().Home()
	sb := openIn(t, sess)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	pid := "/proc/" + strings.TrimSpace(run(t, sb, "echo $PPID"))
	up := strings.Repeat("../", 40)
	for name, target := range map[string]string{
		"state": home, "state-up": up + home[1:], "secret": secret, "secret-up": up + secret[1:],
		"self-root": "/proc/self/root" + secret, "self-cwd": "/proc/self/cwd/" + up + secret[1:],
		"init-root": "/proc/1/root" + secret, "init-cwd": "/proc/1/cwd", "parent-root": pid + "/root" + secret,
		"self-fd": "/proc/self/fd/0", "init-fd": "/proc/1/fd/3", "self-mem": "/proc/self/mem", "kcore": "/proc/kcore",
	} {
		run(t, sb, "ln -s "+target+" "+name)
		for _, p := range []string{name, target} {
			r, err := sb.Read(ctx, sandbox.ReadRequest{Path: p, MaxBytes: 4096})
			if err == nil && len(r.Content) > 0 && string(r.Content) != "x" {
				t.Errorf("Read of %s gave %q", p, r.Content)
			}
			// The private /tmp may well get a file of that name.
			_, _ = sb.Write(ctx, sandbox.WriteRequest{Path: p, Content: []byte("x")})
		}
		g, err := sb.Grep(ctx, sandbox.GrepRequest{Pattern: "of the host", Path: name})
		if err == nil && g.Count > 0 {
			t.Errorf("Grep in %s found %+v", name, g.Matches)
		}
	}
	for _, p := range []string{home, filepath.Dir(home), "/"} {
		_, err := sb.Mount(ctx, sandbox.MountRequest{Host: p, Path: "/mnt/state"})
		if err == nil {
			t.Errorf("%s was mounted", p)
		}
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "of the host" {
		t.Errorf("the host's file is now %q, %v", b, err)
	}
}

// TestEndlessLine: a line of 10 GiB is read, searched and refused in pieces.
func TestEndlessLine(t *testing.T) {
	sb := openSandbox(t, t.TempDir())
	run(t, sb, "truncate -s 10G huge; printf 'first\\n' > mixed; truncate -s 100M mixed")
	ctx := t.Context()
	if _, err := sb.Read(ctx, sandbox.ReadRequest{Path: "huge"}); !errors.Is(err, sandbox.TooLarge) {
		t.Errorf("Read: %v", err)
	}
	r, err := sb.Read(ctx, sandbox.ReadRequest{Path: "huge", Limit: 1, MaxBytes: 100})
	if err != nil || len(r.Content) != 100 || !r.Truncated || r.TotalLines != -1 {
		t.Errorf("Read of a line: %d bytes, %v", len(r.Content), err)
	}
	r, err = sb.Read(ctx, sandbox.ReadRequest{Path: "mixed", Limit: 1})
	if err != nil || string(r.Content) != "first\n" {
		t.Errorf("Read of the first line: %q, %v", r.Content, err)
	}
	if _, err := sb.Edit(ctx, sandbox.EditRequest{Path: "huge", Old: []byte("a"), New: []byte("b")}); !errors.Is(err, sandbox.TooLarge) {
		t.Errorf("Edit: %v", err)
	}
	g, err := sb.Grep(ctx, sandbox.GrepRequest{Pattern: "first"})
	if err != nil || g.Count != 0 {
		t.Errorf("Grep passes over files with NUL: %+v, %v", g, err)
	}
	g, err = sb.Grep(ctx, sandbox.GrepRequest{Pattern: "first", Path: "mixed"})
	if err != nil || g.Count != 1 || len(g.Matches[0].Text) > sandbox.MaxLine {
		t.Errorf("Grep of a named file: %d, %v", g.Count, err)
	}
}
