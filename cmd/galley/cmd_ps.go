package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

// processInfo is one element of `galley ps --json`: a session at work.
type processInfo struct {
	Session string              `json:"session"`
	ID      string              `json:"id"`
	Owner   int                 `json:"owner"` // process id
	Since   time.Time           `json:"since"`
	Mounts  int                 `json:"mounts"`
	Clients []owner.ClientState `json:"clients"`
	Machine *owner.VMStatus     `json:"machine,omitempty"`
}

func psCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"ps [--json]"},
		about: `
Lists what is at work: each session that has an owner process, and its virtual machine if
one runs. Nothing of Galley's runs that is not in this list; galley stop ends it.`,
		json: `[{"session", "id", "owner": pid, "since", "mounts", "clients": [{"pid", "what", "since"}],
  "machine": {"phase": "starting"|"running"|"stopping", "pid", "driver", "accel", "slow", "since",
   "cpus", "memory", "net", "image", "command", "detached", "idle", "users", "streams"}}]`,
		examples: [][2]string{
			{"galley ps", "what runs"},
			{"galley ps --json | jq -r '.[].machine | select(.) | .pid'", "the machines' processes"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "ps", Category: catManage, Usage: "list the sessions and machines that are at work",
		Flags: []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			if err := noOperands(c); err != nil {
				return err
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return runPs(ctx, e, st, c.Bool("json"))
			})
		},
	})
}

func runPs(ctx context.Context, e *env, st *snapshots.Store, asJSON bool) error {
	all, err := st.List()
	if err != nil {
		return err
	}
	// An owner that is busy must not keep the others out of the list.
	found := make([]*processInfo, len(all))
	var asking sync.WaitGroup
	for i, s := range all {
		if s.Live {
			asking.Go(func() { found[i] = e.atWork(ctx, st, s) })
		}
	}
	asking.Wait()
	infos := []processInfo{}
	for _, f := range found {
		if f != nil {
			infos = append(infos, *f)
		}
	}
	if asJSON {
		return ui.JSON(e.stdout, infos)
	}
	if len(infos) == 0 {
		fmt.Fprintln(e.stderr, "galley: nothing is at work")
		return nil
	}
	now := time.Now()
	rows := [][]string{{"SESSION", "WHAT", "PID", "FOR", "USERS", ""}}
	for _, i := range infos {
		rows = append(rows, processRows(now, i)...)
	}
	return ui.Table(e.stdout, rows)
}

// askTimeout is how long an owner may take to say how it is.
const askTimeout = 5 * time.Second

// atWork asks the owner of a session; nil if it has none, or just lost it.
func (e *env) atWork(ctx context.Context, st *snapshots.Store, s snapshots.Info) *processInfo {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	info := &processInfo{Session: s.Name, ID: s.ID, Clients: []owner.ClientState{}}
	sess, err := st.Find(s.ID)
	if err != nil {
		return nil
	}
	c, err := owner.Dial(ctx, sess)
	if errors.Is(err, owner.ErrNoOwner) {
		return nil
	}
	if err != nil {
		e.log.Warn("ask an owner", "session", s.Name, "err", err)
		return info // it is there, and that is all that is known
	}
	defer c.Close()
	info.Owner = c.PID()
	status, err := c.Status(ctx)
	if err != nil {
		e.log.Warn("ask an owner", "session", s.Name, "err", err)
		return info
	}
	info.Since, info.Mounts = status.Since, len(status.Mounts)
	for _, cl := range status.Clients {
		if cl.PID != selfPID {
			info.Clients = append(info.Clients, cl)
		}
	}
	if m := status.VM; m != nil && m.Phase != owner.Ended {
		info.Machine = m
	}
	return info
}

func processRows(now time.Time, i processInfo) [][]string {
	var whats []string
	for _, c := range i.Clients {
		if c.What != "" {
			whats = append(whats, safeLine(c.What))
		}
	}
	rows := [][]string{{
		safeLine(i.Session), "session", fmt.Sprint(i.Owner), ui.Age(now, i.Since), fmt.Sprint(len(i.Clients)), strings.Join(whats, ", "),
	}}
	m := i.Machine
	if m == nil {
		return rows
	}
	detail := []string{string(m.Phase), m.Driver}
	if m.Accel != "" {
		detail = append(detail, m.Accel)
	}
	if m.Image != "" {
		detail = append(detail, safeLine(m.Image))
	}
	detail = append(detail, ui.Count(m.CPUs, "CPU", "CPUs"), ui.Bytes(m.Memory))
	if m.Net {
		detail = append(detail, "network")
	}
	if m.Detached {
		detail = append(detail, "detached")
	}
	return append(rows, []string{
		safeLine(i.Session), "machine", fmt.Sprint(m.PID), ui.Age(now, m.Since), fmt.Sprint(m.Users), strings.Join(detail, ", "),
	})
}
