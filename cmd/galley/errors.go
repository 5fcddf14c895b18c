package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// failure is an error with what the command line needs beside its text: the
// exit status, and what a person can do next.
type failure struct {
	err   error
	code  int
	hints []string
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// withHint adds next steps to err. Each is shown on a line of its own.
func withHint(err error, hints ...string) error {
	return &failure{err: err, code: exitCode(err), hints: hints}
}

// refusef is a refusal: nothing was changed, and nothing is broken.
func refusef(format string, args ...any) error {
	return &failure{err: fmt.Errorf(format, args...), code: exitRefused}
}

// usagef is a wrong call of the command that c belongs to.
func usagef(c *cli.Context, format string, args ...any) error {
	name := "galley"
	if c.Command != nil && c.Command.HelpName != "" {
		name = c.Command.HelpName
	}
	return &failure{
		err:   fmt.Errorf("%s: %w", strings.TrimPrefix(strings.TrimPrefix(name, "galley"), " "), fmt.Errorf(format, args...)),
		code:  exitFailed,
		hints: []string{name + " --help"},
	}
}

// silent ends the program with code and no message: the status of a command
// that was run, or an answer that is all in the status.
type silent int

func (s silent) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// exitCode is the status that err ends the program with.
func exitCode(err error) int {
	var f *failure
	var s silent
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &s):
		return int(s)
	case errors.As(err, &f):
		return f.code
	}
	return exitFailed
}

// report writes err for a person and returns the status to end with.
func report(w io.Writer, err error) int {
	code := exitCode(err)
	if err == nil {
		return code
	}
	if s := silent(0); errors.As(err, &s) {
		return code
	}
	// Several errors joined are lines; names in them are quoted by now.
	fmt.Fprintf(w, "galley: %s\n", safeLine(strings.ReplaceAll(err.Error(), "\n", "; ")))
	for _, h := range hintsOf(err) {
		fmt.Fprintf(w, "galley: hint: %s\n", safeLine(h))
	}
	return code
}

// hintsOf collects the hints of every failure that err wraps, outermost
// first, each once.
func hintsOf(err error) []string {
	var all []string
	for err != nil {
		var f *failure
		if !errors.As(err, &f) {
			break
		}
		for _, h := range f.hints {
			if !slices.Contains(all, h) {
				all = append(all, h)
			}
		}
		err = f.err
	}
	return all
}

// nearest is the word of names that s was most likely meant to be, "" if none
// is near enough to be worth a question.
func nearest(s string, names []string) string {
	best, limit := "", max(2, len(s)/3)+1
	for _, n := range names {
		d := distance(s, n)
		if strings.HasPrefix(n, s) && s != "" {
			d = 1
		}
		if d < limit {
			best, limit = n, d
		}
	}
	return best
}

// distance is the number of insertions, removals, replacements and swaps of
// neighbours that lead from a to b.
func distance(a, b string) int {
	row := func() []int { return make([]int, len(b)+1) }
	prev2, prev, cur := row(), row(), row()
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
