package termsafe

import (
	"io"
	"unicode/utf8"
)

// Writer makes everything that is written through it safe, keeping newlines and
// tabs. A character may be cut by the end of a Write; Flush writes a cut one
// that never was completed. It is not safe for concurrent use.
type Writer struct {
	w    io.Writer
	rest []byte // the start of a character, fewer than utf8.UTFMax bytes
	buf  []byte
}

// NewWriter returns a Writer on w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write implements io.Writer. It reports p as written once its safe form was.
func (w *Writer) Write(p []byte) (int, error) {
	data := p
	if len(w.rest) > 0 {
		data = append(w.rest, p...)
	}
	whole := len(data) - cutRune(data)
	w.buf = appendSafe(w.buf[:0], string(data[:whole]), true)
	w.rest = append([]byte(nil), data[whole:]...)
	if _, err := w.w.Write(w.buf); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush writes the bytes of a character that was left incomplete.
func (w *Writer) Flush() error {
	if len(w.rest) == 0 {
		return nil
	}
	w.buf = appendSafe(w.buf[:0], string(w.rest), true)
	w.rest = nil
	_, err := w.w.Write(w.buf)
	return err
}

// cutRune is the length of an incomplete character at the end of p.
func cutRune(p []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(p); n++ {
		if tail := p[len(p)-n:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				return n
			}
			return 0
		}
	}
	return 0
}
