package review

import (
	"compress/zlib"
	"context"
	"fmt"
	"io"
)

// base85 is git's alphabet for binary patches (base85.c of git).
const base85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"

// lineBytes is how many bytes one line of a binary patch carries at most.
const lineBytes = 52

// writeLiteral writes one direction of a git binary patch: the whole content,
// deflated. A nil content is an empty one.
func writeLiteral(ctx context.Context, w io.Writer, c *Content) error {
	size := int64(0)
	if c != nil {
		size = c.Size
	}
	if _, err := fmt.Fprintf(w, "literal %d\n", size); err != nil {
		return err
	}
	lines := &literalLines{w: w}
	z := zlib.NewWriter(lines)
	if c != nil {
		err := eachPart(ctx, c, 0, size, func(_ int64, p []byte) error { _, err := z.Write(p); return err })
		if err != nil {
			return err
		}
	}
	if err := z.Close(); err != nil {
		return err
	}
	if err := lines.flush(); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// literalLines cuts what is written to it into base85 lines.
type literalLines struct {
	w   io.Writer
	buf [lineBytes]byte
	n   int
}

func (l *literalLines) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := copy(l.buf[l.n:], p[done:])
		l.n += n
		done += n
		if l.n == lineBytes {
			if err := l.flush(); err != nil {
				return done, err
			}
		}
	}
	return done, nil
}

// flush writes one line: its length as a letter (A–Z for 1–26, a–z for 27–52),
// then five digits for every four bytes, the last ones padded with zeros.
func (l *literalLines) flush() error {
	if l.n == 0 {
		return nil
	}
	line := make([]byte, 0, 2+lineBytes/4*5)
	if l.n <= 26 {
		line = append(line, 'A'+byte(l.n-1))
	} else {
		line = append(line, 'a'+byte(l.n-27))
	}
	clear(l.buf[l.n:])
	for i := 0; i < l.n; i += 4 {
		v := uint32(l.buf[i])<<24 | uint32(l.buf[i+1])<<16 | uint32(l.buf[i+2])<<8 | uint32(l.buf[i+3])
		var digits [5]byte
		for d := 4; d >= 0; d-- {
			digits[d] = base85[v%85]
			v /= 85
		}
		line = append(line, digits[:]...)
	}
	l.n = 0
	_, err := l.w.Write(append(line, '\n'))
	return err
}
