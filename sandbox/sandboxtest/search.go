package sandboxtest

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/galleyfs/galley/sandbox"
)

func statCases(*suite) []testCase {
	var out []testCase
	for _, s := range []struct {
		name, path string
		noFollow   bool
		kind       fs.FileMode
		size       int64
		target     string
	}{
		{"file", "text.txt", false, 0, 24, ""}, {"directory", "dir", false, fs.ModeDir, -1, ""},
		{"link followed", "link", false, 0, 24, ""}, {"link itself", "link", true, fs.ModeSymlink, -1, "text.txt"},
		{"dead link itself", "dead", true, fs.ModeSymlink, -1, "nowhere"}, {"loop itself", "loop", true, fs.ModeSymlink, -1, "loop"},
		{"root", "/", false, fs.ModeDir, -1, ""}, {"dot", ".", false, fs.ModeDir, -1, ""},
		{"above the root", "/../../..", false, fs.ModeDir, -1, ""}, {"directory link with a slash", "dirlink/", true, fs.ModeDir, -1, ""},
	} {
		out = append(out, testCase{s.name, func(c *tc) {
			info, err := c.sb.Stat(c.ctx, sandbox.StatRequest{Path: s.path, NoFollow: s.noFollow})
			c.ok(err)
			if info.Mode.Type() != s.kind || s.size >= 0 && info.Size != s.size || info.Target != s.target {
				c.Errorf("info %+v", info)
			}
			if !strings.HasPrefix(info.Path, "/") || info.ModTime.IsZero() || info.Nlink == 0 {
				c.Errorf("info %+v lacks its path, time or links", info)
			}
		}})
	}
	return append(out,
		testCase{"mode", func(c *tc) {
			info, err := c.sb.Stat(c.ctx, sandbox.StatRequest{Path: "dir/b.txt"})
			c.ok(err)
			if info.Mode != 0o600 {
				c.Errorf("mode %v", info.Mode)
			}
		}},
		testCase{"hard links share an inode", func(c *tc) {
			c.write(c.in("a"), "x")
			c.bash("ln " + c.in("a") + " " + c.in("b"))
			a, err := c.sb.Stat(c.ctx, sandbox.StatRequest{Path: c.in("a")})
			c.ok(err)
			b, err := c.sb.Stat(c.ctx, sandbox.StatRequest{Path: c.in("b")})
			c.ok(err)
			if a.Ino != b.Ino || a.Nlink != 2 {
				c.Errorf("%+v, %+v", a, b)
			}
		}},
		testCase{"file with a slash", func(c *tc) {
			_, err := c.sb.Stat(c.ctx, sandbox.StatRequest{Path: "text.txt/"})
			c.wantCode(err, sandbox.NotDirectory)
		}},
	)
}

