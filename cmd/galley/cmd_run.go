package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/snapshots"
)

// runOptions are the options of `galley run`.
type runOptions struct {
	base     string
	session  string
	create   bool
	overlays []string
	rules    snapshots.Rules
	maxSize  int64
	sandbox  sandboxOptions
	commit   bool
	discard  bool
	quiet    bool
	detach   bool          // keep the machine
	idle     time.Duration // for how long
}

// sandboxOptions say what a command may reach beside the session's trees, and
// in which mode it sees those.
type sandboxOptions struct {
	writeback bool
	guest     guestOptions // of the microvm sandbox

	sockets  []string
	abstract bool
	hostTmp  bool
	caches   []string
	noCaches bool

	virtual bool              // in the virtual sandbox, not the local one
	secrets map[string]string // given to what runs, and struck from what is recorded
}

// sandboxFlags are the options that galley run and galley attach share.
func sandboxFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "allow-socket", Usage: "let the command connect to the socket `PATH` (abstract: all abstract ones)"},
		boolFlag("host-tmp", "use the host's /tmp and /var/tmp, not private ones"),
		&cli.StringSliceFlag{Name: "cache", Usage: "let the command write to `DIR`; what it writes there is dropped at the end"},
		boolFlag("writeback", "let the kernel collect small writes: databases as fast as without Galley, reading many files slower"),
		boolFlag("no-caches", "no writable caches but those of --cache (default: those of common tools)"),
	}
}

func sandboxOptionsOf(c *cli.Context) (sandboxOptions, error) {
	o := sandboxOptions{hostTmp: c.Bool("host-tmp"), noCaches: c.Bool("no-caches"), writeback: c.Bool("writeback")}
	for _, s := range c.StringSlice("allow-socket") {
		if s == "abstract" {
			o.abstract = true
			continue
		}
		abs, err := filepath.Abs(s)
		if err != nil {
			return o, fmt.Errorf("resolve %q: %w", s, err)
		}
		o.sockets = append(o.sockets, abs)
	}
	for _, d := range c.StringSlice("cache") {
		abs, err := filepath.Abs(d)
		if err != nil {
			return o, fmt.Errorf("resolve %q: %w", d, err)
		}
		o.caches = append(o.caches, abs)
	}
	return o, nil
}

