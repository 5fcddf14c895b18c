package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/review"
	"github.com/galleyfs/galley/review/commit"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

// commitOptions are the options of `galley commit`.
type commitOptions struct {
	session string
	digest  string
	yes     bool
	dryRun  bool
	json    bool
	stage   string
	tree    string
	keep    commit.Options
}

// commitInfo is what `galley commit --json` prints.
type commitInfo struct {
	Session   string     `json:"session"`
	Digest    string     `json:"digest"`
	DryRun    bool       `json:"dry_run"`
	Commit    string     `json:"commit,omitempty"`
	Committed []pathInfo `json:"committed"`
	Implied   []pathInfo `json:"implied"`
	Skipped   []noteInfo `json:"skipped"`
	Dropped   []noteInfo `json:"dropped"`
	Broken    []noteInfo `json:"broken_links"`
	Stages    []string   `json:"stages"`
	// Drift lists what refuses the commit; only a dry run gets to print it.
	Drift []driftInfo `json:"drift"`
}

func commitCommand(e *env) *cli.Command {
	return manual{
		usage: []string{
			"commit [PATHS…]",
			"commit --digest D [PATHS…]",
			"commit --yes [PATHS…]",
			"commit --dry-run [PATHS…]",
			"commit --tree NAME …",
		},
		about: `
Writes the session's changes to the project: all of them or none, also through a power
cut. On a terminal it shows them and asks. Scripts name what was reviewed by its digest,
which galley diff --json and galley status print, or take what is there with --yes.

What changed on the host meanwhile (drift) is never overwritten: the commit is refused
and says where. PATHS commit a part; what that part cannot be without comes along and is
named. Set-id bits, device nodes, fifos, sockets and security attributes are left out
unless asked for. New content is staged beside the project, or in it where its parent
cannot be written. Committed changes leave the session; an interrupted commit is
finished or taken back by galley recover.`,
		json: `{"session", "digest", "dry_run", "commit", "committed": [{"tree", "path", "kind"}],
 "implied": [{"tree", "path", "kind"}], "skipped": [{"tree", "path", "what"}],
 "dropped": [{"tree", "path", "what"}], "broken_links": [{"tree", "path", "what"}],
 "stages": [dir], "drift": [{"tree", "path", "kind", "text"}]}
A path that is not UTF-8 has its bytes beside it, in path_base64.`,
		examples: [][2]string{
			{"galley commit", "show, ask, commit"},
			{"galley commit src/main.go docs", "a file and all below a directory"},
			{"galley commit --digest $(galley diff --json | jq -r .digest)", "exactly what was reviewed"},
			{"galley commit --dry-run", "what would be written, and what stands in the way"},
		},
		exits: [][2]string{
			exitDone, exitRefusal,
			{"3", "refused, nothing changed: drift, the base changed on the host"},
			{"4", "refused, nothing changed: the session has no change set of that digest"},
			exitErrors,
		},
	}.apply(&cli.Command{
		Name: "commit", Category: catWork, Usage: "write the session's changes to the project", ArgsUsage: "PATHS…",
		Flags: []cli.Flag{
			boolFlag("dry-run", "only say what would be written", "n"),
			&cli.StringFlag{Name: "digest", Usage: "commit the change set of digest `D` (12 digits or more of it)"},
			boolFlag("yes", "commit what the session holds now, without a question", "y"),
			boolFlag("keep-setid", "carry set-user-id and set-group-id bits"),
			boolFlag("keep-special", "carry device nodes, fifos and sockets"),
			boolFlag("keep-security-xattrs", "carry security.* and trusted.* attributes, file capabilities among them"),
			&cli.StringFlag{Name: "tree", Usage: "only changes of the tree `NAME`"},
			&cli.StringFlag{Name: "stage", Usage: "stage in `DIR`, which must be on the project's file system"},
			jsonFlag(), sessionFlag(),
		},
		Action: func(c *cli.Context) error {
			o := commitOptions{
				session: c.String("session"), digest: strings.ToLower(c.String("digest")), yes: c.Bool("yes"),
				dryRun: c.Bool("dry-run"), json: c.Bool("json"), stage: c.String("stage"), tree: c.String("tree"),
				keep: commit.Options{KeepSetID: c.Bool("keep-setid"), KeepSpecial: c.Bool("keep-special"), KeepSecurityXattrs: c.Bool("keep-security-xattrs")},
			}
			if o.digest != "" && !isDigest(o.digest) {
				return usagef(c, "--digest %q: expected 12 to 64 hexadecimal digits, as galley diff --json prints them", c.String("digest"))
			}
			if o.stage != "" {
				var err error
				// A recovery, which reads it in the journal, may run elsewhere.
				if o.stage, err = existingDir("--stage", o.stage); err != nil {
					return err
				}
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return runCommit(ctx, e, st, o, c.Args().Slice())
			})
		},
	})
}

