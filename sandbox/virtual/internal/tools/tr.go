package tools

import (
	"io"
	"strconv"
	"strings"
)

func init() { register(tr, "tr") }

// classes are POSIX's character classes, of ASCII, in the order of their bytes.
var classes = map[string]func(b byte) bool{
	"alpha":  func(b byte) bool { return b|32 >= 'a' && b|32 <= 'z' },
	"digit":  isDigit,
	"alnum":  func(b byte) bool { return isDigit(b) || b|32 >= 'a' && b|32 <= 'z' },
	"upper":  func(b byte) bool { return b >= 'A' && b <= 'Z' },
	"lower":  func(b byte) bool { return b >= 'a' && b <= 'z' },
	"space":  func(b byte) bool { return b == ' ' || b >= 9 && b <= 13 },
	"blank":  isBlank,
	"punct":  func(b byte) bool { return b > 32 && b < 127 && !isDigit(b) && !(b|32 >= 'a' && b|32 <= 'z') },
	"print":  func(b byte) bool { return b >= 32 && b < 127 },
	"graph":  func(b byte) bool { return b > 32 && b < 127 },
	"cntrl":  func(b byte) bool { return b < 32 || b == 127 },
	"xdigit": func(b byte) bool { return isDigit(b) || b|32 >= 'a' && b|32 <= 'f' },
}

// trSet is a set of tr in its order. fill is where [c*] stands, -1 for nowhere.
type trSet struct {
	b    []byte
	fill int
	with byte
}

func parseSet(s string) (set trSet, err string) {
	set.fill = -1
	var raw []byte
	var lit []bool // a byte that was escaped is no operator
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 >= len(s) {
			raw, lit = append(raw, s[i]), append(lit, false)
			continue
		}
		i++
		if s[i] >= '0' && s[i] <= '7' {
			j := i
			for j < len(s) && j < i+3 && s[j] >= '0' && s[j] <= '7' {
				j++
			}
			n, _ := strconv.ParseUint(s[i:j], 8, 16)
			raw, lit = append(raw, byte(n)), append(lit, true)
			i = j - 1
			continue
		}
		b := s[i]
		if e, ok := map[byte]byte{'n': '\n', 't': '\t', 'r': '\r', 'a': 7, 'b': 8, 'f': 12, 'v': 11}[b]; ok {
			b = e
		}
		raw, lit = append(raw, b), append(lit, true)
	}
	for i := 0; i < len(raw); {
		rest := string(raw[i:])
		if raw[i] == '[' && !lit[i] {
			if strings.HasPrefix(rest, "[:") {
				if j := strings.Index(rest, ":]"); j > 2 {
					in := classes[rest[2:j]]
					if in == nil {
						return set, "invalid character class '" + rest[2:j] + "'"
					}
					for b := range 256 {
						if in(byte(b)) {
							set.b = append(set.b, byte(b))
						}
					}
					i += j + 2
					continue
				}
			}
			if j := strings.IndexByte(rest, ']'); j >= 3 && rest[2] == '*' && strings.Trim(rest[3:j], "0123456789") == "" {
				base := 10
				if strings.HasPrefix(rest[3:j], "0") {
					base = 8
				}
				n, _ := strconv.ParseInt("0"+rest[3:j], base, 32)
				if n == 0 {
					set.fill, set.with = len(set.b), rest[1]
				}
				for range min(n, 1<<16) {
					set.b = append(set.b, rest[1])
				}
				i += j + 1
				continue
			}
		}
		if i+2 < len(raw) && raw[i+1] == '-' && !lit[i+1] {
			if raw[i+2] < raw[i] {
				return set, "range-endpoints of '" + string(raw[i:i+3]) + "' are in reverse collating sequence order"
			}
			for b := int(raw[i]); b <= int(raw[i+2]); b++ {
				set.b = append(set.b, byte(b))
			}
			i += 3
			continue
		}
		set.b = append(set.b, raw[i])
		i++
	}
	return set, ""
}

func (s *trSet) complement() {
	var in [256]bool
	for _, b := range s.b {
		in[b] = true
	}
	s.b = nil
	for b := range 256 {
		if !in[b] {
			s.b = append(s.b, byte(b))
		}
	}
}

func tr(c *Call) int {
	opts, sets, st, ok := c.parse(options{short: "cCdst", ordered: true, long: map[string]rune{
		"complement": 'c', "delete": 'd', "squeeze-repeats": 's', "truncate-set1": 't',
	}})
	if !ok {
		return st
	}
	var comp, del, squeeze, trunc bool
	for _, o := range opts {
		switch o.name {
		case 'c', 'C':
			comp = true
		case 'd':
			del = true
		case 's':
			squeeze = true
		case 't':
			trunc = true
		}
	}
	want := 2
	if del && !squeeze || squeeze && !del && len(sets) == 1 {
		want = 1
	}
	switch {
	case len(sets) == 0:
		return c.usage(1, "missing operand")
	case len(sets) < want:
		c.warn("missing operand after '%s'", sets[0])
		return c.usageOnly()
	case len(sets) > want:
		return c.usage(1, "extra operand '%s'", sets[want])
	}
	one, err := parseSet(sets[0])
	if err != "" {
		return c.die(1, "%s", err)
	}
	if comp {
		one.complement()
	}
	var two trSet
	if len(sets) == 2 {
		if two, err = parseSet(sets[1]); err != "" {
			return c.die(1, "%s", err)
		}
		if two.fill >= 0 {
			if n := len(one.b) - len(two.b); n > 0 {
				mid := []byte(strings.Repeat(string([]byte{two.with}), n))
				two.b = append(two.b[:two.fill:two.fill], append(mid, two.b[two.fill:]...)...)
			}
		}
	}
	var remove, squeezed [256]bool
	var to [256]byte
	for b := range 256 {
		to[b] = byte(b)
	}
	last := one
	if len(sets) == 2 {
		last = two
	}
	if squeeze {
		for _, b := range last.b {
			squeezed[b] = true
		}
	}
	if del {
		for _, b := range one.b {
			remove[b] = true
		}
	} else if len(sets) == 2 {
		if len(two.b) == 0 && !trunc {
			return c.die(1, "when not truncating set1, string2 must be non-empty")
		}
		for i, b := range one.b {
			if i < len(two.b) {
				to[b] = two.b[i]
			} else if !trunc {
				to[b] = two.b[len(two.b)-1]
			}
		}
	}
	prev := -1
	buf := make([]byte, 32<<10)
	for {
		n, rerr := c.in().Read(buf)
		for _, b := range buf[:n] {
			if remove[b] {
				continue
			}
			b = to[b]
			if squeezed[b] && int(b) == prev {
				continue
			}
			prev = int(b)
			_ = c.out.WriteByte(b)
		}
		if rerr == io.EOF {
			return c.status
		}
		if rerr != nil {
			return c.die(1, "read error: %s", msg(rerr))
		}
		if c.out.Flush() != nil || c.Ctx.Err() != nil {
			return c.status
		}
	}
}

// usageOnly is the second line of a usage message.
func (c *Call) usageOnly() int {
	_, _ = io.WriteString(c.Stderr, "Try '"+c.Name+" --help' for more information.\n")
	return 1
}
