package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/fs"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

// mountRequest is what `galley mount` was asked for.
type mountRequest struct {
	base     string
	session  string
	dir      string
	tree     string
	snapshot string
	maxSize  int64
	options  fs.MountOptions
}

func mountCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"mount [--base DIR] [--tree NAME] [--read-only] [--max-size SIZE] [-o OPTIONS] SESSION[@N] DIR"},
		about: `
Shows a session at a directory, where every program of the host sees it. A session that
does not exist is made, on --base or this project. The mount stays until galley unmount
takes it down; writes go into the session's layer.

OPTIONS are allow_other, fsname=NAME, subtype=NAME, ro, exec, noexec, noatime, relatime
and writeback, with commas between them. With writeback the kernel collects small writes,
which makes databases as fast as without Galley, and reading many files slower.`,
		examples: [][2]string{
			{"galley mount fix-login /mnt/proof", "look at the session with any program"},
			{"galley mount --base ~/app try /mnt/app", "a new session on ~/app"},
			{"galley mount fix-login@3 /mnt/then", "as it was at snapshot 3, read-only"},
			{"galley mount -o allow_other,fsname=proof fix-login /mnt/proof", "for other users too"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "mount", Category: catMount, Usage: "show a session at a directory", ArgsUsage: "SESSION DIR",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "base", Usage: "the project `DIR`, for a session that is made"},
			&cli.StringFlag{Name: "tree", Usage: "the tree `NAME` of the session", Value: snapshots.Workspace},
			&cli.StringFlag{Name: "snapshot", Usage: "the session as it was at snapshot `N`, read-only"},
			boolFlag("read-only", "refuse writes", "r"),
			maxSizeFlag(),
			&cli.StringSliceFlag{Name: "o", Usage: "mount `OPTIONS`"},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				return usagef(c, "expected a session and a directory")
			}
			m := mountRequest{base: c.String("base"), session: c.Args().Get(0), tree: c.String("tree"), snapshot: c.String("snapshot")}
			name, at, ok := strings.Cut(m.session, "@")
			if ok && m.snapshot != "" {
				return usagef(c, "SESSION@N and --snapshot say the same; give one of them")
			}
			if ok && at == "" {
				return usagef(c, "%q: expected the number or name of a snapshot after the @", m.session)
			}
			if m.session = name; ok {
				m.snapshot = at
			}
			var err error
			if m.maxSize, err = maxSizeOf(c); err != nil {
				return err
			}
			if m.options, err = mountOptions(c.StringSlice("o")); err != nil {
				return usagef(c, "%w", err)
			}
			m.options.ReadOnly = m.options.ReadOnly || c.Bool("read-only") || m.snapshot != ""
			if err := e.clearDeadAt(c.Context, c.Args().Get(1)); err != nil {
				return err
			}
			if m.dir, err = mountPoint(c.Args().Get(1)); err != nil {
				return err
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return runMount(ctx, e, st, m)
			})
		},
	})
}

// mountOptions are the options of every -o together.
func mountOptions(lists []string) (fs.MountOptions, error) {
	all := ""
	for _, l := range lists {
		if all != "" {
			all += ","
		}
		all += l
	}
	return fs.ParseMountOptions(all)
}

// mountPoint checks a directory to mount on, before anything is made for it.
func mountPoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("resolve %q: %w", dir, err)
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", withHint(fmt.Errorf("mount point %q: expected a directory: %w", dir, err), "mkdir -p "+dir)
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", fmt.Errorf("mount point: %w", err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("mount point %q: expected a directory, found a file", dir)
	}
	return real, nil
}

func runMount(ctx context.Context, e *env, st *snapshots.Store, m mountRequest) error {
	sess, made, err := e.mountSession(ctx, st, m)
	if err != nil {
		return err
	}
	err = e.mountTree(ctx, sess, m)
	if err != nil && made {
		e.takeBack(ctx, st, sess)
		return err
	}
	if err == nil && made {
		fmt.Fprintf(e.stderr, "galley: made session %s on %s\n", safeLine(sess.Name()), safePath(sess.Trees()[0].Base))
	}
	if err == nil {
		fmt.Fprintf(e.stderr, "galley: session %s is at %s; galley unmount %s takes it down\n", safeLine(sess.Name()), safePath(m.dir), safePath(m.dir))
	}
	return err
}

// mountTree mounts a tree of the session, served by its owner.
func (e *env) mountTree(ctx context.Context, sess *snapshots.Session, m mountRequest) error {
	tree, err := treeOf(sess, m.tree)
	if err != nil {
		return err
	}
	if err := notOverBase(m.dir, tree.Base); err != nil {
		return err
	}
	f := owner.FUSE{Tree: tree.Name, ReadOnly: m.options.ReadOnly, Writeback: m.options.Writeback, Mountpoint: m.dir, Description: "galley mount"}
	if m.snapshot != "" {
		snap, err := findSnapshot(sess, m.snapshot)
		if err != nil {
			return err
		}
		f.Snapshot = snap.Number
	}
	client, err := owner.Ensure(ctx, sess, owner.Options{HidePaths: []string{m.dir}, Log: e.log})
	if err != nil {
		return fmt.Errorf("start the owner of session %q: %w", sess.Name(), err)
	}
	defer client.Close()
	return serveMount(ctx, client, f, m)
}

