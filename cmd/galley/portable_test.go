package main

import (
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/galleyfs/galley/integration/treecmp"
)

// scriptSame compares two trees by all that a program can see of them.
func scriptSame(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] same DIR DIR")
	}
	var trees [2]treecmp.Tree
	for i, dir := range args {
		var err error
		trees[i], err = treecmp.Read(ts.MkAbs(dir))
		ts.Check(err)
	}
	diff := treecmp.Diff(trees[0], trees[1], treecmp.Options{})
	if (len(diff) > 0) != neg {
		ts.Fatalf("%s and %s:\n%s", args[0], args[1], strings.Join(diff, "\n"))
	}
}
