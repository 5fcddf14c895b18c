package snapshots

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

var ctx = context.Background()

func TestSealAndLookBack(t *testing.T) {
	f := newFixture(t, nil)
	other := filepath.Join(t.TempDir(), "conf")
	write(t, filepath.Join(other, "rc"), "rc")
	s := f.create(Spec{Extra: []TreeSpec{{Name: "conf", Base: other}}})
	if s.Name() != "project" {
		t.Errorf("named %q after its directory", s.Name())
	}
	o := mustOpen(t, s)
	check(t, o.put(Workspace, "new", "one"))
	check(t, o.put("conf", "rc", "mine"))
	first, err := o.Seal(ctx, SealOptions{Name: "one", Cause: Cause{Kind: CauseAsked}, Durable: true})
	check(t, err)
	check(t, o.put(Workspace, "new", "two"))
	check(t, o.remove(Workspace, "kept"))
	second, err := o.Seal(ctx, SealOptions{Cause: Cause{Kind: CauseTool, Text: "edit"}})
	check(t, err)
	check(t, o.put(Workspace, "later", "x"))

	if second.Number <= first.Number {
		t.Fatalf("snapshots %d and %d", first.Number, second.Number)
	}
	for _, c := range []struct {
		n          overlay.LayerID
		tree, want string
	}{
		{0, Workspace, "kept=base sub/file=base"},
		{first.Number, Workspace, "kept=base new=one sub/file=base"},
		{first.Number, "conf", "rc=mine"},
		{second.Number, Workspace, "new=two sub/file=base"},
		{second.Number, "conf", "rc=mine"},
	} {
		if got := sealedContent(t, s, c.n, c.tree); got != c.want {
			t.Errorf("snapshot %d, tree %s: %q, want %q", c.n, c.tree, got, c.want)
		}
	}
	if got := o.content(t, Workspace); got != "later=x new=two sub/file=base" {
		t.Errorf("live view %q", got)
	}
	for _, ref := range []string{"one", "1"} {
		got, err := s.Snapshot(ref)
		if err != nil || got.Number != first.Number {
			t.Errorf("Snapshot(%q) = %d, %v", ref, got.Number, err)
		}
	}
	if _, err := s.Snapshot("on"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), `"one"`) {
		t.Errorf("unknown snapshot: %v", err)
	}
	check(t, o.close())
	again := mustOpen(t, s)
	if got := again.content(t, Workspace); got != "later=x new=two sub/file=base" {
		t.Errorf("after closing and opening: %q", got)
	}
	if b, err := os.ReadFile(filepath.Join(f.base, "kept")); err != nil || string(b) != "base" {
		t.Errorf("the base changed: %q, %v", b, err)
	}
}

func TestSealOfNothing(t *testing.T) {
	f := newFixture(t, nil)
	s := f.create(Spec{})
	o := mustOpen(t, s)
	none, err := o.Seal(ctx, SealOptions{Cause: Cause{Kind: CauseReview}})
	check(t, err)
	if none.Number != 0 {
		t.Errorf("a session without changes got snapshot %d", none.Number)
	}
	check(t, o.put(Workspace, "a", "a"))
	first, err := o.Seal(ctx, SealOptions{Cause: Cause{Kind: CauseCommand, Text: "make"}})
	check(t, err)
	again, err := o.Seal(ctx, SealOptions{Cause: Cause{Kind: CauseReview}, Durable: true})
	check(t, err)
	if again.Number != first.Number || again.Cause.Kind != CauseCommand {
		t.Errorf("sealing twice gave %+v after %+v", again, first)
	}
	named, err := o.Seal(ctx, SealOptions{Name: "green", Cause: Cause{Kind: CauseAsked}})
	check(t, err)
	if named.Number != first.Number || named.Name != "green" {
		t.Errorf("a name for the last snapshot gave %+v", named)
	}
	if _, err := o.Seal(ctx, SealOptions{Name: "7"}); !errors.Is(err, ErrBadName) {
		t.Errorf("a number as name: %v", err)
	}
	check(t, o.close())
	h, err := s.History()
	check(t, err)
	if len(h) != 1 || h[0].Name != "green" {
		t.Errorf("history %+v", h)
	}
}

