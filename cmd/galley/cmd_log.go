package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
)

// snapshotInfo is one element of `galley log --json`.
type snapshotInfo struct {
	Number   overlay.LayerID     `json:"number"`
	Name     string              `json:"name,omitempty"`
	Kind     snapshots.CauseKind `json:"kind"`
	Text     string              `json:"text,omitempty"`
	Args     json.RawMessage     `json:"args,omitempty"`
	Time     time.Time           `json:"time"`
	Start    *time.Time          `json:"start,omitempty"`
	Duration float64             `json:"duration,omitempty"` // seconds
	Exit     *int                `json:"exit,omitempty"`
	// Unsynced says why a guest had not written back what it held.
	Unsynced string `json:"unsynced,omitempty"`
	// Changed is -1 where nobody counted.
	Changed int        `json:"changed"`
	Changes []pathInfo `json:"changes"`
	// Processes are the first that changed something, where the kernel told.
	Processes []snapshots.Process `json:"processes"`
	// Current: what the session shows now was built on it.
	Current bool `json:"current"`
}

func logCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"log [--all] [--json] [-n COUNT] [--session NAME]"},
		about: `
Lists the points that the session can go back to, the latest first: when, what ran, how
it ended, and what it changed. Galley makes one around every command and tool call;
galley snapshot makes one with a name. Those marked * are what the session is built on
now, the others were set aside by a rollback, commit or discard and can be returned to.
A checkpoint that changed nothing is listed with --all only.`,
		json: `[{"number", "name", "kind", "text", "args", "time", "start", "duration", "exit",
  "unsynced", "changed", "changes": [{"tree", "path", "kind"}], "processes": [{"pid", "name"}],
  "current"}]     duration in seconds`,
		examples: [][2]string{
			{"galley log", "the history of this directory's session"},
			{"galley log -n 5", "its last five points"},
			{"galley log --all --json | jq '.[].text'", "everything, for a script"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "log", Category: catHistory, Usage: "list what ran in the session, and what it changed",
		Flags: []cli.Flag{
			boolFlag("all", "also checkpoints that changed nothing"),
			&cli.IntFlag{Name: "n", Usage: "at most `COUNT` of them", DefaultText: "all"},
			jsonFlag(), sessionFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := noOperands(c); err != nil {
				return err
			}
			if c.Int("n") < 0 {
				return usagef(c, "-n %d: expected a number of entries", c.Int("n"))
			}
			return e.withStore(c.Context, func(_ context.Context, st *snapshots.Store) error {
				return runLog(e, st, c.String("session"), c.Bool("all"), c.Bool("json"), c.Int("n"))
			})
		},
	})
}

func runLog(e *env, st *snapshots.Store, name string, all, asJSON bool, limit int) error {
	sess, err := e.findSession(st, name)
	if err != nil {
		return err
	}
	history, err := sess.History()
	if err != nil {
		return err
	}
	infos := []snapshotInfo{}
	last := sess.Last()
	for i := len(history) - 1; i >= 0 && (limit == 0 || len(infos) < limit); i-- {
		if all || listed(history[i]) {
			infos = append(infos, newSnapshotInfo(history[i], last))
		}
	}
	if asJSON {
		return ui.JSON(e.stdout, infos)
	}
	if len(infos) == 0 {
		fmt.Fprintf(e.stderr, "galley: session %s has no history yet; galley run -- COMMAND makes some\n", safeLine(sess.Name()))
		return nil
	}
	rows := make([][]string, 0, len(infos))
	now := time.Now()
	for _, i := range infos {
		rows = append(rows, logRow(now, i))
	}
	return ui.Table(e.stdout, rows)
}

// listed tells whether a snapshot is worth a line: a checkpoint that changed
// nothing is not.
func listed(s snapshots.Snapshot) bool {
	if s.Changed != 0 || s.Name != "" {
		return true
	}
	switch s.Cause.Kind {
	case snapshots.CauseCommand, snapshots.CauseTool, snapshots.CauseBefore, snapshots.CauseReview:
		return false
	}
	return true
}

func newSnapshotInfo(s, last snapshots.Snapshot) snapshotInfo {
	i := snapshotInfo{
		Number: s.Number, Name: s.Name, Kind: s.Cause.Kind, Text: s.Cause.Text, Args: s.Cause.Args, Time: s.Time,
		Duration: s.Cause.Duration.Seconds(), Exit: s.Cause.Exit, Unsynced: s.Cause.Unsynced, Changed: s.Changed, Changes: []pathInfo{},
		Processes: append([]snapshots.Process{}, s.Processes...),
		Current:   last.BuiltOn(s),
	}
	if !s.Cause.Start.IsZero() {
		i.Start = &s.Cause.Start
	}
	for _, c := range s.Changes {
		i.Changes = append(i.Changes, pathInfo{Tree: c.Tree, Path: string(c.Path), PathB64: rawBytes(string(c.Path)), Kind: string(c.Kind)})
	}
	return i
}

func logRow(now time.Time, i snapshotInfo) []string {
	mark := " "
	if i.Current {
		mark = "*"
	}
	return []string{
		fmt.Sprintf("%s %d", mark, i.Number), ui.Age(now, i.Time) + " ago", whatRan(i), howEnded(i), changedText(i, 3),
	}
}

// whatRan is the cause of a snapshot for a person, on one line.
func whatRan(i snapshotInfo) string {
	text := clipped(safeLine(i.Text), 60)
	switch i.Kind {
	case snapshots.CauseCommand:
	case snapshots.CauseTool:
		text = strings.TrimSpace(text + " " + clipped(safeLine(string(i.Args)), 40))
	case snapshots.CauseAsked:
		text = "snapshot"
	case snapshots.CauseReview:
		text = "review"
	case snapshots.CauseBefore:
		text = "before: " + text
	case snapshots.CausePaths:
		text = "took " + text
	case snapshots.CauseRollback:
		text = "rollback to " + text
	default:
		text = strings.TrimSpace(string(i.Kind) + " " + text)
	}
	if i.Name != "" {
		return "[" + safeLine(i.Name) + "] " + text
	}
	return text
}

func howEnded(i snapshotInfo) string {
	var parts []string
	if i.Exit != nil {
		parts = append(parts, fmt.Sprintf("exit %d", *i.Exit))
	}
	if i.Start != nil {
		parts = append(parts, time.Duration(i.Duration*float64(time.Second)).Round(time.Millisecond).String())
	}
	if i.Unsynced != "" {
		parts = append(parts, "guest not synced")
	}
	return strings.Join(parts, ", ")
}

// changedText names the first few changed paths.
func changedText(i snapshotInfo, few int) string {
	if i.Changed <= 0 {
		return ""
	}
	var names []string
	for _, c := range i.Changes[:min(few, len(i.Changes))] {
		name := safePath(c.Path)
		if c.Tree != snapshots.Workspace {
			name = c.Tree + ":" + name
		}
		names = append(names, name)
	}
	text := strings.Join(names, " ")
	if i.Changed > len(names) {
		text += fmt.Sprintf(" … (%d)", i.Changed)
	}
	return text
}

// clipped is s with at most n characters.
func clipped(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}
