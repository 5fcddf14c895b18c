package overlay

import (
	"github.com/galleyfs/galley/overlay/hostfs"
)

// LayerID numbers a layer. Numbers grow through the life of a session and are
// never used twice; 0 is the base.
type LayerID uint32

// Stack is which layers a view is made of, as the record of a session keeps
// it: the sealed layers from the lowest to the highest as closed ranges, and
// the active layer above them (0 in a read-only view).
type Stack struct {
	Sealed []Range `json:"sealed,omitempty"`
	Active LayerID `json:"active,omitempty"`
}

// Range is the layers From to To, both included.
type Range struct {
	From LayerID `json:"from"`
	To   LayerID `json:"to"`
}

// Rules restrict what a view shows of and lets be done to the tree. Patterns
// are the caller's business; the engine asks once for each node, with the path
// that the node has in the base (or, for a new node, in the view), so that no
// other spelling (a link, a rename of a parent) leads around a rule.
type Rules interface {
	// Hidden nodes are not there: lookups answer ENOENT, listings leave them
	// out, and nothing can be made in their place (EACCES).
	Hidden(path string, isDir bool) bool
	// ReadOnly nodes refuse every change with EROFS, removal and renames
	// included.
	ReadOnly(path string, isDir bool) bool
}

// Config opens a tree.
type Config struct {
	// Name is the tree's name in its session: "workspace", "root", …
	Name string
	// StateDir is a directory that the tree owns: layers/N/{tree,record},
	// scratch/, index. It is opened relative to nothing and must exist.
	StateDir string
	// Base is the tree below; nil is an empty one. The tree takes it over
	// and closes it.
	Base *Base
	// FS is the host; nil is hostfs.OS.
	FS hostfs.FS
	// Rules may be nil.
	Rules Rules
	// Hide lists host objects (device and inode) that no view shows:
	// Galley's own state and the mount point.
	Hide []HostID
	// ReadOnly opens for looking only: no active layer is needed, nothing is
	// written, no lock is expected. Several processes may do so while an
	// owner works on the session.
	ReadOnly bool
	// MaxFDs bounds the descriptors the tree keeps open (default 512).
	MaxFDs int
	// LayerTrees are the trees of layers that lie elsewhere than in StateDir,
	// as directory descriptors, which the tree takes over: see [OpenDirs].
	LayerTrees map[LayerID]int
	// UserXattr marks layers in "user.overlay." also where "trusted.overlay."
	// could be used.
	UserXattr bool
	// NoWatch switches off watching the base's directories.
	NoWatch bool
}

// HostID names an object of the host.
type HostID struct {
	Dev, Ino uint64
}

// Was is what the base had at a path when a session first changed or hid it:
// the facts that drift is decided on.
type Was struct {
	Path   string // in the base
	Exists bool   // false: nothing was there
	ID     HostID
	Mode   uint32
	UID    uint32
	GID    uint32
	Nlink  uint32
	Size   int64
	Rdev   uint64
	Mtime  Time
	Ctime  Time
	Btime  Time
	// Seen is when the facts were read, by CLOCK_REALTIME_COARSE, which also
	// stamps files: a change in the same tick may not show in Ctime.
	Seen   Time
	Target string   // of a symbolic link
	Digest [32]byte // SHA-256 of the content that was copied up, when HasDigest
	// HasDigest is false where content was not copied (a whiteout, a
	// metadata-only copy-up), was cloned, or is larger than DigestLimit.
	HasDigest bool
}

// Entry is one point in which a view differs from its base: an element of
// [Face.Delta].
type Entry struct {
	Path string // slash-separated, relative to the root; "" is the root itself
	// Whiteout: the base has something at Path, and the view has not. Attr
	// and the other fields below are then empty, except Was.
	Whiteout bool
	Attr     Attr
	// Implicit: the directory is in a layer only as the parent of something
	// changed; nothing about itself changed but, at most, its times.
	Implicit bool
	// Opaque: the directory does not merge with what the base has at Path.
	Opaque bool
	// Origin is the path in the base from which this node came, when
	// HasOrigin. It differs from Path after a rename.
	Origin    string
	HasOrigin bool
	// SameData: content is still the base's (metadata-only change, or a
	// directory or link), so it need not be compared.
	SameData bool
	// Covers is the path in the base whose entry Path takes the place of: Path
	// itself, or another where a directory above was renamed. HasCovers is
	// false where the base has no directory for it.
	Covers    string
	HasCovers bool
	// Was is what the base had at Covers when that was first changed or
	// hidden, nil if nothing is recorded (nothing was there).
	Was *Was
	// OriginWas is the same for Origin, where that differs from Covers.
	OriginWas *Was
}

// Event tells a face that something it may have cached is no longer true. One
// of three forms: a name in a directory (Parent and Name), a node's attributes
// (Node), a node's attributes and data (Node and Data).
type Event struct {
	Parent *Node
	Name   string
	Node   *Node
	Data   bool
}

// Notifier is how a tree tells one face about changes that came through
// another face, from the host or from a switch of layers. Notify is called
// with no lock held and from a goroutine that serves no request, one call at a
// time per face, in order; it may block on the kernel.
type Notifier interface {
	Notify([]Event)
}