func listCases(*suite) []testCase {
	names := func(r sandbox.ListResult) []string {
		out := []string{}
		for _, e := range r.Entries {
			out = append(out, e.Name())
		}
		return out
	}
	var out []testCase
	for _, l := range []struct {
		name      string
		req       sandbox.ListRequest
		want      []string
		truncated bool
	}{
		{"directory", sandbox.ListRequest{Path: "dir"}, []string{".hidden", "a.go", "b.go", "b.txt", "sub", "up"}, false},
		{"through a link", sandbox.ListRequest{Path: "dirlink"}, []string{".hidden", "a.go", "b.go", "b.txt", "sub", "up"}, false},
		{"empty", sandbox.ListRequest{Path: "emptydir"}, []string{}, false},
		{"limit", sandbox.ListRequest{Path: "dir", Limit: 2}, []string{".hidden", "a.go"}, true},
		{"limit that suffices", sandbox.ListRequest{Path: "dir", Limit: 6}, []string{".hidden", "a.go", "b.go", "b.txt", "sub", "up"}, false},
	} {
		out = append(out, testCase{l.name, func(c *tc) {
			r, err := c.sb.List(c.ctx, l.req)
			c.ok(err)
			if d := cmp.Diff(l.want, names(r)); d != "" || r.Truncated != l.truncated {
				c.Errorf("truncated %v, entries (-want +got):\n%s", r.Truncated, d)
			}
		}})
	}
	return append(out,
		testCase{"entries are not followed", func(c *tc) {
			r, err := c.sb.List(c.ctx, sandbox.ListRequest{Path: "dir"})
			c.ok(err)
			last := r.Entries[len(r.Entries)-1]
			if last.Mode.Type() != fs.ModeSymlink || last.Target != "../text.txt" || !strings.HasSuffix(last.Path, "/dir/up") {
				c.Errorf("entry %+v", last)
			}
		}},
		testCase{"working directory by default", func(c *tc) {
			r, err := c.sb.List(c.ctx, sandbox.ListRequest{})
			c.ok(err)
			if !strings.Contains(strings.Join(names(r), "\n"), "text.txt") {
				c.Errorf("entries %v", names(r))
			}
		}},
		testCase{"file", func(c *tc) {
			_, err := c.sb.List(c.ctx, sandbox.ListRequest{Path: "text.txt"})
			c.wantCode(err, sandbox.NotDirectory)
		}},
		testCase{"negative limit", func(c *tc) {
			_, err := c.sb.List(c.ctx, sandbox.ListRequest{Limit: -1})
			c.wantCode(err, sandbox.Invalid)
		}},
	)
}

