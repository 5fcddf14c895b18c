package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"syscall"
)

// Code says what went wrong, for programs. It is an error itself, to be
// compared with errors.Is.
type Code string

// The codes. They are part of the contract: their strings go over the wire.
const (
	NotFound     Code = "not_found"
	IsDirectory  Code = "is_directory"
	NotDirectory Code = "not_directory"
	Exists       Code = "exists"
	Permission   Code = "permission"
	// ReadOnly: the place cannot be written to by anybody.
	ReadOnly Code = "read_only"
	// Timeout: the command ran longer than it was allowed to.
	Timeout Code = "timeout"
	// Canceled: the caller gave up.
	Canceled Code = "canceled"
	// NotSupported: the sandbox lacks it, and says so in [Info.Lacks]; or
	// the file is of a kind that the call cannot work on, such as a FIFO.
	NotSupported Code = "not_supported"
	// Invalid: an argument makes no sense; Offset is the position in it
	// where that can be told.
	Invalid Code = "invalid"
	// InvalidPattern: a glob or a regular expression does not parse; Offset
	// is the position in it.
	InvalidPattern Code = "invalid_pattern"
	// Stale: the file changed since the client last read it, or does not have
	// the digest that was expected.
	Stale Code = "stale"
	// NoMatch: the text to be replaced is not in the file.
	NoMatch Code = "no_match"
	// Ambiguous: the text to be replaced is in the file more than once;
	// Count says how often.
	Ambiguous Code = "ambiguous"
	// Binary: an edit of a file that is not text.
	Binary Code = "binary"
	// TooLarge: a limit that the message names.
	TooLarge Code = "too_large"
	// Loop: too many symbolic links.
	Loop Code = "loop"
	// Limit: the virtual sandbox stopped a command that used more commands,
	// loops, memory or output than it may.
	Limit Code = "limit"
	// Closed: the sandbox was closed.
	Closed Code = "closed"
	// Failed is everything else; the message and the errno tell.
	Failed Code = "failed"
)

func (c Code) Error() string { return strings.ReplaceAll(string(c), "_", " ") }

// Error is the error of a call.
type Error struct {
	Code Code `json:"code"`
	// Op is the call: "read", "bash", …
	Op string `json:"op,omitempty"`
	// Path is the path as the caller gave it, if the error is about one.
	Path string `json:"path,omitempty"`
	// Message says what is wrong, what was expected and what to do next.
	Message string `json:"message"`
	// Offset is a position in the argument, in bytes; -1 is none.
	Offset int `json:"offset"`
	// Count is how often an edit's text was found.
	Count int `json:"count"`
	// Err is the cause; it does not go over the wire.
	Err error `json:"-"`
}

// Error is the operation, the path and the message.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Op != "" {
		b.WriteString(e.Op)
	}
	if e.Path != "" {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(strconv.Quote(e.Path))
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	b.WriteString(e.Message)
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Is finds the code, and the errors of io/fs and context that mean the same.
func (e *Error) Is(target error) bool {
	switch target {
	case e.Code:
		return true
	case fs.ErrNotExist:
		return e.Code == NotFound
	case fs.ErrExist:
		return e.Code == Exists
	case fs.ErrPermission:
		return e.Code == Permission
	case context.Canceled:
		return e.Code == Canceled
	case context.DeadlineExceeded:
		return e.Code == Timeout
	}
	return false
}

// Errorf makes an error of a call.
func Errorf(code Code, op, path, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Op: op, Path: path, Message: err.Error(), Offset: -1, Err: errors.Unwrap(err)}
}

// CodeOf is the code of err: "" for nil, [Failed] for an error of another kind.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Failed
}

// errnoCodes says what the operating system means.
var errnoCodes = map[syscall.Errno]Code{
	syscall.ENOENT: NotFound, syscall.EISDIR: IsDirectory, syscall.ENOTDIR: NotDirectory, syscall.EEXIST: Exists,
	syscall.EACCES: Permission, syscall.EPERM: Permission, syscall.EROFS: ReadOnly, syscall.ETIMEDOUT: Timeout,
	syscall.EOPNOTSUPP: NotSupported, syscall.ENOSYS: NotSupported, syscall.EINVAL: Invalid, syscall.ELOOP: Loop,
	syscall.ENAMETOOLONG: Invalid, syscall.EFBIG: TooLarge,
}

// Wrap makes the error of a call of what the operating system or a context
// said; nil stays nil, and an [*Error] gets what it lacks of op and path.
func Wrap(op, path string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		out := *e
		if out.Op == "" {
			out.Op = op
		}
		if out.Path == "" {
			out.Path = path
		}
		return &out
	}
	out := &Error{Code: Failed, Op: op, Path: path, Message: err.Error(), Offset: -1, Err: err}
	var errno syscall.Errno
	switch {
	case errors.Is(err, context.Canceled):
		out.Code, out.Message = Canceled, "the call was canceled"
	case errors.Is(err, context.DeadlineExceeded):
		out.Code, out.Message = Timeout, "the call's time is over"
	case errors.As(err, &errno):
		out.Message = errno.Error()
		if c, ok := errnoCodes[errno]; ok {
			out.Code = c
		}
	case errors.Is(err, fs.ErrNotExist):
		out.Code = NotFound
	case errors.Is(err, fs.ErrExist):
		out.Code = Exists
	case errors.Is(err, fs.ErrPermission):
		out.Code = Permission
	}
	return out
}
