package tools

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// sedAddr is a line number, a step, the last line or an expression.
type sedAddr struct {
	kind    byte // 'n', '$', '/', '~' (first~step), '+' (addr,+n), 'm' (addr,~n)
	n, step int
	re      *regexp.Regexp // nil with kind '/': the last one used
}

// sedCmd is one command of a script.
type sedCmd struct {
	a, b   *sedAddr
	not    bool
	name   byte
	text   string // of a, i, c; a label; a file
	re     *regexp.Regexp
	repl   []sedPart
	global bool
	nth    int
	print  bool
	wfile  string
	table  map[rune]rune
	jump   int // of b, t, T, {: where it goes on
	code   int
	active bool // in a range
	end    int
}

// sedPart is a piece of a replacement: text, a group, or a change of case.
type sedPart struct {
	text  string
	group int // -1: text
	fold  byte
}

type sedParser struct {
	s        string
	i        int
	extended bool
	cmds     []*sedCmd
	blocks   []int
	labels   map[string]int
}

func parseSed(script string, extended bool) ([]*sedCmd, error) {
	p := &sedParser{s: script, extended: extended, labels: map[string]int{}}
	for {
		p.skip(" \t\n;")
		if p.i >= len(p.s) {
			break
		}
		if err := p.command(); err != nil {
			return nil, fmt.Errorf("-e expression #1, char %d: %w", min(p.i, len(p.s)), err)
		}
		if len(p.cmds) > 10_000 {
			return nil, errors.New("-e expression #1: more than 10000 commands")
		}
	}
	if len(p.blocks) > 0 {
		return nil, errors.New("-e expression #1, char 0: unmatched `{'")
	}
	for _, c := range p.cmds {
		if strings.IndexByte("btT", c.name) >= 0 {
			c.jump = len(p.cmds)
			if c.text != "" {
				at, ok := p.labels[c.text]
				if !ok {
					return nil, fmt.Errorf("-e expression #1, char %d: can't find label for jump to `%s'", len(script), c.text)
				}
				c.jump = at
			}
		}
	}
	return p.cmds, nil
}

func (p *sedParser) skip(set string) {
	for p.i < len(p.s) && strings.IndexByte(set, p.s[p.i]) >= 0 {
		p.i++
	}
}

func (p *sedParser) peek() byte {
	if p.i < len(p.s) {
		return p.s[p.i]
	}
	return 0
}

func (p *sedParser) number() (int, bool) {
	j := p.i
	for p.i < len(p.s) && isDigit(p.s[p.i]) {
		p.i++
	}
	n, err := strconv.Atoi(p.s[j:p.i])
	return n, err == nil
}

func (p *sedParser) addr() (*sedAddr, error) {
	switch ch := p.peek(); {
	case isDigit(ch):
		n, _ := p.number()
		if p.peek() == '~' {
			p.i++
			step, _ := p.number()
			return &sedAddr{kind: '~', n: n, step: step}, nil
		}
		return &sedAddr{kind: 'n', n: n}, nil
	case ch == '$':
		p.i++
		return &sedAddr{kind: '$'}, nil
	case ch == '/' || ch == '\\' && p.i+1 < len(p.s):
		if ch == '\\' {
			p.i++
		}
		d := p.s[p.i]
		p.i++
		pat, ok := p.until(d, true)
		if !ok {
			return nil, errors.New("unterminated address regex")
		}
		fold, multi := false, false
		for strings.IndexByte("IM", p.peek()) >= 0 && p.peek() != 0 {
			fold = fold || p.peek() == 'I'
			multi = multi || p.peek() == 'M'
			p.i++
		}
		if pat == "" {
			return &sedAddr{kind: '/'}, nil
		}
		re, err := sedRegex(pat, p.extended, fold, multi)
		return &sedAddr{kind: '/', re: re}, err
	}
	return nil, nil
}

func sedRegex(pat string, extended, fold, multi bool) (*regexp.Regexp, error) {
	re, err := Regex(pat, extended, fold)
	if err != nil || !multi {
		return re, err
	}
	m, err := regexp.Compile("(?m)" + re.String())
	if err == nil {
		m.Longest()
	}
	return m, err
}

