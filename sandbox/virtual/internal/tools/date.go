package tools

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

func init() { register(date, "date") }

// Strftime formats a time as strftime(3) does, with GNU's %N and flags.
func Strftime(f string, t time.Time) string {
	var b strings.Builder
	for i := 0; i < len(f); i++ {
		if f[i] != '%' || i+1 >= len(f) {
			b.WriteByte(f[i])
			continue
		}
		i++
		start := i
		padding := byte(0)
		for i < len(f)-1 && strings.IndexByte("-_0^#", f[i]) >= 0 {
			padding = f[i]
			i++
		}
		j := i
		for i < len(f)-1 && isDigit(f[i]) {
			i++
		}
		width, _ := strconv.Atoi(f[j:i])
		colon := false
		if f[i] == ':' && i+1 < len(f) {
			colon = true
			i++
		}
		num := func(n, w int, fill byte) {
			switch padding {
			case '-':
				w = 0
			case '_':
				fill = ' '
			case '0':
				fill = '0'
			}
			s := strconv.Itoa(n)
			b.WriteString(strings.Repeat(string(fill), max(min(max(w, width), 64)-len(s), 0)) + s)
		}
		text := func(s string) {
			if padding == '^' {
				s = strings.ToUpper(s)
			}
			b.WriteString(s)
		}
		switch f[i] {
		case 'Y':
			num(t.Year(), 4, '0')
		case 'C':
			num(t.Year()/100, 2, '0')
		case 'y':
			num(t.Year()%100, 2, '0')
		case 'm':
			num(int(t.Month()), 2, '0')
		case 'd':
			num(t.Day(), 2, '0')
		case 'e':
			num(t.Day(), 2, ' ')
		case 'H':
			num(t.Hour(), 2, '0')
		case 'k':
			num(t.Hour(), 2, ' ')
		case 'I', 'l':
			h := t.Hour() % 12
			if h == 0 {
				h = 12
			}
			fill := byte('0')
			if f[i] == 'l' {
				fill = ' '
			}
			num(h, 2, fill)
		case 'M':
			num(t.Minute(), 2, '0')
		case 'S':
			num(t.Second(), 2, '0')
		case 'j':
			num(t.YearDay(), 3, '0')
		case 'u':
			num((int(t.Weekday())+6)%7+1, 1, '0')
		case 'w':
			num(int(t.Weekday()), 1, '0')
		case 'q':
			num((int(t.Month())+2)/3, 1, '0')
		case 'U':
			num((t.YearDay()+6-int(t.Weekday()))/7, 2, '0')
		case 'W':
			num((t.YearDay()+6-(int(t.Weekday())+6)%7)/7, 2, '0')
		case 'V':
			_, w := t.ISOWeek()
			num(w, 2, '0')
		case 'G':
			y, _ := t.ISOWeek()
			num(y, 4, '0')
		case 's':
			b.WriteString(strconv.FormatInt(t.Unix(), 10))
		case 'N':
			s := fmt.Sprintf("%09d", t.Nanosecond())
			if width > 0 && width < 9 {
				s = s[:width]
			}
			b.WriteString(s)
		case 'a':
			text(t.Weekday().String()[:3])
		case 'A':
			text(t.Weekday().String())
		case 'b', 'h':
			text(t.Month().String()[:3])
		case 'B':
			text(t.Month().String())
		case 'p':
			text(t.Format("PM"))
		case 'P':
			b.WriteString(strings.ToLower(t.Format("PM")))
		case 'z':
			if colon {
				b.WriteString(t.Format("-07:00"))
			} else {
				b.WriteString(t.Format("-0700"))
			}
		case 'Z':
			b.WriteString(t.Format("MST"))
		case 'F':
			b.WriteString(t.Format("2006-01-02"))
		case 'T', 'X':
			b.WriteString(t.Format("15:04:05"))
		case 'R':
			b.WriteString(t.Format("15:04"))
		case 'r':
			b.WriteString(t.Format("03:04:05 PM"))
		case 'D', 'x':
			b.WriteString(t.Format("01/02/06"))
		case 'c':
			b.WriteString(t.Format("Mon Jan _2 15:04:05 2006"))
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case '%':
			b.WriteByte('%')
		default:
			b.WriteString("%" + f[start:i+1])
		}
	}
	return b.String()
}

