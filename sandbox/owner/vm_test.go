package owner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/guest"
	"github.com/galleyfs/galley/vm/kernel"
)

// prepared is what the guests of these tests boot: the host's kernel and the
// real agent, made once.
var prepared = sync.OnceValues(func() (kernel.Boot, error) {
	dir, err := os.MkdirTemp("", "galley-owner-vm-")
	if err != nil {
		return kernel.Boot{}, err
	}
	atExit(func() { _ = os.RemoveAll(dir) })
	agent := filepath.Join(dir, "galley-guest")
	cmd := exec.Command("go", "build", "-o", agent, "github.com/galleyfs/galley/cmd/galley-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return kernel.Boot{}, fmt.Errorf("build the agent: %w\n%s", err, out)
	}
	return kernel.Prepare(context.Background(), kernel.Options{Guest: agent, Cache: filepath.Join(dir, "cache")})
})

// guestSession is a session whose workspace is all that a guest needs: the
// programs of busybox.
func guestSession(t *testing.T) *snapshots.Session {
	t.Helper()
	sess := newSession(t)
	base := sess.Trees()[0].Base
	for _, dir := range []string{"bin", "dev", "etc", "proc", "run", "sys", "tmp", "data"} {
		check(t, os.Mkdir(filepath.Join(base, dir), 0o755))
	}
	for _, name := range []string{"hostname", "hosts", "resolv.conf"} {
		check(t, os.WriteFile(filepath.Join(base, "etc", name), nil, 0o644))
	}
	busybox, err := exec.LookPath("busybox")
	check(t, err)
	b, err := os.ReadFile(busybox)
	check(t, err)
	check(t, os.WriteFile(filepath.Join(base, "bin/busybox"), b, 0o755))
	for _, name := range []string{"sh", "cat", "ls", "dd", "sync", "sleep", "echo", "true"} {
		check(t, os.Symlink("busybox", filepath.Join(base, "bin", name)))
	}
	return sess
}

func machineOf(t *testing.T) VM {
	t.Helper()
	b, err := prepared()
	check(t, err)
	return VM{
		Driver: "qemu",
		Config: vm.Config{CPUs: 1, Memory: 256 << 20, Kernel: b.Kernel, Initrd: b.Initrd, Accel: vm.TCG},
		Setup:  guest.Setup{Root: snapshots.Workspace, Hostname: "test"},
	}
}

// inGuest runs a command line in the guest and returns what it puts out.
func inGuest(t *testing.T, c *Client, line string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	var mu sync.Mutex
	var out bytes.Buffer
	k, err := guest.NewClient(c.DialVM).Start(ctx, guest.Exec{Line: line}, func(_ int, b []byte) {
		mu.Lock()
		defer mu.Unlock()
		out.Write(b)
	})
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	select {
	case <-k.Gone():
	case <-ctx.Done():
		t.Fatalf("%s: it does not end", line)
	}
	mu.Lock()
	defer mu.Unlock()
	return out.String()
}

