package fs

import (
	"errors"
	"log/slog"
	"os"

	"github.com/galleyfs/galley/overlay"
)

// Source makes the face that a server shows, given the notifier that the face
// is to tell of changes.
type Source func(overlay.Notifier) (*overlay.Face, error)

// Live is a face that follows the tree's live view.
func Live(t *overlay.Tree) Source {
	return func(n overlay.Notifier) (*overlay.Face, error) { return t.Attach(n), nil }
}

// Snapshot is a read-only face on a fixed stack of sealed layers.
func Snapshot(t *overlay.Tree, s overlay.Stack) Source {
	return func(overlay.Notifier) (*overlay.Face, error) { return t.View(s) }
}

// Options are the options of a served face. The zero value is the default
// mode of docs/io-mode.md.
type Options struct {
	// Writeback lets the kernel collect writes in its page cache. It makes
	// small writes as cheap as natively and each open, fstat and close of a
	// file one request dearer; host edits to a file that somebody has
	// open may then show late.
	Writeback bool
	// Logger takes what goes wrong in serving (default slog.Default()).
	Logger *slog.Logger
}

// Server answers the requests of one mount.
type Server struct{}

// Serve starts to serve the face that src makes on dev, the open /dev/fuse
// descriptor of a mount ([OpenMount], [OpenFusermount], or one received from
// another process). It takes dev over, also when it fails. It returns when the
// kernel's first request has been answered: from then on the mount works.
func Serve(dev *os.File, src Source, o Options) (*Server, error) {
	return nil, errors.ErrUnsupported
}

// Wait returns when the mount is gone (unmounted everywhere, or aborted) and
// the face detached.
func (s *Server) Wait() {}

// Close ends the server without waiting for the mount's users: what they call
// fails with ENOTCONN from then on. It returns when the face is detached.
// Unmounting first, where the mount can be reached, is the friendlier way.
func (s *Server) Close() error { return nil }

// Stats are the requests answered so far, by the kernel's name of the
// operation, such as "LOOKUP"; operations that never came are left out.
func (s *Server) Stats() map[string]uint64 { return nil }
