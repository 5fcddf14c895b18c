package snapshots

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/galleyfs/galley/overlay"
)

// Workspace is the name of the tree that a session's project directory is the
// base of.
const Workspace = "workspace"

// Root is the name of the tree that a guest has as its own file system. It
// stands on an image.
const Root = "root"

// DefaultRetention is how long the trash keeps what was discarded, and a
// session the layers that a commit or discard retired.
const DefaultRetention = 14 * 24 * time.Hour

// TreeSpec names one tree of a session.
type TreeSpec struct {
	// Name is unique in the session: lower-case letters, digits, '-' and
	// '_', at most 32 of them.
	Name string `json:"name"`
	// Base is the absolute path, free of symbolic links, of the directory
	// below the tree.
	Base string `json:"base"`
	// Mount is the absolute path at which a sandbox shows the tree.
	// Create fills in Base where it is empty.
	Mount string `json:"mount"`
	// Image is what the tree stands on in the place of a base; Base and Mount
	// are empty then.
	Image *Image `json:"image,omitempty"`
}

// Spec says what session [Store.Create] makes.
type Spec struct {
	// Name may be empty: then it is made from the base's last component,
	// with a number where that is taken.
	Name string
	// Base is the project directory, the base of the tree [Workspace]. It
	// is made absolute and its symbolic links are resolved.
	Base string
	// Extra are further trees.
	Extra []TreeSpec
	// Rules restrict what the views of the session show and let be changed.
	Rules Rules
	// MaxSize bounds the content of the session's layers, in bytes; 0 is no
	// bound.
	MaxSize int64
}

// Rules are the patterns of a session: doublestar patterns, relative to each
// tree's root, that are matched against the path that a file has in the base.
type Rules struct {
	Hide     []string `json:"hide,omitempty"`
	ReadOnly []string `json:"read_only,omitempty"`
}

// CauseKind says who asked for a seal.
type CauseKind string

// The causes of a seal.
const (
	CauseAsked   CauseKind = "asked"   // a person or script, by name
	CauseCommand CauseKind = "command" // the end of a command; Text is the command
	CauseTool    CauseKind = "tool"    // a tool call; Text is the tool
	CauseReview  CauseKind = "review"  // a diff, status or commit that needed a fixed point
	CauseCommit  CauseKind = "commit"  // committed entries left; Text is the commit's id
	CauseDiscard CauseKind = "discard" // discarded entries left; Text is the id in the trash
	CauseRestore CauseKind = "restore" // discarded entries came back; Text is the id in the trash
	// CauseBefore is what was changed, by whomever, before a command or tool
	// call began; Text is the command or tool.
	CauseBefore   CauseKind = "before"
	CauseRollback CauseKind = "rollback" // Text is the snapshot that was returned to
	CauseFork     CauseKind = "fork"     // the beginning of a fork; Text is SESSION@SNAPSHOT
	CausePaths    CauseKind = "paths"    // paths were restored or picked; Text tells from where
)

// Cause is why a seal was made.
type Cause struct {
	Kind CauseKind `json:"kind"`
	// Text is shown to people; at most 4096 bytes are kept.
	Text string `json:"text,omitempty"`
	// Args are a tool call's arguments; more than 4096 bytes are left out.
	Args json.RawMessage `json:"args,omitempty"`
	// Start and Duration tell when the command or call ran.
	Start    time.Time     `json:"start,omitzero"`
	Duration time.Duration `json:"duration,omitempty"`
	// Exit is the status that it ended with, nil where it has none.
	Exit *int `json:"exit,omitempty"`
	// Unsynced says why a guest that used the session did not write back what
	// it held before the seal, which then may lack some of it.
	Unsynced string `json:"unsynced,omitempty"`
}

// Change is one path that a snapshot has otherwise than the one before it.
type Change struct {
	Tree string             `json:"tree"`
	Path Path               `json:"path"`
	Kind overlay.ChangeKind `json:"kind"`
	// By names the calls whose processes changed it, where that is known.
	// Without it, it may be of any that the snapshot's cause names.
	By []string `json:"by,omitempty"`
}

// MaxChanges is how many changes a snapshot lists; all are counted.
const MaxChanges = 50

// Unknown is Snapshot.Changed where nobody counted.
const Unknown = -1

// Snapshot is one point of a session's history.
type Snapshot struct {
	// Number is the number of the layer that the seal closed, in all trees.
	// Snapshots are ordered by it. 0 is the session before any change.
	Number overlay.LayerID `json:"number"`
	// Name was given by who asked for it, or empty for a checkpoint.
	Name  string    `json:"name,omitempty"`
	Cause Cause     `json:"cause"`
	Time  time.Time `json:"time"`
	// Changed is how many paths the snapshot changed, or Unknown.
	Changed int `json:"changed,omitempty"`
	// Changes are the first of them.
	Changes []Change `json:"changes,omitempty"`
	// Processes are the first that changed something, where the kernel told.
	// A record that was mended after a crash may lack them.
	Processes []Process `json:"processes,omitempty"`
	// Stacks is the stack of sealed layers of each tree, by its name.
	Stacks map[string]overlay.Stack `json:"stacks"`
}

// BuiltOn tells whether s has all layers of other: whether other, or what is
// the same, lies on the way to it.
func (s Snapshot) BuiltOn(other Snapshot) bool {
	for tree, stack := range other.Stacks {
		if len(without(stack.Sealed, s.Stacks[tree].Sealed)) > 0 {
			return false
		}
	}
	return true
}

