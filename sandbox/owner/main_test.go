package owner

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm/jail"
	"github.com/galleyfs/galley/vm/netstack"
	"github.com/galleyfs/galley/vm/netstack/netstacktest"
)

// TestMain plays the owner, too: Ensure starts this binary as one.
func TestMain(m *testing.M) {
	jail.Init()
	netstack.Init()
	if len(os.Args) > 1 && os.Args[1] == Command {
		os.Exit(Main(os.Args[2:]))
	}
	// Under the race detector every process would sleep a second at its end.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")); err != nil {
		panic(err)
	}
	run := func() int {
		code := m.Run()
		for _, f := range atEnd {
			f()
		}
		return code
	}
	if netstacktest.Inside() {
		os.Exit(netstacktest.Main(run))
	}
	os.Exit(run())
}

// atEnd is done when all tests are over.
var atEnd []func()

func atExit(f func()) { atEnd = append(atEnd, f) }

// deadline is how long a test waits for another process.
const deadline = 60 * time.Second

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newSession makes a session on a base with one file.
func newSession(t *testing.T) *snapshots.Session {
	t.Helper()
	base := filepath.Join(t.TempDir(), "project")
	check(t, os.Mkdir(base, 0o755))
	check(t, os.WriteFile(filepath.Join(base, "file"), []byte("base"), 0o644))
	store, err := snapshots.OpenStore(filepath.Join(t.TempDir(), "state"), snapshots.StoreOptions{})
	check(t, err)
	t.Cleanup(func() { check(t, store.Close()) })
	sess, err := store.Create(t.Context(), snapshots.Spec{Base: base})
	check(t, err)
	return sess
}

// ensure is a lease that ends with the test, at the latest.
func ensure(t *testing.T, sess *snapshots.Session, what string) *Client {
	t.Helper()
	c, err := Ensure(t.Context(), sess, Options{What: what})
	check(t, err)
	t.Cleanup(func() {
		check(t, c.Close())
		waitGone(t, c.PID())
	})
	return c
}

// waitGone waits until no process has that id any more.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	for unix.Kill(pid, 0) != unix.ESRCH {
		if !pause(ctx) {
			t.Fatalf("owner %d is still there after %v", pid, deadline)
		}
	}
}
