package tools

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

func init() { register(printfTool, "printf") }

func printfTool(c *Call) int {
	args := c.Args
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return c.usage(1, "missing operand")
	}
	s, status := Format(args[0], args[1:], func(m string) { c.warn("%s", m) }, c.MaxInput)
	c.print(s)
	return status
}

// Format is printf of bash: the format is used again while there are arguments.
// What is wrong with them is told to warn, and the status is then 1.
func Format(format string, args []string, warn func(string), limit int) (string, int) {
	f := formatter{args: args, warn: warn, limit: limit}
	for {
		n := len(f.args)
		f.once(format)
		if f.stop || len(f.args) == 0 || len(f.args) == n || f.out.Len() > limit {
			break
		}
	}
	if f.out.Len() > limit {
		warn("the output is larger than a command may keep in memory in the virtual sandbox")
		return "", 1
	}
	return f.out.String(), f.status
}

type formatter struct {
	args   []string
	out    strings.Builder
	warn   func(string)
	limit  int
	status int
	stop   bool
}

func (f *formatter) bad(format string, a ...any) {
	f.warn(fmt.Sprintf(format, a...))
	f.status = 1
}

func (f *formatter) next() (string, bool) {
	if len(f.args) == 0 {
		return "", false
	}
	a := f.args[0]
	f.args = f.args[1:]
	return a, true
}

func (f *formatter) once(s string) {
	for i := 0; i < len(s) && !f.stop && f.out.Len() <= f.limit; {
		switch {
		case s[i] == '\\':
			n, text, stop := escape(s[i:], false)
			f.out.WriteString(text)
			f.stop = stop
			i += n
		case s[i] == '%' && i+1 < len(s) && s[i+1] == '%':
			f.out.WriteByte('%')
			i += 2
		case s[i] == '%':
			i += f.verb(s[i:])
		default:
			f.out.WriteByte(s[i])
			i++
		}
	}
}

// verb formats one conversion and returns its length.
func (f *formatter) verb(s string) int {
	i := 1
	for i < len(s) && strings.IndexByte("-+ #0'", s[i]) >= 0 {
		i++
	}
	flags := strings.ReplaceAll(s[1:i], "'", "")
	num := func() (int, bool) {
		if i < len(s) && s[i] == '*' {
			i++
			a, _ := f.next()
			n, _ := strconv.Atoi(a)
			return n, true
		}
		j := i
		for i < len(s) && isDigit(s[i]) {
			i++
		}
		n, _ := strconv.Atoi(s[j:i])
		return n, i > j
	}
	width, hasWidth := num()
	prec, hasPrec := 0, false
	if i < len(s) && s[i] == '.' {
		i++
		prec, _ = num()
		hasPrec = prec >= 0
	}
	if width < 0 {
		flags, width = flags+"-", -width
	}
	if width > f.limit || prec > f.limit {
		f.bad("a field of more than %d characters", f.limit)
		f.stop = true
		return len(s)
	}
	for i < len(s) && strings.IndexByte("hlLjzt", s[i]) >= 0 {
		i++
	}
	if i >= len(s) {
		f.bad("%s: missing format character", s)
		f.stop = true
		return len(s)
	}
	verb := s[i]
	i++
	spec := "%" + flags
	if hasWidth {
		spec += strconv.Itoa(width)
	}
	if hasPrec {
		spec += "." + strconv.Itoa(prec)
	}
	switch verb {
	case '(':
		if j := strings.Index(s[i:], ")T"); j >= 0 {
			a, ok := f.next()
			t := time.Now()
			if n, err := strconv.ParseInt(a, 10, 64); ok && err == nil && n >= 0 {
				t = time.Unix(n, 0)
			}
			f.out.WriteString(Strftime(s[i:i+j], t.UTC()))
			return i + j + 2
		}
		f.bad("%s: invalid format character", s[:i])
		f.stop = true
	case 'd', 'i':
		a, _ := f.next()
		n := f.integer(a)
		if hasPrec {
			spec = strings.ReplaceAll(spec, "0.", ".")
		}
		fmt.Fprintf(&f.out, spec+"d", n)
	case 'u':
		a, _ := f.next()
		fmt.Fprintf(&f.out, spec+"d", uint64(f.integer(a)))
	case 'o', 'x', 'X':
		a, _ := f.next()
		fmt.Fprintf(&f.out, spec+string(verb), uint64(f.integer(a)))
	case 'e', 'E', 'f', 'F', 'g', 'G':
		a, _ := f.next()
		text := fmt.Sprintf(spec+string(verb), f.float(a))
		f.out.WriteString(text)
	case 'c':
		a, _ := f.next()
		if len(a) > 1 {
			_, n := utf8.DecodeRuneInString(a)
			a = a[:n]
		}
		f.text(spec, flags, width, a)
	case 's':
		a, _ := f.next()
		if hasPrec && prec < len(a) {
			a = a[:prec]
		}
		f.text(spec, flags, width, a)
	case 'b':
		a, _ := f.next()
		var b strings.Builder
		for j := 0; j < len(a); {
			if a[j] != '\\' {
				b.WriteByte(a[j])
				j++
				continue
			}
			n, text, stop := escape(a[j:], true)
			b.WriteString(text)
			if f.stop = stop; stop {
				break
			}
			j += n
		}
		f.text(spec, flags, width, b.String())
	case 'q':
		a, _ := f.next()
		f.text(spec, flags, width, shellQuote(a))
	default:
		f.bad("`%c': invalid format character", verb)
		f.stop = true
	}
	return i
}

