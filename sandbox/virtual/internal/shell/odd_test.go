package shell

import (
	"os"
	"strings"
	"testing"
)

// odd are the lines of testdata/odd.txt: arguments at their edges.
func odd(t testing.TB) []string {
	t.Helper()
	b, err := os.ReadFile("testdata/odd.txt")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// panics are scripts that the interpreter panics at. What it does then ends the
// script, or the part of it that runs apart, and never the program.
var panics = []string{`[[ -v "" ]]`, `[[ -R "" ]]`, `declare -n r=; echo $r`, `declare -A a=(1 2 3)`, `builtin shift -1`}

// TestOddArguments: no command fails at any of them, alone or where it runs in
// a goroutine of the interpreter's.
func TestOddArguments(t *testing.T) {
	v := newView(t)
	known := map[string]bool{}
	for _, s := range panics {
		known[s] = true
	}
	for _, s := range odd(t) {
		out, status := quick(t, v, s)
		if !known[s] && (status == 70 || strings.Contains(out, "internal error")) {
			t.Errorf("%s: status %d, %q", s, status, out)
		}
		_, _ = quick(t, v, s+" | cat")
		_, _ = quick(t, v, "{ "+s+"\n} & wait")
	}
}

// TestPanicsStayInside: the interpreter's panics are caught in whatever
// goroutine it has them.
func TestPanicsStayInside(t *testing.T) {
	v := newView(t)
	for _, s := range panics {
		for _, form := range []string{"%", "% | cat", "{ %; } | cat | cat", "% & wait", "(%) & wait", "x=$(% | cat)", "cat <(%)", "f() { %; }; f | cat", "eval '% | cat'", "echo '% | cat' > s; . ./s", "trap '% | cat' EXIT", "bash -c '% | cat'", "for i in 1 2; do % | cat; done", "if % | cat; then :; fi"} {
			quick(t, v, strings.ReplaceAll(form, "%", s))
		}
	}
}
