// Package vm is what Galley knows of virtual machines: one interface that each
// driver implements, and the words for what a driver is given and what it
// answers.
//
// A driver boots a kernel with an initial file system and connects four
// descriptors to the guest: the share (a virtio-fs device), the agent (a byte
// stream), the network (a stream of ethernet frames) and the console. No
// socket of a machine has a path on the host. A machine is confined: its
// process sees its own libraries, the kernel it boots, and nothing else.
//
// The parts: vm/kernel finds what is booted, vm/qemu and vm/krun are the
// drivers, vm/netstack is the network, vm/guest speaks with the agent inside,
// vm/images keeps what a guest's root is made of. None of them knows a
// session.
package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// Names of what a guest finds. Both sides of a machine are built from this
// module, and so they agree.
const (
	// ShareTag is the tag of the virtio-fs device.
	ShareTag = "galley"
	// AgentPort is the name of the virtio-serial port of the agent's stream.
	AgentPort = "galley.agent"
	// AgentVsock is the vsock port on which the agent of a libkrun guest
	// connects to the host (CID 2).
	AgentVsock = 1024
	// GuestMAC is the hardware address of a guest's network device.
	GuestMAC = "5a:94:ef:e4:0c:ee"
	// MinMemory is the least memory a machine is started with.
	MinMemory = 128 << 20
	// MaxCPUs is the most processors a machine is started with.
	MaxCPUs = 64
)

// Config is everything that a driver needs to start a machine.
type Config struct {
	// CPUs is the number of processors, at least 1.
	CPUs int `json:"cpus"`
	// Memory is the guest's memory in bytes; a driver rounds it up to a
	// whole MiB.
	Memory int64 `json:"memory"`
	// Kernel and Initrd are files of the host.
	Kernel string `json:"kernel"`
	Initrd string `json:"initrd"`
	// Cmdline is appended to what the driver itself tells the kernel.
	Cmdline string `json:"cmdline,omitempty"`
	// Accel asks for one accelerator, "kvm" or "tcg"; empty is the best one
	// that runs guests.
	Accel string `json:"accel,omitempty"`

	// Share is one end of a connected socket; the vhost-user-fs device is
	// served at the other. Start takes a duplicate of each of these
	// descriptors, and the caller closes its own.
	Share *os.File `json:"-"`
	// Agent is one end of a connected stream socket, whose other end talks
	// to the agent.
	Agent *os.File `json:"-"`
	// Net is one end of a connected stream socket that carries ethernet
	// frames, each after its length in 32 bits, big endian. Nil is no
	// network.
	Net *os.File `json:"-"`
	// Console takes what the guest writes on its console: a pipe or a file.
	Console *os.File `json:"-"`
	// Shares are what libkrun 1.x, which cannot use Share, shares instead: each
	// a file system that is mounted in the jail of the machine alone.
	Shares []Share `json:"-"`
	// Init is the guest's agent, a static program. The kernel of libkrunfw
	// takes no initial file system: libkrun starts this instead.
	Init string `json:"init,omitempty"`
}

// Share is a tree of a guest's share that is served over FUSE.
type Share struct {
	// Name is where it stands in the share.
	Name string
	// Serve is given the opened /dev/fuse of its mount and takes it over. It
	// returns when requests are answered.
	Serve func(dev *os.File) error
}

// Check says what a driver could not start a machine with.
func (c *Config) Check() error {
	switch {
	case c.CPUs < 1 || c.CPUs > MaxCPUs:
		return fmt.Errorf("%d CPUs: 1 to %d are possible", c.CPUs, MaxCPUs)
	case c.Memory < MinMemory:
		return fmt.Errorf("%d MiB of memory are too little: the least is %d MiB", c.Memory>>20, MinMemory>>20)
	case c.Accel != "" && c.Accel != KVM && c.Accel != TCG:
		return fmt.Errorf("accelerator %q: %q and %q are known", c.Accel, KVM, TCG)
	case strings.ContainsAny(c.Cmdline, "\n\x00"):
		return errors.New("the kernel's command line has a newline or NUL in it")
	case c.Agent == nil:
		return errors.New("no descriptor for the agent")
	case c.Console == nil:
		return errors.New("no descriptor for the console")
	}
	return nil
}

