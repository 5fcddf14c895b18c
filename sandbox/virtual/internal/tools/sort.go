package tools

import (
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

func init() {
	register(sortTool, "sort")
	register(shuf, "shuf")
	register(uniq, "uniq")
}

// sortKey is one -k of sort.
type sortKey struct {
	startField, startChar int // from 1
	endField, endChar     int // 0: the end of the line; endChar 0: of the field
	flags                 string
}

type sorter struct {
	sep                   byte
	hasSep                bool
	keys                  []sortKey
	flags                 string
	unique, stable, check bool
	checkQuiet, zero      bool
	out                   string
}

const sortFlags = "bdfghinMrRV"

func sortTool(c *Call) int {
	var s sorter
	opts, files, st, ok := c.parse(options{short: "bdfghinMrRVcCmo:st:k:uzS:T:", bad: 2, long: map[string]rune{
		"ignore-leading-blanks": 'b', "dictionary-order": 'd', "ignore-case": 'f', "general-numeric-sort": 'g',
		"human-numeric-sort": 'h', "ignore-nonprinting": 'i', "numeric-sort": 'n', "month-sort": 'M', "reverse": 'r', "random-sort": 'R',
		"version-sort": 'V', "check": 'c', "merge": 'm', "output": 'o', "stable": 's', "field-separator": 't',
		"key": 'k', "unique": 'u', "zero-terminated": 'z',
	}})
	if !ok {
		return st
	}
	for _, o := range opts {
		switch o.name {
		case 'c':
			s.check = true
		case 'C':
			s.check, s.checkQuiet = true, true
		case 'o':
			s.out = o.arg
		case 's':
			s.stable = true
		case 'u':
			s.unique = true
		case 'z':
			s.zero = true
		case 't':
			if o.arg == `\0` {
				o.arg = "\x00"
			}
			if len(o.arg) != 1 {
				if o.arg == "" {
					return c.die(2, "empty tab")
				}
				return c.die(2, "multi-character tab '%s'", o.arg)
			}
			s.sep, s.hasSep = o.arg[0], true
		case 'k':
			k, ok := parseKey(o.arg)
			if !ok {
				return c.die(2, "invalid field specification '%s'", o.arg)
			}
			s.keys = append(s.keys, k)
		case 'm', 'S', 'T':
		default:
			s.flags += string(o.name)
		}
	}
	if len(s.keys) == 0 {
		s.keys = []sortKey{{startField: 1, startChar: 1, flags: s.flags}}
	}
	for i := range s.keys {
		if s.keys[i].flags == "" {
			s.keys[i].flags = s.flags
		}
	}
	sep := byte('\n')
	if s.zero {
		sep = 0
	}
	var lines []string
	size := 0
	if len(files) == 0 {
		files = []string{"-"}
	}
	for _, name := range files {
		r, err := c.openArg(name)
		if err != nil {
			if c.isDir(name) {
				return c.die(2, "read failed: %s: %s", name, msg(err))
			}
			return c.die(2, "cannot read: %s: %s", name, msg(err))
		}
		err = c.lines(r, sep, func(line []byte, _ bool) error {
			if size += len(line) + 16; size > c.MaxInput {
				return errTooBig
			}
			lines = append(lines, string(line))
			return nil
		})
		_ = r.Close()
		if err != nil {
			return c.die(2, "read failed: %s: %s", name, msg(err))
		}
	}
	if s.check {
		for i := 1; i < len(lines); i++ {
			d := s.compare(lines[i-1], lines[i])
			if d > 0 || d == 0 && s.unique {
				if !s.checkQuiet {
					c.warn("%s:%d: disorder: %s", files[0], i+1, lines[i])
				}
				return 1
			}
		}
		return 0
	}
	slices.SortStableFunc(lines, s.compare)
	if s.unique {
		lines = slices.CompactFunc(lines, func(a, b string) bool { return s.byKeys(a, b) == 0 })
	}
	w := io.Writer(c.out)
	if s.out != "" {
		f, err := c.create(s.out, truncate, 0o666)
		if err != nil {
			return c.die(2, "open failed: %s: %s", s.out, msg(err))
		}
		defer f.Close()
		w = f
		_, err = io.WriteString(w, joined(lines, sep))
		if err != nil {
			return c.die(2, "write failed: %s: %s", s.out, msg(err))
		}
		return 0
	}
	for _, l := range lines {
		_, _ = io.WriteString(w, l)
		_, _ = w.Write([]byte{sep})
	}
	return 0
}

func joined(lines []string, sep byte) string {
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, string(sep)) + string(sep)
}

