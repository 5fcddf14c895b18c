package snapshots

import "errors"

// Errors that callers test with errors.Is. A damaged manifest wraps
// overlay.ErrCorrupt, and one of a newer version overlay.ErrFormat.
var (
	// ErrNotFound: no session, snapshot or element of the trash has that
	// name or id.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name is taken.
	ErrExists = errors.New("exists already")
	// ErrBusy: another process has the session open.
	ErrBusy = errors.New("in use")
	// ErrBadBase: the directory cannot be the base of a tree.
	ErrBadBase = errors.New("cannot be a base")
	// ErrBadName: a name that a session, tree or snapshot cannot have.
	ErrBadName = errors.New("not a valid name")
)