func date(c *Call) int {
	opts, rest, st, ok := c.parse(options{short: "ud:r:RI::①::②::", long: map[string]rune{
		"utc": 'u', "universal": 'u', "date": 'd', "reference": 'r', "rfc-email": 'R', "iso-8601": '①', "rfc-3339": '②',
	}})
	if !ok {
		return st
	}
	t := time.Now().UTC() // the sandbox has no time zone but UTC
	format := "%a %b %e %H:%M:%S %Z %Y"
	for _, o := range opts {
		switch o.name {
		case 'd':
			var err bool
			if t, err = parseDate(o.arg, t); !err {
				return c.die(1, "invalid date '%s'", o.arg)
			}
		case 'r':
			i, err := c.stat(o.arg, true)
			if err != nil {
				return c.die(1, "%s: %s", o.arg, msg(err))
			}
			t = i.ModTime().UTC()
		case 'R':
			format = "%a, %d %b %Y %H:%M:%S %z"
		case 'I', '①', '②':
			sep := "T"
			if o.name == '②' {
				sep = " "
			}
			format = map[string]string{"": "%Y-%m-%d", "date": "%Y-%m-%d", "hours": "%Y-%m-%d" + sep + "%H%:z", "minutes": "%Y-%m-%d" + sep + "%H:%M%:z",
				"seconds": "%Y-%m-%d" + sep + "%H:%M:%S%:z", "ns": "%Y-%m-%d" + sep + "%H:%M:%S,%N%:z"}[o.arg]
			if format == "" {
				return c.usage(1, "invalid argument '%s' for '--iso-8601'", o.arg)
			}
		}
	}
	for i, a := range rest {
		if !strings.HasPrefix(a, "+") {
			return c.die(1, "cannot set date: Operation not permitted")
		}
		if i > 0 {
			return c.usage(1, "extra operand '%s'", a)
		}
		format = a[1:]
	}
	c.print(Strftime(format, t) + "\n")
	return 0
}

var dateForms = []string{
	time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05 MST", "2006-01-02 15:04:05 -0700", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02",
	"2006/01/02 15:04:05", "2006/01/02", "20060102", time.RFC1123Z, time.RFC1123, time.ANSIC, time.UnixDate, "Jan 2 2006", "2 Jan 2006", "Jan 2, 2006", "2 January 2006", "January 2, 2006", "15:04:05", "15:04",
}

// parseDate understands @seconds, the usual forms, and what is relative to now.
func parseDate(s string, now time.Time) (time.Time, bool) {
	s = strings.TrimSpace(s)
	if rest, ok := strings.CutPrefix(s, "@"); ok {
		whole, frac, _ := strings.Cut(rest, ".")
		n, err := strconv.ParseInt(whole, 10, 64)
		ns, _ := strconv.ParseInt((frac + "000000000")[:9], 10, 64)
		return time.Unix(n, ns).UTC(), err == nil
	}
	t := now
	words := strings.Fields(s)
	for n := len(words); n > 0; n-- {
		head := strings.Join(words[:n], " ")
		for _, f := range dateForms {
			p, err := time.Parse(f, head)
			if err != nil {
				continue
			}
			if p.Year() == 0 {
				p = time.Date(now.Year(), now.Month(), now.Day(), p.Hour(), p.Minute(), p.Second(), 0, time.UTC)
			}
			return relative(words[n:], p.UTC())
		}
	}
	return relative(words, t)
}

func relative(words []string, t time.Time) (time.Time, bool) {
	last := 0
	var apply func(int)
	for i := 0; i < len(words); i++ {
		w := strings.ToLower(words[i])
		n := 1
		switch w {
		case "now", "today":
			continue
		case "utc", "gmt", "z":
			t = t.UTC()
			continue
		case "yesterday":
			t = t.AddDate(0, 0, -1)
			continue
		case "tomorrow":
			t = t.AddDate(0, 0, 1)
			continue
		case "ago":
			if apply != nil {
				apply(-2 * last)
			}
			continue
		case "last":
			n, w = -1, ""
		case "next":
			n, w = 1, ""
		default:
			j := 0
			for j < len(w) && (isDigit(w[j]) || j == 0 && (w[j] == '-' || w[j] == '+')) {
				j++
			}
			if j > 0 {
				v, err := strconv.Atoi(w[:j])
				if err != nil || v > 1e6 || v < -1e6 {
					return t, false
				}
				n, w = v, w[j:]
			}
		}
		if w == "" {
			if i++; i >= len(words) {
				return t, false
			}
			w = strings.ToLower(words[i])
		}
		last = n
		switch strings.TrimSuffix(w, "s") {
		case "second", "sec":
			apply = func(n int) { t = t.Add(time.Duration(n) * time.Second) }
		case "minute", "min":
			apply = func(n int) { t = t.Add(time.Duration(n) * time.Minute) }
		case "hour":
			apply = func(n int) { t = t.Add(time.Duration(n) * time.Hour) }
		case "day":
			apply = func(n int) { t = t.AddDate(0, 0, n) }
		case "week":
			apply = func(n int) { t = t.AddDate(0, 0, 7*n) }
		case "fortnight":
			apply = func(n int) { t = t.AddDate(0, 0, 14*n) }
		case "month":
			apply = func(n int) { t = t.AddDate(0, n, 0) }
		case "year":
			apply = func(n int) { t = t.AddDate(n, 0, 0) }
		default:
			return t, false
		}
		apply(n)
	}
	return t, true
}
