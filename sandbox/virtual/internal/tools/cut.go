package tools

import (
	"bufio"
	"io"
	"math"
	"strconv"
	"strings"
)

func init() {
	register(cut, "cut")
	register(paste, "paste")
	register(joinTool, "join")
	register(comm, "comm")
	register(fold, "fold")
	register(expandTool, "expand")
	register(column, "column")
}

// span is a range of positions, from 1, both included.
type span struct{ lo, hi int }

func parseSpans(list string) ([]span, bool) {
	var out []span
	for _, p := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' }) {
		lo, hi, isRange := strings.Cut(p, "-")
		s := span{1, math.MaxInt}
		var err error
		if lo != "" {
			if s.lo, err = strconv.Atoi(lo); err != nil || s.lo < 1 {
				return nil, false
			}
		}
		switch {
		case !isRange:
			s.hi = s.lo
		case hi != "":
			if s.hi, err = strconv.Atoi(hi); err != nil || s.hi < s.lo {
				return nil, false
			}
		case lo == "":
			return nil, false
		}
		out = append(out, s)
	}
	return out, len(out) > 0
}

func within(spans []span, n int) bool {
	for _, s := range spans {
		if n >= s.lo && n <= s.hi {
			return true
		}
	}
	return false
}

func cut(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "b:c:d:f:nsz①②:", long: map[string]rune{
		"bytes": 'b', "characters": 'c', "delimiter": 'd', "fields": 'f', "only-delimited": 's', "complement": '①', "output-delimiter": '②',
	}})
	if !ok {
		return st
	}
	delim, outDelim, list := "\t", "", ""
	var mode rune
	var only, complement, hasOut bool
	for _, o := range opts {
		switch o.name {
		case 'b', 'c', 'f':
			if mode != 0 {
				return c.usage(1, "only one type of list may be specified")
			}
			mode, list = o.name, o.arg
		case 'd':
			if len([]rune(o.arg)) > 1 {
				return c.usage(1, "the delimiter must be a single character")
			}
			if delim = o.arg; delim == "" {
				delim = "\x00"
			}
		case 's':
			only = true
		case '①':
			complement = true
		case '②':
			outDelim, hasOut = o.arg, true
		}
	}
	if mode == 0 {
		return c.usage(1, "you must specify a list of bytes, characters, or fields")
	}
	spans, ok := parseSpans(list)
	if !ok {
		if strings.Contains(list, "0") && strings.Trim(list, "0123456789,-") == "" && !strings.Contains(list, "-") {
			if mode == 'f' {
				return c.usage(1, "fields are numbered from 1")
			}
			return c.usage(1, "byte/character positions are numbered from 1")
		}
		return c.usage(1, "invalid field value '%s'", list)
	}
	if !hasOut {
		outDelim = delim
	}
	c.each(files, func(_ string, r io.Reader) error {
		return c.lines(r, '\n', func(line []byte, _ bool) error {
			if c.broken() {
				return errStop
			}
			if mode != 'f' {
				last := -1
				for i := range line {
					if within(spans, i+1) == complement {
						continue
					}
					if hasOut && last >= 0 && last != i-1 {
						c.print(outDelim)
					}
					last = i
					_ = c.out.WriteByte(line[i])
				}
				c.print("\n")
				return nil
			}
			s := string(line)
			if !strings.Contains(s, delim) {
				if !only {
					c.print(s + "\n")
				}
				return nil
			}
			first := true
			for i, f := range strings.Split(s, delim) {
				if within(spans, i+1) == complement {
					continue
				}
				if !first {
					c.print(outDelim)
				}
				first = false
				c.print(f)
			}
			c.print("\n")
			return nil
		})
	})
	return c.status
}

// puller gives the lines of a file one at a time.
type puller struct {
	c   *Call
	r   *bufio.Reader
	cls io.Closer
	eof bool
}

func (c *Call) puller(name string) (*puller, error) {
	r, err := c.openArg(name)
	if err != nil {
		return nil, err
	}
	return &puller{c: c, r: bufio.NewReader(r), cls: r}, nil
}

func (p *puller) next() (string, bool) {
	if p.eof || p.c.Ctx.Err() != nil {
		return "", false
	}
	var b strings.Builder
	for {
		part, err := p.r.ReadSlice('\n')
		b.Write(part)
		if err == bufio.ErrBufferFull && b.Len() <= p.c.MaxInput {
			continue
		}
		if err != nil {
			p.eof = true
			if b.Len() == 0 {
				return "", false
			}
		}
		return strings.TrimSuffix(b.String(), "\n"), true
	}
}

