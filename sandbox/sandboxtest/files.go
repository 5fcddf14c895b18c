package sandboxtest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"strings"

	"github.com/galleyfs/galley/sandbox"
)

func infoCases(*suite) []testCase {
	return []testCase{
		{"kind", func(c *tc) {
			if c.s.info.Kind != c.s.h.Kind {
				c.Errorf("kind %q, want %q", c.s.info.Kind, c.s.h.Kind)
			}
		}},
		{"workdir is absolute", func(c *tc) {
			if !strings.HasPrefix(c.s.info.Workdir, "/") {
				c.Errorf("%q", c.s.info.Workdir)
			}
		}},
		{"temp dir can be written to", func(c *tc) {
			c.write(c.s.info.TempDir+"/galley-suite", "x")
			c.wantFile(c.s.info.TempDir+"/galley-suite", "x")
		}},
		{"network is known", func(c *tc) {
			if n := c.s.info.Network; n != "host" && n != "none" {
				c.Errorf("network %q", n)
			}
		}},
		{"only the virtual sandbox lacks anything", func(c *tc) {
			if len(c.s.info.Lacks) > 0 && c.s.info.Kind != "virtual" {
				c.Errorf("%s lacks %v", c.s.info.Kind, c.s.info.Lacks)
			}
		}},
	}
}

// call is a method that takes a path, for cases that all of them share.
type call struct {
	name string
	do   func(c *tc, p string) error
}

var pathCalls = []call{
	{"read", func(c *tc, p string) error { _, err := c.sb.Read(c.ctx, sandbox.ReadRequest{Path: p}); return err }},
	{"write", func(c *tc, p string) error {
		_, err := c.sb.Write(c.ctx, sandbox.WriteRequest{Path: p, Content: []byte("x")})
		return err
	}},
	{"edit", func(c *tc, p string) error {
		_, err := c.sb.Edit(c.ctx, sandbox.EditRequest{Path: p, Old: []byte("a"), New: []byte("b")})
		return err
	}},
	{"stat", func(c *tc, p string) error { _, err := c.sb.Stat(c.ctx, sandbox.StatRequest{Path: p}); return err }},
	{"list", func(c *tc, p string) error { _, err := c.sb.List(c.ctx, sandbox.ListRequest{Path: p}); return err }},
	{"glob", func(c *tc, p string) error {
		_, err := c.sb.Glob(c.ctx, sandbox.GlobRequest{Pattern: "*", Dir: p})
		return err
	}},
	{"grep", func(c *tc, p string) error {
		_, err := c.sb.Grep(c.ctx, sandbox.GrepRequest{Pattern: "x", Path: p})
		return err
	}},
	{"bash", func(c *tc, p string) error {
		_, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "true", Dir: p})
		return err
	}},
}

// pathCases are what every method answers to the same bad path.
func pathCases(*suite) []testCase {
	var out []testCase
	for _, bad := range []struct {
		name, path string
		offset     int
	}{
		{"NUL", "te\x00xt", 2}, {"invalid UTF-8", "caf\xe9", 3}, {"NUL first", "\x00", 0}, {"cut UTF-8", "a\xe2\x82", 1},
	} {
		for _, call := range pathCalls {
			out = append(out, testCase{call.name + " " + bad.name, func(c *tc) {
				if err := call.do(c, bad.path); c.wantCode(err, sandbox.Invalid) {
					c.wantOffset(err, bad.offset)
				}
			}})
		}
	}
	for _, bad := range []struct {
		name, path string
		code       sandbox.Code
	}{
		{"missing", "no/such/path", sandbox.NotFound}, {"below a file", "text.txt/x", sandbox.NotDirectory},
		{"loop", "loop", sandbox.Loop}, {"dead link", "dead", sandbox.NotFound}, {"name too long", strings.Repeat("n", 300), sandbox.Invalid},
	} {
		for _, call := range pathCalls {
			if call.name == "write" && (bad.name == "missing" || bad.name == "dead link") {
				continue // it makes what is missing
			}
			out = append(out, testCase{call.name + " " + bad.name, func(c *tc) { c.wantCode(call.do(c, bad.path), bad.code) }})
		}
	}
	for _, name := range []string{"read", "write", "edit", "stat"} {
		out = append(out, testCase{name + " empty path", func(c *tc) {
			for _, call := range pathCalls {
				if call.name == name {
					c.wantCode(call.do(c, ""), sandbox.Invalid)
				}
			}
		}})
	}
	return out
}