func globCases(*suite) []testCase {
	var out []testCase
	for _, g := range []struct {
		name      string
		req       sandbox.GlobRequest
		want      []string
		truncated bool
	}{
		{"star", sandbox.GlobRequest{Pattern: "*.txt", Dir: "dir"}, []string{"b.txt"}, false},
		{"star takes dotfiles", sandbox.GlobRequest{Pattern: "*", Dir: "dir"}, []string{".hidden", "a.go", "b.go", "b.txt", "sub", "up"}, false},
		{"star stops at a slash", sandbox.GlobRequest{Pattern: "dir/*.go"}, []string{"dir/a.go", "dir/b.go"}, false},
		{"two stars", sandbox.GlobRequest{Pattern: "dir/**/*.go"}, []string{"dir/a.go", "dir/b.go", "dir/sub/deep.go"}, false},
		{"two stars at the end", sandbox.GlobRequest{Pattern: "dir/sub/**"}, []string{"dir/sub", "dir/sub/deep.go", "dir/sub/more", "dir/sub/more/x.md"}, false},
		{"two stars first", sandbox.GlobRequest{Pattern: "**/x.md"}, []string{"dir/sub/more/x.md"}, false},
		{"question mark", sandbox.GlobRequest{Pattern: "dir/?.go"}, []string{"dir/a.go", "dir/b.go"}, false},
		{"class", sandbox.GlobRequest{Pattern: "dir/[b-z].go"}, []string{"dir/b.go"}, false},
		{"negated class", sandbox.GlobRequest{Pattern: "dir/[!b].go"}, []string{"dir/a.go"}, false},
		{"negated class, other form", sandbox.GlobRequest{Pattern: "dir/[^b].go"}, []string{"dir/a.go"}, false},
		{"alternatives", sandbox.GlobRequest{Pattern: "dir/{a,b}.{go,txt}"}, []string{"dir/a.go", "dir/b.go", "dir/b.txt"}, false},
		{"alternatives with slashes", sandbox.GlobRequest{Pattern: "{dir/sub/*.go,dir-x/y.go}"}, []string{"dir-x/y.go", "dir/sub/deep.go"}, false},
		{"an alternative twice", sandbox.GlobRequest{Pattern: "dir/{a,a,?}.go"}, []string{"dir/a.go", "dir/b.go"}, false},
		{"order of whole paths", sandbox.GlobRequest{Pattern: "dir*/*.go"}, []string{"dir-x/y.go", "dir/a.go", "dir/b.go", "dirlink/a.go", "dirlink/b.go"}, false},
		{"escaped", sandbox.GlobRequest{Pattern: `\[br\]/*`}, []string{"[br]/{c}.txt"}, false},
		{"spaces", sandbox.GlobRequest{Pattern: "sp ace/*"}, []string{"sp ace/na me.txt"}, false},
		{"no meta character", sandbox.GlobRequest{Pattern: "dir/a.go"}, []string{"dir/a.go"}, false},
		{"nothing", sandbox.GlobRequest{Pattern: "*.none"}, []string{}, false},
		{"nothing in a directory that is missing", sandbox.GlobRequest{Pattern: "missing/*"}, []string{}, false},
		{"below a file", sandbox.GlobRequest{Pattern: "text.txt/*"}, []string{}, false},
		{"a link by its own name", sandbox.GlobRequest{Pattern: "dea[d]"}, []string{"dead"}, false},
		{"a named link is entered", sandbox.GlobRequest{Pattern: "dirlink/*.txt"}, []string{"dirlink/b.txt"}, false},
		{"two stars do not enter links", sandbox.GlobRequest{Pattern: "**/b.txt"}, []string{"dir/b.txt"}, false},
		{"dot dot first", sandbox.GlobRequest{Pattern: "../*/b.txt", Dir: "dir/sub"}, []string{}, false},
		{"dot dot to a neighbour", sandbox.GlobRequest{Pattern: "../a.*", Dir: "dir/sub"}, []string{"../a.go"}, false},
		{"slash at the end takes directories", sandbox.GlobRequest{Pattern: "dir/*/"}, []string{"dir/sub/"}, false},
		{"files only", sandbox.GlobRequest{Pattern: "dir/sub/**", FilesOnly: true}, []string{"dir/sub/deep.go", "dir/sub/more/x.md"}, false},
		{"limit", sandbox.GlobRequest{Pattern: "dir/*", Limit: 2}, []string{"dir/.hidden", "dir/a.go"}, true},
		{"limit that suffices", sandbox.GlobRequest{Pattern: "dir/*.go", Limit: 2}, []string{"dir/a.go", "dir/b.go"}, false},
		{"ignore", sandbox.GlobRequest{Pattern: "**", Dir: "ignored", Ignore: true}, []string{".gitignore", "a.txt", "keep.log", "sub", "sub/build", "sub/build/in"}, false},
		{"without ignore", sandbox.GlobRequest{Pattern: "*.log", Dir: "ignored"}, []string{"a.log", "keep.log"}, false},
	} {
		out = append(out, testCase{g.name, func(c *tc) {
			r, err := c.sb.Glob(c.ctx, g.req)
			c.ok(err)
			if d := cmp.Diff(g.want, r.Paths); d != "" || r.Truncated != g.truncated {
				c.Errorf("truncated %v, paths (-want +got):\n%s", r.Truncated, d)
			}
		}})
	}
	for _, g := range []struct {
		name, pattern string
		offset        int
	}{
		{"empty", "", 0}, {"open class", "dir/[a-", 4}, {"open brace", "a{b,c", 1}, {"backslash at the end", `ab\`, 2}, {"NUL", "a\x00", 1},
		{"not UTF-8", "a\xff", 1}, {"too long", strings.Repeat("a", 5000), 4096}, {"dot dot after a star", "*/../x", -2},
	} {
		out = append(out, testCase{"bad: " + g.name, func(c *tc) {
			_, err := c.sb.Glob(c.ctx, sandbox.GlobRequest{Pattern: g.pattern})
			if c.wantCode(err, sandbox.InvalidPattern) && g.offset >= 0 {
				c.wantOffset(err, g.offset)
			}
		}})
	}
	return append(out,
		testCase{"absolute", func(c *tc) {
			r, err := c.sb.Glob(c.ctx, sandbox.GlobRequest{Pattern: c.abs("dir/*.txt")})
			c.ok(err)
			if d := cmp.Diff([]string{c.abs("dir/b.txt")}, r.Paths); d != "" {
				c.Errorf("(-want +got):\n%s", d)
			}
		}},
		testCase{"bad directory", func(c *tc) {
			_, err := c.sb.Glob(c.ctx, sandbox.GlobRequest{Pattern: "*", Dir: "text.txt"})
			c.wantCode(err, sandbox.NotDirectory)
		}},
		testCase{"bad limit", func(c *tc) {
			_, err := c.sb.Glob(c.ctx, sandbox.GlobRequest{Pattern: "*", Limit: -1})
			c.wantCode(err, sandbox.Invalid)
		}},
	)
}

func grepCases(*suite) []testCase {
	var out []testCase
	for _, g := range []struct {
		name string
		req  sandbox.GrepRequest
		want string // matches as path:line:text, context with "-"
	}{
		{"file", sandbox.GrepRequest{Pattern: "t", Path: "text.txt"}, "text.txt:2:two|text.txt:3:three"},
		{"literal", sandbox.GrepRequest{Pattern: "a.go", Path: "dir", Literal: true}, ""},
		{"directory", sandbox.GrepRequest{Pattern: "needle", Path: "dir"},
			"dir/.hidden:1:needle hidden|dir/b.go:3:// needle here|dir/b.txt:1:needle in text|dir/sub/deep.go:1:package deep // needle|dir/sub/more/x.md:1:# needle"},
		{"subdirectory", sandbox.GrepRequest{Pattern: "needle", Path: "dir/sub"}, "dir/sub/deep.go:1:package deep // needle|dir/sub/more/x.md:1:# needle"},
		{"directory through a link", sandbox.GrepRequest{Pattern: "needle", Path: "dirlink/sub/more"}, "dir/sub/more/x.md:1:# needle"},
		{"ignore case", sandbox.GrepRequest{Pattern: "NEEDLE", Path: "dir", Glob: "*.go", IgnoreCase: true},
			"dir/a.go:3:func Needle() {}|dir/b.go:3:// needle here|dir/sub/deep.go:1:package deep // needle"},
		{"case", sandbox.GrepRequest{Pattern: "Needle", Path: "dir"}, "dir/a.go:3:func Needle() {}"},
		{"glob of names", sandbox.GrepRequest{Pattern: "needle", Path: "dir", Glob: "*.md"}, "dir/sub/more/x.md:1:# needle"},
		{"glob of paths", sandbox.GrepRequest{Pattern: "needle", Path: "dir", Glob: "sub/*"}, "dir/sub/deep.go:1:package deep // needle"},
		{"glob of any depth", sandbox.GrepRequest{Pattern: "package", Path: ".", Glob: "dir*/**/*.{go}"},
			"dir-x/y.go:1:package y|dir/a.go:1:package a|dir/b.go:1:package b|dir/sub/deep.go:1:package deep // needle"},
		{"alternation", sandbox.GrepRequest{Pattern: "one|five", Path: "text.txt"}, "text.txt:1:one|text.txt:5:five"},
		{"anchors are of lines", sandbox.GrepRequest{Pattern: "^t.*e$", Path: "text.txt"}, "text.txt:3:three"},
		{"empty lines", sandbox.GrepRequest{Pattern: "^$", Path: "dir/a.go"}, "dir/a.go:2:"},
		{"before", sandbox.GrepRequest{Pattern: "three", Path: "text.txt", Before: 1}, "text.txt-2-two|text.txt:3:three"},
		{"after", sandbox.GrepRequest{Pattern: "three", Path: "text.txt", After: 1}, "text.txt:3:three|text.txt-4-four"},
		{"context does not repeat", sandbox.GrepRequest{Pattern: "two|three", Path: "text.txt", Before: 1, After: 1}, "text.txt-1-one|text.txt:2:two|text.txt:3:three|text.txt-4-four"},
		{"context at the ends", sandbox.GrepRequest{Pattern: "one|five", Path: "text.txt", Before: 9, After: 1}, "text.txt:1:one|text.txt-2-two|text.txt-3-three|text.txt-4-four|text.txt:5:five"},
		{"last line without end", sandbox.GrepRequest{Pattern: "last", Path: "nofinal.txt"}, "nofinal.txt:2:last"},
		{"CR is not shown", sandbox.GrepRequest{Pattern: "two", Path: "crlf.txt"}, "crlf.txt:2:two"},
		{"UTF-8", sandbox.GrepRequest{Pattern: "w.rld", Path: "utf8.txt"}, "utf8.txt:1:héllo wörld"},
		{"not UTF-8", sandbox.GrepRequest{Pattern: "two", Path: "latin1.txt"}, "latin1.txt:2:caf\xe9 two"},
		{"binary is passed over", sandbox.GrepRequest{Pattern: "needle", Glob: "*.bin"}, ""},
		{"binary when named", sandbox.GrepRequest{Pattern: "needle", Path: "binary.bin"}, "binary.bin:1:PNG\x00\x01\x02needle\x00"},
		{"binary when asked for", sandbox.GrepRequest{Pattern: "needle", Glob: "*.bin", Binary: true}, "binary.bin:1:PNG\x00\x01\x02needle\x00"},
		{"files only", sandbox.GrepRequest{Pattern: "package|needle", Path: "dir/sub", FilesOnly: true}, "dir/sub/deep.go:1:package deep // needle|dir/sub/more/x.md:1:# needle"},
		{"links are not followed", sandbox.GrepRequest{Pattern: "one", Path: "dir"}, ""},
		{"ignore", sandbox.GrepRequest{Pattern: "needle", Path: "ignored", Ignore: true}, "ignored/a.txt:1:needle|ignored/keep.log:1:needle|ignored/sub/build/in:1:needle"},
		{"no match", sandbox.GrepRequest{Pattern: "nowhere to be found", Path: "dir"}, ""},
		{"class that has the line end", sandbox.GrepRequest{Pattern: "one[^x]", Path: "text.txt"}, ""},
	} {
		out = append(out, testCase{g.name, func(c *tc) {
			r, err := c.sb.Grep(c.ctx, g.req)
			c.ok(err)
			if got := shownMatches(c, r); got != g.want || r.Truncated {
				c.Errorf("truncated %v, matches\n%s\nwant\n%s", r.Truncated, strings.ReplaceAll(got, "|", "\n"), strings.ReplaceAll(g.want, "|", "\n"))
			}
		}})
	}
	for _, g := range []struct {
		name   string
		req    sandbox.GrepRequest
		code   sandbox.Code
		offset int
	}{
		{"empty", sandbox.GrepRequest{}, sandbox.InvalidPattern, 0},
		{"open group", sandbox.GrepRequest{Pattern: "ab(c"}, sandbox.InvalidPattern, -2},
		{"open class", sandbox.GrepRequest{Pattern: "ab[c"}, sandbox.InvalidPattern, 2},
		{"bad repeat", sandbox.GrepRequest{Pattern: "a**"}, sandbox.InvalidPattern, 1},
		{"look-ahead", sandbox.GrepRequest{Pattern: "x(?=a)"}, sandbox.InvalidPattern, 1},
		{"back-reference", sandbox.GrepRequest{Pattern: `(a)\1`}, sandbox.InvalidPattern, 3},
		{"line end", sandbox.GrepRequest{Pattern: "a\nb"}, sandbox.InvalidPattern, 1},
		{"NUL", sandbox.GrepRequest{Pattern: "a\x00b"}, sandbox.InvalidPattern, 1},
		{"not UTF-8", sandbox.GrepRequest{Pattern: "a\xff"}, sandbox.InvalidPattern, 1},
		{"glob", sandbox.GrepRequest{Pattern: "a", Glob: "x["}, sandbox.InvalidPattern, 1},
		{"too much context", sandbox.GrepRequest{Pattern: "a", Before: 101}, sandbox.Invalid, -2},
		{"negative context", sandbox.GrepRequest{Pattern: "a", After: -1}, sandbox.Invalid, -2},
		{"negative limit", sandbox.GrepRequest{Pattern: "a", Limit: -1}, sandbox.Invalid, -2},
	} {
		out = append(out, testCase{"bad: " + g.name, func(c *tc) {
			_, err := c.sb.Grep(c.ctx, g.req)
			if c.wantCode(err, g.code) && g.offset >= 0 {
				c.wantOffset(err, g.offset)
			}
		}})
	}
	return append(out,
		testCase{"limit", func(c *tc) {
			r, err := c.sb.Grep(c.ctx, sandbox.GrepRequest{Pattern: "needle", Path: "dir", Limit: 2})
			c.ok(err)
			if got := shownMatches(c, r); got != "dir/.hidden:1:needle hidden|dir/b.go:3:// needle here" || !r.Truncated || r.Count != 2 {
				c.Errorf("truncated %v, count %d, %s", r.Truncated, r.Count, got)
			}
		}},
		testCase{"limit that suffices", func(c *tc) {
			r, err := c.sb.Grep(c.ctx, sandbox.GrepRequest{Pattern: "needle", Path: "dir/sub", Limit: 2})
			c.ok(err)
			if r.Truncated || r.Count != 2 {
				c.Errorf("truncated %v, count %d", r.Truncated, r.Count)
			}
		}},
		testCase{"count only", func(c *tc) {
			r, err := c.sb.Grep(c.ctx, sandbox.GrepRequest{Pattern: "e", Path: "text.txt", CountOnly: true, Limit: 1})
			c.ok(err)
			if r.Count != 3 || len(r.Matches) != 0 || len(r.Files) != 1 || r.Files[0].Count != 3 {
				c.Errorf("%+v", r)
			}
		}},
		testCase{"column", func(c *tc) {
			r, err := c.sb.Grep(c.ctx, sandbox.GrepRequest{Pattern: "needle", Path: "dir/b.go"})
			c.ok(err)
			if len(r.Matches) != 1 || r.Matches[0].Column != 4 {
				c.Errorf("%+v", r.Matches)
			}
		}},
		testCase{"a long line is cut where the match is", func(c *tc) {
			r, err := c.sb.Grep(c.ctx, sandbox.GrepRequest{Pattern: "needle", Path: "long.txt"})
			c.ok(err)
			if len(r.Matches) != 2 || !r.Matches[0].Cut || r.Matches[1].Cut || len(r.Matches[0].Text) > sandbox.MaxLine ||
				!strings.Contains(string(r.Matches[0].Text), "needle") || r.Matches[0].Column != 5001 {
				c.Errorf("%+.300v", r.Matches)
			}
		}},
		testCase{"searched", func(c *tc) {
			r, err := c.sb.Grep(c.ctx, sandbox.GrepRequest{Pattern: "x", Path: "dir/sub"})
			c.ok(err)
			if r.Searched != 2 {
				c.Errorf("searched %d files, want 2", r.Searched)
			}
		}},
		testCase{"many files", func(c *tc) {
			c.bash(fmt.Sprintf("mkdir -p %[1]s; for i in $(seq 100 399); do echo \"line $i\" > %[1]s/$i; done", c.dir))
			r, err := c.sb.Grep(c.ctx, sandbox.GrepRequest{Pattern: "line .(0|5)$", Path: c.dir, Limit: 500})
			c.ok(err)
			if r.Count != 0 || r.Searched != 300 {
				c.Errorf("count %d, searched %d", r.Count, r.Searched)
			}
			r, err = c.sb.Grep(c.ctx, sandbox.GrepRequest{Pattern: "line", Path: c.dir, Limit: 50})
			c.ok(err)
			if len(r.Matches) != 50 || string(r.Matches[0].Text) != "line 100" || string(r.Matches[49].Text) != "line 149" {
				c.Errorf("%d matches, the first %s", len(r.Matches), r.Matches[0].Text)
			}
		}},
	)
}

// shownMatches writes matches as grep would, relative to the working directory.
func shownMatches(c *tc, r sandbox.GrepResult) string {
	var out []string
	for _, m := range r.Matches {
		sep := ":"
		if m.Context {
			sep = "-"
		}
		out = append(out, fmt.Sprintf("%s%s%d%s%s", strings.TrimPrefix(m.Path, c.s.info.Workdir+"/"), sep, m.Line, sep, m.Text))
	}
	return strings.Join(out, "|")
}