// The accelerators.
const (
	KVM = "kvm"
	TCG = "tcg" // QEMU's emulation
)

// Probe is what a host can do with a driver.
type Probe struct {
	// Driver is its name.
	Driver string `json:"driver"`
	// OK: machines can be started.
	OK bool `json:"ok"`
	// Accel is the accelerator that a machine gets.
	Accel string `json:"accel,omitempty"`
	// Version is the version of QEMU or libkrun.
	Version string `json:"version,omitempty"`
	// Why says what is missing, where OK is false, or why the better
	// accelerator is not used.
	Why string `json:"why,omitempty"`
	// Fix says what to do about it.
	Fix string `json:"fix,omitempty"`
	// Fresh: Why was found out just now, and not by an earlier probe since
	// the host's boot.
	Fresh bool `json:"fresh,omitempty"`
}

// Driver starts machines.
type Driver interface {
	// Name is "qemu" or "krun".
	Name() string
	// Probe says what this host can do. The first probe after a boot of the
	// host may take seconds; what it found is kept.
	Probe(ctx context.Context) (Probe, error)
	// Start starts a machine. It returns when the machine's process runs
	// confined, which is before its kernel does. The machine does not end
	// with ctx; it ends with the process that started it.
	Start(ctx context.Context, c Config) (Machine, error)
}

// Machine is one virtual machine that was started.
type Machine interface {
	// PID is the process of the machine.
	PID() int
	// Accel is the accelerator that it has.
	Accel() string
	// Wait returns how the machine ended, once it has. Any number of callers
	// may wait.
	Wait() (Exit, error)
	// Kill ends the machine at once. It returns when its process is gone,
	// and does nothing if it was gone already.
	Kill() error
}

// Exit is how a machine ended.
type Exit struct {
	// Code is the exit status of its process, or -1.
	Code int `json:"code"`
	// Signal ended its process, or 0.
	Signal int `json:"signal,omitempty"`
	// Killed: [Machine.Kill] ended it.
	Killed bool `json:"killed,omitempty"`
	// Reason is the last that the driver said, if that is not nothing.
	Reason string `json:"reason,omitempty"`
	// At is when it ended.
	At time.Time `json:"at"`
}

// OK: the guest powered itself off.
func (e Exit) OK() bool { return e.Code == 0 && e.Signal == 0 && !e.Killed }

// String says how the machine ended, for a person.
func (e Exit) String() string {
	var s string
	switch {
	case e.Killed:
		s = "it was stopped"
	case e.Signal != 0:
		s = fmt.Sprintf("signal %d ended it", e.Signal)
	case e.Code == 0:
		s = "the guest powered off"
	default:
		s = fmt.Sprintf("it exited with status %d", e.Code)
	}
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return s
}

// ErrUnavailable is wrapped by each error that says that this host lacks
// something a machine needs: see [Missing].
var ErrUnavailable = errors.New("not available on this host")

// Missing is something that the host lacks, and how to get it.
type Missing struct {
	// What is missing, as a sentence without a full stop.
	What string
	// Fix is what to do, "" if nothing can be done.
	Fix string
	// Err is what was met, or nil.
	Err error
}

// Error says what is missing and how to get it.
func (m *Missing) Error() string {
	s := m.What
	if m.Err != nil {
		s += ": " + m.Err.Error()
	}
	if m.Fix != "" {
		s += "; " + m.Fix
	}
	return s
}

// Unwrap are [ErrUnavailable] and what was met.
func (m *Missing) Unwrap() []error {
	if m.Err == nil {
		return []error{ErrUnavailable}
	}
	return []error{ErrUnavailable, m.Err}
}
