package snapshots

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/galleyfs/galley/overlay"
)

// checkWorld is a store whose files are damaged.
type checkWorld struct {
	*fixture
	t     *testing.T
	sess  *Session
	fork  *Session
	views map[overlay.LayerID]string
	live  string
}

func newCheckWorld(t *testing.T) *checkWorld {
	t.Helper()
	w := &checkWorld{fixture: newFixture(t, nil), t: t, views: map[overlay.LayerID]string{}}
	w.sess = w.create(Spec{Name: "one"})
	o := mustOpen(t, w.sess)
	seal := func(name string) Snapshot {
		s := o.mustSeal(t, name)
		w.views[s.Number] = sealedContent(t, w.sess, s.Number, Workspace)
		return s
	}
	check(t, o.put(Workspace, "a", "1"))
	check(t, o.put(Workspace, "dir/x", "1"))
	seal("first")
	check(t, o.put(Workspace, "a", "2"))
	check(t, o.put(Workspace, "dir/y", "2"))
	check(t, o.remove(Workspace, "kept"))
	second := seal("second")
	check(t, o.put(Workspace, "c", "3"))
	seal("third")
	check(t, o.put(Workspace, "open", "x"))
	w.live = o.content(t, Workspace)
	check(t, o.close())
	var err error
	w.fork, err = w.store.Fork(ctx, w.sess, Fork{At: second.Number, Name: "two"})
	check(t, err)
	return w
}

// file is a path in the first session's directory.
func (w *checkWorld) file(parts ...string) string {
	return filepath.Join(append([]string{w.sess.Dir()}, parts...)...)
}

// layer is a path in a layer of its workspace.
func (w *checkWorld) layer(n string, parts ...string) string {
	return w.file(append([]string{dirTrees, Workspace, dirLayers, n}, parts...)...)
}

// damage turns one byte in the middle of a file around.
func (w *checkWorld) damage(path string) {
	w.t.Helper()
	b, err := os.ReadFile(path)
	check(w.t, err)
	b[len(b)/2] ^= 0x55
	check(w.t, os.WriteFile(path, b, 0o600))
}

func (w *checkWorld) check(repair bool) CheckReport {
	w.t.Helper()
	r, err := w.store.Check(ctx, CheckOptions{Repair: repair})
	check(w.t, err)
	return r
}

