package tools

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/galleyfs/galley/sandbox/virtual/internal/view"
)

func init() { register(sed, "sed") }

// maxSteps bounds what one line may cost in a script that jumps.
const maxSteps = 1_000_000

type sedder struct {
	c                         *Call
	cmds                      []*sedCmd
	quiet, null, inPlace, sep bool
	suffix                    string

	cur          *puller2
	w            *bufio.Writer
	line         int
	space, hold  string
	eol          bool // the line had its newline
	after        []string
	lastRE       *regexp.Regexp
	replaced     bool
	quit         bool
	code         int
	wfiles       map[string]*view.File
	err          error
	steps        int
	missingFinal bool
}

// puller2 gives the lines of the inputs one after the other, one line ahead, so
// that the last is known.
type puller2 struct {
	s     *sedder
	names []string
	r     *bufio.Reader
	close func()
	name  string
	ahead *string
	eol   bool
}

func sed(c *Call) int {
	s := sedder{c: c, wfiles: map[string]*view.File{}}
	var script []string
	extended := false
	opts, args, st, ok := c.parse(options{short: "nrEe:f:i::suzl:①②", long: map[string]rune{
		"quiet": 'n', "silent": 'n', "regexp-extended": 'E', "expression": 'e', "file": 'f', "in-place": 'i', "separate": 's', "null-data": 'z', "unbuffered": 'u', "posix": '①', "sandbox": '②', "debug": '②',
	}})
	if !ok {
		return st
	}
	for _, o := range opts {
		switch o.name {
		case 'n':
			s.quiet = true
		case 'r', 'E':
			extended = true
		case 'e':
			script = append(script, o.arg)
		case 'f':
			b, err := c.readArg(o.arg)
			if err != nil {
				return c.die(1, "couldn't open file %s: %s", o.arg, msg(err))
			}
			script = append(script, strings.TrimSuffix(string(b), "\n"))
		case 'i':
			s.inPlace, s.suffix = true, o.arg
		case 's':
			s.sep = true
		case 'z':
			s.null = true
		}
	}
	if len(script) == 0 {
		if len(args) == 0 {
			_, _ = io.WriteString(c.Stderr, "Usage: sed [OPTION]... {script-only-if-no-other-script} [input-file]...\n")
			return 1
		}
		script, args = args[:1], args[1:]
	}
	text := strings.Join(script, "\n")
	if strings.HasPrefix(text, "#n\n") {
		s.quiet = true
	}
	var err error
	if s.cmds, err = parseSed(text, extended); err != nil {
		return c.die(1, "%s", err)
	}
	defer func() {
		for _, f := range s.wfiles {
			_ = f.Close()
		}
	}()
	if len(args) == 0 {
		if s.inPlace {
			return c.die(1, "no input files")
		}
		args = []string{"-"}
	}
	s.w = c.out
	if !s.inPlace && !s.sep {
		s.run(args)
	} else {
		for _, a := range args {
			if s.quit && !s.inPlace || s.err != nil {
				break
			}
			s.line = 0
			for _, k := range s.cmds {
				k.active = false
			}
			if s.inPlace {
				s.edit(a)
			} else {
				s.run([]string{a})
			}
			if s.quit {
				break
			}
		}
	}
	if s.err != nil {
		if c.Ctx.Err() == nil {
			c.warn("%s", s.err)
		}
		return 4
	}
	if s.code != 0 {
		return s.code
	}
	return c.status
}

