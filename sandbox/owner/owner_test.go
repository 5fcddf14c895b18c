package owner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/snapshots"
)

func TestOneOwnerForAllUsers(t *testing.T) {
	sess := newSession(t)
	if _, err := Dial(t.Context(), sess); !errors.Is(err, ErrNoOwner) {
		t.Fatalf("dial: %v, want ErrNoOwner", err)
	}
	a, b := ensure(t, sess, "first"), ensure(t, sess, "second")
	if a.PID() != b.PID() {
		t.Fatalf("owners %d and %d", a.PID(), b.PID())
	}
	s, err := b.Status(t.Context())
	check(t, err)
	if len(s.Clients) != 2 || s.Clients[0].What != "first" || s.Clients[0].PID != os.Getpid() || s.Session != sess.ID() {
		t.Errorf("status %+v", s)
	}
	if err := b.Stop(t.Context(), false); !errors.Is(err, snapshots.ErrBusy) {
		t.Errorf("stop: %v, want ErrBusy", err)
	}
	// The first to go takes nothing from the second.
	check(t, a.Close())
	_, err = b.Seal(t.Context(), snapshots.SealOptions{})
	check(t, err)
	check(t, b.Close())
	waitGone(t, a.PID())
	if _, err := os.Lstat(sess.Socket()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control socket: %v, want none", err)
	}
}

// Users that come while the owner ends, as those of a script's commands do, are
// not greeted by it: the next owner serves them.
func TestUsersOneAfterAnother(t *testing.T) {
	sess := newSession(t)
	var closing sync.WaitGroup
	owners := map[int]bool{}
	for i := range 40 {
		c, err := Ensure(t.Context(), sess, Options{What: fmt.Sprint("user ", i)})
		check(t, err)
		// What it was greeted for works.
		if _, err := c.Seal(t.Context(), snapshots.SealOptions{}); err != nil {
			t.Fatalf("user %d: %v", i, err)
		}
		owners[c.PID()] = true
		closing.Go(func() { _ = c.Close() })
	}
	closing.Wait()
	for pid := range owners {
		waitGone(t, pid)
	}
}

func TestStopEndsTheOwner(t *testing.T) {
	sess := newSession(t)
	c := ensure(t, sess, "only")
	check(t, c.Stop(t.Context(), false))
	if _, err := c.Seal(t.Context(), snapshots.SealOptions{}); !errors.Is(err, ErrNoOwner) {
		t.Errorf("seal: %v, want ErrNoOwner", err)
	}
	next := ensure(t, sess, "next")
	if next.PID() == c.PID() {
		t.Error("the same owner again")
	}
}

func TestKilledOwnerIsReplaced(t *testing.T) {
	sess := newSession(t)
	c := ensure(t, sess, "first")
	check(t, unix.Kill(c.PID(), unix.SIGKILL))
	if _, err := c.Seal(t.Context(), snapshots.SealOptions{}); !errors.Is(err, ErrNoOwner) {
		t.Errorf("seal: %v, want ErrNoOwner", err)
	}
	// Its socket is still there, and stands in nobody's way.
	if _, err := os.Lstat(sess.Socket()); err != nil {
		t.Errorf("the control socket: %v", err)
	}
	_, err := ensure(t, sess, "next").Seal(t.Context(), snapshots.SealOptions{})
	check(t, err)
}

func TestOwnerThatCannotStartSaysWhy(t *testing.T) {
	sess := newSession(t)
	base := sess.Trees()[0].Base
	check(t, os.Rename(base, base+".away"))
	_, err := Ensure(t.Context(), sess, Options{})
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), base) {
		t.Errorf("%v: want ENOENT that names %s", err, base)
	}
}

// Whoever has the control socket can seal, discard to the trash, roll back and
// end. There is no operation that writes to a base, and nothing by which an
// operation could: the owner reaches bases through read-only mounts alone.
func TestControlSocketCannotReachTheBase(t *testing.T) {
	sess := newSession(t)
	base := sess.Trees()[0].Base
	c := ensure(t, sess, "test")
	before := listing(t, base)
	bodies := map[op]string{
		opSeal:      `{}`,
		opCommitted: `{"Snapshot":1,"Commit":"x","Paths":{"workspace":["file","../file","/etc"]}}`,
		opDiscard:   `{"Paths":{"workspace":["file","../file"]}}`,
		opRollback:  `{"To":1}`,
		opTake:      `{}`,
		opAbort:     `{"id":1}`,
		opWait:      `{"id":1}`,
		opStatus:    `null`,
		"commit":    `{}`,
		"undo":      `{}`,
	}
	for what, body := range bodies {
		err := c.call(t.Context(), what, rawBody(body), -1, nil)
		if (what == "commit" || what == "undo") && (err == nil || !strings.Contains(err.Error(), "no such operation")) {
			t.Errorf("%s: %v, want that there is no such operation", what, err)
		}
	}
	if after := listing(t, base); after != before {
		t.Errorf("the base changed from\n%sto\n%s", before, after)
	}
	s, err := c.Status(t.Context())
	check(t, err)
	if !s.Trees[0].ReadOnlyBase {
		t.Error("the base is not reached through a read-only mount")
	}
	if os.Geteuid() != 0 {
		return // what follows looks into a process that nobody else may
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.PID()))
	check(t, err)
	found := 0
	for _, fd := range fds {
		link := fmt.Sprintf("/proc/%d/fd/%s", c.PID(), fd.Name())
		var a, b unix.Stat_t
		if unix.Stat(link, &a) != nil || unix.Stat(base, &b) != nil || a.Dev != b.Dev || a.Ino != b.Ino {
			continue
		}
		found++
		if err := os.WriteFile(link+"/planted", nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("write through the owner's descriptor %s of the base: %v, want EROFS", fd.Name(), err)
		}
	}
	if found == 0 {
		t.Error("the owner has no descriptor of the base")
	}
}

