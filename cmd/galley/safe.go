package main

import (
	"os"

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
