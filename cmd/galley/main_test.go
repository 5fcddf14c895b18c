package main

import (
	"context"
	"os"
	"path"
	"strings"
	"testing"

	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/overlay/hostfs/hostfstest"
)

// endBefore is the variable that makes the test's own program the galley
// command line, which ends without a word before a call that a commit makes: its
// value is the call and a pattern for the name, such as "Rename journal".
const endBefore = "GALLEY_TEST_END_BEFORE"

func TestMain(m *testing.M) {
	if at := os.Getenv(endBefore); at != "" {
		os.Exit(mainUntil(at))
	}
	os.Exit(m.Run())
}

func mainUntil(at string) int {
	op, pattern, _ := strings.Cut(at, " ")
	fault := hostfstest.New(hostfs.OS)
	fault.Only(func(o, name string) bool {
		match, err := path.Match(pattern, name)
		return o == op && match && err == nil
	})
	fault.ExitAt(1)
	e := newEnv(os.Stdin, os.Stdout, os.Stderr, os.Getenv)
	e.commitFS = fault
	return Main(context.Background(), append([]string{"galley"}, os.Args[1:]...), e)
}
