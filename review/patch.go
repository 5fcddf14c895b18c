package review

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/review/termsafe"
)

// PatchOptions of WritePatch.
type PatchOptions struct {
	// NoBinary writes "Binary files differ" in place of a binary patch, for
	// people; such a patch cannot be applied.
	NoBinary bool
}

// WritePatch writes a change set as a git patch, and returns what such a patch
// cannot say. On a copy of the base, `git apply` makes of it the session's tree
// in all else. Names are quoted as git quotes them, but contents are written as
// they are: for a terminal, write through a [termsafe.DiffWriter].
//
// Paths that git refuses in a patch (into .git) are shown as well, as comments
// after the patch of their tree and without binary contents; so the reader sees
// all, and git applies the rest.
//
// A change set of several trees gives one patch after the other, each after a
// line that names its tree; git takes such a line for a comment. Memory is
// bounded whatever the size of the files.
func WritePatch(ctx context.Context, w io.Writer, cs *ChangeSet, opts PatchOptions) ([]Uncarried, error) {
	bw := bufio.NewWriterSize(w, 64<<10)
	var left []Uncarried
	for _, t := range cs.trees {
		files, more, err := filesOf(ctx, t, cs.Changes)
		if err != nil {
			return left, fmt.Errorf("list the files of the tree %s: %w", t.name, err)
		}
		left = append(left, more...)
		if len(cs.trees) > 1 && len(files) > 0 {
			fmt.Fprintf(bw, "tree %s:\n", termsafe.Quote(t.name))
		}
		var refused []*fileDiff
		write := func(w *bufio.Writer, f *fileDiff, opts PatchOptions) error {
			err := writeFile(ctx, w, f, opts)
			if vanished(err) {
				left = append(left, Uncarried{t.name, f.path(), "the host changed it, so that there is nothing to compare with"})
				return nil
			}
			if err != nil {
				return fmt.Errorf("write the patch of %q: %w", f.path(), err)
			}
			return nil
		}
		for _, f := range files {
			if gitRefuses(f) {
				refused = append(refused, f)
				left = append(left, Uncarried{t.name, f.path(), "git takes no patch to such a path; shown as a comment"})
				continue
			}
			if err := write(bw, f, opts); err != nil {
				return left, err
			}
		}
		if len(refused) == 0 {
			continue
		}
		fmt.Fprint(bw, "# Git takes no patch to the following paths.\n")
		comments := bufio.NewWriter(&commentLines{w: bw})
		for _, f := range refused {
			if err := write(comments, f, PatchOptions{NoBinary: true}); err != nil {
				return left, err
			}
		}
		if err := comments.Flush(); err != nil {
			return left, err
		}
	}
	return left, bw.Flush()
}

// gitRefuses reports whether git apply takes either path for unsafe: a component
// that is .git, or could stand for it on another system (verify_path of git).
func gitRefuses(f *fileDiff) bool {
	return f.old != nil && refusedPath(f.old) || f.new != nil && refusedPath(f.new)
}

func refusedPath(s *side) bool {
	for part := range strings.FieldsFuncSeq(s.path, func(r rune) bool { return r == '/' || r == '\\' }) {
		part = strings.ToLower(part)
		if stream := strings.IndexByte(part, ':'); stream >= 0 {
			part = part[:stream]
		}
		switch part = strings.TrimRight(part, " ."); {
		case part == ".git" || part == "git~1":
			return true
		case s.mode == gitLink && (part == ".gitmodules" || strings.HasPrefix(part, "gitmod~")):
			return true
		}
	}
	return false
}

// commentLines puts "# " before every line.
type commentLines struct {
	w   io.Writer
	mid bool
}

