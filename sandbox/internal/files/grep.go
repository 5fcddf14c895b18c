package files

import (
	"context"
	"path"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/galleyfs/galley/sandbox"
)

const (
	// maxContext bounds the lines of context of a match.
	maxContext = 100
	// ahead is how many directories, or parts of them, may be searched before
	// their turn comes.
	ahead = 32
)

func itoa(n int) string { return strconv.Itoa(n) }

// Grep is [sandbox.Sandbox.Grep].
func (o *Ops) Grep(ctx context.Context, r sandbox.GrepRequest) (sandbox.GrepResult, error) {
	g, err := o.newGrep(r)
	if err != nil {
		return sandbox.GrepResult{}, err
	}
	top, err := o.absOr("grep", r.Path)
	if err != nil {
		return g.out, err
	}
	info, err := o.fs.Stat(top, true)
	if err != nil {
		return g.out, sandbox.Wrap("grep", r.Path, err)
	}
	if top, err = o.fs.Real(top); err != nil {
		return g.out, sandbox.Wrap("grep", r.Path, err)
	}
	switch {
	case info.Mode.IsDir():
		g.tree(ctx, top)
	case info.Mode.IsRegular():
		f, err := o.fs.Open(top)
		if err != nil {
			return g.out, sandbox.Wrap("grep", r.Path, err)
		}
		s := g.search(ctx, top, f, true)
		if s.err != nil {
			return g.out, sandbox.Wrap("grep", r.Path, s.err)
		}
		g.add(s)
	default:
		return g.out, sandbox.Errorf(sandbox.NotSupported, "grep", r.Path, "it is %s, neither a directory nor a regular file", kindOf(info.Mode))
	}
	if err := ctx.Err(); err != nil {
		return g.out, sandbox.Wrap("grep", r.Path, err)
	}
	return g.out, nil
}

// grep is one search.
type grep struct {
	fs    FS
	req   sandbox.GrepRequest
	m     *matcher
	limit int
	out   sandbox.GrepResult
}

func (o *Ops) newGrep(r sandbox.GrepRequest) (*grep, error) {
	g := &grep{fs: o.fs, req: r, out: sandbox.GrepResult{Matches: []sandbox.GrepMatch{}}}
	var err error
	if i := strings.IndexByte(r.Pattern, 0); r.Pattern == "" || i >= 0 {
		e := sandbox.Errorf(sandbox.InvalidPattern, "grep", r.Pattern, "the pattern is empty or has a NUL byte")
		e.Offset = max(i, 0)
		return nil, e
	}
	if i := invalidUTF8(r.Pattern); i >= 0 {
		e := sandbox.Errorf(sandbox.InvalidPattern, "grep", "", "the pattern is not UTF-8 at offset %d", i)
		e.Offset = i
		return nil, e
	}
	if g.limit, err = limitOf("grep", "limit", r.Limit, sandbox.GrepLimit, sandbox.MaxGrep); err != nil {
		return nil, err
	}
	for name, n := range map[string]int{"before": r.Before, "after": r.After} {
		if n < 0 || n > maxContext {
			return nil, sandbox.Errorf(sandbox.Invalid, "grep", "", "%s is %d; expected 0 to %d lines", name, n, maxContext)
		}
	}
	if r.Glob != "" && !doublestar.ValidatePattern(r.Glob) {
		e := sandbox.Errorf(sandbox.InvalidPattern, "grep", r.Glob, "the glob does not parse at offset %d", firstBad(r.Glob))
		e.Offset = firstBad(r.Glob)
		return nil, e
	}
	if r.FilesOnly {
		g.req.Before, g.req.After = 0, 0
	}
	if g.m, err = newMatcher(r); err != nil {
		return nil, err
	}
	return g, nil
}

// selected reports whether the glob of the request takes the file, whose path
// relative to the top is rel.
func (g *grep) selected(rel string) bool {
	switch p := g.req.Glob; {
	case p == "":
		return true
	case !strings.Contains(p, "/"):
		ok, err := doublestar.Match(p, path.Base(rel))
		return err == nil && ok
	default:
		ok, err := doublestar.Match(strings.TrimPrefix(p, "/"), rel)
		return err == nil && ok
	}
}

// found is what one file has.
type found struct {
	path    string
	matches []sandbox.GrepMatch
	count   int
	binary  bool
	err     error
}

// tree searches all files beneath top, several at once, and takes what they
// have in the order of their paths until there is enough.
func (g *grep) tree(ctx context.Context, top string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type job struct {
		dir   *heldDir
		names []string
		done  chan []found
	}
	queue := make(chan job, ahead) // in order, for the one who takes
	work := make(chan job, ahead)
	var searching sync.WaitGroup
	for range max(runtime.GOMAXPROCS(0), 4) {
		searching.Go(func() {
			for j := range work {
				j.done <- g.searchAll(ctx, j.dir, j.names)
			}
		})
	}
	w := &walker{ctx: ctx, fs: g.fs, ignore: g.req.Ignore, want: g.selected}
	w.visit = func(dir *heldDir, names []string) bool {
		j := job{dir, names, make(chan []found, 1)}
		for _, c := range []chan job{work, queue} {
			select {
			case c <- j:
			case <-ctx.Done():
				if c == work {
					dir.release()
				}
				return false
			}
		}
		return true
	}
	go func() {
		w.walk(top, "", nil)
		close(work)
		searching.Wait()
		close(queue)
	}()
	for j := range queue {
		select {
		case all := <-j.done:
			for _, s := range all {
				if ctx.Err() == nil && !g.add(s) {
					cancel()
				}
			}
		case <-ctx.Done():
		}
	}
	g.out.Unreadable += w.unreadable
}

// searchAll looks into files of one directory, which it then releases.
func (g *grep) searchAll(ctx context.Context, dir *heldDir, names []string) []found {
	defer dir.release()
	out := make([]found, 0, len(names))
	for _, name := range names {
		s := found{path: Join(dir.path, name)}
		f, err := dir.open(name)
		if err != nil {
			s.err = err
		} else {
			s = g.search(ctx, s.path, f, false)
		}
		out = append(out, s)
	}
	return out
}

// add takes what a file has, the next in order; false is enough.
func (g *grep) add(s found) bool {
	switch {
	case s.err != nil:
		g.out.Unreadable++
		return true
	case s.binary:
		return true
	}
	g.out.Searched++
	if s.count == 0 {
		return true
	}
	if g.req.CountOnly {
		g.out.Count += s.count
		g.out.Files = append(g.out.Files, sandbox.GrepCount{Path: s.path, Count: s.count})
		return true
	}
	for i, m := range s.matches {
		if !m.Context {
			if g.out.Count == g.limit {
				g.out.Truncated = true
				s.matches = s.matches[:i]
				break
			}
			g.out.Count++
		}
	}
	g.out.Matches = append(g.out.Matches, trimContext(s.matches, g.out.Truncated, g.req.After)...)
	return !g.out.Truncated
}

// trimContext cuts the context that belongs to a match which was cut off: of
// the lines after the last match only those that are its own.
func trimContext(m []sandbox.GrepMatch, truncated bool, after int) []sandbox.GrepMatch {
	if !truncated {
		return m
	}
	last := len(m)
	for last > 0 && m[last-1].Context {
		last--
	}
	if last == 0 {
		return nil // all of it was before the match that was cut off
	}
	end := last
	for end < len(m) && m[end].Line <= m[last-1].Line+after {
		end++
	}
	return m[:end]
}
