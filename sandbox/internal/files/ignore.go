package files

import (
	"context"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// maxIgnoreFile is how much of a .gitignore is read.
const maxIgnoreFile = 1 << 20

// ignoreRules are the rules of one .gitignore and of those in the directories
// above it, as gitignore(5) has them. nil ignores nothing.
type ignoreRules struct {
	above *ignoreRules
	dir   string // relative to the top, "" for the top
	rules []ignoreRule
}

type ignoreRule struct {
	pattern string
	negate  bool
	dirOnly bool
	// anchored patterns match the path relative to the directory of the
	// .gitignore, others the name alone.
	anchored bool
}

// in are the rules that hold in a directory, with those of its own .gitignore.
func (r *ignoreRules) in(fsys FS, dir, rel string, entries []DirEntry) *ignoreRules {
	for _, e := range entries {
		if e.Name != ".gitignore" || !e.Type.IsRegular() {
			continue
		}
		f, err := fsys.Open(Join(dir, e.Name))
		if err != nil {
			return r
		}
		text, _, err := readAll(context.Background(), f, maxIgnoreFile)
		_ = f.Close()
		if err != nil {
			return r
		}
		if rules := parseIgnore(string(text)); len(rules) > 0 {
			return &ignoreRules{above: r, dir: rel, rules: rules}
		}
	}
	return r
}

func parseIgnore(text string) []ignoreRule {
	var out []ignoreRule
	for _, line := range lines(strings.TrimPrefix(text, "\ufeff")) {
		if line == "" || line[0] == '#' {
			continue
		}
		var r ignoreRule
		if line[0] == '!' {
			r.negate, line = true, line[1:]
		}
		line = trimSpaces(line)
		if strings.HasSuffix(line, "/") {
			r.dirOnly, line = true, strings.TrimSuffix(line, "/")
		}
		if r.anchored = strings.Contains(line, "/"); r.anchored {
			line = strings.TrimPrefix(line, "/")
		}
		// Braces mean themselves in a .gitignore.
		line = strings.NewReplacer("{", `\{`, "}", `\}`).Replace(line)
		if strings.HasSuffix(line, "/**") {
			line += "/*"
		}
		if r.pattern = line; line != "" && doublestar.ValidatePattern(line) {
			out = append(out, r)
		}
	}
	return out
}

// trimSpaces cuts the spaces at the end that no backslash protects.
func trimSpaces(s string) string {
	for strings.HasSuffix(s, " ") && !strings.HasSuffix(s, `\ `) {
		s = s[:len(s)-1]
	}
	return s
}

// ignored reports whether the path, relative to the top, is left out. The walk
// has seen to it that no directory above it is.
func (r *ignoreRules) ignored(rel string, isDir bool) bool {
	name := rel[strings.LastIndexByte(rel, '/')+1:]
	for ; r != nil; r = r.above {
		below := rel
		if r.dir != "" {
			below = strings.TrimPrefix(rel, r.dir+"/")
		}
		for i := len(r.rules) - 1; i >= 0; i-- {
			rule := r.rules[i]
			if rule.dirOnly && !isDir {
				continue
			}
			what := name
			if rule.anchored {
				what = below
			}
			if ok, err := doublestar.Match(rule.pattern, what); err == nil && ok {
				return !rule.negate
			}
		}
	}
	return false
}
