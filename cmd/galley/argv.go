package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// reorder puts the options of a command before its operands, because the
// parser below (flag.FlagSet, through urfave/cli) stops at the first operand:
// without it `galley diff main.go --stat` would take --stat for a path. Args
// is the whole command line with the program's name.
//
// A command in inFront (one that runs another program) keeps everything from
// its first operand, or its "--", on as it is: those words are the other
// program's. For the others "--" ends the options, as everywhere.
func reorder(app *cli.App, args []string, inFront func(*cli.Command) int) []string {
	if len(args) == 0 {
		return args
	}
	out := append([]string(nil), args[0])
	rest := args[1:]
	flags, commands := app.Flags, app.Commands
	var cmd *cli.Command
	for {
		opts, after := leadingOptions(flags, rest)
		out = append(out, opts...)
		rest = after
		if len(rest) == 0 || rest[0] == "--" {
			break
		}
		next := find(commands, rest[0])
		if next == nil {
			break
		}
		out = append(out, rest[0])
		rest = rest[1:]
		cmd, flags, commands = next, next.Flags, next.Subcommands
	}
	if cmd == nil || cmd.SkipFlagParsing || len(rest) == 0 {
		return append(out, rest...)
	}
	keep := -1
	if inFront != nil {
		keep = inFront(cmd)
	}
	opts, operands := permute(flags, rest, keep)
	out = append(out, opts...)
	out = append(out, "--")
	return append(out, operands...)
}

// permute separates options from operands. When keep is not negative,
// everything from the operand of that index on is left alone.
func permute(flags []cli.Flag, args []string, keep int) (opts, operands []string) {
	for len(args) > 0 {
		if args[0] == "--" {
			return opts, append(operands, args[1:]...)
		}
		if !isOption(args[0]) {
			if len(operands) == keep {
				return opts, append(operands, args...)
			}
			operands = append(operands, args[0])
			args = args[1:]
			continue
		}
		n := optionLen(flags, args)
		opts = append(opts, args[:n]...)
		args = args[n:]
	}
	return opts, operands
}

// leadingOptions splits off the options that args begins with.
func leadingOptions(flags []cli.Flag, args []string) (opts, rest []string) {
	for len(args) > 0 && isOption(args[0]) && args[0] != "--" {
		n := optionLen(flags, args)
		opts = append(opts, args[:n]...)
		args = args[n:]
	}
	return opts, args
}

// optionLen is how many words the option at args[0] takes: two where its
// value is the next word. Unknown options take one; the parser names them.
func optionLen(flags []cli.Flag, args []string) int {
	name := strings.TrimLeft(args[0], "-")
	if strings.Contains(name, "=") || len(args) == 1 {
		return 1
	}
	for _, f := range flags {
		for _, n := range f.Names() {
			if n != name {
				continue
			}
			if d, ok := f.(cli.DocGenerationFlag); ok && d.TakesValue() {
				return 2
			}
			return 1
		}
	}
	return 1
}

func isOption(arg string) bool { return len(arg) > 1 && arg[0] == '-' }

func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}
