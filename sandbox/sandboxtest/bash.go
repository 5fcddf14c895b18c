package sandboxtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/galleyfs/galley/sandbox"
)

// viewCases check that the calls on files and commands see one view, also where
// a path leads out of the working directory.
func viewCases(*suite) []testCase {
	var out []testCase
	for _, p := range []string{
		"text.txt", "dead", "abroad", "proc", "/etc/hostname", "/galley-no-such-file", "../base/text.txt", "..//../../../../../etc/passwd",
		"dir/up", "dirlink/../dir/b.txt", "/proc/self/root/galley-no-such-file",
	} {
		out = append(out, testCase{"read is cat: " + p, func(c *tc) {
			r, rerr := c.sb.Read(c.ctx, sandbox.ReadRequest{Path: p})
			b, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "cat '" + p + "'", Separate: true})
			c.ok(err)
			if (rerr == nil) != (b.ExitCode == 0) || string(r.Content) != string(b.Stdout) {
				c.Errorf("Read: %q, %v\ncat: %q, status %d", short(string(r.Content)), rerr, short(string(b.Stdout)), b.ExitCode)
			}
		}})
	}
	return append(out,
		testCase{"a command sees a write at once", func(c *tc) {
			c.write(c.in("f"), "written")
			if got := c.bash("cat " + c.in("f")); got != "written" {
				c.Errorf("%q", got)
			}
		}},
		testCase{"a read sees a command's write at once", func(c *tc) {
			for i := range 5 {
				c.bash(fmt.Sprintf("mkdir -p %s; echo %d > %s", c.dir, i, c.in("f")))
				c.wantFile(c.in("f"), fmt.Sprintf("%d\n", i))
			}
		}},
		testCase{"a removal is seen", func(c *tc) {
			c.write(c.in("f"), "x")
			c.bash("rm " + c.in("f"))
			_, err := c.sb.Read(c.ctx, sandbox.ReadRequest{Path: c.in("f")})
			c.wantCode(err, sandbox.NotFound)
		}},
		testCase{"the secret beside the base is out of reach by dot dot", func(c *tc) {
			secret := filepath.Join(c.s.top, "secret")
			if err := os.WriteFile(secret, []byte("secret of the host"), 0o600); err != nil {
				c.Fatal(err)
			}
			r, err := c.sb.Read(c.ctx, sandbox.ReadRequest{Path: "../secret"})
			b, berr := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "cat ../secret", Separate: true})
			c.ok(berr)
			if string(r.Content) != string(b.Stdout) || (err == nil) != (b.ExitCode == 0) {
				c.Errorf("Read: %q, %v; cat: %q", r.Content, err, b.Stdout)
			}
		}},
	)
}

