package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The tour in README.md is what happens: its commands are run, one after the
// other in one shell, and print what stands there. What differs from run to run
// (digests, ids, times, sizes, places) is compared by its form; a line of three
// dots stands for any lines.
func TestReadmeTour(t *testing.T) {
	dir, bin := scriptBench(t)
	data, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(data), "<!-- tour -->")
	tour, _, closed := strings.Cut(rest, "<!-- end of tour -->")
	if !ok || !closed {
		t.Fatal("README.md has no tour between its marks")
	}
	steps := tourSteps(tour)
	if len(steps) < 8 {
		t.Fatalf("only %d commands in the tour", len(steps))
	}
	work := filepath.Join(dir, "tour")
	if err := os.MkdirAll(filepath.Join(work, "home"), 0o755); err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&script, "printf '\\036'\n%s\n", s.command)
	}
	cmd := exec.Command("sh", "-c", script.String())
	cmd.Dir = work
	cmd.Env = []string{
		"PATH=" + bin + ":" + searchable(os.Getenv("PATH")) + ":/usr/sbin:/sbin", "HOME=" + filepath.Join(work, "home"),
		"GALLEY_HOME=" + filepath.Join(work, "state"), "LC_ALL=C.UTF-8", "TERM=dumb", "GIT_CONFIG_NOSYSTEM=1",
		"GORACE=atexit_sleep_ms=0",
	}
	out, _ := cmd.CombinedOutput() // of the last command, which may well refuse
	got := strings.Split(string(out), "\x1e")
	if len(got) != len(steps)+1 {
		t.Fatalf("%d outputs of %d commands:\n%s", len(got)-1, len(steps), out)
	}
	for i, s := range steps {
		want, have := tourForm(s.output), tourForm(got[i+1])
		if !matchTour(strings.Split(want, "\n"), strings.Split(have, "\n")) {
			t.Errorf("$ %s\nprints\n%s\nREADME.md has\n%s", s.command, got[i+1], s.output)
		}
	}
}

type tourStep struct{ command, output string }

// tourSteps are the commands of the console blocks, which begin with a dollar
// sign, and the lines below each.
func tourSteps(tour string) []tourStep {
	var steps []tourStep
	in := false
	for line := range strings.Lines(tour) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "```"):
			in = line == "```console"
		case !in:
		case strings.HasPrefix(line, "$ "):
			steps = append(steps, tourStep{command: line[2:]})
		case len(steps) > 0:
			steps[len(steps)-1].output += line + "\n"
		}
	}
	return steps
}

// tourVolatile are the parts that differ from run to run.
var tourVolatile = []struct {
	re   *regexp.Regexp
	form string
}{
	{regexp.MustCompile(`\b[0-9a-f]{40,64}\b`), "DIGEST"},
	{regexp.MustCompile(`restore \w{8}\b`), "restore ID"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d`), "DATE"},
	{regexp.MustCompile(`stage-\w+`), "stage-ID"},
	{regexp.MustCompile(`snapshot \d+`), "snapshot N"},
	{regexp.MustCompile(`/\S*/app`), "/DIR/app"},
	{regexp.MustCompile(`in /\S*/\.galley`), "in /DIR/.galley"},
	{regexp.MustCompile(`\d+(\.\d+)? (s|[KM]iB)\b`), "SIZE"},
	{regexp.MustCompile(` \(live\)`), ""},
	{regexp.MustCompile(`  +`), "  "},
}

func tourForm(s string) string {
	for _, v := range tourVolatile {
		s = v.re.ReplaceAllString(s, v.form)
	}
	return strings.TrimSpace(s)
}

// matchTour compares lines; "..." in want stands for any number of them.
func matchTour(want, have []string) bool {
	for i, w := range want {
		if w == "..." {
			for n := i; n <= len(have); n++ {
				if matchTour(want[i+1:], have[n:]) {
					return true
				}
			}
			return false
		}
		if i >= len(have) || strings.TrimRight(w, " ") != strings.TrimRight(have[i], " ") {
			return false
		}
	}
	return len(want) == len(have)
}
