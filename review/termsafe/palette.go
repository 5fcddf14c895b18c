package termsafe

import (
	"io"
	"os"

	"golang.org/x/term"
)

// Palette puts colours around text that is safe already. The zero value, and
// the one for anything but a terminal, leaves text as it is.
type Palette struct{ on bool }

// NewPalette chooses for output to w: colours if it is a terminal, unless the
// environment variable NO_COLOR is set and not empty (no-color.org) or TERM
// says that it has none. getenv is usually os.Getenv.
func NewPalette(w io.Writer, getenv func(string) string) Palette {
	f, ok := w.(*os.File)
	if !ok || getenv("NO_COLOR") != "" || getenv("TERM") == "dumb" || getenv("TERM") == "" {
		return Palette{}
	}
	return Palette{on: term.IsTerminal(int(f.Fd()))}
}

// Always is a palette with colours, whatever the output.
func Always() Palette { return Palette{on: true} }

// Enabled reports whether colours are on.
func (p Palette) Enabled() bool { return p.on }

func (p Palette) wrap(code, s string) string {
	if !p.on || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[m"
}

// Added, Removed, Hunk, Header and Warn are the colours of a diff: green, red,
// cyan, bold, yellow.
func (p Palette) Added(s string) string   { return p.wrap("32", s) }
func (p Palette) Removed(s string) string { return p.wrap("31", s) }
func (p Palette) Hunk(s string) string    { return p.wrap("36", s) }
func (p Palette) Header(s string) string  { return p.wrap("1", s) }
func (p Palette) Warn(s string) string    { return p.wrap("33", s) }
