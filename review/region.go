package review

import (
	"context"
	"errors"
	"io"
)

// region is the part in which two texts differ, in whole lines, with the
// lines of context around it. The text before it is the same on both sides, so
// its offsets are too.
type region struct {
	// start is the offset of the first line of context, from that of the
	// first line that differs; oldTo and newTo are where the common end
	// begins, whose first trailBytes bytes are context.
	start, from, oldTo, newTo int64
	trailBytes                int64
	// linesBefore counts the lines before start, lead and trail those of
	// context, oldLines and newLines those that differ.
	linesBefore, lead, trail int
	oldLines, newLines       int
}

// differing finds the region by reading both sides once from the front and
// once from the back.
func (t *textDiff) differing() (region, error) {
	r, linesTo, err := t.commonStart()
	if err != nil {
		return r, err
	}
	size, tail, err := t.commonEnd(min(t.ob.size, t.nb.size) - r.from)
	if err != nil {
		return r, err
	}
	r.oldTo, r.newTo = t.ob.size-size, t.nb.size-size
	r.trail, r.trailBytes = tail.context, tail.contextBytes
	r.oldLines = t.ob.lines - linesTo - tail.lines
	r.newLines = t.nb.lines - linesTo - tail.lines
	return r, nil
}

// commonStart fills start, from, linesBefore and lead; linesTo counts the lines
// before from.
func (t *textDiff) commonStart() (r region, linesTo int, err error) {
	// The starts of the last lines in common, and of the line after them.
	starts := make([]int64, 1, contextLines+2)
	other := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(other)
	stop := errors.New("the texts differ here")
	err = eachPart(t.ctx, t.old, 0, min(t.ob.size, t.nb.size), func(off int64, a []byte) error {
		b := (*other)[:len(a)]
		if _, err := t.new.ReadAt(b, off); err != nil && err != io.EOF {
			return err
		}
		for i := range a {
			if a[i] != b[i] {
				return stop
			}
			if a[i] != '\n' {
				continue
			}
			linesTo++
			if len(starts) > contextLines {
				copy(starts, starts[1:])
				starts = starts[:contextLines]
			}
			starts = append(starts, off+int64(i)+1)
		}
		return nil
	})
	if err != nil && err != stop {
		return r, 0, err
	}
	r.lead = len(starts) - 1
	r.start, r.from = starts[0], starts[r.lead]
	r.linesBefore = linesTo - r.lead
	return r, linesTo, nil
}

// tail tells of the lines that two texts have in common at their ends.
type tail struct {
	lines        int // all of them
	context      int // the first of them, which are shown
	contextBytes int64
}

// commonEnd is the size of the common end in whole lines, of at most limit bytes.
func (t *textDiff) commonEnd(limit int64) (int64, tail, error) {
	equal, err := t.equalTail(limit)
	if err != nil {
		return 0, tail{}, err
	}
	// It begins a line for certain only after the first newline in it.
	var out tail
	begin, end := int64(-1), t.ob.size
	line := int64(0) // start of the current line
	err = eachPart(t.ctx, t.old, end-equal, end, func(off int64, p []byte) error {
		for i, c := range p {
			if c != '\n' {
				continue
			}
			at := off + int64(i) + 1
			if begin < 0 {
				begin = at
			} else {
				out.add(at - line)
			}
			line = at
		}
		return nil
	})
	if err != nil || begin < 0 {
		return 0, tail{}, err
	}
	if line < end { // a last line without newline
		out.add(end - line)
	}
	return end - begin, out, nil
}

func (t *tail) add(size int64) {
	if t.lines++; t.lines <= contextLines {
		t.context++
		t.contextBytes += size
	}
}

// equalTail counts the equal bytes at the ends of both, at most limit.
func (t *textDiff) equalTail(limit int64) (int64, error) {
	pa, pb := copyBuffers.Get().(*[]byte), copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(pa)
	defer copyBuffers.Put(pb)
	for equal := int64(0); ; {
		if t.ctx.Err() != nil {
			return 0, context.Cause(t.ctx)
		}
		n := min(int64(len(*pa)), limit-equal)
		if n <= 0 {
			return equal, nil
		}
		a, b := (*pa)[:n], (*pb)[:n]
		if _, err := t.old.ReadAt(a, t.ob.size-equal-n); err != nil && err != io.EOF {
			return 0, err
		}
		if _, err := t.new.ReadAt(b, t.nb.size-equal-n); err != nil && err != io.EOF {
			return 0, err
		}
		for i := n - 1; i >= 0; i-- {
			if a[i] != b[i] {
				return equal, nil
			}
			equal++
		}
	}
}
