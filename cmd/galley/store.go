package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

// openStore opens the directory that holds the user's sessions.
func (e *env) openStore() (*snapshots.Store, error) {
	home, err := snapshots.DefaultHome()
	if err != nil {
		return nil, err
	}
	s, err := snapshots.OpenStore(home, snapshots.StoreOptions{Log: e.log})
	if err != nil {
		return nil, withHint(fmt.Errorf("open the state directory: %w", err),
			"set GALLEY_HOME to a directory of your own", "galley doctor looks at the one in use")
	}
	return s, nil
}

// sessionFlag names a session where the current directory's is not meant.
func sessionFlag() cli.Flag {
	return &cli.StringFlag{Name: "session", Aliases: []string{"s"}, Usage: "the session `NAME`, not this directory's"}
}

// findSession is the session that a command is about: the one that --session
// names, else the one last used of the project that the current directory
// lies in.
func (e *env) findSession(st *snapshots.Store, name string) (*snapshots.Session, error) {
	return e.sessionOr(st, name, "--session NAME chooses one")
}

// operandSession is findSession for a command that takes the session as an
// operand.
func (e *env) operandSession(st *snapshots.Store, name string) (*snapshots.Session, error) {
	return e.sessionOr(st, name, "this command takes the name of one")
}

func (e *env) sessionOr(st *snapshots.Store, name, choose string) (*snapshots.Session, error) {
	if name != "" {
		return e.namedSession(st, name)
	}
	dir, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("find the current directory: %w", err)
	}
	s, err := st.FindForDir(dir)
	if errors.Is(err, snapshots.ErrNotFound) {
		return nil, withHint(fmt.Errorf("no session of %s or a directory above it", dir),
			"galley run -- COMMAND starts one", "galley sessions lists all; "+choose)
	}
	return s, err
}

// namedSession finds a session by name or id, and names the nearest where
// there is none.
func (e *env) namedSession(st *snapshots.Store, name string) (*snapshots.Session, error) {
	s, err := st.Find(name)
	if !errors.Is(err, snapshots.ErrNotFound) {
		return s, err
	}
	missing := fmt.Errorf("no session %q", name)
	all, listErr := st.List()
	if listErr != nil {
		return nil, missing
	}
	var names []string
	for _, i := range all {
		names = append(names, i.Name)
	}
	if n := nearest(name, names); n != "" {
		missing = fmt.Errorf("no session %q; did you mean %q?", name, n)
	}
	return nil, withHint(missing, "galley sessions lists all")
}

// idleWait is how long a command waits for a session that is being closed.
const idleWait = 15 * time.Second

// whenIdle does something for which nobody may have the session open. An owner
// whose last user has just gone takes a moment to end, and a command that works
// on the session's files without one is soon done: those are waited for.
func whenIdle(ctx context.Context, sess *snapshots.Session, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, idleWait)
	defer cancel()
	for {
		err := do()
		if !errors.Is(err, snapshots.ErrBusy) || inUse(ctx, sess) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// controlled does something to a session through its owner or, where it has
// none, under its lock.
func controlled(ctx context.Context, sess *snapshots.Session, do func(owner.Controller) error) error {
	ctrl, err := owner.Control(ctx, sess)
	if err != nil {
		return fmt.Errorf("session %q: %w", sess.Name(), err)
	}
	err = do(ctrl)
	if closeErr := ctrl.Close(); err == nil {
		err = closeErr
	}
	return err
}

// inUse tells whether somebody other than this process uses the session's
// owner.
func inUse(ctx context.Context, sess *snapshots.Session) bool {
	client, err := owner.Dial(ctx, sess)
	if err != nil {
		return !errors.Is(err, owner.ErrNoOwner)
	}
	defer client.Close()
	s, err := client.Status(ctx)
	if err != nil {
		return !errors.Is(err, owner.ErrNoOwner)
	}
	return len(s.Mounts) > 0 || slices.ContainsFunc(s.Clients, func(c owner.ClientState) bool { return c.PID != selfPID })
}

// takeBack removes a session that this command made for work which then could
// not begin, so that a failure changes nothing.
func (e *env) takeBack(ctx context.Context, st *snapshots.Store, sess *snapshots.Session) {
	ctx = context.WithoutCancel(ctx)
	err := whenIdle(ctx, sess, func() error {
		t, err := st.Remove(sess)
		if err != nil {
			return err
		}
		return st.Purge(t.ID)
	})
	if err != nil {
		fmt.Fprintf(e.stderr, "galley: session %s, which was made for this, stays: %s\n", safeLine(sess.Name()), safeLine(err.Error()))
	}
}

// sessionNames are all names, for completion; it fails silently.
func sessionNames(e *env) []string {
	st, err := e.openStore()
	if err != nil {
		return nil
	}
	defer st.Close()
	all, err := st.List()
	if err != nil {
		return nil
	}
	var names []string
	for _, i := range all {
		names = append(names, i.Name)
	}
	return names
}

// projectDir is the directory that a session without --base is about: the
// nearest one from dir upwards that has a .git, else dir itself.
func projectDir(dir string) string {
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Lstat(filepath.Join(d, ".git")); err == nil {
			return d
		}
		if d == filepath.Dir(d) {
			return dir
		}
	}
}

