package sandbox

import (
	"io"
	"time"
)

// Limits of commands.
const (
	// BashTimeout is how long a Bash may take unless it says otherwise, and
	// MaxTimeout the longest it may ask for.
	BashTimeout = 2 * time.Minute
	MaxTimeout  = 24 * time.Hour
	// OutputLimit is how many bytes of output a result keeps by default, and
	// MaxOutput the most.
	OutputLimit = 1 << 20
	MaxOutput   = 64 << 20
	// MaxCommand is how long a command may be, in bytes, and MaxEnv all the
	// variables of one request together.
	MaxCommand = 1 << 20
	MaxEnv     = 1 << 20
)

// BashRequest is a command for bash. Nothing of an earlier command lives on but
// files: not its directory, variables or functions.
type BashRequest struct {
	// Command is what bash -c gets. [Invalid] when empty or with a NUL byte.
	Command string `json:"command"`
	// Dir is where it runs; default: the working directory. It must exist.
	Dir string `json:"dir,omitempty"`
	// Env is added to the sandbox's environment, which is not the caller's:
	// PATH, HOME, USER, LOGNAME, SHELL, LANG, LC_ALL, LC_CTYPE, TZ and TMPDIR
	// as far as they are set, with TERM=dumb, PAGER=cat and GIT_PAGER=cat.
	// Names match ^[A-Za-z_][A-Za-z0-9_]*$; values have no NUL.
	Env map[string]string `json:"env,omitempty"`
	// Timeout ends the command with its whole process tree; the error is then
	// [Timeout] and the result has the output so far. 0 is [BashTimeout] for
	// Bash and none for Start; more than [MaxTimeout] and less than 0 are
	// [Invalid].
	Timeout time.Duration `json:"timeout,omitempty"`

	// Stdin is read until its end, or until the command's. nil is an empty
	// input. A terminal gets the bytes as if typed.
	Stdin io.Reader `json:"-"`
	// OpenStdin leaves the standard input of a background process open for
	// [Process.Write]; Stdin must then be nil.
	OpenStdin bool `json:"open_stdin,omitempty"`

	// OnOutput gets the output while it comes, one call at a time. A slow one
	// holds the command up. It must not keep the slice. Only with Separate
	// does it tell the streams apart; else they are one, so that their order
	// is kept, and Stream is Stdout.
	OnOutput func(o Output) `json:"-"`
	// OnStart is told, once it runs, what identifies the command's process tree
	// for [snapshots.SealOptions.Calls]; a sandbox without such an identity does
	// not call it. It must not wait.
	OnStart func(tree string) `json:"-"`
	// Separate keeps standard output and error apart in the result.
	Separate bool `json:"separate,omitempty"`
	// MaxOutput is how many bytes the result keeps, of each stream where they
	// are separate: the first half and the last. 0 is [OutputLimit]. OnOutput
	// gets everything.
	MaxOutput int `json:"max_output,omitempty"`

	// PTY runs the command on a terminal of its own, which has standard input,
	// output and error in one.
	PTY *Terminal `json:"pty,omitempty"`
}

// Terminal describes a terminal.
type Terminal struct {
	Rows uint16 `json:"rows,omitempty"` // default 24
	Cols uint16 `json:"cols,omitempty"` // default 80
	// Term is the variable TERM; default "xterm-256color".
	Term string `json:"term,omitempty"`
}

// Stream tells standard output from standard error.
type Stream int

// The streams.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// Output is a piece of output.
type Output struct {
	Stream Stream
	Data   []byte
}

// BashResult is how a command ended.
type BashResult struct {
	// Output is both streams in the order of their arrival; Stdout and Stderr
	// are used instead when Separate was set.
	Output []byte `json:"output,omitempty"`
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
	// Dropped counts bytes that are missing between the head and the tail,
	// DroppedErr those of Stderr. Head and HeadErr are where they are missing.
	Dropped    int64 `json:"dropped,omitempty"`
	Head       int   `json:"head,omitempty"`
	DroppedErr int64 `json:"dropped_err,omitempty"`
	HeadErr    int   `json:"head_err,omitempty"`
	// ExitCode is the shell's status; 128+n when signal n ended it.
	ExitCode int `json:"exit_code"`
	// Signal is the name of the signal that ended the shell, such as
	// "SIGKILL".
	Signal   string        `json:"signal,omitempty"`
	Duration time.Duration `json:"duration"`
}