func readCases(*suite) []testCase {
	text := fixtures["text.txt"]
	var out []testCase
	for _, r := range []struct {
		name       string
		req        sandbox.ReadRequest
		want       string
		first, all int
		truncated  bool
	}{
		{"whole", sandbox.ReadRequest{Path: "text.txt"}, text, 1, 5, false},
		{"empty", sandbox.ReadRequest{Path: "empty.txt"}, "", 1, 0, false},
		{"no final line end", sandbox.ReadRequest{Path: "nofinal.txt"}, "first\nlast", 1, 2, false},
		{"through a link", sandbox.ReadRequest{Path: "link"}, text, 1, 5, false},
		{"through a directory link", sandbox.ReadRequest{Path: "dirlink/b.txt"}, "needle in text\n", 1, 1, false},
		{"through a chain of links", sandbox.ReadRequest{Path: "chain1"}, text, 1, 5, false},
		{"dot dot", sandbox.ReadRequest{Path: "dir/../text.txt"}, text, 1, 5, false},
		{"dot dot after a link", sandbox.ReadRequest{Path: "dirlink/sub/../b.txt"}, "needle in text\n", 1, 1, false},
		{"slashes and dots", sandbox.ReadRequest{Path: ".//dir/.//b.txt"}, "needle in text\n", 1, 1, false},
		{"spaces", sandbox.ReadRequest{Path: "sp ace/na me.txt"}, "spaces\n", 1, 1, false},
		{"brackets", sandbox.ReadRequest{Path: "[br]/{c}.txt"}, "brackets\n", 1, 1, false},
		{"leading dash", sandbox.ReadRequest{Path: "-dash"}, "dash\n", 1, 1, false},
		{"bytes that are not UTF-8", sandbox.ReadRequest{Path: "latin1.txt"}, fixtures["latin1.txt"], 1, 2, false},
		{"UTF-8", sandbox.ReadRequest{Path: "utf8.txt"}, fixtures["utf8.txt"], 1, 2, false},
		{"binary", sandbox.ReadRequest{Path: "binary.bin"}, fixtures["binary.bin"], 1, 1, false},
		{"CR LF stays", sandbox.ReadRequest{Path: "crlf.txt"}, fixtures["crlf.txt"], 1, 3, false},
		{"offset 1", sandbox.ReadRequest{Path: "text.txt", Offset: 1}, text, 1, 5, false},
		{"offset", sandbox.ReadRequest{Path: "text.txt", Offset: 4}, "four\nfive\n", 4, 5, false},
		{"limit", sandbox.ReadRequest{Path: "text.txt", Limit: 2}, "one\ntwo\n", 1, 5, false},
		{"offset and limit", sandbox.ReadRequest{Path: "text.txt", Offset: 2, Limit: 2}, "two\nthree\n", 2, 5, false},
		{"limit past the end", sandbox.ReadRequest{Path: "text.txt", Offset: 5, Limit: 9}, "five\n", 5, 5, false},
		{"offset past the end", sandbox.ReadRequest{Path: "text.txt", Offset: 6}, "", 6, 5, false},
		{"last line without end", sandbox.ReadRequest{Path: "nofinal.txt", Offset: 2}, "last", 2, 2, false},
		{"max bytes", sandbox.ReadRequest{Path: "text.txt", MaxBytes: 6}, "one\ntw", 1, 5, true},
		{"max bytes enough", sandbox.ReadRequest{Path: "text.txt", MaxBytes: 24}, text, 1, 5, false},
		{"max bytes after an offset", sandbox.ReadRequest{Path: "text.txt", Offset: 3, MaxBytes: 3}, "thr", 3, 5, true},
	} {
		out = append(out, testCase{r.name, func(c *tc) {
			got, err := c.sb.Read(c.ctx, r.req)
			c.ok(err)
			if string(got.Content) != r.want || got.FirstLine != r.first || got.TotalLines != r.all || got.Truncated != r.truncated {
				c.Errorf("got %q, line %d of %d, truncated %v\nwant %q, line %d of %d, truncated %v",
					got.Content, got.FirstLine, got.TotalLines, got.Truncated, r.want, r.first, r.all, r.truncated)
			}
			if n := strings.Count(r.want, "\n"); got.LineCount != n && got.LineCount != n+1 {
				c.Errorf("line count %d of %q", got.LineCount, r.want)
			}
		}})
	}
	for _, r := range []struct {
		name string
		req  sandbox.ReadRequest
		code sandbox.Code
	}{
		{"directory", sandbox.ReadRequest{Path: "dir"}, sandbox.IsDirectory},
		{"directory through a link", sandbox.ReadRequest{Path: "dirlink"}, sandbox.IsDirectory},
		{"root", sandbox.ReadRequest{Path: "/"}, sandbox.IsDirectory},
		{"negative offset", sandbox.ReadRequest{Path: "text.txt", Offset: -1}, sandbox.Invalid},
		{"negative limit", sandbox.ReadRequest{Path: "text.txt", Limit: -1}, sandbox.Invalid},
		{"too many bytes", sandbox.ReadRequest{Path: "text.txt", MaxBytes: sandbox.MaxRead + 1}, sandbox.Invalid},
	} {
		out = append(out, testCase{r.name, func(c *tc) { _, err := c.sb.Read(c.ctx, r.req); c.wantCode(err, r.code) }})
	}
	return append(out,
		testCase{"digest", func(c *tc) {
			got, err := c.sb.Read(c.ctx, sandbox.ReadRequest{Path: "text.txt", Limit: 1})
			c.ok(err)
			if want := digest(text); got.Digest != want {
				c.Errorf("digest %s, want that of the whole file, %s", got.Digest, want)
			}
		}},
		testCase{"absolute path in the outcome", func(c *tc) {
			got, err := c.sb.Read(c.ctx, sandbox.ReadRequest{Path: c.abs("text.txt")})
			c.ok(err)
			if !strings.HasSuffix(got.Info.Path, "/text.txt") || got.Info.Size != int64(len(text)) {
				c.Errorf("info %+v", got.Info)
			}
		}},
	)
}

