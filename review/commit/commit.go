package commit

import (
	"context"
	"log/slog"
	"os"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/review"
)

// Tree says where the base of one tree of a change set is.
type Tree struct {
	// Name as in [review.Change.Tree].
	Name string
	// BasePath is the absolute path of the base's root, as a person named
	// it: links in it are followed, once, when it is opened.
	BasePath string
	// BaseID is what the base's root was when the session began. Unless
	// zero, another directory at BasePath refuses the commit.
	BaseID overlay.HostID
}

// Source gives the content that changes put in place.
type Source interface {
	// Open gives a descriptor to read a regular file's new content from,
	// from offset 0, and a function that gives it back. It is called
	// from several goroutines.
	Open(c *review.Change) (fd int, release func(), err error)
}

// ChangeSetSource reads the content through the change set itself, whose views
// must be of sealed layers and still open.
func ChangeSetSource(cs *review.ChangeSet) Source { return changeSetSource{cs} }

type changeSetSource struct{ cs *review.ChangeSet }

func (s changeSetSource) Open(c *review.Change) (int, func(), error) {
	content, err := s.cs.OpenNew(c)
	if err != nil {
		return -1, nil, err
	}
	fd, release, err := content.FD()
	if err != nil {
		content.Close()
		return -1, nil, err
	}
	return fd, func() { release(); content.Close() }, nil
}

// KeepReplaced says what becomes of what a commit replaced or deleted.
type KeepReplaced int

const (
	// KeepAuto keeps it below the commit's directory where that costs one
	// rename (the same file system), and removes it otherwise.
	KeepAuto KeepReplaced = iota
	// KeepNever removes it.
	KeepNever
)

// Progress is how far a commit has come.
type Progress struct {
	// Phase is "check", "stage", "sync" or "apply".
	Phase string
	// Done of Total changes.
	Done, Total int
}

// Config is what [Apply] works with.
type Config struct {
	// FS is the host; nil is hostfs.OS.
	FS hostfs.FS
	// Trees are the bases, at least of the trees that the plan touches.
	Trees []Tree
	// Source of new content.
	Source Source
	// CommitDir is where the journal lives: a directory of its own in the
	// session, which is made (mode 0700) and must not hold anything.
	CommitDir string
	// LockDir is where the lock of each base lives; it is made if need be.
	// All who commit should name the same one.
	LockDir string
	// StageDir is a directory on the file system of the first tree's base in
	// which to stage, instead of the default: beside the base, or in its
	// root where that is not possible.
	StageDir string
	// Keep what is replaced, for undo.
	Keep KeepReplaced
	// Leaving are the layer entries that the session should drop once the
	// commit stands, as [review.ChangeSet.Dropped] lists them. They are kept in
	// the journal, for whoever tells the session after a crash.
	Leaving []review.TreePath
	// Before is called once the base was found to be as the plan expects, before
	// anything is staged: for those who need what is going to be replaced. Its
	// error ends the commit. It may be nil.
	Before func(ctx context.Context) error
	// Progress is told how far the commit is; it may be nil. It is called
	// from the goroutine that called Apply.
	Progress func(Progress)
	// Log may be nil.
	Log *slog.Logger

	// workers stage content; 0 is as many as there are processors, at most
	// four. Tests that count calls set 1.
	workers int
	// unprivileged makes root go the way of an ordinary user.
	unprivileged bool
}

func (c *Config) fs() hostfs.FS {
	if c.FS == nil {
		return hostfs.OS
	}
	return c.FS
}

func (c *Config) log() *slog.Logger {
	if c.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Log
}

func (c *Config) privileged() bool { return os.Geteuid() == 0 && !c.unprivileged }

// Applied is one change that is in the base now.
type Applied struct {
	Tree string
	// Path in the view, or for a deletion in the base.
	Path string
	Kind review.Kind
	// ID is the host's identity of what stands at Path now; zero for a
	// deletion.
	ID overlay.HostID
}

// Result is what a commit did.
type Result struct {
	// Digest of the change set.
	Digest review.Digest
	// Applied lists every change that is in the base now, in the order of the
	// change set.
	Applied []Applied
	// Leaving is that of the [Config].
	Leaving []review.TreePath
	// Skipped are changes that were left out, Dropped privileges that were
	// stripped or that this user or file system cannot give.
	Skipped, Dropped []Note
	// BrokenLinks are base files that had other names: the path is a file of
	// its own now, and the other names keep the old content.
	BrokenLinks []Note
	// Stages are the directories that content was staged in; they are gone.
	Stages []string
	// Replaced is the directory that holds what the commit replaced, ""
	// where it was not kept.
	Replaced string
}

// Note tells something about one path.
type Note struct {
	Tree, Path string
	// What is a short text for people, plain ASCII.
	What string
}
