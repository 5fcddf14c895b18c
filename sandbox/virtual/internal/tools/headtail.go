package tools

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// How a file is opened that is written to.
const (
	truncate  = os.O_TRUNC
	appending = os.O_APPEND
)

func init() {
	register(head, "head")
	register(tail, "tail")
	register(wc, "wc")
}

// count parses a number with an optional multiplier.
func count(s string) (int64, error) {
	mul := int64(1)
	for suffix, m := range map[string]int64{"b": 512, "K": 1 << 10, "k": 1 << 10, "KiB": 1 << 10, "kB": 1000, "KB": 1000, "M": 1 << 20, "MiB": 1 << 20, "MB": 1000 * 1000, "G": 1 << 30, "GB": 1000 * 1000 * 1000} {
		if rest, ok := strings.CutSuffix(s, suffix); ok && isDigits(strings.TrimLeft(rest, "+-")) {
			s, mul = rest, m
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, err
	}
	if n > (1<<62)/mul || n < -(1<<62)/mul {
		return 0, strconv.ErrRange
	}
	return n * mul, nil
}

// part is what head and tail have in common.
type part struct {
	n            int64
	bytes        bool
	fromEnd      bool // head: all but the last n; tail: from the nth
	quiet, names bool
}

func (c *Call) parsePart(p *part, plus byte) (files []string, status int, ok bool) {
	p.n = 10
	// The obsolete form is only taken where it comes first: tail -5, tail +5.
	if len(c.Args) > 0 && plus == '+' && len(c.Args[0]) > 1 && c.Args[0][0] == '+' && isDigits(c.Args[0][1:]) {
		c.Args = append([]string{"-n", c.Args[0]}, c.Args[1:]...)
	}
	opts, files, st, ok := c.parse(options{short: "n:c:qvzfF", digits: true, long: map[string]rune{
		"lines": 'n', "bytes": 'c', "quiet": 'q', "silent": 'q', "verbose": 'v', "follow": 'f',
	}})
	if !ok {
		return nil, st, false
	}
	for _, o := range opts {
		switch o.name {
		case 'n', 'c', '#':
			arg := o.arg
			p.bytes, p.fromEnd = o.name == 'c', false
			if arg != "" && arg[0] == plus {
				p.fromEnd, arg = true, arg[1:]
			} else if plus == '+' {
				arg = strings.TrimPrefix(arg, "-")
			}
			n, err := count(arg)
			if err != nil || n < 0 {
				what := "lines"
				if p.bytes {
					what = "bytes"
				}
				return nil, c.die(1, "invalid number of %s: '%s'", what, o.arg), false
			}
			p.n = n
		case 'q':
			p.quiet = true
		case 'v':
			p.names = true
		case 'f', 'F':
			return nil, c.die(1, "following a file is not supported in the virtual sandbox"), false
		case 'z':
			return nil, c.usage(1, "invalid option -- 'z'"), false
		}
	}
	p.names = p.names || len(files) > 1 && !p.quiet
	return files, 0, true
}

// header names a file as head and tail do.
func (c *Call) header(name string, first *bool) {
	if name == "-" {
		name = "standard input"
	}
	if !*first {
		c.print("\n")
	}
	*first = false
	c.printf("==> %s <==\n", name)
}

// eachOpened is each, with head's and tail's message.
func (c *Call) eachOpened(files []string, fn func(name string, r io.Reader) error) {
	if len(files) == 0 {
		files = []string{"-"}
	}
	for _, name := range files {
		r, err := c.openArg(name)
		if err != nil {
			if isDir := c.isDir(name); isDir {
				c.fail("error reading '%s': %s", name, msg(err))
			} else {
				c.fail("cannot open '%s' for reading: %s", name, msg(err))
			}
			continue
		}
		err = fn(name, r)
		_ = r.Close()
		if err != nil && c.Ctx.Err() == nil && err != errStop {
			c.fail("error reading '%s': %s", name, msg(err))
		}
	}
}

func head(c *Call) int {
	var p part
	files, st, ok := c.parsePart(&p, '-')
	if !ok {
		return st
	}
	first := true
	c.eachOpened(files, func(name string, r io.Reader) error {
		if p.names {
			c.header(name, &first)
		}
		switch {
		case p.fromEnd:
			b, err := c.readAll(r)
			if err != nil {
				return err
			}
			c.write(b[:len(b)-len(lastPart(b, p.n, p.bytes))])
			return nil
		case p.bytes:
			return c.copy(io.LimitReader(r, p.n))
		case p.n == 0:
			return nil
		}
		// A shell that reads on from the same input expects that no more was
		// taken from it than the lines.
		n := p.n
		return c.linesFrom(r, func(line []byte) bool {
			c.write(line)
			n--
			return n > 0
		})
	})
	return c.status
}

// linesFrom calls fn for each line, its end included, until fn is false. It
// gives back what it read too much where the input can be set back.
func (c *Call) linesFrom(r io.Reader, fn func(line []byte) bool) error {
	var rest []byte
	buf := make([]byte, 32<<10)
	for {
		if err := c.Ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		rest = append(rest, buf[:n]...)
		for {
			i := bytes.IndexByte(rest, '\n')
			if i < 0 {
				break
			}
			if !fn(rest[:i+1]) {
				if s, ok := r.(io.Seeker); ok {
					_, _ = s.Seek(-int64(len(rest)-i-1), io.SeekCurrent)
				}
				return nil
			}
			rest = rest[i+1:]
		}
		if len(rest) > c.MaxInput {
			return errTooBig
		}
		if err != nil {
			if len(rest) > 0 {
				fn(rest)
			}
			if err == io.EOF {
				return nil
			}
			return err
		}
		if c.broken() {
			return errStop
		}
	}
}

// lastPart is the last n lines or bytes.
func lastPart(b []byte, n int64, bytewise bool) []byte {
	if bytewise {
		return b[int64(len(b))-min(n, int64(len(b))):]
	}
	if n == 0 {
		return nil
	}
	end := len(b)
	if end > 0 && b[end-1] == '\n' {
		end--
	}
	for end > 0 {
		i := bytes.LastIndexByte(b[:end], '\n')
		if n--; n == 0 {
			return b[i+1:]
		}
		end = i
	}
	return b
}

func tail(c *Call) int {
	var p part
	files, st, ok := c.parsePart(&p, '+')
	if !ok {
		return st
	}
	first := true
	c.eachOpened(files, func(name string, r io.Reader) error {
		if p.names {
			c.header(name, &first)
		}
		if p.fromEnd && p.bytes {
			if _, err := io.CopyN(io.Discard, r, max(p.n-1, 0)); err != nil && err != io.EOF {
				return err
			}
			return c.copy(r)
		}
		if p.fromEnd {
			n := int64(0)
			return c.lines(r, '\n', func(line []byte, eol bool) error {
				if n++; n < p.n {
					return nil
				}
				c.write(line)
				if eol {
					c.print("\n")
				}
				if c.broken() {
					return errStop
				}
				return nil
			})
		}
		b, err := c.readAll(r)
		if err != nil {
			return err
		}
		c.write(lastPart(b, p.n, p.bytes))
		return nil
	})
	return c.status
}

// counts is what wc counts.
type counts struct{ lines, words, chars, bytes, longest int64 }

func (n *counts) add(m counts) {
	n.lines += m.lines
	n.words += m.words
	n.chars += m.chars
	n.bytes += m.bytes
	n.longest = max(n.longest, m.longest)
}

func wc(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "clwmL", long: map[string]rune{
		"bytes": 'c', "lines": 'l', "words": 'w', "chars": 'm', "max-line-length": 'L',
	}})
	if !ok {
		return st
	}
	show := map[rune]bool{}
	for _, o := range opts {
		show[o.name] = true
	}
	if len(show) == 0 {
		show = map[rune]bool{'l': true, 'w': true, 'c': true}
	}
	type row struct {
		counts
		name string
	}
	var rows []row
	var total counts
	width := 1
	if len(files) == 0 && len(show) > 1 {
		width = 7
	}
	for _, f := range files {
		if i, err := c.stat(f, true); f == "-" || err == nil && !i.Mode().IsRegular() {
			width = 7
		}
	}
	one := len(files) <= 1 && len(show) == 1
	implicit := len(files) == 0
	c.each(files, func(name string, r io.Reader) error {
		n, err := c.countOf(r)
		if err != nil {
			return err
		}
		total.add(n)
		if implicit {
			name = ""
		}
		rows = append(rows, row{n, name})
		return nil
	})
	if len(files) > 1 {
		rows = append(rows, row{total, "total"})
	}
	var size int64
	for _, f := range files {
		if i, err := c.stat(f, true); err == nil && i.Mode().IsRegular() {
			size += i.Size()
		}
	}
	width = max(width, len(fmt.Sprint(size)))
	if one {
		width = 1
	}
	for _, r := range rows {
		sep := ""
		for _, f := range []struct {
			on rune
			n  int64
		}{{'l', r.lines}, {'w', r.words}, {'m', r.chars}, {'c', r.bytes}, {'L', r.longest}} {
			if show[f.on] {
				c.printf("%s%*d", sep, width, f.n)
				sep = " "
			}
		}
		if r.name != "" {
			c.print(" " + r.name)
		}
		c.print("\n")
	}
	return c.status
}

func (c *Call) countOf(r io.Reader) (counts, error) {
	var n counts
	buf := make([]byte, 32<<10)
	word := false
	var col int64
	for {
		if err := c.Ctx.Err(); err != nil {
			return n, err
		}
		k, err := r.Read(buf)
		n.bytes += int64(k)
		for _, b := range buf[:k] {
			if b&0xc0 != 0x80 {
				n.chars++
			}
			switch b {
			case '\n':
				n.lines++
				n.longest = max(n.longest, col)
				col, word = 0, false
			case '\t':
				col += 8 - col%8
				word = false
			case ' ', '\r', '\v', '\f':
				if b == ' ' {
					col++
				}
				word = false
			default:
				if b >= ' ' && b != 127 && b&0xc0 != 0x80 {
					col++
				}
				if !word {
					n.words++
				}
				word = true
			}
		}
		if err == io.EOF {
			n.longest = max(n.longest, col)
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
