// Package doctor finds out what Galley can do on this machine, and says how to
// get the rest. It changes nothing but for a few files of a moment in the state
// directory, which it needs in order to see what that file system can do.
package doctor

import (
	"context"
)

// Level is how a finding bears on Galley.
type Level string

// The levels of a finding.
const (
	OK   Level = "ok"   // there
	Note Level = "note" // absent; Galley works, with less speed or fewer features
	Fail Level = "fail" // absent; what needs it does not work
)

// Finding is the answer of one check.
type Finding struct {
	Name  string `json:"name"`  // what was looked at
	Level Level  `json:"level"` //
	Found string `json:"found"` // what is there
	// Means is what follows for Galley; empty when the level is OK.
	Means string `json:"means,omitempty"`
	// Fix is what to do about it; empty when nothing can be done, or need be.
	Fix string `json:"fix,omitempty"`
}

// Report is all findings, and what follows for the commands.
type Report struct {
	// Run: `galley run` works here.
	Run bool `json:"run"`
	// Mount: `galley mount` works here.
	Mount    bool      `json:"mount"`
	Findings []Finding `json:"findings"`
}

// Options says where to look; the zero value looks at this machine.
type Options struct {
	// Home is the state directory, $GALLEY_HOME.
	Home string
	// Exe is this program, which probes namespaces in a child of its own.
	Exe string
	// Getenv reads the environment.
	Getenv func(string) string
}

// Examine runs all checks.
func Examine(ctx context.Context, opt Options) Report {
	k := kernelVersion()
	var r Report
	add := func(f ...Finding) { r.Findings = append(r.Findings, f...) }
	add(kernelFinding(k))
	fuse := fuseDevice()
	add(fuse)
	privileges, root := privilegeFinding()
	add(privileges)
	userns := userNamespaces(ctx, opt.Exe, root)
	add(userns)
	helper := fusermount(opt.Getenv("PATH"))
	add(helper)
	add(kernelFeatures(k)...)
	add(landlockFinding())
	home, usable := stateDirectory(opt.Home)
	add(home...)
	add(watchesFinding())
	add(machineFindings(ctx, opt.Home)...)

	r.Run = fuse.Level != Fail && userns.Level != Fail && usable && !k.less(5, 12)
	r.Mount = fuse.Level != Fail && (root || helper.Level == OK) && usable
	return r
}
