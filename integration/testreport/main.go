// Testreport reads the output of `go test -json` on standard input, prints it
// as `go test -v` would, and closes with the number of tests that passed,
// failed and were skipped, each failure and each skip by name. Its exit status
// is 1 if anything failed, if no test ran, or if a test was skipped for a
// reason that the -allow file does not list.
//
// The -allow file holds one regular expression per line, matched against what
// the test printed before it was skipped; empty lines and lines that begin
// with # are left out.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

func main() {
	lane := flag.String("lane", "tests", "what the summary calls this run")
	allow := flag.String("allow", "", "file of reasons for which a test may be skipped (default: any)")
	flag.Parse()
	ok, err := run(os.Stdin, os.Stdout, *lane, *allow)
	if err != nil {
		fmt.Fprintf(os.Stderr, "testreport: %v\n", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer, lane, allowFile string) (ok bool, err error) {
	r := newReport(out)
	if allowFile != "" {
		if r.allowed, err = readAllowed(allowFile); err != nil {
			return false, err
		}
		r.strict = true
	}
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 0, 1<<16), 1<<24)
	for lines.Scan() {
		if err := r.line(lines.Bytes()); err != nil {
			return false, err
		}
	}
	if err := lines.Err(); err != nil {
		return false, fmt.Errorf("read the test output: %w", err)
	}
	return r.finish(lane), nil
}

func readAllowed(file string) ([]*regexp.Regexp, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var res []*regexp.Regexp
	var bad []error
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		re, err := regexp.Compile(line)
		if err != nil {
			bad = append(bad, fmt.Errorf("%s:%d: %w", file, i+1, err))
			continue
		}
		res = append(res, re)
	}
	return res, errors.Join(bad...)
}
