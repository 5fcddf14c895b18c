package httpapi

import (
	"encoding/json"
	"io/fs"
	"time"

	"github.com/galleyfs/galley/sandbox"
)

// The bodies of requests and answers, where they differ from the contract's
// own types: times are milliseconds, modes are the octal bits of Unix, and what
// a Go program hands over as a reader is bytes. Bytes are base64 in JSON.

// FileInfo is [sandbox.FileInfo].
type FileInfo struct {
	Path    string    `json:"path"`
	Type    string    `json:"type" jsonschema:"file, directory, symlink, fifo, socket, device or other"`
	Mode    uint32    `json:"mode" jsonschema:"permission bits with set-user-ID, set-group-ID and sticky, as chmod(2) has them"`
	Size    int64     `json:"size"`
	ModTime time.Time `json:"mod_time"`
	UID     uint32    `json:"uid"`
	GID     uint32    `json:"gid"`
	Nlink   uint32    `json:"nlink"`
	Ino     uint64    `json:"ino"`
	Target  string    `json:"target,omitempty" jsonschema:"what a symbolic link says"`
}

func infoOf(i sandbox.FileInfo) FileInfo {
	out := FileInfo{Path: i.Path, Mode: uint32(i.Mode.Perm()), Size: i.Size, ModTime: i.ModTime, UID: i.UID, GID: i.GID, Nlink: i.Nlink, Ino: i.Ino, Target: i.Target}
	for bit, mode := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if i.Mode&bit != 0 {
			out.Mode |= mode
		}
	}
	switch m := i.Mode; {
	case m.IsRegular():
		out.Type = "file"
	case m.IsDir():
		out.Type = "directory"
	case m&fs.ModeSymlink != 0:
		out.Type = "symlink"
	case m&fs.ModeNamedPipe != 0:
		out.Type = "fifo"
	case m&fs.ModeSocket != 0:
		out.Type = "socket"
	case m&fs.ModeDevice != 0:
		out.Type = "device"
	default:
		out.Type = "other"
	}
	return out
}

// ReadResult is [sandbox.ReadResult].
type ReadResult struct {
	Content    []byte   `json:"content"`
	Info       FileInfo `json:"info"`
	FirstLine  int      `json:"first_line"`
	LineCount  int      `json:"line_count"`
	TotalLines int      `json:"total_lines" jsonschema:"-1 where the file is too large to count"`
	Truncated  bool     `json:"truncated,omitempty"`
	Digest     string   `json:"digest,omitempty"`
}

// WriteRequest is [sandbox.WriteRequest].
type WriteRequest struct {
	Path    string `json:"path"`
	Content []byte `json:"content"`
	Mode    uint32 `json:"mode,omitempty" jsonschema:"permission bits of a new file; default 0666 less the umask"`
	New     bool   `json:"new,omitempty" jsonschema:"refuse with exists where the path is there already"`
	Digest  string `json:"digest,omitempty" jsonschema:"refuse as stale unless the file has this digest"`
	Client  string `json:"client,omitempty" jsonschema:"who writes: refuse as stale what this client read and changed since"`
}

// EditRequest is [sandbox.EditRequest].
type EditRequest struct {
	sandbox.EditRequest
	Contents bool `json:"contents,omitempty" jsonschema:"return the whole content before and after, too"`
}

// EditResult is [sandbox.EditResult].
type EditResult struct {
	Count  int    `json:"count" jsonschema:"how many occurrences were found, and, without an error, replaced"`
	Line   int    `json:"line" jsonschema:"of the first"`
	Digest string `json:"digest"`
	Path   string `json:"path"`
	Before []byte `json:"before,omitempty"`
	After  []byte `json:"after,omitempty"`
}

func (r EditRequest) result(e sandbox.EditResult) *EditResult {
	out := &EditResult{Count: e.Count, Line: e.Line, Digest: e.Digest, Path: e.Path}
	if r.Contents {
		out.Before, out.After = e.Before, e.After
	}
	return out
}

// ListResult is [sandbox.ListResult].
type ListResult struct {
	Entries   []FileInfo `json:"entries"`
	Truncated bool       `json:"truncated,omitempty"`
}

// ExecRequest is [sandbox.BashRequest].
type ExecRequest struct {
	Command   string            `json:"command" jsonschema:"what bash -c gets; nothing of an earlier command lives on but files"`
	Dir       string            `json:"dir,omitempty"`
	Env       map[string]string `json:"env,omitempty"`
	TimeoutMS int64             `json:"timeout_ms,omitempty" jsonschema:"default two minutes; none for a background process"`
	Stdin     []byte            `json:"stdin,omitempty"`
	OpenStdin bool              `json:"open_stdin,omitempty" jsonschema:"of a background process: leave standard input open to be written to"`
	Separate  bool              `json:"separate,omitempty" jsonschema:"keep standard output and error apart"`
	MaxOutput int               `json:"max_output,omitempty" jsonschema:"how many bytes of output the result keeps, head and tail (default 1 MiB)"`
	PTY       *sandbox.Terminal `json:"pty,omitempty"`
}

