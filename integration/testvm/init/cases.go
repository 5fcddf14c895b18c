package main

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// notHere are cases of posixtest that are left out: one that no file system
// passes (see fs's), and one that looks for a race by a thousand attempts, which
// takes 20 s in emulation.
var notHere = map[string]bool{"FcntlFlockLocksFile": true, "OpenSymlinkRace": true}

// runCases runs the cases that -test.run names, each in a directory of its own
// below GUEST_DIR, and exits.
func runCases() {
	all := maps.Clone(cases)
	for name, f := range posixtest.All {
		if !notHere[name] {
			all["posixtest/"+name] = f
		}
	}
	var tests []testing.InternalTest
	for _, name := range slices.Sorted(maps.Keys(all)) {
		tests = append(tests, testing.InternalTest{Name: name, F: func(t *testing.T) {
			dir, err := os.MkdirTemp(os.Getenv("GUEST_DIR"), "case-")
			if err != nil {
				t.Fatal(err)
			}
			all[name](t, dir)
		}})
	}
	match := func(pat, str string) (bool, error) { return regexp.MatchString(pat, str) }
	testing.Main(match, tests, nil, nil)
}