// edit replaces one file, at once, by what the script makes of it.
func (s *sedder) edit(name string) {
	c := s.c
	i, err := c.stat(name, true)
	if err != nil {
		c.warn("can't read %s: %s", name, msg(err))
		c.status = 2
		return
	}
	if !i.Mode().IsRegular() {
		c.warn("couldn't edit %s: not a regular file", name)
		c.status = 4
		return
	}
	target := c.abs(name)
	if real, err := c.View.Real(target); err == nil {
		target = real
	}
	temp := path.Join(path.Dir(target), "sed"+randomName(6))
	f, err := c.View.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		c.warn("couldn't open temporary file %s: %s", temp, msg(err))
		c.status = 4
		return
	}
	s.w = bufio.NewWriterSize(f, 64<<10)
	s.run([]string{name})
	if s.quit {
		// What was not looked at is kept.
		for s.cur != nil && s.cur.ahead != nil {
			s.put(*s.cur.ahead, s.cur.eol)
			s.cur.advance()
		}
	}
	err = errors.Join(s.w.Flush(), f.Close())
	s.w = c.out
	if err == nil && s.err == nil && c.Ctx.Err() == nil {
		if s.suffix != "" {
			backup := path.Join(path.Dir(target), path.Base(target)+s.suffix)
			if strings.Contains(s.suffix, "*") {
				backup = path.Join(path.Dir(target), strings.ReplaceAll(s.suffix, "*", path.Base(target)))
			}
			_ = c.View.Link(target, backup, false)
		}
		if err = c.View.CopyMeta(target, temp); err == nil {
			err = c.View.Rename(temp, target, false)
		}
	}
	if err != nil || s.err != nil || c.Ctx.Err() != nil {
		_ = c.View.Remove(temp, false)
	}
	if err != nil {
		c.warn("cannot rename %s: %s", temp, msg(err))
		c.status = 4
	}
}

func (p *puller2) sepByte() byte {
	if p.s.null {
		return 0
	}
	return '\n'
}

// advance reads the line after the present one.
func (p *puller2) advance() {
	p.ahead = nil
	for {
		if p.s.c.Ctx.Err() != nil {
			return
		}
		if p.r == nil {
			if len(p.names) == 0 {
				return
			}
			name := p.names[0]
			p.names = p.names[1:]
			r, err := p.s.c.openArg(name)
			if err != nil {
				if p.s.c.isDir(name) {
					p.s.c.warn("couldn't read %s: Is a directory", name)
				} else {
					p.s.c.warn("can't read %s: %s", name, msg(err))
				}
				p.s.c.status = 2
				continue
			}
			p.r, p.name = bufio.NewReaderSize(r, 32<<10), name
			p.close = func() { _ = r.Close() }
		}
		var b strings.Builder
		for {
			part, err := p.r.ReadSlice(p.sepByte())
			b.Write(part)
			if errors.Is(err, bufio.ErrBufferFull) && b.Len() <= p.s.c.MaxInput {
				continue
			}
			if b.Len() > p.s.c.MaxInput {
				p.s.err = errTooBig
				return
			}
			if err != nil {
				p.close()
				p.r = nil
			}
			break
		}
		if b.Len() == 0 {
			continue
		}
		line := b.String()
		p.eol = line[len(line)-1] == p.sepByte()
		if p.eol {
			line = line[:len(line)-1]
		}
		p.ahead = &line
		return
	}
}

func (s *sedder) run(names []string) {
	s.cur = &puller2{s: s, names: names}
	s.cur.advance()
	for s.err == nil && s.next() {
		s.cycle()
		if s.quit || s.c.Ctx.Err() != nil || s.w == s.c.out && s.c.broken() {
			return
		}
	}
}

// next makes the next line the pattern space.
func (s *sedder) next() bool {
	if s.cur.ahead == nil {
		return false
	}
	s.space, s.eol = *s.cur.ahead, s.cur.eol
	s.line++
	s.cur.advance()
	return true
}

func (s *sedder) last() bool { return s.cur.ahead == nil }

func (s *sedder) put(text string, eol bool) {
	if s.missingFinal {
		_ = s.w.WriteByte(s.cur.sepByte())
		s.missingFinal = false
	}
	_, _ = s.w.WriteString(text)
	if eol {
		_ = s.w.WriteByte(s.cur.sepByte())
	} else {
		s.missingFinal = true
	}
}

func (s *sedder) finish(print bool) {
	if print && !s.quiet {
		s.put(s.space, s.eol)
	}
	for _, a := range s.after {
		if s.missingFinal {
			_ = s.w.WriteByte('\n')
			s.missingFinal = false
		}
		_, _ = s.w.WriteString(a)
	}
	s.after = s.after[:0]
	if s.last() {
		s.missingFinal = false
	}
}