// treePath is a path in one tree of a session. Path is slash-separated and
// relative; "" is the tree itself.
type treePath struct {
	tree, path string
}

// resolvePaths finds what the operands mean in the trees of a session. An
// operand is a path on the host, relative to the current directory or
// absolute, whether or not anything is there; the tree whose root lies nearest
// above it has it. Symbolic links are followed in the directory part up to the
// tree's root only: below it the words name what the session has there. What lies
// in a tree on an image, which has no place on the host, is given as TREE:PATH.
func resolvePaths(trees []snapshots.TreeSpec, operands []string) ([]treePath, error) {
	var out []treePath
	for _, o := range operands {
		if p, ok := inImage(trees, o); ok {
			out = append(out, p)
			continue
		}
		abs, err := filepath.Abs(o)
		if err != nil {
			return nil, fmt.Errorf("resolve %q: %w", o, err)
		}
		p, ok := inTrees(trees, abs)
		if !ok {
			return nil, withHint(fmt.Errorf("%q is outside the session's trees", o), treeHints(trees)...)
		}
		out = append(out, p)
	}
	return out, nil
}

// inImage reads TREE:PATH, for a tree on an image.
func inImage(trees []snapshots.TreeSpec, operand string) (treePath, bool) {
	name, path, ok := strings.Cut(operand, ":")
	for _, t := range trees {
		if ok && t.OnImage() && t.Name == name {
			return treePath{name, strings.TrimPrefix(filepath.Clean("/"+path), "/")}, true
		}
	}
	return treePath{}, false
}

func treeHints(trees []snapshots.TreeSpec) []string {
	var out []string
	for _, t := range trees {
		if t.OnImage() {
			out = append(out, fmt.Sprintf("tree %s is image %s; %s:PATH is in it", t.Name, safeLine(t.Image.Name), t.Name))
			continue
		}
		out = append(out, fmt.Sprintf("tree %s is %s", t.Name, t.Mount))
	}
	return out
}

// inTrees tries the path as it is spelled, then with the links of its existing
// parents resolved, because a tree's base is recorded without links.
func inTrees(trees []snapshots.TreeSpec, abs string) (treePath, bool) {
	if p, ok := lexicallyIn(trees, abs); ok {
		return p, true
	}
	tail := ""
	for dir := abs; dir != "/"; dir = filepath.Dir(dir) {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			return lexicallyIn(trees, filepath.Join(real, tail))
		}
		tail = filepath.Join(filepath.Base(dir), tail)
	}
	return treePath{}, false
}

func lexicallyIn(trees []snapshots.TreeSpec, abs string) (treePath, bool) {
	best, found := treePath{}, -1
	for _, t := range trees {
		for _, root := range []string{t.Mount, t.Base} {
			rel, ok := below(root, abs)
			if ok && len(root) > found {
				best, found = treePath{t.Name, rel}, len(root)
			}
		}
	}
	return best, found >= 0
}

// below is the part of path under root, where it is root or lies in it.
func below(root, path string) (string, bool) {
	if root == "" {
		return "", false
	}
	if path == root {
		return "", true
	}
	if root != "/" {
		root += "/"
	}
	rel, ok := strings.CutPrefix(path, root)
	return rel, ok
}

// withStore opens the store around a command.
func (e *env) withStore(ctx context.Context, fn func(context.Context, *snapshots.Store) error) error {
	st, err := e.openStore()
	if err != nil {
		return err
	}
	defer st.Close()
	return fn(ctx, st)
}