// SealOptions says how [Live.Seal] seals.
type SealOptions struct {
	Name  string `json:"name,omitempty"`
	Cause Cause  `json:"cause"`
	// Durable waits until the snapshot would survive a power cut. Without
	// it a power cut may lose what was not synced, as for any file.
	Durable bool `json:"durable,omitempty"`
	// Calls are the names of the calls that ran since the last seal, by what
	// identifies their process trees. Of what Self changed, nothing is noted: it
	// is the one whose end is the cause, where it ran alone.
	Calls map[string]string `json:"calls,omitempty"`
	Self  string            `json:"self,omitempty"`
	// By, unless nil, tells [Change.By] of the layer that was just sealed.
	By func(tree, path string) []string `json:"-"`
}

// Rollback says what [Live.Rollback] does.
type Rollback struct {
	// To is the snapshot to return to.
	To overlay.LayerID `json:"to"`
}

// RolledBack tells what a rollback did.
type RolledBack struct {
	// To is what the session shows now.
	To Snapshot `json:"to"`
	// Before holds what the session was until then, to return to. It is the
	// snapshot that was the latest, where nothing had changed since.
	Before Snapshot `json:"before"`
	// Now is the snapshot that the rollback made, equal to To.
	Now Snapshot `json:"now"`
	// Switch is how long operations were held up, and Invalidate how long it
	// took from there until all views had been told.
	Switch     time.Duration `json:"switch"`
	Invalidate time.Duration `json:"invalidate"`
}

// Take says what [Live.Take] brings into a session.
type Take struct {
	// Session is the id of the session that it comes from, empty for the
	// session itself.
	Session string `json:"session,omitempty"`
	// Snapshot of that session.
	Snapshot overlay.LayerID `json:"snapshot"`
	// From names both for the history.
	From string `json:"from"`
	// Paths are paths in each tree, by its name; a directory stands for all
	// beneath it.
	Paths map[string][]Path `json:"paths"`
}

// Taken tells what a [Live.Take] did: Before is the session until then and Now
// the session with the paths, the same where they were there already.
type Taken struct {
	Before Snapshot `json:"before"`
	Now    Snapshot `json:"now"`
}

// Fork says what [Store.Fork] makes.
type Fork struct {
	// At is the snapshot that the new session begins as.
	At overlay.LayerID
	// Name may be empty: then it is made from that of the session.
	Name string
}

// Committed tells a session that a commit has written a snapshot's changes, or
// a part of them, to the bases.
type Committed struct {
	// Snapshot is the one whose change set was committed.
	Snapshot overlay.LayerID `json:"snapshot"`
	// Commit is the commit's id, for the history.
	Commit string `json:"commit"`
	// Paths are the committed paths in each tree, by its name, as
	// overlay.Entry.Path spells them. For a rename both paths are given.
	Paths map[string][]Path `json:"paths"`
}

// Discard says what [Live.Discard] drops.
type Discard struct {
	// Paths are paths in each tree, by its name; a directory stands for all
	// beneath it. Nil means every change of every tree.
	Paths map[string][]Path `json:"paths,omitempty"`
}

// Path is a path in a tree. It is any string of bytes; in JSON it is base64,
// because JSON strings cannot carry invalid UTF-8.
type Path string

// Info describes a session for a list.
type Info struct {
	ID, Name string
	Trees    []TreeSpec
	Created  time.Time
	// Used is when the session was last opened for work.
	Used time.Time
	// Live: some process has the session open.
	Live bool
	// Last is the latest snapshot's number, 0 if there is none.
	Last overlay.LayerID
	// Err is why the session cannot be opened (a damaged manifest), or nil.
	Err error
}

// Usage is what a session occupies, in allocated bytes.
type Usage struct {
	// Exclusive bytes are freed when the session is removed.
	Exclusive int64
	// Shared bytes are in layers that some other session has as well: a fork,
	// or the session that this one is a fork of.
	Shared int64
	// Retired bytes are the part of Exclusive in layers that no current
	// stack has, which GC removes after the retention.
	Retired int64
	// Files counts directory entries.
	Files int64
}

// TrashKind says what an element of the trash is.
type TrashKind string

// The kinds of trash.
const (
	TrashSession TrashKind = "session" // a whole session
	TrashPaths   TrashKind = "paths"   // some changes of a session that goes on
	TrashLayer   TrashKind = "layer"   // a layer that no record accounted for
)

// TrashEntry is one element of the trash.
type TrashEntry struct {
	ID      string // of the entry; for a whole session the session's own
	Kind    TrashKind
	Session string // the session's id
	Name    string // the session's name
	Base    string // of the session's first tree
	Time    time.Time
	Expires time.Time
	// Paths is how many paths were given to discard; 0 means all.
	Paths int
}

// GCOptions bounds [Store.GC].
type GCOptions struct {
	// Retention is how long discarded things stay; 0 is
	// [DefaultRetention], negative is no time at all.
	Retention time.Duration
	// DryRun only reports.
	DryRun bool
}

// GCReport tells what [Store.GC] removed, or would.
type GCReport struct {
	Trash   []string // ids of trash entries past their retention
	Layers  int      // layers that a commit or discard retired
	Orphans []string // directories and files that no record names
	Sockets []string // control sockets without a process
	Bytes   int64    // allocated bytes of the above
	// Kept names what looks abandoned but may hold work, with the reason.
	Kept []string
}

// MarshalText writes p as base64.
func (p Path) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, []byte(p)), nil
}

// UnmarshalText reads what MarshalText wrote.
func (p *Path) UnmarshalText(b []byte) error {
	raw, err := base64.StdEncoding.AppendDecode(nil, b)
	if err != nil {
		return fmt.Errorf("path: %w", err)
	}
	*p = Path(raw)
	return nil
}
