package sandboxtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/galleyfs/galley/sandbox"
)

// lackCases test what a sandbox may lack: either it is there, or it is declared
// and answered as such.
func lackCases(s *suite) []testCase {
	has := s.info.Has
	return []testCase{
		{"terminal", func(c *tc) {
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "test -t 0 && test -t 1 && stty size", PTY: &sandbox.Terminal{Rows: 33, Cols: 99}})
			if !has(sandbox.PTY) {
				c.wantCode(err, sandbox.NotSupported)
				return
			}
			c.ok(err)
			if strings.TrimSpace(string(r.Output)) != "33 99" {
				c.Errorf("%q", r.Output)
			}
		}},
		{"terminal's type", func(c *tc) {
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "echo $TERM", PTY: &sandbox.Terminal{}})
			if !has(sandbox.PTY) {
				c.wantCode(err, sandbox.NotSupported)
				return
			}
			c.ok(err)
			if strings.TrimSpace(string(r.Output)) != "xterm-256color" {
				c.Errorf("%q", r.Output)
			}
		}},
		{"resize", func(c *tc) {
			if !has(sandbox.PTY) {
				p := c.start(sandbox.BashRequest{Command: "sleep 600"})
				c.wantCode(p.Resize(10, 20), sandbox.NotSupported)
				return
			}
			p := c.start(sandbox.BashRequest{Command: "trap 'stty size; exit' WINCH; echo up; while :; do sleep 0.02; done", PTY: &sandbox.Terminal{}})
			c.poll(p, "up")
			c.ok(p.Resize(10, 20))
			if got, _ := c.poll(p, "10 20"); !strings.Contains(got, "10 20") {
				c.Errorf("%q", got)
			}
		}},
		{"terminal's input", func(c *tc) {
			if !has(sandbox.PTY) {
				_, err := c.sb.Start(c.ctx, sandbox.BashRequest{Command: "cat", PTY: &sandbox.Terminal{}})
				c.wantCode(err, sandbox.NotSupported)
				return
			}
			p := c.start(sandbox.BashRequest{Command: "read x; echo got-$x", PTY: &sandbox.Terminal{}})
			c.ok(p.Write(c.ctx, []byte("word\n")))
			if got, _ := c.poll(p, "got-word"); !strings.Contains(got, "got-word") {
				c.Errorf("%q", got)
			}
		}},
		{"terminal's interrupt", func(c *tc) {
			if !has(sandbox.PTY) {
				_, err := c.sb.Start(c.ctx, sandbox.BashRequest{Command: "cat", PTY: &sandbox.Terminal{}})
				c.wantCode(err, sandbox.NotSupported)
				return
			}
			p := c.start(sandbox.BashRequest{Command: "trap 'echo caught; exit 9' INT; echo up; while :; do sleep 0.02; done", PTY: &sandbox.Terminal{}})
			c.poll(p, "up")
			c.ok(p.Write(c.ctx, []byte{3}))
			r, err := p.Wait(c.ctx)
			c.ok(err)
			if r.ExitCode != 9 || !strings.Contains(string(r.Output), "caught") {
				c.Errorf("%+v", r)
			}
		}},
		{"signal", func(c *tc) {
			p := c.start(sandbox.BashRequest{Command: "trap 'echo caught; exit 8' USR1; echo up; while :; do sleep 0.02; done"})
			c.poll(p, "up")
			err := p.Signal(syscall.SIGUSR1)
			if !has(sandbox.Signals) {
				c.wantCode(err, sandbox.NotSupported)
				return
			}
			c.ok(err)
			r, err := p.Wait(c.ctx)
			c.ok(err)
			if r.ExitCode != 8 || !strings.Contains(string(r.Output), "caught") {
				c.Errorf("%+v", r)
			}
		}},
		{"binaries", func(c *tc) {
			if !has(sandbox.Binaries) {
				// A program that no sandbox brings along.
				r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "/usr/bin/ldd --version"})
				c.ok(err)
				if r.ExitCode != 127 && r.ExitCode != 126 {
					c.Errorf("%+v", r)
				}
				return
			}
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "/bin/sh -c 'echo ran'"})
			c.ok(err)
			if string(r.Output) != "ran\n" {
				c.Errorf("%+v", r)
			}
		}},
		{"scripts", func(c *tc) {
			if !has(sandbox.Binaries) {
				return
			}
			if got := c.bash("sed -i s/run/ran/ exec.sh; ./exec.sh"); got != "ran\n" {
				c.Errorf("%q", got)
			}
		}},
		{"what detaches itself is ended", func(c *tc) {
			if !has(sandbox.Binaries) {
				return
			}
			c.write(c.in("x"), "")
			c.bash("setsid sh -c '(sleep 1; echo late > " + c.in("late") + ") >/dev/null 2>&1 &' </dev/null")
			c.bash("sleep 2")
			_, err := c.sb.Stat(c.ctx, sandbox.StatRequest{Path: c.in("late")})
			c.wantCode(err, sandbox.NotFound)
		}},
		{"a FIFO is not read", func(c *tc) {
			if !has(sandbox.Binaries) {
				return
			}
			c.write(c.in("x"), "")
			c.bash("mkfifo " + c.in("fifo"))
			_, err := c.sb.Read(c.ctx, sandbox.ReadRequest{Path: c.in("fifo")})
			c.wantCode(err, sandbox.NotSupported)
		}},
	}
}

