package main

import (
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// event is one line of `go test -json`; see `go doc test2json`.
type event struct {
	Action     string
	Package    string
	ImportPath string // in place of Package, where a build failed
	Test       string
	Output     string
}

type testID struct{ pkg, test string }

func (t testID) String() string {
	if t.test == "" {
		return t.pkg
	}
	return t.pkg + " " + t.test
}

type skip struct {
	id     testID
	reason string
}

// report counts what passed, failed and was skipped in one run.
type report struct {
	out     io.Writer
	strict  bool // a skip must have an allowed reason
	allowed []*regexp.Regexp

	passed  int
	failed  []testID
	skipped []skip
	// printed holds the output of tests that are not over yet, from which
	// the reason of a skip is taken.
	printed map[testID]string
}

func newReport(out io.Writer) *report {
	return &report{out: out, printed: make(map[testID]string)}
}

// line takes in one line. What is not JSON is printed as it is: the go
// command writes some of its own errors that way.
func (r *report) line(raw []byte) error {
	var e event
	if len(raw) == 0 || raw[0] != '{' || json.Unmarshal(raw, &e) != nil {
		_, err := fmt.Fprintf(r.out, "%s\n", raw)
		return err
	}
	id := testID{e.Package, e.Test}
	switch e.Action {
	case "output", "build-output":
		return r.output(id, e.Output)
	case "pass":
		if e.Test != "" {
			r.passed++
		}
		delete(r.printed, id)
	case "fail":
		r.fail(id)
		delete(r.printed, id)
	case "build-fail":
		r.fail(testID{pkg: e.ImportPath})
	case "skip":
		// A package without tests is reported as skipped as well.
		if e.Test != "" {
			r.skipped = append(r.skipped, skip{id, reasonOf(r.printed[id])})
		}
		delete(r.printed, id)
	}
	return nil
}

// fail counts a failure. A package fails with each of its tests; that is
// counted only where no test of it has failed.
func (r *report) fail(id testID) {
	for _, f := range r.failed {
		if id.test == "" && f.pkg == id.pkg {
			return
		}
	}
	r.failed = append(r.failed, id)
}

func (r *report) output(id testID, text string) error {
	for _, noise := range []string{"=== RUN", "=== PAUSE", "=== CONT", "=== NAME"} {
		if strings.HasPrefix(text, noise) {
			return nil
		}
	}
	if id.test != "" && len(r.printed[id]) < 4096 {
		r.printed[id] += text
	}
	_, err := io.WriteString(r.out, text)
	return err
}

// reasonOf takes the line that t.Skip printed: the last one that is not the
// result itself.
func reasonOf(printed string) string {
	reason := "no reason given"
	for _, line := range strings.Split(printed, "\n") {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "--- SKIP") {
			reason = line
		}
	}
	return reason
}

func (r *report) mayBeSkipped(reason string) bool {
	if !r.strict {
		return true
	}
	for _, re := range r.allowed {
		if re.MatchString(reason) {
			return true
		}
	}
	return false
}

// finish prints the summary and says whether the run is good.
func (r *report) finish(lane string) bool {
	ok := len(r.failed) == 0
	for _, id := range r.failed {
		fmt.Fprintf(r.out, "FAILED  %s\n", id)
	}
	for _, s := range r.skipped {
		word := "skipped"
		if !r.mayBeSkipped(s.reason) {
			word, ok = "SKIPPED WITHOUT NEED", false
		}
		fmt.Fprintf(r.out, "%s  %s: %s\n", word, s.id, s.reason)
	}
	if r.passed == 0 {
		fmt.Fprintln(r.out, "NO TEST PASSED")
		ok = false
	}
	fmt.Fprintf(r.out, "%s: %d passed, %d failed, %d skipped\n",
		lane, r.passed, len(r.failed), len(r.skipped))
	return ok
}