func paste(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "d:sz", long: map[string]rune{"delimiters": 'd', "serial": 's'}})
	if !ok {
		return st
	}
	delims, serial := []string{"\t"}, false
	for _, o := range opts {
		switch o.name {
		case 'd':
			delims = nil
			for i := 0; i < len(o.arg); i++ {
				d := o.arg[i : i+1]
				if d == `\` && i+1 < len(o.arg) {
					i++
					d = map[byte]string{'n': "\n", 't': "\t", '0': "", '\\': `\`}[o.arg[i]]
				}
				delims = append(delims, d)
			}
			if len(delims) == 0 {
				delims = []string{""}
			}
		case 's':
			serial = true
		}
	}
	if len(files) == 0 {
		files = []string{"-"}
	}
	if serial {
		c.each(files, func(_ string, r io.Reader) error {
			n := 0
			err := c.lines(r, '\n', func(line []byte, _ bool) error {
				if n > 0 {
					c.print(delims[(n-1)%len(delims)])
				}
				n++
				c.write(line)
				return nil
			})
			c.print("\n")
			return err
		})
		return c.status
	}
	var ps []*puller
	var stdin *puller
	for _, f := range files {
		if f == "-" && stdin != nil {
			ps = append(ps, stdin)
			continue
		}
		p, err := c.puller(f)
		if err != nil {
			return c.die(1, "%s: %s", f, msg(err))
		}
		defer p.cls.Close()
		if f == "-" {
			stdin = p
		}
		ps = append(ps, p)
	}
	for !c.broken() {
		var parts []string
		any := false
		for _, p := range ps {
			l, ok := p.next()
			any = any || ok
			parts = append(parts, l)
		}
		if !any {
			break
		}
		for i, l := range parts {
			if i > 0 {
				c.print(delims[(i-1)%len(delims)])
			}
			c.print(l)
		}
		c.print("\n")
	}
	return c.status
}

func comm(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "123①②:", long: map[string]rune{"check-order": '①', "nocheck-order": '①', "output-delimiter": '②'}})
	if !ok {
		return st
	}
	hide := map[rune]bool{}
	delim := "\t"
	for _, o := range opts {
		if o.name == '②' {
			delim = o.arg
		}
		hide[o.name] = true
	}
	if len(files) < 2 {
		if len(files) == 0 {
			return c.usage(1, "missing operand")
		}
		return c.usage(1, "missing operand after '%s'", files[0])
	}
	if len(files) > 2 {
		return c.usage(1, "extra operand '%s'", files[2])
	}
	a, err := c.puller(files[0])
	if err != nil {
		return c.die(1, "%s: %s", files[0], msg(err))
	}
	defer a.cls.Close()
	b, err := c.puller(files[1])
	if err != nil {
		return c.die(1, "%s: %s", files[1], msg(err))
	}
	defer b.cls.Close()
	put := func(col rune, line string) {
		if hide[col] {
			return
		}
		for q := '1'; q < col; q++ {
			if !hide[q] {
				c.print(delim)
			}
		}
		c.print(line + "\n")
	}
	x, okx := a.next()
	y, oky := b.next()
	for (okx || oky) && !c.broken() {
		switch {
		case !oky || okx && x < y:
			put('1', x)
			x, okx = a.next()
		case !okx || y < x:
			put('2', y)
			y, oky = b.next()
		default:
			put('3', x)
			x, okx = a.next()
			y, oky = b.next()
		}
	}
	return c.status
}

func joinTool(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "1:2:t:a:v:o:e:ij:", long: map[string]rune{"ignore-case": 'i'}})
	if !ok {
		return st
	}
	f1, f2, sep, empty, format := 1, 1, "", "", ""
	var also, onlyUnpaired [3]bool
	fold := false
	for _, o := range opts {
		n, err := strconv.Atoi(o.arg)
		if strings.ContainsRune("12avj", o.name) && (err != nil || n < 1) {
			return c.die(1, "invalid field number: '%s'", o.arg)
		}
		switch o.name {
		case '1':
			f1 = n
		case '2':
			f2 = n
		case 'j':
			f1, f2 = n, n
		case 't':
			sep = o.arg
		case 'a', 'v':
			if n > 2 {
				return c.die(1, "invalid file number: '%s'", o.arg)
			}
			also[n], onlyUnpaired[n] = true, o.name == 'v'
		case 'o':
			format = o.arg
		case 'e':
			empty = o.arg
		case 'i':
			fold = true
		}
	}
	if len(files) != 2 {
		return c.usage(1, "missing operand")
	}
	paired := !onlyUnpaired[1] && !onlyUnpaired[2]
	fields := func(l string) []string {
		if sep == "" {
			return strings.Fields(l)
		}
		return strings.Split(l, sep)
	}
	outSep := sep
	if outSep == "" {
		outSep = " "
	}
	at := func(f []string, n int) string {
		if n <= len(f) && f[n-1] != "" {
			return f[n-1]
		}
		return empty
	}
	load := func(name string) ([][]string, error) {
		b, err := c.readArg(name)
		var out [][]string
		for _, l := range split(b, '\n') {
			out = append(out, fields(l))
		}
		return out, err
	}
	a, err := load(files[0])
	if err != nil {
		return c.die(1, "%s: %s", files[0], msg(err))
	}
	b, err := load(files[1])
	if err != nil {
		return c.die(1, "%s: %s", files[1], msg(err))
	}
	put := func(x, y []string) {
		var out []string
		key := ""
		if x != nil {
			key = at(x, f1)
		} else {
			key = at(y, f2)
		}
		if format != "" && format != "auto" {
			for _, spec := range strings.FieldsFunc(format, func(r rune) bool { return r == ',' || r == ' ' }) {
				file, n, _ := strings.Cut(spec, ".")
				num, _ := strconv.Atoi(n)
				switch {
				case spec == "0":
					out = append(out, key)
				case num < 1:
					out = append(out, empty)
				case file == "1":
					out = append(out, at(x, num))
				default:
					out = append(out, at(y, num))
				}
			}
		} else {
			out = append(out, key)
			for i, f := range x {
				if i != f1-1 {
					out = append(out, f)
				}
			}
			for i, f := range y {
				if i != f2-1 {
					out = append(out, f)
				}
			}
		}
		c.print(strings.Join(out, outSep) + "\n")
	}
	key := func(f []string, n int) string {
		k := ""
		if n <= len(f) {
			k = f[n-1]
		}
		if fold {
			k = strings.ToLower(k)
		}
		return k
	}
	i, j := 0, 0
	for (i < len(a) || j < len(b)) && !c.broken() {
		switch {
		case j >= len(b) || i < len(a) && key(a[i], f1) < key(b[j], f2):
			if also[1] {
				put(a[i], nil)
			}
			i++
		case i >= len(a) || key(a[i], f1) > key(b[j], f2):
			if also[2] {
				put(nil, b[j])
			}
			j++
		default:
			k := key(a[i], f1)
			m, n := i, j
			for m < len(a) && key(a[m], f1) == k {
				m++
			}
			for n < len(b) && key(b[n], f2) == k {
				n++
			}
			for x := i; x < m && paired; x++ {
				for y := j; y < n && !c.broken(); y++ {
					put(a[x], b[y])
				}
			}
			i, j = m, n
		}
	}
	return c.status
}

func fold(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "bsw:", long: map[string]rune{"bytes": 'b', "spaces": 's', "width": 'w'}, digits: true})
	if !ok {
		return st
	}
	width, spaces := 80, false
	for _, o := range opts {
		switch o.name {
		case 'w', '#':
			n, err := strconv.Atoi(o.arg)
			if err != nil || n < 1 {
				return c.die(1, "invalid number of columns: '%s'", o.arg)
			}
			width = n
		case 's':
			spaces = true
		}
	}
	c.each(files, func(_ string, r io.Reader) error {
		return c.lines(r, '\n', func(line []byte, eol bool) error {
			for len(line) > width {
				n := width
				if spaces {
					if i := strings.LastIndexAny(string(line[:n]), " \t"); i >= 0 {
						n = i + 1
					}
				}
				c.write(line[:n])
				c.print("\n")
				line = line[n:]
			}
			c.write(line)
			if eol {
				c.print("\n")
			}
			return nil
		})
	})
	return c.status
}

func expandTool(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "it:", long: map[string]rune{"initial": 'i', "tabs": 't'}, digits: true})
	if !ok {
		return st
	}
	stop, initial := 8, false
	for _, o := range opts {
		switch o.name {
		case 't', '#':
			n, err := strconv.Atoi(o.arg)
			if err != nil || n < 1 || n > 4096 {
				return c.die(1, "tab size contains invalid character(s): '%s'", o.arg)
			}
			stop = n
		case 'i':
			initial = true
		}
	}
	c.each(files, func(_ string, r io.Reader) error {
		return c.lines(r, '\n', func(line []byte, eol bool) error {
			col, lead := 0, true
			for _, b := range line {
				if b == '\t' && (lead || !initial) {
					n := stop - col%stop
					c.print(strings.Repeat(" ", n))
					col += n
					continue
				}
				lead = lead && (b == ' ' || b == '\t')
				_ = c.out.WriteByte(b)
				col++
			}
			if eol {
				c.print("\n")
			}
			return nil
		})
	})
	return c.status
}

// column is the -t form: a table of columns as wide as they must be.
func column(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "ts:o:", long: map[string]rune{"table": 't', "separator": 's', "output-separator": 'o'}})
	if !ok {
		return st
	}
	sep, out := "", "  "
	for _, o := range opts {
		switch o.name {
		case 's':
			sep = o.arg
		case 'o':
			out = o.arg
		}
	}
	var rows [][]string
	var width []int
	c.each(files, func(_ string, r io.Reader) error {
		b, err := c.readAll(r)
		for _, l := range split(b, '\n') {
			row := strings.Fields(l)
			if sep != "" {
				row = strings.FieldsFunc(l, func(r rune) bool { return strings.ContainsRune(sep, r) })
			}
			if len(row) == 0 {
				continue
			}
			for i, f := range row {
				if i == len(width) {
					width = append(width, 0)
				}
				width[i] = max(width[i], len([]rune(f)))
			}
			rows = append(rows, row)
		}
		return err
	})
	for _, row := range rows {
		for i, f := range row {
			c.print(f)
			if i < len(row)-1 {
				c.print(strings.Repeat(" ", width[i]-len([]rune(f))) + out)
			}
		}
		c.print("\n")
	}
	return c.status
}