// text pads bytewise, as C does.
func (f *formatter) text(_, flags string, width int, s string) {
	fill := strings.Repeat(" ", max(width-len(s), 0))
	if strings.Contains(flags, "-") {
		f.out.WriteString(s + fill)
	} else {
		f.out.WriteString(fill + s)
	}
}

func (f *formatter) integer(a string) int64 {
	if a == "" {
		return 0
	}
	if a[0] == '\'' || a[0] == '"' {
		r, _ := utf8.DecodeRuneInString(a[1:])
		return int64(r)
	}
	t := strings.TrimLeft(a, " \t")
	t = strings.TrimPrefix(t, "+")
	if n, err := strconv.ParseInt(t, 0, 64); err == nil && !strings.ContainsAny(t, "_ob") {
		return n
	}
	if n, err := strconv.ParseUint(t, 0, 64); err == nil && !strings.ContainsAny(t, "_ob") {
		return int64(n)
	}
	end := 0
	if strings.HasPrefix(t, "-") {
		end = 1
	}
	for end < len(t) && isDigit(t[end]) {
		end++
	}
	n, _ := strconv.ParseInt(t[:end], 10, 64)
	if len(t) > 1 && t[0] == '0' {
		n, _ = strconv.ParseInt(t[:end], 8, 64)
	}
	f.bad("%s: invalid number", a)
	return n
}

func (f *formatter) float(a string) float64 {
	if a == "" {
		return 0
	}
	if a[0] == '\'' || a[0] == '"' {
		return float64(f.integer(a))
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(a), 64)
	if err != nil {
		n, _ = leadingFloat(a)
		f.bad("%s: invalid number", a)
	}
	return n
}

// escape decodes a backslash at the beginning of s: its length, what it means,
// and whether output ends (\c). In a %b argument octal numbers begin with 0.
func escape(s string, arg bool) (n int, text string, stop bool) {
	if len(s) < 2 {
		return 1, `\`, false
	}
	switch b := s[1]; b {
	case 'n':
		return 2, "\n", false
	case 't':
		return 2, "\t", false
	case 'r':
		return 2, "\r", false
	case 'a':
		return 2, "\a", false
	case 'b':
		return 2, "\b", false
	case 'f':
		return 2, "\f", false
	case 'v':
		return 2, "\v", false
	case 'e', 'E':
		return 2, "\x1b", false
	case '\\':
		return 2, `\`, false
	case '"', '\'':
		if arg && b == '\'' {
			return 2, `\'`, false
		}
		return 2, string(b), false
	case 'c':
		if arg {
			return 2, "", true
		}
		return 2, `\c`, false
	case 'x', 'u', 'U':
		most := map[byte]int{'x': 2, 'u': 4, 'U': 8}[b]
		j := 2
		for j < len(s) && j < 2+most && classes["xdigit"](s[j]) {
			j++
		}
		if j == 2 {
			return 2, s[:2], false
		}
		v, _ := strconv.ParseUint(s[2:j], 16, 32)
		if b == 'x' {
			return j, string([]byte{byte(v)}), false
		}
		return j, string(rune(v)), false
	}
	if s[1] >= '0' && s[1] <= '7' {
		j, most := 1, 4
		if arg && s[1] == '0' {
			most = 5
		}
		for j < len(s) && j < most && s[j] >= '0' && s[j] <= '7' {
			j++
		}
		v, _ := strconv.ParseUint(s[1:j], 8, 32)
		return j, string([]byte{byte(v)}), false
	}
	return 2, s[:2], false
}

// shellQuote is printf's %q.
func shellQuote(s string) string {
	if s == "" {
		return "''"
	}
	for _, r := range s {
		if r < ' ' || r == 127 {
			var b strings.Builder
			b.WriteString("$'")
			for i := 0; i < len(s); i++ {
				switch c := s[i]; {
				case c == '\n':
					b.WriteString(`\n`)
				case c == '\t':
					b.WriteString(`\t`)
				case c == '\r':
					b.WriteString(`\r`)
				case c == '\x1b':
					b.WriteString(`\E`)
				case c < ' ' || c == 127:
					fmt.Fprintf(&b, `\%03o`, c)
				case c == '\'' || c == '\\':
					b.WriteString(`\` + string(c))
				default:
					b.WriteByte(c)
				}
			}
			return b.String() + "'"
		}
	}
	var b strings.Builder
	for i, r := range s {
		if strings.ContainsRune(" !\"$&'()*,;<>?[\\]^`{|}", r) || r == '#' && i == 0 || r == '~' && i == 0 {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}