func digest(s string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(s))) }

func writeCases(*suite) []testCase {
	var out []testCase
	for _, w := range []struct{ name, path, content string }{
		{"new file", "new.txt", "hello\n"}, {"empty", "e", ""}, {"parents", "p/q/r/s.txt", "deep"}, {"spaces", "a b/c d", "x"},
		{"not UTF-8", "bytes", "\xff\xfe\x00"}, {"a megabyte", "big", strings.Repeat("0123456789abcdef", 1<<16)},
		{"name of a glob", "[x]*?", "x"}, {"unicode name", "ünïcode", "x"},
	} {
		out = append(out, testCase{w.name, func(c *tc) {
			r, err := c.sb.Write(c.ctx, sandbox.WriteRequest{Path: c.in(w.path), Content: []byte(w.content)})
			c.ok(err)
			if !r.Created || r.Bytes != len(w.content) || r.Digest != digest(w.content) {
				c.Errorf("result %+v", r)
			}
			c.wantFile(c.in(w.path), w.content)
		}})
	}
	for _, w := range []struct {
		name string
		req  sandbox.WriteRequest
		code sandbox.Code
	}{
		{"over a directory", sandbox.WriteRequest{Path: "dir"}, sandbox.IsDirectory},
		{"with a slash at the end", sandbox.WriteRequest{Path: "new/"}, sandbox.IsDirectory},
		{"parent is a file", sandbox.WriteRequest{Path: "text.txt/a/b"}, sandbox.NotDirectory},
		{"new where there is a file", sandbox.WriteRequest{Path: "text.txt", New: true}, sandbox.Exists},
		{"new where there is a dead link", sandbox.WriteRequest{Path: "dead", New: true}, sandbox.Exists},
		{"wrong digest", sandbox.WriteRequest{Path: "text.txt", Digest: digest("other")}, sandbox.Stale},
		{"digest of no file", sandbox.WriteRequest{Path: "no-such-file", Digest: digest("other")}, sandbox.Stale},
		{"mode with more than permissions", sandbox.WriteRequest{Path: "x", Mode: fs.ModeSetuid | 0o755}, sandbox.Invalid},
	} {
		out = append(out, testCase{w.name, func(c *tc) {
			_, err := c.sb.Write(c.ctx, w.req)
			c.wantCode(err, w.code)
			c.wantFile("text.txt", fixtures["text.txt"])
		}})
	}
	return append(out,
		testCase{"overwrite keeps the mode", func(c *tc) {
			_, err := c.sb.Write(c.ctx, sandbox.WriteRequest{Path: c.in("f"), Content: []byte("1"), Mode: 0o751})
			c.ok(err)
			r, err := c.sb.Write(c.ctx, sandbox.WriteRequest{Path: c.in("f"), Content: []byte("2"), Mode: 0o600})
			c.ok(err)
			info, err := c.sb.Stat(c.ctx, sandbox.StatRequest{Path: c.in("f")})
			c.ok(err)
			if r.Created || info.Mode.Perm() != 0o751&info.Mode.Perm() || info.Mode.Perm()&0o700 != 0o700 {
				c.Errorf("created %v, mode %v", r.Created, info.Mode)
			}
			c.wantFile(c.in("f"), "2")
		}},
		testCase{"a link stays a link", func(c *tc) {
			c.write(c.in("target"), "old")
			c.bash("ln -s target " + c.in("l"))
			c.write(c.in("l"), "new")
			c.wantFile(c.in("target"), "new")
			info, err := c.sb.Stat(c.ctx, sandbox.StatRequest{Path: c.in("l"), NoFollow: true})
			c.ok(err)
			if info.Target != "target" {
				c.Errorf("the link is now %+v", info)
			}
		}},
		testCase{"a dead link makes its target", func(c *tc) {
			c.write(c.in("x"), "")
			c.bash("ln -s made " + c.in("l"))
			c.write(c.in("l"), "new")
			c.wantFile(c.in("made"), "new")
		}},
		testCase{"a file of the base", func(c *tc) {
			c.write("nofinal.txt", "changed")
			c.wantFile("nofinal.txt", "changed")
			c.write("nofinal.txt", fixtures["nofinal.txt"])
		}},
		testCase{"right digest", func(c *tc) {
			c.write(c.in("f"), "1")
			_, err := c.sb.Write(c.ctx, sandbox.WriteRequest{Path: c.in("f"), Content: []byte("2"), Digest: digest("1")})
			c.ok(err)
			c.wantFile(c.in("f"), "2")
		}},
		testCase{"stale for the client that read it", func(c *tc) {
			c.write(c.in("f"), "1")
			_, err := c.sb.Read(c.ctx, sandbox.ReadRequest{Path: c.in("f"), Client: "one"})
			c.ok(err)
			c.bash("printf 2 > " + c.in("f"))
			_, err = c.sb.Write(c.ctx, sandbox.WriteRequest{Path: c.in("f"), Content: []byte("3"), Client: "one"})
			c.wantCode(err, sandbox.Stale)
			_, err = c.sb.Write(c.ctx, sandbox.WriteRequest{Path: c.in("f"), Content: []byte("4"), Client: "two"})
			c.wantCode(err, "")
			c.wantFile(c.in("f"), "4")
		}},
		testCase{"own writes are not stale", func(c *tc) {
			for i := range 3 {
				_, err := c.sb.Write(c.ctx, sandbox.WriteRequest{Path: c.in("f"), Content: []byte{byte('0' + i)}, Client: "one"})
				c.wantCode(err, "")
			}
		}},
		testCase{"a failed write leaves no parents", func(c *tc) {
			_, err := c.sb.Write(c.ctx, sandbox.WriteRequest{Path: c.in("a/b/c"), Digest: digest("1")})
			c.wantCode(err, sandbox.Stale)
			_, err = c.sb.Stat(c.ctx, sandbox.StatRequest{Path: c.in("a")})
			c.wantCode(err, sandbox.NotFound)
		}},
		testCase{"nothing else in the directory", func(c *tc) {
			c.write(c.in("f"), "1")
			c.write(c.in("f"), "2")
			r, err := c.sb.List(c.ctx, sandbox.ListRequest{Path: c.dir})
			c.ok(err)
			if len(r.Entries) != 1 {
				c.Errorf("entries %+v", r.Entries)
			}
		}},
	)
}