// until takes text up to the delimiter; in an expression "\n" is a newline and
// the delimiter itself may be escaped.
func (p *sedParser) until(d byte, pattern bool) (string, bool) {
	var b strings.Builder
	class := false
	for p.i < len(p.s) {
		ch := p.s[p.i]
		switch {
		case ch == '\\' && p.i+1 < len(p.s):
			next := p.s[p.i+1]
			p.i += 2
			switch {
			case next == d && !class:
				// An escaped delimiter is the character itself, except that
				// one which is special stays escaped.
				if pattern && strings.IndexByte(".*[]^$+?(){}|", d) >= 0 {
					b.WriteByte('\\')
				}
				if !pattern && d == '&' {
					b.WriteByte('\\')
				}
				b.WriteByte(next)
			case pattern && next == 'n':
				b.WriteByte('\n')
			default:
				b.WriteByte('\\')
				b.WriteByte(next)
			}
			continue
		case pattern && ch == '[' && !class:
			class = true
			b.WriteByte(ch)
			p.i++
			if p.peek() == '^' {
				b.WriteByte('^')
				p.i++
			}
			if p.peek() == ']' {
				b.WriteByte(']')
				p.i++
			}
			continue
		case class && ch == '[' && p.i+1 < len(p.s) && p.s[p.i+1] == ':':
			if j := strings.Index(p.s[p.i:], ":]"); j > 0 {
				b.WriteString(p.s[p.i : p.i+j+2])
				p.i += j + 2
				continue
			}
		case class && ch == ']':
			class = false
		case ch == d && !class:
			p.i++
			return b.String(), true
		case ch == '\n' && pattern:
			return "", false
		}
		b.WriteByte(ch)
		p.i++
	}
	return b.String(), false
}

func (p *sedParser) command() error {
	c := &sedCmd{}
	var err error
	if c.a, err = p.addr(); err != nil {
		return err
	}
	p.skip(" \t")
	if c.a != nil && p.peek() == ',' {
		p.i++
		p.skip(" \t")
		if ch := p.peek(); ch == '+' || ch == '~' {
			p.i++
			n, ok := p.number()
			if !ok {
				return errors.New("expected number after +/~")
			}
			kind := byte('+')
			if ch == '~' {
				kind = 'm'
			}
			c.b = &sedAddr{kind: kind, n: n}
		} else if c.b, err = p.addr(); err != nil {
			return err
		} else if c.b == nil {
			return errors.New("unexpected `,'")
		}
	}
	if c.a != nil && c.a.kind == 'n' && c.a.n == 0 && (c.b == nil || c.b.kind != '/') {
		return errors.New("invalid usage of line address 0")
	}
	p.skip(" \t")
	for p.peek() == '!' {
		c.not = true
		p.i++
		p.skip(" \t")
	}
	if p.i >= len(p.s) {
		return errors.New("missing command")
	}
	c.name = p.s[p.i]
	p.i++
	switch c.name {
	case '#':
		if c.a != nil {
			return errors.New("comments don't accept any addresses")
		}
		for p.i < len(p.s) && p.s[p.i] != '\n' {
			p.i++
		}
		return nil
	case '{':
		p.blocks = append(p.blocks, len(p.cmds))
		p.cmds = append(p.cmds, c)
		return nil
	case '}':
		if len(p.blocks) == 0 {
			return errors.New("unexpected `}'")
		}
		if c.a != nil {
			return errors.New("} doesn't want any addresses")
		}
		open := p.blocks[len(p.blocks)-1]
		p.blocks = p.blocks[:len(p.blocks)-1]
		p.cmds[open].jump = len(p.cmds)
		return p.done(nil)
	case 's':
		if err := p.subst(c); err != nil {
			return err
		}
	case 'y':
		if err := p.transl(c); err != nil {
			return err
		}
	case 'a', 'i', 'c':
		p.text(c)
		p.cmds = append(p.cmds, c)
		return nil
	case ':':
		if c.a != nil {
			return errors.New(": doesn't want any addresses")
		}
		p.skip(" \t")
		label := p.word("\n;")
		if label == "" {
			return errors.New("\":\" lacks a label")
		}
		p.labels[label] = len(p.cmds)
		return nil
	case 'b', 't', 'T':
		p.skip(" \t")
		c.text = p.word("\n;}")
	case 'r', 'w', 'R', 'W':
		p.skip(" \t")
		if c.text = p.word("\n"); c.text == "" {
			return errors.New("missing filename in r/R/w/W commands")
		}
	case 'q', 'Q', 'l', 'L':
		p.skip(" \t")
		c.code, _ = p.number()
	case 'p', 'P', 'd', 'D', 'g', 'G', 'h', 'H', 'x', 'n', 'N', '=', 'z', 'F':
	case 'e':
		return errors.New("e/r/w commands disabled in sandbox mode")
	default:
		return fmt.Errorf("unknown command: `%c'", c.name)
	}
	return p.done(c)
}

// done takes the end of a command.
func (p *sedParser) done(c *sedCmd) error {
	if c != nil {
		p.cmds = append(p.cmds, c)
	}
	p.skip(" \t")
	switch p.peek() {
	case 0, '\n', ';', '}', '#':
		return nil
	}
	if p.i >= len(p.s) {
		return nil
	}
	p.i++
	return errors.New("extra characters after command")
}

