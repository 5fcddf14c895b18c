package files

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/galleyfs/galley/sandbox"
)

// sniff is how much of a file decides whether it is text.
const sniff = 8 << 10

// isBinary reports whether content looks like something else than text.
func isBinary(b []byte) bool { return bytes.IndexByte(b[:min(len(b), sniff)], 0) >= 0 }

// Write is [sandbox.Sandbox.Write].
func (o *Ops) Write(ctx context.Context, r sandbox.WriteRequest) (sandbox.WriteResult, error) {
	out, err := o.write(ctx, r)
	return out, sandbox.Wrap("write", r.Path, err)
}

func (o *Ops) write(ctx context.Context, r sandbox.WriteRequest) (sandbox.WriteResult, error) {
	var out sandbox.WriteResult
	p, err := o.abs("write", r.Path)
	if err != nil {
		return out, err
	}
	if len(r.Content) > sandbox.MaxWrite {
		return out, sandbox.Errorf(sandbox.TooLarge, "write", r.Path, "the content has %d bytes, and up to %d can be written at once", len(r.Content), sandbox.MaxWrite)
	}
	if r.Mode&^fs.ModePerm != 0 {
		return out, sandbox.Errorf(sandbox.Invalid, "write", r.Path, "mode %v has more than permission bits", r.Mode)
	}
	if strings.HasSuffix(p, "/") {
		return out, sandbox.Errorf(sandbox.IsDirectory, "write", r.Path, "the path ends with a slash, which names a directory")
	}
	if err := ctx.Err(); err != nil {
		return out, err
	}
	if r.New {
		if _, err := o.fs.Stat(p, false); err == nil {
			return out, sandbox.Errorf(sandbox.Exists, "write", r.Path, "it exists already")
		}
	}
	made, real, err := o.place(p)
	if err == nil {
		out, err = o.replace(ctx, r, real)
	}
	if err != nil {
		o.unmake(made)
		return sandbox.WriteResult{}, err
	}
	return out, nil
}

// replace writes the file at the resolved path real.
func (o *Ops) replace(ctx context.Context, r sandbox.WriteRequest, real string) (sandbox.WriteResult, error) {
	defer o.lock(real)()
	digest := digestOf(r.Content)
	out := sandbox.WriteResult{Bytes: len(r.Content), Lines: countLines(r.Content), Digest: digest, Path: real}
	info, err := o.fs.Stat(real, false)
	switch {
	case errors.Is(err, syscall.ENOENT):
		if err := o.checkStale("write", r.Path, real, r.Client, r.Digest, ""); err != nil {
			return out, err
		}
		out.Created = true
		mode := r.Mode
		if mode == 0 {
			mode = 0o666
		}
		if err := o.put(real, "", r.Content, mode, nil); err != nil {
			return out, err
		}
	case err != nil:
		return out, err
	case info.Mode.IsDir():
		return out, sandbox.Errorf(sandbox.IsDirectory, "write", r.Path, "it is a directory")
	case !info.Mode.IsRegular():
		return out, sandbox.Errorf(sandbox.NotSupported, "write", r.Path, "it is %s and not a regular file", kindOf(info.Mode))
	default:
		if err := o.checkCurrent(ctx, r, real, info); err != nil {
			return out, err
		}
		if err := o.put(real, real, r.Content, info.Mode.Perm(), &info); err != nil {
			return out, err
		}
	}
	o.noteWritten(r.Client, real, digest)
	return out, nil
}

// checkCurrent refuses a write over a file that is not what the client knows.
// The file is read only where there is something to compare it with.
func (o *Ops) checkCurrent(ctx context.Context, r sandbox.WriteRequest, real string, info sandbox.FileInfo) error {
	seen, ok := o.notes.get(r.Client, real)
	if r.Digest == "" && !ok {
		return nil
	}
	if r.Digest == "" && seen.digest == "" {
		if seen.stamp != stampOf(info) {
			return sandbox.Errorf(sandbox.Stale, "write", r.Path, "the file changed since it was last read; read it again")
		}
		return nil
	}
	f, _, err := o.openRegular("write", r.Path, real)
	if err != nil {
		return err
	}
	defer f.Close()
	now, all, err := readAll(ctx, f, sandbox.MaxDigest)
	if err != nil {
		return err
	}
	digest := "more bytes than have a digest"
	if all {
		digest = digestOf(now)
	}
	return o.checkStale("write", r.Path, real, r.Client, r.Digest, digest)
}

func (o *Ops) noteWritten(client, real, digest string) {
	if client == "" {
		return
	}
	if info, err := o.fs.Stat(real, false); err == nil {
		o.notes.put(client, real, note{digest, stampOf(info)})
	}
}

// place resolves where a file is to be written and makes the directories that
// are missing; made are those, the outermost first.
func (o *Ops) place(p string) (made []string, real string, err error) {
	real, err = o.fs.Real(p)
	if !errors.Is(err, syscall.ENOENT) {
		return nil, real, err
	}
	if made, err = o.makeParents(path.Dir(p)); err != nil {
		return made, "", err
	}
	real, err = o.fs.Real(p)
	return made, real, err
}

