package files

import (
	"context"
	"io/fs"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/galleyfs/galley/sandbox"
)

// Limits of a pattern.
const (
	maxPattern      = 4096
	maxAlternatives = 256 // after its braces are expanded
)

// Glob is [sandbox.Sandbox.Glob].
func (o *Ops) Glob(ctx context.Context, r sandbox.GlobRequest) (sandbox.GlobResult, error) {
	out := sandbox.GlobResult{Paths: []string{}}
	dir, err := o.absOr("glob", r.Dir)
	if err != nil {
		return out, err
	}
	limit, err := limitOf("glob", "limit", r.Limit, sandbox.GlobLimit, sandbox.MaxGlob)
	if err != nil {
		return out, err
	}
	alts, err := parseGlob(r.Pattern)
	if err != nil {
		return out, err
	}
	prefix := ""
	if strings.HasPrefix(r.Pattern, "/") {
		dir, prefix = "/", "/"
	} else if info, err := o.fs.Stat(dir, true); err != nil {
		return out, sandbox.Wrap("glob", r.Dir, err)
	} else if !info.Mode.IsDir() {
		return out, sandbox.Errorf(sandbox.NotDirectory, "glob", r.Dir, "it is not a directory")
	}
	g := &globber{ctx: ctx, fs: o.fs, req: r, limit: limit, alts: alts}
	start := make([]globState, len(alts))
	for i := range alts {
		start[i] = globState{i, 0}
	}
	g.descend(dir, prefix, g.close(start), nil)
	if err := ctx.Err(); err != nil {
		return out, sandbox.Wrap("glob", r.Pattern, err)
	}
	out.Paths, out.Truncated = append(out.Paths, g.found...), g.more
	return out, nil
}

// A globber walks a tree with the set of places in the pattern that the path so
// far can stand at, so that no directory is read that nothing can match in.
type globber struct {
	ctx   context.Context
	fs    FS
	req   sandbox.GlobRequest
	limit int
	alts  [][]string // the elements of each alternative
	found []string
	more  bool
}

// globState is a place in an alternative: the elements before next are matched.
type globState struct{ alt, next int }

// close adds the states that a "**" which matches nothing leads to.
func (g *globber) close(states []globState) []globState {
	seen := make(map[globState]bool, len(states))
	var out []globState
	for len(states) > 0 {
		s := states[0]
		states = states[1:]
		if seen[s] {
			continue
		}
		seen[s] = true
		out = append(out, s)
		if e := g.alts[s.alt]; s.next < len(e) && e[s.next] == "**" {
			states = append(states, globState{s.alt, s.next + 1})
		}
	}
	return out
}

// advance are the states after one more element called name. Those in a "**"
// do not go through a symbolic link.
func (g *globber) advance(states []globState, name string, link bool) []globState {
	var out []globState
	for _, s := range states {
		e := g.alts[s.alt]
		switch {
		case s.next == len(e):
		case e[s.next] == "**":
			if !link {
				out = append(out, s)
			} else if s.next == len(e)-1 {
				out = append(out, globState{s.alt, len(e)}) // the link itself matches
			}
		default:
			if ok, err := doublestar.Match(e[s.next], name); err == nil && ok {
				out = append(out, globState{s.alt, s.next + 1})
			}
		}
	}
	if len(out) == 0 {
		return nil
	}
	return g.close(out)
}

// matched reports whether the path that led to the states is one of the
// pattern's; dirOnly, whether only as a directory (a slash ends the pattern).
func (g *globber) matched(states []globState) (ok, dirOnly bool) {
	dirOnly = true
	for _, s := range states {
		e := g.alts[s.alt]
		if s.next == len(e) {
			ok, dirOnly = true, false
		} else if s.next == len(e)-1 && e[s.next] == "" {
			ok = true
		}
	}
	return ok, ok && dirOnly
}

// open reports whether anything below can match.
func (g *globber) open(states []globState) bool {
	for _, s := range states {
		if e := g.alts[s.alt]; s.next < len(e) && e[s.next] != "" {
			return true
		}
	}
	return false
}

