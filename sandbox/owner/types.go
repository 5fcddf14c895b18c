package owner

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
)

// ErrNoOwner: the session has no owner process.
var ErrNoOwner = errors.New("session is not live")

// Command is the hidden argument with which the galley program is started as
// an owner.
const Command = "__owner"

// Options configures [Ensure].
type Options struct {
	// Exe is the program to start, with [Command] as its first argument;
	// empty is the running program.
	Exe string
	// HidePaths are directories, such as mount points, that no view shows.
	// They count only where the owner is started by this call.
	HidePaths []string
	// What tells status for whom the lease is held.
	What string
	// Log gets what is worth knowing; nil discards it.
	Log *slog.Logger
}

// Controller seals a session, rolls it back and moves entries out of its layers:
// either the
// session's owner, asked by a [Client], or a [snapshots.Live] in this process.
type Controller interface {
	Seal(ctx context.Context, opt snapshots.SealOptions) (snapshots.Snapshot, error)
	Committed(ctx context.Context, c snapshots.Committed) (snapshots.Snapshot, error)
	Discard(ctx context.Context, d snapshots.Discard) (snapshots.TrashEntry, error)
	Rollback(ctx context.Context, r snapshots.Rollback) (snapshots.RolledBack, error)
	Take(ctx context.Context, t snapshots.Take) (snapshots.Taken, error)
	Replacing(ctx context.Context, r snapshots.Replacing) error
	Prune(ctx context.Context, p snapshots.Prune) (snapshots.Pruned, error)
	// Close releases the lease or the lock.
	Close() error
}

var (
	_ Controller = (*Client)(nil)
	_ Controller = (*snapshots.Live)(nil)
)

// FUSE asks the owner to serve a FUSE connection.
type FUSE struct {
	// Tree is the name of the tree to show.
	Tree string `json:"tree"`
	// Host shows a directory of the host instead, read-only. It is no tree of
	// the session, and is forgotten when it is unmounted.
	Host string `json:"host,omitempty"`
	// Snapshot shows that snapshot, read-only; 0 is the live view.
	Snapshot overlay.LayerID `json:"snapshot,omitempty"`
	// Writeback lets the kernel collect writes; see fs.Options.
	Writeback bool `json:"writeback,omitempty"`
	// Mountpoint is where the mount stands, for lists. Of a mount in a
	// private mount namespace it is the path there.
	Mountpoint string `json:"mountpoint"`
	// ReadOnly notes for lists that the mount was made read-only, which the
	// kernel enforces (fs.MountOptions).
	ReadOnly bool `json:"read_only,omitempty"`
	// Private: the mount stands in a namespace of its own and goes with it.
	Private bool `json:"private,omitempty"`
	// Description is shown in lists: the command it was made for.
	Description string `json:"description,omitempty"`
}

// AddTree asks the owner to add a tree to the live session.
type AddTree struct {
	// Base is the directory of the host below it.
	Base string `json:"base"`
	// Mount is where it stands.
	Mount string `json:"mount"`
	// Image makes it the tree [snapshots.Root] on an image, in the place of the
	// two above.
	Image *snapshots.Image `json:"image,omitempty"`
}

// Mount is a FUSE connection that an owner serves.
type Mount struct {
	// ID is unique among the mounts of one owner process, and never 0.
	ID int `json:"id"`
	FUSE
	Since time.Time `json:"since"`
}

// Status is what an owner tells of itself.
type Status struct {
	Version string        `json:"version"`
	PID     int           `json:"pid"`
	Session string        `json:"session"` // id
	Since   time.Time     `json:"since"`
	Trees   []TreeStatus  `json:"trees"`
	Mounts  []Mount       `json:"mounts"`
	Clients []ClientState `json:"clients"`
	// VM is the session's machine, or the last that it had of this owner.
	VM *VMStatus `json:"vm,omitempty"`
}

// TreeStatus tells of one open tree.
type TreeStatus struct {
	Name  string        `json:"name"`
	Base  string        `json:"base"`
	Stack overlay.Stack `json:"stack"`
	// Dirty: the active layer has changes that no snapshot has.
	Dirty bool `json:"dirty"`
	// ReadOnlyBase: the base is reached through a detached read-only mount.
	ReadOnlyBase bool          `json:"read_only_base"`
	Stats        overlay.Stats `json:"stats"`
}

// ClientState tells of one user of an owner.
type ClientState struct {
	PID   int       `json:"pid"`
	What  string    `json:"what,omitempty"`
	Since time.Time `json:"since"`
}
