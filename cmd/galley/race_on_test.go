//go:build race

package main

// raceFlags build galley as this test binary was built.
var raceFlags = []string{"-race"}
