package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/review"
	"github.com/galleyfs/galley/review/commit"
	"github.com/galleyfs/galley/sandbox/local"
	"github.com/galleyfs/galley/sandbox/microvm"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/sandbox/redact"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm/guest"
)

// work runs a command in a sandbox that shows the session's trees, seals when
// it has ended, and says what the session holds.
func (e *env) work(ctx context.Context, sess *snapshots.Session, o runOptions, command []string) error {
	switch {
	case o.sandbox.virtual:
		return e.workVirtual(ctx, sess, o, command)
	case o.sandbox.guest.on:
		return e.workGuest(ctx, sess, o, command)
	}
	for _, t := range sess.Trees() {
		if t.Mount == "/" && !t.OnImage() {
			return withHint(&notStarted{errors.New("a session of the whole file system, /, cannot be shown to a command")},
				"start in the project's directory, or name it with --base DIR")
		}
	}
	client, err := owner.Ensure(ctx, sess, owner.Options{Log: e.log})
	if err != nil {
		return withHint(&notStarted{fmt.Errorf("start the owner of session %q: %w", sess.Name(), err)}, "galley doctor explains what this machine lacks")
	}
	defer client.Close()
	noteSandbox(sess, inLocal, e.log)
	return e.around(ctx, sess, client, o, command, func() (local.Result, error) {
		return e.sandbox(ctx, sess, client, o.sandbox, command)
	})
}

// around runs a command between two seals.
func (e *env) around(ctx context.Context, sess *snapshots.Session, ctrl owner.Controller, o runOptions, command []string, run func() (local.Result, error)) error {
	text := redact.New(o.sandbox.secrets).String(commandText(command))
	// What others did since the last point is not the command's doing.
	last, err := ctrl.Seal(ctx, snapshots.SealOptions{Cause: snapshots.Cause{Kind: snapshots.CauseBefore, Text: text}})
	if err != nil {
		return fmt.Errorf("seal session %q: %w", sess.Name(), err)
	}
	cause := snapshots.Cause{Kind: snapshots.CauseCommand, Text: text, Start: time.Now()}
	res, runErr := run()
	if errors.Is(runErr, local.ErrDirectory) {
		place := sess.Trees()[0].Mount
		if o.sandbox.guest.on {
			place = microvm.Workdir
		}
		return withHint(&notStarted{runErr}, "the session may have removed it; start in a directory that is there, such as "+place,
			"galley diff --name-status lists what the session changed")
	}
	if f := (*guest.Failure)(nil); errors.As(runErr, &f) && f.Kind == guest.BadUser {
		return withHint(&notStarted{runErr}, "--user takes a name of the guest's /etc/passwd, or a number")
	}
	if runErr != nil && res.Code != exitMissing && res.Code != exitCannot {
		return withHint(&notStarted{runErr}, "galley doctor explains what this machine lacks")
	}
	cause.Duration, cause.Exit = time.Since(cause.Start), &res.Code
	// What the command did is sealed and told also when the command, or the
	// terminal around it, was told to end.
	ctx = context.WithoutCancel(ctx)
	if err := e.afterWork(ctx, sess, ctrl, o, last.Number, res, cause); err != nil {
		return err
	}
	if runErr != nil {
		return &failure{err: runErr, code: res.Code}
	}
	if res.Code != 0 {
		return silent(res.Code)
	}
	return nil
}

// notStarted is why a command did not run at all, or its sandbox broke.
type notStarted struct{ err error }

func (e *notStarted) Error() string { return e.err.Error() }
func (e *notStarted) Unwrap() error { return e.err }

// sandbox runs the command.
func (e *env) sandbox(ctx context.Context, sess *snapshots.Session, client *owner.Client, o sandboxOptions, command []string) (local.Result, error) {
	dir, err := os.Getwd()
	if err != nil {
		return local.Result{Code: exitFailed}, fmt.Errorf("find the current directory: %w", err)
	}
	out, err := e.struckOutput(o.secrets)
	if err != nil {
		return local.Result{Code: exitFailed}, err
	}
	defer out.close()
	cfg := local.Config{
		Command: command, Dir: e.workDir(sess, dir), Env: environ(os.Environ(), o.secrets),
		Stdin: e.stdin, Stdout: out.stdout, Stderr: out.stderr,
		AllowSockets: o.sockets, AllowAbstractSockets: o.abstract, HostTmp: o.hostTmp,
		Caches: o.caches, Hide: []string{sess.Store().Home()},
	}
	if home := e.getenv("HOME"); !o.noCaches && home != "" {
		cfg.Caches = append(cfg.Caches, local.DefaultCaches(home)...)
	}
	for _, t := range sess.Trees() {
		if t.OnImage() {
			continue // a guest's
		}
		cfg.Views = append(cfg.Views, e.view(client, t, o, redact.New(o.secrets).String(strings.Join(command, " "))))
	}
	// From here on signals are the command's: one that cancelled ctx would end
	// it with SIGKILL, whatever it does about them.
	if err := context.Cause(ctx); err != nil {
		return local.Result{Code: exitFailed}, err
	}
	return local.Run(context.WithoutCancel(ctx), cfg)
}

