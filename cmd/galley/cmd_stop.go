package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

func stopCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"stop [--kill] [--force] [SESSION…]"},
		about: `
Ends the virtual machines of sessions. The guest is asked to write back what it holds and
to end; one that does not is killed after some seconds. Nothing of the session is lost.
With --force everything that uses the session ends: its mounts are aborted too, and
commands on them fail.`,
		examples: [][2]string{
			{"galley stop", "the machine of this project's session"},
			{"galley stop --kill fix-login", "at once"},
			{"galley stop --force fix-login", "and everything else that uses the session"},
		},
		exits: [][2]string{exitDone, {"1", "refused: nothing of the session is at work, or only what --force would end"}, exitErrors},
	}.apply(&cli.Command{
		Name: "stop", Category: catManage, Usage: "end the machine of a session", ArgsUsage: "SESSION…",
		Flags: []cli.Flag{
			boolFlag("kill", "do not ask the guest, end it at once"),
			boolFlag("force", "end everything else that uses the session, too"),
		},
		Action: func(c *cli.Context) error {
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				sessions, err := e.sessionsOrThis(st, c.Args().Slice())
				if err != nil {
					return err
				}
				for _, s := range sessions {
					if err := stopSession(ctx, e, s, c.Bool("kill"), c.Bool("force")); err != nil {
						return err
					}
				}
				return nil
			})
		},
	})
}

// sessionsOrThis are the named sessions, all of which must be there, or the
// current directory's.
func (e *env) sessionsOrThis(st *snapshots.Store, names []string) ([]*snapshots.Session, error) {
	if len(names) == 0 {
		names = []string{""}
	}
	var out []*snapshots.Session
	for _, n := range names {
		s, err := e.operandSession(st, n)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

func stopSession(ctx context.Context, e *env, sess *snapshots.Session, kill, force bool) error {
	c, err := owner.Dial(ctx, sess)
	if errors.Is(err, owner.ErrNoOwner) {
		return refusef("session %q is not at work", sess.Name())
	}
	if err != nil {
		return err
	}
	defer c.Close()
	p := e.progress("stopping")
	defer p.Close()
	st, err := c.StopVM(ctx, owner.StopVM{Kill: kill})
	none := errors.Is(err, snapshots.ErrNotFound)
	if err != nil && !none {
		return err
	}
	if force {
		if err := c.Stop(ctx, true); err != nil {
			return err
		}
	}
	p.Close()
	switch {
	case !none && st.Exit != nil:
		fmt.Fprintf(e.stderr, "galley: the machine of session %s has ended: %s\n", safeLine(sess.Name()), safeLine(st.Exit.String()))
	case !none:
		fmt.Fprintf(e.stderr, "galley: the machine of session %s has ended\n", safeLine(sess.Name()))
	case force:
		fmt.Fprintf(e.stderr, "galley: nothing uses session %s any more\n", safeLine(sess.Name()))
	default:
		return withHint(refusef("session %q has no machine that runs", sess.Name()),
			"galley ps says what is at work", "galley stop --force "+sess.Name()+" ends all that uses the session")
	}
	return nil
}

func startCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"start [--idle TIME] [SESSION]"},
		about: `
Starts the virtual machine of a session again, as it was last: the same image, processors,
memory and network, on the session as it is now. It runs until galley stop, or until nobody
has used it for a while.`,
		examples: [][2]string{
			{"galley start fix-login", "and galley exec, galley shell or galley mcp use it"},
			{"galley start --idle 8h fix-login", "for the whole day"},
		},
		exits: [][2]string{exitDone, {"1", "refused: the session has had no machine"}, exitErrors},
	}.apply(&cli.Command{
		Name: "start", Category: catManage, Usage: "start the machine of a session again", ArgsUsage: "SESSION",
		Flags: []cli.Flag{idleFlag()},
		Action: func(c *cli.Context) error {
			if c.NArg() > 1 {
				return usagef(c, "one session at a time")
			}
			idle, err := idleOf(c)
			if err != nil {
				return err
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				sess, err := e.operandSession(st, c.Args().First())
				if err != nil {
					return err
				}
				return runStart(ctx, e, st, sess, idle)
			})
		},
	})
}

// defaultIdle is how long a detached machine stays when nobody uses it.
const defaultIdle = time.Hour

func idleFlag() cli.Flag {
	return &cli.DurationFlag{Name: "idle", Value: defaultIdle, Usage: "end the machine when nobody has used it for `TIME`; 0 is never"}
}

func idleOf(c *cli.Context) (time.Duration, error) {
	d := c.Duration("idle")
	if d < 0 {
		return 0, usagef(c, "--idle %v: expected a time such as 30m, or 0 for ever", d)
	}
	return d, nil
}

func runStart(ctx context.Context, e *env, st *snapshots.Store, sess *snapshots.Session, idle time.Duration) error {
	r, err := owner.LastVM(sess)
	if errors.Is(err, snapshots.ErrNotFound) {
		return withHint(refusef("session %q has had no machine to start again", sess.Name()),
			"galley run --session "+sess.Name()+" --sandbox microvm --image IMAGE -- COMMAND starts one")
	}
	if err != nil {
		return err
	}
	r.Detach, r.Idle = true, idle
	if err := e.prepareMachine(ctx, st, &r); err != nil {
		return err
	}
	c, err := owner.Ensure(ctx, sess, owner.Options{Log: e.log, What: "galley start"})
	if err != nil {
		return err
	}
	defer c.Close()
	status, err := e.startMachine(ctx, c, r)
	if err != nil {
		return err
	}
	noteSandbox(sess, inMachine, e.log)
	fmt.Fprintf(e.stderr, "galley: the machine of session %s runs (%s, %s, %s); galley stop %s ends it\n",
		safeLine(sess.Name()), status.Accel, ui.Count(status.CPUs, "CPU", "CPUs"), ui.Bytes(status.Memory), safeLine(sess.Name()))
	return nil
}
