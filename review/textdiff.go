package review

import (
	"context"
	"io"
)

// inMemory is up to what size, in bytes and for both sides together, the lines
// of two texts are compared. Of larger ones only what lies between their
// common start and end is; and if even that is larger, it is replaced as a
// whole. So memory is bounded for any file.
const inMemory = 8 << 20

// textDiff compares two texts, either of which may be nil.
type textDiff struct {
	ctx      context.Context
	old, new *Content
	ob, nb   blob
	// limit is inMemory; tests lower it.
	limit int64
}

// write writes the hunks.
func (t *textDiff) write(w io.Writer) error {
	r, fits, err := t.region()
	if err != nil {
		return err
	}
	if !fits {
		return t.replaceWhole(w, r)
	}
	a, b, err := t.load(r)
	if err != nil {
		return err
	}
	return writeHunks(w, a, b, diffLines(a, b), r.linesBefore)
}

// count counts the lines that are added and deleted.
func (t *textDiff) count() (added, deleted int, err error) {
	if t.old == nil || t.new == nil {
		return t.nb.lines, t.ob.lines, nil
	}
	r, fits, err := t.region()
	if err != nil {
		return 0, 0, err
	}
	if !fits {
		return r.newLines, r.oldLines, nil
	}
	a, b, err := t.load(r)
	if err != nil {
		return 0, 0, err
	}
	for _, d := range diffLines(a, b) {
		deleted += d.End - d.Start
		added += d.ReplEnd - d.ReplStart
	}
	return added, deleted, nil
}

// region finds what is to be compared, and whether it fits into memory.
func (t *textDiff) region() (r region, fits bool, err error) {
	if t.ob.size+t.nb.size <= t.limit {
		return region{oldTo: t.ob.size, newTo: t.nb.size}, true, nil
	}
	if t.old == nil || t.new == nil {
		return region{oldTo: t.ob.size, newTo: t.nb.size, oldLines: t.ob.lines, newLines: t.nb.lines}, false, nil
	}
	if r, err = t.differing(); err != nil {
		return r, false, err
	}
	shared := r.from - r.start + r.trailBytes
	return r, r.oldTo-r.from+r.newTo-r.from+2*shared <= t.limit, nil
}

// load reads both sides of a region, context included, into lines.
func (t *textDiff) load(r region) (a, b []string, err error) {
	read := func(c *Content, to int64) ([]string, error) {
		if c == nil {
			return nil, nil
		}
		text := make([]byte, 0, max(0, to-r.start))
		err := eachPart(t.ctx, c, r.start, to, func(_ int64, p []byte) error { text = append(text, p...); return nil })
		return splitLines(string(text)), err
	}
	if a, err = read(t.old, r.oldTo+r.trailBytes); err != nil {
		return nil, nil, err
	}
	b, err = read(t.new, r.newTo+r.trailBytes)
	return a, b, err
}

// replaceWhole writes one hunk that replaces all that differs, without holding
// it in memory.
func (t *textDiff) replaceWhole(w io.Writer, r region) error {
	shared := r.lead + r.trail
	if err := writeHunkHeader(w, r.linesBefore, r.oldLines+shared, r.linesBefore, r.newLines+shared); err != nil {
		return err
	}
	parts := []struct {
		op       byte
		c        *Content
		from, to int64
	}{
		{' ', t.old, r.start, r.from},
		{'-', t.old, r.from, r.oldTo},
		{'+', t.new, r.from, r.newTo},
		{' ', t.old, r.oldTo, r.oldTo + r.trailBytes},
	}
	for _, p := range parts {
		if p.c == nil {
			continue
		}
		out := &prefixLines{w: w, op: p.op}
		err := eachPart(t.ctx, p.c, p.from, p.to, func(_ int64, data []byte) error {
			_, err := out.Write(data)
			return err
		})
		if err != nil {
			return err
		}
		if err := out.finish(); err != nil {
			return err
		}
	}
	return nil
}
