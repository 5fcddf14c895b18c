package snapshots

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// files is what a tree shows: content by path. Directories are there where
// something is in them.
type files map[string]string

func (f files) String() string {
	var lines []string
	for p, text := range f {
		lines = append(lines, p+"="+text)
	}
	slices.Sort(lines)
	return strings.Join(lines, " ")
}

// branch is one session of a random family, with what each of its snapshots
// must show.
type branch struct {
	sess  *Session
	o     *opened
	live  files
	snaps map[overlay.LayerID]files
	named map[overlay.LayerID]bool
}

// family is a project, its sessions, and what must be true of them.
type family struct {
	*fixture
	rnd      *rand.Rand
	text     files // of the project
	branches []*branch
	commits  int
	buried   int
	log      []string
}

func (f *family) note(format string, args ...any) {
	f.log = append(f.log, fmt.Sprintf(format, args...))
}

func (f *family) fail(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatalf("%v, after\n%s", err, strings.Join(f.log, "\n"))
	}
}

func newFamily(t *testing.T, seed uint64) *family {
	fx := &fixture{t: t, home: filepath.Join(t.TempDir(), "home")}
	fx.base = filepath.Join(t.TempDir(), "project")
	f := &family{fixture: fx, rnd: rand.New(rand.NewPCG(seed, 1)), text: files{}}
	for i := range 6 {
		p := f.path()
		f.text[p] = fmt.Sprintf("base%d", i)
		write(t, filepath.Join(fx.base, p), f.text[p])
	}
	fx.store = fx.open(nil)
	s := fx.create(Spec{})
	f.add(s, maps.Clone(f.text))
	return f
}

func (f *family) add(s *Session, live files) *branch {
	o, err := openLive(s)
	f.fail(err)
	b := &branch{sess: s, o: o, live: live, snaps: map[overlay.LayerID]files{}, named: map[overlay.LayerID]bool{}}
	f.branches = append(f.branches, b)
	return b
}

// path is one of few, so that operations meet.
func (f *family) path() string {
	return []string{"a", "b", "c", "d/x", "d/y", "e/x", "e/f/z"}[f.rnd.IntN(7)]
}

func (f *family) seal(b *branch, name string) {
	s, err := b.o.Seal(ctx, SealOptions{Name: name, Cause: Cause{Kind: CauseTool}, Durable: f.rnd.IntN(4) == 0})
	f.fail(err)
	f.note("seal %s: %d %s", b.sess.Name(), s.Number, name)
	if s.Number != 0 {
		b.snaps[s.Number] = maps.Clone(b.live)
		b.named[s.Number] = b.named[s.Number] || name != ""
	}
}

func (f *family) edit(b *branch) {
	p := f.path()
	if _, ok := b.live[p]; ok && f.rnd.IntN(3) == 0 {
		f.note("remove %s: %s", b.sess.Name(), p)
		f.fail(b.o.remove(Workspace, p))
		delete(b.live, p)
		return
	}
	f.commits++ // makes every text another one
	text := fmt.Sprintf("%s%d", b.sess.Name(), f.commits)
	f.note("put %s: %s=%s", b.sess.Name(), p, text)
	f.fail(b.o.put(Workspace, p, text))
	b.live[p] = text
}

func (f *family) anySnap(b *branch) (overlay.LayerID, bool) {
	if len(b.snaps) == 0 {
		return 0, false
	}
	return slices.Sorted(maps.Keys(b.snaps))[f.rnd.IntN(len(b.snaps))], true
}

