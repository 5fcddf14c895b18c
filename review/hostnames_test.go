package review

import (
	"path"
	"strings"
	"testing"
)

// The table gives the first rule that matches, as going through all rules would.
func TestRunsOnHostIsTheFirstRule(t *testing.T) {
	var paths []string
	for _, r := range hostRules {
		for _, p := range expandBraces(r.pattern) {
			for _, star := range []string{"", "x", "a/b"} {
				p := strings.Trim(strings.ReplaceAll(strings.ReplaceAll(p, "**", star), "*", "y"), "/")
				paths = append(paths, p, "src/"+p, p+"/in", p+"x", "x"+p, strings.ToUpper(p))
			}
		}
	}
	paths = append(paths, "", "a", "main.go", "docs/makefile/x", "node_modules/.bin/x", ".git/hooks")
	for _, p := range paths {
		want := ""
		for i := range hostRules {
			if r := &hostRules[i]; r.matches(strings.ToLower(p), path.Base(strings.ToLower(p))) {
				want = r.reason
				break
			}
		}
		if got := runsOnHost(p); got != want {
			t.Errorf("%q: %q, want %q", p, got, want)
		}
	}
}
