package krun

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/jail"
)

// Options are those of the driver.
type Options struct {
	// Library is the path of libkrun; empty looks where libraries are.
	Library string
	// Cache is a directory in which is kept what booting a kernel told; empty
	// boots one each time.
	Cache string
	// Log takes what is worth to know (default slog.Default()).
	Log *slog.Logger
}

// Driver is the [vm.Driver] of libkrun.
type Driver struct{ opt Options }

// New makes a driver. Nothing is looked for before it is needed.
func New(o Options) *Driver {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Driver{o}
}

// Name is "krun".
func (d *Driver) Name() string { return "krun" }

const (
	// configureTime is how long the process may take until the machine starts.
	configureTime = 30 * time.Second
	// probeTime is how long libkrunfw's kernel may take to boot and to find
	// no agent, which on hardware is a fraction of a second.
	probeTime = 5 * time.Second
)

// Inspect loads libkrun, in a jail, and says what it can do.
func (d *Driver) Inspect(ctx context.Context) (Features, error) {
	f, err := find(d.opt.Library, false)
	if err != nil {
		return Features{}, err
	}
	p, err := launch(ctx, setup{Krun: f.krun, Krunfw: f.krunfw, Inspect: true}, vm.Config{})
	if err != nil {
		return Features{}, err
	}
	exit, err := p.Wait()
	if err == nil && !exit.OK() {
		err = fmt.Errorf("look at %s: %s", f.krun, exit)
	}
	return p.features, err
}

// Probe implements [vm.Driver]: libkrun must be there, it must be one that a
// machine can be trusted to, and KVM must run guests, for which one is booted.
func (d *Driver) Probe(ctx context.Context) (vm.Probe, error) {
	out := vm.Probe{Driver: d.Name()}
	no := func(err error) (vm.Probe, error) {
		var missing *vm.Missing
		if !errors.As(err, &missing) {
			return out, err
		}
		out.Why, out.Fix = missing.What, missing.Fix
		if missing.Err != nil {
			out.Why += ": " + missing.Err.Error()
		}
		return out, nil
	}
	f, err := d.Inspect(ctx)
	if err != nil {
		return no(err)
	}
	out.Version = f.Version
	if err := refuse(f, machine{Net: -1, CPUs: 1}); err != nil {
		return no(err)
	}
	if err := openKVM(); err != nil {
		return no(err)
	}
	why, fresh, err := d.verdict(ctx, f)
	if err != nil {
		return no(err)
	}
	out.Fresh = fresh
	if why != "" {
		out.Why, out.Fix = "KVM does not run guests on this host: "+why, "use QEMU, which emulates a machine"
		return out, nil
	}
	out.OK, out.Accel = true, vm.KVM
	return out, nil
}

// tryBoot boots libkrunfw's kernel with no agent, which libkrun's init then
// misses; it says why KVM does not run it, "" if it does.
func (d *Driver) tryBoot(ctx context.Context) (string, error) {
	console, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return "", err
	}
	defer console.Close()
	mine, theirs, err := sockets(unix.SOCK_STREAM)
	if err != nil {
		return "", err
	}
	defer mine.Close()
	defer theirs.Close()
	m, err := d.start(ctx, vm.Config{CPUs: 1, Memory: vm.MinMemory, Agent: theirs, Console: console})
	if err != nil {
		return "", err
	}
	timer := time.AfterFunc(probeTime, func() { _ = m.Kill() })
	defer timer.Stop()
	exit, err := m.Wait()
	switch {
	case err != nil:
		return "", err
	case exit.Killed:
		return fmt.Sprintf("a kernel did not boot within %v", probeTime), nil
	case exit.Code >= 125 && exit.Code <= 127:
		return "", nil // its init ran, and found no agent
	}
	return exit.String(), nil
}

// Start implements [vm.Driver].
func (d *Driver) Start(ctx context.Context, c vm.Config) (vm.Machine, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if c.Accel == vm.TCG {
		return nil, errors.New("libkrun has no emulation; use QEMU")
	}
	if c.Kernel == "" && c.Init == "" {
		return nil, errors.New("no agent to start in the guest")
	}
	m, err := d.start(ctx, c)
	if err != nil {
		return nil, err
	}
	return m, nil
}

func (d *Driver) start(ctx context.Context, c vm.Config) (*process, error) {
	if err := openKVM(); err != nil {
		return nil, err
	}
	f, err := find(d.opt.Library, c.Kernel == "")
	if err != nil {
		return nil, err
	}
	s := setup{Krun: f.krun, Krunfw: f.krunfw, Machine: machine{
		CPUs: c.CPUs, MiB: (c.Memory + 1<<20 - 1) >> 20, Root: guestRoot, Agent: agentSocket, Console: consolePipe,
		Net: -1, Log: fdLog,
	}}
	if len(c.Shares) > 0 {
		s.Machine.Share = shareDir
	}
	if c.Net != nil {
		s.Machine.Net = fdNet
	}
	if c.Kernel != "" {
		s.Machine.Kernel, s.Machine.Cmdline = kernelFile, c.Cmdline
		if c.Initrd != "" {
			s.Machine.Initrd = initrdFile
		}
		if s.Machine.Format, err = kernelFormat(c.Kernel); err != nil {
			return nil, err
		}
	}
	return launch(ctx, s, c)
}

