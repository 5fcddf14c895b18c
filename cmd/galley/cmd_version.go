package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
)

// version is the release, set by the linker (-X main.version=v1.2.3). Without
// it the version that the go command recorded is shown.
var version string

// versionInfo is what `galley version --json` prints.
type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // commit it was built from
	Modified bool   `json:"modified,omitempty"` // built from a tree with other changes
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func versionCommand(e *env) *cli.Command {
	return manual{
		usage:    []string{"version [--json]"},
		json:     `{"version", "revision", "modified", "go", "platform"}`,
		examples: [][2]string{{"galley version", "one line, for a bug report"}},
		exits:    [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name:     "version",
		Category: catSystem,
		Usage:    "print which Galley this is",
		Flags:    []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			if err := noOperands(c); err != nil {
				return err
			}
			v := thisVersion()
			if c.Bool("json") {
				return ui.JSON(e.stdout, v)
			}
			_, err := fmt.Fprintf(e.stdout, "galley %s (%s, %s)\n", v.Version, v.Go, v.Platform)
			return err
		},
	})
}

func thisVersion() versionInfo {
	v := versionInfo{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if v.Version == "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

// boolFlag is an option without a value; aliases are further names of it.
func boolFlag(name, usage string, aliases ...string) cli.Flag {
	return &cli.BoolFlag{Name: name, Usage: usage, Aliases: aliases, DisableDefaultText: true}
}

func jsonFlag() cli.Flag {
	return boolFlag("json", "print JSON")
}

// noOperands refuses operands, for commands that take none.
func noOperands(c *cli.Context) error {
	if c.Args().Present() {
		return usagef(c, "takes no operand, got %q", c.Args().First())
	}
	return nil
}
