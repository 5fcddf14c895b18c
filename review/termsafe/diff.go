package termsafe

import (
	"bytes"
	"io"
)

// DiffWriter shows a git patch on a terminal: it colours lines by what they are
// and makes everything safe. Lines may be of any length; none is held back.
// It is not safe for concurrent use.
type DiffWriter struct {
	w       io.Writer
	safe    *Writer
	palette Palette
	// inLine: the start of the current line was seen. header: before the
	// first hunk of a file, where +++ and --- are no changes.
	inLine, header bool
	colored        bool
}

// NewDiffWriter returns a DiffWriter on w.
func NewDiffWriter(w io.Writer, p Palette) *DiffWriter {
	return &DiffWriter{w: w, safe: NewWriter(w), palette: p, header: true}
}

// Write implements io.Writer.
func (d *DiffWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		if !d.inLine {
			if err := d.begin(p[done]); err != nil {
				return done, err
			}
		}
		end, ends := len(p), false
		if i := bytes.IndexByte(p[done:], '\n'); i >= 0 {
			end, ends = done+i, true
		}
		if _, err := d.safe.Write(p[done:end]); err != nil {
			return done, err
		}
		done = end
		if ends {
			if err := d.endLine("\n"); err != nil {
				return done, err
			}
			done++
		}
	}
	return done, nil
}

// Flush ends an unfinished line's colour.
func (d *DiffWriter) Flush() error { return d.endLine("") }

// begin starts the colour that the first byte of a line asks for.
func (d *DiffWriter) begin(first byte) error {
	d.inLine = true
	code := ""
	switch {
	case first == '@':
		d.header, code = false, "36"
	case first == 'd' || first == 't': // "diff --git" or the name of a tree
		d.header, code = true, "1"
	case d.header && first != ' ':
		code = "1"
	case first == '+':
		code = "32"
	case first == '-':
		code = "31"
	}
	if !d.palette.on || code == "" {
		return nil
	}
	d.colored = true
	_, err := io.WriteString(d.w, "\x1b["+code+"m")
	return err
}

func (d *DiffWriter) endLine(end string) error {
	if err := d.safe.Flush(); err != nil {
		return err
	}
	if d.colored {
		end = "\x1b[m" + end
	}
	d.inLine, d.colored = false, false
	_, err := io.WriteString(d.w, end)
	return err
}