// kernelFormat is what krun_set_kernel calls the file's format.
func kernelFormat(path string) (uint32, error) {
	const raw, elf, peGzip, gzip, zstd = 0, 1, 2, 4, 5
	f, err := os.Open(path)
	if err != nil {
		return 0, &vm.Missing{What: "the kernel " + path + " cannot be read", Err: err, Fix: "name one that this user may read"}
	}
	defer f.Close()
	head := make([]byte, 4)
	if _, err := io.ReadFull(f, head); err != nil {
		return 0, fmt.Errorf("%s is no kernel: %w", path, err)
	}
	switch {
	case string(head) == "\x7fELF":
		return elf, nil
	case head[0] == 0x1f && head[1] == 0x8b:
		return gzip, nil
	case string(head) == "\x28\xb5\x2f\xfd":
		return zstd, nil
	case string(head[:2]) == "MZ":
		return peGzip, nil
	}
	return raw, nil
}

// spec is the jail of a machine.
func spec(s setup, c vm.Config) (jail.Spec, error) {
	out, err := jail.Self(programPath)
	if err != nil {
		return out, err
	}
	libs := []string{s.Krun}
	if s.Krunfw != "" {
		libs = append(libs, s.Krunfw)
	}
	exe, err := os.Executable()
	if err != nil {
		return out, err
	}
	more, err := jail.Libraries(append([]string{exe}, libs...)...)
	if err != nil {
		return out, err
	}
	have := map[string]bool{}
	for _, b := range out.Binds {
		have[b.Inside] = true
	}
	for _, lib := range append(libs, more...) {
		if !have[lib] {
			have[lib] = true
			out = out.With(lib)
		}
	}
	dirs := map[string]bool{}
	for _, b := range out.Binds[1:] {
		dirs[filepath.Dir(b.Inside)] = true
	}
	out.Env = append(out.Env, "LD_LIBRARY_PATH="+strings.Join(slices.Sorted(maps.Keys(dirs)), ":"))
	out.Proc, out.Owners, out.OpenFiles = true, true, 65536
	if s.Inspect {
		return out, nil
	}
	out.Devices = []string{"kvm", "urandom", "random", "null"}
	root := jail.Memory{Inside: guestRoot, Size: 64 << 10, Dirs: []string{"/dev", "/proc", "/sys", "/tmp", "/run", "/export", "/newroot", "/root"}}
	if c.Init != "" {
		root.Binds = []jail.Bind{{Host: c.Init, Inside: guestInit}}
	}
	out.Memory = []jail.Memory{root, {Inside: runDir, Size: 64 << 10, Write: true}}
	if len(c.Shares) > 0 {
		share := jail.Memory{Inside: shareDir, Size: 64 << 10}
		for _, t := range c.Shares {
			if t.Name != filepath.Base(t.Name) || strings.HasPrefix(t.Name, ".") {
				return out, fmt.Errorf("%q is no name for a share", t.Name)
			}
			share.Dirs = append(share.Dirs, "/"+t.Name)
			out.FUSE = append(out.FUSE, shareDir+"/"+t.Name)
		}
		out.Memory = append(out.Memory, share)
	}
	if c.Kernel != "" {
		out.Binds = append(out.Binds, jail.Bind{Host: c.Kernel, Inside: kernelFile})
		if c.Initrd != "" {
			out.Binds = append(out.Binds, jail.Bind{Host: c.Initrd, Inside: initrdFile})
		}
	}
	return out, nil
}

// process is a machine: the process that libkrun has taken over.
type process struct {
	jail     *jail.Process
	features Features

	mu     sync.Mutex
	killed bool

	done chan struct{} // closed when the process is gone and exit is set
	exit vm.Exit       // valid when done
}

