// Package testvm boots small virtual machines for tests and for the benchmark:
// QEMU in plain emulation, the distribution's kernel, and as the only program of
// the guest a static binary (testvm/init) that does what it is told over a
// virtio-serial port. It is no driver of Galley's: it confines nothing.
package testvm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/kernel"
)

// PortName is the name of the virtio-serial port that the guest listens on.
const PortName = "galley.test"

// Options say what machine to boot.
type Options struct {
	// Dir is where what is booted is put.
	Dir string
	// Memory is in MiB (default 256).
	Memory int
	// CPUs is how many there are (default 1).
	CPUs int
	// Share is the monitor's end of a vhost-user-fs device, with the tag
	// "galley". It is closed.
	Share *os.File
	// Sockets are vhost-user-fs devices that listen on paths, by their tag.
	Sockets map[string]string
	// QueueSize is that of the share devices (default 1024).
	QueueSize int
}

// VM is a machine that runs.
type VM struct {
	cmd     *exec.Cmd
	port    *os.File
	console *tail

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan Reply
	gone    chan struct{}
	err     error
}

// prepare builds the guest's program and makes what is booted.
func prepare(ctx context.Context, dir string) (kernel.Boot, error) {
	program := filepath.Join(dir, "init")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "github.com/galleyfs/galley/integration/testvm/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return kernel.Boot{}, fmt.Errorf("build the guest's program: %w\n%s", err, out)
	}
	return kernel.Prepare(ctx, kernel.Options{Guest: program, Cache: dir})
}

// Start boots a machine and returns when its program answers.
func Start(ctx context.Context, o Options) (*VM, error) {
	if o.Memory == 0 {
		o.Memory = 256
	}
	if o.CPUs == 0 {
		o.CPUs = 1
	}
	if o.QueueSize == 0 {
		o.QueueSize = 1024
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return nil, fmt.Errorf("%w (on Debian: apt-get install qemu-system-x86)", err)
	}
	boot, err := prepare(ctx, o.Dir)
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "port"), os.NewFile(uintptr(pair[1]), "port")
	vm := &VM{port: ours, console: new(tail), waiting: map[uint64]chan Reply{}, gone: make(chan struct{})}
	size := strconv.Itoa(o.Memory) + "M"
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-M", "q35,memory-backend=mem0", "-accel", "tcg", "-m", size, "-smp", strconv.Itoa(o.CPUs),
		"-object", "memory-backend-memfd,id=mem0,size=" + size + ",share=on",
		"-kernel", boot.Kernel, "-initrd", boot.Initrd, "-append", "console=ttyS0 quiet panic=-1 reboot=t",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=port,fd=3", "-device", "virtserialport,chardev=port,name=" + PortName,
	}
	files := []*os.File{theirs}
	device := func(id, tag, chardev string) {
		args = append(args, "-chardev", "socket,id="+id+","+chardev, "-device",
			fmt.Sprintf("vhost-user-fs-pci,chardev=%s,tag=%s,queue-size=%d", id, tag, o.QueueSize))
	}
	if o.Share != nil {
		files = append(files, o.Share)
		device("share", "galley", "fd=4")
	}
	for tag, path := range o.Sockets {
		device("s-"+tag, tag, "path="+path)
	}
	vm.cmd = exec.Command("qemu-system-x86_64", args...)
	vm.cmd.ExtraFiles = files
	vm.cmd.Stdout, vm.cmd.Stderr = vm.console, vm.console
	vm.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	err = startHere(vm.cmd)
	for _, f := range files {
		_ = f.Close()
	}
	if err != nil {
		_ = ours.Close()
		return nil, err
	}
	go vm.receive()
	if _, err := vm.Call(ctx, Request{Op: "ping"}); err != nil {
		vm.Kill()
		return nil, fmt.Errorf("the guest does not answer: %w; its console:\n%s", err, vm.console)
	}
	return vm, nil
}

// startHere starts cmd on a thread that stays: PDEATHSIG is sent when the thread
// ends, not the process.
func startHere(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock it
		started <- cmd.Start()
		select {}
	}()
	return <-started
}

// PID is the machine's process.
func (vm *VM) PID() int { return vm.cmd.Process.Pid }

// Console is the end of what the guest's kernel and QEMU said.
func (vm *VM) Console() string { return vm.console.String() }

// receive takes the guest's answers until the machine is gone.
func (vm *VM) receive() {
	in := bufio.NewReaderSize(vm.port, 1<<20)
	var err error
	for err == nil {
		var line []byte
		if line, err = in.ReadBytes('\n'); err != nil {
			break
		}
		var r Reply
		if err = json.Unmarshal(line, &r); err != nil {
			break
		}
		vm.mu.Lock()
		ch := vm.waiting[r.ID]
		delete(vm.waiting, r.ID)
		vm.mu.Unlock()
		if ch != nil {
			ch <- r
		}
	}
	vm.err = fmt.Errorf("the machine is gone: %w", err)
	close(vm.gone)
}

// Call has the guest do something, and returns when it has. An error of the guest
// is one of the call.
func (vm *VM) Call(ctx context.Context, r Request) (Reply, error) {
	ch := make(chan Reply, 1)
	vm.mu.Lock()
	vm.last++
	r.ID = vm.last
	vm.waiting[r.ID] = ch
	b, err := json.Marshal(r)
	if err == nil {
		_, err = vm.port.Write(append(b, '\n'))
	}
	vm.mu.Unlock()
	if err != nil {
		return Reply{}, err
	}
	select {
	case got := <-ch:
		if got.Errno != 0 {
			return got, &GuestError{Op: r.Op, Path: r.Path, Message: got.Err, Errno: got.Errno}
		}
		if got.Err != "" {
			return got, &GuestError{Op: r.Op, Path: r.Path, Message: got.Err, Errno: unix.EIO}
		}
		return got, nil
	case <-vm.gone:
		return Reply{}, vm.err
	case <-ctx.Done():
		return Reply{}, fmt.Errorf("%s %s in the guest: %w; its console:\n%s", r.Op, r.Path, context.Cause(ctx), vm.console)
	}
}

// GuestError is an error that a call met in the guest.
type GuestError struct {
	Op, Path, Message string
	Errno             unix.Errno
}

func (e *GuestError) Error() string {
	return fmt.Sprintf("in the guest: %s %s: %s", e.Op, e.Path, e.Message)
}

func (e *GuestError) Unwrap() error { return e.Errno }

// Kill ends the machine at once.
func (vm *VM) Kill() {
	_ = vm.cmd.Process.Kill()
	_ = vm.cmd.Wait()
	_ = vm.port.Close()
}

// PowerOff has the guest end the machine, and waits for it.
func (vm *VM) PowerOff(ctx context.Context) error {
	_, err := vm.Call(ctx, Request{Op: "poweroff"})
	if err != nil && !errors.Is(err, vm.err) {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- vm.cmd.Wait() }()
	select {
	case err := <-ended:
		_ = vm.port.Close()
		return err
	case <-ctx.Done():
		vm.cmd.Process.Kill()
		<-ended
		return fmt.Errorf("the machine does not end: %w", context.Cause(ctx))
	}
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - 16<<10; over > 0 {
		t.b = t.b[over:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}

// BootTimeout is plenty for a machine to boot on a busy host.
const BootTimeout = 3 * time.Minute
