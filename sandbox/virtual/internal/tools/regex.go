package tools

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// errBackref: matching takes linear time here, which back-references forbid.
var errBackref = errors.New("back-references are not supported in the virtual sandbox")

// maxRepeat is the highest count that the regexp package takes.
const maxRepeat = 1000

// Regex translates a POSIX expression, basic or extended with GNU's additions,
// for the regexp package. The result finds the leftmost-longest match.
func Regex(pat string, extended, fold bool) (*regexp.Regexp, error) {
	src, err := translate(pat, extended)
	if err != nil {
		return nil, err
	}
	flags := "(?s)"
	if fold {
		flags = "(?si)"
	}
	re, err := regexp.Compile(flags + src)
	if err != nil {
		return nil, gnuError("Invalid regular expression")
	}
	re.Longest()
	return re, nil
}

// translator goes through a pattern once. atom is where the last thing began
// that a repetition can apply to, -1 for none.
type translator struct {
	p        string
	i        int
	extended bool
	out      strings.Builder
	atom     bool
	depth    int
}

func translate(pat string, extended bool) (string, error) {
	t := &translator{p: pat, extended: extended}
	start := true // of the pattern, a group or an alternative
	for t.i < len(t.p) {
		ch := t.p[t.i]
		op := ch
		literal := false
		if ch == '\\' {
			if t.i+1 >= len(t.p) {
				return "", gnuError("Trailing backslash")
			}
			t.i++
			op = t.p[t.i]
			if strings.IndexByte("(){}|+?", op) >= 0 {
				literal = extended
			} else {
				if err := t.escaped(op); err != nil {
					return "", err
				}
				t.i++
				start = false
				continue
			}
		} else if strings.IndexByte("(){}|+?", ch) >= 0 {
			literal = !extended
		}
		if literal {
			t.lit(op)
			t.i++
			start = false
			continue
		}
		switch op {
		case '(':
			t.depth++
			t.out.WriteByte('(')
			t.i++
			start, t.atom = true, false
			continue
		case ')':
			if t.depth == 0 {
				if !extended {
					return "", gnuError("Unmatched ) or \\)")
				}
				if ch != '\\' {
					t.lit(')')
					t.i++
					start = false
					continue
				}
			}
			t.depth--
			t.out.WriteByte(')')
			t.atom = true
		case '|':
			t.out.WriteByte('|')
			t.i++
			start, t.atom = true, false
			continue
		case '*', '+', '?':
			if !t.atom {
				if op == '*' || extended && start {
					if op == '*' && !extended || start && op == '*' {
						t.lit('*')
					} else if start {
						t.lit(op)
					}
				} else {
					t.lit(op)
				}
			} else {
				t.repeat(string(op))
			}
		case '{':
			if err := t.interval(ch == '\\', start); err != nil {
				return "", err
			}
			start = false
			continue
		case '}':
			t.lit('}')
		case '.':
			t.out.WriteByte('.')
			t.atom = true
		case '^':
			if extended || start {
				t.out.WriteString("^")
				t.i++
				t.atom = false
				continue // what follows still is at the start, so that "^*" works
			}
			t.lit('^')
		case '$':
			rest := t.p[t.i+1:]
			if extended || rest == "" || strings.HasPrefix(rest, `\)`) || strings.HasPrefix(rest, `\|`) {
				t.out.WriteString("$")
				t.atom = false
			} else {
				t.lit('$')
			}
		case '[':
			if err := t.bracket(); err != nil {
				return "", err
			}
			start = false
			continue
		default:
			t.lit(op)
		}
		t.i++
		start = false
	}
	if t.depth > 0 {
		return "", gnuError("Unmatched ( or \\(")
	}
	return t.out.String(), nil
}

func (t *translator) lit(b byte) {
	t.atom = true
	if b >= 0x80 {
		t.out.WriteByte(b) // a part of a character, of which the rest follows
		return
	}
	t.out.WriteString(regexp.QuoteMeta(string(b)))
}

