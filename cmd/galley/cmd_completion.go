package main

import (
	"embed"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

//go:embed completion/galley.bash completion/galley.zsh completion/galley.fish
var completionScripts embed.FS

func completionCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"completion bash|zsh|fish"},
		about: "Prints a script that completes commands, options, sessions and paths.",
		examples: [][2]string{
			{"source <(galley completion bash)", "for this shell; put the line into ~/.bashrc for all"},
			{"galley completion zsh > \"${fpath[1]}/_galley\"", "for zsh, from the next start on"},
			{"galley completion fish > ~/.config/fish/completions/galley.fish", "for fish"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name:      "completion",
		Category:  catSystem,
		Usage:     "print the completion script of a shell",
		ArgsUsage: "bash|zsh|fish",
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usagef(c, "expected one of bash, zsh, fish")
			}
			script, err := completionScripts.ReadFile("completion/galley." + c.Args().First())
			if err != nil {
				return usagef(c, "no script for %q; there is one for bash, zsh and fish", c.Args().First())
			}
			_, err = e.stdout.Write(script)
			return err
		},
	})
}

// completeCommand answers the completion scripts. Its operands are the words
// of the command line after "galley", the last one being the word to complete.
// Each line of the answer is a word, a tab and what it means, or one of
// ":files", ":dirs" and ":commands", which the shell knows better.
func completeCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:            "__complete",
		Hidden:          true,
		HideHelp:        true,
		SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			words := c.Args().Slice()
			for _, line := range complete(c.App, words, func() []string { return sessionNames(e) }) {
				if line == imageWords {
					line = strings.Join(matching(imageNames(e), words[len(words)-1]), "\n")
				}
				if line == snapshotWords {
					line = strings.Join(matching(snapshotNames(e, words), words[len(words)-1]), "\n")
				}
				if line != "" {
					fmt.Fprintln(e.stdout, line)
				}
			}
			return nil
		},
	}
}

// snapshotWords stands for the snapshots of the session that the line is about.
const snapshotWords = ":snapshots"

// imageWords stands for the names of the images that are here.
const imageWords = ":images"

// complete finds what the last of words can be.
func complete(app *cli.App, words []string, sessions func() []string) []string {
	if len(words) == 0 {
		return nil
	}
	last := words[len(words)-1]
	flags, commands := app.Flags, app.Commands
	var cmd *cli.Command
	operands := 0
	for i := 0; i < len(words)-1; i++ {
		w := words[i]
		if w == "--" {
			return afterDashes(cmd)
		}
		if isOption(w) {
			n := optionLen(flags, words[i:])
			if n == 2 && i+1 == len(words)-1 {
				return optionValues(w, sessions)
			}
			i += n - 1
			continue
		}
		if next := find(commands, w); next != nil && operands == 0 {
			cmd, flags, commands = next, next.Flags, next.Subcommands
			continue
		}
		operands++
	}
	if strings.HasPrefix(last, "-") {
		return optionWords(flags, last)
	}
	var out []string
	if operands == 0 {
		out = commandWords(commands, last)
	}
	if cmd == nil {
		return out
	}
	return append(out, operandWords(cmd, operands, last, sessions)...)
}

func afterDashes(cmd *cli.Command) []string {
	if cmd != nil && operandsOf(cmd) >= 0 {
		return []string{":commands", ":files"}
	}
	return []string{":files"}
}

// optionValues are the words for the value of an option.
func optionValues(option string, sessions func() []string) []string {
	switch strings.TrimLeft(option, "-") {
	case "session":
		return sessions()
	case "image":
		return []string{imageWords, ":files"}
	case "base", "overlay", "patches":
		return []string{":dirs"}
	}
	return nil
}

// operandWords are the words for the operand of that index.
func operandWords(cmd *cli.Command, index int, last string, sessions func() []string) []string {
	switch {
	case operandsOf(cmd) >= 0 && index >= operandsOf(cmd):
		return []string{":commands", ":files"}
	case cmd.Name == "completion":
		return matching([]string{"bash", "zsh", "fish"}, last)
	case index == 0 && strings.HasPrefix(cmd.ArgsUsage, "N|NAME"):
		return []string{snapshotWords}
	case cmd.Name == "restore" || cmd.Name == "pick" && index > 0 || cmd.Name == "blame":
		return []string{":files"}
	case cmd.Name == "push" && index == 1:
		return matching(sessions(), last)
	case cmd.Name == "export" && index == 1 || cmd.Name == "import" && index == 0:
		return []string{":files"}
	case strings.HasPrefix(cmd.ArgsUsage, "IMAGE") || cmd.Name == "pull" && index == 0:
		return []string{imageWords}
	case strings.HasPrefix(cmd.ArgsUsage, "FILE"):
		return []string{":files"}
	case index == 0 && takesSession(cmd):
		return matching(sessions(), last)
	case cmd.Name == "mount" || cmd.Name == "unmount" || cmd.Name == "overlay":
		return []string{":dirs"}
	case cmd.Name == "diff" || cmd.Name == "commit" || cmd.Name == "discard":
		return []string{":files"}
	}
	return nil
}

// takesSession tells whether the first operand of cmd is a session.
func takesSession(cmd *cli.Command) bool {
	return strings.HasPrefix(cmd.ArgsUsage, "SESSION")
}

func commandWords(commands []*cli.Command, prefix string) []string {
	var out []string
	for _, c := range commands {
		if !c.Hidden && strings.HasPrefix(c.Name, prefix) {
			out = append(out, c.Name+"\t"+c.Usage)
		}
	}
	return out
}

func optionWords(flags []cli.Flag, prefix string) []string {
	var out []string
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		for _, n := range f.Names() {
			if w := dashed(n); strings.HasPrefix(w, prefix) {
				out = append(out, w+"\t"+strings.ReplaceAll(d.GetUsage(), "`", ""))
			}
		}
	}
	return out
}

func matching(words []string, prefix string) []string {
	var out []string
	for _, w := range words {
		if strings.HasPrefix(w, prefix) {
			out = append(out, w)
		}
	}
	return out
}
