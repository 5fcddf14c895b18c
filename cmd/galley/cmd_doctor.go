package main

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/doctor"
	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/snapshots"
)

func doctorCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"doctor [--json]"},
		about: `
Looks at what this machine gives Galley: /dev/fuse, namespaces and what forbids them,
the features of the kernel, and the file system of the state directory. What is missing
is named with what follows from it and how to get it. Nothing is changed.`,
		json: `{"run": bool, "mount": bool,
 "findings": [{"name", "level": "ok"|"note"|"fail", "found", "means", "fix"}]}`,
		examples: [][2]string{
			{"galley doctor", "why does galley run not work here?"},
			{"galley doctor --json | jq .run", "for a script"},
		},
		exits: [][2]string{{"0", "galley run works here"}, {"1", "it does not; the findings marked fail say why"}, exitErrors},
	}.apply(&cli.Command{
		Name:     "doctor",
		Category: catSystem,
		Usage:    "explain what this machine can do, and how to get the rest",
		Flags:    []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			if err := noOperands(c); err != nil {
				return err
			}
			return runDoctor(c, e, c.Bool("json"))
		},
	})
}

func runDoctor(c *cli.Context, e *env, asJSON bool) error {
	home, err := snapshots.DefaultHome()
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	r := doctor.Examine(c.Context, doctor.Options{Home: home, Exe: exe, Getenv: e.getenv})
	if asJSON {
		err = ui.JSON(e.stdout, r)
	} else {
		err = printDoctor(e, r)
	}
	if err == nil && !r.Run {
		return silent(exitRefused)
	}
	return err
}

func printDoctor(e *env, r doctor.Report) error {
	for _, f := range r.Findings {
		mark := e.out.Green("ok  ")
		switch f.Level {
		case doctor.Note:
			mark = e.out.Yellow("note")
		case doctor.Fail:
			mark = e.out.Red("FAIL")
		}
		fmt.Fprintf(e.stdout, "%s  %s: %s\n", mark, e.out.Bold(f.Name), safeLine(f.Found))
		if f.Means != "" {
			fmt.Fprintf(e.stdout, "      %s\n", f.Means)
		}
		if f.Fix != "" {
			fmt.Fprintf(e.stdout, "      to change it: %s\n", safeLine(f.Fix))
		}
	}
	answer := func(works bool) string {
		if works {
			return e.out.Green("works here")
		}
		return e.out.Red("does not work here")
	}
	_, err := fmt.Fprintf(e.stdout, "\ngalley run %s; galley mount %s.\n", answer(r.Run), answer(r.Mount))
	return err
}
