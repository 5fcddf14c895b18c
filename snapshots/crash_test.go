package snapshots

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/overlay/hostfs/hostfstest"
)

// crashWorld is a session with a past: snapshots with and without names, a
// branch set aside by a rollback, a fork, and changes that no snapshot has yet.
type crashWorld struct {
	*fixture
	fault    *hostfstest.Fault
	sess     *Session
	o        *opened
	fork     *Session
	forkLive *opened
	views    map[overlay.LayerID]string // of the session's named snapshots
	forkView string
}

func newCrashWorld(t *testing.T) *crashWorld {
	t.Helper()
	w := &crashWorld{fault: hostfstest.New(hostfstest.NoSync{FS: hostfs.OS}), views: map[overlay.LayerID]string{}}
	w.fixture = newFixture(t, w.fault)
	w.sess = w.create(Spec{Name: "one"})
	w.o = w.openLive(t, w.sess)
	seal := func(name string) Snapshot {
		s := w.o.mustSeal(t, name)
		if name != "" {
			w.views[s.Number] = sealedContent(t, w.sess, s.Number, Workspace)
		}
		return s
	}
	check(t, w.o.put(Workspace, "a", "1"))
	seal("first")
	check(t, w.o.put(Workspace, "b", "1"))
	seal("")
	check(t, w.o.put(Workspace, "a", "2"))
	check(t, w.o.remove(Workspace, "kept"))
	second := seal("second")
	check(t, w.o.put(Workspace, "c", "1"))
	aside := seal("aside")
	w.o.mustRollback(t, second.Number)
	check(t, w.o.put(Workspace, "b", "2"))
	seal("")
	check(t, w.o.put(Workspace, "d", "1"))
	seal("")
	_ = aside
	var err error
	w.fork, err = w.store.Fork(ctx, w.sess, Fork{At: second.Number, Name: "two"})
	check(t, err)
	w.forkLive = w.openLive(t, w.fork)
	check(t, w.forkLive.put(Workspace, "f", "1"))
	w.forkLive.mustSeal(t, "forked")
	w.forkView = w.forkLive.content(t, Workspace)
	check(t, w.o.put(Workspace, "open", "x"))
	return w
}

// crash runs op until it is cut off at the nth host call; false where it ended
// before. What a dead process would have lost is let go of.
func (w *crashWorld) crash(t *testing.T, n int, op func() error) (crashed bool) {
	t.Helper()
	w.fault.CrashAt(n)
	func() {
		defer func() {
			switch v := recover().(type) {
			case nil:
			case hostfstest.Crash:
				crashed = true
			default:
				panic(v)
			}
		}()
		if err := op(); err != nil {
			t.Fatalf("at call %d: %v", n, err)
		}
	}()
	if !crashed {
		w.fault.Clear()
	}
	// Nothing that this does has any effect after a crash, but for letting go
	// of descriptors and locks.
	for _, o := range []*opened{w.o, w.forkLive} {
		if err := o.close(); err != nil && !crashed {
			t.Fatal(err)
		}
	}
	return crashed
}

func (w *crashWorld) openLive(t *testing.T, s *Session) *opened {
	t.Helper()
	o, err := openLive(s)
	check(t, err)
	return o
}

// verify opens what the crash left as another process would.
func (w *crashWorld) verify(t *testing.T, when string, lives ...string) {
	t.Helper()
	store := w.open(hostfstest.NoSync{FS: hostfs.OS})
	sess, err := store.Find("one")
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	look := func(step string) {
		t.Helper()
		for n, want := range w.views {
			if got := sealedContent(t, sess, n, Workspace); got != want {
				t.Errorf("%s, %s: snapshot %d shows %q, want %q", when, step, n, got, want)
			}
		}
	}
	look("before it is opened")
	o, err := openLive(sess)
	if err != nil {
		t.Fatalf("%s: open: %v", when, err)
	}
	defer o.close()
	look("opened")
	got := o.content(t, Workspace)
	for _, want := range lives {
		if got == want {
			got = ""
			break
		}
	}
	if got != "" {
		t.Errorf("%s: the live view shows %q, want one of %q", when, got, lives)
	}
	fork, err := store.Find("two")
	check(t, err)
	p, err := openLive(fork)
	if err != nil {
		t.Fatalf("%s: open the fork: %v", when, err)
	}
	if got := p.content(t, Workspace); got != w.forkView {
		t.Errorf("%s: the fork shows %q, want %q", when, got, w.forkView)
	}
	check(t, p.close())
	// It goes on from there.
	check(t, o.put(Workspace, "after", "x"))
	after, err := o.Seal(ctx, SealOptions{Name: "after", Cause: Cause{Kind: CauseAsked}, Durable: true})
	if err != nil {
		t.Fatalf("%s: seal: %v", when, err)
	}
	want := sealedContent(t, sess, after.Number, Workspace)
	for n := range w.views {
		o.mustRollback(t, n)
		if got := o.content(t, Workspace); got != w.views[n] {
			t.Errorf("%s: rolled back to %d: %q, want %q", when, n, got, w.views[n])
		}
	}
	check(t, o.close())
	rep, err := store.GC(ctx, GCOptions{Retention: -1})
	if err != nil || len(rep.Kept) > 0 {
		t.Errorf("%s: gc: %+v, %v", when, rep, err)
	}
	look("collected")
	if got := sealedContent(t, sess, after.Number, Workspace); got != want {
		t.Errorf("%s: the last snapshot shows %q, want %q", when, got, want)
	}
}

