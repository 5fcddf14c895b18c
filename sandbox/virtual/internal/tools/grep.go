package tools

import (
	"bytes"
	"errors"
	"io"
	"path"
	"regexp"
	"strconv"
	"strings"
)

func init() { register(grep, "grep", "egrep", "fgrep") }

type grepper struct {
	c                                                 *Call
	re                                                *regexp.Regexp
	fixed                                             [][]byte // instead of re
	fold, invert, word, line, count, names, missing   bool
	only, number, quiet, noMessages, recursive, deref bool
	offset, null, zero, text, noBinary                bool
	showName                                          bool
	before, after                                     int
	max                                               int
	include, exclude, excludeDir                      []string
	label                                             string
	matched, separate                                 bool
	sep                                               string
}

func grep(c *Call) int {
	g := grepper{c: c, max: -1, label: "(standard input)", sep: "--"}
	mode := byte('G')
	switch path.Base(c.Name) {
	case "egrep":
		mode = 'E'
	case "fgrep":
		mode = 'F'
	}
	opts, args, st, ok := c.parse(options{short: "EFGPe:f:iyvwxcLlm:oqsbHhnTZzaUI①:A:B:C:②:③:④:rRD:d:⑤⑥::⑦:⑧", bad: 2, digits: true, long: map[string]rune{
		"extended-regexp": 'E', "fixed-strings": 'F', "basic-regexp": 'G', "perl-regexp": 'P', "regexp": 'e', "file": 'f', "ignore-case": 'i', "no-ignore-case": '⑧', "invert-match": 'v', "word-regexp": 'w',
		"line-regexp": 'x', "count": 'c', "files-without-match": 'L', "files-with-matches": 'l', "max-count": 'm', "only-matching": 'o', "quiet": 'q', "silent": 'q', "no-messages": 's',
		"byte-offset": 'b', "with-filename": 'H', "no-filename": 'h', "line-number": 'n', "null": 'Z', "null-data": 'z', "text": 'a', "binary-files": '①', "after-context": 'A', "before-context": 'B', "context": 'C',
		"include": '②', "exclude": '③', "exclude-dir": '④', "recursive": 'r', "dereference-recursive": 'R', "line-buffered": '⑤', "color": '⑥', "colour": '⑥', "label": '⑦', "initial-tab": 'T',
	}})
	if !ok {
		return st
	}
	var pats []string
	var nameSet, hasPat bool
	for _, o := range opts {
		n, err := strconv.Atoi(o.arg)
		switch o.name {
		case 'E', 'F', 'G', 'P':
			mode = byte(o.name)
		case 'e':
			pats, hasPat = append(pats, strings.Split(o.arg, "\n")...), true
		case 'f':
			b, err := c.readArg(o.arg)
			if err != nil {
				return c.die(2, "%s: %s", o.arg, msg(err))
			}
			pats, hasPat = append(pats, split(b, '\n')...), true
		case 'i', 'y':
			g.fold = true
		case '⑧':
			g.fold = false
		case 'v':
			g.invert = true
		case 'w':
			g.word = true
		case 'x':
			g.line = true
		case 'c':
			g.count = true
		case 'L':
			g.missing = true
		case 'l':
			g.names = true
		case 'm':
			if err != nil {
				return c.die(2, "invalid max count")
			}
			g.max = n
		case 'o':
			g.only = true
		case 'q':
			g.quiet = true
		case 's':
			g.noMessages = true
		case 'b':
			g.offset = true
		case 'H':
			g.showName, nameSet = true, true
		case 'h':
			g.showName, nameSet = false, true
		case 'n':
			g.number = true
		case 'Z':
			g.null = true
		case 'z':
			g.zero = true
		case 'a':
			g.text = true
		case 'I':
			g.noBinary = true
		case '①':
			g.text = o.arg == "text"
			g.noBinary = o.arg == "without-match"
		case 'A', 'B', 'C', '#':
			if err != nil || n < 0 {
				return c.die(2, "%s: invalid context length argument", o.arg)
			}
			if o.name != 'B' {
				g.after = n
			}
			if o.name != 'A' {
				g.before = n
			}
		case '②':
			g.include = append(g.include, o.arg)
		case '③':
			g.exclude = append(g.exclude, o.arg)
		case '④':
			g.excludeDir = append(g.excludeDir, o.arg)
		case 'r':
			g.recursive = true
		case 'R':
			g.recursive, g.deref = true, true
		case 'd':
			g.recursive = o.arg == "recurse"
		case '⑦':
			g.label = o.arg
		}
	}
	if !hasPat {
		if len(args) == 0 {
			_, _ = io.WriteString(c.Stderr, "Usage: grep [OPTION]... PATTERNS [FILE]...\nTry 'grep --help' for more information.\n")
			return 2
		}
		pats, args = strings.Split(args[0], "\n"), args[1:]
	}
	if err := g.compile(pats, mode); err != nil {
		return c.die(2, "%s", err)
	}
	implicit := len(args) == 0
	if implicit {
		args = []string{"-"}
		if g.recursive {
			args = []string{"."}
		}
	}
	if !nameSet {
		g.showName = len(args) > 1 || g.recursive
		if g.recursive && len(args) == 1 && !c.isDir(args[0]) {
			g.showName = false
		}
	}
	for _, a := range args {
		if g.quiet && g.matched || c.broken() {
			break
		}
		if g.recursive && a != "-" && c.isDir(a) {
			g.walk(a, implicit)
			continue
		}
		if a == "-" {
			g.search(g.label, c.in())
			continue
		}
		g.file(a, true)
	}
	switch {
	case g.quiet && g.matched:
		return 0
	case c.status == 2:
		return 2
	case g.matched:
		return 0
	}
	return 1
}

