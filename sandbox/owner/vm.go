package owner

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/guest"
)

// VM asks for the session's machine. A session has one at a time: where it runs
// already, the request joins it.
type VM struct {
	// Driver is "qemu" or "krun".
	Driver string `json:"driver"`
	// Program is the driver's program or library; empty is where it usually
	// is. An owner has no $PATH to look it up in.
	Program string `json:"program,omitempty"`
	// Config is the machine; the owner adds the descriptors.
	Config vm.Config `json:"config"`
	// Setup is what the guest is told; the owner fills in the export.
	Setup guest.Setup `json:"setup"`
	// Net gives the guest the network.
	Net bool `json:"net,omitempty"`
	// Detach keeps the machine when the connection that asks has gone.
	Detach bool `json:"detach,omitempty"`
	// Idle ends a detached machine when nobody has spoken with it for that
	// long; 0 is never.
	Idle time.Duration `json:"idle,omitempty"`
	// KernelFile is the kernel that the user named, of which Config.Kernel was
	// made; empty is the host's.
	KernelFile string `json:"kernel_file,omitempty"`
	// Image and Command are shown in lists.
	Image   string `json:"image,omitempty"`
	Command string `json:"command,omitempty"`
}

// Phase is where a machine is in its life.
type Phase string

// The phases, in their order.
const (
	Starting Phase = "starting"
	Running  Phase = "running"
	Stopping Phase = "stopping"
	Ended    Phase = "ended"
)

// VMStatus tells of a session's machine.
type VMStatus struct {
	Phase  Phase  `json:"phase"`
	PID    int    `json:"pid,omitempty"`
	Driver string `json:"driver"`
	Accel  string `json:"accel,omitempty"`
	// Slow says why the machine has no hardware acceleration.
	Slow string `json:"slow,omitempty"`
	// SlowNew: that was found out for this machine, and nobody was told yet.
	SlowNew bool      `json:"slow_new,omitempty"`
	Since   time.Time `json:"since"`
	// Boot is how long the parts of its start took.
	Boot     BootTimes     `json:"boot"`
	CPUs     int           `json:"cpus"`
	Memory   int64         `json:"memory"`
	Net      bool          `json:"net,omitempty"`
	Image    string        `json:"image,omitempty"`
	Command  string        `json:"command,omitempty"`
	Detached bool          `json:"detached,omitempty"`
	Idle     time.Duration `json:"idle,omitempty"`
	// Users are the connections that hold it, Streams the conversations with
	// its guest at this moment.
	Users   int `json:"users"`
	Streams int `json:"streams"`
	// Exit is how it ended, once it has.
	Exit *vm.Exit `json:"exit,omitempty"`
}

// BootTimes are the parts of a machine's start.
type BootTimes struct {
	// Process is until its process ran, Agent from there until the agent
	// spoke, which is the kernel's boot, and Setup until the guest's tree
	// stood.
	Process time.Duration `json:"process"`
	Agent   time.Duration `json:"agent"`
	Setup   time.Duration `json:"setup"`
}

// StopVM asks for the end of the session's machine.
type StopVM struct {
	// Kill ends it at once. Otherwise the guest is asked to end, and killed
	// when it does not.
	Kill bool `json:"kill,omitempty"`
}

// VMMount asks for a further directory in the guest.
type VMMount struct {
	// Host is the directory, with its links resolved.
	Host string `json:"host"`
	// Path is where it stands in the guest.
	Path string `json:"path"`
	// Write makes it a tree of the session, copy-on-write; without it the
	// directory is only shown.
	Write bool `json:"write,omitempty"`
}

// VMMounted is what came of it.
type VMMounted struct {
	// Tree is the name of the tree that it became, if any.
	Tree string `json:"tree,omitempty"`
}

// StartVM starts the session's machine, or joins the one that runs. It returns
// when the guest is set up. Unless the machine is detached it ends when every
// client that started it is closed.
func (c *Client) StartVM(ctx context.Context, r VM) (VMStatus, error) {
	var out VMStatus
	return out, c.call(ctx, opVMStart, r, -1, &out)
}

// DialVM opens a stream to the agent of the session's machine.
func (c *Client) DialVM(ctx context.Context) (net.Conn, error) {
	mine, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("session %s: %w", c.name, err)
	}
	defer theirs.Close()
	if err := c.call(ctx, opVMDial, nil, int(theirs.Fd()), nil); err != nil {
		_ = mine.Close()
		return nil, err
	}
	return mine, nil
}

// MountVM shows a directory of the host in the guest.
func (c *Client) MountVM(ctx context.Context, m VMMount) (VMMounted, error) {
	var out VMMounted
	return out, c.call(ctx, opVMMount, m, -1, &out)
}

// UnmountVM takes away what [Client.MountVM] put at path.
func (c *Client) UnmountVM(ctx context.Context, path string) error {
	return c.call(ctx, opVMUnmount, vmPath{path}, -1, nil)
}

// StopVM ends the session's machine. It is gone when StopVM returns.
func (c *Client) StopVM(ctx context.Context, r StopVM) (VMStatus, error) {
	var out VMStatus
	return out, c.call(ctx, opVMStop, r, -1, &out)
}

// VMForward is a TCP port of the guest that stands on the host's loopback.
type VMForward struct {
	// Guest is the port in the guest, Host the one of the host; 0 is any free one.
	Guest int `json:"guest"`
	Host  int `json:"host"`
	// Off ends the forward.
	Off bool `json:"off,omitempty"`
}

// ForwardVM lets programs of the host reach a port of the guest, which must
// have a network, or ends that. It returns where the port stands.
func (c *Client) ForwardVM(ctx context.Context, r VMForward) (VMForward, error) {
	var out VMForward
	return out, c.call(ctx, opVMForward, r, -1, &out)
}

type vmPath struct {
	Path string `json:"path"`
}

// streamPair makes a connected pair of stream sockets for a driver.
func streamPair(what string) (mine, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("%s of a machine: %w", what, err)
	}
	return os.NewFile(uintptr(fds[0]), what), os.NewFile(uintptr(fds[1]), what), nil
}