// rawBody is a body that is sent as it stands.
type rawBody string

func (b rawBody) MarshalJSON() ([]byte, error) { return []byte(b), nil }

// listing is what is in a directory, with times of change.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	check(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		fmt.Fprintf(&b, "%s %o %d %v %v\n", path, st.Mode, st.Size, st.Mtim, st.Ctim)
		return err
	}))
	return b.String()
}

// Whoever comes while the last user goes finds this owner or the next, and
// never one that ends under it.
func TestComingWhileTheLastUserGoes(t *testing.T) {
	sess := newSession(t)
	last := ensure(t, sess, "0")
	for i := range 40 {
		went := make(chan error, 1)
		go func(c *Client) { went <- c.Close() }(last)
		next, err := Ensure(t.Context(), sess, Options{What: fmt.Sprint(i + 1)})
		check(t, err)
		check(t, <-went)
		if _, err := next.Seal(t.Context(), snapshots.SealOptions{}); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		last = next
	}
	check(t, last.Close())
	waitGone(t, last.PID())
}

// A tree that is added to a live session is reached through a read-only mount,
// too, also where the owner has no rights of its own.
func TestTreeAddedAtWorkIsReachedReadOnly(t *testing.T) {
	sess := newSession(t)
	c := ensure(t, sess, "test")
	before, err := c.Status(t.Context())
	check(t, err)
	if !before.Trees[0].ReadOnlyBase {
		t.Skip("the kernel has no user namespaces for an ordinary user, or forbids them")
	}
	name, err := c.AddTree(t.Context(), AddTree{Base: t.TempDir(), Mount: "/mnt/added"})
	check(t, err)
	after, err := c.Status(t.Context())
	check(t, err)
	for _, tree := range after.Trees {
		if tree.Name == name && tree.ReadOnlyBase {
			return
		}
	}
	t.Errorf("trees %+v", after.Trees)
}

// waitStopped waits until all threads of a process stand still.
func waitStopped(t *testing.T, pid int) {
	t.Helper()
	until := time.Now().Add(deadline)
	for {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		check(t, err)
		running := 0
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && !strings.Contains(string(b), "State:\tT") {
				running++
			}
		}
		if running == 0 {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("process %d is not stopped after %v", pid, deadline)
		}
		<-time.After(time.Millisecond)
	}
}

// TestSilentOwner: what is asked of a session whose owner does not answer fails
// after a time, says so, and changes nothing, also when the owner goes on.
func TestSilentOwner(t *testing.T) {
	sess := newSession(t)
	c := ensure(t, sess, "user")
	_, err := c.Seal(t.Context(), snapshots.SealOptions{Name: "one"})
	check(t, err)
	check(t, sess.Reload())
	before, err := sess.History()
	check(t, err)
	check(t, unix.Kill(c.PID(), unix.SIGSTOP))
	waitStopped(t, c.PID())
	cont := func() { check(t, unix.Kill(c.PID(), unix.SIGCONT)) }
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	ctrl, err := Control(ctx, sess)
	if err == nil {
		_, err = ctrl.Rollback(ctx, snapshots.Rollback{})
		_ = ctrl.Close()
	}
	cont()
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), fmt.Sprintf("process %d, does not answer", c.PID())) {
		t.Errorf("a rollback: %v", err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("the owner goes on: %v", err)
	}
	check(t, sess.Reload())
	after, err := sess.History()
	check(t, err)
	if len(after) != len(before) {
		t.Errorf("the history was %+v, and is %+v", before, after)
	}
}

// TestHostMountHasNoPast: a directory of the host is no tree of the session, and
// has no older points to look at.
func TestHostMountHasNoPast(t *testing.T) {
	s := &server{}
	for want, m := range map[bool]FUSE{true: {Tree: snapshots.Workspace}, false: {Host: t.TempDir()}} {
		if opt := s.options(&peer{}, &served{Mount: Mount{FUSE: m}}); (opt.Past != nil) != want {
			t.Errorf("%+v has a past: %v", m, opt.Past)
		}
	}
}

// TestNothingBeginsAtTheEnd: once the owner waits for what is in the background,
// nothing more gets there.
func TestNothingBeginsAtTheEnd(t *testing.T) {
	s := &server{end: make(chan struct{})}
	began := make(chan struct{}, 2)
	s.inBackground(func() { began <- struct{}{} })
	s.tidying.Wait()
	s.finish()
	s.inBackground(func() { began <- struct{}{} })
	s.tidying.Wait()
	if n := len(began); n != 1 {
		t.Errorf("%d began, want 1", n)
	}
}