// compile makes one expression of all patterns. Plain text is not made one.
func (g *grepper) compile(pats []string, mode byte) error {
	if mode == 'F' && !g.fold && !g.word && !g.line {
		for _, p := range pats {
			g.fixed = append(g.fixed, []byte(p))
		}
		return nil
	}
	var alts []string
	for _, p := range pats {
		switch mode {
		case 'F':
			alts = append(alts, regexp.QuoteMeta(p))
		case 'P':
			alts = append(alts, "(?:"+p+")")
		default:
			t, err := translate(p, mode == 'E')
			if err != nil {
				return err
			}
			alts = append(alts, "(?:"+t+")")
		}
	}
	src := strings.Join(alts, "|")
	if len(alts) == 0 {
		src = `[^\x00-\x{10FFFF}]`
	}
	flags := "(?s)"
	if g.fold {
		flags = "(?si)"
	}
	if g.line {
		src = `\A(?:` + src + `)\z`
	}
	re, err := regexp.Compile(flags + src)
	if err != nil {
		if mode == 'P' {
			return errors.New("-P: " + err.Error() + " (the virtual sandbox has RE2's syntax for Perl's)")
		}
		return gnuError("Invalid regular expression")
	}
	if mode != 'P' {
		re.Longest()
	}
	g.re = re
	return nil
}

// find is the first match in line from off, or nil.
func (g *grepper) find(line []byte, off int) []int {
	if g.fixed != nil {
		best := -1
		var out []int
		for _, f := range g.fixed {
			if i := bytes.Index(line[off:], f); i >= 0 && (best < 0 || i < best || i == best && len(f) > out[1]-out[0]) {
				best = i
				out = []int{off + i, off + i + len(f)}
			}
		}
		return out
	}
	for off <= len(line) {
		m := g.findRE(line, off)
		if m == nil || !g.word {
			return m
		}
		// A match that is no word may have a shorter one in it that is.
		for end := m[1]; end >= m[0]; end-- {
			if g.isWord(line, m[0], end) && (end == m[1] || g.re.FindIndex(line[m[0]:end]) != nil && g.whole(line[m[0]:end])) {
				return []int{m[0], end}
			}
		}
		off = m[0] + 1
	}
	return nil
}

// whole reports whether the expression matches all of b.
func (g *grepper) whole(b []byte) bool {
	m := g.re.FindIndex(b)
	return m != nil && m[0] == 0 && m[1] == len(b)
}

// findRE searches from off with what is before it as context.
func (g *grepper) findRE(line []byte, off int) []int {
	if off == 0 {
		return g.re.FindIndex(line)
	}
	// The package cannot begin in the middle; all matches up to there are
	// passed over.
	for _, m := range g.re.FindAllIndex(line, -1) {
		if m[0] >= off {
			return m
		}
	}
	return nil
}

func (g *grepper) isWord(line []byte, i, j int) bool {
	in := func(b byte) bool { return b == '_' || classes["alnum"](b) }
	return (i == 0 || !in(line[i-1])) && (j == len(line) || !in(line[j]))
}

func (g *grepper) walk(dir string, implicit bool) {
	entries, err := g.c.View.ReadDir(g.c.abs(dir))
	if err != nil {
		g.trouble(dir, err)
		return
	}
	for _, e := range entries {
		if g.c.broken() || g.quiet && g.matched {
			return
		}
		p := strings.TrimRight(dir, "/") + "/" + e.Name()
		if implicit && dir == "." {
			p = e.Name()
		}
		isDir := e.IsDir()
		if !isDir && !e.Type().IsRegular() {
			if !g.deref {
				continue
			}
			i, err := g.c.stat(p, true)
			if err != nil {
				g.trouble(p, err)
				continue
			}
			isDir = i.IsDir()
			if isDir {
				continue // links to directories could lead in circles
			}
		}
		if isDir {
			if !matchAny(g.excludeDir, e.Name()) {
				g.walk(p, false)
			}
			continue
		}
		if len(g.include) > 0 && !matchAny(g.include, e.Name()) || matchAny(g.exclude, e.Name()) {
			continue
		}
		g.file(p, false)
	}
}

