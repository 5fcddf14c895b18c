package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/review/termsafe"
	"github.com/galleyfs/galley/sandbox/events"
	"github.com/galleyfs/galley/snapshots"
)

func eventsCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"events [--follow] [--json] [--session NAME]"},
		about: `
Shows what happened in the session: calls of tools with their arguments, how long they
took, how they ended and what they changed, commands, mounts, and what was denied.
Secrets that were given with --secret are not in it. A call that ran while others did
names them; of each change it says whose it was, where that is known.`,
		json: `one line for each: {"time", "event": "call"|"command"|"mount"|"denied"|"start"|"end", "session",
  "tool", "call", "client", "args", "text", "start", "duration", "exit", "failed", "code", "result",
  "snapshot", "changed", "changes": [{"tree", "path", "kind", "by"}], "others"}    duration in seconds`,
		examples: [][2]string{
			{"galley events", "so far"},
			{"galley events --follow", "and what comes"},
			{`galley events --json | jq 'select(.event == "denied")'`, "for a script"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "events", Category: catHistory, Usage: "show what happened in the session, call by call",
		Flags: []cli.Flag{boolFlag("follow", "go on with what comes, until interrupted", "f"), jsonFlag(), sessionFlag()},
		Action: func(c *cli.Context) error {
			if err := noOperands(c); err != nil {
				return err
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				sess, err := e.findSession(st, c.String("session"))
				if err != nil {
					return err
				}
				return events.Read(ctx, sess.Dir(), c.Bool("follow"), func(ev events.Event) error {
					if c.Bool("json") {
						_, err := fmt.Fprintf(e.stdout, "%s\n", termsafe.JSON(ev.Raw))
						return err
					}
					_, err := fmt.Fprintln(e.stdout, eventLine(ev))
					return err
				})
			})
		},
	})
}

// eventLine is an event for a person.
func eventLine(ev events.Event) string {
	parts := []string{ev.Time.Local().Format("15:04:05"), ev.Event}
	add := func(s string) {
		if s != "" {
			parts = append(parts, s)
		}
	}
	add(ev.Client)
	add(safeLine(ev.Tool))
	add(clipped(safeLine(string(ev.Args)), 80))
	if ev.Event == events.Command || ev.Event == events.Denied {
		add(clipped(safeLine(ev.Text), 80))
	}
	if ev.Failed {
		add("failed: " + safeLine(ev.Code))
	}
	if ev.Exit != nil {
		add(fmt.Sprintf("exit %d", *ev.Exit))
	}
	if ev.Event == events.Call || ev.Event == events.Command {
		add(time.Duration(ev.Duration * float64(time.Second)).Round(time.Millisecond).String())
	}
	if len(ev.Changes) > 0 {
		add(eventChanges(ev))
	}
	if len(ev.Others) > 0 {
		add("at the same time: " + safeLine(strings.Join(ev.Others, ", ")))
	}
	return strings.Join(parts, "  ")
}

// shownChanges is how many changes a line of an event names.
const shownChanges = 5

func eventChanges(ev events.Event) string {
	var names []string
	for _, c := range ev.Changes[:min(shownChanges, len(ev.Changes))] {
		name := safePath(c.Path)
		if c.Tree != "" {
			name = c.Tree + ":" + name
		}
		if len(c.By) > 0 {
			name += " (" + safeLine(strings.Join(c.By, ", ")) + ")"
		}
		names = append(names, name)
	}
	text := "changed " + strings.Join(names, " ")
	if more := ev.Changed - len(names); more > 0 {
		text += fmt.Sprintf(" … %d more", more)
	}
	return text
}