func bashCases(*suite) []testCase {
	var out []testCase
	for _, b := range []struct {
		name, command, want string
		code                int
	}{
		{"echo", "echo hello", "hello\n", 0},
		{"status", "exit 7", "", 7},
		{"false", "false", "", 1},
		{"not found", "galley-no-such-command 2>/dev/null", "", 127},
		{"pipe", "printf 'b\\na\\n' | sort", "a\nb\n", 0},
		{"pipe status", "false | true", "", 0},
		{"pipefail", "set -o pipefail; false | true", "", 1},
		{"arrays", "a=(x y z); echo ${#a[@]} ${a[1]}", "3 y\n", 0},
		{"here document", "cat <<E\nin $((1+1))\nE", "in 2\n", 0},
		{"function", "f() { echo f$1; }; f 1", "f1\n", 0},
		{"command substitution", "echo $(echo a; echo b)", "a b\n", 0},
		{"loop", "for i in 1 2 3; do printf $i; done", "123", 0},
		{"glob", "cd dir; echo *.go", "a.go b.go\n", 0},
		{"test", "[[ -d dir && -f text.txt ]] && echo yes", "yes\n", 0},
		{"working directory", "cat text.txt | head -n 1", "one\n", 0},
		{"standard input is empty", "cat; echo end", "end\n", 0},
		{"both streams", "echo out; echo err >&2", "out\nerr\n", 0},
		{"quotes", `echo "a  b" 'c  d'`, "a  b c  d\n", 0},
		{"unicode", "echo héllo", "héllo\n", 0},
		{"several lines", "echo a\necho b\n", "a\nb\n", 0},
		{"syntax error", "if", "", 2},
		{"TERM is dumb", "echo $TERM $PAGER $GIT_PAGER", "dumb cat cat\n", 0},
		{"no output", "true", "", 0},
		{"write and read", "echo x > scratch-bash; cat scratch-bash; rm scratch-bash", "x\n", 0},
	} {
		out = append(out, testCase{b.name, func(c *tc) {
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: b.command})
			c.ok(err)
			if r.ExitCode != b.code || b.code != 2 && string(r.Output) != b.want {
				c.Errorf("status %d, %q; want %d, %q", r.ExitCode, r.Output, b.code, b.want)
			}
		}})
	}
	for _, b := range []struct {
		name string
		req  sandbox.BashRequest
		code sandbox.Code
	}{
		{"empty", sandbox.BashRequest{}, sandbox.Invalid},
		{"NUL", sandbox.BashRequest{Command: "echo \x00"}, sandbox.Invalid},
		{"too long", sandbox.BashRequest{Command: strings.Repeat("x", sandbox.MaxCommand+1)}, sandbox.TooLarge},
		{"bad variable", sandbox.BashRequest{Command: "true", Env: map[string]string{"A-B": "x"}}, sandbox.Invalid},
		{"empty variable name", sandbox.BashRequest{Command: "true", Env: map[string]string{"": "x"}}, sandbox.Invalid},
		{"NUL in a variable", sandbox.BashRequest{Command: "true", Env: map[string]string{"A": "x\x00"}}, sandbox.Invalid},
		{"negative timeout", sandbox.BashRequest{Command: "true", Timeout: -1}, sandbox.Invalid},
		{"endless timeout", sandbox.BashRequest{Command: "true", Timeout: sandbox.MaxTimeout + 1}, sandbox.Invalid},
		{"negative output", sandbox.BashRequest{Command: "true", MaxOutput: -1}, sandbox.Invalid},
		{"directory is a file", sandbox.BashRequest{Command: "true", Dir: "text.txt"}, sandbox.NotDirectory},
	} {
		out = append(out, testCase{"bad: " + b.name, func(c *tc) { _, err := c.sb.Bash(c.ctx, b.req); c.wantCode(err, b.code) }})
	}
	return append(out,
		testCase{"directory", func(c *tc) {
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "cat deep.go", Dir: "dir/sub"})
			c.ok(err)
			if string(r.Output) != fixtures["dir/sub/deep.go"] {
				c.Errorf("%q", r.Output)
			}
		}},
		testCase{"pwd", func(c *tc) {
			if got := strings.TrimSpace(c.bash("pwd")); got != c.s.info.Workdir {
				c.Errorf("pwd %s, workdir %s", got, c.s.info.Workdir)
			}
		}},
		testCase{"environment", func(c *tc) {
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: `echo "$GALLEY_A|$GALLEY_B"`, Env: map[string]string{"GALLEY_A": "x y", "GALLEY_B": "$HOME 'q'"}})
			c.ok(err)
			if string(r.Output) != "x y|$HOME 'q'\n" {
				c.Errorf("%q", r.Output)
			}
		}},
		testCase{"no environment of the caller", func(c *tc) {
			c.Setenv("GALLEY_SECRET_OF_THE_CALLER", "leak")
			if got := c.bash("echo x${GALLEY_SECRET_OF_THE_CALLER}"); got != "x\n" {
				c.Errorf("%q", got)
			}
		}},
		testCase{"stateless", func(c *tc) {
			c.bash("cd dir; X=1; export X; f() { :; }; umask 077")
			if got := c.bash("echo x$X; type f >/dev/null 2>&1 || echo none; cat text.txt | head -n 1"); got != "x\nnone\none\n" {
				c.Errorf("%q", got)
			}
		}},
		testCase{"standard input", func(c *tc) {
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "read a; cat; echo $a", Stdin: strings.NewReader("first\nrest\n")})
			c.ok(err)
			if string(r.Output) != "rest\nfirst\n" {
				c.Errorf("%q", r.Output)
			}
		}},
		testCase{"standard input that nobody reads", func(c *tc) {
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "true", Stdin: bytes.NewReader(make([]byte, 8<<20))})
			if err != nil || r.ExitCode != 0 {
				c.Errorf("status %d, %v", r.ExitCode, err)
			}
		}},
		testCase{"large standard input", func(c *tc) {
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "wc -c", Stdin: bytes.NewReader(make([]byte, 3<<20))})
			c.ok(err)
			if strings.TrimSpace(string(r.Output)) != "3145728" {
				c.Errorf("%q", r.Output)
			}
		}},
		testCase{"timeout", func(c *tc) {
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "echo before; sleep 600; echo after", Timeout: time.Second})
			c.wantCode(err, sandbox.Timeout)
			if string(r.Output) != "before\n" {
				c.Errorf("output %q", r.Output)
			}
		}},
		testCase{"cancel", func(c *tc) {
			ctx, cancel := context.WithCancel(c.ctx)
			defer cancel()
			_, err := c.sb.Bash(ctx, sandbox.BashRequest{Command: "echo up; sleep 600", OnOutput: func(sandbox.Output) { cancel() }})
			c.wantCode(err, sandbox.Canceled)
			if !errors.Is(err, context.Canceled) {
				c.Errorf("%v is not context.Canceled", err)
			}
		}},
		testCase{"what the shell leaves is ended", func(c *tc) {
			c.write(c.in("x"), "")
			c.bash("(sleep 1; echo late > " + c.in("late") + ") >/dev/null 2>&1 &")
			c.bash("sleep 2")
			_, err := c.sb.Stat(c.ctx, sandbox.StatRequest{Path: c.in("late")})
			c.wantCode(err, sandbox.NotFound)
		}},
		testCase{"a child that holds the output does not hold the call", func(c *tc) {
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "sleep 600 & echo done"})
			c.ok(err)
			if string(r.Output) != "done\n" {
				c.Errorf("%q", r.Output)
			}
		}},
	)
}

