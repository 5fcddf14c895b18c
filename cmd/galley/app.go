package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// env is what every command gets from the process around it.
type env struct {
	stdin          *os.File
	stdout, stderr *os.File
	getenv         func(string) string
	log            *slog.Logger
	out, err       ui.Style  // how to paint the two outputs
	commitFS       hostfs.FS // through which commits write; tests end it midway
}

func newEnv(stdin, stdout, stderr *os.File, getenv func(string) string) *env {
	return &env{
		stdin: stdin, stdout: stdout, stderr: stderr, getenv: getenv,
		log: newLogger(stderr, slog.LevelError),
		out: ui.NewStyle(stdout, getenv),
		err: ui.NewStyle(stderr, getenv), commitFS: hostfs.OS,
	}
}

func newLogger(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// interactive tells whether a question can be asked and answered.
func (e *env) interactive() bool { return ui.IsTerminal(e.stdin) && ui.IsTerminal(e.stderr) }

// progress tells about work that takes long, when somebody watches.
func (e *env) progress(what string) *ui.Progress {
	return ui.NewProgress(e.stderr, ui.IsTerminal(e.stderr), what)
}

// Categories of the list of commands, which is sorted by them.
const (
	catWork    = "A SESSION"
	catHistory = "HISTORY"
	catManage  = "SESSIONS"
	catMount   = "MOUNTS"
	catImages  = "IMAGES"
	catSystem  = "THIS MACHINE"
)

func newApp(e *env) *cli.App {
	app := &cli.App{
		Name:                      "galley",
		HelpName:                  "galley",
		Usage:                     "a copy-on-write layer for the work of agents, with review and commit",
		Writer:                    e.stdout,
		ErrWriter:                 e.stderr,
		HideVersion:               true,
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true, // patterns contain commas
		CustomAppHelpTemplate:     appHelp,
		ExitErrHandler:            func(*cli.Context, error) {}, // main reports
		OnUsageError:              func(c *cli.Context, err error, _ bool) error { return optionError(c, err) },
		Flags: []cli.Flag{
			boolFlag("debug", "log what Galley does on standard error"),
		},
		Before: func(c *cli.Context) error {
			if c.Bool("debug") {
				e.log = newLogger(e.stderr, slog.LevelDebug)
			}
			return nil
		},
		Commands: []*cli.Command{
			runCommand(e), execCommand(e), shellCommand(e), cpCommand(e), forwardCommand(e), statusCommand(e), diffCommand(e), commitCommand(e), discardCommand(e), recoverCommand(e),
			logCommand(e), showCommand(e), blameCommand(e), snapshotCommand(e), rollbackCommand(e), restoreCommand(e),
			forkCommand(e), pickCommand(e), pruneCommand(e),
			psCommand(e), startCommand(e), stopCommand(e), logsCommand(e),
			sessionsCommand(e), attachCommand(e), duCommand(e), gcCommand(e), fsckCommand(e),
			exportCommand(e), importCommand(e), pushCommand(e),
			pullCommand(e), imagesCommand(e), imageCommand(e),
			mountCommand(e), unmountCommand(e), overlayCommand(e),
			mcpCommand(e), toolCommand(e), serveCommand(e), eventsCommand(e),
			doctorCommand(e), completionCommand(e), versionCommand(e), completeCommand(e),
		},
	}
	app.Action = func(c *cli.Context) error {
		if !c.Args().Present() {
			return cli.ShowAppHelp(c)
		}
		return unknownCommand(app, c.Args().First())
	}
	return app
}

func unknownCommand(app *cli.App, name string) error {
	var names []string
	for _, c := range app.Commands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	err := &failure{err: errNoCommand(name), code: exitFailed}
	if n := nearest(name, names); n != "" {
		err.hints = append(err.hints, "galley "+n)
	}
	err.hints = append(err.hints, "galley --help lists the commands", "galley run -- "+name+" … runs a program of that name")
	return err
}

type errNoCommand string

func (e errNoCommand) Error() string { return "no command " + strings.TrimSpace(string(e)) }

// operandsOf tells reorder which commands run another program, and after how
// many operands of their own that program begins; -1 for all the others.
func operandsOf(cmd *cli.Command) int {
	switch cmd.Name {
	case "run":
		return 0
	case "attach", "exec":
		return 1
	}
	return -1
}

// Main is the program: it runs args and returns the status to exit with.
func Main(ctx context.Context, args []string, e *env) int {
	app := newApp(e)
	err := app.RunContext(ctx, reorder(app, args, operandsOf))
	return report(e.stderr, err)
}
