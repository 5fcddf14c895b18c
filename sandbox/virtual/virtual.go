package virtual

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/files"
	"github.com/galleyfs/galley/sandbox/virtual/internal/shell"
	"github.com/galleyfs/galley/sandbox/virtual/internal/view"
)

// Limits bound what one command may use; a zero field is its default.
type Limits = shell.Limits

// DefaultLimits are the limits of a sandbox that sets none.
func DefaultLimits() Limits { return shell.DefaultLimits }

// Tree is an overlay tree at a path of the sandbox. The sandbox attaches a face
// of its own and detaches it; the tree stays the caller's.
type Tree struct {
	// Path is absolute and clean; "/" makes the tree the root.
	Path string
	Tree *overlay.Tree
	// ReadOnly refuses every change.
	ReadOnly bool
}

// Config opens a sandbox.
type Config struct {
	// Session is the name of the session whose trees these are.
	Session string
	// Workdir is the working directory (default: the path of the first tree).
	Workdir string
	// Trees are shown at their paths. Without one at "/" the root is an empty
	// tree that lives as long as the sandbox.
	Trees []Tree
	// Scratch is an existing, empty directory of the host for what no session
	// keeps: the root, /tmp, and the changes of copy-on-write mounts that
	// NewTree did not take. "" is a temporary directory, removed at Close.
	Scratch string
	// NewTree makes a tree of the session over a host directory, for a mount at
	// the path at that takes changes; nil keeps such changes in Scratch, and
	// they are gone with the sandbox. The sandbox does not close the tree.
	NewTree func(ctx context.Context, host, at string) (tree *overlay.Tree, name string, err error)
	// Forbidden are directories of the host that no mount may show or lie in,
	// such as Galley's own state.
	Forbidden []string
	// Env is added to the environment of every command.
	Env map[string]string
	// Limits of each command.
	Limits Limits
}

// home is the home directory of the sandbox's user.
const home = "/home/user"

// tempDir is where files lie that are part of no change set.
const tempDir = "/tmp"

// userID is as whom the view shows the user.
const userID = 1000

// Sandbox implements [sandbox.Sandbox].
type Sandbox struct {
	cfg   Config
	info  sandbox.Info
	view  *view.View
	files *files.Ops
	umask uint32

	ctx    context.Context // ends with the sandbox
	cancel context.CancelCauseFunc
	calls  sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	faces    []*overlay.Face
	own      []*overlay.Tree // in scratch
	scratch  string
	temp     bool // scratch is to be removed
	nextTree int
	procs    []*proc
	lastID   int
}

var _ sandbox.Sandbox = (*Sandbox)(nil)

var errClosed = errors.New("the sandbox was closed")

// New opens a sandbox.
func New(cfg Config) (*Sandbox, error) {
	if cfg.Workdir == "" {
		cfg.Workdir = "/workspace"
		if len(cfg.Trees) > 0 {
			cfg.Workdir = cfg.Trees[0].Path
		}
	}
	if !path.IsAbs(cfg.Workdir) || path.Clean(cfg.Workdir) != cfg.Workdir {
		return nil, fmt.Errorf("virtual sandbox: the working directory %q is not an absolute, clean path", cfg.Workdir)
	}
	s := &Sandbox{cfg: cfg, scratch: cfg.Scratch, umask: 0o022}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	if s.scratch == "" {
		dir, err := os.MkdirTemp("", "galley-virtual-")
		if err != nil {
			return nil, fmt.Errorf("virtual sandbox: %w", err)
		}
		s.scratch, s.temp = dir, true
	}
	if err := s.open(); err != nil {
		s.cancel(errClosed)
		_ = s.release()
		return nil, fmt.Errorf("virtual sandbox: %w", err)
	}
	s.files = files.New(&viewFS{s.view, s.umask}, cfg.Workdir)
	s.info = sandbox.Info{
		Kind: "virtual", Session: cfg.Session, Workdir: cfg.Workdir, TempDir: tempDir, Network: "none",
		Lacks: []sandbox.Feature{sandbox.PTY, sandbox.Signals, sandbox.Binaries},
	}
	return s, nil
}

func (s *Sandbox) open() error {
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	var root *overlay.Face
	for _, t := range s.cfg.Trees {
		if t.Path == "/" {
			root = s.attach(t.Tree)
		}
	}
	ownRoot := root == nil
	if ownRoot {
		tree, err := s.newTree("root", nil)
		if err != nil {
			return err
		}
		root = s.attach(tree)
	}
	s.view = view.New(root, uid, gid, userID)
	temp, err := s.newTree("temp", nil)
	if err != nil {
		return err
	}
	mounts := append([]Tree{{Path: tempDir, Tree: temp}}, s.cfg.Trees...)
	for _, t := range mounts {
		if t.Path == "/" {
			continue
		}
		if !path.IsAbs(t.Path) || path.Clean(t.Path) != t.Path {
			return fmt.Errorf("the path %q of a tree is not absolute and clean", t.Path)
		}
		if err := s.mountPoint(t.Path); err != nil {
			return fmt.Errorf("a directory for the tree at %q: %w", t.Path, err)
		}
		if err := s.view.Mount(t.Path, s.attach(t.Tree), t.ReadOnly); err != nil {
			return fmt.Errorf("the tree at %q: %w", t.Path, err)
		}
	}
	dirs := []string{s.cfg.Workdir}
	if ownRoot {
		dirs = append(dirs, home, "/dev")
	}
	for _, d := range dirs {
		if err := s.mountPoint(d); err != nil {
			return fmt.Errorf("the directory %q: %w", d, err)
		}
	}
	return s.view.Chmod(tempDir, 0o1777)
}

