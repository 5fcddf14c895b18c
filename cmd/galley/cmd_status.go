package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/review"
	"github.com/galleyfs/galley/review/commit"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

// statusInfo is what `galley status --json` prints.
type statusInfo struct {
	Session  string               `json:"session"`
	ID       string               `json:"id"`
	Trees    []snapshots.TreeSpec `json:"trees"`
	Created  time.Time            `json:"created"`
	Snapshot overlay.LayerID      `json:"snapshot"`
	Digest   string               `json:"digest"`
	Changes  int                  `json:"changes"`
	Summary  string               `json:"summary"`
	Drift    []driftInfo          `json:"drift"`
	// Images tells of the trees that stand on images: Changes, Summary and Digest
	// are of the others.
	Images []imageTreeInfo `json:"images"`
	Rules  snapshots.Rules `json:"rules"`
	// Network says what a command can reach in the sandbox that the session was
	// last used with.
	Network network       `json:"network"`
	Live    bool          `json:"live"`
	Users   []userInfo    `json:"users"`
	Mounts  []owner.Mount `json:"mounts"`
	// Interrupted lists commits that galley recover has to finish.
	Interrupted []string `json:"interrupted"`

	machine bool // its machine runs
	used    sandboxKind
}

// imageTreeInfo is what a tree on an image has otherwise than that.
type imageTreeInfo struct {
	Tree    string `json:"tree"`
	Image   string `json:"image"`
	Digest  string `json:"digest"` // of the image
	Changes int    `json:"changes"`
	Summary string `json:"summary"`
}

type userInfo struct {
	PID   int       `json:"pid"`
	What  string    `json:"what"`
	Since time.Time `json:"since"`
}

func statusCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"status [--json] [--session NAME]"},
		about: `
Says what the session is based on, what it changed and what uses it. Drift, which is
what changed on the host at paths that the session changed, is listed: galley commit
refuses those paths. The network is that of the sandbox which the session was last used
with: the host's; in the virtual sandbox none; in a machine none, or with --net the
public internet and nothing of the host.`,
		json: `{"session", "id", "trees": [{"name", "base", "mount"}], "created", "snapshot", "digest",
 "changes", "summary", "images": [{"tree", "image", "digest", "changes", "summary"}], "drift": [{"tree", "path", "kind", "text"}], "rules": {"hide", "read_only"},
 "network": "host"|"none"|"public", "live", "users": [{"pid", "what", "since"}],
 "mounts": [{"id", "tree", "mountpoint", …}], "interrupted": [commit]}`,
		examples: [][2]string{{"galley status", "of this directory's session"}, {"galley status --session app --json", "for a script"}},
		exits:    [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "status", Category: catWork, Usage: "say what the session changed and what uses it",
		Flags: []cli.Flag{jsonFlag(), sessionFlag()},
		Action: func(c *cli.Context) error {
			if err := noOperands(c); err != nil {
				return err
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return runStatus(ctx, e, st, c.String("session"), c.Bool("json"))
			})
		},
	})
}

func runStatus(ctx context.Context, e *env, st *snapshots.Store, name string, asJSON bool) error {
	sess, err := e.findSession(st, name)
	if err != nil {
		return err
	}
	info := statusInfo{
		Session: sess.Name(), ID: sess.ID(), Trees: sess.Trees(), Created: sess.Created(),
		Rules: sess.Rules(), Network: lastNetwork(sess),
		Images: []imageTreeInfo{},
		used:   lastSandbox(sess),
		Drift:  []driftInfo{}, Users: []userInfo{}, Mounts: []owner.Mount{}, Interrupted: []string{},
	}
	if err := describeOwner(ctx, sess, &info); err != nil {
		return err
	}
	pending, err := commit.Pending(hostfs.OS, sess.CommitsDir())
	if err != nil {
		return err
	}
	for _, c := range pending {
		info.Interrupted = append(info.Interrupted, c.Dir)
	}
	p, err := e.proofAt(ctx, sess, "")
	if err != nil {
		return err
	}
	defer p.Close()
	e.remember(p, p.set)
	info.Snapshot, info.Digest = p.snapshot.Number, p.set.Digest().String()
	info.Changes, info.Summary = len(p.set.Changes), review.Summary(p.set)
	for _, t := range p.onImages() {
		set, err := p.imageChanges(ctx, t)
		if err != nil {
			return err
		}
		info.Images = append(info.Images, imageTreeInfo{t.Name, t.Image.Name, t.Image.Digest, len(set.Changes), review.Summary(set)})
	}
	for _, c := range p.set.Drifted() {
		info.Drift = append(info.Drift, newDriftInfo(c))
	}
	if asJSON {
		return ui.JSON(e.stdout, info)
	}
	return printStatus(e, info, p.set)
}