func TestOnlyOneOpens(t *testing.T) {
	f := newFixture(t, nil)
	s := f.create(Spec{})
	if _, live, err := s.Live(); live || err != nil {
		t.Fatalf("live %v, %v before anybody opened it", live, err)
	}
	o := mustOpen(t, s)
	if _, err := s.Open(ctx, OpenOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("second open: %v", err)
	}
	if pid, live, err := s.Live(); pid != os.Getpid() || !live || err != nil {
		t.Errorf("Live() = %d, %v, %v", pid, live, err)
	}
	for name, err := range map[string]error{
		"remove": func() error { _, err := f.store.Remove(s); return err }(),
		"rename": f.store.Rename(s, "other"),
		"rules":  s.SetRules(Rules{Hide: []string{"x"}}),
		"tree":   s.AddTree(ctx, TreeSpec{Name: "more", Base: f.base}),
	} {
		if !errors.Is(err, ErrBusy) {
			t.Errorf("%s of a live session: %v", name, err)
		}
	}
	if err := o.Live.Close(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("closed under a face: %v", err)
	}
	check(t, o.close())
	if _, live, err := s.Live(); live || err != nil {
		t.Errorf("live %v, %v after the end", live, err)
	}
}

func TestCommittedLeavesTheLayers(t *testing.T) {
	f := newFixture(t, nil)
	other := filepath.Join(t.TempDir(), "conf")
	write(t, filepath.Join(other, "rc"), "rc")
	s := f.create(Spec{Extra: []TreeSpec{{Name: "conf", Base: other}}})
	o := mustOpen(t, s)
	for _, p := range []string{"kept", "added", "mine", "busy"} {
		check(t, o.put(Workspace, p, "session"))
	}
	check(t, o.put("conf", "rc", "mine"))
	seen, err := o.Seal(ctx, SealOptions{Cause: Cause{Kind: CauseReview}})
	check(t, err)
	check(t, o.put(Workspace, "busy", "session again"))
	check(t, o.put(Workspace, "after", "x"))

	// What the committer does.
	for _, p := range []string{"kept", "added", "busy"} {
		write(t, filepath.Join(f.base, p), "session")
	}
	snap, err := o.Committed(ctx, Committed{Snapshot: seen.Number, Commit: "c1",
		Paths: map[string][]Path{Workspace: {"kept", "added", "busy"}}})
	check(t, err)

	const want = "added=session after=x busy=session again kept=session mine=session sub/file=base"
	if got := o.content(t, Workspace); got != want {
		t.Errorf("live view %q, want %q", got, want)
	}
	if got := changes(t, s, snap.Number, Workspace); got != "after busy mine" {
		t.Errorf("still changed: %q", got)
	}
	if got := changes(t, s, snap.Number, "conf"); got != "rc" {
		t.Errorf("still changed in the other tree: %q", got)
	}
	// The committed entries mask nothing any more, the others do.
	write(t, filepath.Join(f.base, "kept"), "host")
	write(t, filepath.Join(f.base, "mine"), "host")
	check(t, o.close())
	again := mustOpen(t, s)
	const shows = "added=session after=x busy=session again kept=host mine=session sub/file=base"
	if got := again.content(t, Workspace); got != shows {
		t.Errorf("after a host edit %q, want %q", got, shows)
	}
	check(t, again.put(Workspace, "kept", "more"))
	if _, err := again.Seal(ctx, SealOptions{}); err != nil {
		t.Errorf("seal after a commit: %v", err)
	}
	if _, err := again.Committed(ctx, Committed{Snapshot: 4000}); !errors.Is(err, ErrNotFound) {
		t.Errorf("commit of an unknown snapshot: %v", err)
	}
	if _, err := again.Committed(ctx, Committed{Snapshot: 1, Paths: map[string][]Path{Workspace: {"../x"}}}); err == nil {
		t.Error("a path that leads outside was taken")
	}
}