// A machine belongs to its session and to those who use it: the first starts
// it, others join it, what it writes is the session's, and with the last it
// ends, and the owner with it.
func TestMachineLivesWithItsUsers(t *testing.T) {
	sess := guestSession(t)
	a := ensure(t, sess, "first")
	st, err := a.StartVM(t.Context(), machineOf(t))
	check(t, err)
	if st.Phase != Running || st.PID == 0 || st.Accel != vm.TCG || st.Boot.Agent == 0 {
		t.Errorf("status %+v", st)
	}
	t.Logf("boot: %+v", st.Boot)
	if got := inGuest(t, a, "echo from the guest >/data/new; cat /data/new /file"); got != "from the guest\nbase" {
		t.Errorf("in the guest: %q", got)
	}
	b := ensure(t, sess, "second")
	joined, err := b.StartVM(t.Context(), machineOf(t))
	check(t, err)
	if joined.PID != st.PID || joined.Users != 2 {
		t.Errorf("the second user has %+v, the first %+v", joined, st)
	}
	other := machineOf(t)
	other.Net = true
	if _, err := b.StartVM(t.Context(), other); !errors.Is(err, snapshots.ErrBusy) {
		t.Errorf("a machine with a network: %v, want ErrBusy", err)
	}
	check(t, a.Close())
	snap, err := b.Seal(t.Context(), snapshots.SealOptions{})
	check(t, err)
	if snap.Changed != 1 || snap.Changes[0].Path != "data/new" || snap.Cause.Unsynced != "" {
		t.Errorf("sealed %+v", snap)
	}
	if got := inGuest(t, b, "cat /data/new"); got != "from the guest\n" {
		t.Errorf("after the seal: %q", got)
	}
	// The guest looks again at what a rollback changed.
	_, err = b.Rollback(t.Context(), snapshots.Rollback{To: 0})
	check(t, err)
	if got := inGuest(t, b, "ls /data"); got != "" {
		t.Errorf("after the rollback: %q", got)
	}
	check(t, b.Close())
	waitGone(t, b.PID())
	waitGone(t, st.PID)
	console, err := os.ReadFile(filepath.Join(sess.Dir(), ConsoleLog))
	if err != nil || !strings.Contains(string(console), "Power down") {
		t.Errorf("the console's log: %v, %q; want the guest's own end in it", err, console)
	}
}

// A machine that was asked to stop, and one that was detached.
func TestStopMachine(t *testing.T) {
	sess := guestSession(t)
	a := ensure(t, sess, "first")
	r := machineOf(t)
	r.Detach = true
	st, err := a.StartVM(t.Context(), r)
	check(t, err)
	check(t, a.Close())
	b := ensure(t, sess, "second")
	if b.PID() != a.PID() {
		t.Fatal("the owner of a detached machine has ended")
	}
	if err := b.Stop(t.Context(), false); !errors.Is(err, snapshots.ErrBusy) {
		t.Errorf("stop the owner: %v, want ErrBusy", err)
	}
	ended, err := b.StopVM(t.Context(), StopVM{})
	check(t, err)
	if ended.Phase != Ended || ended.Exit == nil || !ended.Exit.OK() {
		t.Errorf("stopped: %+v", ended)
	}
	if err := unix.Kill(st.PID, 0); err != unix.ESRCH {
		t.Errorf("its process: %v", err)
	}
	if _, err := b.StopVM(t.Context(), StopVM{}); !errors.Is(err, snapshots.ErrNotFound) {
		t.Errorf("stop it again: %v", err)
	}
	if _, err := b.DialVM(t.Context()); !errors.Is(err, snapshots.ErrNotFound) {
		t.Errorf("dial it: %v", err)
	}
}

// A detached machine that nobody speaks with ends after its time, and the owner
// with it.
func TestIdleMachineEnds(t *testing.T) {
	sess := guestSession(t)
	a := ensure(t, sess, "first")
	r := machineOf(t)
	r.Detach, r.Idle = true, 300*time.Millisecond
	st, err := a.StartVM(t.Context(), r)
	check(t, err)
	if !st.Detached || st.Idle != r.Idle {
		t.Errorf("status %+v", st)
	}
	waitGone(t, st.PID)
	if st := waitEnded(t, a); st.Exit == nil || !st.Exit.OK() {
		t.Errorf("ended: %+v", st)
	}
	last, err := LastVM(sess)
	check(t, err)
	if last.Config.Memory != r.Config.Memory || !last.Detach || last.Setup.Hostname != "test" {
		t.Errorf("recorded %+v", last)
	}
	check(t, a.Close())
	waitGone(t, a.PID())
}

