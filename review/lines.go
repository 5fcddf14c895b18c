package review

import (
	"bytes"
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/aymanbagabas/go-udiff/lcs"
)

// contextLines is how many unchanged lines surround a hunk, as git's default.
const contextLines = 3

// splitLines cuts text after every newline.
func splitLines(text string) []string {
	if text == "" {
		return nil
	}
	lines := strings.SplitAfter(text, "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

// diffLines lists what to replace in a to get b. Lines that both have exactly
// once are matched first, in the longest order they share (patience diff); the
// gaps between them are left to the LCS search, whose effort is bounded. So a
// large file with many small changes is compared well and in little time.
func diffLines(a, b []string) []lcs.Diff {
	var out []lcs.Diff
	emit := func(d lcs.Diff) {
		if n := len(out); n > 0 && out[n-1].End == d.Start && out[n-1].ReplEnd == d.ReplStart {
			out[n-1].End, out[n-1].ReplEnd = d.End, d.ReplEnd
			return
		}
		out = append(out, d)
	}
	var walk func(alo, ahi, blo, bhi int)
	walk = func(alo, ahi, blo, bhi int) {
		for alo < ahi && blo < bhi && a[alo] == b[blo] {
			alo, blo = alo+1, blo+1
		}
		for alo < ahi && blo < bhi && a[ahi-1] == b[bhi-1] {
			ahi, bhi = ahi-1, bhi-1
		}
		if alo == ahi && blo == bhi {
			return
		}
		if alo == ahi || blo == bhi {
			emit(lcs.Diff{Start: alo, End: ahi, ReplStart: blo, ReplEnd: bhi})
			return
		}
		anchors := uniqueInBoth(a[alo:ahi], b[blo:bhi])
		if len(anchors) == 0 {
			for _, d := range lcs.DiffLines(a[alo:ahi], b[blo:bhi]) {
				emit(lcs.Diff{Start: d.Start + alo, End: d.End + alo, ReplStart: d.ReplStart + blo, ReplEnd: d.ReplEnd + blo})
			}
			return
		}
		pa, pb := alo, blo
		for _, m := range anchors {
			walk(pa, alo+m.a, pb, blo+m.b)
			pa, pb = alo+m.a+1, blo+m.b+1
		}
		walk(pa, ahi, pb, bhi)
	}
	walk(0, len(a), 0, len(b))
	return out
}

// anchor is a pair of equal lines by their numbers.
type anchor struct{ a, b int }

// uniqueInBoth finds the longest increasing sequence of lines that occur once
// in each.
func uniqueInBoth(a, b []string) []anchor {
	type count struct{ inA, inB, a, b int }
	seen := make(map[string]*count, len(a))
	for i, s := range a {
		c := seen[s]
		if c == nil {
			c = &count{}
			seen[s] = c
		}
		c.inA++
		c.a = i
	}
	for i, s := range b {
		if c := seen[s]; c != nil {
			c.inB++
			c.b = i
		}
	}
	var pairs []anchor // by a
	for i, s := range a {
		if c := seen[s]; c.inA == 1 && c.inB == 1 {
			pairs = append(pairs, anchor{i, c.b})
		}
	}
	// tails[k] is the pair that ends the best sequence of length k+1.
	var tails []int
	prev := make([]int, len(pairs))
	for i, p := range pairs {
		k := sort.Search(len(tails), func(k int) bool { return pairs[tails[k]].b >= p.b })
		prev[i] = -1
		if k > 0 {
			prev[i] = tails[k-1]
		}
		if k == len(tails) {
			tails = append(tails, i)
		} else {
			tails[k] = i
		}
	}
	out := make([]anchor, len(tails))
	if len(tails) > 0 {
		for k, i := len(tails)-1, tails[len(tails)-1]; k >= 0; k, i = k-1, prev[i] {
			out[k] = pairs[i]
		}
	}
	return out
}

// writeHunks writes the unified hunks for diffs between a and b, which follow
// the given number of common lines of their files.
func writeHunks(w io.Writer, a, b []string, diffs []lcs.Diff, before int) error {
	for i := 0; i < len(diffs); {
		j := i + 1
		for j < len(diffs) && diffs[j].Start-diffs[j-1].End <= 2*contextLines {
			j++
		}
		first, last := diffs[i], diffs[j-1]
		lead := min(contextLines, first.Start)
		trail := min(contextLines, len(a)-last.End)
		alo, ahi := first.Start-lead, last.End+trail
		blo, bhi := first.ReplStart-lead, last.ReplEnd+trail
		if err := writeHunkHeader(w, before+alo, ahi-alo, before+blo, bhi-blo); err != nil {
			return err
		}
		at := alo
		for _, d := range diffs[i:j] {
			if err := writeLines(w, ' ', a[at:d.Start]); err != nil {
				return err
			}
			if err := writeLines(w, '-', a[d.Start:d.End]); err != nil {
				return err
			}
			if err := writeLines(w, '+', b[d.ReplStart:d.ReplEnd]); err != nil {
				return err
			}
			at = d.End
		}
		if err := writeLines(w, ' ', a[at:ahi]); err != nil {
			return err
		}
		i = j
	}
	return nil
}

// writeHunkHeader writes the @@ line for lines that follow the given numbers
// of lines.
func writeHunkHeader(w io.Writer, a, an, b, bn int) error {
	_, err := fmt.Fprintf(w, "@@ -%s +%s @@\n", hunkRange(a, an), hunkRange(b, bn))
	return err
}

// hunkRange is a start and a count as diff writes them: a count of 1 is left
// out, and an empty range is named by the line before it.
func hunkRange(before, n int) string {
	switch n {
	case 0:
		return fmt.Sprintf("%d,0", before)
	case 1:
		return fmt.Sprint(before + 1)
	}
	return fmt.Sprintf("%d,%d", before+1, n)
}

const noNewline = "\n\\ No newline at end of file\n"

func writeLines(w io.Writer, op byte, lines []string) error {
	for _, line := range lines {
		if _, err := w.Write([]byte{op}); err != nil {
			return err
		}
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
		if !strings.HasSuffix(line, "\n") {
			if _, err := io.WriteString(w, noNewline); err != nil {
				return err
			}
		}
	}
	return nil
}

// prefixLines copies text, putting op before every line. It is for text that
// is not held in memory.
type prefixLines struct {
	w   io.Writer
	op  byte
	mid bool // within a line
}

func (p *prefixLines) Write(data []byte) (int, error) {
	done := 0
	for done < len(data) {
		if !p.mid {
			if _, err := p.w.Write([]byte{p.op}); err != nil {
				return done, err
			}
			p.mid = true
		}
		end := len(data)
		if i := bytes.IndexByte(data[done:], '\n'); i >= 0 {
			end = done + i + 1
			p.mid = false
		}
		if _, err := p.w.Write(data[done:end]); err != nil {
			return done, err
		}
		done = end
	}
	return done, nil
}

// finish ends a last line that has no newline.
func (p *prefixLines) finish() error {
	if !p.mid {
		return nil
	}
	_, err := io.WriteString(p.w, noNewline)
	return err
}
