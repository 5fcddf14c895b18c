// Package local runs a program in namespaces of its own, where views that
// somebody else serves stand at given paths and the rest of the host can be
// read and not written. It is what stands behind `galley run`.
//
// # What the program sees
//
// The program keeps the host's paths, users, network and terminal. Every other
// way to act on the host is closed, as design.md's "Sandboxes" demands:
//
//   - the host's file systems are there, read-only, without set-user-ID and
//     without devices;
//   - each [View] stands at its own absolute path;
//   - /tmp, /var/tmp, /run and /dev/shm are empty file systems in memory that end with the
//     program; /dev holds the harmless devices only; /proc shows the program's
//     own processes, and what of /proc and /sys would change or tell on the
//     host's kernel is read-only or masked;
//   - sockets of the host are out of reach unless [Config.AllowSockets] names
//     them; abstract ones through Landlock, where the kernel can;
//   - no capability that acts on the kernel, no new privileges, no input
//     pushed into the terminal.
//
// # Who is who
//
// The caller of [Run] starts its own executable again as the supervisor: the
// first process (pid 1) of the new pid namespace. [Init], which a program
// calls first thing in main, is where the supervisor takes over. The
// supervisor builds the namespaces, mounts the views, starts the command with
// fewer rights than it keeps itself, passes signals and job control on, and
// ends every process of the sandbox when the command ends. It talks with the
// caller over one socket pair (see wire.go); when the caller dies, the kernel
// ends the supervisor and with it all the rest.
//
// This package knows neither the engine nor FUSE's protocol: a view is an
// opened /dev/fuse that [View.Serve] hands to whoever answers it.
package local

import (
	"context"
	"os"
	"syscall"
)

// A View is one tree that stands in the sandbox.
type View struct {
	// Path is the absolute, clean path at which the view stands, the same
	// inside and on the host. It must be a directory of the host, lie
	// beneath /tmp, /var/tmp or /run (where it is made), or beneath another
	// view that has such a directory.
	Path string

	// Source and Subtype are what mountinfo says of the mount: the name of
	// what is mounted (default "galley") and the S of type fuse.S
	// (default "galley").
	Source, Subtype string

	// ReadOnly makes the kernel refuse every write through this view.
	ReadOnly bool

	// MaxRead is the mount option max_read in bytes; 0 leaves it out.
	MaxRead int

	// Serve hands the descriptor of the mount's /dev/fuse to whoever serves
	// it and returns when that one has taken it. The file belongs to Serve,
	// which closes it, or keeps it for as long as it serves: while a copy
	// of the descriptor is open in some process, the mount waits for
	// answers, so that no process that does not serve may keep one. Serve
	// is called from a goroutine of its own for each view, once per Run.
	Serve func(ctx context.Context, dev *os.File) error `json:"-"`
}

// Config says what to run and what it sees. The zero value of every field is
// the strict choice.
type Config struct {
	// Command is the program and its arguments. A name without a slash is
	// looked for in PATH of Env, inside the sandbox.
	Command []string

	// Dir is the absolute working directory, inside the sandbox.
	Dir string

	// Env is the whole environment, as os.Environ gives it. TMPDIR is set to
	// /tmp where it names a directory that cannot be written in the sandbox.
	Env []string

	// Views are the trees that stand in the sandbox, in any order.
	Views []View

	// Stdin, Stdout and Stderr are the command's own; nil is /dev/null.
	// No other descriptor of the caller reaches the command.
	Stdin, Stdout, Stderr *os.File

	// AllowSockets are absolute paths of sockets of the host that the command
	// may connect to, such as /run/docker.sock. A path that does not exist is
	// an error.
	AllowSockets []string

	// AllowAbstractSockets leaves the host's abstract sockets (names that
	// start with @, such as X11's) within reach. The kernel cannot allow
	// them one by one.
	AllowAbstractSockets bool

	// HostTmp leaves /tmp and /var/tmp of the host in place, to be written
	// to, with what sockets are created there later on. Without it both are
	// private and empty.
	HostTmp bool

	// Caches are absolute paths of directories, usually in the home (see
	// [DefaultCaches]), that the command may write to as it likes: what it
	// writes stays in memory and is dropped at the end, what the host has
	// there shows through. A path that does not exist on the host is passed
	// over.
	Caches []string

	// Hide are absolute paths of the host, files or directories, that show
	// as empty and cannot be entered: Galley's own state above all. A path
	// that does not exist is passed over.
	Hide []string
}

// Result says how the command ended.
type Result struct {
	// Code is what the caller should exit with: the command's own exit
	// status; 128+n when signal n ended it; 127 when it was not found, 126
	// when it could not be executed (Run then also returns an error).
	Code int

	// Signal is the signal that ended the command, 0 when it exited.
	Signal syscall.Signal

	// CoreDumped says that the signal left a core file.
	CoreDumped bool
}