// commit writes all changes of a session to the base, as the committer would.
func (f *family) commit(b *branch) {
	f.seal(b, "")
	last := b.sess.Last()
	var paths []Path
	var changed []string
	v, err := b.sess.OpenSealed(last.Number)
	f.fail(err)
	// A directory that goes, or that another one takes the place of.
	whole := map[string]bool{}
	drift := ""
	err = v.Trees()[0].Face.Delta(func(e overlay.Entry) error {
		paths = append(paths, Path(e.Path))
		changed = append(changed, e.Path)
		whole[e.Path] = e.Whiteout || e.Opaque
		if f.drifted(&e) {
			drift = e.Path
		}
		return nil
	})
	f.fail(err)
	if len(paths) == 0 || drift != "" {
		f.note("no commit of %s: %s", b.sess.Name(), drift)
		f.fail(v.Close())
		return
	}
	f.commits++
	id := fmt.Sprintf("c%d", f.commits)
	f.note("commit %s: %d of %s: %s", id, last.Number, b.sess.Name(), strings.Join(changed, " "))
	next := maps.Clone(f.text)
	var replaced []ReplacedPath
	for _, p := range changed {
		for q := range next {
			if whole[p] && (q == p || strings.HasPrefix(q, p+"/")) {
				delete(next, q)
			}
		}
		if text, ok := b.live[p]; ok {
			next[p] = text
		}
		replaced = append(replaced, ReplacedPath{Path: Path(p), Whole: whole[p]})
	}
	for _, other := range f.branches {
		r := Replacing{Commit: id, Live: other != b, Paths: map[string][]ReplacedPath{Workspace: replaced}}
		f.fail(other.o.Replacing(ctx, r))
	}
	for _, p := range changed {
		if whole[p] {
			f.bury(filepath.Join(f.dir(), p))
		}
	}
	for _, d := range []string{"d", "e", "e/f"} {
		if n, a, err := v.Trees()[0].Face.Walk(d); err == nil && a.IsDir() && slices.Contains(changed, d) {
			v.Trees()[0].Face.Forget(n, 1)
			f.fail(os.MkdirAll(filepath.Join(f.dir(), d), 0o755))
		}
	}
	f.fail(v.Close())
	for p, text := range next {
		if have, err := os.ReadFile(filepath.Join(f.dir(), p)); err != nil || string(have) != text {
			tmp := filepath.Join(f.dir(), p) + ".new"
			write(f.t, tmp, text)
			f.bury(filepath.Join(f.dir(), p))
			f.fail(os.Rename(tmp, filepath.Join(f.dir(), p)))
		}
	}
	f.text = next
	s, err := b.o.Committed(ctx, Committed{Snapshot: last.Number, Commit: id, Paths: map[string][]Path{Workspace: paths}})
	f.fail(err)
	b.snaps[s.Number] = maps.Clone(b.live)
	f.checkAll()
}

// bury moves what is at path out of the base. It is not removed: a file system
// could use its number again within the same tick of its clock, and nothing
// would tell the two apart. A committer has made all new files by then.
func (f *family) bury(path string) {
	grave := filepath.Join(f.home, "grave")
	f.fail(os.MkdirAll(grave, 0o700))
	f.buried++
	if err := os.Rename(path, filepath.Join(grave, fmt.Sprint(f.buried))); !os.IsNotExist(err) {
		f.fail(err)
	}
}

// drifted tells whether the base has something else at an entry than the
// session saw there: the committer would refuse.
func (f *family) drifted(e *overlay.Entry) bool {
	var st unix.Stat_t
	err := unix.Lstat(filepath.Join(f.dir(), e.Path), &st)
	switch {
	case e.Implicit:
		return err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR
	case e.Was == nil || !e.Was.Exists:
		return err == nil
	case err != nil || st.Ino != e.Was.ID.Ino || st.Mode != e.Was.Mode:
		return true
	}
	return st.Mode&unix.S_IFMT == unix.S_IFREG && (st.Ctim.Sec != e.Was.Ctime.Sec || uint32(st.Ctim.Nsec) != e.Was.Ctime.Nsec)
}

func (f *family) dir() string { return f.fixture.base }

// cut removes a directory with all that is in it.
func (f *family) cut(b *branch) {
	dir := []string{"d", "e", "e/f"}[f.rnd.IntN(3)]
	face := b.o.faces[Workspace]
	n, _, err := face.Walk(dir)
	if absent(err) {
		return
	}
	f.fail(err)
	face.Forget(n, 1)
	f.note("cut %s: %s", b.sess.Name(), dir)
	parent, _, err := face.Walk(parentOf(dir))
	f.fail(err)
	defer face.Forget(parent, 1)
	t := &transplant{ctx: ctx, dst: face}
	f.fail(t.remove(parent, filepath.Base(dir)))
	for p := range b.live {
		if strings.HasPrefix(p, dir+"/") {
			delete(b.live, p)
		}
	}
}

func (f *family) prune(b *branch) {
	p := Prune{KeepLast: f.rnd.IntN(3), KeepNamed: true}
	done, err := b.o.Prune(ctx, p)
	f.fail(err)
	f.note("prune %s: %+v", b.sess.Name(), done)
	for _, n := range done.Snapshots {
		if b.named[n] {
			f.fail(fmt.Errorf("prune forgot snapshot %d, which has a name", n))
		}
		delete(b.snaps, n)
	}
}

