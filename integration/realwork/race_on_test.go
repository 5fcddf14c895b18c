//go:build race

package realwork

// Under the race detector the program under test is built with it too.
var raceFlags = []string{"-race"}
