package tools

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/aymanbagabas/go-udiff"

	"github.com/galleyfs/galley/sandbox"
)

// What a model is shown at once.
const (
	maxLines = 2000
	maxBytes = 50 << 10
	maxImage = 4 << 20
)

type readInput struct {
	Path   string `json:"path" jsonschema:"the file, absolute or relative to the working directory"`
	Offset int    `json:"offset,omitempty" jsonschema:"the first line to read, from 1"`
	Limit  int    `json:"limit,omitempty" jsonschema:"how many lines to read (default and most: 2000)"`
}

type readOutput struct {
	Path       string `json:"path"`
	FirstLine  int    `json:"first_line"`
	Lines      int    `json:"lines"`
	TotalLines int    `json:"total_lines" jsonschema:"-1 where the file is too large to count"`
	Truncated  bool   `json:"truncated"`
	Digest     string `json:"digest,omitempty" jsonschema:"of the whole file; Edit and Write take it"`
	MIME       string `json:"mime,omitempty" jsonschema:"of an image"`
}

func callRead(ctx context.Context, s *Set, args json.RawMessage, _ Progress) (Result, error) {
	in, err := decode[readInput]("Read", args)
	if err != nil {
		return Result{}, err
	}
	sb, err := s.sandbox(ctx)
	if err != nil {
		return Result{}, err
	}
	if img, ok := imageTypes[strings.ToLower(path.Ext(in.Path))]; ok {
		return readImage(ctx, s, sb, in.Path, img)
	}
	limit := in.Limit
	if limit <= 0 || limit > maxLines {
		limit = maxLines
	}
	if in.Limit < 0 {
		limit = in.Limit // for the sandbox to refuse
	}
	r, err := sb.Read(ctx, sandbox.ReadRequest{Path: in.Path, Offset: in.Offset, Limit: limit, MaxBytes: maxBytes, Client: s.client(ctx)})
	if err != nil {
		return Result{}, err
	}
	if i := strings.IndexByte(string(r.Content), 0); i >= 0 {
		return Result{}, sandbox.Errorf(sandbox.Binary, "read", in.Path, "it is a binary file of %d bytes; look at it with a command", r.Info.Size)
	}
	content := wholeLines(r.Content, r.Truncated)
	shown := strings.Count(string(content), "\n")
	if len(content) > 0 && content[len(content)-1] != '\n' {
		shown++
	}
	last := r.FirstLine + shown - 1
	more := r.Truncated || r.TotalLines < 0 || last < r.TotalLines
	out := &readOutput{Path: r.Info.Path, FirstLine: r.FirstLine, Lines: shown, TotalLines: r.TotalLines, Truncated: more, Digest: r.Digest}
	text := strings.ToValidUTF8(string(content), "\ufffd")
	switch {
	case r.TotalLines == 0:
		text = "(the file is empty)"
	case shown == 0:
		text = fmt.Sprintf("(the file has %d lines; none from %d on)", r.TotalLines, r.FirstLine)
	case r.Truncated && !strings.Contains(text, "\n"):
		text += fmt.Sprintf("\n(line %d is cut after %d bytes)", r.FirstLine, len(content))
	case more && r.TotalLines < 0:
		text += fmt.Sprintf("\n(showing lines %d-%d, output truncated)", r.FirstLine, last)
	case more:
		text += fmt.Sprintf("\n(showing lines %d-%d of %d, output truncated)", r.FirstLine, last, r.TotalLines)
	}
	return Result{Text: text, Data: out}, nil
}

// wholeLines cuts what is not a whole line off the end of cut content, unless
// nothing would be left.
func wholeLines(b []byte, cut bool) []byte {
	if !cut {
		return b
	}
	if i := strings.LastIndexByte(string(b), '\n'); i >= 0 {
		return b[:i+1]
	}
	for len(b) > 0 && !utf8.FullRune(b[max(0, len(b)-utf8.UTFMax):]) {
		b = b[:len(b)-1]
	}
	return b
}

var imageTypes = map[string]string{".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp"}

func readImage(ctx context.Context, s *Set, sb sandbox.Sandbox, p, mime string) (Result, error) {
	r, err := sb.Read(ctx, sandbox.ReadRequest{Path: p, MaxBytes: maxImage, Client: s.client(ctx)})
	if err != nil {
		return Result{}, err
	}
	if r.Truncated {
		return Result{}, sandbox.Errorf(sandbox.TooLarge, "read", p, "the image has %d bytes; up to %d are shown", r.Info.Size, maxImage)
	}
	if got := http.DetectContentType(r.Content); got != mime {
		return Result{}, sandbox.Errorf(sandbox.Invalid, "read", p, "its name says %s, but it is %s", mime, got)
	}
	return Result{
		Text: fmt.Sprintf("%s, %d bytes", mime, len(r.Content)), Image: &Image{MIME: mime, Data: r.Content},
		Data: &readOutput{Path: r.Info.Path, FirstLine: 1, MIME: mime, Digest: r.Digest},
	}, nil
}

