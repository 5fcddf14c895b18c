package overlay

import (
	"errors"
	"fmt"
	"syscall"
)

// Errors that callers test with errors.Is. Everything else wraps the errno of
// the host call that failed; [Errno] finds it.
var (
	// ErrCorrupt: a record, index or layer does not hold what it must. The
	// message names the file and what was expected.
	ErrCorrupt = errors.New("damaged state")
	// ErrFormat: a record is of a newer format than this program knows.
	ErrFormat = errors.New("unknown format version")
	// ErrDrifted: the base no longer has what a node refers to.
	ErrDrifted = fmt.Errorf("changed on the host: %w", syscall.ESTALE)
)

// Errno is the errno that a face answers for err: the innermost one wrapped in
// it, or EIO when there is none. It is 0 for nil.
func Errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return syscall.EIO
}
