package files_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/galleyfs/galley/sandbox"
)

// FuzzEdit: an edit replaces exactly what bytes.Count says is there, or leaves
// the file as it was.
func FuzzEdit(f *testing.F) {
	f.Add([]byte("a b a"), []byte("b"), []byte("x"), false)
	f.Add([]byte("aaaa"), []byte("aa"), []byte(""), true)
	f.Add([]byte("a\r\nb"), []byte("a\nb"), []byte("\xff"), false)
	f.Add([]byte("\x00"), []byte("\x00"), []byte("1"), true)
	dir := f.TempDir()
	name := filepath.Join(dir, "f")
	o := ops(dir)
	f.Fuzz(func(t *testing.T, content, old, new []byte, all bool) {
		if err := os.WriteFile(name, content, 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := o.Edit(t.Context(), sandbox.EditRequest{Path: "f", Old: old, New: new, All: all})
		got, rerr := os.ReadFile(name)
		if rerr != nil {
			t.Fatal(rerr)
		}
		if err != nil {
			if sandbox.CodeOf(err) == sandbox.Failed || !bytes.Equal(got, content) {
				t.Fatalf("%v; the file is now %q", err, got)
			}
			return
		}
		n := bytes.Count(content, old)
		if want := bytes.ReplaceAll(content, old, new); !bytes.Equal(got, want) || r.Count != n || n > 1 && !all || n == 0 {
			t.Fatalf("%q, count %d; want %q, %d", got, r.Count, want, n)
		}
	})
}

// FuzzGlob: a pattern is refused, with a position in it, or finds nothing that
// doublestar would not.
func FuzzGlob(f *testing.F) {
	for _, p := range []string{"*", "**/*.go", "{a,b/**}/[!c]?", `\[q]`, "[]a]", "a/../b", "{{a,b},c}", "[a-", "**/**/**", "{a,b}{c,d}{e,f}", "//a//", "./*", "a/"} {
		f.Add(p)
	}
	dir := f.TempDir()
	for _, name := range []string{"a/b/c.go", "a/d", "b", "c/.x/y", "[q]", "e f"} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o644)); err != nil {
			f.Fatal(err)
		}
	}
	o := ops(dir)
	f.Fuzz(func(t *testing.T, pattern string) {
		if len(pattern) > 0 && pattern[0] == '/' {
			return // the host's own files
		}
		r, err := o.Glob(t.Context(), sandbox.GlobRequest{Pattern: pattern})
		if err != nil {
			var e *sandbox.Error
			if !errors.As(err, &e) || e.Code != sandbox.InvalidPattern || e.Offset < 0 || e.Offset > len(pattern) {
				t.Fatalf("%q: %#v", pattern, err)
			}
			return
		}
		for _, p := range r.Paths {
			if bytes.ContainsAny([]byte(pattern), "./{\\") {
				continue // what is found is spelt otherwise there
			}
			if ok, err := doublestar.Match(pattern, p); err != nil || !ok {
				t.Fatalf("%q found %q, which does not match", pattern, p)
			}
		}
	})
}