func runCommand(e *env) *cli.Command {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "base", Usage: "the project `DIR` (default: the nearest directory upwards that has a .git, else this one)"},
		&cli.StringFlag{Name: "session", Aliases: []string{"s"}, Usage: "use the session `NAME`; with --new, give the new one this name"},
		boolFlag("new", "start a new session, even if the project has one"),
		&cli.StringSliceFlag{Name: "overlay", Usage: "put `DIR` under the session too, such as ~/.config"},
		&cli.StringSliceFlag{Name: "hide", Usage: "hide what matches `GLOB`, such as '**/.env'"},
		&cli.StringSliceFlag{Name: "read-only", Usage: "refuse changes to what matches `GLOB`"},
	}
	flags = append(flags, sandboxFlags()...)
	flags = append(flags, guestFlags()...)
	flags = append(flags, detachFlags()...)
	flags = append(flags, maxSizeFlag(), sandboxFlag(), secretFlag(),
		boolFlag("commit-if-ok", "when the command exits with 0, commit all of the session's changes"),
		boolFlag("discard", "afterwards, discard all of the session's changes"),
		boolFlag("quiet", "do not say afterwards what changed", "q"),
	)
	return manual{
		usage: []string{"run [options] [--] COMMAND [ARGS…]"},
		about: `
Runs a command that sees the project at its own path and writes into the session's layer
instead. The rest of the host is read-only; /tmp is private, and caches of common tools
can be written to and are forgotten. Sockets and other processes of the host are out of
reach, the network is the host's. Signals, the terminal and job control are the
command's, as without Galley.

The session is the one last used of the project, or a new one. Several commands may run
in one session at a time. Afterwards one line on standard error says what the session
holds and what to type next.

With --sandbox virtual the command is run by Galley's own bash, without any process of
the host: see docs/virtual.md. --secret gives it a variable whose value is struck from
the history, from events, and from output that does not go to a terminal.

With --sandbox microvm the command runs in a virtual machine that boots an image, with the
project at /workspace: see docs/microvm.md. What it changes elsewhere in the guest is in
the session, too: galley diff --tree root. The image's environment, user, directory and
entry point hold as with docker run; the machine ends with the command, or stays with
--detach. It has no network without --net.

Globs are doublestar patterns (**, *, ?, [a-z], {a,b}), relative to the root of each
tree. They hold for the file, whatever name or link leads to it, and stay with the
session.`,
		examples: [][2]string{
			{"galley run -- make test", "in this project's session"},
			{"galley run --new --session fix -- sh", "a shell in a new session called fix"},
			{"galley run --hide '**/.env' --read-only '.git/**' -- agent", "keep secrets out of sight, and the history as it is"},
			{"galley run --overlay ~/.config -- agent", "a second tree in the same session"},
			{"galley run --secret TOKEN -- deploy --dry-run", "a secret that no record keeps"},
			{"galley run --sandbox virtual -- sh script.sh", "a script, without any process of the host"},
			{"galley run --sandbox microvm --image debian:12 -- make test", "in a virtual machine that boots an image"},
			{"galley run --commit-if-ok -- gofmt -w .", "for scripts"},
		},
		exits: [][2]string{
			{"N", "the command's own status; 128+S when signal S ended it"},
			{"125", "Galley failed before the command ran, or the commit of --commit-if-ok was refused"},
			{"126", "the command was found and cannot be executed"},
			{"127", "the command was not found"},
		},
	}.apply(&cli.Command{
		Name: "run", Category: catWork, Usage: "run a command on a copy-on-write view of the project", ArgsUsage: "COMMAND",
		Flags: flags,
		Action: func(c *cli.Context) error {
			if !c.Args().Present() && c.String("sandbox") != "microvm" {
				return usagef(c, "no command to run")
			}
			o := runOptions{
				base: c.String("base"), session: c.String("session"), create: c.Bool("new"), overlays: c.StringSlice("overlay"),
				rules:  snapshots.Rules{Hide: c.StringSlice("hide"), ReadOnly: c.StringSlice("read-only")},
				commit: c.Bool("commit-if-ok"), discard: c.Bool("discard"), quiet: c.Bool("quiet"),
			}
			if o.commit && o.discard {
				return usagef(c, "--commit-if-ok and --discard exclude each other")
			}
			if o.base != "" && o.session != "" && !o.create {
				return usagef(c, "--base chooses a project and --session a session; give one of them, or --new")
			}
			if err := checkPatterns(c, o.rules); err != nil {
				return err
			}
			var err error
			if o.maxSize, err = maxSizeOf(c); err != nil {
				return err
			}
			if o.sandbox, err = sandboxOptionsOf(c); err != nil {
				return err
			}
			if err := o.sandbox.more(c, e); err != nil {
				return err
			}
			if o.detach, o.idle, err = detachOf(c, o.sandbox.guest.on); err != nil {
				return err
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return runRun(ctx, e, st, o, c.Args().Slice())
			})
		},
	})
}

// checkPatterns refuses patterns before anything is made for them.
func checkPatterns(c *cli.Context, r snapshots.Rules) error {
	for option, list := range map[string][]string{"hide": r.Hide, "read-only": r.ReadOnly} {
		for _, p := range list {
			if p == "" || !doublestar.ValidatePattern(p) {
				return usagef(c, "--%s %q does not parse: expected a pattern such as '**/.env', with closed brackets and braces", option, p)
			}
			if strings.HasPrefix(p, "/") {
				return usagef(c, "--%s %q: patterns are relative to the root of the tree, without a leading slash", option, p)
			}
		}
	}
	return nil
}

func runRun(ctx context.Context, e *env, st *snapshots.Store, o runOptions, command []string) error {
	sess, made, err := e.runSession(ctx, st, o)
	if err != nil {
		return err
	}
	if o.commit || o.discard {
		if err := refuseInterrupted(sess); err != nil {
			return err
		}
	}
	err = e.work(ctx, sess, o, command)
	if not := (*notStarted)(nil); made && errors.As(err, &not) {
		e.takeBack(ctx, st, sess)
	}
	return err
}

// runSession finds the session to work in, or makes it, and gives it the trees
// and rules that were asked for. Made tells which it was.
func (e *env) runSession(ctx context.Context, st *snapshots.Store, o runOptions) (sess *snapshots.Session, made bool, err error) {
	extra, err := extraTrees(o.overlays)
	if err != nil {
		return nil, false, err
	}
	if o.session != "" && !o.create {
		sess, err := e.namedSession(st, o.session)
		if err != nil {
			return nil, false, withHint(err, "galley run --new --session "+o.session+" -- … starts one of that name")
		}
		return sess, false, e.extend(ctx, sess, extra, o)
	}
	base := o.base
	if base == "" {
		dir, err := os.Getwd()
		if err != nil {
			return nil, false, fmt.Errorf("find the current directory: %w", err)
		}
		base = projectDir(dir)
	}
	if !o.create {
		sess, err := sessionOf(st, base)
		if err == nil {
			return sess, false, e.extend(ctx, sess, extra, o)
		}
		if !errors.Is(err, snapshots.ErrNotFound) {
			return nil, false, err
		}
	}
	sess, err = st.Create(ctx, snapshots.Spec{Name: o.session, Base: base, Extra: extra, Rules: o.rules, MaxSize: max(0, o.maxSize)})
	return sess, err == nil, createError(err)
}