func isDigest(s string) bool {
	return len(s) >= 12 && len(s) <= 64 && strings.Trim(s, "0123456789abcdef") == ""
}

func runCommit(ctx context.Context, e *env, st *snapshots.Store, o commitOptions, operands []string) error {
	sess, err := e.findSession(st, o.session)
	if err != nil {
		return err
	}
	if o.tree != "" {
		if operands, err = onlyTree(sess, o.tree, operands); err != nil {
			return err
		}
	}
	if !o.yes && !o.dryRun && o.digest == "" && !e.interactive() {
		return withHint(refusef("no terminal to ask on, and neither --digest nor --yes"),
			"galley diff --json prints the digest; galley commit --digest D commits what it names",
			"galley commit --yes commits whatever the session holds now")
	}
	if err := refuseInterrupted(sess); err != nil {
		return err
	}
	h := &hand{sess: sess}
	defer h.letGo()
	part, err := e.choosePart(ctx, h, o.digest, operands)
	if err != nil {
		return err
	}
	p := part.proof
	defer p.Close()
	e.remember(p, part.set)
	plan, err := commit.NewPlan(part.set, o.keep)
	if err != nil {
		return err
	}
	if plan.Empty() {
		return e.nothingToCommit(p, plan, o)
	}
	if o.dryRun {
		return e.showPlan(p, plan, part.added, o.json)
	}
	if o.digest == "" && !o.yes {
		// A person may take long.
		if err := h.letGo(); err != nil {
			return fmt.Errorf("seal session %q: %w", sess.Name(), err)
		}
		if err := e.askToCommit(p, plan, part.added); err != nil {
			return err
		}
	}
	return e.applyCommit(ctx, h, p, plan, part.added, o)
}

// onlyTree makes operands that choose a tree, and refuses one on an image.
func onlyTree(sess *snapshots.Session, name string, operands []string) ([]string, error) {
	tree, err := treeOf(sess, name)
	if err != nil {
		return nil, err
	}
	if tree.OnImage() {
		return nil, withHint(refusef("tree %s stands on image %s, which stays what it is: nothing is committed into it", tree.Name, safeLine(tree.Image.Name)),
			"galley image from "+sess.Name()+" NAME makes a new image with its changes", "galley diff --tree "+tree.Name+" shows them")
	}
	if len(operands) == 0 {
		return []string{tree.Base}, nil
	}
	if _, err := resolvePaths([]snapshots.TreeSpec{tree}, operands); err != nil {
		return nil, err
	}
	return operands, nil
}

// refuseInterrupted refuses to commit on top of a commit that stopped midway.
func refuseInterrupted(sess *snapshots.Session) error {
	pending, err := commit.Pending(hostfs.OS, sess.CommitsDir())
	if err != nil {
		return fmt.Errorf("look for interrupted commits of session %q: %w", sess.Name(), err)
	}
	if len(pending) == 0 {
		return nil
	}
	return withHint(refusef("a commit of session %q was interrupted, or is at work in another process", sess.Name()),
		"galley recover finishes it or takes it back")
}

// part is what of a proof is to be committed.
type part struct {
	proof *proof
	set   *review.ChangeSet
	added []review.Dependency // what set has beside what was asked for
}

