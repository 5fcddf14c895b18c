package krun

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	nodefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/guest"
	"github.com/galleyfs/galley/vm/jail"
	"github.com/galleyfs/galley/vm/jail/jailtest"
)

// needLibrary skips where no libkrun was ever built for.
func needLibrary(t *testing.T) string {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("needs x86-64: the tests have no other build of libkrun")
	}
	return real(t)
}

func needKVM(t *testing.T) {
	t.Helper()
	if err := openKVM(); err != nil {
		t.Skip("no /dev/kvm that can be opened: ", err)
	}
}

// served is a share of dir, served by this process.
func served(t *testing.T, name, dir string) vm.Share {
	t.Helper()
	return vm.Share{Name: name, Serve: func(dev *os.File) error {
		root, err := nodefs.NewLoopbackRoot(dir)
		if err != nil {
			return err
		}
		fd, err := unix.FcntlInt(dev.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		_ = dev.Close()
		if err != nil {
			return err
		}
		s, err := fuse.NewServer(nodefs.NewNodeFS(root, &nodefs.Options{}), "/dev/fd/"+strconv.Itoa(fd), &fuse.MountOptions{})
		if err != nil {
			return err
		}
		go s.Serve()
		return s.WaitMount()
	}}
}

// config is a whole machine; far is the other end of the agent's stream.
func config(t *testing.T) (c vm.Config, far net.Conn, console string) {
	t.Helper()
	mine, theirs, err := sockets(unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	far, err = net.FileConn(mine)
	_ = mine.Close()
	if err != nil {
		t.Fatal(err)
	}
	console = filepath.Join(t.TempDir(), "console")
	out, err := os.Create(console)
	if err != nil {
		t.Fatal(err)
	}
	frames, device, err := sockets(unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	share := t.TempDir()
	if err := os.WriteFile(filepath.Join(share, "file"), []byte("shared"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, f := range []io.Closer{theirs, far, out, frames, device} {
			_ = f.Close()
		}
	})
	return vm.Config{
		CPUs: 2, Memory: 256 << 20, Agent: theirs, Console: out, Net: device, Init: agentBinary(t),
		Shares: []vm.Share{served(t, "workspace", share)},
	}, far, console
}

func agentBinary(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "galley-guest")
	cmd := exec.Command("go", "build", "-o", out, "github.com/galleyfs/galley/cmd/galley-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, b)
	}
	return out
}

// TestMachine loads the real libkrun in its jail, configures a whole machine
// and starts it. Where KVM runs guests, the agent speaks; where it does not,
// the machine ends and says so, and that is told from a fault of ours.
func TestMachine(t *testing.T) {
	path := needLibrary(t)
	needKVM(t)
	c, far, console := config(t)
	m, err := New(Options{Library: path}).Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	_ = c.Agent.Close()
	within := patience
	if testing.Short() {
		within = 2 * time.Second
	}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	mux, err := guest.Connect(ctx, far)
	if err == nil {
		t.Log("KVM runs guests here: the agent speaks")
		_ = mux.Close()
		return
	}
	if testing.Short() && ctx.Err() != nil {
		return // it started; a host whose KVM does not run it may take half a minute to say so
	}
	hung := time.AfterFunc(patience, func() { _ = m.Kill() })
	defer hung.Stop()
	exit, werr := m.Wait()
	if exit.Killed {
		t.Log("KVM neither runs the guest nor says why: it started, and did not boot")
		return
	}
	text, _ := os.ReadFile(console)
	if werr != nil || !HostCannot(exit) {
		t.Fatalf("the machine ended (%s, %v), which is no fault of the host; its console: %q", exit, werr, text)
	}
	t.Logf("this host cannot run guests: %s", exit)
	if err := unix.Kill(m.PID(), 0); err == nil {
		t.Error("its process is left")
	}
}

// TestKill ends a machine with no network and one processor.
func TestKill(t *testing.T) {
	path := needLibrary(t)
	needKVM(t)
	c, _, _ := config(t)
	c.Net, c.CPUs, c.Memory = nil, 1, vm.MinMemory
	m, err := New(Options{Library: path}).Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(m.PID(), 0); err == nil {
		t.Error("its process is left")
	}
	if err := m.Kill(); err != nil {
		t.Errorf("kill it again: %v", err)
	}
}

// TestProbe says what this host can do, and why not.
func TestProbe(t *testing.T) {
	d := New(Options{Library: needLibrary(t), Cache: t.TempDir()})
	f, err := d.Inspect(t.Context())
	if err != nil || f.Version != "1.17.4" || !f.NoTSI {
		t.Errorf("looked at libkrun: %+v, %v", f, err)
	}
	p, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if p.OK == (p.Why != "") || p.OK && p.Accel != vm.KVM || !p.OK && p.Fix == "" || p.Version != "1.17.4" {
		t.Errorf("the probe says %+v", p)
	}
	t.Logf("%+v", p)
	if openKVM() != nil {
		return
	}
	// What was found is kept until the host boots anew.
	again, err := d.Probe(t.Context())
	if again.Fresh || err != nil || again.OK != p.OK || again.Why != p.Why || !p.Fresh {
		t.Errorf("the second probe says %+v, %v", again, err)
	}
}

// TestEscapedMachine: what a guest gets that has taken its machine's process
// over is the share, and nothing else of the host.
func TestEscapedMachine(t *testing.T) {
	path := needLibrary(t)
	c, _, _ := config(t)
	s := setup{Krun: path, Krunfw: newest([]string{filepath.Dir(path)}, "libkrunfw.so.5")}
	sp, err := spec(s, c)
	if err != nil {
		t.Fatal(err)
	}
	if openKVM() != nil {
		sp.Devices = sp.Devices[1:] // the first is kvm
	}
	sp.Argv = append(sp.Argv, "escape")
	o := jailtest.World(t)
	in, world, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, report, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs, err := sockets(unix.SOCK_SEQPACKET)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{in, out, mine} {
		defer f.Close()
	}
	if err := json.NewEncoder(world).Encode(o); err != nil {
		t.Fatal(err)
	}
	_ = world.Close()
	serving := make(chan error, 1)
	go func() {
		serving <- jail.ServeFUSE(mine, func(_ int, dev *os.File) error { return c.Shares[0].Serve(dev) })
	}()
	p, err := jail.Start(sp, os.Stderr, in, report, os.Stderr, c.Agent, c.Console, c.Net, theirs)
	_, _ = report.Close(), theirs.Close()
	if err := errors.Join(err, <-serving); err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	_ = out.SetReadDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	seen := []string{"/share/workspace", "/run", guestRoot + guestInit, "/dev"}
	for _, bind := range sp.Binds {
		seen = append(seen, bind.Inside)
	}
	const owners = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
		1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_MKNOD | 1<<unix.CAP_SETFCAP
	f := jailtest.Judge(t, b, seen, []string{"/share/workspace", "/run"}, owners)
	if !strings.Contains(strings.Join(f.Seen, "\n"), "/share/workspace/file") {
		t.Errorf("it does not see the share: %v", f.Seen)
	}
}

// TestMissing: what is not there, or too old, is named, with what to do.
func TestMissing(t *testing.T) {
	other, err := filepath.Glob("/usr/lib/x86_64-linux-gnu/libz.so.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []struct{ name, library, want string }{
		{"not there", "/nonexistent/libkrun.so.1", "libkrun /nonexistent/libkrun.so.1 is not there"},
		{"another library", strings.Join(other, ""), "krun_create_ctx"},
		{"no library", "/etc/passwd", "/etc/passwd"},
	} {
		if k.library == "" {
			continue // not a Debian of this architecture
		}
		p, err := New(Options{Library: k.library}).Probe(t.Context())
		if text := p.Why + errorText(err); p.OK || !strings.Contains(text, k.want) {
			t.Errorf("%s: %+v, %v; want %q", k.name, p, err, k.want)
		}
	}
	d := New(Options{})
	for name, c := range map[string]vm.Config{
		"no CPUs":       {},
		"emulation":     {CPUs: 1, Memory: 256 << 20, Accel: vm.TCG, Agent: os.Stderr, Console: os.Stderr},
		"no agent":      {CPUs: 1, Memory: 256 << 20, Agent: os.Stderr, Console: os.Stderr},
		"little memory": {CPUs: 1, Memory: 1 << 20, Agent: os.Stderr, Console: os.Stderr},
	} {
		if _, err := d.Start(t.Context(), c); err == nil {
			t.Errorf("%s: it started", name)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestRefuse(t *testing.T) {
	good := Features{Path: "libkrun", NoTSI: true, Net: true, Kernel: true, MaxCPUs: 8}
	for _, k := range []struct {
		name    string
		change  func(*Features, *machine)
		refused string
	}{
		{"good", func(*Features, *machine) {}, ""},
		{"implicit TSI", func(f *Features, _ *machine) { f.NoTSI = false }, "socket hijacking"},
		{"implicit TSI, but a network", func(f *Features, m *machine) { f.NoTSI, m.Net = false, 8 }, ""},
		{"no network devices", func(f *Features, m *machine) { f.Net, m.Net = false, 8 }, "network devices"},
		{"old", func(f *Features, _ *machine) { f.Missing = []string{"krun_init_log"} }, "krun_init_log"},
		{"other kernel", func(f *Features, m *machine) { f.Kernel, m.Kernel = false, "/k" }, "libkrunfw"},
		{"many CPUs", func(_ *Features, m *machine) { m.CPUs = 9 }, "9 CPUs"},
		{"far too many", func(f *Features, m *machine) { f.MaxCPUs, m.CPUs = 0, 256 }, "256 CPUs"},
	} {
		f, m := good, machine{CPUs: 1, MiB: 256, Net: -1}
		k.change(&f, &m)
		err := refuse(f, m)
		if (err == nil) != (k.refused == "") || err != nil && !strings.Contains(err.Error(), k.refused) {
			t.Errorf("%s: %v, want %q", k.name, err, k.refused)
		}
	}
}

func TestExplain(t *testing.T) {
	e := vm.Exit{Code: 1, Reason: explain(1, "[ERROR vmm] Received KVM_EXIT_INTERNAL_ERROR signal")}
	if !HostCannot(e) {
		t.Errorf("%s is the host's", e)
	}
	for code, want := range map[int]string{1: "words", 125: "could not set the guest up", 127: "could not start the agent"} {
		e := vm.Exit{Code: code, Reason: explain(code, "words")}
		if HostCannot(e) || !strings.Contains(e.Reason, want) {
			t.Errorf("status %d: %s", code, e)
		}
	}
	if got := versionOf("/usr/lib64/libkrun.so.1.17.4"); got != "1.17.4" {
		t.Errorf("the version is %q", got)
	}
	if got := versionOf("/usr/lib64/libkrun.so.1"); got != "" {
		t.Errorf("the version is %q", got)
	}
}