// TestCheck damages each kind of file that there is, and looks at what is found
// and what a repair makes of it.
func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(w *checkWorld)
		// want is what the first finding says.
		want string
		// stays: nothing repairs it.
		stays bool
		// lost are snapshots that are not there afterwards.
		lost []overlay.LayerID
		// then looks at what the repair left.
		then func(w *checkWorld)
	}{
		"manifest": {
			damage: func(w *checkWorld) { check(w.t, os.WriteFile(w.file(manifestFile), []byte("{oops"), 0o600)) },
			want:   "not a manifest", stays: true,
		},
		"manifest, with the one before it": {
			damage: func(w *checkWorld) {
				check(w.t, os.Link(w.file(manifestFile), w.file(manifestKept)))
				check(w.t, os.Remove(w.file(manifestFile)))
				check(w.t, os.WriteFile(w.file(manifestFile), []byte("{oops"), 0o600))
			},
			want: "not a manifest",
			then: func(w *checkWorld) {
				if b, err := os.ReadFile(w.file(manifestFile + damagedSuffix)); err != nil || string(b) != "{oops" {
					w.t.Errorf("what was damaged is %q, %v", b, err)
				}
			},
		},
		"line of the history": {
			damage: func(w *checkWorld) {
				b, err := os.ReadFile(w.file(historyFile))
				check(w.t, err)
				lines := strings.SplitAfter(string(b), "\n")
				lines[1] = "{\"v\":1,\n"
				check(w.t, os.WriteFile(w.file(historyFile), []byte(strings.Join(lines, "")), 0o600))
			},
			want: "line 2", lost: []overlay.LayerID{2},
			then: func(w *checkWorld) {
				if _, err := os.Stat(w.file(historyFile + damagedSuffix)); err != nil {
					w.t.Error(err)
				}
			},
		},
		"end of the history": {
			damage: func(w *checkWorld) {
				b, err := os.ReadFile(w.file(historyFile))
				check(w.t, err)
				check(w.t, os.WriteFile(w.file(historyFile), b[:len(b)-20], 0o600))
			},
			want: "does not end with the latest",
		},
		"layer": {
			damage: func(w *checkWorld) { check(w.t, os.RemoveAll(w.layer("2"))) },
			want:   "2 snapshots from second on need it", stays: true,
		},
		"record": {
			damage: func(w *checkWorld) { w.damage(w.layer("2", layerRecord)) },
			want:   "frame at byte",
			then: func(w *checkWorld) {
				if _, err := os.Stat(w.layer("2", layerRecord+damagedSuffix)); err != nil {
					w.t.Error(err)
				}
			},
		},
		"end of a record": {
			damage: func(w *checkWorld) {
				b, err := os.ReadFile(w.layer("1", layerRecord))
				check(w.t, err)
				check(w.t, os.WriteFile(w.layer("1", layerRecord), b[:len(b)-3], 0o600))
			},
			want: "ends within a frame",
		},
		"record of another layer": {
			damage: func(w *checkWorld) {
				b, err := os.ReadFile(w.layer("1", layerRecord))
				check(w.t, err)
				check(w.t, os.WriteFile(w.layer("3", layerRecord), b, 0o600))
			},
			want: "header names layer 1",
		},
		"record and index": {
			damage: func(w *checkWorld) {
				w.damage(w.layer("2", layerRecord))
				w.damage(w.file(dirTrees, Workspace, "index"))
			},
			want: "frame at byte", stays: true,
		},
		"index": {
			damage: func(w *checkWorld) { w.damage(w.file(dirTrees, Workspace, "index")) },
			want:   "a cache, damaged",
		},
		"file in a layer": {
			damage: func(w *checkWorld) { check(w.t, os.Remove(w.layer("1", layerTree, "dir", "x"))) },
			want:   "recorded, and not in the layer", stays: true,
		},
		"file that a layer should not have": {
			damage: func(w *checkWorld) {
				check(w.t, os.WriteFile(w.layer("2", layerTree, "dir", "more"), []byte("?"), 0o600))
			},
			want: "in the layer, and not recorded", stays: true,
		},
		"file of another type": {
			damage: func(w *checkWorld) {
				check(w.t, os.Remove(w.layer("2", layerTree, "a")))
				check(w.t, os.Symlink("x", w.layer("2", layerTree, "a")))
			},
			want: "of type 120000, recorded as 100000", stays: true,
		},
		"file that the active layer should not have": {
			damage: func(w *checkWorld) {
				check(w.t, os.WriteFile(w.layer("4", layerTree, "more"), []byte("?"), 0o644))
			},
			want: "in the layer, and not recorded",
			then: func(w *checkWorld) { w.live += " " }, // it is a change of the session's then
		},
		"layer without a record": {
			damage: func(w *checkWorld) {
				check(w.t, os.MkdirAll(w.layer("9", layerTree), 0o700))
				check(w.t, os.WriteFile(w.layer("9", layerTree, "work"), []byte("hours of it"), 0o600))
			},
			want: "and not empty",
			then: func(w *checkWorld) {
				trash, err := w.store.Trash()
				check(w.t, err)
				if len(trash) != 1 || trash[0].Kind != TrashLayer {
					w.t.Fatalf("trash: %+v", trash)
				}
				b, err := os.ReadFile(filepath.Join(w.home, dirTrash, trash[0].ID, trashedLayer, layerTree, "work"))
				if err != nil || string(b) != "hours of it" {
					w.t.Errorf("in the trash: %q, %v", b, err)
				}
				if _, err := w.store.Restore(ctx, trash[0].ID); err == nil || !strings.Contains(err.Error(), trashedLayer) {
					w.t.Errorf("restore: %v", err)
				}
				_, err = w.store.GC(ctx, GCOptions{Retention: -1})
				check(w.t, err)
				if trash, err := w.store.Trash(); err != nil || len(trash) != 0 {
					w.t.Errorf("past its time: %+v, %v", trash, err)
				}
			},
		},
		"empty layer": {
			damage: func(w *checkWorld) { check(w.t, os.MkdirAll(w.layer("9", layerTree), 0o700)) },
			want:   "holds no work",
		},
		"scratch": {
			damage: func(w *checkWorld) { check(w.t, os.RemoveAll(w.file(dirTrees, Workspace, dirScratch))) },
			want:   "not there",
		},
		"layers of a fork": {
			damage: func(w *checkWorld) { check(w.t, os.RemoveAll(w.sess.Dir())) },
			want:   "which it shares with session", stays: true,
		},
		"discarded": {
			damage: func(w *checkWorld) {
				e, err := w.store.Remove(w.fork)
				check(w.t, err)
				check(w.t, os.Rename(filepath.Join(w.home, dirTrash, e.ID), filepath.Join(w.home, dirSessions, e.ID)))
			},
			want: "not in the trash",
		},
		"record in the trash": {
			damage: func(w *checkWorld) {
				e, err := w.store.Remove(w.fork)
				check(w.t, err)
				w.damage(filepath.Join(w.home, dirTrash, e.ID, manifestFile))
			},
			want: "cannot be brought back", stays: true,
		},
		"half a session": {
			damage: func(w *checkWorld) {
				check(w.t, os.MkdirAll(filepath.Join(w.home, dirSessions, stagePrefix+"abcdefgh"), 0o700))
			},
			want: "left by a crash",
		},
		"half an import": {
			damage: func(w *checkWorld) {
				check(w.t, os.MkdirAll(filepath.Join(w.home, importPrefix+"abcdefgh"), 0o700))
			},
			want: "left by a crash",
		},
		"socket": {
			damage: func(w *checkWorld) {
				ln, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: w.sess.Socket()})
				check(w.t, err)
				ln.SetUnlinkOnClose(false)
				check(w.t, ln.Close())
			},
			want: "without a process",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newCheckWorld(t)
			if r := w.check(false); len(r.Findings) > 0 || r.Sessions != 2 || r.Layers < 5 || r.Snapshots != 4 {
				t.Fatalf("before the damage: %+v", r)
			}
			c.damage(w)
			r := w.check(false)
			at := slices.IndexFunc(r.Findings, func(f Finding) bool { return strings.Contains(f.What, c.want) })
			if at < 0 || r.Bad() != len(r.Findings) {
				t.Fatalf("found %+v, want %q", r.Findings, c.want)
			}
			if (r.Findings[at].Fix == "") != c.stays && name != "record and index" {
				t.Errorf("how to repair it: %q", r.Findings[at].Fix)
			}
			if again := w.check(false); len(again.Findings) != len(r.Findings) {
				t.Errorf("a look changed something: %+v, then %+v", r.Findings, again.Findings)
			}
			r = w.check(true)
			if (r.Bad() > 0) != c.stays {
				t.Fatalf("repaired: %+v", r.Findings)
			}
			if c.stays {
				return
			}
			if again := w.check(false); len(again.Findings) > 0 {
				t.Errorf("after the repair: %+v", again.Findings)
			}
			if c.then != nil {
				c.then(w)
			}
			for n, want := range w.views {
				if slices.Contains(c.lost, n) {
					continue
				}
				if got := sealedContent(t, w.sess, n, Workspace); got != want {
					t.Errorf("snapshot %d shows %q, want %q", n, got, want)
				}
			}
			o := mustOpen(t, w.sess)
			if got := o.content(t, Workspace); got != w.live && !strings.HasSuffix(w.live, " ") {
				t.Errorf("the live view is %q, was %q", got, w.live)
			}
			check(t, o.put(Workspace, "after", "x"))
			o.mustSeal(t, "after")
		})
	}
}