// attach makes a face that Close detaches.
func (s *Sandbox) attach(t *overlay.Tree) *overlay.Face {
	f := t.Attach(nil)
	s.faces = append(s.faces, f)
	return f
}

// newTree makes a tree in scratch over a base, or over nothing.
func (s *Sandbox) newTree(name string, base *overlay.Base) (*overlay.Tree, error) {
	s.nextTree++
	dir := filepath.Join(s.scratch, fmt.Sprintf("%s-%d", name, s.nextTree))
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = overlay.InitState(nil, dir, 1)
	}
	if err != nil {
		if base != nil {
			_ = base.Close()
		}
		return nil, err
	}
	t, err := overlay.Open(overlay.Config{Name: name, StateDir: dir, Base: base}, overlay.Stack{Active: 1})
	if err != nil {
		return nil, err
	}
	s.own = append(s.own, t)
	return t, nil
}

// mountPoint makes a directory with its parents. A read-only tree that has it
// already is left alone.
func (s *Sandbox) mountPoint(p string) error {
	i, err := s.view.Stat(p, true)
	switch {
	case err == nil && i.IsDir():
		return nil
	case err == nil:
		return unix.ENOTDIR
	case overlay.Errno(err) != unix.ENOENT:
		return err
	}
	if p != "/" {
		if err := s.mountPoint(path.Dir(p)); err != nil {
			return err
		}
	}
	return s.view.Mkdir(p, 0o755)
}

// Info implements [sandbox.Sandbox].
func (s *Sandbox) Info() sandbox.Info { return s.info }

// begin admits a call; end must follow.
func (s *Sandbox) begin(op, p string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return sandbox.Errorf(sandbox.Closed, op, p, "the sandbox was closed")
	}
	s.calls.Add(1)
	return nil
}

func (s *Sandbox) end() { s.calls.Done() }

// call runs one call on files, which ends with the sandbox.
func call[R, T any](s *Sandbox, ctx context.Context, op, p string, fn func(context.Context, R) (T, error), r R) (T, error) {
	if err := s.begin(op, p); err != nil {
		var none T
		return none, err
	}
	defer s.end()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	out, err := fn(ctx, r)
	if err != nil && s.ctx.Err() != nil && sandbox.CodeOf(err) == sandbox.Canceled {
		err = sandbox.Errorf(sandbox.Closed, op, p, "the sandbox was closed")
	}
	return out, err
}

// Read implements [sandbox.Sandbox].
func (s *Sandbox) Read(ctx context.Context, r sandbox.ReadRequest) (sandbox.ReadResult, error) {
	return call(s, ctx, "read", r.Path, s.files.Read, r)
}

// Write implements [sandbox.Sandbox].
func (s *Sandbox) Write(ctx context.Context, r sandbox.WriteRequest) (sandbox.WriteResult, error) {
	return call(s, ctx, "write", r.Path, s.files.Write, r)
}

// Edit implements [sandbox.Sandbox].
func (s *Sandbox) Edit(ctx context.Context, r sandbox.EditRequest) (sandbox.EditResult, error) {
	return call(s, ctx, "edit", r.Path, s.files.Edit, r)
}

// Stat implements [sandbox.Sandbox].
func (s *Sandbox) Stat(ctx context.Context, r sandbox.StatRequest) (sandbox.FileInfo, error) {
	return call(s, ctx, "stat", r.Path, s.files.Stat, r)
}

// List implements [sandbox.Sandbox].
func (s *Sandbox) List(ctx context.Context, r sandbox.ListRequest) (sandbox.ListResult, error) {
	return call(s, ctx, "list", r.Path, s.files.List, r)
}

// Glob implements [sandbox.Sandbox].
func (s *Sandbox) Glob(ctx context.Context, r sandbox.GlobRequest) (sandbox.GlobResult, error) {
	return call(s, ctx, "glob", "", s.files.Glob, r)
}

// Grep implements [sandbox.Sandbox].
func (s *Sandbox) Grep(ctx context.Context, r sandbox.GrepRequest) (sandbox.GrepResult, error) {
	return call(s, ctx, "grep", r.Path, s.files.Grep, r)
}

// Close implements [sandbox.Sandbox]. Commands that run are ended first; the
// trees that the sandbox was given stay open.
func (s *Sandbox) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.cancel(errClosed)
	s.calls.Wait()
	return s.release()
}

// release gives back what New took.
func (s *Sandbox) release() error {
	var errs []error
	for _, f := range s.faces {
		f.Detach()
	}
	for _, t := range s.own {
		errs = append(errs, t.Close())
	}
	if s.temp {
		errs = append(errs, os.RemoveAll(s.scratch))
	}
	return errors.Join(errs...)
}

// since is a duration that is never zero.
func since(t time.Time) time.Duration { return max(time.Since(t), 1) }