func matchAny(pats []string, name string) bool {
	for _, p := range pats {
		if fnmatch(strings.TrimSuffix(p, "/"), name, false) {
			return true
		}
	}
	return false
}

func (g *grepper) trouble(p string, err error) {
	if !g.noMessages {
		g.c.warn("%s: %s", p, msg(err))
	}
	g.c.status = 2
}

func (g *grepper) file(p string, operand bool) {
	if operand && matchAny(g.exclude, path.Base(p)) {
		return
	}
	r, err := g.c.open(p)
	if err != nil {
		if g.c.isDir(p) {
			if !g.noMessages {
				g.c.warn("%s: Is a directory", p)
			}
			if operand {
				g.c.status = 2
			}
			return
		}
		g.trouble(p, err)
		return
	}
	defer r.Close()
	g.search(p, r)
}

// prior is a line that may have to be shown before a match.
type prior struct {
	text   string
	n, off int
}

func (g *grepper) search(name string, r io.Reader) {
	c := g.c
	sep := byte('\n')
	if g.zero {
		sep = 0
	}
	count, n, off := 0, 0, 0
	binary := false
	var back []prior
	owed, last := 0, 0
	err := c.lines(r, sep, func(line []byte, _ bool) error {
		n++
		begin := off
		off += len(line) + 1
		if !binary && !g.text && !g.zero && bytes.IndexByte(line, 0) >= 0 {
			binary = true
			if g.noBinary {
				return errStop
			}
		}
		m := g.find(line, 0)
		if (m != nil) == g.invert || g.max == 0 {
			if g.max == 0 {
				return errStop
			}
			if owed > 0 && !g.hideLines(binary) {
				owed--
				last = n
				g.put(name, '-', n, begin, line)
			} else if g.before > 0 {
				if len(back) == g.before {
					back = back[1:]
				}
				back = append(back, prior{string(line), n, begin})
			}
			if g.max > 0 && count >= g.max && owed == 0 {
				return errStop
			}
			return nil
		}
		if g.max > 0 && count >= g.max {
			return errStop
		}
		count++
		g.matched = true
		if g.quiet {
			return errStop
		}
		if g.names || g.missing {
			return errStop
		}
		if g.hideLines(binary) {
			if binary && !g.count {
				c.printf("%s: binary file matches\n", "grep: "+name)
				return errStop
			}
			return nil
		}
		if (g.before > 0 || g.after > 0) && g.separate && (last == 0 || n-len(back) > last+1) && !g.only {
			c.print(g.sep + "\n")
		}
		g.separate = true
		for _, b := range back {
			g.put(name, '-', b.n, b.off, []byte(b.text))
		}
		back = back[:0]
		last, owed = n, g.after
		switch {
		case g.only && g.invert:
		case g.only:
			for at := 0; m != nil; m = g.find(line, at) {
				if m[1] > m[0] {
					g.put(name, ':', n, begin+m[0], line[m[0]:m[1]])
					at = m[1]
				} else {
					at = m[1] + 1
				}
				if at > len(line) {
					break
				}
			}
		default:
			g.put(name, ':', n, begin, line)
		}
		if g.max > 0 && count >= g.max && owed == 0 {
			return errStop
		}
		if c.broken() {
			return errStop
		}
		return nil
	})
	if err != nil && !errors.Is(err, errStop) && c.Ctx.Err() == nil {
		g.trouble(name, err)
		return
	}
	end := "\n"
	if g.null {
		end = "\x00"
	}
	switch {
	case g.quiet:
	case g.names && count > 0, g.missing && count == 0:
		c.print(name + end)
		if g.missing {
			g.matched = true
		}
	case g.names || g.missing:
	case g.count:
		if g.showName {
			if g.null {
				c.print(name + end)
			} else {
				c.print(name + ":")
			}
		}
		c.printf("%d\n", count)
	}
}

// hideLines reports whether no lines are shown.
func (g *grepper) hideLines(binary bool) bool { return g.count || g.quiet || binary }

func (g *grepper) put(name string, mark byte, n, off int, line []byte) {
	if g.only && mark == '-' {
		return
	}
	c := g.c
	if g.showName {
		c.print(name)
		if g.null {
			_ = c.out.WriteByte(0)
		} else {
			_ = c.out.WriteByte(mark)
		}
	}
	if g.number {
		c.printf("%d%c", n, mark)
	}
	if g.offset {
		c.printf("%d%c", off, mark)
	}
	c.write(line)
	if g.zero {
		_ = c.out.WriteByte(0)
	} else {
		c.print("\n")
	}
}
