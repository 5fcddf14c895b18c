// Package termsafe shows names and contents that somebody hostile may have
// chosen. Whatever Galley prints to a terminal, and did not write itself, goes
// through it: an escape sequence, a carriage return, a bidirectional override or
// an invisible character comes out as text that can be seen and does nothing.
//
// [Quote] is for names, [Escape] for one line of anything, [Writer] for
// contents of many lines, [JSON] for what programs read. Their output is valid UTF-8 and has no control
// character but, from Writer, newline and tab. Colours come from [Palette] and
// are put around what was made safe before.
package termsafe

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// invisible are the characters that Unicode calls letters, marks or symbols
// and that nobody can see: fillers, joiners, selectors and blanks.
var invisible = &unicode.RangeTable{
	R16: []unicode.Range16{
		{0x034F, 0x034F, 1}, {0x115F, 0x1160, 1}, {0x17B4, 0x17B5, 1}, {0x180B, 0x180F, 1},
		{0x2800, 0x2800, 1}, {0x3164, 0x3164, 1}, {0xFE00, 0xFE0F, 1}, {0xFFA0, 0xFFA0, 1}, {0xFFFC, 0xFFFD, 1},
	},
	R32: []unicode.Range32{{0xE0100, 0xE01EF, 1}},
}

// Safe reports whether a character may be shown as it is: a letter, mark,
// number, punctuation, symbol or ASCII space that can be seen. Controls (C0,
// DEL, C1), format characters (bidirectional, zero-width, tags), line
// separators, private and unassigned characters are not.
func Safe(r rune) bool {
	if r < utf8.RuneSelf {
		return r >= ' ' && r < 0x7f
	}
	return unicode.IsPrint(r) && !unicode.Is(invisible, r)
}

// short are the escapes that C, and git, write with a letter.
var short = map[byte]byte{
	'\a': 'a', '\b': 'b', '\t': 't', '\n': 'n', '\v': 'v', '\f': 'f', '\r': 'r', '"': '"', '\\': '\\',
}

// Quote shows a file name as git does with its default settings: as it is if
// all of its bytes are printable ASCII without quote and backslash, else in
// double quotes with C's escapes, other bytes as three octal digits. The result
// stands for one name only.
func Quote(name string) string {
	if !needsQuote(name) {
		return name
	}
	var b strings.Builder
	b.Grow(len(name) + 16)
	b.WriteByte('"')
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch s, ok := short[c]; {
		case ok:
			b.WriteByte('\\')
			b.WriteByte(s)
		case c < ' ' || c >= 0x7f:
			fmt.Fprintf(&b, `\%03o`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func needsQuote(name string) bool {
	for i := 0; i < len(name); i++ {
		if c := name[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return true
		}
	}
	return false
}

// Escape shows any text on one line: characters that are not [Safe], newline
// and tab included, become \n, \t, \x1b, \u202e or the like, bytes that are not
// UTF-8 \xff. It is for messages and values; a name is better served by [Quote],
// which cannot be mistaken.
func Escape(s string) string {
	for i, r := range s {
		if !Safe(r) || r == utf8.RuneError {
			return s[:i] + string(appendSafe(nil, s[i:], false))
		}
	}
	return s
}

// JSON is a JSON text with the same meaning in which all that is not [Safe], but
// newlines between its tokens, is escaped as JSON has it. JSON itself wants that
// of C0 controls alone.
func JSON(text []byte) []byte {
	unsafe := func(r rune) bool { return !Safe(r) && r != '\n' }
	i := bytes.IndexFunc(text, unsafe)
	if i < 0 {
		return text
	}
	out := append(make([]byte, 0, len(text)+64), text[:i]...)
	for text = text[i:]; len(text) > 0; {
		r, n := utf8.DecodeRune(text)
		switch hi, lo := utf16.EncodeRune(r); {
		case !unsafe(r):
			out = append(out, text[:n]...)
		case r > 0xffff:
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		text = text[n:]
	}
	return out
}

// appendSafe appends s made safe; lines keeps newline and tab.
func appendSafe(dst []byte, s string, lines bool) []byte {
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			dst = fmt.Appendf(dst, `\x%02x`, s[0])
		case Safe(r) || lines && (r == '\n' || r == '\t'):
			dst = append(dst, s[:n]...)
		case r == '\n':
			dst = append(dst, `\n`...)
		case r == '\r':
			dst = append(dst, `\r`...)
		case r == '\t':
			dst = append(dst, `\t`...)
		case r < 0x100:
			dst = fmt.Appendf(dst, `\x%02x`, r)
		case r < 0x10000:
			dst = fmt.Appendf(dst, `\u%04x`, r)
		default:
			dst = fmt.Appendf(dst, `\U%08x`, r)
		}
		s = s[n:]
	}
	return dst
}
