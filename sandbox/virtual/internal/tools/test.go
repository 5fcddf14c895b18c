package tools

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func init() {
	register(func(c *Call) int { return Test(c, func(string) bool { return false }) }, "test", "[")
	register(func(*Call) int { return 0 }, "true")
	register(func(*Call) int { return 1 }, "false")
}

// Test is test and [. isSet answers -v.
func Test(c *Call, isSet func(name string) bool) int {
	args := c.Args
	if c.Name == "[" {
		if len(args) == 0 || args[len(args)-1] != "]" {
			return c.testErr("missing `]'")
		}
		args = args[:len(args)-1]
	}
	t := tester{c: c, args: args, isSet: isSet}
	ok := t.eval()
	if t.bad != "" {
		return c.testErr(t.bad)
	}
	if ok {
		return 0
	}
	return 1
}

func (c *Call) testErr(m string) int {
	_, _ = c.Stderr.Write([]byte("bash: " + c.Name + ": " + m + "\n"))
	return 2
}

type tester struct {
	c     *Call
	args  []string
	isSet func(string) bool
	bad   string
}

var binary = map[string]bool{"=": true, "==": true, "!=": true, "<": true, ">": true, "-eq": true, "-ne": true, "-lt": true, "-le": true, "-gt": true, "-ge": true, "-nt": true, "-ot": true, "-ef": true}

const unary = "abcdefghkLnoprsStuvwxzGNOR"

func isUnary(s string) bool {
	return len(s) == 2 && s[0] == '-' && strings.IndexByte(unary, s[1]) >= 0
}

// eval follows POSIX: how many arguments there are decides what they mean.
func (t *tester) eval() bool { return t.byCount(t.args) }

func (t *tester) byCount(a []string) bool {
	switch len(a) {
	case 0:
		return false
	case 1:
		return a[0] != ""
	case 2:
		switch {
		case a[0] == "!":
			return a[1] == ""
		case isUnary(a[0]):
			return t.unary(a[0], a[1])
		}
		t.bad = a[0] + ": unary operator expected"
		return false
	case 3:
		switch {
		case binary[a[1]]:
			return t.binary(a[0], a[1], a[2])
		case a[1] == "-a":
			return a[0] != "" && a[2] != ""
		case a[1] == "-o":
			return a[0] != "" || a[2] != ""
		case a[0] == "!":
			return !t.byCount(a[1:])
		case a[0] == "(" && a[2] == ")":
			return a[1] != ""
		}
		t.bad = a[1] + ": binary operator expected"
		return false
	case 4:
		if a[0] == "!" {
			return !t.byCount(a[1:])
		}
		if a[0] == "(" && a[3] == ")" {
			return t.byCount(a[1:3])
		}
	}
	v, rest := t.or(a)
	if t.bad == "" && len(rest) > 0 {
		t.bad = "too many arguments"
	}
	return v
}

func (t *tester) or(a []string) (bool, []string) {
	v, a := t.and(a)
	for len(a) > 0 && a[0] == "-o" {
		var w bool
		w, a = t.and(a[1:])
		v = v || w
	}
	return v, a
}

func (t *tester) and(a []string) (bool, []string) {
	v, a := t.primary(a)
	for len(a) > 0 && a[0] == "-a" {
		var w bool
		w, a = t.primary(a[1:])
		v = v && w
	}
	return v, a
}

func (t *tester) primary(a []string) (bool, []string) {
	switch {
	case len(a) == 0:
		t.bad = "argument expected"
		return false, nil
	case len(a) >= 3 && binary[a[1]]:
		return t.binary(a[0], a[1], a[2]), a[3:]
	case a[0] == "!":
		v, rest := t.primary(a[1:])
		return !v, rest
	case a[0] == "(":
		v, rest := t.or(a[1:])
		if len(rest) == 0 || rest[0] != ")" {
			t.bad = "`)' expected"
			return false, nil
		}
		return v, rest[1:]
	case isUnary(a[0]) && len(a) >= 2:
		return t.unary(a[0], a[1]), a[2:]
	}
	return a[0] != "", a[1:]
}

func (t *tester) integer(s string) int64 {
	n, err := strconv.ParseInt(strings.TrimPrefix(strings.TrimSpace(s), "+"), 10, 64)
	if err != nil {
		t.bad = s + ": integer expression expected"
	}
	return n
}

func (t *tester) binary(x, op, y string) bool {
	switch op {
	case "=", "==":
		return x == y
	case "!=":
		return x != y
	case "<":
		return x < y
	case ">":
		return x > y
	case "-nt", "-ot", "-ef":
		a, aerr := t.c.stat(x, true)
		b, berr := t.c.stat(y, true)
		switch op {
		case "-ef":
			return aerr == nil && berr == nil && a.Same(b)
		case "-ot":
			a, b, aerr, berr = b, a, berr, aerr
		}
		return aerr == nil && (berr != nil || a.ModTime().After(b.ModTime()))
	}
	a, b := t.integer(x), t.integer(y)
	switch op {
	case "-eq":
		return a == b
	case "-ne":
		return a != b
	case "-lt":
		return a < b
	case "-le":
		return a <= b
	case "-gt":
		return a > b
	}
	return a >= b
}

func (t *tester) unary(op, x string) bool {
	switch op {
	case "-n":
		return x != ""
	case "-z":
		return x == ""
	case "-v":
		return t.isSet(x)
	case "-t", "-R", "-o":
		return false
	case "-r", "-w", "-x":
		if x == "" {
			return false
		}
		return t.c.View.Access(t.c.abs(x), map[string]uint32{"-r": 4, "-w": 2, "-x": 1}[op]) == nil
	case "-h", "-L":
		i, err := t.c.stat(x, false)
		return err == nil && i.Mode()&os.ModeSymlink != 0
	}
	i, err := t.c.stat(x, true)
	if err != nil {
		return false
	}
	m := i.Mode()
	switch op {
	case "-f":
		return m.IsRegular()
	case "-d":
		return m.IsDir()
	case "-s":
		return i.Size() > 0
	case "-p":
		return m&os.ModeNamedPipe != 0
	case "-S":
		return m&os.ModeSocket != 0
	case "-c":
		return m&os.ModeCharDevice != 0
	case "-b":
		return i.Stat().Mode&unix.S_IFMT == unix.S_IFBLK
	case "-u":
		return m&os.ModeSetuid != 0
	case "-g":
		return m&os.ModeSetgid != 0
	case "-k":
		return m&os.ModeSticky != 0
	case "-N":
		return i.Stat().Mtim.Nano() > i.Stat().Atim.Nano()
	}
	return true // -a, -e, and -O and -G: all is the user's own
}
