package tools

import (
	"math"
	"strconv"
	"strings"
)

// expr evaluates its arguments by precedence.
func expr(c *Call) int {
	e := exprParser{args: c.Args}
	if len(e.args) > 0 && e.args[0] == "--" {
		e.args = e.args[1:]
	}
	if len(e.args) == 0 {
		return c.usage(2, "missing operand")
	}
	v := e.binary(0)
	if e.err == "" && len(e.args) > 0 {
		e.err = "syntax error: unexpected argument '" + e.args[0] + "'"
	}
	if e.err != "" {
		return c.die(2, "%s", e.err)
	}
	c.print(v + "\n")
	if v == "" || strings.Trim(v, "0") == "" || v == "-0" {
		return 1
	}
	return 0
}

type exprParser struct {
	args  []string
	err   string
	depth int
}

var exprLevels = [][]string{{"|"}, {"&"}, {"<", "<=", "=", "==", "!=", ">=", ">"}, {"+", "-"}, {"*", "/", "%"}, {":"}}

func (e *exprParser) binary(level int) string {
	if level == len(exprLevels) {
		return e.primary()
	}
	v := e.binary(level + 1)
	for e.err == "" && len(e.args) > 0 {
		op := ""
		for _, o := range exprLevels[level] {
			if e.args[0] == o {
				op = o
			}
		}
		if op == "" {
			return v
		}
		e.args = e.args[1:]
		if len(e.args) == 0 {
			e.err = "syntax error: missing argument after '" + op + "'"
			return ""
		}
		w := e.binary(level + 1)
		if e.err == "" {
			v = e.apply(op, v, w)
		}
	}
	return v
}

func truth(v string) bool { return v != "" && v != "0" }

func (e *exprParser) apply(op, v, w string) string {
	switch op {
	case "|":
		if truth(v) {
			return v
		}
		if truth(w) {
			return w
		}
		return "0"
	case "&":
		if truth(v) && truth(w) {
			return v
		}
		return "0"
	case ":":
		return e.match(v, w)
	}
	a, aerr := strconv.ParseInt(v, 10, 64)
	b, berr := strconv.ParseInt(w, 10, 64)
	numbers := aerr == nil && berr == nil
	if strings.ContainsAny(op, "<>=!") {
		d := strings.Compare(v, w)
		if numbers {
			d = 0
			if a < b {
				d = -1
			} else if a > b {
				d = 1
			}
		}
		ok := map[string]bool{"<": d < 0, "<=": d <= 0, "=": d == 0, "==": d == 0, "!=": d != 0, ">=": d >= 0, ">": d > 0}[op]
		if ok {
			return "1"
		}
		return "0"
	}
	if !numbers {
		e.err = "non-integer argument"
		return ""
	}
	switch op {
	case "+":
		a += b
	case "-":
		a -= b
	case "*":
		a *= b
	default:
		if b == 0 {
			e.err = "division by zero"
			return ""
		}
		if a == math.MinInt64 && b == -1 {
			e.err = "the result is out of range"
			return ""
		}
		if op == "/" {
			a /= b
		} else {
			a %= b
		}
	}
	return strconv.FormatInt(a, 10)
}

func (e *exprParser) match(s, pat string) string {
	re, err := Regex("^\\("+pat+"\\)", false, false)
	if err != nil {
		if re, err = Regex("^"+pat, false, false); err != nil {
			e.err = err.Error()
			return ""
		}
	}
	m := re.FindStringSubmatch(s)
	if re.NumSubexp() > 1 {
		if m == nil {
			return ""
		}
		return m[2]
	}
	if m == nil {
		return "0"
	}
	return strconv.Itoa(len([]rune(m[0])))
}

func (e *exprParser) primary() string {
	if len(e.args) == 0 {
		e.err = "syntax error: missing argument"
		return ""
	}
	a := e.args[0]
	e.args = e.args[1:]
	arg := func() string {
		if len(e.args) == 0 {
			e.err = "syntax error: missing argument after '" + a + "'"
			return ""
		}
		return e.primary()
	}
	if e.depth++; e.depth > 1000 {
		e.err = "nested too deeply"
		return ""
	}
	defer func() { e.depth-- }()
	switch a {
	case "(":
		v := e.binary(0)
		if e.err == "" && (len(e.args) == 0 || e.args[0] != ")") {
			e.err = "syntax error: expecting ')'"
			return ""
		}
		if e.err == "" {
			e.args = e.args[1:]
		}
		return v
	case "length":
		return strconv.Itoa(len([]rune(arg())))
	case "match":
		s := arg()
		return e.match(s, arg())
	case "index":
		s := arg()
		return strconv.Itoa(strings.IndexAny(s, arg()) + 1)
	case "substr":
		s := []rune(arg())
		pos, err1 := strconv.Atoi(arg())
		n, err2 := strconv.Atoi(arg())
		if err1 != nil || err2 != nil || pos < 1 || n < 1 || pos > len(s) {
			return ""
		}
		return string(s[pos-1 : min(pos-1+n, len(s))])
	case "+":
		if len(e.args) > 0 {
			v := e.args[0]
			e.args = e.args[1:]
			return v
		}
	}
	return a
}
