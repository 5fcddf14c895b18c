package owner

import (
	"context"
	"errors"
	"log/slog"
	"syscall"
	"time"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
)

// ErrNoOwner: the session has no owner process.
var ErrNoOwner = errors.New("session is not live")

// Command is the hidden argument with which the galley program is started as
// an owner.
const Command = "__owner"

// Main runs an owner process; args are the arguments after [Command]. It
// returns the process's exit status.
func Main(args []string) int { return 1 }

// Options configures [Ensure].
type Options struct {
	// Exe is the program to start, with [Command] as its first argument;
	// empty is the running program.
	Exe string
	// HidePaths are directories, such as mount points, that no view shows.
	HidePaths []string
	// Log gets what Ensure does; nil discards it.
	Log *slog.Logger
}

// Ensure connects to the owner of sess and takes a lease, starting the owner
// first where there is none. An owner that cannot start tells why in the error.
func Ensure(ctx context.Context, sess *snapshots.Session, opt Options) (*Client, error) {
	return nil, syscall.ENOSYS
}

// Dial connects to the owner of sess and takes a lease; with no owner it fails
// with [ErrNoOwner].
func Dial(ctx context.Context, sess *snapshots.Session) (*Client, error) {
	return nil, syscall.ENOSYS
}

// Controller seals a session and moves entries out of its layers: either the
// session's owner, asked by a [Client], or a [snapshots.Live] in this process.
type Controller interface {
	Seal(ctx context.Context, opt snapshots.SealOptions) (snapshots.Snapshot, error)
	Committed(ctx context.Context, c snapshots.Committed) (snapshots.Snapshot, error)
	Discard(ctx context.Context, d snapshots.Discard) (snapshots.TrashEntry, error)
	// Close releases the lease or the lock.
	Close() error
}

// Control reaches sess whichever way there is: through its owner where it is
// live, else by opening it in this process under its lock.
func Control(ctx context.Context, sess *snapshots.Session) (Controller, error) {
	return nil, syscall.ENOSYS
}

// Client is a connection to an owner. It is safe for concurrent use; requests
// are answered one after the other.
type Client struct{}

// Close ends the lease. Mounts that were made through it stay until they are
// unmounted.
func (c *Client) Close() error { return syscall.ENOSYS }

// Seal is [snapshots.Live.Seal] in the owner.
func (c *Client) Seal(ctx context.Context, opt snapshots.SealOptions) (snapshots.Snapshot, error) {
	return snapshots.Snapshot{}, syscall.ENOSYS
}

// Committed is [snapshots.Live.Committed] in the owner.
func (c *Client) Committed(ctx context.Context, m snapshots.Committed) (snapshots.Snapshot, error) {
	return snapshots.Snapshot{}, syscall.ENOSYS
}

// Discard is [snapshots.Live.Discard] in the owner.
func (c *Client) Discard(ctx context.Context, d snapshots.Discard) (snapshots.TrashEntry, error) {
	return snapshots.TrashEntry{}, syscall.ENOSYS
}

// FUSE asks the owner to serve a FUSE connection.
type FUSE struct {
	// Tree is the name of the tree to show.
	Tree string `json:"tree"`
	// Snapshot shows that snapshot, read-only; 0 is the live view.
	Snapshot overlay.LayerID `json:"snapshot,omitempty"`
	// ReadOnly refuses every change with EROFS.
	ReadOnly bool `json:"read_only,omitempty"`
	// Mountpoint is where the mount stands, for lists. Of a mount in a
	// private mount namespace it is the path there.
	Mountpoint string `json:"mountpoint"`
	// Private: the mount stands in a namespace of its own and goes with it.
	Private bool `json:"private,omitempty"`
	// Description is shown in lists: the command it was made for.
	Description string `json:"description,omitempty"`
}

// Mount is a FUSE connection that an owner serves.
type Mount struct {
	ID int `json:"id"`
	FUSE
	Since time.Time `json:"since"`
}

// Status is what an owner tells of itself.
type Status struct {
	Version string        `json:"version"`
	PID     int           `json:"pid"`
	Session string        `json:"session"`
	Since   time.Time     `json:"since"`
	Trees   []TreeStatus  `json:"trees"`
	Mounts  []Mount       `json:"mounts"`
	Clients []ClientState `json:"clients"`
}

// TreeStatus tells of one open tree.
type TreeStatus struct {
	Name  string        `json:"name"`
	Base  string        `json:"base"`
	Stack overlay.Stack `json:"stack"`
	Dirty bool          `json:"dirty"`
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

// ServeFUSE hands the /dev/fuse descriptor fd of a fresh mount to the owner,
// which serves it until it is unmounted. The descriptor stays the caller's.
func (c *Client) ServeFUSE(ctx context.Context, m FUSE, fd int) (Mount, error) {
	return Mount{}, syscall.ENOSYS
}

// Status asks how the owner is.
func (c *Client) Status(ctx context.Context) (Status, error) { return Status{}, syscall.ENOSYS }

// Mounts lists the mounts that the owner serves.
func (c *Client) Mounts(ctx context.Context) ([]Mount, error) { return nil, syscall.ENOSYS }

// WaitUnmount waits until the owner no longer serves mount id.
func (c *Client) WaitUnmount(ctx context.Context, id int) error { return syscall.ENOSYS }

// Stop asks the owner to end. It refuses with snapshots.ErrBusy while others
// use it or something is mounted, unless force is set, which aborts the mounts.
func (c *Client) Stop(ctx context.Context, force bool) error { return syscall.ENOSYS }
