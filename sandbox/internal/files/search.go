package files

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"

	"github.com/galleyfs/galley/sandbox"
)

// smallBuffer is the first size of a search buffer, which suits most files.
const smallBuffer = 64 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, smallBuffer); return &b }}

// search looks into one file, which it closes. A named file is searched even if
// it is binary.
func (g *grep) search(ctx context.Context, p string, f File, named bool) found {
	out := found{path: p}
	defer f.Close()
	buf := buffers.Get().(*[]byte)
	defer func() {
		if len(*buf) <= 4<<20 {
			buffers.Put(buf)
		}
	}()
	s := &scanner{g: g, ctx: ctx, f: f, buf: *buf, out: &out, line: 1, text: named || g.req.Binary}
	out.err = s.run()
	*buf = s.buf
	return out
}

// scanner searches one file, in as many pieces as it takes. The buffer holds
// whole lines, the first few of which may have been searched: the context of a
// match to come.
type scanner struct {
	g    *grep
	ctx  context.Context
	f    File
	out  *found
	text bool // search it, whatever it holds

	buf   []byte
	n     int // how much of buf is filled
	done  int // up to where it has been searched; a line begins there
	line  int // number of the line at done
	after int // lines of context still owed to the last match
	shown int // number of the last line in the outcome
	eof   bool
}

func (s *scanner) run() error {
	for first := true; ; first = false {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if err := s.fill(); err != nil {
			return err
		}
		if first && !s.text && isBinary(s.buf[:s.n]) {
			s.out.binary = true
			return nil
		}
		end := s.n
		if !s.eof {
			// Leave the line that is not whole yet, unless it fills the buffer.
			if i := bytes.LastIndexByte(s.buf[s.done:s.n], '\n'); i >= 0 {
				end = s.done + i + 1
			} else if len(s.buf) < sandbox.MaxGrepLine {
				s.grow()
				continue
			}
		}
		if !s.lines(end) || s.eof {
			return nil
		}
		s.keepContext()
	}
}

// fill reads until the buffer is full or the file at its end.
func (s *scanner) fill() error {
	for s.n < len(s.buf) && !s.eof {
		n, err := s.f.Read(s.buf[s.n:])
		s.n += n
		if errors.Is(err, io.EOF) {
			s.eof = true
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) grow() {
	bigger := make([]byte, min(4*len(s.buf), sandbox.MaxGrepLine))
	copy(bigger, s.buf[:s.n])
	s.buf = bigger
}

// keepContext moves what is not searched to the front, with the lines before
// it that a match may want to show.
func (s *scanner) keepContext() {
	from := s.done
	for range s.g.req.Before {
		if from == 0 || s.done-from > len(s.buf)/4 {
			break
		}
		from = bytes.LastIndexByte(s.buf[:from-1], '\n') + 1
	}
	if s.done-from > len(s.buf)/2 {
		from = s.done
	}
	s.n = copy(s.buf, s.buf[from:s.n])
	s.done -= from
	// Read much at a time once a file turns out to be large.
	if len(s.buf) < chunk {
		s.grow()
	}
}

// lines searches the lines up to end; false when the file need not be searched
// further.
func (s *scanner) lines(end int) bool {
	text := s.buf[:end]
	find := s.g.m.find(text)
	for s.done < end {
		start, stop, at, ok := find.line(s.done)
		if !ok {
			break
		}
		s.skipTo(text, start)
		s.out.count++
		if s.g.req.CountOnly {
			s.step(text, stop)
			continue
		}
		s.before(text, start)
		s.put(text[start:stop], s.line, at-start+1)
		s.after = s.g.req.After
		s.step(text, stop)
		if s.g.req.FilesOnly {
			return false
		}
		if s.out.count > s.g.limit { // one more than can be shown says that there are more
			return false
		}
	}
	s.skipTo(text, end)
	return true
}

// step goes on to the line after the one that ends at stop.
func (s *scanner) step(text []byte, stop int) {
	s.done = min(stop+1, len(text))
	if stop < len(text) || s.eof { // else it is a piece of a long line
		s.line++
	}
}

// skipTo passes over the lines before start, and shows those of them that
// follow a match.
func (s *scanner) skipTo(text []byte, start int) {
	for s.after > 0 && s.done < start {
		stop := start
		if i := bytes.IndexByte(text[s.done:start], '\n'); i >= 0 {
			stop = s.done + i
		}
		s.put(text[s.done:stop], s.line, 0)
		s.after--
		s.step(text, stop)
	}
	if s.done < start {
		s.line += bytes.Count(text[s.done:start], []byte{'\n'})
		s.done = start
	}
}

// before shows the lines of context before start that were not shown.
func (s *scanner) before(text []byte, start int) {
	n := min(s.g.req.Before, s.line-1-s.shown)
	if n <= 0 {
		return
	}
	from, have := start, 0
	for ; have < n && from > 0; have++ {
		from = bytes.LastIndexByte(text[:from-1], '\n') + 1
	}
	for i := have; i > 0; i-- {
		stop := from + bytes.IndexByte(text[from:], '\n')
		s.put(text[from:stop], s.line-i, 0)
		from = stop + 1
	}
}

// put adds a line to the outcome; column 0 is a line of context.
func (s *scanner) put(text []byte, line, column int) {
	if n := len(text); n > 0 && text[n-1] == '\r' {
		text = text[:n-1]
	}
	m := sandbox.GrepMatch{Path: s.out.path, Line: line, Column: column, Context: column == 0}
	if len(text) > sandbox.MaxLine {
		text, m.Cut = around(text, column), true
	}
	m.Text = bytes.Clone(text)
	s.out.matches = append(s.out.matches, m)
	s.shown = line
}

// around cuts a long line to the part where the match is.
func around(text []byte, column int) []byte {
	from := 0
	if column > sandbox.MaxLine/2 {
		from = min(column-sandbox.MaxLine/4, len(text)-sandbox.MaxLine)
	}
	return text[from : from+sandbox.MaxLine]
}
