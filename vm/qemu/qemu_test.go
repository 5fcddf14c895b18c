package qemu

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/kernel"
)

// patience is how long a test waits for what a machine does, on a machine that
// does much else.
const patience = 60 * time.Second

// prepared is what the guests of these tests boot, made once: the host's kernel
// and a small init that does what it is told.
var prepared = sync.OnceValues(func() (kernel.Boot, error) {
	guest := filepath.Join(testDir, "guest")
	cmd := exec.Command("go", "build", "-o", guest, "./internal/echoguest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return kernel.Boot{}, fmt.Errorf("build the guest: %w\n%s", err, out)
	}
	return kernel.Prepare(context.Background(), kernel.Options{Guest: guest, Cache: filepath.Join(testDir, "cache")})
})

// guest is a machine of a test and the two ways to hear from it.
type guest struct {
	*machine
	t       *testing.T
	agent   *os.File
	answers *bufio.Reader
	console *tail
}

// start starts a machine with the host's kernel under emulation.
func start(t *testing.T, change func(*vm.Config)) *guest {
	t.Helper()
	b, err := prepared()
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	agent, theirs := os.NewFile(uintptr(fds[0]), "agent"), os.NewFile(uintptr(fds[1]), "agent")
	console, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := vm.Config{CPUs: 1, Memory: 256 << 20, Kernel: b.Kernel, Initrd: b.Initrd, Accel: vm.TCG, Agent: theirs, Console: write}
	if change != nil {
		change(&c)
	}
	m, err := New(Options{Cache: filepath.Join(testDir, "cache")}).Start(context.Background(), c)
	_ = theirs.Close()
	_ = write.Close()
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{machine: m.(*machine), t: t, agent: agent, answers: bufio.NewReader(agent), console: newTail()}
	go g.console.read(console)
	t.Cleanup(func() {
		_ = m.Kill()
		_ = agent.Close()
		if t.Failed() {
			e, _ := m.Wait()
			t.Logf("the machine ended: %v; its console: %s", e, g.console)
		}
	})
	return g
}

// line is the next that the guest says.
func (g *guest) line() string {
	g.t.Helper()
	if err := g.agent.SetReadDeadline(time.Now().Add(patience)); err != nil {
		g.t.Fatal(err)
	}
	s, err := g.answers.ReadString('\n')
	if err != nil {
		g.t.Fatalf("hear from the guest: %v", err)
	}
	return strings.TrimSpace(s)
}

func (g *guest) ready() {
	g.t.Helper()
	if s := g.line(); s != "ready" {
		g.t.Fatalf("the guest says %q", s)
	}
}

func (g *guest) tell(command string) {
	g.t.Helper()
	if _, err := io.WriteString(g.agent, command+"\n"); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guest) ask(command string) string {
	g.t.Helper()
	g.tell(command)
	return g.line()
}

func (g *guest) end() vm.Exit {
	g.t.Helper()
	timer := time.AfterFunc(patience, func() {
		g.t.Error("the machine does not end")
		_ = g.Kill()
	})
	defer timer.Stop()
	e, err := g.Wait()
	if err != nil {
		g.t.Fatal(err)
	}
	return e
}

// A machine boots the host's kernel, its agent is reached, its process can do
// nothing, and it ends when the guest does.
func TestMachine(t *testing.T) {
	g := start(t, func(c *vm.Config) { c.CPUs = 2 })
	g.ready()
	if got := g.ask("echo over the stream"); got != "over the stream" {
		t.Errorf("echo: %q", got)
	}
	if got := g.ask("cpus"); got != "2" {
		t.Errorf("the guest has %s processors, want 2", got)
	}
	confined(t, g.PID())
	g.tell("off")
	if e := g.end(); !e.OK() || e.Reason != "" {
		t.Errorf("powered off: %v", e)
	}
}

// confined looks at the process of a machine from outside.
func confined(t *testing.T, pid int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.TrimSpace(value)
	}
	for key, want := range map[string]string{
		"NoNewPrivs": "1", "Seccomp": "2",
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
	} {
		if status[key] != want {
			t.Errorf("%s is %q, want %q", key, status[key], want)
		}
	}
	if ids := strings.Fields(status["Uid"]); os.Geteuid() == 0 && (len(ids) != 4 || ids[0] == "0" || ids[1] == "0") {
		t.Errorf("it runs as %q", status["Uid"])
	}
	if os.Geteuid() != 0 {
		return // of another user namespace, the rest is root's to see
	}
	for _, ns := range []string{"user", "mnt", "pid", "net", "ipc", "uts"} {
		mine, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err != nil {
			t.Fatal(err)
		}
		if mine == theirs {
			t.Errorf("it shares the %s namespace", ns)
		}
	}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "boot", "firmware", "lib64", "libs", "modules", "qemu":
		default:
			t.Errorf("it sees /%s", e.Name())
		}
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/root/x", pid), nil, 0o600); err == nil {
		t.Error("its root can be written to")
	}
}

// How a machine ended is told apart.
func TestEnds(t *testing.T) {
	t.Run("panic", func(t *testing.T) {
		g := start(t, nil)
		g.ready()
		g.tell("panic")
		if e := g.end(); e.OK() && e.Reason == "" || !strings.Contains(e.Reason, "reset") {
			t.Errorf("a panic: %+v", e)
		}
	})
	t.Run("killed", func(t *testing.T) {
		g := start(t, nil)
		if err := g.Kill(); err != nil {
			t.Fatal(err)
		}
		if e := g.end(); !e.Killed || e.OK() {
			t.Errorf("killed: %+v", e)
		}
		if err := unix.Kill(g.PID(), 0); err != unix.ESRCH {
			t.Errorf("after Kill, the process is still there: %v", err)
		}
	})
	t.Run("not a kernel", func(t *testing.T) {
		bad := filepath.Join(t.TempDir(), "kernel")
		if err := os.WriteFile(bad, []byte("#!/bin/sh\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		g := start(t, func(c *vm.Config) { c.Kernel = bad })
		if e := g.end(); e.OK() || e.Reason == "" {
			t.Errorf("QEMU started with a kernel that is none: %+v", e)
		}
	})
}