func (f *family) step() {
	b := f.branches[f.rnd.IntN(len(f.branches))]
	switch k := f.rnd.IntN(30); {
	case k < 13:
		f.edit(b)
	case k < 14:
		f.cut(b)
	case k < 19:
		f.seal(b, "")
	case k < 20:
		f.commits++
		f.seal(b, fmt.Sprintf("n%d", f.commits))
	case k < 23:
		if n, ok := f.anySnap(b); ok {
			f.note("rollback %s to %d", b.sess.Name(), n)
			before := maps.Clone(b.live)
			r, err := b.o.Rollback(ctx, Rollback{To: n})
			f.fail(err)
			if r.Before.Number != 0 {
				b.snaps[r.Before.Number] = before
			}
			b.live = maps.Clone(b.snaps[n])
			b.snaps[r.Now.Number] = maps.Clone(b.live)
		}
	case k < 24:
		if n, ok := f.anySnap(b); ok && len(f.branches) < 4 {
			fork, err := f.store.Fork(ctx, b.sess, Fork{At: n})
			f.fail(err)
			f.note("fork %s at %d: %s", b.sess.Name(), n, fork.Name())
			f.add(fork, maps.Clone(b.snaps[n])).snaps[n] = maps.Clone(b.snaps[n])
		}
	case k < 26:
		f.commit(b)
	case k < 27:
		f.prune(b)
	case k < 28:
		f.reopen(b)
	case k < 29:
		if n, ok := f.anySnap(b); ok {
			f.take(b, n)
		}
	default:
		_, err := f.store.GC(ctx, GCOptions{})
		f.fail(err)
	}
	f.check(b)
}

func (f *family) take(b *branch, n overlay.LayerID) {
	p := f.path()
	_, had := b.live[p]
	text, there := b.snaps[n][p]
	if !had && !there {
		return
	}
	f.note("take %s from %d of %s", p, n, b.sess.Name())
	before := maps.Clone(b.live)
	t, err := b.o.Take(ctx, Take{Snapshot: n, From: "x", Paths: map[string][]Path{Workspace: {Path(p)}}})
	f.fail(err)
	if there {
		b.live[p] = text
	} else {
		delete(b.live, p)
	}
	if t.Before.Number != 0 {
		b.snaps[t.Before.Number] = before
	}
	if t.Now.Number != 0 {
		b.snaps[t.Now.Number] = maps.Clone(b.live)
	}
}

// reopen closes a session and opens it again, with or without its index.
func (f *family) reopen(b *branch) {
	index := f.rnd.IntN(2) == 0
	f.note("reopen %s, index %v", b.sess.Name(), index)
	f.fail(b.o.close())
	if !index {
		f.fail(os.RemoveAll(filepath.Join(b.sess.StateDir(Workspace), "index")))
	}
	var err error
	b.o, err = openLive(b.sess)
	f.fail(err)
}

// checkAll compares all snapshots of all sessions.
func (f *family) checkAll() {
	for _, b := range f.branches {
		for n := range b.snaps {
			f.checkSnap(b, n)
		}
	}
}

// check compares the live view of every session, and one snapshot of b.
func (f *family) check(b *branch) {
	for _, c := range f.branches {
		got, err := content(c.o.faces[Workspace])
		f.fail(err)
		if got != c.live.String() {
			f.fail(fmt.Errorf("session %s shows %q, want %q", c.sess.Name(), got, c.live))
		}
	}
	if n, ok := f.anySnap(b); ok {
		f.checkSnap(b, n)
	}
}

func (f *family) checkSnap(b *branch, n overlay.LayerID) {
	v, err := b.sess.OpenSealed(n)
	f.fail(err)
	defer v.Close()
	got, err := content(v.Trees()[0].Face)
	f.fail(err)
	if got != b.snaps[n].String() {
		f.fail(fmt.Errorf("snapshot %d of %s shows %q, want %q", n, b.sess.Name(), got, b.snaps[n]))
	}
}

// TestRandomFamilies does random operations in sessions and their forks, with
// commits to the base that they have in common, and compares every view with
// what it must show.
func TestRandomFamilies(t *testing.T) {
	runs := 25
	if testing.Short() {
		runs = 4
	}
	for i := range runs {
		seed := uint64(i + 1)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			f := newFamily(t, seed)
			for range 80 {
				f.step()
			}
			f.checkAll()
			for _, b := range f.branches {
				f.fail(b.o.close())
			}
			rep, err := f.store.GC(ctx, GCOptions{})
			f.fail(err)
			if len(rep.Kept) > 0 {
				f.fail(fmt.Errorf("gc: %v", rep.Kept))
			}
			f.checkAll()
		})
	}
}