func parseKey(spec string) (k sortKey, ok bool) {
	from, to, has := strings.Cut(spec, ",")
	k.startChar = 1
	var flags string
	if k.startField, k.startChar, flags, ok = parsePos(from, 1); !ok || k.startField < 1 || k.startChar < 1 {
		return k, false
	}
	k.flags = flags
	if !has {
		return k, true
	}
	if k.endField, k.endChar, flags, ok = parsePos(to, 0); !ok || k.endField < 1 {
		return k, false
	}
	k.flags += flags
	return k, true
}

func parsePos(s string, char int) (f, ch int, flags string, ok bool) {
	i := strings.IndexFunc(s, func(r rune) bool { return !unicode.IsDigit(r) && r != '.' })
	if i >= 0 {
		s, flags = s[:i], s[i:]
		if strings.Trim(flags, sortFlags) != "" {
			return 0, 0, "", false
		}
	}
	field, c, has := strings.Cut(s, ".")
	f, err := strconv.Atoi(field)
	if err != nil {
		return 0, 0, "", false
	}
	if has {
		if char, err = strconv.Atoi(c); err != nil {
			return 0, 0, "", false
		}
	}
	return f, char, flags, true
}

// field finds where the nth field (from 0) begins and ends. Without a
// separator a field has the blanks before it.
func (s *sorter) field(line string, n int) (begin, end int) {
	for i := 0; ; i++ {
		if s.hasSep {
			j := strings.IndexByte(line[begin:], s.sep)
			if j < 0 {
				end = len(line)
			} else {
				end = begin + j
			}
		} else {
			end = begin
			for end < len(line) && isBlank(line[end]) {
				end++
			}
			for end < len(line) && !isBlank(line[end]) {
				end++
			}
		}
		if i == n {
			return begin, end
		}
		if end >= len(line) {
			return len(line), len(line)
		}
		begin = end
		if s.hasSep {
			begin++
		}
	}
}

func isBlank(b byte) bool { return b == ' ' || b == '\t' }

func (s *sorter) key(line string, k sortKey) string {
	begin, _ := s.field(line, k.startField-1)
	if strings.Contains(k.flags, "b") {
		for begin < len(line) && isBlank(line[begin]) {
			begin++
		}
	}
	begin = min(begin+k.startChar-1, len(line))
	end := len(line)
	if k.endField > 0 {
		b, e := s.field(line, k.endField-1)
		end = e
		if k.endChar > 0 {
			if strings.Contains(k.flags, "b") {
				for b < len(line) && isBlank(line[b]) {
					b++
				}
			}
			end = min(b+k.endChar, len(line))
		}
	}
	if end < begin {
		return ""
	}
	return line[begin:end]
}

func (s *sorter) compare(a, b string) int {
	if d := s.byKeys(a, b); d != 0 || s.stable || s.unique {
		return d
	}
	d := strings.Compare(a, b)
	if strings.Contains(s.flags, "r") {
		return -d
	}
	return d
}

func (s *sorter) byKeys(a, b string) int {
	for _, k := range s.keys {
		d := compareKey(s.key(a, k), s.key(b, k), k.flags)
		if d == 0 {
			continue
		}
		if strings.Contains(k.flags, "r") {
			return -d
		}
		return d
	}
	return 0
}

func compareKey(a, b, flags string) int {
	switch {
	case strings.Contains(flags, "n"):
		return compareNumbers(a, b)
	case strings.Contains(flags, "h"):
		return compareHuman(a, b)
	case strings.Contains(flags, "g"):
		return compareFloat(a, b)
	case strings.Contains(flags, "V"):
		return compareVersion(a, b)
	case strings.Contains(flags, "M"):
		return month(a) - month(b)
	}
	if strings.Contains(flags, "d") {
		keep := func(r rune) rune {
			if r == ' ' || r == '\t' || unicode.IsLetter(r) || unicode.IsDigit(r) {
				return r
			}
			return -1
		}
		a, b = strings.Map(keep, a), strings.Map(keep, b)
	}
	if strings.Contains(flags, "f") {
		a, b = strings.ToUpper(a), strings.ToUpper(b)
	}
	return strings.Compare(a, b)
}