// partOf picks the changes that the operands name. The digest may be that of
// all changes of the snapshot or of the part, whichever was shown.
func partOf(p *proof, digest string, operands []string) (part, error) {
	out := part{proof: p, set: p.set}
	sel, err := p.choose(operands)
	if err != nil {
		return out, err
	}
	if sel != nil {
		out.set, out.added = sel.Set, sel.Added
	}
	if strings.HasPrefix(p.set.Digest().String(), digest) || strings.HasPrefix(out.set.Digest().String(), digest) {
		return out, nil
	}
	return out, &failure{
		err:   fmt.Errorf("session %q has no change set of digest %s; nothing was committed", p.session.Name(), digest),
		code:  exitDigest,
		hints: []string{"what it has now is " + out.set.Digest().String(), "galley diff shows it"},
	}
}

// choosePart finds what a digest names: at a snapshot where it was shown, or in
// the session as it is now. Without a digest it is the latter.
func (e *env) choosePart(ctx context.Context, h *hand, digest string, operands []string) (part, error) {
	sess := h.sess
	progress := e.progress("computing the changes")
	defer progress.Close()
	var drifted *commit.DriftError
	if digest != "" {
		for _, n := range reviewedSnapshots(sess.Dir(), digest) {
			found, err := partAt(ctx, sess, n, digest, operands)
			if err == nil {
				return found, nil
			}
			errors.As(err, &drifted)
			e.log.Debug("snapshot of the reviewed digest", "snapshot", n, "err", err)
		}
	}
	snap, err := h.seal(ctx, snapshots.Cause{Kind: snapshots.CauseReview})
	if err != nil {
		return part{}, err
	}
	p, err := openProof(ctx, sess, snap)
	if err != nil {
		return part{}, err
	}
	found, err := partOf(p, digest, operands)
	if err != nil {
		p.Close()
	}
	switch {
	case err == nil:
	case drifted != nil:
		err = commitError(drifted)
	case digest != "" && len(reviewedSnapshots(sess.Dir(), digest)) > 0:
		err = withHint(err, "that digest was shown before: the base has changed on the host since, or it was of other PATHS")
	}
	return found, err
}

// partAt finds what a digest names at a snapshot where it was shown. Where it
// has become another one because the base changed on the host, the error is what
// drifted.
func partAt(ctx context.Context, sess *snapshots.Session, n overlay.LayerID, digest string, operands []string) (part, error) {
	snap, err := sess.Snapshot(fmt.Sprint(n))
	if err != nil {
		return part{}, err
	}
	p, err := openProof(ctx, sess, snap)
	if err != nil {
		return part{}, err
	}
	found, err := partOf(p, digest, operands)
	if err != nil {
		if drift := driftOf(found.set); drift != nil {
			err = drift
		}
		p.Close()
	}
	return found, err
}

// driftOf is what would refuse a change set now, nil if nothing would.
func driftOf(set *review.ChangeSet) error {
	var drift commit.DriftError
	for _, c := range set.Drifted() {
		d := c.Drift
		drift.Paths = append(drift.Paths, commit.Drifted{Tree: c.Tree, Path: d.Path, Kind: d.Kind, Text: d.Text})
	}
	if drift.Paths == nil {
		return nil
	}
	return &drift
}

func (e *env) nothingToCommit(p *proof, plan *commit.Plan, o commitOptions) error {
	if o.json {
		return ui.JSON(e.stdout, planInfo(p, plan, nil))
	}
	for _, n := range plan.Skipped {
		fmt.Fprintf(e.stderr, "galley: left out: %s: %s\n", safePath(n.Path), safeLine(n.What))
	}
	fmt.Fprintf(e.stderr, "galley: nothing to commit in session %s\n", safeLine(p.session.Name()))
	for _, t := range p.onImages() {
		if paths, err := p.touched(t); err == nil && len(paths) > 0 {
			fmt.Fprintf(e.stderr, "galley: changes of tree %s, on image %s, are kept by galley image from %s NAME\n",
				t.Name, safeLine(t.Image.Name), safeLine(p.session.Name()))
		}
	}
	return nil
}

// askToCommit shows what would be committed and takes anything but yes for no.
func (e *env) askToCommit(p *proof, plan *commit.Plan, added []review.Dependency) error {
	e.printPlan(p, plan, added)
	yes, err := ui.Ask(e.stderr, e.stdin, "commit to "+bases(p)+"?")
	if err != nil {
		return err
	}
	if !yes {
		return refusef("nothing was committed")
	}
	return nil
}