type writeInput struct {
	Path    string `json:"path" jsonschema:"the file, absolute or relative to the working directory; missing directories are made"`
	Content string `json:"content" jsonschema:"the whole content"`
	Digest  string `json:"digest,omitempty" jsonschema:"refuse if the file is not the one with this digest"`
}

type writeOutput struct {
	Path    string `json:"path"`
	Created bool   `json:"created"`
	Lines   int    `json:"lines"`
	Bytes   int    `json:"bytes"`
	Digest  string `json:"digest"`
}

func callWrite(ctx context.Context, s *Set, args json.RawMessage, _ Progress) (Result, error) {
	in, err := decode[writeInput]("Write", args)
	if err != nil {
		return Result{}, err
	}
	sb, err := s.sandbox(ctx)
	if err != nil {
		return Result{}, err
	}
	r, err := sb.Write(ctx, sandbox.WriteRequest{Path: in.Path, Content: []byte(in.Content), Digest: in.Digest, Client: s.client(ctx)})
	if err != nil {
		return Result{}, err
	}
	return Result{
		Text: fmt.Sprintf("Wrote %s (%s, %s)", in.Path, count(r.Lines, "line"), count(r.Bytes, "byte")),
		Data: &writeOutput{r.Path, r.Created, r.Lines, r.Bytes, r.Digest},
	}, nil
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

type editInput struct {
	Path   string `json:"path" jsonschema:"the file, absolute or relative to the working directory"`
	Old    string `json:"old" jsonschema:"the text to be replaced, exactly as it is in the file; it must be there once"`
	New    string `json:"new" jsonschema:"what takes its place"`
	All    bool   `json:"all,omitempty" jsonschema:"replace every occurrence"`
	Digest string `json:"digest,omitempty" jsonschema:"refuse if the file is not the one with this digest"`
}

type editOutput struct {
	Path   string `json:"path"`
	Count  int    `json:"count"`
	Line   int    `json:"line"`
	Digest string `json:"digest"`
	Diff   string `json:"diff"`
}

func callEdit(ctx context.Context, s *Set, args json.RawMessage, _ Progress) (Result, error) {
	in, err := decode[editInput]("Edit", args)
	if err != nil {
		return Result{}, err
	}
	sb, err := s.sandbox(ctx)
	if err != nil {
		return Result{}, err
	}
	r, err := sb.Edit(ctx, sandbox.EditRequest{Path: in.Path, Old: []byte(in.Old), New: []byte(in.New), All: in.All, Digest: in.Digest, Client: s.client(ctx)})
	if err != nil {
		return Result{}, err
	}
	diff := editDiff(in.Path, r)
	return Result{
		Text: fmt.Sprintf("Edited %s (%s)\n```diff\n%s```", in.Path, count(r.Count, "replacement"), diff),
		Data: &editOutput{r.Path, r.Count, r.Line, r.Digest, diff},
	}, nil
}

// maxDiff is up to what size an edit is shown as a diff.
const maxDiff = 1 << 20

func editDiff(p string, r sandbox.EditResult) string {
	if len(r.Before) > maxDiff || len(r.After) > maxDiff {
		return fmt.Sprintf("(the file is too large to show the difference; first in line %d)\n", r.Line)
	}
	name := strings.TrimPrefix(p, "/")
	d := udiff.Unified("a/"+name, "b/"+name, strings.ToValidUTF8(string(r.Before), "\ufffd"), strings.ToValidUTF8(string(r.After), "\ufffd"))
	return clipLines(d)
}

// clipLines cuts text to what is shown at once.
func clipLines(text string) string {
	if len(text) <= maxBytes {
		return text
	}
	return strings.ToValidUTF8(text[:maxBytes], "") + "\n(output truncated)\n"
}

type globInput struct {
	Pattern string `json:"pattern" jsonschema:"such as **/*.go or src/{a,b}/*.ts"`
	Cwd     string `json:"cwd,omitempty" jsonschema:"where a relative pattern starts (default: the working directory)"`
	Limit   int    `json:"limit,omitempty" jsonschema:"how many paths to return (default 1000)"`
	Ignore  bool   `json:"ignore,omitempty" jsonschema:"leave out what .gitignore does, and .git"`
}

type globOutput struct {
	Paths     []string `json:"paths"`
	Truncated bool     `json:"truncated"`
}

func callGlob(ctx context.Context, s *Set, args json.RawMessage, _ Progress) (Result, error) {
	in, err := decode[globInput]("Glob", args)
	if err != nil {
		return Result{}, err
	}
	sb, err := s.sandbox(ctx)
	if err != nil {
		return Result{}, err
	}
	r, err := sb.Glob(ctx, sandbox.GlobRequest{Pattern: in.Pattern, Dir: in.Cwd, Limit: in.Limit, Ignore: in.Ignore})
	if err != nil {
		return Result{}, err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s for %s", matches(len(r.Paths)), in.Pattern)
	out := &globOutput{Paths: []string{}, Truncated: r.Truncated}
	for _, p := range r.Paths {
		p = shown(p)
		out.Paths = append(out.Paths, p)
		b.WriteString("\n" + p)
	}
	if r.Truncated {
		b.WriteString("\n(there are more; raise limit or narrow the pattern)")
	}
	return Result{Text: b.String(), Data: out}, nil
}

func matches(n int) string {
	if n == 1 {
		return "1 match"
	}
	return fmt.Sprintf("%d matches", n)
}

// shown is a path for the model: one line of UTF-8.
func shown(p string) string {
	if utf8.ValidString(p) && !strings.ContainsAny(p, "\n\r\x1b") {
		return p
	}
	return fmt.Sprintf("%q", p)
}

type grepInput struct {
	Pattern string `json:"pattern" jsonschema:"a regular expression (RE2)"`
	Path    string `json:"path,omitempty" jsonschema:"a file or directory (default: the working directory)"`
	Glob    string `json:"glob,omitempty" jsonschema:"only files that match, such as *.go or src/**/*.ts"`
	Case    *bool  `json:"case,omitempty" jsonschema:"false ignores case (default true)"`
	Limit   int    `json:"limit,omitempty" jsonschema:"how many lines to return (default 200)"`
	Before  int    `json:"before,omitempty" jsonschema:"lines of context before each match"`
	After   int    `json:"after,omitempty" jsonschema:"lines of context after each match"`
	Count   bool   `json:"count,omitempty" jsonschema:"only how many lines match in each file"`
	Ignore  bool   `json:"ignore,omitempty" jsonschema:"leave out what .gitignore does, and .git"`
}

type grepLine struct {
	Path    string `json:"path"`
	Line    int    `json:"line"`
	Text    string `json:"text"`
	Context bool   `json:"context,omitempty"`
}

type grepOutput struct {
	Matches   []grepLine `json:"matches"`
	Count     int        `json:"count"`
	Searched  int        `json:"searched"`
	Truncated bool       `json:"truncated"`
}

func callGrep(ctx context.Context, s *Set, args json.RawMessage, _ Progress) (Result, error) {
	in, err := decode[grepInput]("Grep", args)
	if err != nil {
		return Result{}, err
	}
	sb, err := s.sandbox(ctx)
	if err != nil {
		return Result{}, err
	}
	r, err := sb.Grep(ctx, sandbox.GrepRequest{
		Pattern: in.Pattern, Path: in.Path, Glob: in.Glob, IgnoreCase: in.Case != nil && !*in.Case, Limit: in.Limit,
		Before: in.Before, After: in.After, CountOnly: in.Count, Ignore: in.Ignore,
	})
	if err != nil {
		return Result{}, err
	}
	out := &grepOutput{Matches: []grepLine{}, Count: r.Count, Searched: r.Searched, Truncated: r.Truncated}
	work := sb.Info().Workdir
	var b strings.Builder
	fmt.Fprintf(&b, "%s in %s", matches(r.Count), count(r.Searched, "file"))
	for _, m := range r.Matches {
		l := grepLine{shown(below(m.Path, work)), m.Line, strings.ToValidUTF8(string(m.Text), "\ufffd"), m.Context}
		out.Matches = append(out.Matches, l)
		sep := ": "
		if m.Context {
			sep = "- "
		}
		fmt.Fprintf(&b, "\n%s:%d%s%s", l.Path, l.Line, sep, l.Text)
	}
	for _, f := range r.Files {
		fmt.Fprintf(&b, "\n%s: %d", shown(below(f.Path, work)), f.Count)
	}
	if r.Truncated {
		b.WriteString("\n(there are more; raise limit or narrow the search)")
	}
	if r.Unreadable > 0 {
		fmt.Fprintf(&b, "\n(%s could not be read)", count(r.Unreadable, "file"))
	}
	return Result{Text: clipLines(b.String()), Data: out}, nil
}

// below is p relative to dir where it lies in it.
func below(p, dir string) string {
	if rest, ok := strings.CutPrefix(p, dir+"/"); ok {
		return rest
	}
	return p
}

type mountInput struct {
	Host  string `json:"host" jsonschema:"the absolute path of a directory of the host"`
	Path  string `json:"path" jsonschema:"where it is to stand, absolute"`
	Write bool   `json:"write,omitempty" jsonschema:"let it be changed; changes go to the session and not to the host"`
}

type mountOutput struct {
	Path string `json:"path"`
	Tree string `json:"tree,omitempty"`
}

func callMount(ctx context.Context, s *Set, args json.RawMessage, _ Progress) (Result, error) {
	in, err := decode[mountInput]("Mount", args)
	if err != nil {
		return Result{}, err
	}
	sb, err := s.sandbox(ctx)
	if err != nil {
		return Result{}, err
	}
	r, err := sb.Mount(ctx, sandbox.MountRequest{Host: in.Host, Path: in.Path, Write: in.Write})
	if err != nil {
		return Result{}, err
	}
	how := "read-only"
	if r.Tree != "" {
		how = "copy-on-write, as tree " + r.Tree
	}
	return Result{Text: fmt.Sprintf("Mounted %s at %s, %s", in.Host, r.Path, how), Data: &mountOutput{r.Path, r.Tree}}, nil
}
