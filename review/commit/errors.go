package commit

import (
	"errors"
	"fmt"
	"strings"

	"github.com/galleyfs/galley/review"
)

var (
	// ErrLocked: another commit or recovery works on the same base.
	ErrLocked = errors.New("another commit works on this base")
	// ErrNoCommit: the directory holds no commit.
	ErrNoCommit = errors.New("no commit there")
	// ErrUnfinished: a commit must be recovered before it can be settled.
	ErrUnfinished = errors.New("the commit is not finished")
	// ErrUnsupported: the base's file system lacks a call without which no
	// commit is safe.
	ErrUnsupported = errors.New("the file system cannot do what a safe commit needs")
)

// Drifted is one base path that is not what the session saw.
type Drifted struct {
	Tree, Path string
	Kind       review.DriftKind
	// Text says what happened, without the path; plain ASCII.
	Text string
}

// DriftError refuses a commit: the base changed on the host beneath the change
// set. The base is as it was before the call.
type DriftError struct {
	Paths []Drifted
}

func (e *DriftError) Error() string {
	var b strings.Builder
	paths := "paths"
	if len(e.Paths) == 1 {
		paths = "path"
	}
	fmt.Fprintf(&b, "the base changed on the host at %d %s of this change set, nothing was committed", len(e.Paths), paths)
	for i, p := range e.Paths {
		if i == 5 {
			fmt.Fprintf(&b, "; and %d more", len(e.Paths)-i)
			break
		}
		fmt.Fprintf(&b, "; %q: %s", p.Path, p.Text)
	}
	return b.String()
}

// ContentError refuses a commit: the sealed content is not what the change set
// says, so it is not what was reviewed. The base is as it was.
type ContentError struct {
	Tree, Path string
	Text       string
}

func (e *ContentError) Error() string {
	return fmt.Sprintf("%q is not what was reviewed: %s; nothing was committed, review the session again", e.Path, e.Text)
}

// InterruptedError: the commit failed after its first visible step, and could
// not be taken back either. The journal in Dir knows how to go on: [Recover].
type InterruptedError struct {
	Dir    string // the commit's directory
	Cause  error  // why the commit stopped
	Revert error  // why it could not be taken back
}

func (e *InterruptedError) Error() string {
	return fmt.Sprintf("commit interrupted (%v) and not yet taken back (%v): run \"galley recover\"", e.Cause, e.Revert)
}

// Unwrap gives both causes.
func (e *InterruptedError) Unwrap() []error { return []error{e.Cause, e.Revert} }

// ConflictError: a recovery met paths that hold neither what was there before
// the commit nor what the commit put there. Nothing of those was touched.
type ConflictError struct {
	Dir   string
	Paths []Drifted
}

func (e *ConflictError) Error() string {
	var b strings.Builder
	b.WriteString("the host changed what an interrupted commit was working on")
	for i, p := range e.Paths {
		if i == 5 {
			fmt.Fprintf(&b, "; and %d more", len(e.Paths)-i)
			break
		}
		fmt.Fprintf(&b, "; %q: %s", p.Path, p.Text)
	}
	b.WriteString("; move your own version of these aside and run \"galley recover\" again")
	return b.String()
}
