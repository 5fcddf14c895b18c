package tools

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// opt is an option as it was given.
type opt struct {
	name rune
	arg  string
	has  bool // arg was given (it may be left out where it is optional)
}

// options describes what a command takes. short has the letters as getopt(3)
// wants them: "x:" takes an argument, "x::" may. long has the long names; their
// letter says whether they take one, and may be any rune that no short option
// has.
type options struct {
	short string
	long  map[string]rune
	// bad is the status for an unknown option (default 1).
	bad int
	// ordered ends the options at the first operand, as env does.
	ordered bool
	// digits allows -5, which is given as option '#' with the number.
	digits bool
}

// takes says how many arguments an option has: 0, 1, or 2 for an optional one;
// -1 is an unknown option.
func (o *options) takes(name rune) int {
	rest := o.short
	for rest != "" {
		r, n := utf8.DecodeRuneInString(rest)
		rest = rest[n:]
		colons := len(rest) - len(strings.TrimLeft(rest, ":"))
		if r == name {
			return colons
		}
		rest = rest[colons:]
	}
	return -1
}

// parse takes the call's arguments apart. ok is false when that was not
// possible: the message has been given, and status is the exit status.
func (c *Call) parse(o options) (opts []opt, operands []string, status int, ok bool) {
	if o.bad == 0 {
		o.bad = 1
	}
	args := c.Args
	for len(args) > 0 {
		a := args[0]
		args = args[1:]
		switch {
		case a == "--":
			return opts, append(operands, args...), 0, true
		case strings.HasPrefix(a, "--"):
			name, val, has := strings.Cut(a[2:], "=")
			if name == "help" {
				c.printf("%s: a command of Galley's virtual sandbox; see docs/virtual.md\n", c.Name)
				return nil, nil, 0, false
			}
			r, err := o.longName(name)
			if err != "" {
				return nil, nil, c.usage(o.bad, "%s", err), false
			}
			n := o.takes(r)
			switch {
			case n <= 0 && has:
				return nil, nil, c.usage(o.bad, "option '--%s' doesn't allow an argument", name), false
			case n == 1 && !has && len(args) == 0:
				return nil, nil, c.usage(o.bad, "option '--%s' requires an argument", name), false
			case n == 1 && !has:
				val, has, args = args[0], true, args[1:]
			}
			opts = append(opts, opt{r, val, has})
		case len(a) > 1 && a[0] == '-':
			if o.digits && isDigits(a[1:]) {
				opts = append(opts, opt{'#', a[1:], true})
				continue
			}
			rest := a[1:]
			for rest != "" {
				r, n := utf8.DecodeRuneInString(rest)
				rest = rest[n:]
				k := o.takes(r)
				if k < 0 || r == ':' {
					return nil, nil, c.usage(o.bad, "invalid option -- '%c'", r), false
				}
				switch {
				case k == 0:
					opts = append(opts, opt{name: r})
				case rest != "" || k == 2:
					opts = append(opts, opt{r, rest, rest != ""})
					rest = ""
				case len(args) == 0:
					return nil, nil, c.usage(o.bad, "option requires an argument -- '%c'", r), false
				default:
					opts = append(opts, opt{r, args[0], true})
					args = args[1:]
				}
			}
		case o.ordered:
			return opts, append(append(operands, a), args...), 0, true
		default:
			operands = append(operands, a)
		}
	}
	return opts, operands, 0, true
}

// longName finds a long option by its name or an unambiguous beginning of it.
func (o *options) longName(name string) (rune, string) {
	if r, ok := o.long[name]; ok {
		return r, ""
	}
	var found rune
	for n, r := range o.long {
		if strings.HasPrefix(n, name) {
			if found != 0 && found != r {
				return 0, fmt.Sprintf("option '--%s' is ambiguous", name)
			}
			found = r
		}
	}
	if found == 0 {
		return 0, fmt.Sprintf("unrecognized option '--%s'", name)
	}
	return found, ""
}

func isDigits(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
