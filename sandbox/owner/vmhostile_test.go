package owner

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm/guest"
)

// A guest that fills its disk and its memory, forks without end and writes
// garbage to every device that it has, harms itself alone: the owner goes on,
// the session is whole, and the machine can be ended.
func TestHostileGuest(t *testing.T) {
	const bound = 16 << 20
	sess := guestSession(t)
	hostile := filepath.Join(sess.Trees()[0].Base, "bin/hostile")
	cmd := exec.Command("go", "build", "-o", hostile, "github.com/galleyfs/galley/vm/qemu/internal/echoguest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build what the guest runs: %v\n%s", err, out)
	}
	check(t, sess.SetMaxSize(bound))
	c := ensure(t, sess, "test")
	r := machineOf(t)
	r.Setup.MaxProcesses = 100
	r.Setup.TmpSize = 16 << 20
	st, err := c.StartVM(t.Context(), r)
	check(t, err)

	t.Run("fills its disk", func(t *testing.T) {
		out := inGuest(t, c, "dd if=/dev/zero of=/data/big bs=1M count=40 2>&1; sync")
		if !strings.Contains(out, "No space left") {
			t.Errorf("dd says %q", out)
		}
		if got := inGuest(t, c, "rm /data/big; echo again >/data/small; cat /data/small"); got != "again\n" {
			t.Errorf("afterwards: %q", got)
		}
	})
	t.Run("fills its memory", func(t *testing.T) {
		out := inGuest(t, c, "dd if=/dev/zero of=/tmp/big bs=1M count=100 2>&1; rm /tmp/big")
		if !strings.Contains(out, "No space left") {
			t.Errorf("dd says %q", out)
		}
	})
	t.Run("forks without end", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		said := make(chan struct{}, 1)
		k, err := guest.NewClient(c.DialVM).Start(ctx, guest.Exec{Line: "b() { b | b & }; b; sleep 1000"}, func(_ int, b []byte) {
			if strings.Contains(string(b), "fork") {
				select {
				case said <- struct{}{}:
				default:
				}
			}
		})
		check(t, err)
		select {
		case <-said: // it met its bound
		case <-ctx.Done():
			t.Fatal("it never failed to fork")
		}
		k.End()
		select {
		case <-k.Gone():
		case <-ctx.Done():
			t.Fatal("it does not end")
		}
		if got := inGuest(t, c, "echo alive"); got != "alive\n" {
			t.Errorf("afterwards: %q", got)
		}
	})
	t.Run("writes garbage to its devices", func(t *testing.T) {
		for _, what := range []string{"garbage 3000", "ports 3000"} {
			// It may well break what it is heard by.
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			k, err := guest.NewClient(c.DialVM).Start(ctx, guest.Exec{Line: "/bin/hostile " + what}, func(_ int, b []byte) { t.Logf("it says %q", b) })
			if err != nil {
				t.Logf("%s: %v", what, err)
				continue
			}
			select {
			case <-k.Gone():
			case <-ctx.Done():
				t.Logf("%s: the guest is not heard from any more", what)
			}
		}
		// Neither a seal nor the machine's end waits for it for long.
		_, err := c.Seal(t.Context(), snapshots.SealOptions{})
		check(t, err)
		s, err := c.Status(t.Context())
		check(t, err)
		if s.VM == nil || s.VM.Phase != Ended {
			_, err = c.StopVM(t.Context(), StopVM{Kill: true})
			check(t, err)
		}
		waitGone(t, st.PID)
	})
	_, err = c.Seal(t.Context(), snapshots.SealOptions{})
	check(t, err)
	if err := unix.Kill(c.PID(), 0); err != nil {
		t.Errorf("the owner: %v", err)
	}
	check(t, c.Close())
	waitGone(t, c.PID())
	report, err := sess.Store().Check(t.Context(), snapshots.CheckOptions{Sessions: []string{sess.ID()}})
	check(t, err)
	for _, f := range report.Findings {
		t.Errorf("galley fsck finds %s: %s", f.Path, f.What)
	}
}
