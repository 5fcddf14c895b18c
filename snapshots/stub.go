package snapshots

import (
	"context"
	"log/slog"
	"syscall"
	"time"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// StoreOptions configures a Store; the zero value is the default.
type StoreOptions struct {
	// FS is the host; nil is hostfs.OS.
	FS hostfs.FS
	// Log gets what is worth knowing later; nil discards it.
	Log *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Store is the directory that holds all sessions of a user.
type Store struct{}

// DefaultHome is $GALLEY_HOME, else $XDG_STATE_HOME/galley, else
// ~/.local/state/galley.
func DefaultHome() (string, error) { return "", syscall.ENOSYS }

// OpenStore opens (and makes, with mode 0700) the store at home.
func OpenStore(home string, opt StoreOptions) (*Store, error) { return nil, syscall.ENOSYS }

// Close releases the store.
func (s *Store) Close() error { return syscall.ENOSYS }

// Home is the store's absolute path.
func (s *Store) Home() string { return "" }

// HostID names the store's directory, for overlay.Config.Hide.
func (s *Store) HostID() overlay.HostID { return overlay.HostID{} }

// Create makes a session.
func (s *Store) Create(ctx context.Context, spec Spec) (*Session, error) { return nil, syscall.ENOSYS }

// Find finds a session by its name or id.
func (s *Store) Find(ref string) (*Session, error) { return nil, syscall.ENOSYS }

// FindForDir finds the session last used of the project that dir is, or lies in.
func (s *Store) FindForDir(dir string) (*Session, error) { return nil, syscall.ENOSYS }

// List lists the sessions, the last used first.
func (s *Store) List() ([]Info, error) { return nil, syscall.ENOSYS }

// Rename gives a session another name.
func (s *Store) Rename(sess *Session, name string) error { return syscall.ENOSYS }

// Remove moves a session to the trash. A live one is refused with ErrBusy.
func (s *Store) Remove(sess *Session) (TrashEntry, error) { return TrashEntry{}, syscall.ENOSYS }

// Trash lists the trash, the latest first.
func (s *Store) Trash() ([]TrashEntry, error) { return nil, syscall.ENOSYS }

// Restore takes an element out of the trash: a whole session, or discarded
// paths of one that is not live.
func (s *Store) Restore(ctx context.Context, id string) (*Session, error) { return nil, syscall.ENOSYS }

// Purge removes an element of the trash for good.
func (s *Store) Purge(id string) error { return syscall.ENOSYS }

// GC removes what is past its retention and what crashes left.
func (s *Store) GC(ctx context.Context, opt GCOptions) (GCReport, error) {
	return GCReport{}, syscall.ENOSYS
}

// Du measures a session.
func (s *Store) Du(ctx context.Context, sess *Session) (Usage, error) { return Usage{}, syscall.ENOSYS }

// Session is a session on disk, as its manifest was when it was read.
type Session struct{}

// ID is the session's id: short, lower-case, never changing.
func (s *Session) ID() string { return "" }

// Name is the session's name.
func (s *Session) Name() string { return "" }

// Created is when the session was made.
func (s *Session) Created() time.Time { return time.Time{} }

// Store is where the session is.
func (s *Session) Store() *Store { return nil }

// Dir is the session's directory.
func (s *Session) Dir() string { return "" }

// Trees are the session's trees, the workspace first.
func (s *Session) Trees() []TreeSpec { return nil }

// StateDir is the state directory of a tree.
func (s *Session) StateDir(tree string) string { return "" }

// CommitsDir is where commits keep their journals, one directory each.
func (s *Session) CommitsDir() string { return "" }

// Socket is the path of the control socket, which is there while the session is live.
func (s *Session) Socket() string { return "" }

// Rules are the session's rules.
func (s *Session) Rules() Rules { return Rules{} }

// SetRules replaces the rules of a session that is not live.
func (s *Session) SetRules(r Rules) error { return syscall.ENOSYS }

// AddTree adds a tree to a session that is not live.
func (s *Session) AddTree(ctx context.Context, t TreeSpec) error { return syscall.ENOSYS }

// Live tells whether a process has the session open, and which (0 if unknown).
func (s *Session) Live() (pid int, live bool, err error) { return 0, false, syscall.ENOSYS }

// Reload reads the manifest again.
func (s *Session) Reload() error { return syscall.ENOSYS }

// Last is the latest snapshot; its number is 0 before the first seal.
func (s *Session) Last() Snapshot { return Snapshot{} }

// History is all snapshots whose layers are still there, the oldest first.
func (s *Session) History() ([]Snapshot, error) { return nil, syscall.ENOSYS }

// Snapshot finds a snapshot by number or name.
func (s *Session) Snapshot(ref string) (Snapshot, error) { return Snapshot{}, syscall.ENOSYS }

// OpenSealed opens snapshot n for looking, also while an owner is at work.
func (s *Session) OpenSealed(n overlay.LayerID) (*Sealed, error) { return nil, syscall.ENOSYS }

// OpenOptions configures [Session.Open]; the zero value is the default.
type OpenOptions struct {
	// Hide lists further host objects that no view shows, such as a mount
	// point inside a base. The store itself is always hidden.
	Hide []overlay.HostID
	// OpenBase opens a tree's base; nil is overlay.OpenBase.
	OpenBase func(path string) (*overlay.Base, error)
	// NoWatch switches off watching the bases.
	NoWatch bool
}

// Open takes the session's lock and opens its trees. A session that another
// process has open is refused with ErrBusy.
func (s *Session) Open(ctx context.Context, opt OpenOptions) (*Live, error) {
	return nil, syscall.ENOSYS
}

// Sealed is a snapshot opened for looking.
type Sealed struct{}

// SealedTree is one tree of a snapshot.
type SealedTree struct {
	TreeSpec
	// Face shows the tree as it was sealed. It is closed by Sealed.Close.
	Face *overlay.Face
}

// Snapshot tells which one it is.
func (s *Sealed) Snapshot() Snapshot { return Snapshot{} }

// Trees are the trees, in the session's order.
func (s *Sealed) Trees() []SealedTree { return nil }

// Close closes the trees and their faces.
func (s *Sealed) Close() error { return syscall.ENOSYS }

// Live is a session that this process has open for work.
type Live struct{}

// Session is the session, with its manifest as the last seal left it.
func (l *Live) Session() *Session { return nil }

// Tree is an open tree, or nil.
func (l *Live) Tree(name string) *overlay.Tree { return nil }

// Seal makes a snapshot of all trees at one point. Where nothing changed since
// the last one, no layer is made and that one is returned (and gets the name,
// if one is given).
func (l *Live) Seal(ctx context.Context, opt SealOptions) (Snapshot, error) {
	return Snapshot{}, syscall.ENOSYS
}

// Committed takes the committed entries out of the session's layers. What
// changed at a committed path after the snapshot stays.
func (l *Live) Committed(ctx context.Context, c Committed) (Snapshot, error) {
	return Snapshot{}, syscall.ENOSYS
}

// Discard drops changes, to the trash.
func (l *Live) Discard(ctx context.Context, d Discard) (TrashEntry, error) {
	return TrashEntry{}, syscall.ENOSYS
}

// Close closes the trees and gives the lock back. It seals nothing.
func (l *Live) Close() error { return syscall.ENOSYS }
