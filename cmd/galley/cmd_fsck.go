package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/snapshots"
)

// fsckInfo is what `galley fsck --json` prints.
type fsckInfo struct {
	Sessions  int           `json:"sessions"`
	Snapshots int           `json:"snapshots"`
	Layers    int           `json:"layers"`
	Hidden    int           `json:"hidden"` // points without a name that lack layers
	Live      []string      `json:"live"`   // sessions at work, of which only what is sealed was looked at
	Findings  []findingInfo `json:"findings"`
}

type findingInfo struct {
	Session  string `json:"session,omitempty"`
	Path     string `json:"path"`
	PathB64  []byte `json:"path_base64,omitempty"`
	What     string `json:"what"`
	Fix      string `json:"fix,omitempty"` // empty where nothing repairs it
	Repaired bool   `json:"repaired"`
}

func fsckCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"fsck [--repair] [--json] [SESSION…]"},
		about: `
Looks at every record and every layer: whether each decodes and has the checksums that it
says, whether the layers that the records name are there, and whether each layer has the
files that its record says, and no others. The content of files in a layer has no
checksum. Of a session at work only what is sealed is looked at. Points without a name whose
layers galley gc removed after a commit are counted, and are nothing wrong.

--repair also repairs what can be: it makes a damaged record again of the index and a
damaged index again of the records, leaves damaged lines of a history out, finishes what
a crash cut off, and moves layers that no record accounts for to the trash. What it
replaces stays beside as NAME.damaged, and nothing that may hold work is removed.`,
		json: `{"sessions", "snapshots", "layers", "hidden", "live": [name],
 "findings": [{"session", "path", "what", "fix", "repaired": bool}]}    without "fix" nothing repairs it`,
		examples: [][2]string{
			{"galley fsck", "all sessions, the trash and what crashes left"},
			{"galley fsck --repair app", "one session, repaired"},
		},
		exits: [][2]string{
			{"0", "nothing is wrong, or all of it was repaired"},
			{"5", "something is wrong and was not repaired"},
			exitErrors,
		},
	}.apply(&cli.Command{
		Name: "fsck", Category: catManage, Usage: "check all records and layers, and repair them", ArgsUsage: "SESSION…",
		Flags: []cli.Flag{boolFlag("repair", "repair what can be repaired"), jsonFlag()},
		Action: func(c *cli.Context) error {
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return runFsck(ctx, e, st, c.Args().Slice(), c.Bool("repair"), c.Bool("json"))
			})
		},
	})
}

func runFsck(ctx context.Context, e *env, st *snapshots.Store, names []string, repair, asJSON bool) error {
	opt := snapshots.CheckOptions{Repair: repair}
	for _, n := range names {
		id, err := e.sessionID(st, n)
		if err != nil {
			return err
		}
		opt.Sessions = append(opt.Sessions, id)
	}
	awaitClosed(ctx, st, opt.Sessions)
	p := e.progress("checking")
	defer p.Close()
	report, err := st.Check(ctx, opt)
	p.Close()
	if err != nil {
		return err
	}
	interrupted(st, opt.Sessions, &report)
	if asJSON {
		err = ui.JSON(e.stdout, newFsckInfo(report))
	} else {
		e.printFsck(report)
	}
	if err == nil && report.Bad() > 0 {
		return silent(exitDamage)
	}
	return err
}

// awaitClosed waits for sessions that are just being closed, so that all of them is
// looked at.
func awaitClosed(ctx context.Context, st *snapshots.Store, only []string) {
	all, err := st.List()
	if err != nil {
		return // as the check will say
	}
	for _, i := range all {
		sess, err := st.Find(i.ID)
		if err != nil || only != nil && !slices.Contains(only, i.ID) {
			continue
		}
		_ = whenIdle(ctx, sess, func() error {
			if _, live, err := sess.Live(); err == nil && live {
				return snapshots.ErrBusy
			}
			return nil
		})
	}
}

// sessionID finds a session by name or id, also one that is so damaged that it
// has no name.
func (e *env) sessionID(st *snapshots.Store, name string) (string, error) {
	all, err := st.List()
	if err != nil {
		return "", err
	}
	for _, i := range all {
		if i.ID == name {
			return i.ID, nil
		}
	}
	sess, err := e.namedSession(st, name)
	if err != nil {
		return "", err
	}
	return sess.ID(), nil
}

// interrupted adds the commits that a crash cut off.
func interrupted(st *snapshots.Store, only []string, report *snapshots.CheckReport) {
	all, err := st.List()
	if err != nil {
		return
	}
	for _, i := range all {
		sess, err := st.Find(i.ID)
		if err != nil || only != nil && !slices.Contains(only, i.ID) {
			continue
		}
		if refuseInterrupted(sess) != nil {
			report.Findings = append(report.Findings, snapshots.Finding{
				Session: i.Name, Path: sess.CommitsDir(), What: "a commit was interrupted; galley recover finishes or reverts it",
			})
		}
	}
}

func newFsckInfo(r snapshots.CheckReport) fsckInfo {
	out := fsckInfo{Sessions: r.Sessions, Snapshots: r.Snapshots, Layers: r.Layers, Hidden: r.Hidden, Live: append([]string{}, r.Live...), Findings: []findingInfo{}}
	for _, f := range r.Findings {
		out.Findings = append(out.Findings, findingInfo{f.Session, f.Path, rawBytes(f.Path), f.What, f.Fix, f.Repaired})
	}
	return out
}

func (e *env) printFsck(r snapshots.CheckReport) {
	for _, f := range r.Findings {
		where := safePath(f.Path)
		if f.Session != "" {
			where = safeLine(f.Session) + ": " + where
		}
		fmt.Fprintf(e.stdout, "%s\n    %s\n", where, safeLine(f.What))
		switch {
		case f.Repaired:
			fmt.Fprintf(e.stdout, "    repaired: %s\n", safeLine(f.Fix))
		case f.Fix != "":
			fmt.Fprintf(e.stdout, "    galley fsck --repair would: %s\n", safeLine(f.Fix))
		}
	}
	for _, name := range r.Live {
		fmt.Fprintf(e.stdout, "session %s is at work: only what is sealed was looked at\n", safeLine(name))
	}
	if r.Hidden > 0 {
		fmt.Fprintf(e.stdout, "%s without a name: layers are gone, as galley gc removes those of what was committed; no history lists such points\n",
			ui.Count(r.Hidden, "point", "points"))
	}
	looked := fmt.Sprintf("%s, %s, %s", ui.Count(r.Sessions, "session", "sessions"), ui.Count(r.Snapshots, "snapshot", "snapshots"), ui.Count(r.Layers, "layer", "layers"))
	if len(r.Findings) == 0 {
		fmt.Fprintf(e.stdout, "%s: nothing is wrong\n", looked)
		return
	}
	fmt.Fprintf(e.stdout, "%s: %s wrong, %d repaired\n", looked, ui.Count(len(r.Findings), "thing is", "things are"), len(r.Findings)-r.Bad())
}
