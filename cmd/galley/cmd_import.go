package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/snapshots/oci"
)

// importedInfo is what `galley import --json` and `galley pull --json` print.
type importedInfo struct {
	Kind      string `json:"kind"` // "session"
	ID        string `json:"id"`
	Name      string `json:"name"`
	Base      string `json:"base"`
	Snapshots int    `json:"snapshots"`
	// Differs counts paths of the base that are not as they were.
	Differs int `json:"differs"`
	Owners  int `json:"owners_not_set"`
	Xattrs  int `json:"xattrs_not_set"`
}

func importFlags() []cli.Flag {
	return []cli.Flag{
		jsonFlag(),
		&cli.StringFlag{Name: "base", Usage: "the directory `DIR` is the base, not the recorded one"},
		boolFlag("devices", "import device nodes too"),
		&cli.StringFlag{Name: "max-size", Usage: "refuse what unpacks to more than `SIZE`, such as 500M or 2G", Value: "64G"},
	}
}

func importOptions(c *cli.Context, name string) (oci.ImportOptions, error) {
	limit, err := parseSize(c.String("max-size"))
	if err != nil {
		return oci.ImportOptions{}, usagef(c, "--max-size: %v", err)
	}
	return oci.ImportOptions{
		Name: name, Base: c.String("base"), Devices: c.Bool("devices"), Limits: oci.Limits{Bytes: limit},
	}, nil
}

const importsJSON = `{"kind": "session", "id", "name", "base", "snapshots", "differs", "owners_not_set", "xattrs_not_set"}`

func importCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"import [--base DIR] [--devices] [--max-size SIZE] [--json] DIR|FILE.tar [NAME]"},
		about: `
Makes a session of what galley export wrote: on the base whose path is recorded, or on the
one given, and with its history. Nothing in the layout is trusted: what leads outside is
refused, and then there is no session. Where the base is not what the session was made
on, that is said; galley diff then shows drift.`,
		json: importsJSON,
		examples: [][2]string{
			{"galley import app.tar", "on the directory that it came from"},
			{"galley import --base ~/src/app layout monday", "on this checkout, by a name of one's own"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "import", Category: catManage, Usage: "make a session of an exported one", ArgsUsage: "DIR|FILE.tar NAME",
		Flags: importFlags(),
		Action: func(c *cli.Context) error {
			if c.NArg() < 1 || c.NArg() > 2 {
				return usagef(c, "expected a directory or tar file, and perhaps a name")
			}
			opt, err := importOptions(c, c.Args().Get(1))
			if err != nil {
				return err
			}
			from, read := c.Args().First(), oci.ImportArchive
			if st, err := os.Stat(from); err != nil {
				return withHint(fmt.Errorf("import: %w", err), "galley export writes what can be imported")
			} else if st.IsDir() {
				read = oci.Import
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return e.runImport(c.Bool("json"), opt, func(opt oci.ImportOptions) (*snapshots.Session, oci.Report, error) {
					return read(ctx, st, from, opt)
				})
			})
		},
	})
}

func (e *env) runImport(asJSON bool, opt oci.ImportOptions, do func(oci.ImportOptions) (*snapshots.Session, oci.Report, error)) error {
	progress := e.progress("importing (MiB)")
	defer progress.Close()
	opt.Progress = counting(progress)
	sess, report, err := do(opt)
	progress.Close()
	switch {
	case errors.Is(err, snapshots.ErrBadBase):
		return withHint(err, "--base DIR names the directory to put it on")
	case errors.Is(err, snapshots.ErrExists):
		return withHint(err, "give another name after the layout")
	case errors.Is(err, oci.ErrLimit):
		return withHint(err, "--max-size SIZE allows more, if it is trusted")
	case err != nil:
		return err
	}
	base := sess.Trees()[0].Base
	if asJSON {
		return ui.JSON(e.stdout, importedInfo{"session", sess.ID(), sess.Name(), base, report.Snapshots, report.Differs, report.Owners, report.Xattrs})
	}
	fmt.Fprintf(e.stdout, "session %s on %s: %s\n", safeLine(sess.Name()), safeLine(base), ui.Count(report.Snapshots, "snapshot", "snapshots"))
	for _, p := range report.DiffersAt {
		fmt.Fprintf(e.stderr, "galley: %s %s is not what the session was made on\n", e.err.Yellow("base:"), safeLine(p))
	}
	if more := report.Differs - len(report.DiffersAt); more > 0 {
		fmt.Fprintf(e.stderr, "galley: base: and %s more\n", ui.Count(more, "path", "paths"))
	}
	if report.Owners+report.Xattrs > 0 {
		fmt.Fprintf(e.stderr, "galley: %s and %s could not be set without root\n",
			ui.Count(report.Owners, "owner", "owners"), ui.Count(report.Xattrs, "extended attribute", "extended attributes"))
	}
	return nil
}