// notOverBase refuses a mount point that would cover the base.
func notOverBase(dir, base string) error {
	if _, inside := below(dir, base); !inside {
		return nil
	}
	return withHint(fmt.Errorf("mount point %q is the base %q, or above it: the view would hide its own base", dir, base),
		"choose a directory elsewhere; galley run shows the view at the base's own path")
}

// serveMount mounts and hands the connection to the owner. A mount that nobody
// serves is taken down again.
func serveMount(ctx context.Context, client *owner.Client, f owner.FUSE, m mountRequest) error {
	dev, err := openMount(ctx, m.dir, m.options)
	if err != nil {
		return fmt.Errorf("mount %q: %w", m.dir, err)
	}
	defer dev.Close()
	if _, err := client.ServeFUSE(ctx, f, int(dev.Fd())); err != nil {
		if down := fs.UnmountLazy(context.WithoutCancel(ctx), m.dir); down != nil {
			err = errors.Join(err, down)
		}
		return fmt.Errorf("serve %q: %w", m.dir, err)
	}
	// Were the owner to end now, nothing would be answered as long as this
	// process holds the connection.
	_ = dev.Close()
	// The mount works whether or not this finds a file to open.
	_ = fs.Prime(m.dir)
	return nil
}

// openMount mounts with mount(2) where this process may, else through
// fusermount3.
func openMount(ctx context.Context, dir string, o fs.MountOptions) (*os.File, error) {
	if os.Geteuid() == 0 {
		return fs.OpenMount(dir, o)
	}
	return fs.OpenFusermount(ctx, dir, o)
}

// clearDeadAt takes down a mount at dir whose server is gone, so that a crash
// does not stand in the way of the next mount.
//
// The directory is not touched: whoever does gets ENOTCONN while it is dead.
func (e *env) clearDeadAt(ctx context.Context, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("resolve %q: %w", dir, err)
	}
	if parent, err := filepath.EvalSymlinks(filepath.Dir(dir)); err == nil {
		dir = filepath.Join(parent, filepath.Base(dir))
	}
	dead, err := fs.Dead(ctx)
	if err != nil {
		return err
	}
	for _, d := range dead {
		if d.Dir != dir {
			continue
		}
		if err := fs.UnmountLazy(ctx, dir); err != nil {
			return err
		}
		fmt.Fprintf(e.stderr, "galley: cleared a dead mount at %s\n", safePath(dir))
	}
	return nil
}

// mountSession finds the session by name, or makes it, which made tells.
func (e *env) mountSession(ctx context.Context, st *snapshots.Store, m mountRequest) (sess *snapshots.Session, made bool, err error) {
	sess, err = st.Find(m.session)
	if err == nil {
		if m.base != "" && !sameDir(m.base, sess.Trees()[0].Base) {
			return nil, false, withHint(fmt.Errorf("session %q exists, on %q and not on %q", m.session, sess.Trees()[0].Base, m.base),
				"choose another name, or leave --base out")
		}
		return sess, false, e.bound(ctx, sess, m.maxSize)
	}
	if !errors.Is(err, snapshots.ErrNotFound) {
		return nil, false, err
	}
	base := m.base
	if base == "" {
		dir, err := os.Getwd()
		if err != nil {
			return nil, false, fmt.Errorf("find the current directory: %w", err)
		}
		base = projectDir(dir)
	}
	if real, err := filepath.EvalSymlinks(base); err == nil {
		if abs, err := filepath.Abs(real); err == nil {
			if err := notOverBase(m.dir, abs); err != nil {
				return nil, false, err // before a session is made for it
			}
		}
	}
	sess, err = st.Create(ctx, snapshots.Spec{Name: m.session, Base: base, MaxSize: max(0, m.maxSize)})
	if err != nil {
		return nil, false, createError(err)
	}
	return sess, true, nil
}

func sameDir(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

func treeOf(sess *snapshots.Session, name string) (snapshots.TreeSpec, error) {
	var names []string
	for _, t := range sess.Trees() {
		if t.Name == name {
			return t, nil
		}
		names = append(names, t.Name)
	}
	err := fmt.Errorf("session %q has no tree %q", sess.Name(), name)
	if n := nearest(name, names); n != "" {
		err = fmt.Errorf("session %q has no tree %q; did you mean %q?", sess.Name(), name, n)
	}
	return snapshots.TreeSpec{}, withHint(err, treeHints(sess.Trees())...)
}
