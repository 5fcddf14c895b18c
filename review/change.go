package review

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// Kind says what a change does to its path. The numbers are part of the digest
// encoding and of the JSON schema's words: they are never reused.
type Kind uint8

const (
	// Added: the view has Path, the base has not (or has moved it away).
	Added Kind = 1
	// Modified: the same type of node with other content or another
	// symbolic link target; its mode, owner or xattrs may differ too.
	Modified Kind = 2
	// Deleted: the base has Path, and nothing in the view comes from it.
	Deleted Kind = 3
	// Renamed: what the base has at From is at Path; content and metadata
	// may differ as well (see Parts). A renamed directory is one change;
	// what changed below it are changes of their own.
	Renamed Kind = 4
	// MetaOnly: content is the same; mode, owner or xattrs differ.
	MetaOnly Kind = 5
	// TypeChanged: another type of node took the place of the old one.
	TypeChanged Kind = 6
)

// String is the word used in messages and in JSON.
func (k Kind) String() string {
	switch k {
	case Added:
		return "added"
	case Modified:
		return "modified"
	case Deleted:
		return "deleted"
	case Renamed:
		return "renamed"
	case MetaOnly:
		return "mode"
	case TypeChanged:
		return "type"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Letter is git's status letter: A M D R T; a change of metadata alone is M.
func (k Kind) Letter() byte {
	switch k {
	case Added:
		return 'A'
	case Deleted:
		return 'D'
	case Renamed:
		return 'R'
	case TypeChanged:
		return 'T'
	}
	return 'M'
}

// Parts says which facets of a node a change alters. For Added and Deleted it
// is zero: everything is new, or gone.
type Parts uint8

const (
	PartContent Parts = 1 << iota // a regular file's bytes
	PartTarget                    // a symbolic link's target
	PartMode                      // permission and set-id bits
	PartOwner                     // uid or gid
	PartXattrs                    // extended attributes
	PartRdev                      // a device node's number
)

// Xattr is one extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// Meta describes one side of a change.
type Meta struct {
	// Mode is the type and permission bits, as st_mode.
	Mode     uint32
	UID, GID uint32
	// Size in bytes; of a symbolic link the length of its target, of a
	// directory 0.
	Size int64
	Rdev uint64
	// Mtime is informative for a file (a change of mtime alone is no
	// change); a committer restores it.
	Mtime overlay.Time
	// Target of a symbolic link, byte for byte.
	Target string
	// Xattrs sorted by name, without those that the host's security policy
	// assigns (see ignoredXattr) and without the overlay's own.
	Xattrs []Xattr
	// Digest is the SHA-256 of a regular file's content, when HasDigest. On
	// the new side of an added or modified file it is always there; on the
	// old side it is left out where reading the base was not needed to tell
	// that the content differs, and where the base has drifted.
	Digest    [32]byte
	HasDigest bool
}

// Type is the S_IFMT part of Mode.
func (m *Meta) Type() uint32 { return m.Mode & unix.S_IFMT }

// IsDir, IsRegular and IsSymlink tell the type in Mode.
func (m *Meta) IsDir() bool     { return m.Type() == unix.S_IFDIR }
func (m *Meta) IsRegular() bool { return m.Type() == unix.S_IFREG }
func (m *Meta) IsSymlink() bool { return m.Type() == unix.S_IFLNK }

// TypeName is the word for a node's type in messages.
func TypeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "node of unknown type"
}

// Change is one difference between a view and its base. Paths are
// slash-separated, relative to the tree's root, of any bytes but NUL; "" is
// the root itself.
type Change struct {
	Tree string
	Kind Kind
	// Path is where the new node is in the view; of a Deleted change, where
	// the old one is in the base.
	Path string
	// From is the path in the base that a Renamed change takes its node from.
	From string
	// Origin is the path in the base of what Old describes; it differs from
	// Path for a rename and below a renamed directory. Empty when Old is nil.
	Origin string
	// At is the path in the view of the layer entry that this change comes
	// from: after a commit, dropping the entries at At (and FromAt) from the
	// layer drops the change. For a Deleted change it is the whiteout, the
	// opaque directory or the node that hides Path.
	At string
	// FromAt is the same for the source of a rename found by similarity (the
	// whiteout of From). Empty, with HasFromAt false, for any other.
	FromAt    string
	HasFromAt bool
	// Old is nil for Added, New is nil for Deleted.
	Old, New *Meta
	Parts    Parts
	// SameData: the new content is the base's at Origin, not in a layer
	// (a rename or a metadata-only change).
	SameData bool
	// Similarity of a Renamed file in percent: 100 when its content is the
	// same. 0 for a directory.
	Similarity int
	// Link is set on a further name of a node with several: the path in the
	// view of its leading name, which is an earlier change of the same tree or
	// a path that the change set leaves alone. "" for none.
	Link string
	// Facts is what the base must still hold for the change to be applied,
	// each decided by [CheckDrift].
	Facts []overlay.Was
	// Drift is the first of Facts that did not hold when the change set was
	// computed. It is no part of the digest.
	Drift Drift
	// Flags are the reasons to look twice, most serious first. They are
	// derived from the rest and no part of the digest.
	Flags []Flag
	// ino is the inode in the view of a node with several names, else 0.
	ino uint64
}

// node is the side of the change that exists: the new one where there is one.
func (c *Change) node() *Meta {
	if c.New != nil {
		return c.New
	}
	return c.Old
}

// IsDir reports whether the change is about a directory (after it, or for a
// deletion before it).
func (c *Change) IsDir() bool { return c.node().IsDir() }

// ChangeSet is an ordered list of changes: trees in the order they were given,
// in a tree by path (parents first, siblings by bytes), a deletion before what
// takes its place. It is immutable and safe for concurrent reading. The views
// and base descriptors it was computed from must stay open while content is
// read through it.
type ChangeSet struct {
	Changes []Change
	// digest is computed once, by newChangeSet.
	digest Digest
	trees  []*tree
	// idle lists the layer entries that turned out to be no change, directories
	// before what is in them.
	idle []idleEntry
}

// idleEntry is a layer entry that is no change.
type idleEntry struct {
	TreePath
	// within is the nearest directory above that hides the one of the base,
	// or "": while it does, what the base has is not to be seen in it, and the
	// entry is needed.
	within string
}

// Digest names a change set: see the documentation of its encoding in
// digest.go.
type Digest [32]byte

// String is the digest in lower-case hexadecimal.
func (d Digest) String() string { return fmt.Sprintf("%x", d[:]) }

// Short is the first 12 digits of the digest, for people.
func (d Digest) Short() string { return d.String()[:12] }

// Digest of the whole set.
func (cs *ChangeSet) Digest() Digest { return cs.digest }

// Empty reports whether there is no change.
func (cs *ChangeSet) Empty() bool { return len(cs.Changes) == 0 }

// Drifted returns the changes whose facts no longer hold in the base.
func (cs *ChangeSet) Drifted() []*Change {
	var out []*Change
	for i := range cs.Changes {
		if cs.Changes[i].Drift.Kind != DriftNone {
			out = append(out, &cs.Changes[i])
		}
	}
	return out
}

// within reports whether path is dir or below it; everything is within "".
func within(path, dir string) bool {
	if dir == "" || path == dir {
		return true
	}
	return len(path) > len(dir) && path[len(dir)] == '/' && strings.HasPrefix(path, dir)
}

// parentOf is the directory of a path, "" for a name in the root.
func parentOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return ""
}

// baseName is the last component of a path.
func baseName(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// join puts a name below a directory, which may be the root.
func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
