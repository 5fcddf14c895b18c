package commit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/overlaytest"
	"github.com/galleyfs/galley/review"
)

// randomBase fills a base with the names that random programs use. It has no
// hard links: which of those the session knows of depends on what it looked at.
func randomBase(fs overlaytest.FS) error {
	at := overlaytest.At
	var errs []error
	do := func(err error) { errs = append(errs, err) }
	for _, d := range []string{"a", "b", "a/a", "a/b", "a/a/c", "d", "d/e", "d/e/f"} {
		do(fs.Mkdir(at(d), 0o755))
	}
	for i, f := range []string{"c", "a/c", "a/d", "b/a", "b/b", "a/a/a", "a/a/c/h", "d/a", "d/e/a", "d/e/f/a", "e"} {
		do(fs.Create(0, at(f), 0o644))
		_, err := fs.Write(at(f), fmt.Appendf(nil, "content %d of %s", i, f), 0)
		do(err)
	}
	do(fs.Symlink("a/c", at("f")))
	do(fs.Symlink("../nowhere", at("a/f")))
	do(fs.Mknod(at("g"), unix.S_IFIFO|0o600, 0))
	do(fs.Setxattr(at("a"), "user.a", []byte("1"), 0))
	do(fs.Setxattr(at("c"), "user.a", []byte("2"), 0))
	do(fs.Chmod(at("d/e"), 0o555))
	return errors.Join(errs...)
}

// computed is a session's change set, as a command would get it, and what the
// sealed view shows.
func computed(t *testing.T, s *overlaytest.Session) (*review.ChangeSet, *overlaytest.Ref) {
	t.Helper()
	if err := s.Step(overlaytest.Op{Kind: overlaytest.OpSeal}); err != nil {
		t.Fatal(err)
	}
	view, err := s.Tree.View(overlay.Stack{Sealed: s.Stack().Sealed})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(view.Detach)
	base, err := overlay.OpenBase(nil, s.BaseDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = base.Close() })
	cs, err := review.Compute(t.Context(), []review.TreeInput{{Name: "workspace", View: review.FaceView(view), BaseFD: base.FD()}}, review.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := overlaytest.Import(overlaytest.NewFaceFS(view))
	if err != nil {
		t.Fatal(err)
	}
	return cs, ref
}

// TestRandomSessions commits what random programs did in real sessions: the
// base must then be what the sealed view showed.
func TestRandomSessions(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: devices, owners and modes that shut out their owner")
	}
	seeds := 60
	if testing.Short() {
		seeds = 15
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { randomSession(t, uint64(seed), 60+seed*3) })
	}
}

func randomSession(t *testing.T, seed uint64, ops int) {
	dir := fastDir(t)
	s, err := overlaytest.NewSession(dir, overlay.Config{NoWatch: true}, randomBase)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	g := overlaytest.NewGenerator(seed, s.Ref)
	// What an open handle does to a file without a name leaves no trace.
	g.Kinds = slices.DeleteFunc(g.Kinds, func(k overlaytest.Kind) bool {
		return k == overlaytest.OpOpen || k == overlaytest.OpTmpfile
	})
	var done []overlaytest.Op
	for range ops {
		o := g.Next()
		if err := s.Step(o); err != nil {
			// The engine differs from the reference: that is for its own
			// tests to tell. What it shows is what must be committed.
			t.Log(err)
		}
		done = append(done, o)
	}
	cs, want := computed(t, s)
	plan, err := NewPlan(cs, keepAll)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "commits"), 0o700); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Trees: []Tree{{Name: "workspace", BasePath: s.BaseDir}}, Source: ChangeSetSource(cs),
		CommitDir: filepath.Join(dir, "commits", "1"), LockDir: filepath.Join(dir, "locks")}
	fail := func(err error) {
		t.Helper()
		for _, c := range cs.Changes {
			t.Logf("%s %q from %q origin %q link %q", c.Kind, c.Path, c.From, c.Origin, c.Link)
		}
		t.Fatalf("%v\nafter:\n%s", err, overlaytest.Format(done))
	}
	if _, err := Apply(context.Background(), cfg, plan); err != nil {
		fail(err)
	}
	host, err := overlaytest.OpenDir(s.BaseDir)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	cmp := overlaytest.NewComparer()
	cmp.LooseTimes = true // of directories that were there before
	if err := cmp.Compare(want, host); err != nil {
		fail(err)
	}
}