// TestCheckLeavesTheLive: of a session at work, what is sealed is looked at, and
// nothing is repaired.
func TestCheckLeavesTheLive(t *testing.T) {
	w := newCheckWorld(t)
	o := mustOpen(t, w.sess)
	check(t, o.put(Workspace, "more", "x"))
	if r := w.check(true); len(r.Findings) > 0 || len(r.Live) != 1 {
		t.Fatalf("at work: %+v", r)
	}
	w.damage(w.layer("2", layerRecord))
	r := w.check(true)
	if len(r.Findings) == 0 || r.Bad() != len(r.Findings) || r.Findings[0].Session != "one" {
		t.Errorf("at work, and damaged: %+v", r)
	}
	check(t, o.close())
	if r := w.check(true); r.Bad() > 0 || len(r.Findings) != 1 {
		t.Errorf("afterwards: %+v", r)
	}
}

// TestCheckAfterACommit: what gc removes of what was committed is not missing.
func TestCheckAfterACommit(t *testing.T) {
	f := newFixture(t, nil)
	s := f.create(Spec{Name: "one"})
	o := mustOpen(t, s)
	var last Snapshot
	for _, text := range []string{"1", "2", "3"} {
		check(t, o.put(Workspace, "a", text))
		last = o.mustSeal(t, "")
	}
	write(t, filepath.Join(f.base, "a"), "3")
	_, err := o.Committed(ctx, Committed{Snapshot: last.Number, Commit: "c", Paths: map[string][]Path{Workspace: {"a"}}})
	check(t, err)
	check(t, o.close())
	gone, err := f.store.GC(ctx, GCOptions{Retention: -1})
	check(t, err)
	if gone.Layers == 0 {
		t.Fatalf("gc removed nothing: %+v", gone)
	}
	r, err := f.store.Check(ctx, CheckOptions{})
	check(t, err)
	if len(r.Findings) > 0 || r.Hidden == 0 {
		t.Errorf("%d hidden, and %+v", r.Hidden, r.Findings)
	}
}