func (o *Ops) makeParents(dir string) ([]string, error) {
	err := o.fs.Mkdir(dir, 0o777)
	switch {
	case err == nil:
		return []string{dir}, nil
	case errors.Is(err, syscall.EEXIST):
		return nil, nil
	case !errors.Is(err, syscall.ENOENT) || path.Dir(dir) == dir:
		return nil, err
	}
	made, err := o.makeParents(path.Dir(dir))
	if err != nil {
		return made, err
	}
	err = o.fs.Mkdir(dir, 0o777)
	if err == nil {
		return append(made, dir), nil
	}
	if errors.Is(err, syscall.EEXIST) {
		return made, nil
	}
	return made, err
}

// unmake removes directories that a call made which then failed.
func (o *Ops) unmake(made []string) {
	for i := len(made) - 1; i >= 0; i-- {
		_ = o.fs.Remove(made[i])
	}
}

// put makes the content stand at real, at once. like is the file whose mode,
// owner and attributes it gets, and was what that file must still be: somebody
// else may write meanwhile.
func (o *Ops) put(real, like string, content []byte, mode fs.FileMode, was *sandbox.FileInfo) error {
	temp := path.Join(path.Dir(real), tempName())
	f, err := o.fs.Create(temp, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Close())
	if err == nil && like != "" {
		err = o.fs.CopyMeta(like, temp)
	}
	if err == nil && was != nil {
		now, serr := o.fs.Stat(real, false)
		if serr != nil || stampOf(now) != stampOf(*was) {
			err = sandbox.Errorf(sandbox.Stale, "", "", "somebody else changed the file meanwhile; read it again")
		}
	}
	if err == nil {
		err = o.fs.Rename(temp, real, like == "")
	}
	if err != nil {
		_ = o.fs.Remove(temp)
	}
	return err
}

func tempName() string {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return ".galley-" + hex.EncodeToString(b[:])
}

// Edit is [sandbox.Sandbox.Edit].
func (o *Ops) Edit(ctx context.Context, r sandbox.EditRequest) (sandbox.EditResult, error) {
	out, err := o.edit(ctx, r)
	return out, sandbox.Wrap("edit", r.Path, err)
}

func (o *Ops) edit(ctx context.Context, r sandbox.EditRequest) (sandbox.EditResult, error) {
	var out sandbox.EditResult
	p, err := o.abs("edit", r.Path)
	if err != nil {
		return out, err
	}
	if len(r.Old) == 0 {
		return out, sandbox.Errorf(sandbox.Invalid, "edit", r.Path, "the text to be replaced is empty; Write replaces a whole file")
	}
	if bytes.Equal(r.Old, r.New) {
		return out, sandbox.Errorf(sandbox.Invalid, "edit", r.Path, "the new text is the same as the old one")
	}
	real, err := o.fs.Real(p)
	if err != nil {
		return out, err
	}
	defer o.lock(real)()
	f, info, err := o.openRegular("edit", r.Path, real)
	if err != nil {
		return out, err
	}
	before, all, err := readAll(ctx, f, sandbox.MaxEdit)
	_ = f.Close()
	if err != nil {
		return out, err
	}
	if !all {
		return out, sandbox.Errorf(sandbox.TooLarge, "edit", r.Path, "the file has %d bytes, and up to %d can be edited", info.Size, sandbox.MaxEdit)
	}
	out.Before, out.After, out.Path, out.Digest = before, before, real, digestOf(before)
	if isBinary(before) {
		return out, sandbox.Errorf(sandbox.Binary, "edit", r.Path, "the file is not text: it has NUL bytes; change it with a program")
	}
	if err := o.checkStale("edit", r.Path, real, r.Client, r.Digest, out.Digest); err != nil {
		return out, err
	}
	if err := substitute(&out, r); err != nil {
		return out, err
	}
	if err := o.put(real, real, out.After, info.Mode.Perm(), &info); err != nil {
		out.After = before
		return out, err
	}
	out.Digest = digestOf(out.After)
	o.noteWritten(r.Client, real, out.Digest)
	return out, nil
}

// substitute makes After of Before, or says why not.
func substitute(out *sandbox.EditResult, r sandbox.EditRequest) error {
	at := bytes.Index(out.Before, r.Old)
	if at < 0 {
		return sandbox.Errorf(sandbox.NoMatch, "edit", r.Path, "the text to be replaced is not in the file%s", hint(out.Before, r.Old))
	}
	out.Count = bytes.Count(out.Before, r.Old)
	out.Line = 1 + bytes.Count(out.Before[:at], []byte{'\n'})
	if out.Count > 1 && !r.All {
		e := sandbox.Errorf(sandbox.Ambiguous, "edit", r.Path, "the text to be replaced is in the file %d times, first in line %d; give more of the text around it, or replace all", out.Count, out.Line)
		e.Count = out.Count
		return e
	}
	if size := len(out.Before) + out.Count*(len(r.New)-len(r.Old)); size > sandbox.MaxWrite {
		return sandbox.Errorf(sandbox.TooLarge, "edit", r.Path, "the file would have %d bytes, and up to %d can be written", size, sandbox.MaxWrite)
	}
	out.After = bytes.ReplaceAll(out.Before, r.Old, r.New)
	return nil
}

// hint says what is nearly right about a text that was not found.
func hint(content, old []byte) string {
	crlf := bytes.ReplaceAll(old, []byte{'\n'}, []byte("\r\n"))
	trimmed := bytes.TrimSpace(old)
	switch {
	case !bytes.Contains(old, []byte{'\r'}) && bytes.Contains(content, crlf):
		return ": its lines end with CR LF there"
	case len(trimmed) > 0 && bytes.Contains(content, trimmed):
		return ", but it is without the white space at its beginning and end"
	}
	return "; read it again and copy the text exactly"
}