// What cannot be started says why, and leaves nothing.
func TestMachineThatCannotStart(t *testing.T) {
	sess := guestSession(t)
	c := ensure(t, sess, "user")
	for name, k := range map[string]struct {
		change func(*VM)
		want   string
	}{
		"no driver": {func(r *VM) { r.Driver = "bochs" }, `no driver "bochs"`},
		"no QEMU":   {func(r *VM) { r.Program = "/nonexistent/qemu" }, "/nonexistent/qemu is not there"},
		"no libkrun": {func(r *VM) {
			r.Driver, r.Program = "krun", "/nonexistent/libkrun.so.1"
		}, "libkrun /nonexistent/libkrun.so.1 is not there"},
		"little memory":   {func(r *VM) { r.Config.Memory = 1 << 20 }, "1 MiB of memory are too little"},
		"much memory":     {func(r *VM) { r.Config.Memory = 1 << 50 }, "more than this host has available"},
		"no kernel":       {func(r *VM) { r.Config.Kernel = "/nonexistent/kernel" }, "/nonexistent/kernel"},
		"not a kernel":    {func(r *VM) { r.Config.Kernel = "/etc/passwd" }, "qemu: "},
		"no such root":    {func(r *VM) { r.Setup.Root = "nowhere" }, "nowhere"},
		"no command line": {func(r *VM) { r.Config.Cmdline = "a\nb" }, "newline"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			r := machineOf(t)
			k.change(&r)
			_, err := c.StartVM(t.Context(), r)
			if err == nil || !strings.Contains(err.Error(), k.want) {
				t.Errorf("%v; want %q in it", err, k.want)
			}
			st, err := c.Status(t.Context())
			check(t, err)
			if st.VM != nil && (st.VM.Phase != Ended || st.VM.PID != 0 && unix.Kill(st.VM.PID, 0) != unix.ESRCH) {
				t.Errorf("left: %+v", st.VM)
			}
		})
	}
}

// A guest that does not answer holds nobody up: a seal and a rollback go on
// without what it holds, and the snapshot says so. When it answers again, it
// sees what the rollback changed, through what it has open too.
func TestSilentGuest(t *testing.T) {
	sess := guestSession(t)
	c := ensure(t, sess, "test")
	st, err := c.StartVM(t.Context(), machineOf(t))
	check(t, err)
	before, err := c.Seal(t.Context(), snapshots.SealOptions{})
	check(t, err)
	if before.Cause.Unsynced != "" {
		t.Errorf("the guest answered: %q", before.Cause.Unsynced)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*deadline)
	defer cancel()
	out := make(chan string, 16)
	// It works in a directory that the rollback takes away, with a file open
	// that is there before and after.
	const line = `mkdir /data/dir; cd /data/dir; echo changed >/file; exec 3</file; echo begun; read go
		ls / >/dev/null; cat <&3; cat /file; ls /data; echo over`
	k, err := guest.NewClient(c.DialVM).Start(ctx, guest.Exec{Line: line, Stdin: true}, func(_ int, b []byte) { out <- string(b) })
	check(t, err)
	var said strings.Builder
	waitSaid := func(want string) {
		t.Helper()
		for !strings.Contains(said.String(), want) {
			select {
			case s := <-out:
				said.WriteString(s)
			case <-ctx.Done():
				t.Fatalf("the guest says %q, and never %q", said.String(), want)
			}
		}
	}
	waitSaid("begun\n")

	check(t, unix.Kill(st.PID, unix.SIGSTOP))
	begin := time.Now()
	snap, err := c.Seal(ctx, snapshots.SealOptions{})
	check(t, err)
	if !strings.Contains(snap.Cause.Unsynced, "did not write back") {
		t.Errorf("the seal says of the guest: %q", snap.Cause.Unsynced)
	}
	middle := time.Now()
	_, err = c.Rollback(ctx, snapshots.Rollback{To: before.Number})
	check(t, err)
	t.Logf("the seal took %v, the rollback %v", middle.Sub(begin), time.Since(middle))
	check(t, unix.Kill(st.PID, unix.SIGCONT))

	_, err = k.Write(ctx, []byte("go\n"))
	check(t, err)
	waitSaid("over\n")
	if got := strings.TrimPrefix(said.String(), "begun\n"); got != "basebaseover\n" {
		t.Errorf("after the rollback the guest sees %q", got)
	}
}
