package files_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"testing"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/files"
	"github.com/galleyfs/galley/sandbox/internal/osfs"
)

// plant makes files; a name that ends with a slash is a directory, content
// "->x" a link to x.
func plant(t *testing.T, dir string, content map[string]string) {
	t.Helper()
	for name, text := range content {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		target, link := strings.CutPrefix(text, "->")
		switch {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(p, 0o755)
		case link:
			err = os.Symlink(target, p)
		default:
			err = os.WriteFile(p, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func ops(dir string) *files.Ops { return files.New(osfs.FS{}, dir) }

// Glob finds what doublestar itself finds, in the order of whole paths.
func TestGlobAgreesWithDoublestar(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir, map[string]string{
		"a": "1", "a-b": "2", "b/c": "3", "b/d.go": "4", "b-x/e.go": "5", "b/.hid/f.go": "6", "z/y/x/w.go": "7",
		"[q]": "8", "{r}": "9", "sp ace/f g": "10", "ü/é.go": "11", "empty/": "", "b/c d.txt": "12", ".dot": "13",
		"link": "->b", "z/up": "->..", "dead": "->nowhere",
	})
	patterns := []string{
		"*", "**", "**/*", "**/*.go", "*/*.go", "b/**", "b/**/*.go", "{a,b/c}", "b/{c,d.go}", "?", "[ab]", "[!a]*", "[^a]*", ".*",
		"**/.hid/*", "z/**/w.go", "z/*/x/*", "**/x/**", "\\[q\\]", "[[]q]", "sp ace/*", "ü/*", "**/é.go", "empty", "empty/*", "nothing", "b/c",
		"b*/**/*.go", "{**/*.go,a}", "{b,b-x}/{d,e}.go", "*-*", "**/{c,e.go}", "link", "link/*.go", "*/up", "z/up/a", "{a,a,a}",
	}
	for _, p := range patterns {
		want, err := doublestar.Glob(os.DirFS(dir), p, doublestar.WithNoFollow())
		if err != nil {
			t.Fatal(err)
		}
		// NoFollow also keeps from links that the pattern names, which a shell follows.
		if strings.Contains(p, "link/") || p == "z/up/a" || p == "*/*.go" {
			if want, err = doublestar.Glob(os.DirFS(dir), p); err != nil {
				t.Fatal(err)
			}
		}
		set := map[string]bool{}
		for _, w := range want {
			if w != "." {
				set[w] = true
			}
		}
		want = want[:0]
		for w := range set {
			want = append(want, w)
		}
		sort.Strings(want)
		got, err := ops(dir).Glob(t.Context(), sandbox.GlobRequest{Pattern: p})
		if err != nil {
			t.Errorf("%q: %v", p, err)
			continue
		}
		if d := cmp.Diff(want, got.Paths); d != "" && len(want)+len(got.Paths) > 0 {
			t.Errorf("%q (-doublestar +galley):\n%s", p, d)
		}
	}
}

// Grep finds what the regular expression finds in each line by itself, however
// the literals, the chunks and the context fall.
func TestGrepAgreesWithRegexp(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	words := []string{"foo", "bar", "Foo", "FOOBAR", "kelvin", "\u212aelvin", "snake", "\u017fnake", "x", "", " ", "TODO", "a.b", "\xff", "ü", "\r"}
	patterns := []string{
		"foo", "TODO|bar", "(?i)foo", "(?i)kelvin", "(?i)snake", "^foo", "bar$", "^$", "fo+b?", "[fb]oo|bar", "\\bfoo\\b", "a\\.b",
		".", "x*", "(?i)todo|FOO", "[^a]+bar", "\\s", "(foo)(bar)?", "ü", "\\x{fffd}", "(?i:f)oo", "foo.*bar", "\\Afoo", "bar\\z", "nothing",
	}
	for round := range 30 {
		var text bytes.Buffer
		for text.Len() < 1+rng.IntN(300_000)*(round%2) {
			for range rng.IntN(4) {
				text.WriteString(words[rng.IntN(len(words))])
			}
			if rng.IntN(3) > 0 {
				text.WriteByte('\n')
			}
		}
		dir := t.TempDir()
		plant(t, dir, map[string]string{"f": text.String()})
		p := patterns[round%len(patterns)]
		for _, p := range []string{p, patterns[rng.IntN(len(patterns))]} {
			checkGrep(t, dir, text.String(), p, rng.IntN(3), rng.IntN(3))
		}
	}
}

func checkGrep(t *testing.T, dir, text, pattern string, before, after int) {
	t.Helper()
	got, err := ops(dir).Grep(context.Background(), sandbox.GrepRequest{Pattern: pattern, Limit: 1_000_000, Before: before, After: after, Path: "f"})
	if err != nil {
		t.Errorf("%q: %v", pattern, err)
		return
	}
	re := regexp.MustCompile(pattern)
	lines := strings.Split(text, "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	shown := map[int]string{}
	for i, l := range lines {
		if !re.MatchString(l) {
			continue
		}
		for j := max(0, i-before); j <= min(len(lines)-1, i+after); j++ {
			if shown[j] == "" {
				shown[j] = " "
			}
		}
		shown[i] = "*"
	}
	var want, have []string
	for i, l := range lines {
		if shown[i] != "" {
			l = strings.TrimSuffix(l, "\r")
			want = append(want, fmt.Sprintf("%d%s%s", i+1, shown[i], l[:min(len(l), 60)]))
		}
	}
	for _, m := range got.Matches {
		mark := "*"
		if m.Context {
			mark = " "
		}
		if m.Cut {
			continue
		}
		have = append(have, fmt.Sprintf("%d%s%s", m.Line, mark, m.Text[:min(len(m.Text), 60)]))
	}
	if d := cmp.Diff(want, have); d != "" {
		t.Errorf("%q before %d after %d (-regexp +galley):\n%.2000s", pattern, before, after, d)
	}
}