// describeOwner asks the session's owner, if it has one, who uses it. The
// lease that asking takes is not counted.
func describeOwner(ctx context.Context, sess *snapshots.Session, info *statusInfo) error {
	client, err := owner.Dial(ctx, sess)
	if errors.Is(err, owner.ErrNoOwner) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ask the owner of session %q: %w", sess.Name(), err)
	}
	defer client.Close()
	s, err := client.Status(ctx)
	if err != nil {
		return fmt.Errorf("ask the owner of session %q: %w", sess.Name(), err)
	}
	info.Live = true
	if s.VM != nil && s.VM.Phase != owner.Ended {
		info.Network = machineNetwork(s.VM.Net)
		info.machine = true
	}
	for _, c := range s.Clients {
		if c.PID != selfPID {
			info.Users = append(info.Users, userInfo(c))
		}
	}
	info.Mounts = append(info.Mounts, s.Mounts...)
	return nil
}

func printStatus(e *env, i statusInfo, set *review.ChangeSet) error {
	w := e.stdout
	fmt.Fprintf(w, "session %s", e.out.Bold(safeLine(i.Session)))
	if i.Live {
		fmt.Fprint(w, ", at work")
	}
	fmt.Fprintln(w)
	for _, t := range i.Trees {
		if t.OnImage() {
			fmt.Fprintf(w, "  %-10s image %s, %s\n", t.Name, safeLine(t.Image.Name), shortDigest(t.Image.Digest))
			continue
		}
		line := safeLine(t.Base)
		if t.Mount != t.Base {
			line += ", seen at " + safeLine(t.Mount)
		}
		fmt.Fprintf(w, "  %-10s %s\n", t.Name, line)
	}
	for _, m := range i.Mounts {
		if !m.Private {
			fmt.Fprintf(w, "  %-10s %s at %s\n", "mounted", safeLine(m.Tree), safeLine(m.Mountpoint))
		}
	}
	for _, u := range i.Users {
		fmt.Fprintf(w, "  %-10s process %d %s, for %s\n", "used by", u.PID, safeLine(u.What), ui.Age(time.Now(), u.Since))
	}
	for _, p := range i.Rules.Hide {
		fmt.Fprintf(w, "  %-10s %s\n", "hidden", safeLine(p))
	}
	for _, p := range i.Rules.ReadOnly {
		fmt.Fprintf(w, "  %-10s %s\n", "read-only", safeLine(p))
	}
	fmt.Fprintf(w, "  %-10s %s\n\n", "network", networkLine(i.Network, i.used, i.machine))
	if set.Empty() {
		fmt.Fprintln(w, "nothing changed")
		printImageTrees(e, i)
		return nil
	}
	e.printChanges(pointers(set.Changes), nil)
	fmt.Fprintf(w, "\n%s\ndigest %s (snapshot %d)\n", i.Summary, i.Digest, i.Snapshot)
	printImageTrees(e, i)
	return printAdvice(e, i)
}

// printImageTrees says what changed in the trees on images.
func printImageTrees(e *env, i statusInfo) {
	for _, t := range i.Images {
		if t.Changes > 0 {
			fmt.Fprintf(e.stdout, "in tree %s, on its image: %s\ngalley diff --tree %s · galley image from %s NAME\n",
				t.Tree, t.Summary, t.Tree, safeLine(i.Session))
		}
	}
}

// printAdvice says what to type next.
func printAdvice(e *env, i statusInfo) error {
	if len(i.Interrupted) > 0 {
		fmt.Fprintf(e.stdout, "%s was interrupted; galley recover finishes or reverts it\n", ui.Count(len(i.Interrupted), "commit", "commits"))
	}
	_, err := fmt.Fprintln(e.stdout, "galley diff · galley commit · galley discard")
	return err
}
