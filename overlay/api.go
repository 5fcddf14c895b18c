package overlay

import (
	"math"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// LayerID numbers a layer; 0 is the base. A layer lies above those of lower
// numbers. The numbers of active layers are positive, grow through the life of
// a session and are never used twice. Negative ones are of layers that were
// made later and lie beneath: see [Merged] and [Replaced].
type LayerID int32

// Replaced is the highest number of the layers that hold what a commit or undo
// replaced in the base, directly above it. The later the commit the lower the
// number, since the newer state of the base lies beneath the older. To a view
// that has them they are a part of the base: [Face.Delta] does not report what
// they hold.
const Replaced LayerID = -1 << 30

// Merged is the highest number of the layers that were put together from
// sealed ones. They lie between those of replaced files and all others.
const Merged LayerID = -1

// Image is the number of the lowest layer of an image, on which a tree without
// a base stands; the one above it has the next number, and so on up to
// [MaxImageLayers] of them. To a view they are what it is based on:
// [Face.Delta] reports only what lies above.
const Image LayerID = math.MinInt32 + 1

// MaxImageLayers is how many layers an image can have.
const MaxImageLayers = 1 << 12

// holds reports whether layer l is in the directory, or in one before it.
func (d *LayerDir) holds(l LayerID) bool {
	switch {
	case d.Only != 0:
		return l == d.Only
	case l.image():
		return false
	case l > 0:
		return l <= d.UpTo
	case l.replaced():
		return d.Replaced != 0 && l >= d.Replaced
	}
	return d.Merged != 0 && l >= d.Merged
}

// replaced reports whether the layer is a part of what was the base.
func (l LayerID) replaced() bool { return l <= Replaced && !l.image() }

// image reports whether the layer is one of an image's.
func (l LayerID) image() bool { return l < Image+MaxImageLayers }

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
	// KeepOwners has the record keep what this process cannot give to a file:
	// owners, device numbers, extended attributes but for those in "user.", and
	// modes that would keep its own user out. It has no effect where the process
	// can give files to anybody.
	KeepOwners bool
	// KeepAlways does so also where the process can: tests use it.
	KeepAlways bool
	// UserXattr marks layers in "user.overlay." also where "trusted.overlay."
	// could be used.
	UserXattr bool
	// LayerDirs are directories of layers that other sessions have in common
	// with this tree, in ascending order of UpTo, and those of an image's layers.
	LayerDirs []LayerDir
	// FirstIno is the lowest inode number that a new node may get: one above
	// all that layers outside the stack may have used. 0 is no bound.
	FirstIno uint64
	// Synced is called when something in the active layer was synced on behalf
	// of a program, before it is told so; it may be nil.
	Synced func() error
	// NoWatch switches off watching the base's directories.
	NoWatch bool
	// NoIndex leaves the index aside, so that all is read from the records.
	NoIndex bool
	// Quota bounds what the layers hold, together with those of other trees
	// that have the same; nil is no bound.
	Quota *Quota
}

// LayerDir holds layers of another session: those up to UpTo, the merged ones
// from Merged up and those of replaced files from Replaced up, but for what a
// LayerDir before it holds. What no LayerDir holds is in the tree's StateDir.
type LayerDir struct {
	UpTo, Merged, Replaced LayerID
	// Only is the one layer that the directory holds, a layer of an image; the
	// fields above count for nothing then.
	Only LayerID
	// FD is a descriptor of the directory that has the layers' directories.
	// The tree takes it over.
	FD int
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
