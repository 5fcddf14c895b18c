package guest

import (
	"fmt"
	"syscall"
	"time"
)

// op names what a call asks for.
type op string

const (
	opSetup      op = "setup"
	opExec       op = "exec"
	opFiles      op = "files"
	opMount      op = "mount"
	opUnmount    op = "unmount"
	opSync       op = "sync"
	opInvalidate op = "invalidate"
	opInfo       op = "info"
	opClock      op = "clock"
	opDial       op = "dial"
	opShutdown   op = "shutdown"
	opCopy       op = "copy"
)

// call is the first frame of a stream.
type call struct {
	Op   op     `cbor:"op"`
	Body []byte `cbor:"body,omitempty"`
}

// Kind says what kind of failure a [Failure] is.
type Kind string

// The kinds.
const (
	// Failed is everything that no other kind says.
	Failed Kind = ""
	// NotFound: the command is not there.
	NotFound Kind = "not-found"
	// NotExecutable: it is there and cannot be executed.
	NotExecutable Kind = "not-executable"
	// NoShell: the guest has no shell that could run a command line.
	NoShell Kind = "no-shell"
	// BadUser: the user is not in the guest.
	BadUser Kind = "bad-user"
	// BadDir: the working directory is not there, or is none.
	BadDir Kind = "bad-dir"
	// Exists: something is mounted there already, or set up already.
	Exists Kind = "exists"
	// Unsupported: the guest's kernel lacks what is needed.
	Unsupported Kind = "unsupported"
)

// Failure is what an agent answers to a call that failed. Its text came out of
// the guest: it is for people, who must be shown it harmlessly.
type Failure struct {
	Kind  Kind   `cbor:"kind,omitempty"`
	Text  string `cbor:"text"`
	Errno int    `cbor:"errno,omitempty"`
}

// Error is the agent's text.
func (f *Failure) Error() string { return f.Text }

// Unwrap is the errno, if the guest's kernel said one.
func (f *Failure) Unwrap() error {
	if f.Errno == 0 {
		return nil
	}
	return syscall.Errno(f.Errno)
}

// Failuref makes a failure of a kind. A wrapped errno is kept.
func Failuref(k Kind, format string, args ...any) *Failure {
	return FailureOf(k, fmt.Errorf(format, args...))
}

// Setup is what an agent is told once, before anything else: it mounts the
// export and makes the guest's tree of it.
type Setup struct {
	// Tag is the virtio-fs tag of the export.
	Tag string `cbor:"tag,omitempty"`
	// Export is where the export stands already, instead of Tag.
	Export string `cbor:"export,omitempty"`
	// Root is the directory of the export that is the guest's root, and
	// Workspace the one that stands at Workdir; empty is none.
	Root      string `cbor:"root"`
	Workspace string `cbor:"workspace,omitempty"`
	Workdir   string `cbor:"workdir,omitempty"`
	// Hostname is the guest's name; empty leaves it as it is.
	Hostname string `cbor:"hostname,omitempty"`
	// Clock is the time; zero leaves it as it is.
	Clock time.Time `cbor:"clock,omitempty"`
	// Network configures the guest's network; nil is none but loopback.
	Network *Network `cbor:"network,omitempty"`
	// MaxProcesses bounds the processes of all calls together; 0 is no bound.
	MaxProcesses int64 `cbor:"max_processes,omitempty"`
	// Reserve is how much memory the calls leave to the agent, in bytes.
	Reserve int64 `cbor:"reserve,omitempty"`
	// TmpSize bounds /tmp, in bytes; 0 is the kernel's half of the memory.
	TmpSize int64 `cbor:"tmp_size,omitempty"`
}

// Network is how a guest reaches the network.
type Network struct {
	// Address is the guest's, with the length of its prefix: 192.168.127.2/24.
	Address string `cbor:"address"`
	// Gateway is where everything else goes.
	Gateway string `cbor:"gateway"`
	// DNS are the servers that names are asked from.
	DNS []string `cbor:"dns,omitempty"`
	MTU int      `cbor:"mtu,omitempty"`
}

// Info is what an agent tells of its guest.
type Info struct {
	Version   int    `cbor:"version"`
	Kernel    string `cbor:"kernel"`
	CPUs      int    `cbor:"cpus"`
	Memory    int64  `cbor:"memory"` // bytes in all
	Available int64  `cbor:"available"`
	// Calls is how many commands are at work.
	Calls int `cbor:"calls"`
	// Uptime is how long the kernel has run.
	Uptime time.Duration `cbor:"uptime"`
}

// Size is a terminal's.
type Size struct {
	Rows uint16 `cbor:"rows"`
	Cols uint16 `cbor:"cols"`
}

// Exec asks for a command.
type Exec struct {
	// Argv is the command; the first is looked for in the PATH of Env.
	Argv []string `cbor:"argv,omitempty"`
	// Line is a command line for the guest's shell instead: bash, or sh where
	// there is no bash.
	Line string `cbor:"line,omitempty"`
	// Dir is where it runs: absolute; empty is the root.
	Dir string `cbor:"dir,omitempty"`
	// Env is its environment; PATH, HOME and HOSTNAME are added where
	// they are missing.
	Env []string `cbor:"env,omitempty"`
	// User is "USER[:GROUP]" by name or number; empty is root.
	User string `cbor:"user,omitempty"`
	// TTY gives it a terminal of that size.
	TTY *Size `cbor:"tty,omitempty"`
	// Stdin: standard input follows; else it is empty.
	Stdin bool `cbor:"stdin,omitempty"`
	// Separate keeps standard error apart from standard output.
	Separate bool `cbor:"separate,omitempty"`
	// Background lets live what the command leaves running, until the stream
	// ends.
	Background bool `cbor:"background,omitempty"`
}

// Files asks for the calls on files, which then are spoken on the stream.
type Files struct {
	User string `cbor:"user,omitempty"`
	// Dir is the working directory.
	Dir string `cbor:"dir"`
}

// Copy asks for the process that works on files to copy once, as its arguments
// say; what it says and hears is spoken on the stream.
type Copy struct {
	User string   `cbor:"user,omitempty"`
	Args []string `cbor:"args"`
}

// Mount asks for a directory of the export at a path of the guest.
type Mount struct {
	Name     string `cbor:"name"`
	Path     string `cbor:"path"`
	ReadOnly bool   `cbor:"read_only,omitempty"`
}

// Invalidate asks an agent to look again at what changed.
type Invalidate struct {
	// Paths are absolute paths of the guest; none is all of the export.
	Paths []string `cbor:"paths,omitempty"`
}

type unmountBody struct {
	Path string `cbor:"path"`
}

type clockBody struct {
	Now time.Time `cbor:"now"`
}

type dialBody struct {
	Network string `cbor:"network"`
	Address string `cbor:"address"`
}

type started struct {
	PID int `cbor:"pid"`
}

type exited struct {
	Status uint32 `cbor:"status"`
}

type gone struct {
	// Left: something of it could not be ended.
	Left string `cbor:"left,omitempty"`
}

type taken struct {
	Bytes int `cbor:"bytes"`
}

type signalBody struct {
	Signal int `cbor:"signal"`
}