func (p *sedParser) word(end string) string {
	j := p.i
	for p.i < len(p.s) && strings.IndexByte(end, p.s[p.i]) < 0 {
		p.i++
	}
	return strings.TrimRight(p.s[j:p.i], " \t")
}

// text is the operand of a, i and c: on the same line, or after "\" and a
// newline; "\" at the end of a line continues it.
func (p *sedParser) text(c *sedCmd) {
	p.skip(" \t")
	if p.peek() == '\\' {
		p.i++
		p.skip(" \t")
		if p.peek() == '\n' {
			p.i++
		}
	}
	var b strings.Builder
	for p.i < len(p.s) && p.s[p.i] != '\n' {
		if p.s[p.i] == '\\' && p.i+1 < len(p.s) {
			p.i++
			if p.s[p.i] == 't' {
				b.WriteByte('\t')
				p.i++
				continue
			}
		}
		b.WriteByte(p.s[p.i])
		p.i++
	}
	c.text = b.String()
}

func (p *sedParser) subst(c *sedCmd) error {
	bad := errors.New("unterminated `s' command")
	if p.i >= len(p.s) {
		return bad
	}
	d := p.s[p.i]
	p.i++
	pat, ok := p.until(d, true)
	if !ok {
		return bad
	}
	repl, ok := p.until(d, false)
	if !ok {
		return bad
	}
	fold, multi := false, false
flags:
	for p.i < len(p.s) {
		switch ch := p.s[p.i]; {
		case ch == 'g':
			c.global = true
		case ch == 'p':
			c.print = true
		case ch == 'i' || ch == 'I':
			fold = true
		case ch == 'm' || ch == 'M':
			multi = true
		case ch == 'e':
			return errors.New("e/r/w commands disabled in sandbox mode")
		case ch == 'w':
			p.i++
			p.skip(" \t")
			if c.wfile = p.word("\n"); c.wfile == "" {
				return errors.New("missing filename in r/R/w/W commands")
			}
			break flags
		case isDigit(ch):
			n, _ := p.number()
			if n == 0 {
				return errors.New("number option to `s' command may not be zero")
			}
			c.nth = n
			continue
		case strings.IndexByte(" \t\n;}#", ch) >= 0:
			break flags
		default:
			p.i++
			return errors.New("unknown option to `s'")
		}
		p.i++
	}
	groups := -1
	if pat != "" {
		re, err := sedRegex(pat, p.extended, fold, multi)
		if err != nil {
			return err
		}
		c.re, groups = re, re.NumSubexp()
	}
	var err error
	c.repl, err = parseRepl(repl, groups)
	return err
}

// parseRepl takes a replacement apart.
func parseRepl(s string, groups int) ([]sedPart, error) {
	var out []sedPart
	var b strings.Builder
	flush := func() {
		if b.Len() > 0 {
			out = append(out, sedPart{text: b.String(), group: -1})
			b.Reset()
		}
	}
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '&':
			flush()
			out = append(out, sedPart{group: 0})
		case s[i] == '\\' && i+1 < len(s):
			i++
			switch ch := s[i]; {
			case isDigit(ch):
				n := int(ch - '0')
				if groups >= 0 && n > groups {
					return nil, fmt.Errorf("invalid reference \\%d on `s' command's RHS", n)
				}
				flush()
				out = append(out, sedPart{group: n})
			case strings.IndexByte("ULulE", ch) >= 0:
				flush()
				out = append(out, sedPart{group: -1, fold: ch})
			case ch == 'n':
				b.WriteByte('\n')
			case ch == 't':
				b.WriteByte('\t')
			case ch == 'r':
				b.WriteByte('\r')
			case ch == 'x':
				n, t, _ := escape(s[i-1:], false)
				b.WriteString(t)
				i += n - 2
			default:
				b.WriteByte(ch)
			}
		default:
			b.WriteByte(s[i])
		}
	}
	flush()
	return out, nil
}

func (p *sedParser) transl(c *sedCmd) error {
	bad := errors.New("unterminated `y' command")
	if p.i >= len(p.s) {
		return bad
	}
	d := p.s[p.i]
	p.i++
	var sides [2][]rune
	for k := range sides {
		t, ok := p.until(d, false)
		if !ok {
			return bad
		}
		t = strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\t`, "\t").Replace(t)
		sides[k] = []rune(t)
	}
	if len(sides[0]) != len(sides[1]) {
		return errors.New("strings for `y' command are different lengths")
	}
	c.table = map[rune]rune{}
	for i, r := range sides[0] {
		if _, ok := c.table[r]; !ok {
			c.table[r] = sides[1][i]
		}
	}
	return nil
}