func month(s string) int {
	s = strings.ToUpper(strings.TrimLeft(s, " \t"))
	for i, m := range []string{"JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"} {
		if strings.HasPrefix(s, m) {
			return i + 1
		}
	}
	return 0
}

// number is the decimal number at the beginning of a string: sign, digits
// before and after the point, with no superfluous zeros.
func number(s string) (neg bool, whole, frac string) {
	s = strings.TrimLeft(s, " \t")
	if strings.HasPrefix(s, "-") {
		neg, s = true, s[1:]
	}
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	whole = strings.TrimLeft(s[:i], "0")
	if i < len(s) && s[i] == '.' {
		j := i + 1
		for j < len(s) && s[j] >= '0' && s[j] <= '9' {
			j++
		}
		frac = strings.TrimRight(s[i+1:j], "0")
	}
	if whole == "" && frac == "" {
		neg = false
	}
	return neg, whole, frac
}

func compareNumbers(a, b string) int {
	an, aw, af := number(a)
	bn, bw, bf := number(b)
	if an != bn {
		if an {
			return -1
		}
		return 1
	}
	d := len(aw) - len(bw)
	if d == 0 {
		d = strings.Compare(aw, bw)
	}
	if d == 0 {
		d = strings.Compare(af, bf)
	}
	if an {
		return -d
	}
	return d
}

// compareHuman compares by suffix first, as sort -h does.
func compareHuman(a, b string) int {
	sa, sb := suffix(a), suffix(b)
	if sa != sb {
		return sa - sb
	}
	return compareNumbers(a, b)
}

func suffix(s string) int {
	s = strings.TrimLeft(s, " \t")
	neg := strings.HasPrefix(s, "-")
	rest := strings.TrimLeft(s, "-0123456789.")
	if rest == "" {
		return 0
	}
	i := strings.IndexByte("KMGTPEZY", byte(unicode.ToUpper(rune(rest[0])))) + 1
	if neg {
		return -i
	}
	return i
}

func compareFloat(a, b string) int {
	fa, ea := leadingFloat(a)
	fb, eb := leadingFloat(b)
	switch {
	case ea && !eb:
		return 1
	case eb && !ea:
		return -1
	case fa < fb:
		return -1
	case fa > fb:
		return 1
	}
	return 0
}

// leadingFloat parses the number at the beginning of a string; ok is false
// where there is none.
func leadingFloat(s string) (f float64, ok bool) {
	s = strings.TrimLeft(s, " \t")
	for n := len(s); n > 0; n-- {
		if f, err := strconv.ParseFloat(s[:min(n, 64)], 64); err == nil {
			return f, true
		}
		n = min(n, 64)
	}
	return 0, false
}

// compareVersion compares as version numbers: digits by value, the rest by
// bytes with letters first and "~" before everything.
func compareVersion(a, b string) int {
	whole := strings.Compare(a, b)
	order := func(s string, i int) int {
		switch {
		case i >= len(s) || s[i] >= '0' && s[i] <= '9':
			return 0
		case s[i] == '~':
			return -1
		case unicode.IsLetter(rune(s[i])):
			return int(s[i])
		}
		return int(s[i]) + 256
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		for i < len(a) && !isDigit(a[i]) || j < len(b) && !isDigit(b[j]) {
			if d := order(a, i) - order(b, j); d != 0 {
				return d
			}
			i++
			j++
		}
		i, j = min(i, len(a)), min(j, len(b))
		m, n := i, j
		for m < len(a) && isDigit(a[m]) {
			m++
		}
		for n < len(b) && isDigit(b[n]) {
			n++
		}
		if d := compareNumbers(a[i:m], b[j:n]); d != 0 {
			return d
		}
		i, j = m, n
	}
	return whole
}

func isDigit(b byte) bool { return b >= '0' && b <= '9' }

