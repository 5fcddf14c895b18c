// Package sandbox is the contract between tools and the place where they land.
//
// A tool reads, writes, edits, searches and runs commands through a [Sandbox]
// and does not know where that is: on the host in namespaces (sandbox/local),
// in an interpreter with no process at all (sandbox/virtual), in a virtual
// machine or a pod. What a call means, its defaults, limits and errors are the
// same in each, and sandbox/sandboxtest holds them to it.
//
// # Paths
//
// A path is absolute, or relative to the working directory. It means what it
// means to a program inside: symbolic links are followed in the view, ".." of
// the root is the root, and nothing on the host is reached that the view does
// not show. An empty path, a NUL byte and invalid UTF-8 are [Invalid], with
// the offset of the byte. Paths in results are absolute, unless a method says
// otherwise, and hold the bytes that the file system has, which need not be
// UTF-8: whoever shows them escapes them.
//
// # Errors
//
// An error of a call is an [*Error] whose [Code] says what happened;
// errors.Is(err, sandbox.NotFound) asks for one. Where the operating system
// said so, the errno and io/fs's errors are found in it, too. A call that
// fails has changed nothing, except that a command may have run.
//
// # Concurrency
//
// All methods may be called at the same time and do not wait for each other: a
// command that runs for an hour delays no read. Cancelling the context of a
// call ends it, a command with its whole process tree; the error is then
// [Canceled].
//
// # Authority
//
// A Sandbox holds no way to commit: nothing that is handed to an agent does.
package sandbox

import (
	"context"
	"syscall"
	"time"
)

// Sandbox is one running sandbox.
type Sandbox interface {
	// Info says what the sandbox is and what it lacks. It never changes.
	Info() Info

	// Read returns the content of a file, or lines of it.
	Read(ctx context.Context, r ReadRequest) (ReadResult, error)
	// Write makes a file or replaces its content, atomically: another
	// process sees the old content or the new, never a part. Missing parents
	// are made. A file keeps its mode and owner, and a symbolic link stays
	// one: what it leads to is written.
	Write(ctx context.Context, r WriteRequest) (WriteResult, error)
	// Edit replaces text in a file, as atomically as Write.
	Edit(ctx context.Context, r EditRequest) (EditResult, error)
	// Stat tells of one file.
	Stat(ctx context.Context, r StatRequest) (FileInfo, error)
	// List lists a directory, sorted by name.
	List(ctx context.Context, r ListRequest) (ListResult, error)
	// Glob finds files by a pattern of their paths.
	Glob(ctx context.Context, r GlobRequest) (GlobResult, error)
	// Grep finds lines by a regular expression.
	Grep(ctx context.Context, r GrepRequest) (GrepResult, error)

	// Bash runs a command and returns when its shell has exited; what it
	// left running is then killed. A status other than 0 is no error. On
	// Timeout and Canceled the result holds the output so far.
	Bash(ctx context.Context, r BashRequest) (BashResult, error)
	// Start starts a command in the background and returns at once. It runs
	// until it ends, is killed, or the sandbox is closed, whatever becomes of
	// ctx; what its shell leaves running lives on until then. Its Timeout is
	// by default none.
	Start(ctx context.Context, r BashRequest) (Process, error)
	// Process finds a background process by its id, also one that has ended
	// and was not yet released ([Process.Release]).
	Process(id string) (Process, error)
	// Processes lists the background processes, the oldest first.
	Processes() []Process

	// Mount shows a directory of the host in the running sandbox.
	Mount(ctx context.Context, r MountRequest) (MountResult, error)

	// Close ends every process and gives everything back. The session and
	// its changes stay. Calls that are under way end with [Closed], and so do
	// later ones.
	Close() error
}

// Info describes a sandbox.
type Info struct {
	// Kind is "local", "virtual", "microvm" or "kubernetes".
	Kind string `json:"kind"`
	// Session is the name of the session that takes the writes.
	Session string `json:"session,omitempty"`
	// Workdir is the absolute directory that relative paths start from and
	// where commands run unless they say otherwise.
	Workdir string `json:"workdir"`
	// TempDir is an absolute directory that can be written to, lives as long
	// as the sandbox and is part of no change set.
	TempDir string `json:"temp_dir"`
	// Network says what commands can reach: "host" or "none".
	Network string `json:"network"`
	// Lacks lists what the sandbox answers with [NotSupported]. Only the
	// virtual sandbox may lack anything, and only these.
	Lacks []Feature `json:"lacks,omitempty"`
}

// Has reports whether the sandbox has a feature.
func (i Info) Has(f Feature) bool {
	for _, l := range i.Lacks {
		if l == f {
			return false
		}
	}
	return true
}

// Feature is something that a sandbox may declare to lack.
type Feature string

// What a sandbox may lack.
const (
	// PTY: commands on a terminal ([BashRequest.PTY], [Process.Resize]).
	PTY Feature = "pty"
	// Signals: [Process.Signal] with other signals than SIGKILL and SIGTERM,
	// both of which end the process everywhere.
	Signals Feature = "signals"
	// Binaries: programs of the host or of an image. Without it only the
	// commands that the sandbox brings along can run; another one is a status
	// of 127 and not an error of the call.
	Binaries Feature = "binaries"
)

// Process is a command that runs in the background.
type Process interface {
	// ID names the process in its sandbox; it is never given twice.
	ID() string
	// Poll returns what the process has put out since the last Poll, and
	// how it is. It waits up to wait for output or the end when there is
	// neither; 0 does not wait. Output that nobody polls is kept up to
	// [BashRequest.MaxOutput], its head and its tail.
	Poll(ctx context.Context, wait time.Duration) (ProcessState, error)
	// Wait waits for the end and returns all that was kept of the output,
	// whether polled or not.
	Wait(ctx context.Context) (BashResult, error)
	// Write sends bytes to its standard input, which must have been asked
	// for with [BashRequest.OpenStdin] or a PTY.
	Write(ctx context.Context, b []byte) error
	// CloseStdin ends its standard input; on a PTY it types the end-of-file
	// character.
	CloseStdin() error
	// Signal sends a signal to the process group of the shell. One that has
	// ended answers [NotFound].
	Signal(sig syscall.Signal) error
	// Resize sets the size of its terminal.
	Resize(rows, cols uint16) error
	// Kill ends the whole process tree and returns when it is gone. It is
	// no error that it has ended already.
	Kill() error
	// Release forgets a process that has ended; one that runs is killed.
	Release() error
}

// ProcessState is what [Process.Poll] returns.
type ProcessState struct {
	// Output is both streams in the order of their arrival; Stdout and Stderr
	// are used instead when [BashRequest.Separate] was set.
	Output []byte `json:"output,omitempty"`
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
	// Dropped counts bytes that are missing because nobody polled in time.
	Dropped int64 `json:"dropped,omitempty"`
	// Running is false when the shell has exited.
	Running bool `json:"running"`
	// ExitCode and Signal are as in [BashResult], once Running is false.
	ExitCode int    `json:"exit_code"`
	Signal   string `json:"signal,omitempty"`
}
