// Package ui holds what the commands of galley share in talking to a person
// or to a program that reads them: terminals and colour, quantities in words,
// JSON, questions, and progress of long work.
//
// Results go to standard output, everything else to standard error. Colour and
// questions need a terminal. No text that came out of a tree passes through
// here unescaped: callers escape names and contents first, but for JSON.
package ui

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/galleyfs/galley/review/termsafe"
)

// IsTerminal tells whether f is a terminal that a person reads or types at.
func IsTerminal(f *os.File) bool { return f != nil && term.IsTerminal(int(f.Fd())) }

// Style paints text for a terminal. The zero Style leaves text as it is.
type Style struct{ on bool }

// NewStyle paints when f is a terminal that is not "dumb" and NO_COLOR is not
// set in the environment.
func NewStyle(f *os.File, getenv func(string) string) Style {
	return Style{on: IsTerminal(f) && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"}
}

// On tells whether the style paints at all.
func (s Style) On() bool { return s.on }

// Red, Green, Yellow, Cyan, Bold and Dim paint text.
func (s Style) Red(text string) string    { return s.paint("31", text) }
func (s Style) Green(text string) string  { return s.paint("32", text) }
func (s Style) Yellow(text string) string { return s.paint("33", text) }
func (s Style) Cyan(text string) string   { return s.paint("36", text) }
func (s Style) Bold(text string) string   { return s.paint("1", text) }
func (s Style) Dim(text string) string    { return s.paint("2", text) }

func (s Style) paint(code, text string) string {
	if !s.on || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// JSON writes v as indented JSON and a newline. HTML characters are left as
// they are: the output goes to programs, not to browsers. What could act on a
// terminal is escaped: it may well go to one.
func JSON(w io.Writer, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(termsafe.JSON(b.Bytes()))
	return err
}

// Count is "1 file", "2 files".
func Count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// Bytes is a size for a person: "0 B", "12.5 KiB", "3.0 GiB".
func Bytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1023.95 && i < len(units)-1 {
		f /= 1024
		i++
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

// Age is how long ago t was, in its largest unit: "12 s", "3 min", "5 h",
// "2 days".
func Age(now, t time.Time) string {
	d := max(now.Sub(t), 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// Table writes rows in columns, two spaces apart. The last column is not
// padded. Widths count characters, so cells must be printable.
func Table(w io.Writer, rows [][]string) error {
	var width []int
	for _, r := range rows {
		for i, c := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	b := bufio.NewWriter(w)
	for _, r := range rows {
		for i, c := range r {
			b.WriteString(c)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-len([]rune(c))+2))
			}
		}
		b.WriteByte('\n')
	}
	return b.Flush()
}

// Ask puts a question on w and reads one line of r. Only "y" and "yes" are
// yes; the end of the input is no.
func Ask(w io.Writer, r io.Reader, question string) (bool, error) {
	if _, err := fmt.Fprintf(w, "%s [y/N] ", question); err != nil {
		return false, err
	}
	line, err := readLine(r)
	if err != nil && err != io.EOF {
		return false, fmt.Errorf("read the answer: %w", err)
	}
	if err == io.EOF {
		fmt.Fprintln(w)
	}
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes", nil
}

// readLine takes one byte at a time, so that nothing after the line is taken
// from a command that reads the same terminal next.
func readLine(r io.Reader) (string, error) {
	var line []byte
	var b [1]byte
	for len(line) < 1024 {
		n, err := r.Read(b[:])
		if n == 1 {
			if b[0] == '\n' {
				return string(line), nil
			}
			line = append(line, b[0])
		}
		if err != nil {
			return string(line), err
		}
	}
	return string(line), nil
}
