package guest

import (
	"errors"
	"syscall"
)

// FailureOf makes an error a failure of a kind, unless it is one already.
func FailureOf(k Kind, err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	f = &Failure{Kind: k, Text: err.Error()}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		f.Errno = int(errno)
	}
	if len(f.Text) > maxText {
		f.Text = f.Text[:maxText] + "…"
	}
	return f
}

// maxText is how much of an error's text is told.
const maxText = 8 << 10
