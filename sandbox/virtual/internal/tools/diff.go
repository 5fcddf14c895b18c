package tools

import (
	"bytes"
	"io"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/aymanbagabas/go-udiff"
)

func init() {
	register(diff, "diff")
	register(cmpTool, "cmp")
}

type differ struct {
	c                                             *Call
	context                                       int
	unified, brief, report, recursive, newFile    bool
	fold, spaceChange, allSpace, blankLines, text bool
	labels                                        []string
	exclude                                       []string
	ignore                                        *regexp.Regexp
	differs                                       bool
	opts                                          string
}

func diff(c *Call) int {
	d := differ{c: c, context: 3}
	opts, files, st, ok := c.parse(options{short: "uU:qsrNiwbBaI:x:L:ed①::②ytpE", bad: 2, long: map[string]rune{
		"unified": '③', "brief": 'q', "report-identical-files": 's', "recursive": 'r', "new-file": 'N', "ignore-case": 'i', "ignore-all-space": 'w', "ignore-space-change": 'b',
		"ignore-blank-lines": 'B', "text": 'a', "ignore-matching-lines": 'I', "exclude": 'x', "label": 'L', "color": '①', "strip-trailing-cr": '②', "no-dereference": '②',
	}})
	if !ok {
		return st
	}
	for _, o := range opts {
		if o.name != 'L' && o.name != '①' {
			d.opts += " -" + string(o.name) + o.arg
		}
		switch o.name {
		case 'u', '③':
			d.unified = true
		case 'U':
			n, err := strconv.Atoi(o.arg)
			if err != nil || n < 0 {
				return c.die(2, "invalid context length '%s'", o.arg)
			}
			d.unified, d.context = true, n
		case 'q':
			d.brief = true
		case 's':
			d.report = true
		case 'r':
			d.recursive = true
		case 'N':
			d.newFile = true
		case 'i':
			d.fold = true
		case 'w':
			d.allSpace = true
		case 'b':
			d.spaceChange = true
		case 'B':
			d.blankLines = true
		case 'a':
			d.text = true
		case 'I':
			re, err := Regex(o.arg, false, false)
			if err != nil {
				return c.die(2, "%s: %s", o.arg, err)
			}
			d.ignore = re
		case 'x':
			d.exclude = append(d.exclude, o.arg)
		case 'L':
			d.labels = append(d.labels, o.arg)
		case 'e', 'y':
			return c.die(2, "-%c is not supported in the virtual sandbox: it has the normal and the unified form", o.name)
		}
	}
	if len(files) != 2 {
		if len(files) < 2 {
			return c.usage(2, "missing operand after '%s'", append([]string{"diff"}, files...)[len(files)])
		}
		return c.usage(2, "extra operand '%s'", files[2])
	}
	a, b := files[0], files[1]
	da, db := a != "-" && c.isDir(a), b != "-" && c.isDir(b)
	switch {
	case da && db:
		d.dirs(a, b)
	case da:
		d.files(strings.TrimRight(a, "/")+"/"+path.Base(b), b, false)
	case db:
		d.files(a, strings.TrimRight(b, "/")+"/"+path.Base(a), false)
	default:
		d.files(a, b, false)
	}
	if c.status > 1 {
		return 2
	}
	if d.differs {
		return 1
	}
	return 0
}

func (d *differ) trouble(name string, err error) {
	d.c.warn("%s: %s", name, msg(err))
	d.c.status = 2
}

func (d *differ) dirs(a, b string) {
	c := d.c
	ea, err := c.View.ReadDir(c.abs(a))
	if err != nil {
		d.trouble(a, err)
		return
	}
	eb, err := c.View.ReadDir(c.abs(b))
	if err != nil {
		d.trouble(b, err)
		return
	}
	has := map[string]int{}
	var names []string
	for _, e := range ea {
		has[e.Name()] |= 1
		names = append(names, e.Name())
	}
	for _, e := range eb {
		if has[e.Name()] == 0 {
			names = append(names, e.Name())
		}
		has[e.Name()] |= 2
	}
	for _, n := range sorted(names) {
		if c.broken() || matchAny(d.exclude, n) {
			continue
		}
		pa, pb := strings.TrimRight(a, "/")+"/"+n, strings.TrimRight(b, "/")+"/"+n
		isA, isB := c.isDir(pa), c.isDir(pb)
		switch {
		case has[n] == 3 && isA && isB:
			if d.recursive {
				d.dirs(pa, pb)
			} else {
				c.printf("Common subdirectories: %s and %s\n", pa, pb)
			}
		case has[n] == 3 && isA != isB:
			d.differs = true
			kind := map[bool]string{true: "directory", false: "regular file"}
			c.printf("File %s is a %s while file %s is a %s\n", pa, kind[isA], pb, kind[isB])
		case has[n] == 3, d.newFile && !isA && !isB:
			d.files(pa, pb, true)
		case has[n] == 1:
			d.differs = true
			c.printf("Only in %s: %s\n", a, n)
		default:
			d.differs = true
			c.printf("Only in %s: %s\n", b, n)
		}
	}
}