func outputCases(*suite) []testCase {
	return []testCase{
		{"separate", func(c *tc) {
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "echo out; echo err >&2", Separate: true})
			c.ok(err)
			if string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" || len(r.Output) != 0 {
				c.Errorf("%+v", r)
			}
		}},
		{"stream", func(c *tc) {
			var got [3]string
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{
				Command: "for i in 1 2 3; do echo $i; done; echo e >&2", Separate: true,
				OnOutput: func(o sandbox.Output) { got[o.Stream] += string(o.Data) },
			})
			c.ok(err)
			if got[sandbox.Stdout] != "1\n2\n3\n" || got[sandbox.Stderr] != "e\n" || string(r.Stdout) != got[1] || string(r.Stderr) != got[2] {
				c.Errorf("%q, result %+v", got, r)
			}
		}},
		{"stream of both", func(c *tc) {
			var got string
			_, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "echo a; echo b >&2; echo c", OnOutput: func(o sandbox.Output) { got += string(o.Data) }})
			c.ok(err)
			if got != "a\nb\nc\n" {
				c.Errorf("%q", got)
			}
		}},
		{"stream while it runs", func(c *tc) {
			// The command ends only when it has been heard.
			c.write(c.in("x"), "")
			var once sync.Once
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{
				Command: "echo up; until [ -e " + c.in("heard") + " ]; do sleep 0.02; done; echo heard",
				OnOutput: func(sandbox.Output) {
					once.Do(func() {
						if _, err := c.sb.Write(c.ctx, sandbox.WriteRequest{Path: c.in("heard")}); err != nil {
							c.Error(err)
						}
					})
				},
			})
			if err != nil || string(r.Output) != "up\nheard\n" {
				c.Errorf("%v, %q", err, r.Output)
			}
		}},
		{"head and tail are kept", func(c *tc) {
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "echo first; seq 1 20000; echo last", MaxOutput: 1000})
			c.ok(err)
			if len(r.Output) != 1000 || !strings.HasPrefix(string(r.Output), "first\n") || !strings.HasSuffix(string(r.Output), "last\n") || r.Head != 500 {
				c.Errorf("%d bytes, head %d: %q", len(r.Output), r.Head, short(string(r.Output)))
			}
			if whole := int64(len("first\nlast\n") + 108894); r.Dropped != whole-1000 {
				c.Errorf("dropped %d of %d", r.Dropped, whole)
			}
		}},
		{"head and tail of each stream", func(c *tc) {
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "seq 1 1000; seq 1 1000 >&2", MaxOutput: 100, Separate: true})
			c.ok(err)
			if len(r.Stdout) != 100 || len(r.Stderr) != 100 || r.Dropped == 0 || r.DroppedErr == 0 {
				c.Errorf("%+v", r)
			}
		}},
		{"stream gets all", func(c *tc) {
			n := 0
			_, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "seq 1 20000", MaxOutput: 10, OnOutput: func(o sandbox.Output) { n += len(o.Data) }})
			c.ok(err)
			if n != 108894 {
				c.Errorf("%d bytes", n)
			}
		}},
		{"bytes that are not UTF-8", func(c *tc) {
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: `printf '\xff\x00\xfe'`})
			c.ok(err)
			if string(r.Output) != "\xff\x00\xfe" {
				c.Errorf("%q", r.Output)
			}
		}},
		{"duration", func(c *tc) {
			r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: "true"})
			c.ok(err)
			if r.Duration <= 0 {
				c.Errorf("duration %v", r.Duration)
			}
		}},
	}
}

