package virtual_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/virtual"
	"github.com/galleyfs/galley/sandbox/virtual/virtualtest"
	"github.com/galleyfs/galley/snapshots"
)

// TestSession: a session on disk is opened in process, worked on without any
// process, sealed, and has the changes that a review would show.
func TestSession(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	base := filepath.Join(dir, "project")
	if err := os.MkdirAll(filepath.Join(base, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"kept": "kept\n", "changed": "old\n", "gone": "x\n", "sub/moved": "m\n"} {
		if err := os.WriteFile(filepath.Join(base, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	store, err := snapshots.OpenStore(filepath.Join(dir, "home"), snapshots.StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	session, err := store.Create(ctx, snapshots.Spec{Base: base})
	if err != nil {
		t.Fatal(err)
	}
	live, err := session.Open(ctx, snapshots.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	name := session.Trees()[0].Name
	sb, err := virtual.New(virtual.Config{Session: session.Name(), Trees: []virtual.Tree{{Path: "/workspace", Tree: live.Tree(name)}}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := sb.Bash(ctx, sandbox.BashRequest{Command: "set -e; echo new > changed; rm gone; mv sub/moved sub/to; echo made > made; echo scratch > /tmp/x; echo home > ~/x"})
	if err != nil || r.ExitCode != 0 {
		t.Fatalf("%v %d %s", err, r.ExitCode, r.Output)
	}
	snap, err := live.Seal(ctx, snapshots.SealOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.Close(); err != nil {
		t.Fatal(err)
	}
	if err := live.Close(); err != nil {
		t.Fatal(err)
	}
	sealed, err := session.OpenSealed(snap.Number)
	if err != nil {
		t.Fatal(err)
	}
	defer sealed.Close()
	var got []string
	err = sealed.Trees()[0].Face.Delta(func(e overlay.Entry) error {
		switch {
		case e.Implicit:
		case e.Whiteout:
			got = append(got, "-"+e.Path)
		default:
			got = append(got, "+"+e.Path)
		}
		return nil
	})
	sort.Strings(got)
	if want := "+changed +made +sub/to -gone -sub/moved"; err != nil || strings.Join(got, " ") != want {
		t.Errorf("changes %v, %v; want %s", got, err, want)
	}
	if b, err := os.ReadFile(filepath.Join(base, "changed")); err != nil || string(b) != "old\n" {
		t.Errorf("the base has %q, %v", b, err)
	}
}

// TestMountForbidden: Galley's own state is never shown, nor what holds it.
func TestMountForbidden(t *testing.T) {
	state := t.TempDir()
	if err := os.MkdirAll(filepath.Join(state, "sessions", "1"), 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(state, link); err != nil {
		t.Fatal(err)
	}
	s, err := virtual.New(virtual.Config{Forbidden: []string{filepath.Join(state, "sessions")}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, host := range []string{state, filepath.Join(state, "sessions"), filepath.Join(state, "sessions", "1"), link, link + "/sessions", "/"} {
		if _, err := s.Mount(t.Context(), sandbox.MountRequest{Host: host, Path: "/mnt/x"}); !errors.Is(err, sandbox.Invalid) {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// TestLimitError: what a limit ends is an error of the contract that names it.
func TestLimitError(t *testing.T) {
	s := virtualtest.Open(t, "", virtual.Limits{Commands: 100})
	r, err := s.Bash(context.Background(), sandbox.BashRequest{Command: "echo first; while :; do :; done"})
	if sandbox.CodeOf(err) != sandbox.Limit || !strings.Contains(err.Error(), "100 commands") || string(r.Output) != "first\n" {
		t.Errorf("%v, %q", err, r.Output)
	}
	// The sandbox goes on.
	if r, err := s.Bash(context.Background(), sandbox.BashRequest{Command: "echo on"}); err != nil || string(r.Output) != "on\n" {
		t.Errorf("%v, %q", err, r.Output)
	}
}

// TestLingering: what a background process leaves running lives on after its
// shell, also where that had a time, and ends with the process.
func TestLingering(t *testing.T) {
	for _, timeout := range []time.Duration{0, time.Hour} {
		s := virtualtest.Open(t, "", virtual.Limits{})
		p, err := s.Start(t.Context(), sandbox.BashRequest{Command: "(until [ -e go ]; do sleep 0.01; done; echo late > late; sleep 1000; echo never > never) & exit 4", Timeout: timeout})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := p.Wait(t.Context()); err != nil || r.ExitCode != 4 {
			t.Fatalf("%v %+v", err, r)
		}
		if _, err := s.Write(t.Context(), sandbox.WriteRequest{Path: "go"}); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(time.Minute)
		for {
			if _, err := s.Stat(t.Context(), sandbox.StatRequest{Path: "late"}); err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("it was ended with its shell")
			}
			runtime.Gosched()
		}
		if err := p.Release(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Stat(t.Context(), sandbox.StatRequest{Path: "never"}); sandbox.CodeOf(err) != sandbox.NotFound {
			t.Error(err)
		}
	}
}