func (d *differ) load(name string) ([]byte, bool) {
	b, err := d.c.readArg(name)
	if err != nil {
		if d.newFile && isNotExist(err) {
			return nil, true
		}
		d.trouble(name, err)
		return nil, false
	}
	return b, true
}

func (d *differ) files(a, b string, header bool) {
	c := d.c
	x, okx := d.load(a)
	y, oky := d.load(b)
	if !okx || !oky {
		return
	}
	if bytes.Equal(x, y) {
		if d.report {
			c.printf("Files %s and %s are identical\n", a, b)
		}
		return
	}
	if !d.text && (bytes.IndexByte(x[:min(len(x), 8192)], 0) >= 0 || bytes.IndexByte(y[:min(len(y), 8192)], 0) >= 0) {
		d.differs = true
		what := "Binary files"
		if d.brief {
			what = "Files"
		}
		c.printf("%s %s and %s differ\n", what, a, b)
		return
	}
	hunks := d.hunks(string(x), string(y))
	if len(hunks) == 0 {
		if d.report {
			c.printf("Files %s and %s are identical\n", a, b)
		}
		return
	}
	d.differs = true
	if d.brief {
		c.printf("Files %s and %s differ\n", a, b)
		return
	}
	if header {
		c.printf("diff%s %s %s\n", d.opts, a, b)
	}
	if d.unified {
		d.showUnified(a, b, string(x), string(y), hunks)
		return
	}
	d.showNormal(string(x), string(y), hunks)
}

// change replaces lines [a0,a1) of the old file by [b0,b1) of the new.
type change struct{ a0, a1, b0, b1 int }

func lines(s string) []string {
	if s == "" {
		return nil
	}
	out := strings.SplitAfter(s, "\n")
	if out[len(out)-1] == "" {
		out = out[:len(out)-1]
	}
	return out
}

// plain is a line as it is compared.
func (d *differ) plain(l string) string {
	if d.allSpace {
		l = strings.Join(strings.Fields(l), "") + "\n"
	} else if d.spaceChange {
		lead := ""
		if l != strings.TrimLeft(l, " \t") {
			lead = " "
		}
		l = lead + strings.Join(strings.Fields(l), " ") + "\n"
	}
	if d.fold {
		l = strings.ToLower(l)
	}
	return l
}

// hunks compares by lines. Lines are numbered, so that what is compared is
// short whatever they hold.
func (d *differ) hunks(x, y string) []change {
	a, b := lines(x), lines(y)
	ka, kb := make([]string, len(a)), make([]string, len(b))
	for i, l := range a {
		ka[i] = d.plain(l)
	}
	for i, l := range b {
		kb[i] = d.plain(l)
	}
	ja, jb := ensureEOL(ka), ensureEOL(kb)
	var out []change
	for _, e := range udiff.Lines(ja, jb) {
		a0 := strings.Count(ja[:e.Start], "\n")
		a1 := a0 + strings.Count(ja[e.Start:e.End], "\n")
		out = append(out, change{a0: a0, a1: a1, b1: strings.Count(e.New, "\n")})
	}
	shift := 0
	var merged []change
	for _, h := range out {
		n := h.b1
		h.b0 = h.a0 + shift
		h.b1 = h.b0 + n
		shift += n - (h.a1 - h.a0)
		if k := len(merged) - 1; k >= 0 && merged[k].a1 == h.a0 && merged[k].b1 == h.b0 {
			merged[k].a1, merged[k].b1 = h.a1, h.b1
			continue
		}
		merged = append(merged, h)
	}
	var kept []change
	for _, h := range merged {
		skip := d.blankLines || d.ignore != nil
		for _, l := range append(append([]string{}, a[h.a0:h.a1]...), b[h.b0:h.b1]...) {
			l = strings.TrimSuffix(l, "\n")
			if !(d.blankLines && strings.TrimSpace(l) == "") && !(d.ignore != nil && d.ignore.MatchString(l)) {
				skip = false
			}
		}
		if !skip {
			kept = append(kept, h)
		}
	}
	return kept
}

// ensureEOL makes text whose lines all end; one that does not is marked, since
// a missing end is a difference.
func ensureEOL(ls []string) string {
	var b strings.Builder
	for _, l := range ls {
		if strings.HasSuffix(l, "\n") {
			b.WriteString(strings.TrimSuffix(l, "\n") + "\n")
		} else {
			b.WriteString(l + "\x00eof\n")
		}
	}
	return b.String()
}