func (r ExecRequest) bash() (sandbox.BashRequest, error) {
	if r.TimeoutMS < 0 || r.TimeoutMS > sandbox.MaxTimeout.Milliseconds() {
		return sandbox.BashRequest{}, sandbox.Errorf(sandbox.Invalid, "exec", "", "timeout_ms is %d; expected up to %d", r.TimeoutMS, sandbox.MaxTimeout.Milliseconds())
	}
	return sandbox.BashRequest{
		Command: r.Command, Dir: r.Dir, Env: r.Env, Timeout: time.Duration(r.TimeoutMS) * time.Millisecond, OpenStdin: r.OpenStdin,
		Separate: r.Separate, MaxOutput: r.MaxOutput, PTY: r.PTY,
	}, nil
}

// ExecResult is [sandbox.BashResult].
type ExecResult struct {
	Output     []byte `json:"output,omitempty" jsonschema:"both streams in the order of their arrival; stdout and stderr instead when separate was set"`
	Stdout     []byte `json:"stdout,omitempty"`
	Stderr     []byte `json:"stderr,omitempty"`
	Dropped    int64  `json:"dropped,omitempty" jsonschema:"bytes that are missing behind head"`
	Head       int    `json:"head,omitempty"`
	DroppedErr int64  `json:"dropped_err,omitempty"`
	HeadErr    int    `json:"head_err,omitempty"`
	ExitCode   int    `json:"exit_code" jsonschema:"128+n when signal n ended it"`
	Signal     string `json:"signal,omitempty"`
	DurationMS int64  `json:"duration_ms"`
	// Error is why it was ended: timeout, canceled, limit, closed.
	Error *sandbox.Error `json:"error,omitempty" jsonschema:"why it was ended: timeout, canceled, limit or closed"`
}

func execOf(r sandbox.BashResult, err error) *ExecResult {
	out := &ExecResult{
		Output: r.Output, Stdout: r.Stdout, Stderr: r.Stderr, Dropped: r.Dropped, Head: r.Head, DroppedErr: r.DroppedErr, HeadErr: r.HeadErr,
		ExitCode: r.ExitCode, Signal: r.Signal, DurationMS: r.Duration.Milliseconds(),
	}
	if err != nil {
		out.Error = errorOf(err)
	}
	return out
}

// ExecEvent is a line of a streamed exec: a piece of output, or, as the last
// line, the result.
type ExecEvent struct {
	Stream string      `json:"stream,omitempty" jsonschema:"stdout or stderr; stdout for both unless separate was set"`
	Data   []byte      `json:"data,omitempty"`
	Result *ExecResult `json:"result,omitempty" jsonschema:"in the last line; its output is empty, since all of it was streamed"`
}

// ProcessInfo names a background process.
type ProcessInfo struct {
	ID string `json:"id"`
}

// ProcessList lists the background processes, the oldest first.
type ProcessList struct {
	Processes []ProcessInfo `json:"processes"`
}

// PollRequest asks for what a background process has put out.
type PollRequest struct {
	WaitMS int64 `json:"wait_ms,omitempty" jsonschema:"how long to wait for output or the end, up to a minute"`
}

// StdinRequest writes to the standard input of a background process.
type StdinRequest struct {
	Data  []byte `json:"data,omitempty"`
	Close bool   `json:"close,omitempty" jsonschema:"end the input after that"`
}

// SignalRequest sends a signal to a background process.
type SignalRequest struct {
	Signal string `json:"signal" jsonschema:"a name, such as INT or SIGTERM"`
}

// ResizeRequest sets the size of a terminal.
type ResizeRequest struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Done is the answer where there is nothing to tell.
type Done struct{}

// ToolInfo describes a tool.
type ToolInfo struct {
	Name        string          `json:"name"`
	Description string          `json:"description"`
	ReadOnly    bool            `json:"read_only"`
	Input       json.RawMessage `json:"input" jsonschema:"a JSON schema"`
	Output      json.RawMessage `json:"output" jsonschema:"a JSON schema"`
}

// ToolList lists the tools.
type ToolList struct {
	Tools []ToolInfo `json:"tools"`
}

// ToolResult is what a tool gives back.
type ToolResult struct {
	Failed bool            `json:"failed"`
	Code   string          `json:"code,omitempty"`
	Text   string          `json:"text" jsonschema:"for a model"`
	Data   json.RawMessage `json:"data,omitempty" jsonschema:"for a program, as the tool's output schema says"`
	Image  *Image          `json:"image,omitempty"`
}

// Image is a picture that a tool read.
type Image struct {
	MIME string `json:"mime"`
	Data []byte `json:"data"`
}

// Failure is the body of an answer that is an error.
type Failure struct {
	Error *sandbox.Error `json:"error"`
	// Edit is what was found by an edit that was refused with no_match or
	// ambiguous.
	Edit *EditResult `json:"edit,omitempty" jsonschema:"of an edit that was refused with no_match or ambiguous: what was found"`
}

// editFailure is an edit that was refused.
type editFailure struct {
	error
	edit *EditResult
}

func (e *editFailure) Unwrap() error { return e.error }
