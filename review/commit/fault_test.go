package commit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/overlay/hostfs/hostfstest"
)

// The commit that is broken at every point: 40 changes of every kind, closed
// directories among them.
const (
	faultBase = sample + `
		mkdir -p ro/in gone/in; echo x >ro/x; echo y >ro/in/y; echo z >gone/in/z; chmod 0555 ro ro/in gone gone/in; ln README linked`
	faultSession = `
		mv docs papers; rm papers/a; echo more >>papers/b; mv papers/img pics
		mv swap1 t; mv swap2 swap1; mv t swap2
		rm -r empty; echo x >empty; rm NOTES; mkdir NOTES; echo x >NOTES/x; chmod 0700 keep
		for i in 1 2 3; do rm src/f$i; done; for i in 4 5 6; do echo more >>src/f$i; done
		mv src/f7 src/f9b; mkdir -p n/e/w; echo 1 >n/e/w/1; mv src/deep n/e/deep; echo l >l1; ln l1 l2
		chmod 0600 src/f8; chmod 0711 .; ln -sf nowhere src/link; rm README linked; echo again >README
		chmod -R u+w ro gone; echo n >ro/in/n; rm ro/x; rm -r gone; chmod 0555 ro ro/in; mkdir shut; echo k >shut/k; chmod 0555 shut
		for i in 1 2 3 4; do echo $i >new$i; done`
)

// faulty runs one commit after the other on the same tree, made again only when
// a commit went through.
type faulty struct {
	t        *testing.T
	w        *world
	old, new string
	made     int
}

func newFaulty(t *testing.T) *faulty {
	t.Helper()
	f := &faulty{t: t}
	f.reset()
	return f
}

// fastDir is a directory of the test in memory, where there is one.
func fastDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "galley-commit-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (f *faulty) reset() {
	f.t.Helper()
	f.w = newWorld(f.t, fastDir(f.t), faultBase)
	f.w.session(faultSession)
	f.old, f.new = f.w.image(f.w.base), f.w.image(f.w.want)
	f.made++
}

func (f *faulty) commit(host hostfs.FS) error {
	cfg := f.w.config(host)
	cfg.unprivileged = true
	_, err := f.w.apply(cfg, keepAll)
	return err
}

func (f *faulty) recover(host hostfs.FS, want Want) (*Recovery, error) {
	cfg := f.w.config(host)
	return Recover(context.Background(), RecoverConfig{FS: host, CommitDir: cfg.CommitDir, LockDir: cfg.LockDir, Want: want})
}

// settle checks that the tree is as either is told, and that nothing is left;
// then it makes ready for the next commit.
func (f *faulty) settle(what string, mayBeOld, mayBeNew bool) {
	f.t.Helper()
	now := f.w.image(f.w.base)
	switch {
	case now == f.old && mayBeOld, now == f.new && mayBeNew:
	case now == f.old:
		f.t.Fatalf("%s: the tree is old", what)
	case now == f.new:
		f.t.Fatalf("%s: the tree is new", what)
	default:
		f.t.Fatalf("%s: the tree is neither old nor new:\n%s", what, now)
	}
	if s := f.w.stray(); s != nil {
		f.t.Fatalf("%s: left behind %q", what, s)
	}
	pending, err := Pending(nil, filepath.Join(f.w.dir, "commits"))
	if err != nil {
		f.t.Fatal(err)
	}
	for _, p := range pending {
		if p.State != StateApplied || now != f.new {
			f.t.Fatalf("%s: still pending: %+v", what, p)
		}
	}
	if now == f.new {
		f.reset()
	}
}

// points is how many counted calls one commit makes.
func (f *faulty) points() int {
	f.t.Helper()
	fault := hostfstest.New(hostfs.OS)
	if err := f.commit(fault); err != nil {
		f.t.Fatal(err)
	}
	n := fault.Count()
	f.settle("without faults", false, true)
	return n
}

