package review

import (
	"bytes"
	"context"
	"crypto/sha1"
	"fmt"
	"io"
)

const (
	// binaryProbe is how much of a file git looks at for a NUL byte.
	binaryProbe = 8000
)

// blob is what one side of a file difference is, from one pass over it.
type blob struct {
	size   int64
	oid    string // git's SHA-1 object name
	binary bool
	lines  int // newlines, and one more for a last line without
}

// noBlob stands for a side that is not there.
var noBlob = blob{oid: "0000000000000000000000000000000000000000"}

// inspect reads a content to its end.
func inspect(ctx context.Context, c *Content) (blob, error) {
	if c == nil {
		return noBlob, nil
	}
	b := blob{size: c.Size}
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", c.Size)
	last := byte('\n')
	err := eachPart(ctx, c, 0, c.Size, func(off int64, p []byte) error {
		if off < binaryProbe && bytes.IndexByte(p[:min(int64(len(p)), binaryProbe-off)], 0) >= 0 {
			b.binary = true
		}
		h.Write(p)
		b.lines += bytes.Count(p, []byte{'\n'})
		last = p[len(p)-1]
		return nil
	})
	if last != '\n' {
		b.lines++
	}
	b.oid = fmt.Sprintf("%x", h.Sum(nil))
	return b, err
}

// eachPart reads the bytes from off to end in parts. A content that ends early
// was changed while it was read.
func eachPart(ctx context.Context, c *Content, off, end int64, fn func(off int64, p []byte) error) error {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for off < end {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p := (*buf)[:min(int64(len(*buf)), end-off)]
		n, err := c.ReadAt(p, off)
		if n > 0 {
			if err := fn(off, p[:n]); err != nil {
				return err
			}
			off += int64(n)
		}
		if err == io.EOF && off < end {
			return fmt.Errorf("it became shorter while it was read: %w", io.ErrUnexpectedEOF)
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}