func concurrencyCases(*suite) []testCase {
	return []testCase{
		{"a long command delays nothing", func(c *tc) {
			p := c.start(sandbox.BashRequest{Command: "echo up; sleep 600"})
			c.poll(p, "up\n")
			c.wantFile("text.txt", fixtures["text.txt"])
			c.write(c.in("f"), "x")
			if got := c.bash("echo second"); got != "second\n" {
				c.Errorf("%q", got)
			}
			_, err := c.sb.Grep(c.ctx, sandbox.GrepRequest{Pattern: "needle"})
			c.ok(err)
		}},
		{"many commands at once", func(c *tc) {
			var all sync.WaitGroup
			for i := range 8 {
				all.Go(func() {
					r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: fmt.Sprintf("echo %d", i)})
					if err != nil || string(r.Output) != fmt.Sprintf("%d\n", i) {
						c.Errorf("%d: %q, %v", i, r.Output, err)
					}
				})
			}
			all.Wait()
		}},
		{"many calls on files at once", func(c *tc) {
			var all sync.WaitGroup
			for i := range 100 {
				all.Go(func() {
					name := c.in(fmt.Sprintf("f%d", i))
					if _, err := c.sb.Write(c.ctx, sandbox.WriteRequest{Path: name, Content: []byte(name)}); err != nil {
						c.Error(err)
					}
					r, err := c.sb.Read(c.ctx, sandbox.ReadRequest{Path: name})
					if err != nil || string(r.Content) != name {
						c.Errorf("%s: %q, %v", name, r.Content, err)
					}
				})
			}
			all.Wait()
		}},
		{"no edit is lost", func(c *tc) {
			var lines []string
			for i := range 20 {
				lines = append(lines, fmt.Sprintf("line-%02d-old", i))
			}
			c.write(c.in("f"), strings.Join(lines, "\n"))
			var all sync.WaitGroup
			for i := range 20 {
				all.Go(func() {
					old := fmt.Sprintf("line-%02d-old", i)
					_, err := c.sb.Edit(c.ctx, sandbox.EditRequest{Path: c.in("f"), Old: []byte(old), New: []byte(strings.Replace(old, "old", "new", 1))})
					if err != nil {
						c.Error(err)
					}
				})
			}
			all.Wait()
			c.wantFile(c.in("f"), strings.ReplaceAll(strings.Join(lines, "\n"), "old", "new"))
		}},
		{"a write is never seen in part", func(c *tc) {
			a, b := strings.Repeat("a", 1<<18), strings.Repeat("b", 1<<18)
			c.write(c.in("f"), a)
			var writing sync.WaitGroup
			writing.Go(func() {
				for i := range 10 {
					if _, err := c.sb.Write(c.ctx, sandbox.WriteRequest{Path: c.in("f"), Content: []byte([]string{a, b}[i%2])}); err != nil {
						c.Error(err)
					}
				}
			})
			for range 20 {
				r, err := c.sb.Read(c.ctx, sandbox.ReadRequest{Path: c.in("f")})
				if err != nil {
					c.Error(err)
				} else if got := string(r.Content); got != a && got != b {
					c.Errorf("a part: %s", short(got))
				}
			}
			writing.Wait()
		}},
	}
}

