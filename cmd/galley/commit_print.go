package main

import (
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/review"
	"github.com/galleyfs/galley/review/commit"
	"github.com/galleyfs/galley/snapshots"
)

// newCommitID names a commit's directory: the time, something that no other
// commit has, and the snapshot that is committed, which a recovery needs.
func newCommitID(sess *snapshots.Session, n overlay.LayerID) (string, error) {
	if err := os.MkdirAll(sess.CommitsDir(), 0o700); err != nil {
		return "", fmt.Errorf("make the directory of the commits: %w", err)
	}
	return fmt.Sprintf("%s-%s-%d", time.Now().UTC().Format("20060102-150405"), strings.ToLower(rand.Text()[:6]), n), nil
}

// committedSnapshot is the snapshot that newCommitID put into id.
func committedSnapshot(id string) (overlay.LayerID, bool) {
	n, err := strconv.ParseUint(id[strings.LastIndexByte(id, '-')+1:], 10, 32)
	return overlay.LayerID(n), err == nil
}

func planInfo(p *proof, plan *commit.Plan, added []review.Dependency) commitInfo {
	i := commitInfo{
		Session: p.session.Name(), Digest: plan.Digest.String(), DryRun: true,
		Committed: changePaths(plan.Changes), Implied: []pathInfo{},
		Skipped: notes(plan.Skipped), Dropped: notes(plan.Dropped),
		Broken: []noteInfo{}, Stages: []string{}, Drift: []driftInfo{},
	}
	for _, d := range added {
		i.Implied = append(i.Implied, newPathInfo(d.Change))
	}
	for _, c := range plan.Changes {
		if c.Drift.Kind != review.DriftNone {
			i.Drift = append(i.Drift, newDriftInfo(c))
		}
	}
	return i
}

func resultInfo(p *proof, plan *commit.Plan, added []review.Dependency, r *commit.Result, id string) commitInfo {
	i := planInfo(p, plan, added)
	i.DryRun, i.Commit = false, id
	i.Skipped, i.Dropped, i.Broken = notes(r.Skipped), notes(r.Dropped), notes(r.BrokenLinks)
	i.Stages = append(i.Stages, r.Stages...)
	return i
}

// showPlan prints what a commit would do; a dry run that would be refused says
// so in its status too.
func (e *env) showPlan(p *proof, plan *commit.Plan, added []review.Dependency, asJSON bool) error {
	info := planInfo(p, plan, added)
	if asJSON {
		if err := ui.JSON(e.stdout, info); err != nil {
			return err
		}
	} else {
		e.printPlan(p, plan, added)
		fmt.Fprintln(e.stderr, "galley: dry run, nothing was committed")
	}
	if len(info.Drift) > 0 {
		return silent(exitDrift)
	}
	return nil
}

// printPlan shows a plan: every change, what comes along, what is left out or
// stripped, drift, and the digest.
func (e *env) printPlan(p *proof, plan *commit.Plan, added []review.Dependency) {
	why := map[*review.Change]string{}
	for _, d := range added {
		why[d.Change] = fmt.Sprintf("comes along with %s: %s", safePath(d.For.Path), d.Reason)
	}
	e.printChanges(plan.Changes, why)
	for _, n := range plan.Skipped {
		fmt.Fprintf(e.stdout, "%s %s: %s\n", e.out.Yellow("left out:"), safePath(n.Path), safeLine(n.What))
	}
	for _, n := range plan.Dropped {
		fmt.Fprintf(e.stdout, "%s %s: %s\n", e.out.Yellow("stripped:"), safePath(n.Path), safeLine(n.What))
	}
	fmt.Fprintf(e.stdout, "%s of session %s\ndigest %s\n",
		ui.Count(len(plan.Changes), "change", "changes"), e.out.Bold(safeLine(p.session.Name())), plan.Digest)
}

// printChanges lists changes, all of them, each with the reasons to look twice
// and its drift. Notes adds a line to some.
func (e *env) printChanges(list []*review.Change, notes map[*review.Change]string) {
	several := slices.ContainsFunc(list, func(c *review.Change) bool { return c.Tree != list[0].Tree })
	for _, c := range list {
		line := e.letter(c) + " "
		if several {
			line += c.Tree + ": "
		}
		if c.Kind == review.Renamed {
			line += safePath(c.From) + " -> "
		}
		line += safePath(c.Path)
		if c.IsDir() && c.Path != "" {
			line += "/"
		}
		fmt.Fprintln(e.stdout, line)
		if n := notes[c]; n != "" {
			fmt.Fprintf(e.stdout, "    %s\n", safeLine(n))
		}
		for _, f := range c.Flags {
			fmt.Fprintf(e.stdout, "    %s %s\n", e.out.Yellow("look:"), safeLine(f.Text))
		}
		if c.Drift.Kind != review.DriftNone {
			fmt.Fprintf(e.stdout, "    %s %s: %s\n", e.out.Red("drift:"), safePath(c.Drift.Path), safeLine(c.Drift.Text))
		}
	}
}

func (e *env) letter(c *review.Change) string {
	letter := string(c.Kind.Letter())
	switch c.Kind {
	case review.Added:
		return e.out.Green(letter)
	case review.Deleted:
		return e.out.Red(letter)
	case review.Renamed:
		return e.out.Cyan(letter)
	}
	return e.out.Yellow(letter)
}

func (e *env) printResult(i commitInfo) {
	for _, n := range i.Skipped {
		fmt.Fprintf(e.stderr, "galley: left out: %s: %s\n", safePath(n.Path), safeLine(n.What))
	}
	for _, n := range i.Dropped {
		fmt.Fprintf(e.stderr, "galley: stripped: %s: %s\n", safePath(n.Path), safeLine(n.What))
	}
	for _, n := range i.Broken {
		fmt.Fprintf(e.stderr, "galley: link broken: %s: %s\n", safePath(n.Path), safeLine(n.What))
	}
	line := "galley: committed " + ui.Count(len(i.Committed), "change", "changes") + " of session " + safeLine(i.Session)
	if len(i.Stages) > 0 {
		line += ", staged in " + safePath(strings.Join(i.Stages, ", "))
	}
	fmt.Fprintln(e.stderr, line)
}
