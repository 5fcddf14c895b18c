package main

import (
	"os"
	"strings"

	"github.com/galleyfs/galley/review/termsafe"
)

// safeLine makes text that may hold names or messages of somebody else
// harmless on a terminal, on one line.
func safeLine(s string) string { return termsafe.Escape(s) }

// safePath shows a path so that it stands for that path only.
func safePath(p string) string {
	if p == "" {
		return "."
	}
	return termsafe.Quote(p)
}

// selfPID tells this process from other users of a session.
var selfPID = os.Getpid()

// safeLines is safeLine for text of several lines.
func safeLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = safeLine(l)
	}
	return strings.Join(lines, "\n")
}