// poll collects the output of a process until it holds want or the process has
// ended.
func (c *tc) poll(p sandbox.Process, want string) (string, sandbox.ProcessState) {
	c.Helper()
	var got strings.Builder
	for {
		st, err := p.Poll(c.ctx, time.Second)
		c.ok(err)
		got.Write(st.Output)
		if strings.Contains(got.String(), want) || !st.Running {
			return got.String(), st
		}
	}
}

func (c *tc) start(r sandbox.BashRequest) sandbox.Process {
	c.Helper()
	p, err := c.sb.Start(c.ctx, r)
	c.ok(err)
	c.Cleanup(func() { _ = p.Release() })
	return p
}

func processCases(*suite) []testCase {
	return []testCase{
		{"start and wait", func(c *tc) {
			p := c.start(sandbox.BashRequest{Command: "echo hi; exit 3"})
			r, err := p.Wait(c.ctx)
			c.ok(err)
			if string(r.Output) != "hi\n" || r.ExitCode != 3 {
				c.Errorf("%+v", r)
			}
		}},
		{"poll", func(c *tc) {
			p := c.start(sandbox.BashRequest{Command: "echo up; read x; echo got $x", OpenStdin: true})
			if got, st := c.poll(p, "up\n"); got != "up\n" || !st.Running {
				c.Errorf("%q, %+v", got, st)
			}
			c.ok(p.Write(c.ctx, []byte("word\n")))
			if got, _ := c.poll(p, "got word\n"); got != "got word\n" {
				c.Errorf("%q", got)
			}
			r, err := p.Wait(c.ctx)
			c.ok(err)
			if string(r.Output) != "up\ngot word\n" {
				c.Errorf("what was polled is not in the result: %q", r.Output)
			}
		}},
		{"poll does not wait", func(c *tc) {
			p := c.start(sandbox.BashRequest{Command: "sleep 600"})
			st, err := p.Poll(c.ctx, 0)
			c.ok(err)
			if !st.Running || len(st.Output) != 0 {
				c.Errorf("%+v", st)
			}
		}},
		{"close standard input", func(c *tc) {
			p := c.start(sandbox.BashRequest{Command: "cat; echo end", OpenStdin: true})
			c.ok(p.Write(c.ctx, []byte("x\n")))
			c.ok(p.CloseStdin())
			r, err := p.Wait(c.ctx)
			c.ok(err)
			if string(r.Output) != "x\nend\n" {
				c.Errorf("%q", r.Output)
			}
		}},
		{"write without standard input", func(c *tc) {
			p := c.start(sandbox.BashRequest{Command: "sleep 600"})
			c.wantCode(p.Write(c.ctx, []byte("x")), sandbox.Invalid)
		}},
		{"kill", func(c *tc) {
			p := c.start(sandbox.BashRequest{Command: "echo up; sleep 600"})
			c.poll(p, "up\n")
			c.ok(p.Kill())
			r, err := p.Wait(c.ctx)
			c.ok(err)
			if r.ExitCode != 137 || r.Signal != "SIGKILL" {
				c.Errorf("%+v", r)
			}
			c.wantCode(p.Kill(), "")
		}},
		{"terminate", func(c *tc) {
			p := c.start(sandbox.BashRequest{Command: "echo up; sleep 600; echo never"})
			c.poll(p, "up\n")
			c.ok(p.Signal(syscall.SIGTERM))
			r, err := p.Wait(c.ctx)
			c.ok(err)
			if r.ExitCode != 143 {
				c.Errorf("%+v", r)
			}
		}},
		{"signal after the end", func(c *tc) {
			p := c.start(sandbox.BashRequest{Command: "true"})
			_, err := p.Wait(c.ctx)
			c.ok(err)
			c.wantCode(p.Signal(syscall.SIGTERM), sandbox.NotFound)
		}},
		{"found by id", func(c *tc) {
			p := c.start(sandbox.BashRequest{Command: "sleep 600"})
			q, err := c.sb.Process(p.ID())
			c.ok(err)
			if q.ID() != p.ID() || p.ID() == "" {
				c.Errorf("%q, %q", p.ID(), q.ID())
			}
			found := false
			for _, r := range c.sb.Processes() {
				found = found || r.ID() == p.ID()
			}
			if !found {
				c.Error("it is not in the list")
			}
		}},
		{"unknown id", func(c *tc) { _, err := c.sb.Process("no-such-process"); c.wantCode(err, sandbox.NotFound) }},
		{"released", func(c *tc) {
			p := c.start(sandbox.BashRequest{Command: "sleep 600"})
			c.ok(p.Release())
			_, err := c.sb.Process(p.ID())
			c.wantCode(err, sandbox.NotFound)
		}},
		{"timeout", func(c *tc) {
			p := c.start(sandbox.BashRequest{Command: "sleep 600", Timeout: 200 * time.Millisecond})
			_, err := p.Wait(c.ctx)
			c.wantCode(err, sandbox.Timeout)
		}},
		{"outlives its context", func(c *tc) {
			ctx, cancel := context.WithCancel(c.ctx)
			p, err := c.sb.Start(ctx, sandbox.BashRequest{Command: "read x; echo $x", OpenStdin: true})
			c.ok(err)
			cancel()
			c.ok(p.Write(c.ctx, []byte("still\n")))
			r, err := p.Wait(c.ctx)
			c.ok(err)
			if string(r.Output) != "still\n" {
				c.Errorf("%q", r.Output)
			}
		}},
		{"bad request", func(c *tc) {
			_, err := c.sb.Start(c.ctx, sandbox.BashRequest{})
			c.wantCode(err, sandbox.Invalid)
		}},
		{"output that nobody polls", func(c *tc) {
			p := c.start(sandbox.BashRequest{Command: "seq 1 20000; echo last", MaxOutput: 1000})
			r, err := p.Wait(c.ctx)
			c.ok(err)
			if len(r.Output) != 1000 || !strings.HasSuffix(string(r.Output), "last\n") || r.Dropped == 0 {
				c.Errorf("%d bytes, dropped %d", len(r.Output), r.Dropped)
			}
		}},
		{"separate", func(c *tc) {
			p := c.start(sandbox.BashRequest{Command: "echo o; echo e >&2", Separate: true})
			r, err := p.Wait(c.ctx)
			c.ok(err)
			if string(r.Stdout) != "o\n" || string(r.Stderr) != "e\n" {
				c.Errorf("%+v", r)
			}
		}},
	}
}
