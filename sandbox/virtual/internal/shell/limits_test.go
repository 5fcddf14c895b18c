package shell

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// endless gives bytes for ever.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// TestLimits: what runs away is stopped, by name.
func TestLimits(t *testing.T) {
	small := Limits{Commands: 500, Loops: 1000, Frames: 1500, Output: 1 << 20, Input: 1 << 20, Variable: 64 << 10, Memory: 1 << 20, Script: 200 << 10, Nesting: 300, Parallel: 5000}
	for _, c := range []struct {
		name, script, want string
		stdin              io.Reader
	}{
		{"commands", "while :; do :; done", "commands", nil},
		{"a loop of no commands", "while [[ 1 ]]; do x=1; done", "loops", nil},
		{"a loop of arithmetic", "for ((;;)); do ((x++)); done", "loops", nil},
		{"a loop in eval", "eval 'while [[ 1 ]]; do ((x++)); done'", "loops", nil},
		{"a loop in source", "echo 'until [[ a == b ]]; do ((x++)); done' > s; . ./s", "loops", nil},
		{"a loop in trap", "trap 'while [[ 1 ]]; do ((x++)); done' EXIT", "loops", nil},
		{"a loop in a function", "f() { for ((;;)); do ((x++)); done; }; f", "loops", nil},
		{"a loop in bash -c", "bash -c 'while [[ 1 ]]; do ((x++)); done'", "loops", nil},
		{"recursion", "f() { f; }; f", "", nil},
		{"mutual recursion", "f() { g; }; g() { { { f; }; }; }; f", "", nil},
		{"recursion of shells", "echo 'bash ./s' > s; bash ./s", "", nil},
		{"fork bomb", "f() { f | f; }; f", "", nil},
		{"recursion by substitution", "f() { echo $(f); }; f", "", nil},
		{"output", "yes", "output", nil},
		{"output of a loop", "while :; do echo " + strings.Repeat("x", 5000) + "; done", "", nil},
		{"captured output", "x=$(yes); echo", "output", nil},
		{"standard input", "cat > /dev/null", "input", endless{}},
		{"a variable that doubles", "x=aaaaaaaa; " + strings.Repeat("x=$x$x; ", 40), "variable", nil},
		{"a variable in a list", "x=aaaaaaaa; " + strings.Repeat("x=$x$x && ", 40) + ":", "variable", nil},
		{"a variable that is appended to", "x=" + strings.Repeat("a", 40000) + "; x+=$x; x+=$x; x+=$x", "variable", nil},
		{"a replacement", "x=" + strings.Repeat("a", 30000) + "; y=$x; z=${x//a/$y}", "replacement", nil},
		{"a replacement in an argument", "x=" + strings.Repeat("a", 30000) + "; echo ${x//a/$x} > /dev/null", "replacement", nil},
		{"a replacement of an argument", "f() { echo \"${1//a/$1}\"; }; f " + strings.Repeat("a", 30000), "replacement", nil},
		{"arguments that double", "set -- aaaaaaaa; " + strings.Repeat("set -- \"$@\" \"$@\"; ", 30), "arguments", nil},
		{"many variables", "x=" + strings.Repeat("a", 60000) + "; for i in {1..400}; do declare \"v$i=$x\"; :; done", "variables", nil},
		{"a line for read", "read x", "", endless{}},
		{"a process substitution", "head -1 <(yes)", "substitution", nil},
		{"brackets", strings.Repeat("(", 20000) + strings.Repeat(")", 20000), "nested", nil},
		{"braces", strings.Repeat("{ ", 20000), "nested", nil},
		{"substitutions", strings.Repeat("$(", 20000), "nested", nil},
		{"arithmetic", "echo $((" + strings.Repeat("(", 20000) + "1", "nested", nil},
		{"ifs", strings.Repeat("if ", 20000), "nested", nil},
		{"negations", strings.Repeat("! ", 20000) + "true", "nested", nil},
		{"a long script", "echo " + strings.Repeat("x", 300<<10), "script", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newView(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var out bytes.Buffer
			_, err := Run(ctx, v, Script{Text: c.script, Dir: "/w", Env: testEnv, Limits: small, Stdin: c.stdin, Stdout: &out, Stderr: &out})
			var limit *LimitError
			if !errors.As(err, &limit) {
				t.Fatalf("error %v, want a limit; output %q", err, clip(out.String()))
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want %q in it", err, c.want)
			}
		})
	}
}

// TestRefusals are stopped before they run, or by the command itself.
func TestRefusals(t *testing.T) {
	v := newView(t)
	for _, c := range []struct{ script, want string }{
		{"echo {1..99999999999}", "brace expansion"},
		{"for i in {1..5000}{1..5000}; do :; done", "brace expansion"},
		{"echo " + strings.Repeat("x", 900) + "{1..99999}", "brace expansion"},
		{"x=1; echo " + strings.Repeat("$x", 300), "expansions"},
		{"printf '%999999999d' 1", "characters"},
		{"printf 'a\\n' | sed ':a;ba'", "million steps"},
		{"echo a | sed 's/\\(a\\)\\1/x/'", "back-references"},
		{"tail -f /dev/null", "not supported"},
		{"kill -9 1", "not supported"},
		{"trap 'x' DEBUG", "not supported"},
		{"echo 'a\\(' | grep 'a\\('", "Unmatched"},
		{"sort /dev/zero", "memory"},
		{"tac /dev/zero", "memory"},
	} {
		var out bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		status, err := Run(ctx, v, Script{Text: c.script, Dir: "/w", Env: testEnv, Stdout: &out, Stderr: &out, Limits: Limits{Memory: 1 << 20}})
		cancel()
		if err != nil || status == 0 || !strings.Contains(out.String(), c.want) {
			t.Errorf("%s: status %d, %v, %q; want %q", clip(c.script), status, err, clip(out.String()), c.want)
		}
	}
}

// TestEndsInTime: a script ends with its context, whatever it does, and nothing
// that it left behind changes a file afterwards.
func TestEndsInTime(t *testing.T) {
	for _, script := range []string{
		"sleep 1000", "while :; do :; done", "yes > /dev/null", "yes | sleep 1000", "sleep 1000 | cat", "read x < <(sleep 1000)", "cat", "read x", "read x y; echo $x",
		"sleep 1000 & wait", "tail -n 1 /dev/zero", "head -c 100000000000 /dev/zero > /dev/null", "bash -c 'sleep 1000'", "timeout 500 sleep 1000", "find / -exec sleep 1000 ';'",
		"seq 1000000000 > /dev/null", "grep x", "while read l; do :; done", "wc -l", "mapfile a", "select x in a; do :; done", "tr a b", "tee f", "jq .", "xargs echo", "sort", "cat <<< x; cat",
	} {
		v := newView(t)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		r, w := io.Pipe() // nobody writes
		done := make(chan error, 1)
		go func() {
			_, err := Run(ctx, v, Script{Text: script, Dir: "/w", Env: testEnv, Stdin: r, Limits: Limits{Commands: 1 << 40, Loops: 1 << 40, Output: 1 << 60}})
			done <- err
		}()
		select {
		case err := <-done:
			if !errors.Is(err, context.DeadlineExceeded) && script != "cat <<< x; cat" && err != nil {
				t.Errorf("%s: %v", script, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: it goes on after its time", script)
		}
		cancel()
		_ = w.Close()
	}
}