func (d *differ) put(mark string, l string) {
	d.c.print(mark + l)
	if !strings.HasSuffix(l, "\n") {
		d.c.print("\n\\ No newline at end of file\n")
	}
}

func (d *differ) showNormal(x, y string, hunks []change) {
	a, b := lines(x), lines(y)
	span := func(lo, hi int) string {
		if hi-lo <= 1 {
			return strconv.Itoa(hi)
		}
		return strconv.Itoa(lo+1) + "," + strconv.Itoa(hi)
	}
	for _, h := range hunks {
		op := "c"
		switch {
		case h.a0 == h.a1:
			op = "a"
		case h.b0 == h.b1:
			op = "d"
		}
		d.c.print(span(h.a0, h.a1) + op + span(h.b0, h.b1) + "\n")
		for _, l := range a[h.a0:h.a1] {
			d.put("< ", l)
		}
		if op == "c" {
			d.c.print("---\n")
		}
		for _, l := range b[h.b0:h.b1] {
			d.put("> ", l)
		}
	}
}

func (d *differ) label(i int, name string) string {
	if i < len(d.labels) {
		return d.labels[i]
	}
	stamp := "1970-01-01 00:00:00.000000000 +0000"
	if s, err := d.c.stat(name, true); err == nil {
		stamp = s.ModTime().UTC().Format(stampFormat)
	}
	return name + "\t" + stamp
}

func (d *differ) showUnified(na, nb, x, y string, hunks []change) {
	a, b := lines(x), lines(y)
	d.c.printf("--- %s\n+++ %s\n", d.label(0, na), d.label(1, nb))
	span := func(lo, n int) string {
		switch n {
		case 0:
			return strconv.Itoa(lo) + ",0"
		case 1:
			return strconv.Itoa(lo + 1)
		}
		return strconv.Itoa(lo+1) + "," + strconv.Itoa(n)
	}
	for i := 0; i < len(hunks); {
		j := i + 1
		for j < len(hunks) && hunks[j].a0-hunks[j-1].a1 <= 2*d.context {
			j++
		}
		first, last := hunks[i], hunks[j-1]
		lead := min(d.context, first.a0, first.b0)
		tail := min(d.context, len(a)-last.a1)
		a0, a1 := first.a0-lead, last.a1+tail
		b0, b1 := first.b0-lead, last.b1+tail
		d.c.printf("@@ -%s +%s @@\n", span(a0, a1-a0), span(b0, b1-b0))
		at := a0
		for _, h := range hunks[i:j] {
			for ; at < h.a0; at++ {
				d.put(" ", a[at])
			}
			for ; at < h.a1; at++ {
				d.put("-", a[at])
			}
			for _, l := range b[h.b0:h.b1] {
				d.put("+", l)
			}
		}
		for ; at < a1; at++ {
			d.put(" ", a[at])
		}
		i = j
	}
}

func cmpTool(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "lsbn:i:", bad: 2, long: map[string]rune{"verbose": 'l', "quiet": 's', "silent": 's', "print-bytes": 'b', "bytes": 'n'}})
	if !ok {
		return st
	}
	var all, quiet bool
	limit := int64(1) << 62
	for _, o := range opts {
		switch o.name {
		case 'l':
			all = true
		case 's':
			quiet = true
		case 'n':
			n, err := count(o.arg)
			if err != nil {
				return c.die(2, "invalid --bytes value '%s'", o.arg)
			}
			limit = n
		}
	}
	if len(files) == 1 {
		files = append(files, "-")
	}
	if len(files) != 2 {
		return c.usage(2, "missing operand after 'cmp'")
	}
	var b [2][]byte
	for i, f := range files {
		r, err := c.openArg(f)
		if err == nil {
			b[i], err = c.readAll(io.LimitReader(r, limit))
			_ = r.Close()
		}
		if err != nil {
			if !quiet {
				c.warn("%s: %s", f, msg(err))
			}
			return 2
		}
	}
	line, status := 1, 0
	n := min(len(b[0]), len(b[1]))
	for i := range n {
		if b[0][i] != b[1][i] {
			status = 1
			if quiet {
				return 1
			}
			if !all {
				c.printf("%s %s differ: char %d, line %d\n", files[0], files[1], i+1, line)
				return 1
			}
			c.printf("%d %3o %3o\n", i+1, b[0][i], b[1][i])
		}
		if b[0][i] == '\n' {
			line++
		}
	}
	if len(b[0]) == len(b[1]) {
		return status
	}
	if !quiet {
		short := 0
		if len(b[1]) < len(b[0]) {
			short = 1
		}
		if n == 0 {
			c.warn("EOF on %s which is empty", files[short])
		} else {
			c.warn("EOF on %s after byte %d, line %d", files[short], n, max(line-1, 1))
		}
	}
	return 1
}