func editCases(*suite) []testCase {
	var out []testCase
	for _, e := range []struct {
		name, content, old, new string
		all                     bool
		code                    sandbox.Code
		count, line             int
		want                    string
	}{
		{"once", "a\nb\nc\n", "b", "B", false, "", 1, 2, "a\nB\nc\n"},
		{"over lines", "a\nb\nc\n", "a\nb", "x", false, "", 1, 1, "x\nc\n"},
		{"to nothing", "abc", "b", "", false, "", 1, 1, "ac"},
		{"the whole", "abc", "abc", "x", false, "", 1, 1, "x"},
		{"grows", "abc", "b", "bbbbbbbb", false, "", 1, 1, "abbbbbbbbc"},
		{"not there", "abc", "x", "y", false, sandbox.NoMatch, 0, 0, "abc"},
		{"twice", "b a b", "b", "x", false, sandbox.Ambiguous, 2, 1, "b a b"},
		{"all", "b a b", "b", "x", true, "", 2, 1, "x a x"},
		{"all of none", "abc", "x", "y", true, sandbox.NoMatch, 0, 0, "abc"},
		{"occurrences do not overlap", "aaaa", "aa", "b", true, "", 2, 1, "bb"},
		{"overlapping is ambiguous", "aaaa", "aa", "b", false, sandbox.Ambiguous, 2, 1, "aaaa"},
		{"empty old", "abc", "", "y", false, sandbox.Invalid, 0, 0, "abc"},
		{"same", "abc", "b", "b", false, sandbox.Invalid, 0, 0, "abc"},
		{"not UTF-8 around it", "caf\xe9 b \xff", "b", "x", false, "", 1, 1, "caf\xe9 x \xff"},
		{"not UTF-8 itself", "caf\xe9", "\xe9", "e", false, "", 1, 1, "cafe"},
		{"CR LF stays", "a\r\nb\r\n", "b", "x", false, "", 1, 2, "a\r\nx\r\n"},
		{"CR LF asked for as LF", "a\r\nb\r\n", "a\nb", "x", false, sandbox.NoMatch, 0, 0, "a\r\nb\r\n"},
		{"dollar and backslash are plain", "a b", "b", "$1\\1${x}&", false, "", 1, 1, "a $1\\1${x}&"},
		{"not a pattern", "a.c abc", ".", "!", false, "", 1, 1, "a!c abc"},
		{"binary", "a\x00b", "b", "x", false, sandbox.Binary, 0, 0, "a\x00b"},
		{"no final line end", "a\nb", "b", "c", false, "", 1, 2, "a\nc"},
		{"empty file", "", "a", "b", false, sandbox.NoMatch, 0, 0, ""},
	} {
		out = append(out, testCase{e.name, func(c *tc) {
			c.write(c.in("f"), e.content)
			r, err := c.sb.Edit(c.ctx, sandbox.EditRequest{Path: c.in("f"), Old: []byte(e.old), New: []byte(e.new), All: e.all})
			c.wantCode(err, e.code)
			if r.Count != e.count || r.Line != e.line {
				c.Errorf("count %d, line %d, want %d, %d", r.Count, r.Line, e.count, e.line)
			}
			if e.code == "" && (r.Digest != digest(e.want) || string(r.After) != e.want || string(r.Before) != e.content) {
				c.Errorf("result %+v", r)
			}
			if (e.code == sandbox.NoMatch || e.code == sandbox.Ambiguous) && !bytes.Equal(r.After, []byte(e.content)) {
				c.Errorf("the content that comes with %s is %q", e.code, r.After)
			}
			c.wantFile(c.in("f"), e.want)
		}})
	}
	edit := func(c *tc, client, digest, old, new string) error {
		_, err := c.sb.Edit(c.ctx, sandbox.EditRequest{Path: c.in("f"), Old: []byte(old), New: []byte(new), Client: client, Digest: digest})
		return err
	}
	return append(out,
		testCase{"directory", func(c *tc) {
			_, err := c.sb.Edit(c.ctx, sandbox.EditRequest{Path: "dir", Old: []byte("a"), New: []byte("b")})
			c.wantCode(err, sandbox.IsDirectory)
		}},
		testCase{"digest", func(c *tc) {
			c.write(c.in("f"), "abc")
			c.wantCode(edit(c, "", digest("other"), "b", "x"), sandbox.Stale)
			c.wantFile(c.in("f"), "abc")
			c.wantCode(edit(c, "", digest("abc"), "b", "x"), "")
		}},
		testCase{"stale", func(c *tc) {
			c.write(c.in("f"), "abc")
			_, err := c.sb.Read(c.ctx, sandbox.ReadRequest{Path: c.in("f"), Client: "one"})
			c.ok(err)
			c.bash("printf abd > " + c.in("f"))
			c.wantCode(edit(c, "one", "", "b", "x"), sandbox.Stale)
			c.wantFile(c.in("f"), "abd")
			_, err = c.sb.Read(c.ctx, sandbox.ReadRequest{Path: c.in("f"), Client: "one"})
			c.ok(err)
			c.wantCode(edit(c, "one", "", "b", "x"), "")
		}},
		testCase{"stale after another client's edit", func(c *tc) {
			c.write(c.in("f"), "abc")
			_, err := c.sb.Read(c.ctx, sandbox.ReadRequest{Path: c.in("f"), Client: "one"})
			c.ok(err)
			c.wantCode(edit(c, "two", "", "a", "x"), "")
			c.wantCode(edit(c, "one", "", "b", "y"), sandbox.Stale)
		}},
		testCase{"rewritten with the same content is not stale", func(c *tc) {
			c.write(c.in("f"), "abc")
			_, err := c.sb.Read(c.ctx, sandbox.ReadRequest{Path: c.in("f"), Client: "one"})
			c.ok(err)
			c.bash("printf abc > " + c.in("f"))
			c.wantCode(edit(c, "one", "", "b", "x"), "")
		}},
		testCase{"one after the other", func(c *tc) {
			c.write(c.in("f"), "abc")
			c.wantCode(edit(c, "one", "", "a", "x"), "")
			c.wantCode(edit(c, "one", "", "b", "y"), "")
			c.wantFile(c.in("f"), "xyc")
		}},
		testCase{"keeps the mode", func(c *tc) {
			_, err := c.sb.Edit(c.ctx, sandbox.EditRequest{Path: "exec.sh", Old: []byte("ran"), New: []byte("run")})
			c.ok(err)
			info, err := c.sb.Stat(c.ctx, sandbox.StatRequest{Path: "exec.sh"})
			c.ok(err)
			if info.Mode.Perm() != 0o755 {
				c.Errorf("mode %v", info.Mode)
			}
		}},
		testCase{"through a link", func(c *tc) {
			c.write(c.in("f"), "abc")
			c.bash("ln -s f " + c.in("l"))
			r, err := c.sb.Edit(c.ctx, sandbox.EditRequest{Path: c.in("l"), Old: []byte("b"), New: []byte("x")})
			c.ok(err)
			if !strings.HasSuffix(r.Path, "/f") {
				c.Errorf("path %s", r.Path)
			}
			c.wantFile(c.in("f"), "axc")
		}},
	)
}