// crashOp is an operation that is cut off.
type crashOp struct {
	run func(w *crashWorld) error
	// to is the live view afterwards, where that is another one.
	to string
}

func crashOps() map[string]crashOp {
	replace := func(w *crashWorld, o *opened, live bool) error {
		return o.Replacing(ctx, Replacing{Commit: "c", Live: live, Paths: map[string][]ReplacedPath{
			Workspace: {{Path: "kept"}, {Path: "new"}, {Path: "sub", Whole: true}}}})
	}
	return map[string]crashOp{
		"seal": {run: func(w *crashWorld) error { _, err := w.o.Seal(ctx, SealOptions{}); return err }},
		"seal by name": {run: func(w *crashWorld) error {
			_, err := w.o.Seal(ctx, SealOptions{Name: "n", Durable: true})
			return err
		}},
		"rollback": {run: func(w *crashWorld) error { _, err := w.o.Rollback(ctx, Rollback{To: 1}); return err },
			to: "a=1 kept=base sub/file=base"},
		"fork": {run: func(w *crashWorld) error {
			_, err := w.store.Fork(ctx, w.sess, Fork{At: 3, Name: "three"})
			return err
		}},
		"prune": {run: func(w *crashWorld) error {
			_, err := w.o.Prune(ctx, Prune{KeepLast: 1, KeepNamed: true})
			return err
		}},
		"merge": {run: func(w *crashWorld) error {
			_, err := w.o.Tidy(ctx, TidyPolicy{Age: -time.Hour, AtOnce: 100})
			return err
		}},
		"take": {run: func(w *crashWorld) error {
			_, err := w.o.Take(ctx, Take{Snapshot: 1, From: "1", Paths: map[string][]Path{Workspace: {"a"}}})
			return err
		}, to: "a=1 b=2 d=1 open=x sub/file=base"},
		"replace":               {run: func(w *crashWorld) error { return replace(w, w.o, false) }},
		"replace beneath forks": {run: func(w *crashWorld) error { return replace(w, w.forkLive, true) }},
	}
}

// TestCrashAtEveryStep cuts each operation off before every host call that
// changes something or makes it durable, and looks at what is left.
func TestCrashAtEveryStep(t *testing.T) {
	for name, op := range crashOps() {
		t.Run(name, func(t *testing.T) {
			step := 1
			if testing.Short() {
				step = 11
			}
			for n := 1; ; n += step {
				w := newCrashWorld(t)
				live := w.o.content(t, Workspace)
				crashed := w.crash(t, n, func() error { return op.run(w) })
				if op.to == "" {
					op.to = live
				}
				lives := []string{live, op.to}
				w.verify(t, fmt.Sprintf("cut off at call %d", n), lives...)
				if !crashed || t.Failed() {
					if n < 5 {
						t.Errorf("only %d calls", n)
					}
					return
				}
			}
		})
	}
}

// TestTornManifest is what a power cut can leave of a checkpoint that did not
// wait for the disk.
func TestTornManifest(t *testing.T) {
	for _, torn := range []string{"", "\x00\x00\x00\x00"} {
		f := newFixture(t, nil)
		s := f.create(Spec{})
		o := mustOpen(t, s)
		check(t, o.put(Workspace, "a", "1"))
		named, err := o.Seal(ctx, SealOptions{Name: "named", Durable: true})
		check(t, err)
		check(t, o.put(Workspace, "b", "1"))
		o.mustSeal(t, "")
		o.held.release()
		write(t, filepath.Join(s.Dir(), manifestFile), torn)
		again, err := f.open(nil).Find(s.ID())
		check(t, err)
		if got := sealedContent(t, again, named.Number, Workspace); got != "a=1 kept=base sub/file=base" {
			t.Errorf("after a torn manifest: %q", got)
		}
		// What was synced in the view has taken the manifest with it.
		o = mustOpen(t, again)
		check(t, o.put(Workspace, "c", "1"))
		o.mustSeal(t, "")
		check(t, o.put(Workspace, "d", "1"))
		n, _, err := o.faces[Workspace].Walk("d")
		check(t, err)
		check(t, o.faces[Workspace].Fsync(n, false))
		o.faces[Workspace].Forget(n, 1)
		if o.lazy.lazy {
			t.Error("a sync left the manifest behind")
		}
	}
}