// workDir is where the command starts: here, where that is in the session's
// trees or nothing else was asked for, else in the workspace.
func (e *env) workDir(sess *snapshots.Session, dir string) string {
	if p, ok := inTrees(sess.Trees(), dir); ok {
		for _, t := range sess.Trees() {
			if t.Name == p.tree && p.path != "" {
				return t.Mount + "/" + p.path
			}
			if t.Name == p.tree {
				return t.Mount
			}
		}
	}
	return sess.Trees()[0].Mount
}

// view is a tree in the sandbox, served by the session's owner.
func (e *env) view(client *owner.Client, t snapshots.TreeSpec, o sandboxOptions, description string) local.View {
	return local.View{
		Path: t.Mount,
		Serve: func(ctx context.Context, dev *os.File) error {
			defer dev.Close()
			_, err := client.ServeFUSE(ctx, owner.FUSE{
				Tree: t.Name, Mountpoint: t.Mount, Private: true, Writeback: o.writeback, Description: description,
			}, int(dev.Fd()))
			if err != nil {
				return fmt.Errorf("serve tree %s: %w", t.Name, err)
			}
			return nil
		},
	}
}

// afterWork seals what the command did, commits or discards it if that was
// asked for, and says what there is.
func (e *env) afterWork(ctx context.Context, sess *snapshots.Session, ctrl owner.Controller, o runOptions, before overlay.LayerID, res local.Result, cause snapshots.Cause) error {
	snap, err := ctrl.Seal(ctx, snapshots.SealOptions{Cause: cause})
	if err != nil {
		return withHint(fmt.Errorf("seal session %q: %w", sess.Name(), err), "the changes are in the session; galley status")
	}
	e.recordCommand(sess, snap, cause)
	if o.quiet && !o.commit && !o.discard {
		return nil
	}
	p, err := openProof(ctx, sess, snap)
	if err != nil {
		return err
	}
	defer p.Close()
	e.remember(p, p.set)
	inImages, err := p.inImages()
	if err != nil {
		return err
	}
	switch {
	case p.set.Empty() && inImages == "":
		e.say(o, "galley: nothing changed in session %s\n", safeLine(sess.Name()))
		return nil
	case o.discard:
		return e.discardAfter(ctx, ctrl, p)
	case o.commit && res.Code == 0:
		return e.commitAfter(ctx, p, o)
	case p.set.Empty():
		e.say(o, "galley: session %s has changes %s; galley diff --tree %s · galley discard\n", safeLine(sess.Name()), inImages, p.onImages()[0].Name)
		return nil
	case snap.Number == before:
		e.say(o, "galley: nothing changed; session %s holds %s from before; galley diff · galley commit · galley discard\n",
			safeLine(sess.Name()), ui.Count(len(p.set.Changes), "change", "changes"))
		return nil
	}
	also := ""
	if inImages != "" {
		also = ", and changes " + inImages
	}
	e.say(o, "galley: %s in session %s%s; galley diff · galley commit · galley discard\n", review.Summary(p.set), safeLine(sess.Name()), also)
	e.tellDrift(p.set)
	return nil
}

// say tells something that --quiet leaves out.
func (e *env) say(o runOptions, format string, args ...any) {
	if !o.quiet {
		fmt.Fprintf(e.stderr, format, args...)
	}
}

func (e *env) discardAfter(ctx context.Context, ctrl owner.Controller, p *proof) error {
	t, err := ctrl.Discard(ctx, snapshots.Discard{})
	if err != nil {
		return fmt.Errorf("discard changes of session %q: %w", p.session.Name(), err)
	}
	fmt.Fprintf(e.stderr, "galley: discarded %s of session %s; galley sessions restore %s brings them back\n",
		ui.Count(len(p.set.Changes), "change", "changes"), safeLine(p.session.Name()), t.ID)
	return nil
}

// commitAfter commits everything. A refusal is an error of Galley's, because
// the status of the command, which is 0, would hide it.
func (e *env) commitAfter(ctx context.Context, p *proof, o runOptions) error {
	plan, err := commit.NewPlan(p.set, commit.Options{})
	if err != nil {
		return err
	}
	if plan.Empty() {
		return e.nothingToCommit(p, plan, commitOptions{})
	}
	h := &hand{sess: p.session}
	defer h.letGo()
	if err := e.applyCommit(ctx, h, p, plan, nil, commitOptions{}); err != nil {
		return &failure{err: err, code: exitFailed}
	}
	return nil
}