func bases(p *proof) string {
	var out []string
	for _, t := range p.session.Trees() {
		if !t.OnImage() {
			out = append(out, safePath(t.Base))
		}
	}
	return strings.Join(out, " and ")
}

// applyCommit writes the plan to the bases, then takes what was written out of
// the session.
func (e *env) applyCommit(ctx context.Context, h *hand, p *proof, plan *commit.Plan, added []review.Dependency, o commitOptions) error {
	id, err := newCommitID(p.session, p.snapshot.Number)
	if err != nil {
		return err
	}
	progress := e.progress("committing")
	defer progress.Close()
	dir := filepath.Join(p.session.CommitsDir(), id)
	cfg := commit.Config{
		FS: e.commitFS, Trees: commitTrees(p.session), Source: commit.ChangeSetSource(p.set),
		CommitDir: dir, LockDir: lockDir(p.session), StageDir: o.stage, Log: e.log,
		Leaving: p.set.Dropped(plan.Changes),
		Before: func(ctx context.Context) error {
			progress.What("keeping the older snapshots as they are")
			return keepOlder(ctx, h, id, plan.Changes)
		},
		Progress: func(c commit.Progress) {
			progress.What(phaseWords[c.Phase])
			progress.Set(int64(c.Done), int64(c.Total))
		},
	}
	res, err := commit.Apply(ctx, cfg, plan)
	if err != nil {
		return commitError(err)
	}
	progress.What("updating the session")
	settled := settle(context.WithoutCancel(ctx), h, p.snapshot.Number, dir, id, res)
	progress.Close()
	info := resultInfo(p, plan, added, res, id)
	if o.json {
		err = ui.JSON(e.stdout, info)
	} else {
		e.printResult(info)
	}
	if settled != nil {
		return withHint(fmt.Errorf("the commit is done, but session %q still lists it: %w", p.session.Name(), settled),
			"galley recover takes the committed changes out of the session")
	}
	return err
}

// phaseWords name the phases of a commit for a person who waits.
var phaseWords = map[string]string{
	"check": "looking for drift", "stage": "staging", "sync": "writing to the disk", "apply": "committing",
}

func commitTrees(sess *snapshots.Session) []commit.Tree {
	var out []commit.Tree
	for _, t := range sess.Trees() {
		if t.OnImage() {
			continue
		}
		out = append(out, commit.Tree{Name: t.Name, BasePath: t.Base})
	}
	return out
}

// lockDir holds the locks of the bases: one for all sessions of a store.
func lockDir(sess *snapshots.Session) string { return filepath.Join(sess.Store().Home(), "run") }

// settle takes committed entries out of the session, by its owner or under its
// lock, and closes the commit's journal.
func settle(ctx context.Context, h *hand, n overlay.LayerID, dir, id string, res *commit.Result) error {
	paths := map[string][]snapshots.Path{}
	for _, p := range res.Leaving {
		paths[p.Tree] = append(paths[p.Tree], snapshots.Path(p.Path))
	}
	err := h.do(ctx, func(ctrl owner.Controller) error {
		_, err := ctrl.Committed(ctx, snapshots.Committed{Snapshot: n, Commit: id, Paths: paths})
		return err
	})
	if closeErr := h.letGo(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return commit.Settle(ctx, hostfs.OS, dir)
}

// commitError gives the errors of a commit their status and next steps.
func commitError(err error) error {
	var (
		drift   *commit.DriftError
		content *commit.ContentError
	)
	switch {
	case errors.As(err, &drift):
		f := &failure{err: err, code: exitDrift}
		f.hints = append(f.hints, "galley commit PATHS commits the rest; galley discard PATHS drops a change")
		if slices.ContainsFunc(drift.Paths, func(d commit.Drifted) bool { return d.Kind == review.DriftContent }) {
			f.hints = append(f.hints, "galley diff PATH shows the session's side; take over by hand what both sides need")
		}
		return f
	case errors.As(err, &content):
		return &failure{err: err, code: exitDigest}
	case errors.Is(err, commit.ErrLocked):
		return withHint(&failure{err: err, code: exitRefused}, "wait until it has ended, then try again")
	}
	return err
}