func shuf(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "n:ei:z", long: map[string]rune{"head-count": 'n', "echo": 'e', "input-range": 'i'}})
	if !ok {
		return st
	}
	n, echo := int64(-1), false
	var lines []string
	for _, o := range opts {
		switch o.name {
		case 'n':
			k, err := count(o.arg)
			if err != nil || k < 0 {
				return c.die(1, "invalid line count: '%s'", o.arg)
			}
			n = k
		case 'e':
			echo = true
		case 'i':
			lo, hi, _ := strings.Cut(o.arg, "-")
			a, err1 := strconv.Atoi(lo)
			b, err2 := strconv.Atoi(hi)
			if err1 != nil || err2 != nil || b-a > c.MaxInput/16 {
				return c.die(1, "invalid input range: '%s'", o.arg)
			}
			for ; a <= b; a++ {
				lines = append(lines, strconv.Itoa(a))
			}
			echo, files = true, nil
		}
	}
	if echo {
		lines = append(lines, files...)
	} else {
		c.each(files, func(_ string, r io.Reader) error {
			b, err := c.readAll(r)
			lines = append(lines, split(b, '\n')...)
			return err
		})
	}
	rand.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	for i, l := range lines {
		if n >= 0 && int64(i) >= n {
			break
		}
		c.print(l + "\n")
	}
	return c.status
}

func uniq(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "cdDuif:s:w:z", long: map[string]rune{
		"count": 'c', "repeated": 'd', "all-repeated": 'D', "unique": 'u', "ignore-case": 'i', "skip-fields": 'f', "skip-chars": 's', "check-chars": 'w',
	}})
	if !ok {
		return st
	}
	var counted, dups, all, uniques, fold bool
	fields, chars, width := 0, 0, -1
	for _, o := range opts {
		n, err := strconv.Atoi(o.arg)
		if o.arg != "" && (err != nil || n < 0) {
			return c.die(1, "%s: invalid number of fields to skip", o.arg)
		}
		switch o.name {
		case 'c':
			counted = true
		case 'd':
			dups = true
		case 'D':
			all = true
		case 'u':
			uniques = true
		case 'i':
			fold = true
		case 'f':
			fields = n
		case 's':
			chars = n
		case 'w':
			width = n
		}
	}
	if len(files) > 2 {
		return c.usage(1, "extra operand '%s'", files[2])
	}
	out := io.Writer(c.out)
	if len(files) == 2 {
		f, err := c.create(files[1], truncate, 0o666)
		if err != nil {
			return c.die(1, "%s: %s", files[1], msg(err))
		}
		defer f.Close()
		out = f
		files = files[:1]
	}
	key := func(line string) string {
		for range fields {
			line = strings.TrimLeft(line, " \t")
			i := strings.IndexAny(line, " \t")
			if i < 0 {
				i = len(line)
			}
			line = line[i:]
		}
		line = line[min(chars, len(line)):]
		if width >= 0 {
			line = line[:min(width, len(line))]
		}
		if fold {
			line = strings.ToLower(line)
		}
		return line
	}
	var prev string
	n := 0
	flush := func() {
		if n == 0 || dups && n < 2 || uniques && n > 1 || all && n < 2 {
			return
		}
		if counted {
			_, _ = io.WriteString(out, pad(strconv.Itoa(n), 7)+" ")
		}
		_, _ = io.WriteString(out, prev+"\n")
	}
	var group []string
	c.each(files, func(_ string, r io.Reader) error {
		return c.lines(r, '\n', func(line []byte, _ bool) error {
			l := string(line)
			if n > 0 && key(l) == key(prev) {
				n++
				if all {
					group = append(group, l)
				}
				return nil
			}
			if all {
				flushGroup(out, group)
				group = append(group[:0], l)
			} else {
				flush()
			}
			prev, n = l, 1
			return nil
		})
	})
	if all {
		flushGroup(out, group)
	} else {
		flush()
	}
	return c.status
}

func flushGroup(w io.Writer, group []string) {
	if len(group) > 1 {
		_, _ = io.WriteString(w, joined(group, '\n'))
	}
}

func pad(s string, n int) string { return strings.Repeat(" ", max(n-len(s), 0)) + s }