func (s *sedder) matches(a *sedAddr) bool {
	switch a.kind {
	case 'n':
		return s.line == a.n
	case '$':
		return s.last()
	case '~':
		if a.step == 0 {
			return s.line == a.n
		}
		return s.line >= a.n && (s.line-a.n)%a.step == 0
	case '/':
		re := a.re
		if re == nil {
			re = s.lastRE
		}
		if re == nil {
			s.err = errors.New("no previous regular expression")
			return false
		}
		s.lastRE = re
		return re.MatchString(s.space)
	}
	return false
}

func (s *sedder) selected(c *sedCmd) bool {
	switch {
	case c.a == nil:
		return true
	case c.b == nil:
		return s.matches(c.a)
	case !c.active:
		if c.a.kind == 'n' && c.a.n == 0 {
			if s.line != 1 || c.end != 0 {
				return false
			}
			c.end = 1
			c.active = !s.matches(c.b)
			return true
		}
		if !s.matches(c.a) {
			return false
		}
		switch c.b.kind {
		case '+':
			c.end = s.line + c.b.n
		case 'm':
			c.end = s.line
			if c.b.n > 0 {
				c.end = (s.line + c.b.n - 1) / c.b.n * c.b.n
			}
		case 'n':
			c.end = c.b.n
		default:
			c.active = true
			return true
		}
		c.active = c.end > s.line
		return true
	}
	switch c.b.kind {
	case '+', 'm', 'n':
		if s.line >= c.end {
			c.active = false
		}
		return s.line <= c.end
	}
	if s.matches(c.b) {
		c.active = false
	}
	return true
}

func (s *sedder) cycle() {
	s.replaced = false
	s.steps = 0
	for pc := 0; pc < len(s.cmds); pc++ {
		c := s.cmds[pc]
		if s.steps++; s.steps > maxSteps {
			s.err = errors.New("a script that takes more than a million steps for one line, which the virtual sandbox stops")
			return
		}
		if s.steps%1024 == 0 && s.c.Ctx.Err() != nil {
			return
		}
		if s.selected(c) == c.not {
			if c.name == '{' {
				pc = c.jump - 1
			}
			continue
		}
		if s.err != nil {
			return
		}
		if len(s.space)+len(s.hold) > s.c.MaxInput {
			s.err = errTooBig
			return
		}
		switch c.name {
		case 's':
			s.subst(c)
		case 'y':
			s.space = strings.Map(func(r rune) rune {
				if t, ok := c.table[r]; ok {
					return t
				}
				return r
			}, s.space)
		case 'p':
			s.put(s.space, true)
		case 'P':
			first, _, _ := strings.Cut(s.space, "\n")
			s.put(first, true)
		case 'd':
			s.finish(false)
			return
		case 'D':
			_, rest, more := strings.Cut(s.space, "\n")
			if !more {
				s.finish(false)
				return
			}
			s.space = rest
			for _, a := range s.after {
				_, _ = s.w.WriteString(a)
			}
			s.after = s.after[:0]
			pc = -1
		case 'g':
			s.space = s.hold
		case 'G':
			s.space += "\n" + s.hold
			s.eol = true
		case 'h':
			s.hold = s.space
		case 'H':
			s.hold += "\n" + s.space
		case 'x':
			s.space, s.hold = s.hold, s.space
		case 'n':
			if s.last() {
				s.finish(true)
				s.quit = true
				return
			}
			s.finish(true)
			s.next()
		case 'N':
			if s.last() {
				s.finish(true)
				s.quit = true
				return
			}
			before := s.space
			s.next()
			s.space = before + "\n" + s.space
		case 'a':
			s.after = append(s.after, c.text+"\n")
		case 'i':
			s.put(c.text, true)
		case 'c':
			if c.b == nil || c.not || !c.active {
				s.put(c.text, true)
			}
			s.finish(false)
			return
		case '=':
			s.put(strconv.Itoa(s.line), true)
		case 'q', 'Q':
			s.code, s.quit = c.code, true
			if c.name == 'q' {
				s.finish(true)
			}
			return
		case 'l':
			s.put(sedList(s.space), true)
		case 'z':
			s.space = ""
		case 'F':
			s.put(s.cur.name, true)
		case 'r':
			if b, err := s.c.readArg(c.text); err == nil && len(b) > 0 {
				s.after = append(s.after, string(b))
			}
		case 'w':
			s.writeTo(c.text)
		case 'b':
			pc = c.jump - 1
		case 't', 'T':
			if s.replaced == (c.name == 't') {
				pc = c.jump - 1
			}
			s.replaced = false
		}
	}
	s.finish(true)
}

