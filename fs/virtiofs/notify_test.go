package virtiofs

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A monitor that has writes to its descriptor wait, and takes nothing from it,
// does not hold the queue up.
func TestNotifyDoesNotWait(t *testing.T) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	must(t, err)
	q := &queue{call: -1, kick: -1}
	q.notify() // nobody
	q.setCall(fd)
	q.notify()
	var b [8]byte
	if n, err := unix.Read(fd, b[:]); n != 8 || err != nil || b != [8]byte{1} {
		t.Errorf("the call: %v, %d, %v", b, n, err)
	}
	full := [8]byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	_, err = unix.Write(fd, full[:])
	must(t, err)
	must(t, unix.SetNonblock(fd, false)) // as the monitor may at any time
	done := make(chan struct{})
	go func() {
		q.notify()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Error("it waits for the monitor")
		_, _ = unix.Read(fd, b[:])
		<-done
	}
	q.setCall(-1)
}