// descend looks at what is in dir, of which the paths shown begin with prefix.
func (g *globber) descend(dir, prefix string, states []globState, rules *ignoreRules) {
	if g.more || g.ctx.Err() != nil {
		return
	}
	if names := g.literal(states); names != nil {
		g.lookup(dir, prefix, states, names, rules)
		return
	}
	entries, err := g.fs.ReadDir(dir)
	if err != nil {
		return // it cannot be read, or is no directory: nothing matches in it
	}
	if g.req.Ignore {
		rules = rules.in(g.fs, dir, g.rel(prefix), entries)
	}
	next := make(map[string][]globState)
	kept := entries[:0]
	for _, e := range entries {
		link := e.Type&fs.ModeSymlink != 0
		if s := g.advance(states, e.Name, link); s != nil {
			next[e.Name] = s
			kept = append(kept, e)
		}
	}
	all := steps(kept, func(e DirEntry) bool {
		return g.open(next[e.Name]) && (e.Type.IsDir() || e.Type&fs.ModeSymlink != 0)
	})
	for _, s := range all {
		g.take(s, dir, prefix, next[s.Name], rules)
	}
}

// rel is the path, relative to the top, that a prefix stands for.
func (g *globber) rel(prefix string) string { return strings.Trim(prefix, "/") }

// take shows or enters one name.
func (g *globber) take(s step, dir, prefix string, states []globState, rules *ignoreRules) {
	if g.more {
		return
	}
	isDir := s.Type.IsDir()
	if g.req.Ignore && (s.Name == ".git" && isDir || rules.ignored(g.rel(prefix+s.Name), isDir)) {
		return
	}
	if s.enter {
		g.descend(Join(dir, s.Name), prefix+s.Name+"/", states, rules)
		return
	}
	ok, dirOnly := g.matched(states)
	if !ok || isDir && g.req.FilesOnly {
		return
	}
	shown := prefix + s.Name
	if dirOnly {
		if info, err := g.fs.Stat(Join(dir, s.Name), true); err != nil || !info.Mode.IsDir() {
			return
		}
		shown += "/"
	}
	if len(g.found) == g.limit {
		g.more = true
		return
	}
	g.found = append(g.found, shown)
}

// literal are the names that alone can match next, where all states say one;
// nil where the directory must be read.
func (g *globber) literal(states []globState) []string {
	var names []string
	for _, s := range states {
		e := g.alts[s.alt]
		if s.next == len(e) || e[s.next] == "" {
			continue
		}
		if e[s.next] == "**" || hasMeta(e[s.next]) {
			return nil
		}
		names = append(names, e[s.next])
	}
	if g.req.Ignore {
		return nil // the .gitignore of each directory must be seen
	}
	return names
}

// lookup is descend where only some names can match.
func (g *globber) lookup(dir, prefix string, states []globState, names []string, rules *ignoreRules) {
	var entries []DirEntry
	seen := make(map[string]bool)
	next := make(map[string][]globState)
	for _, name := range names {
		if seen[name] {
			continue
		}
		seen[name] = true
		info, err := g.fs.Stat(Join(dir, name), false)
		if err != nil {
			continue
		}
		if s := g.advance(states, name, info.Mode&fs.ModeSymlink != 0); s != nil {
			next[name] = s
			entries = append(entries, DirEntry{name, typeBits(info.Mode)})
		}
	}
	for _, s := range steps(entries, func(e DirEntry) bool {
		return g.open(next[e.Name]) && (e.Type.IsDir() || e.Type&fs.ModeSymlink != 0)
	}) {
		g.take(s, dir, prefix, next[s.Name], rules)
	}
}