// TestCheckLeavesWhatForksNeed: a prune of a session keeps the layers that only
// a fork needs, also one in the trash, and a repair leaves them alone.
func TestCheckLeavesWhatForksNeed(t *testing.T) {
	f := newFixture(t, nil)
	s := f.create(Spec{Name: "one"})
	o := mustOpen(t, s)
	for i := range 4 {
		check(t, o.put(Workspace, "a", fmt.Sprint(i)))
		check(t, o.put(Workspace, fmt.Sprint("f", i), "x"))
		o.mustSeal(t, "")
	}
	fork, err := f.store.Fork(ctx, s, Fork{At: 2, Name: "two"})
	check(t, err)
	want := sealedContent(t, fork, 2, Workspace)
	_, err = o.Prune(ctx, Prune{})
	check(t, err)
	check(t, o.close())
	repair := func() {
		t.Helper()
		r, err := f.store.Check(ctx, CheckOptions{Repair: true})
		check(t, err)
		if len(r.Findings) > 0 {
			t.Errorf("found %+v", r.Findings)
		}
	}
	repair()
	entry, err := f.store.Remove(fork)
	check(t, err)
	repair()
	fork, err = f.store.Restore(ctx, entry.ID)
	check(t, err)
	if got := sealedContent(t, fork, 2, Workspace); got != want {
		t.Errorf("the fork shows %q, want %q", got, want)
	}
	// Where it is not known what a fork needs, nothing goes.
	path := filepath.Join(fork.Dir(), historyFile)
	text, err := os.ReadFile(path)
	check(t, err)
	check(t, os.WriteFile(path, append([]byte("{oops\n"), text...), 0o600))
	if r, err := f.store.Check(ctx, CheckOptions{Sessions: []string{s.ID()}, Repair: true}); err != nil || r.Bad() == 0 {
		t.Errorf("a fork that cannot be read: %+v, %v", r, err)
	}
	check(t, os.WriteFile(path, text, 0o600))
	repair()
	if got := sealedContent(t, fork, 2, Workspace); got != want {
		t.Errorf("the fork shows %q, want %q", got, want)
	}
}

// TestCheckLeavesWhatTheTrashNeeds: layers that are in no history any more, and
// that paths in the trash need to be brought back.
func TestCheckLeavesWhatTheTrashNeeds(t *testing.T) {
	f := newFixture(t, nil)
	s := f.create(Spec{Name: "one", Extra: []TreeSpec{{Name: "other", Base: t.TempDir()}}})
	o := mustOpen(t, s)
	for i := range 4 {
		check(t, o.put(Workspace, "a", fmt.Sprint(i)))
		check(t, o.put("other", "b", fmt.Sprint(i)))
		o.mustSeal(t, "")
	}
	before := o.content(t, Workspace)
	entry, err := o.Discard(ctx, Discard{Paths: map[string][]Path{Workspace: {"a"}}})
	check(t, err)
	_, err = o.Prune(ctx, Prune{})
	check(t, err)
	check(t, o.close())
	for range 2 {
		r, err := f.store.Check(ctx, CheckOptions{Repair: true})
		check(t, err)
		if len(r.Findings) > 0 {
			t.Errorf("found %+v", r.Findings)
		}
		gc, err := f.store.GC(ctx, GCOptions{})
		check(t, err)
		if len(gc.Orphans)+len(gc.Kept) > 0 {
			t.Errorf("gc: %+v", gc)
		}
	}
	_, err = f.store.Restore(ctx, entry.ID)
	check(t, err)
	o = mustOpen(t, s)
	if got := o.content(t, Workspace); got != before {
		t.Errorf("after the restore: %q, want %q", got, before)
	}
	if got := o.content(t, "other"); got != "b=3" {
		t.Errorf("the other tree: %q", got)
	}
	check(t, o.close())
	// Past its time all of it goes.
	_, err = f.store.GC(ctx, GCOptions{Retention: -1})
	check(t, err)
	gc, err := f.store.GC(ctx, GCOptions{Retention: -1})
	check(t, err)
	if len(gc.Kept) > 0 {
		t.Errorf("gc past the time: %+v", gc)
	}
}
