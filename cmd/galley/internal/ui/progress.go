package ui

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// quiet is how long work may take before a person is told that it goes on.
const quiet = time.Second

// Progress tells on a terminal that work goes on, once it has taken longer
// than a second; shorter work, and work without a terminal, prints nothing.
// Its methods may be called from several goroutines, and on nil.
type Progress struct {
	w    io.Writer
	stop chan struct{}
	gone sync.WaitGroup

	mu    sync.Mutex
	what  string
	done  int64
	total int64
	shown int // width of the line on the screen
}

// NewProgress starts to tell about what on w, when on is set. Close ends it.
func NewProgress(w io.Writer, on bool, what string) *Progress {
	if !on {
		return nil
	}
	p := &Progress{w: w, what: what, stop: make(chan struct{})}
	p.gone.Go(p.loop)
	return p
}

// Set says that done of total steps are done; a total of 0 is unknown.
func (p *Progress) Set(done, total int64) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done, p.total = done, total
}

// What names the step that follows.
func (p *Progress) What(what string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what, p.done, p.total = what, 0, 0
}

// Close takes the line off the screen. Calling it again does nothing.
func (p *Progress) Close() {
	if p == nil || p.stop == nil {
		return
	}
	close(p.stop)
	p.gone.Wait()
	p.stop = nil
}

func (p *Progress) loop() {
	first := time.NewTimer(quiet)
	defer first.Stop()
	select {
	case <-p.stop:
		return
	case <-first.C:
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		p.draw()
		select {
		case <-p.stop:
			fmt.Fprintf(p.w, "\r%*s\r", p.shown, "")
			return
		case <-tick.C:
		}
	}
}

func (p *Progress) draw() {
	p.mu.Lock()
	line := p.what
	switch {
	case p.total > 0:
		line += fmt.Sprintf(": %d of %d", p.done, p.total)
	case p.done > 0:
		line += fmt.Sprintf(": %d", p.done)
	default:
		line += " …"
	}
	p.mu.Unlock()
	n := len([]rune(line))
	fmt.Fprintf(p.w, "\r%s%*s", line, max(p.shown-n, 0), "")
	p.shown = n
}