func hasMeta(s string) bool { return strings.ContainsAny(s, `*?[{\`) }

// parseGlob checks a pattern and returns the elements of each alternative.
func parseGlob(p string) ([][]string, error) {
	bad := func(at int, format string, args ...any) error {
		e := sandbox.Errorf(sandbox.InvalidPattern, "glob", p, format, args...)
		e.Offset = at
		return e
	}
	switch i := strings.IndexByte(p, 0); {
	case p == "":
		return nil, bad(0, "the pattern is empty")
	case len(p) > maxPattern:
		return nil, bad(maxPattern, "the pattern has %d bytes; up to %d are possible", len(p), maxPattern)
	case i >= 0:
		return nil, bad(i, "the pattern has a NUL byte at offset %d", i)
	case !doublestar.ValidatePattern(p):
		at := firstBad(p)
		return nil, bad(at, "the pattern does not parse at offset %d: expected closed brackets and braces, and no backslash at the end", at)
	}
	if i := invalidUTF8(p); i >= 0 {
		return nil, bad(i, "the pattern is not UTF-8 at offset %d", i)
	}
	alts, ok := expandBraces(p, nil)
	if !ok {
		return nil, bad(0, "the pattern has more than %d alternatives", maxAlternatives)
	}
	out := make([][]string, 0, len(alts))
	for _, a := range alts {
		elems, at := splitElements(a)
		if at >= 0 {
			return nil, bad(max(strings.Index(p, "."), 0), "\".\" and \"..\" can only stand before the first meta character")
		}
		if len(elems) > 0 {
			out = append(out, elems)
		}
	}
	return out, nil
}

// splitElements cuts an alternative at its slashes. An element "" at the end
// stands for a slash there. at is the index of a "." or ".." that cannot stand
// where it does, or -1.
func splitElements(a string) (elems []string, at int) {
	meta := false
	parts := strings.Split(strings.TrimLeft(a, "/"), "/")
	for i, e := range parts {
		switch {
		case e == "" && i < len(parts)-1, e == "." && !meta:
			continue
		case meta && (e == "." || e == ".."):
			return nil, i
		}
		meta = meta || hasMeta(e)
		elems = append(elems, e)
	}
	return elems, -1
}

// firstBad is the offset of what makes a pattern wrong: the longest prefix that
// could still become right ends there.
func firstBad(p string) int {
	for i := range len(p) {
		open := p[i] == '[' || p[i] == '{' || p[i] == '}' || p[i] == '\\'
		if open && !doublestar.ValidatePattern(p[:i+1]) && !doublestar.ValidatePattern(p[:i+1]+"a]") &&
			!doublestar.ValidatePattern(p[:i+1]+"}") && !doublestar.ValidatePattern(p[:i+1]+"a") {
			return i
		}
	}
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] == '[' || p[i] == '{' || p[i] == '\\' {
			return i
		}
	}
	return 0
}

// expandBraces expands the alternatives of a valid pattern; false where there
// are too many.
func expandBraces(p string, out []string) ([]string, bool) {
	start, end, commas := firstBrace(p)
	if start < 0 {
		return append(out, p), len(out) < maxAlternatives
	}
	from := start + 1
	for _, to := range append(commas, end) {
		var ok bool
		if out, ok = expandBraces(p[:start]+p[from:to]+p[end+1:], out); !ok {
			return nil, false
		}
		from = to + 1
	}
	return out, true
}

// firstBrace finds the first braces of p and the commas in them; start is -1
// where there are none.
func firstBrace(p string) (start, end int, commas []int) {
	depth, class := 0, false
	start = -1
	for i := 0; i < len(p); i++ {
		switch c := p[i]; {
		case c == '\\':
			i++
		case class:
			class = c != ']'
		case c == '[':
			class = true
			// A class may begin with a bracket that is meant.
			if i+1 < len(p) && (p[i+1] == '!' || p[i+1] == '^') {
				i++
			}
			if i+1 < len(p) && p[i+1] == ']' {
				i++
			}
		case c == '{':
			if depth++; depth == 1 {
				start = i
			}
		case c == '}' && depth > 0:
			if depth--; depth == 0 {
				return start, i, commas
			}
		case c == ',' && depth == 1:
			commas = append(commas, i)
		}
	}
	return -1, 0, nil
}
