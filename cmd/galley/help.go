package main

import (
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// manual is the help of one command: what it does, how it is called, and how
// it ends. Every command has examples and the list of its exit statuses.
type manual struct {
	usage    []string    // the forms of the call, after the program's name
	about    string      // paragraphs
	json     string      // the shape of what --json prints, "" if there is none
	examples [][2]string // command line, what it does
	exits    [][2]string // status, meaning
}

// The exit statuses that commands share.
var (
	exitDone    = [2]string{"0", "done"}
	exitErrors  = [2]string{"125", "Galley failed, or was called wrongly; the message says what to do"}
	exitRefusal = [2]string{"1", "refused, nothing changed: the answer was no, or the question could not be asked"}
)

// apply gives cmd the manual's text and the ways of failing that all commands
// have: an unknown option is an error of its own, not a page of help.
func (m manual) apply(cmd *cli.Command) *cli.Command {
	cmd.HideHelpCommand = true
	cmd.CustomHelpTemplate = m.template()
	cmd.OnUsageError = func(c *cli.Context, err error, _ bool) error { return optionError(c, err) }
	return cmd
}

// template is the help as urfave/cli prints it: fixed text, but for the
// command's options (and subcommands), which it knows.
func (m manual) template() string {
	var b strings.Builder
	b.WriteString("{{.HelpName}}: {{.Usage}}\n\nUSAGE\n")
	for _, u := range m.usage {
		b.WriteString("  galley " + literal(u) + "\n")
	}
	if m.about != "" {
		b.WriteString("\n" + literal(strings.TrimSpace(m.about)) + "\n")
	}
	b.WriteString("{{if .VisibleCommands}}\nCOMMANDS\n{{range .VisibleCommands}}  {{.Name}}\t{{.Usage}}\n{{end}}{{end}}")
	b.WriteString("{{if .VisibleFlags}}\nOPTIONS\n{{range .VisibleFlags}}  {{.}}\n{{end}}{{end}}")
	if m.json != "" {
		b.WriteString("\nJSON\n" + literal(indent(m.json)) + "\n")
	}
	b.WriteString("\nEXAMPLES\n")
	for _, e := range m.examples {
		b.WriteString("  " + literal(e[0]) + "\n      " + literal(e[1]) + "\n")
	}
	b.WriteString("\nEXIT STATUS\n")
	for _, e := range m.exits {
		b.WriteString("  " + e[0] + strings.Repeat(" ", max(1, 5-len(e[0]))) + literal(e[1]) + "\n")
	}
	return b.String()
}

// literal protects text from text/template and from the tab-aligning writer.
func literal(s string) string {
	return strings.ReplaceAll(s, "{{", `{{"{{"}}`)
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n  ")
}

// optionError turns what flag.FlagSet says about a wrong option into our own
// words, and names the option that was most likely meant.
func optionError(c *cli.Context, err error) error {
	const unknown = "flag provided but not defined: -"
	msg := err.Error()
	name, ok := strings.CutPrefix(msg, unknown)
	if m := wrongValue.FindStringSubmatch(msg); m != nil {
		return usagef(c, "%s %s: expected %s", dashed(m[2]), m[1], expectedOf(c, m[2]))
	}
	if !ok {
		return usagef(c, "%s", strings.NewReplacer("flag needs an argument: ", "a value is missing after ").Replace(msg))
	}
	name = strings.TrimLeft(name, "-")
	var names []string
	for _, f := range c.Command.Flags {
		names = append(names, f.Names()...)
	}
	slices.Sort(names)
	if n := nearest(name, names); n != "" {
		return usagef(c, "no option %s; did you mean %s?", dashed(name), dashed(n))
	}
	return usagef(c, "no option %s", dashed(name))
}

// wrongValue is how flag.FlagSet says that a value is of another type.
var wrongValue = regexp.MustCompile(`^invalid (?:boolean )?value (".*") for (?:flag )?-+([^:]+): `)

// expectedOf says what an option takes.
func expectedOf(c *cli.Context, name string) string {
	for _, f := range c.Command.Flags {
		if !slices.Contains(f.Names(), name) {
			continue
		}
		switch f.(type) {
		case *cli.DurationFlag:
			return "a time such as 30m or 8h"
		case *cli.BoolFlag:
			return "no value"
		}
	}
	return "a whole number"
}

func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// appHelp is the page of `galley` and `galley --help`.
const appHelp = `galley: {{.Usage}}

USAGE
  galley run [options] -- COMMAND [ARGS…]     work on a copy-on-write view of this directory
  galley status | diff | commit | discard     read the proof, keep it or throw it away
  galley COMMAND --help                       options, examples and exit statuses

Programs see the real project at its real path, and what they write lands in a layer
of its own. The project itself is changed by galley commit alone.
{{range .VisibleCategories}}
{{.Name}}
{{range .VisibleCommands}}  {{.Name}}	{{.Usage}}
{{end}}{{end}}
OPTIONS
{{range .VisibleFlags}}  {{.}}
{{end}}
ENVIRONMENT
  GALLEY_HOME     where sessions are kept ($XDG_STATE_HOME/galley, else ~/.local/state/galley)
  GALLEY_MIRRORS  registries that galley pull asks first, separated by commas
  GALLEY_GUEST    the agent of virtual machines (galley-guest, beside this program)
  NO_COLOR        no colour, also on a terminal

EXIT STATUS
  0    done
  1    refused, nothing changed
  3    commit: drift, the base changed on the host
  4    commit: the digest names another change set
  125  Galley failed, or was called wrongly
  run and attach end with the status of the command they ran.
`
