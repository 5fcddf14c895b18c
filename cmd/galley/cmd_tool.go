package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/sandbox/tools"
	"github.com/galleyfs/galley/snapshots"
)

// exitToolFailed is the exit status of a tool call that failed.
const exitToolFailed = 1

func toolCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"tool --list", "tool [options] [--json ARGUMENTS] NAME"},
		about: `
Makes one call of a tool, in the session of this directory, as an agent would, and prints
what the agent would see. ARGUMENTS is a JSON object; @FILE reads it from a file and - from
standard input. galley tool --list prints the tools with their schemas.`,
		json: `--json takes the arguments, as galley tool --list describes them: {"path": "go.mod"}
--data prints {"failed", "code", "text", "data"}     data as --list describes it`,
		examples: [][2]string{
			{`galley tool Read --json '{"path":"go.mod"}'`, "a file, as the session has it"},
			{`galley tool Bash --json '{"command":"make test"}'`, "a command, in the sandbox"},
			{"galley tool RequestReview", "ask for a review"},
		},
		exits: [][2]string{exitDone, {"1", "the call failed; the output says why"}, exitErrors},
	}.apply(&cli.Command{
		Name: "tool", Category: catWork, Usage: "make one tool call from a script", ArgsUsage: "NAME",
		Flags: append(agentFlags(),
			&cli.StringFlag{Name: "json", Usage: "the call's `ARGUMENTS`"},
			boolFlag("data", "print the result as data (JSON), not as text"),
			boolFlag("list", "list the tools, as JSON"),
		),
		Action: func(c *cli.Context) error {
			if c.Bool("list") {
				return listTools(e)
			}
			if c.NArg() != 1 {
				return usagef(c, "expected the name of one tool; galley tool --list lists them")
			}
			if _, ok := tools.Find(c.Args().First()); !ok {
				return usagef(c, "no tool %q; there are %s", c.Args().First(), strings.Join(toolNames(), ", "))
			}
			args, err := readArguments(e, c.String("json"))
			if err != nil {
				return err
			}
			o, err := agentOptions(e, c)
			if err != nil {
				return err
			}
			return e.inSession(c.Context, o, "tool", func(_ *snapshots.Session, set *tools.Set) error {
				return e.callTool(c.Context, set, c.Args().First(), args, c.Bool("data"))
			})
		},
	})
}

func toolNames() []string {
	var out []string
	for _, t := range tools.Tools() {
		out = append(out, t.Name)
	}
	return out
}

// maxArguments bounds the arguments of a tool call, in bytes.
const maxArguments = 300 << 20

// readArguments reads the arguments of a call as --json has them.
func readArguments(e *env, arg string) ([]byte, error) {
	switch {
	case arg == "-":
		return readLimited(e.stdin, "standard input")
	case strings.HasPrefix(arg, "@"):
		f, err := os.Open(arg[1:])
		if err != nil {
			return nil, fmt.Errorf("--json: %w", err)
		}
		defer f.Close()
		return readLimited(f, arg[1:])
	}
	return []byte(arg), nil
}

func readLimited(r io.Reader, name string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxArguments+1))
	if err == nil && len(b) > maxArguments {
		err = fmt.Errorf("more than %d bytes", maxArguments)
	}
	if err != nil {
		return nil, fmt.Errorf("read the arguments from %s: %w", name, err)
	}
	return b, nil
}

// toolInfo is one element of `galley tool --list`.
type toolInfo struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	ReadOnly    bool   `json:"read_only"`
	Input       any    `json:"input"`
	Output      any    `json:"output"`
}

func listTools(e *env) error {
	var out []toolInfo
	for _, t := range tools.Tools() {
		out = append(out, toolInfo{t.Name, t.Description, t.ReadOnly, t.Input, t.Output})
	}
	return ui.JSON(e.stdout, out)
}

func (e *env) callTool(ctx context.Context, set *tools.Set, name string, args []byte, asData bool) error {
	r, err := set.Call(ctx, name, args, nil)
	if err != nil {
		return err
	}
	switch {
	case asData:
		err = ui.JSON(e.stdout, struct {
			Failed bool   `json:"failed"`
			Code   string `json:"code,omitempty"`
			Text   string `json:"text"`
			Data   any    `json:"data,omitempty"`
		}{r.Failed, string(r.Code), r.Text, r.Data})
	case r.Image != nil && !ui.IsTerminal(e.stdout):
		_, err = e.stdout.Write(r.Image.Data)
	case ui.IsTerminal(e.stdout):
		_, err = fmt.Fprintln(e.stdout, safeLines(r.Text))
	default:
		_, err = fmt.Fprintln(e.stdout, r.Text)
	}
	if err != nil {
		return err
	}
	if r.Failed {
		return silent(exitToolFailed)
	}
	return nil
}