func mountCases(s *suite) []testCase {
	host := func(c *tc) string {
		dir := filepath.Join(c.s.top, strings.ReplaceAll(c.dir, "/", "-"))
		if err := os.MkdirAll(filepath.Join(dir, "in"), 0o755); err != nil {
			c.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "in", "f"), []byte("of the host\n"), 0o644); err != nil {
			c.Fatal(err)
		}
		return dir
	}
	var out []testCase
	for _, m := range []struct {
		name string
		path func(c *tc) string
	}{
		{"at the top", func(c *tc) string { return "/galley-mount-" + strings.ReplaceAll(c.dir, "/", "-") }},
		{"deep at the top", func(c *tc) string { return "/galley-deep-" + strings.ReplaceAll(c.dir, "/", "-") + "/a/b" }},
		{"where the host has no directory", func(c *tc) string { return "/usr/galley-" + strings.ReplaceAll(c.dir, "/", "-") + "/m" }},
		{"in the temporary directory", func(c *tc) string { return c.s.info.TempDir + "/mnt/" + c.dir }},
		{"in the working directory", func(c *tc) string { return c.abs(c.dir) + "/mnt" }},
	} {
		out = append(out, testCase{"read-only " + m.name, func(c *tc) {
			r, err := c.sb.Mount(c.ctx, sandbox.MountRequest{Host: host(c), Path: m.path(c)})
			c.ok(err)
			if r.Path != m.path(c) || r.Tree != "" {
				c.Errorf("%+v", r)
			}
			c.wantFile(m.path(c)+"/in/f", "of the host\n")
			if got := c.bash("cat " + m.path(c) + "/in/f"); got != "of the host\n" {
				c.Errorf("%q", got)
			}
			_, err = c.sb.Write(c.ctx, sandbox.WriteRequest{Path: m.path(c) + "/in/f", Content: []byte("x")})
			c.wantCode(err, sandbox.ReadOnly)
			g, err := c.sb.Grep(c.ctx, sandbox.GrepRequest{Pattern: "host", Path: m.path(c)})
			c.ok(err)
			if g.Count != 1 {
				c.Errorf("%+v", g)
			}
		}})
	}
	return append(out,
		testCase{"copy-on-write", func(c *tc) {
			dir := host(c)
			p := c.s.info.TempDir + "/cow/" + c.dir
			r, err := c.sb.Mount(c.ctx, sandbox.MountRequest{Host: dir, Path: p, Write: true})
			c.ok(err)
			if r.Tree == "" {
				c.Errorf("%+v", r)
			}
			c.write(p+"/in/f", "changed\n")
			if got := c.bash("cat " + p + "/in/f; echo new > " + p + "/g; cat " + p + "/g"); got != "changed\nnew\n" {
				c.Errorf("%q", got)
			}
			b, err := os.ReadFile(filepath.Join(dir, "in", "f"))
			if err != nil || string(b) != "of the host\n" {
				c.Errorf("the host has %q, %v", b, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "g")); err == nil {
				c.Error("a new file reached the host")
			}
		}},
		testCase{"seen by a command that runs", func(c *tc) {
			path := c.s.info.TempDir + "/live/" + c.dir
			p := c.start(sandbox.BashRequest{Command: "echo up; until cat " + path + "/in/f 2>/dev/null; do sleep 0.02; done"})
			c.poll(p, "up\n")
			_, err := c.sb.Mount(c.ctx, sandbox.MountRequest{Host: host(c), Path: path})
			c.ok(err)
			if got, _ := c.poll(p, "of the host\n"); !strings.Contains(got, "of the host\n") {
				c.Errorf("%q", got)
			}
		}},
		testCase{"missing directory", func(c *tc) {
			_, err := c.sb.Mount(c.ctx, sandbox.MountRequest{Host: c.s.top + "/missing", Path: "/mnt/x"})
			c.wantCode(err, sandbox.NotFound)
		}},
		testCase{"a file", func(c *tc) {
			_, err := c.sb.Mount(c.ctx, sandbox.MountRequest{Host: c.s.top + "/base/text.txt", Path: "/mnt/x"})
			c.wantCode(err, sandbox.NotDirectory)
		}},
		testCase{"relative", func(c *tc) {
			_, err := c.sb.Mount(c.ctx, sandbox.MountRequest{Host: "base", Path: "/mnt/x"})
			c.wantCode(err, sandbox.Invalid)
			_, err = c.sb.Mount(c.ctx, sandbox.MountRequest{Host: c.s.top, Path: "mnt/x"})
			c.wantCode(err, sandbox.Invalid)
		}},
		testCase{"NUL", func(c *tc) {
			_, err := c.sb.Mount(c.ctx, sandbox.MountRequest{Host: c.s.top, Path: "/m\x00"})
			c.wantCode(err, sandbox.Invalid)
		}},
		testCase{"over the root", func(c *tc) {
			_, err := c.sb.Mount(c.ctx, sandbox.MountRequest{Host: c.s.top, Path: "/"})
			c.wantCode(err, sandbox.Invalid)
		}},
		testCase{"over a file", func(c *tc) {
			_, err := c.sb.Mount(c.ctx, sandbox.MountRequest{Host: host(c), Path: c.abs("text.txt")})
			c.wantCode(err, sandbox.NotDirectory)
		}},
		testCase{"twice at one path", func(c *tc) {
			path := c.s.info.TempDir + "/twice/" + c.dir
			_, err := c.sb.Mount(c.ctx, sandbox.MountRequest{Host: host(c), Path: path})
			c.ok(err)
			_, err = c.sb.Mount(c.ctx, sandbox.MountRequest{Host: host(c), Path: path})
			c.wantCode(err, sandbox.Exists)
		}},
	)
}