// repeat adds an operator; what has one already is grouped, as "a**" is legal
// in POSIX.
func (t *translator) repeat(op string) {
	s := t.out.String()
	if n := len(s); n > 0 && strings.IndexByte("*+?}", s[n-1]) >= 0 && !strings.HasSuffix(s, `\`+s[n-1:]) {
		// The last atom cannot be told apart from here without parsing again;
		// doubled operators mean what the stronger one means.
		if op == "*" || s[n-1] == '*' {
			if s[n-1] != '}' {
				t.out.Reset()
				t.out.WriteString(s[:n-1] + "*")
			}
			return
		}
		if s[n-1] != '}' {
			t.out.Reset()
			if s[n-1] != op[0] {
				op = "*"
			}
			t.out.WriteString(s[:n-1] + op)
		}
		return
	}
	t.out.WriteString(op)
}

// escaped is a backslash and a character that is no operator.
func (t *translator) escaped(b byte) error {
	switch b {
	case 'w':
		t.out.WriteString(`[0-9A-Za-z_]`)
	case 'W':
		t.out.WriteString(`[^0-9A-Za-z_]`)
	case 's':
		t.out.WriteString(`\s`)
	case 'S':
		t.out.WriteString(`\S`)
	case 'b', '<', '>':
		t.out.WriteString(`\b`)
		t.atom = false
		return nil
	case 'B':
		t.out.WriteString(`\B`)
		t.atom = false
		return nil
	case '`':
		t.out.WriteString(`\A`)
		return nil
	case '\'':
		t.out.WriteString(`\z`)
		return nil
	case 'n':
		t.out.WriteString(`\n`)
	case 't':
		t.out.WriteString(`\t`)
	default:
		if b >= '1' && b <= '9' {
			return errBackref
		}
		t.lit(b)
	}
	t.atom = true
	return nil
}

// interval is {m,n}.
func (t *translator) interval(escaped, start bool) error {
	closing := "}"
	if escaped {
		closing = `\}`
	}
	rest := t.p[t.i+1:]
	j := strings.Index(rest, closing)
	bad := gnuError("Invalid content of \\{\\}")
	if j < 0 {
		if escaped {
			return gnuError("Unmatched \\{")
		}
		t.lit('{')
		t.i++
		return nil
	}
	lo, hi, comma := strings.Cut(rest[:j], ",")
	if strings.Trim(lo+hi, "0123456789") != "" || lo == "" && !comma {
		if !escaped {
			t.lit('{')
			t.i++
			return nil
		}
		return bad
	}
	if !t.atom {
		if !escaped && start {
			t.lit('{')
			t.i++
			return nil
		}
		return gnuError("Invalid preceding regular expression")
	}
	if lo == "" {
		lo = "0"
	}
	m, err1 := strconv.Atoi(lo)
	n, err2 := m, error(nil)
	if hi != "" {
		n, err2 = strconv.Atoi(hi)
	}
	if err1 != nil || err2 != nil || n < m {
		return bad
	}
	if n > maxRepeat {
		return fmt.Errorf("a repetition of more than %d is not supported in the virtual sandbox", maxRepeat)
	}
	if comma {
		t.repeat("{" + lo + "," + hi + "}")
	} else {
		t.repeat("{" + lo + "}")
	}
	t.i += j + len(closing) + 1
	return nil
}

// bracket is [...].
func (t *translator) bracket() error {
	unmatched := gnuError("Unmatched [, [^, [:, [., or [=")
	i := t.i + 1
	var b strings.Builder
	b.WriteByte('[')
	neg := i < len(t.p) && t.p[i] == '^'
	if neg {
		b.WriteByte('^')
		i++
	}
	for first := true; ; first = false {
		if i >= len(t.p) {
			return unmatched
		}
		ch := t.p[i]
		if ch == ']' && !first {
			break
		}
		if ch == '[' && i+1 < len(t.p) && strings.IndexByte(":.=", t.p[i+1]) >= 0 {
			end := strings.Index(t.p[i+2:], t.p[i+1:i+2]+"]")
			if end < 0 {
				return unmatched
			}
			name := t.p[i+2 : i+2+end]
			if t.p[i+1] == ':' {
				if classes[name] == nil {
					return gnuError("Invalid character class name")
				}
				b.WriteString("[:" + name + ":]")
			} else {
				b.WriteString(classLit(name))
			}
			i += end + 4
			continue
		}
		lo, n := char(t.p[i:])
		i += n
		if i+1 < len(t.p) && t.p[i] == '-' && t.p[i+1] != ']' {
			hi, n := char(t.p[i+1:])
			if hi < lo {
				return gnuError("Invalid range end")
			}
			i += 1 + n
			b.WriteString(classLit(lo) + "-" + classLit(hi))
			continue
		}
		b.WriteString(classLit(lo))
	}
	b.WriteByte(']')
	t.out.WriteString(b.String())
	t.i = i + 1
	t.atom = true
	return nil
}

// char is the first character of s.
func char(s string) (string, int) {
	for i := range s {
		if i > 0 {
			return s[:i], i
		}
	}
	return s, len(s)
}

// classLit is a character as it stands in a class of the regexp package.
func classLit(s string) string {
	if len(s) == 1 && strings.Contains(`\[]^-&~`, s) {
		return `\` + s
	}
	return s
}
