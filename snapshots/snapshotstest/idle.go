package snapshotstest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// idlePatience is how long [WaitIdle] waits.
const idlePatience = time.Minute

// WaitIdle waits until no process has the session open whose directory is dir:
// an owner works there, and a test's directories go with the test. It waits for
// the session's lock, which the kernel hands on as the owner lets go of it, or
// ends in any way.
func WaitIdle(t testing.TB, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Errorf("the lock of a session: %v", err)
		return
	}
	free := make(chan error, 1)
	go func() {
		lock := unix.Flock_t{Type: unix.F_WRLCK}
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &lock)
		for err == unix.EINTR {
			err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &lock)
		}
		_ = f.Close()
		free <- err
	}()
	select {
	case err := <-free:
		if err != nil {
			t.Errorf("wait for the lock of %s: %v", dir, err)
		}
	case <-time.After(idlePatience):
		t.Errorf("the owner of the session in %s does not end", dir)
	}
}
