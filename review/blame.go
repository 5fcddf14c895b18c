package review

import (
	"bytes"
	"fmt"
	"io"
)

// blameLimit bounds, in bytes, the files whose lines are traced.
const blameLimit = 16 << 20

// BlameLine is one line of a file and the version that last changed it.
type BlameLine struct {
	// Text is the line with its newline, if it has one.
	Text string
	// Version is an index into the versions given.
	Version int
}

// Blame tells of every line of the last of a file's n versions, the oldest
// first, which of them brought it. It opens one version after the other; a nil
// one has no file.
func Blame(n int, open func(i int) (*Content, error)) ([]BlameLine, error) {
	var lines []string
	var from []int
	for i := range n {
		c, err := open(i)
		if err != nil {
			return nil, err
		}
		now, err := blameText(c)
		if c != nil {
			c.Close()
		}
		if err != nil {
			return nil, err
		}
		next := make([]int, 0, len(now))
		at := 0
		for _, d := range diffLines(lines, now) {
			next = append(next, from[at:d.Start]...)
			for range d.ReplEnd - d.ReplStart {
				next = append(next, i)
			}
			at = d.End
		}
		lines, from = now, append(next, from[at:]...)
	}
	out := make([]BlameLine, len(lines))
	for i := range lines {
		out[i] = BlameLine{Text: lines[i], Version: from[i]}
	}
	return out, nil
}

func blameText(c *Content) ([]string, error) {
	if c == nil {
		return nil, nil
	}
	if c.Size > blameLimit {
		return nil, fmt.Errorf("%d bytes; lines are traced up to %d", c.Size, blameLimit)
	}
	b, err := io.ReadAll(io.LimitReader(c.Reader(), blameLimit+1))
	if err != nil {
		return nil, err
	}
	if bytes.IndexByte(b, 0) >= 0 {
		return nil, ErrBinary
	}
	return splitLines(string(b)), nil
}

// ErrBinary: a file has no lines to tell apart.
var ErrBinary = fmt.Errorf("a binary file")