func TestDiscardAndRestore(t *testing.T) {
	f := newFixture(t, nil)
	s := f.create(Spec{})
	o := mustOpen(t, s)
	check(t, o.put(Workspace, "sub/file", "changed"))
	check(t, o.put(Workspace, "sub/new", "new"))
	check(t, o.put(Workspace, "kept", "changed"))
	entry, err := o.Discard(ctx, Discard{Paths: map[string][]Path{Workspace: {"sub"}}})
	check(t, err)
	if entry.Kind != TrashPaths || entry.Paths != 1 || entry.Session != s.ID() {
		t.Errorf("in the trash: %+v", entry)
	}
	if got := o.content(t, Workspace); got != "kept=changed sub/file=base" {
		t.Errorf("after the discard %q", got)
	}
	check(t, o.close())
	if _, err := f.store.Restore(ctx, entry.ID); err != nil {
		t.Fatal(err)
	}
	o = mustOpen(t, s)
	if got := o.content(t, Workspace); got != "kept=changed sub/file=changed sub/new=new" {
		t.Errorf("after restoring %q", got)
	}
	all, err := o.Discard(ctx, Discard{})
	check(t, err)
	if got := o.content(t, Workspace); got != "kept=base sub/file=base" {
		t.Errorf("after discarding all %q", got)
	}
	check(t, o.put(Workspace, "later", "x"))
	check(t, o.close())
	if _, err := f.store.Restore(ctx, all.ID); err == nil || !strings.Contains(err.Error(), "changed after") {
		t.Errorf("restored over later work: %v", err)
	}
	o = mustOpen(t, s)
	if got := o.content(t, Workspace); got != "kept=base later=x sub/file=base" {
		t.Errorf("after the refused restore %q", got)
	}
}

func TestRulesHoldInTheView(t *testing.T) {
	f := newFixture(t, nil)
	write(t, filepath.Join(f.base, "sub", ".env"), "secret")
	s := f.create(Spec{Rules: Rules{Hide: []string{"**/.env"}, ReadOnly: []string{"kept"}}})
	o := mustOpen(t, s)
	if got := o.content(t, Workspace); strings.Contains(got, "secret") {
		t.Errorf("the view shows %q", got)
	}
	if err := o.put(Workspace, "kept", "x"); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only file: %v", err)
	}
}

func TestOwnStateIsHidden(t *testing.T) {
	f := newFixture(t, nil)
	s, err := f.store.Create(ctx, Spec{Base: filepath.Dir(f.base)}) // holds the store too
	check(t, err)
	o := mustOpen(t, s)
	if got := o.content(t, Workspace); got != "project/kept=base project/sub/file=base" {
		t.Errorf("the view of a directory with the store in it shows %q", got)
	}
}

func TestRecoverAfterPowerCut(t *testing.T) {
	f := newFixture(t, nil)
	s := f.create(Spec{})
	o := mustOpen(t, s)
	check(t, o.put(Workspace, "a", "1"))
	_, err := o.Seal(ctx, SealOptions{})
	check(t, err)
	check(t, o.put(Workspace, "b", "2"))
	check(t, o.close())
	h, err := s.hold(0)
	check(t, err)
	check(t, h.update(func(m *manifest) { m.Boot, m.Durable = "another boot", 0 }))
	h.release()
	o = mustOpen(t, s)
	if got := o.content(t, Workspace); got != "a=1 b=2 kept=base sub/file=base" {
		t.Errorf("after the recovery %q", got)
	}
	if m := s.man.Load(); m.Boot != bootID() {
		t.Errorf("boot %q is still recorded", m.Boot)
	}
}
