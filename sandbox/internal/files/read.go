package files

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"

	"github.com/galleyfs/galley/sandbox"
)

// chunk is how much of a large file is read at a time.
const chunk = 1 << 20

// Read is [sandbox.Sandbox.Read].
func (o *Ops) Read(ctx context.Context, r sandbox.ReadRequest) (sandbox.ReadResult, error) {
	out, real, err := o.read(ctx, r)
	if err != nil {
		return sandbox.ReadResult{}, sandbox.Wrap("read", r.Path, err)
	}
	o.notes.put(r.Client, real, note{out.Digest, stampOf(out.Info)})
	return out, nil
}

func (o *Ops) read(ctx context.Context, r sandbox.ReadRequest) (sandbox.ReadResult, string, error) {
	var out sandbox.ReadResult
	p, err := o.abs("read", r.Path)
	if err != nil {
		return out, "", err
	}
	if r.Offset < 0 || r.Limit < 0 {
		return out, "", sandbox.Errorf(sandbox.Invalid, "read", r.Path, "offset %d, limit %d: expected a line from 1 and a number of lines", r.Offset, r.Limit)
	}
	most, err := limitOf("read", "max_bytes", r.MaxBytes, sandbox.MaxRead, sandbox.MaxRead)
	if err != nil {
		return out, "", err
	}
	f, info, err := o.openRegular("read", r.Path, p)
	if err != nil {
		return out, "", err
	}
	defer f.Close()
	if out.Info = info; info.Path == "" {
		out.Info.Path = o.shown(p)
	}
	real, err := o.fs.Real(p)
	if err != nil {
		return out, "", err
	}
	out.FirstLine = max(r.Offset, 1)
	whole, all, err := readAll(ctx, f, sandbox.MaxDigest)
	if err != nil {
		return out, "", err
	}
	if all {
		out.Digest, out.TotalLines = digestOf(whole), countLines(whole)
		cut(&out, whole, r.Limit, most)
		return out, real, nil
	}
	if r.Offset == 0 && r.Limit == 0 && r.MaxBytes == 0 {
		return out, "", sandbox.Errorf(sandbox.TooLarge, "read", r.Path, "the file has %d bytes, and up to %d are read at a time; ask for lines (offset, limit) or set max_bytes", info.Size, sandbox.MaxRead)
	}
	out.TotalLines = -1
	return out, real, readLarge(ctx, f, whole, &out, r.Limit, most)
}

// openRegular opens a file that has content to read.
func (o *Ops) openRegular(op, shown, p string) (File, sandbox.FileInfo, error) {
	f, err := o.fs.Open(p)
	if err != nil {
		return nil, sandbox.FileInfo{}, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.Mode.IsDir():
		err = sandbox.Errorf(sandbox.IsDirectory, op, shown, "it is a directory; List and Glob show what is in it")
	case !info.Mode.IsRegular():
		err = sandbox.Errorf(sandbox.NotSupported, op, shown, "it is %s and not a regular file", kindOf(info.Mode))
	}
	if err != nil {
		_ = f.Close()
		return nil, info, err
	}
	return f, info, nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	case m&fs.ModeSymlink != 0:
		return "a symbolic link"
	case m.IsDir():
		return "a directory"
	}
	return "a special file"
}

// readAll reads up to limit bytes; all is false where there are more, and some
// of them have then been read, too.
func readAll(ctx context.Context, f File, limit int) (b []byte, all bool, err error) {
	size := 0
	if info, err := f.Stat(); err == nil && info.Size < int64(limit) {
		size = int(info.Size)
	} else if err == nil {
		size = limit
	}
	b = make([]byte, 0, size+512)
	for len(b) <= limit {
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := f.Read(b[len(b):min(cap(b), len(b)+chunk)])
		b = b[:len(b)+n]
		if errors.Is(err, io.EOF) {
			return b, true, nil
		}
		if err != nil {
			return nil, false, err
		}
	}
	return b, false, nil
}

// cut takes the lines that were asked for out of the whole content.
func cut(out *sandbox.ReadResult, whole []byte, limit, most int) {
	rest := skipLines(whole, out.FirstLine-1)
	if limit > 0 {
		rest = rest[:len(rest)-len(skipLines(rest, limit))]
	}
	if len(rest) > most {
		rest, out.Truncated = rest[:most], true
	}
	out.Content, out.LineCount = rest, countLines(rest)
}

// skipLines is b without its first n lines.
func skipLines(b []byte, n int) []byte {
	for ; n > 0 && len(b) > 0; n-- {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			return nil
		}
		b = b[i+1:]
	}
	return b
}

// countLines counts a last line without an end, too.
func countLines(b []byte) int {
	n := bytes.Count(b, []byte{'\n'})
	if len(b) > 0 && b[len(b)-1] != '\n' {
		n++
	}
	return n
}

// readLarge is cut for a file that is not held in memory; have is its
// beginning, which was read.
func readLarge(ctx context.Context, f File, have []byte, out *sandbox.ReadResult, limit, most int) error {
	skip, buf := out.FirstLine-1, make([]byte, chunk)
	for {
		for skip > 0 && len(have) > 0 {
			i := bytes.IndexByte(have, '\n')
			if i < 0 {
				have = nil
				break
			}
			have, skip = have[i+1:], skip-1
		}
		if skip == 0 {
			part := have
			if limit > 0 {
				part = part[:len(part)-len(skipLines(part, limit-bytes.Count(out.Content, []byte{'\n'})))]
			}
			if room := most - len(out.Content); len(part) > room {
				part, out.Truncated = part[:room], true
			}
			out.Content = append(out.Content, part...)
			if out.Truncated || limit > 0 && bytes.Count(out.Content, []byte{'\n'}) >= limit {
				break
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(buf)
		if have = buf[:n]; n > 0 {
			continue
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	out.LineCount = countLines(out.Content)
	return nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
