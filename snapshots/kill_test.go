package snapshots

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/overlay/hostfs/hostfstest"
)

// killEnv tells a helper process which operation it is to begin, and at which
// host call it is killed.
const killEnv = "GALLEY_SNAPSHOTS_TEST_KILL"

type killOrder struct {
	Home, Op string
	At       int
}

// killHelper owns the sessions of a crashWorld and begins an operation. It is
// killed in it, or ends as any owner does.
func killHelper(how string) error {
	var order killOrder
	if err := json.Unmarshal([]byte(how), &order); err != nil {
		return err
	}
	w := &crashWorld{fault: hostfstest.New(hostfstest.NoSync{FS: hostfs.OS})}
	var err error
	w.fixture = &fixture{}
	if w.store, err = OpenStore(order.Home, StoreOptions{FS: w.fault}); err != nil {
		return err
	}
	for name, at := range map[string]struct {
		sess **Session
		live **opened
	}{"one": {&w.sess, &w.o}, "two": {&w.fork, &w.forkLive}} {
		if *at.sess, err = w.store.Find(name); err == nil {
			*at.live, err = openLive(*at.sess)
		}
		if err != nil {
			return err
		}
	}
	w.fault.KillAt(order.At)
	if err := crashOps()[order.Op].run(w); err != nil {
		return err
	}
	w.fault.Clear()
	return errors.Join(w.forkLive.close(), w.o.close())
}

// TestKilledAtEveryStep kills the process that owns a session with SIGKILL at
// every host call of an operation that changes something or makes it durable,
// and looks at what is left as the next process finds it.
func TestKilledAtEveryStep(t *testing.T) {
	step := 1
	switch {
	case testing.Short():
		step = 23
	case os.Geteuid() != 0:
		step = 5 // root does them all
	}
	for name, op := range crashOps() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newCrashWorld(t)
			live := w.o.content(t, Workspace)
			check(t, w.forkLive.close())
			check(t, w.o.close())
			if op.to == "" {
				op.to = live
			}
			was := w.home
			for n := 1; ; n += step {
				w.home = filepath.Join(t.TempDir(), "home")
				if out, err := exec.Command("cp", "-a", was, w.home).CombinedOutput(); err != nil {
					t.Fatalf("copy the sessions: %v: %s", err, out)
				}
				killed := killedAt(t, killOrder{w.home, name, n})
				w.verify(t, fmt.Sprintf("killed at call %d", n), live, op.to)
				check(t, os.RemoveAll(w.home))
				if !killed || t.Failed() {
					t.Logf("%d calls", n)
					if n < 5 {
						t.Errorf("only %d calls", n)
					}
					return
				}
			}
		})
	}
}

// killedAt runs a helper process and tells whether it was killed.
func killedAt(t *testing.T, order killOrder) bool {
	t.Helper()
	text, err := json.Marshal(order)
	check(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killEnv+"="+string(text), "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if st, ok := exit.Sys().(syscall.WaitStatus); ok && st.Signal() == syscall.SIGKILL {
			return true
		}
	}
	t.Fatalf("%+v: %v: %s", order, err, out)
	return false
}