// launch starts the process in its jail and returns when the machine starts.
func launch(ctx context.Context, s setup, c vm.Config) (*process, error) {
	sp, err := spec(s, c)
	if err != nil {
		return nil, err
	}
	var opened []*os.File
	defer func() {
		for _, f := range opened {
			_ = f.Close()
		}
	}()
	pipe := func() (r, w *os.File) {
		if err == nil {
			if r, w, err = os.Pipe(); err == nil {
				opened = append(opened, r, w)
			}
		}
		return r, w
	}
	setupRead, setupWrite := pipe()
	stateRead, stateWrite := pipe()
	logRead, logWrite := pipe()
	if err != nil {
		return nil, err
	}
	pass := []*os.File{setupRead, stateWrite, logWrite}
	if !s.Inspect {
		pass = append(pass, c.Agent, c.Console)
		if c.Net != nil {
			pass = append(pass, c.Net)
		}
	}
	var serving sync.WaitGroup
	var serveErr error
	var link *os.File
	if len(c.Shares) > 0 {
		var mine *os.File
		if mine, link, err = sockets(unix.SOCK_SEQPACKET); err != nil {
			return nil, err
		}
		opened = append(opened, mine, link)
		pass = append(pass, link)
		serving.Go(func() {
			serveErr = jail.ServeFUSE(mine, func(n int, dev *os.File) error {
				if n >= len(c.Shares) {
					_ = dev.Close()
					return fmt.Errorf("there is no share %d", n)
				}
				return c.Shares[n].Serve(dev)
			})
			_ = mine.Close() // the jail waits for an answer no longer
		})
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	if _, err := setupWrite.Write(b); err != nil { // it fits into the pipe
		return nil, err
	}
	j, err := jail.Start(sp, logWrite, pass...)
	_ = stateWrite.Close()
	_ = logWrite.Close()
	if link != nil {
		_ = link.Close()
		serving.Wait() // the jail has closed its end, whatever became of it
	}
	if err != nil {
		return nil, fmt.Errorf("start a machine of libkrun: %w", errors.Join(err, serveErr))
	}
	p := &process{jail: j, done: make(chan struct{})}
	opened = slices.DeleteFunc(opened, func(f *os.File) bool { return f == logRead })
	go p.watch(logRead)
	stop := context.AfterFunc(ctx, func() { _ = stateRead.SetReadDeadline(time.Now()) })
	defer stop()
	_ = stateRead.SetReadDeadline(time.Now().Add(configureTime))
	if err := p.begin(stateRead, s.Inspect); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		_ = p.Kill()
		return nil, err
	}
	return p, nil
}

// begin hears whether the machine starts.
func (p *process) begin(from io.Reader, inspect bool) error {
	var st state
	if err := json.NewDecoder(io.LimitReader(from, 1<<20)).Decode(&st); err != nil {
		p.jail.Kill()
		exit, _ := p.Wait()
		return fmt.Errorf("start a machine of libkrun: its process ended before that: %s", exit)
	}
	p.features = st.Features
	switch {
	case st.Error != "" && st.Missing:
		return &vm.Missing{What: st.Error}
	case st.Error != "":
		return errors.New(st.Error)
	case !st.Started && !inspect:
		return errors.New("start a machine of libkrun: it did not")
	}
	return nil
}

// watch keeps the end of what libkrun says, and notes how the process ended.
func (p *process) watch(log *os.File) {
	said := lastOf(log)
	_ = log.Close()
	code, signal := p.jail.Wait()
	p.mu.Lock()
	p.exit = vm.Exit{Code: code, Signal: signal, Killed: p.killed, At: time.Now()}
	if !p.exit.OK() && !p.killed {
		p.exit.Reason = explain(code, said)
	}
	p.mu.Unlock()
	close(p.done)
}

// maxSaid is how much of what libkrun says is kept.
const maxSaid = 8 << 10

// lastOf reads r to its end and returns the last of it.
func lastOf(r io.Reader) string {
	var kept []byte
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		kept = append(kept, buf[:n]...)
		if len(kept) > maxSaid {
			kept = bytes.Clone(kept[len(kept)-maxSaid:])
		}
		if err != nil {
			return strings.TrimSpace(string(kept))
		}
	}
}

// hostFaults are what libkrun says when KVM does not run a guest; all else that
// ends a machine is the guest's doing or a fault.
var hostFaults = []struct{ said, means string }{
	{"KVM_EXIT_INTERNAL_ERROR", "KVM met an instruction that it cannot run (KVM_EXIT_INTERNAL_ERROR)"},
	{"KVM_EXIT_FAIL_ENTRY", "KVM could not enter the guest (KVM_EXIT_FAIL_ENTRY)"},
	{"Error creating the Kvm object", "KVM could not be opened"},
}

// HostCannot says, of how a machine ended, whether the reason is that this
// host's KVM does not run guests.
func HostCannot(e vm.Exit) bool {
	for _, f := range hostFaults {
		if strings.HasPrefix(e.Reason, f.means) {
			return true
		}
	}
	return false
}

// explain says why a machine ended with a status, from what libkrun said.
func explain(code int, said string) string {
	for _, f := range hostFaults {
		if strings.Contains(said, f.said) {
			return f.means
		}
	}
	switch code {
	case 125:
		said = strings.TrimSpace("libkrun's init could not set the guest up; " + said)
	case 126, 127:
		said = strings.TrimSpace("libkrun's init could not start the agent; " + said)
	}
	if i := strings.LastIndexByte(said, '\n'); i >= 0 && len(said) > 1024 {
		said = said[max(i, len(said)-1024):]
	}
	return said
}

// PID is [vm.Machine.PID].
func (p *process) PID() int { return p.jail.PID() }

// Accel is [vm.Machine.Accel].
func (p *process) Accel() string { return vm.KVM }

// Wait is [vm.Machine.Wait].
func (p *process) Wait() (vm.Exit, error) {
	<-p.done
	return p.exit, nil
}

// Kill is [vm.Machine.Kill].
func (p *process) Kill() error {
	p.mu.Lock()
	select {
	case <-p.done:
	default:
		p.killed = true
	}
	p.mu.Unlock()
	p.jail.Kill()
	<-p.done
	return nil
}

// sockets is a connected pair of unix sockets.
func sockets(kind int) (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "machine"), os.NewFile(uintptr(fds[1]), "machine"), nil
}
