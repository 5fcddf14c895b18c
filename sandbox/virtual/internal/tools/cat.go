package tools

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
)

func init() {
	register(cat, "cat")
	register(tac, "tac")
	register(rev, "rev")
	register(nl, "nl")
	register(tee, "tee")
}

func cat(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "AbeEnstTuv", long: map[string]rune{
		"show-all": 'A', "number-nonblank": 'b', "show-ends": 'E', "number": 'n',
		"squeeze-blank": 's', "show-tabs": 'T', "show-nonprinting": 'v',
	}})
	if !ok {
		return st
	}
	var number, nonblank, ends, squeeze, tabs, nonprint bool
	for _, o := range opts {
		switch o.name {
		case 'A':
			ends, tabs, nonprint = true, true, true
		case 'b':
			nonblank = true
		case 'e':
			ends, nonprint = true, true
		case 'E':
			ends = true
		case 'n':
			number = true
		case 's':
			squeeze = true
		case 't':
			tabs, nonprint = true, true
		case 'T':
			tabs = true
		case 'v':
			nonprint = true
		}
	}
	plain := !(number || nonblank || ends || squeeze || tabs || nonprint)
	n, blanks, start := 0, 0, true
	c.each(files, func(_ string, r io.Reader) error {
		if plain {
			return c.copy(r)
		}
		return c.lines(r, '\n', func(line []byte, eol bool) error {
			if c.broken() {
				return errStop
			}
			if start && len(line) == 0 && eol {
				if blanks++; squeeze && blanks > 1 {
					return nil
				}
			} else {
				blanks = 0
			}
			if start && (nonblank && (len(line) > 0 || !eol) || number && !nonblank) {
				n++
				c.printf("%6d\t", n)
			}
			if tabs || nonprint {
				line = visible(line, tabs, nonprint)
			}
			c.write(line)
			if eol {
				if ends {
					c.print("$")
				}
				c.print("\n")
			}
			start = eol
			return nil
		})
	})
	return c.status
}

// copy passes everything on, each piece as it comes.
func (c *Call) copy(r io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		if err := c.Ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		if n > 0 {
			c.write(buf[:n])
			if c.out.Flush() != nil {
				return errStop
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// visible is cat -v's form of a line.
func visible(line []byte, tabs, nonprint bool) []byte {
	var out []byte
	for _, b := range line {
		switch {
		case b == '\t':
			if tabs {
				out = append(out, '^', 'I')
			} else {
				out = append(out, b)
			}
			continue
		case !nonprint:
			out = append(out, b)
			continue
		}
		if b >= 128 {
			out = append(out, 'M', '-')
			b -= 128
		}
		switch {
		case b < 32:
			out = append(out, '^', b+64)
		case b == 127:
			out = append(out, '^', '?')
		default:
			out = append(out, b)
		}
	}
	return out
}

func tac(c *Call) int {
	_, files, st, ok := c.parse(options{short: ""})
	if !ok {
		return st
	}
	c.each(files, func(_ string, r io.Reader) error {
		b, err := c.readAll(r)
		if err != nil {
			return err
		}
		for len(b) > 0 {
			i := bytes.LastIndexByte(b[:len(b)-1], '\n') + 1
			c.write(b[i:])
			b = b[:i]
		}
		return nil
	})
	return c.status
}

func rev(c *Call) int {
	_, files, st, ok := c.parse(options{short: ""})
	if !ok {
		return st
	}
	c.each(files, func(_ string, r io.Reader) error {
		return c.lines(r, '\n', func(line []byte, eol bool) error {
			rs := []rune(string(line))
			slices.Reverse(rs)
			c.print(string(rs))
			if eol {
				c.print("\n")
			}
			return nil
		})
	})
	return c.status
}

func nl(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "b:n:s:w:v:i:", long: map[string]rune{
		"body-numbering": 'b', "number-format": 'n', "number-separator": 's', "number-width": 'w',
		"starting-line-number": 'v', "line-increment": 'i',
	}})
	if !ok {
		return st
	}
	style, sep, width, n, inc, format := "t", "\t", 6, 1, 1, "rn"
	for _, o := range opts {
		num, err := strconv.Atoi(o.arg)
		switch o.name {
		case 'b':
			style = o.arg
		case 'n':
			format = o.arg
		case 's':
			sep = o.arg
		case 'w':
			if err != nil || num < 1 {
				return c.die(1, "invalid line number field width: '%s'", o.arg)
			}
			width = min(num, 1000)
		case 'v':
			n = num
		case 'i':
			inc = num
		}
	}
	pad := map[string]string{"rn": "%*d", "ln": "%-*d", "rz": "%0*d"}[format]
	if pad == "" {
		return c.usage(1, "invalid line numbering format: '%s'", format)
	}
	if style != "a" && style != "t" && style != "n" {
		return c.usage(1, "invalid body numbering style: '%s'", style)
	}
	c.each(files, func(_ string, r io.Reader) error {
		return c.lines(r, '\n', func(line []byte, _ bool) error {
			if style == "a" || style == "t" && len(line) > 0 {
				c.printf(pad+"%s", width, n, sep)
				n += inc
			} else {
				c.printf("%*s", width+len(sep), "")
			}
			c.write(line)
			c.print("\n")
			return nil
		})
	})
	return c.status
}

func tee(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "ai", long: map[string]rune{"append": 'a'}})
	if !ok {
		return st
	}
	flag := truncate
	for _, o := range opts {
		if o.name == 'a' {
			flag = appending
		}
	}
	var outs []io.Writer
	for _, name := range files {
		f, err := c.create(name, flag, 0o666)
		if err != nil {
			c.fail("%s: %s", name, msg(err))
			continue
		}
		defer f.Close()
		outs = append(outs, f)
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := c.in().Read(buf)
		if n > 0 {
			c.write(buf[:n])
			_ = c.out.Flush()
			for i, w := range outs {
				if _, err := w.Write(buf[:n]); err != nil {
					c.fail("%s: %s", fmt.Sprint(files[i]), msg(err))
				}
			}
		}
		if err != nil || c.Ctx.Err() != nil {
			return c.status
		}
	}
}