func (c *commentLines) Write(p []byte) (int, error) {
	for line := range bytes.Lines(p) {
		if !c.mid {
			if _, err := io.WriteString(c.w, "# "); err != nil {
				return 0, err
			}
		}
		c.mid = line[len(line)-1] != '\n'
		if _, err := c.w.Write(line); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// vanished reports whether the base has no longer what is to be compared.
func vanished(err error) bool {
	switch overlay.Errno(err) {
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EINVAL, unix.ESTALE:
		return true
	}
	return false
}

// opened is a file difference with both contents open.
type opened struct {
	*fileDiff
	old, new *Content // shadow the sides; nil where there is none
	ob, nb   blob
}

// openDiff opens and inspects both sides. Close frees them.
func openDiff(ctx context.Context, f *fileDiff) (*opened, error) {
	o := &opened{fileDiff: f}
	var err error
	if f.old != nil {
		if o.old, err = f.old.open(); err != nil {
			return nil, err
		}
	}
	if f.new != nil {
		if o.new, err = f.new.open(); err != nil {
			o.close()
			return nil, err
		}
	}
	if o.ob, err = inspect(ctx, o.old); err == nil {
		o.nb, err = inspect(ctx, o.new)
	}
	if err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

func (o *opened) close() {
	if o.old != nil {
		o.old.Close()
	}
	if o.new != nil {
		o.new.Close()
	}
}

// binary is git's rule: a NUL byte near the start of either side.
func (o *opened) binary() bool { return o.ob.binary || o.nb.binary }

func (o *opened) text(ctx context.Context) *textDiff {
	return &textDiff{ctx: ctx, old: o.old, new: o.new, ob: o.ob, nb: o.nb, limit: inMemory}
}

// writeFile writes the patch of one file.
func writeFile(ctx context.Context, w *bufio.Writer, f *fileDiff, opts PatchOptions) error {
	if f.same {
		return writeHeader(w, f, 100, "")
	}
	o, err := openDiff(ctx, f)
	if err != nil {
		return err
	}
	defer o.close()
	if o.ob.oid == o.nb.oid && f.old != nil && f.new != nil {
		// The base was changed on the host to the same content.
		if !f.rename() && f.old.mode == f.new.mode {
			return nil
		}
		return writeHeader(w, f, 100, "")
	}
	score := 0
	if f.rename() {
		if score, err = contentSimilarity(o.old, o.new); err != nil {
			return err
		}
	}
	if err := writeHeader(w, f, score, o.ob.oid+".."+o.nb.oid); err != nil {
		return err
	}
	if !o.binary() {
		return writeText(ctx, w, o)
	}
	oldName, newName := labels(f)
	if opts.NoBinary {
		_, err := fmt.Fprintf(w, "Binary files %s and %s differ\n", oldName, newName)
		return err
	}
	if _, err := w.WriteString("GIT binary patch\n"); err != nil {
		return err
	}
	if err := writeLiteral(ctx, w, o.new); err != nil {
		return err
	}
	return writeLiteral(ctx, w, o.old)
}

// writeHeader writes git's extended header. index is the two object names, or
// "" if the content is the same.
func writeHeader(w *bufio.Writer, f *fileDiff, score int, index string) error {
	a, b := f.old, f.new
	oldPath, newPath := f.path(), f.path()
	if a != nil {
		oldPath = a.path
	}
	fmt.Fprintf(w, "diff --git %s %s\n", gitName("a/"+oldPath), gitName("b/"+newPath))
	switch {
	case a == nil:
		fmt.Fprintf(w, "new file mode %o\n", b.mode)
	case b == nil:
		fmt.Fprintf(w, "deleted file mode %o\n", a.mode)
	case a.mode != b.mode:
		fmt.Fprintf(w, "old mode %o\nnew mode %o\n", a.mode, b.mode)
	}
	if f.rename() {
		fmt.Fprintf(w, "similarity index %d%%\nrename from %s\nrename to %s\n", score, termsafe.Quote(oldPath), termsafe.Quote(newPath))
	}
	if index != "" {
		fmt.Fprintf(w, "index %s", index)
		if a != nil && b != nil && a.mode == b.mode {
			fmt.Fprintf(w, " %o", a.mode)
		}
		_ = w.WriteByte('\n')
	}
	return nil
}

// gitName quotes a name for the header of a patch. Beyond what git quotes, it
// quotes a component that ends in a space, without which git apply cannot tell
// where the first of two names ends.
func gitName(name string) string {
	q := termsafe.Quote(name)
	if q == name && (strings.Contains(name, " /") || strings.HasSuffix(name, " ")) {
		return `"` + name + `"`
	}
	return q
}

// labels are the names on the --- and +++ lines.
func labels(f *fileDiff) (oldName, newName string) {
	oldName, newName = "/dev/null", "/dev/null"
	if f.old != nil {
		oldName = gitName("a/" + f.old.path)
	}
	if f.new != nil {
		newName = gitName("b/" + f.new.path)
	}
	return oldName, newName
}

// writeText writes the hunks of a text. An empty file has none, and then no
// --- and +++ lines either.
func writeText(ctx context.Context, w *bufio.Writer, o *opened) error {
	if o.ob.size == 0 && o.nb.size == 0 {
		return nil
	}
	oldName, newName := labels(o.fileDiff)
	fmt.Fprintf(w, "--- %s\n+++ %s\n", endName(oldName), endName(newName))
	return o.text(ctx).write(w)
}

// endName ends a name with spaces by a tab, as git does for patch(1), which
// takes what follows a space for a time.
func endName(name string) string {
	if strings.Contains(name, " ") {
		return name + "\t"
	}
	return name
}