// TestCrashAtEveryCall is rule 7 of docs/commit.md, and C1 of the goals: after
// a crash before any call, one recovery makes the tree exactly old or exactly
// new, whichever way it is asked to go.
func TestCrashAtEveryCall(t *testing.T) {
	f := newFaulty(t)
	n := f.points()
	t.Logf("%d points", n)
	for i := 1; i <= n; i++ {
		want := []Want{Auto, Revert}[i%2]
		what := fmt.Sprintf("crash at call %d of %d, then %d", i, n, want)
		fault := hostfstest.New(hostfs.OS)
		if i%3 == 0 {
			fault.TornAt(i)
		} else {
			fault.CrashAt(i)
		}
		if crashed, err := fault.Run(func() error { return f.commit(fault) }); !crashed {
			t.Fatalf("%s: no crash: %v", what, err)
		}
		rec, err := f.recover(nil, want)
		if errors.Is(err, ErrNoCommit) {
			f.settle(what, true, false)
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		f.settle(what, rec.Outcome != Finished, rec.Outcome == Finished)
	}
}

// TestCrashInRecovery crashes again while recovering, and once more in the
// second recovery.
func TestCrashInRecovery(t *testing.T) {
	f := newFaulty(t)
	n := f.points()
	rng := rand.New(rand.NewPCG(1, 2))
	samples := 150
	if testing.Short() {
		samples = 20
	}
	for range samples {
		// The second half of a commit is where the base changes.
		i := n/2 + rng.IntN(n/2) + 1
		fault := hostfstest.New(hostfs.OS)
		fault.CrashAt(i)
		if crashed, err := fault.Run(func() error { return f.commit(fault) }); !crashed {
			t.Fatalf("no crash at %d: %v", i, err)
		}
		what := fmt.Sprintf("crash at %d", i)
		for range 2 {
			k := rng.IntN(60) + 1
			want := Want(rng.IntN(3))
			again := hostfstest.New(hostfs.OS)
			again.CrashAt(k)
			crashed, err := again.Run(func() error { _, err := f.recover(again, want); return err })
			if !crashed && err != nil && !errors.Is(err, ErrNoCommit) {
				t.Fatalf("%s: recover: %v", what, err)
			}
			what += fmt.Sprintf(", in recovery (%d) at %d: %v", want, k, crashed)
		}
		rec, err := f.recover(nil, Auto)
		switch {
		case errors.Is(err, ErrNoCommit):
			f.settle(what, true, false)
		case err != nil:
			t.Fatalf("%s: %v", what, err)
		default:
			f.settle(what, rec.Outcome != Finished, rec.Outcome == Finished)
		}
	}
	t.Logf("%d trees", f.made)
}

// TestErrorAtEveryCall is C2 of the goals: no error at any call leads to a
// success that is none, or to a tree that cannot be put right.
func TestErrorAtEveryCall(t *testing.T) {
	f := newFaulty(t)
	n := f.points()
	errnos := []syscall.Errno{unix.EIO, unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENOMEM, unix.EROFS}
	for i := 1; i <= n; i++ {
		for _, from := range []bool{false, true} {
			errno := errnos[(i+len(errnos)/2)%len(errnos)]
			if !testing.Short() || i%5 == 0 {
				f.failing(hostfstest.New(hostfs.OS), i, errno, from)
			}
		}
	}
}

func (f *faulty) failing(fault *hostfstest.Fault, i int, errno syscall.Errno, from bool) {
	f.t.Helper()
	what := fmt.Sprintf("%v at call %d (and after: %v)", errno, i, from)
	if from {
		fault.FailFrom(i, errno)
	} else {
		fault.FailAt(i, errno)
	}
	err := f.commit(fault)
	f.outcome(what, err)
}

// outcome checks the tree after a commit with injected errors.
func (f *faulty) outcome(what string, err error) {
	f.t.Helper()
	var interrupted *InterruptedError
	switch {
	case err == nil:
		if now := f.w.image(f.w.base); now != f.new {
			f.t.Fatalf("%s: success, but the tree is not new:\n%s", what, now)
		}
	case !errors.As(err, &interrupted):
		if now := f.w.image(f.w.base); now != f.old {
			f.t.Fatalf("%s: %v, but the tree is not old:\n%s", what, err, now)
		}
	}
	_, rerr := f.recover(nil, Auto)
	if rerr != nil && !errors.Is(rerr, ErrNoCommit) {
		f.t.Fatalf("%s: %v: recover: %v", what, err, rerr)
	}
	f.settle(fmt.Sprintf("%s: %v", what, err), err != nil, err == nil || interrupted != nil)
}

// looks makes the nth call fail that only looks: descriptors run out, disks
// fail to read.
type looks struct {
	hostfs.FS
	n, at int
	errno syscall.Errno
}

func (l *looks) hit() bool { l.n++; return l.n == l.at }

func (l *looks) Open(dirfd int, name string, flags int, mode uint32) (int, error) {
	if l.hit() {
		return -1, l.errno
	}
	return l.FS.Open(dirfd, name, flags, mode)
}

func (l *looks) Stat(dirfd int, name string, st *unix.Statx_t) error {
	if l.hit() {
		return l.errno
	}
	return l.FS.Stat(dirfd, name, st)
}

func (l *looks) Pread(fd int, p []byte, off int64) (int, error) {
	if l.hit() {
		return 0, l.errno
	}
	return l.FS.Pread(fd, p, off)
}

func (l *looks) Getdents(fd int, buf []byte) (int, error) {
	if l.hit() {
		return 0, l.errno
	}
	return l.FS.Getdents(fd, buf)
}

// TestErrorAtEveryLook is the same for calls that change nothing.
func TestErrorAtEveryLook(t *testing.T) {
	f := newFaulty(t)
	count := &looks{FS: hostfs.OS}
	if err := f.commit(count); err != nil {
		t.Fatal(err)
	}
	f.settle("without faults", false, true)
	t.Logf("%d looks", count.n)
	errnos := []syscall.Errno{unix.EIO, unix.EMFILE, unix.ENOMEM}
	for i := 1; i <= count.n; i++ {
		errno := errnos[i%len(errnos)]
		f.outcome(fmt.Sprintf("%v at look %d", errno, i), f.commit(&looks{FS: hostfs.OS, at: i, errno: errno}))
	}
	// And in a recovery: an error there leaves all as it can be recovered.
	for i := 1; i < 400; i += 7 {
		fault := hostfstest.New(hostfs.OS)
		fault.Only(func(op, name string) bool { return op == "Rename" })
		fault.CrashAt(10 + i%25)
		if crashed, err := fault.Run(func() error { return f.commit(fault) }); !crashed {
			t.Fatalf("no crash: %v", err)
		}
		_, err := f.recover(&looks{FS: hostfs.OS, at: i, errno: unix.EMFILE}, Want(i%3))
		what := fmt.Sprintf("EMFILE at look %d of a recovery: %v", i, err)
		if _, err := f.recover(nil, Auto); err != nil && !errors.Is(err, ErrNoCommit) {
			t.Fatalf("%s: then: %v", what, err)
		}
		f.settle(what, true, true)
	}
}
