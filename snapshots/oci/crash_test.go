package oci

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/overlay/hostfs/hostfstest"
	"github.com/galleyfs/galley/snapshots"
)

// A crash at any call of an import leaves the session whole or not at all, and
// one clean-up leaves nothing else.
func TestCrashAtEveryCallOfAnImport(t *testing.T) {
	w := newWorld(t)
	w.work(func(l *snapshots.Live, f *overlay.Face) {
		put(t, f, "a", "changed")
		_, err := l.Seal(t.Context(), snapshots.SealOptions{Name: "one"})
		must(t, err)
		rename(t, f, "sub", "moved")
		put(t, f, "new", "new")
		_, err = l.Seal(t.Context(), snapshots.SealOptions{Name: "two"})
		must(t, err)
	})
	was := pictures(t, w.sess, []overlay.LayerID{w.sess.Last().Number})[0]
	dir := filepath.Join(w.dir, "out")
	_, err := Export(t.Context(), w.sess, w.sess.Last(), dir, ExportOptions{})
	must(t, err)
	step := 1
	if testing.Short() {
		step = 11
	}
	for at := 1; ; at += step {
		fault := hostfstest.New(hostfs.OS)
		fault.CrashAt(at)
		crashed, err := importWith(t.Context(), w.store.Home(), fault, dir)
		if !crashed {
			must(t, err)
			t.Logf("%d calls", at)
			return
		}
		w.afterFault(was)
	}
}

// killEnv tells a helper process what to import, and at which host call it is
// killed.
const killEnv = "GALLEY_OCI_TEST_KILL"

type killOrder struct {
	Home, Layout string
	At           int
}

func killHelper(how string) error {
	var order killOrder
	if err := json.Unmarshal([]byte(how), &order); err != nil {
		return err
	}
	fault := hostfstest.New(hostfs.OS)
	fault.KillAt(order.At)
	_, err := importWith(context.Background(), order.Home, fault, order.Layout)
	return err
}

// A process that is killed at any call of an import leaves what a crash leaves.
func TestKilledAtEveryCallOfAnImport(t *testing.T) {
	w := newWorld(t)
	w.work(func(l *snapshots.Live, f *overlay.Face) {
		put(t, f, "a", "changed")
		rename(t, f, "sub", "moved")
		_, err := l.Seal(t.Context(), snapshots.SealOptions{Name: "one"})
		must(t, err)
	})
	was := pictures(t, w.sess, []overlay.LayerID{w.sess.Last().Number})[0]
	dir := filepath.Join(w.dir, "out")
	_, err := Export(t.Context(), w.sess, w.sess.Last(), dir, ExportOptions{})
	must(t, err)
	step := 1
	switch {
	case testing.Short():
		step = 23
	case os.Geteuid() != 0:
		step = 5 // root does them all
	}
	for at := 1; ; at += step {
		text, err := json.Marshal(killOrder{w.store.Home(), dir, at})
		must(t, err)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killEnv+"="+string(text), "GORACE=atexit_sleep_ms=0")
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Logf("%d calls", at)
			w.imported(was)
			return
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("call %d: %v: %s", at, err, out)
		}
		w.afterFault(was)
	}
}

// An error of a call of an import leaves the session whole or not at all.
func TestErrorsOfAnImport(t *testing.T) {
	w := newWorld(t)
	w.work(func(l *snapshots.Live, f *overlay.Face) {
		put(t, f, "a", "changed")
		rename(t, f, "sub", "moved")
		_, err := l.Seal(t.Context(), snapshots.SealOptions{Name: "one"})
		must(t, err)
	})
	was := pictures(t, w.sess, []overlay.LayerID{w.sess.Last().Number})[0]
	dir := filepath.Join(w.dir, "out")
	_, err := Export(t.Context(), w.sess, w.sess.Last(), dir, ExportOptions{})
	must(t, err)
	step := 3
	if testing.Short() {
		step = 11
	}
	for at := 1; ; at += step {
		fault := hostfstest.New(hostfs.OS)
		fault.FailAt(at, unix.ENOSPC)
		_, err := importWith(t.Context(), w.store.Home(), fault, dir)
		if fault.Count() < at {
			must(t, err)
			return
		}
		if err == nil {
			// A call whose failure does not matter, such as one of the
			// clean-up.
			if _, err := w.store.Find("copy"); err != nil {
				t.Fatalf("call %d: no error, and no session: %v", at, err)
			}
		}
		w.afterFault(was)
	}
}

func importWith(ctx context.Context, home string, fault *hostfstest.Fault, dir string) (crashed bool, err error) {
	return fault.Run(func() error {
		st, err := snapshots.OpenStore(home, snapshots.StoreOptions{FS: fault})
		if err != nil {
			return err
		}
		defer st.Close()
		_, _, err = Import(ctx, st, dir, ImportOptions{Name: "copy"})
		return err
	})
}

// afterFault checks what a fault left, after one clean-up.
func (w *world) afterFault(was map[string]string) {
	w.t.Helper()
	_, err := w.store.GC(w.t.Context(), snapshots.GCOptions{})
	must(w.t, err)
	if _, err := w.store.Find("copy"); err == nil {
		w.imported(was)
		return
	}
	w.nothingLeft("work")
}

// imported checks a session that an import made, and removes it.
func (w *world) imported(was map[string]string) {
	w.t.Helper()
	sess, err := w.store.Find("copy")
	must(w.t, err)
	if d := differences(was, pictures(w.t, sess, []overlay.LayerID{sess.Last().Number})[0]); d != "" {
		w.t.Fatalf("half a session:\n%s", d)
	}
	must(w.t, os.RemoveAll(sess.Dir()))
	w.nothingLeft("work")
}