func (s *sedder) writeTo(name string) {
	switch name {
	case "/dev/stdout":
		s.put(s.space, true)
		return
	case "/dev/stderr":
		_, _ = io.WriteString(s.c.Stderr, s.space+"\n")
		return
	}
	f := s.wfiles[name]
	if f == nil {
		var err error
		if f, err = s.c.create(name, truncate, 0o666); err != nil {
			s.err = errors.New("couldn't open file " + name + ": " + msg(err))
			return
		}
		s.wfiles[name] = f
	}
	_, _ = f.Write([]byte(s.space + "\n"))
}

// sedList is the l command's unambiguous form.
func sedList(t string) string {
	var b strings.Builder
	for i := 0; i < len(t); i++ {
		switch c := t[i]; {
		case c == '\\':
			b.WriteString(`\\`)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\t':
			b.WriteString(`\t`)
		case c < ' ' || c >= 127:
			b.WriteString(`\` + pad3(strconv.FormatInt(int64(c), 8)))
		default:
			b.WriteByte(c)
		}
	}
	return b.String() + "$"
}

func pad3(s string) string { return strings.Repeat("0", 3-len(s)) + s }

func (s *sedder) subst(c *sedCmd) {
	re := c.re
	if re == nil {
		re = s.lastRE
	}
	if re == nil {
		s.err = errors.New("no previous regular expression")
		return
	}
	s.lastRE = re
	most := -1
	if !c.global {
		most = max(c.nth, 1)
	}
	found := re.FindAllStringSubmatchIndex(s.space, most)
	if len(found) < max(c.nth, 1) {
		return
	}
	var b strings.Builder
	at := 0
	for i, m := range found {
		if i+1 < c.nth {
			continue
		}
		b.WriteString(s.space[at:m[0]])
		s.expand(&b, c.repl, m)
		at = m[1]
		if b.Len() > s.c.MaxInput {
			s.err = errTooBig
			return
		}
	}
	b.WriteString(s.space[at:])
	s.space = b.String()
	s.replaced = true
	if c.print {
		s.put(s.space, true)
	}
	if c.wfile != "" {
		s.writeTo(c.wfile)
	}
}

// expand writes the replacement for a match, with \U, \L, \u, \l and \E.
func (s *sedder) expand(b *strings.Builder, parts []sedPart, m []int) {
	var fold, once byte
	for _, p := range parts {
		if p.fold != 0 {
			switch p.fold {
			case 'E':
				fold = 0
			case 'u', 'l':
				once = p.fold
			default:
				fold = p.fold
			}
			continue
		}
		text := p.text
		if p.group >= 0 {
			if 2*p.group+1 >= len(m) || m[2*p.group] < 0 {
				continue
			}
			text = s.space[m[2*p.group]:m[2*p.group+1]]
		}
		switch fold {
		case 'U':
			text = strings.ToUpper(text)
		case 'L':
			text = strings.ToLower(text)
		}
		if once != 0 && text != "" {
			if once == 'u' {
				text = strings.ToUpper(text[:1]) + text[1:]
			} else {
				text = strings.ToLower(text[:1]) + text[1:]
			}
			once = 0
		}
		b.WriteString(text)
	}
}