// sessionOf is the session whose workspace is based on exactly that directory.
func sessionOf(st *snapshots.Store, base string) (*snapshots.Session, error) {
	real, err := filepath.EvalSymlinks(base)
	if err != nil {
		return nil, snapshots.ErrNotFound // Create says what is wrong with it
	}
	if real, err = filepath.Abs(real); err != nil {
		return nil, fmt.Errorf("resolve %q: %w", base, err)
	}
	sess, err := st.FindForDir(real)
	if err != nil {
		return nil, err
	}
	if sess.Trees()[0].Base != real {
		return nil, snapshots.ErrNotFound
	}
	return sess, nil
}

// createError adds the next step to why a session could not be made.
func createError(err error) error {
	switch {
	case errors.Is(err, snapshots.ErrBadBase):
		return withHint(err, "--base DIR chooses another directory")
	case errors.Is(err, snapshots.ErrExists):
		return withHint(err, "without --new the session of that name is used", "galley sessions lists all")
	case errors.Is(err, snapshots.ErrBadName):
		return withHint(err, "letters, digits, '-', '_' and '.' make a name")
	}
	return err
}

// extraTrees are the trees that --overlay asks for, each named after its
// directory.
func extraTrees(dirs []string) ([]snapshots.TreeSpec, error) {
	var out []snapshots.TreeSpec
	taken := map[string]bool{snapshots.Workspace: true}
	for _, d := range dirs {
		abs, err := filepath.Abs(d)
		if err != nil {
			return nil, fmt.Errorf("resolve %q: %w", d, err)
		}
		real, err := filepath.EvalSymlinks(abs)
		if err != nil {
			return nil, fmt.Errorf("--overlay %q: expected a directory: %w", d, err)
		}
		out = append(out, snapshots.TreeSpec{Name: snapshots.TreeName(real, taken), Base: real, Mount: abs})
	}
	return out, nil
}

// extend gives a session that exists another bound, more trees and patterns. What it has is
// passed over, so that the same command line works again; others need a
// session that nobody works in.
func (e *env) extend(ctx context.Context, sess *snapshots.Session, extra []snapshots.TreeSpec, o runOptions) error {
	if err := e.bound(ctx, sess, o.maxSize); err != nil {
		return err
	}
	taken := map[string]bool{}
	for _, t := range sess.Trees() {
		taken[t.Name] = true
	}
	for _, t := range extra {
		if hasTree(sess, t.Base) {
			continue
		}
		t.Name = snapshots.TreeName(t.Base, taken)
		if err := whenIdle(ctx, sess, func() error { return sess.AddTree(ctx, t) }); err != nil {
			return extendError(sess, "add the tree "+t.Base, err)
		}
	}
	old := sess.Rules()
	merged := snapshots.Rules{Hide: union(old.Hide, o.rules.Hide), ReadOnly: union(old.ReadOnly, o.rules.ReadOnly)}
	if len(merged.Hide) == len(old.Hide) && len(merged.ReadOnly) == len(old.ReadOnly) {
		return nil
	}
	if err := whenIdle(ctx, sess, func() error { return sess.SetRules(merged) }); err != nil {
		return extendError(sess, "add the patterns", err)
	}
	return nil
}

func extendError(sess *snapshots.Session, what string, err error) error {
	if !errors.Is(err, snapshots.ErrBusy) {
		return createError(err)
	}
	return withHint(fmt.Errorf("%s: session %q is at work, and its trees and patterns stay as they are meanwhile", what, sess.Name()),
		"wait until it has ended, or --new starts another session")
}

func hasTree(sess *snapshots.Session, base string) bool {
	for _, t := range sess.Trees() {
		if t.Base == base {
			return true
		}
	}
	return false
}

// union is a with the elements of b that it lacks.
func union(a, b []string) []string {
	out := append([]string(nil), a...)
	seen := map[string]bool{}
	for _, s := range a {
		seen[s] = true
	}
	for _, s := range b {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}
